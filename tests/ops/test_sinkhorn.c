/* Properties of Sinkhorn, by random search with a logit spread up to 30, on ref and cpu.
 * H_res[k][m] = comb[m][k], so a row sum of H_res is the sum over m of comb[m][k]. */
#include "ops/plan.h"
#include "tests/unit/unit.h"

#include "runtime/backend.h"

#include <float.h>
#include <math.h>

#define TOKENS 61 /* no multiple of any vector length */
#define MAX_BLOCK (BK_HC_MAX_N * BK_HC_MAX_N)
#define SEED 7u

typedef struct subject {
  const char *device;
  bk_dtype dtype;
  double sum_bound; /* of |row sum - 1| with eps = 0 */
} subject;
static const subject subjects[] = {
    {"ref", BK_F64, 1e-12}, {"ref", BK_F32, 1e-6}, {"cpu", BK_F32, 1e-6}};

static bk_device *device;
static bk_stream *stream;

static void open_subject(const subject *s) {
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_device_open(ctx, s->device, NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
}

static void close_subject(void) {
  bk_stream_destroy(stream);
  bk_device_close(device);
}

/* ---- running the ops ---- */

typedef struct blocks {
  bk_buffer *buffer;
  bk_tensor t;
} blocks;

static blocks blocks_make(bk_dtype dtype, int n, const double *values) {
  blocks b = {.t = bk_tensor_3d(dtype, TOKENS, n, n)};
  ck_assert_int_eq(bk_buffer_alloc(device, bk_tensor_bytes(&b.t), BK_MEM_WORKSPACE, &b.buffer),
                   BK_OK);
  b.t.buffer = b.buffer;
  if (values) ck_assert_int_eq(bk_tensor_write_f64(stream, &b.t, values), BK_OK);
  return b;
}

static void blocks_take(blocks *b, double *values) {
  if (values) ck_assert_int_eq(bk_tensor_read_f64(stream, &b->t, values), BK_OK);
  bk_buffer_free(b->buffer);
}

static void run_forward(bk_dtype dtype, int n, int iters, double eps, const double *logits,
                        double *comb) {
  blocks l = blocks_make(dtype, n, logits), c = blocks_make(dtype, n, NULL);
  bk_sinkhorn_args args = {l.t, c.t, iters, eps};
  ck_assert_int_eq(bk_op_run(stream, BK_OP_SINKHORN, &args), BK_OK);
  blocks_take(&l, NULL);
  blocks_take(&c, comb);
}

static void run_backward(bk_dtype dtype, int n, int iters, double eps, const double *logits,
                         const double *dcomb, double *dlogits) {
  blocks l = blocks_make(dtype, n, logits), d = blocks_make(dtype, n, dcomb),
         g = blocks_make(dtype, n, NULL);
  bk_sinkhorn_bwd_args args = {l.t, d.t, g.t, iters, eps};
  ck_assert_int_eq(bk_op_run(stream, BK_OP_SINKHORN_BWD, &args), BK_OK);
  blocks_take(&l, NULL);
  blocks_take(&d, NULL);
  blocks_take(&g, dlogits);
}

/* ---- logits ---- */

typedef void (*logits_fn)(uint64_t round, int64_t count, double *logits);

/* Uniform over a spread of up to 30, rounded to fp32 so that all subjects get the same. */
static void spread_logits(uint64_t round, int64_t count, double *logits) {
  double spread = 30 * bk_uniform(SEED, round, UINT64_C(1) << 40);
  for (int64_t i = 0; i < count; i++)
    logits[i] = (double)(float)(spread * (bk_uniform(SEED, round, (uint64_t)i) - 0.5));
}

/* Gaps of 800 and far more, in all combinations. */
static void wild_logits(uint64_t round, int64_t count, double *logits) {
  static const double levels[] = {0, 800, -800, 400, 1e4, -1e4, 1, 0};
  static const double huge[] = {0, 1e30, -1e30, 1e20, FLT_MAX, -FLT_MAX, 1, 800};
  for (int64_t i = 0; i < count; i++) {
    int pick = (int)(8 * bk_uniform(SEED, round + 1000, (uint64_t)i));
    logits[i] = round % 2 ? huge[pick] : levels[pick];
  }
}

/* ---- checks ---- */

static void check_sums(const char *what, int n, const double *comb, double bound) {
  for (int t = 0; t < TOKENS; t++) {
    for (int k = 0; k < n; k++) {
      double sum = 0;
      for (int m = 0; m < n; m++) sum += comb[(t * n + m) * n + k];
      ck_assert_msg(fabs(sum - 1) <= bound, "%s: n %d token %d: row %d of H_res sums to 1 %+.3e",
                    what, n, t, k, sum - 1);
    }
  }
}

static void check_finite(const char *what, int n, const double *values) {
  for (int i = 0; i < TOKENS * n * n; i++)
    ck_assert_msg(isfinite(values[i]), "%s: n %d, element %d is %g", what, n, i, values[i]);
}

static void search(const subject *s, logits_fn make, int rounds, double eps, double bound) {
  static double logits[TOKENS * MAX_BLOCK], comb[TOKENS * MAX_BLOCK], given[TOKENS * MAX_BLOCK];
  open_subject(s);
  for (int round = 0; round < rounds; round++) {
    int n = round % BK_HC_MAX_N + 1;
    make((uint64_t)round, TOKENS * n * n, logits);
    run_forward(s->dtype, n, 20, eps, logits, comb);
    check_finite("comb", n, comb);
    if (bound > 0) check_sums(s->device, n, comb, bound);
    for (int i = 0; i < TOKENS * n * n; i++)
      given[i] = bk_normal(SEED, (uint64_t)round + 5000, (uint64_t)i);
    run_backward(s->dtype, n, 20, eps, logits, given, comb);
    check_finite("gradient", n, comb);
  }
  close_subject();
}

START_TEST(row_sums_are_one) {
  search(&subjects[_i], spread_logits, 64, 0, subjects[_i].sum_bound);
}
END_TEST

START_TEST(row_sums_with_eps) {
  const double eps[] = {1e-6, 1e-4};
  for (int i = 0; i < 2; i++) search(&subjects[_i], spread_logits, 32, eps[i], 1e-6 + 2 * eps[i]);
}
END_TEST

START_TEST(finite_for_any_logits) {
  search(&subjects[_i], wild_logits, 64, 0, subjects[_i].sum_bound);
  search(&subjects[_i], wild_logits, 64, 1e-6, 0);
}
END_TEST

START_TEST(one_stream_is_one) {
  double logits[TOKENS], comb[TOKENS], given[TOKENS], gradient[TOKENS];
  open_subject(&subjects[_i]);
  for (int t = 0; t < TOKENS; t++)
    logits[t] = t % 7 ? bk_normal(SEED, 1, (uint64_t)t) * 300 : 1e30 * t;
  for (int t = 0; t < TOKENS; t++) given[t] = bk_normal(SEED, 2, (uint64_t)t);
  run_forward(subjects[_i].dtype, 1, 20, 0, logits, comb);
  run_backward(subjects[_i].dtype, 1, 20, 0, logits, given, gradient);
  for (int t = 0; t < TOKENS; t++) {
    ck_assert_double_eq(comb[t], 1.0);
    ck_assert_double_eq(gradient[t], 0.0);
  }
  close_subject();
}
END_TEST

/* ---- DeepSeek-V4's form, written down on its own ---- */

/* Divides every row (by_row) or column by its sum + eps. */
static void normalize(double *m, int n, bool by_row, double eps) {
  for (int i = 0; i < n; i++) {
    double sum = 0;
    for (int j = 0; j < n; j++) sum += by_row ? m[i * n + j] : m[j * n + i];
    for (int j = 0; j < n; j++) *(by_row ? &m[i * n + j] : &m[j * n + i]) /= sum + eps;
  }
}

static void deepseek(const double *logits, int n, int iters, double eps, double *comb) {
  for (int i = 0; i < n; i++) {
    double high = -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) high = fmax(high, logits[i * n + j]);
    for (int j = 0; j < n; j++) sum += exp(logits[i * n + j] - high);
    for (int j = 0; j < n; j++) comb[i * n + j] = exp(logits[i * n + j] - high) / sum + eps;
  }
  normalize(comb, n, false, eps);
  for (int i = 1; i < iters; i++) {
    normalize(comb, n, true, eps);
    normalize(comb, n, false, eps);
  }
}

/* The paper's form for eps = 0 on H = comb^T: exp, then rows of H after columns of H, iters
 * times. It is also what the first softmax followed by column steps of comb comes to. */
static void paper(const double *logits, int n, int iters, double *comb) {
  for (int i = 0; i < n * n; i++) comb[i] = exp(logits[i]);
  for (int i = 0; i < iters; i++) {
    normalize(comb, n, true, 0); /* a column of H is a row of comb */
    normalize(comb, n, false, 0);
  }
}

static void compare_with(const subject *s, int iters, double eps, double bound) {
  static double logits[TOKENS * MAX_BLOCK], comb[TOKENS * MAX_BLOCK];
  double want[MAX_BLOCK];
  for (int n = 1; n <= BK_HC_MAX_N; n++) {
    spread_logits((uint64_t)(n + 100 * iters), TOKENS * n * n, logits);
    run_forward(s->dtype, n, iters, eps, logits, comb);
    for (int t = 0; t < TOKENS; t++) {
      if (eps > 0) deepseek(logits + t * n * n, n, iters, eps, want);
      else paper(logits + t * n * n, n, iters, want);
      for (int i = 0; i < n * n; i++) {
        double d = fabs(comb[t * n * n + i] - want[i]);
        ck_assert_msg(d <= bound, "%s n %d iters %d eps %g token %d entry %d: off by %.3e",
                      s->device, n, iters, eps, t, i, d);
      }
    }
  }
}

START_TEST(equals_the_written_forms) {
  const int iters[] = {1, 2, 3, 20, 64};
  const double eps[] = {0, 1e-6, 1e-3};
  const subject *s = &subjects[_i];
  open_subject(s);
  for (int i = 0; i < 5; i++) {
    for (int j = 0; j < 3; j++)
      compare_with(s, iters[i], eps[j], s->dtype == BK_F64 ? 1e-13 : 2e-6);
  }
  close_subject();
}
END_TEST

int main(void) {
  const TTest *const tests[] = {row_sums_are_one, row_sums_with_eps, finite_for_any_logits,
                                one_stream_is_one, equals_the_written_forms};
  Suite *suite = suite_create("sinkhorn");
  TCase *tcase = tcase_create("properties");
  tcase_set_timeout(tcase, 120);
  tcase_add_checked_fixture(tcase, unit_open, unit_close);
  for (size_t i = 0; i < BK_COUNT(tests); i++)
    tcase_add_loop_test(tcase, tests[i], 0, (int)BK_COUNT(subjects));
  suite_add_tcase(suite, tcase);
  return unit_run(suite);
}
