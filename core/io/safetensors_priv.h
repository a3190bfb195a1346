/* Shared by the parts of the safetensors code. */
#ifndef BK_SAFETENSORS_PRIV_H
#define BK_SAFETENSORS_PRIV_H

#include "io/safetensors.h"

#define BK_ST_HEADER_MAX ((uint64_t)100000000)

/* The format is little-endian and tensors are moved as they are. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors files are read on little-endian machines only");

typedef struct bk_st_pair {
  char *key, *value;
} bk_st_pair;

/* What a header says. Entries in file order of data; by_name sorts them for look-ups. */
typedef struct bk_st_table {
  bk_context *ctx;
  bk_st_entry *entries;
  size_t count, capacity;
  bk_st_pair *metadata;
  size_t n_metadata, metadata_capacity;
  const bk_st_entry **by_name;
} bk_st_table;

/* Parses and checks the header text of a file with `data_bytes` bytes of data. On failure the table is left to bk_st_table_fini. */
bk_status bk_st_table_parse(bk_st_table *table, const char *path, const char *text, size_t bytes, uint64_t data_bytes);
void bk_st_table_fini(bk_st_table *table);

/* The name of a dtype in the format ("F32"), NULL if it has none. */
const char *bk_st_dtype_name(bk_dtype dtype);

#endif
