/* The maps of the residual connections. */
#ifndef BK_GPU_MAPS_H
#define BK_GPU_MAPS_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_MAPS(ROW) \
  ROW(SINKHORN, sinkhorn, BK_GPU_F32) \
  ROW(SINKHORN_BWD, sinkhorn_bwd, BK_GPU_F32)

BK_GPU_ROWS_MAPS(BK_GPU_DECLARE)

#endif
