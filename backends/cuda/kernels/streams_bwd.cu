/* HC_PRE_BWD, HC_RES_BWD, HC_POST_BWD and the fused op HC_POST_RES_BWD.
 *
 * As in streams.cu a block has a token and a thread the same channels of all streams. Gradients
 * of coefficients are sums over the channels: each thread keeps its part in registers while it
 * makes dx and df from the same values, and the block adds the parts up once a token
 * (bk_block_sums, fixed order). Floors, in rows of C elements a token: pre 2n + 1 (3n + 1 to
 * accumulate), res 3n, post n + 2, post_res 3n + 2.
 *
 * A thread has read its channels of all inputs before it writes them: dx may be x or dout. */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc.cuh"

namespace {

/* the sums take many registers: small blocks fill a multiprocessor better */
constexpr int most_threads = 128;

/* ---- pre: dx[m] (+)= pre[m] dy, dpre[m] = dy . x[m] ---- */

template <class T>
struct pre_operands {
  bk_wide<T> x;
  bk_rows<float> pre;
  bk_rows<T> dy;
  bk_wide<T> dx;
  bk_rows<float> dpre;
  int64_t width;
  int n;
};

template <class T, int V, int N, bool ADD>
__global__ void __launch_bounds__(most_threads, 2) pre_bwd_kernel(pre_operands<T> o) {
  constexpr int M = BK_HC_STREAMS(N);
  __shared__ bk_sums_room<M> room;
  const int n = N > 0 ? N : o.n;
  const int64_t token = blockIdx.x;
  float pre[M], sums[M];
#pragma unroll
  for (int m = 0; m < M; m++) pre[m] = m < n ? o.pre.row(token)[m] : 0.f, sums[m] = 0;
  for (int64_t c = (int64_t)threadIdx.x * V; c < o.width; c += (int64_t)blockDim.x * V) {
    const bk_raw<T, V> dy = bk_raw_load<T, V>(o.dy.row(token) + c);
    bk_raw<T, V> x[M], old[M];
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (m < n) x[m] = bk_raw_load<T, V>(o.x.row(token, m) + c);
      if (ADD && m < n) old[m] = bk_raw_load<T, V>(o.dx.row(token, m) + c);
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (m >= n) continue;
      float out[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float g = bk_raw_get(dy, v);
        sums[m] += g * bk_raw_get(x[m], v);
        out[v] = pre[m] * g;
        if (ADD) out[v] += bk_raw_get(old[m], v);
      }
      bk_raw_store<T, V>(o.dx.row(token, m) + c, bk_raw_of<T, V>(out));
    }
  }
  bk_block_sums(sums, &room);
  for (int m = (int)threadIdx.x; m < n; m += (int)blockDim.x) o.dpre.row(token)[m] = room.at[0][m];
}

/* ---- res and post ---- */

template <class T>
struct merge_operands {
  bk_wide<T> x;
  bk_rows<T> f;
  bk_rows<float> post, comb;
  bk_wide<T> dout, dx; /* dx.at NULL: not wanted, or the same as dout already */
  bk_rows<T> df;
  bk_rows<float> dpost, dcomb;
  int64_t width;
  int n;
};

/* Sums: dcomb[m][k] at m M + k if MIX, then dpost[k] if FEED. */
template <int M, bool MIX, bool FEED>
constexpr int merge_sums = (MIX ? M * M : 0) + (FEED ? M : 0);

/* df = sum of post[k] dout[k], dpost[k] = f . dout[k]. */
template <class T, int V, int M, bool MIX>
BK_DEVICE void feed_back(const merge_operands<T> &o, int n, int64_t token, int64_t c,
                         const float *post, const bk_raw<T, V> (&dout)[M],
                         float (&sums)[merge_sums<M, MIX, true>]) {
  const bk_raw<T, V> f = bk_raw_load<T, V>(o.f.row(token) + c);
  float df[V];
#pragma unroll
  for (int v = 0; v < V; v++) {
    df[v] = 0;
#pragma unroll
    for (int k = 0; k < M; k++) {
      if (k >= n) continue;
      const float g = bk_raw_get(dout[k], v);
      df[v] += post[k] * g;
      sums[(MIX ? M * M : 0) + k] += g * bk_raw_get(f, v);
    }
  }
  bk_raw_store<T, V>(o.df.row(token) + c, bk_raw_of<T, V>(df));
}

/* dx[m] = sum of comb[m][k] dout[k], dcomb[m][k] = x[m] . dout[k]. */
template <class T, int V, int M, bool FEED>
BK_DEVICE void mix_back(const merge_operands<T> &o, int n, int64_t token, int64_t c,
                        const float *comb, const bk_raw<T, V> (&x)[M],
                        const bk_raw<T, V> (&dout)[M], float (&sums)[merge_sums<M, true, FEED>]) {
#pragma unroll
  for (int m = 0; m < M; m++) {
    if (m >= n) continue;
    float dx[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float value = bk_raw_get(x[m], v);
      dx[v] = 0;
#pragma unroll
      for (int k = 0; k < M; k++) {
        if (k >= n) continue;
        const float g = bk_raw_get(dout[k], v);
        dx[v] += comb[m * M + k] * g;
        sums[m * M + k] += value * g;
      }
    }
    bk_raw_store<T, V>(o.dx.row(token, m) + c, bk_raw_of<T, V>(dx));
  }
}

/* The token's coefficients in shared memory: comb at m M + k, then post. */
template <int M, bool MIX, bool FEED>
BK_DEVICE void load_coefficients(const float *comb, const float *post, int n, float *coefficients) {
  for (int j = (int)threadIdx.x; MIX && j < n * n; j += (int)blockDim.x)
    coefficients[j / n * M + j % n] = comb[j];
  for (int k = (int)threadIdx.x; FEED && k < n; k += (int)blockDim.x)
    coefficients[(MIX ? M * M : 0) + k] = post[k];
  __syncthreads();
}

template <int M, bool MIX, bool FEED>
BK_DEVICE void store_sums(const float *sums, int n, float *dcomb, float *dpost) {
  for (int j = (int)threadIdx.x; MIX && j < n * n; j += (int)blockDim.x)
    dcomb[j] = sums[j / n * M + j % n];
  for (int k = (int)threadIdx.x; FEED && k < n; k += (int)blockDim.x)
    dpost[k] = sums[(MIX ? M * M : 0) + k];
}

template <class T, int V, int N, bool MIX, bool FEED>
__global__ void __launch_bounds__(most_threads, 2) merge_bwd_kernel(merge_operands<T> o) {
  constexpr int M = BK_HC_STREAMS(N), count = merge_sums<M, MIX, FEED>;
  __shared__ bk_sums_room<count> room;
  __shared__ float coefficients[count];
  const int n = N > 0 ? N : o.n;
  const int64_t token = blockIdx.x;
  float sums[count];
#pragma unroll
  for (int i = 0; i < count; i++) sums[i] = 0;
  load_coefficients<M, MIX, FEED>(MIX ? o.comb.row(token) : nullptr,
                                  FEED ? o.post.row(token) : nullptr, n, coefficients);
  for (int64_t c = (int64_t)threadIdx.x * V; c < o.width; c += (int64_t)blockDim.x * V) {
    bk_raw<T, V> dout[M], x[MIX ? M : 1];
#pragma unroll
    for (int k = 0; k < M; k++) {
      if (k < n) dout[k] = bk_raw_load<T, V>(o.dout.row(token, k) + c);
      if (MIX && k < n) x[MIX ? k : 0] = bk_raw_load<T, V>(o.x.row(token, k) + c);
    }
    if constexpr (FEED)
      feed_back<T, V, M, MIX>(o, n, token, c, coefficients + (MIX ? M * M : 0), dout, sums);
    if constexpr (MIX) {
      mix_back<T, V, M, FEED>(o, n, token, c, coefficients, x, dout, sums);
    } else if (o.dx.at) {
#pragma unroll
      for (int k = 0; k < M; k++)
        if (k < n) bk_raw_store<T, V>(o.dx.row(token, k) + c, dout[k]);
    }
  }
  bk_block_sums(sums, &room);
  store_sums<M, MIX, FEED>(room.at[0], n, MIX ? o.dcomb.row(token) : nullptr,
                           FEED ? o.dpost.row(token) : nullptr);
}

/* ---- launches ---- */

template <class T, int N, int PACKED>
void start_pre(bk_stream *stream, const pre_operands<T> &o, int64_t tokens, bool accumulate) {
  constexpr int V = bk_hc_pack<T, N, PACKED>;
  const unsigned threads = bk_hc_threads(o.width / V, most_threads);
  if (accumulate)
    BK_LAUNCH((pre_bwd_kernel<T, V, N, true>), (unsigned)tokens, threads, 0, bk_cuda_raw(stream),
              o);
  else
    BK_LAUNCH((pre_bwd_kernel<T, V, N, false>), (unsigned)tokens, threads, 0, bk_cuda_raw(stream),
              o);
}

template <class T>
void launch_pre(bk_stream *stream, const bk_hc_pre_bwd_args *a) {
  const bool packed = bk_packs_fit(&a->x) && bk_packs_fit(&a->dy) && bk_packs_fit(&a->dx);
  const pre_operands<T> o = {bk_wide_of<T>(&a->x),        bk_rows_of<float>(&a->pre),
                             bk_rows_of<T>(&a->dy),       bk_wide_of<T>(&a->dx),
                             bk_rows_of<float>(&a->dpre), a->x.shape[2],
                             (int)a->x.shape[1]};
  if (a->x.shape[0] == 0) return;
  bk_hc_by_n(packed, o.n, [&](auto n, auto by_packs) {
    start_pre<T, decltype(n)::value, decltype(by_packs)::value>(stream, o, a->x.shape[0],
                                                                a->accumulate);
  });
}

template <class T, int N, int PACKED, bool MIX, bool FEED>
void start_merge(bk_stream *stream, const merge_operands<T> &o, int64_t tokens) {
  constexpr int V = bk_hc_pack<T, N, PACKED>;
  BK_LAUNCH((merge_bwd_kernel<T, V, N, MIX, FEED>), (unsigned)tokens,
            bk_hc_threads(o.width / V, most_threads), 0, bk_cuda_raw(stream), o);
}

bool absent_or_packed(const bk_tensor *t) { return !bk_tensor_present(t) || bk_packs_fit(t); }

/* f, post, df, dpost may be absent; comb and dcomb; x and dx. */
template <class T>
void launch_merge(bk_stream *stream, const bk_hc_post_res_bwd_args *a) {
  const bool mix = bk_tensor_present(&a->comb), feed = bk_tensor_present(&a->f);
  const bool packed = absent_or_packed(&a->x) && absent_or_packed(&a->f) &&
                      absent_or_packed(&a->dout) && absent_or_packed(&a->dx) &&
                      absent_or_packed(&a->df);
  const int64_t tokens = a->dout.shape[0];
  merge_operands<T> o = {};
  o.dout = bk_wide_of<T>(&a->dout), o.width = a->dout.shape[2], o.n = (int)a->dout.shape[1];
  if (bk_tensor_present(&a->dx)) o.dx = bk_wide_of<T>(&a->dx);
  if (feed) o.f = bk_rows_of<T>(&a->f), o.post = bk_rows_of<float>(&a->post);
  if (feed) o.df = bk_rows_of<T>(&a->df), o.dpost = bk_rows_of<float>(&a->dpost);
  if (mix)
    o.x = bk_wide_of<T>(&a->x), o.comb = bk_rows_of<float>(&a->comb),
    o.dcomb = bk_rows_of<float>(&a->dcomb);
  if (!mix && o.dx.at == o.dout.at) o.dx.at = nullptr;
  if (tokens == 0) return;
  bk_hc_by_n(packed, o.n, [&](auto n, auto by_packs) {
    if (mix && feed)
      start_merge<T, decltype(n)::value, decltype(by_packs)::value, true, true>(stream, o, tokens);
    else if (mix)
      start_merge<T, decltype(n)::value, decltype(by_packs)::value, true, false>(stream, o, tokens);
    else
      start_merge<T, decltype(n)::value, decltype(by_packs)::value, false, true>(stream, o, tokens);
  });
}

} // namespace

extern "C" BK_CUDA_LAUNCH(hc_pre_bwd) {
  const bk_hc_pre_bwd_args *a = (const bk_hc_pre_bwd_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_pre, (stream, a));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_res_bwd) {
  const bk_hc_res_bwd_args *a = (const bk_hc_res_bwd_args *)args;
  bk_hc_post_res_bwd_args merge = {};
  (void)workspace;
  merge.x = a->x, merge.comb = a->comb, merge.dout = a->dy, merge.dx = a->dx,
  merge.dcomb = a->dcomb;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_merge, (stream, &merge));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_post_bwd) {
  const bk_hc_post_bwd_args *a = (const bk_hc_post_bwd_args *)args;
  bk_hc_post_res_bwd_args merge = {};
  (void)workspace;
  merge.f = a->f, merge.post = a->post, merge.dout = a->dy, merge.df = a->df,
  merge.dpost = a->dpost;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->f.dtype, launch_merge, (stream, &merge));
  return bk_cuda_end(stream);
}

extern "C" void bk_cuda_post_res_bwd_start(bk_stream *stream, const bk_hc_post_res_bwd_args *a) {
  BK_BY_STORAGE(a->dout.dtype, launch_merge, (stream, a));
}

extern "C" BK_CUDA_LAUNCH(hc_post_res_bwd) {
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  bk_cuda_post_res_bwd_start(stream, (const bk_hc_post_res_bwd_args *)args);
  return bk_cuda_end(stream);
}
