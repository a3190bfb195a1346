/* Launch functions and table rows of the family "gemm": dense products and products over
 * experts. */
#ifndef BK_CUDA_GEMM_H
#define BK_CUDA_GEMM_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ../blaslt.c: cuBLASLt, where it is found and has an algorithm. */
BK_CUDA_ACCEPTS(gemm_cublaslt);
BK_CUDA_PREPARE(gemm_cublaslt);
BK_CUDA_LAUNCH(gemm_cublaslt);
BK_CUDA_RELEASE(gemm_cublaslt);
/* gemm.cu: bf16 x bf16 on tensor cores; everything else in fp32 (TF32 where allowed). */
BK_CUDA_ACCEPTS(gemm_mma);
BK_CUDA_PREPARE(gemm_mma);
BK_CUDA_LAUNCH(gemm_mma);
BK_CUDA_ACCEPTS(gemm_fp32);
BK_CUDA_PREPARE(gemm_fp32);
BK_CUDA_LAUNCH(gemm_fp32);
/* grouped.cu */
BK_CUDA_ACCEPTS(grouped_gemm);
BK_CUDA_PREPARE(grouped_gemm);
BK_CUDA_LAUNCH(grouped_gemm);
BK_CUDA_ACCEPTS(grouped_wgrad);
BK_CUDA_LAUNCH(grouped_wgrad);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_BLASLT BK_CUDA_ROW_STATE(GEMM, gemm_cublaslt, BK_CUDA_FLOATS)
#define BK_CUDA_ROWS_GEMM                                         \
  BK_CUDA_ROW_IF_WORK(GEMM, gemm_mma, BK_CUDA_BF16)               \
  BK_CUDA_ROW_IF_WORK(GEMM, gemm_fp32, BK_CUDA_FLOATS)            \
  BK_CUDA_ROW_IF_WORK(GROUPED_GEMM, grouped_gemm, BK_CUDA_FLOATS) \
  BK_CUDA_ROW_IF(GROUPED_WGRAD, grouped_wgrad, BK_CUDA_FLOATS)

#endif
