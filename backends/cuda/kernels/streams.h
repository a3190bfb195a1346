/* Launch functions and table rows of the family "streams". */
#ifndef BK_CUDA_STREAMS_H
#define BK_CUDA_STREAMS_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif


#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_STREAMS

#endif
