/* birkhoff/residual.h against a forward in double written from the formulas, its gradients by
 * central differences: every kind on ref and cpu; order of calls, bad options, parameters, maps,
 * no allocation. */
#include <birkhoff/residual.h>

#include "tests/unit/fake_device.h"
#include "tests/unit/unit.h"

#include <math.h>

enum { N = 3, C = 5, MOST_N = 4, MOST_PARAM = 24 * MOST_N * C, MOST_X = N * MOST_N * C };
#define NORM_EPS 1e-6

/* ---- the formulas ---- */

typedef struct spec {
  bk_hc_kind kind;
  int n, iters;
  double hc_eps;
} spec;

typedef struct point {
  double x[MOST_X], param[BK_RESIDUAL_PARAMS][MOST_PARAM];
} point;

static double sigmoid(double v) { return 1 / (1 + exp(-v)); }

/* comb[m][k] from logits: eps > 0 is DeepSeek-V4's code; eps = 0 on H[k][m] = comb[m][k] is exp,
 * then iters times T_r(T_c(.)). */
static void sinkhorn(const spec *s, double *a) {
  int n = s->n;
  double e = s->hc_eps;
  for (int i = 0; i < n * n; i++) a[i] = exp(a[i]);
  for (int it = 0; it < s->iters; it++) {
    for (int m = 0; m < n; m++) {
      double sum = it ? e : 0;
      for (int k = 0; k < n; k++) sum += a[m * n + k];
      for (int k = 0; k < n; k++) a[m * n + k] = a[m * n + k] / sum + (it ? 0 : e);
    }
    for (int k = 0; k < n; k++) {
      double sum = e;
      for (int m = 0; m < n; m++) sum += a[m * n + k];
      for (int m = 0; m < n; m++) a[m * n + k] /= sum;
    }
  }
}

/* comb += sum of softmax(logits)[i] over the i-th permutation in lexicographic order. */
static void permutations(int n, const double *logits, double *comb) {
  int order[MOST_N], count = 1;
  double sum = 0;
  for (int i = 0; i < n; i++) order[i] = i, count *= i + 1;
  for (int i = 0; i < count; i++) sum += exp(logits[i]);
  for (int i = 0; i < count; i++) {
    for (int m = 0; m < n; m++) comb[m * n + order[m]] += exp(logits[i]) / sum;
    int at = n - 2, with = n - 1;
    while (at >= 0 && order[at] > order[at + 1]) at--;
    if (at < 0) break;
    while (order[with] < order[at]) with--;
    int swap = order[at];
    order[at] = order[with], order[with] = swap;
    for (int a = at + 1, b = n - 1; a < b; a++, b--)
      swap = order[a], order[a] = order[b], order[b] = swap;
  }
}

/* comb[m][k] of independent bits: bit b of the streams agrees with the chance that its pair of
 * logits gives, the first pair the highest bit. */
static void bits(int n, const double *logits, double *comb) {
  int pairs = n > 2 ? 2 : n > 1 ? 1 : 0; /* n is at most MOST_N */
  for (int m = 0; m < n; m++)
    for (int k = 0; k < n; k++) {
      double product = 1;
      for (int b = 0; b < pairs; b++) {
        double keep = exp(logits[2 * b]), swap = exp(logits[2 * b + 1]);
        bool differ = ((m ^ k) >> (pairs - 1 - b) & 1) != 0;
        product *= (differ ? swap : keep) / (keep + swap);
      }
      comb[m * n + k] = product;
    }
}

static double dot_over_rms(const double *fn, const double *v, int count) {
  double dot = 0, square = 0;
  for (int i = 0; i < count; i++) dot += fn[i] * v[i], square += v[i] * v[i];
  return dot / sqrt(square / count + NORM_EPS);
}

static void maps_tanh(const spec *s, const point *p, const double *x, double *pre, double *post,
                      double *comb) {
  const double *fn = p->param[BK_RESIDUAL_FN], *base = p->param[BK_RESIDUAL_BASE],
               *scale = p->param[BK_RESIDUAL_SCALE];
  int n = s->n;
  for (int m = 0; m < n; m++) {
    const double *v = x + m * C;
    pre[m] = scale[0] * tanh(dot_over_rms(fn, v, C)) + base[m];
    post[m] = scale[1] * tanh(dot_over_rms(fn + C, v, C)) + base[n + m];
    for (int k = 0; k < n; k++)
      comb[m * n + k] =
          scale[2] * tanh(dot_over_rms(fn + (2 + k) * C, v, C)) + base[2 * n + m * n + k];
  }
}

static void maps(const spec *s, const point *p, const double *x, double *pre, double *post,
                 double *comb) {
  int n = s->n, rows = bk_hc_rows(s->kind, n);
  double logits[32];
  if (s->kind == BK_HC_HC) {
    maps_tanh(s, p, x, pre, post, comb);
    return;
  }
  for (int j = 0; j < rows; j++) {
    double scale = p->param[BK_RESIDUAL_SCALE][j < n ? 0 : j < 2 * n ? 1 : 2];
    logits[j] = scale * dot_over_rms(p->param[BK_RESIDUAL_FN] + j * n * C, x, n * C) +
                p->param[BK_RESIDUAL_BASE][j];
  }
  for (int m = 0; m < n; m++)
    pre[m] = sigmoid(logits[m]) + s->hc_eps, post[m] = 2 * sigmoid(logits[n + m]);
  memset(comb, 0, (size_t)(n * n) * sizeof *comb);
  if (s->kind == BK_HC_MHC) memcpy(comb, logits + 2 * n, (size_t)(n * n) * sizeof *comb);
  if (s->kind == BK_HC_MHC) sinkhorn(s, comb);
  if (s->kind == BK_HC_MHC_LITE) permutations(n, logits + 2 * n, comb);
  if (s->kind == BK_HC_KROMHC) bits(n, logits + 2 * n, comb);
  for (int m = 0; s->kind == BK_HC_IHC && m < n; m++) comb[m * n + m] = 1;
}

static double weight(int i) { return sin(1.7 * i + 0.3); } /* of output i in the loss; F is tanh */

static double oracle(const spec *s, const point *p, double *out) {
  double loss = 0;
  int n = s->n;
  for (int t = 0; t < N; t++) {
    const double *x = p->x + t * n * C;
    double pre[MOST_N], post[MOST_N], comb[MOST_N * MOST_N];
    maps(s, p, x, pre, post, comb);
    for (int c = 0; c < C; c++) {
      double h = 0;
      for (int m = 0; m < n; m++) h += pre[m] * x[m * C + c];
      for (int k = 0; k < n; k++) {
        double y = post[k] * tanh(h);
        for (int m = 0; m < n; m++) y += comb[m * n + k] * x[m * C + c];
        if (out) out[(t * n + k) * C + c] = y;
        loss += weight((t * n + k) * C + c) * y;
      }
    }
  }
  return loss;
}

static double difference(const spec *s, point *p, double *value) {
  double start = *value, step = 1e-6;
  *value = start + step;
  double up = oracle(s, p, NULL);
  *value = start - step;
  double down = oracle(s, p, NULL);
  *value = start;
  return (up - down) / (2 * step);
}

/* ---- the layer ---- */

static bk_device *device;

static void open_device(const char *name) {
  ck_assert_int_eq(bk_device_open(ctx, name, &(bk_device_options){.threads = 1}, &device), BK_OK);
}

static bk_residual_options options_of(const spec *s) {
  return (bk_residual_options){.kind = s->kind,
                               .streams = s->n,
                               .width = C,
                               .tokens = N,
                               .sinkhorn_iters = s->iters,
                               .hc_eps = s->hc_eps,
                               .norm_eps = NORM_EPS,
                               .sublayer = 1,
                               .seed = 3};
}

static double noise(uint64_t stream, int64_t i) {
  return (float)bk_normal(11, stream, (uint64_t)i);
}

/* Values at which every map is far from flat; what the layer holds and the oracle's are the same
 * floats. */
static point prepare(const spec *s, bk_residual *r) {
  point p = {0};
  float values[MOST_PARAM];
  for (int i = 0; i < N * s->n * C; i++) p.x[i] = noise(1, i);
  for (int q = 0; q < BK_RESIDUAL_PARAMS; q++) {
    int64_t count = bk_residual_count(r, (bk_residual_param)q);
    ck_assert_int_le(count, MOST_PARAM);
    for (int64_t i = 0; i < count; i++) {
      values[i] =
          (float)(q == BK_RESIDUAL_SCALE ? 0.5 + 0.1 * (double)i : 0.3 * noise(2 + (uint64_t)q, i));
      p.param[q][i] = values[i];
    }
    ck_assert_int_eq(bk_residual_set(r, (bk_residual_param)q, values), BK_OK);
  }
  return p;
}

static void step(const spec *s, bk_residual *r, const point *p, float *out, float *dx) {
  float x[MOST_X], h[N * C], f[N * C], df[N * C], dh[N * C];
  int all = N * s->n * C;
  for (int i = 0; i < all; i++) x[i] = (float)p->x[i], dx[i] = (float)weight(i);
  ck_assert_int_eq(bk_residual_mix(r, x, h), BK_OK);
  for (int i = 0; i < N * C; i++) f[i] = (float)tanh(h[i]);
  ck_assert_int_eq(bk_residual_merge(r, f, out), BK_OK);
  ck_assert_int_eq(bk_residual_merge_bwd(r, dx, dx, df), BK_OK);
  for (int i = 0; i < N * C; i++) dh[i] = df[i] * (1 - f[i] * f[i]);
  ck_assert_int_eq(bk_residual_mix_bwd(r, dh, dx), BK_OK);
}

/* Normalised mean squared error. */
static void check_close(const char *what, const spec *s, const float *got, const double *want,
                        int64_t count) {
  double error = 0, norm = 0;
  for (int64_t i = 0; i < count; i++)
    error += (got[i] - want[i]) * (got[i] - want[i]), norm += want[i] * want[i];
  ck_assert_msg(error <= 1e-10 * norm + 1e-20, "%s, kind %d, n %d, eps %g: nmse %.2e", what,
                (int)s->kind, s->n, s->hc_eps, error / norm);
}

static const spec specs[] = {{BK_HC_MHC, 4, 20, 0},      {BK_HC_MHC, 4, 3, 1e-3},
                             {BK_HC_MHC, 1, 2, 0},       {BK_HC_MHC_LITE, 3, 1, 0},
                             {BK_HC_IHC, 4, 1, 1e-2},    {BK_HC_HC, 3, 1, 0},
                             {BK_HC_MHC, 2, 5, 0},       {BK_HC_KROMHC, 4, 1, 0},
                             {BK_HC_KROMHC, 2, 1, 1e-3}, {BK_HC_KROMHC, 1, 1, 0}};

static void check_spec(const spec *s) {
  bk_residual *r = NULL;
  double want[MOST_PARAM];
  float out[MOST_X], dx[MOST_X], grad[MOST_PARAM];
  bk_residual_options o = options_of(s);
  ck_assert_int_eq(bk_residual_create(device, &o, &r), BK_OK);
  point p = prepare(s, r);
  step(s, r, &p, out, dx);
  oracle(s, &p, want);
  int all = N * s->n * C;
  check_close("out", s, out, want, all);
  for (int i = 0; i < all; i++) want[i] = difference(s, &p, &p.x[i]);
  check_close("dx", s, dx, want, all);
  for (int q = 0; q < BK_RESIDUAL_PARAMS; q++) {
    int64_t count = bk_residual_count(r, (bk_residual_param)q);
    for (int64_t i = 0; i < count; i++) want[i] = difference(s, &p, &p.param[q][i]);
    ck_assert_int_eq(bk_residual_get_grad(r, (bk_residual_param)q, grad), BK_OK);
    check_close("gradient of a parameter", s, grad, want, count);
  }
  step(s, r, &p, out, dx); /* gradients add up */
  for (int64_t i = 0; i < bk_residual_count(r, BK_RESIDUAL_SCALE); i++)
    want[i] = 2 * difference(s, &p, &p.param[BK_RESIDUAL_SCALE][i]);
  ck_assert_int_eq(bk_residual_get_grad(r, BK_RESIDUAL_SCALE, grad), BK_OK);
  check_close("twice the gradient of scale", s, grad, want,
              bk_residual_count(r, BK_RESIDUAL_SCALE));
  bk_residual_destroy(r);
}

START_TEST(right_on_ref) {
  open_device("ref");
  for (size_t i = 0; i < BK_COUNT(specs); i++) check_spec(&specs[i]);
  bk_device_close(device);
}
END_TEST

START_TEST(right_on_cpu) {
  open_device("cpu");
  for (size_t i = 0; i < BK_COUNT(specs); i++) check_spec(&specs[i]);
  bk_device_close(device);
}
END_TEST

/* A device whose memory the host cannot look at: arrays are copied in and out, kernels are
 * another device's. */
START_TEST(right_through_copies) {
  fake_reset();
  ck_assert_int_eq(bk_backend_register(ctx, &fake_backend), BK_OK);
  ck_assert_int_eq(
      bk_device_open(ctx, "fake", &(bk_device_options){.allow_fallback = true, .threads = 1},
                     &device),
      BK_OK);
  device->props.storage_dtypes = BK_DT(BK_F32);
  check_spec(&specs[1]);
  ck_assert_int_gt(fake.uploads, 0);
  unit_expect("it runs on");
  bk_device_close(device);
}
END_TEST

/* ---- the rest of the contract ---- */

START_TEST(calls_have_an_order) {
  const spec *s = &specs[0];
  bk_residual *r = NULL;
  float x[MOST_X] = {1}, h[N * C], f[N * C] = {0}, out[MOST_X], dx[MOST_X], df[N * C];
  bk_residual_options o = options_of(s);
  open_device("ref");
  ck_assert_int_eq(bk_residual_create(device, &o, &r), BK_OK);
  ck_assert_int_eq(bk_residual_merge(r, f, out), BK_ERR_ARGUMENT);
  unit_expect("merge comes after mix");
  ck_assert_int_eq(bk_residual_maps(r, NULL, NULL, NULL), BK_ERR_ARGUMENT);
  unit_expect("maps come after mix");
  ck_assert_int_eq(bk_residual_mix(r, x, h), BK_OK);
  ck_assert_int_eq(bk_residual_merge_bwd(r, out, dx, df), BK_ERR_ARGUMENT);
  unit_expect("merge_bwd comes after merge");
  ck_assert_int_eq(bk_residual_mix(r, x, NULL), BK_ERR_ARGUMENT);
  unit_expect("NULL");
  ck_assert_int_eq(bk_residual_mix(r, x, h), BK_OK); /* again, without a backward */
  ck_assert_int_eq(bk_residual_merge(r, f, out), BK_OK);
  ck_assert_int_eq(bk_residual_mix_bwd(r, h, dx), BK_ERR_ARGUMENT);
  unit_expect("mix_bwd comes after merge_bwd");
  ck_assert_int_eq(bk_residual_get(r, BK_RESIDUAL_PARAMS, x), BK_ERR_ARGUMENT);
  unit_expect("no parameter 3");
  bk_residual_destroy(r);
  bk_device_close(device);
}
END_TEST

START_TEST(options_are_checked) {
  bk_residual *r = NULL;
  bk_residual_options good = options_of(&specs[0]), bad[9];
  for (size_t i = 0; i < BK_COUNT(bad); i++) bad[i] = good;
  bad[0].kind = BK_HC_PLAIN;
  bad[1].streams = 9;
  bad[2].streams = 0;
  bad[3].kind = BK_HC_MHC_LITE, bad[3].streams = 6;
  bad[4].width = 0;
  bad[5].tokens = INT64_MAX;
  bad[6].sinkhorn_iters = 65;
  bad[7].hc_eps = NAN;
  bad[8].norm_eps = -1;
  open_device("cpu");
  for (size_t i = 0; i < BK_COUNT(bad); i++) {
    ck_assert_int_eq(bk_residual_create(device, &bad[i], &r), BK_ERR_ARGUMENT);
    ck_assert_ptr_null(r);
    unit_expect("residual: ");
  }
  bk_device_close(device);
}
END_TEST

START_TEST(starts_as_designed) {
  bk_residual *r = NULL;
  float base[24], scale[3], x[MOST_X], h[N * C], comb[N * 16];
  bk_residual_options o = options_of(&specs[0]);
  open_device("cpu");
  ck_assert_int_eq(bk_residual_create(device, &o, &r), BK_OK);
  ck_assert_int_eq(bk_residual_get(r, BK_RESIDUAL_BASE, base), BK_OK);
  ck_assert_int_eq(bk_residual_get(r, BK_RESIDUAL_SCALE, scale), BK_OK);
  ck_assert(base[0] == -1 && base[1] == 1 && base[8] == 0 && base[9] == -8 && scale[2] == 0.01f);
  for (int i = 0; i < MOST_X; i++) x[i] = (float)noise(1, i);
  ck_assert_int_eq(bk_residual_mix(r, x, h), BK_OK);
  ck_assert_int_eq(bk_residual_maps(r, NULL, NULL, comb), BK_OK);
  for (int t = 0; t < N; t++)
    for (int k = 0; k < 4; k++) {
      double row = 0, column = 0;
      for (int m = 0; m < 4; m++)
        row += comb[t * 16 + m * 4 + k], column += comb[t * 16 + k * 4 + m];
      ck_assert_double_eq_tol(row, 1, 1e-5);
      ck_assert_double_eq_tol(column, 1, 1e-5);
    }
  bk_residual_destroy(r);
  bk_device_close(device);
}
END_TEST

START_TEST(a_step_allocates_nothing) {
  const spec *s = &specs[0];
  bk_residual *r = NULL;
  float out[MOST_X], dx[MOST_X];
  bk_memory_stats before, after;
  bk_residual_options o = options_of(s);
  open_device("cpu");
  ck_assert_int_eq(bk_residual_create(device, &o, &r), BK_OK);
  point p = prepare(s, r);
  bk_context_memory_stats(ctx, &before);
  step(s, r, &p, out, dx);
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_eq(after.allocations, before.allocations);
  bk_residual_destroy(r);
  bk_device_close(device);
}
END_TEST

UNIT_MAIN("residual", unit_open, unit_close, right_on_ref, right_on_cpu, right_through_copies,
          calls_have_an_order, options_are_checked, starts_as_designed, a_step_allocates_nothing)
