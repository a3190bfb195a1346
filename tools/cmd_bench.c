/* birkhoff bench: how fast the ops, or a training step, are here, as a share of what the device
 * can do. */
#include <string.h>

#include "tools/bench.h"

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
