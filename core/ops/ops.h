/* ops: what the files of this folder share. The op descriptors, their checks and costs, the
 * kernel lookup and the composed defaults of the fused slots. Internal header. */
#ifndef BK_OPS_H
#define BK_OPS_H

#include "runtime/backend.h"

/* One check and one cost function for each op of BK_OP_LIST; reached through bk_op_describe. */
#define BK_OPS_DECLARE(id, name, args)                         \
  bk_status bk_check_##id(bk_context *ctx, const void *args_); \
  void bk_cost_##id(const void *args_, double *flops, double *bytes);
BK_OP_LIST(BK_OPS_DECLARE)
#undef BK_OPS_DECLARE

/* The tensor of a field. */
static inline const bk_tensor *bk_op_field_get(const void *args, const bk_op_field *field) {
  return (const bk_tensor *)((const char *)args + field->offset);
}
static inline bk_tensor *bk_op_field_ref(void *args, const bk_op_field *field) {
  return (bk_tensor *)((char *)args + field->offset);
}
/* The field called `name`, or NULL. */
const bk_op_field *bk_op_field_find(bk_op op, const char *name);
/* The dtype by which kernels are chosen: that of the first operand. */
bk_dtype bk_op_leading_dtype(bk_op op, const void *args);
/* "x [3,4] fp32, y [3,4] fp32" of the operands that are there; returns text. */
char *bk_op_describe_args(bk_op op, const void *args, char *text, size_t size);

/* Into key[args_size]: all of the args that a plan may depend on, so that two args of equal keys
 * can share one: dtypes, shapes, strides, parameters; of the places what an offset is modulo 256
 * and which operands begin at the same one. The rest of it, padding too, is zero. */
void bk_op_plan_key(bk_op op, const void *args, void *key);

/* fp64 for fp64, else fp32: the coefficient dtype of a storage dtype. */
static inline bk_dtype bk_coef_dtype(bk_dtype storage) {
  return storage == BK_F64 ? BK_F64 : BK_F32;
}

/* ---- check.c: rules written as text ---- A rule is "field:T[dims]" and rules are separated by
 * one space, e.g. "x:s[N,D] w:c[D] rstd:c[N]". T: s storage dtype (the same for all of the op),
 * c its coefficient dtype, f any float of the same family (fp64, or fp32 and bf16), i i32. dims:
 * a letter is bound by its first use (or before, with bk_dims_bind) and must agree from then on;
 * sums and products of letters and numbers, evaluated from left to right ("N*k", "E+1"); "?"
 * after a lone letter lets the size be 0. "~" after "]": any strides; otherwise the last
 * dimension is dense. "=" after "]": the last two dimensions are one dense block. A field that
 * the descriptor calls optional may be absent. */
typedef struct bk_dims {
  bk_context *ctx;
  bk_op op;
  const void *args;
  bk_dtype storage;   /* BK_NONE until bound */
  int64_t value[128]; /* by letter; -1 = not bound */
} bk_dims;
void bk_dims_init(bk_dims *dims, bk_context *ctx, bk_op op, const void *args);
void bk_dims_bind(bk_dims *dims, char letter, int64_t value);
bk_status bk_dims_check(bk_dims *dims, const char *rules);
/* The field must be there (or must not). */
bk_status bk_dims_present(const bk_dims *dims, const char *field, bool present);
/* value within [low, high], else an error that names op, parameter, value and range. */
bk_status bk_dims_range(const bk_dims *dims, const char *parameter, int64_t value, int64_t low,
                        int64_t high);
/* finite and >= 0 */
bk_status bk_dims_positive(const bk_dims *dims, const char *parameter, double value);
/* The field lies within its buffer, as soon as there is one, and is aligned to its element
 * (rules check this too). */
bk_status bk_dims_place(const bk_dims *dims, const char *field);
/* Both fields must be the same memory from the same place on (checked once both have a buffer). */
bk_status bk_dims_same_place(const bk_dims *dims, const char *field_a, const char *field_b);
bk_status bk_dims_distinct(const bk_dims *dims, const char *field_a, const char *field_b);
bk_status bk_check_rules(bk_context *ctx, bk_op op, const void *args, const char *rules);

/* ---- composite.c ---- */
extern const bk_kernel bk_composite_kernels[];
bool bk_op_is_fused_slot(bk_op op);

/* ---- fallback.c ---- */
/* Prepares `op` on the fallback device of `device` (cpu; for cpu itself ref). BK_ERR_UNSUPPORTED
 * without a message when it has no kernel either. */
bk_status bk_fallback_prepare(bk_device *device, bk_op op, const void *args, bk_plan *plan);

#endif
