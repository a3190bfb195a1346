/* gpu/cache: programs that drivers have compiled, kept on disk between runs, in
 * $XDG_CACHE_HOME/birkhoff or $HOME/.cache/birkhoff. With BIRKHOFF_CACHE=off, or with neither
 * variable set, nothing is kept.
 *
 * One file an entry, NAME-HASH.bin:
 *   a header (magic and version, lengths of key and data, hash of both), the key, the data.
 * A file is used if every byte of it is what was written for the same key, and passed over
 * otherwise: nothing in it is trusted. A failure to read is as good as no entry; the first failure
 * to write is one warning for each device, and the device writes no more. Entries are written
 * beside their place and renamed. Several processes may share the folder. */
#ifndef BK_GPU_CACHE_H
#define BK_GPU_CACHE_H

#include "base/base.h"

#define BK_GPU_CACHE_MAX_BYTES ((size_t)64 << 20) /* of an entry; larger ones are not kept */
/* beyond so many all are removed before the next is written: old drivers, old sources */
#define BK_GPU_CACHE_MAX_FILES 4000

typedef struct bk_gpu_cache {
  bk_context *ctx;
  const char *owner; /* for messages: the backend's name */
  int index;
  char *folder;  /* NULL: off */
  bool writable; /* the folder has been made and cleared of too many files */
} bk_gpu_cache;

/* A zeroed cache is off: reads find nothing, writes do nothing. Nothing is made on disk yet. */
void bk_gpu_kept_init(bk_gpu_cache *cache, bk_context *ctx, const char *owner, int index);
void bk_gpu_kept_fini(bk_gpu_cache *cache);
/* name: letters, digits, _ and -; part of the file's name, for people. key: text that names all
 * that the data depends on. True: *data is to be freed with bk_free. */
bool bk_gpu_kept_read(bk_gpu_cache *cache, const char *name, const char *key, char **data,
                      size_t *bytes);
void bk_gpu_kept_write(bk_gpu_cache *cache, const char *name, const char *key, const void *data,
                       size_t bytes);

#endif
