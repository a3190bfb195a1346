/* --profile FILE: where the time of steps goes, as tables by op and by phase, and as a Chrome
 * trace in FILE. See cli.h and birkhoff/profile.h. */
#include <birkhoff/profile.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli.h"

/* ---- the file ---- */

/* What bk_profile_write_trace will do at the end, tried before the work: PATH.tmp can be made, and
 * nothing but a file is in the way. */
static bk_status check_path(bk_context *ctx, const char *path) {
  int kind;
  if (!*path) return bk_fail(ctx, BK_ERR_ARGUMENT, "--profile: the name of the file is empty");
  BK_TRY(bk_path_kind(ctx, path, &kind));
  if (kind > 0)
    return bk_fail(ctx, BK_ERR_IO, "--profile %s: %s is there, not a file", path,
                   kind == 1 ? "a folder" : "something else");
  char *beside = bk_format(ctx, "%s.tmp", path);
  if (!beside) return BK_ERR_MEMORY;
  FILE *file = fopen(beside, "wb");
  bk_status status = file ? BK_OK
                          : bk_fail(ctx, BK_ERR_IO, "--profile %s: the file cannot be made: %s",
                                    path, strerror(errno));
  if (file) {
    fclose(file);
    unlink(beside);
  }
  bk_free(ctx, beside);
  return status;
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
  int place; /* in the table as it is kept */
} line;

static line make_line(const bk_profile *p, const bk_profile_total *total, bk_profile_table table,
                      int i) {
  bk_profile_line l;
  bk_profile_get(p, table, i, &l);
  double steps = (double)total->counted;
  return (line){l.name,
                l.kernel,
                l.calls / steps,
                l.seconds / steps,
                l.seconds / total->step_seconds,
                l.seconds > 0 ? l.bytes / l.seconds : NAN,
                l.seconds > 0 ? l.flops / l.seconds : NAN,
                i};
}

/* Longest first; ties as in the table. */
static bool before(const line *a, const line *b) {
  return a->seconds != b->seconds ? a->seconds > b->seconds : a->place < b->place;
}

/* Calls `each` for every line that was called, the longest first. */
static void for_lines(const bk_profile *p, bk_profile_table table,
                      void (*each)(void *arg, const line *l), void *arg) {
  int count = bk_profile_count(p, table);
  line last = {.seconds = INFINITY};
  bk_profile_total total;
  bk_profile_get_total(p, &total);
  for (int done = 0; done < count; done++) {
    line next = {.seconds = -1};
    for (int i = 0; i < count; i++) {
      line l = make_line(p, &total, table, i);
      if (before(&last, &l) && before(&l, &next)) next = l;
    }
    if (next.calls > 0) each(arg, &next);
    last = next;
  }
}

/* ---- text ---- */

static void print_line(void *arg, const line *l) {
  fprintf(arg, "%-18s %-24s %8.4g %10.3f %6.1f%%", l->name, l->kernel, l->calls, l->seconds * 1e3,
          100 * l->share);
  if (l->seconds > 0) fprintf(arg, " %9.2f %9.2f", l->bytes_per_s * 1e-9, l->flops_per_s * 1e-9);
  fputc('\n', arg);
}

static void print_table(const bk_profile *p, FILE *to, const char *of, bk_profile_table table) {
  fprintf(to, "%-18s %-24s %8s %10s %7s %9s %9s\n", of, table == BK_PROFILE_OPS ? "kernel" : "",
          "calls", "ms", "share", "GB/s", "GFLOP/s");
  for_lines(p, table, print_line, to);
}

bk_status cli_profile_print(const bk_profile *p, const char *file, FILE *to) {
  bk_profile_total t;
  bk_profile_get_total(p, &t);
  if (!t.steps) {
    fprintf(to, "profile: no step was taken; trace: %s\n", file);
    return BK_OK;
  }
  double steps = (double)t.counted, between = t.step_seconds - t.op_seconds;
  fprintf(to, "profile: %lld step%s of %.3f ms%s; trace: %s; of one step:\n", (long long)t.counted,
          t.counted == 1 ? "" : "s", t.step_seconds / steps * 1e3,
          t.steps > 1 ? ", without the first, which warms up" : "", file);
  print_table(p, to, "op", BK_PROFILE_OPS);
  fprintf(to, "%-18s %-24s %8s %10.3f %6.1f%%\n", "(between ops)", "", "", between / steps * 1e3,
          100 * between / t.step_seconds);
  print_table(p, to, "phase", BK_PROFILE_PHASES);
  return BK_OK;
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
  bk_profile_total t;
  bk_profile_get_total(p, &t);
  double steps = (double)t.counted;
  for_lines(p, BK_PROFILE_OPS, append_op, ops);
  for_lines(p, BK_PROFILE_PHASES, append_phase, phases);
  return json_pack("{s:I,s:o,s:o,s:o,s:o,s:s}", "steps", (json_int_t)t.counted, "step_seconds",
                   cli_number(t.step_seconds / steps), "between_seconds",
                   cli_number((t.step_seconds - t.op_seconds) / steps), "ops", ops, "phases",
                   phases, "trace", file);
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
