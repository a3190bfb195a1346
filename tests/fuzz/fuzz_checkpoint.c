/* libFuzzer target: any bytes as a checkpoint folder: config.json, a line "====",
 * model.safetensors. What loads is a whole model. */
#include "models/checkpoint.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_target fuzz = {"checkpoint", 2000};

/* Length of the part before the mark, which begins at its end; all of it where there is no mark. */
static size_t first_part(const uint8_t *data, size_t size) {
  static const char mark[] = "\n====\n";
  for (size_t at = 0; at + sizeof mark - 1 <= size; at++)
    if (memcmp(data + at, mark, sizeof mark - 1) == 0) return at;
  return size;
}

static void load(bk_context *ctx, const size_t *logged) {
  bk_device *device = NULL;
  bk_model *model = NULL;
  char *path = NULL;
  if (bk_device_open(ctx, "ref", NULL, &device) != BK_OK) abort();
  bk_status status = bk_checkpoint_resolve(ctx, "folder", &path);
  if (status == BK_OK) status = bk_checkpoint_load(device, path, BK_NONE, NULL, &model);
  if ((status == BK_OK) != (model != NULL) || (status != BK_OK && *logged == 0)) abort();
  bk_model_destroy(model);
  bk_free(ctx, path);
  bk_device_close(device);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  size_t config = first_part(data, size), skip = config + 6 < size ? config + 6 : size, logged = 0;
  memory_file model = {
      .name = "folder/model.safetensors", .data = data + skip, .bytes = size - skip};
  memory_file file = {.name = "folder/config.json", .data = data, .bytes = config, .next = &model};
  bk_fs fs = memory_fs(&file);
  bk_context *ctx = memory_context(&fs, &logged);
  load(ctx, &logged);
  memory_context_close(ctx, &logged);
  return 0;
}
