/* Launch functions and table rows of the family "layers". */
#ifndef BK_CUDA_LAYERS_H
#define BK_CUDA_LAYERS_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

BK_CUDA_LAUNCH(rmsnorm);
BK_CUDA_LAUNCH(rmsnorm_bwd);
BK_CUDA_PREPARE(rmsnorm_bwd);
BK_CUDA_LAUNCH(rope);
BK_CUDA_LAUNCH(cache_write);
BK_CUDA_LAUNCH(swiglu);
BK_CUDA_LAUNCH(swiglu_bwd);
BK_CUDA_LAUNCH(embed);
BK_CUDA_ACCEPTS(embed);
BK_CUDA_LAUNCH(embed_bwd);
BK_CUDA_ACCEPTS(embed_bwd);
BK_CUDA_PREPARE(embed_bwd);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_LAYERS                                  \
  BK_CUDA_ROW(RMSNORM, rmsnorm, BK_CUDA_FLOATS)              \
  BK_CUDA_ROW_WORK(RMSNORM_BWD, rmsnorm_bwd, BK_CUDA_FLOATS) \
  BK_CUDA_ROW(ROPE, rope, BK_CUDA_FLOATS)                    \
  BK_CUDA_ROW(CACHE_WRITE, cache_write, BK_CUDA_FLOATS)      \
  BK_CUDA_ROW(SWIGLU, swiglu, BK_CUDA_FLOATS)                \
  BK_CUDA_ROW(SWIGLU_BWD, swiglu_bwd, BK_CUDA_FLOATS)        \
  BK_CUDA_ROW_IF(EMBED, embed, BK_CUDA_I32)                  \
  BK_CUDA_ROW_IF_WORK(EMBED_BWD, embed_bwd, BK_CUDA_I32)

#endif
