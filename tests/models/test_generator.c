/* Generation: greedy text against the whole forward pass at every position, and the statistics
 * of sampling. */
#include "tests/models/models.h"

#include "models/generator.h"

enum { ROOM = 48, V = 23 };

typedef struct gen {
  bk_device *device;
  bk_model *model;
  bk_generator *generator;
} gen;

static gen gen_open(const char *device, bk_dtype dtype, int kind, int64_t room) {
  gen g = {.device = open_device(device, 2)};
  bk_model_config c = small_config(kind);
  OK(bk_model_create(g.device, &c, dtype, NULL, &g.model));
  OK(bk_model_init(g.model, 7));
  enliven(g.model, 11);
  OK(bk_generator_create(g.model, room, &g.generator));
  return g;
}

static void gen_close(gen *g) {
  bk_generator_destroy(g->generator);
  bk_model_destroy(g->model);
  bk_device_close(g->device);
}

static void make_prompt(int32_t *ids, int64_t n) {
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(bk_uniform(3, 4, (uint64_t)i) * V);
}

/* Logits [n, V] of the whole sequence at once. */
static double *whole_logits(bk_model *m, const int32_t *ids, int64_t n) {
  bk_runner *r = NULL;
  OK(bk_runner_create(
      m, &(bk_runner_options){.batch = 1, .seq_len = n, .slots = 1, .keep_logits = true}, &r));
  begin_step(m, 1);
  OK(bk_runner_forward(r, 0, ids, NULL));
  double *logits = read_tensor(m, bk_runner_logits(r));
  bk_runner_destroy(r);
  return logits;
}

static double best_of(const double *logits) {
  double best = logits[0];
  for (int v = 1; v < V; v++) best = fmax(best, logits[v]);
  return best;
}

/* ---- greedy ---- */

/* A prompt fed in two calls of `first` and `prompt - first` tokens, then greedy to the end of
 * the room. */
static void check_greedy(const char *device, bk_dtype dtype, int kind, int64_t first,
                         int64_t prompt, int64_t room, double slack) {
  gen g = gen_open(device, dtype, kind, room);
  int32_t ids[ROOM];
  make_prompt(ids, prompt);
  if (first) OK(bk_generator_feed(g.generator, ids, first));
  OK(bk_generator_feed(g.generator, ids + first, prompt - first));
  for (int64_t at = prompt; at < room; at++) {
    ck_assert_int_eq(bk_generator_length(g.generator), at);
    OK(bk_generator_sample(g.generator, 0, 0.5, 99, &ids[at]));
    OK(bk_generator_feed(g.generator, &ids[at], 1));
  }
  double *logits = whole_logits(g.model, ids, room);
  for (int64_t at = prompt; at < room; at++) {
    const double *row = logits + (at - 1) * V;
    double best = best_of(row), gap = best - row[ids[at]];
    ck_assert_msg(gap <= slack,
                  "kind %d on %s, prompt %d + %d of %d: token %d at %d is %g below the best", kind,
                  device, (int)first, (int)(prompt - first), (int)room, ids[at], (int)at, gap);
  }
  bk_free(ctx, logits);
  gen_close(&g);
}

/* Prompts shorter than the prefill piece of 32, as long, longer, in two parts, and a room that
 * has no whole piece. */
START_TEST(test_greedy) {
  static const int64_t shapes[][3] = {{0, 1, 40},  {0, 5, 16},  {0, 31, 48}, {0, 32, 48},
                                      {0, 33, 48}, {0, 45, 48}, {3, 40, 48}, {31, 32, 31 + 2}};
  for (size_t i = 0; i < BK_COUNT(shapes); i++) {
    check_greedy(fast_device(), BK_F32, BK_HC_MHC, shapes[i][0], shapes[i][1], shapes[i][2], 1e-5);
    if (quick() && i > 2) continue;
    check_greedy("ref", BK_F64, i % 2 ? BK_HC_PLAIN : BK_HC_MHC_LITE, shapes[i][0], shapes[i][1],
                 shapes[i][2], 0);
  }
  check_greedy(fast_device(), BK_F32, BK_HC_PLAIN, 0, 40, 48, 1e-5);
  check_greedy(fast_device(), BK_F32, BK_HC_HC, 0, 40, 48, 1e-5);
  check_greedy(fast_device(), BK_BF16, BK_HC_IHC, 0, 40, 48, 0.1);
}
END_TEST

/* Every token of the vocabulary at logit 0: the lowest index wins. */
START_TEST(test_ties) {
  gen g = gen_open(fast_device(), BK_F32, BK_HC_PLAIN, 4);
  bk_tensor head = bk_param_weight(g.model, bk_model_find(g.model, "lm_head.weight"));
  int32_t token = 5;
  OK(bk_tensor_zero(g.model->stream, &head));
  OK(bk_generator_feed(g.generator, &token, 1));
  OK(bk_generator_sample(g.generator, 0, 1, 1, &token));
  ck_assert_int_eq(token, 0);
  OK(bk_generator_sample(g.generator, 1, 1e-9, 1, &token));
  ck_assert_int_eq(token, 0);
  gen_close(&g);
}
END_TEST

/* ---- sampling ---- */

/* One generator with a prompt, and the probabilities of what comes next at a temperature. */
static gen open_fed(double temperature, double p[V]) {
  gen g = gen_open(fast_device(), BK_F32, BK_HC_MHC, 40);
  int32_t ids[10];
  double total = 0;
  make_prompt(ids, 10);
  OK(bk_generator_feed(g.generator, ids, 10));
  double *logits = whole_logits(g.model, ids, 10), *row = logits + 9 * V, best = best_of(row);
  for (int v = 0; v < V; v++) total += p[v] = exp((row[v] - best) / temperature);
  for (int v = 0; v < V; v++) p[v] /= total;
  bk_free(ctx, logits);
  return g;
}

/* The draws of seeds 1 .. n, counted. */
static void draw(bk_generator *g, double temperature, double top_p, int n, int *counts) {
  memset(counts, 0, V * sizeof *counts);
  for (int seed = 1; seed <= n; seed++) {
    int32_t token = -1, again = -1;
    OK(bk_generator_sample(g, temperature, top_p, (uint64_t)seed, &token));
    OK(bk_generator_sample(g, temperature, top_p, (uint64_t)seed, &again));
    ck_assert_int_eq(token, again);
    ck_assert(token >= 0 && token < V);
    counts[token]++;
  }
}

/* Frequencies within five standard deviations; fixed seeds, so that this either always passes or
 * never. */
static void check_frequencies(const int *counts, const double p[V], int n) {
  for (int v = 0; v < V; v++) {
    double sigma = sqrt(n * p[v] * (1 - p[v]));
    ck_assert_msg(fabs(counts[v] - n * p[v]) <= 5 * sigma + 1,
                  "token %d: %d of %d draws, %.1f +- %.1f expected", v, counts[v], n, n * p[v],
                  sigma);
  }
}

START_TEST(test_frequencies) {
  static const double temperatures[] = {1, 0.5, 3};
  int n = quick() ? 2000 : 20000, counts[V];
  for (size_t i = 0; i < BK_COUNT(temperatures); i++) {
    double p[V], most = 0;
    gen g = open_fed(temperatures[i], p);
    draw(g.generator, temperatures[i], 1, n, counts);
    check_frequencies(counts, p, n);
    for (int v = 0; v < V; v++) most = fmax(most, p[v]);
    if (temperatures[i] == 1)
      ck_assert_msg(most < 0.9, "the test's distribution is too narrow: %g", most);
    gen_close(&g);
  }
}
END_TEST

static int descending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x < y) - (x > y);
}

/* The smallest set of most likely tokens whose mass reaches top_p, renormalised; nothing outside
 * of it is ever drawn. */
START_TEST(test_top_p) {
  static const double cuts[] = {0.3, 0.6, 0.9, 0.99};
  int n = quick() ? 2000 : 20000, counts[V];
  double p[V], sorted[V], nucleus[V];
  gen g = open_fed(1, p);
  memcpy(sorted, p, sizeof p);
  qsort(sorted, V, sizeof *sorted, descending);
  for (size_t i = 0; i < BK_COUNT(cuts); i++) {
    double mass = 0;
    int kept = 0;
    while (mass < cuts[i]) mass += sorted[kept++];
    ck_assert_int_lt(kept, V);
    for (int v = 0; v < V; v++) nucleus[v] = p[v] >= sorted[kept - 1] ? p[v] / mass : 0;
    draw(g.generator, 1, cuts[i], n, counts);
    check_frequencies(counts, nucleus, n);
    for (int v = 0; v < V; v++) ck_assert(nucleus[v] > 0 || counts[v] == 0);
  }
  int32_t greedy;
  OK(bk_generator_sample(g.generator, 0, 1, 1, &greedy));
  static const double one[] = {0, 1e-12};
  for (size_t i = 0; i < BK_COUNT(one); i++) {
    draw(g.generator, 1, one[i], 200, counts);
    ck_assert_int_eq(counts[greedy], 200);
  }
  draw(g.generator, 1e-6, 1, 200, counts); /* cold */
  ck_assert_int_eq(counts[greedy], 200);
  gen_close(&g);
}
END_TEST

/* A text is a function of the seed; another seed gives another one; every position draws anew. */
static void sample_text(uint64_t seed, int32_t *text, int n) {
  gen g = gen_open(fast_device(), BK_F32, BK_HC_MHC, ROOM);
  make_prompt(text, 3);
  OK(bk_generator_feed(g.generator, text, 3));
  for (int i = 3; i < n; i++) {
    OK(bk_generator_sample(g.generator, 2, 1, seed, &text[i]));
    OK(bk_generator_feed(g.generator, &text[i], 1));
  }
  gen_close(&g);
}

START_TEST(test_seeds) {
  int32_t a[ROOM], b[ROOM], c[ROOM];
  sample_text(1, a, ROOM);
  sample_text(1, b, ROOM);
  sample_text(2, c, ROOM);
  ck_assert_mem_eq(a, b, sizeof a);
  ck_assert(memcmp(a, c, sizeof a) != 0);
  int different = 0;
  for (int i = 4; i < ROOM; i++) different += a[i] != a[i - 1];
  ck_assert_int_gt(different, 10);
}
END_TEST

/* Every token equally likely: one seed draws another one at every position. */
START_TEST(test_positions) {
  gen g = gen_open(fast_device(), BK_F32, BK_HC_PLAIN, 40);
  bk_tensor head = bk_param_weight(g.model, bk_model_find(g.model, "lm_head.weight"));
  int32_t token = 5;
  int counts[V] = {0}, distinct = 0;
  OK(bk_tensor_zero(g.model->stream, &head));
  for (int i = 0; i < 40; i++) {
    OK(bk_generator_feed(g.generator, &token, 1));
    OK(bk_generator_sample(g.generator, 1, 1, 7, &token));
    distinct += counts[token]++ == 0;
  }
  ck_assert_int_gt(distinct, 12);
  gen_close(&g);
}
END_TEST

/* ---- what is refused ---- */
START_TEST(test_refusals) {
  gen g = gen_open(fast_device(), BK_F32, BK_HC_MHC, 6);
  int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8}, token = -7, high = V;
  bk_generator *none = NULL;
  ck_assert_int_eq(bk_generator_create(g.model, 0, &none), BK_ERR_ARGUMENT);
  unit_expect("room for 0 tokens");
  ck_assert_ptr_null(none);
  ck_assert_int_eq(bk_generator_sample(g.generator, 0, 1, 1, &token), BK_ERR_ARGUMENT);
  unit_expect("nothing was fed");
  ck_assert_int_eq(bk_generator_feed(g.generator, ids, 0), BK_ERR_ARGUMENT);
  unit_expect("0 tokens after 0");
  ck_assert_int_eq(bk_generator_feed(g.generator, ids, 7), BK_ERR_ARGUMENT);
  unit_expect("7 tokens after 0, room for 6");
  ck_assert_int_eq(bk_generator_feed(g.generator, &high, 1), BK_ERR_DATA);
  unit_expect("token id 23");
  ck_assert_int_eq(bk_generator_length(g.generator), 0);
  OK(bk_generator_feed(g.generator, ids, 5));
  OK(bk_generator_feed(g.generator, ids, 1));
  ck_assert_int_eq(bk_generator_feed(g.generator, ids, 1), BK_ERR_ARGUMENT);
  unit_expect("1 tokens after 6");
  ck_assert_int_eq(bk_generator_sample(g.generator, -1, 1, 1, &token), BK_ERR_ARGUMENT);
  unit_expect("temperature -1");
  ck_assert_int_eq(bk_generator_sample(g.generator, NAN, 1, 1, &token), BK_ERR_ARGUMENT);
  unit_expect("temperature nan");
  ck_assert_int_eq(bk_generator_sample(g.generator, 1, NAN, 1, &token), BK_ERR_ARGUMENT);
  unit_expect("top_p nan");
  ck_assert_int_eq(token, -7);
  gen_close(&g);
}
END_TEST

START_TEST(test_not_finite) {
  gen g = gen_open(fast_device(), BK_F32, BK_HC_PLAIN, 6);
  bk_tensor head = bk_param_weight(g.model, bk_model_find(g.model, "lm_head.weight")),
            row = bk_tensor_slice(head, 0, 11, 1);
  double poison[12];
  int32_t token = 5;
  for (int i = 0; i < 12; i++) poison[i] = NAN; /* one logit of 23, and not the first */
  OK(bk_tensor_write_f64(g.model->stream, &row, poison));
  OK(bk_generator_feed(g.generator, &token, 1));
  for (int turn = 0; turn < 2; turn++) {
    ck_assert_int_eq(bk_generator_sample(g.generator, turn, 1, 1, &token), BK_ERR_NOT_FINITE);
    unit_expect("are not finite");
  }
  ck_assert_int_eq(token, 5);
  gen_close(&g);
}
END_TEST

/* Feeding and sampling allocate nothing on a host device. */
START_TEST(test_no_allocation) {
  gen g = gen_open(fast_device(), BK_F32, BK_HC_MHC, ROOM);
  int32_t ids[ROOM], token;
  bk_memory_stats before, after;
  make_prompt(ids, ROOM);
  bk_context_memory_stats(ctx, &before);
  OK(bk_generator_feed(g.generator, ids, 40));
  for (int i = 40; i < ROOM; i++) {
    OK(bk_generator_sample(g.generator, 1, 0.9, 1, &token));
    OK(bk_generator_feed(g.generator, &token, 1));
  }
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_eq(before.allocations, after.allocations);
  gen_close(&g);
}
END_TEST

UNIT_MAIN("generator", unit_open, unit_close, test_greedy, test_ties, test_frequencies, test_top_p,
          test_seeds, test_positions, test_refusals, test_not_finite, test_no_allocation)
