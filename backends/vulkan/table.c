/* The kernel table: rows of this backend alone, then those that it shares (backends/gpu). Best
 * first within an op. */
#include "backends/vulkan/vulkan.h"

#include "backends/gpu/table.h"

const bk_kernel bk_vulkan_kernels[] = {BK_GPU_ROWS(BK_GPU_ROW, BK_GPU_ROW_MAPS) BK_KERNEL_END};
