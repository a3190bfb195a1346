/* Sequences of training that are read while the step before them runs. */
#ifndef BK_READAHEAD_H
#define BK_READAHEAD_H

#include "io/dataset.h"

typedef struct bk_readahead bk_readahead;

/* For readings of up to max_sequences sequences of seq_len tokens. The dataset stays the caller's.
 * The next sequences are read in a thread, if there is an operating system and the files are its
 * own. Otherwise, and where the tokens lie in memory, all is read in the calling thread and this
 * takes no memory worth speaking of. */
bk_status bk_readahead_create(const bk_dataset *data, uint64_t seed, int64_t seq_len,
                              int64_t max_sequences, bk_readahead **readahead);
void bk_readahead_destroy(bk_readahead *readahead); /* NULL is allowed */
/* Bytes of host memory that one for such readings takes; data NULL: of files. */
size_t bk_readahead_bytes(const bk_context *ctx, const bk_dataset *data, int64_t seq_len,
                          int64_t max_sequences);
/* The sequences [first, first + count), each as bk_dataset_train_sequence would give it. `next` is
 * where the caller will most likely go on: as many sequences are then read from there on; below 0:
 * nowhere. A wrong guess costs time and nothing else. */
bk_status bk_readahead_get(bk_readahead *readahead, int64_t first, int64_t count, int64_t next,
                           int32_t *ids, int32_t *targets);

#endif
