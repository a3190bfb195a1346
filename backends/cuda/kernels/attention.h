/* Launch functions and table rows of the family "attention". */
#ifndef BK_CUDA_ATTENTION_H
#define BK_CUDA_ATTENTION_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif


#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_ATTENTION

#endif
