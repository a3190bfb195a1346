/* HC_RMS and HC_RMS_BWD: a block a row; 16 bytes an access where rows are aligned. Floors: one
 * read of x; one read of x, one write of dx (and one read to accumulate). Squares are summed in
 * fp32 by each thread, then over the block. */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc.cuh"

namespace {

constexpr int most_threads = 512;

template <class T, int V>
__global__ void __launch_bounds__(most_threads, 1)
    rms_kernel(bk_rows<T> x, float *rinv, int64_t width, float eps) {
  __shared__ float shared[BK_WARP];
  const T *row = x.row(blockIdx.x);
  float sum = 0;
#pragma unroll 4
  for (int64_t c = (int64_t)threadIdx.x * V; c < width; c += (int64_t)blockDim.x * V) {
    const bk_raw<T, V> in = bk_raw_load<T, V>(row + c);
    float part = 0;
#pragma unroll
    for (int v = 0; v < V; v++) part += bk_raw_get(in, v) * bk_raw_get(in, v);
    sum += part;
  }
  sum = bk_block_sum(sum, shared);
  if (threadIdx.x == 0) rinv[blockIdx.x] = 1.f / sqrtf(sum / (float)width + eps);
}

/* d rinv / d x = -rinv^3 x / width. */
template <class T, int V, bool ADD>
__global__ void __launch_bounds__(most_threads, 1)
    rms_bwd_kernel(bk_rows<T> x, const float *rinv, const float *drinv, bk_rows<T> dx,
                   int64_t width) {
  const int64_t i = blockIdx.x;
  const float r = rinv[i], factor = -drinv[i] * r * r * r / (float)width;
#pragma unroll 2
  for (int64_t c = (int64_t)threadIdx.x * V; c < width; c += (int64_t)blockDim.x * V) {
    const bk_raw<T, V> in = bk_raw_load<T, V>(x.row(i) + c);
    bk_raw<T, V> old;
    float out[V];
    if (ADD) old = bk_raw_load<T, V>(dx.row(i) + c);
#pragma unroll
    for (int v = 0; v < V; v++) {
      out[v] = factor * bk_raw_get(in, v);
      if (ADD) out[v] += bk_raw_get(old, v);
    }
    bk_raw_store<T, V>(dx.row(i) + c, bk_raw_of<T, V>(out));
  }
}

template <class T, int V>
void start(bk_stream *stream, const bk_hc_rms_args *a) {
  BK_LAUNCH((rms_kernel<T, V>), (unsigned)a->x.shape[0],
            bk_hc_threads(a->x.shape[1] / V, most_threads), 0, bk_cuda_raw(stream),
            bk_rows_of<T>(&a->x), (float *)bk_cuda_data(&a->rinv), a->x.shape[1], (float)a->eps);
}

template <class T>
void launch(bk_stream *stream, const bk_hc_rms_args *a) {
  if (a->x.shape[0] == 0) return;
  if (bk_packs_fit(&a->x)) start<T, bk_pack<T>::count>(stream, a);
  else start<T, 1>(stream, a);
}

template <class T, int V, bool ADD>
void start_bwd(bk_stream *stream, const bk_hc_rms_bwd_args *a) {
  BK_LAUNCH((rms_bwd_kernel<T, V, ADD>), (unsigned)a->x.shape[0],
            bk_hc_threads(a->x.shape[1] / V, most_threads), 0, bk_cuda_raw(stream),
            bk_rows_of<T>(&a->x), (const float *)bk_cuda_data(&a->rinv),
            (const float *)bk_cuda_data(&a->drinv), bk_rows_of<T>(&a->dx), a->x.shape[1]);
}

template <class T>
void launch_bwd(bk_stream *stream, const bk_hc_rms_bwd_args *a) {
  const bool packed = bk_packs_fit(&a->x) && bk_packs_fit(&a->dx);
  constexpr int pack = bk_pack<T>::count;
  if (a->x.shape[0] == 0) return;
  if (packed && a->accumulate) start_bwd<T, pack, true>(stream, a);
  else if (packed) start_bwd<T, pack, false>(stream, a);
  else if (a->accumulate) start_bwd<T, 1, true>(stream, a);
  else start_bwd<T, 1, false>(stream, a);
}

} // namespace

extern "C" BK_CUDA_LAUNCH(hc_rms) {
  const bk_hc_rms_args *a = (const bk_hc_rms_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch, (stream, a));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_rms_bwd) {
  const bk_hc_rms_bwd_args *a = (const bk_hc_rms_bwd_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_bwd, (stream, a));
  return bk_cuda_end(stream);
}
