/* Shape rules of the residual connections: primitives, fused slots and the merge_mix slots. Each
 * [n,n] block of a comb-shaped operand is dense. */
#include "ops/ops.h"

#include <stdio.h>

/* n within its range (mhc_lite: n! weights, so at most 5). */
static bk_status check_n(const bk_dims *dims, bk_hc_kind kind, int64_t n) {
  return bk_dims_range(dims, "n", n, 1, kind == BK_HC_MHC_LITE ? 5 : BK_HC_MAX_N);
}

/* Binds n, R (rows of fn), Q (entries of base) and G (entries of scale). */
static bk_status bind_kind(bk_dims *dims, bk_hc_kind kind, int n) {
  BK_TRY(bk_dims_range(dims, "kind", kind, BK_HC_HC, BK_HC_HEAD));
  BK_TRY(check_n(dims, kind, n));
  bk_dims_bind(dims, 'n', n);
  bk_dims_bind(dims, 'R', bk_hc_rows(kind, n));
  bk_dims_bind(dims, 'Q', bk_hc_base_count(kind, n));
  bk_dims_bind(dims, 'G', bk_hc_scale_count(kind));
  return BK_OK;
}

/* Rules, then the range of n, which they bind. */
static bk_status check_streams(bk_context *ctx, bk_op op, const void *args, const char *rules) {
  bk_dims dims;
  bk_dims_init(&dims, ctx, op, args);
  BK_TRY(bk_dims_check(&dims, rules));
  return check_n(&dims, BK_HC_MHC, dims.value['n']);
}

bk_status bk_check_HC_EXPAND(bk_context *ctx, const void *args) {
  return check_streams(ctx, BK_OP_HC_EXPAND, args, "x:s[N,C] y:s[N,n,C]");
}

bk_status bk_check_HC_COLLAPSE(bk_context *ctx, const void *args) {
  return check_streams(ctx, BK_OP_HC_COLLAPSE, args, "x:s[N,n,C] y:s[N,C]");
}

bk_status bk_check_HC_RMS(bk_context *ctx, const void *args) {
  const bk_hc_rms_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_HC_RMS, args);
  BK_TRY(bk_dims_check(&dims, "x:s[M,K] rinv:c[M]"));
  return bk_dims_positive(&dims, "eps", a->eps);
}

bk_status bk_check_HC_RMS_BWD(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_HC_RMS_BWD, args, "x:s[M,K] rinv:c[M] drinv:c[M] dx:s[M,K]");
}

static bk_status check_logits(bk_context *ctx, bk_op op, const void *args, bk_hc_kind kind, int n,
                              const char *rules) {
  bk_dims dims;
  bk_dims_init(&dims, ctx, op, args);
  BK_TRY(bind_kind(&dims, kind, n));
  BK_TRY(bk_dims_range(&dims, "kind", kind, BK_HC_MHC, BK_HC_HEAD));
  return bk_dims_check(&dims, rules);
}

bk_status bk_check_HC_LOGITS(bk_context *ctx, const void *args) {
  const bk_hc_logits_args *a = args;
  return check_logits(ctx, BK_OP_HC_LOGITS, args, a->kind, a->n,
                      "proj:c[N,R] rinv:c[N] scale:c[G] base:c[Q] logits:c[N,R]");
}

bk_status bk_check_HC_LOGITS_BWD(bk_context *ctx, const void *args) {
  const bk_hc_logits_bwd_args *a = args;
  return check_logits(ctx, BK_OP_HC_LOGITS_BWD, args, a->kind, a->n,
                      "proj:c[N,R] rinv:c[N] scale:c[G] dlogits:c[N,R] dproj:c[N,R] drinv:c[N] "
                      "dscale:c[G] dbase:c[Q]");
}

/* The logits hold at least the columns of pre, and of post where that is there. */
static bk_status check_gate_columns(const bk_dims *dims, bool post) {
  return bk_dims_range(dims, "the number of logits", dims->value['R'],
                       dims->value['n'] * (post ? 2 : 1), INT32_MAX);
}

bk_status bk_check_HC_GATES(bk_context *ctx, const void *args) {
  const bk_hc_gates_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_HC_GATES, args);
  BK_TRY(bk_dims_check(&dims, "logits:c[N,R] pre:c[N,n] post:c[N,n]"));
  BK_TRY(check_n(&dims, BK_HC_MHC, dims.value['n']));
  BK_TRY(bk_dims_positive(&dims, "hc_eps", a->hc_eps));
  return check_gate_columns(&dims, bk_tensor_present(&a->post));
}

bk_status bk_check_HC_GATES_BWD(bk_context *ctx, const void *args) {
  const bk_hc_gates_bwd_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_HC_GATES_BWD, args);
  BK_TRY(bk_dims_check(&dims, "logits:c[N,R] dpre:c[N,n] dpost:c[N,n] dlogits:c[N,R]"));
  BK_TRY(check_n(&dims, BK_HC_MHC, dims.value['n']));
  return check_gate_columns(&dims, bk_tensor_present(&a->dpost));
}

static bk_status check_sinkhorn(bk_context *ctx, bk_op op, const void *args, int iters,
                                double hc_eps, const char *rules) {
  bk_dims dims;
  bk_dims_init(&dims, ctx, op, args);
  BK_TRY(bk_dims_check(&dims, rules));
  BK_TRY(check_n(&dims, BK_HC_MHC, dims.value['n']));
  BK_TRY(bk_dims_range(&dims, "iters", iters, 1, 64));
  return bk_dims_positive(&dims, "hc_eps", hc_eps);
}

bk_status bk_check_SINKHORN(bk_context *ctx, const void *args) {
  const bk_sinkhorn_args *a = args;
  return check_sinkhorn(ctx, BK_OP_SINKHORN, args, a->iters, a->hc_eps,
                        "logits:c[N,n,n]= comb:c[N,n,n]=");
}

bk_status bk_check_SINKHORN_BWD(bk_context *ctx, const void *args) {
  const bk_sinkhorn_bwd_args *a = args;
  return check_sinkhorn(ctx, BK_OP_SINKHORN_BWD, args, a->iters, a->hc_eps,
                        "logits:c[N,n,n]= dcomb:c[N,n,n]= dlogits:c[N,n,n]=");
}

static bk_status check_perm(bk_context *ctx, bk_op op, const void *args, int n, const char *rules) {
  bk_dims dims;
  bk_dims_init(&dims, ctx, op, args);
  BK_TRY(check_n(&dims, BK_HC_MHC_LITE, n));
  bk_dims_bind(&dims, 'n', n);
  bk_dims_bind(&dims, 'P', bk_factorial(n));
  return bk_dims_check(&dims, rules);
}

bk_status bk_check_HC_PERM(bk_context *ctx, const void *args) {
  const bk_hc_perm_args *a = args;
  return check_perm(ctx, BK_OP_HC_PERM, args, a->n, "logits:c[N,P] comb:c[N,n,n]=");
}

bk_status bk_check_HC_PERM_BWD(bk_context *ctx, const void *args) {
  const bk_hc_perm_bwd_args *a = args;
  return check_perm(ctx, BK_OP_HC_PERM_BWD, args, a->n,
                    "logits:c[N,P] dcomb:c[N,n,n]= dlogits:c[N,P]");
}

#define TANH_RULES \
  "pre:c[N,n] post:c[N,n] comb:c[N,n,n]= proj:c[N*n,R] rinv:c[N*n] scale:c[G] base:c[Q]"
#define TANH_BWD_RULES                                                                            \
  "dpre:c[N,n] dpost:c[N,n] dcomb:c[N,n,n]= proj:c[N*n,R] rinv:c[N*n] scale:c[G] dproj:c[N*n,R] " \
  "drinv:c[N*n] dscale:c[G] dbase:c[Q]"

static bk_status check_tanh(bk_context *ctx, bk_op op, const void *args, int n, const char *rules) {
  bk_dims dims;
  bk_dims_init(&dims, ctx, op, args);
  BK_TRY(bind_kind(&dims, BK_HC_HC, n));
  return bk_dims_check(&dims, rules);
}

bk_status bk_check_HC_TANH(bk_context *ctx, const void *args) {
  return check_tanh(ctx, BK_OP_HC_TANH, args, ((const bk_hc_tanh_args *)args)->n, TANH_RULES);
}

bk_status bk_check_HC_TANH_BWD(bk_context *ctx, const void *args) {
  return check_tanh(ctx, BK_OP_HC_TANH_BWD, args, ((const bk_hc_tanh_bwd_args *)args)->n,
                    TANH_BWD_RULES);
}

bk_status bk_check_HC_PRE(bk_context *ctx, const void *args) {
  return check_streams(ctx, BK_OP_HC_PRE, args, "x:s[N,n,C] pre:c[N,n] y:s[N,C]");
}

bk_status bk_check_HC_PRE_BWD(bk_context *ctx, const void *args) {
  return check_streams(ctx, BK_OP_HC_PRE_BWD, args,
                       "x:s[N,n,C] pre:c[N,n] dy:s[N,C] dx:s[N,n,C] dpre:c[N,n]");
}

bk_status bk_check_HC_RES(bk_context *ctx, const void *args) {
  bk_dims dims;
  BK_TRY(check_streams(ctx, BK_OP_HC_RES, args, "x:s[N,n,C] comb:c[N,n,n]= y:s[N,n,C]"));
  bk_dims_init(&dims, ctx, BK_OP_HC_RES, args);
  return bk_dims_distinct(&dims, "x", "y");
}

bk_status bk_check_HC_RES_BWD(bk_context *ctx, const void *args) {
  bk_dims dims;
  BK_TRY(check_streams(ctx, BK_OP_HC_RES_BWD, args,
                       "x:s[N,n,C] comb:c[N,n,n]= dy:s[N,n,C] dx:s[N,n,C] dcomb:c[N,n,n]="));
  bk_dims_init(&dims, ctx, BK_OP_HC_RES_BWD, args);
  return bk_dims_distinct(&dims, "dy", "dx");
}

bk_status bk_check_HC_POST(bk_context *ctx, const void *args) {
  return check_streams(ctx, BK_OP_HC_POST, args, "f:s[N,C] post:c[N,n] y:s[N,n,C]");
}

bk_status bk_check_HC_POST_BWD(bk_context *ctx, const void *args) {
  return check_streams(ctx, BK_OP_HC_POST_BWD, args,
                       "f:s[N,C] post:c[N,n] dy:s[N,n,C] df:s[N,C] dpost:c[N,n]");
}

/* ---- fused slots ---- */

bk_status bk_check_HC_PROJECT(bk_context *ctx, const void *args) {
  const bk_hc_project_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_HC_PROJECT, args);
  BK_TRY(bk_dims_check(&dims, "x:s[M,K] fn:c[R,K] proj:c[M,R] rinv:c[M]"));
  return bk_dims_positive(&dims, "eps", a->eps);
}

bk_status bk_check_HC_PROJECT_BWD(bk_context *ctx, const void *args) {
  return bk_check_rules(
      ctx, BK_OP_HC_PROJECT_BWD, args,
      "x:s[M,K] fn:c[R,K] rinv:c[M] dproj:c[M,R] drinv:c[M] dx:s[M,K] dfn:c[R,K]");
}

/* Which of post and comb a kind has. */
static bk_status check_map_fields(const bk_dims *dims, bk_hc_kind kind, const char *post,
                                  const char *comb) {
  BK_TRY(bk_dims_present(dims, post, kind != BK_HC_HEAD));
  return bk_dims_present(dims, comb, kind != BK_HC_HEAD && kind != BK_HC_IHC);
}

bk_status bk_check_HC_MAPS(bk_context *ctx, const void *args) {
  const bk_hc_maps_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_HC_MAPS, args);
  BK_TRY(bind_kind(&dims, a->kind, a->n));
  BK_TRY(check_map_fields(&dims, a->kind, "post", "comb"));
  if (a->kind == BK_HC_MHC) BK_TRY(bk_dims_range(&dims, "iters", a->iters, 1, 64));
  BK_TRY(bk_dims_positive(&dims, "hc_eps", a->hc_eps));
  if (a->kind == BK_HC_HC) return bk_dims_check(&dims, TANH_RULES);
  return bk_dims_check(
      &dims, "proj:c[N,R] rinv:c[N] scale:c[G] base:c[Q] pre:c[N,n] post:c[N,n] comb:c[N,n,n]=");
}

bk_status bk_check_HC_MAPS_BWD(bk_context *ctx, const void *args) {
  const bk_hc_maps_bwd_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_HC_MAPS_BWD, args);
  BK_TRY(bind_kind(&dims, a->kind, a->n));
  BK_TRY(check_map_fields(&dims, a->kind, "dpost", "dcomb"));
  if (a->kind == BK_HC_MHC) BK_TRY(bk_dims_range(&dims, "iters", a->iters, 1, 64));
  BK_TRY(bk_dims_positive(&dims, "hc_eps", a->hc_eps));
  if (a->kind == BK_HC_HC) return bk_dims_check(&dims, TANH_BWD_RULES " base:c[Q]");
  return bk_dims_check(
      &dims,
      "proj:c[N,R] rinv:c[N] scale:c[G] base:c[Q] dpre:c[N,n] dpost:c[N,n] dcomb:c[N,n,n]= "
      "dproj:c[N,R] drinv:c[N] dscale:c[G] dbase:c[Q]");
}

bk_status bk_check_HC_PRE_NORM(bk_context *ctx, const void *args) {
  const bk_hc_pre_norm_args *a = args;
  bk_dims dims;
  BK_TRY(check_streams(ctx, BK_OP_HC_PRE_NORM, args,
                       "x:s[N,n,C] pre:c[N,n] w:c[C] y:s[N,C] h:s[N,C] rstd:c[N]"));
  bk_dims_init(&dims, ctx, BK_OP_HC_PRE_NORM, args);
  return bk_dims_positive(&dims, "eps", a->eps);
}

bk_status bk_check_HC_PRE_NORM_BWD(bk_context *ctx, const void *args) {
  return check_streams(
      ctx, BK_OP_HC_PRE_NORM_BWD, args,
      "x:s[N,n,C] pre:c[N,n] w:c[C] y:s[N,C] rstd:c[N] dh:s[N,C] dx:s[N,n,C] dpre:c[N,n] dw:c[C]");
}

bk_status bk_check_HC_POST_RES(bk_context *ctx, const void *args) {
  bk_dims dims;
  BK_TRY(check_streams(ctx, BK_OP_HC_POST_RES, args,
                       "x:s[N,n,C] f:s[N,C] post:c[N,n] comb:c[N,n,n]= out:s[N,n,C]"));
  bk_dims_init(&dims, ctx, BK_OP_HC_POST_RES, args);
  return bk_dims_distinct(&dims, "x", "out");
}

bk_status bk_check_HC_POST_RES_BWD(bk_context *ctx, const void *args) {
  const bk_hc_post_res_bwd_args *a = args;
  bk_dims dims;
  BK_TRY(check_streams(ctx, BK_OP_HC_POST_RES_BWD, args,
                       "x:s[N,n,C] f:s[N,C] post:c[N,n] comb:c[N,n,n]= dout:s[N,n,C] dx:s[N,n,C] "
                       "df:s[N,C] dpost:c[N,n] "
                       "dcomb:c[N,n,n]="));
  bk_dims_init(&dims, ctx, BK_OP_HC_POST_RES_BWD, args);
  return bk_dims_present(&dims, "dcomb", bk_tensor_present(&a->comb));
}

bk_status bk_check_HC_MERGE_MIX(bk_context *ctx, const void *args) {
  const bk_hc_merge_mix_args *a = args;
  bk_dims dims;
  BK_TRY(bk_check_HC_POST_RES(ctx, &a->merge));
  BK_TRY(bk_check_HC_PROJECT(ctx, &a->project));
  BK_TRY(bk_check_HC_MAPS(ctx, &a->maps));
  BK_TRY(bk_check_HC_PRE_NORM(ctx, &a->pre_norm));
  bk_dims_init(&dims, ctx, BK_OP_HC_MERGE_MIX, args);
  BK_TRY(bk_dims_same_place(&dims, "project.x", "merge.out"));
  BK_TRY(bk_dims_same_place(&dims, "pre_norm.x", "merge.out"));
  BK_TRY(bk_dims_same_place(&dims, "maps.proj", "project.proj"));
  BK_TRY(bk_dims_same_place(&dims, "maps.rinv", "project.rinv"));
  return bk_dims_same_place(&dims, "pre_norm.pre", "maps.pre");
}

bk_status bk_check_HC_MERGE_MIX_BWD(bk_context *ctx, const void *args) {
  const bk_hc_merge_mix_bwd_args *a = args;
  bk_dims dims;
  BK_TRY(bk_check_HC_PRE_NORM_BWD(ctx, &a->pre_norm));
  BK_TRY(bk_check_HC_MAPS_BWD(ctx, &a->maps));
  BK_TRY(bk_check_HC_PROJECT_BWD(ctx, &a->project));
  BK_TRY(bk_check_HC_POST_RES_BWD(ctx, &a->merge));
  bk_dims_init(&dims, ctx, BK_OP_HC_MERGE_MIX_BWD, args);
  BK_TRY(bk_dims_same_place(&dims, "project.x", "pre_norm.x"));
  BK_TRY(bk_dims_same_place(&dims, "maps.dpre", "pre_norm.dpre"));
  BK_TRY(bk_dims_same_place(&dims, "project.dproj", "maps.dproj"));
  BK_TRY(bk_dims_same_place(&dims, "project.drinv", "maps.drinv"));
  BK_TRY(bk_dims_present(&dims, "project.dx", true));
  BK_TRY(bk_dims_same_place(&dims, "project.dx", "pre_norm.dx"));
  return bk_dims_same_place(&dims, "merge.dout", "pre_norm.dx");
}

static const char *rebuild_field(int layer, const char *name, char (*field)[32]) {
  snprintf(*field, sizeof *field, "layer%d.%s", layer, name);
  return *field;
}

/* Which operands a layer has: all up to the last, which makes no streams; none from then on. */
static bk_status check_rebuild_fields(const bk_dims *dims, int layer, int layers, bool comb) {
  static const char *const mix[] = {"x", "pre", "w", "y", "h", "rstd"}, *const merge[] = {
                                                                            "f", "post", "comb"};
  char field[32];
  for (size_t i = 0; i < BK_COUNT(mix); i++) {
    BK_TRY(bk_dims_present(dims, rebuild_field(layer, mix[i], &field), layer < layers));
  }
  for (size_t i = 0; i < BK_COUNT(merge) && layer + 1 < BK_HC_REBUILD_MAX; i++) {
    bool there = layer + 1 < layers && (i < 2 || comb);
    BK_TRY(bk_dims_present(dims, rebuild_field(layer, merge[i], &field), there));
  }
  return BK_OK;
}

static bk_status check_rebuild_layer(bk_dims *dims, int i) {
  char rules[256];
  snprintf(rules, sizeof rules,
           "layer%d.x:s[N,n,C] layer%d.pre:c[N,n] layer%d.w:c[C] layer%d.y:s[N,C] layer%d.h:s[N,C] "
           "layer%d.rstd:c[N]",
           i, i, i, i, i, i);
  BK_TRY(bk_dims_check(dims, rules));
  if (i + 1 < BK_HC_REBUILD_MAX) {
    snprintf(rules, sizeof rules, "layer%d.f:s[N,C] layer%d.post:c[N,n] layer%d.comb:c[N,n,n]=", i,
             i, i);
    BK_TRY(bk_dims_check(dims, rules));
  }
  char from[32], to[32];
  if (i == 0) return check_n(dims, BK_HC_MHC, dims->value['n']);
  return bk_dims_distinct(dims, rebuild_field(i - 1, "x", &from), rebuild_field(i, "x", &to));
}

bk_status bk_check_HC_REBUILD(bk_context *ctx, const void *args) {
  const bk_hc_rebuild_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_HC_REBUILD, args);
  BK_TRY(bk_dims_range(&dims, "layers", a->layers, 1, BK_HC_REBUILD_MAX));
  BK_TRY(bk_dims_positive(&dims, "eps", a->eps));
  for (int i = 0; i < BK_HC_REBUILD_MAX; i++) {
    BK_TRY(check_rebuild_fields(&dims, i, a->layers, bk_tensor_present(&a->layer[0].comb)));
    if (i < a->layers) BK_TRY(check_rebuild_layer(&dims, i));
  }
  return BK_OK;
}
