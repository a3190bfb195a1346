/* hc_project: RMS of rows, and the projection with the RMS in one pass over x, forward and backward. Template, see cpu.h.
 * x [M,K] st, fn [R,K], proj [M,R], rinv [M].
 *
 * Forward: a piece of tokens walks over panels of columns. The panel of fn is copied into a dense block (rows of fn are a
 * power of two apart as a rule, so that in place they would share a few cache sets); three tokens of x are widened
 * into scratch, their squares summed on the way, and multiplied with four rows of fn at a time, 12 running vectors. These are
 * kept between panels and summed across at the end.
 * Backward: a task owns a panel of columns (and a split of the tokens), so that dfn needs no sums over threads; x is
 * read once for both products. Four tokens or rows times three vectors of columns are in registers. */
#include "backends/cpu/hc_streams.h"

#define COLUMNS BK_HC_PROJECT_COLUMNS
#define TOKENS BK_HC_PROJECT_TOKENS

static float rms_inverse(bk_vf squares, int64_t columns, double eps) {
  return (float)(1 / sqrt((double)bk_v_hsum(squares) / (double)columns + eps));
}

/* ---- the primitive ---- */
BK_INLINE void rms_rows(const bk_hc_rms_args *a, int64_t begin, int64_t end, const bool bf, const int n) {
  int64_t columns = a->x.shape[1];
  (void)n;
  for (int64_t i = begin; i < end; i++) {
    const char *x = bk_cpu_at(&a->x, i);
    bk_vf squares = bk_v_zero();
#define BODY(count)                      \
  do {                                   \
    bk_vf v = bk_v_get(x, c, bf, count); \
    squares = v * v + squares;           \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
    ((float *)bk_tensor_data(&a->rinv))[i] = rms_inverse(squares, columns, a->eps);
  }
}

static void rms_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_rms_args *a = arg;
  (void)worker;
  BK_HC_CALL(rms_rows, bk_cpu_is_bf16(&a->x), 1, a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_rms)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_rms_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[1], 1), rms_piece, a);
  return BK_OK;
}

/* dx (+)= -rinv^3 drinv / K x */
BK_INLINE float rms_back(float rinv, float drinv, int64_t columns) {
  return (float)(-(double)rinv * rinv * rinv * drinv / (double)columns);
}

BK_INLINE void rms_bwd_rows(const bk_hc_rms_bwd_args *a, int64_t begin, int64_t end, const bool bf, const int n) {
  const float *rinv = bk_tensor_data(&a->rinv), *drinv = bk_tensor_data(&a->drinv);
  int64_t columns = a->x.shape[1];
  (void)n;
  for (int64_t i = begin; i < end; i++) {
    const char *x = bk_cpu_at(&a->x, i);
    char *dx = bk_cpu_at(&a->dx, i);
    float factor = rms_back(rinv[i], drinv[i], columns);
#define BODY(count)                                        \
  do {                                                     \
    bk_vf v = bk_v_get(x, c, bf, count) * factor;          \
    if (a->accumulate) v = v + bk_v_get(dx, c, bf, count); \
    bk_v_put(dx, c, bf, count, v);                         \
  } while (0)
    BK_HC_COLUMNS(columns, BODY);
#undef BODY
  }
}

static void rms_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_rms_bwd_args *a = arg;
  (void)worker;
  BK_HC_CALL(rms_bwd_rows, bk_cpu_is_bf16(&a->x), 1, a, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_rms_bwd)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_rms_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->x.shape[0], streams_grain(a->x.shape[1], 3), rms_bwd_piece, a);
  return BK_OK;
}

/* ---- projection, forward ---- */
typedef struct project_job {
  const bk_hc_project_args *args;
  float *scratch; /* per worker, see bk_hc_project_scratch */
} project_job;

/* Copies rows [0, rows) of columns [from, from + width) as fp32 into out [padded][stride]; the rest of out is zero. */
BK_INLINE void copy_block(const bk_tensor *t, int64_t row, int64_t rows, int64_t padded, int64_t from, int64_t width,
                          float *out, int64_t stride, const bool bf) {
  for (int64_t r = 0; r < padded; r++, out += stride) {
    if (r >= rows) {
      memset(out, 0, (size_t)stride * sizeof(float));
      continue;
    }
    const char *in = bk_cpu_at(t, row + r);
    for (int64_t c = 0; c < width; c += BK_VW) bk_v_st(out, c, false, bk_v_get(in, from + c, bf, width - c));
    for (int64_t c = BK_ALIGN_UP(width, BK_VW); c < stride; c += BK_VW) bk_v_st(out, c, false, bk_v_zero());
  }
}

/* acc[token][row] += x[token] . fn[row] lane by lane: 3 tokens, 4 rows, x and fn [..][COLUMNS]. */
static void project_tile(const float *x, const float *fn, int64_t width, float *acc, int64_t acc_stride) {
  bk_vf sum[12];
  BK_UNROLL
  for (int t = 0; t < 3; t++) {
    BK_UNROLL
    for (int r = 0; r < 4; r++) sum[t * 4 + r] = bk_v_ld(acc + t * acc_stride, r * BK_VW, false);
  }
  for (int64_t c = 0; c < width; c += BK_VW) {
    bk_vf x0 = bk_v_ld(x, c, false), x1 = bk_v_ld(x + COLUMNS, c, false), x2 = bk_v_ld(x + 2 * COLUMNS, c, false);
    BK_UNROLL
    for (int r = 0; r < 4; r++) {
      bk_vf f = bk_v_ld(fn + r * COLUMNS, c, false);
      sum[r] = x0 * f + sum[r];
      sum[4 + r] = x1 * f + sum[4 + r];
      sum[8 + r] = x2 * f + sum[8 + r];
    }
  }
  BK_UNROLL
  for (int t = 0; t < 3; t++) {
    BK_UNROLL
    for (int r = 0; r < 4; r++) bk_v_st(acc + t * acc_stride, r * BK_VW, false, sum[t * 4 + r]);
  }
}

/* Widens up to three tokens of a panel into `out`, adding their squares; missing tokens and columns are zeros. */
BK_INLINE void project_widen(const bk_tensor *t, int64_t token, int64_t count, int64_t from, int64_t width, float *out,
                             float *squares, const bool bf) {
  for (int64_t k = 0; k < 3; k++, out += COLUMNS) {
    if (k >= count) {
      memset(out, 0, COLUMNS * sizeof(float));
      continue;
    }
    const char *x = bk_cpu_at(t, token + k);
    bk_vf sum = bk_v_ld(squares, k * BK_VW, false);
#define BODY(count)                             \
  do {                                          \
    bk_vf v = bk_v_get(x, from + c, bf, count); \
    bk_v_st(out, c, false, v);                  \
    sum = v * v + sum;                          \
  } while (0)
    BK_HC_COLUMNS(width, BODY);
#undef BODY
    bk_v_st(squares, k * BK_VW, false, sum);
  }
}

/* Asks for part `part` of `parts` of columns [from, from + width) of up to `count` tokens from `token` on, `end` at most. */
BK_INLINE void prefetch_part(const bk_tensor *t, int64_t token, int64_t count, int64_t end, int64_t from, int64_t width,
                             int64_t part, int64_t parts, const bool bf) {
  int64_t bytes = width * (bf ? 2 : 4), begin = bytes * part / parts, stop = bytes * (part + 1) / parts;
  for (int64_t k = 0; k < count && token + k < end; k++) {
    const char *row = bk_cpu_at(t, token + k) + from * (bf ? 2 : 4);
    for (int64_t b = begin & ~(int64_t)63; b < stop; b += 64) __builtin_prefetch(row + b, 0, 2);
  }
}

BK_INLINE void project_tokens(const project_job *job, int64_t begin, int64_t end, float *scratch, const bool bf,
                              const int n) {
  const bk_hc_project_args *a = job->args;
  int64_t rows = a->fn.shape[0], padded = bk_hc_project_rows(rows), columns = a->x.shape[1];
  float *fn = scratch, *x = fn + padded * COLUMNS, *squares = x + 3 * COLUMNS, *acc = squares + TOKENS * BK_VW;
  (void)n;
  memset(squares, 0, (size_t)((1 + padded) * TOKENS * BK_VW) * sizeof(float));
  for (int64_t from = 0; from < columns; from += COLUMNS) {
    int64_t width = columns - from < COLUMNS ? columns - from : COLUMNS;
    copy_block(&a->fn, 0, rows, padded, from, width, fn, COLUMNS, false);
    for (int64_t i = begin; i < end; i += 3) {
      int64_t at = i - begin;
      project_widen(&a->x, i, end - i < 3 ? end - i : 3, from, width, x, squares + at * BK_VW, bf);
      for (int64_t r = 0; r < padded; r += 4) {
        prefetch_part(&a->x, i + 3, 3, end, from, width, r / 4, padded / 4, bf);
        project_tile(x, fn + r * COLUMNS, BK_ALIGN_UP(width, BK_VW), acc + (at * padded + r) * BK_VW, padded * BK_VW);
      }
    }
  }
  for (int64_t i = begin; i < end; i++) {
    float *proj = (float *)bk_cpu_at(&a->proj, i);
    const float *sums = acc + (i - begin) * padded * BK_VW;
    for (int64_t r = 0; r < rows; r++) proj[r] = bk_v_hsum(bk_v_ld(sums, r * BK_VW, false));
    ((float *)bk_tensor_data(&a->rinv))[i] = rms_inverse(bk_v_ld(squares, (i - begin) * BK_VW, false), columns, a->eps);
  }
}

static void project_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const project_job *job = arg;
  float *scratch = job->scratch + (size_t)worker * bk_hc_project_scratch(job->args->fn.shape[0]);
  BK_HC_CALL(project_tokens, bk_cpu_is_bf16(&job->args->x), 1, job, begin, end, scratch);
}

bk_status BK_ISA_NAME(bk_cpu_hc_project)(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_project_args *a = args;
  project_job job = {a, bk_place_data(workspace)};
  int64_t grain = BK_ALIGN_UP((a->x.shape[0] + 7) / 8, 3);
  (void)plan;
  bk_cpu_run(stream, a->x.shape[0], grain < TOKENS ? (grain > 3 ? grain : 3) : TOKENS, project_piece, &job);
  return BK_OK;
}

/* ---- projection, backward ---- */
#define PANEL BK_HC_PANEL
#define GROUP BK_HC_PANEL_TOKENS

typedef struct project_bwd_job {
  const bk_hc_project_bwd_args *args;
  float *scratch, *partials; /* per worker; dfn of each split, [splits][R][K], or NULL for one split */
  int64_t splits;
} project_bwd_job;

/* One worker's scratch: dense blocks, padded with zeros. */
typedef struct panel_scratch {
  float *fn, *dfn;    /* [padded][PANEL] */
  float *x, *dx;      /* [GROUP][PANEL] */
  float *dproj, *back; /* [GROUP][padded], [GROUP] */
} panel_scratch;

static panel_scratch panel_scratch_at(float *base, int64_t padded) {
  panel_scratch s = {.fn = base};
  s.dfn = s.fn + padded * PANEL;
  s.x = s.dfn + padded * PANEL;
  s.dx = s.x + GROUP * PANEL;
  s.dproj = s.dx + GROUP * PANEL;
  s.back = s.dproj + GROUP * padded;
  return s;
}

/* dx = back x + dproj fn for four tokens and three vectors of columns. */
static void panel_dx_tile(const panel_scratch *s, int64_t token, int64_t c, int64_t padded) {
  const float *x = s->x + token * PANEL + c, *dproj = s->dproj + token * padded, *back = s->back + token;
  float *dx = s->dx + token * PANEL + c;
  bk_vf sum[12];
  BK_UNROLL
  for (int t = 0; t < 4; t++) {
    BK_UNROLL
    for (int v = 0; v < 3; v++) sum[t * 3 + v] = bk_v_ld(x + t * PANEL, v * BK_VW, false) * back[t];
  }
  for (int64_t r = 0; r < padded; r++) {
    const float *fn = s->fn + r * PANEL + c;
    bk_vf f0 = bk_v_ld(fn, 0, false), f1 = bk_v_ld(fn, BK_VW, false), f2 = bk_v_ld(fn, 2 * BK_VW, false);
    BK_UNROLL
    for (int t = 0; t < 4; t++) {
      bk_vf d = bk_v_set(dproj[t * padded + r]);
      sum[t * 3] = d * f0 + sum[t * 3];
      sum[t * 3 + 1] = d * f1 + sum[t * 3 + 1];
      sum[t * 3 + 2] = d * f2 + sum[t * 3 + 2];
    }
  }
  BK_UNROLL
  for (int t = 0; t < 4; t++) {
    BK_UNROLL
    for (int v = 0; v < 3; v++) bk_v_st(dx + t * PANEL, v * BK_VW, false, sum[t * 3 + v]);
  }
}

/* dfn += dproj^T x for four rows and three vectors of columns, over the tokens of a group. */
static void panel_dfn_tile(const panel_scratch *s, int64_t tokens, int64_t row, int64_t c, int64_t padded) {
  float *dfn = s->dfn + row * PANEL + c;
  bk_vf sum[12];
  BK_UNROLL
  for (int r = 0; r < 4; r++) sum[r * 3] = sum[r * 3 + 1] = sum[r * 3 + 2] = bk_v_zero();
  for (int64_t i = 0; i < tokens; i++) {
    const float *x = s->x + i * PANEL + c, *dproj = s->dproj + i * padded + row;
    bk_vf x0 = bk_v_ld(x, 0, false), x1 = bk_v_ld(x, BK_VW, false), x2 = bk_v_ld(x, 2 * BK_VW, false);
    BK_UNROLL
    for (int r = 0; r < 4; r++) {
      bk_vf d = bk_v_set(dproj[r]);
      sum[r * 3] = d * x0 + sum[r * 3];
      sum[r * 3 + 1] = d * x1 + sum[r * 3 + 1];
      sum[r * 3 + 2] = d * x2 + sum[r * 3 + 2];
    }
  }
  BK_UNROLL
  for (int r = 0; r < 4; r++) {
    BK_UNROLL
    for (int v = 0; v < 3; v++)
      bk_v_st(dfn + r * PANEL, v * BK_VW, false, sum[r * 3 + v] + bk_v_ld(dfn + r * PANEL, v * BK_VW, false));
  }
}

/* The dproj and the factors of x of a group of tokens; missing ones are zeros. */
static void panel_coefficients(const bk_hc_project_bwd_args *a, const panel_scratch *s, int64_t token, int64_t count,
                               int64_t padded) {
  const float *rinv = bk_tensor_data(&a->rinv), *drinv = bk_tensor_data(&a->drinv);
  int64_t rows = a->fn.shape[0];
  memset(s->dproj, 0, (size_t)(GROUP * padded) * sizeof(float));
  memset(s->back, 0, GROUP * sizeof(float));
  for (int64_t i = 0; i < count; i++) {
    memcpy(s->dproj + i * padded, bk_cpu_at(&a->dproj, token + i), (size_t)rows * sizeof(float));
    s->back[i] = rms_back(rinv[token + i], drinv[token + i], a->x.shape[1]);
  }
}

BK_INLINE void panel_store_dx(const bk_hc_project_bwd_args *a, const panel_scratch *s, int64_t token, int64_t count,
                              int64_t from, int64_t width, const bool bf) {
  for (int64_t i = 0; i < count; i++) {
    char *dx = bk_cpu_at(&a->dx, token + i);
    const float *sum = s->dx + i * PANEL;
#define BODY(count)                                               \
  do {                                                            \
    bk_vf v = bk_v_get(sum, c, false, count);                     \
    if (a->accumulate) v = v + bk_v_get(dx, from + c, bf, count); \
    bk_v_put(dx, from + c, bf, count, v);                         \
  } while (0)
    BK_HC_COLUMNS(width, BODY);
#undef BODY
  }
}

/* dfn (+)= the panel's sums: straight into the gradient, or as the partial of a split. */
static void panel_store_dfn(const project_bwd_job *job, const panel_scratch *s, int64_t split, int64_t from, int64_t width) {
  const bk_tensor *dfn = &job->args->dfn;
  int64_t rows = dfn->shape[0], columns = dfn->shape[1];
  for (int64_t r = 0; r < rows; r++) {
    const float *sum = s->dfn + r * PANEL;
    if (job->partials) {
      memcpy(job->partials + (split * rows + r) * columns + from, sum, (size_t)width * sizeof(float));
      continue;
    }
    float *out = (float *)bk_cpu_at(dfn, r) + from;
    for (int64_t c = 0; c < width; c++) out[c] += sum[c];
  }
}

BK_INLINE void project_bwd_task(const project_bwd_job *job, int64_t task, float *scratch, const bool bf, const int n) {
  const bk_hc_project_bwd_args *a = job->args;
  int64_t rows = a->fn.shape[0], padded = bk_hc_project_rows(rows), tokens = a->x.shape[0];
  int64_t split = task % job->splits, from = task / job->splits * PANEL;
  int64_t width = a->x.shape[1] - from < PANEL ? a->x.shape[1] - from : PANEL;
  int64_t padded_width = BK_ALIGN_UP(width, 3 * BK_VW), end = tokens * (split + 1) / job->splits;
  panel_scratch s = panel_scratch_at(scratch, padded);
  (void)n;
  copy_block(&a->fn, 0, rows, padded, from, width, s.fn, PANEL, false);
  memset(s.dfn, 0, (size_t)(padded * PANEL) * sizeof(float));
  for (int64_t i = tokens * split / job->splits; i < end; i += GROUP) {
    int64_t count = end - i < GROUP ? end - i : GROUP;
    copy_block(&a->x, i, count, BK_ALIGN_UP(count, 4), from, width, s.x, PANEL, bf);
    panel_coefficients(a, &s, i, count, padded);
    if (bk_tensor_present(&a->dx)) {
      for (int64_t t = 0; t < count; t += 4)
        for (int64_t c = 0; c < padded_width; c += 3 * BK_VW) {
          int64_t part = c / (3 * BK_VW), parts = padded_width / (3 * BK_VW);
          prefetch_part(&a->x, i + GROUP + t, 4, end, from, width, part, parts, bf);
          prefetch_part(&a->dx, i + GROUP + t, 4, end, from, width, part, parts, bf);
          panel_dx_tile(&s, t, c, padded);
        }
      panel_store_dx(a, &s, i, count, from, width, bf);
    }
    if (bk_tensor_present(&a->dfn))
      for (int64_t c = 0; c < padded_width; c += 3 * BK_VW)
        for (int64_t r = 0; r < padded; r += 4) panel_dfn_tile(&s, count, r, c, padded);
  }
  if (bk_tensor_present(&a->dfn)) panel_store_dfn(job, &s, split, from, width);
}

static void project_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const project_bwd_job *job = arg;
  float *scratch = job->scratch + (size_t)worker * bk_hc_panel_scratch(job->args->fn.shape[0]);
  for (int64_t task = begin; task < end; task++)
    BK_HC_CALL(project_bwd_task, bk_cpu_is_bf16(&job->args->x), 1, job, task, scratch);
}

static void dfn_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const project_bwd_job *job = arg;
  const bk_tensor *dfn = &job->args->dfn;
  int64_t columns = dfn->shape[1], all = dfn->shape[0] * columns;
  (void)worker;
  for (int64_t r = begin; r < end; r++) {
    float *out = (float *)bk_cpu_at(dfn, r);
    for (int64_t s = 0; s < job->splits; s++) {
      const float *part = job->partials + s * all + r * columns;
      for (int64_t c = 0; c < columns; c++) out[c] += part[c];
    }
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_project_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                             bk_place workspace) {
  const bk_hc_project_bwd_args *a = args;
  project_bwd_job job = {.args = a, .scratch = bk_place_data(workspace)};
  (void)plan;
  job.splits = bk_hc_splits(a->x.shape[0], a->x.shape[1]);
  if (job.splits > 1)
    job.partials = job.scratch + (size_t)bk_cpu_workers(stream->device) * bk_hc_panel_scratch(a->fn.shape[0]);
  bk_cpu_run(stream, bk_hc_panels(a->x.shape[1]) * job.splits, 1, project_bwd_piece, &job);
  if (job.splits > 1 && bk_tensor_present(&a->dfn)) bk_cpu_run(stream, a->dfn.shape[0], 1, dfn_piece, &job);
  return BK_OK;
}
