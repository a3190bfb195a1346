/* Safetensors files: what programs use is installed, in birkhoff/safetensors.h; this is what the
 * library's own readers ask beside it. */
#ifndef BK_SAFETENSORS_H
#define BK_SAFETENSORS_H

#include <birkhoff/safetensors.h>

#include "tensor/tensor.h"

/* Bytes of an index, of shards or of slices. The slices of 27e9 parameters on 64 ranks take 110 MB,
 * and on twice as many ranks twice as much. */
#define BK_ST_INDEX_MAX ((size_t)1 << 30)

/* Whether one of the two is there. */
bk_status bk_st_folder_has(bk_context *ctx, const char *folder, bool *there);
/* What keeps a file, or the weights of a folder, from being whole: "model.safetensors is
 * missing", "model.safetensors ends before its data does"; *lack is NULL where nothing does,
 * else to be bk_free'd. Not logged; only lengths are looked at. */
bk_status bk_st_file_lacks(bk_context *ctx, const char *folder, const char *name, char **lack);
bk_status bk_st_folder_lacks(bk_context *ctx, const char *folder, char **lack);
/* NULL if absent; of one file, not of shards */
const char *bk_st_metadata(const bk_st_reader *reader, const char *key);
/* of the file, or of the index of shards */
const char *bk_st_path(const bk_st_reader *reader);
/* of the file that has the tensor */
const char *bk_st_entry_path(const bk_st_reader *reader, const bk_st_entry *entry);
/* F32 BF16 F64 F16: what weights may be stored as */
bool bk_st_is_float(const bk_st_entry *entry);
/* Elements [first, first + count) as stored; one read of the file. */
bk_status bk_st_read_range(bk_st_reader *reader, const bk_st_entry *entry, int64_t first,
                           int64_t count, void *dst);

/* ---- tensors that lie in slices, as those of an optimiser that several ranks share ---- */

typedef struct bk_st_slice {
  const bk_st_entry *entry; /* flat, or of one file with its tensor whole */
  int64_t begin, count;     /* elements of the tensor */
} bk_st_slice;
typedef struct bk_st_sliced {
  char *name;
  int ndim;
  int64_t shape[BK_ST_MAX_DIMS];
  bk_st_slice *slices; /* [n_slices], ascending; they cover the tensor */
  size_t n_slices;
  bool used; /* the caller's */
} bk_st_sliced;
typedef struct bk_st_slices {
  bk_context *ctx;
  bk_st_sliced *tensors; /* by name */
  size_t n_tensors;
  bk_st_slice *slices; /* of all */
  size_t n_slices;
} bk_st_slices;
/* Opens FOLDER/file, of which each tensor is one slice, or where it is not there all files that
 * FOLDER/index names. On failure nothing is left to free. These are refused by name: slices that
 * overlap, leave holes, end beyond their tensor or are named twice, file names that are not those
 * of files in the folder, files that are missing, and a slice of another dtype or length in its
 * file. */
bk_status bk_st_open_slices(bk_context *ctx, const char *folder, const char *file,
                            const char *index, bk_st_reader **reader, bk_st_slices *slices);
void bk_st_slices_free(bk_st_slices *slices);
bk_st_sliced *bk_st_slices_find(const bk_st_slices *slices, const char *name); /* NULL if absent */
/* Whether one of the two is there. */
bk_status bk_st_slices_there(bk_context *ctx, const char *folder, const char *file,
                             const char *index, bool *there);
/* As bk_st_folder_lacks. */
bk_status bk_st_slices_lack(bk_context *ctx, const char *folder, const char *file,
                            const char *index, char **lack);

/* ---- from threads beside the context's own ---- */
/* The same, of elements that are there: returns how many bytes were read, or a negated errno value,
 * and uses nothing of the context but its file access. */
int64_t bk_st_read_stored(const bk_st_reader *reader, const bk_st_entry *entry, int64_t first,
                          int64_t count, void *dst);
/* Logs in the context's own thread what bk_st_read_stored returned instead of `bytes`. */
bk_status bk_st_read_failed(const bk_st_reader *reader, const bk_st_entry *entry, int64_t got,
                            size_t bytes);
/* Ends the declarations; what follows takes no memory. */
bk_status bk_st_begin(bk_st_writer *writer);
/* Give the next bytes, which must have been declared, and sync what was given. They use nothing of
 * the context but its file access. A failure is false; bk_st_finish logs the first one. */
bool bk_st_put(bk_st_writer *writer, const void *data, size_t bytes);
bool bk_st_sync(bk_st_writer *writer);

#endif
