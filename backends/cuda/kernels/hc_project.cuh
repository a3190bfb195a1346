/* The end of a projection that was made in slices of K: a second launch adds the slices' sums
 * up, in order, and makes rinv. */
#ifndef BK_CUDA_HC_PROJECT_CUH
#define BK_CUDA_HC_PROJECT_CUH

#include "backends/cuda/kernels/hc.cuh"

struct bk_project_end {
  float *partials; /* [slices][tokens][rows + 1]: the sums, then that of the squares */
  bk_rows<float> proj;
  float *rinv;
  int64_t tokens, width;
  int rows, slices;
  float eps;
  /* Where the sums of a slice's token lie. */
  __host__ __device__ float *sums(int64_t slice, int64_t token) const {
    return partials + (slice * tokens + token) * (rows + 1);
  }
};

#define BK_PROJECT_END_THREADS 256

/* A warp a token. */
static __global__ void __launch_bounds__(BK_PROJECT_END_THREADS)
    bk_project_end_kernel(bk_project_end o) {
  const int64_t token =
      (int64_t)blockIdx.x * (BK_PROJECT_END_THREADS / BK_WARP) + (int)threadIdx.x / BK_WARP;
  if (token >= o.tokens) return;
  for (int j = (int)threadIdx.x % BK_WARP; j <= o.rows; j += BK_WARP) {
    float sum = 0;
#pragma unroll 8
    for (int s = 0; s < o.slices; s++) sum += o.sums(s, token)[j];
    if (j < o.rows) o.proj.row(token)[j] = sum;
    else o.rinv[token] = 1.f / sqrtf(sum / (float)o.width + o.eps);
  }
}

/* ---- host ---- */

static inline bk_project_end bk_project_end_of(const bk_hc_project_args *a, int64_t slices,
                                               bk_place workspace) {
  bk_project_end o = {};
  o.partials = (float *)bk_cuda_place(workspace), o.proj = bk_rows_of<float>(&a->proj),
  o.rinv = (float *)bk_cuda_data(&a->rinv);
  o.tokens = a->x.shape[0], o.width = a->x.shape[1], o.rows = (int)a->fn.shape[0],
  o.slices = (int)slices, o.eps = (float)a->eps;
  return o;
}
static inline size_t bk_project_partials_bytes(const bk_hc_project_args *a, int64_t slices) {
  return (size_t)(slices * a->x.shape[0] * (a->fn.shape[0] + 1)) * sizeof(float);
}
static inline void bk_project_end_start(bk_stream *stream, const bk_project_end &o) {
  BK_LAUNCH((bk_project_end_kernel),
            (unsigned)bk_ceil_div(o.tokens, BK_PROJECT_END_THREADS / BK_WARP),
            BK_PROJECT_END_THREADS, 0, bk_cuda_raw(stream), o);
}

#endif
