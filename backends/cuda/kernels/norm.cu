/* RMSNORM and RMSNORM_BWD.
 *
 * Rows of whole packs are read once and kept in registers as they lie in memory. Forward: a warp
 * a row up to 128 packs, else a block a row up to 4096. Backward: a warp up to 512 columns, a
 * block up to 8192. Floor: x and y once; backward x, dy and dx once, for dx and dw together.
 *
 * Backward: a block (its warps) goes through a chunk of rows, always with the same columns in
 * the same threads, and keeps its part of dw in registers; stage two adds the chunks' parts to
 * dw. Chunks follow from the shape alone. Rows of other widths or alignments, and very long
 * ones: element by element, read once more for each use. */
#include "backends/cuda/kernels/device.cuh"
#include "backends/cuda/kernels/layers.h"

namespace {

/* rows, so warps, of a block that has a warp a row */
constexpr int any_threads = 256, warp_rows = 4;

template <class T>
BK_DEVICE uint4 load_raw(const T *row, int pack) {
  return __ldg(reinterpret_cast<const uint4 *>(row) + pack);
}

/* ---- forward ---- */

struct forward {
  int64_t rows, xs, ys; /* strides of rows */
  int packs;            /* of a row; the any-width kernel: columns */
  float inv_width, eps;
};

/* K packs of the row in each thread. */
template <class T, int K, bool WARP>
__global__ void __launch_bounds__(1024)
    rows_kernel(const T *x, const float *w, T *y, float *rstd, forward f) {
  constexpr int n = bk_pack<T>::count;
  __shared__ float shared[BK_WARP];
  const int lanes = WARP ? BK_WARP : (int)blockDim.x,
            lane = WARP ? (int)threadIdx.x % BK_WARP : (int)threadIdx.x;
  const int64_t row =
      WARP ? (int64_t)blockIdx.x * warp_rows + threadIdx.x / BK_WARP : (int64_t)blockIdx.x;
  if (WARP && row >= f.rows) return;
  uint4 raw[K] = {}; /* zeros where the row has ended: nothing to a sum */
  float sum = 0;
#pragma unroll
  for (int k = 0; k < K; k++)
    if (lane + k * lanes < f.packs) raw[k] = load_raw(x + row * f.xs, lane + k * lanes);
#pragma unroll
  for (int k = 0; k < K; k++) {
    float v[n];
    bk_unpack(raw[k], v);
#pragma unroll
    for (int j = 0; j < n; j++) sum += v[j] * v[j];
  }
  sum = WARP ? bk_warp_sum(sum) : bk_block_sum(sum, shared);
  const float r = 1 / sqrtf(sum * f.inv_width + f.eps);
  if (rstd && lane == 0) rstd[row] = r;
#pragma unroll
  for (int k = 0; k < K; k++)
    if (lane + k * lanes < f.packs) {
      const int at = (lane + k * lanes) * n;
      float v[n], g[n];
      bk_unpack(raw[k], v);
      bk_load_floats(w + at, g);
#pragma unroll
      for (int j = 0; j < n; j++) v[j] *= r * g[j];
      bk_store_pack_global(y + row * f.ys + at, v);
    }
}

template <class T>
__global__ void __launch_bounds__(any_threads)
    rows_any_kernel(const T *x, const float *w, T *y, float *rstd, forward f) {
  __shared__ float shared[BK_WARP];
  const int64_t row = blockIdx.x;
  float sum = 0;
  for (int c = (int)threadIdx.x; c < f.packs; c += (int)blockDim.x) {
    const float v = bk_to_float(x[row * f.xs + c]);
    sum += v * v;
  }
  sum = bk_block_sum(sum, shared);
  const float r = 1 / sqrtf(sum * f.inv_width + f.eps);
  if (rstd && threadIdx.x == 0) rstd[row] = r;
  for (int c = (int)threadIdx.x; c < f.packs; c += (int)blockDim.x)
    y[row * f.ys + c] = bk_from_float<T>(bk_to_float(x[row * f.xs + c]) * r * w[c]);
}

/* Whole warps for `count` items, up to `most`. */
unsigned warps_for(int64_t count, unsigned most) {
  const int64_t wanted = bk_ceil_div(count, BK_WARP) * BK_WARP;
  return wanted < most ? (unsigned)wanted : most;
}

template <class T>
void launch_forward(bk_stream *stream, const bk_rmsnorm_args *a) {
  const int64_t rows = a->x.shape[0], width = a->x.shape[1];
  const int packs = (int)(width / bk_pack<T>::count);
  const T *x = (const T *)bk_cuda_data(&a->x);
  const float *w = (const float *)bk_cuda_data(&a->w);
  float *rstd = bk_tensor_present(&a->rstd) ? (float *)bk_cuda_data(&a->rstd) : nullptr;
  T *y = (T *)bk_cuda_data(&a->y);
  cudaStream_t raw = bk_cuda_raw(stream);
  forward f = {rows, a->x.stride[0], a->y.stride[0], packs, 1.0f / (float)width, (float)a->eps};
  const unsigned by_warp = (unsigned)bk_ceil_div(rows, warp_rows), by_block = (unsigned)rows;
  if (rows == 0 || width == 0) return;
  if (!bk_packs_fit(&a->x) || !bk_packs_fit(&a->y) || a->w.offset % 16 != 0 || packs > 4096) {
    f.packs = (int)width;
    BK_LAUNCH((rows_any_kernel<T>), by_block, warps_for(width, any_threads), 0, raw, x, w, y, rstd,
              f);
  } else if (packs <= 32)
    BK_LAUNCH((rows_kernel<T, 1, true>), by_warp, warp_rows * BK_WARP, 0, raw, x, w, y, rstd, f);
  else if (packs <= 64)
    BK_LAUNCH((rows_kernel<T, 2, true>), by_warp, warp_rows * BK_WARP, 0, raw, x, w, y, rstd, f);
  else if (packs <= 128)
    BK_LAUNCH((rows_kernel<T, 4, true>), by_warp, warp_rows * BK_WARP, 0, raw, x, w, y, rstd, f);
  else
    BK_LAUNCH((rows_kernel<T, 4, false>), by_block, warps_for(bk_ceil_div(packs, 4), 1024), 0, raw,
              x, w, y, rstd, f);
}

/* ---- backward ---- */

/* With xh = x rstd: dw = sum_i dy xh, dx = rstd (dy w - xh mean(dy w xh)). */
struct backward {
  int64_t rows, chunk; /* rows a block */
  int64_t xs, dys, dxs;
  int packs, width;
  float inv_width;
  bool accumulate;
};

/* dx of a pack, from x and dy as floats; g = w. */
template <class T, int N>
BK_DEVICE void put_dx(T *dx, const float (&x)[N], const float (&dy)[N], const float *w, float r,
                      float mean, bool add) {
  float g[N], v[N];
  bk_load_floats(w, g);
#pragma unroll
  for (int j = 0; j < N; j++) v[j] = r * (dy[j] * g[j] - x[j] * r * mean);
  if (add) {
    float old[N];
    bk_load_pack_own(dx, old);
#pragma unroll
    for (int j = 0; j < N; j++) v[j] += old[j];
  }
  bk_store_pack_global(dx, v);
}

/* The warps' parts of dw, in the order of the warps. */
template <int K, int N>
BK_DEVICE void put_dw_of_warps(const float (&acc)[K][N], float *shared, float *part,
                               const backward &b) {
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP;
#pragma unroll
  for (int k = 0; k < K; k++)
#pragma unroll
    for (int j = 0; j < N; j++)
      if (lane + k * BK_WARP < b.packs)
        shared[warp * b.width + (lane + k * BK_WARP) * N + j] = acc[k][j];
  __syncthreads();
  for (int c = (int)threadIdx.x; c < b.width; c += warp_rows * BK_WARP) {
    float sum = shared[c];
#pragma unroll
    for (int i = 1; i < warp_rows; i++) sum += shared[i * b.width + c];
    part[c] = sum;
  }
}

template <int K, int N>
BK_DEVICE void put_dw_of_block(const float (&acc)[K][N], float *part, const backward &b) {
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int pack = (int)(threadIdx.x + k * blockDim.x);
#pragma unroll
    for (int j = 0; j < N; j += 4)
      if (pack < b.packs)
        bk_store_pack_global(part + pack * N + j,
                             {acc[k][j], acc[k][j + 1], acc[k][j + 2], acc[k][j + 3]});
  }
}

template <class T, int K, bool WARP, bool DX, bool DW>
__global__ void __launch_bounds__(WARP ? warp_rows *BK_WARP : 512, WARP ? 4 : 2)
    backward_kernel(const T *x, const float *w, const float *rstd, const T *dy, T *dx, float *parts,
                    backward b) {
  constexpr int n = bk_pack<T>::count;
  __shared__ float shared[BK_WARP];
  const int lanes = WARP ? BK_WARP : (int)blockDim.x,
            lane = WARP ? (int)threadIdx.x % BK_WARP : (int)threadIdx.x;
  const int64_t begin = (int64_t)blockIdx.x * b.chunk,
                end = begin + b.chunk < b.rows ? begin + b.chunk : b.rows;
  float acc[DW ? K : 1][n] = {};
  for (int64_t row = begin + (WARP ? threadIdx.x / BK_WARP : 0); row < end;
       row += WARP ? warp_rows : 1) {
    const float r = rstd[row];
    uint4 xr[K] = {}, yr[K] = {};
    float dot = 0;
#pragma unroll
    for (int k = 0; k < K; k++)
      if (lane + k * lanes < b.packs) {
        xr[k] = load_raw(x + row * b.xs, lane + k * lanes);
        yr[k] = load_raw(dy + row * b.dys, lane + k * lanes);
      }
#pragma unroll
    for (int k = 0; k < K; k++)
      if (lane + k * lanes < b.packs) {
        float xv[n], yv[n], g[n];
        bk_unpack(xr[k], xv);
        bk_unpack(yr[k], yv);
        if constexpr (DX) bk_load_floats(w + (lane + k * lanes) * n, g);
#pragma unroll
        for (int j = 0; j < n; j++) {
          const float product = yv[j] * xv[j];
          if constexpr (DX) dot += product * g[j];
          if constexpr (DW) acc[k][j] += product * r;
        }
      }
    if constexpr (DX) {
      const float mean = (WARP ? bk_warp_sum(dot) : bk_block_sum(dot, shared)) * r * b.inv_width;
#pragma unroll
      for (int k = 0; k < K; k++)
        if (lane + k * lanes < b.packs) {
          const int at = (lane + k * lanes) * n;
          float xv[n], yv[n];
          bk_unpack(xr[k], xv);
          bk_unpack(yr[k], yv);
          put_dx<T, n>(dx + row * b.dxs + at, xv, yv, w + at, r, mean, b.accumulate);
        }
    }
  }
  if constexpr (DW) {
    BK_SHARED_DYNAMIC(float, columns);
    float *part = parts + (int64_t)blockIdx.x * b.width;
    if constexpr (WARP) put_dw_of_warps<K, n>(acc, columns, part, b);
    else put_dw_of_block<K, n>(acc, part, b);
  }
}

template <class T>
__global__ void __launch_bounds__(any_threads)
    dx_any_kernel(const T *x, const float *w, const float *rstd, const T *dy, T *dx, backward b) {
  __shared__ float shared[BK_WARP];
  const int64_t row = blockIdx.x;
  const float r = rstd[row];
  float dot = 0;
  x += row * b.xs, dy += row * b.dys, dx += row * b.dxs;
  for (int c = (int)threadIdx.x; c < b.width; c += (int)blockDim.x)
    dot += bk_to_float(dy[c]) * w[c] * bk_to_float(x[c]);
  const float mean = bk_block_sum(dot, shared) * r * b.inv_width;
  for (int c = (int)threadIdx.x; c < b.width; c += (int)blockDim.x) {
    float v = r * (bk_to_float(dy[c]) * w[c] - bk_to_float(x[c]) * r * mean);
    if (b.accumulate) v += bk_to_float(dx[c]);
    dx[c] = bk_from_float<T>(v);
  }
}

/* A thread a column, the grid's y the chunks. */
template <class T>
__global__ void __launch_bounds__(any_threads)
    dw_any_kernel(const T *x, const float *rstd, const T *dy, float *parts, backward b) {
  const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  const int64_t begin = (int64_t)blockIdx.y * b.chunk,
                end = begin + b.chunk < b.rows ? begin + b.chunk : b.rows;
  if (c >= b.width) return;
  float sum = 0;
#pragma unroll 4
  for (int64_t row = begin; row < end; row++)
    sum += bk_to_float(dy[row * b.dys + c]) * bk_to_float(x[row * b.xs + c]) * rstd[row];
  parts[(int64_t)blockIdx.y * b.width + c] = sum;
}

/* Stage two: a block 32 columns, each warp every eighth part. */
__global__ void __launch_bounds__(any_threads)
    dw_kernel(const float *parts, int count, int width, float *dw) {
  constexpr int warps = any_threads / BK_WARP;
  __shared__ float shared[warps][BK_WARP];
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP,
            c = (int)blockIdx.x * BK_WARP + lane;
  float sum = 0;
  if (c < width)
#pragma unroll 4
    for (int i = warp; i < count; i += warps) sum += parts[(int64_t)i * width + c];
  shared[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || c >= width) return;
#pragma unroll
  for (int i = 1; i < warps; i++) sum += shared[i][lane];
  dw[c] += sum;
}

/* How a shape is done: K packs a thread and a warp or a block a row, or element by element; rows
 * a chunk, chunks. */
enum way { BY_WARP_8, BY_WARP_16, BY_BLOCK, BY_ELEMENT };
struct scheme {
  way how;
  int64_t chunk, chunks;
};

/* Chunks of dw: at least `least` rows each, at most `most` of them. */
scheme chunked(way how, int64_t rows, int64_t least, int64_t most) {
  const int64_t even = bk_ceil_div(rows, most), chunk = even < least ? least : even;
  return {how, chunk, bk_ceil_div(rows, chunk)};
}
scheme scheme_of(const bk_rmsnorm_bwd_args *a) {
  const bool has_dx = bk_tensor_present(&a->dx), has_dw = bk_tensor_present(&a->dw);
  const int64_t rows = a->x.shape[0], width = a->x.shape[1];
  const bool packs = bk_packs_fit(&a->x) && bk_packs_fit(&a->dy) &&
                     (!has_dx || bk_packs_fit(&a->dx)) && a->w.offset % 16 == 0;
  if (!packs || width > 8192) return chunked(BY_ELEMENT, rows, 16, 256);
  if (width <= 512)
    return chunked(width <= 256 ? BY_WARP_8 : BY_WARP_16, rows, has_dw ? 16 : warp_rows,
                   has_dw ? 1024 : rows);
  return chunked(BY_BLOCK, rows, has_dw ? 4 : 1, has_dw ? 512 : rows);
}

struct pointers {
  const void *x, *dy;
  const float *w, *rstd;
  void *dx;
  float *parts;
};

template <class T, int K, bool WARP>
void launch_packs(bk_stream *stream, const pointers &p, const backward &b, int64_t chunks) {
  const unsigned block = WARP ? warp_rows * BK_WARP : warps_for(bk_ceil_div(b.packs, K), 512),
                 grid = (unsigned)chunks;
  const size_t shared = WARP && p.parts ? (size_t)warp_rows * (size_t)b.width * sizeof(float) : 0;
  const T *x = (const T *)p.x, *dy = (const T *)p.dy;
  T *dx = (T *)p.dx;
  cudaStream_t raw = bk_cuda_raw(stream);
  if (dx && p.parts)
    BK_LAUNCH((backward_kernel<T, K, WARP, true, true>), grid, block, shared, raw, x, p.w, p.rstd,
              dy, dx, p.parts, b);
  else if (dx)
    BK_LAUNCH((backward_kernel<T, K, WARP, true, false>), grid, block, shared, raw, x, p.w, p.rstd,
              dy, dx, p.parts, b);
  else
    BK_LAUNCH((backward_kernel<T, K, WARP, false, true>), grid, block, shared, raw, x, p.w, p.rstd,
              dy, dx, p.parts, b);
}

template <class T>
void launch_elements(bk_stream *stream, const pointers &p, const backward &b, int64_t chunks) {
  const unsigned block = warps_for(b.width, any_threads);
  const T *x = (const T *)p.x, *dy = (const T *)p.dy;
  if (p.dx)
    BK_LAUNCH((dx_any_kernel<T>), (unsigned)b.rows, block, 0, bk_cuda_raw(stream), x, p.w, p.rstd,
              dy, (T *)p.dx, b);
  if (p.parts) {
    const dim3 grid((unsigned)bk_ceil_div(b.width, block), (unsigned)chunks);
    BK_LAUNCH((dw_any_kernel<T>), grid, block, 0, bk_cuda_raw(stream), x, p.rstd, dy, p.parts, b);
  }
}

template <class T>
void launch_backward(bk_stream *stream, const bk_rmsnorm_bwd_args *a, bk_place workspace) {
  constexpr int n = bk_pack<T>::count;
  const bool has_dx = bk_tensor_present(&a->dx), has_dw = bk_tensor_present(&a->dw);
  const int64_t rows = a->x.shape[0], width = a->x.shape[1];
  const scheme s = scheme_of(a);
  const pointers p = {bk_cuda_data(&a->x),
                      bk_cuda_data(&a->dy),
                      (const float *)bk_cuda_data(&a->w),
                      (const float *)bk_cuda_data(&a->rstd),
                      has_dx ? bk_cuda_data(&a->dx) : nullptr,
                      has_dw ? (float *)bk_cuda_place(workspace) : nullptr};
  const backward b = {rows,
                      s.chunk,
                      a->x.stride[0],
                      a->dy.stride[0],
                      has_dx ? a->dx.stride[0] : 0,
                      (int)(width / n),
                      (int)width,
                      1.0f / (float)width,
                      a->accumulate};
  if (rows == 0 || width == 0 || (!has_dx && !has_dw)) return;
  if (s.how == BY_WARP_8) launch_packs<T, 8 / n, true>(stream, p, b, s.chunks);
  else if (s.how == BY_WARP_16) launch_packs<T, 16 / n, true>(stream, p, b, s.chunks);
  else if (s.how == BY_BLOCK) launch_packs<T, 16 / n, false>(stream, p, b, s.chunks);
  else launch_elements<T>(stream, p, b, s.chunks);
  if (has_dw)
    BK_LAUNCH((dw_kernel), (unsigned)bk_ceil_div(width, BK_WARP), any_threads, 0,
              bk_cuda_raw(stream), p.parts, (int)s.chunks, (int)width,
              (float *)bk_cuda_data(&a->dw));
}

} // namespace

extern "C" BK_CUDA_LAUNCH(rmsnorm) {
  const bk_rmsnorm_args *a = (const bk_rmsnorm_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_forward, (stream, a));
  return bk_cuda_end(stream);
}

/* The offsets of planned tensors are final when they are run, not when they are prepared: room
 * for either way. */
extern "C" BK_CUDA_PREPARE(rmsnorm_bwd) {
  const bk_rmsnorm_bwd_args *a = (const bk_rmsnorm_bwd_args *)args;
  (void)device, (void)state;
  const int64_t rows = a->x.shape[0], width = a->x.shape[1], most = width <= 512 ? 1024 : 512,
                chunks = bk_ceil_div(rows, 4);
  *workspace_bytes = bk_tensor_present(&a->dw)
                         ? (size_t)((chunks < most ? chunks : most) * width) * sizeof(float)
                         : 0;
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(rmsnorm_bwd) {
  const bk_rmsnorm_bwd_args *a = (const bk_rmsnorm_bwd_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_backward, (stream, a, workspace));
  return bk_cuda_end(stream);
}
