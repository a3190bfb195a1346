/* Residual connections over the fused slots of op.h: see connection.h. */
#include "models/connections/connection.h"

static const bk_tensor absent = {0};

/* x as the projection sees it: hc projects every stream by itself, the others the flattened nC
 * vector. */
static bk_tensor project_view(const bk_connection *c, bk_tensor x) {
  int64_t rows = x.shape[0];
  if (c->kind == BK_HC_HC) return bk_tensor_reshape(x, 2, (int64_t[]){rows * c->n, c->width});
  return bk_tensor_reshape(x, 2, (int64_t[]){rows, c->n * c->width});
}

static bk_hc_project_args project_args(const bk_connection *c, const bk_mix_acts *a) {
  return (bk_hc_project_args){project_view(c, a->x), c->fn->weight, a->proj, a->rinv, c->norm_eps};
}

static bk_hc_maps_args maps_args(const bk_connection *c, const bk_mix_acts *a) {
  return (bk_hc_maps_args){.proj = a->proj,
                           .rinv = a->rinv,
                           .scale = c->scale->weight,
                           .base = c->base->weight,
                           .pre = a->pre,
                           .post = a->post,
                           .comb = a->comb,
                           .kind = c->kind,
                           .n = c->n,
                           .iters = c->iters,
                           .hc_eps = c->hc_eps};
}

static bk_hc_pre_norm_args pre_norm_args(const bk_connection *c, const bk_mix_acts *a) {
  return (bk_hc_pre_norm_args){a->x, a->pre, c->norm->weight, a->y, a->h, a->rstd, c->norm_eps};
}

static bk_hc_post_res_args post_res_args(const bk_mix_acts *a, bk_tensor out) {
  return (bk_hc_post_res_args){a->x, a->f, a->post, a->comb, out};
}

static bk_status plain_norm(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a) {
  return bk_record(rec, BK_OP_RMSNORM,
                   &(bk_rmsnorm_args){a->x, c->norm->weight, a->h, a->rstd, c->norm_eps});
}

bk_status bk_connection_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a) {
  if (c->kind == BK_HC_PLAIN) return plain_norm(rec, c, a);
  bk_hc_project_args project = project_args(c, a);
  bk_hc_maps_args maps = maps_args(c, a);
  BK_TRY(bk_record(rec, BK_OP_HC_PROJECT, &project));
  BK_TRY(bk_record(rec, BK_OP_HC_MAPS, &maps));
  bk_hc_pre_norm_args pre_norm = pre_norm_args(c, a);
  return bk_record(rec, BK_OP_HC_PRE_NORM, &pre_norm);
}

bk_status bk_connection_merge(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                              bk_tensor out) {
  if (c->kind == BK_HC_PLAIN) return bk_record(rec, BK_OP_ADD, &(bk_add_args){a->x, a->f, out});
  bk_hc_post_res_args merge = post_res_args(a, out);
  return bk_record(rec, BK_OP_HC_POST_RES, &merge);
}

bk_status bk_connection_merge_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                  const bk_connection *c_next, const bk_mix_acts *next) {
  if (c->kind == BK_HC_PLAIN) {
    BK_TRY(bk_connection_merge(rec, c, a, next->x));
    return bk_connection_mix(rec, c_next, next);
  }
  bk_hc_merge_mix_args args = {post_res_args(a, next->x), project_args(c_next, next),
                               maps_args(c_next, next), pre_norm_args(c_next, next)};
  return bk_record(rec, BK_OP_HC_MERGE_MIX, &args);
}

static bk_status plain_rebuild(bk_recorder *rec, const bk_connection *const *c,
                               const bk_mix_acts *a, int count) {
  for (int i = 0; i < count; i++) {
    BK_TRY(plain_norm(rec, c[i], &a[i]));
    if (i + 1 < count) BK_TRY(bk_connection_merge(rec, c[i], &a[i], a[i + 1].x));
  }
  return BK_OK;
}

bk_status bk_connection_rebuild(bk_recorder *rec, const bk_connection *const *c,
                                const bk_mix_acts *a, int count) {
  if (c[0]->kind == BK_HC_PLAIN) return plain_rebuild(rec, c, a, count);
  bk_hc_rebuild_args args = {.layers = count, .eps = c[0]->norm_eps};
  for (int i = 0; i < count; i++) {
    bool last = i + 1 == count;
    args.layer[i] = (bk_hc_rebuild_layer){a[i].x,
                                          last ? absent : a[i].f,
                                          last ? absent : a[i].post,
                                          last ? absent : a[i].comb,
                                          a[i].pre,
                                          c[i]->norm->weight,
                                          a[i].y,
                                          a[i].h,
                                          a[i].rstd};
  }
  return bk_record(rec, BK_OP_HC_REBUILD, &args);
}

static bk_hc_pre_norm_bwd_args pre_norm_bwd_args(const bk_connection *c, const bk_mix_acts *a,
                                                 const bk_mix_grads *g, bk_tensor dh, bk_tensor D,
                                                 bool accumulate) {
  return (bk_hc_pre_norm_bwd_args){.x = a->x,
                                   .pre = a->pre,
                                   .w = c->norm->weight,
                                   .y = a->y,
                                   .rstd = a->rstd,
                                   .dh = dh,
                                   .dx = D,
                                   .dpre = g->dpre,
                                   .dw = c->norm->grad,
                                   .accumulate = accumulate};
}

static bk_hc_maps_bwd_args maps_bwd_args(const bk_connection *c, const bk_mix_acts *a,
                                         const bk_mix_grads *g) {
  return (bk_hc_maps_bwd_args){.proj = a->proj,
                               .rinv = a->rinv,
                               .scale = c->scale->weight,
                               .base = c->base->weight,
                               .dpre = g->dpre,
                               .dpost = a->post.dtype ? g->dpost : absent,
                               .dcomb = a->comb.dtype ? g->dcomb : absent,
                               .dproj = g->dproj,
                               .drinv = g->drinv,
                               .dscale = c->scale->grad,
                               .dbase = c->base->grad,
                               .kind = c->kind,
                               .n = c->n,
                               .iters = c->iters,
                               .hc_eps = c->hc_eps};
}

static bk_hc_project_bwd_args project_bwd_args(const bk_connection *c, const bk_mix_acts *a,
                                               const bk_mix_grads *g, bk_tensor D) {
  return (bk_hc_project_bwd_args){.x = project_view(c, a->x),
                                  .fn = c->fn->weight,
                                  .rinv = a->rinv,
                                  .dproj = g->dproj,
                                  .drinv = g->drinv,
                                  .dx = project_view(c, D),
                                  .dfn = c->fn->grad,
                                  .accumulate = true};
}

static bk_hc_post_res_bwd_args post_res_bwd_args(const bk_mix_acts *a, const bk_mix_grads *g,
                                                 bk_tensor D, bk_tensor df) {
  return (bk_hc_post_res_bwd_args){.x = a->x,
                                   .f = a->f,
                                   .post = a->post,
                                   .comb = a->comb,
                                   .dout = D,
                                   .dx = D,
                                   .df = df,
                                   .dpost = g->dpost,
                                   .dcomb = a->comb.dtype ? g->dcomb : absent};
}

/* df is D, or a copy of it for a deferred wgrad. */
static bk_status plain_merge_bwd(bk_recorder *rec, bk_tensor D, bk_tensor df) {
  if (df.buffer == D.buffer && df.offset == D.offset) return BK_OK;
  return bk_record(rec, BK_OP_COPY, &(bk_copy_args){D, df});
}

/* The ops of the mix's backward add to these gradients. */
static bk_status adds_to_params(bk_recorder *rec, const bk_connection *c) {
  BK_TRY(bk_record_adds_to(rec, c->norm));
  if (!c->fn) return BK_OK;
  BK_TRY(bk_record_adds_to(rec, c->fn));
  BK_TRY(bk_record_adds_to(rec, c->base));
  return bk_record_adds_to(rec, c->scale);
}

bk_status bk_connection_merge_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                  const bk_mix_grads *g, bk_tensor D, bk_tensor df) {
  if (c->kind == BK_HC_PLAIN) return plain_merge_bwd(rec, D, df);
  bk_hc_post_res_bwd_args merge = post_res_bwd_args(a, g, D, df);
  return bk_record(rec, BK_OP_HC_POST_RES_BWD, &merge);
}

bk_status bk_connection_mix_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                const bk_mix_grads *g, bk_tensor dh, bk_tensor D, bool accumulate) {
  BK_TRY(adds_to_params(rec, c));
  if (c->kind == BK_HC_PLAIN) {
    return bk_record(rec, BK_OP_RMSNORM_BWD,
                     &(bk_rmsnorm_bwd_args){.x = a->x,
                                            .w = c->norm->weight,
                                            .rstd = a->rstd,
                                            .dy = dh,
                                            .dx = D,
                                            .dw = c->norm->grad,
                                            .accumulate = accumulate});
  }
  bk_hc_pre_norm_bwd_args pre_norm = pre_norm_bwd_args(c, a, g, dh, D, accumulate);
  bk_hc_maps_bwd_args maps = maps_bwd_args(c, a, g);
  bk_hc_project_bwd_args project = project_bwd_args(c, a, g, D);
  BK_TRY(bk_record(rec, BK_OP_HC_PRE_NORM_BWD, &pre_norm));
  BK_TRY(bk_record(rec, BK_OP_HC_MAPS_BWD, &maps));
  return bk_record(rec, BK_OP_HC_PROJECT_BWD, &project);
}

bk_status bk_connection_merge_mix_bwd(bk_recorder *rec, const bk_connection *c,
                                      const bk_mix_acts *a, const bk_mix_grads *g,
                                      const bk_mix_acts *prev, const bk_mix_grads *g_prev,
                                      bk_tensor dh, bk_tensor D, bk_tensor df) {
  if (c->kind == BK_HC_PLAIN) {
    BK_TRY(bk_connection_mix_bwd(rec, c, a, g, dh, D, true));
    return plain_merge_bwd(rec, D, df);
  }
  BK_TRY(adds_to_params(rec, c));
  bk_hc_merge_mix_bwd_args args = {pre_norm_bwd_args(c, a, g, dh, D, true), maps_bwd_args(c, a, g),
                                   project_bwd_args(c, a, g, D),
                                   post_res_bwd_args(prev, g_prev, D, df)};
  return bk_record(rec, BK_OP_HC_MERGE_MIX_BWD, &args);
}

int64_t bk_connection_carry(bk_hc_kind kind, int n) {
  (void)kind, (void)n;
  return 0;
}

/* The streams must differ, or symmetric values never separate them. */
void bk_connection_first_base(double *v, bk_hc_kind kind, int n, int sublayer) {
  bool hc = kind == BK_HC_HC;
  for (int i = 0; i < n; i++) {
    bool own = i == sublayer % n;
    v[i] = hc ? (own ? 1.0 : 0.0) : (own ? 1.0 : -1.0);
    v[n + i] = hc ? 1.0 : v[i];
  }
  if (kind == BK_HC_MHC_LITE) {
    for (int i = 0; i < bk_factorial(n); i++) v[2 * n + i] = i == 0 ? 0.0 : -8.0;
  } else if (kind != BK_HC_IHC) {
    for (int i = 0; i < n * n; i++)
      v[2 * n + i] = i % (n + 1) == 0 ? (hc ? 1.0 : 0.0) : (hc ? 0.0 : -8.0);
  }
}
