/* Rows per piece of RMSNORM_BWD: at most 32 pieces, since each has a partial dw in the
 * workspace. */
#ifndef BK_CPU_NORM_H
#define BK_CPU_NORM_H

#include "backends/cpu/cpu.h"

static inline int64_t bk_cpu_rmsnorm_bwd_grain(int64_t rows, int64_t width) {
  int64_t few = (rows + 31) / 32, grain = bk_cpu_grain(12 * width);
  return few > grain ? few : grain;
}

#endif
