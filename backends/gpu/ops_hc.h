/* For the launch code of the residual connections. */
#ifndef BK_GPU_OPS_HC_H
#define BK_GPU_OPS_HC_H

#include "backends/gpu/gpu.h"

/* The constant SUMS of kernels that use sums.kh: a power of two, as many of `count` values as a
 * group sums at once in about 8 KiB. */
static inline int bk_gpu_sums(int group, int count) {
  int sums = 1;
  while (sums < count && sums < group && sums * 2 * group <= 2048) sums *= 2;
  return sums;
}

/* Columns of a group in element-wise kernels: enough for the maps' loads to count for little. On
 * a CPU groups come one after the other. */
static inline int32_t bk_gpu_hc_slice(const bk_device *device, int group, int64_t width) {
  return ((const bk_gpu_device *)device)->on_cpu || width < 4 * group ? (int32_t)width : 4 * group;
}

#endif
