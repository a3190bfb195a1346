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
  BK_BF16, /* the upper half of an fp32, rounded to nearest even on store */
  BK_F64,
  BK_I32,
  BK_I64,
  BK_U8,
  BK_DTYPE_COUNT
} bk_dtype;

/* A set of dtypes is the sum of these. */
#define BK_DT(dtype) (1u << (dtype))

BK_API size_t bk_dtype_size(bk_dtype dtype);      /* bytes; 0 for BK_NONE */
BK_API const char *bk_dtype_name(bk_dtype dtype); /* "fp32" "bf16" "fp64" "i32" "i64" "u8" "none" */
BK_API bk_status bk_dtype_parse(const char *text, bk_dtype *dtype); /* fp32 bf16 fp64 */

/* Residual connections: the ordinary one; H_res free, doubly stochastic by Sinkhorn, a mixture of
 * permutations, the identity, a Kronecker product. Names in configurations: the same in small
 * letters. HEAD is the learned collapse of the streams at the end; it stays the last. */
typedef enum bk_hc_kind {
  BK_HC_PLAIN,
  BK_HC_HC,
  BK_HC_MHC,
  BK_HC_MHC_LITE,
  BK_HC_IHC,
  BK_HC_KROMHC,
  BK_HC_HEAD
} bk_hc_kind;

#ifdef __cplusplus
}
#endif
#endif
