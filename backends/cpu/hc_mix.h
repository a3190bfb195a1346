/* hc_mix: pre, and pre with the RMSNorm that follows, on ranges of tokens, forward and backward:
 * what the kernels of these ops and those fused with their neighbours share. For templates only.
 * x [N,n,C] st, pre [N,n], y [N,C]. The norm's second pass over a token's row of C finds it in
 * cache; the backward reads every stream once. */
#ifndef BK_CPU_HC_MIX_H
#define BK_CPU_HC_MIX_H

#include "backends/cpu/hc_streams.h"

/* ---- pre ---- */
BK_INLINE bk_vf pre_columns(token_streams x, const bk_vf *pre, int64_t c, int64_t count,
                            const bool bf, const int n) {
  bk_vf v[BK_HC_MAX_N];
  streams_load(x, v, c, count, bf, n);
  return streams_mix(pre, 1, v, n);
}

/* dx[m] (+)= pre[m] dy, dpre[m] += x[m] dy, for `count` columns. */
BK_INLINE void pre_bwd_columns(token_streams x, token_streams dx, const bk_vf *pre, bk_vf dy,
                               bk_vf *dpre, bool accumulate, int64_t c, int64_t count,
                               const bool bf, const int n) {
  BK_UNROLL
  for (int m = 0; m < n; m++)
    dpre[m] = bk_v_fma(bk_v_get(stream_at(x, m), c, bf, count), dy, dpre[m]);
  if (accumulate) {
    BK_UNROLL
    for (int m = 0; m < n; m++)
      bk_v_put(stream_at(dx, m), c, bf, count,
               bk_v_fma(pre[m], dy, bk_v_get(stream_at(dx, m), c, bf, count)));
  } else {
    BK_UNROLL
    for (int m = 0; m < n; m++) bk_v_put(stream_at(dx, m), c, bf, count, pre[m] * dy);
  }
}

/* ---- pre with the norm ---- */
BK_INLINE void pre_norm_tokens(const bk_hc_pre_norm_args *a, int64_t begin, int64_t end,
                               const bool bf, const int n) {
  const float *w = bk_tensor_data(&a->w);
  int64_t columns = a->x.shape[2];
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i);
    char *y = bk_cpu_at(&a->y, i), *h = bk_cpu_at(&a->h, i);
    bk_vf pre[BK_HC_MAX_N], squares = bk_v_zero();
    spread_n(&a->pre, i, pre, n);
#define BODY(count)                                 \
  do {                                              \
    bk_vf v = pre_columns(x, pre, c, count, bf, n); \
    if (bf) v = bk_v_from_bf16(bk_v_to_bf16(v));    \
    bk_v_put(y, c, bf, count, v);                   \
    squares = bk_v_fma(v, v, squares);              \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
    float rstd = (float)(1 / sqrt((double)bk_v_hsum(squares) / (double)columns + a->eps));
    if (bk_tensor_present(&a->rstd)) ((float *)bk_tensor_data(&a->rstd))[i] = rstd;
#define BODY(count) \
  bk_v_put(h, c, bf, count, bk_v_get(y, c, bf, count) * rstd * bk_v_get(w, c, false, count))
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
  }
}

static inline void pre_norm_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_pre_norm_args *a = arg;
  (void)worker;
  BK_HC_CALL(pre_norm_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

typedef struct pre_norm_bwd_job {
  const bk_hc_pre_norm_bwd_args *args;
  float *partials; /* dw of each piece, [pieces][C]; tokens of a piece in order, its first clears */
  int64_t grain, pieces;
} pre_norm_bwd_job;

/* dy = rstd (w dh - y rstd^2 mean(w dh y)); dw += dh y rstd. */
BK_INLINE void pre_norm_bwd_tokens(const pre_norm_bwd_job *job, int64_t begin, int64_t end,
                                   const bool bf, const int n) {
  const bk_hc_pre_norm_bwd_args *a = job->args;
  const float *w = bk_tensor_data(&a->w), *rstds = bk_tensor_data(&a->rstd);
  int64_t columns = a->x.shape[2];
  float *dw = job->partials + begin / job->grain * columns;
  if (begin % job->grain == 0) memset(dw, 0, (size_t)columns * sizeof(float));
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i), dx = streams_of(&a->dx, i);
    const char *y = bk_cpu_at(&a->y, i), *dh = bk_cpu_at(&a->dh, i);
    float rstd = rstds[i];
    bk_vf pre[BK_HC_MAX_N], dpre[BK_HC_MAX_N] = {{0}}, dot = bk_v_zero();
    spread_n(&a->pre, i, pre, n);
#define BODY(count)                                                                            \
  do {                                                                                         \
    bk_vf g = bk_v_get(dh, c, bf, count) * bk_v_get(y, c, bf, count);                          \
    dot = bk_v_fma(g, bk_v_get(w, c, false, count), dot);                                      \
    bk_v_put(dw, c, false, count, bk_v_fma(g, bk_v_set(rstd), bk_v_get(dw, c, false, count))); \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
    float back = (float)((double)rstd * rstd * rstd * (double)bk_v_hsum(dot) / (double)columns);
#define BODY(count)                                                                  \
  do {                                                                               \
    bk_vf scaled = bk_v_get(dh, c, bf, count) * bk_v_get(w, c, false, count) * rstd; \
    bk_vf dy = bk_v_fma(bk_v_get(y, c, bf, count), bk_v_set(-back), scaled);         \
    pre_bwd_columns(x, dx, pre, dy, dpre, a->accumulate, c, count, bf, n);           \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
    store_sums((float *)bk_cpu_at(&a->dpre, i), dpre, n);
  }
}

static inline void pre_norm_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const pre_norm_bwd_job *job = arg;
  (void)worker;
  BK_HC_CALL(pre_norm_bwd_tokens, bk_cpu_is_bf16(&job->args->x), (int)job->args->x.shape[1], job,
             begin, end);
}

static inline void dw_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const pre_norm_bwd_job *job = arg;
  float *dw = bk_tensor_data(&job->args->dw);
  int64_t columns = job->args->x.shape[2];
  (void)worker;
  for (int64_t c = begin; c < end; c++) {
    double sum = 0;
    for (int64_t p = 0; p < job->pieces; p++) sum += (double)job->partials[p * columns + c];
    dw[c] = (float)((double)dw[c] + sum);
  }
}

static inline pre_norm_bwd_job pre_norm_bwd_of(const bk_hc_pre_norm_bwd_args *a, float *workspace) {
  return (pre_norm_bwd_job){a, workspace, bk_hc_grain(a->x.shape[0]), bk_hc_pieces(a->x.shape[0])};
}
static inline void pre_norm_bwd_finish(const bk_stream *stream, const pre_norm_bwd_job *job) {
  if (bk_tensor_present(&job->args->dw))
    bk_cpu_run(stream, job->args->x.shape[2], 256, dw_piece, job);
}

#endif
