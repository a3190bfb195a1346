/* birkhoff compare: two runs by their metrics, or two checkpoints tensor by tensor. */
#include "tools/compare.h"

#include <string.h>

/* FOLDER/metrics.jsonl, if the word is a run folder that has it; or the word itself if it is
 * such a file. *path NULL: neither. */
static bk_status metrics_path(cli_session *s, const char *word, char **path) {
  size_t n = strlen(word);
  *path = NULL;
  if (!bk_path_is_dir(s->ctx, word)) {
    if (n > 6 && strcmp(word + n - 6, ".jsonl") == 0 && !(*path = bk_strdup(s->ctx, word)))
      return BK_ERR_MEMORY;
    return BK_OK;
  }
  char *file = bk_path_join(s->ctx, word, "metrics.jsonl");
  if (!file) return BK_ERR_MEMORY;
  if (bk_path_exists(s->ctx, file)) *path = file;
  else bk_free(s->ctx, file);
  return BK_OK;
}

static bk_status run(cli_session *s) {
  const char *a = s->args.words[0], *b = s->args.words[1];
  char *metrics_a = NULL, *metrics_b = NULL;
  bool weights = cli_given(&s->args, "weights");
  bk_status status = weights ? BK_OK : metrics_path(s, a, &metrics_a);
  if (status == BK_OK && !weights) status = metrics_path(s, b, &metrics_b);
  if (status == BK_OK)
    status = metrics_a && metrics_b ? compare_metrics(s, metrics_a, metrics_b)
                                    : compare_checkpoints(s, a, b);
  bk_free(s->ctx, metrics_b);
  bk_free(s->ctx, metrics_a);
  return status;
}

static const cli_option options[] = {
    {"weights", CLI_FLAG, NULL, "compare the newest checkpoints of two runs, not their metrics"},
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_compare = {
    "compare",
    "RUN|CKPT RUN|CKPT [OPTIONS]",
    "Compares two runs by their metrics, or two checkpoints tensor by tensor.",
    options,
    2,
    2,
    run};
