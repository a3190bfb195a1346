/* The kernel table: rows of this backend alone, then those that it shares (backends/gpu). Best
 * first within an op. */
#include "backends/opencl/opencl.h"

#include "backends/gpu/table.h"

const bk_kernel bk_opencl_kernels[] = {
    BK_KERNEL_ROW(BK_OP_GEMM, BK_GPU_F32, 0, "clblast", bk_cl_clblast_accepts,
                  bk_cl_clblast_prepare, bk_cl_clblast, bk_cl_clblast_release),
    BK_GPU_ROWS(BK_GPU_ROW, BK_GPU_ROW_MAPS) BK_KERNEL_END};
