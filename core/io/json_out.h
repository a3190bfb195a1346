/* JSON text under construction: one growing buffer, numbers written the same in every locale.
 * The first failure sticks in `status`, so that a caller may add everything and look once. */
#ifndef BK_JSON_OUT_H
#define BK_JSON_OUT_H

#include "base/base.h"

/* The text so far. It belongs to the struct until bk_json_out_fini; a caller may read data and
 * length. */
typedef struct bk_json_out {
  bk_context *ctx;
  char *data; /* NUL-terminated once something was added */
  size_t length, capacity;
  bk_status status;
} bk_json_out;

void bk_json_out_init(bk_json_out *out, bk_context *ctx);
void bk_json_out_fini(bk_json_out *out);
void bk_json_out_reserve(bk_json_out *out, size_t bytes); /* room for that many more */
/* empty again, without failures; keeps the memory */
void bk_json_out_clear(bk_json_out *out);
void bk_json_out_bytes(bk_json_out *out, const char *bytes, size_t count);
void bk_json_out_text(bk_json_out *out, const char *text); /* as it is */
/* quoted and escaped; UTF-8 passes through */
void bk_json_out_string(bk_json_out *out, const char *text);
void bk_json_out_int(bk_json_out *out, int64_t value);
void bk_json_out_double(bk_json_out *out, double value); /* not finite: null */

/* Shortest decimal of 15 to 17 digits that reads back to the same double, always with a point or
 * an exponent; "nan", "inf" and "-inf" otherwise. Returns text. */
#define BK_DOUBLE_TEXT 40
char *bk_double_text(double value, char text[BK_DOUBLE_TEXT]);

#endif
