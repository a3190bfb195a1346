/* --profile FILE: where the time of steps goes, as tables by op and by phase, and as a Chrome
 * trace in FILE. See cli.h and birkhoff/profile.h. */
#include <birkhoff/profile.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/team.h"

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

/* Ranks create their profiles at the same moment, as far as an agreement is one: the times of all
 * of them count from there. */
bk_status cli_profile_begin(cli_session *s, bk_model *model, bk_profile **profile) {
  const char *path = cli_value(&s->args, "profile");
  bk_status status = BK_OK;
  *profile = NULL;
  if (!path) return BK_OK;
  if (!s->team || cli_team_leads(s->team)) status = check_path(s->ctx, path);
  if (s->team) status = cli_team_agree(s->team, status);
  if (status == BK_OK) status = bk_profile_create(model, profile);
  if (s->team) status = cli_team_agree(s->team, status);
  if (status == BK_OK) return BK_OK;
  bk_profile_destroy(*profile);
  *profile = NULL;
  return status;
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

/* Seconds of the host's clock, beside the ops and not part of the step's table. */
static void print_exchanges(const bk_profile *p, double steps, FILE *to) {
  bk_profile_exchange e;
  if (!bk_profile_exchange_count(p)) return;
  fprintf(to, "%-18s %-24s %8s %10s %10s %9s\n", "between ranks", "", "calls", "ms", "waited ms",
          "MB sent");
  for (int i = 0; i < bk_profile_exchange_count(p); i++) {
    bk_profile_exchange_get(p, i, &e);
    fprintf(to, "%-18s %-24s %8.4g %10.3f %10.3f %9.3f\n", e.name, "", e.calls / steps,
            e.busy_s / steps * 1e3, e.wait_s / steps * 1e3, e.bytes / steps * 1e-6);
  }
  bk_profile_exchange_get(p, 0, &e);
  double hidden = bk_profile_hidden(&e);
  if (isfinite(hidden))
    fprintf(to, "hidden under the backward pass: %.1f%% of reduce_scatter, in profiled steps\n",
            100 * hidden);
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
  print_exchanges(p, steps, to);
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

static json_t *exchanges_json(const bk_profile *p, double steps) {
  json_t *list = json_array();
  for (int i = 0; i < bk_profile_exchange_count(p); i++) {
    bk_profile_exchange e;
    bk_profile_exchange_get(p, i, &e);
    json_array_append_new(
        list,
        json_pack("{s:s,s:f,s:f,s:f,s:f}", "kind", e.name, "calls", e.calls / steps, "seconds",
                  e.busy_s / steps, "wait_seconds", e.wait_s / steps, "bytes", e.bytes / steps));
  }
  return list;
}

static json_t *hidden_json(const bk_profile *p) {
  bk_profile_exchange e = {0};
  if (bk_profile_exchange_count(p)) bk_profile_exchange_get(p, 0, &e);
  return cli_number(bk_profile_hidden(&e));
}

json_t *cli_profile_json(const bk_profile *p, const char *file) {
  json_t *ops = json_array(), *phases = json_array();
  bk_profile_total t;
  bk_profile_get_total(p, &t);
  double steps = (double)t.counted;
  for_lines(p, BK_PROFILE_OPS, append_op, ops);
  for_lines(p, BK_PROFILE_PHASES, append_phase, phases);
  return json_pack("{s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:s}", "steps", (json_int_t)t.counted,
                   "step_seconds", cli_number(t.step_seconds / steps), "between_seconds",
                   cli_number((t.step_seconds - t.op_seconds) / steps), "ops", ops, "phases",
                   phases, "exchanges", exchanges_json(p, steps), "hidden_share", hidden_json(p),
                   "trace", file);
}

/* ---- the traces of several ranks ---- */

/* Texts are gathered in rounds of so many bytes in all, because every rank gets all of them. */
#define ROUND_BYTES ((int64_t)1 << 20)

typedef struct traces {
  cli_team *team;
  FILE *file;       /* rank 0's */
  int64_t *lengths; /* of each rank's text */
  char *round;      /* what one round has of each rank */
  int64_t chunk;
} traces;

/* One rank after the other: the texts of all do not fit into memory where there are many. Rank r's
 * text is then written as a whole before that of r + 1. */
static bk_status gather_text(traces *t, int rank, const char *text) {
  for (int64_t at = 0; at < t->lengths[rank]; at += t->chunk) {
    int64_t left = t->lengths[rank] - at, n = left < t->chunk ? left : t->chunk;
    char *own = t->round + (int64_t)t->team->size * t->chunk;
    memset(own, 0, (size_t)n);
    if (rank == t->team->rank) memcpy(own, text + at, (size_t)n);
    BK_TRY(cli_team_gather(t->team, own, (size_t)n, t->round));
    if (t->file) fwrite(t->round + rank * n, 1, (size_t)n, t->file);
  }
  return BK_OK;
}

static bk_status gather_texts(traces *t, const char *text) {
  for (int r = 0; r < t->team->size; r++) {
    if (t->file) fputs(r ? ",\n" : "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", t->file);
    BK_TRY(gather_text(t, r, text));
  }
  if (t->file) fputs("\n]}\n", t->file);
  return BK_OK;
}

static void drop_trace(FILE *file, const char *beside) {
  fclose(file);
  unlink(beside);
}

/* As bk_profile_write_trace does it: written beside, synced and renamed. */
static bk_status close_trace(cli_session *s, FILE *file, const char *beside, const char *path) {
  bool ok = fflush(file) == 0 && !ferror(file) && fsync(fileno(file)) == 0;
  int error = errno;
  if (fclose(file) != 0 && ok) ok = false, error = errno;
  if (ok && rename(beside, path) != 0) ok = false, error = errno;
  if (ok) return BK_OK;
  unlink(beside);
  return bk_fail(s->ctx, BK_ERR_IO, "--profile %s: cannot write: %s", path, strerror(error));
}

static bk_status open_trace(cli_session *s, const char *beside, FILE **file) {
  *file = NULL;
  if (!cli_team_leads(s->team) || (*file = fopen(beside, "wb"))) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_IO, "cannot write %s: %s", beside, strerror(errno));
}

static bk_status write_traces(cli_session *s, const bk_profile *p, const char *path) {
  bk_context *ctx = s->ctx;
  traces t = {.team = s->team, .chunk = ROUND_BYTES / s->team->size + 1};
  char *text = NULL, *beside = bk_format(ctx, "%s.tmp", path);
  size_t bytes = 0;
  t.lengths = bk_alloc_array(ctx, (size_t)t.team->size, sizeof *t.lengths);
  t.round = bk_alloc_array(ctx, (size_t)t.team->size + 1, (size_t)t.chunk);
  bk_status status = beside && t.lengths && t.round ? BK_OK : BK_ERR_MEMORY;
  if (status == BK_OK) status = bk_profile_trace_events(p, t.team->rank, &text, &bytes);
  if (status == BK_OK) status = open_trace(s, beside, &t.file);
  status = cli_team_agree(t.team, status);
  int64_t length = (int64_t)bytes;
  if (status == BK_OK) status = cli_team_gather(t.team, &length, sizeof length, t.lengths);
  if (status == BK_OK) status = gather_texts(&t, text);
  if (t.file && status == BK_OK) status = close_trace(s, t.file, beside, path);
  else if (t.file) drop_trace(t.file, beside);
  bk_free(ctx, t.round);
  bk_free(ctx, t.lengths);
  bk_free(ctx, text);
  bk_free(ctx, beside);
  return cli_team_agree(s->team, status);
}

/* ---- the end ---- */

bk_status cli_profile_end(cli_session *s, bk_profile *p, bk_status status) {
  if (!p || (s->team && cli_team_lost(s->team, status))) return status;
  const char *file = cli_value(&s->args, "profile");
  bool many = s->team && s->team->job, leads = !many || cli_team_leads(s->team);
  bk_status written = many ? write_traces(s, p, file) : bk_profile_write_trace(p, file);
  if (written == BK_OK && leads) written = cli_profile_print(p, file, stderr);
  bk_profile_destroy(p);
  return status != BK_OK ? status : written;
}
