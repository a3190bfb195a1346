/* An index: a JSON file that says which files of its folder hold what, for weights in shards
 * (safetensors_index.c) and tensors in slices (safetensors_slices.c). It is untrusted: the names
 * of files come from it, and each must be checked (bk_st_plain_name) before it is opened. */
#ifndef BK_INDEX_H
#define BK_INDEX_H

#include "io/json_in.h"
#include "io/safetensors_priv.h"

/* It lives while the files are opened; a reader keeps nothing of it. */
typedef struct bk_index {
  bk_context *ctx;
  const char *folder;
  char *path;
  json_t *root, *map; /* the map is a part of the root; NULL: the file has none */
  const char *
      *files; /* each once, sorted; the strings belong to the root, the array to the index */
  size_t n_files;
} bk_index;

/* Reads FOLDER/name, an object of which `member` is the map. Unknown members are warned about:
 * other tools write some of their own. `what` is for messages: "shards". On failure nothing is
 * left open. */
bk_status bk_index_open(bk_context *ctx, const char *folder, const char *name, const char *what,
                        const char *member, bk_index *index);
void bk_index_close(bk_index *index);
/* Of the n names in index->files keeps each once, sorted, so that files are opened in one order on
 * every machine. */
void bk_index_keep_once(bk_index *index, size_t n);
/* The first of its files that is not whole, in words (bk_free); NULL: all are. */
bk_status bk_index_lacks(const bk_index *index, char **lack);

/* Whether one of the two is there, the single file or an index. */
bk_status bk_index_or_file(bk_context *ctx, const char *folder, const char *file, const char *index,
                           bool *there);
/* Whether the index counts: it is there, and no single file, which has precedence. */
bk_status bk_index_counts(bk_context *ctx, const char *folder, const char *file, const char *index,
                          bool *counts);

#endif
