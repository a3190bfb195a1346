/* See json_in.h. The text is read twice: a character that was lost for want of memory is not lost in the same place again. */
#include "io/json_in.h"

#include "io/recognise.h"

static bk_status no_memory(bk_context *ctx, const char *origin) { return bk_fail(ctx, BK_ERR_MEMORY, "%s: out of memory while it was read", origin); }

/* An empty message is jansson's way to say that an allocation failed. */
static bk_status fail(bk_context *ctx, const char *origin, int64_t line, const char *text, size_t bytes, const json_error_t *error) {
  char words[BK_RECOGNISE_TEXT];
  if (error->text[0] == '\0' || json_error_code(error) == json_error_out_of_memory) return no_memory(ctx, origin);
  if (line) return bk_fail(ctx, BK_ERR_DATA, "%s: line %lld: %s", origin, (long long)line, error->text);
  if (bk_recognise(text, bytes, bytes, BK_WANTED_JSON, words, sizeof words)) return bk_fail(ctx, BK_ERR_DATA, "%s: not JSON: it is %s", origin, words);
  return bk_fail(ctx, BK_ERR_DATA, "%s: line %d, column %d: %s", origin, error->line, error->column, error->text);
}

bk_status bk_json_load(bk_context *ctx, const char *origin, int64_t line, const char *text, size_t bytes, json_t **root) {
  json_error_t error;
  json_t *first = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
  if (!first) return fail(ctx, origin, line, text, bytes, &error);
  json_t *second = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
  bool same = second && json_equal(first, second);
  json_decref(second);
  if (same) {
    *root = first;
    return BK_OK;
  }
  json_decref(first);
  return no_memory(ctx, origin);
}
