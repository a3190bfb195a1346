/* optimizer: pieces of the sum of squares; the same whatever the instruction set and the number
 * of threads. */
#ifndef BK_CPU_OPTIMIZER_H
#define BK_CPU_OPTIMIZER_H

#include "backends/cpu/kernels.h"

/* Elements of a piece: multiples of 1024, at most 256 pieces. */
static inline int64_t bk_sumsq_grain(int64_t count) {
  int64_t grain = BK_ALIGN_UP((count + 255) / 256, 1024);
  return grain > 16384 ? grain : 16384;
}

#endif
