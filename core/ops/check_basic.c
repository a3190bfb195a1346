/* Shape rules of copies, dense products and the optimiser (op.h has the contract). */
#include "ops/ops.h"

static const bk_tensor *field(const bk_dims *dims, const char *name) {
  return bk_op_field_get(dims->args, bk_op_field_find(dims->op, name));
}

/* Rules for operands of any one shape: "x:s[A,B,C]~" for three dimensions. `names` ends with
 * NULL. */
static bk_status check_same_shape(bk_dims *dims, const char *const *names, const char *dim_names) {
  const bk_tensor *first = field(dims, names[0]);
  if (!bk_tensor_present(first)) return bk_dims_present(dims, names[0], true);
  if (first->ndim < 1 || first->ndim > BK_MAX_DIMS)
    return bk_dims_range(dims, "the number of dimensions", first->ndim, 1, BK_MAX_DIMS);
  char rule[64];
  for (; *names; names++) {
    size_t used = 0;
    for (const char *p = *names; *p; p++) rule[used++] = *p;
    for (const char *p = ":s["; *p; p++) rule[used++] = *p;
    for (int d = 0; d < first->ndim; d++) {
      if (d) rule[used++] = ',';
      rule[used++] = dim_names[d];
      rule[used++] = '?';
    }
    rule[used++] = ']';
    rule[used] = '\0';
    BK_TRY(bk_dims_check(dims, rule));
  }
  return BK_OK;
}

static bk_status copy_fail(bk_context *ctx, const bk_copy_args *a) {
  char x[160], y[160];
  return bk_fail(
      ctx, BK_ERR_ARGUMENT,
      "copy: x is %s and y is %s: they should have one shape, y no overlapping elements, and "
      "both float types or one integer type",
      bk_tensor_describe(&a->x, x, sizeof x), bk_tensor_describe(&a->y, y, sizeof y));
}

bk_status bk_check_COPY(bk_context *ctx, const void *args) {
  const bk_copy_args *a = args;
  bk_dims dims;
  bool floats = bk_dtype_is_float(a->x.dtype) && bk_dtype_is_float(a->y.dtype);
  if (!bk_tensor_present(&a->x) || !bk_tensor_present(&a->y) || !bk_tensor_same_shape(&a->x, &a->y))
    return copy_fail(ctx, a);
  if (!floats && a->x.dtype != a->y.dtype) return copy_fail(ctx, a);
  for (int d = 0; d < a->y.ndim; d++) {
    bool overlap = a->y.stride[d] == 0 && a->y.shape[d] > 1;
    if (a->x.stride[d] < 0 || a->y.stride[d] < 0 || a->y.shape[d] < 0 || overlap)
      return copy_fail(ctx, a);
  }
  bk_dims_init(&dims, ctx, BK_OP_COPY, args);
  BK_TRY(bk_dims_place(&dims, "x"));
  return bk_dims_place(&dims, "y");
}

bk_status bk_check_ADD(bk_context *ctx, const void *args) {
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_ADD, args);
  return check_same_shape(&dims, (const char *const[]){"a", "b", "y", NULL}, "ABCD");
}

bk_status bk_check_SUM(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_SUM, args, "x:c[N] y:c[1]");
}

/* One of a matrix's two strides is 1; a dimension of size 1 has no stride to speak of. */
static bk_status check_matrix(const bk_dims *dims, const char *name) {
  const bk_tensor *t = field(dims, name);
  int row = t->ndim - 2, column = t->ndim - 1;
  if (t->stride[row] == 1 || t->stride[column] == 1 || t->shape[row] <= 1 || t->shape[column] <= 1)
    return BK_OK;
  char text[160];
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                 "%s: %s is %s: one of its last two strides should be 1", bk_op_name(dims->op),
                 name, bk_tensor_describe(t, text, sizeof text));
}

bk_status bk_check_GEMM(bk_context *ctx, const void *args) {
  const bk_gemm_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_GEMM, args);
  BK_TRY(bk_dims_check(&dims, a->a.ndim == 3 ? "a:f[B,M,K?]~ b:f[B,K?,N]~ c:f[B,M,N]~"
                                             : "a:f[M,K?]~ b:f[K?,N]~ c:f[M,N]~"));
  BK_TRY(check_matrix(&dims, "a"));
  BK_TRY(check_matrix(&dims, "b"));
  BK_TRY(check_matrix(&dims, "c"));
  BK_TRY(bk_dims_distinct(&dims, "a", "c"));
  return bk_dims_distinct(&dims, "b", "c");
}

bk_status bk_check_GROUPED_GEMM(bk_context *ctx, const void *args) {
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_GROUPED_GEMM, args);
  BK_TRY(bk_dims_check(&dims, "a:f[M,K] b:f[E,K,N]~ offsets:i[E+1] c:f[M,N]"));
  BK_TRY(check_matrix(&dims, "b"));
  return bk_dims_distinct(&dims, "a", "c");
}

bk_status bk_check_GROUPED_WGRAD(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_GROUPED_WGRAD, args,
                        "a:s[M,P] b:s[M,Q] c:c[E,P,Q] offsets:i[E+1]");
}

bk_status bk_check_SUMSQ(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_SUMSQ, args, "x:c[P] y:c[1]");
}

bk_status bk_check_CLIP(bk_context *ctx, const void *args) {
  return bk_check_rules(ctx, BK_OP_CLIP, args, "step:c[32]");
}

bk_status bk_check_ADAMW(bk_context *ctx, const void *args) {
  const bk_adamw_args *a = args;
  bk_dims dims;
  bk_dims_init(&dims, ctx, BK_OP_ADAMW, args);
  BK_TRY(bk_dims_check(&dims, "grad:c[P] step:c[32] master:c[P] m:c[P] v:c[P] p:f[P]"));
  if (!bk_tensor_present(&a->master)) BK_TRY(bk_dims_check(&dims, "p:c[P]"));
  BK_TRY(bk_dims_positive(&dims, "eps", a->eps));
  return bk_dims_positive(&dims, "weight_decay", a->weight_decay);
}
_Static_assert(BK_STEP_SLOTS == 32, "the step:c[32] rules say how long the step block is");
