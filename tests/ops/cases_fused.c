/* Cases of the composed ops on streams: projection + norm, pre + norm, post + res, merge + mix,
 * and the rebuild of a block. On `ref` they run composed, so these cases also hold a backend's
 * fused kernels to the composed definition. */
#include "ops/plan.h"
#include "tests/ops/harness.h"

#include <stdio.h>

typedef struct shape {
  int64_t tokens, n, width;
  int pad, variant;
} shape;

static shape shape_of(const harness *h, const int *level) {
  shape s = {.n = level[2] + 1,
             .width = harness_widths[level[1]],
             .pad = level[3] * HARNESS_PAD,
             .variant = level[4]};
  s.tokens = harness_clip_tokens(h, harness_tokens[level[0]], s.n * s.width * 2);
  return s;
}

#define SHAPE_FORMAT "N=%lld,n=%lld,C=%lld,%s"
#define SHAPE_ARGS(s) \
  (long long)(s).tokens, (long long)(s).n, (long long)(s).width, (s).pad ? "strided" : "dense"
#define RINV(field) \
  { field, FILL_UNIFORM, 0.5, 2, NULL, NULL }

static fill grows(const char *field, bool accumulate) {
  return (fill){field, accumulate ? FILL_NORMAL : FILL_POISON, 0, 1, NULL, NULL};
}

/* ---- projection ---- */

static void project_shape(harness *h, shape s, int64_t rows) {
  int64_t k = s.n * s.width;
  bk_tensor x = h2(h->st, s.pad, s.tokens, k), fn = h2(h->ct, s.pad, rows, k),
            proj = h2(h->ct, s.pad, s.tokens, rows);
  bk_tensor rinv = h1(h->ct, s.tokens);
  bk_hc_project_args a = {x, fn, proj, rinv, s.variant ? 1e-20 : 1e-6};
  harness_case(h, BK_OP_HC_PROJECT, &a, NULL, NULL, "eps=%g,R=%lld," SHAPE_FORMAT, a.eps,
               (long long)rows, SHAPE_ARGS(s));
  bk_hc_project_bwd_args b = {x, fn, rinv, proj, rinv, x, fn, s.variant & 1};
  if (s.variant == 2) b.dfn = (bk_tensor){0};
  if (s.variant == 3) b.dx = (bk_tensor){0};
  const fill fills[] = {
      RINV("rinv"), {"drinv", FILL_NORMAL, 0, 10, NULL, NULL}, FILL_END, FILL_END};
  fill with_dx[] = {fills[0], fills[1], grows("dx", b.accumulate), FILL_END};
  harness_case(h, BK_OP_HC_PROJECT_BWD, &b, s.variant == 3 ? fills : with_dx, NULL,
               "variant=%d,R=%lld," SHAPE_FORMAT, s.variant, (long long)rows, SHAPE_ARGS(s));
}
static void project_case(harness *h, const int *level) {
  shape s = shape_of(h, level);
  project_shape(h, s, s.n * (s.n + 2));
}
/* Rows aligned to 16 bytes, some with gaps, more tokens and channels than a block has, and parts
 * of one left over. */
static void project_aligned(harness *h) {
  project_shape(h, (shape){.tokens = 257, .n = 4, .width = 74, .pad = 8, .variant = 1}, 24);
  project_shape(h, (shape){.tokens = 127, .n = 4, .width = 74, .variant = 0}, 32);
}

/* Long rows: several slices of K, each of several steps, and ends that fill nothing. */
static void long_project_case(harness *h, int64_t tokens, int64_t k) {
  const int64_t rows = 24;
  bk_hc_project_args a = {h2(h->st, 0, tokens, k), h2(h->ct, 0, rows, k),
                          h2(h->ct, 0, tokens, rows), h1(h->ct, tokens), 1e-6};
  harness_case(h, BK_OP_HC_PROJECT, &a, NULL, NULL, "R=%lld,N=%lld,K=%lld", (long long)rows,
               (long long)tokens, (long long)k);
}

/* ---- pre + norm ---- */

static bk_status derive_pre_norm(harness *h, void *args) {
  bk_hc_pre_norm_bwd_args *a = args;
  bk_buffer *scratch = NULL;
  BK_TRY(bk_buffer_alloc(h->ref, bk_tensor_bytes(&a->dh), BK_MEM_WORKSPACE, &scratch));
  bk_tensor normed = a->dh;
  normed.buffer = scratch;
  normed.offset = 0;
  bk_hc_pre_norm_args forward = {a->x, a->pre, a->w, a->y, normed, a->rstd, 1e-6};
  bk_status status = bk_op_run(h->ref_stream, BK_OP_HC_PRE_NORM, &forward);
  bk_buffer_free(scratch);
  return status;
}

static void pre_norm_case(harness *h, const int *level) {
  shape s = shape_of(h, level);
  bk_tensor wide = h3(h->st, s.pad, s.tokens, s.n, s.width),
            narrow = h2(h->st, s.pad, s.tokens, s.width);
  bk_tensor gates = h2(h->ct, s.pad, s.tokens, s.n), w = h1(h->ct, s.width),
            rstd = h1(h->ct, s.tokens);
  bk_hc_pre_norm_args a = {wide, gates, w, narrow, narrow, rstd, 1e-6};
  harness_case(h, BK_OP_HC_PRE_NORM, &a, NULL, NULL, SHAPE_FORMAT, SHAPE_ARGS(s));
  bk_hc_pre_norm_bwd_args b = {wide, gates, w, narrow, rstd, narrow, wide, gates, w, s.variant & 1};
  const fill fills[] = {grows("dx", b.accumulate), RINV("rstd"), FILL_END};
  /* With one stream the norm takes the gate out again: its gradient is all cancellation, so y is
   * something else there. */
  harness_case(h, BK_OP_HC_PRE_NORM_BWD, &b, fills, s.n == 1 ? NULL : derive_pre_norm,
               "acc=%d," SHAPE_FORMAT, b.accumulate, SHAPE_ARGS(s));
}

/* ---- post + res ---- */

static void post_res_case(harness *h, const int *level) {
  shape s = shape_of(h, level);
  bk_tensor wide = h3(h->st, s.pad, s.tokens, s.n, s.width),
            narrow = h2(h->st, s.pad, s.tokens, s.width);
  bk_tensor gates = h2(h->ct, s.pad, s.tokens, s.n), comb = h_blocks(h->ct, s.pad, s.tokens, s.n),
            none = {0};
  bool mixes = s.variant & 1, inplace = s.variant & 2;
  bk_hc_post_res_args a = {wide, narrow, gates, mixes ? comb : none, wide};
  harness_case(h, BK_OP_HC_POST_RES, &a, NULL, NULL, "comb=%d," SHAPE_FORMAT, mixes, SHAPE_ARGS(s));
  bk_hc_post_res_bwd_args b = {wide, narrow, gates, a.comb, wide, wide, narrow, gates, a.comb};
  const fill fills[] = {{"dx", FILL_INPLACE, 0, 0, "dout", NULL}, FILL_END};
  harness_case(h, BK_OP_HC_POST_RES_BWD, &b, inplace ? fills : NULL, NULL,
               "comb=%d,inplace=%d," SHAPE_FORMAT, mixes, inplace, SHAPE_ARGS(s));
}

/* ---- merge + mix ---- */

static const bk_hc_kind kinds[] = {BK_HC_MHC, BK_HC_MHC_LITE, BK_HC_IHC, BK_HC_HC};
static const char *const kind_names[] = {"plain", "hc", "mhc", "mhc_lite", "ihc", "kromhc", "head"};

/* Everything that a merge_mix case is made of. */
typedef struct mix {
  bk_hc_kind kind;
  int n;
  shape s;
  bk_tensor wide, flat, narrow, fn, proj, rinv, scale, base, gates, comb, w, rstd;
} mix;

/* Streams that can also be seen as rows of the projection: [N, nC], for hc [N n, C]. */
static mix mix_for(const harness *h, bk_hc_kind kind, shape s) {
  mix m = {.kind = kind, .s = s};
  int64_t tokens, width = m.s.width;
  m.n = m.kind == BK_HC_MHC_LITE && m.s.n > 5 ? 5 : (int)m.s.n;
  m.s.n = m.n;
  tokens = m.s.tokens;
  int64_t per_token = m.kind == BK_HC_HC ? m.n : 1, rows = tokens * per_token,
          columns = m.n / per_token * width;
  m.flat = h2(h->st, m.s.pad, rows, columns);
  m.wide = h3(h->st, 0, tokens, m.n, width);
  m.wide.stride[1] = m.kind == BK_HC_HC ? m.flat.stride[0] : width;
  m.wide.stride[0] = m.flat.stride[0] * per_token;
  m.narrow = h2(h->st, m.s.pad, tokens, width);
  m.fn = h2(h->ct, 0, bk_hc_rows(m.kind, m.n), columns);
  m.proj = h2(h->ct, m.s.pad, rows, bk_hc_rows(m.kind, m.n));
  m.rinv = h1(h->ct, rows);
  m.scale = h1(h->ct, bk_hc_scale_count(m.kind));
  m.base = h1(h->ct, bk_hc_base_count(m.kind, m.n));
  m.gates = h2(h->ct, m.s.pad, tokens, m.n);
  if (m.kind != BK_HC_IHC) m.comb = h_blocks(h->ct, m.s.pad, tokens, m.n);
  m.w = h1(h->ct, width);
  m.rstd = h1(h->ct, tokens);
  return m;
}

static mix mix_of(const harness *h, const int *level) {
  return mix_for(h, kinds[level[4]],
                 shape_of(h, (const int[]){level[0], level[1], level[2], level[3], 0}));
}

/* fn small enough for logits of order 1, as the model has them. */
#define SMALL_FN \
  { "project.fn", FILL_NORMAL, 0, 0.02, NULL, NULL }

static void merge_mix_run(harness *h, mix m) {
  bk_hc_merge_mix_args a = {
      .merge = {m.wide, m.narrow, m.gates, m.comb, m.wide},
      .project = {m.flat, m.fn, m.proj, m.rinv, 1e-6},
      .maps = {m.proj, m.rinv, m.scale, m.base, m.gates, m.gates, m.comb, m.kind, m.n, 20, 0},
      .pre_norm = {m.wide, m.gates, m.w, m.narrow, m.narrow, m.rstd, 1e-6}};
  const fill fills[] = {SMALL_FN,
                        {"project.x", FILL_ALIAS, 0, 0, "merge.out", NULL},
                        {"pre_norm.x", FILL_ALIAS, 0, 0, "merge.out", NULL},
                        {"maps.proj", FILL_ALIAS, 0, 0, "project.proj", NULL},
                        {"maps.rinv", FILL_ALIAS, 0, 0, "project.rinv", NULL},
                        {"pre_norm.pre", FILL_ALIAS, 0, 0, "maps.pre", NULL},
                        FILL_END};
  harness_case(h, BK_OP_HC_MERGE_MIX, &a, fills, NULL, "%s," SHAPE_FORMAT, kind_names[m.kind],
               SHAPE_ARGS(m.s));
}

static void merge_mix_case(harness *h, const int *level) { merge_mix_run(h, mix_of(h, level)); }

/* Several slices of the channels, each of several steps, and ends that fill nothing. */
static void long_merge_mix_cases(harness *h) {
  const shape s = {.tokens = 67, .n = 4, .width = 1064};
  merge_mix_run(h, mix_for(h, BK_HC_MHC, s));
  merge_mix_run(h, mix_for(h, BK_HC_IHC, s));
  merge_mix_run(h, mix_for(h, BK_HC_MHC, (shape){.tokens = 5, .n = 4, .width = 4104}));
}

/* old: scale of the gradient that the mix adds to. */
static void merge_mix_bwd_run(harness *h, mix m, double old) {
  bk_hc_merge_mix_bwd_args a = {
      .pre_norm = {m.wide, m.gates, m.w, m.narrow, m.rstd, m.narrow, m.wide, m.gates, m.w, true},
      .maps = {m.proj, m.rinv, m.scale, m.base, m.gates, m.gates, m.comb, m.proj, m.rinv, m.scale,
               m.base, m.kind, m.n, 20, 0},
      .project = {m.flat, m.fn, m.rinv, m.proj, m.rinv, m.flat, m.fn, true},
      .merge = {m.wide, m.narrow, m.gates, m.comb, m.wide, m.wide, m.narrow, m.gates, m.comb}};
  const fill fills[] = {SMALL_FN,
                        {"pre_norm.dx", FILL_NORMAL, 0, old, NULL, NULL},
                        RINV("maps.rinv"),
                        RINV("pre_norm.rstd"),
                        {"project.x", FILL_ALIAS, 0, 0, "pre_norm.x", NULL},
                        {"project.rinv", FILL_ALIAS, 0, 0, "maps.rinv", NULL},
                        {"maps.dpre", FILL_ALIAS, 0, 0, "pre_norm.dpre", NULL},
                        {"project.dproj", FILL_ALIAS, 0, 0, "maps.dproj", NULL},
                        {"project.drinv", FILL_ALIAS, 0, 0, "maps.drinv", NULL},
                        {"project.dx", FILL_ALIAS, 0, 0, "pre_norm.dx", NULL},
                        {"merge.dout", FILL_ALIAS, 0, 0, "pre_norm.dx", NULL},
                        FILL_END};
  harness_case(h, BK_OP_HC_MERGE_MIX_BWD, &a, fills, NULL, "%s%s," SHAPE_FORMAT, kind_names[m.kind],
               old < 1 ? ",long" : "", SHAPE_ARGS(m.s));
}

static void merge_mix_bwd_case(harness *h, const int *level) {
  merge_mix_bwd_run(h, mix_of(h, level), 1);
}

/* Several chunks of tokens, pieces of channels across two streams, ends that fill nothing; what
 * is added outweighs what was there. */
static void long_merge_mix_bwd_cases(harness *h) {
  merge_mix_bwd_run(h, mix_for(h, BK_HC_MHC, (shape){.tokens = 147, .n = 4, .width = 136}), 0.01);
  merge_mix_bwd_run(h, mix_for(h, BK_HC_MHC_LITE, (shape){.tokens = 147, .n = 3, .width = 136}),
                    0.01);
}

/* No backend fuses its maps, so the composed defaults serve; n a power of two. */
static void kromhc_cases(harness *h) {
  const shape shapes[] = {{.tokens = 13, .n = 4, .width = 136},
                          {.tokens = 3, .n = 8, .width = 31},
                          {.tokens = 5, .n = 2, .width = 64},
                          {.tokens = 5, .n = 1, .width = 31}};
  for (size_t i = 0; i < BK_COUNT(shapes); i++) {
    merge_mix_run(h, mix_for(h, BK_HC_KROMHC, shapes[i]));
    merge_mix_bwd_run(h, mix_for(h, BK_HC_KROMHC, shapes[i]), 1);
  }
}

/* ---- rebuild ---- */

typedef struct rebuild {
  int layers;
  bool comb, strided;
  int64_t tokens, n, width;
} rebuild;

/* Maps as the model has them: sums of positive terms, so that no row is what a cancellation left
 * of it. */
static void rebuild_fills(const rebuild *c, char (*names)[3][24], fill *fills) {
  static const char *const maps[] = {"pre", "post", "comb"};
  const double most[] = {1, 2, 2 / (double)c->n};
  for (int i = 0; i < c->layers; i++) {
    for (int m = 0; m < (i + 1 == c->layers ? 1 : c->comb ? 3 : 2); m++) {
      snprintf(names[i][m], sizeof names[i][m], "layer%d.%s", i, maps[m]);
      *fills++ = (fill){names[i][m], FILL_UNIFORM, 0, most[m], NULL, NULL};
    }
  }
  *fills = (fill)FILL_END;
}

static void rebuild_case(harness *h, const rebuild *c) {
  int pad = c->strided ? HARNESS_PAD : 0;
  char names[BK_HC_REBUILD_MAX][3][24];
  fill fills[3 * BK_HC_REBUILD_MAX + 1];
  bk_tensor wide = h3(h->st, pad, c->tokens, c->n, c->width),
            narrow = h2(h->st, pad, c->tokens, c->width);
  bk_tensor gates = h2(h->ct, pad, c->tokens, c->n), comb = h_blocks(h->ct, pad, c->tokens, c->n),
            none = {0};
  bk_hc_rebuild_args a = {.layers = c->layers, .eps = 1e-6};
  for (int i = 0; i < c->layers; i++) {
    bool last = i + 1 == c->layers;
    a.layer[i] = (bk_hc_rebuild_layer){wide,
                                       last ? none : narrow,
                                       last ? none : gates,
                                       last || !c->comb ? none : comb,
                                       gates,
                                       h1(h->ct, c->width),
                                       narrow,
                                       narrow,
                                       h1(h->ct, c->tokens)};
  }
  rebuild_fills(c, names, fills);
  harness_case(h, BK_OP_HC_REBUILD, &a, fills, NULL, "layers=%d,comb=%d," SHAPE_FORMAT, c->layers,
               c->comb, (long long)c->tokens, (long long)c->n, (long long)c->width,
               c->strided ? "strided" : "dense");
}

static void rebuild_cases(harness *h) {
  static const rebuild cases[] = {
      {1, false, false, 3, 4, 31},
      {2, true, true, 5, 4, 31},
      {5, true, false, 3, 4, 128},
      {8, true, false, 3, 8, 64},
      {8, false, false, 3, 1, 31},
      {5, false, false, 3, 4, 128},
      {4, true, true, 13, 4, 136},
      {3, true, false, 2, 3, 264},
      {2, true, false, 2, 4, 2560},
      {3, true, false, 2, 8, 1304},
      {2, true, false, 1, 2, 2051},
      {2, false, true, 2, 6, 2052},
      /* fp32 and bf16: 48 KB of a block's shared memory in rows, and maps */
      {2, true, false, 1, 4, 5760},
      {2, true, false, 1, 4, 11520}};
  for (size_t i = 0; i < BK_COUNT(cases) && !h->roof; i++) rebuild_case(h, &cases[i]);
  if (h->roof)
    rebuild_case(h, &(rebuild){4, true, false, harness_tokens[HARNESS_WORKING], 4, 2560});
}

void cases_fused(harness *h) {
  const int levels[] = {5, 3, 8, 2, 4}, working[] = {HARNESS_WORKING, 2, 3, 0, 0},
            working_res[] = {HARNESS_WORKING, 2, 3, 0, 1};
  void (*const all[])(harness *, const int *) = {project_case, pre_norm_case, post_res_case,
                                                 merge_mix_case, merge_mix_bwd_case};
  for (size_t i = 0; i < BK_COUNT(all); i++) {
    if (h->roof) all[i](h, all[i] == post_res_case ? working_res : working);
    else harness_pairwise(h, levels, 5, all[i]);
  }
  rebuild_cases(h);
  if (h->roof) return;
  project_aligned(h);
  long_project_case(h, 129, 4 * 1034);
  long_project_case(h, 9, 4 * 5122);
  long_merge_mix_cases(h);
  long_merge_mix_bwd_cases(h);
  kromhc_cases(h);
}
