/* The arithmetic of HC_PRE_NORM and HC_POST_RES on a token's channels, shared by all kernels
 * that do either: the same functions in the same order, so that streams which are rebuilt have
 * the bits that they had. A thread has the same V channels of all streams. */
#ifndef BK_CUDA_HC_TOKEN_CUH
#define BK_CUDA_HC_TOKEN_CUH

#include "backends/cuda/kernels/hc.cuh"

/* Accesses that a thread keeps in registers, and the largest block: of HC_PRE_NORM and what must
 * give its bits. Which channels a thread has decides the order of the sum of squares. */
constexpr int bk_hc_kept = 4, bk_hc_norm_threads = 512;

/* Few threads, so that each has bk_hc_kept accesses where the row has them. */
static inline unsigned bk_hc_token_threads(int64_t accesses, int most) {
  const int64_t each = bk_ceil_div(accesses, bk_hc_kept);
  return bk_hc_threads(each < most ? each : accesses, most);
}

/* V floats, 16-byte aligned where V is a pack. */
template <int V>
BK_DEVICE void bk_hc_load_floats(const float *p, float (&v)[V]) {
  if constexpr (V % 4) {
#pragma unroll
    for (int i = 0; i < V; i++) v[i] = p[i];
  } else {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      float part[4];
      bk_load_pack_own(p + i, part);
#pragma unroll
      for (int j = 0; j < 4; j++) v[i + j] = part[j];
    }
  }
}

/* The streams at channel c; entries from n on stay as they are. */
template <class T, int V, int M>
BK_DEVICE void bk_hc_load_streams(const bk_wide<T> &x, int n, int64_t token, int64_t c,
                                  bk_raw<T, V> (&in)[M]) {
#pragma unroll
  for (int m = 0; m < M; m++)
    if (m < n) in[m] = bk_raw_load<T, V>(x.row(token, m) + c);
}

/* y = sum of pre[m] x[m], as it is stored. */
template <class T, int V, int M>
BK_DEVICE bk_raw<T, V> bk_hc_collapse(const bk_raw<T, V> (&in)[M], int n, const float (&pre)[M]) {
  float out[V];
#pragma unroll
  for (int v = 0; v < V; v++) {
    out[v] = bk_mul(pre[0], bk_raw_get(in[0], v));
#pragma unroll
    for (int m = 1; m < M; m++)
      if (m < n) out[v] = bk_fma(pre[m], bk_raw_get(in[m], v), out[v]);
  }
  return bk_raw_of<T, V>(out);
}

template <class T, int V>
BK_DEVICE float bk_hc_squares(const bk_raw<T, V> &y) {
  float sum = 0;
#pragma unroll
  for (int v = 0; v < V; v++) sum += bk_raw_get(y, v) * bk_raw_get(y, v);
  return sum;
}

/* All threads of the block call it with their part of the sum of squares. */
BK_DEVICE float bk_hc_rstd(float sum, int64_t width, float eps, float *shared) {
  return 1.f / sqrtf(bk_block_sum(sum, shared) / (float)width + eps);
}

/* h = y rstd w; w: those of the channels. */
template <class T, int V>
BK_DEVICE bk_raw<T, V> bk_hc_normed(const bk_raw<T, V> &y, float rstd, const float *weights) {
  float w[V];
  bk_hc_load_floats<V>(weights, w);
#pragma unroll
  for (int v = 0; v < V; v++) w[v] *= bk_raw_get(y, v) * rstd;
  return bk_raw_of<T, V>(w);
}

/* Stream k at one channel: sum of weights[m] x[m], weights the column k of comb, or x[k] unless
 * MIX; plus post f if FEED. */
template <bool MIX, bool FEED, int M>
BK_DEVICE float bk_hc_merge(const float (&x)[M], float f, int n, int k, const float *weights,
                            float post) {
  float out = MIX ? 0.f : x[k];
#pragma unroll
  for (int m = 0; m < M; m++)
    if (MIX && m < n) out = bk_fma(weights[m], x[m], out);
  if (FEED) out = bk_fma(post, f, out);
  return out;
}

#endif
