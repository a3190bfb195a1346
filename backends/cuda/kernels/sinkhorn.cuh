/* Sinkhorn's normalisation of n*n logits and its backward, on L lanes of a warp (4 or 8; L >=
 * n): lane m holds row m (fixed source m).
 *
 * An iterate is p[m][k] r[m] c[k], p the softmax of the rows (+ eps): a step computes new
 * factors from p and the other factors, so that rounding errors do not pile up from step to
 * step. A step divides by (s + eps), s the sum of a line: 1 / r' = sum_k p c + eps / r. Lane m
 * keeps row m and column m of p, the factor of its row and that of its column; a step is n
 * shuffles, n multiply-adds and one reciprocal in every lane.
 *
 * Backward, on D = (gradient of an iterate) * (iterate). For a step P = Q / (s + eps), s = sum Q
 * along a line, with
 * delta = eps / (s + eps):  D_in[k] = sum_j (P[j] D[k] - P[k] D[j]) + delta D[k], which does not
 *                           cancel where P is close to a permutation.
 * The factors of all steps stay in shared memory, 2 floats a lane an iteration; D is transposed
 * between row and column steps.
 *
 * Where the logits of a row are too far apart for fp32, or factors run out of it, the warp does
 * the token again in double (wide_*), with hc_eps = 0 its first row and column step in the log
 * domain: after these each step scales by at most n, so nothing that matters can vanish. All
 * lanes of a warp call these functions together. */
#ifndef BK_CUDA_SINKHORN_CUH
#define BK_CUDA_SINKHORN_CUH

#include "backends/cuda/kernels/hc.cuh"

#define BK_SINKHORN_RANGE 60.f  /* largest difference within a row that fp32 takes */
#define BK_SINKHORN_LARGE 1e30f /* largest factor that fp32 takes */
#define BK_SINKHORN_MATRIX (BK_HC_MAX_N * BK_HC_MAX_N)

/* Shared memory that a warp needs: a matrix in double, or three; for the backward also its
 * history. */
struct bk_sinkhorn_room {
  double p[BK_SINKHORN_MATRIX];
};
struct bk_sinkhorn_bwd_room {
  double p[BK_SINKHORN_MATRIX], soft[BK_SINKHORN_MATRIX], d[BK_SINKHORN_MATRIX];
};
/* Floats of a warp's history; as doubles, half of it holds the sums of a token in double. */
static inline __host__ __device__ int bk_sinkhorn_history(int iters) { return 2 * BK_WARP * iters; }

/* a[j] of lane i <-> a[i] of lane j, within groups of L lanes. */
template <int L>
BK_DEVICE void bk_lanes_transpose(float (&a)[L]) {
#pragma unroll
  for (int s = 1; s < L; s <<= 1) {
    const bool upper = threadIdx.x & s;
#pragma unroll
    for (int i = 0; i < L; i++) {
      if (i & s) continue;
      const float got = __shfl_xor_sync(BK_FULL_MASK, upper ? a[i] : a[i | s], s);
      if (upper) a[i] = got;
      else a[i | s] = got;
    }
  }
}

/* ---- in double: line i of a matrix in shared memory in lane i; entries line i, j at i * line +
 * j * step ---- */

BK_DEVICE void wide_log_step(double *l, int line, int step, int n) {
  const int i = (int)threadIdx.x % BK_WARP;
  if (i < n) {
    double high = l[i * line], sum = 0;
    for (int j = 1; j < n; j++)
      high = l[i * line + j * step] > high ? l[i * line + j * step] : high;
    for (int j = 0; j < n; j++) sum += exp(l[i * line + j * step] - high);
    high += log(sum);
    for (int j = 0; j < n; j++) l[i * line + j * step] -= high;
  }
  __syncwarp();
}

/* 1 / x for x > 0 by Newton's steps: a division would be a call. */
BK_DEVICE double wide_inverse(double x) {
  const double scale = x < 0x1p-100 ? 0x1p200 : 1, y = x * scale;
  double r = (double)__fdividef(1.f, (float)y);
  r = r * (2 - y * r);
  r = r * (2 - y * r);
  return r * (2 - y * r) * scale;
}

BK_DEVICE void wide_step(double *p, int line, int step, double eps, double *sums, int n) {
  const int i = (int)threadIdx.x % BK_WARP;
  if (i < n) {
    double sum = eps;
    for (int j = 0; j < n; j++) sum += p[i * line + j * step];
    const double inverse = wide_inverse(sum);
    for (int j = 0; j < n; j++) p[i * line + j * step] *= inverse;
    if (sums) sums[i] = sum;
  }
  __syncwarp();
}

/* p: the logits, becomes the result. soft: NULL, or gets the softmax of the rows; sums: NULL, or
 * gets [2 iters - 1][8] sums. */
BK_DEVICE void wide_forward(double *p, double *soft, double *sums, int iters, double eps, int n) {
  const int lane = (int)threadIdx.x % BK_WARP;
  wide_log_step(p, n, 1, n);
  if (soft)
    for (int j = lane; j < n * n; j += BK_WARP) soft[j] = exp(p[j]);
  __syncwarp();
  if (eps > 0) {
    for (int j = lane; j < n * n; j += BK_WARP) p[j] = exp(p[j]) + eps;
    __syncwarp();
    wide_step(p, 1, n, eps, sums, n);
  } else {
    wide_log_step(p, 1, n, n);
    for (int j = lane; j < n * n; j += BK_WARP) p[j] = exp(p[j]);
    if (sums && lane < n) sums[lane] = 1;
    __syncwarp();
  }
  for (int t = 1; t < 2 * iters - 1; t++)
    wide_step(p, t % 2 ? n : 1, t % 2 ? 1 : n, eps, sums ? sums + t * BK_HC_MAX_N : nullptr, n);
}

/* Gradient before a step, then the iterate before it (not so for a step in the log domain). */
BK_DEVICE void wide_undo(double *p, double *d, int line, int step, double eps, const double *sums,
                         int n) {
  const int i = (int)threadIdx.x % BK_WARP;
  if (i < n) {
    double *pi = p + i * line, *di = d + i * line, total = 0, rest = 0;
    const double sum = sums ? sums[i] : 1;
    /* D - P sum(D), which in double may cancel; with eps = 0 what the first round leaves of the
     * sum is taken off again. */
    for (int j = 0; j < n; j++) total += di[j * step];
    for (int j = 0; j < n; j++) di[j * step] -= pi[j * step] * total;
    if (eps == 0) {
      for (int j = 0; j < n; j++) rest += di[j * step];
      for (int j = 0; j < n; j++) di[j * step] -= pi[j * step] * rest;
    }
    for (int j = 0; j < n; j++) pi[j * step] *= sum;
  }
  __syncwarp();
}

/* room->p: the logits; room->d: dcomb, becomes dlogits. */
BK_DEVICE void wide_backward(bk_sinkhorn_bwd_room *room, double *sums, int iters, double eps,
                             int n) {
  const int lane = (int)threadIdx.x % BK_WARP;
  wide_forward(room->p, room->soft, sums, iters, eps, n);
  for (int j = lane; j < n * n; j += BK_WARP) room->d[j] *= room->p[j];
  __syncwarp();
  for (int t = 2 * iters - 2; t >= 0; t--)
    wide_undo(room->p, room->d, t % 2 ? n : 1, t % 2 ? 1 : n, eps, sums + t * BK_HC_MAX_N, n);
  if (eps > 0)
    for (int j = lane; j < n * n; j += BK_WARP)
      room->d[j] *= room->soft[j] * wide_inverse(room->soft[j] + eps);
  __syncwarp();
  wide_undo(room->soft, room->d, n, 1, 0, nullptr, n);
}

/* ---- in fp32 ---- */

/* What a lane keeps: row m and column m of p; factors and their inverses. */
template <int L>
struct bk_sinkhorn_lane {
  float row[L], column[L], r, c, r_inverse, c_inverse;
};

/* Softmax of the row, plus eps; true if its range is too large. Entries from n on are 0. */
template <int L>
BK_DEVICE bool sinkhorn_softmax(const float (&logits)[L], float eps, int n, float (&p)[L]) {
  float high = logits[0], low = logits[0], sum = 0;
#pragma unroll
  for (int k = 1; k < L; k++)
    if (k < n) high = fmaxf(high, logits[k]), low = fminf(low, logits[k]);
#pragma unroll
  for (int k = 0; k < L; k++) {
    p[k] = k < n ? expf(logits[k] - high) : 0.f;
    sum += p[k];
  }
  sum = __fdividef(1.f, sum);
#pragma unroll
  for (int k = 0; k < L; k++) p[k] = k < n ? p[k] * sum + eps : 0.f;
  return !(high - low <= BK_SINKHORN_RANGE);
}

/* sum of line[j] * (the factor of lane j of the group) */
template <int L>
BK_DEVICE float sinkhorn_line(const float (&line)[L], float factor, int n, float sum) {
#pragma unroll
  for (int j = 0; j < L; j++)
    if (j < n) sum += line[j] * __shfl_sync(BK_FULL_MASK, factor, j, L);
  return sum;
}

/* All steps; history: NULL, or [iters][2][32] factors r and c of the warp. True if a factor of
 * this lane ran out of range. */
template <int L>
BK_DEVICE bool sinkhorn_steps(bk_sinkhorn_lane<L> &s, int iters, float eps, int n, float *history) {
  const int lane = (int)threadIdx.x % BK_WARP;
  s.r = s.c = s.r_inverse = s.c_inverse = 1.f;
  for (int t = 0; t < iters; t++) {
    if (t > 0) {
      s.r_inverse = sinkhorn_line<L>(s.row, s.c, n, eps * s.r_inverse);
      s.r = __fdividef(1.f, s.r_inverse);
    }
    s.c_inverse = sinkhorn_line<L>(s.column, s.r, n, eps * s.c_inverse);
    s.c = __fdividef(1.f, s.c_inverse);
    if (history) history[2 * t * BK_WARP + lane] = s.r, history[(2 * t + 1) * BK_WARP + lane] = s.c;
  }
  return !(s.r < BK_SINKHORN_LARGE && s.c < BK_SINKHORN_LARGE);
}

/* The lanes of the warp whose group has a lane with the flag, as a mask of groups' first lanes. */
template <int L>
BK_DEVICE unsigned sinkhorn_wide_groups(bool wide) {
  unsigned mask = __ballot_sync(BK_FULL_MASK, wide);
#pragma unroll
  for (int s = 1; s < L; s <<= 1) mask |= mask >> s;
  return mask & (L == 4 ? 0x11111111u : 0x01010101u);
}

/* comb = Sinkhorn of logits, row m in lane m of each group; `live`: the lane has a row. n = N
 * unless N is 0. */
template <int L, int N>
BK_DEVICE void bk_sinkhorn(const float (&logits)[L], float (&comb)[L], bool live, int n_given,
                           int iters, double eps, bk_sinkhorn_room *room) {
  const int n = N ? N : n_given, lane = (int)threadIdx.x % BK_WARP, m = lane % L;
  bk_sinkhorn_lane<L> s;
  bool wide = sinkhorn_softmax<L>(logits, (float)eps, n, s.row);
#pragma unroll
  for (int k = 0; k < L; k++) s.column[k] = s.row[k];
  bk_lanes_transpose<L>(s.column);
  wide |= sinkhorn_steps<L>(s, iters, (float)eps, n, nullptr);
#pragma unroll
  for (int k = 0; k < L; k++) comb[k] = s.row[k] * s.r * __shfl_sync(BK_FULL_MASK, s.c, k, L);
  const unsigned groups = sinkhorn_wide_groups<L>(wide && live);
  if (groups == 0) return;
#pragma unroll 1
  /* counted, so that the proofs of tests/cuda/prove can follow it */
  for (int first = 0; first < BK_WARP; first += L) {
    if (!(groups >> first & 1)) continue;
    const bool mine = live && lane - m == first;
#pragma unroll
    for (int k = 0; k < L; k++)
      if (mine && k < n) room->p[m * n + k] = (double)logits[k];
    __syncwarp();
    wide_forward(room->p, nullptr, nullptr, iters, eps, n);
#pragma unroll
    for (int k = 0; k < L; k++)
      if (mine && k < n) comb[k] = (float)room->p[m * n + k];
    __syncwarp();
  }
}

/* D of the iterate q -> D before the step along the line that gave it. */
template <int L>
BK_DEVICE void sinkhorn_undo(const float (&q)[L], float (&d)[L], float delta, int n) {
  float in[L];
#pragma unroll
  for (int j = 0; j < L; j++) in[j] = delta * d[j];
#pragma unroll
  for (int j = 0; j < L; j++)
#pragma unroll
    for (int k = j + 1; k < L; k++) {
      if (k >= n) break;
      const float t = q[j] * d[k] - q[k] * d[j];
      in[k] += t;
      in[j] -= t;
    }
#pragma unroll
  for (int j = 0; j < L; j++) d[j] = in[j];
}

/* Walks the steps back; d: D of the result, becomes that of the softmax. */
template <int L>
BK_DEVICE void sinkhorn_walk_back(const bk_sinkhorn_lane<L> &s, float (&d)[L], int iters, float eps,
                                  int n, const float *history) {
  const int lane = (int)threadIdx.x % BK_WARP, first = lane / L * L;
  float q[L];
  for (int t = iters - 1; t >= 0; t--) {
    const float *rt = history + 2 * t * BK_WARP, *ct = rt + BK_WARP, *r_before = rt - 2 * BK_WARP,
                *c_before = ct - 2 * BK_WARP;
    const float c = ct[lane], r = rt[lane];
#pragma unroll
    for (int j = 0; j < L; j++) q[j] = j < n ? s.column[j] * rt[first + j] * c : 0.f;
    bk_lanes_transpose<L>(d);
    sinkhorn_undo<L>(q, d, eps > 0 ? __fdividef(eps * c, t > 0 ? c_before[lane] : 1.f) : 0.f, n);
    bk_lanes_transpose<L>(d);
    if (t == 0) break;
#pragma unroll
    for (int k = 0; k < L; k++) q[k] = k < n ? s.row[k] * r * c_before[first + k] : 0.f;
    sinkhorn_undo<L>(q, d, eps > 0 ? __fdividef(eps * r, r_before[lane]) : 0.f, n);
  }
}

/* dlogits from dcomb and the logits, rows as above. history: bk_sinkhorn_history(iters) floats
 * of the warp. */
template <int L, int N>
BK_DEVICE void bk_sinkhorn_bwd(const float (&logits)[L], const float (&dcomb)[L],
                               float (&dlogits)[L], bool live, int n_given, int iters,
                               double eps_given, float *history, bk_sinkhorn_bwd_room *room) {
  const int n = N ? N : n_given, lane = (int)threadIdx.x % BK_WARP, m = lane % L;
  const float eps = (float)eps_given;
  bk_sinkhorn_lane<L> s;
  bool wide = sinkhorn_softmax<L>(logits, eps, n, s.row);
  if (m >= n) { /* no row: nothing may come from here */
#pragma unroll
    for (int k = 0; k < L; k++) s.row[k] = 0.f;
  }
#pragma unroll
  for (int k = 0; k < L; k++) s.column[k] = s.row[k];
  bk_lanes_transpose<L>(s.column);
  wide |= sinkhorn_steps<L>(s, iters, eps, n, history);
  __syncwarp();
#pragma unroll
  for (int k = 0; k < L; k++) {
    const float c = __shfl_sync(BK_FULL_MASK, s.c, k, L);
    dlogits[k] = m < n && k < n ? dcomb[k] * (s.row[k] * s.r * c) : 0.f;
  }
  sinkhorn_walk_back<L>(s, dlogits, iters, eps, n, history);
#pragma unroll
  for (int k = 0; k < L; k++) {
    const float soft = s.row[k] - eps; /* the softmax itself */
    if (eps > 0) dlogits[k] = k < n ? dlogits[k] * __fdividef(soft, s.row[k]) : 0.f;
    s.row[k] = soft;
  }
  sinkhorn_undo<L>(s.row, dlogits, 0.f, n);
  __syncwarp();
  const unsigned groups = sinkhorn_wide_groups<L>(wide && live);
  if (groups == 0) return;
#pragma unroll 1
  /* counted, so that the proofs of tests/cuda/prove can follow it */
  for (int first = 0; first < BK_WARP; first += L) {
    if (!(groups >> first & 1)) continue;
    const bool mine = live && lane - m == first;
#pragma unroll
    for (int k = 0; k < L; k++)
      if (mine && k < n)
        room->p[m * n + k] = (double)logits[k], room->d[m * n + k] = (double)dcomb[k];
    __syncwarp();
    wide_backward(room, reinterpret_cast<double *>(history), iters, eps_given, n);
#pragma unroll
    for (int k = 0; k < L; k++)
      if (mine && k < n) dlogits[k] = (float)room->d[m * n + k];
    __syncwarp();
  }
}

#endif
