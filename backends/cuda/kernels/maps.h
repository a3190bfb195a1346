/* Launch functions and table rows of the family "maps". */
#ifndef BK_CUDA_MAPS_H
#define BK_CUDA_MAPS_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* sinkhorn.cu */
BK_CUDA_LAUNCH(sinkhorn);
BK_CUDA_LAUNCH(sinkhorn_bwd);
/* perm.cu */
BK_CUDA_LAUNCH(hc_perm);
BK_CUDA_LAUNCH(hc_perm_bwd);
/* kron.cu */
BK_CUDA_LAUNCH(hc_kron);
BK_CUDA_LAUNCH(hc_kron_bwd);
/* maps.cu */
BK_CUDA_LAUNCH(hc_logits);
BK_CUDA_LAUNCH(hc_gates);
BK_CUDA_LAUNCH(hc_gates_bwd);
BK_CUDA_LAUNCH(hc_tanh);
BK_CUDA_LAUNCH(hc_maps);
/* between begin and end of a launch */
void bk_cuda_maps_start(bk_stream *stream, const bk_hc_maps_args *a);
/* maps_bwd.cu */
BK_CUDA_LAUNCH(hc_logits_bwd);
BK_CUDA_PREPARE(hc_logits_bwd);
BK_CUDA_LAUNCH(hc_tanh_bwd);
BK_CUDA_PREPARE(hc_tanh_bwd);
BK_CUDA_LAUNCH(hc_maps_bwd);
BK_CUDA_PREPARE(hc_maps_bwd);
/* between begin and end of a launch */
void bk_cuda_maps_bwd_start(bk_stream *stream, const bk_hc_maps_bwd_args *a, bk_place workspace);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_MAPS                                                                     \
  BK_CUDA_ROW(HC_LOGITS, hc_logits, BK_CUDA_F32)                                              \
  BK_CUDA_ROW_WORK(HC_LOGITS_BWD, hc_logits_bwd, BK_CUDA_F32)                                 \
  BK_CUDA_ROW(HC_GATES, hc_gates, BK_CUDA_F32)                                                \
  BK_CUDA_ROW(HC_GATES_BWD, hc_gates_bwd, BK_CUDA_F32)                                        \
  BK_CUDA_ROW(HC_PERM, hc_perm, BK_CUDA_F32)                                                  \
  BK_CUDA_ROW(HC_PERM_BWD, hc_perm_bwd, BK_CUDA_F32)                                          \
  BK_CUDA_ROW(HC_KRON, hc_kron, BK_CUDA_F32)                                                  \
  BK_CUDA_ROW(HC_KRON_BWD, hc_kron_bwd, BK_CUDA_F32)                                          \
  BK_CUDA_ROW(HC_TANH, hc_tanh, BK_CUDA_F32)                                                  \
  BK_CUDA_ROW_WORK(HC_TANH_BWD, hc_tanh_bwd, BK_CUDA_F32)                                     \
  BK_CUDA_ROW_KINDS(HC_MAPS, hc_maps, BK_CUDA_F32, BK_CUDA_MAPS_KINDS, bk_kernel_accepts_all, \
                    bk_kernel_prepare_none)                                                   \
  BK_CUDA_ROW_KINDS(HC_MAPS_BWD, hc_maps_bwd, BK_CUDA_F32, BK_CUDA_MAPS_KINDS,                \
                    bk_kernel_accepts_all, bk_cuda_hc_maps_bwd_prepare)                       \
  BK_CUDA_ROW(SINKHORN, sinkhorn, BK_CUDA_F32)                                                \
  BK_CUDA_ROW(SINKHORN_BWD, sinkhorn_bwd, BK_CUDA_F32)

#endif
