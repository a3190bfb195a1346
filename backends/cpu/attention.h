/* Causal attention in blocks (FlashAttention, arXiv 2205.14135 and 2307.08691): scores exist for
 * one block of keys and a few queries at a time, memory is linear in T.
 *
 * Scores are made transposed, S^T [keys, lanes]: the lanes are the NR queries of one sliver of
 * the micro kernel (gemm_micro.h). The softmax then works on whole vectors of queries, and what
 * it leaves is a sliver of the second product as it stands:
 *     S^T = K Q^T,  O^T += V^T P^T      all with keys and values packed once for a block of keys.
 * Scratch of one worker, in floats, one part after the other, each a multiple of 16:
 *   forward   k, v: packed block of keys | q: packed queries | s: [keys, lanes] | out: O^T of all
 *             slivers | max, sum of all queries
 *   backward  k, kt, v: packed block of keys, turned, straight, turned | q, qt, g, gt: packed
 *             block of queries and of dout
 *             | p, ds: [slivers][keys, lanes] | pp, pd: the same, packed | delta [T] | dq: dQ^T
 *               of all slivers | dk, dv (bf16 only)
 * With at most BK_GEMM_FEW queries (decoding) there is nothing to share: attention_few.h; scores
 * | out | max, sum | gemm scratch. */
#ifndef BK_CPU_ATTENTION_H
#define BK_CPU_ATTENTION_H

#include "backends/cpu/gemm.h"

#define BK_ATT_BQ 256    /* queries of a forward item */
#define BK_ATT_BK 256    /* keys of a block */
#define BK_ATT_BWD_BQ 64 /* queries of a backward block */
#define BK_ATT_FEW_BK 256

typedef struct bk_attention_sizes {
  size_t k, v, q, s, out, rows;        /* floats; forward */
  size_t scores, gemm;                 /* few queries: floats, bytes */
  size_t kt, qt, g, gt, p, dk, dv, dq; /* floats; backward, beside k, v, q, rows */
  size_t worker;                       /* bytes, all together */
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
