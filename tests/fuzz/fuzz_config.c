/* libFuzzer target: any bytes as config.json, and as trainer_state.json. What is accepted must
 * pass its own checks. */
#include "io/config.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_target fuzz = {"config", 20000};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  memory_file file = {.name = "input", .data = data, .bytes = size};
  bk_fs fs = memory_fs(&file);
  size_t logged = 0;
  bk_model_config model;
  bk_trainer_state state;
  bk_context *ctx = memory_context(&fs, &logged);
  bk_status status = bk_model_config_read(ctx, "input", &model);
  if (status == BK_OK && bk_model_config_validate(ctx, &model) != BK_OK) abort();
  if (status != BK_OK && logged == 0) abort();
  logged = 0;
  status = bk_trainer_state_read(ctx, "input", &state);
  if (status == BK_OK && bk_train_config_validate(ctx, &state.recipe) != BK_OK) abort();
  if (status != BK_OK && logged == 0) abort();
  logged = 0;
  bk_data_file *files = NULL;
  int n_files = 0;
  status = bk_trainer_state_files(ctx, "input", &files, &n_files);
  if ((status != BK_OK && logged == 0) || (files != NULL) != (n_files > 0)) abort();
  bk_free(ctx, files);
  memory_context_close(ctx, &logged);
  return 0;
}
