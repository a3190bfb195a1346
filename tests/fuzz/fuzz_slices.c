/* libFuzzer target: any bytes as a folder of tensors in slices: optimizer.safetensors.index.json, a
 * line "====", one.safetensors, a line "====", two.safetensors. What opens covers every tensor
 * once, and is readable to its last byte. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"
#include "tests/fuzz/parts.h"
#include "tests/fuzz/weights.h"

const fuzz_target fuzz = {"slices", 6000};

#define FILE_NAME "optimizer.safetensors"
#define INDEX_NAME "optimizer.safetensors.index.json"

static void check_tensor(const bk_st_sliced *t) {
  int64_t count = 1, end = 0;
  for (int d = 0; d < t->ndim; d++) count *= t->shape[d];
  for (size_t i = 0; i < t->n_slices; i++) {
    const bk_st_slice *s = &t->slices[i];
    size_t bytes = (size_t)(s->entry->end - s->entry->begin), width = bk_st_element_size(s->entry);
    if (s->begin != end || s->count <= 0 || (width && bytes / width != (size_t)s->count)) abort();
    end += s->count;
  }
  if (end != count) abort();
}

/* What opens is not found too short. */
static void open_folder(bk_context *ctx, const size_t *logged) {
  bk_st_reader *reader = NULL;
  bk_st_slices slices;
  char *lack = NULL;
  bk_status status = bk_st_open_slices(ctx, "folder", FILE_NAME, INDEX_NAME, &reader, &slices);
  if (status == BK_OK) {
    for (size_t i = 0; i < slices.n_tensors; i++) {
      check_tensor(&slices.tensors[i]);
      if (bk_st_slices_find(&slices, slices.tensors[i].name) != &slices.tensors[i]) abort();
    }
    read_all(ctx, reader);
    bk_st_slices_free(&slices);
  } else if (*logged == 0 || reader) {
    abort();
  }
  bk_status looked = bk_st_slices_lack(ctx, "folder", FILE_NAME, INDEX_NAME, &lack);
  if ((looked != BK_OK || lack) && status == BK_OK) abort();
  bk_free(ctx, lack);
  bk_st_close(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  size_t logged = 0;
  memory_file index = next_part("folder/" INDEX_NAME, &data, &size, NULL);
  memory_file one = next_part("folder/one.safetensors", &data, &size, &index),
              two = next_part("folder/two.safetensors", &data, &size, &one);
  bk_fs fs = memory_fs(&two);
  bk_context *ctx = memory_context(&fs, &logged);
  open_folder(ctx, &logged);
  memory_context_close(ctx, &logged);
  return 0;
}
