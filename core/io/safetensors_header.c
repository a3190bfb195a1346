/* The header's JSON: a strict parser for exactly the shape that the format allows, without
 * recursion and without tolerance, followed by the checks on the whole: names, sizes, and data
 * laid end to end (safetensors' format description: no overlap, no holes). Every message names the
 * file, and the tensor once its name is known.
 *
 * It is written by hand, and not over the JSON library, because the file is untrusted and may be
 * large: depth, duplicates and integers of 64 bits are decided here, and a failed allocation is
 * told from a fault of the text.
 *
 * A header:
 *   {"__metadata__": {"format": "pt"},
 *    "model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}, ...}
 *
 * Every function named take_X reads X at the place where the parser stands, steps past it, and on
 * failure has logged what is wrong there. */
#include <stdlib.h>
#include <string.h>

#include "io/safetensors_priv.h"

typedef struct element_type {
  const char *name;
  unsigned bits;
  bk_dtype dtype;
} element_type;

/* Every dtype of the format, with the library's own where there is one. Files with the others can
 * be listed. */
static const element_type element_types[] = {
    {"F32", 32, BK_F32},     {"BF16", 16, BK_BF16},   {"F64", 64, BK_F64},
    {"I32", 32, BK_I32},     {"I64", 64, BK_I64},     {"U8", 8, BK_U8},
    {"F16", 16, BK_NONE},    {"BOOL", 8, BK_NONE},    {"I8", 8, BK_NONE},
    {"I16", 16, BK_NONE},    {"U16", 16, BK_NONE},    {"U32", 32, BK_NONE},
    {"U64", 64, BK_NONE},    {"C64", 64, BK_NONE},    {"F8_E5M2", 8, BK_NONE},
    {"F8_E4M3", 8, BK_NONE}, {"F8_E8M0", 8, BK_NONE}, {"F6_E2M3", 6, BK_NONE},
    {"F6_E3M2", 6, BK_NONE}, {"F4", 4, BK_NONE},
};

/* The result is NULL for a dtype that the format does not have. */
const char *bk_st_dtype_name(bk_dtype dtype) {
  for (size_t i = 0; i < BK_COUNT(element_types) && dtype != BK_NONE; i++)
    if (element_types[i].dtype == dtype) return element_types[i].name;
  return NULL;
}

/* The result is NULL for a name that is none of the format's. */
static const element_type *find_type(const char *name) {
  for (size_t i = 0; i < BK_COUNT(element_types); i++)
    if (strcmp(element_types[i].name, name) == 0) return &element_types[i];
  return NULL;
}

#define BK_ST_EXTENT_MAX ((uint64_t)1 << 60) /* ten times it is still a uint64_t */

/* Where in the text the parser stands: [at, end) is still to be read, `start` is where it began. */
typedef struct parser {
  bk_context *ctx;
  const char *path;
  const char *at, *end, *start;
  const char *tensor; /* being read; NULL outside */
} parser;

/* ---- tokens ---- */

/* The message says where in the header the fault is, and of which tensor. */
static bk_status fail_at(const parser *p, const char *what) {
  if (p->tensor)
    return bk_fail(p->ctx, BK_ERR_DATA, "%s: tensor %s: %s (header byte %zu)", p->path, p->tensor,
                   what, (size_t)(p->at - p->start));
  return bk_fail(p->ctx, BK_ERR_DATA, "%s: header: %s (byte %zu)", p->path, what,
                 (size_t)(p->at - p->start));
}

/* JSON allows these four characters between tokens. */
static void skip_space(parser *p) {
  while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r'))
    p->at++;
}

/* Takes the character if it is next, white space before it skipped. */
static bool take(parser *p, char c) {
  skip_space(p);
  if (p->at >= p->end || *p->at != c) return false;
  p->at++;
  return true;
}

/* The character must be next. */
static bk_status expect(parser *p, char c) {
  char what[] = "'?' is missing";
  what[1] = c;
  return take(p, c) ? BK_OK : fail_at(p, what);
}

/* After a member: ',' means that another one follows, `close` that none does. */
static bk_status more(parser *p, char close, bool *again) {
  *again = take(p, ',');
  return *again ? BK_OK : expect(p, close);
}

/* The four digits are looked at and not taken yet. */
static bool hex4(const parser *p, unsigned *code) {
  if (p->end - p->at < 4) return false;
  *code = 0;
  for (int i = 0; i < 4; i++) {
    char c = p->at[i];
    int digit = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
    if (digit < 0) return false;
    *code = *code << 4 | (unsigned)digit;
  }
  return true;
}

/* Writes one character as UTF-8, and returns where the next one goes. */
static char *put_utf8(char *out, unsigned code) {
  if (code < 0x80) {
    *out++ = (char)code;
  } else if (code < 0x800) {
    *out++ = (char)(0xc0 | code >> 6);
    *out++ = (char)(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    *out++ = (char)(0xe0 | code >> 12);
    *out++ = (char)(0x80 | (code >> 6 & 0x3f));
    *out++ = (char)(0x80 | (code & 0x3f));
  } else {
    *out++ = (char)(0xf0 | code >> 18);
    *out++ = (char)(0x80 | (code >> 12 & 0x3f));
    *out++ = (char)(0x80 | (code >> 6 & 0x3f));
    *out++ = (char)(0x80 | (code & 0x3f));
  }
  return out;
}

/* The part after "\u": one code unit, or a surrogate pair for a character beyond 16 bits. Zero is
 * refused, because names are C strings. */
static bk_status take_unicode(parser *p, char **out) {
  unsigned code, low;
  if (!hex4(p, &code)) return fail_at(p, "\\u needs four hexadecimal digits");
  p->at += 4;
  if (code == 0) return fail_at(p, "a string holds a NUL");
  if (code >= 0xdc00 && code < 0xe000) return fail_at(p, "a low surrogate stands alone");
  if (code >= 0xd800 && code < 0xdc00) {
    bool pair = p->end - p->at >= 6 && p->at[0] == '\\' && p->at[1] == 'u';
    if (pair) p->at += 2;
    if (!pair || !hex4(p, &low) || low < 0xdc00 || low >= 0xe000)
      return fail_at(p, "a high surrogate stands alone");
    p->at += 4;
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  *out = put_utf8(*out, code);
  return BK_OK;
}

/* The eight short escapes of JSON and \u. */
static bk_status take_escape(parser *p, char **out) {
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  if (p->at >= p->end) return fail_at(p, "a string does not end");
  char c = *p->at++;
  if (c == 'u') return take_unicode(p, out);
  const char *found = c ? strchr(from, c) : NULL;
  if (!found) return fail_at(p, "unknown escape in a string");
  *(*out)++ = to[found - from];
  return BK_OK;
}

/* Copies the characters up to the closing quote, which it takes. `out` has room for
 * string_bound. */
static bk_status take_characters(parser *p, char *out) {
  while (p->at < p->end && *p->at != '"') {
    size_t length = bk_utf8_length((const unsigned char *)p->at, (size_t)(p->end - p->at));
    if (length == 0) return fail_at(p, "a string is not UTF-8");
    if ((unsigned char)*p->at < 0x20) return fail_at(p, "a string holds a control character");
    if (*p->at == '\\') {
      p->at++;
      BK_TRY(take_escape(p, &out));
      continue;
    }
    memcpy(out, p->at, length);
    out += length;
    p->at += length;
  }
  *out = '\0';
  return p->at < p->end ? expect(p, '"') : fail_at(p, "a string does not end");
}

/* The most bytes that the string from here to its closing quote can have: escapes only shrink. */
static size_t string_bound(const parser *p) {
  const char *q = p->at;
  while (q < p->end && *q != '"') q += *q == '\\' && q + 1 < p->end ? 2 : 1;
  return (size_t)(q - p->at);
}

/* The string is made in one allocation of the largest size it can have. */
static bk_status take_string(parser *p, char **text) {
  BK_TRY(expect(p, '"'));
  char *made = bk_alloc(p->ctx, string_bound(p) + 1);
  if (!made) return BK_ERR_MEMORY;
  bk_status status = take_characters(p, made);
  if (status == BK_OK) *text = made;
  else bk_free(p->ctx, made);
  return status;
}

/* A non-negative integer in decimal: no sign, no leading zero, no fraction, no exponent. */
static bk_status take_size(parser *p, uint64_t *value) {
  uint64_t sum = 0;
  skip_space(p);
  const char *first = p->at;
  if (p->at < p->end && *p->at == '-') return fail_at(p, "a size is negative");
  for (; p->at < p->end && *p->at >= '0' && *p->at <= '9'; p->at++) {
    uint64_t digit = (uint64_t)(*p->at - '0');
    if (sum > ((uint64_t)INT64_MAX - digit) / 10) return fail_at(p, "a size is above 2^63 - 1");
    sum = 10 * sum + digit;
  }
  if (p->at == first) return fail_at(p, "an integer is missing");
  if (*first == '0' && p->at - first > 1) return fail_at(p, "an integer begins with 0");
  if (p->at < p->end && (*p->at == '.' || *p->at == 'e' || *p->at == 'E'))
    return fail_at(p, "a size is not an integer");
  *value = sum;
  return BK_OK;
}

/* ---- one tensor ---- */

/* An unknown dtype is refused, because the size of the tensor could not be checked. */
static bk_status take_dtype(parser *p, bk_st_entry *e) {
  char *name;
  BK_TRY(take_string(p, &name));
  const element_type *type = find_type(name);
  if (type) {
    memcpy(e->dtype_name, type->name, strlen(type->name) + 1);
    e->dtype = type->dtype;
  } else {
    bk_fail(p->ctx, BK_ERR_DATA, "%s: tensor %s: unknown dtype %.32s", p->path, p->tensor, name);
  }
  bk_free(p->ctx, name);
  return type ? BK_OK : BK_ERR_DATA;
}

/* An empty list is a scalar, one element without dimensions. */
static bk_status take_shape(parser *p, bk_st_entry *e) {
  bool again = true;
  BK_TRY(expect(p, '['));
  if (take(p, ']')) return BK_OK;
  while (again) {
    uint64_t size;
    if (e->ndim == BK_ST_MAX_DIMS) return fail_at(p, "more than 8 dimensions");
    BK_TRY(take_size(p, &size));
    e->shape[e->ndim++] = (int64_t)size;
    BK_TRY(more(p, ']', &again));
  }
  return BK_OK;
}

/* How the two lie to each other and to the data is checked later (check_extent). */
static bk_status take_offsets(parser *p, bk_st_entry *e) {
  BK_TRY(expect(p, '['));
  BK_TRY(take_size(p, &e->begin));
  BK_TRY(expect(p, ','));
  BK_TRY(take_size(p, &e->end));
  return expect(p, ']');
}

/* The three members of a tensor in any order, each once. `seen` has a bit for each. */
static bk_status take_field(parser *p, const char *field, bk_st_entry *e, unsigned *seen) {
  static const char *const names[] = {"dtype", "shape", "data_offsets"};
  unsigned which = 0;
  while (which < BK_COUNT(names) && strcmp(field, names[which]) != 0) which++;
  if (which == BK_COUNT(names))
    return fail_at(p, "unknown field; a tensor has dtype, shape and data_offsets");
  if (*seen & 1u << which) return fail_at(p, "a field is given twice");
  *seen |= 1u << which;
  BK_TRY(expect(p, ':'));
  return which == 0 ? take_dtype(p, e) : which == 1 ? take_shape(p, e) : take_offsets(p, e);
}

/* All three members must be there; another one is an error, not something to be passed over. */
static bk_status take_fields(parser *p, bk_st_entry *e) {
  unsigned seen = 0;
  bool again = true;
  BK_TRY(expect(p, '{'));
  if (take(p, '}')) return fail_at(p, "dtype, shape and data_offsets are missing");
  while (again) {
    char *field;
    BK_TRY(take_string(p, &field));
    bk_status status = take_field(p, field, e, &seen);
    bk_free(p->ctx, field);
    BK_TRY(status);
    BK_TRY(more(p, '}', &again));
  }
  if (!(seen & 1)) return fail_at(p, "dtype is missing");
  if (!(seen & 2)) return fail_at(p, "shape is missing");
  return seen & 4 ? BK_OK : fail_at(p, "data_offsets is missing");
}

/* An empty dimension makes the product 0, whatever the other sizes are. */
static bool element_count(const bk_st_entry *e, uint64_t *count) {
  uint64_t product = 1;
  for (int i = 0; i < e->ndim; i++) {
    uint64_t size = (uint64_t)e->shape[i];
    if (size != 0 && product > (uint64_t)INT64_MAX / size) return false;
    product *= size;
  }
  *count = product;
  return true;
}

/* The offsets must lie within the data and hold exactly as many bytes as dtype and shape say.
 * Types of 4 and 6 bits must fill whole bytes. */
static bk_status check_extent(const parser *p, const bk_st_entry *e, uint64_t data_bytes) {
  uint64_t count, bits = find_type(e->dtype_name)->bits;
  if (!element_count(e, &count) || count > (uint64_t)INT64_MAX / bits)
    return bk_fail(p->ctx, BK_ERR_DATA, "%s: tensor %s: the product of its shape overflows",
                   p->path, e->name);
  if (count * bits % 8 != 0)
    return bk_fail(p->ctx, BK_ERR_DATA, "%s: tensor %s: its %s elements do not fill whole bytes",
                   p->path, e->name, e->dtype_name);
  unsigned long long begin = e->begin, end = e->end, need = count * bits / 8, data = data_bytes;
  if (begin > end)
    return bk_fail(p->ctx, BK_ERR_DATA, "%s: tensor %s: data_offsets [%llu, %llu] run backwards",
                   p->path, e->name, begin, end);
  if (end > data)
    return bk_fail(p->ctx, BK_ERR_DATA,
                   "%s: tensor %s: data_offsets [%llu, %llu] end past the file's %llu bytes "
                   "of data (truncated?)",
                   p->path, e->name, begin, end, data);
  if (end - begin != need)
    return bk_fail(p->ctx, BK_ERR_DATA,
                   "%s: tensor %s: data_offsets [%llu, %llu] hold %llu bytes, dtype %s and "
                   "shape need %llu",
                   p->path, e->name, begin, end, end - begin, e->dtype_name, need);
  return BK_OK;
}

/* Takes the tensor that follows its name. The table owns `name` from here on, on failure too. */
static bk_status take_tensor(parser *p, bk_st_table *table, char *name, uint64_t data_bytes) {
  bk_status status = bk_grow(p->ctx, (void **)&table->entries, &table->capacity, table->count + 1,
                             sizeof *table->entries);
  if (status != BK_OK) {
    bk_free(p->ctx, name);
    return status;
  }
  bk_st_entry *e = &table->entries[table->count++];
  *e = (bk_st_entry){.name = name};
  p->tensor = name;
  BK_TRY(take_fields(p, e));
  BK_TRY(check_extent(p, e, data_bytes));
  p->tensor = NULL;
  return BK_OK;
}

/* ---- __metadata__ ---- */

/* A key without its value stays in the table after a failure, and is freed with it. */
static bk_status take_pair(parser *p, bk_st_table *table) {
  BK_TRY(bk_grow(p->ctx, (void **)&table->metadata, &table->metadata_capacity,
                 table->n_metadata + 1, sizeof *table->metadata));
  bk_st_pair *pair = &table->metadata[table->n_metadata];
  *pair = (bk_st_pair){0};
  BK_TRY(take_string(p, &pair->key));
  table->n_metadata++;
  BK_TRY(expect(p, ':'));
  return take_string(p, &pair->value);
}

static int compare_pairs(const void *a, const void *b) {
  return strcmp(((const bk_st_pair *)a)->key, ((const bk_st_pair *)b)->key);
}

static bool take_null(parser *p) {
  skip_space(p);
  if (p->end - p->at < 4 || memcmp(p->at, "null", 4) != 0) return false;
  p->at += 4;
  return true;
}

/* An object of strings, or null, which means the same as no __metadata__ at all. Sorting finds
 * keys that are given twice. */
static bk_status take_metadata(parser *p, bk_st_table *table) {
  p->tensor = "__metadata__";
  bool again = !take_null(p);
  if (again) {
    BK_TRY(expect(p, '{'));
    again = !take(p, '}');
  }
  while (again) {
    BK_TRY(take_pair(p, table));
    BK_TRY(more(p, '}', &again));
  }
  if (table->n_metadata)
    qsort(table->metadata, table->n_metadata, sizeof *table->metadata, compare_pairs);
  for (size_t i = 1; i < table->n_metadata; i++)
    if (strcmp(table->metadata[i - 1].key, table->metadata[i].key) == 0)
      return bk_fail(p->ctx, BK_ERR_DATA, "%s: __metadata__ has the key %s twice", p->path,
                     table->metadata[i].key);
  p->tensor = NULL;
  return BK_OK;
}

/* ---- the whole ---- */

/* Names go into messages and file names: they must not hold codes that control a terminal. */
static bk_status take_name(parser *p, char **name) {
  BK_TRY(take_string(p, name));
  for (const char *c = *name; *c; c++) {
    if ((unsigned char)*c >= 0x20 && *c != 0x7f) continue;
    bk_free(p->ctx, *name);
    return fail_at(p, "a tensor's name holds a control character");
  }
  return BK_OK;
}

/* A member is a tensor or __metadata__, which may come anywhere and once. The name is freed here
 * unless it becomes a tensor's. */
static bk_status take_member(parser *p, bk_st_table *table, uint64_t data_bytes,
                             bool *has_metadata) {
  char *name;
  BK_TRY(take_name(p, &name));
  bool metadata = strcmp(name, "__metadata__") == 0;
  bk_status status = take(p, ':')
                         ? BK_OK
                         : bk_fail(p->ctx, BK_ERR_DATA,
                                   "%s: tensor %s: ':' is missing after its name", p->path, name);
  if (status == BK_OK && metadata && *has_metadata)
    status = fail_at(p, "__metadata__ is given twice");
  if (status == BK_OK && !metadata) return take_tensor(p, table, name, data_bytes);
  bk_free(p->ctx, name);
  if (status != BK_OK) return status;
  *has_metadata = true;
  return take_metadata(p, table);
}

/* Strict at both ends: the first byte must be '{', and only white space may follow the last '}'. */
static bk_status take_header(parser *p, bk_st_table *table, uint64_t data_bytes) {
  bool again = true, has_metadata = false;
  if (p->at >= p->end || *p->at != '{') return fail_at(p, "it does not begin with '{'");
  p->at++;
  if (take(p, '}')) again = false;
  while (again) {
    BK_TRY(take_member(p, table, data_bytes, &has_metadata));
    BK_TRY(more(p, '}', &again));
  }
  skip_space(p);
  return p->at == p->end ? BK_OK : fail_at(p, "something follows the closing '}'");
}

/* The array holds pointers to entries. */
static int compare_names(const void *a, const void *b) {
  return strcmp((*(const bk_st_entry *const *)a)->name, (*(const bk_st_entry *const *)b)->name);
}

/* Empty tensors may share a place with others; names then decide, so that the order is always
 * one. */
static int compare_places(const void *a, const void *b) {
  const bk_st_entry *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  if (x->end != y->end) return x->end < y->end ? -1 : 1;
  return strcmp(x->name, y->name);
}

/* Two tensors of one name are found here, since they then stand side by side. */
bk_status bk_st_table_sort(bk_st_table *table, const char *path) {
  bk_free(table->ctx, (void *)table->by_name);
  table->by_name = bk_alloc_array(table->ctx, table->count, sizeof *table->by_name);
  if (!table->by_name) return BK_ERR_MEMORY;
  for (size_t i = 0; i < table->count; i++) table->by_name[i] = &table->entries[i];
  if (table->count) qsort(table->by_name, table->count, sizeof *table->by_name, compare_names);
  for (size_t i = 1; i < table->count; i++)
    if (strcmp(table->by_name[i - 1]->name, table->by_name[i]->name) == 0)
      return bk_fail(table->ctx, BK_ERR_DATA, "%s: tensor %s: the name is there twice", path,
                     table->by_name[i]->name);
  return BK_OK;
}

/* The entries are copied, and `from` forgets them so that its end does not free their names. */
bk_status bk_st_table_take(bk_st_table *table, bk_st_table *from) {
  if (from->count == 0) return BK_OK;
  BK_TRY(bk_grow(table->ctx, (void **)&table->entries, &table->capacity, table->count + from->count,
                 sizeof *table->entries));
  memcpy(table->entries + table->count, from->entries, from->count * sizeof *from->entries);
  table->count += from->count;
  from->count = 0; /* the names are the table's now */
  return BK_OK;
}

/* With the entries in order of their data, each must begin where the one before ended. An empty
 * tensor may stand at any such boundary. */
static bk_status check_layout(const parser *p, const bk_st_table *table, uint64_t data_bytes) {
  uint64_t at = 0;
  for (size_t i = 0; i < table->count; i++) {
    const bk_st_entry *e = &table->entries[i];
    if (e->begin < at)
      return bk_fail(p->ctx, BK_ERR_DATA, "%s: tensor %s: its data overlaps that of tensor %s",
                     p->path, e->name, e[-1].name);
    if (e->begin > at)
      return bk_fail(p->ctx, BK_ERR_DATA,
                     "%s: tensor %s: %llu bytes before its data belong to no tensor", p->path,
                     e->name, (unsigned long long)(e->begin - at));
    at = e->end;
  }
  if (at == data_bytes) return BK_OK;
  return bk_fail(p->ctx, BK_ERR_DATA, "%s: %llu bytes after the last tensor (%s) belong to none",
                 p->path, (unsigned long long)(data_bytes - at),
                 table->count ? table->entries[table->count - 1].name : "there is none");
}

/* Sorting by place comes before the index by name, which points into the sorted entries. */
bk_status bk_st_table_parse(bk_st_table *table, const char *path, const char *text, size_t bytes,
                            uint64_t data_bytes) {
  parser p = {.ctx = table->ctx, .path = path, .at = text, .start = text, .end = text + bytes};
  BK_TRY(take_header(&p, table, data_bytes));
  if (table->count > INT32_MAX) return fail_at(&p, "too many tensors");
  if (table->count) qsort(table->entries, table->count, sizeof *table->entries, compare_places);
  BK_TRY(bk_st_table_sort(table, path));
  return check_layout(&p, table, data_bytes);
}

/* ---- the end of the data, from a text that nobody has checked ---- */

/* Whether the string that begins at p->at, behind its quote, is `text`. Steps past its end. */
static bool string_is(parser *p, const char *text) {
  const char *begin = p->at;
  size_t length = string_bound(p);
  p->at = p->at + length < p->end ? p->at + length + 1 : p->end;
  return length == strlen(text) && memcmp(begin, text, length) == 0;
}

/* Digits past BK_ST_EXTENT_MAX are dropped: the number is then larger than any file anyway. */
static bool digits(parser *p, uint64_t *value) {
  skip_space(p);
  const char *first = p->at;
  for (*value = 0; p->at < p->end && *p->at >= '0' && *p->at <= '9'; p->at++)
    *value = *value < BK_ST_EXTENT_MAX ? 10 * *value + (uint64_t)(*p->at - '0') : *value;
  return p->at > first;
}

/* Finds every "data_offsets" and takes the largest end, without any look at what is around them.
 * `extent` is too large rather than too small where a name or a value looks like the member: such a
 * file counts as not whole, and reading it says why. */
uint64_t bk_st_header_extent(const char *text, size_t bytes) {
  parser p = {.at = text, .start = text, .end = text + bytes};
  uint64_t begin, end, extent = 0;
  while ((p.at = memchr(p.at, '"', (size_t)(p.end - p.at)))) {
    p.at++;
    if (!string_is(&p, "data_offsets") || !take(&p, ':') || !take(&p, '[')) continue;
    if (digits(&p, &begin) && take(&p, ',') && digits(&p, &end) && end > extent) extent = end;
  }
  return extent;
}

/* This is safe after a failure of parsing at whatever point. */
void bk_st_table_fini(bk_st_table *table) {
  for (size_t i = 0; i < table->count; i++) bk_free(table->ctx, table->entries[i].name);
  for (size_t i = 0; i < table->n_metadata; i++) {
    bk_free(table->ctx, table->metadata[i].key);
    bk_free(table->ctx, table->metadata[i].value);
  }
  bk_free(table->ctx, table->entries);
  bk_free(table->ctx, table->metadata);
  bk_free(table->ctx, (void *)table->by_name);
  *table = (bk_st_table){.ctx = table->ctx};
}
