/* RMSNORM, RMSNORM_BWD, ROPE; formulas in runtime/op.h. Template, see cpu.h. */
#include "backends/cpu/kernels.h"
#include "backends/cpu/norm.h"
#include "backends/cpu/rope.h"
#include "backends/cpu/simd.h"

/* ---- rmsnorm ---- */
BK_INLINE float row_dot(const char *a, const char *b, int64_t n, const bool bf) {
  bk_vf s0 = bk_v_zero(), s1 = bk_v_zero();
  int64_t i = 0;
  for (; i + 2 * BK_VW <= n; i += 2 * BK_VW) {
    s0 = bk_v_fma(bk_v_ld(a, i, bf), bk_v_ld(b, i, bf), s0);
    s1 = bk_v_fma(bk_v_ld(a, i + BK_VW, bf), bk_v_ld(b, i + BK_VW, bf), s1);
  }
  for (; i < n; i += BK_VW) s0 = bk_v_fma(bk_v_get(a, i, bf, n - i), bk_v_get(b, i, bf, n - i), s0);
  return bk_v_hsum(s0 + s1);
}
BK_INLINE void rmsnorm_rows(const bk_rmsnorm_args *a, int64_t begin, int64_t end, const bool bf) {
  int64_t n = a->x.shape[1];
  const char *w = bk_tensor_data(&a->w);
  for (int64_t r = begin; r < end; r++) {
    const char *x = bk_cpu_at(&a->x, r);
    char *y = bk_cpu_at(&a->y, r);
    float rstd = (float)(1.0 / sqrt(row_dot(x, x, n, bf) / (double)n + a->eps));
    for (int64_t i = 0; i < n; i += BK_VW)
      bk_v_put(y, i, bf, n - i, bk_v_get(x, i, bf, n - i) * rstd * bk_v_get(w, i, false, n - i));
    if (bk_tensor_present(&a->rstd)) *(float *)(void *)bk_cpu_at(&a->rstd, r) = rstd;
  }
}
static void rmsnorm_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_rmsnorm_args *a = arg;
  (void)worker;
  if (bk_cpu_is_bf16(&a->x)) rmsnorm_rows(a, begin, end, true);
  else rmsnorm_rows(a, begin, end, false);
}
bk_status BK_ISA_NAME(bk_cpu_rmsnorm)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  const bk_rmsnorm_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], bk_cpu_grain(8 * a->x.shape[1]), rmsnorm_piece, a);
  return BK_OK;
}

/* ---- rmsnorm_bwd: g = dy w; dx = rstd (g - x rstd^2 mean(g x)); dw = sum over rows of dy x
 * rstd ---- */
typedef struct rmsnorm_bwd_job {
  const bk_rmsnorm_bwd_args *a;
  int64_t grain;
  float *partial; /* [pieces, D] */
} rmsnorm_bwd_job;

BK_INLINE float weighted_dot(const char *dy, const char *x, const char *w, int64_t n,
                             const bool bf) {
  bk_vf s = bk_v_zero();
  for (int64_t i = 0; i < n; i += BK_VW)
    s = bk_v_fma(bk_v_get(dy, i, bf, n - i) * bk_v_get(w, i, false, n - i),
                 bk_v_get(x, i, bf, n - i), s);
  return bk_v_hsum(s);
}
BK_INLINE void rmsnorm_bwd_dx(const bk_rmsnorm_bwd_args *a, int64_t r, float rstd, const bool bf) {
  int64_t n = a->x.shape[1];
  const char *x = bk_cpu_at(&a->x, r), *dy = bk_cpu_at(&a->dy, r), *w = bk_tensor_data(&a->w);
  char *dx = bk_cpu_at(&a->dx, r);
  float back = rstd * rstd * (weighted_dot(dy, x, w, n, bf) / (float)n);
  for (int64_t i = 0; i < n; i += BK_VW) {
    bk_vf g = bk_v_get(dy, i, bf, n - i) * bk_v_get(w, i, false, n - i);
    bk_vf d = (g - bk_v_get(x, i, bf, n - i) * back) * rstd;
    if (a->accumulate) d = d + bk_v_get(dx, i, bf, n - i);
    bk_v_put(dx, i, bf, n - i, d);
  }
}
BK_INLINE void rmsnorm_bwd_dw(const bk_rmsnorm_bwd_args *a, int64_t r, float rstd, float *dw,
                              const bool bf) {
  int64_t n = a->x.shape[1];
  const char *x = bk_cpu_at(&a->x, r), *dy = bk_cpu_at(&a->dy, r);
  for (int64_t i = 0; i < n; i += BK_VW) {
    bk_vf g = bk_v_get(dy, i, bf, n - i) * (bk_v_get(x, i, bf, n - i) * rstd);
    bk_v_put(dw, i, false, n - i, bk_v_get(dw, i, false, n - i) + g);
  }
}
BK_INLINE void rmsnorm_bwd_rows(const rmsnorm_bwd_job *job, int64_t begin, int64_t end,
                                const bool bf) {
  const bk_rmsnorm_bwd_args *a = job->a;
  float *dw = job->partial ? job->partial + begin / job->grain * a->x.shape[1] : NULL;
  if (dw) memset(dw, 0, (size_t)a->x.shape[1] * sizeof *dw);
  for (int64_t r = begin; r < end; r++) {
    float rstd = *(const float *)(const void *)bk_cpu_at(&a->rstd, r);
    if (dw) rmsnorm_bwd_dw(a, r, rstd, dw, bf);
    if (bk_tensor_present(&a->dx)) rmsnorm_bwd_dx(a, r, rstd, bf);
  }
}
static void rmsnorm_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const rmsnorm_bwd_job *job = arg;
  (void)worker;
  if (bk_cpu_is_bf16(&job->a->x)) rmsnorm_bwd_rows(job, begin, end, true);
  else rmsnorm_bwd_rows(job, begin, end, false);
}
bk_status BK_ISA_NAME(bk_cpu_rmsnorm_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_rmsnorm_bwd_args *a = args;
  bool want_dw = bk_tensor_present(&a->dw);
  int64_t rows = a->x.shape[0], n = a->x.shape[1], grain = bk_cpu_rmsnorm_bwd_grain(rows, n);
  rmsnorm_bwd_job job = {a, grain, want_dw ? bk_place_data(workspace) : NULL};
  (void)plan;
  bk_cpu_run(stream, rows, grain, rmsnorm_bwd_piece, &job);
  if (!want_dw) return BK_OK;
  float *dw = bk_tensor_data(&a->dw);
  for (int64_t i = 0; i < n; i += BK_VW) {
    bk_vf s = bk_v_zero();
    for (int64_t p = 0; p < bk_cpu_pieces(rows, grain); p++)
      s = s + bk_v_get(job.partial + p * n, i, false, n - i);
    bk_v_put(dw, i, false, n - i, bk_v_get(dw, i, false, n - i) + s);
  }
  return BK_OK;
}

/* ---- rope: items are (b, t) ---- */
typedef struct rope_job {
  const bk_rope_args *a;
  const bk_cpu_rope_table *table;
  int64_t past;
  float *scratch; /* [workers, 2 D] */
} rope_job;

BK_INLINE bk_vf rope_in(const char *x, int64_t heads, int64_t stride, int64_t i, int64_t count,
                        const bool bf) {
  bk_vf s = bk_v_get(x, i, bf, count);
  for (int64_t h = 1; h < heads; h++) s = s + bk_v_get(x + h * stride, i, bf, count);
  return s;
}
BK_INLINE void rope_token(const bk_rope_args *a, const char *x, char *y, const float *row,
                          const bool bf) {
  int64_t n = a->x.shape[3], hx = a->x.shape[2], hy = a->y.shape[2];
  int64_t sx = a->x.stride[2] * (bf ? 2 : 4), sy = a->y.stride[2] * (bf ? 2 : 4);
  int64_t sum = hy == 1 ? hx : 1; /* heads added into one output */
  float sign = a->inverse ? -1.f : 1.f;
  for (int64_t h = 0; h < hy; h++) {
    const char *from = hx == 1 ? x : x + h * sx;
    for (int64_t i = 0; i < n; i += BK_VW) {
      bk_vf v = rope_in(from, sum, sx, i, n - i, bf);
      bk_vf c = bk_v_get(row, i, false, n - i), s = bk_v_get(row + n, i, false, n - i) * sign;
      bk_v_put(y + h * sy, i, bf, n - i, v * c + bk_v_swap_pairs(v) * s);
    }
  }
}
static const float *rope_row(const rope_job *job, int64_t position, int worker) {
  int64_t width = 2 * job->table->width;
  if (position < job->table->positions) return job->table->rows + position * width;
  bk_cpu_rope_row(job->table, position, job->scratch + worker * width);
  return job->scratch + worker * width;
}
static void rope_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const rope_job *job = arg;
  const bk_rope_args *a = job->a;
  for (int64_t item = begin; item < end; item++) {
    int64_t b = item / a->x.shape[1], t = item % a->x.shape[1], position = job->past + t;
    const float *row = rope_row(job, position, worker);
    if (bk_cpu_is_bf16(&a->x))
      rope_token(a, bk_cpu_at2(&a->x, b, t), bk_cpu_at2(&a->y, b, t), row, true);
    else rope_token(a, bk_cpu_at2(&a->x, b, t), bk_cpu_at2(&a->y, b, t), row, false);
  }
}
bk_status BK_ISA_NAME(bk_cpu_rope)(bk_stream *stream, const bk_plan *plan, const void *args,
                                   bk_place workspace) {
  const bk_rope_args *a = args;
  rope_job job = {a, ((const bk_cpu_rope_state *)plan->state)->table, 0, bk_place_data(workspace)};
  if (bk_tensor_present(&a->past)) job.past = *(const int32_t *)bk_tensor_data(&a->past);
  int64_t heads = a->x.shape[2] > a->y.shape[2] ? a->x.shape[2] : a->y.shape[2];
  bk_cpu_run(stream, a->x.shape[0] * a->x.shape[1], bk_cpu_grain(8 * heads * a->x.shape[3]),
             rope_piece, &job);
  return BK_OK;
}
