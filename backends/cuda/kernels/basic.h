/* Launch functions and table rows of the family "basic". */
#ifndef BK_CUDA_BASIC_H
#define BK_CUDA_BASIC_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

BK_CUDA_LAUNCH(copy);
BK_CUDA_LAUNCH(add);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_BASIC \
  BK_CUDA_ROW(COPY, copy, BK_CUDA_FLOATS) \
  BK_CUDA_ROW(ADD, add, BK_CUDA_FLOATS)

#endif
