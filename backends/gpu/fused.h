/* The fused slots of the residual connections. HC_MERGE_MIX and its backward are left to the composition in core/ops/composite.c: their
 * parts are fused here, and what a launch of its own would save (one read of the streams) the registers do not hold. */
#ifndef BK_GPU_FUSED_H
#define BK_GPU_FUSED_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_FUSED(ROW)                          \
  ROW(HC_PRE_NORM, hc_pre_norm, BK_GPU_FLOATS)          \
  ROW(HC_PRE_NORM_BWD, hc_pre_norm_bwd, BK_GPU_FLOATS)  \
  ROW(HC_POST_RES, hc_post_res, BK_GPU_FLOATS)          \
  ROW(HC_POST_RES_BWD, hc_post_res_bwd, BK_GPU_FLOATS)  \
  ROW(HC_PROJECT, hc_project, BK_GPU_FLOATS)

BK_GPU_ROWS_FUSED(BK_GPU_DECLARE)

#endif
