/* hc_mix: expand, collapse, pre, and pre with the RMSNorm that follows, forward and backward.
 * Template, see cpu.h. The work on tokens is in hc_mix.h. */
#include "backends/cpu/hc_mix.h"

static void expand_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_expand_args *a = arg;
  size_t bytes = (size_t)a->x.shape[1] * bk_dtype_size(a->x.dtype);
  (void)worker;
  for (int64_t i = begin; i < end; i++)
    for (int64_t m = 0; m < a->y.shape[1]; m++)
      memcpy(bk_cpu_at2(&a->y, i, m), bk_cpu_at(&a->x, i), bytes);
}

bk_status BK_ISA_NAME(bk_cpu_hc_expand)(bk_stream *stream, const bk_plan *plan, const void *args,
                                        bk_place workspace) {
  const bk_hc_expand_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[1], a->y.shape[1] + 1), expand_piece,
             a);
  return BK_OK;
}

BK_INLINE void collapse_tokens(const bk_hc_collapse_args *a, int64_t begin, int64_t end,
                               const bool bf, const int n) {
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i);
    char *y = bk_cpu_at(&a->y, i);
#define BODY(count)                                                                  \
  do {                                                                               \
    bk_vf sum = bk_v_get(x.row, c, bf, count);                                       \
    BK_UNROLL                                                                        \
    for (int m = 1; m < n; m++) sum = sum + bk_v_get(stream_at(x, m), c, bf, count); \
    bk_v_put(y, c, bf, count, sum);                                                  \
  } while (0)
    BK_HC_COLUMNS(a->y.shape[1], BODY);
#undef BODY
  }
}

static void collapse_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_collapse_args *a = arg;
  (void)worker;
  BK_HC_CALL(collapse_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_collapse)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_collapse_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], a->x.shape[1] + 1), collapse_piece,
             a);
  return BK_OK;
}

/* ---- pre ---- */
BK_INLINE void pre_tokens(const bk_hc_pre_args *a, int64_t begin, int64_t end, const bool bf,
                          const int n) {
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i);
    char *y = bk_cpu_at(&a->y, i);
    bk_vf pre[BK_HC_MAX_N];
    spread_n(&a->pre, i, pre, n);
#define BODY(count) bk_v_put(y, c, bf, count, pre_columns(x, pre, c, count, bf, n))
    BK_HC_COLUMNS(a->x.shape[2], BODY);
#undef BODY
  }
}

static void pre_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_pre_args *a = arg;
  (void)worker;
  BK_HC_CALL(pre_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_pre)(bk_stream *stream, const bk_plan *plan, const void *args,
                                     bk_place workspace) {
  const bk_hc_pre_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], a->x.shape[1] + 1), pre_piece, a);
  return BK_OK;
}

BK_INLINE void pre_bwd_tokens(const bk_hc_pre_bwd_args *a, int64_t begin, int64_t end,
                              const bool bf, const int n) {
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i), dx = streams_of(&a->dx, i);
    const char *dy = bk_cpu_at(&a->dy, i);
    bk_vf pre[BK_HC_MAX_N], dpre[BK_HC_MAX_N] = {{0}};
    spread_n(&a->pre, i, pre, n);
#define BODY(count) \
  pre_bwd_columns(x, dx, pre, bk_v_get(dy, c, bf, count), dpre, a->accumulate, c, count, bf, n)
    BK_HC_COLUMNS(a->x.shape[2], BODY);
#undef BODY
    store_sums((float *)bk_cpu_at(&a->dpre, i), dpre, n);
  }
}

static void pre_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_pre_bwd_args *a = arg;
  (void)worker;
  BK_HC_CALL(pre_bwd_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_pre_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                         bk_place workspace) {
  const bk_hc_pre_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 2 * a->x.shape[1] + 1),
             pre_bwd_piece, a);
  return BK_OK;
}

/* ---- pre with the norm ---- */
bk_status BK_ISA_NAME(bk_cpu_hc_pre_norm)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_pre_norm_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], a->x.shape[1] + 2), pre_norm_piece,
             a);
  return BK_OK;
}

bk_status BK_ISA_NAME(bk_cpu_hc_pre_norm_bwd)(bk_stream *stream, const bk_plan *plan,
                                              const void *args, bk_place workspace) {
  const bk_hc_pre_norm_bwd_args *a = args;
  pre_norm_bwd_job job = pre_norm_bwd_of(a, bk_place_data(workspace));
  (void)plan;
  bk_cpu_run(stream, a->x.shape[0], job.grain, pre_norm_bwd_piece, &job);
  pre_norm_bwd_finish(stream, &job);
  return BK_OK;
}
