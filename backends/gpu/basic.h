/* Copies, sums, element-wise ops, the optimiser. */
#ifndef BK_GPU_BASIC_H
#define BK_GPU_BASIC_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_BASIC(ROW) \
  ROW(ADD, add, BK_GPU_FLOATS)

BK_GPU_ROWS_BASIC(BK_GPU_DECLARE)

#endif
