/* Cases of the router, the token permutation and the balancing update. */
#include "tests/ops/harness.h"

#include <math.h>
#include <stdlib.h>

/* E, k, n_group, topk_group */
static const int64_t router_shapes[][4] = {{1, 1, 1, 1},   {8, 2, 1, 1},  {8, 8, 1, 1},
                                           {64, 6, 8, 3},  {16, 4, 4, 2}, {31, 5, 1, 1},
                                           {256, 8, 8, 4}, {6, 2, 3, 1}};
static const int64_t *router_shape; /* of the case being made: fill functions are not told */

/* ---- logits whose choice does not hang on rounding ---- */

static int descending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x < y) - (x > y);
}

static bool sorted_apart(double *v, int64_t count, double gap) {
  qsort(v, (size_t)count, sizeof *v, descending);
  for (int64_t i = 1; i < count; i++) {
    if (v[i - 1] - v[i] < gap) return false;
  }
  return true;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* No two biased scores and no two group scores closer than 1e-5. The bias is small and known:
 * bias_of. */
static double bias_of(int64_t e) { return 0.125 * sin(3.7 * (double)e); }

static bool row_is_clear(const double *logits, int64_t experts, int64_t groups) {
  double biased[512], group[512], part[512];
  int64_t size = experts / groups;
  for (int64_t e = 0; e < experts; e++) biased[e] = sigmoid(logits[e]) + bias_of(e);
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t i = 0; i < size; i++) part[i] = biased[g * size + i];
    qsort(part, (size_t)size, sizeof *part, descending);
    group[g] = part[0] + (size > 1 ? part[1] : 0);
  }
  return sorted_apart(group, groups, 1e-5) && sorted_apart(biased, experts, 1e-5);
}

static void fill_clear_logits(const fill *f BK_UNUSED, const bk_tensor *t, uint64_t seed,
                              uint64_t stream, double *values) {
  int64_t experts = t->shape[1];
  uint64_t draw = 0;
  for (int64_t i = 0; i < t->shape[0]; i++) {
    do {
      for (int64_t e = 0; e < experts; e++)
        values[i * experts + e] = (double)(float)bk_normal(seed, stream, draw++);
    } while (!row_is_clear(values + i * experts, experts, router_shape[2]));
  }
}

static void fill_bias(const fill *f BK_UNUSED, const bk_tensor *t, uint64_t seed BK_UNUSED,
                      uint64_t stream BK_UNUSED, double *values) {
  for (int64_t e = 0; e < bk_tensor_count(t); e++) values[e] = bias_of(e);
}

/* Three values only: equal scores everywhere, in every implementation. */
static void fill_tied_logits(const fill *f BK_UNUSED, const bk_tensor *t, uint64_t seed,
                             uint64_t stream, double *values) {
  const double levels[] = {0, 0.75, 2};
  for (int64_t i = 0; i < bk_tensor_count(t); i++)
    values[i] = levels[(int)(bk_uniform(seed, stream, (uint64_t)i) * 3)];
}

/* ---- router ---- */

static void router_case(harness *h, const int *level) {
  int64_t n = harness_tokens[level[0]];
  int pad = level[2] * HARNESS_PAD;
  router_shape = router_shapes[level[1]];
  int64_t experts = router_shape[0], k = router_shape[1];
  bk_router_args a = {.logits = h2(h->ct, pad, n, experts),
                      .bias = h1(h->ct, experts),
                      .scores = h2(h->ct, pad, n, experts),
                      .index = h2(BK_I32, pad, n, k),
                      .weights = h2(h->ct, pad, n, k),
                      .n_group = (int)router_shape[2],
                      .topk_group = (int)router_shape[3],
                      .norm_topk_prob = level[3],
                      .routed_scaling_factor = level[3] ? 2.5 : 1};
  bool ties = level[4];
  const fill fills[] = {
      {"logits", FILL_CALL, 0, 0, NULL, ties ? fill_tied_logits : fill_clear_logits},
      {"bias", ties ? FILL_CONST : FILL_CALL, 0.5, 0, NULL, fill_bias},
      FILL_END};
  harness_case(h, BK_OP_ROUTER, &a, fills, NULL,
               "N=%lld,E=%lld,k=%lld,groups=%d/%d,norm=%d,ties=%d,%s", (long long)n,
               (long long)experts, (long long)k, a.topk_group, a.n_group, a.norm_topk_prob, ties,
               pad ? "strided" : "dense");
  bk_router_bwd_args b = {h2(h->ct, pad, n, experts),
                          h2(BK_I32, pad, n, k),
                          h2(h->ct, pad, n, k),
                          h2(h->ct, pad, n, experts),
                          level[3],
                          a.routed_scaling_factor};
  const fill bwd[] = {{"scores", FILL_UNIFORM, 0, 1, NULL, NULL},
                      {"index", FILL_DISTINCT, (double)experts, 0, NULL, NULL},
                      FILL_END};
  harness_case(h, BK_OP_ROUTER_BWD, &b, bwd, NULL, "N=%lld,E=%lld,k=%lld,norm=%d,%d,%s",
               (long long)n, (long long)experts, (long long)k, b.norm_topk_prob, ties,
               pad ? "strided" : "dense");
}

/* ---- permutation ---- */

static void index_case(harness *h, const int *level) {
  int64_t n = harness_tokens[level[0]], experts = (const int64_t[]){1, 8, 64}[level[1]];
  int64_t k = level[2] ? (experts < 6 ? experts : 6) : 1;
  bk_moe_index_args a = {h2(BK_I32, level[3], n, k),
                         h1(BK_I32, experts + 1),
                         h1(BK_I32, n * k),
                         h2(BK_I32, level[3], n, k),
                         {0}};
  if (level[4]) a.load = h1(BK_I32, experts);
  const fill fills[] = {{"index", FILL_DISTINCT, (double)experts, 0, NULL, NULL},
                        {level[4] ? "load" : "index", level[4] ? FILL_INDEX : FILL_DISTINCT,
                         level[4] ? 0 : (double)experts, 100, NULL, NULL},
                        FILL_END};
  harness_case(h, BK_OP_MOE_INDEX, &a, fills, NULL, "N=%lld,E=%lld,k=%lld,load=%d,%s", (long long)n,
               (long long)experts, (long long)k, level[4], level[3] ? "strided" : "dense");
}

static void permute_case(harness *h, const int *level) {
  int64_t k = (const int64_t[]){1, 2, 6}[level[2]], width = harness_widths[level[1]];
  int64_t n = harness_clip_tokens(h, harness_tokens[level[0]], width * k);
  int pad = level[3] * HARNESS_PAD;
  bool weights = level[4], accumulate = level[5];
  bk_permute_args a = {h2(h->st, pad, n, width), h1(BK_I32, n * k), h2(h->st, pad, n * k, width),
                       (int)k};
  const fill order[] = {{"order", FILL_PERMUTATION, 0, 0, NULL, NULL}, FILL_END};
  harness_case(h, BK_OP_PERMUTE, &a, order, NULL, "N=%lld,C=%lld,k=%lld,%s", (long long)n,
               (long long)width, (long long)k, pad ? "strided" : "dense");
  bk_unpermute_args b = {
      h2(h->st, pad, n * k, width), h2(BK_I32, 0, n, k), {0}, h2(h->st, pad, n, width), accumulate};
  if (weights) b.weights = h2(h->ct, pad, n, k);
  const fill rows_of[] = {{"row_of", FILL_PERMUTATION, 0, 0, NULL, NULL},
                          {"y", accumulate ? FILL_NORMAL : FILL_POISON, 0, 1, NULL, NULL},
                          FILL_END};
  harness_case(h, BK_OP_UNPERMUTE, &b, rows_of, NULL, "N=%lld,C=%lld,k=%lld,weights=%d,acc=%d,%s",
               (long long)n, (long long)width, (long long)k, weights, accumulate,
               pad ? "strided" : "dense");
  bk_unpermute_bwd_args c = {h2(h->st, pad, n * k, width), h2(BK_I32, 0, n, k),
                             h2(h->ct, pad, n, k),         h2(h->st, pad, n, width),
                             h2(h->st, pad, n * k, width), h2(h->ct, pad, n, k)};
  const fill bwd[] = {{"row_of", FILL_PERMUTATION, 0, 0, NULL, NULL},
                      {"dx", FILL_POISON, 0, 0, NULL, NULL},
                      FILL_END};
  const fill inplace[] = {{"row_of", FILL_PERMUTATION, 0, 0, NULL, NULL},
                          {"dx", FILL_INPLACE, 0, 0, "x", NULL},
                          FILL_END};
  harness_case(h, BK_OP_UNPERMUTE_BWD, &c, weights ? bwd : inplace, NULL,
               "N=%lld,C=%lld,k=%lld,inplace=%d,%s", (long long)n, (long long)width, (long long)k,
               !weights, pad ? "strided" : "dense");
}

/* ---- balance ---- */

static void fill_rate(const fill *f, const bk_tensor *t, uint64_t seed BK_UNUSED,
                      uint64_t stream BK_UNUSED, double *values) {
  for (int64_t i = 0; i < bk_tensor_count(t); i++) values[i] = 0;
  values[BK_STEP_BALANCE_RATE] = 0.001;
  values[BK_STEP_FINITE] = f->a;
}

static void cases_balance(harness *h) {
  const int64_t counts[] = {1, 8, 64, 257};
  for (int i = 0; i < 8; i++) {
    int64_t experts = counts[i % 4];
    bk_balance_args a = {h1(BK_I32, experts), h1(h->ct, BK_STEP_FIELDS), h1(h->ct, experts)};
    const fill fills[] = {{"load", FILL_INDEX, 0, i < 4 ? 3 : 1000000, NULL, NULL},
                          {"step", FILL_CALL, i != 6, 0, NULL, fill_rate},
                          FILL_END};
    harness_case(h, BK_OP_BALANCE, &a, fills, NULL, "E=%lld,spread=%d,finite=%d",
                 (long long)experts, i >= 4, i != 6);
  }
}

void cases_experts(harness *h) {
  if (h->roof) {
    permute_case(h, (const int[]){HARNESS_WORKING, 2, 2, 0, 1, 0});
    return;
  }
  harness_pairwise(h, (const int[]){5, (int)BK_COUNT(router_shapes), 2, 2, 2}, 5, router_case);
  harness_pairwise(h, (const int[]){5, 3, 2, 2, 2}, 5, index_case);
  harness_pairwise(h, (const int[]){5, 3, 3, 2, 2, 2}, 6, permute_case);
  cases_balance(h);
}
