/* Norms, RoPE, SwiGLU, embedding, cross entropy. */
#ifndef BK_GPU_LAYERS_H
#define BK_GPU_LAYERS_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_LAYERS(ROW)                \
  ROW(RMSNORM, rmsnorm, BK_GPU_FLOATS)         \
  ROW(RMSNORM_BWD, rmsnorm_bwd, BK_GPU_FLOATS) \
  ROW(ROPE, rope, BK_GPU_FLOATS)               \
  ROW(CACHE_WRITE, cache_write, BK_GPU_FLOATS) \
  ROW(SWIGLU, swiglu, BK_GPU_FLOATS)           \
  ROW(SWIGLU_BWD, swiglu_bwd, BK_GPU_FLOATS)   \
  ROW(EMBED, embed, BK_GPU_I32)                \
  ROW(EMBED_BWD, embed_bwd, BK_GPU_I32)        \
  ROW(CROSS_ENTROPY, cross_entropy, BK_GPU_FLOATS)

BK_GPU_ROWS_LAYERS(BK_GPU_DECLARE)

#endif
