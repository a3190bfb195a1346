/* What the two kernels of HC_PROJECT_BWD (hc_project_bwd.cu, hc_project_bwd_mma.cu) share: the
 * factor of x in dx, and dfn as a sum over chunks of tokens. */
#ifndef BK_CUDA_HC_PROJECT_BWD_CUH
#define BK_CUDA_HC_PROJECT_BWD_CUH

#include "backends/cuda/kernels/hc.cuh"

/* Of a token: dx has factor x besides dproj fn. */
BK_DEVICE float bk_project_factor(float rinv, float drinv, int64_t width) {
  return -drinv * rinv * rinv * rinv / (float)width;
}

#define BK_PROJECT_DFN_THREADS 256
/* dfn += the sum of the chunks' partials, [chunks][rows][width], in order. A row of fn is the
 * grid's y. */
static __global__ void __launch_bounds__(BK_PROJECT_DFN_THREADS, 1)
    bk_project_dfn_kernel(const float *partials, int chunks, bk_rows<float> dfn, int64_t width) {
  const int64_t c = (int64_t)blockIdx.x * BK_PROJECT_DFN_THREADS + threadIdx.x, row = blockIdx.y;
  float sum = 0;
  if (c >= width) return;
#pragma unroll 4
  for (int i = 0; i < chunks; i++) sum += partials[((int64_t)i * gridDim.y + row) * width + c];
  dfn.row(row)[c] += sum;
}
static inline void bk_project_dfn(bk_stream *stream, const float *partials, int64_t chunks,
                                  const bk_tensor *dfn) {
  const dim3 grid((unsigned)bk_ceil_div(dfn->shape[1], BK_PROJECT_DFN_THREADS),
                  (unsigned)dfn->shape[0]);
  BK_LAUNCH((bk_project_dfn_kernel), grid, BK_PROJECT_DFN_THREADS, 0, bk_cuda_raw(stream), partials,
            (int)chunks, bk_rows_of<float>(dfn), dfn->shape[1]);
}
/* Bytes of the partials. */
static inline size_t bk_project_dfn_bytes(const bk_hc_project_bwd_args *a, int64_t chunk) {
  if (!bk_tensor_present(&a->dfn) || a->x.shape[0] <= 0) return 0;
  return (size_t)(bk_ceil_div(a->x.shape[0], chunk) * a->fn.shape[0] * a->x.shape[1]) *
         sizeof(float);
}

#endif
