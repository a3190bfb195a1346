/* Shape arithmetic of tensors and their views, and single elements of any dtype as doubles.
 * Nothing here touches a tensor's memory except bk_dtype_load and bk_dtype_store, which work on
 * host memory and are meant for tests, diagnostics and files, not for kernels. */
#include "tensor/tensor.h"

#ifndef BK_DEBUG
/* A wrong view is a fault of the library's own code, never of its user: only debug builds look for
 * it, by assert. */
#define NDEBUG
#endif
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* An element as it lies in memory; it is copied in and out, since `p` may have any alignment. */
typedef union element {
  float f;
  uint16_t h;
  double d;
  int32_t i;
  int64_t l;
  uint8_t u;
} element;

/* An i64 beyond 2^53 is rounded, since no double holds it. */
double bk_dtype_load(bk_dtype dtype, const void *p) {
  element v;
  memcpy(&v, p, bk_dtype_size(dtype));
  switch (dtype) {
    case BK_F32: return v.f;
    case BK_BF16: return bk_bf16_to_f32(v.h);
    case BK_F64: return v.d;
    case BK_I32: return v.i;
    case BK_I64: return (double)v.l;
    case BK_U8: return v.u;
    case BK_NONE:
    case BK_DTYPE_COUNT: break;
  }
  return NAN;
}

/* The nearest whole number (ties to even) within the range, NaN as the lowest. `low` and `high`
 * are doubles: 2^63, the bound of i64, is one past the largest value, which no double can hold. */
static int64_t to_integer(double x, double low, double high) {
  double r = nearbyint(x);
  if (!(r > low)) return (int64_t)low; /* NaN too */
  return r < high ? (int64_t)r : high >= 0x1p63 ? INT64_MAX : (int64_t)high;
}

/* Numbers out of range become infinite in a float dtype. BK_NONE stores nothing. */
void bk_dtype_store(bk_dtype dtype, void *p, double x) {
  element v = {.l = 0};
  switch (dtype) {
    case BK_F32: v.f = (float)x; break;
    case BK_BF16: v.h = bk_f32_to_bf16((float)x); break;
    case BK_F64: v.d = x; break;
    case BK_I32: v.i = (int32_t)to_integer(x, INT32_MIN, INT32_MAX); break;
    case BK_I64: v.l = to_integer(x, -0x1p63, 0x1p63); break;
    case BK_U8: v.u = (uint8_t)to_integer(x, 0, UINT8_MAX); break;
    case BK_NONE:
    case BK_DTYPE_COUNT: return;
  }
  memcpy(p, &v, bk_dtype_size(dtype));
}

/* The size is in bytes, and 0 for no dtype. */
size_t bk_dtype_size(bk_dtype dtype) {
  switch (dtype) {
    case BK_F32:
    case BK_I32: return 4;
    case BK_BF16: return 2;
    case BK_F64:
    case BK_I64: return 8;
    case BK_U8: return 1;
    case BK_NONE:
    case BK_DTYPE_COUNT: break;
  }
  return 0;
}

/* The names are those of configurations and messages. Any number may be passed, for messages about
 * a wrong one. */
const char *bk_dtype_name(bk_dtype dtype) {
  static const char *const names[BK_DTYPE_COUNT] = {"none", "fp32", "bf16", "fp64",
                                                    "i32",  "i64",  "u8"};
  return (unsigned)dtype < BK_DTYPE_COUNT ? names[dtype] : "invalid";
}

/* Only the dtypes that a configuration may ask for: those of weights and activations. */
bk_status bk_dtype_parse(const char *text, bk_dtype *dtype) {
  static const bk_dtype known[] = {BK_F32, BK_BF16, BK_F64};
  for (size_t i = 0; text && i < BK_COUNT(known); i++) {
    if (strcmp(text, bk_dtype_name(known[i])) != 0) continue;
    *dtype = known[i];
    return BK_OK;
  }
  return BK_ERR_ARGUMENT;
}

/* Past ndim the shape is 1 and the stride 0, so that a kernel may loop over all BK_MAX_DIMS. */
static void set_dense_strides(bk_tensor *t) {
  int64_t stride = 1;
  for (int i = BK_MAX_DIMS - 1; i >= 0; i--) {
    if (i >= t->ndim) {
      t->shape[i] = 1;
      t->stride[i] = 0;
      continue;
    }
    t->stride[i] = stride;
    stride *= t->shape[i];
  }
}

/* A shape may hold sizes of 0; the tensor then has no elements. */
bk_tensor bk_tensor_make(bk_dtype dtype, int ndim, const int64_t *shape) {
  assert(ndim >= 0 && ndim <= BK_MAX_DIMS);
  bk_tensor t = {.dtype = dtype, .ndim = ndim};
  for (int i = 0; i < ndim; i++) t.shape[i] = shape[i];
  set_dense_strides(&t);
  return t;
}

bk_tensor bk_tensor_1d(bk_dtype dtype, int64_t a) {
  return bk_tensor_make(dtype, 1, (int64_t[]){a});
}

bk_tensor bk_tensor_2d(bk_dtype dtype, int64_t a, int64_t b) {
  return bk_tensor_make(dtype, 2, (int64_t[]){a, b});
}

bk_tensor bk_tensor_3d(bk_dtype dtype, int64_t a, int64_t b, int64_t c) {
  return bk_tensor_make(dtype, 3, (int64_t[]){a, b, c});
}

bk_tensor bk_tensor_4d(bk_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d) {
  return bk_tensor_make(dtype, 4, (int64_t[]){a, b, c, d});
}

/* A tensor without dimensions has one element. */
int64_t bk_tensor_count(const bk_tensor *t) {
  if (!bk_tensor_present(t)) return 0;
  int64_t count = 1;
  for (int i = 0; i < t->ndim; i++) count *= t->shape[i];
  return count;
}

/* This is what a contiguous tensor takes; what a view with gaps covers is bk_tensor_span. */
size_t bk_tensor_bytes(const bk_tensor *t) {
  return (size_t)bk_tensor_count(t) * bk_dtype_size(t->dtype);
}

/* The last element lies where every index is at its largest, since no stride is negative. */
size_t bk_tensor_span(const bk_tensor *t) {
  if (bk_tensor_count(t) == 0) return 0;
  int64_t last = 0;
  for (int i = 0; i < t->ndim; i++) last += (t->shape[i] - 1) * t->stride[i];
  return (size_t)(last + 1) * bk_dtype_size(t->dtype);
}

/* The stride of a dimension of size 1 is never used, so it may be anything; a tensor without
 * elements is contiguous whatever its strides. */
bool bk_tensor_contiguous(const bk_tensor *t) {
  int64_t expected = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] != 1 && t->stride[i] != expected) return bk_tensor_count(t) == 0;
    expected *= t->shape[i];
  }
  return true;
}

/* Most kernels ask this of their operands, so that a row can be read as a vector. */
bool bk_tensor_rows_dense(const bk_tensor *t) {
  return t->ndim == 0 || t->shape[t->ndim - 1] == 1 || t->stride[t->ndim - 1] == 1;
}

bool bk_tensor_same_shape(const bk_tensor *a, const bk_tensor *b) {
  if (a->ndim != b->ndim) return false;
  for (int i = 0; i < a->ndim; i++)
    if (a->shape[i] != b->shape[i]) return false;
  return true;
}

/* Appends "[1,2,3]"; what does not fit is cut off. */
static void append_list(char *text, size_t size, const int64_t *values, int n) {
  for (int i = 0; i < n; i++) {
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%lld", i ? "," : "[", (long long)values[i]);
  }
  size_t used = strlen(text);
  snprintf(text + used, size - used, n ? "]" : "[]");
}

/* Strides are named only where they are not those of a contiguous tensor. */
char *bk_tensor_describe(const bk_tensor *t, char *text, size_t size) {
  if (size == 0) return text;
  text[0] = '\0';
  if (!bk_tensor_present(t)) {
    snprintf(text, size, "absent");
    return text;
  }
  append_list(text, size, t->shape, t->ndim);
  size_t used = strlen(text);
  snprintf(text + used, size - used, " %s", bk_dtype_name(t->dtype));
  if (bk_tensor_contiguous(t)) return text;
  used = strlen(text);
  snprintf(text + used, size - used, " strides ");
  append_list(text, size, t->stride, t->ndim);
  return text;
}

/* The place moves by whole strides, the strides stay, so that rows keep their distance. */
bk_tensor bk_tensor_slice(bk_tensor t, int dim, int64_t begin, int64_t length) {
  assert(dim >= 0 && dim < t.ndim);
  assert(begin >= 0 && length >= 0 && begin + length <= t.shape[dim]);
  t.offset += (size_t)(begin * t.stride[dim]) * bk_dtype_size(t.dtype);
  t.shape[dim] = length;
  return t;
}

/* The number of elements must be the same. A view with gaps has no other shape without a copy. */
bk_tensor bk_tensor_reshape(bk_tensor t, int ndim, const int64_t *shape) {
  assert(bk_tensor_contiguous(&t));
  bk_tensor r = bk_tensor_make(t.dtype, ndim, shape);
  assert(bk_tensor_count(&r) == bk_tensor_count(&t));
  r.buffer = t.buffer;
  r.offset = t.offset;
  return r;
}

/* Only shape and stride change places; no element moves. */
bk_tensor bk_tensor_transpose(bk_tensor t, int dim_a, int dim_b) {
  assert(dim_a >= 0 && dim_a < t.ndim && dim_b >= 0 && dim_b < t.ndim);
  int64_t shape = t.shape[dim_a], stride = t.stride[dim_a];
  t.shape[dim_a] = t.shape[dim_b];
  t.stride[dim_a] = t.stride[dim_b];
  t.shape[dim_b] = shape;
  t.stride[dim_b] = stride;
  return t;
}

/* Element i of the dimension becomes element [i / b, i % b] of the two, for any stride. */
bk_tensor bk_tensor_split(bk_tensor t, int dim, int64_t b) {
  assert(t.ndim < BK_MAX_DIMS && dim >= 0 && dim < t.ndim);
  assert(b > 0 && t.shape[dim] % b == 0);
  for (int i = t.ndim; i > dim + 1; i--) {
    t.shape[i] = t.shape[i - 1];
    t.stride[i] = t.stride[i - 1];
  }
  t.shape[dim + 1] = b;
  t.stride[dim + 1] = t.stride[dim];
  t.shape[dim] /= b;
  t.stride[dim] *= b;
  t.ndim++;
  return t;
}

/* The inner stride remains, unless the inner dimension has size 1 and no stride to speak of. */
bk_tensor bk_tensor_merge(bk_tensor t, int dim) {
  assert(dim >= 0 && dim + 1 < t.ndim);
  assert(t.shape[dim] == 1 || t.shape[dim + 1] == 1 ||
         t.stride[dim] == t.shape[dim + 1] * t.stride[dim + 1]);
  int64_t stride = t.shape[dim + 1] == 1 ? t.stride[dim] : t.stride[dim + 1];
  t.shape[dim] *= t.shape[dim + 1];
  t.stride[dim] = stride;
  for (int i = dim + 1; i + 1 < t.ndim; i++) {
    t.shape[i] = t.shape[i + 1];
    t.stride[i] = t.stride[i + 1];
  }
  t.ndim--;
  t.shape[t.ndim] = 1;
  t.stride[t.ndim] = 0;
  return t;
}
