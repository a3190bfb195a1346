/* libFuzzer target: any bytes as a safetensors file. What opens must be readable to its last
 * byte. */
#include "io/safetensors.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_target fuzz = {"safetensors", 20000};

static void read_all(bk_context *ctx, bk_st_reader *reader) {
  for (int i = 0; i < bk_st_count(reader); i++) {
    const bk_st_entry *e = bk_st_get(reader, i);
    size_t bytes = (size_t)(e->end - e->begin);
    char *copy = bk_alloc(ctx, bytes);
    double first;
    if (bk_st_find(reader, e->name) != e || !copy || bk_st_read(reader, e, copy, bytes) != BK_OK)
      abort();
    if (bk_st_element_size(e) && bytes && bk_st_read_f64(reader, e, 0, 1, &first) != BK_OK) abort();
    bk_free(ctx, copy);
  }
}

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
