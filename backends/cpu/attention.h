/* Causal attention in blocks (FlashAttention, arXiv 2205.14135 and 2307.08691): scores exist for one block of queries and one
 * of keys at a time, memory is linear in T. Scratch of one worker, in floats, one part after the other:
 *   forward   scores [BQ, BK] | out [BQ, Dv] | max, sum [BQ] each | gemm scratch
 *   backward  p [BQ, BK] | dp [BQ, BK] | delta [T] | dk [BK, Dk], dv [BK, Dv], dq [T, Dk] (bf16 only) | gemm scratch */
#ifndef BK_CPU_ATTENTION_H
#define BK_CPU_ATTENTION_H

#include "backends/cpu/gemm.h"

#define BK_ATT_BQ 64      /* queries of a forward block */
#define BK_ATT_BK 256     /* keys of a forward block */
#define BK_ATT_BWD_BQ 64 /* of a backward block */
#define BK_ATT_BWD_BK 64

typedef struct bk_attention_sizes {
  size_t scores, out, rows, dk, dv, dq; /* floats */
  size_t gemm, worker;                  /* bytes */
} bk_attention_sizes;

bk_attention_sizes bk_cpu_attention_sizes(const bk_attention_args *a);
bk_attention_sizes bk_cpu_attention_bwd_sizes(const bk_attention_bwd_args *a);

/* [T, D] of sequence b and head h of a [B,T,H,D] tensor. */
static inline bk_gemm_mat bk_cpu_attention_head(const bk_tensor *t, int64_t b, int64_t h) {
  bool bf = t->dtype == BK_BF16;
  char *data = (char *)bk_tensor_data(t) + (b * t->stride[0] + h * t->stride[2]) * (bf ? 2 : 4);
  return (bk_gemm_mat){data, t->stride[1], 1, bf};
}

#endif
