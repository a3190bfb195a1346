/* What the kernels of all maps share. A group of L lanes (4 or 8; L >= n) has a token; lane m
 * has pre[m], post[m] and its part of the comb columns: row m (mhc, hc), or the weights q = s L
 * + m (mhc_lite). KIND is a bk_hc_kind; N = 4 is n at compile time, N = 0 not. */
#ifndef BK_CUDA_MAPS_CUH
#define BK_CUDA_MAPS_CUH

#include "backends/cuda/kernels/perm.cuh"
#include "backends/cuda/kernels/sinkhorn.cuh"

#define BK_MAPS_THREADS 64 /* two warps: few tokens spread over all multiprocessors */
#define BK_MAPS_WARPS (BK_MAPS_THREADS / BK_WARP)

/* The number of comb entries that a lane has. */
template <int KIND, int L>
constexpr int bk_maps_slots = KIND == BK_HC_MHC || KIND == BK_HC_HC ? L
                              : KIND == BK_HC_MHC_LITE              ? bk_perm_slots<L>
                                                                    : 0;
template <int KIND, int L>
constexpr int bk_maps_array = bk_maps_slots<KIND, L> ? bk_maps_slots<KIND, L> : 1;

struct bk_maps_operands {
  bk_rows<float> proj, pre, post, comb; /* backward: dpre, dpost, dcomb */
  bk_rows<float> dproj;
  const float *rinv, *scale, *base;
  float *drinv, *partials; /* partials [columns][chunks] */
  int64_t tokens, chunk, chunks;
  double eps;
  int n, iters;
  bool packed; /* rows of four are aligned */
};

/* Where entry s (0 pre, 1 post, from 2 on comb) of lane m lies in base; whether it is there. */
template <int KIND, int L>
BK_DEVICE int bk_maps_column(int m, int s, int n) {
  if (s < 2) return s * n + m;
  return KIND == BK_HC_MHC_LITE ? 2 * n + (s - 2) * L + m : 2 * n + m * n + s - 2;
}
template <int KIND, int L>
BK_DEVICE bool bk_maps_present(int m, int s, int n) {
  if (s == 0) return m < n;
  if (s == 1) return m < n && KIND != BK_HC_HEAD;
  return KIND == BK_HC_MHC_LITE ? (s - 2) * L + m < perm_factorial(n) : m < n && s - 2 < n;
}
/* Offset of an entry in the row of proj that the lane reads: of the token, or for hc of the
 * token's stream m. */
template <int KIND, int L>
BK_DEVICE int bk_maps_in_row(int m, int s, int n) {
  return KIND == BK_HC_HC ? s : bk_maps_column<KIND, L>(m, s, n);
}

/* All entries of a lane from a row (absent ones are 0). */
template <int KIND, int L, int N, int S>
BK_DEVICE void bk_maps_load(const float *row, int m, int n, bool packed, float (&v)[S]) {
#pragma unroll
  for (int s = 0; s < S; s++) v[s] = 0.f;
  if constexpr (KIND == BK_HC_MHC && N == 4) {
    float mix[4];
    v[0] = row[m], v[1] = row[4 + m];
    bk_lane_load<4, 4>(row + 8 + 4 * m, 4, packed, mix);
#pragma unroll
    for (int k = 0; k < 4; k++) v[2 + k] = mix[k];
  } else {
#pragma unroll
    for (int s = 0; s < S; s++)
      if (bk_maps_present<KIND, L>(m, s, n)) v[s] = row[bk_maps_in_row<KIND, L>(m, s, n)];
  }
}

BK_DEVICE float bk_sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
/* Its derivative without cancellation. */
BK_DEVICE float bk_sigmoid_slope(float x) {
  const float e = expf(-fabsf(x)), s = 1.f + e;
  return e / (s * s);
}

/* ---- host ---- */
/* f(bk_int<kind>()) */
template <class F>
static inline void bk_maps_by_kind(bk_hc_kind kind, F f) {
  switch (kind) {
    case BK_HC_HC: f(bk_int<BK_HC_HC>()); break;
    case BK_HC_MHC: f(bk_int<BK_HC_MHC>()); break;
    case BK_HC_MHC_LITE: f(bk_int<BK_HC_MHC_LITE>()); break;
    case BK_HC_IHC: f(bk_int<BK_HC_IHC>()); break;
    case BK_HC_HEAD: f(bk_int<BK_HC_HEAD>()); break;
    default: break; /* the rows of the kernel table take no other kind (BK_CUDA_MAPS_KINDS) */
  }
}

#endif
