/* The descriptor of each op: its operands in the order of the args struct, their roles, and its
 * check and cost. A field that is written only in part (the rest must survive) is INOUT. In the
 * merge_mix slots, operands that one part writes and a later part reads are described twice, as
 * OUT and as IN of the same memory. */
#include "ops/ops.h"

#include <stdio.h>
#include <string.h>

#define IN(type, f) \
  { #f, offsetof(type, f), BK_IN, false }
#define IN_OPT(type, f) \
  { #f, offsetof(type, f), BK_IN, true }
#define OUT(type, f) \
  { #f, offsetof(type, f), BK_OUT, false }
#define OUT_OPT(type, f) \
  { #f, offsetof(type, f), BK_OUT, true }
#define INOUT(type, f) \
  { #f, offsetof(type, f), BK_INOUT, false }
#define INOUT_OPT(type, f) \
  { #f, offsetof(type, f), BK_INOUT, true }
#define FIELDS(id) static const bk_op_field fields_##id[]

/* ---- copies ---- */
#define A bk_copy_args
FIELDS(COPY) = {IN(A, x), OUT(A, y)};
#undef A
#define A bk_add_args
FIELDS(ADD) = {IN(A, a), IN(A, b), OUT(A, y)};
#undef A
#define A bk_sum_args
FIELDS(SUM) = {IN(A, x), INOUT(A, y)};
#undef A

/* ---- dense products ---- */
#define A bk_gemm_args
FIELDS(GEMM) = {IN(A, a), IN(A, b), INOUT(A, c)};
#undef A
#define A bk_grouped_gemm_args
FIELDS(GROUPED_GEMM) = {IN(A, a), IN(A, b), IN(A, offsets), INOUT(A, c)};
#undef A
#define A bk_grouped_wgrad_args
FIELDS(GROUPED_WGRAD) = {IN(A, a), IN(A, b), IN(A, offsets), INOUT(A, c)};
#undef A

/* ---- layers ---- */
#define A bk_rmsnorm_args
FIELDS(RMSNORM) = {IN(A, x), IN(A, w), OUT(A, y), OUT_OPT(A, rstd)};
#undef A
#define A bk_rmsnorm_bwd_args
FIELDS(RMSNORM_BWD) = {IN(A, x),  IN(A, w),         IN(A, rstd),
                       IN(A, dy), INOUT_OPT(A, dx), INOUT_OPT(A, dw)};
#undef A
#define A bk_rope_args
FIELDS(ROPE) = {IN(A, x), IN_OPT(A, past), OUT(A, y)};
#undef A
#define A bk_cache_write_args
FIELDS(CACHE_WRITE) = {IN(A, x), IN(A, past), INOUT(A, y)};
#undef A
#define A bk_attention_args
FIELDS(ATTENTION) = {IN(A, q), IN(A, k), IN(A, v), IN_OPT(A, past), OUT(A, o), OUT_OPT(A, lse)};
#undef A
#define A bk_attention_bwd_args
FIELDS(ATTENTION_BWD) = {IN(A, q),    IN(A, k),   IN(A, v),   IN(A, o),  IN(A, lse),
                         IN(A, dout), OUT(A, dq), OUT(A, dk), OUT(A, dv)};
#undef A
#define A bk_swiglu_args
FIELDS(SWIGLU) = {IN(A, gate), IN(A, up), OUT(A, y)};
#undef A
#define A bk_swiglu_bwd_args
FIELDS(SWIGLU_BWD) = {IN(A, gate), IN(A, up), IN(A, dy), OUT(A, dgate), OUT(A, dup)};
#undef A
#define A bk_embed_args
FIELDS(EMBED) = {IN(A, ids), IN(A, table), OUT(A, y)};
#undef A
#define A bk_embed_bwd_args
FIELDS(EMBED_BWD) = {IN(A, ids), IN(A, dy), INOUT(A, dtable)};
#undef A
#define A bk_cross_entropy_args
FIELDS(CROSS_ENTROPY) = {IN(A, logits), IN(A, targets), IN(A, step), OUT(A, loss),
                         OUT_OPT(A, dlogits)};
#undef A

/* ---- experts ---- */
#define A bk_router_args
FIELDS(ROUTER) = {IN(A, logits), IN(A, bias), OUT(A, scores), OUT(A, index), OUT(A, weights)};
#undef A
#define A bk_router_bwd_args
FIELDS(ROUTER_BWD) = {IN(A, scores), IN(A, index), IN(A, dweights), OUT(A, dlogits)};
#undef A
#define A bk_moe_index_args
FIELDS(MOE_INDEX) = {IN(A, index), OUT(A, offsets), OUT(A, order), OUT(A, slot),
                     INOUT_OPT(A, load)};
#undef A
#define A bk_permute_args
FIELDS(PERMUTE) = {IN(A, x), IN(A, order), OUT(A, y)};
#undef A
#define A bk_unpermute_args
FIELDS(UNPERMUTE) = {IN(A, x), IN(A, slot), IN_OPT(A, weights), INOUT(A, y)};
#undef A
#define A bk_unpermute_bwd_args
FIELDS(UNPERMUTE_BWD) = {IN(A, x),  IN(A, slot),  IN(A, weights),
                         IN(A, dy), INOUT(A, dx), OUT(A, dweights)};
#undef A
#define A bk_balance_args
FIELDS(BALANCE) = {IN(A, load), IN(A, step), INOUT(A, bias)};
#undef A

/* ---- optimiser ---- */
#define A bk_sumsq_args
FIELDS(SUMSQ) = {IN(A, x), INOUT(A, y)};
#undef A
#define A bk_clip_args
FIELDS(CLIP) = {INOUT(A, step)};
#undef A
#define A bk_adamw_args
FIELDS(ADAMW) = {IN(A, grad),          IN(A, step), INOUT(A, p),
                 INOUT_OPT(A, master), INOUT(A, m), INOUT(A, v)};
#undef A

/* ---- residual connections ---- */
#define A bk_hc_expand_args
FIELDS(HC_EXPAND) = {IN(A, x), OUT(A, y)};
#undef A
#define A bk_hc_collapse_args
FIELDS(HC_COLLAPSE) = {IN(A, x), OUT(A, y)};
#undef A
#define A bk_hc_rms_args
FIELDS(HC_RMS) = {IN(A, x), OUT(A, rinv)};
#undef A
#define A bk_hc_rms_bwd_args
FIELDS(HC_RMS_BWD) = {IN(A, x), IN(A, rinv), IN(A, drinv), INOUT(A, dx)};
#undef A
#define A bk_hc_logits_args
FIELDS(HC_LOGITS) = {IN(A, proj), IN(A, rinv), IN(A, scale), IN(A, base), OUT(A, logits)};
#undef A
#define A bk_hc_logits_bwd_args
FIELDS(HC_LOGITS_BWD) = {IN(A, proj),   IN(A, rinv),   IN(A, scale),     IN(A, dlogits),
                         OUT(A, dproj), OUT(A, drinv), INOUT(A, dscale), INOUT(A, dbase)};
#undef A
#define A bk_hc_gates_args
FIELDS(HC_GATES) = {IN(A, logits), OUT(A, pre), OUT_OPT(A, post)};
#undef A
#define A bk_hc_gates_bwd_args
FIELDS(HC_GATES_BWD) = {IN(A, logits), IN(A, dpre), IN_OPT(A, dpost), INOUT(A, dlogits)};
#undef A
#define A bk_sinkhorn_args
FIELDS(SINKHORN) = {IN(A, logits), OUT(A, comb)};
#undef A
#define A bk_sinkhorn_bwd_args
FIELDS(SINKHORN_BWD) = {IN(A, logits), IN(A, dcomb), OUT(A, dlogits)};
#undef A
#define A bk_hc_perm_args
FIELDS(HC_PERM) = {IN(A, logits), OUT(A, comb)};
#undef A
#define A bk_hc_perm_bwd_args
FIELDS(HC_PERM_BWD) = {IN(A, logits), IN(A, dcomb), OUT(A, dlogits)};
#undef A
#define A bk_hc_tanh_args
FIELDS(HC_TANH) = {IN(A, proj), IN(A, rinv),  IN(A, scale), IN(A, base),
                   OUT(A, pre), OUT(A, post), OUT(A, comb)};
#undef A
#define A bk_hc_tanh_bwd_args
FIELDS(HC_TANH_BWD) = {IN(A, proj),      IN(A, rinv),    IN(A, scale),  IN(A, dpre),
                       IN(A, dpost),     IN(A, dcomb),   OUT(A, dproj), OUT(A, drinv),
                       INOUT(A, dscale), INOUT(A, dbase)};
#undef A
#define A bk_hc_pre_args
FIELDS(HC_PRE) = {IN(A, x), IN(A, pre), OUT(A, y)};
#undef A
#define A bk_hc_pre_bwd_args
FIELDS(HC_PRE_BWD) = {IN(A, x), IN(A, pre), IN(A, dy), INOUT(A, dx), OUT(A, dpre)};
#undef A
#define A bk_hc_res_args
FIELDS(HC_RES) = {IN(A, x), IN(A, comb), OUT(A, y)};
#undef A
#define A bk_hc_res_bwd_args
FIELDS(HC_RES_BWD) = {IN(A, x), IN(A, comb), IN(A, dy), OUT(A, dx), OUT(A, dcomb)};
#undef A
#define A bk_hc_post_args
FIELDS(HC_POST) = {IN(A, f), IN(A, post), INOUT(A, y)};
#undef A
#define A bk_hc_post_bwd_args
FIELDS(HC_POST_BWD) = {IN(A, f), IN(A, post), IN(A, dy), OUT(A, df), OUT(A, dpost)};
#undef A

/* ---- fused slots ---- */
#define A bk_hc_project_args
FIELDS(HC_PROJECT) = {IN(A, x), IN(A, fn), OUT(A, proj), OUT(A, rinv)};
#undef A
#define A bk_hc_project_bwd_args
FIELDS(HC_PROJECT_BWD) = {IN(A, x),     IN(A, fn),        IN(A, rinv),      IN(A, dproj),
                          IN(A, drinv), INOUT_OPT(A, dx), INOUT_OPT(A, dfn)};
#undef A
#define A bk_hc_maps_args
FIELDS(HC_MAPS) = {IN(A, proj), IN(A, rinv),      IN(A, scale),    IN(A, base),
                   OUT(A, pre), OUT_OPT(A, post), OUT_OPT(A, comb)};
#undef A
#define A bk_hc_maps_bwd_args
FIELDS(HC_MAPS_BWD) = {IN(A, proj),   IN(A, rinv),      IN(A, scale),     IN(A, base),
                       IN(A, dpre),   IN_OPT(A, dpost), IN_OPT(A, dcomb), OUT(A, dproj),
                       OUT(A, drinv), INOUT(A, dscale), INOUT(A, dbase)};
#undef A
#define A bk_hc_pre_norm_args
FIELDS(HC_PRE_NORM) = {IN(A, x), IN(A, pre), IN(A, w), OUT(A, y), OUT(A, h), OUT(A, rstd)};
#undef A
#define A bk_hc_pre_norm_bwd_args
FIELDS(HC_PRE_NORM_BWD) = {IN(A, x),  IN(A, pre),   IN(A, w),     IN(A, y),    IN(A, rstd),
                           IN(A, dh), INOUT(A, dx), OUT(A, dpre), INOUT(A, dw)};
#undef A
#define A bk_hc_post_res_args
FIELDS(HC_POST_RES) = {IN(A, x), IN(A, f), IN(A, post), IN_OPT(A, comb), OUT(A, out)};
#undef A
#define A bk_hc_post_res_bwd_args
FIELDS(HC_POST_RES_BWD) = {IN(A, x),   IN(A, f),   IN(A, post),   IN_OPT(A, comb),  IN(A, dout),
                           OUT(A, dx), OUT(A, df), OUT(A, dpost), OUT_OPT(A, dcomb)};
#undef A
#define A bk_hc_merge_mix_args
FIELDS(HC_MERGE_MIX) = {
    IN(A, merge.x),       IN(A, merge.f),       IN(A, merge.post),     IN_OPT(A, merge.comb),
    OUT(A, merge.out),    IN(A, project.x),     IN(A, project.fn),     OUT(A, project.proj),
    OUT(A, project.rinv), IN(A, maps.proj),     IN(A, maps.rinv),      IN(A, maps.scale),
    IN(A, maps.base),     OUT(A, maps.pre),     OUT_OPT(A, maps.post), OUT_OPT(A, maps.comb),
    IN(A, pre_norm.x),    IN(A, pre_norm.pre),  IN(A, pre_norm.w),     OUT(A, pre_norm.y),
    OUT(A, pre_norm.h),   OUT(A, pre_norm.rstd)};
#undef A
#define A bk_hc_merge_mix_bwd_args
FIELDS(HC_MERGE_MIX_BWD) = {
    IN(A, pre_norm.x),     IN(A, pre_norm.pre),      IN(A, pre_norm.w),
    IN(A, pre_norm.y),     IN(A, pre_norm.rstd),     IN(A, pre_norm.dh),
    INOUT(A, pre_norm.dx), OUT(A, pre_norm.dpre),    INOUT(A, pre_norm.dw),
    IN(A, maps.proj),      IN(A, maps.rinv),         IN(A, maps.scale),
    IN(A, maps.base),      IN(A, maps.dpre),         IN_OPT(A, maps.dpost),
    IN_OPT(A, maps.dcomb), OUT(A, maps.dproj),       OUT(A, maps.drinv),
    INOUT(A, maps.dscale), INOUT(A, maps.dbase),     IN(A, project.x),
    IN(A, project.fn),     IN(A, project.rinv),      IN(A, project.dproj),
    IN(A, project.drinv),  INOUT_OPT(A, project.dx), INOUT_OPT(A, project.dfn),
    IN(A, merge.x),        IN(A, merge.f),           IN(A, merge.post),
    IN_OPT(A, merge.comb), IN(A, merge.dout),        OUT(A, merge.dx),
    OUT(A, merge.df),      OUT(A, merge.dpost),      OUT_OPT(A, merge.dcomb)};
#undef A

/* "layer0.x". x is made by the layer before; the last layer there can be makes none, so it has
 * no f, post and comb. */
#define A bk_hc_rebuild_args
#define LAYER(i, f, role, optional) \
  { "layer" #i "." #f, offsetof(A, layer[i].f), role, optional }
#define LAYER_MIX(i, x_role, optional)                                                         \
  LAYER(i, x, x_role, optional), LAYER(i, pre, BK_IN, optional), LAYER(i, w, BK_IN, optional), \
      LAYER(i, y, BK_OUT, optional), LAYER(i, h, BK_OUT, optional),                            \
      LAYER(i, rstd, BK_OUT, optional)
#define LAYER_MERGE(i) \
  LAYER(i, f, BK_IN, true), LAYER(i, post, BK_IN, true), LAYER(i, comb, BK_IN, true)
FIELDS(HC_REBUILD) = {
    LAYER_MIX(0, BK_IN, false), LAYER_MERGE(0), LAYER_MIX(1, BK_OUT, true), LAYER_MERGE(1),
    LAYER_MIX(2, BK_OUT, true), LAYER_MERGE(2), LAYER_MIX(3, BK_OUT, true), LAYER_MERGE(3),
    LAYER_MIX(4, BK_OUT, true), LAYER_MERGE(4), LAYER_MIX(5, BK_OUT, true), LAYER_MERGE(5),
    LAYER_MIX(6, BK_OUT, true), LAYER_MERGE(6), LAYER_MIX(7, BK_OUT, true)};
_Static_assert(BK_HC_REBUILD_MAX == 8, "fields_HC_REBUILD lists the layers");
#undef A

/* ---- parameters ---- */
#define PARAM(type, f) \
  { offsetof(type, f), sizeof(((type *)0)->f) }
#define MAPS(type, part) \
  PARAM(type, part kind), PARAM(type, part n), PARAM(type, part iters), PARAM(type, part hc_eps)
#define KIND_AND_N(type) PARAM(type, kind), PARAM(type, n)
#define SINKHORN(type) PARAM(type, iters), PARAM(type, hc_eps)
#define ROUTED(type) PARAM(type, norm_topk_prob), PARAM(type, routed_scaling_factor)
static const bk_op_param parameters[BK_OP_COUNT][BK_OP_MAX_PARAMS] = {
    [BK_OP_SUM] = {PARAM(bk_sum_args, accumulate)},
    [BK_OP_GEMM] = {PARAM(bk_gemm_args, alpha), PARAM(bk_gemm_args, accumulate)},
    [BK_OP_GROUPED_WGRAD] = {PARAM(bk_grouped_wgrad_args, overwrite)},
    [BK_OP_RMSNORM] = {PARAM(bk_rmsnorm_args, eps)},
    [BK_OP_RMSNORM_BWD] = {PARAM(bk_rmsnorm_bwd_args, accumulate)},
    [BK_OP_ROPE] = {PARAM(bk_rope_args, theta), PARAM(bk_rope_args, inverse)},
    [BK_OP_ATTENTION] = {PARAM(bk_attention_args, scale)},
    [BK_OP_ATTENTION_BWD] = {PARAM(bk_attention_bwd_args, scale)},
    [BK_OP_ROUTER] = {PARAM(bk_router_args, n_group), PARAM(bk_router_args, topk_group),
                      ROUTED(bk_router_args)},
    [BK_OP_ROUTER_BWD] = {ROUTED(bk_router_bwd_args)},
    [BK_OP_PERMUTE] = {PARAM(bk_permute_args, k)},
    [BK_OP_UNPERMUTE] = {PARAM(bk_unpermute_args, accumulate)},
    [BK_OP_SUMSQ] = {PARAM(bk_sumsq_args, accumulate)},
    [BK_OP_ADAMW] = {PARAM(bk_adamw_args, beta1), PARAM(bk_adamw_args, beta2),
                     PARAM(bk_adamw_args, eps), PARAM(bk_adamw_args, weight_decay)},
    [BK_OP_HC_RMS] = {PARAM(bk_hc_rms_args, eps)},
    [BK_OP_HC_RMS_BWD] = {PARAM(bk_hc_rms_bwd_args, accumulate)},
    [BK_OP_HC_LOGITS] = {KIND_AND_N(bk_hc_logits_args)},
    [BK_OP_HC_LOGITS_BWD] = {KIND_AND_N(bk_hc_logits_bwd_args)},
    [BK_OP_HC_GATES] = {PARAM(bk_hc_gates_args, hc_eps)},
    [BK_OP_SINKHORN] = {SINKHORN(bk_sinkhorn_args)},
    [BK_OP_SINKHORN_BWD] = {SINKHORN(bk_sinkhorn_bwd_args)},
    [BK_OP_HC_PERM] = {PARAM(bk_hc_perm_args, n)},
    [BK_OP_HC_PERM_BWD] = {PARAM(bk_hc_perm_bwd_args, n)},
    [BK_OP_HC_TANH] = {PARAM(bk_hc_tanh_args, n)},
    [BK_OP_HC_TANH_BWD] = {PARAM(bk_hc_tanh_bwd_args, n)},
    [BK_OP_HC_PRE_BWD] = {PARAM(bk_hc_pre_bwd_args, accumulate)},
    [BK_OP_HC_PROJECT] = {PARAM(bk_hc_project_args, eps)},
    [BK_OP_HC_PROJECT_BWD] = {PARAM(bk_hc_project_bwd_args, accumulate)},
    [BK_OP_HC_MAPS] = {MAPS(bk_hc_maps_args, )},
    [BK_OP_HC_MAPS_BWD] = {MAPS(bk_hc_maps_bwd_args, )},
    [BK_OP_HC_PRE_NORM] = {PARAM(bk_hc_pre_norm_args, eps)},
    [BK_OP_HC_PRE_NORM_BWD] = {PARAM(bk_hc_pre_norm_bwd_args, accumulate)},
    [BK_OP_HC_MERGE_MIX] = {PARAM(bk_hc_merge_mix_args, project.eps),
                            MAPS(bk_hc_merge_mix_args, maps.),
                            PARAM(bk_hc_merge_mix_args, pre_norm.eps)},
    [BK_OP_HC_MERGE_MIX_BWD] = {PARAM(bk_hc_merge_mix_bwd_args, pre_norm.accumulate),
                                MAPS(bk_hc_merge_mix_bwd_args, maps.),
                                PARAM(bk_hc_merge_mix_bwd_args, project.accumulate)},
    [BK_OP_HC_REBUILD] = {PARAM(bk_hc_rebuild_args, layers), PARAM(bk_hc_rebuild_args, eps)},
};

#define FIELDS_FIT(id, name, args) _Static_assert(BK_COUNT(fields_##id) <= BK_OP_MAX_FIELDS, name);
BK_OP_LIST(FIELDS_FIT)
#undef FIELDS_FIT
#define DESC(id, name, args)                  \
  [BK_OP_##id] = {BK_OP_##id,                 \
                  name,                       \
                  sizeof(args),               \
                  fields_##id,                \
                  (int)BK_COUNT(fields_##id), \
                  parameters[BK_OP_##id],     \
                  bk_check_##id,              \
                  bk_cost_##id},
static const bk_op_desc descriptors[BK_OP_COUNT] = {BK_OP_LIST(DESC)};
#undef DESC

const bk_op_desc *bk_op_describe(bk_op op) {
  return op > BK_OP_NONE && op < BK_OP_COUNT ? &descriptors[op] : NULL;
}

const char *bk_op_name(bk_op op) {
  const bk_op_desc *desc = bk_op_describe(op);
  return desc ? desc->name : "none";
}

const bk_op_field *bk_op_field_find(bk_op op, const char *name) {
  const bk_op_desc *desc = bk_op_describe(op);
  for (int i = 0; desc && i < desc->n_fields; i++) {
    if (strcmp(desc->fields[i].name, name) == 0) return &desc->fields[i];
  }
  return NULL;
}

bk_dtype bk_op_leading_dtype(bk_op op, const void *args) {
  return bk_op_field_get(args, &bk_op_describe(op)->fields[0])->dtype;
}

char *bk_op_describe_args(bk_op op, const void *args, char *text, size_t size) {
  const bk_op_desc *desc = bk_op_describe(op);
  size_t used = 0;
  text[0] = '\0';
  for (int i = 0; i < desc->n_fields && used + 1 < size; i++) {
    const bk_tensor *t = bk_op_field_get(args, &desc->fields[i]);
    char one[160];
    if (!bk_tensor_present(t)) continue;
    int n = snprintf(text + used, size - used, "%s%s %s", used ? ", " : "", desc->fields[i].name,
                     bk_tensor_describe(t, one, sizeof one));
    used += n > 0 ? (size_t)n : 0;
  }
  return text;
}

/* The first field that begins where this one does. */
static int first_at_place(const bk_op_desc *d, const void *args, int field) {
  const bk_tensor *t = bk_op_field_get(args, &d->fields[field]);
  for (int i = 0; i < field; i++) {
    const bk_tensor *other = bk_op_field_get(args, &d->fields[i]);
    bool same = other->buffer == t->buffer && other->offset == t->offset;
    if (same && bk_tensor_present(other)) return i;
  }
  return field;
}

void bk_op_plan_key(bk_op op, const void *args, void *key) {
  const bk_op_desc *d = bk_op_describe(op);
  memset(key, 0, d->args_size);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *t = bk_op_field_get(args, &d->fields[i]);
    if (!bk_tensor_present(t)) continue;
    bk_tensor *k = bk_op_field_ref(key, &d->fields[i]);
    *k = *t;
    k->buffer = NULL;
    k->offset = t->offset % BK_ARENA_ALIGN + (size_t)first_at_place(d, args, i) * BK_ARENA_ALIGN;
  }
  for (int i = 0; i < BK_OP_MAX_PARAMS && d->params[i].size; i++) {
    const bk_op_param *p = &d->params[i];
    memcpy((char *)key + p->offset, (const char *)args + p->offset, p->size);
  }
}
