/* The maps of the residual connections. */
#ifndef BK_GPU_MAPS_H
#define BK_GPU_MAPS_H

#include "backends/gpu/gpu.h"

/* Kinds that hc_maps.k makes the maps of. */
#define BK_GPU_MAPS_KINDS                                                                  \
  (BK_KIND(BK_HC_HC) | BK_KIND(BK_HC_MHC) | BK_KIND(BK_HC_MHC_LITE) | BK_KIND(BK_HC_IHC) | \
   BK_KIND(BK_HC_HEAD))

#define BK_GPU_ROWS_MAPS(ROW, MAPS)                     \
  ROW(HC_LOGITS, hc_logits, BK_GPU_F32)                 \
  ROW(HC_LOGITS_BWD, hc_logits_bwd, BK_GPU_F32)         \
  ROW(HC_GATES, hc_gates, BK_GPU_F32)                   \
  ROW(HC_GATES_BWD, hc_gates_bwd, BK_GPU_F32)           \
  ROW(SINKHORN, sinkhorn, BK_GPU_F32)                   \
  ROW(SINKHORN_BWD, sinkhorn_bwd, BK_GPU_F32)           \
  ROW(HC_PERM, hc_perm, BK_GPU_F32)                     \
  ROW(HC_PERM_BWD, hc_perm_bwd, BK_GPU_F32)             \
  ROW(HC_KRON, hc_kron, BK_GPU_F32)                     \
  ROW(HC_KRON_BWD, hc_kron_bwd, BK_GPU_F32)             \
  ROW(HC_TANH, hc_tanh, BK_GPU_F32)                     \
  ROW(HC_TANH_BWD, hc_tanh_bwd, BK_GPU_F32)             \
  MAPS(HC_MAPS, hc_maps, BK_GPU_F32, BK_GPU_MAPS_KINDS) \
  MAPS(HC_MAPS_BWD, hc_maps_bwd, BK_GPU_F32, BK_GPU_MAPS_KINDS)

BK_GPU_ROWS_MAPS(BK_GPU_DECLARE, BK_GPU_DECLARE_MAPS)

#endif
