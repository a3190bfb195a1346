/* COPY and ADD: any strides and conversions by rows; by packs of 16 bytes where all is dense,
 * and where rows are and lie at multiples of 16 bytes. */
#include "backends/cuda/kernels/basic.h"
#include "backends/cuda/kernels/device.cuh"

namespace {

constexpr int threads = 256;

/* ---- packs: as many elements as fill 16 bytes of the narrower type ---- */

template <class X, class Y>
constexpr int pack_of = bk_pack < X
> ::count > bk_pack<Y>::count ? bk_pack < X
> ::count : bk_pack<Y>::count;

/* Of memory that the kernel may write too: y may be x or b. */
template <class T, int N>
BK_DEVICE void load_packs(const T *p, float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += bk_pack<T>::count) {
    float w[bk_pack<T>::count];
    bk_load_pack_own(p + i, w);
#pragma unroll
    for (int j = 0; j < bk_pack<T>::count; j++) v[i + j] = w[j];
  }
}
template <class T, int N>
BK_DEVICE void store_packs(T *p, const float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += bk_pack<T>::count) {
    float w[bk_pack<T>::count];
#pragma unroll
    for (int j = 0; j < bk_pack<T>::count; j++) w[j] = v[i + j];
    bk_store_pack_global(p + i, w);
  }
}

/* One pack of y = x, or of y = x + b where ADD. */
template <class X, class Y, bool ADD>
BK_DEVICE void do_pack(const X *x, const X *b, Y *y) {
  constexpr int n = pack_of < X
  , Y > ;
  float v[n], w[n];
  load_packs(x, v);
  if constexpr (ADD) {
    load_packs(b, w);
#pragma unroll
    for (int j = 0; j < n; j++) v[j] += w[j];
  }
  store_packs(y, v);
}
template <class X, class Y, bool ADD>
BK_DEVICE void do_one(const X *x, const X *b, Y *y) {
  float v = bk_to_float(*x);
  if constexpr (ADD) v += bk_to_float(*b);
  *y = bk_from_float<Y>(v);
}

/* ---- all dense: one flat run of elements ---- */

/* The first `packed` elements, a multiple of pack_of, by packs, then single elements. */
template <class X, class Y, bool ADD>
__global__ void __launch_bounds__(threads)
    flat_kernel(const X *x, const X *b, Y *y, int64_t count, int64_t packed) {
  const int64_t step = (int64_t)gridDim.x * threads,
                first = (int64_t)blockIdx.x * threads + threadIdx.x;
  constexpr int n = pack_of < X
  , Y > ;
  for (int64_t i = first * n; i < packed; i += step * n) do_pack < X
  , Y, ADD > (x + i, b + i, y + i);
  for (int64_t i = packed + first; i < count; i += step) do_one < X
  , Y, ADD > (x + i, b + i, y + i);
}

/* ---- any strides: a warp a row; the outer two dimensions are the grid's y and z, so that
 * nothing is divided ---- */

struct view {
  int64_t shape[4], x[4], b[4], y[4]; /* shape, then strides in elements */
};

/* PACKS: rows are dense and lie at multiples of 16 bytes. */
template <class X, class Y, bool ADD, bool PACKS>
BK_DEVICE void do_row(const X *x, const X *b, Y *y, const view &v) {
  constexpr int n = PACKS ? pack_of < X
  , Y > : 1;
  for (int64_t c = threadIdx.x % BK_WARP * n; c < v.shape[3]; c += BK_WARP * n)
    if constexpr (PACKS) do_pack < X
  , Y, ADD > (x + c, b + c, y + c);
  else do_one < X , Y, ADD > (x + c * v.x[3], b + c * v.b[3], y + c * v.y[3]);
}

template <class X, class Y, bool ADD, bool PACKS>
__global__ void __launch_bounds__(threads) rows_kernel(const X *x, const X *b, Y *y, view v) {
  const int64_t step = (int64_t)gridDim.x * (threads / BK_WARP),
                first = (int64_t)blockIdx.x * (threads / BK_WARP) + threadIdx.x / BK_WARP;
  for (int64_t i = blockIdx.z; i < v.shape[0]; i += gridDim.z)
    for (int64_t j = blockIdx.y; j < v.shape[1]; j += gridDim.y)
      for (int64_t k = first; k < v.shape[2]; k += step) do_row < X
  , Y, ADD,
      PACKS > (x + i * v.x[0] + j * v.x[1] + k * v.x[2], b + i * v.b[0] + j * v.b[1] + k * v.b[2],
               y + i * v.y[0] + j * v.y[1] + k * v.y[2], v);
}

unsigned up_to(int64_t wanted, int64_t most) { return (unsigned)(wanted < most ? wanted : most); }

/* Strides aligned to four dimensions, missing outer ones of size 1. */
void fill_view(const bk_tensor *t, int64_t *strides) {
  for (int d = 0; d < 4; d++) strides[d] = d < 4 - t->ndim ? 0 : t->stride[d - (4 - t->ndim)];
}

template <class X, class Y, bool ADD>
void launch(bk_stream *stream, const bk_tensor *x, const bk_tensor *b, const bk_tensor *y) {
  const int64_t count = bk_tensor_count(y);
  /* px: not read */
  const X
  *px = (const X *)bk_cuda_data(x), *pb = ADD ? (const X *)bk_cuda_data(b) : px;
  Y *py = (Y *)bk_cuda_data(y);
  if (count == 0) return;
  if (bk_tensor_contiguous(x) && bk_tensor_contiguous(y) && (!ADD || bk_tensor_contiguous(b))) {
    const bool aligned =
        x->offset % 16 == 0 && y->offset % 16 == 0 && (!ADD || b->offset % 16 == 0);
    const int64_t packed = aligned ? count / pack_of < X
    , Y > *pack_of < X
    , Y > : 0;
    BK_LAUNCH((flat_kernel<X, Y, ADD>), bk_grid_for(stream, count, threads * 4, 8), threads, 0,
              bk_cuda_raw(stream), px, pb, py, count, packed);
    return;
  }
  view v = {};
  fill_view(x, v.x);
  fill_view(y, v.y);
  if (ADD) fill_view(b, v.b);
  for (int d = 0; d < 4; d++) v.shape[d] = d < 4 - y->ndim ? 1 : y->shape[d - (4 - y->ndim)];
  const dim3 grid(bk_grid_for(stream, v.shape[2], threads / BK_WARP, 16), up_to(v.shape[1], 65535),
                  up_to(v.shape[0], 65535));
  if (bk_packs_fit(x) && bk_packs_fit(y) && (!ADD || bk_packs_fit(b)))
    BK_LAUNCH((rows_kernel<X, Y, ADD, true>), grid, threads, 0, bk_cuda_raw(stream), px, pb, py, v);
  else
    BK_LAUNCH((rows_kernel<X, Y, ADD, false>), grid, threads, 0, bk_cuda_raw(stream), px, pb, py,
              v);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(copy) {
  (void)device;
  return bk_stored(&((const bk_copy_args *)args)->y);
}

extern "C" BK_CUDA_LAUNCH(copy) {
  const bk_copy_args *a = (const bk_copy_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  if (a->x.dtype == BK_F32 && a->y.dtype == BK_F32)
    launch<float, float, false>(stream, &a->x, nullptr, &a->y);
  else if (a->x.dtype == BK_F32) launch<float, bk_bf16, false>(stream, &a->x, nullptr, &a->y);
  else if (a->y.dtype == BK_F32) launch<bk_bf16, float, false>(stream, &a->x, nullptr, &a->y);
  else launch<bk_bf16, bk_bf16, false>(stream, &a->x, nullptr, &a->y);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(add) {
  const bk_add_args *a = (const bk_add_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  if (a->a.dtype == BK_BF16) launch<bk_bf16, bk_bf16, true>(stream, &a->a, &a->b, &a->y);
  else launch<float, float, true>(stream, &a->a, &a->b, &a->y);
  return bk_cuda_end(stream);
}
