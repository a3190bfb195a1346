/* Option tables: text to value, value to text, ranges. No key is known here by name; a table is a
 * row of bk_option that gives name, type, range and the place in a struct.
 *
 * Two integer types have words for special values: null (0) for INT_OR_NULL, auto (-1) and off (0)
 * for INT_OR_AUTO. Integers and floats are kept apart strictly, as transformers does in
 * config.json.
 *
 * Everything about a key is in its row: this file, the reader of JSON, --set, the help and the
 * manual need no change when one is added. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/config_priv.h"
#include "io/json_out.h"

/* The tables are short, and options are looked up while a configuration is read, never in a
 * step. */
const bk_option *bk_option_find(const bk_option *table, const char *name, size_t length) {
  for (const bk_option *o = table; o->name; o++)
    if (strlen(o->name) == length && memcmp(o->name, name, length) == 0) return o;
  return NULL;
}

/* Words that are no option's name, such as the + in a sum, are passed over. */
bk_option_set bk_option_bits(const bk_option *table, const char *names) {
  bk_option_set bits = 0;
  for (const char *word = names; *word; word += strspn(word, " ")) {
    size_t length = strcspn(word, " ");
    const bk_option *o = bk_option_find(table, word, length);
    if (o) bits |= (bk_option_set)1 << (o - table);
    word += length;
  }
  return bits;
}

/* The text is "one of a, b, c", cut off where it does not fit. */
static char *choices_text(const bk_option *o, char *text, size_t size) {
  int used = snprintf(text, size, "one of");
  for (const char *const *c = o->choices; *c && used > 0 && (size_t)used < size; c++)
    used += snprintf(text + used, size - (size_t)used, "%s %s", c == o->choices ? "" : ",", *c);
  return text;
}

/* In words that stand behind "must be" in a message. */
char *bk_option_range_text(const bk_option *o, char *text, size_t size) {
  char low[BK_DOUBLE_TEXT], high[BK_DOUBLE_TEXT];
  const char *words = o->type == BK_OPT_INT_OR_NULL   ? ", or null"
                      : o->type == BK_OPT_INT_OR_AUTO ? ", or auto, or off"
                                                      : "";
  switch (o->type) {
    case BK_OPT_ENUM: return choices_text(o, text, size);
    case BK_OPT_BOOL: snprintf(text, size, "true or false"); break;
    case BK_OPT_DOUBLE:
      snprintf(text, size, "a number from %s to %s", bk_double_text(o->min, low),
               bk_double_text(o->max, high));
      break;
    default:
      snprintf(text, size, "an integer from %" PRId64 " to %" PRId64 "%s", (int64_t)o->min,
               (int64_t)o->max, words);
  }
  return text;
}

/* The one message for a value that is not allowed: where it came from, the key, what it must be,
 * what it is. */
static bk_status refuse(bk_context *ctx, const char *origin, const bk_option *o,
                        const char *given) {
  char range[BK_OPTION_TEXT];
  return bk_fail(ctx, BK_ERR_CONFIG, "%s: %s must be %s, not %s", origin, o->name,
                 bk_option_range_text(o, range, sizeof range), *given ? given : "empty");
}

/* The limits are stored as doubles; all of them are exact as int64. */
static bool int_in_range(const bk_option *o, int64_t value) {
  return value >= (int64_t)o->min && value <= (int64_t)o->max;
}

/* The struct is written only after the check. */
bk_status bk_option_set_int(bk_context *ctx, const char *origin, const bk_option *o, int64_t value,
                            void *config) {
  char given[24];
  snprintf(given, sizeof given, "%" PRId64, value);
  if (!int_in_range(o, value)) return refuse(ctx, origin, o, given);
  memcpy((char *)config + o->offset, &value, sizeof value);
  return BK_OK;
}

/* The comparison is written so that NaN fails it. */
bk_status bk_option_set_double(bk_context *ctx, const char *origin, const bk_option *o,
                               double value, void *config) {
  char given[BK_DOUBLE_TEXT];
  if (!(value >= o->min && value <= o->max))
    return refuse(ctx, origin, o, bk_double_text(value, given));
  memcpy((char *)config + o->offset, &value, sizeof value);
  return BK_OK;
}

/* An enum is stored as the number of its choice. */
static bk_status set_choice(bk_context *ctx, const char *origin, const bk_option *o,
                            const char *text, void *config) {
  for (int i = 0; o->choices[i]; i++) {
    if (strcmp(o->choices[i], text) != 0) continue;
    memcpy((char *)config + o->offset, &i, sizeof i);
    return BK_OK;
  }
  return refuse(ctx, origin, o, text);
}

/* The words of the two special integer types; false if `text` is neither. */
static bool special_word(const bk_option *o, const char *text, int64_t *value) {
  bool null = o->type == BK_OPT_INT_OR_NULL && strcmp(text, "null") == 0;
  bool off = o->type == BK_OPT_INT_OR_AUTO && strcmp(text, "off") == 0;
  bool automatic = o->type == BK_OPT_INT_OR_AUTO && strcmp(text, "auto") == 0;
  *value = automatic ? -1 : 0;
  return null || off || automatic;
}

/* Texts come from --set and from JSON strings; both spell values alike. */
bk_status bk_option_set_text(bk_context *ctx, const char *origin, const bk_option *o,
                             const char *text, void *config) {
  int64_t i;
  double d;
  bool b;
  switch (o->type) {
    case BK_OPT_ENUM: return set_choice(ctx, origin, o, text, config);
    case BK_OPT_DOUBLE:
      if (!bk_parse_double(text, &d)) return refuse(ctx, origin, o, text);
      return bk_option_set_double(ctx, origin, o, d, config);
    case BK_OPT_BOOL:
      if (!bk_parse_bool(text, &b)) return refuse(ctx, origin, o, text);
      memcpy((char *)config + o->offset, &b, sizeof b);
      return BK_OK;
    default: break;
  }
  if (special_word(o, text, &i)) {
    memcpy((char *)config + o->offset, &i, sizeof i);
    return BK_OK;
  }
  return bk_parse_int64(text, &i) ? bk_option_set_int(ctx, origin, o, i, config)
                                  : refuse(ctx, origin, o, text);
}

/* 0 stands for null or off in the two special types, and may then lie below the range. */
static bool value_in_range(const bk_option *o, const void *config) {
  int64_t i;
  switch (o->type) {
    case BK_OPT_BOOL: return true;
    case BK_OPT_DOUBLE:
      return bk_option_double(o, config) >= o->min && bk_option_double(o, config) <= o->max;
    case BK_OPT_ENUM:
      for (i = 0; o->choices[i]; i++)
        if (i == bk_option_enum(o, config)) return true;
      return false;
    default: i = bk_option_int(o, config);
  }
  if (i == 0 && o->type != BK_OPT_INT) return true;
  return (i == BK_RECOMPUTE_AUTO && o->type == BK_OPT_INT_OR_AUTO) || int_in_range(o, i);
}

/* The result is BK_ERR_CONFIG if one of them is out of range. Values that came as text were checked
 * when they were set; a program may have put anything into the struct. */
bk_status bk_options_check(bk_context *ctx, const char *origin, const bk_option *table,
                           const void *config, bk_option_set *set) {
  bk_status status = BK_OK;
  char given[BK_OPTION_TEXT];
  for (const bk_option *o = table; o->name; o++) {
    bk_option_set bit = (bk_option_set)1 << (o - table);
    if (!(*set & bit) || value_in_range(o, config)) continue;
    *set &= ~bit;
    status = refuse(ctx, origin, o, bk_option_value_text(o, config, given, sizeof given));
  }
  return status;
}

/* A number that no choice has is shown as "?", which happens in messages only. */
static const char *choice_name(const bk_option *o, int value) {
  for (int i = 0; o->choices[i]; i++)
    if (i == value) return o->choices[i];
  return "?";
}

/* The inverse of bk_option_set_text: the text reads back as the same value. */
char *bk_option_value_text(const bk_option *o, const void *config, char *text, size_t size) {
  char number[BK_DOUBLE_TEXT];
  int64_t i = 0;
  switch (o->type) {
    case BK_OPT_BOOL:
      snprintf(text, size, "%s", bk_option_bool(o, config) ? "true" : "false");
      return text;
    case BK_OPT_ENUM:
      snprintf(text, size, "%s", choice_name(o, bk_option_enum(o, config)));
      return text;
    case BK_OPT_DOUBLE:
      snprintf(text, size, "%s", bk_double_text(bk_option_double(o, config), number));
      return text;
    default: i = bk_option_int(o, config);
  }
  if (o->type == BK_OPT_INT_OR_NULL && i == 0) snprintf(text, size, "null");
  else if (o->type == BK_OPT_INT_OR_AUTO && i == BK_RECOMPUTE_AUTO) snprintf(text, size, "auto");
  else if (o->type == BK_OPT_INT_OR_AUTO && i == 0) snprintf(text, size, "off");
  else snprintf(text, size, "%" PRId64, i);
  return text;
}
