/* hc_maps: logits, gates, Sinkhorn, permutations, and all maps of a token, on blocks of BK_VW
 * tokens; what the kernels of the maps and those fused with their neighbours share. For
 * templates only.
 *
 * BK_VW tokens are turned into blocks [row][BK_VW], one token per lane; lanes past the last
 * token hold zeros, which are legal inputs and give zero gradients. dscale and dbase: lanes are
 * summed in fp32 over a piece, then in double (hc.h). */
#ifndef BK_CPU_HC_MAPS_H
#define BK_CPU_HC_MAPS_H

#include "backends/cpu/hc_sinkhorn.h"

typedef float map_block[BK_HC_MAX_ROWS * BK_VW];
#define ROW(block, j) bk_v_ld(block, (j)*BK_VW, false)
#define SET_ROW(block, j, v) bk_v_st(block, (j)*BK_VW, false, v)

/* ---- blocks: columns [column, column + count) of `lanes` rows from row i on ---- */
static inline void gather(const bk_tensor *t, int64_t i, int64_t lanes, int64_t column,
                          int64_t count, float *out) {
  if (lanes < BK_VW) memset(out, 0, (size_t)(count * BK_VW) * sizeof(float));
  for (int64_t l = 0; l < lanes; l++) {
    const float *row = (const float *)bk_cpu_at(t, i + l) + column;
    for (int64_t j = 0; j < count; j++) out[j * BK_VW + l] = row[j];
  }
}
static inline void scatter(const bk_tensor *t, int64_t i, int64_t lanes, int64_t column,
                           int64_t count, const float *in) {
  for (int64_t l = 0; l < lanes; l++) {
    float *row = (float *)bk_cpu_at(t, i + l) + column;
    for (int64_t j = 0; j < count; j++) row[j] = in[j * BK_VW + l];
  }
}
/* The same of [N,n,n]. */
static inline void gather_nn(const bk_tensor *t, int64_t i, int64_t lanes, float *out) {
  int64_t n = t->shape[1];
  if (lanes < BK_VW) memset(out, 0, (size_t)(n * n * BK_VW) * sizeof(float));
  for (int64_t l = 0; l < lanes; l++)
    for (int64_t m = 0; m < n; m++) {
      const float *row = (const float *)bk_cpu_at2(t, i + l, m);
      for (int64_t k = 0; k < n; k++) out[(m * n + k) * BK_VW + l] = row[k];
    }
}
static inline void scatter_nn(const bk_tensor *t, int64_t i, int64_t lanes, const float *in) {
  int64_t n = t->shape[1];
  for (int64_t l = 0; l < lanes; l++)
    for (int64_t m = 0; m < n; m++) {
      float *row = (float *)bk_cpu_at2(t, i + l, m);
      for (int64_t k = 0; k < n; k++) row[k] = in[(m * n + k) * BK_VW + l];
    }
}
/* Dense vectors of `per_token` values a token. */
static inline void gather_vector(const bk_tensor *t, int64_t i, int64_t lanes, int64_t per_token,
                                 float *out) {
  const float *in = (const float *)bk_tensor_data(t) + i * per_token;
  memset(out, 0, (size_t)(per_token * BK_VW) * sizeof(float));
  for (int64_t l = 0; l < lanes; l++)
    for (int64_t j = 0; j < per_token; j++) out[j * BK_VW + l] = in[l * per_token + j];
}
static inline void scatter_vector(const bk_tensor *t, int64_t i, int64_t lanes, int64_t per_token,
                                  const float *in) {
  float *out = (float *)bk_tensor_data(t) + i * per_token;
  for (int64_t l = 0; l < lanes; l++)
    for (int64_t j = 0; j < per_token; j++) out[l * per_token + j] = in[j * BK_VW + l];
}

static inline int group_of(int row, int n) { return row < n ? 0 : row < 2 * n ? 1 : 2; }

/* ---- the maps on blocks ---- */
static inline void logits_block(const float *proj, const float *rinv, const float *scale,
                                const float *base, int rows, int n, float *logits) {
  bk_vf r = bk_v_ld(rinv, 0, false);
  for (int j = 0; j < rows; j++)
    SET_ROW(logits, j, ROW(proj, j) * r * scale[group_of(j, n)] + base[j]);
}

static inline void pre_block(const float *logits, int n, double eps, float *pre) {
  for (int j = 0; j < n; j++) SET_ROW(pre, j, bk_v_sigmoid(ROW(logits, j)) + (float)eps);
}
static inline void post_block(const float *logits, int n, float *post) {
  for (int j = 0; j < n; j++) SET_ROW(post, j, 2.f * bk_v_sigmoid(ROW(logits, j)));
}
/* Derivative of the sigmoid without cancellation: e / (1 + e)^2, e = exp(-|l|). */
static inline void gate_bwd_block(const float *logits, const float *dgate, int n, float factor,
                                  float *dlogits) {
  for (int j = 0; j < n; j++) {
    bk_vf e = bk_v_exp(-bk_v_abs(ROW(logits, j))), s = 1.f + e;
    SET_ROW(dlogits, j, ROW(dgate, j) * factor * (e / (s * s)));
  }
}

/* Softmax over `count` rows. */
static inline void softmax_block(const float *logits, int count, float *w) {
  bk_vf high = ROW(logits, 0), sum = bk_v_zero();
  for (int q = 1; q < count; q++) high = bk_v_max(high, ROW(logits, q));
  for (int q = 0; q < count; q++) {
    bk_vf e = bk_v_exp(ROW(logits, q) - high);
    SET_ROW(w, q, e);
    sum = sum + e;
  }
  for (int q = 0; q < count; q++) SET_ROW(w, q, ROW(w, q) / sum);
}

static inline void perm_block(const float *logits, const uint8_t *perms, int n, float *comb) {
  int count = bk_factorial(n);
  map_block w;
  softmax_block(logits, count, w);
  for (int j = 0; j < n * n; j++) SET_ROW(comb, j, bk_v_zero());
  for (int q = 0; q < count; q++, perms += n)
    for (int m = 0; m < n; m++) {
      int j = m * n + perms[m];
      SET_ROW(comb, j, ROW(comb, j) + ROW(w, q));
    }
}

/* dlogits[q] = w[q] (a[q] - sum w a), a[q] = sum_m dcomb[m][perm_q(m)]. The mean is taken off
 * twice: the first time leaves small exact differences where one weight is close to 1. */
static inline void perm_bwd_block(const float *logits, const float *dcomb, const uint8_t *perms,
                                  int n, float *dlogits) {
  int count = bk_factorial(n);
  map_block w, a;
  bk_vf mean = bk_v_zero(), rest = bk_v_zero();
  softmax_block(logits, count, w);
  for (int q = 0; q < count; q++, perms += n) {
    bk_vf sum = bk_v_zero();
    for (int m = 0; m < n; m++) sum = sum + ROW(dcomb, m * n + perms[m]);
    SET_ROW(a, q, sum);
    mean = ROW(w, q) * sum + mean;
  }
  for (int q = 0; q < count; q++) {
    SET_ROW(a, q, ROW(a, q) - mean);
    rest = ROW(w, q) * ROW(a, q) + rest;
  }
  for (int q = 0; q < count; q++) SET_ROW(dlogits, q, ROW(w, q) * (ROW(a, q) - rest));
}

/* ---- sums of dscale and dbase ---- */
typedef struct partials {
  double *at; /* [pieces][base + scale] */
  int64_t grain, pieces;
  int base, scale;
} partials;

static inline partials partials_of(bk_place workspace, int64_t tokens, const bk_tensor *dbase,
                                   const bk_tensor *dscale) {
  return (partials){bk_place_data(workspace), bk_hc_grain(tokens), bk_hc_pieces(tokens),
                    (int)dbase->shape[0], (int)dscale->shape[0]};
}
/* The sums of the piece that begins at `begin`: rows of base, then of scale, as lanes. */
static inline void partials_store(const partials *p, int64_t begin, const float *sums) {
  double *out = p->at + begin / p->grain * (p->base + p->scale);
  for (int j = 0; j < p->base + p->scale; j++) {
    double sum = 0;
    for (int l = 0; l < BK_VW; l++) sum += (double)sums[j * BK_VW + l];
    out[j] = sum;
  }
}
static inline void partials_add(const partials *p, const bk_tensor *dscale,
                                const bk_tensor *dbase) {
  float *scale = bk_tensor_present(dscale) ? bk_tensor_data(dscale) : NULL;
  float *base = bk_tensor_present(dbase) ? bk_tensor_data(dbase) : NULL;
  for (int j = 0; j < p->base + p->scale; j++) {
    double sum = 0;
    for (int64_t i = 0; i < p->pieces; i++) sum += p->at[i * (p->base + p->scale) + j];
    if (j < p->base && base) base[j] = (float)((double)base[j] + sum);
    if (j >= p->base && scale) scale[j - p->base] = (float)((double)scale[j - p->base] + sum);
  }
}

/* dproj (may be proj) and drinv of a block from dlogits, and its share of the sums. */
static inline void logits_bwd_block(const float *proj, const float *rinv, const float *scale,
                                    const float *dlogits, int rows, int n, float *dproj,
                                    float *drinv, float *sums) {
  bk_vf r = bk_v_ld(rinv, 0, false), back = bk_v_zero();
  for (int j = 0; j < rows; j++) {
    int g = group_of(j, n);
    bk_vf d = ROW(dlogits, j), p = ROW(proj, j), scaled = d * scale[g];
    back = scaled * p + back;
    SET_ROW(dproj, j, scaled * r);
    SET_ROW(sums, j, ROW(sums, j) + d);
    SET_ROW(sums, rows + g, ROW(sums, rows + g) + d * p * r);
  }
  SET_ROW(drinv, 0, back);
}

/* ---- all maps in one go, other than the hc kind's ---- */
typedef struct maps_job {
  bk_hc_maps_args a;
  const uint8_t *perms;
  int rows; /* of logits per token */
} maps_job;

static inline void maps_tokens(const maps_job *job, int64_t i, int64_t lanes) {
  const bk_hc_maps_args *a = &job->a;
  map_block proj, logits, out;
  float rinv[BK_VW];
  int n = a->n;
  gather(&a->proj, i, lanes, 0, job->rows, proj);
  gather_vector(&a->rinv, i, lanes, 1, rinv);
  logits_block(proj, rinv, bk_tensor_data(&a->scale), bk_tensor_data(&a->base), job->rows, n,
               logits);
  pre_block(logits, n, a->hc_eps, out);
  scatter(&a->pre, i, lanes, 0, n, out);
  if (a->kind == BK_HC_HEAD) return;
  post_block(logits + n * BK_VW, n, out);
  scatter(&a->post, i, lanes, 0, n, out);
  if (a->kind == BK_HC_IHC) return;
  if (a->kind == BK_HC_MHC) sinkhorn_block(logits + 2 * n * BK_VW, out, a->iters, a->hc_eps, n);
  else perm_block(logits + 2 * n * BK_VW, job->perms, n, out);
  scatter_nn(&a->comb, i, lanes, out);
}

typedef struct maps_bwd_job {
  bk_hc_maps_bwd_args a;
  const uint8_t *perms;
  int rows;
  partials p;
} maps_bwd_job;

static inline void maps_bwd_tokens(const maps_bwd_job *job, int64_t i, int64_t lanes, float *sums) {
  const bk_hc_maps_bwd_args *a = &job->a;
  const float *scale = bk_tensor_data(&a->scale);
  map_block proj, logits, given, dlogits;
  float rinv[BK_VW], drinv[BK_VW];
  int n = a->n;
  gather(&a->proj, i, lanes, 0, job->rows, proj);
  gather_vector(&a->rinv, i, lanes, 1, rinv);
  logits_block(proj, rinv, scale, bk_tensor_data(&a->base), job->rows, n, logits);
  gather(&a->dpre, i, lanes, 0, n, given);
  gate_bwd_block(logits, given, n, 1.f, dlogits);
  if (a->kind != BK_HC_HEAD) {
    gather(&a->dpost, i, lanes, 0, n, given);
    gate_bwd_block(logits + n * BK_VW, given, n, 2.f, dlogits + n * BK_VW);
  }
  if (a->kind == BK_HC_MHC || a->kind == BK_HC_MHC_LITE) {
    float *l = logits + 2 * n * BK_VW, *d = dlogits + 2 * n * BK_VW;
    gather_nn(&a->dcomb, i, lanes, given);
    if (a->kind == BK_HC_MHC) sinkhorn_bwd_block(l, given, d, a->iters, a->hc_eps, n);
    else perm_bwd_block(l, given, job->perms, n, d);
  }
  logits_bwd_block(proj, rinv, scale, dlogits, job->rows, n, proj, drinv, sums);
  scatter(&a->dproj, i, lanes, 0, job->rows, proj);
  scatter_vector(&a->drinv, i, lanes, 1, drinv);
}

static inline maps_bwd_job maps_bwd_of(const bk_hc_maps_bwd_args *a, const bk_plan *plan,
                                       bk_place workspace) {
  int64_t tokens = a->kind == BK_HC_HC ? a->proj.shape[0] / a->n : a->proj.shape[0];
  return (maps_bwd_job){*a, plan->state, (int)a->proj.shape[1],
                        partials_of(workspace, tokens, &a->dbase, &a->dscale)};
}

#endif
