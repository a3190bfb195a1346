/* The kernel table: the rows of all families, best first within an op (that cuBLASLt goes before
 * wgmma is not measured yet). Fused ops that no row serves run composed (ops/composite.c). */
#include "backends/cuda/kernels/attention.h"
#include "backends/cuda/kernels/basic.h"
#include "backends/cuda/kernels/experts.h"
#include "backends/cuda/kernels/gemm.h"
#include "backends/cuda/kernels/layers.h"
#include "backends/cuda/kernels/loss.h"
#include "backends/cuda/kernels/maps.h"
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/wgmma.h"

const bk_kernel bk_cuda_kernels[] = {
    BK_CUDA_ROWS_BASIC BK_CUDA_ROWS_LAYERS BK_CUDA_ROWS_LOSS BK_CUDA_ROWS_EXPERTS
        BK_CUDA_ROWS_BLASLT BK_CUDA_ROWS_WGMMA BK_CUDA_ROWS_GEMM BK_CUDA_ROWS_CUDNN
            BK_CUDA_ROWS_ATTENTION BK_CUDA_ROWS_STREAMS BK_CUDA_ROWS_MAPS BK_KERNEL_END};
