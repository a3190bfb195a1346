/* SWIGLU and SWIGLU_BWD, elementwise over rows. A thread takes one pack of 16 bytes of each
 * operand (one element where packs do not fit); dense operands are one long row. Floor: every
 * operand once. */
#include "backends/cuda/kernels/device.cuh"
#include "backends/cuda/kernels/layers.h"

namespace {

constexpr int threads = 256;

/* Rows and their strides, in elements; `columns` in packs of the kernel's N elements. */
struct view {
  int64_t rows, columns, gate, up, dy, y, dgate, dup;
};

/* s = sigmoid(g), c = 1 - s, both without cancellation. */
BK_DEVICE void sigmoids(float g, float &s, float &c) {
  const float e = expf(-fabsf(g)), r = __fdividef(1.0f, 1.0f + e);
  s = g >= 0 ? r : e * r;
  c = g >= 0 ? e * r : r;
}

template <class T, int N>
BK_DEVICE void load(const T *p, float (&v)[N]) {
  if constexpr (N == 1) v[0] = bk_to_float(*p);
  else bk_load_pack_own(p, v);
}
template <class T, int N>
BK_DEVICE void store(T *p, const float (&v)[N]) {
  if constexpr (N == 1) *p = bk_from_float<T>(v[0]);
  else bk_store_pack_global(p, v);
}

template <class T, int N>
__global__ void __launch_bounds__(threads) swiglu_kernel(const T *gate, const T *up, T *y, view v) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y,
                step = (int64_t)gridDim.y * blockDim.x;
  if (row >= v.rows) return;
#pragma unroll 1 /* or the count of rounds is divided out */
  for (int64_t i = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; i < v.columns; i += step) {
    float g[N], u[N];
    load(gate + row * v.gate + i * N, g);
    load(up + row * v.up + i * N, u);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float s, c;
      sigmoids(g[j], s, c);
      u[j] *= g[j] * s;
    }
    store(y + row * v.y + i * N, u);
  }
}

/* dgate and dup may be gate and up: a thread has read what it overwrites. */
template <class T, int N>
__global__ void __launch_bounds__(threads)
    swiglu_bwd_kernel(const T *gate, const T *up, const T *dy, T *dgate, T *dup, view v) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y,
                step = (int64_t)gridDim.y * blockDim.x;
  if (row >= v.rows) return;
#pragma unroll 1 /* or the count of rounds is divided out */
  for (int64_t i = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; i < v.columns; i += step) {
    float g[N], u[N], d[N];
    load(gate + row * v.gate + i * N, g);
    load(up + row * v.up + i * N, u);
    load(dy + row * v.dy + i * N, d);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float s, c;
      sigmoids(g[j], s, c);
      u[j] = d[j] * u[j] * s * (1 + g[j] * c);
      g[j] = d[j] * g[j] * s;
    }
    store(dgate + row * v.dgate + i * N, u);
    store(dup + row * v.dup + i * N, g);
  }
}

bool all(bool (*holds)(const bk_tensor *), const bk_tensor *const *t, int count) {
  for (int i = 0; i < count; i++)
    if (!holds(t[i])) return false;
  return true;
}
bool fits(const bk_tensor *t) { return bk_packs_fit(t); }
/* Dense operands are one long row where packs divide their count. */
bool flat(const bk_tensor *t) {
  return bk_tensor_contiguous(t) && t->offset % 16 == 0 &&
         (size_t)bk_tensor_count(t) * bk_dtype_size(t->dtype) % 16 == 0;
}

struct shape {
  view v;
  dim3 grid, block;
  bool packs;
};
shape shape_of(const bk_tensor *const *t, int count, int pack) {
  shape s = {};
  const bool one_row = all(flat, t, count);
  s.packs = one_row || all(fits, t, count);
  s.v.rows = one_row ? 1 : t[0]->shape[0];
  s.v.columns = (one_row ? bk_tensor_count(t[0]) : t[0]->shape[1]) / (s.packs ? pack : 1);
  s.block = bk_block_for(s.v.columns, threads);
  const int64_t across = bk_ceil_div(s.v.columns, s.block.x);

  s.grid =
      dim3((unsigned)bk_ceil_div(s.v.rows, s.block.y), (unsigned)(across < 65535 ? across : 65535));
  return s;
}

template <class T>
void launch_swiglu(bk_stream *stream, const bk_swiglu_args *a) {
  const bk_tensor *const t[] = {&a->gate, &a->up, &a->y};
  constexpr int n = bk_pack<T>::count;
  shape s = shape_of(t, 3, n);
  const T *gate = (const T *)bk_cuda_data(&a->gate), *up = (const T *)bk_cuda_data(&a->up);
  T *y = (T *)bk_cuda_data(&a->y);
  s.v.gate = a->gate.stride[0], s.v.up = a->up.stride[0], s.v.y = a->y.stride[0];
  if (bk_tensor_count(&a->y) == 0) return;
  if (s.packs)
    BK_LAUNCH((swiglu_kernel<T, n>), s.grid, s.block, 0, bk_cuda_raw(stream), gate, up, y, s.v);
  else BK_LAUNCH((swiglu_kernel<T, 1>), s.grid, s.block, 0, bk_cuda_raw(stream), gate, up, y, s.v);
}

template <class T>
void launch_swiglu_bwd(bk_stream *stream, const bk_swiglu_bwd_args *a) {
  const bk_tensor *const t[] = {&a->gate, &a->up, &a->dy, &a->dgate, &a->dup};
  constexpr int n = bk_pack<T>::count;
  shape s = shape_of(t, 5, n);
  const T *gate = (const T *)bk_cuda_data(&a->gate), *up = (const T *)bk_cuda_data(&a->up),
          *dy = (const T *)bk_cuda_data(&a->dy);
  T *dgate = (T *)bk_cuda_data(&a->dgate), *dup = (T *)bk_cuda_data(&a->dup);
  s.v.gate = a->gate.stride[0], s.v.up = a->up.stride[0], s.v.dy = a->dy.stride[0];
  s.v.dgate = a->dgate.stride[0], s.v.dup = a->dup.stride[0];
  if (bk_tensor_count(&a->dy) == 0) return;
  if (s.packs)
    BK_LAUNCH((swiglu_bwd_kernel<T, n>), s.grid, s.block, 0, bk_cuda_raw(stream), gate, up, dy,
              dgate, dup, s.v);
  else
    BK_LAUNCH((swiglu_bwd_kernel<T, 1>), s.grid, s.block, 0, bk_cuda_raw(stream), gate, up, dy,
              dgate, dup, s.v);
}

} // namespace

extern "C" BK_CUDA_LAUNCH(swiglu) {
  const bk_swiglu_args *a = (const bk_swiglu_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->gate.dtype, launch_swiglu, (stream, a));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(swiglu_bwd) {
  const bk_swiglu_bwd_args *a = (const bk_swiglu_bwd_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->gate.dtype, launch_swiglu_bwd, (stream, a));
  return bk_cuda_end(stream);
}
