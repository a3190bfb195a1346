/* birkhoff bench: how fast the ops, a training step, or ranks that talk are here, as a share of
 * what the device or its memory can do. */
#include <string.h>

#include "tools/bench.h"
#include "tools/launch.h"

typedef struct kind {
  const char *name;
  bk_status (*run)(cli_session *s);
  const char *const *options; /* of this kind alone; ends with NULL */
} kind;

static const char *const of_ops[] = {"op", "tokens", "width", "streams", "vocabulary", NULL};
static const char *const of_step[] = {"model", "batch-size", "seq-len", "compare",
                                      "apart", "profile",    "program", NULL};
static const char *const of_comm[] = {"bytes",      "comm",         "dp",           "rank", "world",
                                      "rendezvous", "comm-timeout", "share-device", NULL};
static const kind kinds[] = {
    {"ops", bench_ops, of_ops}, {"step", bench_step, of_step}, {"comm", bench_comm, of_comm}};

/* Options of another kind of bench would be ignored. */
static bk_status check_options(cli_session *s, const kind *what) {
  for (size_t k = 0; k < BK_COUNT(kinds); k++) {
    const kind *other = &kinds[k];
    for (int i = 0; other != what && other->options[i]; i++)
      if (cli_given(&s->args, other->options[i]))
        return bk_fail(s->ctx, BK_ERR_ARGUMENT, "bench %s: --%s is for bench %s", what->name,
                       other->options[i], other->name);
  }
  return BK_OK;
}

static bk_status run(cli_session *s) {
  for (size_t k = 0; k < BK_COUNT(kinds); k++) {
    if (strcmp(s->args.words[0], kinds[k].name) != 0) continue;
    BK_TRY(check_options(s, &kinds[k]));
    return kinds[k].run(s);
  }
  return bk_fail(s->ctx, BK_ERR_ARGUMENT, "bench %s: expected ops, step or comm", s->args.words[0]);
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
    {"seconds", CLI_ONE, "X", "time spent per op (default: 0.1, comm: 1) or on steps (5)"},
    {"profile", CLI_ONE, "FILE",
     "step: time of every op and phase as tables, a Chrome trace in FILE"},
    {"program", CLI_FLAG, NULL,
     "step: print what a step does, one line for each call, and time nothing"},
    {"bytes", CLI_ONE, "N", "comm: size of the tensors (default: 32 MiB)"},
    CLI_LAUNCH_OPTIONS,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_bench = {
    "bench",
    "ops|step|comm [OPTIONS]",
    "Times the ops, a training step or ranks against what the device can do.",
    options,
    1,
    1,
    run};
