/* Launch functions and table rows of the family "experts". */
#ifndef BK_CUDA_EXPERTS_H
#define BK_CUDA_EXPERTS_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

BK_CUDA_ACCEPTS(router);
BK_CUDA_LAUNCH(router);
BK_CUDA_LAUNCH(router_bwd);
BK_CUDA_ACCEPTS(moe_index);
BK_CUDA_PREPARE(moe_index);
BK_CUDA_LAUNCH(moe_index);
BK_CUDA_LAUNCH(permute);
BK_CUDA_LAUNCH(unpermute);
BK_CUDA_LAUNCH(unpermute_bwd);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_EXPERTS                             \
  BK_CUDA_ROW_IF(ROUTER, router, BK_CUDA_F32)            \
  BK_CUDA_ROW(ROUTER_BWD, router_bwd, BK_CUDA_F32)       \
  BK_CUDA_ROW_IF_WORK(MOE_INDEX, moe_index, BK_CUDA_I32) \
  BK_CUDA_ROW(PERMUTE, permute, BK_CUDA_FLOATS)          \
  BK_CUDA_ROW(UNPERMUTE, unpermute, BK_CUDA_FLOATS)      \
  BK_CUDA_ROW(UNPERMUTE_BWD, unpermute_bwd, BK_CUDA_FLOATS)

#endif
