/* hc_sinkhorn: Sinkhorn's normalisation of n*n logits and its backward, BK_VW tokens at a time,
 * one per lane. For templates only. Blocks are [n*n][BK_VW] floats, entry m*n + k: source m,
 * destination k.
 *
 * An iterate is kept as p[m,k] r[m] c[k], p the softmax of the rows (+ eps), with the factors r
 * and c: a step computes new factors from p and the other factors, so that rounding errors do
 * not pile up from step to step, and the linear domain keeps the relative precision that
 * logarithms would lose with the size of the logits. A step divides by (s + eps), s the sum of a
 * line: 1 / r' = sum_k p c + eps / r. Where the logits of a row are too far apart for fp32 (or
 * factors run out of it), the token is done again in double (token_*); with hc_eps = 0 its first
 * row and column step are in the log domain: after these each step scales by at most n, so
 * nothing that matters can vanish.
 *
 * Backward, on D = (gradient of an iterate) * (iterate). For a step P = Q / (s + eps), s = sum Q
 * along an axis, with
 * delta = eps / (s + eps):  D_in[k] = D[k] - P[k] sum_j D[j] = sum_j (P[j] D[k] - P[k] D[j]) +
 *                           delta D[k]. The second form does
 * not cancel where P is close to a permutation. */
#ifndef BK_CPU_HC_SINKHORN_H
#define BK_CPU_HC_SINKHORN_H

#include "backends/cpu/hc_streams.h"

#define SINKHORN_RANGE 60.f  /* largest difference within a row that fp32 takes */
#define SINKHORN_LARGE 1e30f /* largest factor that fp32 takes */
#define SINKHORN_MAX_STEPS (2 * BK_HC_MAX_ITERS)

#define SINKHORN_N(name) name##_4
#define SINKHORN_UNROLL BK_UNROLL
#include "backends/cpu/hc_sinkhorn_n.h"
#undef SINKHORN_N
#undef SINKHORN_UNROLL
#define SINKHORN_N(name) name##_any
#define SINKHORN_UNROLL
#include "backends/cpu/hc_sinkhorn_n.h"

/* ---- one token in double, any finite logits ---- */
typedef struct token_sinkhorn {
  double soft[BK_HC_MAX_N * BK_HC_MAX_N]; /* softmax of the rows */
  double p[BK_HC_MAX_N * BK_HC_MAX_N];    /* the iterate */
  /* of each step after the softmax, eps included; 1 for the step in the log domain */
  double sums[SINKHORN_MAX_STEPS][BK_HC_MAX_N];
} token_sinkhorn;

static inline void token_log_step(double *l, int line, int step, int n) {
  for (int i = 0; i < n; i++) {
    double high = -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) high = fmax(high, l[i * line + j * step]);
    for (int j = 0; j < n; j++) sum += exp(l[i * line + j * step] - high);
    for (int j = 0; j < n; j++) l[i * line + j * step] -= high + log(sum);
  }
}

static inline void token_step(double *p, int line, int step, double eps, double *sums, int n) {
  for (int i = 0; i < n; i++) {
    double sum = eps;
    for (int j = 0; j < n; j++) sum += p[i * line + j * step];
    for (int j = 0; j < n; j++) p[i * line + j * step] /= sum;
    sums[i] = sum;
  }
}

static inline void token_forward(const float *logits, int lane, int iters, double eps,
                                 token_sinkhorn *t, int n) {
  double l[BK_HC_MAX_N * BK_HC_MAX_N];
  for (int j = 0; j < n * n; j++) l[j] = logits[j * BK_VW + lane];
  token_log_step(l, n, 1, n);
  for (int j = 0; j < n * n; j++) t->soft[j] = exp(l[j]);
  if (eps > 0) {
    for (int j = 0; j < n * n; j++) t->p[j] = t->soft[j] + eps;
    token_step(t->p, 1, n, eps, t->sums[0], n);
  } else {
    token_log_step(l, 1, n, n);
    for (int j = 0; j < n * n; j++) t->p[j] = exp(l[j]);
    for (int k = 0; k < n; k++) t->sums[0][k] = 1;
  }
  for (int i = 1; i < iters; i++) {
    token_step(t->p, n, 1, eps, t->sums[2 * i - 1], n);
    token_step(t->p, 1, n, eps, t->sums[2 * i], n);
  }
}

/* Gradient before a step, then the iterate before it (not so for a step in the log domain). */
static inline void token_undo(double *p, double *d, int line, int step, double eps,
                              const double *sums, int n) {
  for (int i = 0; i < n; i++) {
    double in[BK_HC_MAX_N];
    for (int j = 0; j < n; j++) in[j] = eps / sums[i] * d[i * line + j * step];
    for (int j = 0; j < n; j++)
      for (int k = j + 1; k < n; k++) {
        double t = p[i * line + j * step] * d[i * line + k * step] -
                   p[i * line + k * step] * d[i * line + j * step];
        in[k] += t;
        in[j] -= t;
      }
    for (int j = 0; j < n; j++) {
      d[i * line + j * step] = in[j];
      p[i * line + j * step] *= sums[i];
    }
  }
}

static inline void token_backward(const float *logits, const float *dcomb, int lane, float *dlogits,
                                  int iters, double eps, int n) {
  const double ones[BK_HC_MAX_N] = {1, 1, 1, 1, 1, 1, 1, 1};
  token_sinkhorn t;
  double d[BK_HC_MAX_N * BK_HC_MAX_N];
  token_forward(logits, lane, iters, eps, &t, n);
  for (int j = 0; j < n * n; j++) d[j] = dcomb[j * BK_VW + lane] * t.p[j];
  for (int i = iters - 1; i > 0; i--) {
    token_undo(t.p, d, 1, n, eps, t.sums[2 * i], n);
    token_undo(t.p, d, n, 1, eps, t.sums[2 * i - 1], n);
  }
  token_undo(t.p, d, 1, n, eps, t.sums[0], n);
  for (int j = 0; eps > 0 && j < n * n; j++) d[j] *= t.soft[j] / (t.soft[j] + eps);
  token_undo(t.soft, d, n, 1, 0, ones, n);
  for (int j = 0; j < n * n; j++) dlogits[j * BK_VW + lane] = (float)d[j];
}

/* ---- entry points: blocks of all lanes ---- */
static inline void sinkhorn_block(const float *logits, float *comb, int iters, double eps, int n) {
  bk_vi wide = n == 4 ? sinkhorn_lanes_4(logits, comb, iters, (float)eps, 4)
                      : sinkhorn_lanes_any(logits, comb, iters, (float)eps, n);
  for (int lane = 0; lane < BK_VW; lane++) {
    if (!wide[lane]) continue;
    token_sinkhorn t;
    token_forward(logits, lane, iters, eps, &t, n);
    for (int j = 0; j < n * n; j++) comb[j * BK_VW + lane] = (float)t.p[j];
  }
}

static inline void sinkhorn_bwd_block(const float *logits, const float *dcomb, float *dlogits,
                                      int iters, double eps, int n) {
  bk_vi wide = n == 4 ? sinkhorn_bwd_lanes_4(logits, dcomb, dlogits, iters, (float)eps, 4)
                      : sinkhorn_bwd_lanes_any(logits, dcomb, dlogits, iters, (float)eps, n);
  for (int lane = 0; lane < BK_VW; lane++)
    if (wide[lane]) token_backward(logits, dcomb, lane, dlogits, iters, eps, n);
}

#endif
