/* Attention and its backward. */
#ifndef BK_GPU_ATTENTION_H
#define BK_GPU_ATTENTION_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_ATTENTION(ROW)         \
  ROW(ATTENTION, attention, BK_GPU_FLOATS) \
  ROW(ATTENTION_BWD, attention_bwd, BK_GPU_FLOATS)

BK_GPU_ROWS_ATTENTION(BK_GPU_DECLARE)

#endif
