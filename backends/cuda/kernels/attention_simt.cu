/* ATTENTION and ATTENTION_BWD for any widths up to 256, any alignment, fp32 and bf16, all
 * arithmetic in fp32 on the ordinary units.
 *
 * A block of 256 threads, 16 x 16 (ty, tx), has a tile of 64 queries and loops over tiles of 64
 * keys, or the other way round. All products are of two kinds: `dot_tile` (depth is a row's
 * width: q k^T, dout v^T), 32 of the width at a time through shared memory, and `outer_tile`
 * (depth is positions: p v, p^T dout, ds k, ds^T q), 16 positions at a time. A thread's part of
 * the scores is 4 rows x 4 columns, of the outputs 4 rows x (width / 16) columns, in registers.
 * Memory is linear in T: scores never leave the block. The backward is three kernels, so that
 * nothing is added by atomics: delta and lse; dk and dv by tiles of keys; dq by tiles of queries
 * (scores once more). Floor: flops for each pair of a query and a key it sees, 2 (Dk + Dv)
 * forward, 8 Dk + 6 Dv backward (of which 2 (Dk + Dv) are scores and dp once more), over the
 * fp32 rate. */
#include "backends/cuda/kernels/attention.cuh"

namespace {

constexpr int threads = 256, side = 64, depth = 32, slab = 16;
constexpr int stage_floats = 2 * side * depth; /* also slab * 256 */

/* ---- the two products ---- */

/* Column of row r at depth d in a staged tile: fours of rows are exchanged, so that neither the
 * writes (8 d x 4 rows a warp) nor the reads (fours of rows) meet in a bank. */
BK_DEVICE int turned(int r, int d) { return r ^ (d & 7) << 2; }

/* stage[d][row] = x[row][from + d], zero outside. */
template <int ROWS, class T>
BK_DEVICE void stage_turned(float *stage, bk_att_rows<const T> x, int rows, int from) {
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP;
  const int r0 = warp / 4 * 4 + lane / 8, d = warp % 4 * 8 + lane % 8;
  const bool inside = from + d < x.width;
  const T *at = x.at + r0 * x.stride + from + d;
#pragma unroll 4
  for (int r = r0, n = 0; n < ROWS / 8; n++, r += 8, at += 8 * x.stride)
    stage[d * ROWS + turned(r, d)] = inside && r < rows ? bk_to_float(*at) : 0.0f;
}

template <int N>
BK_DEVICE void load_some(float (&v)[N], const float *p) {
  static_assert(N == 2 || N == 4, "a thread has two or four rows");
  if constexpr (N == 4) {
    const float4 x = *reinterpret_cast<const float4 *>(p);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
  } else {
    const float2 x = *reinterpret_cast<const float2 *>(p);
    v[0] = x.x, v[1] = x.y;
  }
}

/* acc[i][j] = a[4 ty + i] . b[N tx + j]: a tile of 64 rows with a tile of 16 N. All threads call
 * it; stage is free afterwards. */
template <int N, class T>
BK_DEVICE void dot_tile(float (&acc)[4][N], float *stage, bk_att_rows<const T> a, int a_rows,
                        bk_att_rows<const T> b, int b_rows) {
  const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
  float *stage_b = stage + side * depth;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < N; j++) acc[i][j] = 0;
  for (int from = 0; from < a.width; from += depth) {
    stage_turned<side>(stage, a, a_rows, from);
    stage_turned<16 * N>(stage_b, b, b_rows, from);
    __syncthreads();
#pragma unroll 4
    for (int d = 0; d < depth; d++) {
      float x[4], y[N];
      load_some(x, stage + d * side + turned(4 * ty, d));
      load_some(y, stage_b + d * 16 * N + turned(N * tx, d));
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < N; j++) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
    }
    __syncthreads();
  }
}

/* Where p's row of four stands: p[j][row] with rows exchanged by fours (written by columns), or
 * plain. */
template <bool TURNED>
BK_DEVICE int weight_at(int j, int row, int rows) {
  return TURNED ? j * side + (row ^ (j >> 2 & 15) << 2) : j * rows + row;
}

/* p[4 tx + j][4 ty + i] = s[i][j]. */
BK_DEVICE void store_turned(float *p, const float (&s)[4][4]) {
  const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
#pragma unroll
  for (int j = 0; j < 4; j++)
    *reinterpret_cast<float4 *>(p + weight_at<true>(4 * tx + j, 4 * ty, side)) =
        make_float4(s[0][j], s[1][j], s[2][j], s[3][j]);
}

/* acc[i][4 g + c] += sum_j p[j][N ty + i] x[j][64 g + 4 tx + c], j < count <= 64. All threads
 * call it; p must have been written before, a barrier between is here; stage and p are free
 * afterwards. */
template <int N, int D, bool TURNED, class T>
BK_DEVICE void outer_tile(float (&acc)[N][D / 16], const float *p, float *stage,
                          bk_att_rows<const T> x, int count) {
  const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16,
            lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP;
  for (int from = 0; from < count; from += slab) {
#pragma unroll 1
    for (int j = warp; j < slab; j += threads / BK_WARP) {
      const T *at = x.at + (from + j) * x.stride + lane;
#pragma unroll(D % 96 ? 4 : 3)
      for (int c = 0; c < D; c += BK_WARP)
        stage[j * D + c + lane] =
            from + j < count && c + lane < x.width ? bk_to_float(at[c]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 2
    for (int j = 0; j < slab; j++) {
      float w[N];
      load_some(w, p + weight_at<TURNED>(from + j, N * ty, 16 * N));
#pragma unroll
      for (int g = 0; g < D / 64; g++) {
        float v[4];
        load_some(v, stage + j * D + 64 * g + 4 * tx);
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
          for (int c = 0; c < 4; c++) acc[i][4 * g + c] = fmaf(w[i], v[c], acc[i][4 * g + c]);
      }
    }
    __syncthreads();
  }
}

template <int N, int D, class T>
BK_DEVICE void store_rows(bk_att_rows<T> y, int rows, const float (&acc)[N][D / 16],
                          const float (&factor)[N]) {
  const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
      const int column = c / 4 * 64 + 4 * tx + c % 4;
      if (N * ty + i < rows && column < y.width)
        y.at[(N * ty + i) * y.stride + column] = bk_from_float<T>(acc[i][c] * factor[i]);
    }
}

template <class T>
BK_DEVICE bk_att_rows<T> rows_from(bk_att_rows<T> x, int first) {
  return {x.at + first * x.stride, x.stride, x.width};
}

/* ---- forward ---- */

template <class T>
struct forward_args {
  bk_att_view<const T> q, k, v;
  bk_att_view<T> o;
  bk_att_lse lse;
  const int *past;
  int queries, positions;
  float exponent;
  bk_att_order order;
};

BK_DEVICE float row_max(float x) { /* over the 16 threads of a row */
#pragma unroll
  for (int d = 8; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(BK_FULL_MASK, x, d));
  return x;
}
BK_DEVICE float row_sum(float x) {
#pragma unroll
  for (int d = 8; d > 0; d >>= 1) x += __shfl_xor_sync(BK_FULL_MASK, x, d);
  return x;
}

/* One row's scores become weights; returns what the row's earlier sums are to be multiplied by.
 * `seen` keys of this tile count. */
BK_DEVICE float soften(float (&s)[4], int seen, float exponent, float &most, float &sum) {
  const int tx = (int)threadIdx.x % 16;
  float top = -INFINITY;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    s[j] = 4 * tx + j < seen ? s[j] * exponent : -INFINITY;
    top = fmaxf(top, s[j]);
  }
  top = fmaxf(most, row_max(top));
  const float base = top == -INFINITY ? 0.0f : top,
              shrink = top == most ? 1.0f : exp2f(most - base);
  float total = 0;
#pragma unroll
  for (int j = 0; j < 4; j++) total += s[j] = exp2f(s[j] - base);
  most = top;
  sum = sum * shrink + total;
  return shrink;
}

template <class T, int DV>
__global__ void __launch_bounds__(threads, DV > 128 ? 1 : 2) forward_kernel(forward_args<T> a) {
  __shared__ __align__(16) float stage[stage_floats], p[side * side];
  const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
  const bk_att_tile at = bk_att_find(a.order);
  const bk_att_span span = bk_att_span_of(a.past, a.queries, a.positions);
  const int first = at.tile * side, rows = min(side, a.queries - first),
            end = min(span.past + first + rows, span.keys);
  const bk_att_rows<const T> q = rows_from(a.q.head(at.b, at.h), first), k = a.k.head(at.b, at.h),
                             v = a.v.head(at.b, at.h);
  float o[4][DV / 16] = {}, most[4], sum[4] = {};
#pragma unroll
  for (int i = 0; i < 4; i++) most[i] = -INFINITY;
  for (int key = 0; key < end; key += side) {
    float s[4][4];
    const int count = min(side, end - key);
    dot_tile(s, stage, q, rows, rows_from(k, key), count);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float shrink = soften(s[i], min(span.past + first + 4 * ty + i + 1 - key, count),
                                  a.exponent, most[i], sum[i]);
#pragma unroll
      for (int c = 0; c < DV / 16; c++) o[i][c] *= shrink;
    }
    store_turned(p, s);
    outer_tile<4, DV, true>(o, p, stage, rows_from(v, key), count);
  }
  float factor[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    sum[i] = row_sum(sum[i]);
    factor[i] = 1.0f / sum[i];
    if (a.lse.data && tx == 0 && 4 * ty + i < rows)
      a.lse.row(at.b, at.h)[first + 4 * ty + i] =
          (float)(1 / BK_ATT_LOG2E) * most[i] + logf(sum[i]);
  }
  store_rows<4, DV>(rows_from(a.o.head(at.b, at.h), first), rows, o, factor);
}

template <class T>
void forward(bk_stream *stream, const bk_attention_args *a) {
  const forward_args<T> f = {
      bk_att_view_of<const T>(&a->q),
      bk_att_view_of<const T>(&a->k),
      bk_att_view_of<const T>(&a->v),
      bk_att_view_of<T>(&a->o),
      bk_att_lse_of(&a->lse),
      (const int *)bk_cuda_data(&a->past),
      (int)a->q.shape[1],
      (int)a->k.shape[1],
      (float)(a->scale * BK_ATT_LOG2E),
      bk_att_order_of(&a->q, bk_ceil_div(a->q.shape[1], side),
                      a->k.shape[1] * (a->q.shape[3] + a->v.shape[3]) * (int64_t)sizeof(T), true)};
  const unsigned blocks = bk_att_blocks(f.order);
  if (blocks == 0) return;
  if (f.v.width <= 64)
    BK_LAUNCH((forward_kernel<T, 64>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else if (f.v.width <= 128)
    BK_LAUNCH((forward_kernel<T, 128>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else BK_LAUNCH((forward_kernel<T, 256>), blocks, threads, 0, bk_cuda_raw(stream), f);
}

/* ---- backward ---- */

template <class T>
struct backward_args {
  bk_att_view<const T> q, k, v, dout;
  bk_att_view<T> dq, dk, dv;
  const float *lse2, *delta; /* [B H, padded] */
  int queries, padded;
  float exponent, scale;
  bk_att_order order;
};

constexpr int delta_lanes = 16;

/* 16 threads a position. */
template <class T>
__global__ void __launch_bounds__(threads)
    delta_kernel(bk_att_view<const T> o, bk_att_view<const T> dout, bk_att_lse lse, float *lse2,
                 float *delta, int queries, int padded, bk_att_order order) {
  const bk_att_tile at = bk_att_find(order);
  const int t = at.tile * (threads / delta_lanes) + (int)threadIdx.x / delta_lanes,
            lane = (int)threadIdx.x % delta_lanes;
  float sum = 0;
  if (t < queries) {
    const T *x = o.head(at.b, at.h).at + t * o.t, *y = dout.head(at.b, at.h).at + t * dout.t;
    for (int c = lane; c < o.width; c += delta_lanes)
      sum = fmaf(bk_to_float(x[c]), bk_to_float(y[c]), sum);
  }
  sum = row_sum(sum);
  if (lane == 0) {
    const int64_t to = (int64_t)at.pair * padded + t;
    lse2[to] = t < queries ? lse.row(at.b, at.h)[t] * (float)BK_ATT_LOG2E : 0.0f;
    delta[to] = sum;
  }
}

/* p = exp2(score - lse2) where the query sees the key; queries 4 ty + i from `query`, keys N tx
 * + j from `key`. */
template <int N, class T>
BK_DEVICE void weights(float (&s)[4][N], const backward_args<T> &a, const float *lse2, int query,
                       int key) {
  const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
  float l[4];
  load_some(l, lse2 + query + 4 * ty);
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < N; j++)
      s[i][j] = key + N * tx + j <= query + 4 * ty + i ? exp2f(s[i][j] * a.exponent - l[i]) : 0.0f;
}

/* dk and dv of 16 N keys. */
template <class T, int DK, int DV, int N>
__global__ void __launch_bounds__(threads, 1) key_kernel(backward_args<T> a) {
  __shared__ __align__(16) float stage[stage_floats], p[side * 16 * N];
  const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
  const bk_att_tile at = bk_att_find(a.order);
  const int first = at.tile * 16 * N, rows = min(16 * N, a.queries - first);
  const bk_att_rows<const T> q = a.q.head(at.b, at.h), dout = a.dout.head(at.b, at.h);
  const bk_att_rows<const T> k = rows_from(a.k.head(at.b, at.h), first),
                             v = rows_from(a.v.head(at.b, at.h), first);
  const float *lse2 = a.lse2 + (int64_t)at.pair * a.padded,
              *delta = a.delta + (int64_t)at.pair * a.padded;
  float dk[N][DK / 16] = {}, dv[N][DV / 16] = {};
  for (int query = first / side * side; query < a.queries; query += side) {
    float s[4][N], d[4];
    float *mine = p + 4 * ty * 16 * N + N * tx;
    const int count = min(side, a.queries - query);
    dot_tile(s, stage, rows_from(q, query), count, k, rows);
    weights(s, a, lse2, query, first);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < N; j++) mine[i * 16 * N + j] = s[i][j];
    outer_tile<N, DV, false>(dv, p, stage, rows_from(dout, query), count);
    dot_tile(s, stage, rows_from(dout, query), count, v, rows);
    load_some(d, delta + query + 4 * ty);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < N; j++) mine[i * 16 * N + j] *= s[i][j] - d[i];
    outer_tile<N, DK, false>(dk, p, stage, rows_from(q, query), count);
  }
  float one[N], scale[N];
#pragma unroll
  for (int i = 0; i < N; i++) one[i] = 1, scale[i] = a.scale;
  store_rows<N, DK>(rows_from(a.dk.head(at.b, at.h), first), rows, dk, scale);
  store_rows<N, DV>(rows_from(a.dv.head(at.b, at.h), first), rows, dv, one);
}

/* dq of 64 queries. */
template <class T, int DK>
__global__ void __launch_bounds__(threads, DK > 128 ? 1 : 2) query_kernel(backward_args<T> a) {
  __shared__ __align__(16) float stage[stage_floats], p[side * side];
  const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
  const bk_att_tile at = bk_att_find(a.order);
  const int first = at.tile * side, rows = min(side, a.queries - first), end = first + rows;
  const bk_att_rows<const T> q = rows_from(a.q.head(at.b, at.h), first),
                             dout = rows_from(a.dout.head(at.b, at.h), first);
  const bk_att_rows<const T> k = a.k.head(at.b, at.h), v = a.v.head(at.b, at.h);
  const float *lse2 = a.lse2 + (int64_t)at.pair * a.padded;
  float dq[4][DK / 16] = {};
  for (int key = 0; key < end; key += side) {
    float s[4][4];
    const int count = min(side, end - key);
    dot_tile(s, stage, q, rows, rows_from(k, key), count);
    weights(s, a, lse2, first, key);
    store_turned(p, s);
    dot_tile(s, stage, dout, rows, rows_from(v, key), count);
    float d[4]; /* fetched again for every tile: registers are short */
    load_some(d, lse2 + (a.delta - a.lse2) + first + 4 * ty);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float w[4];
      load_some(w, p + weight_at<true>(4 * tx + j, 4 * ty, side));
#pragma unroll
      for (int i = 0; i < 4; i++) s[i][j] = w[i] * (s[i][j] - d[i]);
    }
    store_turned(p, s);
    outer_tile<4, DK, true>(dq, p, stage, rows_from(k, key), count);
  }
  const float scale[4] = {a.scale, a.scale, a.scale, a.scale};
  store_rows<4, DK>(rows_from(a.dq.head(at.b, at.h), first), rows, dq, scale);
}

template <class T>
void backward_keys(bk_stream *stream, backward_args<T> f) {
  const bool wide = f.k.width > 192 || f.v.width > 128;
  f.order.last_first = false;
  f.order.tiles = (int)bk_ceil_div(f.queries, wide ? 32 : 64);
  const unsigned blocks = bk_att_blocks(f.order);
  if (wide) BK_LAUNCH((key_kernel<T, 256, 256, 2>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else if (f.k.width <= 64 && f.v.width <= 64)
    BK_LAUNCH((key_kernel<T, 64, 64, 4>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else BK_LAUNCH((key_kernel<T, 192, 128, 4>), blocks, threads, 0, bk_cuda_raw(stream), f);
}

template <class T>
void backward_queries(bk_stream *stream, backward_args<T> f) {
  f.order.last_first = true;
  f.order.tiles = (int)bk_ceil_div(f.queries, side);
  const unsigned blocks = bk_att_blocks(f.order);
  if (f.k.width <= 64) BK_LAUNCH((query_kernel<T, 64>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else if (f.k.width <= 192)
    BK_LAUNCH((query_kernel<T, 192>), blocks, threads, 0, bk_cuda_raw(stream), f);
  else BK_LAUNCH((query_kernel<T, 256>), blocks, threads, 0, bk_cuda_raw(stream), f);
}

template <class T>
void backward(bk_stream *stream, const bk_attention_bwd_args *a, float *lse2, float *delta) {
  const backward_args<T> f = {
      bk_att_view_of<const T>(&a->q),
      bk_att_view_of<const T>(&a->k),
      bk_att_view_of<const T>(&a->v),
      bk_att_view_of<const T>(&a->dout),
      bk_att_view_of<T>(&a->dq),
      bk_att_view_of<T>(&a->dk),
      bk_att_view_of<T>(&a->dv),
      lse2,
      delta,
      (int)a->q.shape[1],
      (int)bk_att_padded(a->q.shape[1]),
      (float)(a->scale * BK_ATT_LOG2E),
      (float)a->scale,
      bk_att_order_of(&a->q, 0,
                      a->q.shape[1] * (a->q.shape[3] + a->v.shape[3]) * (int64_t)sizeof(T), true)};
  if (f.order.pairs == 0 || f.queries == 0) return;
  bk_cuda_attention_delta(stream, a, lse2, delta);
  backward_keys(stream, f);
  backward_queries(stream, f);
}

template <class T>
void launch_delta(bk_stream *stream, const bk_attention_bwd_args *a, float *lse2, float *delta) {
  const int64_t padded = bk_att_padded(a->q.shape[1]);
  const bk_att_order order = bk_att_order_of(&a->q, padded / (threads / delta_lanes), 0, false);
  BK_LAUNCH(delta_kernel<T>, bk_att_blocks(order), threads, 0, bk_cuda_raw(stream),
            bk_att_view_of<const T>(&a->o), bk_att_view_of<const T>(&a->dout),
            bk_att_lse_of(&a->lse), lse2, delta, (int)a->q.shape[1], (int)padded, order);
}

} // namespace

extern "C" void bk_cuda_attention_delta(bk_stream *stream, const bk_attention_bwd_args *a,
                                        float *lse2, float *delta) {
  BK_BY_STORAGE(a->o.dtype, launch_delta, (stream, a, lse2, delta));
}

extern "C" BK_CUDA_ACCEPTS(attention_simt) {
  const bk_attention_args *a = (const bk_attention_args *)args;
  (void)device;
  return a->q.shape[3] <= 256 && a->v.shape[3] <= 256 && bk_att_counts_fit(&a->q, &a->k);
}

extern "C" BK_CUDA_LAUNCH(attention_simt) {
  const bk_attention_args *a = (const bk_attention_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->q.dtype, forward, (stream, a));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_ACCEPTS(attention_bwd_simt) {
  const bk_attention_bwd_args *a = (const bk_attention_bwd_args *)args;
  (void)device;
  return a->q.shape[3] <= 256 && a->v.shape[3] <= 256 && bk_att_counts_fit(&a->q, &a->k);
}

extern "C" BK_CUDA_PREPARE(attention_bwd_simt) {
  (void)device;
  *state = nullptr;
  *workspace_bytes = bk_att_bwd_bytes((const bk_attention_bwd_args *)args);
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(attention_bwd_simt) {
  const bk_attention_bwd_args *a = (const bk_attention_bwd_args *)args;
  float *lse2 = (float *)bk_cuda_place(workspace),
        *delta = lse2 + a->q.shape[0] * a->q.shape[2] * bk_att_padded(a->q.shape[1]);
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->q.dtype, backward, (stream, a, lse2, delta));
  return bk_cuda_end(stream);
}
