/* Launch functions and table rows of the family "loss". */
#ifndef BK_CUDA_LOSS_H
#define BK_CUDA_LOSS_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

BK_CUDA_ACCEPTS(cross_entropy);
BK_CUDA_LAUNCH(cross_entropy);

#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_LOSS BK_CUDA_ROW_IF(CROSS_ENTROPY, cross_entropy, BK_CUDA_FLOATS)

#endif
