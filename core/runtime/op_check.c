/* The engine of the checks. It compares shapes, dtypes, strides and places of all operands with
 * the op's descriptor (runtime/ops.def explains the words), then the parameters, then the
 * conditions that an op adds. Kernels rely on these checks and make none of their own.
 *
 * The first fault found is logged with the operand, what it is and what it should be, and returned
 * as BK_ERR_ARGUMENT. */
#include "runtime/op_priv.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void bk_dims_bind(bk_dims *dims, char letter, int64_t value) {
  dims->value[(unsigned char)letter & 127] = value;
}

const bk_tensor *bk_dims_operand(const bk_dims *dims, const char *field) {
  return bk_op_field_get(dims->args, bk_op_field_find(dims->desc->op, field));
}

static int type_of(const bk_op_field *field) { return field->type & BK_TYPE_MASK; }

/* ---- dimensions ---- */

static bool may_be_0(uint16_t dim) { return dim >> 15; }
static bool is_letter(uint16_t dim) {
  return bk_dim_first(dim) && !bk_dim_second(dim) && bk_dim_number(dim) == 0;
}

static int64_t value_of(const bk_dims *dims, char letter) { return dims->value[(int)letter]; }

/* Value of a dimension, or -1 if a letter in it is not bound. */
static int64_t dim_value(const bk_dims *dims, uint16_t dim) {
  int64_t product = bk_dim_first(dim) ? value_of(dims, bk_dim_first(dim)) : 0;
  if (bk_dim_second(dim)) {
    int64_t second = value_of(dims, bk_dim_second(dim));
    product = product < 0 || second < 0 ? -1 : product * second;
  }
  return product < 0 ? -1 : product + bk_dim_number(dim);
}

static int dims_count(const bk_op_field *field) {
  int count = 0;
  while (count < BK_MAX_DIMS && field->dim[count]) count++;
  return count;
}

/* The dimensions of the descriptor that this tensor lacks in front: 1 for one of a batch. */
static int dims_missing(const bk_op_field *field, const bk_tensor *t) {
  return field->type & BK_BATCHED && t->ndim == dims_count(field) - 1;
}

/* Binds the letters that stand alone in a dimension, before any comparison, so that the order of
 * the operands does not matter. The letter of a batch that is not there is bound to 0. */
static void bind_letters(bk_dims *dims, const bk_op_field *field, const bk_tensor *t) {
  int missing = dims_missing(field, t), count = dims_count(field);
  if (missing && dims->value[(int)bk_dim_first(field->dim[0])] < 0)
    dims->value[(int)bk_dim_first(field->dim[0])] = 0;
  for (int d = missing; d < count && d - missing < t->ndim; d++) {
    int letter = bk_dim_first(field->dim[d]);
    if (is_letter(field->dim[d]) && dims->value[letter] < 0)
      dims->value[letter] = t->shape[d - missing];
  }
}

/* A size of 0 is legal only where the descriptor says so (OR_0): kernels need not handle empty
 * tensors elsewhere. */
static bool dims_agree(const bk_dims *dims, const bk_op_field *field, const bk_tensor *t) {
  int missing = dims_missing(field, t);
  if (t->ndim != dims_count(field) - missing) return false;
  if (missing && dims->value[(int)bk_dim_first(field->dim[0])] != 0) return false;
  for (int d = 0; d < t->ndim; d++) {
    uint16_t dim = field->dim[d + missing];
    if (t->shape[d] < (may_be_0(dim) ? 0 : 1) || t->shape[d] != dim_value(dims, dim)) return false;
  }
  return true;
}

/* Operands of any shape, which must be that of the first operand. */
static bool alike(const bk_dims *dims, const bk_tensor *t) {
  const bk_tensor *first = bk_op_field_get(dims->args, &dims->desc->fields[0]);
  for (int d = 0; d < t->ndim; d++)
    if (t->shape[d] < 0) return false;
  return bk_tensor_same_shape(first, t);
}

static bool shape_agrees(const bk_dims *dims, const bk_op_field *field, const bk_tensor *t) {
  if (t->ndim < 1 || t->ndim > BK_MAX_DIMS) return false;
  return field->type & BK_ALIKE ? alike(dims, t) : dims_agree(dims, field, t);
}

/* ---- dtypes and strides ---- */

static bool same_family(bk_dtype a, bk_dtype b) { return (a == BK_F64) == (b == BK_F64); }

/* The dtype that the operand should have; BK_NONE when several would do. */
static bk_dtype dtype_wanted(const bk_dims *dims, const bk_op_field *field) {
  if (type_of(field) == BK_TYPE_I) return BK_I32;
  if (dims->storage == BK_NONE || type_of(field) == BK_TYPE_F) return BK_NONE;
  return type_of(field) == BK_TYPE_C ? bk_coef_dtype(dims->storage) : dims->storage;
}

/* The first float operand settles the op's storage dtype; one in the coefficient dtype cannot be
 * bf16. */
static bool dtype_agrees(bk_dims *dims, const bk_op_field *field, bk_dtype dtype) {
  if (type_of(field) == BK_TYPE_I) return dtype == BK_I32;
  if (!bk_dtype_is_float(dtype)) return false;
  if (dims->storage == BK_NONE) {
    if (type_of(field) == BK_TYPE_C && dtype == BK_BF16) return false;
    dims->storage = dtype;
    return true;
  }
  if (type_of(field) == BK_TYPE_F) return same_family(dtype, dims->storage);
  return dtype == dtype_wanted(dims, field);
}

/* Negative strides are never legal, and two elements of an output may not lie in one place. */
static bool strides_agree(const bk_op_field *field, const bk_tensor *t) {
  int last = t->ndim - 1;
  /* the rows of an empty tensor are 0 elements apart, which harms nobody */
  bool written = field->role != BK_IN && bk_tensor_count(t) > 0;
  for (int d = 0; d < t->ndim; d++) {
    if (t->stride[d] < 0 || (written && t->stride[d] == 0 && t->shape[d] > 1)) return false;
  }
  if (!(field->type & BK_ANY_STRIDES) && t->shape[last] > 1 && t->stride[last] != 1) return false;
  return !(field->type & BK_DENSE_BLOCK) || t->shape[last - 1] <= 1 ||
         t->stride[last - 1] == t->shape[last];
}

/* ---- messages ---- */

typedef struct line {
  char *text;
  size_t size, used;
} line;

static void add(line *l, const char *format, ...) BK_PRINTF(2, 3);
static void add(line *l, const char *format, ...) {
  if (l->used >= l->size) return;
  va_list args;
  va_start(args, format);
  int n = vsnprintf(l->text + l->used, l->size - l->used, format, args);
  va_end(args);
  l->used += n > 0 ? (size_t)n : 0;
}

/* "N*k", "E+1", "K?", "32" */
static void add_dim(line *l, uint16_t dim) {
  if (bk_dim_first(dim)) add(l, "%c", bk_dim_first(dim));
  if (bk_dim_second(dim)) add(l, "*%c", bk_dim_second(dim));
  if (bk_dim_number(dim) || !bk_dim_first(dim))
    add(l, bk_dim_first(dim) ? "+%d" : "%d", (int)bk_dim_number(dim));
  if (may_be_0(dim)) add(l, "?");
}

/* "[N,D] = [3,8]", numbers for what is known. */
static void add_shape(line *l, const bk_dims *dims, const bk_op_field *field, int missing) {
  for (int d = missing; d < dims_count(field); d++) {
    add(l, d > missing ? "," : "[");
    add_dim(l, field->dim[d]);
  }
  add(l, "] = ");
  for (int d = missing; d < dims_count(field); d++) {
    int64_t value = dim_value(dims, field->dim[d]);
    add(l, d > missing ? "," : "[");
    if (value >= 0) add(l, "%lld", (long long)value);
    else add_dim(l, field->dim[d]);
  }
  add(l, "]");
}

static const char *type_text(const bk_dims *dims, const bk_op_field *field) {
  bk_dtype dtype = dtype_wanted(dims, field);
  if (dtype != BK_NONE) return bk_dtype_name(dtype);
  if (type_of(field) == BK_TYPE_F && dims->storage != BK_NONE)
    return same_family(dims->storage, BK_F64) ? "fp64" : "fp32 or bf16";
  return type_of(field) == BK_TYPE_C ? "fp32 or fp64" : "fp32, bf16 or fp64";
}

/* The message shows the shape in letters and in the numbers that the other operands gave them, so
 * that a user can see which operand is the odd one. */
static bk_status field_fail(const bk_dims *dims, const bk_op_field *field, const bk_tensor *t,
                            const char *what) {
  char have[160], want[160] = "";
  line l = {want, sizeof want, 0};
  if (field->type & BK_ALIKE) add(&l, "shaped as %s", dims->desc->fields[0].name);
  else add_shape(&l, dims, field, dims_missing(field, t));
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s is %s: wrong %s, it should be %s in %s%s",
                 dims->desc->name, field->name, bk_tensor_describe(t, have, sizeof have), what,
                 want, type_text(dims, field),
                 field->type & BK_ANY_STRIDES   ? ""
                 : field->type & BK_DENSE_BLOCK ? ", the last two dimensions one dense block"
                                                : ", rows dense");
}

/* ---- one operand ---- */

/* The operand must be aligned to its element, and lie within its buffer as soon as it has one. */
static bk_status check_place(const bk_dims *dims, const bk_op_field *field, const bk_tensor *t) {
  if (t->offset % bk_dtype_size(t->dtype) != 0) {
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                   "%s: %s starts at byte %zu, which should be a multiple of %zu", dims->desc->name,
                   field->name, t->offset, bk_dtype_size(t->dtype));
  }
  if (!t->buffer || !t->buffer->handle) return BK_OK;
  size_t span = bk_tensor_span(t);
  if (span > t->buffer->size || t->offset > t->buffer->size - span) {
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s takes bytes %zu to %zu of a buffer of %zu",
                   dims->desc->name, field->name, t->offset, t->offset + span, t->buffer->size);
  }
  return BK_OK;
}

/* An operand of type FREE has only a place to be checked here; the op's conditions do the rest. */
static bk_status check_field(bk_dims *dims, const bk_op_field *field) {
  const bk_tensor *t = bk_op_field_get(dims->args, field);
  if (!bk_tensor_present(t))
    return field->optional ? BK_OK : bk_dims_present(dims, field->name, true);
  if (type_of(field) == BK_TYPE_FREE) return check_place(dims, field, t);
  if (!shape_agrees(dims, field, t)) return field_fail(dims, field, t, "shape");
  if (!dtype_agrees(dims, field, t->dtype)) return field_fail(dims, field, t, "dtype");
  if (!strides_agree(field, t)) return field_fail(dims, field, t, "strides");
  return check_place(dims, field, t);
}

/* Two passes: all letters are bound before anything is compared. */
static bk_status check_fields(bk_dims *dims) {
  const bk_op_desc *d = dims->desc;
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *t = bk_op_field_get(dims->args, &d->fields[i]);
    if (bk_tensor_present(t)) bind_letters(dims, &d->fields[i], t);
  }
  for (int i = 0; i < d->n_fields; i++) BK_TRY(check_field(dims, &d->fields[i]));
  return dims->value['n'] < 0 ? BK_OK : bk_dims_range(dims, "n", dims->value['n'], 1, BK_HC_MAX_N);
}

/* ---- parameters ---- */

/* Only counts and what must not be negative have a range here; a condition of the op checks its
 * kind. */
static bk_status check_param(const bk_dims *dims, const bk_op_param *p) {
  const char *at = (const char *)dims->args + p->offset;
  double real;
  int number;
  if (p->type == BK_OP_PARAM_INT) {
    memcpy(&number, at, sizeof number);
    return bk_dims_range(dims, p->name, number, p->low, p->high);
  }
  if (p->type != BK_OP_PARAM_NOT_NEGATIVE) return BK_OK;
  memcpy(&real, at, sizeof real);
  if (isfinite(real) && real >= 0) return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s is %g, it should be finite and not negative",
                 dims->desc->name, p->name, real);
}

static bk_status check_apart(const bk_dims *dims) {
  const char *first = dims->desc->apart;
  while (first && *first) {
    const char *second = first + strlen(first) + 1;
    BK_TRY(bk_dims_apart(dims, first, second));
    first = second + strlen(second) + 1;
  }
  return BK_OK;
}

/* The conditions `before` come first because they bind letters that no operand has by itself. */
bk_status bk_op_check(bk_context *ctx, bk_op op, const void *args) {
  bk_dims dims = {.ctx = ctx, .desc = bk_op_describe(op), .args = args, .storage = BK_NONE};
  for (size_t i = 0; i < BK_COUNT(dims.value); i++) dims.value[i] = -1;
  if (dims.desc->before) BK_TRY(dims.desc->before(&dims));
  BK_TRY(check_fields(&dims));
  for (const bk_op_param *p = dims.desc->params; p->type != BK_OP_PARAM_END; p++)
    BK_TRY(check_param(&dims, p));
  BK_TRY(check_apart(&dims));
  return dims.desc->after ? dims.desc->after(&dims) : BK_OK;
}

/* ---- for conditions ---- */

bk_status bk_dims_present(const bk_dims *dims, const char *field, bool present) {
  const bk_tensor *t = bk_dims_operand(dims, field);
  if (bk_tensor_present(t) == present) return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s is %s here", dims->desc->name, field,
                 present ? "absent, it is needed" : "given, it has no meaning");
}

bk_status bk_dims_range(const bk_dims *dims, const char *parameter, int64_t value, int64_t low,
                        int64_t high) {
  if (value >= low && value <= high) return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s is %lld, it should be %lld to %lld",
                 dims->desc->name, parameter, (long long)value, (long long)low, (long long)high);
}

static bool same_place(const bk_tensor *a, const bk_tensor *b) {
  return a->buffer && a->buffer == b->buffer && a->offset == b->offset;
}

/* Where only one of the two has a buffer yet, number of elements and dtype must do: a plan is made
 * before buffers are known. */
bk_status bk_dims_same_place(const bk_dims *dims, const char *field_a, const char *field_b) {
  const bk_tensor *a = bk_dims_operand(dims, field_a);
  const bk_tensor *b = bk_dims_operand(dims, field_b);
  bool agree = bk_tensor_count(a) == bk_tensor_count(b) && a->dtype == b->dtype;
  if (agree && (!a->buffer || !b->buffer || same_place(a, b))) return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s and %s should be the same memory",
                 dims->desc->name, field_a, field_b);
}

/* Only the beginnings are compared; it is up to the caller to avoid views that overlap
 * otherwise. */
bk_status bk_dims_apart(const bk_dims *dims, const char *field_a, const char *field_b) {
  const bk_tensor *a = bk_dims_operand(dims, field_a);
  const bk_tensor *b = bk_dims_operand(dims, field_b);
  if (!bk_tensor_present(a) || !bk_tensor_present(b) || !same_place(a, b) ||
      bk_tensor_count(a) == 0)
    return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                 "%s: %s and %s are the same memory, they should not overlap", dims->desc->name,
                 field_a, field_b);
}
