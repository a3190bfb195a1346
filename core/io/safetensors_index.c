/* The weights of a folder: one file, or the shards that an index names (safetensors.h). The index
 * is untrusted as every file is; the names of shards come from it, and only files of the folder
 * itself are opened. Shards are opened all at once, and their tensors looked up as if they lay in
 * one file.
 *
 * Index and shards must agree both ways: a tensor that only one of them knows means that files of
 * two models were mixed, or that a download is not complete.
 *
 * An index, as transformers writes it:
 *   {"metadata": {"total_size": 123456},
 *    "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", ...}} */
#include <stdlib.h>
#include <string.h>

#include "io/index.h"

#define WEIGHTS "model.safetensors"
#define INDEX "model.safetensors.index.json"

/* ---- what the index says ---- */

bool bk_st_printable(const char *text) {
  for (const char *c = text; *c; c++)
    if ((unsigned char)*c < 0x20 || *c == 0x7f) return false;
  return true;
}

bool bk_st_plain_name(const char *name) {
  return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* One entry of the map: a tensor's name and that of a file in the same folder. */
static bk_status check_pair(const bk_index *x, const char *tensor, const json_t *value) {
  const char *shard = json_string_value(value);
  if (!bk_st_printable(tensor) || (shard && !bk_st_printable(shard)))
    return bk_fail(x->ctx, BK_ERR_DATA, "%s: a name in weight_map holds a control character",
                   x->path);
  if (!shard)
    return bk_fail(x->ctx, BK_ERR_DATA,
                   "%s: weight_map must give the name of a file for tensor %s, and gives no string",
                   x->path, tensor);
  if (bk_st_plain_name(shard)) return BK_OK;
  return bk_fail(x->ctx, BK_ERR_DATA,
                 "%s: tensor %s: \"%s\" is not the plain name of a file in this folder", x->path,
                 tensor, shard);
}

/* The names of all shards, each of them checked. */
static bk_status collect_shards(bk_index *x) {
  const char *tensor;
  json_t *value;
  size_t count = 0;
  if (!(x->files = bk_alloc_array(x->ctx, json_object_size(x->map), sizeof *x->files)))
    return BK_ERR_MEMORY;
  json_object_foreach(x->map, tensor, value) {
    BK_TRY(check_pair(x, tensor, value));
    x->files[count++] = json_string_value(value);
  }
  bk_index_keep_once(x, count);
  return BK_OK;
}

static bk_status check_map(bk_index *x) {
  if (!x->map)
    return bk_fail(x->ctx, BK_ERR_DATA,
                   "%s: weight_map is missing: it says which file has which tensor", x->path);
  if (!json_is_object(x->map))
    return bk_fail(x->ctx, BK_ERR_DATA,
                   "%s: weight_map must be an object of tensor names and file names", x->path);
  if (json_object_size(x->map) == 0)
    return bk_fail(x->ctx, BK_ERR_DATA, "%s: weight_map names no tensor", x->path);
  return collect_shards(x);
}

/* On failure nothing is left open. */
static bk_status open_index(bk_context *ctx, const char *folder, bk_index *x) {
  BK_TRY(bk_index_open(ctx, folder, INDEX, "shards", "weight_map", x));
  bk_status status = check_map(x);
  if (status != BK_OK) bk_index_close(x);
  return status;
}

/* ---- the shards ---- */

/* A tensor that the index promises in this shard, for a message. */
static const char *first_tensor_of(const bk_index *x, const char *shard) {
  const char *tensor;
  json_t *value;
  json_object_foreach(x->map, tensor,
                      value) if (strcmp(json_string_value(value), shard) == 0) return tensor;
  return "";
}

/* All shards are looked for before the first is opened, which may take long to check. The message
 * names a tensor of the missing shard, by which a user may find out what the shard was. */
static bk_status check_present(const bk_index *x) {
  bk_status status = BK_OK;
  for (size_t i = 0; i < x->n_files && status == BK_OK; i++) {
    int kind = -1;
    char *path = bk_path_join(x->ctx, x->folder, x->files[i]);
    status = path ? bk_path_kind(x->ctx, path, &kind) : BK_ERR_MEMORY;
    if (status == BK_OK && kind < 0)
      status = bk_fail(x->ctx, BK_ERR_DATA,
                       "%s is missing, a part of the weights that %s names (for tensor %s)", path,
                       x->path, first_tensor_of(x, x->files[i]));
    bk_free(x->ctx, path);
  }
  return status;
}

/* What a shard has must be what the map says that it has. */
static bk_status check_entries(const bk_index *x, const char *path, const char *shard,
                               const bk_st_table *table) {
  for (size_t i = 0; i < table->count; i++) {
    const char *name = table->entries[i].name,
               *owner = json_string_value(json_object_get(x->map, name));
    if (!owner)
      return bk_fail(x->ctx, BK_ERR_DATA, "%s: tensor %s is not in the weight_map of %s", path,
                     name, x->path);
    if (strcmp(owner, shard) != 0)
      return bk_fail(x->ctx, BK_ERR_DATA, "%s: tensor %s is here, %s says that it is in %s", path,
                     name, x->path, owner);
  }
  return BK_OK;
}

/* A shard is read into a table of its own and checked before it joins the others. */
static bk_status add_shard(const bk_index *x, bk_st_reader *reader, const char *shard) {
  bk_st_table table = {.ctx = x->ctx};
  char *path = bk_path_join(x->ctx, x->folder, shard);
  bk_status status = path ? bk_st_reader_add(reader, path, &table) : BK_ERR_MEMORY;
  if (status == BK_OK) status = check_entries(x, path, shard, &table);
  if (status == BK_OK) status = bk_st_table_take(&reader->table, &table);
  bk_st_table_fini(&table);
  bk_free(x->ctx, path);
  return status;
}

/* The other way round: what the map says must be in the shards. */
static bk_status check_promises(const bk_index *x, const bk_st_reader *reader) {
  const char *tensor;
  json_t *value;
  if (reader->table.count > INT32_MAX)
    return bk_fail(x->ctx, BK_ERR_DATA, "%s: too many tensors", x->path);
  json_object_foreach(x->map, tensor, value) if (!bk_st_find(reader, tensor)) return bk_fail(
      x->ctx, BK_ERR_DATA, "%s: tensor %s is to be in %s, which does not have it", x->path, tensor,
      json_string_value(value));
  return BK_OK;
}

/* The reader's table is sorted by name once, when all shards are in it. *reader is written on
 * success only; what it needs of the index was copied by then. */
static bk_status open_shards(const bk_index *x, bk_st_reader **reader) {
  bk_st_reader *r = NULL;
  BK_TRY(check_present(x));
  BK_TRY(bk_st_reader_create(x->ctx, x->path, &r));
  bk_status status = BK_OK;
  for (size_t i = 0; i < x->n_files && status == BK_OK; i++) status = add_shard(x, r, x->files[i]);
  if (status == BK_OK) status = bk_st_table_sort(&r->table, r->path);
  if (status == BK_OK) status = check_promises(x, r);
  if (status == BK_OK) *reader = r;
  else bk_st_close(r);
  return status;
}

/* ---- the folder ---- */

bk_status bk_st_is_there(bk_context *ctx, const char *folder, const char *name, bool *there) {
  int kind = -1;
  char *path = bk_path_join(ctx, folder, name);
  bk_status status = path ? bk_path_kind(ctx, path, &kind) : BK_ERR_MEMORY;
  bk_free(ctx, path);
  *there = kind >= 0;
  return status;
}

/* This asks whether the folder has weights at all, in one of the two forms. */
bk_status bk_st_folder_has(bk_context *ctx, const char *folder, bool *there) {
  return bk_index_or_file(ctx, folder, WEIGHTS, INDEX, there);
}

/* A folder with neither form fails on the single file, whose name users know. */
bk_status bk_st_open_folder(bk_context *ctx, const char *folder, bk_st_reader **reader) {
  bk_index x;
  bool shards;
  BK_TRY(bk_index_counts(ctx, folder, WEIGHTS, INDEX, &shards));
  if (shards) {
    BK_TRY(open_index(ctx, folder, &x));
    bk_status status = open_shards(&x, reader);
    bk_index_close(&x);
    return status;
  }
  char *path = bk_path_join(ctx, folder, WEIGHTS);
  bk_status status = path ? bk_st_open(ctx, path, reader) : BK_ERR_MEMORY;
  bk_free(ctx, path);
  return status;
}

/* For a question about a file and not an error: what is missing is returned as text. */
bk_status bk_st_file_lacks(bk_context *ctx, const char *folder, const char *name, char **lack) {
  int kind = -1;
  bool whole = false;
  *lack = NULL;
  char *path = bk_path_join(ctx, folder, name);
  bk_status status = path ? bk_path_kind(ctx, path, &kind) : BK_ERR_MEMORY;
  if (status == BK_OK && kind == 0) status = bk_st_file_whole(ctx, path, &whole);
  bk_free(ctx, path);
  if (status != BK_OK || whole) return status;
  *lack = bk_format(ctx, "%s %s", name,
                    kind < 0   ? "is missing"
                    : kind > 0 ? "is not a regular file"
                               : "ends before its data does");
  return *lack ? BK_OK : BK_ERR_MEMORY;
}

/* Of several shards that are not whole the first is named. */
bk_status bk_st_folder_lacks(bk_context *ctx, const char *folder, char **lack) {
  bk_index x;
  bool shards;
  BK_TRY(bk_index_counts(ctx, folder, WEIGHTS, INDEX, &shards));
  if (!shards) return bk_st_file_lacks(ctx, folder, WEIGHTS, lack);
  BK_TRY(open_index(ctx, folder, &x));
  bk_status status = bk_index_lacks(&x, lack);
  bk_index_close(&x);
  return status;
}
