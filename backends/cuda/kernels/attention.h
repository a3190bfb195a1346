/* Launch functions and table rows of the family "attention". */
#ifndef BK_CUDA_ATTENTION_H
#define BK_CUDA_ATTENTION_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ../cudnn.c: cuDNN, where it is found and has a deterministic engine. */
BK_CUDA_LAUNCH(attention_cudnn);
BK_CUDA_ACCEPTS(attention_cudnn);
BK_CUDA_PREPARE(attention_cudnn);
BK_CUDA_LAUNCH(attention_bwd_cudnn);
BK_CUDA_ACCEPTS(attention_bwd_cudnn);
BK_CUDA_PREPARE(attention_bwd_cudnn);
BK_CUDA_LAUNCH(attention_decode);
BK_CUDA_ACCEPTS(attention_decode);
BK_CUDA_PREPARE(attention_decode);
BK_CUDA_LAUNCH(attention_mma);
BK_CUDA_ACCEPTS(attention_mma);
BK_CUDA_LAUNCH(attention_simt);
BK_CUDA_ACCEPTS(attention_simt);
BK_CUDA_LAUNCH(attention_bwd_mma);
BK_CUDA_ACCEPTS(attention_bwd_mma);
BK_CUDA_PREPARE(attention_bwd_mma);
BK_CUDA_LAUNCH(attention_bwd_simt);
BK_CUDA_ACCEPTS(attention_bwd_simt);
BK_CUDA_PREPARE(attention_bwd_simt);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_CUDNN                                      \
  BK_CUDA_ROW_IF_WORK(ATTENTION, attention_cudnn, BK_CUDA_BF16) \
  BK_CUDA_ROW_IF_WORK(ATTENTION_BWD, attention_bwd_cudnn, BK_CUDA_BF16)
#define BK_CUDA_ROWS_ATTENTION                                        \
  BK_CUDA_ROW_IF_WORK(ATTENTION, attention_decode, BK_CUDA_FLOATS)    \
  BK_CUDA_ROW_IF(ATTENTION, attention_mma, BK_CUDA_BF16)              \
  BK_CUDA_ROW_IF(ATTENTION, attention_simt, BK_CUDA_FLOATS)           \
  BK_CUDA_ROW_IF_WORK(ATTENTION_BWD, attention_bwd_mma, BK_CUDA_BF16) \
  BK_CUDA_ROW_IF_WORK(ATTENTION_BWD, attention_bwd_simt, BK_CUDA_FLOATS)

#endif
