/* Launch functions and table rows of the family "wgmma": bf16 products on the warpgroup
 * instructions of compute capability 9.0. */
#ifndef BK_CUDA_WGMMA_H
#define BK_CUDA_WGMMA_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

BK_CUDA_ACCEPTS(wgmma_gemm);
BK_CUDA_PREPARE(wgmma_gemm);
BK_CUDA_LAUNCH(wgmma_gemm);
BK_CUDA_ACCEPTS(wgmma_grouped_gemm);
BK_CUDA_PREPARE(wgmma_grouped_gemm);
BK_CUDA_LAUNCH(wgmma_grouped_gemm);
BK_CUDA_ACCEPTS(wgmma_grouped_wgrad);
BK_CUDA_PREPARE(wgmma_grouped_wgrad);
BK_CUDA_LAUNCH(wgmma_grouped_wgrad);

#ifdef __cplusplus
}
#endif

/* Before the rows of "gemm", which take what these refuse. */
#define BK_CUDA_ROWS_WGMMA                                            \
  BK_CUDA_ROW_IF_WORK(GEMM, wgmma_gemm, BK_CUDA_BF16)                 \
  BK_CUDA_ROW_IF_WORK(GROUPED_GEMM, wgmma_grouped_gemm, BK_CUDA_BF16) \
  BK_CUDA_ROW_IF_WORK(GROUPED_WGRAD, wgmma_grouped_wgrad, BK_CUDA_BF16)

#endif
