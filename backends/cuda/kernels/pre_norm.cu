/* The fused ops HC_PRE_NORM and HC_PRE_NORM_BWD.
 *
 * Forward: a block a token. The collapsed row y stays in registers as it is stored (up to `kept`
 * accesses a thread; what a row has beyond that is read back, each thread what it wrote itself),
 * so that the norm takes no second trip through memory. Floor, in rows of C elements: n read, 2
 * written. Backward: a block a chunk of tokens. First y and dh give the mean of the norm's
 * backward and the block's part of dw (registers); then the streams give dpre, and dx is
 * written. Floor: n + 2 read and n written (2n + 2 read to accumulate). dw: partial sums of
 * chunks in the workspace, added up in order by a second launch; chunks follow from the number
 * of tokens alone. */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc_token.cuh"

namespace {

constexpr int most_threads = bk_hc_norm_threads, most_threads_bwd = 256, kept = bk_hc_kept,
              most_chunks = 512;

template <class T>
struct operands {
  bk_wide<T> x;
  bk_rows<float> pre;
  const float *w;
  bk_rows<T> y, h; /* backward: h is dh */
  float *rstd;
  bk_wide<T> dx;
  bk_rows<float> dpre;
  float *partials; /* of dw [chunks][width] */
  float *mean;     /* SUMS: [tokens] */
  int64_t width, tokens, chunk;
  int n;
  float eps;
};

/* ---- forward ---- */

/* y at channel c, stored and returned as it is stored. */
template <class T, int V, int N>
BK_DEVICE bk_raw<T, V> collapse(const operands<T> &o, int n, int64_t token, int64_t c,
                                const float (&pre)[BK_HC_STREAMS(N)]) {
  bk_raw<T, V> in[BK_HC_STREAMS(N)];
  bk_hc_load_streams(o.x, n, token, c, in);
  const bk_raw<T, V> y = bk_hc_collapse(in, n, pre);
  bk_raw_store<T, V>(o.y.row(token) + c, y);
  return y;
}

template <class T, int V>
BK_DEVICE void store_normed(const operands<T> &o, int64_t token, int64_t c, const bk_raw<T, V> &y,
                            float rstd) {
  bk_raw_store<T, V>(o.h.row(token) + c, bk_hc_normed(y, rstd, o.w + c));
}

template <class T, int V, int N>
__global__ void __launch_bounds__(most_threads, 1) pre_norm_kernel(operands<T> o) {
  constexpr int M = BK_HC_STREAMS(N);
  __shared__ float shared[BK_WARP];
  const int n = N > 0 ? N : o.n;
  const int64_t token = blockIdx.x, step = (int64_t)blockDim.x * V,
                first = (int64_t)threadIdx.x * V;
  bk_raw<T, V> y[kept];
  float pre[M], sum = 0;
#pragma unroll
  for (int m = 0; m < M; m++) pre[m] = m < n ? o.pre.row(token)[m] : 0.f;
#pragma unroll
  for (int i = 0; i < kept; i++) {
    if (first + i * step >= o.width) continue;
    y[i] = collapse<T, V, N>(o, n, token, first + i * step, pre);
    sum += bk_hc_squares(y[i]);
  }
  for (int64_t c = first + kept * step; c < o.width; c += step)
    sum += bk_hc_squares(collapse<T, V, N>(o, n, token, c, pre));
  const float rstd = bk_hc_rstd(sum, o.width, o.eps, shared);
  if (threadIdx.x == 0) o.rstd[token] = rstd;
#pragma unroll
  for (int i = 0; i < kept; i++)
    if (first + i * step < o.width) store_normed(o, token, first + i * step, y[i], rstd);
  for (int64_t c = first + kept * step; c < o.width; c += step)
    store_normed(o, token, c, bk_raw_load<T, V>(o.y.row(token) + c), rstd);
}

/* ---- backward ---- */

/* what becomes of dx; SUMS: whoever makes it later gets the mean (hc_merge_mix_bwd.cu) */
enum { WRITE, ADD, SUMS };

/* The sum of dh w y at channel c; adds dh y rstd to dw. */
template <class T, int V>
BK_DEVICE float norm_sums(const operands<T> &o, int64_t c, const bk_raw<T, V> &y,
                          const bk_raw<T, V> &dh, float rstd, float (&dw)[V]) {
  float w[V], sum = 0;
  bk_hc_load_floats<V>(o.w + c, w);
#pragma unroll
  for (int v = 0; v < V; v++) {
    const float g = bk_raw_get(dh, v), value = bk_raw_get(y, v);
    sum += g * w[v] * value;
    dw[v] += g * value * rstd;
  }
  return sum;
}

/* dx[m] (+)= pre[m] dy and the sums of dpre, at channel c; dy = rstd (dh w - y mean). */
template <class T, int V, int N, int DX>
BK_DEVICE void streams_back(const operands<T> &o, int n, int64_t token, int64_t c,
                            const bk_raw<T, V> &y, const bk_raw<T, V> &dh, float rstd, float mean,
                            const float *pre, float (&sums)[BK_HC_STREAMS(N)]) {
  constexpr int M = BK_HC_STREAMS(N);
  bk_raw<T, V> x[M], old[M];
  float dy[V];
#pragma unroll
  for (int m = 0; m < M; m++) {
    if (m < n) x[m] = bk_raw_load<T, V>(o.x.row(token, m) + c);
    if (DX == ADD && m < n) old[m] = bk_raw_load<T, V>(o.dx.row(token, m) + c);
  }
  bk_hc_load_floats<V>(o.w + c, dy);
#pragma unroll
  for (int v = 0; v < V; v++) dy[v] = rstd * (bk_raw_get(dh, v) * dy[v] - bk_raw_get(y, v) * mean);
#pragma unroll
  for (int m = 0; m < M; m++) {
    if (m >= n) continue;
    float out[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
      sums[m] += dy[v] * bk_raw_get(x[m], v);
      out[v] = pre[m] * dy[v];
      if (DX == ADD) out[v] += bk_raw_get(old[m], v);
    }
    if (DX != SUMS) bk_raw_store<T, V>(o.dx.row(token, m) + c, bk_raw_of<T, V>(out));
  }
}

/* A token; dw: the thread's sums at its first `kept` accesses; what lies beyond is summed in the
 * workspace. */
template <class T, int V, int N, int DX>
BK_DEVICE void token_back(const operands<T> &o, int n, int64_t token, bool is_first, float *more_dw,
                          float (&dw)[kept][V], float *shared,
                          bk_sums_room<BK_HC_STREAMS(N)> *room) {
  constexpr int M = BK_HC_STREAMS(N);
  const int64_t step = (int64_t)blockDim.x * V, first = (int64_t)threadIdx.x * V;
  const float rstd = o.rstd[token];
  bk_raw<T, V> y[kept], dh[kept];
  float pre[M], sums[M], sum = 0;
#pragma unroll
  for (int m = 0; m < M; m++) pre[m] = m < n ? o.pre.row(token)[m] : 0.f, sums[m] = 0;
#pragma unroll
  for (int i = 0; i < kept; i++) {
    const int64_t c = first + i * step;
    if (c < o.width)
      y[i] = bk_raw_load<T, V>(o.y.row(token) + c), dh[i] = bk_raw_load<T, V>(o.h.row(token) + c);
  }
#pragma unroll
  for (int i = 0; i < kept; i++)
    if (first + i * step < o.width) sum += norm_sums(o, first + i * step, y[i], dh[i], rstd, dw[i]);
  for (int64_t c = first + kept * step; c < o.width; c += step) {
    float part[V];
#pragma unroll
    for (int v = 0; v < V; v++) part[v] = is_first ? 0.f : more_dw[c + v];
    sum += norm_sums(o, c, bk_raw_load<T, V>(o.y.row(token) + c),
                     bk_raw_load<T, V>(o.h.row(token) + c), rstd, part);
#pragma unroll
    for (int v = 0; v < V; v++) more_dw[c + v] = part[v];
  }
  const float mean = bk_block_sum(sum, shared) * rstd * rstd / (float)o.width;
  if (DX == SUMS && threadIdx.x == 0) o.mean[token] = mean;
#pragma unroll
  for (int i = 0; i < kept; i++)
    if (first + i * step < o.width)
      streams_back<T, V, N, DX>(o, n, token, first + i * step, y[i], dh[i], rstd, mean, pre, sums);
  for (int64_t c = first + kept * step; c < o.width; c += step)
    streams_back<T, V, N, DX>(o, n, token, c, bk_raw_load<T, V>(o.y.row(token) + c),
                              bk_raw_load<T, V>(o.h.row(token) + c), rstd, mean, pre, sums);
  bk_block_sums(sums, room);
  for (int m = (int)threadIdx.x; m < n; m += (int)blockDim.x) o.dpre.row(token)[m] = room->at[0][m];
  __syncthreads();
}

template <class T, int V, int N, int DX>
__global__ void __launch_bounds__(most_threads_bwd, N > 0 ? 2 : 1)
    pre_norm_bwd_kernel(operands<T> o) {
  __shared__ float shared[BK_WARP];
  __shared__ bk_sums_room<BK_HC_STREAMS(N)> room;
  const int n = N > 0 ? N : o.n;
  const int64_t begin = blockIdx.x * o.chunk,
                end = begin + o.chunk < o.tokens ? begin + o.chunk : o.tokens;
  float *partial = o.partials + blockIdx.x * o.width;
  float dw[kept][V] = {};
  for (int64_t token = begin; token < end; token++)
    token_back<T, V, N, DX>(o, n, token, token == begin, partial, dw, shared, &room);
#pragma unroll
  for (int i = 0; i < kept; i++) {
    const int64_t c = ((int64_t)i * blockDim.x + threadIdx.x) * V;
#pragma unroll
    for (int v = 0; v < V; v++)
      if (c < o.width) partial[c + v] = dw[i][v];
  }
}

/* dw += the sum of the chunks: 32 channels a block, warp w takes the chunks w, w + 8, ... */
__global__ void __launch_bounds__(256)
    dw_kernel(const float *partials, int64_t chunks, int64_t width, float *dw) {
  __shared__ float parts[8][BK_WARP];
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP;
  const int64_t c = (int64_t)blockIdx.x * BK_WARP + lane;
  float sum = 0;
  for (int64_t i = warp; i < chunks; i += 8)
    if (c < width) sum += partials[i * width + c];
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= width) return;
  for (int i = 1; i < 8; i++) sum += parts[i][lane];
  dw[c] += sum;
}

/* ---- launches ---- */

template <class T, int N, int PACKED>
void start(bk_stream *stream, const operands<T> &o) {
  constexpr int V = bk_hc_pack<T, N, PACKED>;
  BK_LAUNCH((pre_norm_kernel<T, V, N>), (unsigned)o.tokens,
            bk_hc_token_threads(o.width / V, most_threads), 0, bk_cuda_raw(stream), o);
}

template <class T>
void launch(bk_stream *stream, const bk_hc_pre_norm_args *a) {
  const bool packed =
      bk_packs_fit(&a->x) && bk_packs_fit(&a->y) && bk_packs_fit(&a->h) && a->w.offset % 16 == 0;
  operands<T> o = {};
  o.x = bk_wide_of<T>(&a->x), o.pre = bk_rows_of<float>(&a->pre),
  o.w = (const float *)bk_cuda_data(&a->w);
  o.y = bk_rows_of<T>(&a->y), o.h = bk_rows_of<T>(&a->h), o.rstd = (float *)bk_cuda_data(&a->rstd);
  o.tokens = a->x.shape[0], o.width = a->x.shape[2], o.n = (int)a->x.shape[1],
  o.eps = (float)a->eps;
  if (o.tokens == 0) return;
  bk_hc_by_n(packed, o.n, [&](auto n, auto by_packs) {
    start<T, decltype(n)::value, decltype(by_packs)::value>(stream, o);
  });
}

template <class T, int N, int PACKED, int DX>
void start_bwd(bk_stream *stream, const operands<T> &o) {
  constexpr int V = bk_hc_pack<T, N, PACKED>;
  const unsigned threads = bk_hc_token_threads(o.width / V, most_threads_bwd),
                 chunks = (unsigned)bk_ceil_div(o.tokens, o.chunk);
  BK_LAUNCH((pre_norm_bwd_kernel<T, V, N, DX>), chunks, threads, 0, bk_cuda_raw(stream), o);
}

template <class T>
operands<T> operands_bwd(const bk_hc_pre_norm_bwd_args *a, bk_place workspace) {
  operands<T> o = {};
  o.x = bk_wide_of<T>(&a->x), o.pre = bk_rows_of<float>(&a->pre),
  o.w = (const float *)bk_cuda_data(&a->w);
  o.y = bk_rows_of<T>(&a->y), o.h = bk_rows_of<T>(&a->dh), o.rstd = (float *)bk_cuda_data(&a->rstd);
  o.dx = bk_wide_of<T>(&a->dx), o.dpre = bk_rows_of<float>(&a->dpre),
  o.partials = (float *)bk_cuda_place(workspace);
  o.tokens = a->x.shape[0], o.width = a->x.shape[2], o.n = (int)a->x.shape[1],
  o.chunk = bk_hc_chunk(o.tokens, 1, most_chunks);
  return o;
}

template <class T>
void add_dw(bk_stream *stream, const operands<T> &o, const bk_tensor *dw) {
  BK_LAUNCH((dw_kernel), (unsigned)bk_ceil_div(o.width, BK_WARP), 256, 0, bk_cuda_raw(stream),
            o.partials, bk_ceil_div(o.tokens, o.chunk), o.width, (float *)bk_cuda_data(dw));
}

template <class T>
void launch_bwd(bk_stream *stream, const bk_hc_pre_norm_bwd_args *a, bk_place workspace) {
  const bool packed = bk_packs_fit(&a->x) && bk_packs_fit(&a->y) && bk_packs_fit(&a->dh) &&
                      bk_packs_fit(&a->dx) && a->w.offset % 16 == 0;
  const operands<T> o = operands_bwd<T>(a, workspace);
  if (o.tokens == 0) return;
  bk_hc_by_n(packed, o.n, [&](auto n, auto by_packs) {
    constexpr int N = decltype(n)::value, P = decltype(by_packs)::value;
    if (a->accumulate) start_bwd<T, N, P, ADD>(stream, o);
    else start_bwd<T, N, P, WRITE>(stream, o);
  });
  add_dw(stream, o, &a->dw);
}

} // namespace

extern "C" void bk_cuda_pre_norm_start(bk_stream *stream, const bk_hc_pre_norm_args *a) {
  BK_BY_STORAGE(a->x.dtype, launch, (stream, a));
}

extern "C" void bk_cuda_pre_norm_sums_start(bk_stream *stream, const bk_hc_pre_norm_bwd_args *a,
                                            float *mean, bk_place workspace) {
  operands<bk_bf16> o = operands_bwd<bk_bf16>(a, workspace);
  o.mean = mean;
  if (o.tokens == 0) return;
  if (o.n == 4) start_bwd<bk_bf16, 4, 1, SUMS>(stream, o);
  else start_bwd<bk_bf16, -4, 1, SUMS>(stream, o);
  add_dw(stream, o, &a->dw);
}

extern "C" BK_CUDA_LAUNCH(hc_pre_norm) {
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  bk_cuda_pre_norm_start(stream, (const bk_hc_pre_norm_args *)args);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_PREPARE(hc_pre_norm_bwd) {
  const bk_hc_pre_norm_bwd_args *a = (const bk_hc_pre_norm_bwd_args *)args;
  const int64_t tokens = a->x.shape[0];
  (void)device, (void)state;
  *workspace_bytes =
      tokens > 0
          ? (size_t)(bk_ceil_div(tokens, bk_hc_chunk(tokens, 1, most_chunks)) * a->x.shape[2]) *
                sizeof(float)
          : 0;
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_pre_norm_bwd) {
  const bk_hc_pre_norm_bwd_args *a = (const bk_hc_pre_norm_bwd_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_bwd, (stream, a, workspace));
  return bk_cuda_end(stream);
}
