/* Reading an index; see index.h. What its map has to look like is its readers' business. */
#include "io/index.h"

#include <stdlib.h>
#include <string.h>

static bk_status take_members(bk_index *x, const char *what, const char *member) {
  const char *key;
  json_t *value;
  if (!json_is_object(x->root))
    return bk_fail(x->ctx, BK_ERR_DATA, "%s: an index of %s is a JSON object, this is none",
                   x->path, what);
  json_object_foreach(x->root, key, value) {
    if (strcmp(key, member) == 0) x->map = value;
    else if (strcmp(key, "metadata") != 0 && bk_st_printable(key))
      bk_warn(x->ctx, "%s: the key \"%s\" is not known and is ignored", x->path, key);
  }
  return BK_OK;
}

bk_status bk_index_open(bk_context *ctx, const char *folder, const char *name, const char *what,
                        const char *member, bk_index *x) {
  char *text = NULL;
  size_t bytes;
  *x = (bk_index){.ctx = ctx, .folder = folder, .path = bk_path_join(ctx, folder, name)};
  bk_status status =
      x->path ? bk_file_read_all(ctx, x->path, BK_ST_INDEX_MAX, &text, &bytes) : BK_ERR_MEMORY;
  if (status == BK_OK) status = bk_json_load(ctx, x->path, text, bytes, &x->root);
  bk_free(ctx, text);
  if (status == BK_OK) status = take_members(x, what, member);
  if (status != BK_OK) bk_index_close(x);
  return status;
}

void bk_index_close(bk_index *x) {
  bk_free(x->ctx, (void *)x->files);
  json_decref(x->root);
  bk_free(x->ctx, x->path);
}

/* The array holds strings. */
static int compare_texts(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void bk_index_keep_once(bk_index *x, size_t n) {
  qsort(x->files, n, sizeof *x->files, compare_texts);
  for (size_t i = 0; i < n; i++)
    if (i == 0 || strcmp(x->files[i], x->files[i - 1]) != 0) x->files[x->n_files++] = x->files[i];
}

bk_status bk_index_lacks(const bk_index *x, char **lack) {
  bk_status status = BK_OK;
  *lack = NULL;
  for (size_t i = 0; i < x->n_files && status == BK_OK && !*lack; i++)
    status = bk_st_file_lacks(x->ctx, x->folder, x->files[i], lack);
  return status;
}

bk_status bk_index_or_file(bk_context *ctx, const char *folder, const char *file, const char *index,
                           bool *there) {
  BK_TRY(bk_st_is_there(ctx, folder, file, there));
  return *there ? BK_OK : bk_st_is_there(ctx, folder, index, there);
}

bk_status bk_index_counts(bk_context *ctx, const char *folder, const char *file, const char *index,
                          bool *counts) {
  bool single;
  *counts = false;
  BK_TRY(bk_st_is_there(ctx, folder, file, &single));
  return single ? BK_OK : bk_st_is_there(ctx, folder, index, counts);
}
