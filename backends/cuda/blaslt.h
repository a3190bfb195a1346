/* Dense products through cuBLASLt, found at run time.
 *
 * Served: bf16 x bf16 into bf16 or fp32, fp32 x fp32 into fp32 (TF32 where allow_tf32 says so),
 * any transposition, batches, alpha, accumulate. Our matrices are rows, cuBLASLt's are columns,
 * so what is asked of it is c^T = b^T a^T. The algorithm is chosen once, when a plan is made,
 * from the exact layouts and alignments; what it has no algorithm for, mixed dtypes and K = 0 go
 * to our own kernels, as everything does where the library is missing or BIRKHOFF_CUDA_BLASLT=0
 * is set. Epilogues: none is used, no product of ours has a bias or an activation behind it.
 *
 * Deterministic: a library, a device and a shape give the same algorithm and the same bits. Of
 * the ways to reduce a cut k only COMPUTE_TYPE is allowed: fp32 partial sums in the workspace,
 * added by a separate step in a fixed order. INPLACE and OUTPUT_TYPE round partial sums to c's
 * dtype, several roundings where op.h promises one. */
#ifndef BK_CUDA_BLASLT_H
#define BK_CUDA_BLASLT_H

#include "backends/cuda/cuda.h"

#define BK_CUBLASLT_WORKSPACE (32u << 20) /* bytes an algorithm may ask for */

/* Leaves d->blaslt NULL where the library is not here (a debug line says so); an error only for
 * what must not happen. */
bk_status bk_cublaslt_open(bk_cuda_device *d);
void bk_cublaslt_close(bk_cuda_device *d);

#endif
