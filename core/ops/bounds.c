/* The bounds on the normalised mean squared error, by op and by the dtype of the output.
 *
 * Element-wise ops and maps: 1e-10 in fp32, 5e-6 in bf16. Products and attention: 1e-9 in fp32,
 * growing with the length K of the sums beyond 1024; in bf16 5e-6, attention 2e-5. An fp32
 * output of a bf16 op is held to the fp32 bound (its inputs were rounded before ref saw them)
 * unless the op rounds something in between. Storing one result in bf16 takes 2.4e-6 of the 5e-6
 * (numbers of all magnitudes, 8 bits); a composed op stores what it adds to at every step,
 * which a fused kernel does not, so composed ops have the bound once per step. */
#include "ops/judge.h"
#include "ops/plan.h"

#include <string.h>

/* The families are ops that move numbers, ops with a few roundings for each element, sums of
 * products, and attention, whose softmax turns an error of a score into an error of a weight. */
typedef enum { EXACT, ELEMENT, PRODUCT, ATTENTION } family;

/* Everything that is not named is element-wise or a map. The two fused neighbours count as
 * products, because a projection is in them. */
static family op_family(bk_op op) {
  switch (op) {
    case BK_OP_COPY:
    case BK_OP_CACHE_WRITE:
    case BK_OP_EMBED:
    case BK_OP_MOE_INDEX:
    case BK_OP_PERMUTE:
    case BK_OP_HC_EXPAND: return EXACT;
    case BK_OP_GEMM:
    case BK_OP_GROUPED_GEMM:
    case BK_OP_GROUPED_WGRAD:
    case BK_OP_HC_PROJECT:
    case BK_OP_HC_PROJECT_BWD:
    case BK_OP_HC_MERGE_MIX:
    case BK_OP_HC_MERGE_MIX_BWD: return PRODUCT;
    case BK_OP_ATTENTION:
    case BK_OP_ATTENTION_BWD: return ATTENTION;
    default: return ELEMENT;
  }
}

/* Length of the sums of a product. Rounding errors of a sum grow with its length; 0 for an op that
 * is no product. */
static double product_length(bk_op op, const void *args) {
  if (op == BK_OP_GEMM) {
    const bk_gemm_args *a = args;
    return (double)a->a.shape[a->a.ndim - 1];
  }
  if (op == BK_OP_GROUPED_GEMM) return (double)((const bk_grouped_gemm_args *)args)->a.shape[1];
  if (op == BK_OP_GROUPED_WGRAD) return (double)((const bk_grouped_wgrad_args *)args)->a.shape[0];
  if (op == BK_OP_HC_PROJECT) return (double)((const bk_hc_project_args *)args)->x.shape[1];
  if (op == BK_OP_HC_PROJECT_BWD) return (double)((const bk_hc_project_bwd_args *)args)->x.shape[0];
  if (op == BK_OP_HC_MERGE_MIX)
    return (double)((const bk_hc_merge_mix_args *)args)->project.x.shape[1];
  if (op == BK_OP_HC_MERGE_MIX_BWD)
    return (double)((const bk_hc_merge_mix_bwd_args *)args)->project.x.shape[1];
  return 0;
}

/* Whether the device would run the op as its composed default, by the lookup that a launch
 * makes. */
static bool runs_composed(const bk_device *device, bk_op op, const void *args) {
  if (!bk_op_describe(op)->composed) return false;
  const bk_kernel *kernel = bk_kernel_find(device, op, args);
  return kernel && strcmp(kernel->name, "composed") == 0;
}

/* Composed ops that by their definition go on from what they stored. */
static bool goes_on_from_stored(bk_op op) {
  return op == BK_OP_HC_PRE_NORM || op == BK_OP_HC_PRE_NORM_BWD || op == BK_OP_HC_MERGE_MIX ||
         op == BK_OP_HC_MERGE_MIX_BWD || op == BK_OP_HC_REBUILD;
}

/* This is half a unit in the last place, relative to the number: 2^-9 for bf16, 2^-24 for fp32. */
double bk_op_rounding(const bk_device *device, bk_op op, const void *args) {
  bool between = bk_op_leading_dtype(op, args) == BK_BF16 &&
                 (goes_on_from_stored(op) || runs_composed(device, op, args));
  return between ? 0x1p-9 : 0x1p-24;
}

/* The streams once a layer (twice, where the merge in it runs composed), then y and h. */
static double rebuild_stores(const bk_device *device, const bk_hc_rebuild_args *a) {
  bk_hc_post_res_args merge = {a->layer[0].x, a->layer[0].f, a->layer[0].post, a->layer[0].comb,
                               a->layer[1].x};
  bool twice = a->layers > 1 && runs_composed(device, BK_OP_HC_REBUILD, a) &&
               runs_composed(device, BK_OP_HC_POST_RES, &merge);
  return (a->layers - 1) * (twice ? 2 : 1) + 2;
}

/* Times that a composed op stores in bf16 on the way to an output: by its definition, or because it
 * runs composed. */
static double stores(const bk_device *device, bk_op op, const void *args) {
  if (op == BK_OP_HC_MERGE_MIX || op == BK_OP_HC_MERGE_MIX_BWD) return 4;
  if (op == BK_OP_HC_PRE_NORM) return 2;
  if (op == BK_OP_HC_REBUILD) return rebuild_stores(device, args);
  return runs_composed(device, op, args) ? 2 : 1;
}

/* An fp32 output that is computed from something stored in bf16 has the bound of bf16, because that
 * rounding is in it. */
double bk_op_bound(const bk_device *device, bk_op op, const bk_op_field *field, const void *args) {
  bk_dtype dtype = bk_op_field_get(args, field)->dtype;
  bool carries = goes_on_from_stored(op) && bk_op_leading_dtype(op, args) == BK_BF16;
  family f = op_family(op);
  if (f == EXACT) return 0;
  if (dtype == BK_BF16 || carries) return f == ATTENTION ? 2e-5 : 5e-6 * stores(device, op, args);
  if (f == ELEMENT) return 1e-10;
  /* each of two operands off by a part in 2^11 at most */
  if (device->options.allow_tf32) return 1e-6;
  double length = product_length(op, args);
  return 1e-9 * (length > 1024 ? length / 1024 : 1);
}
