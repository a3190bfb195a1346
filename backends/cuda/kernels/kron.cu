/* HC_KRON and HC_KRON_BWD: a lane has one row of a token's comb, of N = 2^K. comb[m][k] is the
 * product over the factors of p where their bits of m and k agree and of 1 - p where not; factor
 * 0 has the most significant bit. Every lane of a token works out the few exponentials itself. */
#include "backends/cuda/kernels/hc.cuh"
#include "backends/cuda/kernels/maps.h"

namespace {

constexpr int threads = 64;
static_assert(BK_HC_MAX_N == 8, "start() has a case for each power of two");

struct operands {
  bk_rows<float> logits, comb, dlogits; /* comb: of the backward dcomb */
  int64_t tokens;
};

/* p, 1 - p and p (1 - p) of each factor. */
template <int K>
struct factors {
  float same[K + 1], other[K + 1], slope[K + 1]; /* + 1: K may be 0, an array not */
};

/* All from e = exp(-|difference|): nothing cancels where p is close to 0 or 1. */
template <int K>
BK_DEVICE void read_factors(const float *logits, factors<K> &t) {
#pragma unroll
  for (int f = 0; f < K; f++) {
    const float apart = logits[2 * f] - logits[2 * f + 1], e = expf(-fabsf(apart)),
                large = 1.f / (1.f + e), small = e * large;
    t.same[f] = apart >= 0.f ? large : small;
    t.other[f] = apart >= 0.f ? small : large;
    t.slope[f] = small * large;
  }
}

/* The product of the entries at bits d = m ^ k, without that of factor `left_out` (-1: all). */
template <int K>
BK_DEVICE float product(const factors<K> &t, int d, int left_out) {
  float v = 1.f;
#pragma unroll
  for (int f = 0; f < K; f++)
    if (f != left_out) v *= d >> (K - 1 - f) & 1 ? t.other[f] : t.same[f];
  return v;
}

template <int K>
__global__ void __launch_bounds__(threads) forward_kernel(operands o) {
  constexpr int n = 1 << K;
  const int m = (int)threadIdx.x % n;
  const int64_t token = (int64_t)blockIdx.x * (threads / n) + (int)threadIdx.x / n;
  if (token >= o.tokens) return;
  factors<K> t;
  read_factors<K>(o.logits.row(token), t);
  float *row = o.comb.row(token) + m * n;
#pragma unroll
  for (int k = 0; k < n; k++) row[k] = product<K>(t, m ^ k, -1);
}

/* dp of factor f: what lane m's row adds, then the sum over the token's lanes. Entries that differ
 * in f's bit alone have the same product of the other factors, and opposite signs. */
template <int K>
__global__ void __launch_bounds__(threads) backward_kernel(operands o) {
  constexpr int n = 1 << K;
  const int m = (int)threadIdx.x % n;
  const int64_t token = (int64_t)blockIdx.x * (threads / n) + (int)threadIdx.x / n;
  const bool in = token < o.tokens;
  factors<K> t = {};
  float drow[n] = {}, mine = 0.f; /* drow[d]: the entry at k = m ^ d */
  if (in) read_factors<K>(o.logits.row(token), t);
#pragma unroll
  for (int d = 0; d < n; d++)
    if (in) drow[d] = o.comb.row(token)[m * n + (m ^ d)];
#pragma unroll
  for (int f = 0; f < K; f++) {
    const int bit = 1 << (K - 1 - f);
    float dp = 0.f;
#pragma unroll
    for (int d = 0; d < n; d++)
      if (!(d & bit)) dp += (drow[d] - drow[d | bit]) * product<K>(t, d, f);
#pragma unroll
    for (int step = n / 2; step > 0; step >>= 1) dp += __shfl_xor_sync(BK_FULL_MASK, dp, step);
    if (m / 2 == f) mine = (m % 2 ? -dp : dp) * t.slope[f];
  }
  if (in && m < 2 * K) o.dlogits.row(token)[m] = mine; /* 2 K columns are at most n */
}

template <int K, bool BACKWARD>
void start(bk_stream *stream, const operands &o) {
  const unsigned grid = (unsigned)bk_ceil_div(o.tokens, threads >> K);
  if constexpr (BACKWARD) BK_LAUNCH((backward_kernel<K>), grid, threads, 0, bk_cuda_raw(stream), o);
  else BK_LAUNCH((forward_kernel<K>), grid, threads, 0, bk_cuda_raw(stream), o);
}

template <bool BACKWARD>
void launch(bk_stream *stream, const operands &o, int64_t n) {
  if (o.tokens == 0) return;
  if (n == 8) start<3, BACKWARD>(stream, o);
  else if (n == 4) start<2, BACKWARD>(stream, o);
  else if (n == 2) start<1, BACKWARD>(stream, o);
  else if constexpr (!BACKWARD) start<0, BACKWARD>(stream, o); /* one stream: no logits */
}

} // namespace

extern "C" BK_CUDA_LAUNCH(hc_kron) {
  const bk_hc_kron_args *a = (const bk_hc_kron_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch<false>(stream,
                {bk_rows_of<float>(&a->logits), bk_rows_of<float>(&a->comb), {}, a->comb.shape[0]},
                a->comb.shape[1]);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_kron_bwd) {
  const bk_hc_kron_bwd_args *a = (const bk_hc_kron_bwd_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch<true>(stream,
               {bk_rows_of<float>(&a->logits), bk_rows_of<float>(&a->dcomb),
                bk_rows_of<float>(&a->dlogits), a->dcomb.shape[0]},
               a->dcomb.shape[1]);
  return bk_cuda_end(stream);
}
