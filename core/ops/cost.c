/* The cost model: floating point operations (a multiply-add is 2; exp, log, division and square
 * root are 1 each) and bytes moved at best, each operand once; what is added to counts twice.
 * Work that depends on data which the host does not see (expert groups, ignored targets) is
 * counted at its upper bound. */
#include "ops/ops.h"

#define N(f) ((double)bk_tensor_count(&a->f))
#define BYTES(f) ((double)bk_tensor_bytes(&a->f))
#define DIM(f, d) ((double)a->f.shape[d])
#define HAS(f) (bk_tensor_present(&a->f) ? 1.0 : 0.0)
#define WHEN(condition, value) ((condition) ? (value) : 0.0)

static double operand_bytes(bk_op op, const void *args) {
  const bk_op_desc *desc = bk_op_describe(op);
  double bytes = 0;
  for (int i = 0; i < desc->n_fields; i++) {
    double one = (double)bk_tensor_bytes(bk_op_field_get(args, &desc->fields[i]));
    bytes += desc->fields[i].role == BK_INOUT ? 2 * one : one;
  }
  return bytes;
}

/* COST(op, args type, flops, bytes to take off the operands' sum) */
#define COST(id, type, flops_, less)                                   \
  void bk_cost_##id(const void *args_, double *flops, double *bytes) { \
    const type *a = args_;                                             \
    *flops = (flops_);                                                 \
    *bytes = operand_bytes(BK_OP_##id, a) - (less);                    \
  }

COST(COPY, bk_copy_args, 0 * N(x), 0)
COST(ADD, bk_add_args, N(y), 0)
COST(SUM, bk_sum_args, N(x), WHEN(!a->accumulate, BYTES(y)))
COST(GEMM, bk_gemm_args, 2 * N(c) * (double)a->a.shape[a->a.ndim - 1],
     WHEN(!a->accumulate, BYTES(c)))
COST(GROUPED_GEMM, bk_grouped_gemm_args, 2 * N(c) * DIM(a, 1), BYTES(c))
COST(GROUPED_WGRAD, bk_grouped_wgrad_args, 2 * N(a) * DIM(b, 1), 0)
COST(RMSNORM, bk_rmsnorm_args, 4 * N(x) + 3 * DIM(x, 0), 0)
COST(RMSNORM_BWD, bk_rmsnorm_bwd_args, N(x) * (4 * HAS(dx) + 3 * HAS(dw) + 3),
     WHEN(!a->accumulate, BYTES(dx)))
COST(ROPE, bk_rope_args, 3 * (N(x) > N(y) ? N(x) : N(y)), 0)
COST(CACHE_WRITE, bk_cache_write_args, 0, 2 * BYTES(y) - BYTES(x))

/* Pairs of positions that attend: T (T + 1) / 2, or all of a cache. */
static double attention_pairs(const bk_tensor *q, double keys, bool cached) {
  double t = (double)q->shape[1];
  return (double)q->shape[0] * (double)q->shape[2] * (cached ? t * keys : t * (t + 1) / 2);
}
COST(ATTENTION, bk_attention_args,
     attention_pairs(&a->q, DIM(k, 1), bk_tensor_present(&a->past)) *
         (2 * DIM(q, 3) + 2 * DIM(v, 3) + 5),
     0)
COST(ATTENTION_BWD, bk_attention_bwd_args,
     attention_pairs(&a->q, 0, false) * (6 * DIM(q, 3) + 4 * DIM(v, 3) + 7) + 2 * N(o), 0)

COST(SWIGLU, bk_swiglu_args, 5 * N(y), 0)
COST(SWIGLU_BWD, bk_swiglu_bwd_args, 11 * N(dy), 0)
COST(EMBED, bk_embed_args, 0, BYTES(table) - BYTES(y))
COST(EMBED_BWD, bk_embed_bwd_args, N(dy),
     2 * (BYTES(dtable) - N(dy) * (double)bk_dtype_size(a->dtable.dtype)))
COST(CROSS_ENTROPY, bk_cross_entropy_args, N(logits) * (4 + 3 * HAS(dlogits)), 0)

COST(ROUTER, bk_router_args, N(logits) * (4 + DIM(index, 1)) + 3 * N(weights), 0)
COST(ROUTER_BWD, bk_router_bwd_args, 8 * N(dweights), 0)
COST(MOE_INDEX, bk_moe_index_args, 0, 0)
COST(PERMUTE, bk_permute_args, 0, BYTES(x) - BYTES(y))
COST(UNPERMUTE, bk_unpermute_args, (1 + HAS(weights)) * N(slot) * DIM(x, 1),
     WHEN(!a->accumulate, BYTES(y)))
COST(UNPERMUTE_BWD, bk_unpermute_bwd_args, 3 * N(slot) * DIM(x, 1), BYTES(dx))
COST(BALANCE, bk_balance_args, 3 * N(bias), 0)

COST(SUMSQ, bk_sumsq_args, 2 * N(x), WHEN(!a->accumulate, BYTES(y)))
COST(CLIP, bk_clip_args, 4, 0)
COST(ADAMW, bk_adamw_args, 16 * N(grad), WHEN(bk_tensor_present(&a->master), BYTES(p)))

/* ---- residual connections: n streams of width C ---- */
COST(HC_EXPAND, bk_hc_expand_args, 0, 0)
COST(HC_COLLAPSE, bk_hc_collapse_args, N(x), 0)
COST(HC_RMS, bk_hc_rms_args, 2 * N(x) + 3 * N(rinv), 0)
COST(HC_RMS_BWD, bk_hc_rms_bwd_args, N(x) * (1 + a->accumulate) + 4 * N(rinv),
     WHEN(!a->accumulate, BYTES(dx)))
COST(HC_LOGITS, bk_hc_logits_args, 3 * N(proj), 0)
COST(HC_LOGITS_BWD, bk_hc_logits_bwd_args, 8 * N(proj), 0)
COST(HC_GATES, bk_hc_gates_args, 4 * N(pre) + 4 * N(post), 0)
COST(HC_GATES_BWD, bk_hc_gates_bwd_args, 7 * N(dpre) + 7 * N(dpost),
     2 * BYTES(dlogits) - BYTES(dpre) - BYTES(dpost))

/* One normalisation of a matrix by rows or columns: a sum and a division per entry. */
static double sinkhorn_flops(double entries, int iters) {
  return entries * (3 + 4 * (double)iters);
}
COST(SINKHORN, bk_sinkhorn_args, sinkhorn_flops(N(comb), a->iters), 0)
COST(SINKHORN_BWD, bk_sinkhorn_bwd_args, 3 * sinkhorn_flops(N(dcomb), a->iters), 0)
COST(HC_PERM, bk_hc_perm_args, N(logits) * (4 + a->n), 0)
COST(HC_PERM_BWD, bk_hc_perm_bwd_args, N(logits) * (7 + a->n), 0)
COST(HC_TANH, bk_hc_tanh_args, 4 * (N(pre) + N(post) + N(comb)), 0)
COST(HC_TANH_BWD, bk_hc_tanh_bwd_args, 10 * (N(dpre) + N(dpost) + N(dcomb)), 0)
COST(HC_PRE, bk_hc_pre_args, 2 * N(x), 0)
COST(HC_PRE_BWD, bk_hc_pre_bwd_args, N(x) * (3 + a->accumulate), WHEN(!a->accumulate, BYTES(dx)))
COST(HC_RES, bk_hc_res_args, 2 * N(x) * DIM(x, 1), 0)
COST(HC_RES_BWD, bk_hc_res_bwd_args, 4 * N(x) * DIM(x, 1), 0)
COST(HC_POST, bk_hc_post_args, 2 * N(y), 0)
COST(HC_POST_BWD, bk_hc_post_bwd_args, 4 * N(dy), 0)

/* ---- fused slots ---- */
COST(HC_PROJECT, bk_hc_project_args, 2 * N(x) * DIM(fn, 0) + 2 * N(x), 0)
COST(HC_PROJECT_BWD, bk_hc_project_bwd_args,
     2 * N(x) * DIM(fn, 0) * (HAS(dx) + HAS(dfn)) + 2 * N(x) * HAS(dx),
     WHEN(!a->accumulate, BYTES(dx)))

static double maps_flops(bk_hc_kind kind, double logits, double maps, double comb, int n,
                         int iters) {
  double gates = 4 * (maps - comb);
  if (kind == BK_HC_HC) return 4 * maps;
  if (kind == BK_HC_MHC) return 3 * logits + gates + sinkhorn_flops(comb, iters);
  if (kind == BK_HC_MHC_LITE) return 3 * logits + gates + (4 + n) * logits;
  return 3 * logits + gates;
}
COST(HC_MAPS, bk_hc_maps_args,
     maps_flops(a->kind, N(proj), N(pre) + N(post) + N(comb), N(comb), a->n, a->iters), 0)
COST(HC_MAPS_BWD, bk_hc_maps_bwd_args,
     3 * maps_flops(a->kind, N(proj), N(dpre) + N(dpost) + N(dcomb), N(dcomb), a->n, a->iters), 0)
COST(HC_PRE_NORM, bk_hc_pre_norm_args, 2 * N(x) + 4 * N(y), 0)
COST(HC_PRE_NORM_BWD, bk_hc_pre_norm_bwd_args, N(x) * (3 + a->accumulate) + 10 * N(y),
     WHEN(!a->accumulate, BYTES(dx)))
COST(HC_POST_RES, bk_hc_post_res_args, 2 * N(x) + 2 * N(x) * DIM(x, 1) * HAS(comb), 0)
COST(HC_POST_RES_BWD, bk_hc_post_res_bwd_args, 4 * N(x) + 4 * N(x) * DIM(x, 1) * HAS(comb), 0)

/* What an earlier part has just written is still at hand. */
static double parts_flops(int count, const bk_op *ops, const void *const *args) {
  double sum = 0;
  for (int i = 0; i < count; i++) {
    double flops, bytes;
    bk_op_describe(ops[i])->cost(args[i], &flops, &bytes);
    sum += flops;
  }
  return sum;
}
COST(HC_MERGE_MIX, bk_hc_merge_mix_args,
     parts_flops(4,
                 (const bk_op[]){BK_OP_HC_POST_RES, BK_OP_HC_PROJECT, BK_OP_HC_MAPS,
                                 BK_OP_HC_PRE_NORM},
                 (const void *const[]){&a->merge, &a->project, &a->maps, &a->pre_norm}),
     BYTES(project.x) + BYTES(pre_norm.x) + BYTES(maps.proj) + BYTES(maps.rinv) +
         BYTES(pre_norm.pre))
COST(HC_MERGE_MIX_BWD, bk_hc_merge_mix_bwd_args,
     parts_flops(4,
                 (const bk_op[]){BK_OP_HC_PRE_NORM_BWD, BK_OP_HC_MAPS_BWD, BK_OP_HC_PROJECT_BWD,
                                 BK_OP_HC_POST_RES_BWD},
                 (const void *const[]){&a->pre_norm, &a->maps, &a->project, &a->merge}),
     2 * BYTES(project.dx) + BYTES(pre_norm.dx) + BYTES(merge.dout) + BYTES(project.x) +
         BYTES(maps.dpre) + BYTES(project.dproj) + BYTES(project.drinv))

/* The streams are still at hand at every layer. */
static double rebuild_flops(const bk_hc_rebuild_args *a) {
  double x = N(layer[0].x), mixed = DIM(layer[0].x, 1) * HAS(layer[0].comb),
         layers = (double)a->layers;
  return layers * (2 * x + 4 * N(layer[0].y)) + (layers - 1) * 2 * x * (1 + mixed);
}
COST(HC_REBUILD, bk_hc_rebuild_args, rebuild_flops(a), 0)
