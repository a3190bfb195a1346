/* safetensors, read and written by our own strict code: 8 bytes little-endian header length, a
 * JSON header {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ...,
 * "__metadata__": {str: str}}, then the data. Files are untrusted. Refused with BK_ERR_DATA
 * naming the file and the tensor: a header longer than the file or than 100 MB, bad JSON,
 * duplicate names, unknown or wrong dtype, more than 8 dimensions, negative or overflowing
 * sizes, offsets that are out of range, overlap, leave holes or disagree with shape x dtype,
 * trailing bytes.
 *
 * The weights of a model may also lie in several files of one folder (shards) beside
 * model.safetensors.index.json, as Hugging Face writes them: {"metadata": {..}, "weight_map":
 * {"tensor": "model-00001-of-00002.safetensors", ..}}. They are read as one. */
#ifndef BIRKHOFF_SAFETENSORS_H
#define BIRKHOFF_SAFETENSORS_H

#include <birkhoff/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BK_ST_MAX_DIMS 8
typedef struct bk_st_entry {
  char *name;
  /* F32 BF16 F64 I32 I64 U8; others (BOOL, F8_E4M3, ...) read as BK_NONE, listed but not
   * loadable, F16 alone is */
  bk_dtype dtype;
  char dtype_name[8]; /* as in the file */
  int ndim;
  int64_t shape[BK_ST_MAX_DIMS];
  uint64_t begin, end; /* bytes in the data section */
  int file;            /* of the reader's files the one that has it */
} bk_st_entry;

typedef struct bk_st_reader bk_st_reader;
BK_API bk_status bk_st_open(bk_context *ctx, const char *path, bk_st_reader **reader);
/* FOLDER/model.safetensors, or where that is not there all shards that
 * FOLDER/model.safetensors.index.json names. Refused by name: an index without a weight_map or
 * with values of wrong kinds, a shard that is missing or whose name is not that of a file in the
 * folder, a tensor that the map promises and its shard lacks, and one in a shard that the map
 * does not name or gives to another. */
BK_API bk_status bk_st_open_folder(bk_context *ctx, const char *folder, bk_st_reader **reader);
BK_API void bk_st_close(bk_st_reader *reader); /* NULL is allowed */
BK_API int bk_st_count(const bk_st_reader *reader);
/* in file order of data, one shard after the other */
BK_API const bk_st_entry *bk_st_get(const bk_st_reader *reader, int i);
/* NULL if absent; not logged */
BK_API const bk_st_entry *bk_st_find(const bk_st_reader *reader, const char *name);
/* bytes; 0: of a dtype that cannot be loaded */
BK_API size_t bk_st_element_size(const bk_st_entry *entry);
/* Whole tensor as stored; `bytes` must be its size. */
BK_API bk_status bk_st_read(bk_st_reader *reader, const bk_st_entry *entry, void *dst,
                            size_t bytes);
/* Elements [first, first + count) converted to double (any numeric dtype); one read of the file. */
BK_API bk_status bk_st_read_f64(bk_st_reader *reader, const bk_st_entry *entry, int64_t first,
                                int64_t count, double *dst);

/* Writer: declare all tensors, then give their data in the same order, in pieces of any size;
 * then finish (which syncs). Tensors are laid out in the order declared, aligned to 8 bytes in
 * the sense of the format: header padded with spaces. */
typedef struct bk_st_writer bk_st_writer;
BK_API bk_status bk_st_create(bk_context *ctx, const char *path, bk_st_writer **writer);
BK_API bk_status bk_st_add_metadata(bk_st_writer *writer, const char *key, const char *value);
BK_API bk_status bk_st_add(bk_st_writer *writer, const char *name, bk_dtype dtype, int ndim,
                           const int64_t *shape);
/* the first call writes the header */
BK_API bk_status bk_st_write(bk_st_writer *writer, const void *data, size_t bytes);
/* checks that all bytes came; syncs, closes and frees the writer on success */
BK_API bk_status bk_st_finish(bk_st_writer *writer);
/* closes and removes the partial file; NULL is allowed */
BK_API void bk_st_abandon(bk_st_writer *writer);

#ifdef __cplusplus
}
#endif
#endif
