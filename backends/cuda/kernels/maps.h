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

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_MAPS \
  BK_CUDA_ROW(SINKHORN, sinkhorn, BK_CUDA_F32) \
  BK_CUDA_ROW(SINKHORN_BWD, sinkhorn_bwd, BK_CUDA_F32)

#endif
