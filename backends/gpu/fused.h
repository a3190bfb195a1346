/* The fused ops of the residual connections. HC_MERGE_MIX and its backward are left to the
 * composition in core/ops/composite.c: their parts are fused here, and what a launch of its own
 * would save (one read of the streams) the registers do not hold. */
#ifndef BK_GPU_FUSED_H
#define BK_GPU_FUSED_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_FUSED(ROW)                         \
  ROW(HC_PRE_NORM, hc_pre_norm, BK_GPU_FLOATS)         \
  ROW(HC_PRE_NORM_BWD, hc_pre_norm_bwd, BK_GPU_FLOATS) \
  ROW(HC_POST_RES, hc_post_res, BK_GPU_FLOATS)         \
  ROW(HC_POST_RES_BWD, hc_post_res_bwd, BK_GPU_FLOATS) \
  ROW(HC_PROJECT, hc_project, BK_GPU_FLOATS)           \
  ROW(HC_PROJECT_BWD, hc_project_bwd, BK_GPU_FLOATS)   \
  ROW(HC_REBUILD, hc_rebuild, BK_GPU_FLOATS)

BK_GPU_ROWS_FUSED(BK_GPU_DECLARE)

/* ---- HC_PRE_NORM and HC_POST_RES, also for HC_REBUILD (ops_hc_fused.c) ---- */
/* Work-group size for rows of which each lane keeps channels in registers, and how many it
 * keeps. */
int bk_gpu_keeping_group(const bk_device *device, int64_t width);
int32_t bk_gpu_kept(int64_t width, int group);
bk_status bk_gpu_pre_norm_build(bk_device *device, const bk_tensor *x, bk_gpu_pipeline **pipeline);
bk_status bk_gpu_pre_norm_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *p,
                              const bk_hc_pre_norm_args *a);
/* s: chunk and chunks are set, and read from the plan's state again. */
bk_status bk_gpu_post_res_build(bk_device *device, const bk_hc_post_res_args *a, bk_gpu_state *s,
                                bk_gpu_pipeline **pipeline);
bk_status bk_gpu_post_res_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *p,
                              const bk_hc_post_res_args *a);

#endif
