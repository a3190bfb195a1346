/* What the residual connections do to the streams. */
#ifndef BK_GPU_STREAMS_H
#define BK_GPU_STREAMS_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_STREAMS(ROW)             \
  ROW(HC_RMS, hc_rms, BK_GPU_FLOATS)         \
  ROW(HC_RMS_BWD, hc_rms_bwd, BK_GPU_FLOATS) \
  ROW(HC_PRE, hc_pre, BK_GPU_FLOATS)         \
  ROW(HC_PRE_BWD, hc_pre_bwd, BK_GPU_FLOATS) \
  ROW(HC_RES, hc_res, BK_GPU_FLOATS)         \
  ROW(HC_RES_BWD, hc_res_bwd, BK_GPU_FLOATS) \
  ROW(HC_POST, hc_post, BK_GPU_FLOATS)       \
  ROW(HC_POST_BWD, hc_post_bwd, BK_GPU_FLOATS)

BK_GPU_ROWS_STREAMS(BK_GPU_DECLARE)

#endif
