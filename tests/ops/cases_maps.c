/* Cases of the maps: logits, gates, Sinkhorn, permutations, Kronecker products, tanh, and the fused
 * op of all of them. */
#include "tests/ops/harness.h"

static const bk_hc_kind kinds[] = {BK_HC_MHC, BK_HC_MHC_LITE, BK_HC_IHC, BK_HC_HEAD, BK_HC_HC};
static const char *const kind_names[] = {"plain", "hc", "mhc", "mhc_lite", "ihc", "kromhc", "head"};

enum { KIND, TOKENS, STREAMS, PAD, VARIANT };

/* rinv is a length, so positive; scale is larger than the initial 0.01 to give every part of a
 * gradient its weight. */
#define RINV \
  { "rinv", FILL_UNIFORM, 0.5, 2, NULL, NULL }

static int streams_of(bk_hc_kind kind, int level) {
  return kind == BK_HC_MHC_LITE ? level % 5 + 1 : level + 1;
}

/* ---- logits and gates ---- */

static void logits_case(harness *h, const int *level) {
  bk_hc_kind kind = kinds[level[KIND]];
  int n = streams_of(kind, level[STREAMS]), pad = level[PAD] * HARNESS_PAD;
  int64_t tokens = harness_tokens[level[TOKENS]], rows = bk_hc_rows(kind, n),
          scales = bk_hc_scale_count(kind);
  bk_tensor wide = h2(h->ct, pad, tokens, rows), rinv = h1(h->ct, tokens);
  bk_hc_logits_args a = {wide, rinv, h1(h->ct, scales), h1(h->ct, rows), wide, n};
  const fill fills[] = {RINV, FILL_END};
  harness_case(h, BK_OP_HC_LOGITS, &a, fills, NULL, "%s,N=%lld,n=%d,%s", kind_names[kind],
               (long long)tokens, n, pad ? "strided" : "dense");
  bk_hc_logits_bwd_args b = {
      wide, rinv, h1(h->ct, scales), wide, wide, rinv, h1(h->ct, scales), h1(h->ct, rows), n};
  harness_case(h, BK_OP_HC_LOGITS_BWD, &b, fills, NULL, "%s,N=%lld,n=%d,%s", kind_names[kind],
               (long long)tokens, n, pad ? "strided" : "dense");
}

static void gates_case(harness *h, const int *level) {
  bk_hc_kind kind = kinds[level[KIND]];
  int n = streams_of(kind, level[STREAMS]), pad = level[PAD] * HARNESS_PAD;
  int64_t tokens = harness_tokens[level[TOKENS]], rows = bk_hc_rows(kind, n);
  bool post = kind != BK_HC_HEAD;
  double spread = level[VARIANT] == 2 ? 60 : 2;
  const fill fills[] = {{"logits", FILL_NORMAL, 0, spread, NULL, NULL}, FILL_END};
  bk_hc_gates_args a = {
      h2(h->ct, pad, tokens, rows), h2(h->ct, pad, tokens, n), {0}, level[VARIANT] == 1 ? 1e-2 : 0};
  if (post) a.post = h2(h->ct, pad, tokens, n);
  harness_case(h, BK_OP_HC_GATES, &a, fills, NULL, "%s,N=%lld,n=%d,eps=%g,spread=%g,%s",
               kind_names[kind], (long long)tokens, n, a.hc_eps, spread, pad ? "strided" : "dense");
  bk_hc_gates_bwd_args b = {a.logits, a.pre, a.post, a.logits};
  const fill bwd[] = {{"logits", FILL_NORMAL, 0, spread, NULL, NULL},
                      {"dlogits", FILL_POISON, 0, 0, NULL, NULL},
                      FILL_END};
  harness_case(h, BK_OP_HC_GATES_BWD, &b, bwd, NULL, "%s,N=%lld,n=%d,spread=%g,%s",
               kind_names[kind], (long long)tokens, n, spread, pad ? "strided" : "dense");
}

/* ---- Sinkhorn, permutations, Kronecker products, tanh ---- */

static void sinkhorn_case(harness *h, const int *level) {
  int n = level[0] + 1, pad = level[2] * HARNESS_PAD;
  int64_t tokens = harness_tokens[level[1]];
  int iters = (const int[]){20, 1, 2, 64}[level[3]];
  double eps = (const double[]){0, 1e-6, 1e-2}[level[4]],
         spread = (const double[]){1, 5, 15}[level[5]];
  bk_tensor blocks = h_blocks(h->ct, pad, tokens, n);
  const fill fills[] = {{"logits", FILL_NORMAL, 0, spread, NULL, NULL}, FILL_END};
  bk_sinkhorn_args a = {blocks, blocks, iters, eps};
  harness_case(h, BK_OP_SINKHORN, &a, fills, NULL, "N=%lld,n=%d,iters=%d,eps=%g,spread=%g,%s",
               (long long)tokens, n, iters, eps, spread, pad ? "strided" : "dense");
  if (n == 1) return; /* a gradient of zero: tests/ops/test_sinkhorn.c */
  bk_sinkhorn_bwd_args b = {blocks, blocks, blocks, iters, eps};
  harness_case(h, BK_OP_SINKHORN_BWD, &b, fills, NULL, "N=%lld,n=%d,iters=%d,eps=%g,spread=%g,%s",
               (long long)tokens, n, iters, eps, spread, pad ? "strided" : "dense");
}

static void perm_case(harness *h, const int *level) {
  int n = level[0] + 1, pad = level[2] * HARNESS_PAD;
  int64_t tokens = harness_tokens[level[1]], weights = bk_factorial(n);
  double spread = level[3] ? 8 : 1;
  bk_tensor logits = h2(h->ct, pad, tokens, weights), comb = h_blocks(h->ct, pad, tokens, n);
  const fill fills[] = {{"logits", FILL_NORMAL, 0, spread, NULL, NULL}, FILL_END};
  bk_hc_perm_args a = {logits, comb, n};
  harness_case(h, BK_OP_HC_PERM, &a, fills, NULL, "N=%lld,n=%d,spread=%g,%s", (long long)tokens, n,
               spread, pad ? "strided" : "dense");
  bk_hc_perm_bwd_args b = {logits, comb, logits, n};
  if (n == 1) return; /* one permutation: no gradient */
  harness_case(h, BK_OP_HC_PERM_BWD, &b, fills, NULL, "N=%lld,n=%d,spread=%g,%s", (long long)tokens,
               n, spread, pad ? "strided" : "dense");
}

static void kron_case(harness *h, const int *level) {
  int factors = level[0], n = 1 << factors, pad = level[2] * HARNESS_PAD;
  int64_t tokens = harness_tokens[level[1]];
  double spread = level[3] ? 60 : 2;
  bk_tensor logits = h2(h->ct, pad, tokens, 2 * factors), comb = h_blocks(h->ct, pad, tokens, n);
  const fill fills[] = {{"logits", FILL_NORMAL, 0, spread, NULL, NULL}, FILL_END};
  bk_hc_kron_args a = {logits, comb};
  harness_case(h, BK_OP_HC_KRON, &a, fills, NULL, "N=%lld,n=%d,spread=%g,%s", (long long)tokens, n,
               spread, pad ? "strided" : "dense");
  bk_hc_kron_bwd_args b = {logits, comb, logits};
  harness_case(h, BK_OP_HC_KRON_BWD, &b, fills, NULL, "N=%lld,n=%d,spread=%g,%s", (long long)tokens,
               n, spread, pad ? "strided" : "dense");
}

static void tanh_case(harness *h, const int *level) {
  int n = level[0] + 1, pad = level[2] * HARNESS_PAD;
  int64_t tokens = harness_tokens[level[1]];
  bk_tensor proj = h2(h->ct, pad, tokens * n, n + 2), rinv = h1(h->ct, tokens * n),
            gates = h2(h->ct, pad, tokens, n);
  bk_tensor comb = h_blocks(h->ct, pad, tokens, n), scale = h1(h->ct, 3),
            base = h1(h->ct, n * (n + 2));
  const fill fills[] = {RINV, FILL_END};
  bk_hc_tanh_args a = {proj, rinv, scale, base, gates, gates, comb, n};
  harness_case(h, BK_OP_HC_TANH, &a, fills, NULL, "N=%lld,n=%d,%s", (long long)tokens, n,
               pad ? "strided" : "dense");
  bk_hc_tanh_bwd_args b = {proj, rinv, scale, gates, gates, comb, proj, rinv, scale, base, n};
  harness_case(h, BK_OP_HC_TANH_BWD, &b, fills, NULL, "N=%lld,n=%d,%s", (long long)tokens, n,
               pad ? "strided" : "dense");
}

/* ---- all maps in one go ---- */

static void maps_run(harness *h, bk_hc_kind kind, const int *level) {
  int n = streams_of(kind, level[STREAMS]), pad = level[PAD] * HARNESS_PAD;
  int64_t tokens = harness_tokens[level[TOKENS]], per_token = kind == BK_HC_HC ? n : 1;
  int iters = level[VARIANT] == 1 ? 3 : 20;
  double eps = kind == BK_HC_HC ? 0 : (const double[]){0, 1e-6, 1e-2}[level[VARIANT]];
  bk_tensor proj = h2(h->ct, pad, tokens * per_token, bk_hc_rows(kind, n)),
            rinv = h1(h->ct, tokens * per_token);
  bk_tensor scale = h1(h->ct, bk_hc_scale_count(kind)), base = h1(h->ct, bk_hc_base_count(kind, n));
  bk_tensor gates = h2(h->ct, pad, tokens, n), comb = h_blocks(h->ct, pad, tokens, n), none = {0};
  bool post = kind != BK_HC_HEAD, mixes = post && kind != BK_HC_IHC;
  const fill fills[] = {RINV, FILL_END};
  bk_hc_maps_args a = {proj, rinv, scale, base, gates, post ? gates : none, mixes ? comb : none,
                       kind, n,    iters, eps};
  harness_case(h, BK_OP_HC_MAPS, &a, fills, NULL, "%s,N=%lld,n=%d,iters=%d,eps=%g,%s",
               kind_names[kind], (long long)tokens, n, iters, eps, pad ? "strided" : "dense");
  bk_hc_maps_bwd_args b = {proj, rinv,  scale, base, gates, a.post, a.comb, proj,
                           rinv, scale, base,  kind, n,     iters,  eps};
  harness_case(h, BK_OP_HC_MAPS_BWD, &b, fills, NULL, "%s,N=%lld,n=%d,iters=%d,eps=%g,%s",
               kind_names[kind], (long long)tokens, n, iters, eps, pad ? "strided" : "dense");
}

static void maps_case(harness *h, const int *level) { maps_run(h, kinds[level[KIND]], level); }

/* Cases of their own, so that those of the kinds before stay what they are; all powers of two. */
static void kromhc_case(harness *h, const int *level) {
  maps_run(h, BK_HC_KROMHC, (const int[]){0, level[0], (1 << level[1]) - 1, level[2], level[3]});
}

void cases_maps(harness *h) {
  if (h->st == BK_BF16) return; /* coefficients only: the same as in fp32 */
  if (h->roof) {
    const int working[] = {0, HARNESS_WORKING, 3, 0, 0};
    logits_case(h, working);
    gates_case(h, working);
    sinkhorn_case(h, (const int[]){3, HARNESS_WORKING, 0, 0, 0, 0});
    maps_case(h, working);
    return;
  }
  harness_pairwise(h, (const int[]){4, 5, 8, 2, 1}, 5, logits_case);
  harness_pairwise(h, (const int[]){4, 5, 8, 2, 3}, 5, gates_case);
  harness_pairwise(h, (const int[]){8, 5, 2, 4, 3, 3}, 6, sinkhorn_case);
  harness_pairwise(h, (const int[]){5, 5, 2, 2}, 4, perm_case);
  harness_pairwise(h, (const int[]){4, 5, 2, 2}, 4, kron_case);
  harness_pairwise(h, (const int[]){8, 5, 2}, 3, tanh_case);
  harness_pairwise(h, (const int[]){5, 5, 8, 2, 3}, 5, maps_case);
  harness_pairwise(h, (const int[]){5, 4, 2, 3}, 4, kromhc_case);
}
