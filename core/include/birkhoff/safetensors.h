/* Safetensors files, read and written by strict code of our own. A file begins with the length of
 * its header, 8 bytes, little-endian. Then come the header, {"name": {"dtype": "F32", "shape":
 * [..], "data_offsets": [begin, end]}, ..., "__metadata__": {str: str}} in JSON, and the data.
 *
 * Files are not trusted. These are refused with BK_ERR_DATA, which names the file and the tensor: a
 * header that is longer than the file or than 100 MB, bad JSON, duplicate names, an unknown or
 * wrong dtype, more than 8 dimensions, sizes that are negative or overflow, offsets that are out of
 * range, overlap, leave holes or do not agree with shape and dtype, and bytes behind the data.
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
  /* that of F32, BF16, F64, I32, I64 or U8; BK_NONE of all others (BOOL, F8_E4M3, ...), which are
   * listed but cannot be loaded, but for F16, which can */
  bk_dtype dtype;
  char dtype_name[8]; /* as in the file */
  int ndim;
  int64_t shape[BK_ST_MAX_DIMS];
  uint64_t begin, end; /* bytes in the data section */
  int file;            /* the number of the file that has it, among those of the reader */
} bk_st_entry;

typedef struct bk_st_reader bk_st_reader;
/* Opens one file. */
BK_API bk_status bk_st_open(bk_context *ctx, const char *path, bk_st_reader **reader);
/* Opens FOLDER/model.safetensors, or where that is not there all shards that
 * FOLDER/model.safetensors.index.json names. These are refused by name: an index without a
 * weight_map or with values of wrong kinds, a shard that is missing or whose name is not that of a
 * file in the folder, a tensor that the map promises and its shard lacks, and a tensor in a shard
 * that the map does not name or gives to another shard. */
BK_API bk_status bk_st_open_folder(bk_context *ctx, const char *folder, bk_st_reader **reader);
/* Opens the state of the optimiser in a checkpoint: FOLDER/optimizer.safetensors, or the files that
 * FOLDER/optimizer.safetensors.index.json names, in which several ranks have written their slices;
 * each tensor is then listed and read as a whole. bk_st_state_there says whether one is there. */
BK_API bk_status bk_st_open_state(bk_context *ctx, const char *folder, bk_st_reader **reader);
BK_API bk_status bk_st_state_there(bk_context *ctx, const char *folder, bool *there);
BK_API void bk_st_close(bk_st_reader *reader); /* NULL is allowed */
BK_API int bk_st_count(const bk_st_reader *reader);
/* Entry i, in the order of the data, one shard after the other. */
BK_API const bk_st_entry *bk_st_get(const bk_st_reader *reader, int i);
/* The entry of a name; NULL, without a message, if there is none. */
BK_API const bk_st_entry *bk_st_find(const bk_st_reader *reader, const char *name);
/* The bytes of an element; 0 where the dtype cannot be loaded. */
BK_API size_t bk_st_element_size(const bk_st_entry *entry);
/* Reads a whole tensor as it is stored. `bytes` must be its size. */
BK_API bk_status bk_st_read(bk_st_reader *reader, const bk_st_entry *entry, void *dst,
                            size_t bytes);
/* Reads the elements [first, first + count) as doubles, of any dtype that can be loaded, in one
 * read of the file. */
BK_API bk_status bk_st_read_f64(bk_st_reader *reader, const bk_st_entry *entry, int64_t first,
                                int64_t count, double *dst);

/* Writing: declare all tensors, then give their data in the same order, in pieces of any size, then
 * finish. Tensors lie in the order in which they were declared. The header is padded with spaces,
 * so that the data begins at a multiple of 8 bytes. */
typedef struct bk_st_writer bk_st_writer;
BK_API bk_status bk_st_create(bk_context *ctx, const char *path, bk_st_writer **writer);
BK_API bk_status bk_st_add_metadata(bk_st_writer *writer, const char *key, const char *value);
BK_API bk_status bk_st_add(bk_st_writer *writer, const char *name, bk_dtype dtype, int ndim,
                           const int64_t *shape);
/* Gives the next bytes. The first call writes the header. */
BK_API bk_status bk_st_write(bk_st_writer *writer, const void *data, size_t bytes);
/* Checks that all bytes have come. On success it syncs and closes the file and frees the writer;
 * after a failure bk_st_abandon does. */
BK_API bk_status bk_st_finish(bk_st_writer *writer);
/* Closes the file, removes it and frees the writer. NULL is allowed. */
BK_API void bk_st_abandon(bk_st_writer *writer);

#ifdef __cplusplus
}
#endif
#endif
