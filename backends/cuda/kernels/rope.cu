/* ROPE and CACHE_WRITE. Floor: x and y once.
 *
 * ROPE: a thread has one pack of 16 bytes of the row (4 pairs of bf16, 2 of fp32; one pair where
 * packs do not fit) at one position of one sequence, works out its angles once and goes through
 * up to `heads_a_thread` heads (all of x's where they are summed), four loads in flight. Angles
 * are counted in half turns: in double, position times frequency less its whole turns, so that
 * what is rounded to fp32 lies in [-1, 1].
 *
 * CACHE_WRITE: a thread moves one pack of each position; the bits stay as they are. */
#include <math.h>

#include "backends/cuda/kernels/device.cuh"
#include "backends/cuda/kernels/layers.h"

namespace {

constexpr int threads = 256, heads_a_thread = 8, batch = 4, listed = 256;

/* Half turns a position for pair i: theta^(-2i/D) / pi, listed for widths up to 2 * listed. */
struct frequencies {
  double log2_theta_by_width; /* log2(theta) / D, for the pairs past the list */
  double half_turns[listed];
};
struct view {
  int64_t batches, length, heads, columns; /* columns: of N elements */
  int64_t xb, xt, xh, yb, yt, yh;
};

/* N elements as they lie in memory. Plain loads: y may be x. */
template <class T, int N>
struct piece {
  uint4 bits;
};
template <class T>
struct piece<T, 2> {
  T pair[2];
};
template <class T, int N>
BK_DEVICE void load(const T *p, piece<T, N> &v) {
  if constexpr (N == 2) v.pair[0] = p[0], v.pair[1] = p[1];
  else v.bits = *reinterpret_cast<const uint4 *>(p);
}
template <class T, int N>
BK_DEVICE void unpack(const piece<T, N> &v, float (&f)[N]) {
  if constexpr (N == 2) f[0] = bk_to_float(v.pair[0]), f[1] = bk_to_float(v.pair[1]);
  else bk_unpack(v.bits, f);
}
template <class T, int N>
BK_DEVICE void store(T *p, const float (&v)[N]) {
  if constexpr (N == 2) p[0] = bk_from_float<T>(v[0]), p[1] = bk_from_float<T>(v[1]);
  else bk_store_pack_global(p, v);
}

BK_DEVICE double half_turns(const frequencies &f, int64_t pair) {
  return pair < listed
             ? f.half_turns[pair]
             : exp2(-2.0 * (double)pair * f.log2_theta_by_width) * 0.318309886183790671538;
}
BK_DEVICE void angle(const frequencies &f, int64_t pair, double position, float sign, float &c,
                     float &s) {
  double h = position * half_turns(f, pair);
  h -= 2 * rint(0.5 * h);
  sincospif((float)h, &s, &c);
  s *= sign;
}

template <int N>
BK_DEVICE void turn(float (&v)[N], const float (&c)[N / 2], const float (&s)[N / 2]) {
#pragma unroll
  for (int j = 0; j < N / 2; j++) {
    const float even = v[2 * j], odd = v[2 * j + 1];
    v[2 * j] = even * c[j] - odd * s[j];
    v[2 * j + 1] = even * s[j] + odd * c[j];
  }
}

/* v.heads heads turned; x's stride of heads is 0 where its one head goes to all of y's. */
template <class T, int N>
BK_DEVICE void turn_heads(const T *x, T *y, const view &v, const float (&c)[N / 2],
                          const float (&s)[N / 2]) {
  const int64_t begin = (int64_t)blockIdx.y * heads_a_thread,
                left = v.heads - begin < heads_a_thread ? v.heads - begin : heads_a_thread;
  x += begin * v.xh, y += begin * v.yh;
#pragma unroll 1
  for (int first = 0; first < left; first += batch) {
    piece<T, N> a[batch];
#pragma unroll
    for (int j = 0; j < batch; j++)
      if (first + j < left) load(x + (first + j) * v.xh, a[j]);
#pragma unroll
    for (int j = 0; j < batch; j++) {
      if (first + j >= left) return;
      float f[N];
      unpack(a[j], f);
      turn<N>(f, c, s);
      store(y + (first + j) * v.yh, f);
    }
  }
}

/* x's heads summed, then turned. */
template <class T, int N>
BK_DEVICE void turn_sum(const T *x, T *y, const view &v, const float (&c)[N / 2],
                        const float (&s)[N / 2]) {
  float sum[N] = {};
#pragma unroll 4
  for (int64_t h = 0; h < v.heads; h++) {
    piece<T, N> a;
    float f[N];
    load(x + h * v.xh, a);
    unpack(a, f);
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += f[i];
  }
  turn<N>(sum, c, s);
  store(y, sum);
}

template <class T, int N, bool SUM>
__global__ void __launch_bounds__(threads, 3)
    rope_kernel(const T *x, const int32_t *past, T *y, view v, float sign,
                const __grid_constant__ frequencies f) {
  const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (t >= v.length) return;
  const double position = (double)((past ? (int64_t)*past : 0) + t);
  for (int64_t i = threadIdx.x; i < v.columns; i += blockDim.x) {
    float c[N / 2], s[N / 2];
#pragma unroll
    for (int j = 0; j < N / 2; j++) angle(f, i * (N / 2) + j, position, sign, c[j], s[j]);
    for (int64_t b = blockIdx.z; b < v.batches; b += gridDim.z) {
      const T *from = x + b * v.xb + t * v.xt + i * N;
      T *to = y + b * v.yb + t * v.yt + i * N;
      if constexpr (SUM) turn_sum<T, N>(from, to, v, c, s);
      else turn_heads<T, N>(from, to, v, c, s);
    }
  }
}

/* Of the grid's y and z, which the kernels loop over. */
unsigned up_to_most(int64_t wanted) { return (unsigned)(wanted < 65535 ? wanted : 65535); }

template <class T, int N>
void launch_rope_by(bk_stream *stream, const bk_rope_args *a, const frequencies &f) {
  const bool sum = a->y.shape[2] == 1 && a->x.shape[2] > 1, broadcast = a->x.shape[2] == 1;
  const int64_t *xs = a->x.stride, *ys = a->y.stride, heads = sum ? a->x.shape[2] : a->y.shape[2],
                length = a->x.shape[1];
  const view v = {
      a->x.shape[0], length, heads, a->x.shape[3] / N, xs[0], xs[1], broadcast ? 0 : xs[2],
      ys[0],         ys[1],  ys[2]};
  const dim3 block = bk_block_for(v.columns, threads);
  const dim3 grid((unsigned)bk_ceil_div(length, block.y),
                  sum ? 1 : (unsigned)bk_ceil_div(heads, heads_a_thread), up_to_most(v.batches));
  const int32_t *past =
      bk_tensor_present(&a->past) ? (const int32_t *)bk_cuda_data(&a->past) : nullptr;
  const T *x = (const T *)bk_cuda_data(&a->x);
  T *y = (T *)bk_cuda_data(&a->y);
  const float sign = a->inverse ? -1.0f : 1.0f;
  if (sum)
    BK_LAUNCH((rope_kernel<T, N, true>), grid, block, 0, bk_cuda_raw(stream), x, past, y, v, sign,
              f);
  else
    BK_LAUNCH((rope_kernel<T, N, false>), grid, block, 0, bk_cuda_raw(stream), x, past, y, v, sign,
              f);
}

template <class T>
void launch_rope(bk_stream *stream, const bk_rope_args *a, const frequencies &f) {
  if (bk_tensor_count(&a->y) == 0) return;
  if (bk_packs_fit(&a->x) && bk_packs_fit(&a->y))
    launch_rope_by<T, bk_pack<T>::count>(stream, a, f);
  else launch_rope_by<T, 2>(stream, a, f);
}

/* ---- CACHE_WRITE: bits are moved, as elements E of 16, 4 or 2 bytes; the heads of a position
 * are one run of E ---- */

struct cache_view {
  int64_t batches, length, room;
  uint32_t heads, columns; /* E to a head */
  int64_t xb, xt, xh, yb, yt, yh;
};

template <class E>
__global__ void __launch_bounds__(threads)
    cache_write_kernel(const E *__restrict__ x, const int32_t *past, E *__restrict__ y,
                       cache_view v) {
  const uint32_t i = blockIdx.x * threads + threadIdx.x;
  if (i >= v.heads * v.columns) return;
  const uint32_t h = i / v.columns, c = i % v.columns;
  const int64_t first = *past;
  for (int64_t b = blockIdx.z; b < v.batches; b += gridDim.z)
    for (int64_t t = blockIdx.y; t < v.length && first + t < v.room; t += gridDim.y)
      y[b * v.yb + (first + t) * v.yt + h * v.yh + c] = x[b * v.xb + t * v.xt + h * v.xh + c];
}

template <class E>
void launch_cache_write(bk_stream *stream, const bk_cache_write_args *a) {
  const int64_t per = (int64_t)(sizeof(E) / bk_dtype_size(a->x.dtype)), *xs = a->x.stride,
                *ys = a->y.stride, length = a->x.shape[1];
  const cache_view v = {a->x.shape[0],
                        length,
                        a->y.shape[1],
                        (uint32_t)a->x.shape[2],
                        (uint32_t)(a->x.shape[3] / per),
                        xs[0] / per,
                        xs[1] / per,
                        xs[2] / per,
                        ys[0] / per,
                        ys[1] / per,
                        ys[2] / per};
  const dim3 grid((unsigned)bk_ceil_div((int64_t)v.heads * v.columns, threads), up_to_most(length),
                  up_to_most(v.batches));
  BK_LAUNCH((cache_write_kernel<E>), grid, threads, 0, bk_cuda_raw(stream),
            (const E *)bk_cuda_data(&a->x), (const int32_t *)bk_cuda_data(&a->past),
            (E *)bk_cuda_data(&a->y), v);
}

} // namespace

extern "C" BK_CUDA_LAUNCH(rope) {
  const bk_rope_args *a = (const bk_rope_args *)args;
  const int64_t width = a->x.shape[3];
  frequencies f = {};
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  f.log2_theta_by_width = log2(a->theta) / (double)width;
  for (int64_t i = 0; i < width / 2 && i < listed; i++)
    f.half_turns[i] = pow(a->theta, -2.0 * (double)i / (double)width) / M_PI;
  BK_BY_STORAGE(a->x.dtype, launch_rope, (stream, a, f));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(cache_write) {
  const bk_cache_write_args *a = (const bk_cache_write_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  if (bk_tensor_count(&a->x) == 0 || a->y.shape[1] == 0) return bk_cuda_end(stream);
  if (bk_packs_fit(&a->x) && bk_packs_fit(&a->y)) launch_cache_write<uint4>(stream, a);
  else if (a->x.dtype == BK_BF16) launch_cache_write<bk_bf16>(stream, a);
  else launch_cache_write<float>(stream, a);
  return bk_cuda_end(stream);
}
