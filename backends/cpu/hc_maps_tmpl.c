/* hc_maps: logits, gates, Sinkhorn, permutations, Kronecker products and tanh maps, and all maps
 * in one go, forward and backward. Template, see cpu.h. The work on blocks of tokens is in
 * hc_maps.h. */
#include "backends/cpu/hc_maps.h"

/* ---- all maps in one go; the hc kind's are at the end ---- */
static void tanh_tokens(const maps_job *job, int64_t i, int64_t lanes);

static void maps_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const maps_job *job = arg;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    if (job->a.kind == BK_HC_HC) tanh_tokens(job, i, lanes);
    else maps_tokens(job, i, lanes);
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_maps)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  maps_job job = {*(const bk_hc_maps_args *)args, plan->state, 0};
  int64_t tokens = job.a.kind == BK_HC_HC ? job.a.proj.shape[0] / job.a.n : job.a.proj.shape[0];
  (void)workspace;
  job.rows = (int)job.a.proj.shape[1];
  bk_cpu_run(stream, tokens, bk_hc_grain(tokens), maps_piece, &job);
  return BK_OK;
}

static void tanh_bwd_tokens(const maps_bwd_job *job, int64_t i, int64_t lanes, float *sums);

static void maps_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const maps_bwd_job *job = arg;
  map_block sums = {0};
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    if (job->a.kind == BK_HC_HC) tanh_bwd_tokens(job, i, lanes, sums);
    else maps_bwd_tokens(job, i, lanes, sums);
  }
  partials_store(&job->p, begin, sums);
}

bk_status BK_ISA_NAME(bk_cpu_hc_maps_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_maps_bwd_args *a = args;
  maps_bwd_job job = maps_bwd_of(a, plan, workspace);
  bk_cpu_run(stream, a->kind == BK_HC_HC ? a->proj.shape[0] / a->n : a->proj.shape[0], job.p.grain,
             maps_bwd_piece, &job);
  partials_add(&job.p, &a->dscale, &a->dbase);
  return BK_OK;
}

/* ---- hc: proj [N*n, n+2], rinv [N*n]; block row m(n+2) + j is u[m][j] of a token ---- */
static void tanh_u(const bk_tensor *proj, const bk_tensor *rinv, int n, int64_t i, int64_t lanes,
                   float *p, float *r) {
  int columns = n + 2;
  gather_vector(rinv, i, lanes, n, r);
  memset(p, 0, (size_t)(n * columns * BK_VW) * sizeof(float));
  for (int64_t l = 0; l < lanes; l++)
    for (int m = 0; m < n; m++) {
      const float *row = (const float *)bk_cpu_at(proj, (i + l) * n + m);
      for (int j = 0; j < columns; j++) p[(m * columns + j) * BK_VW + l] = row[j];
    }
}

static void tanh_tokens(const maps_job *job, int64_t i, int64_t lanes) {
  const bk_hc_maps_args *a = &job->a;
  const float *scale = bk_tensor_data(&a->scale), *base = bk_tensor_data(&a->base);
  map_block p, pre, post, comb;
  float r[BK_HC_MAX_N * BK_VW];
  int n = a->n;
  tanh_u(&a->proj, &a->rinv, n, i, lanes, p, r);
  for (int m = 0; m < n; m++) {
    const float *u = p + m * (n + 2) * BK_VW;
    bk_vf rm = ROW(r, m);
    SET_ROW(pre, m, scale[0] * bk_v_tanh(ROW(u, 0) * rm) + base[m]);
    SET_ROW(post, m, scale[1] * bk_v_tanh(ROW(u, 1) * rm) + base[n + m]);
    for (int k = 0; k < n; k++)
      SET_ROW(comb, m * n + k, scale[2] * bk_v_tanh(ROW(u, 2 + k) * rm) + base[2 * n + m * n + k]);
  }
  scatter(&a->pre, i, lanes, 0, n, pre);
  scatter(&a->post, i, lanes, 0, n, post);
  scatter_nn(&a->comb, i, lanes, comb);
}

/* Backward of value = scale tanh(p r) + base for one row. */
BK_INLINE void tanh_bwd_row(bk_vf given, float scale, bk_vf r, float *p, bk_vf *drinv,
                            float *base_sum, float *scale_sum) {
  bk_vf v = bk_v_ld(p, 0, false), u = v * r, e = bk_v_exp(-2.f * bk_v_abs(u)), s = 1.f + e;
  bk_vf du = given * scale * (4.f * e / (s * s)); /* 1 - tanh^2 without cancellation */
  *drinv = du * v + *drinv;
  bk_v_st(base_sum, 0, false, bk_v_ld(base_sum, 0, false) + given);
  bk_v_st(scale_sum, 0, false, given * bk_v_tanh(u) + bk_v_ld(scale_sum, 0, false));
  bk_v_st(p, 0, false, du * r);
}

static void tanh_bwd_tokens(const maps_bwd_job *job, int64_t i, int64_t lanes, float *sums) {
  const bk_hc_maps_bwd_args *a = &job->a;
  const float *scale = bk_tensor_data(&a->scale);
  map_block p, dpre, dpost, dcomb;
  float r[BK_HC_MAX_N * BK_VW], drinv[BK_HC_MAX_N * BK_VW];
  int n = a->n, columns = n + 2;
  float *scale_sums = sums + n * (n + 2) * BK_VW;
  tanh_u(&a->proj, &a->rinv, n, i, lanes, p, r);
  gather(&a->dpre, i, lanes, 0, n, dpre);
  gather(&a->dpost, i, lanes, 0, n, dpost);
  gather_nn(&a->dcomb, i, lanes, dcomb);
  for (int m = 0; m < n; m++) {
    float *row = p + m * columns * BK_VW;
    bk_vf rm = ROW(r, m), back = bk_v_zero();
    tanh_bwd_row(ROW(dpre, m), scale[0], rm, row, &back, sums + m * BK_VW, scale_sums);
    tanh_bwd_row(ROW(dpost, m), scale[1], rm, row + BK_VW, &back, sums + (n + m) * BK_VW,
                 scale_sums + BK_VW);
    for (int k = 0; k < n; k++)
      tanh_bwd_row(ROW(dcomb, m * n + k), scale[2], rm, row + (2 + k) * BK_VW, &back,
                   sums + (2 * n + m * n + k) * BK_VW, scale_sums + 2 * BK_VW);
    SET_ROW(drinv, m, back);
  }
  for (int64_t l = 0; l < lanes; l++)
    for (int m = 0; m < n; m++) {
      float *row = (float *)bk_cpu_at(&a->dproj, (i + l) * n + m);
      for (int j = 0; j < columns; j++) row[j] = p[(m * columns + j) * BK_VW + l];
    }
  scatter_vector(&a->drinv, i, lanes, n, drinv);
}

/* ---- the primitives ---- */
bk_status BK_ISA_NAME(bk_cpu_hc_tanh)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  const bk_hc_tanh_args *a = args;
  maps_job job = {.a = {.proj = a->proj,
                        .rinv = a->rinv,
                        .scale = a->scale,
                        .base = a->base,
                        .pre = a->pre,
                        .post = a->post,
                        .comb = a->comb,
                        .kind = BK_HC_HC,
                        .n = a->n}};
  int64_t tokens = a->proj.shape[0] / a->n;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, tokens, bk_hc_grain(tokens), maps_piece, &job);
  return BK_OK;
}

bk_status BK_ISA_NAME(bk_cpu_hc_tanh_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_tanh_bwd_args *a = args;
  maps_bwd_job job = {.a = {.proj = a->proj,
                            .rinv = a->rinv,
                            .scale = a->scale,
                            .dpre = a->dpre,
                            .dpost = a->dpost,
                            .dcomb = a->dcomb,
                            .dproj = a->dproj,
                            .drinv = a->drinv,
                            .kind = BK_HC_HC,
                            .n = a->n}};
  int64_t tokens = a->proj.shape[0] / a->n;
  (void)plan;
  job.p = partials_of(workspace, tokens, &a->dbase, &a->dscale);
  bk_cpu_run(stream, tokens, job.p.grain, maps_bwd_piece, &job);
  partials_add(&job.p, &a->dscale, &a->dbase);
  return BK_OK;
}

static void logits_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_logits_args *a = arg;
  const float *rinv = bk_tensor_data(&a->rinv), *scale = bk_tensor_data(&a->scale),
              *base = bk_tensor_data(&a->base);
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    const float *proj = (const float *)bk_cpu_at(&a->proj, i);
    float *logits = (float *)bk_cpu_at(&a->logits, i);
    for (int j = 0; j < (int)a->proj.shape[1]; j++)
      logits[j] = proj[j] * rinv[i] * scale[group_of(j, a->n)] + base[j];
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_logits)(bk_stream *stream, const bk_plan *plan, const void *args,
                                        bk_place workspace) {
  const bk_hc_logits_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->proj.shape[0], bk_hc_grain(a->proj.shape[0]), logits_piece, a);
  return BK_OK;
}

typedef struct logits_bwd_job {
  const bk_hc_logits_bwd_args *a;
  partials p;
} logits_bwd_job;

static void logits_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const logits_bwd_job *job = arg;
  const bk_hc_logits_bwd_args *a = job->a;
  int rows = (int)a->proj.shape[1];
  map_block sums = {0}, proj, dlogits;
  float rinv[BK_VW], drinv[BK_VW];
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather(&a->proj, i, lanes, 0, rows, proj);
    gather(&a->dlogits, i, lanes, 0, rows, dlogits);
    gather_vector(&a->rinv, i, lanes, 1, rinv);
    logits_bwd_block(proj, rinv, bk_tensor_data(&a->scale), dlogits, rows, a->n, proj, drinv, sums);
    scatter(&a->dproj, i, lanes, 0, rows, proj);
    scatter_vector(&a->drinv, i, lanes, 1, drinv);
  }
  partials_store(&job->p, begin, sums);
}

bk_status BK_ISA_NAME(bk_cpu_hc_logits_bwd)(bk_stream *stream, const bk_plan *plan,
                                            const void *args, bk_place workspace) {
  const bk_hc_logits_bwd_args *a = args;
  logits_bwd_job job = {a, partials_of(workspace, a->proj.shape[0], &a->dbase, &a->dscale)};
  (void)plan;
  bk_cpu_run(stream, a->proj.shape[0], job.p.grain, logits_bwd_piece, &job);
  partials_add(&job.p, &a->dscale, &a->dbase);
  return BK_OK;
}

static void gates_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_gates_args *a = arg;
  int n = (int)a->pre.shape[1];
  map_block logits, out;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather(&a->logits, i, lanes, 0, n, logits);
    pre_block(logits, n, a->hc_eps, out);
    scatter(&a->pre, i, lanes, 0, n, out);
    if (!bk_tensor_present(&a->post)) continue;
    gather(&a->logits, i, lanes, n, n, logits);
    post_block(logits, n, out);
    scatter(&a->post, i, lanes, 0, n, out);
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_gates)(bk_stream *stream, const bk_plan *plan, const void *args,
                                       bk_place workspace) {
  const bk_hc_gates_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->logits.shape[0], bk_hc_grain(a->logits.shape[0]), gates_piece, a);
  return BK_OK;
}

static void gates_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_gates_bwd_args *a = arg;
  int n = (int)a->dpre.shape[1];
  map_block logits, given, out;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather(&a->logits, i, lanes, 0, n, logits);
    gather(&a->dpre, i, lanes, 0, n, given);
    gate_bwd_block(logits, given, n, 1.f, out);
    scatter(&a->dlogits, i, lanes, 0, n, out);
    if (!bk_tensor_present(&a->dpost)) continue;
    gather(&a->logits, i, lanes, n, n, logits);
    gather(&a->dpost, i, lanes, 0, n, given);
    gate_bwd_block(logits, given, n, 2.f, out);
    scatter(&a->dlogits, i, lanes, n, n, out);
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_gates_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                           bk_place workspace) {
  const bk_hc_gates_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->logits.shape[0], bk_hc_grain(a->logits.shape[0]), gates_bwd_piece, a);
  return BK_OK;
}

static void sinkhorn_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_sinkhorn_args *a = arg;
  map_block logits, comb;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather_nn(&a->logits, i, lanes, logits);
    sinkhorn_block(logits, comb, a->iters, a->hc_eps, (int)a->comb.shape[1]);
    scatter_nn(&a->comb, i, lanes, comb);
  }
}

bk_status BK_ISA_NAME(bk_cpu_sinkhorn)(bk_stream *stream, const bk_plan *plan, const void *args,
                                       bk_place workspace) {
  const bk_sinkhorn_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->comb.shape[0], bk_hc_grain(a->comb.shape[0]), sinkhorn_piece, a);
  return BK_OK;
}

static void sinkhorn_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_sinkhorn_bwd_args *a = arg;
  map_block logits, dcomb, dlogits;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather_nn(&a->logits, i, lanes, logits);
    gather_nn(&a->dcomb, i, lanes, dcomb);
    sinkhorn_bwd_block(logits, dcomb, dlogits, a->iters, a->hc_eps, (int)a->dcomb.shape[1]);
    scatter_nn(&a->dlogits, i, lanes, dlogits);
  }
}

bk_status BK_ISA_NAME(bk_cpu_sinkhorn_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                           bk_place workspace) {
  const bk_sinkhorn_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->dcomb.shape[0], bk_hc_grain(a->dcomb.shape[0]), sinkhorn_bwd_piece, a);
  return BK_OK;
}

typedef struct perm_job {
  bk_tensor logits, comb, dcomb, dlogits;
  const uint8_t *perms;
  int n;
} perm_job;

static void perm_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const perm_job *job = arg;
  int count = bk_factorial(job->n);
  map_block logits, given, out;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather(&job->logits, i, lanes, 0, count, logits);
    if (bk_tensor_present(&job->comb)) {
      perm_block(logits, job->perms, job->n, out);
      scatter_nn(&job->comb, i, lanes, out);
    } else {
      gather_nn(&job->dcomb, i, lanes, given);
      perm_bwd_block(logits, given, job->perms, job->n, out);
      scatter(&job->dlogits, i, lanes, 0, count, out);
    }
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_perm)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  const bk_hc_perm_args *a = args;
  perm_job job = {.logits = a->logits, .comb = a->comb, .perms = plan->state, .n = a->n};
  (void)workspace;
  bk_cpu_run(stream, a->logits.shape[0], bk_hc_grain(a->logits.shape[0]), perm_piece, &job);
  return BK_OK;
}

bk_status BK_ISA_NAME(bk_cpu_hc_perm_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_perm_bwd_args *a = args;
  perm_job job = {.logits = a->logits,
                  .dcomb = a->dcomb,
                  .dlogits = a->dlogits,
                  .perms = plan->state,
                  .n = a->n};
  (void)workspace;
  bk_cpu_run(stream, a->logits.shape[0], bk_hc_grain(a->logits.shape[0]), perm_piece, &job);
  return BK_OK;
}

/* ---- Kronecker products: an entry depends only on which bits of m and k differ: comb[m][k] =
 * row[m ^ k], where row is comb's first row. So the forward makes n numbers and copies them, and
 * the backward first adds up the n entries that were copies of each. ---- */

enum { MAX_FACTORS = 3 };
_Static_assert(BK_HC_MAX_N <= 1 << MAX_FACTORS, "MAX_FACTORS");
typedef float factor_block[MAX_FACTORS * BK_VW];

/* p (entries of equal bits), 1 - p, and p (1 - p), all from e = exp(-|difference|), so that
 * nothing cancels where p is close to 0 or 1. */
typedef struct factors {
  factor_block same, other, slope;
  int count;
} factors;

static void factors_of(const float *logits, int count, factors *t) {
  t->count = count;
  for (int f = 0; f < count; f++) {
    bk_vf apart = ROW(logits, 2 * f) - ROW(logits, 2 * f + 1);
    bk_vf e = bk_v_exp(-bk_v_abs(apart)), large = 1.f / (1.f + e), small = e * large;
    SET_ROW(t->same, f, bk_v_select(apart >= 0.f, large, small));
    SET_ROW(t->other, f, bk_v_select(apart >= 0.f, small, large));
    SET_ROW(t->slope, f, small * large);
  }
}

/* comb's first row: each factor, from the last one with the lowest bit on, doubles its length. */
static void row_block(const factors *t, float *row) {
  SET_ROW(row, 0, bk_v_zero() + 1.f);
  for (int f = t->count - 1, width = 1; f >= 0; f--, width *= 2)
    for (int d = 0; d < width; d++) {
      SET_ROW(row, width + d, ROW(row, d) * ROW(t->other, f));
      SET_ROW(row, d, ROW(row, d) * ROW(t->same, f));
    }
}

/* The gradient of factor f's p from that of the row: entries that differ in f's bit alone have the
 * same product of the other factors, and opposite signs. */
static bk_vf share_gradient(const factors *t, int f, const float *drow, int n) {
  int bit = 1 << (t->count - 1 - f);
  bk_vf sum = bk_v_zero();
  for (int d = 0; d < n; d++) {
    if (d & bit) continue;
    bk_vf value = ROW(drow, d) - ROW(drow, d | bit);
    for (int o = 0; o < t->count; o++)
      if (o != f)
        value = value * (d >> (t->count - 1 - o) & 1 ? ROW(t->other, o) : ROW(t->same, o));
    sum = sum + value;
  }
  return sum;
}

static void kron_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_kron_args *a = arg;
  int n = (int)a->comb.shape[1], columns = (int)a->logits.shape[1];
  map_block logits, row, comb;
  factors t;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather(&a->logits, i, lanes, 0, columns, logits);
    factors_of(logits, columns / 2, &t);
    row_block(&t, row);
    for (int m = 0; m < n; m++)
      for (int k = 0; k < n; k++) SET_ROW(comb, m * n + k, ROW(row, m ^ k));
    scatter_nn(&a->comb, i, lanes, comb);
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_kron)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  const bk_hc_kron_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->comb.shape[0], bk_hc_grain(a->comb.shape[0]), kron_piece, a);
  return BK_OK;
}

static void kron_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_kron_bwd_args *a = arg;
  int n = (int)a->dcomb.shape[1], columns = (int)a->logits.shape[1];
  map_block logits, dcomb, drow, dlogits;
  factors t;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather(&a->logits, i, lanes, 0, columns, logits);
    gather_nn(&a->dcomb, i, lanes, dcomb);
    factors_of(logits, columns / 2, &t);
    for (int d = 0; d < n; d++) {
      bk_vf sum = bk_v_zero();
      for (int m = 0; m < n; m++) sum = sum + ROW(dcomb, m * n + (m ^ d));
      SET_ROW(drow, d, sum);
    }
    for (int f = 0; f < t.count; f++) {
      bk_vf back = share_gradient(&t, f, drow, n) * ROW(t.slope, f);
      SET_ROW(dlogits, 2 * f, back);
      SET_ROW(dlogits, 2 * f + 1, -back);
    }
    scatter(&a->dlogits, i, lanes, 0, columns, dlogits);
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_kron_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_kron_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->dcomb.shape[0], bk_hc_grain(a->dcomb.shape[0]), kron_bwd_piece, a);
  return BK_OK;
}
