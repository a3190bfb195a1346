/* Norms, RoPE, SwiGLU, embedding, cross entropy. */
#ifndef BK_GPU_LAYERS_H
#define BK_GPU_LAYERS_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_LAYERS(ROW) \
  ROW(RMSNORM, rmsnorm, BK_GPU_FLOATS)

BK_GPU_ROWS_LAYERS(BK_GPU_DECLARE)

#endif
