/* Copies, sums, element-wise ops, the optimiser. */
#ifndef BK_GPU_BASIC_H
#define BK_GPU_BASIC_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_BASIC(ROW)                \
  ROW(COPY, copy, BK_GPU_FLOATS | BK_GPU_I32) \
  ROW(ADD, add, BK_GPU_FLOATS)                \
  ROW(SUM, sum, BK_GPU_F32)                   \
  ROW(SUMSQ, sumsq, BK_GPU_F32)               \
  ROW(CLIP, clip, BK_GPU_F32)                 \
  ROW(ADAMW, adamw, BK_GPU_F32)               \
  ROW(BALANCE, balance, BK_GPU_I32)           \
  ROW(HC_EXPAND, hc_expand, BK_GPU_FLOATS)    \
  ROW(HC_COLLAPSE, hc_collapse, BK_GPU_FLOATS)

BK_GPU_ROWS_BASIC(BK_GPU_DECLARE)

#endif
