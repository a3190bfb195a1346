/* Dense products through cuBLASLt, found at run time. */
#ifndef BK_CUDA_BLASLT_H
#define BK_CUDA_BLASLT_H

#include "backends/cuda/cuda.h"

/* Leaves d->blaslt NULL where the library is not here (a debug line says so); an error only for what must not happen. */
bk_status bk_cublaslt_open(bk_cuda_device *d);
void bk_cublaslt_close(bk_cuda_device *d);

#endif
