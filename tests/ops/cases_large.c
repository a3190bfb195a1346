/* Shapes of real models, for what only they come to: tiles of 128 rows in attention with heads
 * of 192 and 128, products with more wide tiles than a card has multiprocessors. With
 * BK_TEST_LARGE alone, because ref takes its time for them; with BK_TEST_QUICK too the same
 * cases in small sizes, which show that they are made. */
#include "tests/ops/harness.h"

#include <math.h>

static int64_t sized(const harness *h, int64_t large, int64_t small) {
  return h->quick ? small : large;
}

/* 256 blocks of 128 rows. */
static void large_attention(harness *h) {
  const int64_t t = sized(h, 512, 65), heads = sized(h, 64, 2);
  const bk_tensor keys = h4(h->st, 0, 1, t, heads, 192), values = h4(h->st, 0, 1, t, heads, 128),
                  lse = h3(h->ct, 0, 1, heads, t);
  const double scale = 1 / sqrt(192.0);
  bk_attention_args a = {
      .q = keys, .k = keys, .v = values, .o = values, .lse = lse, .scale = scale};
  bk_attention_bwd_args b = {keys, keys, values, values, lse, values, keys, keys, values, scale};
  harness_case(h, BK_OP_ATTENTION, &a, NULL, NULL, "large,T=%lld,H=%lld,K=192,V=128", (long long)t,
               (long long)heads);
  harness_case(h, BK_OP_ATTENTION_BWD, &b, NULL, derive_attention,
               "large,T=%lld,H=%lld,K=192,V=128", (long long)t, (long long)heads);
}

/* 150 tiles of 128 x 256. */
static void large_gemm(harness *h) {
  const int64_t m = sized(h, 1280, 130), n = sized(h, 3840, 512), k = 64;
  bk_gemm_args a = {h2(h->st, 0, m, k), bk_tensor_transpose(h2(h->st, 0, n, k), 0, 1),
                    h2(h->st, 0, m, n), 1.0, false};
  const fill fills[] = {{"c", FILL_POISON, 0, 0, NULL, NULL}, FILL_END};
  harness_case(h, BK_OP_GEMM, &a, fills, NULL, "large,M=%lld,K=%lld,N=%lld", (long long)m,
               (long long)k, (long long)n);
}

/* Over 132 tiles of 128 x 256: by the rows of all experts; by the experts' matrices. */
static void large_grouped(harness *h) {
  const int64_t experts = 8, rows = sized(h, 1280, 140), k = 64, n = sized(h, 3840, 512),
                p = sized(h, 512, 136), q = sized(h, 1280, 512);
  bk_grouped_gemm_args a = {h2(h->st, 0, rows, k), h3(h->st, 0, experts, k, n),
                            h1(BK_I32, experts + 1), h2(h->st, 0, rows, n)};
  bk_grouped_wgrad_args w = {h2(h->st, 0, rows, p), h2(h->st, 0, rows, q), h1(BK_I32, experts + 1),
                             h3(h->ct, 0, experts, p, q), true};
  const fill fills[] = {{"offsets", FILL_OFFSETS, (double)rows, 0, NULL, NULL},
                        {"c", FILL_POISON, 0, 0, NULL, NULL},
                        FILL_END};
  harness_case(h, BK_OP_GROUPED_GEMM, &a, fills, NULL, "large,rows=%lld,K=%lld,N=%lld",
               (long long)rows, (long long)k, (long long)n);
  harness_case(h, BK_OP_GROUPED_WGRAD, &w, fills, NULL, "large,rows=%lld,P=%lld,Q=%lld",
               (long long)rows, (long long)p, (long long)q);
}

void cases_large(harness *h) {
  if (h->st != BK_BF16) return;
  large_attention(h);
  large_gemm(h);
  large_grouped(h);
}
