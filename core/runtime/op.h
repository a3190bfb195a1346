/* Ops: ids and argument structs, plain data. This is all that a backend knows of the ops. Both are
 * made from the rows of runtime/ops.def, one row for each op.
 *
 * Conventions.
 * - Letters: B sequences, T positions, N = B*T tokens, C model width, n residual streams, H heads,
 *   E experts, k experts per token, M rows, V vocabulary. "st" is the storage dtype (fp32, bf16, or
 *   fp64 on ref), "ct" the coefficient dtype: fp32, or fp64 where st is fp64. Accumulators are at
 *   least fp32; results are rounded once, on store.
 * - Inputs come first, outputs last. `opt` operands may be absent (zeroed struct). Inputs may not
 *   overlap outputs unless the op says "may alias".
 * - Gradients of parameters (dw, dfn, dtable, dscale, dbase, wgrad) ADD to what is there, in ct,
 *   unless the op says otherwise. Gradients of activations overwrite, or add where `accumulate` is
 *   set.
 * - Last dimensions are dense (stride 1) unless the op says "any strides"; outer strides are free.
 * - Reductions have a fixed order for given shapes: same inputs, same bits, whatever the number
 *   of threads.
 * - Every gradient formula follows from the forward formula beside it; ref/ is the executable
 *   specification. */
#ifndef BK_OP_H
#define BK_OP_H

#include "tensor/tensor.h"

typedef enum bk_op {
  BK_OP_NONE = 0,
#define OP(ID, ...) BK_OP_##ID,
#include "runtime/ops.def"
  BK_OP_COUNT
} bk_op;

/* ---- the step block: everything that changes from step to step, in one small tensor in ct,
 * [BK_STEP_FIELDS]. ---- The host writes all of its fields with one copy at the start of a step
 * (results zeroed, BK_STEP_FINITE = 1) and reads them once at the end. Ops take the whole block as
 * a tensor, so that neither plans nor captured graphs hold a number that changes. */
enum {
  BK_STEP_LR,           /* learning rate of this step */
  BK_STEP_BC1,          /* 1 - beta1^t, t from 1 */
  BK_STEP_BC2,          /* 1 - beta2^t */
  BK_STEP_MAX_NORM,     /* gradient clip, <= 0: off */
  BK_STEP_LOSS_SCALE,   /* 1 / number of kept targets of the step */
  BK_STEP_BALANCE_RATE, /* router_bias_lr */
  BK_STEP_RESULTS = 16, /* the fields from here on are written by the device */
  BK_STEP_LOSS = 16,    /* sum of the kept targets' losses, nats */
  BK_STEP_SUMSQ,        /* sum of squares of all gradients */
  BK_STEP_NORM,         /* sqrt of it */
  BK_STEP_CLIP,         /* factor on the gradients: min(1, max_norm / norm) */
  /* 1, or 0 when the loss or the gradient norm is not finite: ADAMW and BALANCE then change
   * nothing. */
  BK_STEP_FINITE,
  BK_STEP_FIELDS = 32
};

/* ---- residual connections (mHC, arXiv 2512.24880 eq. 7-9; HC, arXiv 2409.19606). x [N,n,C] st:
 * the streams. pre, post [N,n] ct. comb [N,n,n] ct: comb[m][k] is the weight from source m to
 * destination k (H_res[k][m] = comb[m][k]); each of its [n,n] blocks is dense. bk_hc_kind:
 * birkhoff/types.h; what a kind is: runtime/connection.h. ---- */
#define BK_HC_MAX_N 8
#define BK_HC_PERM_MAX_N 5 /* n! grows */
#define BK_SINKHORN_MAX_ITERS 64
BK_MODULE_API int bk_factorial(int n);
/* Sizes of a kind's parameters: rows of fn, entries of base and of scale. 0 for a kind without
 * maps. */
int bk_hc_rows(bk_hc_kind kind, int n);
int bk_hc_base_count(bk_hc_kind kind, int n);
int bk_hc_scale_count(bk_hc_kind kind);

/* The most layers that one HC_REBUILD can make again, and the operands of each. */
#define BK_HC_REBUILD_MAX 8
typedef struct {
  bk_tensor x, f, post, comb, pre, w, y, h, rstd;
} bk_hc_rebuild_layer;

/* ---- bk_NAME_args of every op: its tensors, then its parameters, as runtime/ops.def has them
 * ---- */
#define NONE
#define IN(f, ...) bk_tensor f;
#define IN_OPT(f, ...) bk_tensor f;
#define OUT(f, ...) bk_tensor f;
#define OUT_OPT(f, ...) bk_tensor f;
#define INOUT(f, ...) bk_tensor f;
#define INOUT_OPT(f, ...) bk_tensor f;
#define REAL(f) double f;
#define NOT_NEGATIVE(f) double f;
#define INT(f) int f;
#define INT_IN(f, low, high) int f;
#define FLAG(f) bool f;
#define KIND(f) bk_hc_kind f;
#define OP(ID, name, operands, parameters, ...) \
  typedef struct {                              \
    operands parameters                         \
  } bk_##name##_args;
#define COMPOSED_OF(ID, name, members, ...) \
  typedef struct {                          \
    members                                 \
  } bk_##name##_args;
#include "runtime/ops.def"
#undef NONE
#undef IN
#undef IN_OPT
#undef OUT
#undef OUT_OPT
#undef INOUT
#undef INOUT_OPT
#undef REAL
#undef NOT_NEGATIVE
#undef INT
#undef INT_IN
#undef FLAG
#undef KIND

/* ---- descriptors (op_table.c): what generic code (checks, dispatch, harness, fallback) needs to
 * know of an args struct ---- */
/* an OUT that may also accumulate is INOUT */
typedef enum bk_role { BK_IN, BK_OUT, BK_INOUT } bk_role;
typedef struct bk_op_field {
  char name[16];   /* in place: hundreds of pointers would have to be relocated */
  uint16_t offset; /* offset of the bk_tensor in the args struct */
  uint8_t role;    /* bk_role */
  bool optional;
  uint8_t type;              /* op_priv.h: bk_operand_type and flags */
  uint16_t dim[BK_MAX_DIMS]; /* op_priv.h: BK_DIM_*; 0: no more */
} bk_op_field;
/* The parameters of an op: members of its args struct that are no tensors but numbers, which choose
 * what a kernel does. */
typedef enum bk_op_param_type {
  BK_OP_PARAM_END, /* no more */
  BK_OP_PARAM_REAL,
  BK_OP_PARAM_NOT_NEGATIVE, /* double, finite */
  BK_OP_PARAM_INT,
  BK_OP_PARAM_FLAG,
  BK_OP_PARAM_KIND
} bk_op_param_type;
typedef struct bk_op_param {
  char name[24];
  uint16_t offset; /* in the args struct */
  uint8_t size;
  uint8_t type;      /* bk_op_param_type */
  int32_t low, high; /* range of an INT */
} bk_op_param;
#define BK_OP_MAX_FIELDS 69 /* most operands of a descriptor: those of HC_REBUILD */
#define BK_OP_MAX_ARGS 8192 /* at least the bytes of any args struct */
typedef struct bk_dims bk_dims;
typedef struct bk_composition bk_composition;
typedef struct bk_op_desc {
  bk_op op;
  const char *name;
  size_t args_size;
  const bk_op_field *fields;
  int n_fields;
  const bk_op_param *params; /* ends with BK_OP_PARAM_END */
  /* Names of pairs of operands that may not be the same memory, as "x\0y\0"; an empty name ends the
   * list, and NULL means that there are none. */
  const char *apart;
  /* Conditions that the shapes do not say, checked before and after the shapes; NULL: none. */
  bk_status (*before)(bk_dims *dims);
  bk_status (*after)(bk_dims *dims);
  /* Floating point operations. *less gets the bytes to take off the sum of all operands. */
  double (*flops)(const void *args, double *less);
  /* Has a default that is made of other ops (ops/composite.c). */
  bool composed;
} bk_op_desc;
BK_MODULE_API const bk_op_desc *bk_op_describe(bk_op op);
const char *bk_op_name(bk_op op);
/* A multiply-add is 2 flops; each operand is moved once. */
void bk_op_cost(bk_op op, const void *args, double *flops, double *bytes);
/* Shapes, dtypes, strides, places and parameters; logs the op, the operand and what would be
 * right. */
bk_status bk_op_check(bk_context *ctx, bk_op op, const void *args);
/* The kind of residual connection that the args name, or BK_HC_PLAIN where the op has no such
 * parameter. */
bk_hc_kind bk_op_kind(bk_op op, const void *args);

#endif
