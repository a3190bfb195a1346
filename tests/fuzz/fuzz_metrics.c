/* libFuzzer target: any bytes as metrics.jsonl, read and cut as a resume does. */
#include "io/metrics.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_target fuzz = {"metrics", 20000};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  memory_file file = {.name = "input", .data = data, .bytes = size};
  bk_fs fs = memory_fs(&file);
  size_t logged = 0;
  int64_t *steps = NULL, count = 0;
  double *values = NULL;
  bk_context *ctx = memory_context(&fs, &logged);
  bk_status status = bk_metrics_read(ctx, "input", "loss", &steps, &values, &count);
  if (status != BK_OK && logged == 0) abort();
  for (int64_t i = 0; i < count; i++) (void)(steps[i] + (values[i] > 0));
  bk_free(ctx, steps);
  bk_free(ctx, values);
  /* the file is read-only: what is not refused cannot be cut */
  if (bk_metrics_cut(ctx, "input", 1) == BK_OK) abort();
  memory_context_close(ctx, &logged);
  return 0;
}
