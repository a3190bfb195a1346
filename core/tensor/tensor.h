/* Tensors are plain values that describe memory somewhere else: dtype, shape, strides and a place
 * (buffer and offset). A tensor owns nothing: it is copied and passed freely, and it is valid as
 * long as its buffer is. A tensor that is all zero has dtype BK_NONE and means "absent": that is
 * how optional operands of ops are left out. */
#ifndef BK_TENSOR_H
#define BK_TENSOR_H

#include <birkhoff/types.h>

#include "base/base.h"

/* The dtypes that weights and activations may have; integers are ids, indices and counts. */
static inline bool bk_dtype_is_float(bk_dtype d) {
  return d == BK_F32 || d == BK_BF16 || d == BK_F64;
}

/* bf16 is the upper half of an fp32, so that every bf16 is exactly an fp32. */
static inline float bk_bf16_to_f32(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } v = {.u = (uint32_t)h << 16};
  return v.f;
}
/* Half precision (IEEE binary16), which occurs in files alone. The conversion is exact: subnormals
 * become normal numbers, and infinities and NaN stay what they are. */
static inline float bk_f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 0x1fu, mantissa = h & 0x3ffu;
  union {
    uint32_t u;
    float f;
  } v = {.u = sign | (exponent + 112u) << 23 | mantissa << 13};
  if (exponent == 0x1fu) v.u = sign | 0x7f800000u | mantissa << 13;
  if (exponent != 0) return v.f;
  v.f = (float)mantissa * 0x1p-24f;
  v.u |= sign;
  return v.f;
}
/* Rounds to nearest, ties to even. NaN stays NaN (made quiet) and infinities stay. Half a unit
 * less one is added below the bits that are kept, and one more if the last of those is odd: a
 * carry then rounds up, through the exponent too. */
static inline uint16_t bk_f32_to_bf16(float f) {
  union {
    float f;
    uint32_t u;
  } v = {.f = f};
  if ((v.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((v.u >> 16) | 0x40u);
  return (uint16_t)((v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16);
}

/* The element at p, which may have any alignment; NaN for a dtype that has no elements. */
double bk_dtype_load(bk_dtype dtype, const void *p);
/* A bf16 is rounded by way of fp32, just as the weights of a model are made from their fp32
 * masters. Integers are rounded to the nearest and saturate. */
void bk_dtype_store(bk_dtype dtype, void *p, double x);

/* Batch, positions, heads and width are the most that an op needs. */
#define BK_MAX_DIMS 4
typedef struct bk_buffer bk_buffer; /* runtime/backend.h */

/* A shape with strides over a part of a buffer. It is copied freely; whoever made the buffer keeps
 * it alive for as long as any tensor refers to it. */
typedef struct bk_tensor {
  bk_buffer *buffer; /* NULL while only shapes are planned */
  size_t offset;     /* bytes from the start of the buffer */
  bk_dtype dtype;
  int ndim;
  int64_t shape[BK_MAX_DIMS];  /* outermost first; entries past ndim are 1 */
  int64_t stride[BK_MAX_DIMS]; /* in elements; entries past ndim are 0 */
} bk_tensor;

/* A contiguous tensor without a place, such as bk_tensor_make(BK_F32, 2, (int64_t[]){3, 4}).
 * bk_tensor_1d to 4d are the same with the sizes as arguments, outermost first. */
bk_tensor bk_tensor_make(bk_dtype dtype, int ndim, const int64_t *shape);
bk_tensor bk_tensor_1d(bk_dtype dtype, int64_t a);
bk_tensor bk_tensor_2d(bk_dtype dtype, int64_t a, int64_t b);
bk_tensor bk_tensor_3d(bk_dtype dtype, int64_t a, int64_t b, int64_t c);
bk_tensor bk_tensor_4d(bk_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d);
static inline bool bk_tensor_present(const bk_tensor *t) { return t->dtype != BK_NONE; }
BK_MODULE_API int64_t bk_tensor_count(const bk_tensor *t); /* elements; 0 if absent */
size_t bk_tensor_bytes(const bk_tensor *t);                /* bytes of the elements, without gaps */
/* Bytes from the first element to past the last, gaps included. */
BK_MODULE_API size_t bk_tensor_span(const bk_tensor *t);
/* The elements lie row by row without gaps, as uploads, files and messages between ranks need
 * them. */
BK_MODULE_API bool bk_tensor_contiguous(const bk_tensor *t);
/* True when the rows (last dimension) are dense: stride[ndim-1] == 1 or shape 1. */
bool bk_tensor_rows_dense(const bk_tensor *t);
/* Dtypes and strides do not matter. */
BK_MODULE_API bool bk_tensor_same_shape(const bk_tensor *a, const bk_tensor *b);
/* "[2,3,4] fp32 strides [12,4,1]" into text (at most `size` bytes); returns text. */
char *bk_tensor_describe(const bk_tensor *t, char *text, size_t size);

/* Views: tensors over the same memory. What a view needs of its tensor is the caller's duty; debug
 * builds (configure --enable-debug) check it by assert. */

/* Elements [begin, begin + length) of dimension `dim`. */
BK_MODULE_API bk_tensor bk_tensor_slice(bk_tensor t, int dim, int64_t begin, int64_t length);
/* Same elements in a new shape; the tensor must be contiguous. */
bk_tensor bk_tensor_reshape(bk_tensor t, int ndim, const int64_t *shape);
/* Exchanges two dimensions, which is the usual way to hand a weight to a product. */
bk_tensor bk_tensor_transpose(bk_tensor t, int dim_a, int dim_b);
/* Splits dimension `dim` of size a*b into two, [a, b]; legal for any stride. */
bk_tensor bk_tensor_split(bk_tensor t, int dim, int64_t b);
/* Merges dimensions dim and dim + 1. stride[dim] must be shape[dim+1] * stride[dim+1], unless one
 * of the two dimensions has size 1. */
bk_tensor bk_tensor_merge(bk_tensor t, int dim);

#endif
