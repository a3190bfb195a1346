/* libFuzzer target: any bytes as a folder of weights in shards: model.safetensors.index.json, a
 * line "====", one.safetensors, a line "====", two.safetensors. What opens must be readable to
 * its last byte. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"
#include "tests/fuzz/parts.h"
#include "tests/fuzz/weights.h"

const fuzz_target fuzz = {"index", 6000};

/* What opens is not found too short. */
static void open_folder(bk_context *ctx, const size_t *logged) {
  bk_st_reader *reader = NULL;
  char *lack = NULL;
  bk_status status = bk_st_open_folder(ctx, "folder", &reader);
  if (status == BK_OK) read_all(ctx, reader);
  else if (*logged == 0 || reader) abort();
  bk_status looked = bk_st_folder_lacks(ctx, "folder", &lack);
  if ((looked != BK_OK || lack) && status == BK_OK) abort();
  bk_free(ctx, lack);
  bk_st_close(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  size_t logged = 0;
  memory_file index = next_part("folder/model.safetensors.index.json", &data, &size, NULL);
  memory_file one = next_part("folder/one.safetensors", &data, &size, &index),
              two = next_part("folder/two.safetensors", &data, &size, &one);
  bk_fs fs = memory_fs(&two);
  bk_context *ctx = memory_context(&fs, &logged);
  open_folder(ctx, &logged);
  memory_context_close(ctx, &logged);
  return 0;
}
