/* Launch functions and table rows of the family "basic". */
#ifndef BK_CUDA_BASIC_H
#define BK_CUDA_BASIC_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

BK_CUDA_LAUNCH(copy);
BK_CUDA_ACCEPTS(copy);
BK_CUDA_LAUNCH(add);
BK_CUDA_LAUNCH(sum);
BK_CUDA_PREPARE(sum);
BK_CUDA_LAUNCH(sumsq);
BK_CUDA_PREPARE(sumsq);
BK_CUDA_LAUNCH(clip);
BK_CUDA_LAUNCH(adamw);
BK_CUDA_LAUNCH(balance);
BK_CUDA_ACCEPTS(balance);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_BASIC                    \
  BK_CUDA_ROW_IF(COPY, copy, BK_CUDA_FLOATS)  \
  BK_CUDA_ROW(ADD, add, BK_CUDA_FLOATS)       \
  BK_CUDA_ROW_WORK(SUM, sum, BK_CUDA_F32)     \
  BK_CUDA_ROW_WORK(SUMSQ, sumsq, BK_CUDA_F32) \
  BK_CUDA_ROW(CLIP, clip, BK_CUDA_F32)        \
  BK_CUDA_ROW(ADAMW, adamw, BK_CUDA_F32)      \
  BK_CUDA_ROW_IF(BALANCE, balance, BK_CUDA_I32)

#endif
