/* Names and numbers as people type them. The command compiles text.c too: it needs nothing of the
 * library but the installed functions. */
#ifndef BK_TEXT_H
#define BK_TEXT_H

#include "base/macros.h"

int bk_edit_distance(const char *a, const char *b);
/* Nearest of `count` names to `text` by edit distance (at most half of its length + 1), or NULL. */
const char *bk_nearest(const char *text, const char *const *names, size_t count);
BK_MODULE_API bool bk_parse_int64(const char *text, int64_t *value); /* whole string, decimal */
/* whole string, finite; locale independent: always '.' */
bool bk_parse_double(const char *text, double *value);
/* For printf: a NaN without its sign, which says nothing and would be printed as "-nan". */
double bk_unsigned_nan(double x);
BK_MODULE_API bool bk_parse_bool(const char *text, bool *value); /* true false 1 0 */
/* of the well-formed character at s, 0 if there is none */
size_t bk_utf8_length(const unsigned char *s, size_t left);

#endif
