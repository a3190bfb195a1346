/* hc_mix: expand, collapse, pre, and pre with the RMSNorm that follows, forward and backward. Template, see cpu.h.
 * x [N,n,C] st, pre [N,n], y [N,C]. The norm's second pass over a token's row of C finds it in cache; the backward reads
 * every stream once. */
#include "backends/cpu/hc_streams.h"

static void expand_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_expand_args *a = arg;
  size_t bytes = (size_t)a->x.shape[1] * bk_dtype_size(a->x.dtype);
  (void)worker;
  for (int64_t i = begin; i < end; i++)
    for (int64_t m = 0; m < a->y.shape[1]; m++) memcpy(bk_cpu_at2(&a->y, i, m), bk_cpu_at(&a->x, i), bytes);
}

bk_status BK_ISA_NAME(bk_cpu_hc_expand)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_expand_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[1], a->y.shape[1] + 1), expand_piece, a);
  return BK_OK;
}

BK_INLINE void collapse_tokens(const bk_hc_collapse_args *a, int64_t begin, int64_t end, const bool bf, const int n) {
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

bk_status BK_ISA_NAME(bk_cpu_hc_collapse)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_collapse_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], a->x.shape[1] + 1), collapse_piece, a);
  return BK_OK;
}

/* ---- pre ---- */
BK_INLINE bk_vf pre_columns(token_streams x, const bk_vf *pre, int64_t c, int64_t count, const bool bf, const int n) {
  bk_vf v[BK_HC_MAX_N];
  streams_load(x, v, c, count, bf, n);
  return streams_mix(pre, 1, v, n);
}

BK_INLINE void pre_tokens(const bk_hc_pre_args *a, int64_t begin, int64_t end, const bool bf, const int n) {
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

bk_status BK_ISA_NAME(bk_cpu_hc_pre)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_pre_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], a->x.shape[1] + 1), pre_piece, a);
  return BK_OK;
}

/* dx[m] (+)= pre[m] dy, dpre[m] += x[m] dy, for `count` columns. */
BK_INLINE void pre_bwd_columns(token_streams x, token_streams dx, const bk_vf *pre, bk_vf dy, bk_vf *dpre, bool accumulate,
                               int64_t c, int64_t count, const bool bf, const int n) {
  BK_UNROLL
  for (int m = 0; m < n; m++) dpre[m] = bk_v_get(stream_at(x, m), c, bf, count) * dy + dpre[m];
  if (accumulate) {
    BK_UNROLL
    for (int m = 0; m < n; m++)
      bk_v_put(stream_at(dx, m), c, bf, count, pre[m] * dy + bk_v_get(stream_at(dx, m), c, bf, count));
  } else {
    BK_UNROLL
    for (int m = 0; m < n; m++) bk_v_put(stream_at(dx, m), c, bf, count, pre[m] * dy);
  }
}

BK_INLINE void pre_bwd_tokens(const bk_hc_pre_bwd_args *a, int64_t begin, int64_t end, const bool bf, const int n) {
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i), dx = streams_of(&a->dx, i);
    const char *dy = bk_cpu_at(&a->dy, i);
    bk_vf pre[BK_HC_MAX_N], dpre[BK_HC_MAX_N] = {{0}};
    spread_n(&a->pre, i, pre, n);
#define BODY(count) pre_bwd_columns(x, dx, pre, bk_v_get(dy, c, bf, count), dpre, a->accumulate, c, count, bf, n)
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

bk_status BK_ISA_NAME(bk_cpu_hc_pre_bwd)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_pre_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], 2 * a->x.shape[1] + 1), pre_bwd_piece, a);
  return BK_OK;
}

/* ---- pre with the norm ---- */
BK_INLINE void pre_norm_tokens(const bk_hc_pre_norm_args *a, int64_t begin, int64_t end, const bool bf, const int n) {
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
    squares = v * v + squares;                      \
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

static void pre_norm_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_pre_norm_args *a = arg;
  (void)worker;
  BK_HC_CALL(pre_norm_tokens, bk_cpu_is_bf16(&a->x), (int)a->x.shape[1], a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_pre_norm)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_pre_norm_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[2], a->x.shape[1] + 2), pre_norm_piece, a);
  return BK_OK;
}

typedef struct pre_norm_bwd_job {
  const bk_hc_pre_norm_bwd_args *args;
  float *partials; /* dw of each piece, [pieces][C] */
  int64_t grain, pieces;
} pre_norm_bwd_job;

/* dy = rstd (w dh - y rstd^2 mean(w dh y)); dw += dh y rstd. */
BK_INLINE void pre_norm_bwd_tokens(const pre_norm_bwd_job *job, int64_t begin, int64_t end, const bool bf, const int n) {
  const bk_hc_pre_norm_bwd_args *a = job->args;
  const float *w = bk_tensor_data(&a->w), *rstds = bk_tensor_data(&a->rstd);
  int64_t columns = a->x.shape[2];
  float *dw = job->partials + begin / job->grain * columns;
  memset(dw, 0, (size_t)columns * sizeof(float));
  for (int64_t i = begin; i < end; i++) {
    token_streams x = streams_of(&a->x, i), dx = streams_of(&a->dx, i);
    const char *y = bk_cpu_at(&a->y, i), *dh = bk_cpu_at(&a->dh, i);
    float rstd = rstds[i];
    bk_vf pre[BK_HC_MAX_N], dpre[BK_HC_MAX_N] = {{0}}, dot = bk_v_zero();
    spread_n(&a->pre, i, pre, n);
#define BODY(count)                                                          \
  do {                                                                       \
    bk_vf g = bk_v_get(dh, c, bf, count) * bk_v_get(y, c, bf, count);        \
    dot = g * bk_v_get(w, c, false, count) + dot;                            \
    bk_v_put(dw, c, false, count, g * rstd + bk_v_get(dw, c, false, count)); \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
    float back = (float)((double)rstd * rstd * rstd * (double)bk_v_hsum(dot) / (double)columns);
#define BODY(count)                                                                                                 \
  do {                                                                                                              \
    bk_vf dy = bk_v_get(dh, c, bf, count) * bk_v_get(w, c, false, count) * rstd - bk_v_get(y, c, bf, count) * back; \
    pre_bwd_columns(x, dx, pre, dy, dpre, a->accumulate, c, count, bf, n);                                          \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
    store_sums((float *)bk_cpu_at(&a->dpre, i), dpre, n);
  }
}

static void pre_norm_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const pre_norm_bwd_job *job = arg;
  (void)worker;
  BK_HC_CALL(pre_norm_bwd_tokens, bk_cpu_is_bf16(&job->args->x), (int)job->args->x.shape[1], job, begin, end);
}

static void dw_piece(void *arg, int64_t begin, int64_t end, int worker) {
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

bk_status BK_ISA_NAME(bk_cpu_hc_pre_norm_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                              bk_place workspace) {
  const bk_hc_pre_norm_bwd_args *a = args;
  int64_t tokens = a->x.shape[0];
  pre_norm_bwd_job job = {a, bk_place_data(workspace), bk_hc_grain(tokens), bk_hc_pieces(tokens)};
  (void)plan;
  bk_cpu_run(stream, tokens, job.grain, pre_norm_bwd_piece, &job);
  if (bk_tensor_present(&a->dw)) bk_cpu_run(stream, a->x.shape[2], 256, dw_piece, &job);
  return BK_OK;
}
