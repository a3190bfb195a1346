/* Element types and kinds of residual connections. */
#ifndef BIRKHOFF_TYPES_H
#define BIRKHOFF_TYPES_H

#include <birkhoff/context.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum bk_dtype {
  BK_NONE = 0,
  BK_F32,
  BK_BF16, /* the upper half of an fp32; stores round to nearest, ties to even */
  BK_F64,
  BK_I32,
  BK_I64,
  BK_U8,
  BK_DTYPE_COUNT
} bk_dtype;

/* A set of dtypes is the sum of such bits. */
#define BK_DT(dtype) (1u << (dtype))

BK_API size_t bk_dtype_size(bk_dtype dtype);      /* bytes of an element; 0 for BK_NONE */
BK_API const char *bk_dtype_name(bk_dtype dtype); /* "fp32" "bf16" "fp64" "i32" "i64" "u8" "none" */
/* Reads "fp32", "bf16" or "fp64"; any other text is BK_ERR_ARGUMENT, which is not logged. */
BK_API bk_status bk_dtype_parse(const char *text, bk_dtype *dtype);

/* The kinds of residual connections, by how the streams are mixed. In configurations they have the
 * same names in small letters. doc/numerics.md has their formulas. */
typedef enum bk_hc_kind {
  BK_HC_PLAIN,    /* the ordinary residual stream: there is only one */
  BK_HC_HC,       /* by a matrix without a constraint */
  BK_HC_MHC,      /* by a matrix that Sinkhorn's iteration makes doubly stochastic */
  BK_HC_MHC_LITE, /* by a mixture of the n! permutations */
  BK_HC_IHC,      /* not at all: the matrix is the identity */
  BK_HC_KROMHC,   /* by a Kronecker product of mixtures of two */
  /* Not a residual connection: the learned head, by which the streams become one at the end. It
   * stays the last. */
  BK_HC_HEAD
} bk_hc_kind;

#ifdef __cplusplus
}
#endif
#endif
