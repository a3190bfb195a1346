/* Shared by the parts of the safetensors code. */
#ifndef BK_SAFETENSORS_PRIV_H
#define BK_SAFETENSORS_PRIV_H

#include "io/safetensors.h"

/* the format's own limit */
#define BK_ST_HEADER_MAX ((uint64_t)100000000)

/* The format is little-endian and tensors are moved as they are. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "safetensors files are read on little-endian machines only");

/* A member of __metadata__; both strings are the table's. */
typedef struct bk_st_pair {
  char *key, *value;
} bk_st_pair;

/* One open file. */
typedef struct bk_st_file {
  bk_context *ctx;
  char *path;
  bk_file *file;
  /* bytes of the file in front of the data: 8 and the header's */
  uint64_t data_start;
} bk_st_file;

/* What a header says. Entries in file order of data; by_name sorts them for look-ups. */
typedef struct bk_st_table {
  bk_context *ctx;
  bk_st_entry *entries;
  size_t count, capacity;
  bk_st_pair *metadata;
  size_t n_metadata, metadata_capacity;
  const bk_st_entry **by_name;
} bk_st_table;

/* Parses and checks the header text of a file with `data_bytes` bytes of data. On failure the
 * table is left to bk_st_table_fini. */
bk_status bk_st_table_parse(bk_st_table *table, const char *path, const char *text, size_t bytes,
                            uint64_t data_bytes);
void bk_st_table_fini(bk_st_table *table);

/* Takes the entries of `from`, which is left without any; before the next look by name,
 * bk_st_table_sort. */
bk_status bk_st_table_take(bk_st_table *table, bk_st_table *from);
/* Makes by_name; a name that is there twice: BK_ERR_DATA. */
bk_status bk_st_table_sort(bk_st_table *table, const char *path);

/* Where the data of the tensors in a header's text ends; 0 where it names none. For files whose
 * end is missing: says nothing of what is wrong with a text, reading it does. */
uint64_t bk_st_header_extent(const char *text, size_t bytes);

/* One file, or all shards of an index; `path` is that of the file or of the index. */
struct bk_st_reader {
  bk_context *ctx;
  char *path;
  bk_st_file *files;
  size_t n_files, file_capacity;
  bk_st_table table; /* of all files */
  /* safetensors_state.c: tensors that lie in slices of other files; NULL: there are none such */
  bk_st_reader *parts;
  bk_st_slices whole;
};
/* `bytes` bytes of a tensor that lies in slices, from `offset` on. */
bk_status bk_st_read_parts(const bk_st_reader *reader, const bk_st_entry *entry, uint64_t offset,
                           void *dst, size_t bytes);

/* without a file */
bk_status bk_st_reader_create(bk_context *ctx, const char *path, bk_st_reader **reader);
/* Opens one more file; its header goes to `table`. */
bk_status bk_st_reader_add(bk_st_reader *reader, const char *path, bk_st_table *table);
/* Whether a file is as long as it says itself: 8 bytes, its header, and the data of all tensors. */
bk_status bk_st_file_whole(bk_context *ctx, const char *path, bool *whole);

/* Names go into messages, which may end in a terminal: they must not hold codes that control it. */
bool bk_st_printable(const char *text);
/* A name with a slash could lead out of the folder. */
bool bk_st_plain_name(const char *name);
/* Whether a file or a folder has that name does not matter here. */
bk_status bk_st_is_there(bk_context *ctx, const char *folder, const char *name, bool *there);

/* The name of a dtype in the format ("F32"), NULL if it has none. */
const char *bk_st_dtype_name(bk_dtype dtype);

#endif
