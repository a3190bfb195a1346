/* HC_EXPAND, HC_COLLAPSE, HC_PRE, HC_RES, HC_POST and the fused op HC_POST_RES.
 *
 * A block a token; a thread walks the token's channels by 16 bytes (8 if n > 4, one element
 * where rows are not aligned) and has the same channels of all n streams in registers: each
 * stream is read once and written once. The token's coefficients are read once, into registers.
 * Floors, in rows of C elements a token: expand 1 + n, collapse and pre n + 1, res 2n, post 2n +
 * 1, post_res 2n + 1.
 *
 * Sources are read by plain loads: HC_POST is out = x + post f in place. */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc_token.cuh"

namespace {

constexpr int most_threads = 256;

/* ---- one row from or to all streams ---- */

template <class T, int V>
__global__ void __launch_bounds__(most_threads, 1)
    expand_kernel(bk_rows<T> x, bk_wide<T> y, int n, int64_t width) {
  const int64_t token = blockIdx.x;
  const T *from = x.row(token);
  for (int64_t c = (int64_t)threadIdx.x * V; c < width; c += (int64_t)blockDim.x * V) {
    const bk_raw<T, V> value = bk_raw_load<T, V>(from + c);
    for (int m = 0; m < n; m++) bk_raw_store<T, V>(y.row(token, m) + c, value);
  }
}

/* y = sum of pre[m] x[m], pre = 1 unless WEIGHTED. */
template <class T, int V, int N, bool WEIGHTED>
__global__ void __launch_bounds__(most_threads, 1)
    gather_kernel(bk_wide<T> x, bk_rows<float> pre, bk_rows<T> y, int n_given, int64_t width) {
  constexpr int M = BK_HC_STREAMS(N);
  const int n = N > 0 ? N : n_given;
  const int64_t token = blockIdx.x;
  float weight[M];
#pragma unroll
  for (int m = 0; m < M; m++) weight[m] = WEIGHTED && m < n ? pre.row(token)[m] : 1.f;
  for (int64_t c = (int64_t)threadIdx.x * V; c < width; c += (int64_t)blockDim.x * V) {
    bk_raw<T, V> in[M];
    bk_hc_load_streams(x, n, token, c, in);
    bk_raw_store<T, V>(y.row(token) + c, bk_hc_collapse(in, n, weight));
  }
}

/* ---- all streams to all streams ---- */

template <class T>
struct merge_operands {
  bk_wide<T> x;
  bk_rows<T> f;
  bk_rows<float> post, comb; /* comb: [N, n*n] */
  bk_wide<T> out;
  int64_t width;
  int n;
};

/* out[k] = sum of comb[m][k] x[m], or x[k] unless MIX; plus post[k] f if FEED. */
template <class T, int V, int N, bool MIX, bool FEED>
__global__ void __launch_bounds__(most_threads, 1) merge_kernel(merge_operands<T> o) {
  constexpr int M = BK_HC_STREAMS(N);
  const int n = N > 0 ? N : o.n;
  const int64_t token = blockIdx.x;
  float comb[MIX ? M : 1][MIX ? M : 1], post[M]; /* comb by columns */
#pragma unroll
  for (int m = 0; m < M; m++) {
    if (FEED && m < n) post[m] = o.post.row(token)[m];
#pragma unroll
    for (int k = 0; k < M; k++)
      if (MIX && m < n && k < n) comb[MIX ? k : 0][MIX ? m : 0] = o.comb.row(token)[m * n + k];
  }
  for (int64_t c = (int64_t)threadIdx.x * V; c < o.width; c += (int64_t)blockDim.x * V) {
    bk_raw<T, V> in[M], feed;
    bk_hc_load_streams(o.x, n, token, c, in);
    if (FEED) feed = bk_raw_load<T, V>(o.f.row(token) + c);
#pragma unroll
    for (int k = 0; k < M; k++) {
      if (k >= n) continue;
      float out[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        float at[M];
#pragma unroll
        for (int m = 0; m < M; m++) at[m] = m < n ? bk_raw_get(in[m], v) : 0.f;
        out[v] = bk_hc_merge<MIX, FEED>(at, FEED ? bk_raw_get(feed, v) : 0.f, n, k,
                                        comb[MIX ? k : 0], FEED ? post[k] : 0.f);
      }
      bk_raw_store<T, V>(o.out.row(token, k) + c, bk_raw_of<T, V>(out));
    }
  }
}

/* ---- launches ---- */

template <class T>
void launch_expand(bk_stream *stream, const bk_hc_expand_args *a) {
  const int64_t width = a->x.shape[1], tokens = a->x.shape[0];
  const bk_rows<T> x = bk_rows_of<T>(&a->x);
  const bk_wide<T> y = bk_wide_of<T>(&a->y);
  const int n = (int)a->y.shape[1];
  constexpr int pack = bk_pack<T>::count;
  if (tokens == 0) return;
  if (bk_packs_fit(&a->x) && bk_packs_fit(&a->y))
    BK_LAUNCH((expand_kernel<T, pack>), (unsigned)tokens, bk_hc_threads(width / pack, most_threads),
              0, bk_cuda_raw(stream), x, y, n, width);
  else
    BK_LAUNCH((expand_kernel<T, 1>), (unsigned)tokens, bk_hc_threads(width, most_threads), 0,
              bk_cuda_raw(stream), x, y, n, width);
}

template <class T, int N, int PACKED, bool WEIGHTED>
void start_gather(bk_stream *stream, const bk_tensor *x, const bk_tensor *pre, const bk_tensor *y) {
  constexpr int V = bk_hc_pack<T, N, PACKED>;
  const bk_rows<float> weights = WEIGHTED ? bk_rows_of<float>(pre) : bk_rows<float>{};
  BK_LAUNCH((gather_kernel<T, V, N, WEIGHTED>), (unsigned)x->shape[0],
            bk_hc_threads(x->shape[2] / V, most_threads), 0, bk_cuda_raw(stream), bk_wide_of<T>(x),
            weights, bk_rows_of<T>(y), (int)x->shape[1], x->shape[2]);
}

/* pre: NULL for a plain sum. */
template <class T>
void launch_gather(bk_stream *stream, const bk_tensor *x, const bk_tensor *pre,
                   const bk_tensor *y) {
  const bool packed = bk_packs_fit(x) && bk_packs_fit(y);
  if (x->shape[0] == 0) return;
  bk_hc_by_n(packed, (int)x->shape[1], [&](auto n, auto by_packs) {
    if (pre)
      start_gather<T, decltype(n)::value, decltype(by_packs)::value, true>(stream, x, pre, y);
    else start_gather<T, decltype(n)::value, decltype(by_packs)::value, false>(stream, x, pre, y);
  });
}

template <class T, int N, int PACKED, bool MIX, bool FEED>
void start_merge(bk_stream *stream, const merge_operands<T> &o, int64_t tokens) {
  constexpr int V = bk_hc_pack<T, N, PACKED>;
  BK_LAUNCH((merge_kernel<T, V, N, MIX, FEED>), (unsigned)tokens,
            bk_hc_threads(o.width / V, most_threads), 0, bk_cuda_raw(stream), o);
}

/* f, post and comb may be absent. */
template <class T>
void launch_merge(bk_stream *stream, const bk_hc_post_res_args *a) {
  const bool mix = bk_tensor_present(&a->comb), feed = bk_tensor_present(&a->f);
  const bool packed =
      bk_packs_fit(&a->x) && bk_packs_fit(&a->out) && (!feed || bk_packs_fit(&a->f));
  merge_operands<T> o = {bk_wide_of<T>(&a->x), {}, {}, {}, bk_wide_of<T>(&a->out), a->x.shape[2],
                         (int)a->x.shape[1]};
  if (feed) o.f = bk_rows_of<T>(&a->f), o.post = bk_rows_of<float>(&a->post);
  if (mix) o.comb = bk_rows_of<float>(&a->comb);
  if (a->x.shape[0] == 0) return;
  bk_hc_by_n(packed, o.n, [&](auto n, auto by_packs) {
    if (mix && feed)
      start_merge<T, decltype(n)::value, decltype(by_packs)::value, true, true>(stream, o,
                                                                                a->x.shape[0]);
    else if (mix)
      start_merge<T, decltype(n)::value, decltype(by_packs)::value, true, false>(stream, o,
                                                                                 a->x.shape[0]);
    else
      start_merge<T, decltype(n)::value, decltype(by_packs)::value, false, true>(stream, o,
                                                                                 a->x.shape[0]);
  });
}

} // namespace

extern "C" BK_CUDA_LAUNCH(hc_expand) {
  const bk_hc_expand_args *a = (const bk_hc_expand_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_expand, (stream, a));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_collapse) {
  const bk_hc_collapse_args *a = (const bk_hc_collapse_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_gather, (stream, &a->x, nullptr, &a->y));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_pre) {
  const bk_hc_pre_args *a = (const bk_hc_pre_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_gather, (stream, &a->x, &a->pre, &a->y));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_res) {
  const bk_hc_res_args *a = (const bk_hc_res_args *)args;
  bk_hc_post_res_args merge = {};
  (void)workspace;
  merge.x = a->x, merge.comb = a->comb, merge.out = a->y;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_merge, (stream, &merge));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_post) {
  const bk_hc_post_args *a = (const bk_hc_post_args *)args;
  bk_hc_post_res_args merge = {};
  (void)workspace;
  merge.x = a->y, merge.f = a->f, merge.post = a->post, merge.out = a->y;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->f.dtype, launch_merge, (stream, &merge));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_post_res) {
  const bk_hc_post_res_args *a = (const bk_hc_post_res_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch_merge, (stream, a));
  return bk_cuda_end(stream);
}
