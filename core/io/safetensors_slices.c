/* Tensors that lie in slices, in several files of one folder (safetensors.h). The index and the
 * files are untrusted, and must agree both ways: every slice that the index names is in the file
 * and of the length that it gives, every tensor of every file is such a slice, and the slices of a
 * tensor cover it from its beginning to its end, each element once.
 *
 *   {"metadata": {"total_size": 123456},
 *    "slices": {"m.model.norm.weight": {"dtype": "F32", "shape": [64], "slices": [
 *      {"file": "optimizer-00001-of-00002.safetensors", "name": "m.model.norm.weight[0:32]",
 *       "begin": 0, "count": 32}, ...]}, ...}} */
#include <stdlib.h>
#include <string.h>

#include "io/index.h"

typedef struct slice_index {
  bk_index base;
  size_t n_slices; /* of all tensors */
} slice_index;

static bk_status refuse(const slice_index *x, const char *tensor, const char *what) {
  return bk_fail(x->base.ctx, BK_ERR_DATA, "%s: tensor %s: %s", x->base.path, tensor, what);
}

/* ---- what the index says ---- */

static bool is_count(const json_t *value) {
  return json_is_integer(value) && json_integer_value(value) >= 0;
}

/* One slice, which must begin where the one before it ended. */
static bk_status check_slice(const slice_index *x, const char *tensor, const json_t *slice,
                             int64_t *end) {
  const json_t *begin = json_object_get(slice, "begin"), *count = json_object_get(slice, "count");
  const char *file = json_string_value(json_object_get(slice, "file")),
             *name = json_string_value(json_object_get(slice, "name"));
  if (!file || !name || !is_count(begin) || !is_count(count))
    return refuse(x, tensor,
                  "a slice must have the texts file and name and the whole numbers begin and "
                  "count");
  if (!bk_st_printable(file) || !bk_st_printable(name))
    return refuse(x, tensor, "a name holds a control character");
  if (!bk_st_plain_name(file))
    return bk_fail(x->base.ctx, BK_ERR_DATA,
                   "%s: tensor %s: \"%s\" is not the plain name of a file in this folder",
                   x->base.path, tensor, file);
  int64_t from = json_integer_value(begin), n = json_integer_value(count);
  if (from != *end)
    return bk_fail(x->base.ctx, BK_ERR_DATA,
                   "%s: tensor %s: the slice %s begins at element %lld, %s: the one before it ends "
                   "at %lld",
                   x->base.path, tensor, name, (long long)from,
                   from < *end ? "which is there twice" : "and something is missing",
                   (long long)*end);
  if (n == 0 || n > INT64_MAX / 8 - from)
    return refuse(x, tensor, n ? "a slice ends beyond any tensor" : "a slice has no elements");
  *end = from + n;
  return BK_OK;
}

/* The elements of a shape, or -1 where it is none or too large to be. */
static int64_t count_of(const json_t *shape) {
  int64_t count = 1;
  if (!json_is_array(shape) || json_array_size(shape) > BK_ST_MAX_DIMS) return -1;
  for (size_t d = 0; d < json_array_size(shape); d++) {
    const json_t *size = json_array_get(shape, d);
    if (!is_count(size)) return -1;
    int64_t n = json_integer_value(size);
    if (n > 0 && count > INT64_MAX / 8 / n) return -1;
    count *= n;
  }
  return count;
}

static bk_status check_tensor(slice_index *x, const char *tensor, const json_t *value) {
  const json_t *slices = json_object_get(value, "slices");
  int64_t count = count_of(json_object_get(value, "shape")), end = 0;
  if (!bk_st_printable(tensor))
    return bk_fail(x->base.ctx, BK_ERR_DATA, "%s: a name in slices holds a control character",
                   x->base.path);
  if (!json_is_string(json_object_get(value, "dtype")) || !json_is_array(slices))
    return refuse(x, tensor, "it must be an object with dtype, shape and a list of slices");
  if (count < 0) return refuse(x, tensor, "its shape is none, or too large");
  for (size_t i = 0; i < json_array_size(slices); i++)
    BK_TRY(check_slice(x, tensor, json_array_get(slices, i), &end));
  if (end != count)
    return bk_fail(x->base.ctx, BK_ERR_DATA,
                   "%s: tensor %s: its slices have %lld elements, its shape %lld", x->base.path,
                   tensor, (long long)end, (long long)count);
  x->n_slices += json_array_size(slices);
  return BK_OK;
}

/* All tensors are checked before the names of their files are listed. */
static bk_status collect_files(slice_index *x) {
  const char *tensor;
  json_t *value;
  size_t n = 0;
  json_object_foreach(x->base.map, tensor, value) BK_TRY(check_tensor(x, tensor, value));
  if (x->n_slices == 0)
    return bk_fail(x->base.ctx, BK_ERR_DATA, "%s: slices names no tensor", x->base.path);
  if (!(x->base.files = bk_alloc_array(x->base.ctx, x->n_slices, sizeof *x->base.files)))
    return BK_ERR_MEMORY;
  json_object_foreach(x->base.map, tensor, value) {
    const json_t *slices = json_object_get(value, "slices");
    for (size_t i = 0; i < json_array_size(slices); i++)
      x->base.files[n++] = json_string_value(json_object_get(json_array_get(slices, i), "file"));
  }
  bk_index_keep_once(&x->base, n);
  return BK_OK;
}

/* On failure nothing is left open. */
static bk_status open_index(bk_context *ctx, const char *folder, const char *index,
                            slice_index *x) {
  *x = (slice_index){.n_slices = 0};
  BK_TRY(bk_index_open(ctx, folder, index, "slices", "slices", &x->base));
  bk_status status =
      json_is_object(x->base.map)
          ? collect_files(x)
          : bk_fail(ctx, BK_ERR_DATA, "%s: slices, an object of tensors, is missing", x->base.path);
  if (status != BK_OK) bk_index_close(&x->base);
  return status;
}

/* ---- the tensors ---- */

/* The entry of a slice: flat, of the right length and dtype, and in the file that is named. */
static bk_status find_slice(const slice_index *x, const bk_st_reader *reader, const char *tensor,
                            const json_t *slice, const char *dtype, bk_st_slice *found) {
  const char *file = json_string_value(json_object_get(slice, "file")),
             *name = json_string_value(json_object_get(slice, "name"));
  int64_t count = json_integer_value(json_object_get(slice, "count"));
  const bk_st_entry *e = bk_st_find(reader, name);
  const char *path = e ? bk_st_entry_path(reader, e) : "";
  const char *slash = strrchr(path, '/');
  if (!e || strcmp(slash ? slash + 1 : path, file) != 0)
    return bk_fail(x->base.ctx, BK_ERR_DATA, "%s: tensor %s: %s does not have the slice %s",
                   x->base.path, tensor, file, name);
  if (e->ndim != 1 || e->shape[0] != count || strcmp(e->dtype_name, dtype) != 0)
    return bk_fail(x->base.ctx, BK_ERR_DATA,
                   "%s: the slice %s is not %lld elements of %s, as %s has it for tensor %s", path,
                   name, (long long)count, dtype, x->base.path, tensor);
  *found = (bk_st_slice){
      .entry = e, .begin = json_integer_value(json_object_get(slice, "begin")), .count = count};
  return BK_OK;
}

static bk_status add_tensor(const slice_index *x, const bk_st_reader *reader, const char *tensor,
                            const json_t *value, bk_st_slices *s) {
  const json_t *slices = json_object_get(value, "slices"), *shape = json_object_get(value, "shape");
  const char *dtype = json_string_value(json_object_get(value, "dtype"));
  bk_st_sliced *t = &s->tensors[s->n_tensors];
  *t = (bk_st_sliced){.name = bk_strdup(x->base.ctx, tensor), .slices = s->slices + s->n_slices};
  if (!t->name) return BK_ERR_MEMORY;
  s->n_tensors++;
  t->ndim = (int)json_array_size(shape);
  for (int d = 0; d < t->ndim; d++)
    t->shape[d] = json_integer_value(json_array_get(shape, (size_t)d));
  for (size_t i = 0; i < json_array_size(slices); i++) {
    const json_t *slice = json_array_get(slices, i);
    BK_TRY(find_slice(x, reader, tensor, slice, dtype, &t->slices[t->n_slices++]));
    s->n_slices++;
  }
  return BK_OK;
}

/* A slice that is named twice, with the same elements, would be two slices of one place. */
static int compare_slices(const void *a, const void *b) {
  const bk_st_entry *x = *(const bk_st_entry *const *)a, *y = *(const bk_st_entry *const *)b;
  return (x > y) - (x < y);
}

static bk_status check_once(const slice_index *x, const bk_st_reader *reader,
                            const bk_st_slices *s) {
  const bk_st_entry **used = bk_alloc_array(x->base.ctx, s->n_slices, sizeof *used);
  bk_status status = used ? BK_OK : BK_ERR_MEMORY;
  for (size_t i = 0; i < s->n_slices && used; i++) used[i] = s->slices[i].entry;
  if (used) qsort((void *)used, s->n_slices, sizeof *used, compare_slices);
  for (size_t i = 0; i < s->n_slices && status == BK_OK; i++)
    if (i > 0 && used[i] == used[i - 1])
      status = bk_fail(x->base.ctx, BK_ERR_DATA, "%s: the slice %s is named twice", x->base.path,
                       used[i]->name);
    else if (used[i] != bk_st_get(reader, (int)i))
      status = bk_fail(x->base.ctx, BK_ERR_DATA, "%s: tensor %s is not in the slices of %s",
                       bk_st_entry_path(reader, bk_st_get(reader, (int)i)),
                       bk_st_get(reader, (int)i)->name, x->base.path);
  if (status == BK_OK && s->n_slices < (size_t)bk_st_count(reader)) {
    const bk_st_entry *e = bk_st_get(reader, (int)s->n_slices);
    status = bk_fail(x->base.ctx, BK_ERR_DATA, "%s: tensor %s is not in the slices of %s",
                     bk_st_entry_path(reader, e), e->name, x->base.path);
  }
  bk_free(x->base.ctx, (void *)used);
  return status;
}

static int compare_tensors(const void *a, const void *b) {
  return strcmp(((const bk_st_sliced *)a)->name, ((const bk_st_sliced *)b)->name);
}

static bk_status add_tensors(const slice_index *x, const bk_st_reader *reader, bk_st_slices *s) {
  const char *tensor;
  json_t *value;
  s->tensors = bk_alloc_array(x->base.ctx, json_object_size(x->base.map), sizeof *s->tensors);
  s->slices = bk_alloc_array(x->base.ctx, x->n_slices, sizeof *s->slices);
  if (!s->tensors || !s->slices) return BK_ERR_MEMORY;
  json_object_foreach(x->base.map, tensor, value) BK_TRY(add_tensor(x, reader, tensor, value, s));
  qsort(s->tensors, s->n_tensors, sizeof *s->tensors, compare_tensors);
  return check_once(x, reader, s);
}

/* ---- opening ---- */

static bk_status add_file(const slice_index *x, bk_st_reader *reader, const char *name) {
  bk_st_table table = {.ctx = x->base.ctx};
  int kind = -1;
  char *path = bk_path_join(x->base.ctx, x->base.folder, name);
  bk_status status = path ? bk_path_kind(x->base.ctx, path, &kind) : BK_ERR_MEMORY;
  if (status == BK_OK && kind < 0)
    status = bk_fail(x->base.ctx, BK_ERR_DATA, "%s is missing, a part of the tensors that %s names",
                     path, x->base.path);
  if (status == BK_OK) status = bk_st_reader_add(reader, path, &table);
  if (status == BK_OK) status = bk_st_table_take(&reader->table, &table);
  bk_st_table_fini(&table);
  bk_free(x->base.ctx, path);
  return status;
}

static bk_status open_files(const slice_index *x, bk_st_reader **reader, bk_st_slices *s) {
  bk_st_reader *r = NULL;
  BK_TRY(bk_st_reader_create(x->base.ctx, x->base.path, &r));
  bk_status status = BK_OK;
  for (size_t i = 0; i < x->base.n_files && status == BK_OK; i++)
    status = add_file(x, r, x->base.files[i]);
  if (status == BK_OK && r->table.count > INT32_MAX)
    status = bk_fail(x->base.ctx, BK_ERR_DATA, "%s: too many tensors", x->base.path);
  if (status == BK_OK) status = bk_st_table_sort(&r->table, r->path);
  if (status == BK_OK) status = add_tensors(x, r, s);
  if (status == BK_OK) *reader = r;
  else bk_st_close(r);
  return status;
}

/* One file: each of its tensors is one slice. */
static bk_status slices_of_file(bk_context *ctx, const bk_st_reader *reader, bk_st_slices *s) {
  int n = bk_st_count(reader);
  s->tensors = bk_alloc_array(ctx, (size_t)n, sizeof *s->tensors);
  s->slices = bk_alloc_array(ctx, (size_t)n, sizeof *s->slices);
  if (!s->tensors || !s->slices) return BK_ERR_MEMORY;
  for (int i = 0; i < n; i++) {
    const bk_st_entry *e = bk_st_get(reader, i);
    bk_st_sliced *t = &s->tensors[i];
    int64_t count = 1;
    for (int d = 0; d < e->ndim; d++) count *= e->shape[d];
    s->slices[i] = (bk_st_slice){.entry = e, .count = count};
    *t = (bk_st_sliced){.name = bk_strdup(ctx, e->name), .ndim = e->ndim, .n_slices = 1};
    t->slices = &s->slices[i];
    memcpy(t->shape, e->shape, sizeof t->shape);
    if (!t->name) return BK_ERR_MEMORY;
    s->n_tensors++, s->n_slices++;
  }
  if (n) qsort(s->tensors, s->n_tensors, sizeof *s->tensors, compare_tensors);
  return BK_OK;
}

bk_status bk_st_slices_there(bk_context *ctx, const char *folder, const char *file,
                             const char *index, bool *there) {
  return bk_index_or_file(ctx, folder, file, index, there);
}

static bk_status open_single(bk_context *ctx, const char *folder, const char *file,
                             bk_st_reader **reader, bk_st_slices *slices) {
  bk_st_reader *r = NULL;
  char *path = bk_path_join(ctx, folder, file);
  bk_status status = path ? bk_st_open(ctx, path, &r) : BK_ERR_MEMORY;
  bk_free(ctx, path);
  if (status == BK_OK) status = slices_of_file(ctx, r, slices);
  if (status == BK_OK) *reader = r;
  else bk_st_close(r);
  return status;
}

bk_status bk_st_open_slices(bk_context *ctx, const char *folder, const char *file,
                            const char *index, bk_st_reader **reader, bk_st_slices *slices) {
  slice_index x;
  bool sliced;
  *slices = (bk_st_slices){.ctx = ctx};
  BK_TRY(bk_index_counts(ctx, folder, file, index, &sliced));
  bk_status status;
  if (!sliced) {
    status = open_single(ctx, folder, file, reader, slices);
  } else {
    BK_TRY(open_index(ctx, folder, index, &x));
    status = open_files(&x, reader, slices);
    bk_index_close(&x.base);
  }
  if (status != BK_OK) bk_st_slices_free(slices);
  return status;
}

void bk_st_slices_free(bk_st_slices *s) {
  for (size_t i = 0; i < s->n_tensors; i++) bk_free(s->ctx, s->tensors[i].name);
  bk_free(s->ctx, s->tensors);
  bk_free(s->ctx, s->slices);
  *s = (bk_st_slices){.ctx = s->ctx};
}

static int compare_key(const void *key, const void *element) {
  return strcmp(key, ((const bk_st_sliced *)element)->name);
}

bk_st_sliced *bk_st_slices_find(const bk_st_slices *s, const char *name) {
  return s->n_tensors ? bsearch(name, s->tensors, s->n_tensors, sizeof *s->tensors, compare_key)
                      : NULL;
}

bk_status bk_st_slices_lack(bk_context *ctx, const char *folder, const char *file,
                            const char *index, char **lack) {
  slice_index x;
  bool sliced;
  BK_TRY(bk_index_counts(ctx, folder, file, index, &sliced));
  if (!sliced) return bk_st_file_lacks(ctx, folder, file, lack);
  BK_TRY(open_index(ctx, folder, index, &x));
  bk_status status = bk_index_lacks(&x.base, lack);
  bk_index_close(&x.base);
  return status;
}
