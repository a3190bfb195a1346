/* Launch functions and table rows of the family "streams". */
#ifndef BK_CUDA_STREAMS_H
#define BK_CUDA_STREAMS_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* streams.cu */
BK_CUDA_LAUNCH(hc_expand);
BK_CUDA_LAUNCH(hc_collapse);
BK_CUDA_LAUNCH(hc_pre);
BK_CUDA_LAUNCH(hc_res);
BK_CUDA_LAUNCH(hc_post);
BK_CUDA_LAUNCH(hc_post_res);
/* streams_bwd.cu */
BK_CUDA_LAUNCH(hc_pre_bwd);
BK_CUDA_LAUNCH(hc_res_bwd);
BK_CUDA_LAUNCH(hc_post_bwd);
BK_CUDA_LAUNCH(hc_post_res_bwd);
/* between begin and end of a launch */
void bk_cuda_post_res_bwd_start(bk_stream *stream, const bk_hc_post_res_bwd_args *a);
/* hc_rms.cu */
BK_CUDA_LAUNCH(hc_rms);
BK_CUDA_LAUNCH(hc_rms_bwd);
/* pre_norm.cu */
BK_CUDA_LAUNCH(hc_pre_norm);
BK_CUDA_LAUNCH(hc_pre_norm_bwd);
BK_CUDA_PREPARE(hc_pre_norm_bwd);
/* between begin and end of a launch */
void bk_cuda_pre_norm_start(bk_stream *stream, const bk_hc_pre_norm_args *a);
/* dpre and dw of bf16 streams with aligned rows, at most four; dx is left to who gets `mean`
 * [N]: dx[m] (+)= pre[m] rstd (dh w - y mean). Workspace as for hc_pre_norm_bwd. */
void bk_cuda_pre_norm_sums_start(bk_stream *stream, const bk_hc_pre_norm_bwd_args *a, float *mean,
                                 bk_place workspace);
/* hc_rebuild.cu */
BK_CUDA_LAUNCH(hc_rebuild);
/* hc_project.cu */
BK_CUDA_LAUNCH(hc_project);
BK_CUDA_PREPARE(hc_project);
/* hc_project_mma.cu */
BK_CUDA_ACCEPTS(hc_project_mma);
BK_CUDA_LAUNCH(hc_project_mma);
BK_CUDA_PREPARE(hc_project_mma);
/* hc_merge_mix.cu */
BK_CUDA_ACCEPTS(hc_merge_mix);
BK_CUDA_LAUNCH(hc_merge_mix);
BK_CUDA_PREPARE(hc_merge_mix);
/* hc_project_bwd.cu */
BK_CUDA_ACCEPTS(hc_project_bwd);
BK_CUDA_LAUNCH(hc_project_bwd);
BK_CUDA_PREPARE(hc_project_bwd);
/* hc_project_bwd_mma.cu */
BK_CUDA_ACCEPTS(hc_project_bwd_mma);
BK_CUDA_LAUNCH(hc_project_bwd_mma);
BK_CUDA_PREPARE(hc_project_bwd_mma);
/* Between begin and end of a launch. pre: NULL, or its part of dx is added too, with `mean` of
 * bk_cuda_pre_norm_sums_start. */
void bk_cuda_project_bwd_mma_start(bk_stream *stream, const bk_hc_project_bwd_args *a,
                                   const bk_hc_pre_norm_bwd_args *pre, const float *mean,
                                   bk_place workspace);
/* hc_merge_mix_bwd.cu */
BK_CUDA_ACCEPTS(hc_merge_mix_bwd);
BK_CUDA_LAUNCH(hc_merge_mix_bwd);
BK_CUDA_PREPARE(hc_merge_mix_bwd);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_STREAMS                                                                \
  BK_CUDA_ROW(HC_EXPAND, hc_expand, BK_CUDA_FLOATS)                                         \
  BK_CUDA_ROW(HC_COLLAPSE, hc_collapse, BK_CUDA_FLOATS)                                     \
  BK_CUDA_ROW(HC_PRE, hc_pre, BK_CUDA_FLOATS)                                               \
  BK_CUDA_ROW(HC_PRE_BWD, hc_pre_bwd, BK_CUDA_FLOATS)                                       \
  BK_CUDA_ROW(HC_RES, hc_res, BK_CUDA_FLOATS)                                               \
  BK_CUDA_ROW(HC_RES_BWD, hc_res_bwd, BK_CUDA_FLOATS)                                       \
  BK_CUDA_ROW(HC_POST, hc_post, BK_CUDA_FLOATS)                                             \
  BK_CUDA_ROW(HC_POST_BWD, hc_post_bwd, BK_CUDA_FLOATS)                                     \
  BK_CUDA_ROW(HC_RMS, hc_rms, BK_CUDA_FLOATS)                                               \
  BK_CUDA_ROW(HC_RMS_BWD, hc_rms_bwd, BK_CUDA_FLOATS)                                       \
  BK_CUDA_ROW_IF_WORK(HC_PROJECT, hc_project_mma, BK_CUDA_BF16)                             \
  BK_CUDA_ROW_WORK(HC_PROJECT, hc_project, BK_CUDA_FLOATS)                                  \
  BK_CUDA_ROW_IF_WORK(HC_PROJECT_BWD, hc_project_bwd_mma, BK_CUDA_BF16)                     \
  BK_CUDA_ROW_IF_WORK(HC_PROJECT_BWD, hc_project_bwd, BK_CUDA_FLOATS)                       \
  BK_CUDA_ROW(HC_PRE_NORM, hc_pre_norm, BK_CUDA_FLOATS)                                     \
  BK_CUDA_ROW_WORK(HC_PRE_NORM_BWD, hc_pre_norm_bwd, BK_CUDA_FLOATS)                        \
  BK_CUDA_ROW(HC_REBUILD, hc_rebuild, BK_CUDA_FLOATS)                                       \
  BK_CUDA_ROW(HC_POST_RES, hc_post_res, BK_CUDA_FLOATS)                                     \
  BK_CUDA_ROW(HC_POST_RES_BWD, hc_post_res_bwd, BK_CUDA_FLOATS)                             \
  BK_CUDA_ROW_KINDS(HC_MERGE_MIX, hc_merge_mix, BK_CUDA_BF16, BK_CUDA_LOGITS_KINDS,         \
                    bk_cuda_hc_merge_mix_accepts, bk_cuda_hc_merge_mix_prepare)             \
  BK_CUDA_ROW_KINDS(HC_MERGE_MIX_BWD, hc_merge_mix_bwd, BK_CUDA_BF16, BK_CUDA_LOGITS_KINDS, \
                    bk_cuda_hc_merge_mix_bwd_accepts, bk_cuda_hc_merge_mix_bwd_prepare)

#endif
