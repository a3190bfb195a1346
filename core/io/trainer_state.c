/* trainer_state.json, which lies in every checkpoint of a run:
 *   {"format": 1, "step": 500, "tokens": 1024000, "data_hash": "16 hexadecimal digits",
 *    "dtype": "bf16", "recipe": {every key of bk_train_keys},
 *    "data_files": [[bytes, "16 hexadecimal digits"], ...]}
 *
 * Its reader is stricter than that of config.json: the file was written by this library, and a run
 * that continues with another recipe would not be the same run. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "io/config_document.h"

/* trainer_state.json's own number; another one means keys that this code does not know */
#define STATE_FORMAT 1
#define COUNT_MAX (1LL << 60) /* of steps and tokens; a step can be added without overflow */

/* One file a line, without its name: what is trained on counts, not where it lies. */
static void write_files(bk_json_out *out, const bk_trainer_state *s) {
  char text[64];
  bk_document_text_member(out, "data_files", "[");
  for (int i = 0; i < s->n_files; i++) {
    snprintf(text, sizeof text, "%s\n    [%llu, \"%016llx\"]", i ? "," : "",
             (unsigned long long)s->files[i].bytes, (unsigned long long)s->files[i].hash);
    bk_json_out_text(out, text);
  }
  bk_json_out_text(out, "\n  ]");
}

/* The hash of the data is written as text, because 64 bits do not fit the numbers of every JSON
 * reader. */
bk_status bk_trainer_state_write(bk_context *ctx, const char *path, const bk_trainer_state *s) {
  char hash[24];
  BK_TRY(bk_train_config_check(ctx, path, &s->recipe));
  snprintf(hash, sizeof hash, "\"%016llx\"", (unsigned long long)s->data_hash);
  bk_json_out out;
  bk_json_out_init(&out, ctx);
  bk_json_out_text(&out, "{");
  bk_document_member(&out, "  ", "format");
  bk_json_out_int(&out, STATE_FORMAT);
  bk_document_member(&out, "  ", "step");
  bk_json_out_int(&out, s->step);
  bk_document_member(&out, "  ", "tokens");
  bk_json_out_int(&out, s->tokens);
  bk_document_text_member(&out, "data_hash", hash);
  bk_document_member(&out, "  ", "dtype");
  bk_json_out_string(&out, bk_dtype_name(s->dtype));
  bk_document_text_member(&out, "recipe", "{");
  for (const bk_option *o = bk_train_keys; o->name; o++)
    bk_document_write_option(&out, "    ", o, &s->recipe);
  bk_json_out_text(&out, "\n  }");
  if (s->n_files > 0) write_files(&out, s);
  bk_json_out_text(&out, "\n}\n");
  return bk_document_save(&out, path);
}

/* The member must be there, or the state is damaged. */
static bk_status read_count(const bk_document *doc, const char *name, int64_t *count) {
  json_t *value = json_object_get(doc->root, name);
  if (!value) return bk_fail(doc->ctx, BK_ERR_DATA, "%s: %s is missing", doc->origin, name);
  if (!json_is_integer(value) || json_integer_value(value) < 0 ||
      json_integer_value(value) > COUNT_MAX)
    return bk_fail(doc->ctx, BK_ERR_DATA, "%s: %s must be an integer from 0 to %lld", doc->origin,
                   name, COUNT_MAX);
  *count = (int64_t)json_integer_value(value);
  return BK_OK;
}

/* This is the inverse of how bk_trainer_state_write has written it. */
static bool parse_hash(const json_t *value, uint64_t *hash) {
  const char *text = json_string_value(value);
  if (!text || strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16) return false;
  uint64_t sum = 0;
  for (const char *p = text; *p; p++)
    sum = sum << 4 | (uint64_t)(*p <= '9' ? *p - '0' : *p - 'a' + 10);
  *hash = sum;
  return true;
}

static bk_status read_hash(const bk_document *doc, uint64_t *hash) {
  if (parse_hash(json_object_get(doc->root, "data_hash"), hash)) return BK_OK;
  return bk_fail(doc->ctx, BK_ERR_DATA,
                 "%s: data_hash must be a string of 16 lower-case hexadecimal digits", doc->origin);
}

static bool parse_file(const json_t *entry, bk_data_file *file) {
  const json_t *bytes = json_array_get(entry, 0);
  if (json_array_size(entry) != 2 || !json_is_integer(bytes) || json_integer_value(bytes) < 0)
    return false;
  file->bytes = (uint64_t)json_integer_value(bytes);
  return parse_hash(json_array_get(entry, 1), &file->hash);
}

/* *files is NULL where the state has none. */
static bk_status read_files(const bk_document *doc, bk_data_file **files, int *n_files) {
  json_t *list = json_object_get(doc->root, "data_files");
  size_t n = json_array_size(list), i = 0;
  bk_data_file *made = NULL;
  if (list && n > 0 && n <= INT_MAX) {
    if (!(made = bk_alloc_array(doc->ctx, n, sizeof *made))) return BK_ERR_MEMORY;
    while (i < n && parse_file(json_array_get(list, i), &made[i])) i++;
  }
  if (list && (n == 0 || i < n)) {
    bk_free(doc->ctx, made);
    return bk_fail(doc->ctx, BK_ERR_DATA,
                   "%s: data_files must be a list of files, each its bytes and a hash as a string "
                   "of 16 lower-case hexadecimal digits; number %zu is not",
                   doc->origin, i + 1);
  }
  *files = made;
  *n_files = (int)n;
  return BK_OK;
}

/* Keys that older states may lack, because they were added later, and the value that stands for an
 * absent one: the value that changes no bit of a run that knew nothing of the key. NULL means the
 * default. */
static const struct {
  const char *name, *value;
} later_keys[] = {
    {"spike_factor", NULL}, {"gain_limit", NULL},        {"cuda_graph", NULL}, {"allow_tf32", NULL},
    {"merge_stream", NULL}, {"bin_validation", "false"}, {"save_async", NULL}, {"recompute", NULL},
};

/* The default is left in place where that is what absence means. */
static bk_status read_absent(const bk_document *doc, const bk_option *o, bk_train_config *t) {
  for (size_t i = 0; i < BK_COUNT(later_keys); i++) {
    if (strcmp(o->name, later_keys[i].name) != 0) continue;
    return later_keys[i].value
               ? bk_option_set_text(doc->ctx, doc->origin, o, later_keys[i].value, t)
               : BK_OK;
  }
  return bk_fail(doc->ctx, BK_ERR_DATA, "%s: recipe lacks the key \"%s\"", doc->origin, o->name);
}

/* All keys but the later ones must be there, and all must be known: a resumed run continues bit
 * for bit or not at all. */
static bk_status read_recipe(const bk_document *doc, bk_train_config *t) {
  json_t *recipe = json_object_get(doc->root, "recipe"), *value;
  const char *key;
  if (!json_is_object(recipe))
    return bk_fail(doc->ctx, BK_ERR_DATA, "%s: recipe is missing or not an object", doc->origin);
  bk_train_config_default(t);
  json_object_foreach(
      recipe, key,
      value) if (!bk_option_find(bk_train_keys, key,
                                 strlen(
                                     key))) return bk_fail(doc->ctx, BK_ERR_DATA,
                                                           "%s: recipe has the unknown key \"%s\"",
                                                           doc->origin, key);
  for (const bk_option *o = bk_train_keys; o->name; o++) {
    value = json_object_get(recipe, o->name);
    BK_TRY(value ? bk_document_option(doc, o, value, t) : read_absent(doc, o, t));
  }
  return bk_train_config_check(doc->ctx, doc->origin, t);
}

/* The format's number comes first: of another format nothing else can be judged. */
static bk_status read_state(const bk_document *doc, bk_trainer_state *s) {
  bk_trainer_state read = {.step = 0};
  int64_t format = 0;
  BK_TRY(read_count(doc, "format", &format));
  if (format != STATE_FORMAT)
    return bk_fail(doc->ctx, BK_ERR_DATA, "%s: format %lld is not known, only %d", doc->origin,
                   (long long)format, STATE_FORMAT);
  BK_TRY(read_count(doc, "step", &read.step));
  BK_TRY(read_count(doc, "tokens", &read.tokens));
  BK_TRY(read_hash(doc, &read.data_hash));
  const char *dtype = json_string_value(json_object_get(doc->root, "dtype"));
  if (!dtype || bk_dtype_parse(dtype, &read.dtype) != BK_OK)
    return bk_fail(doc->ctx, BK_ERR_DATA, "%s: dtype must be fp32, bf16 or fp64", doc->origin);
  BK_TRY(read_recipe(doc, &read.recipe));
  *s = read;
  return BK_OK;
}

/* On success doc->root is to be json_decref'd. */
static bk_status load_file(bk_document *doc) {
  char *text;
  size_t bytes;
  BK_TRY(bk_file_read_all(doc->ctx, doc->origin, BK_CONFIG_BYTES_MAX, &text, &bytes));
  bk_status status = bk_document_load(doc, text, bytes);
  bk_free(doc->ctx, text);
  return status;
}

/* *s is written on success only. */
bk_status bk_trainer_state_read(bk_context *ctx, const char *path, bk_trainer_state *s) {
  bk_document doc = {.ctx = ctx, .origin = path};
  BK_TRY(load_file(&doc));
  bk_status status = read_state(&doc, s);
  json_decref(doc.root);
  return status;
}

bk_status bk_trainer_state_files(bk_context *ctx, const char *path, bk_data_file **files,
                                 int *n_files) {
  bk_document doc = {.ctx = ctx, .origin = path};
  BK_TRY(load_file(&doc));
  bk_status status = read_files(&doc, files, n_files);
  json_decref(doc.root);
  return status;
}
