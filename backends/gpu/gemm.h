/* Dense and grouped products. */
#ifndef BK_GPU_GEMM_H
#define BK_GPU_GEMM_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_GEMM(ROW)                     \
  ROW(GEMM, gemm, BK_GPU_FLOATS)                  \
  ROW(GROUPED_GEMM, grouped_gemm, BK_GPU_FLOATS)  \
  ROW(GROUPED_WGRAD, grouped_wgrad, BK_GPU_FLOATS)

BK_GPU_ROWS_GEMM(BK_GPU_DECLARE)

#endif
