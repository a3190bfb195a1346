/* JSON texts through the jansson library (json_in.h). jansson may lose a character without a word
 * when an allocation fails. The text is therefore parsed twice: memory that runs out does not run
 * out in the same place again, and two documents that differ show that it did. The files read here
 * are small, so that the second parse costs little. */
#include "io/json_in.h"

#include <stdio.h>
#include <string.h>

#include "io/json_out.h"
#include "io/recognise.h"

static bk_status no_memory(bk_context *ctx, const char *origin) {
  return bk_fail(ctx, BK_ERR_MEMORY, "%s: out of memory while it was read", origin);
}

/* An empty message is jansson's way to say that an allocation failed. */
static bool memory_failed(const json_error_t *error) {
  return error->text[0] == '\0' || json_error_code(error) == json_error_out_of_memory;
}

/* The result counts only if both parses give the same document, or both give none. */
bk_status bk_json_parse(bk_context *ctx, const char *origin, const char *text, size_t bytes,
                        json_t **root, json_error_t *error) {
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

/* The length of the byte order mark that some editors put in front of UTF-8. */
static size_t mark_length(const char *text, size_t bytes) {
  static const char mark[] = "\xef\xbb\xbf";
  return bytes >= sizeof mark - 1 && memcmp(text, mark, sizeof mark - 1) == 0 ? sizeof mark - 1 : 0;
}

/* Line and column in *error are counted from behind the mark. */
bk_status bk_json_try(bk_context *ctx, const char *origin, const char *text, size_t bytes,
                      json_t **root, json_error_t *error) {
  size_t skip = mark_length(text, bytes);
  return bk_json_parse(ctx, origin, text + skip, bytes - skip, root, error);
}

/* Where the text is no JSON, the message says what it is, if it can be recognised: most often a
 * user has named the wrong file. */
bk_status bk_json_load(bk_context *ctx, const char *origin, const char *text, size_t bytes,
                       json_t **root) {
  json_error_t error;
  char words[BK_RECOGNISE_TEXT];
  bk_status status = bk_json_try(ctx, origin, text, bytes, root, &error);
  if (status != BK_ERR_DATA) return status;
  if (bk_recognise(text, bytes, bytes, BK_WANTED_JSON, words, sizeof words))
    return bk_fail(ctx, status, "%s: not JSON: it is %s", origin, words);
  return bk_fail(ctx, status, "%s: line %d, column %d: %s", origin, error.line, error.column,
                 error.text);
}

/* The text has its article, so that a message can go on with it after "not". */
const char *bk_json_kind(const json_t *value) {
  switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number with a fraction or exponent";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    default: return "null";
  }
}

/* The string as far as it fits, cut between two characters of UTF-8, with '?' for control
 * characters. */
static void show_string(const char *string, char text[BK_JSON_SHOWN]) {
  size_t length = strlen(string), most = BK_JSON_SHOWN - sizeof "...";
  bool cut = length > most;
  if (cut) length = most;
  while (cut && length > 0 && ((unsigned char)string[length] & 0xc0) == 0x80) length--;
  for (size_t i = 0; i < length; i++)
    text[i] = (unsigned char)string[i] < 0x20 || string[i] == 0x7f ? '?' : string[i];
  memcpy(text + length, cut ? "..." : "", cut ? sizeof "..." : 1);
}

/* The result is `text` or a static string. */
const char *bk_json_shown(const json_t *value, char text[BK_JSON_SHOWN]) {
  if (json_is_real(value)) return bk_double_text(json_real_value(value), text);
  if (json_is_string(value)) show_string(json_string_value(value), text);
  else if (json_is_integer(value))
    snprintf(text, BK_JSON_SHOWN, "%lld", (long long)json_integer_value(value));
  else return bk_json_kind(value);
  return text;
}
