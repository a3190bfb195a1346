/* The router, the sort of tokens by expert, and the way there and back. */
#ifndef BK_GPU_EXPERTS_H
#define BK_GPU_EXPERTS_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_EXPERTS(ROW)           \
  ROW(ROUTER, router, BK_GPU_F32)          \
  ROW(ROUTER_BWD, router_bwd, BK_GPU_F32)  \
  ROW(MOE_INDEX, moe_index, BK_GPU_I32)    \
  ROW(PERMUTE, permute, BK_GPU_FLOATS)     \
  ROW(UNPERMUTE, unpermute, BK_GPU_FLOATS) \
  ROW(UNPERMUTE_BWD, unpermute_bwd, BK_GPU_FLOATS)

BK_GPU_ROWS_EXPERTS(BK_GPU_DECLARE)

#endif
