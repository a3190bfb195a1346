/* --profile FILE: where the time of steps goes, as tables by op and by phase, and as a Chrome
 * trace in FILE. See cli.h and models/profile.h. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/profile.h"
#include "tools/cli.h"

/* ---- the file ---- */

/* What bk_file_write_atomic will do at the end, tried before the work: PATH.tmp can be made, and
 * nothing but a file is in the way. */
static bk_status check_path(bk_context *ctx, const char *path) {
  int kind;
  bk_file *file;
  if (!*path) return bk_fail(ctx, BK_ERR_ARGUMENT, "--profile: the name of the file is empty");
  BK_TRY(bk_path_kind(ctx, path, &kind));
  if (kind > 0)
    return bk_fail(ctx, BK_ERR_IO, "--profile %s: %s is there, not a file", path,
                   kind == 1 ? "a folder" : "something else");
  char *beside = bk_format(ctx, "%s.tmp", path);
  if (!beside) return BK_ERR_MEMORY;
  int rc = ctx->fs.open_write(ctx->fs.user, beside, false, &file);
  if (rc == 0) {
    ctx->fs.close(ctx->fs.user, file);
    ctx->fs.remove(ctx->fs.user, beside);
  }
  bk_free(ctx, beside);
  return rc == 0 ? BK_OK
                 : bk_fail(ctx, BK_ERR_IO, "--profile %s: the file cannot be made: %s", path,
                           strerror(-rc));
}

bk_status cli_profile_begin(cli_session *s, bk_model *model, bk_profile **profile) {
  const char *path = cli_value(&s->args, "profile");
  *profile = NULL;
  if (!path) return BK_OK;
  BK_TRY(check_path(s->ctx, path));
  return bk_profile_create(model, profile);
}

/* ---- figures of one step ---- */

/* Seconds, share of the step and rates; a rate is NAN where there is nothing to rate. */
typedef struct line {
  const char *name, *kernel;
  double calls, seconds, share, bytes_per_s, flops_per_s;
} line;

static line make_line(const bk_profile *p, const char *name, const char *kernel,
                      const bk_profile_figures *f) {
  double steps = (double)bk_profile_counted(p);
  return (line){name,
                kernel,
                f->calls / steps,
                f->seconds / steps,
                f->seconds / p->step_seconds,
                f->seconds > 0 ? f->bytes / f->seconds : NAN,
                f->seconds > 0 ? f->flops / f->seconds : NAN};
}

/* Longest first; ties in the order of their ids, so that the order does not depend on the sort. */
static int longest_first(const void *a, const void *b) {
  const bk_profile_row *x = *(bk_profile_row *const *)a, *y = *(bk_profile_row *const *)b;
  if (x->sum.seconds != y->sum.seconds) return x->sum.seconds < y->sum.seconds ? 1 : -1;
  return (x->id > y->id) - (x->id < y->id);
}

/* Calls `each` for every row that was called, the longest first. */
static bk_status for_rows(const bk_profile *p, const bk_profile_row *rows, size_t count,
                          bool phases, void (*each)(void *arg, const line *l), void *arg) {
  const bk_profile_row **sorted = bk_alloc_array(p->model->ctx, count, sizeof *sorted);
  if (!sorted) return BK_ERR_MEMORY;
  for (size_t i = 0; i < count; i++) sorted[i] = &rows[i];
  qsort(sorted, count, sizeof *sorted, longest_first);
  for (size_t i = 0; i < count; i++) {
    if (sorted[i]->sum.calls == 0) continue;
    line l = make_line(
        p, phases ? bk_phase_name((bk_phase)sorted[i]->id) : bk_op_name((bk_op)sorted[i]->id),
        phases ? "" : sorted[i]->kernel, &sorted[i]->sum);
    each(arg, &l);
  }
  bk_free(p->model->ctx, sorted);
  return BK_OK;
}

static bk_profile_figures whole(const bk_profile *p) {
  bk_profile_figures sum = {0};
  for (int i = 0; i < BK_PHASE_COUNT; i++) {
    sum.calls += p->phases[i].sum.calls;
    sum.seconds += p->phases[i].sum.seconds;
  }
  return sum;
}

/* ---- text ---- */

static void print_line(void *arg, const line *l) {
  fprintf(arg, "%-18s %-24s %8.4g %10.3f %6.1f%%", l->name, l->kernel, l->calls, l->seconds * 1e3,
          100 * l->share);
  if (l->seconds > 0) fprintf(arg, " %9.2f %9.2f", l->bytes_per_s * 1e-9, l->flops_per_s * 1e-9);
  fputc('\n', arg);
}

static bk_status print_table(const bk_profile *p, FILE *to, const char *of,
                             const bk_profile_row *rows, size_t count, bool phases) {
  fprintf(to, "%-18s %-24s %8s %10s %7s %9s %9s\n", of, phases ? "" : "kernel", "calls", "ms",
          "share", "GB/s", "GFLOP/s");
  return for_rows(p, rows, count, phases, print_line, to);
}

bk_status cli_profile_print(const bk_profile *p, const char *file, FILE *to) {
  int64_t steps = bk_profile_counted(p);
  if (!p->done) {
    fprintf(to, "profile: no step was taken; trace: %s\n", file);
    return BK_OK;
  }
  bk_profile_figures ops = whole(p);
  double between = p->step_seconds - ops.seconds;
  fprintf(to, "profile: %lld step%s of %.3f ms%s; trace: %s; of one step:\n", (long long)steps,
          steps == 1 ? "" : "s", p->step_seconds / (double)steps * 1e3,
          p->done > 1 ? ", without the first, which warms up" : "", file);
  BK_TRY(print_table(p, to, "op", p->ops, p->n_ops, false));
  fprintf(to, "%-18s %-24s %8s %10.3f %6.1f%%\n", "(between ops)", "", "",
          between / (double)steps * 1e3, 100 * between / p->step_seconds);
  return print_table(p, to, "phase", p->phases, BK_PHASE_COUNT, true);
}

/* ---- JSON ---- */

static void append_op(void *arg, const line *l) {
  json_array_append_new(arg, json_pack("{s:s,s:s,s:f,s:f,s:f,s:o,s:o}", "op", l->name, "kernel",
                                       l->kernel, "calls", l->calls, "seconds", l->seconds, "share",
                                       l->share, "gb_per_s", cli_number(l->bytes_per_s * 1e-9),
                                       "gflop_per_s", cli_number(l->flops_per_s * 1e-9)));
}

static void append_phase(void *arg, const line *l) {
  json_array_append_new(
      arg, json_pack("{s:s,s:f,s:f,s:f,s:o,s:o}", "phase", l->name, "calls", l->calls, "seconds",
                     l->seconds, "share", l->share, "gb_per_s", cli_number(l->bytes_per_s * 1e-9),
                     "gflop_per_s", cli_number(l->flops_per_s * 1e-9)));
}

json_t *cli_profile_json(const bk_profile *p, const char *file) {
  json_t *ops = json_array(), *phases = json_array();
  double steps = (double)bk_profile_counted(p);
  bk_status status =
      ops && phases ? for_rows(p, p->ops, p->n_ops, false, append_op, ops) : BK_ERR_MEMORY;
  if (status == BK_OK) status = for_rows(p, p->phases, BK_PHASE_COUNT, true, append_phase, phases);
  if (status == BK_OK)
    return json_pack("{s:I,s:o,s:o,s:o,s:o,s:s}", "steps", (json_int_t)bk_profile_counted(p),
                     "step_seconds", cli_number(p->step_seconds / steps), "between_seconds",
                     cli_number((p->step_seconds - whole(p).seconds) / steps), "ops", ops, "phases",
                     phases, "trace", file);
  json_decref(ops);
  json_decref(phases);
  return NULL;
}

/* ---- the end ---- */

bk_status cli_profile_end(cli_session *s, bk_profile *p, bk_status status) {
  if (!p) return status;
  const char *file = cli_value(&s->args, "profile");
  bk_status written = bk_profile_write_trace(p, file);
  if (written == BK_OK) written = cli_profile_print(p, file, stderr);
  bk_profile_destroy(p);
  return status != BK_OK ? status : written;
}
