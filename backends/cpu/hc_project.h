/* hc_project: the projection of rows on fn with their RMS, and its backward, for blocks of
 * tokens. For templates only: the kernels of the projection alone and those fused with their
 * neighbours call the same functions, so both give the same bits.
 *
 * All three products run on register tiles of PROJECT_T rows times 3 vectors, one operand
 * broadcast, the other in vectors:
 *   proj[t][r] = sum_c x[t][c] fn[r][c]     lanes are rows of fn: no sums across lanes, for any
 *                                           number of columns
 *   dx[t][c] = back[t] x[t][c] + sum_r dproj[t][r] fn[r][c]      lanes are columns
 *   dfn[r][c] = sum_t dproj[t][r] x[t][c]                        lanes are columns
 * fn is packed once per launch (bk_hc_pack_*): rows of fn are a power of two apart as a rule and
 * would share a few cache sets. A token's sums do not depend on its neighbours in a tile. dfn is
 * summed over groups of BK_HC_GROUP tokens of a piece, and the pieces' sums at the end, in
 * ascending order. */
#ifndef BK_CPU_HC_PROJECT_H
#define BK_CPU_HC_PROJECT_H

#include "backends/cpu/hc_streams.h"

/* Vectors over rows of fn: never more than 8 lanes, since 24 rows (mhc, n = 4) are three of
 * them. */
#if BK_VW >= 8
#define ROW_LANES 8
typedef float row_vec __attribute__((vector_size(32)));
BK_INLINE row_vec row_fma(row_vec a, row_vec b, row_vec c) {
  return (row_vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#else
#define ROW_LANES BK_VW
typedef bk_vf row_vec;
BK_INLINE row_vec row_fma(row_vec a, row_vec b, row_vec c) { return bk_v_fma(a, b, c); }
#endif
BK_INLINE row_vec row_ld(const float *p) {
  row_vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
BK_INLINE void row_st(float *p, row_vec v) { memcpy(p, &v, sizeof v); }

#if defined(__GNUC__) && !defined(__clang__)
#define BK_UNROLL_8 _Pragma("GCC unroll 8")
#else
#define BK_UNROLL_8
#endif

#if BK_VW == 16
#define PROJECT_T 8 /* 32 registers */
#elif BK_VW == 8
#define PROJECT_T 4
#else
#define PROJECT_T 4
#endif
#define PROJECT_COLUMNS 128 /* of a panel of the forward */
#define PANEL (3 * BK_VW)   /* columns of a panel of the backward */

static inline int64_t project_panels(int64_t columns) { return (columns + PANEL - 1) / PANEL; }

/* ---- packing; pieces of columns, shared by the workers ---- */
typedef struct pack_job {
  const bk_tensor *fn;
  float *out;
} pack_job;

/* Rows of the group that begins at `row`: bk_hc_row_group at most, padded to 8. */
static inline int64_t group_rows(int64_t padded, int64_t row) {
  return padded - row < BK_HC_ROW_GROUP ? padded - row : BK_HC_ROW_GROUP;
}

/* [group][column][row of the group]; missing rows are zeros. */
static inline void pack_transposed(void *arg, int64_t begin, int64_t end, int worker) {
  const pack_job *job = arg;
  int64_t rows = job->fn->shape[0], columns = job->fn->shape[1], padded = bk_hc_project_rows(rows);
  (void)worker;
  for (int64_t g = 0; g < padded; g += BK_HC_ROW_GROUP) {
    int64_t wide = group_rows(padded, g);
    float *out = job->out + g * columns;
    for (int64_t r = 0; r < wide; r += 4) {
      const float *in[4];
      for (int i = 0; i < 4; i++)
        in[i] = g + r + i < rows ? (const float *)bk_cpu_at(job->fn, g + r + i) : NULL;
      int64_t c = begin;
      for (; in[3] && c + 4 <= end; c += 4) {
        bk_v4 v[4];
        for (int i = 0; i < 4; i++) v[i] = bk_v4_ld(in[i], c, false);
        bk_v4_transpose(v);
        for (int i = 0; i < 4; i++) memcpy(out + (c + i) * wide + r, &v[i], sizeof v[i]);
      }
      for (; c < end; c++)
        for (int i = 0; i < 4; i++) out[c * wide + r + i] = in[i] ? in[i][c] : 0;
    }
  }
}

/* [panel][row][PANEL]; missing columns are zeros. Pieces of panels. */
static inline void pack_panels(void *arg, int64_t begin, int64_t end, int worker) {
  const pack_job *job = arg;
  int64_t rows = job->fn->shape[0], columns = job->fn->shape[1];
  (void)worker;
  for (int64_t p = begin; p < end; p++) {
    int64_t from = p * PANEL, width = columns - from < PANEL ? columns - from : PANEL;
    float *out = job->out + p * rows * PANEL;
    for (int64_t r = 0; r < rows; r++, out += PANEL) {
      const float *in = (const float *)bk_cpu_at(job->fn, r) + from;
      for (int64_t c = 0; c < PANEL; c++) out[c] = c < width ? in[c] : 0;
    }
  }
}

static inline void project_pack(const bk_stream *stream, const bk_tensor *fn, float *out) {
  const pack_job job = {fn, out};
  bk_cpu_run(stream, fn->shape[1], 128, pack_transposed, &job);
}
static inline void project_bwd_pack(const bk_stream *stream, const bk_tensor *fn, float *out) {
  const pack_job job = {fn, out};
  bk_cpu_run(stream, project_panels(fn->shape[1]), 8, pack_panels, &job);
}

/* ---- forward ---- */
static inline float rms_inverse(bk_vf squares, int64_t columns, double eps) {
  return (float)(1 / sqrt((double)bk_v_hsum(squares) / (double)columns + eps));
}

/* acc[t][..] += x[t] fn for PROJECT_T tokens and `vectors` vectors of rows; columns of fn are
 * `step` apart, rows of acc `stride`. Asks for AHEAD_LINES lines of `next` a column. */
#define AHEAD_LINES (PROJECT_T / 4)
BK_INLINE void project_tile(const float *const *x, const float *fn, int64_t step, int64_t width,
                            float *acc, int64_t stride, const char *next, const int vectors) {
  row_vec sum[PROJECT_T * 3];
  BK_UNROLL_8
  for (int t = 0; t < PROJECT_T; t++) {
    BK_UNROLL
    for (int v = 0; v < vectors; v++) sum[t * 3 + v] = row_ld(acc + t * stride + v * ROW_LANES);
  }
  for (int64_t c = 0; c < width; c++, fn += step) {
    row_vec f[3];
    for (int i = 0; i < AHEAD_LINES; i++, next += 64) __builtin_prefetch(next, 0, 2);
    BK_UNROLL
    for (int v = 0; v < vectors; v++) f[v] = row_ld(fn + v * ROW_LANES);
    BK_UNROLL_8
    for (int t = 0; t < PROJECT_T; t++) {
      row_vec a = x[t][c] - (row_vec){0};
      BK_UNROLL
      for (int v = 0; v < vectors; v++) sum[t * 3 + v] = row_fma(a, f[v], sum[t * 3 + v]);
    }
  }
  BK_UNROLL_8
  for (int t = 0; t < PROJECT_T; t++) {
    BK_UNROLL
    for (int v = 0; v < vectors; v++) row_st(acc + t * stride + v * ROW_LANES, sum[t * 3 + v]);
  }
}

#define TILES(vectors)                                                                          \
  BK_OUTLINE void project_tiles_##vectors(const float *const *x, const float *fn, int64_t step, \
                                          int64_t width, float *acc, int64_t stride,            \
                                          ahead *next) {                                        \
    for (int t = 0; t < BK_HC_BLOCK; t += PROJECT_T)                                            \
      project_tile(x + t, fn, step, width, acc + t * stride, stride,                            \
                   ahead_take(next, AHEAD_LINES * width, fn), vectors);                         \
  }
TILES(1)
TILES(2)
TILES(3)
#undef TILES

/* sum + squares of `width` columns, four running sums. */
BK_INLINE bk_vf project_squares(const float *x, int64_t width, bk_vf sum) {
  bk_vf s[4] = {sum, bk_v_zero(), bk_v_zero(), bk_v_zero()};
  int64_t c = 0;
  for (; c + 4 * BK_VW <= width; c += 4 * BK_VW) {
    BK_UNROLL
    for (int i = 0; i < 4; i++) {
      bk_vf v = bk_v_ld(x, c + i * BK_VW, false);
      s[i] = bk_v_fma(v, v, s[i]);
    }
  }
  for (; c < width; c += BK_VW) {
    bk_vf v = bk_v_get(x, c, false, width - c);
    s[0] = bk_v_fma(v, v, s[0]);
  }
  return (s[0] + s[1]) + (s[2] + s[3]);
}

/* proj and rinv of `count` tokens (BK_HC_BLOCK at most) from `token` on. packed: fn by
 * project_pack. Asks for `next` meanwhile. */
BK_INLINE void project_block(const bk_hc_project_args *a, const float *packed, int64_t token,
                             int64_t count, ahead *next, const bool bf) {
  int64_t rows = a->fn.shape[0], padded = bk_hc_project_rows(rows), columns = a->x.shape[1];
  float acc[BK_HC_BLOCK * BK_HC_MAX_ROWS], wide[BK_HC_BLOCK * PROJECT_COLUMNS];
  bk_vf squares[BK_HC_BLOCK];
  memset(acc, 0, (size_t)(BK_HC_BLOCK * padded) * sizeof(float));
  for (int t = 0; t < BK_HC_BLOCK; t++) squares[t] = bk_v_zero();
  for (int64_t from = 0; from < columns; from += PROJECT_COLUMNS) {
    int64_t width = columns - from < PROJECT_COLUMNS ? columns - from : PROJECT_COLUMNS;
    const float *x[BK_HC_BLOCK];
    for (int64_t t = 0; t < BK_HC_BLOCK; t++) { /* a missing token is the last one again */
      const char *row = bk_cpu_at(&a->x, token + (t < count ? t : count - 1)) + from * (bf ? 2 : 4);
      x[t] = bf ? wide + t * PROJECT_COLUMNS : (const float *)row;
      for (int64_t c = 0; bf && c < width; c += BK_VW)
        bk_v_put(wide + t * PROJECT_COLUMNS, c, false, width - c,
                 bk_v_get(row, c, true, width - c));
      if (t < count) squares[t] = project_squares(x[t], width, squares[t]);
    }
    for (int64_t g = 0; g < padded; g += BK_HC_ROW_GROUP) {
      int64_t step = group_rows(padded, g);
      const float *fn = packed + g * columns + from * step;
      for (int64_t r = 0; r < step; r += 3 * ROW_LANES) {
        if (step - r >= 3 * ROW_LANES)
          project_tiles_3(x, fn + r, step, width, acc + g + r, padded, next);
        else if (step - r == 2 * ROW_LANES)
          project_tiles_2(x, fn + r, step, width, acc + g + r, padded, next);
        else project_tiles_1(x, fn + r, step, width, acc + g + r, padded, next);
      }
    }
  }
  for (int64_t t = 0; t < count; t++) {
    memcpy(bk_cpu_at(&a->proj, token + t), acc + t * padded, (size_t)rows * sizeof(float));
    ((float *)bk_tensor_data(&a->rinv))[token + t] = rms_inverse(squares[t], columns, a->eps);
  }
}

/* ---- backward ---- */
/* dx (+)= -rinv^3 drinv / K x */
static inline float rms_back(float rinv, float drinv, int64_t columns) {
  return (float)(-(double)rinv * rinv * rinv * drinv / (double)columns);
}

typedef struct project_bwd {
  const bk_hc_project_bwd_args *args;
  const float *packed; /* fn, by project_bwd_pack */
  /* dfn of each piece, [piece][panel][padded rows][PANEL]; columns past the last are zeros */
  float *partials;
  int64_t rows, padded, columns;
} project_bwd;

static inline project_bwd project_bwd_of(const bk_hc_project_bwd_args *a, float *workspace) {
  project_bwd job = {.args = a, .rows = a->fn.shape[0], .columns = a->x.shape[1]};
  job.padded = bk_hc_project_rows(job.rows);
  job.packed = workspace;
  job.partials = workspace + bk_hc_panel_floats(job.rows, job.columns);
  return job;
}
static inline int64_t project_bwd_partial(const project_bwd *job) {
  return project_panels(job->columns) * job->padded * PANEL;
}

/* One group's operands, dense and padded with zeros. */
typedef struct project_group {
  float x[BK_HC_GROUP * PANEL];
  float dproj[BK_HC_GROUP * BK_HC_MAX_ROWS], back[BK_HC_GROUP]; /* dproj [token][padded] */
} project_group;

BK_INLINE void panel_widen(const bk_tensor *x, int64_t token, int64_t count, int64_t from,
                           int64_t width, float *out, const bool bf) {
  for (int64_t t = 0; t < count; t++, out += PANEL) {
    const char *in = bk_cpu_at(x, token + t);
    if (width == PANEL) {
      bk_vf v0 = bk_v_ld(in, from, bf), v1 = bk_v_ld(in, from + BK_VW, bf),
            v2 = bk_v_ld(in, from + 2 * BK_VW, bf);
      bk_v_st(out, 0, false, v0);
      bk_v_st(out, BK_VW, false, v1);
      bk_v_st(out, 2 * BK_VW, false, v2);
    } else {
      for (int64_t c = 0; c < PANEL; c += BK_VW)
        bk_v_st(out, c, false, c < width ? bk_v_get(in, from + c, bf, width - c) : bk_v_zero());
    }
  }
}

/* row (+)= sum for the columns of a panel. */
BK_INLINE void panel_store(char *row, int64_t from, int64_t width, const bk_vf *sum,
                           bool accumulate, const bool bf) {
  if (width == PANEL) {
    BK_UNROLL
    for (int v = 0; v < 3; v++) {
      bk_vf value = accumulate ? sum[v] + bk_v_ld(row, from + v * BK_VW, bf) : sum[v];
      bk_v_st(row, from + v * BK_VW, bf, value);
    }
    return;
  }
  for (int64_t c = 0; c < width; c += BK_VW) {
    bk_vf value = c == 0 ? sum[0] : c == BK_VW ? sum[1] : sum[2];
    if (accumulate) value = value + bk_v_get(row, from + c, bf, width - c);
    bk_v_put(row, from + c, bf, width - c, value);
  }
}

/* dx of PROJECT_T tokens, the first `count` of them stored. */
BK_INLINE void panel_dx(const project_bwd *job, const project_group *s, const float *fn,
                        int64_t token, int64_t at, int64_t count, int64_t from, int64_t width,
                        const bool bf) {
  const float *x = s->x + at * PANEL, *dproj = s->dproj + at * job->padded, *back = s->back + at;
  const bk_tensor *dx = &job->args->dx;
  bk_vf sum[PROJECT_T * 3];
  BK_UNROLL_8
  for (int t = 0; t < PROJECT_T; t++) {
    BK_UNROLL
    for (int v = 0; v < 3; v++) sum[t * 3 + v] = bk_v_ld(x + t * PANEL, v * BK_VW, false) * back[t];
  }
  for (int64_t r = 0; r < job->rows; r++, fn += PANEL) {
    bk_vf f0 = bk_v_ld(fn, 0, false), f1 = bk_v_ld(fn, BK_VW, false),
          f2 = bk_v_ld(fn, 2 * BK_VW, false);
    BK_UNROLL_8
    for (int t = 0; t < PROJECT_T; t++) {
      bk_vf d = bk_v_set(dproj[t * job->padded + r]);
      sum[t * 3] = bk_v_fma(d, f0, sum[t * 3]);
      sum[t * 3 + 1] = bk_v_fma(d, f1, sum[t * 3 + 1]);
      sum[t * 3 + 2] = bk_v_fma(d, f2, sum[t * 3 + 2]);
    }
  }
  BK_UNROLL_8
  for (int t = 0; t < PROJECT_T; t++) {
    if (t >= count) break;
    panel_store(bk_cpu_at(dx, token + at + t), from, width, sum + t * 3, job->args->accumulate, bf);
  }
}

/* dfn += dproj^T x for PROJECT_T rows over `tokens` tokens; starts from zero if `first`. */
BK_INLINE void panel_dfn(const project_group *s, int64_t tokens, int64_t row, int64_t padded,
                         bool first, float *dfn) {
  bk_vf sum[PROJECT_T * 3];
  BK_UNROLL_8
  for (int r = 0; r < PROJECT_T; r++) {
    BK_UNROLL
    for (int v = 0; v < 3; v++)
      sum[r * 3 + v] = first ? bk_v_zero() : bk_v_ld(dfn + r * PANEL, v * BK_VW, false);
  }
  const float *x = s->x, *dproj = s->dproj + row;
  for (int64_t i = 0; i < tokens; i++, x += PANEL, dproj += padded) {
    bk_vf x0 = bk_v_ld(x, 0, false), x1 = bk_v_ld(x, BK_VW, false),
          x2 = bk_v_ld(x, 2 * BK_VW, false);
    BK_UNROLL_8
    for (int r = 0; r < PROJECT_T; r++) {
      bk_vf d = bk_v_set(dproj[r]);
      sum[r * 3] = bk_v_fma(d, x0, sum[r * 3]);
      sum[r * 3 + 1] = bk_v_fma(d, x1, sum[r * 3 + 1]);
      sum[r * 3 + 2] = bk_v_fma(d, x2, sum[r * 3 + 2]);
    }
  }
  BK_UNROLL_8
  for (int r = 0; r < PROJECT_T; r++) {
    BK_UNROLL
    for (int v = 0; v < 3; v++) bk_v_st(dfn + r * PANEL, v * BK_VW, false, sum[r * 3 + v]);
  }
}

/* The dproj and the factors of x of a group; missing tokens are zeros. */
static inline void project_group_begin(const project_bwd *job, int64_t token, int64_t count,
                                       project_group *s) {
  const bk_hc_project_bwd_args *a = job->args;
  const float *rinv = bk_tensor_data(&a->rinv), *drinv = bk_tensor_data(&a->drinv);
  memset(s->dproj, 0, (size_t)(BK_HC_GROUP * job->padded) * sizeof(float));
  memset(s->back, 0, sizeof s->back);
  if (count < BK_HC_GROUP) memset(s->x, 0, sizeof s->x);
  for (int64_t t = 0; t < count; t++) {
    memcpy(s->dproj + t * job->padded, bk_cpu_at(&a->dproj, token + t),
           (size_t)job->rows * sizeof(float));
    s->back[t] = rms_back(rinv[token + t], drinv[token + t], job->columns);
  }
}

/* dx and dfn of a group: `count` tokens (BK_HC_GROUP at most) from `token` on, the `first` of
 * its piece or not; dfn: the piece's sums. Asks for `next` meanwhile. */
BK_INLINE void project_bwd_group(const project_bwd *job, int64_t token, int64_t count, bool first,
                                 float *dfn, ahead *next, const bool bf) {
  const bk_hc_project_bwd_args *a = job->args;
  bool with_dx = bk_tensor_present(&a->dx), with_dfn = bk_tensor_present(&a->dfn);
  const float *fn = job->packed;
  project_group s;
  project_group_begin(job, token, count, &s);
  ahead_share(next, project_panels(job->columns) *
                        ((with_dx ? count : 0) + (with_dfn ? job->padded : 0)) / PROJECT_T);
  for (int64_t from = 0; from < job->columns;
       from += PANEL, fn += job->rows * PANEL, dfn += job->padded * PANEL) {
    int64_t width = job->columns - from < PANEL ? job->columns - from : PANEL;
    panel_widen(&a->x, token, count, from, width, s.x, bf);
    for (int64_t t = 0; with_dx && t < count; t += PROJECT_T) {
      ahead_step(next);
      panel_dx(job, &s, fn, token, t, count - t, from, width, bf);
    }
    for (int64_t r = 0; with_dfn && r < job->padded; r += PROJECT_T) {
      ahead_step(next);
      panel_dfn(&s, count, r, job->padded, first, dfn + r * PANEL);
    }
  }
}

/* Pieces of panels: dfn += the sum of the token pieces' sums. */
static inline void project_dfn_panels(void *arg, int64_t begin, int64_t end, int worker) {
  const project_bwd *job = arg;
  int64_t all = project_bwd_partial(job), pieces = bk_hc_pieces(job->args->x.shape[0]);
  (void)worker;
  for (int64_t p = begin; p < end; p++) {
    int64_t from = p * PANEL, width = job->columns - from < PANEL ? job->columns - from : PANEL;
    for (int64_t r = 0; r < job->rows; r++) {
      const float *in = job->partials + (p * job->padded + r) * PANEL;
      float *out = (float *)bk_cpu_at(&job->args->dfn, r);
      for (int64_t c = 0; c < PANEL && c < width; c += BK_VW) {
        bk_vf sum = bk_v_ld(in, c, false);
        for (int64_t i = 1; i < pieces; i++) sum = sum + bk_v_ld(in + i * all, c, false);
        bk_v_put(out, from + c, false, width - c, sum + bk_v_get(out, from + c, false, width - c));
      }
    }
  }
}
static inline void project_bwd_finish(const bk_stream *stream, const project_bwd *job) {
  if (bk_tensor_present(&job->args->dfn))
    bk_cpu_run(stream, project_panels(job->columns), 4, project_dfn_panels, job);
}

#endif
