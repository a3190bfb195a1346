/* JSON text under construction (json_out.h). A failure, which can only be want of memory, is kept
 * in `status` and makes the later calls do nothing, so that a caller looks once, at the end. */
#include "io/json_out.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* No memory is taken until something is added. */
void bk_json_out_init(bk_json_out *out, bk_context *ctx) {
  *out = (bk_json_out){.ctx = ctx, .status = BK_OK};
}

void bk_json_out_fini(bk_json_out *out) {
  bk_free(out->ctx, out->data);
  out->data = NULL;
  out->length = out->capacity = 0;
}

void bk_json_out_clear(bk_json_out *out) {
  out->length = 0;
  out->status = BK_OK;
}

/* One byte more than asked for, since the text always ends with a NUL. */
void bk_json_out_reserve(bk_json_out *out, size_t bytes) {
  if (out->status != BK_OK) return;
  if (bytes >= SIZE_MAX - out->length) {
    out->status = bk_fail(out->ctx, BK_ERR_MEMORY, "a text of more than %zu bytes cannot be made",
                          out->length);
    return;
  }
  out->status = bk_grow(out->ctx, (void **)&out->data, &out->capacity, out->length + bytes + 1, 1);
}

/* Nothing is added after a failure; the text up to there stays. */
void bk_json_out_bytes(bk_json_out *out, const char *bytes, size_t count) {
  bk_json_out_reserve(out, count);
  if (out->status != BK_OK) return;
  memcpy(out->data + out->length, bytes, count);
  out->length += count;
  out->data[out->length] = '\0';
}

/* Nothing is escaped, since the caller writes JSON's own characters with it. */
void bk_json_out_text(bk_json_out *out, const char *text) {
  bk_json_out_bytes(out, text, strlen(text));
}

/* Quotes and backslashes get a backslash in front, and control characters become their code. */
static void add_escaped(bk_json_out *out, unsigned char c) {
  char code[8];
  if (c == '"' || c == '\\') snprintf(code, sizeof code, "\\%c", c);
  else snprintf(code, sizeof code, "\\u%04x", c);
  bk_json_out_text(out, code);
}

/* Only what JSON demands is escaped; the rest of UTF-8 goes out as it is. */
void bk_json_out_string(bk_json_out *out, const char *text) {
  bk_json_out_text(out, "\"");
  for (const char *p = text; *p; p++) {
    unsigned char c = (unsigned char)*p;
    if (c < 0x20 || c == '"' || c == '\\') add_escaped(out, c);
    else bk_json_out_bytes(out, p, 1);
  }
  bk_json_out_text(out, "\"");
}

/* There is no point in it, by which JSON readers tell floats from integers. */
void bk_json_out_int(bk_json_out *out, int64_t value) {
  char text[24];
  snprintf(text, sizeof text, "%" PRId64, value);
  bk_json_out_text(out, text);
}

/* JSON has no NaN and no infinity: both are written as null. */
void bk_json_out_double(bk_json_out *out, double value) {
  char text[BK_DOUBLE_TEXT];
  bk_json_out_text(out, isfinite(value) ? bk_double_text(value, text) : "null");
}

/* Replaces whatever the host program's locale writes between the digits, one or more bytes, by
 * '.'. */
static void use_point(char *text) {
  static const char own[] = "0123456789+-eE";
  size_t head = strspn(text, own);
  if (!text[head]) return;
  size_t width = strcspn(text + head, own);
  text[head] = '.';
  memmove(text + head + 1, text + head + width, strlen(text + head + width) + 1);
}

/* The shortest of 15, 16 or 17 digits that reads back as the same double; 17 always do. A whole
 * number gets ".0", because transformers takes a number without a point for an integer. */
char *bk_double_text(double value, char text[BK_DOUBLE_TEXT]) {
  if (!isfinite(value)) {
    snprintf(text, BK_DOUBLE_TEXT, "%s", isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
    return text;
  }
  for (int digits = 15; digits <= 17; digits++) {
    double back;
    snprintf(text, BK_DOUBLE_TEXT - 2, "%.*g", digits, value);
    use_point(text);
    if (bk_parse_double(text, &back) && back == value) break;
  }
  if (!strpbrk(text, ".eE")) memcpy(text + strlen(text), ".0", 3);
  return text;
}
