/* hc_merge: res, post, and both in one, forward and backward. Template, see cpu.h.
 * x, out [N,n,C] st, f [N,C] st, post [N,n], comb [N,n,n] (source, destination). Forward and backward read and write each
 * stream once; the backward works on blocks of columns that stay in the first cache, since its n*n + n running sums are more
 * than there are registers. */
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

static void res_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_res_args *a = arg;
  (void)worker;
  MERGE_CALL(res_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_res)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_res_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 2 * a->x.shape[1]), res_piece, a);
  return BK_OK;
}

static void post_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_post_args *a = arg;
  (void)worker;
  MERGE_CALL(post_tokens, bk_cpu_is_bf16(&a->f), (int)a->y.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_post)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_post_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->f.shape[0], streams_grain(a->f.shape[1], 2 * a->y.shape[1] + 1), post_piece, a);
  return BK_OK;
}

static void merge_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_post_res_args *a = arg;
  (void)worker;
  if (bk_tensor_present(&a->comb))
    MERGE_CALL(merge_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end, true);
  else MERGE_CALL(merge_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end, false);
}

bk_status BK_ISA_NAME(bk_cpu_hc_post_res)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_post_res_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 2 * a->x.shape[1] + 1), merge_piece, a);
  return BK_OK;
}

/* ---- backward ---- */
static void merge_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_post_res_bwd_args *a = arg;
  (void)worker;
  if (bk_tensor_present(&a->comb))
    MERGE_CALL(merge_bwd_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end, true);
  else MERGE_CALL(merge_bwd_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end, false);
}

bk_status BK_ISA_NAME(bk_cpu_hc_post_res_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                              bk_place workspace) {
  const bk_hc_post_res_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 3 * a->x.shape[1] + 2), merge_bwd_piece, a);
  return BK_OK;
}

static void res_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_res_bwd_args *a = arg;
  (void)worker;
  MERGE_CALL(res_bwd_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_res_bwd)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_res_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 3 * a->x.shape[1]), res_bwd_piece, a);
  return BK_OK;
}

static void post_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_post_bwd_args *a = arg;
  (void)worker;
  MERGE_CALL(post_bwd_tokens, bk_cpu_is_bf16(&a->f), (int)a->dy.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_post_bwd)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_post_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->f.shape[0], streams_grain(a->f.shape[1], a->dy.shape[1] + 2), post_bwd_piece, a);
  return BK_OK;
}
