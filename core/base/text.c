/* Names and numbers as people type them in options and configuration files. The functions that
 * parse take the whole text or nothing: "12x", " 12" and "" are no numbers, and *value is then as
 * it was. Nothing is logged here; the caller knows what the text was for. */
#include "base/text.h"

#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DISTANCE_MAX 127 /* characters compared; names of keys and devices are far shorter */
#define NUMBER_MAX 512

static size_t length_of(const char *text, size_t limit) {
  size_t n = 0;
  while (n < limit && text[n]) n++;
  return n;
}

static int least(int a, int b, int c) {
  int m = a < b ? a : b;
  return m < c ? m : c;
}

/* The Levenshtein distance by the usual table, of which one row is kept: row[j] is the distance
 * between the first i characters of a and the first j of b. */
int bk_edit_distance(const char *a, const char *b) {
  size_t n = length_of(a, DISTANCE_MAX), m = length_of(b, DISTANCE_MAX);
  int row[DISTANCE_MAX + 1];
  for (size_t j = 0; j <= m; j++) row[j] = (int)j;
  for (size_t i = 1; i <= n; i++) {
    int diagonal = row[0];
    row[0] = (int)i;
    for (size_t j = 1; j <= m; j++) {
      int above = row[j];
      row[j] = least(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
      diagonal = above;
    }
  }
  return row[m];
}

/* A name is a suggestion only if at most half of the text's characters, and one more, are wrong.
 * Of two that are equally near the first one is given. */
const char *bk_nearest(const char *text, const char *const *names, size_t count) {
  const char *best = NULL;
  int best_distance = (int)(length_of(text, DISTANCE_MAX) / 2) + 2;
  for (size_t i = 0; i < count; i++) {
    int distance = bk_edit_distance(text, names[i]);
    if (distance >= best_distance) continue;
    best = names[i];
    best_distance = distance;
  }
  return best;
}

/* The digits are summed without a sign, so that the smallest integer, whose positive counterpart
 * does not exist, can be read too; its sign is applied in two steps for the same reason. */
bool bk_parse_int64(const char *text, int64_t *value) {
  if (!text) return false;
  bool negative = *text == '-';
  const char *p = text + (negative || *text == '+');
  if (!*p) return false;
  uint64_t limit = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX, sum = 0;
  for (; *p; p++) {
    if (*p < '0' || *p > '9') return false;
    uint64_t digit = (uint64_t)(*p - '0');
    if (sum > (limit - digit) / 10) return false;
    sum = 10 * sum + digit;
  }
  *value = !negative ? (int64_t)sum : sum ? -(int64_t)(sum - 1) - 1 : 0;
  return true;
}

static const char *skip_digits(const char *p, int *count) {
  for (; *p >= '0' && *p <= '9'; p++) ++*count;
  return p;
}

/* [sign] digits [. digits] [e [sign] digits], with at least one digit before the exponent. strtod
 * would also take "inf", "nan", hexadecimal numbers and leading blanks. */
static bool is_decimal(const char *text) {
  int digits = 0, exponent_digits = 0;
  const char *p = text + (*text == '-' || *text == '+');
  p = skip_digits(p, &digits);
  if (*p == '.') p = skip_digits(p + 1, &digits);
  if (digits == 0) return false;
  if (*p != 'e' && *p != 'E') return *p == '\0';
  p += p[1] == '-' || p[1] == '+' ? 2 : 1;
  p = skip_digits(p, &exponent_digits);
  return exponent_digits > 0 && *p == '\0';
}

/* strtod reads the decimal point of the host program's locale, so that '.' is replaced by that
 * first. */
bool bk_parse_double(const char *text, double *value) {
  if (!text || !is_decimal(text)) return false;
  const char *point = localeconv()->decimal_point;
  const char *dot = strchr(text, '.');
  size_t length = strlen(text), width = strlen(point);
  char number[NUMBER_MAX];
  if (length + width >= sizeof number) return false;
  size_t head = dot ? (size_t)(dot - text) : length;
  memcpy(number, text, head);
  size_t at = head;
  if (dot) {
    memcpy(number + at, point, width);
    at += width;
    memcpy(number + at, dot + 1, length - head - 1);
    at += length - head - 1;
  }
  number[at] = '\0';
  char *end;
  double parsed = strtod(number, &end);
  if (*end || !isfinite(parsed)) return false;
  *value = parsed;
  return true;
}

bool bk_parse_bool(const char *text, bool *value) {
  if (!text) return false;
  bool yes = !strcmp(text, "true") || !strcmp(text, "1");
  if (!yes && strcmp(text, "false") != 0 && strcmp(text, "0") != 0) return false;
  *value = yes;
  return true;
}

double bk_unsigned_nan(double x) { return isnan(x) ? (double)NAN : x; }

/* By RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF. The first byte tells the
 * length, and four first bytes narrow the range of the second. */
size_t bk_utf8_length(const unsigned char *s, size_t left) {
  unsigned char c = s[0];
  size_t length = c < 0x80                ? 1
                  : c >= 0xc2 && c < 0xe0 ? 2
                  : c >= 0xe0 && c < 0xf0 ? 3
                  : c >= 0xf0 && c < 0xf5 ? 4
                                          : 0;
  if (length == 0 || length > left) return 0;
  for (size_t i = 1; i < length; i++)
    if ((s[i] & 0xc0) != 0x80) return 0;
  bool overlong = (c == 0xe0 && s[1] < 0xa0) || (c == 0xf0 && s[1] < 0x90);
  bool outside = (c == 0xed && s[1] >= 0xa0) || (c == 0xf4 && s[1] >= 0x90);
  return overlong || outside ? 0 : length;
}
