/* Shape rules of the layers: norm, rope, attention, swiglu, embedding, cross entropy, router and
 * token permutation. */
#include "ops/ops.h"

bk_status bk_check_RMSNORM(bk_context *ctx, const void *args) {
  const bk_rmsnorm_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_RMSNORM, args);
  BK_TRY(bk_dims_check(&dims, "x:s[N,D] w:c[D] y:s[N,D] rstd:c[N]"));
  return bk_dims_positive(&dims, "eps", a->eps);
}

bk_status bk_check_RMSNORM_BWD(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_RMSNORM_BWD, args,
                        "x:s[N,D] w:c[D] rstd:c[N] dy:s[N,D] dx:s[N,D] dw:c[D]");
}

bk_status bk_check_ROPE(bk_context *ctx, const void *args) {
  const bk_rope_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_ROPE, args);
  BK_TRY(bk_dims_check(&dims, "x:s[B,T,X,D] past:i[1] y:s[B,T,Y,D]"));
  int64_t from = dims.value['X'], to = dims.value['Y'], width = dims.value['D'];
  if (from != to && from != 1 && to != 1) {
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "rope: x has %lld heads and y has %lld, they should be equal or one of them 1",
                   (long long)from, (long long)to);
  }
  if (width % 2)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "rope: width %lld is odd, it should be even",
                   (long long)width);
  if (from != to) BK_TRY(bk_dims_distinct(&dims, "x", "y"));
  return bk_dims_positive(&dims, "theta", a->theta);
}

bk_status bk_check_CACHE_WRITE(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_CACHE_WRITE, args, "x:s[B,T,H,D] past:i[1] y:s[B,S,H,D]");
}

bk_status bk_check_ATTENTION(bk_context *ctx, const void *args) {
  const bk_attention_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_ATTENTION, args);
  BK_TRY(bk_dims_check(
      &dims, "q:s[B,T,H,K] k:s[B,S,H,K] v:s[B,S,H,V] past:i[1] o:s[B,T,H,V] lse:c[B,H,T]"));
  if (!bk_tensor_present(&a->past) && dims.value['S'] != dims.value['T']) {
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "attention: k has %lld positions and q %lld, without past they should be equal",
                   (long long)dims.value['S'], (long long)dims.value['T']);
  }
  return BK_OK;
}

bk_status bk_check_ATTENTION_BWD(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_ATTENTION_BWD, args,
                        "q:s[B,T,H,K] k:s[B,T,H,K] v:s[B,T,H,V] o:s[B,T,H,V] lse:c[B,H,T] "
                        "dout:s[B,T,H,V] dq:s[B,T,H,K] "
                        "dk:s[B,T,H,K] dv:s[B,T,H,V]");
}

bk_status bk_check_SWIGLU(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_SWIGLU, args, "gate:s[N,I] up:s[N,I] y:s[N,I]");
}

bk_status bk_check_SWIGLU_BWD(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_SWIGLU_BWD, args,
                        "gate:s[N,I] up:s[N,I] dy:s[N,I] dgate:s[N,I] dup:s[N,I]");
}

bk_status bk_check_EMBED(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_EMBED, args, "ids:i[N] table:s[V,C] y:s[N,C]");
}

bk_status bk_check_EMBED_BWD(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_EMBED_BWD, args, "ids:i[N] dy:s[N,C] dtable:c[V,C]");
}

bk_status bk_check_CROSS_ENTROPY(bk_context *ctx, const void *args) {
  const bk_cross_entropy_args *a = args;
  BK_TRY(bk_check_rules(ctx, BK_OP_CROSS_ENTROPY, args,
                        "logits:s[N,V] targets:i[N] step:c[32] loss:c[N] dlogits:f[N,V]"));
  if (!bk_tensor_present(&a->dlogits) || a->dlogits.dtype == a->logits.dtype) return BK_OK;
  if (!a->logits.buffer || a->logits.buffer != a->dlogits.buffer ||
      a->logits.offset != a->dlogits.offset)
    return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT,
                 "cross_entropy: dlogits may lie in the memory of logits only in their dtype");
}

/* ---- experts ---- */

bk_status bk_check_ROUTER(bk_context *ctx, const void *args) {
  const bk_router_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_ROUTER, args);
  BK_TRY(bk_dims_check(&dims, "logits:c[N,E] bias:c[E] scores:c[N,E] index:i[N,k] weights:c[N,k]"));
  int64_t experts = dims.value['E'];
  BK_TRY(bk_dims_range(&dims, "n_group", a->n_group, 1, experts));
  BK_TRY(bk_dims_range(&dims, "topk_group", a->topk_group, 1, a->n_group));
  if (experts % a->n_group || (a->n_group > 1 && experts / a->n_group < 2)) {
    return bk_fail(
        ctx, BK_ERR_ARGUMENT,
        "router: %lld experts in %d groups, there should be 2 or more in each, equally many",
        (long long)experts, a->n_group);
  }
  return bk_dims_range(&dims, "the number of experts per token", dims.value['k'], 1,
                       experts / a->n_group * a->topk_group);
}

bk_status bk_check_ROUTER_BWD(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_ROUTER_BWD, args,
                        "scores:c[N,E] index:i[N,k] dweights:c[N,k] dlogits:c[N,E]");
}

bk_status bk_check_MOE_INDEX(bk_context *ctx, const void *args) {
  const bk_moe_index_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_MOE_INDEX, args);
  if (bk_tensor_present(&a->offsets)) {
    BK_TRY(bk_dims_range(&dims, "the length of offsets", a->offsets.shape[0], 2, INT32_MAX));
    bk_dims_bind(&dims, 'E', a->offsets.shape[0] - 1);
  }
  return bk_dims_check(&dims, "index:i[N,k] offsets:i[E+1] order:i[N*k] slot:i[N,k] load:i[E]");
}

bk_status bk_check_PERMUTE(bk_context *ctx, const void *args) {
  const bk_permute_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_PERMUTE, args);
  BK_TRY(bk_dims_check(&dims, "x:s[N,C] order:i[M] y:s[M,C]"));
  BK_TRY(bk_dims_distinct(&dims, "x", "y"));
  return bk_dims_range(&dims, "k", a->k, 1, INT32_MAX);
}

bk_status bk_check_UNPERMUTE(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_UNPERMUTE, args, "x:s[M,C] slot:i[N,k] weights:c[N,k] y:s[N,C]");
}

bk_status bk_check_UNPERMUTE_BWD(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_UNPERMUTE_BWD, args,
                        "x:s[M,C] slot:i[N,k] weights:c[N,k] dy:s[N,C] dx:s[M,C] dweights:c[N,k]");
}

bk_status bk_check_BALANCE(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_BALANCE, args, "load:i[E] step:c[32] bias:c[E]");
}
