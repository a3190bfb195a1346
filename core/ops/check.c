/* The engine of the shape rules; the little language is explained in ops.h. */
#include "ops/ops.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

void bk_dims_init(bk_dims *dims, bk_context *ctx, bk_op op, const void *args) {
  dims->ctx = ctx;
  dims->op = op;
  dims->args = args;
  dims->storage = BK_NONE;
  for (size_t i = 0; i < BK_COUNT(dims->value); i++) dims->value[i] = -1;
}

void bk_dims_bind(bk_dims *dims, char letter, int64_t value) {
  dims->value[(unsigned char)letter & 127] = value;
}

/* One parsed rule. Dimension d is the text dim[d], of length dim_length[d]. */
typedef struct {
  char field[32];
  char type;
  int ndim;
  const char *dim[BK_MAX_DIMS];
  int dim_length[BK_MAX_DIMS];
  const char *dims_text; /* "N,D" */
  int dims_length;
  bool any_strides, dense_block;
} rule;

/* Reads the rule at `text` and returns the start of the next, or NULL after the last. */
static const char *rule_parse(const char *text, rule *r) {
  const char *colon = strchr(text, ':');
  memset(r, 0, sizeof *r);
  memcpy(r->field, text, (size_t)(colon - text));
  r->type = colon[1];
  const char *p = colon + 3;
  r->dims_text = p;
  for (; *p != ']'; p++) {
    if (p == r->dims_text || p[-1] == ',') r->dim[r->ndim++] = p;
    if (*p != ',') r->dim_length[r->ndim - 1]++;
  }
  r->dims_length = (int)(p - r->dims_text);
  for (p++; *p == '~' || *p == '='; p++) *(*p == '~' ? &r->any_strides : &r->dense_block) = true;
  return *p == ' ' ? p + 1 : NULL;
}

/* Value of a dimension's expression, or -1 if a letter in it is not bound. */
static int64_t dim_value(const bk_dims *dims, const char *text, int length) {
  int64_t result = 0;
  char operation = '+';
  for (int i = 0; i < length; i++) {
    int64_t term;
    if (isdigit((unsigned char)text[i])) {
      for (term = 0; i < length && isdigit((unsigned char)text[i]); i++)
        term = 10 * term + (text[i] - '0');
      i--;
    } else if (isalpha((unsigned char)text[i])) {
      term = dims->value[(unsigned char)text[i]];
      if (term < 0) return -1;
    } else {
      operation = text[i];
      continue;
    }
    result = operation == '*' ? result * term : result + term;
  }
  return result;
}

static bool dim_is_letter(const rule *r, int d) {
  return isalpha((unsigned char)r->dim[d][0]) && (r->dim_length[d] == 1 || r->dim[d][1] == '?');
}

/* Length of the expression without the trailing "?". */
static int dim_expression_length(const rule *r, int d) {
  int length = r->dim_length[d];
  return r->dim[d][length - 1] == '?' ? length - 1 : length;
}

static bool dims_agree(bk_dims *dims, const rule *r, const bk_tensor *t) {
  if (t->ndim != r->ndim) return false;
  for (int d = 0; d < r->ndim; d++) {
    int length = dim_expression_length(r, d);
    int64_t want = dim_value(dims, r->dim[d], length);
    if (t->shape[d] < (length < r->dim_length[d] ? 0 : 1)) return false;
    if (want < 0 && dim_is_letter(r, d)) bk_dims_bind(dims, r->dim[d][0], want = t->shape[d]);
    if (want != t->shape[d]) return false;
  }
  return true;
}

static bool same_family(bk_dtype a, bk_dtype b) { return (a == BK_F64) == (b == BK_F64); }

/* The dtype a rule asks for, BK_NONE when several are right. */
static bk_dtype rule_dtype(const bk_dims *dims, const rule *r) {
  if (r->type == 'i') return BK_I32;
  if (dims->storage == BK_NONE || r->type == 'f') return BK_NONE;
  return r->type == 'c' ? bk_coef_dtype(dims->storage) : dims->storage;
}

static bool dtype_agrees(bk_dims *dims, const rule *r, bk_dtype dtype) {
  if (r->type == 'i') return dtype == BK_I32;
  if (!bk_dtype_is_float(dtype)) return false;
  if (dims->storage == BK_NONE) {
    if (r->type == 'c' && dtype == BK_BF16) return false;
    dims->storage = dtype;
    return true;
  }
  if (r->type == 'f') return same_family(dtype, dims->storage);
  return dtype == rule_dtype(dims, r);
}

static bool strides_agree(const rule *r, const bk_tensor *t, bool written) {
  int last = t->ndim - 1;
  for (int d = 0; d < t->ndim; d++) {
    if (t->stride[d] < 0 || (written && t->stride[d] == 0 && t->shape[d] > 1)) return false;
  }
  if (!r->any_strides && t->shape[last] > 1 && t->stride[last] != 1) return false;
  return !r->dense_block || t->shape[last - 1] <= 1 || t->stride[last - 1] == t->shape[last];
}

/* "[N,D] = [3,8]", numbers for what is known. */
static void rule_describe(const bk_dims *dims, const rule *r, char *text, size_t size) {
  int used = snprintf(text, size, "[%.*s]", r->dims_length, r->dims_text);
  for (int d = 0; d < r->ndim && used > 0 && (size_t)used < size; d++) {
    int64_t value = dim_value(dims, r->dim[d], dim_expression_length(r, d));
    const char *lead = d ? "," : " = [";
    if (value >= 0)
      used += snprintf(text + used, size - (size_t)used, "%s%lld", lead, (long long)value);
    else
      used +=
          snprintf(text + used, size - (size_t)used, "%s%.*s", lead, r->dim_length[d], r->dim[d]);
  }
  if (used > 0 && (size_t)used < size) snprintf(text + used, size - (size_t)used, "]");
}

static const char *rule_type_text(const bk_dims *dims, const rule *r) {
  bk_dtype dtype = rule_dtype(dims, r);
  if (dtype != BK_NONE) return bk_dtype_name(dtype);
  if (r->type == 'f' && dims->storage != BK_NONE)
    return same_family(dims->storage, BK_F64) ? "fp64" : "fp32 or bf16";
  return r->type == 'c' ? "fp32 or fp64" : "fp32, bf16 or fp64";
}

static bk_status rule_fail(const bk_dims *dims, const rule *r, const bk_tensor *t,
                           const char *what) {
  char have[160], want[160];
  rule_describe(dims, r, want, sizeof want);
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s is %s: wrong %s, it should be %s in %s%s",
                 bk_op_name(dims->op), r->field, bk_tensor_describe(t, have, sizeof have), what,
                 want, rule_type_text(dims, r),
                 r->any_strides   ? ""
                 : r->dense_block ? ", the last two dimensions one dense block"
                                  : ", rows dense");
}

bk_status bk_dims_place(const bk_dims *dims, const char *field) {
  const bk_tensor *t = bk_op_field_get(dims->args, bk_op_field_find(dims->op, field));
  if (t->offset % bk_dtype_size(t->dtype) != 0) {
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                   "%s: %s starts at byte %zu, which should be a multiple of %zu",
                   bk_op_name(dims->op), field, t->offset, bk_dtype_size(t->dtype));
  }
  if (!t->buffer || !t->buffer->handle) return BK_OK;
  size_t span = bk_tensor_span(t);
  if (span > t->buffer->size || t->offset > t->buffer->size - span) {
    return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s takes bytes %zu to %zu of a buffer of %zu",
                   bk_op_name(dims->op), field, t->offset, t->offset + span, t->buffer->size);
  }
  return BK_OK;
}

static bk_status rule_check(bk_dims *dims, const rule *r) {
  const bk_op_field *field = bk_op_field_find(dims->op, r->field);
  const bk_tensor *t = bk_op_field_get(dims->args, field);
  if (!bk_tensor_present(t)) {
    return field->optional ? BK_OK : bk_dims_present(dims, r->field, true);
  }
  if (t->ndim < 1 || t->ndim > BK_MAX_DIMS || !dims_agree(dims, r, t))
    return rule_fail(dims, r, t, "shape");
  if (!dtype_agrees(dims, r, t->dtype)) return rule_fail(dims, r, t, "dtype");
  if (!strides_agree(r, t, field->role != BK_IN)) return rule_fail(dims, r, t, "strides");
  return bk_dims_place(dims, r->field);
}

bk_status bk_dims_check(bk_dims *dims, const char *rules) {
  while (rules) {
    rule r;
    rules = rule_parse(rules, &r);
    BK_TRY(rule_check(dims, &r));
  }
  return BK_OK;
}

bk_status bk_check_rules(bk_context *ctx, bk_op op, const void *args, const char *rules) {
  bk_dims dims;
  bk_dims_init(&dims, ctx, op, args);
  return bk_dims_check(&dims, rules);
}

bk_status bk_dims_present(const bk_dims *dims, const char *field, bool present) {
  const bk_tensor *t = bk_op_field_get(dims->args, bk_op_field_find(dims->op, field));
  if (bk_tensor_present(t) == present) return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s is %s here", bk_op_name(dims->op), field,
                 present ? "absent, it is needed" : "given, it has no meaning");
}

bk_status bk_dims_range(const bk_dims *dims, const char *parameter, int64_t value, int64_t low,
                        int64_t high) {
  if (value >= low && value <= high) return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s is %lld, it should be %lld to %lld",
                 bk_op_name(dims->op), parameter, (long long)value, (long long)low,
                 (long long)high);
}

bk_status bk_dims_positive(const bk_dims *dims, const char *parameter, double value) {
  if (isfinite(value) && value >= 0) return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s is %g, it should be finite and not negative",
                 bk_op_name(dims->op), parameter, value);
}

static bool same_place(const bk_tensor *a, const bk_tensor *b) {
  return a->buffer && a->buffer == b->buffer && a->offset == b->offset;
}

bk_status bk_dims_same_place(const bk_dims *dims, const char *field_a, const char *field_b) {
  const bk_tensor *a = bk_op_field_get(dims->args, bk_op_field_find(dims->op, field_a));
  const bk_tensor *b = bk_op_field_get(dims->args, bk_op_field_find(dims->op, field_b));
  bool agree = bk_tensor_count(a) == bk_tensor_count(b) && a->dtype == b->dtype;
  if (agree && (!a->buffer || !b->buffer || same_place(a, b))) return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT, "%s: %s and %s should be the same memory",
                 bk_op_name(dims->op), field_a, field_b);
}

bk_status bk_dims_distinct(const bk_dims *dims, const char *field_a, const char *field_b) {
  const bk_tensor *a = bk_op_field_get(dims->args, bk_op_field_find(dims->op, field_a));
  const bk_tensor *b = bk_op_field_get(dims->args, bk_op_field_find(dims->op, field_b));
  if (!bk_tensor_present(a) || !bk_tensor_present(b) || !same_place(a, b) ||
      bk_tensor_count(a) == 0)
    return BK_OK;
  return bk_fail(dims->ctx, BK_ERR_ARGUMENT,
                 "%s: %s and %s are the same memory, they should not overlap", bk_op_name(dims->op),
                 field_a, field_b);
}
