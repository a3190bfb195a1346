/* Safetensors files: what programs use is installed, in birkhoff/safetensors.h; this is what the
 * library's own readers ask beside it. */
#ifndef BK_SAFETENSORS_H
#define BK_SAFETENSORS_H

#include <birkhoff/safetensors.h>

#include "tensor/tensor.h"

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

#endif
