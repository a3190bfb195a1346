/* libFuzzer target: any bytes as a safetensors file. What opens must be readable to its last
 * byte. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"
#include "tests/fuzz/weights.h"

const fuzz_target fuzz = {"safetensors", 20000};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  memory_file file = {.name = "input", .data = data, .bytes = size};
  bk_fs fs = memory_fs(&file);
  size_t logged = 0;
  bk_st_reader *reader = NULL;
  bk_context *ctx = memory_context(&fs, &logged);
  bk_status status = bk_st_open(ctx, "input", &reader);
  if (status == BK_OK) read_all(ctx, reader);
  else if (logged == 0 || reader) abort();
  bk_st_close(reader);
  memory_context_close(ctx, &logged);
  return 0;
}
