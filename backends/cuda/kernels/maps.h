/* Launch functions and table rows of the family "maps". */
#ifndef BK_CUDA_MAPS_H
#define BK_CUDA_MAPS_H

#include "backends/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif


#ifdef __cplusplus
}
#endif

/* Best first within an op. */
#define BK_CUDA_ROWS_MAPS

#endif
