/* The end of a job before its time, as one process knows it: the first reason counts. */
#ifndef BK_FATE_H
#define BK_FATE_H

#include "base/base.h"

#include <stdatomic.h>

#define BK_FATE_REASON 512

typedef struct bk_fate {
  atomic_int state; /* 0: nothing has happened; 1: the reason is being written; 2: it is there */
  char reason[BK_FATE_REASON];
} bk_fate;

/* A text that may come from another machine, as it can be printed: control characters become
 * blanks, and what is not UTF-8 becomes '?'. */
void bk_fate_clean(char *dst, size_t size, const char *text, size_t bytes);
/* False where there is a reason already. From any thread; neither waits nor allocates. */
bool bk_fate_seal(bk_fate *fate, const char *reason);
/* `reason` may be NULL, and is written where the answer is true. */
bool bk_fate_known(bk_fate *fate, char *reason, size_t size);

#endif
