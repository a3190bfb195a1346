/* birkhoff bench: how fast the ops, or a training step, are here, as a share of what the device
 * can do. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/plan.h"
#include "tools/bench.h"

#define MAX_SAMPLES 4096

double bench_bandwidth(const bench_roof *roof, double bytes) {
  int i = bytes > 1 ? (int)lround(log2(bytes)) - BENCH_COPY_MIN : 0;
  return roof->bandwidth[i < 0 ? 0 : i >= BENCH_COPY_SIZES ? BENCH_COPY_SIZES - 1 : i];
}

double bench_share(const bench_roof *roof, double flops, double bytes, double time) {
  double by_flops = flops / roof->flops, by_bytes = bytes / bench_bandwidth(roof, bytes);
  return (by_flops > by_bytes ? by_flops : by_bytes) / time;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* One op being timed. On an accelerator a sample is a run of launches between two events, so
 * that neither the launch's way there nor the wait is in it; on a host, one launch by the clock. */
typedef struct gauge {
  bk_stream *stream;
  const bk_plan *plan;
  const void *args;
  bk_place workspace;
  bk_event *begin, *end; /* NULL on a host */
  int launches;          /* of one sample */
} gauge;

static bk_status sample_by_events(const gauge *g, double *seconds) {
  const bk_stream_ops *ops = g->stream->ops;
  BK_TRY(ops->event_record(g->stream, g->begin));
  for (int i = 0; i < g->launches; i++)
    BK_TRY(bk_plan_launch(g->stream, g->plan, g->args, g->workspace));
  BK_TRY(ops->event_record(g->stream, g->end));
  BK_TRY(ops->sync(g->stream));
  BK_TRY(g->begin->ops->elapsed(g->begin, g->end, seconds));
  *seconds /= g->launches;
  return BK_OK;
}

static bk_status sample(const gauge *g, double *seconds) {
  if (g->begin) return sample_by_events(g, seconds);
  double begin = bk_seconds();
  BK_TRY(bk_plan_launch(g->stream, g->plan, g->args, g->workspace));
  BK_TRY(g->stream->ops->sync(g->stream));
  *seconds = bk_seconds() - begin;
  return BK_OK;
}

/* Warms up, and makes a sample as long as an event can tell well: about a millisecond. */
static bk_status gauge_start(gauge *g) {
  double warm;
  g->launches = 1;
  BK_TRY(sample(g, &warm));
  if (!g->begin) return BK_OK;
  BK_TRY(sample(g, &warm));
  g->launches = warm > 1e-3 ? 1 : warm < 1e-5 ? 100 : (int)(1e-3 / warm) + 1;
  return BK_OK;
}

static bk_status take_samples(cli_session *s, gauge *g, double seconds, bench_time *time) {
  double *times = bk_alloc_array(s->ctx, MAX_SAMPLES, sizeof *times), end;
  int n = 0;
  if (!times) return BK_ERR_MEMORY;
  bk_status status = gauge_start(g);
  end = bk_seconds() + seconds;
  while (status == BK_OK && n < MAX_SAMPLES && (n < 3 || bk_seconds() < end))
    status = sample(g, &times[n++]);
  if (status == BK_OK) {
    qsort(times, (size_t)n, sizeof *times, ascending);
    *time = (bench_time){fmax(times[n / 2], 1e-9), fmax(times[0], 1e-9)};
  }
  bk_free(s->ctx, times);
  return status;
}

static bk_status gauge_events(cli_session *s, gauge *g) {
  if (s->device->props.host_memory) return BK_OK;
  BK_TRY(s->device->ops->event_create(s->device, &g->begin));
  return s->device->ops->event_create(s->device, &g->end);
}

static void gauge_free(gauge *g) {
  if (g->end) g->end->ops->destroy(g->end);
  if (g->begin) g->begin->ops->destroy(g->begin);
}

bk_status bench_time_op(cli_session *s, bk_stream *stream, bk_op op, const void *args,
                        double seconds, bench_time *time, const char **kernel) {
  bk_plan plan = {0};
  bk_buffer *workspace = NULL;
  BK_TRY(bk_plan_prepare(s->device, op, args, &plan));
  if (kernel) *kernel = plan.kernel->name;
  gauge g = {.stream = stream, .plan = &plan, .args = args};
  bk_status status = plan.workspace_bytes ? bk_buffer_alloc(s->device, plan.workspace_bytes,
                                                            BK_MEM_WORKSPACE, &workspace)
                                          : BK_OK;
  g.workspace = (bk_place){workspace, 0};
  if (status == BK_OK) status = gauge_events(s, &g);
  if (status == BK_OK) status = take_samples(s, &g, seconds, time);
  gauge_free(&g);
  bk_buffer_free(workspace);
  bk_plan_release(&plan);
  return status;
}

/* Options of the other kind of bench would be ignored. */
static bk_status check_options(cli_session *s, const char *what) {
  static const char *const of_ops[] = {"op", "tokens", "width", "streams", "vocabulary"};
  static const char *const of_step[] = {"model", "batch-size", "seq-len", "compare",
                                        "apart", "profile",    "program"};
  bool ops = strcmp(what, "ops") == 0;
  const char *const *others = ops ? of_step : of_ops;
  size_t count = ops ? BK_COUNT(of_step) : BK_COUNT(of_ops);
  for (size_t i = 0; i < count; i++)
    if (cli_given(&s->args, others[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT, "bench %s: --%s is for bench %s", what, others[i],
                     ops ? "step" : "ops");
  return BK_OK;
}

static bk_status run(cli_session *s) {
  const char *what = s->args.words[0];
  if (strcmp(what, "ops") == 0 || strcmp(what, "step") == 0) BK_TRY(check_options(s, what));
  if (strcmp(what, "ops") == 0) return bench_ops(s);
  if (strcmp(what, "step") == 0) return bench_step(s);
  return bk_fail(s->ctx, BK_ERR_ARGUMENT, "bench %s: expected ops or step", what);
}

static const cli_option options[] = {
    {"op", CLI_MANY, "NAME...", "ops: these ops only"},
    {"tokens", CLI_ONE, "N", "ops: rows (default: 1024)"},
    {"width", CLI_ONE, "N", "ops: model width, a multiple of 64 (default: 512)"},
    {"streams", CLI_ONE, "N", "ops: residual streams (default: 4)"},
    {"vocabulary", CLI_ONE, "N", "ops: entries of the vocabulary (default: 8 times the width)"},
    {"model", CLI_ONE, "PRESET|FILE|DIR", "step: what to train"},
    {"batch-size", CLI_ONE, "N", "step: sequences at once (default: the recipe's micro-batch)"},
    {"seq-len", CLI_ONE, "N", "step: tokens per sequence (default: the recipe's)"},
    {"compare", CLI_ONE, "plain",
     "step: the same model with another residual connection, in the same run"},
    {"apart", CLI_FLAG, NULL,
     "step: with --compare, one after the other instead of in turn: models that do not fit "
     "together"},
    {"seconds", CLI_ONE, "X", "time spent per op (default: 0.1) or on steps (default: 5)"},
    {"profile", CLI_ONE, "FILE",
     "step: time of every op and phase as tables, a Chrome trace in FILE"},
    {"program", CLI_FLAG, NULL,
     "step: print what a step does, one line for each call, and time nothing"},
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_bench = {"bench",
                               "ops|step [OPTIONS]",
                               "Times the ops, or a training step, against what the device can do.",
                               options,
                               1,
                               1,
                               run};
