/* Token data: all of it is installed, in birkhoff/data.h, but what a thread of the library's own
 * needs, which must not send messages. */
#ifndef BK_DATASET_H
#define BK_DATASET_H

#include <birkhoff/data.h>

#include "io/config.h"

/* Why tokens could not be read, in numbers: whoever may use the log makes a message of it. */
typedef struct bk_data_fault {
  enum {
    BK_DATA_FINE,
    BK_DATA_CANNOT_OPEN, /* `error` is a negated errno value, here and below */
    BK_DATA_CANNOT_LOOK,
    BK_DATA_CANNOT_READ,
    BK_DATA_NOT_REGULAR,
    BK_DATA_OTHER_SIZE, /* `now` bytes */
    BK_DATA_SHORT,
    BK_DATA_BAD_TOKEN /* `token` at `place`, tokens of `width` bytes */
  } kind;
  int file, error, width;
  uint64_t now;
  int64_t token, place;
} bk_data_fault;

/* bk_dataset_train_sequence without its message: false, with the fault. Several threads may call
 * it at a time if the context's files may be read by several threads, as the operating system's
 * may. */
bool bk_dataset_fetch(const bk_dataset *ds, uint64_t seed, int64_t seq_len, int64_t s, int32_t *ids,
                      int32_t *targets, bk_data_fault *fault);
bk_status bk_dataset_fail(const bk_dataset *ds, const bk_data_fault *fault);
bk_context *bk_dataset_context(const bk_dataset *ds);

#endif
