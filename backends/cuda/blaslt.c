/* See blaslt.h. */
#include "backends/cuda/blaslt.h"

bk_status bk_cublaslt_open(bk_cuda_device *d) {
  d->blaslt = NULL;
  return BK_OK;
}

void bk_cublaslt_close(bk_cuda_device *d) { d->blaslt = NULL; }
