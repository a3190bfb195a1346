/* What the files op_*.c share with ops/: the operands of an op by its descriptor, the key of its
 * plan, and the checks of its shapes. A descriptor is made from a row of ops.def. Internal
 * header. */
#ifndef BK_OP_PRIV_H
#define BK_OP_PRIV_H

#include "runtime/backend.h"

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

/* Writes into key[args_size] all of the args that a plan may depend on, so that two calls of equal
 * keys can share one plan: dtypes, shapes, strides and parameters, and of the places only their
 * offset modulo 256 and which operands begin at the same one. The rest of the key, padding too, is
 * zero, so that keys can be compared byte by byte. */
void bk_op_plan_key(bk_op op, const void *args, void *key);

/* The coefficient dtype that goes with a storage dtype. */
static inline bk_dtype bk_coef_dtype(bk_dtype storage) {
  return storage == BK_F64 ? BK_F64 : BK_F32;
}

/* ---- shapes (op_check.c): the words of ops.def as numbers; op_table.c writes them down. ---- */
/* A bk_op_field's type: which dtype it must have, and flags about its layout. */
enum bk_operand_type { BK_TYPE_FREE, BK_TYPE_S, BK_TYPE_C, BK_TYPE_F, BK_TYPE_I, BK_TYPE_MASK = 7 };
enum bk_operand_flags { BK_ANY_STRIDES = 8, BK_DENSE_BLOCK = 16, BK_BATCHED = 32, BK_ALIKE = 64 };
/* A dimension in 16 bits: letter times letter plus number. A letter that is missing counts as 1;
 * without any letter the dimension is the number alone. A letter by itself is bound by its first
 * use (or before, with bk_dims_bind), and the operands must agree with it from then on. The
 * letters are the capitals, k and n. Bits 0 to 4 hold the number, 5 to 9 and 10 to 14 the letters;
 * bit 15 says that the size may be 0. */
#define BK_DIM_CODE(c) ((c) == 'k' ? 27 : (c) == 'n' ? 28 : (c) - 'A' + 1)
#define BK_DIM_LETTER(c) (BK_DIM_CODE(c) << 5)
#define BK_DIM_TIMES(a, b) ((a) | (b) << 5)
#define BK_DIM_OR_0(a) ((a) | 1 << 15)
#define BK_DIM_STEP 31 /* as a number: BK_STEP_FIELDS; others are below it */
static inline char bk_dim_letter(unsigned code) {
  return code == 0 ? '\0' : code == 27 ? 'k' : code == 28 ? 'n' : (char)('A' + code - 1);
}
static inline char bk_dim_first(uint16_t dim) { return bk_dim_letter(dim >> 5 & 31); }
static inline char bk_dim_second(uint16_t dim) { return bk_dim_letter(dim >> 10 & 31); }
static inline int64_t bk_dim_number(uint16_t dim) {
  return (dim & 31) == BK_DIM_STEP ? BK_STEP_FIELDS : dim & 31;
}

/* What the check of one op's args has found out so far. */
struct bk_dims {
  bk_context *ctx;
  const bk_op_desc *desc;
  const void *args;
  bk_dtype storage;   /* BK_NONE until bound */
  int64_t value[128]; /* by letter; -1 = not bound */
};
void bk_dims_bind(bk_dims *dims, char letter, int64_t value);
/* The operand must be there, or must not. */
bk_status bk_dims_present(const bk_dims *dims, const char *field, bool present);
/* Fails unless value is within [low, high], with an error that names op, parameter, value and
 * range. */
bk_status bk_dims_range(const bk_dims *dims, const char *parameter, int64_t value, int64_t low,
                        int64_t high);
/* Both operands must begin at the same place (checked once both have a buffer); or must not. */
bk_status bk_dims_same_place(const bk_dims *dims, const char *field_a, const char *field_b);
bk_status bk_dims_apart(const bk_dims *dims, const char *field_a, const char *field_b);
/* The operand of that name, which must be one of the op's. */
const bk_tensor *bk_dims_operand(const bk_dims *dims, const char *field);

#endif
