/* The descriptors: the rows of ops.def as data, and what those rows name: functions for
 * the flops that are more than an expression, and for the conditions that shapes do not say.
 *
 * A condition logs what it found and what would be right, and returns BK_ERR_ARGUMENT. */
#include "runtime/op_priv.h"
#include "runtime/connection.h"

#include <stdio.h>

/* ---- costs ---- */

static double flops_of(bk_op op, const void *args) {
  double less;
  return bk_op_describe(op)->flops(args, &less);
}

/* Pairs of positions of which one attends to the other: T (T + 1) / 2 for each sequence and head,
 * or T times all of the cache, whose filled part the host does not know. */
static double attention_pairs(const bk_tensor *q, double keys, bool cached) {
  double t = (double)q->shape[1];
  return (double)q->shape[0] * (double)q->shape[2] * (cached ? t * keys : t * (t + 1) / 2);
}

/* Two normalisations a round, by rows and by columns, each with a sum and a division per entry;
 * three more per entry for the exponentials at the start. */
static double sinkhorn_flops(double entries, int iters) {
  return entries * (3 + 4 * (double)iters);
}

static double maps_flops(bk_hc_kind kind, double logits, double maps, double comb, int n,
                         int iters) {
  return bk_connection_kind_of(kind)->flops(logits, maps, comb, n, iters);
}

static double merge_mix_flops(const bk_hc_merge_mix_args *a) {
  return flops_of(BK_OP_HC_POST_RES, &a->merge) + flops_of(BK_OP_HC_PROJECT, &a->project) +
         flops_of(BK_OP_HC_MAPS, &a->maps) + flops_of(BK_OP_HC_PRE_NORM, &a->pre_norm);
}

static double merge_mix_bwd_flops(const bk_hc_merge_mix_bwd_args *a) {
  return flops_of(BK_OP_HC_PRE_NORM_BWD, &a->pre_norm) + flops_of(BK_OP_HC_MAPS_BWD, &a->maps) +
         flops_of(BK_OP_HC_PROJECT_BWD, &a->project) + flops_of(BK_OP_HC_POST_RES_BWD, &a->merge);
}

/* HC_REBUILD as layers times the mix and layers - 1 times the merge. */
static double rebuild_flops(const bk_hc_rebuild_args *a) {
  const bk_tensor *x = &a->layer[0].x;
  double streams = (double)bk_tensor_count(x), layers = (double)a->layers,
         mixed = bk_tensor_present(&a->layer[0].comb) ? (double)x->shape[1] : 0;
  return layers * (2 * streams + 4 * (double)bk_tensor_count(&a->layer[0].y)) +
         (layers - 1) * 2 * streams * (1 + mixed);
}

/* ---- conditions: dense operations ---- */

/* y may not have two elements in one place, since the result would depend on the order of writing;
 * x may, which is how a copy broadcasts. */
static bk_status copy_is_possible(bk_dims *dims) {
  const bk_copy_args *a = dims->args;
  bool floats = bk_dtype_is_float(a->x.dtype) && bk_dtype_is_float(a->y.dtype), fits;
  char x[160], y[160];
  fits = bk_tensor_present(&a->x) && bk_tensor_present(&a->y) && bk_tensor_same_shape(&a->x, &a->y);
  fits = fits && (floats || a->x.dtype == a->y.dtype);
  for (int d = 0; fits && d < a->y.ndim; d++)
    fits = a->x.stride[d] >= 0 && a->y.stride[d] >= 0 && a->y.shape[d] >= 0 &&
           (a->y.stride[d] != 0 || a->y.shape[d] <= 1);
  if (fits) return BK_OK;
  return bk_fail(
      dims->ctx, BK_ERR_ARGUMENT,
      "copy: x is %s and y is %s: they should have one shape, y no overlapping elements, and "
      "both float types or one integer type",
      bk_tensor_describe(&a->x, x, sizeof x), bk_tensor_describe(&a->y, y, sizeof y));
}

/* A product takes a matrix or its transpose, so that one of the two strides is 1. A dimension of
 * size 1 has no stride to speak of. */
static bk_status matrix(const bk_dims *dims, const char *name) {
  const bk_tensor *t = bk_dims_operand(dims, name);
  int row = t->ndim - 2, column = t->ndim - 1;
  if (t->stride[row] == 1 || t->stride[column] == 1 || t->shape[row] <= 1 || t->shape[column] <= 1)
    return BK_OK;
  char text[160];
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                 "%s: %s is %s: one of its last two strides should be 1", dims->desc->name, name,
                 bk_tensor_describe(t, text, sizeof text));
}

static bk_status gemm_matrices(bk_dims *dims) {
  BK_TRY(matrix(dims, "a"));
  BK_TRY(matrix(dims, "b"));
  return matrix(dims, "c");
}

static bk_status grouped_matrices(bk_dims *dims) { return matrix(dims, "b"); }

/* ---- conditions: layers ---- */

/* With unequal heads x and y have different sizes, so that they cannot share memory. */
static bk_status rope_heads(bk_dims *dims) {
  int64_t from = dims->value['X'], to = dims->value['Y'], width = dims->value['D'];
  if (from != to && from != 1 && to != 1) {
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                   "rope: x has %lld heads and y has %lld, they should be equal or one of them 1",
                   (long long)from, (long long)to);
  }
  if (width % 2)
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "rope: width %lld is odd, it should be even",
                   (long long)width);
  return from != to ? bk_dims_apart(dims, "x", "y") : BK_OK;
}

static bk_status attention_lengths(bk_dims *dims) {
  if (bk_tensor_present(bk_dims_operand(dims, "past")) || dims->value['S'] == dims->value['T'])
    return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                 "attention: k has %lld positions and q %lld, without past they should be equal",
                 (long long)dims->value['S'], (long long)dims->value['T']);
}

/* A row of logits is replaced by its gradient element by element, which works in place only when
 * both have elements of one size. */
static bk_status dlogits_in_place(bk_dims *dims) {
  const bk_cross_entropy_args *a = dims->args;
  if (!bk_tensor_present(&a->dlogits) || a->dlogits.dtype == a->logits.dtype) return BK_OK;
  if (!a->logits.buffer || a->logits.buffer != a->dlogits.buffer ||
      a->logits.offset != a->dlogits.offset)
    return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                 "cross_entropy: dlogits may lie in the memory of logits only in their dtype");
}

/* A group's score is the sum of its two best experts (DeepSeek-V3), so that it needs two; and
 * there must be enough experts in the groups that are kept for k choices. */
static bk_status router_groups(bk_dims *dims) {
  const bk_router_args *a = dims->args;
  int64_t experts = dims->value['E'];
  BK_TRY(bk_dims_range(dims, "n_group", a->n_group, 1, experts));
  BK_TRY(bk_dims_range(dims, "topk_group", a->topk_group, 1, a->n_group));
  if (experts % a->n_group || (a->n_group > 1 && experts / a->n_group < 2)) {
    return bk_fail(
        dims->ctx, BK_ERR_ARGUMENT,
        "router: %lld experts in %d groups, there should be 2 or more in each, equally many",
        (long long)experts, a->n_group);
  }
  return bk_dims_range(dims, "the number of experts per token", dims->value['k'], 1,
                       experts / a->n_group * a->topk_group);
}

static bk_status experts_of_offsets(bk_dims *dims) {
  const bk_tensor *offsets = bk_dims_operand(dims, "offsets");
  if (!bk_tensor_present(offsets)) return BK_OK;
  BK_TRY(bk_dims_range(dims, "the length of offsets", offsets->shape[0], 2, INT32_MAX));
  bk_dims_bind(dims, 'E', offsets->shape[0] - 1);
  return BK_OK;
}

static bk_status adamw_weights(bk_dims *dims) {
  const bk_adamw_args *a = dims->args;
  if (bk_tensor_present(&a->master) || a->p.dtype == a->grad.dtype) return BK_OK;
  char text[160];
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "adamw: p is %s: without master it should be in %s",
                 bk_tensor_describe(&a->p, text, sizeof text), bk_dtype_name(a->grad.dtype));
}

/* ---- conditions: residual connections ---- */

/* The columns of the logits are those of pre, then of post, then of comb. R tells how many of the
 * three there are; scale may have an entry for a group that the kind lacks. */
static bk_status logits_groups(bk_dims *dims) {
  const bk_op_field *field = bk_op_field_find(dims->desc->op, "scale");
  int64_t R = dims->value['R'];
  int n = dims->desc->op == BK_OP_HC_LOGITS ? ((const bk_hc_logits_args *)dims->args)->n
                                            : ((const bk_hc_logits_bwd_args *)dims->args)->n;
  BK_TRY(bk_dims_range(dims, "the number of logits", R, n, INT32_MAX));
  return bk_dims_range(dims, "the length of scale", bk_op_field_get(dims->args, field)->shape[0],
                       R > 2 * n ? 3
                       : R > n   ? 2
                                 : 1,
                       3);
}

/* The logits hold at least the columns of pre, and of post where that is there. */
static bk_status columns_for(bk_dims *dims, const char *post) {
  bool both = bk_tensor_present(bk_dims_operand(dims, post));
  return bk_dims_range(dims, "the number of logits", dims->value['R'],
                       dims->value['n'] * (both ? 2 : 1), INT32_MAX);
}
static bk_status gates_columns(bk_dims *dims) { return columns_for(dims, "post"); }
static bk_status gates_bwd_columns(bk_dims *dims) { return columns_for(dims, "dpost"); }

static bk_status permutations_of(bk_dims *dims, int n) {
  BK_TRY(bk_dims_range(dims, "n", n, 1, BK_HC_PERM_MAX_N));
  bk_dims_bind(dims, 'n', n);
  bk_dims_bind(dims, 'P', bk_factorial(n));
  return BK_OK;
}
static bk_status permutations(bk_dims *dims) {
  return permutations_of(dims, ((const bk_hc_perm_args *)dims->args)->n);
}
static bk_status permutations_bwd(bk_dims *dims) {
  return permutations_of(dims, ((const bk_hc_perm_bwd_args *)dims->args)->n);
}

/* Every bit of a stream's number has a factor of its own, and each factor a pair of logits. */
static bk_status kronecker_factors(bk_dims *dims) {
  bool forward = dims->desc->op == BK_OP_HC_KRON;
  const bk_tensor *comb = bk_dims_operand(dims, forward ? "comb" : "dcomb");
  if (!bk_tensor_present(comb) || comb->ndim != 3) return BK_OK; /* the check of shapes says it */
  int64_t n = comb->shape[1], factors = 0;
  while (factors < 62 && INT64_C(1) << factors < n) factors++;
  if (n != INT64_C(1) << factors || n > BK_HC_MAX_N)
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                   "%s: n is %lld, it should be a power of two and at most %d", dims->desc->name,
                   (long long)n, BK_HC_MAX_N);
  bk_dims_bind(dims, 'n', n);
  bk_dims_bind(dims, 'P', 2 * factors);
  return BK_OK;
}

static bk_status tanh_of(bk_dims *dims, int n) {
  BK_TRY(bk_dims_range(dims, "n", n, 1, BK_HC_MAX_N));
  bk_dims_bind(dims, 'n', n);
  bk_dims_bind(dims, 'R', n + 2);
  bk_dims_bind(dims, 'Q', n * (n + 2));
  return BK_OK;
}
static bk_status tanh_columns(bk_dims *dims) {
  return tanh_of(dims, ((const bk_hc_tanh_args *)dims->args)->n);
}
static bk_status tanh_bwd_columns(bk_dims *dims) {
  return tanh_of(dims, ((const bk_hc_tanh_bwd_args *)dims->args)->n);
}

/* Binds the letters that a kind's maps are made of (runtime/connection.h), and checks that exactly
 * those maps are given that the kind has. */
static bk_status maps_of(bk_dims *dims, bk_hc_kind kind, int n, int iters, const char *post,
                         const char *comb) {
  const bk_connection_kind *k = bk_connection_kind_of(kind);
  char text[64];
  if (!k || !k->rows)
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: kind %d has no maps", dims->desc->name,
                   (int)kind);
  if (!bk_connection_takes(k, n))
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: n is %d, it should be %s (%s)",
                   dims->desc->name, n, bk_connection_streams_text(k, text, sizeof text), k->name);
  if (k->iterates) BK_TRY(bk_dims_range(dims, "iters", iters, 1, BK_SINKHORN_MAX_ITERS));
  bk_dims_bind(dims, 'n', n);
  bk_dims_bind(dims, 'R', k->rows(n));
  bk_dims_bind(dims, 'J', k->per_stream ? n : 1);
  bk_dims_bind(dims, 'Q', k->base(n));
  bk_dims_bind(dims, 'G', k->scales);
  BK_TRY(bk_dims_present(dims, post, k->post));
  return bk_dims_present(dims, comb, k->comb);
}
static bk_status maps_of_kind(bk_dims *dims) {
  const bk_hc_maps_args *a = dims->args;
  return maps_of(dims, a->kind, a->n, a->iters, "post", "comb");
}
static bk_status maps_bwd_of_kind(bk_dims *dims) {
  const bk_hc_maps_bwd_args *a = dims->args;
  return maps_of(dims, a->kind, a->n, a->iters, "dpost", "dcomb");
}
static bk_status merge_mix_kind(bk_dims *dims) {
  const bk_hc_maps_args *a = &((const bk_hc_merge_mix_args *)dims->args)->maps;
  return maps_of(dims, a->kind, a->n, a->iters, "maps.post", "maps.comb");
}
static bk_status merge_mix_bwd_kind(bk_dims *dims) {
  const bk_hc_maps_bwd_args *a = &((const bk_hc_merge_mix_bwd_args *)dims->args)->maps;
  return maps_of(dims, a->kind, a->n, a->iters, "maps.dpost", "maps.dcomb");
}

static bk_status dcomb_with_comb(bk_dims *dims) {
  return bk_dims_present(dims, "dcomb", bk_tensor_present(bk_dims_operand(dims, "comb")));
}

static bk_status same_places(const bk_dims *dims, size_t count, const char *const (*pairs)[2]) {
  for (size_t i = 0; i < count; i++) BK_TRY(bk_dims_same_place(dims, pairs[i][0], pairs[i][1]));
  return BK_OK;
}
/* The parts of the fused op must hand their results on in place, as they do when they run one by
 * one. */
static bk_status merge_mix_places(bk_dims *dims) {
  static const char *const pairs[][2] = {{"project.x", "merge.out"},
                                         {"pre_norm.x", "merge.out"},
                                         {"maps.proj", "project.proj"},
                                         {"maps.rinv", "project.rinv"},
                                         {"pre_norm.pre", "maps.pre"}};
  return same_places(dims, BK_COUNT(pairs), pairs);
}
/* The mirror: the gradient of the streams is one buffer through all four parts. */
static bk_status merge_mix_bwd_places(bk_dims *dims) {
  static const char *const pairs[][2] = {
      {"project.x", "pre_norm.x"},     {"maps.dpre", "pre_norm.dpre"},
      {"project.dproj", "maps.dproj"}, {"project.drinv", "maps.drinv"},
      {"project.dx", "pre_norm.dx"},   {"merge.dout", "pre_norm.dx"}};
  BK_TRY(
      bk_dims_present(dims, "merge.dcomb", bk_tensor_present(bk_dims_operand(dims, "merge.comb"))));
  BK_TRY(bk_dims_present(dims, "project.dx", true));
  return same_places(dims, BK_COUNT(pairs), pairs);
}

static const char *layer_field(int layer, const char *name, char (*field)[32]) {
  snprintf(*field, sizeof *field, "layer%d.%s", layer, name);
  return *field;
}

/* Which operands a layer must have: all of them before the last layer, only those of the mix in
 * the last one, since it makes no streams, and none from then on. */
static bk_status rebuild_layers(bk_dims *dims) {
  static const char *const mix[] = {"x", "pre", "w", "y", "h", "rstd"}, *const merge[] = {
                                                                            "f", "post", "comb"};
  const bk_hc_rebuild_args *a = dims->args;
  bool mixed = bk_tensor_present(&a->layer[0].comb);
  char field[32];
  BK_TRY(bk_dims_range(dims, "layers", a->layers, 1, BK_HC_REBUILD_MAX));
  for (int l = 0; l < BK_HC_REBUILD_MAX; l++) {
    for (size_t i = 0; i < BK_COUNT(mix); i++)
      BK_TRY(bk_dims_present(dims, layer_field(l, mix[i], &field), l < a->layers));
    for (size_t i = 0; i < BK_COUNT(merge) && l + 1 < BK_HC_REBUILD_MAX; i++) {
      bool there = l + 1 < a->layers && (i < 2 || mixed);
      BK_TRY(bk_dims_present(dims, layer_field(l, merge[i], &field), there));
    }
  }
  return BK_OK;
}

static bk_status rebuild_places(bk_dims *dims) {
  char from[32], to[32];
  for (int l = 1; l < ((const bk_hc_rebuild_args *)dims->args)->layers; l++)
    BK_TRY(bk_dims_apart(dims, layer_field(l - 1, "x", &from), layer_field(l, "x", &to)));
  return BK_OK;
}
_Static_assert(BK_HC_REBUILD_MAX == 8, "runtime/ops.def lists the layers");

/* ---- the rows ----
 * ops.def is included twice: once for a function of each op that computes its flops, and
 * once, inside bk_op_describe, for the descriptors. There the letters of the rows are enumerators
 * of the function, so that no other code meets names as short as C or N. */
#define NONE
#define N(f) ((double)bk_tensor_count(&a->f))
#define BYTES(f) ((double)bk_tensor_bytes(&a->f))
#define DIM(f, d) ((double)a->f.shape[d])
#define HAS(f) (bk_tensor_present(&a->f) ? 1.0 : 0.0)
#define WHEN(condition, value) ((condition) ? (value) : 0.0)
#define OP(ID, name, operands, parameters, flops, less_, conditions) \
  static double flops_##ID(const void *args, double *less) {         \
    const bk_##name##_args *a BK_UNUSED = args;                      \
    *less = (less_);                                                 \
    return (flops);                                                  \
  }                                                                  \
  _Static_assert(sizeof(bk_##name##_args) <= BK_OP_MAX_ARGS, #name);
#define COMPOSED(ID, name, operands, parameters, flops, less, conditions) \
  OP(ID, name, , , flops, less, )
#define COMPOSED_OF(ID, name, members, operands, parameters, flops, less, conditions) \
  OP(ID, name, , , flops, less, )
#include "runtime/ops.def"
#undef N
#undef BYTES
#undef DIM
#undef HAS
#undef WHEN

#define TEXT(x) #x
#define OPERAND(role, optional, name, f, type, ...) \
  {name, offsetof(A, f), role, optional, type, {__VA_ARGS__}},
#define IN(f, ...) OPERAND(BK_IN, false, TEXT(f), f, __VA_ARGS__)
#define IN_OPT(f, ...) OPERAND(BK_IN, true, TEXT(f), f, __VA_ARGS__)
#define OUT(f, ...) OPERAND(BK_OUT, false, TEXT(f), f, __VA_ARGS__)
#define OUT_OPT(f, ...) OPERAND(BK_OUT, true, TEXT(f), f, __VA_ARGS__)
#define INOUT(f, ...) OPERAND(BK_INOUT, false, TEXT(f), f, __VA_ARGS__)
#define INOUT_OPT(f, ...) OPERAND(BK_INOUT, true, TEXT(f), f, __VA_ARGS__)
#define PARAMETER(f, type, low, high) \
  {TEXT(f), offsetof(A, f), sizeof(((A *)0)->f), type, low, high},
#define REAL(f) PARAMETER(f, BK_OP_PARAM_REAL, 0, 0)
#define NOT_NEGATIVE(f) PARAMETER(f, BK_OP_PARAM_NOT_NEGATIVE, 0, 0)
#define INT(f) PARAMETER(f, BK_OP_PARAM_INT, INT32_MIN, INT32_MAX)
#define INT_IN(f, low, high) PARAMETER(f, BK_OP_PARAM_INT, low, high)
#define FLAG(f) PARAMETER(f, BK_OP_PARAM_FLAG, 0, 0)
#define KIND(f) PARAMETER(f, BK_OP_PARAM_KIND, 0, 0)
#define APART(x, y) .apart = TEXT(x) "\0" TEXT(y) "\0",
#define APART_BOTH(x, y, z) .apart = TEXT(x) "\0" TEXT(z) "\0" TEXT(y) "\0" TEXT(z) "\0",
#define BEFORE(f) .before = f,
#define AFTER(f) .after = f,
#define TIMES(a, b) BK_DIM_TIMES(a, b)
#define OR_0(a) BK_DIM_OR_0(a)
#define ROW(ID, name)           \
  case BK_OP_##ID: {            \
    typedef bk_##name##_args A; \
    static const bk_op_field fields[] = {
#define PARAMETERS \
  }                \
  ;                \
  static const bk_op_param params[] = {
#define DESCRIPTOR(ID, name_)                                        \
  { "", 0, 0, BK_OP_PARAM_END, 0, 0 }                                \
  }                                                                  \
  ;                                                                  \
  static const bk_op_desc desc = {.op = BK_OP_##ID,                  \
                                  .name = #name_,                    \
                                  .args_size = sizeof(A),            \
                                  .fields = fields,                  \
                                  .n_fields = (int)BK_COUNT(fields), \
                                  .params = params,                  \
                                  .flops = flops_##ID,
#define END                                                                 \
  }                                                                         \
  ;                                                                         \
  _Static_assert(BK_COUNT(fields) <= BK_OP_MAX_FIELDS, "BK_OP_MAX_FIELDS"); \
  return &desc;                                                             \
  }
#define OP(ID, name, operands, parameters, flops, less, conditions) \
  ROW(ID, name) operands PARAMETERS parameters DESCRIPTOR(ID, name) \
  conditions END
#define COMPOSED(ID, name, operands, parameters, flops, less, conditions) \
  ROW(ID, name)                                                           \
  operands PARAMETERS parameters DESCRIPTOR(ID, name).composed = true, conditions END
#define COMPOSED_OF(ID, name, members, operands, parameters, flops, less, conditions) \
  ROW(ID, name)                                                                       \
  operands PARAMETERS parameters DESCRIPTOR(ID, name).composed = true, conditions END

const bk_op_desc *bk_op_describe(bk_op op) {
  enum { FREE = BK_TYPE_FREE, s = BK_TYPE_S, c = BK_TYPE_C, f = BK_TYPE_F, i = BK_TYPE_I };
  enum { ANY = BK_ANY_STRIDES, BLOCK = BK_DENSE_BLOCK, BATCH = BK_BATCHED, ALIKE = BK_ALIKE };
#define L(letter, c) letter = BK_DIM_LETTER(c)
  enum {
    L(B, 'B'),
    L(C, 'C'),
    L(D, 'D'),
    L(E, 'E'),
    L(G, 'G'),
    L(H, 'H'),
    L(I, 'I'),
    L(J, 'J'),
    L(K, 'K'),
    L(M, 'M'),
    L(N, 'N'),
    L(P, 'P'),
    L(Q, 'Q'),
    L(R, 'R'),
    L(S, 'S'),
    L(T, 'T'),
    L(V, 'V'),
    L(X, 'X'),
    L(Y, 'Y'),
    L(k, 'k'),
    L(n, 'n')
  };
  enum { STEP = BK_DIM_STEP };
  switch (op) {
#include "runtime/ops.def"
    default: return NULL;
  }
}
