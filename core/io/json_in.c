/* See json_in.h. The text is read twice: a character that was lost for want of memory is not lost in the same place again. */
#include "io/json_in.h"

static bk_status no_memory(bk_context *ctx, const char *origin) { return bk_fail(ctx, BK_ERR_MEMORY, "%s: out of memory while it was read", origin); }

/* An empty message is jansson's way to say that an allocation failed. */
static bool memory_failed(const json_error_t *error) { return error->text[0] == '\0' || json_error_code(error) == json_error_out_of_memory; }

/* Both times the same document, or both times none; else memory made the difference. */
bk_status bk_json_parse(bk_context *ctx, const char *origin, const char *text, size_t bytes, json_t **root, json_error_t *error) {
  json_error_t again;
  json_t *first = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, error);
  if (!first && memory_failed(error)) return no_memory(ctx, origin);
  json_t *second = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &again);
  bool same = first && second && json_equal(first, second), none = !first && !second;
  json_decref(second);
  if (same) {
    *root = first;
    return BK_OK;
  }
  json_decref(first);
  return none ? BK_ERR_DATA : no_memory(ctx, origin);
}

bk_status bk_json_load(bk_context *ctx, const char *origin, const char *text, size_t bytes, json_t **root) {
  json_error_t error;
  bk_status status = bk_json_parse(ctx, origin, text, bytes, root, &error);
  if (status != BK_ERR_DATA) return status;
  return bk_fail(ctx, status, "%s: line %d, column %d: %s", origin, error.line, error.column, error.text);
}
