/* hc_merge: res, post, and both in one, on ranges of tokens, forward and backward: what the
 * kernels of these ops and those fused with their neighbours share. For templates only. x, out
 * [N,n,C] st, f [N,C] st, post [N,n], comb [N,n,n] (source, destination). Forward and backward
 * read and write each stream once; the backward works on blocks of columns that stay in the
 * first cache, since its n*n + n running sums are more than there are registers. */
#ifndef BK_CPU_HC_MERGE_H
#define BK_CPU_HC_MERGE_H

#include "backends/cpu/hc_streams.h"

#define BLOCK 512 /* columns of the backward's passes */

/* What a token's last pass over a block writes; NULL rows are left out. */
typedef struct merge_bwd_token {
  token_streams d, dx;
  const char *f;
  char *df;
} merge_bwd_token;

#define MERGE_N(name) name##_4
#define MERGE_UNROLL BK_UNROLL
#include "backends/cpu/hc_merge_n.h"
#undef MERGE_N
#undef MERGE_UNROLL
#define MERGE_N(name) name##_any
#define MERGE_UNROLL
#include "backends/cpu/hc_merge_n.h"

/* fn(..., bf, n) */
#define MERGE_CALL(fn, is_bf, streams, ...)                      \
  do {                                                           \
    if ((is_bf) && (streams) == 4) fn##_4(__VA_ARGS__, true, 4); \
    else if (is_bf) fn##_any(__VA_ARGS__, true, (streams));      \
    else if ((streams) == 4) fn##_4(__VA_ARGS__, false, 4);      \
    else fn##_any(__VA_ARGS__, false, (streams));                \
  } while (0)

static inline void merge_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_post_res_args *a = arg;
  (void)worker;
  if (bk_tensor_present(&a->comb))
    MERGE_CALL(merge_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end, true);
  else MERGE_CALL(merge_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end, false);
}

static inline void merge_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_post_res_bwd_args *a = arg;
  (void)worker;
  if (bk_tensor_present(&a->comb))
    MERGE_CALL(merge_bwd_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end, true);
  else
    MERGE_CALL(merge_bwd_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end, false);
}

#endif
