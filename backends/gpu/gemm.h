/* Dense and grouped products. ops_gemm.c chooses: gemm_cpu.c on processors, else the kernels of
 * gemm.k. */
#ifndef BK_GPU_GEMM_H
#define BK_GPU_GEMM_H

#include "backends/gpu/gpu.h"

#define BK_GPU_ROWS_GEMM(ROW)                    \
  ROW(GEMM, gemm, BK_GPU_FLOATS)                 \
  ROW(GROUPED_GEMM, grouped_gemm, BK_GPU_FLOATS) \
  ROW(GROUPED_WGRAD, grouped_wgrad, BK_GPU_FLOATS)

BK_GPU_ROWS_GEMM(BK_GPU_DECLARE)

/* Matrices [batches, rows, columns] and their strides. A tensor of two dimensions is a batch of
 * one. */
typedef struct bk_gpu_matrix {
  int64_t batches, rows, columns;
  int32_t batch, row, column;
} bk_gpu_matrix;
bk_gpu_matrix bk_gpu_matrix_of(const bk_tensor *t);

/* gemm_cpu.c: the same ops on processors, where the device has `vector`. */
bk_status bk_gpu_gemm_cpu_prepare(bk_device *device, const bk_gemm_args *g, bk_gpu_state *s,
                                  size_t *workspace_bytes);
bk_status bk_gpu_gemm_cpu(bk_stream *stream, const bk_plan *plan, const bk_gemm_args *g,
                          bk_place workspace);
bk_status bk_gpu_grouped_gemm_cpu_prepare(bk_device *device, const bk_grouped_gemm_args *g,
                                          bk_gpu_state *s, size_t *workspace_bytes);
bk_status bk_gpu_grouped_gemm_cpu(bk_stream *stream, const bk_plan *plan,
                                  const bk_grouped_gemm_args *g, bk_place workspace);
bk_status bk_gpu_grouped_wgrad_cpu_prepare(bk_device *device, const bk_grouped_wgrad_args *g,
                                           bk_gpu_state *s, size_t *workspace_bytes);
bk_status bk_gpu_grouped_wgrad_cpu(bk_stream *stream, const bk_plan *plan,
                                   const bk_grouped_wgrad_args *g, bk_place workspace);

#endif
