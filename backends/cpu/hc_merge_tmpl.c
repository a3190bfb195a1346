/* hc_merge: res, post, and both in one, forward and backward. Template, see cpu.h. The work on
 * tokens is in hc_merge.h. */
#include "backends/cpu/hc_merge.h"

static void res_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_res_args *a = arg;
  (void)worker;
  MERGE_CALL(res_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_res)(bk_stream *stream, const bk_plan *plan, const void *args,
                                     bk_place workspace) {
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

bk_status BK_ISA_NAME(bk_cpu_hc_post)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  const bk_hc_post_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->f.shape[0], streams_grain(a->f.shape[1], 2 * a->y.shape[1] + 1), post_piece,
             a);
  return BK_OK;
}

bk_status BK_ISA_NAME(bk_cpu_hc_post_res)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_post_res_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 2 * a->x.shape[1] + 1),
             merge_piece, a);
  return BK_OK;
}

/* ---- backward ---- */
bk_status BK_ISA_NAME(bk_cpu_hc_post_res_bwd)(bk_stream *stream, const bk_plan *plan,
                                              const void *args, bk_place workspace) {
  const bk_hc_post_res_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 3 * a->x.shape[1] + 2),
             merge_bwd_piece, a);
  return BK_OK;
}

static void res_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_res_bwd_args *a = arg;
  (void)worker;
  MERGE_CALL(res_bwd_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_res_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                         bk_place workspace) {
  const bk_hc_res_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 3 * a->x.shape[1]), res_bwd_piece,
             a);
  return BK_OK;
}

static void post_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_post_bwd_args *a = arg;
  (void)worker;
  MERGE_CALL(post_bwd_tokens, bk_cpu_is_bf16(&a->f), (int)a->dy.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_post_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_post_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->f.shape[0], streams_grain(a->f.shape[1], a->dy.shape[1] + 2),
             post_bwd_piece, a);
  return BK_OK;
}
