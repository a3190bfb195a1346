/* Cases of the residual connections' stream primitives: expand, collapse, row norm, pre, res,
 * post and their backwards. */
#include "tests/ops/harness.h"

typedef struct shape {
  int64_t tokens, n, width;
  int pad;
  bool accumulate;
  char name[96];
} shape;

enum { TOKENS, WIDTH, STREAMS, PAD, ACCUMULATE };

static shape shape_of(const harness *h, const int *level) {
  shape s = {.n = level[STREAMS] + 1,
             .width = harness_widths[level[WIDTH]],
             .pad = level[PAD] * HARNESS_PAD,
             .accumulate = level[ACCUMULATE]};
  s.tokens = harness_clip_tokens(h, harness_tokens[level[TOKENS]], s.n * s.width);
  return s;
}

#define SHAPE_FORMAT "N=%lld,n=%lld,C=%lld,%s"
#define SHAPE_ARGS(s) \
  (long long)(s).tokens, (long long)(s).n, (long long)(s).width, (s).pad ? "strided" : "dense"

static fill grows(const char *field, bool accumulate) {
  return (fill){field, accumulate ? FILL_NORMAL : FILL_POISON, 0, 1, NULL, NULL};
}

static void expand_case(harness *h, const int *level) {
  shape s = shape_of(h, level);
  bk_tensor narrow = h2(h->st, s.pad, s.tokens, s.width),
            wide = h3(h->st, s.pad, s.tokens, s.n, s.width);
  bk_hc_expand_args a = {narrow, wide};
  harness_case(h, BK_OP_HC_EXPAND, &a, NULL, NULL, SHAPE_FORMAT, SHAPE_ARGS(s));
  bk_hc_collapse_args b = {wide, narrow};
  harness_case(h, BK_OP_HC_COLLAPSE, &b, NULL, NULL, SHAPE_FORMAT, SHAPE_ARGS(s));
}

static void rms_case(harness *h, const int *level) {
  shape s = shape_of(h, level);
  int64_t width = s.n * s.width;
  bk_hc_rms_args a = {h2(h->st, s.pad, s.tokens, width), h1(h->ct, s.tokens),
                      s.accumulate ? 1e-20 : 1e-6};
  harness_case(h, BK_OP_HC_RMS, &a, NULL, NULL, "M=%lld,K=%lld,eps=%g,%s", (long long)s.tokens,
               (long long)width, a.eps, s.pad ? "strided" : "dense");
  bk_hc_rms_bwd_args b = {h2(h->st, s.pad, s.tokens, width), h1(h->ct, s.tokens),
                          h1(h->ct, s.tokens), h2(h->st, s.pad, s.tokens, width), s.accumulate};
  const fill fills[] = {{"rinv", FILL_UNIFORM, 0.5, 2, NULL, NULL},
                        {"drinv", FILL_NORMAL, 0, (double)width, NULL, NULL},
                        grows("dx", s.accumulate),
                        FILL_END};
  harness_case(h, BK_OP_HC_RMS_BWD, &b, fills, NULL, "M=%lld,K=%lld,acc=%d,%s", (long long)s.tokens,
               (long long)width, s.accumulate, s.pad ? "strided" : "dense");
}

static void pre_case(harness *h, const int *level) {
  shape s = shape_of(h, level);
  bk_tensor narrow = h2(h->st, s.pad, s.tokens, s.width),
            wide = h3(h->st, s.pad, s.tokens, s.n, s.width);
  bk_tensor gates = h2(h->ct, s.pad, s.tokens, s.n);
  bk_hc_pre_args a = {wide, gates, narrow};
  harness_case(h, BK_OP_HC_PRE, &a, NULL, NULL, SHAPE_FORMAT, SHAPE_ARGS(s));
  bk_hc_pre_bwd_args b = {wide, gates, narrow, wide, gates, s.accumulate};
  const fill fills[] = {grows("dx", s.accumulate), FILL_END};
  harness_case(h, BK_OP_HC_PRE_BWD, &b, fills, NULL, "acc=%d," SHAPE_FORMAT, s.accumulate,
               SHAPE_ARGS(s));
}

static void res_case(harness *h, const int *level) {
  shape s = shape_of(h, level);
  bk_tensor wide = h3(h->st, s.pad, s.tokens, s.n, s.width),
            comb = h_blocks(h->ct, s.pad, s.tokens, s.n);
  bk_hc_res_args a = {wide, comb, wide};
  harness_case(h, BK_OP_HC_RES, &a, NULL, NULL, SHAPE_FORMAT, SHAPE_ARGS(s));
  bk_hc_res_bwd_args b = {wide, comb, wide, wide, comb};
  harness_case(h, BK_OP_HC_RES_BWD, &b, NULL, NULL, SHAPE_FORMAT, SHAPE_ARGS(s));
}

static void post_case(harness *h, const int *level) {
  shape s = shape_of(h, level);
  bk_tensor narrow = h2(h->st, s.pad, s.tokens, s.width),
            wide = h3(h->st, s.pad, s.tokens, s.n, s.width);
  bk_tensor gates = h2(h->ct, s.pad, s.tokens, s.n);
  bk_hc_post_args a = {narrow, gates, wide};
  harness_case(h, BK_OP_HC_POST, &a, NULL, NULL, SHAPE_FORMAT, SHAPE_ARGS(s));
  const fill special[] = {{"f", FILL_SPECIAL, 0, 0, NULL, NULL}, FILL_END};
  if (s.accumulate)
    harness_case(h, BK_OP_HC_POST, &a, special, NULL, "special," SHAPE_FORMAT, SHAPE_ARGS(s));
  bk_hc_post_bwd_args b = {narrow, gates, wide, narrow, gates};
  harness_case(h, BK_OP_HC_POST_BWD, &b, NULL, NULL, SHAPE_FORMAT, SHAPE_ARGS(s));
}

void cases_streams(harness *h) {
  const int levels[] = {5, 3, 8, 2, 2}, working[] = {HARNESS_WORKING, 2, 3, 0, 0};
  void (*const all[])(harness *, const int *) = {expand_case, rms_case, pre_case, res_case,
                                                 post_case};
  for (size_t i = 0; i < BK_COUNT(all); i++) {
    if (h->roof) all[i](h, working);
    else harness_pairwise(h, levels, 5, all[i]);
  }
}
