/* The folders of tests/fixtures (an independent implementation, see its README): logits, loss,
 * maps, every gradient and ten training steps, on ref in double (tight) and on cpu in fp32. */
#include "io/safetensors.h"
#include "models/gain.h"
#include "tests/models/models.h"

#include <jansson.h>

typedef struct bounds {
  double value;    /* logits and loss, absolute, at sizes near 1 */
  double gradient; /* per tensor, relative (doc/numerics.md, Comparing) */
  double training; /* losses and gradient norms of ten steps, relative */
  double after;    /* weights after ten steps, relative to the tensor's norm */
} bounds;

typedef struct fixture {
  char folder[512];
  bk_st_reader *expected;
  rig r;
  int64_t B, T;
} fixture;

static const char *in_folder(const fixture *f, const char *name) {
  static char path[600];
  snprintf(path, sizeof path, "%s/%s", f->folder, name);
  return path;
}

static double *read_entry(bk_st_reader *reader, const char *name, int64_t *count) {
  const bk_st_entry *e = bk_st_find(reader, name);
  ck_assert_msg(e != NULL, "no tensor %s", name);
  *count = 1;
  for (int i = 0; i < e->ndim; i++) *count *= e->shape[i];
  double *v = bk_alloc_array(ctx, (size_t)*count, sizeof *v);
  OK(bk_st_read_f64(reader, e, 0, *count, v));
  return v;
}

static void load_weights(const fixture *f) {
  bk_st_reader *file;
  bk_model *m = f->r.model;
  OK(bk_st_open(ctx, in_folder(f, "model.safetensors"), &file));
  ck_assert_int_eq(bk_st_count(file), m->n_params);
  for (int i = 0; i < m->n_params; i++) {
    int64_t n;
    bk_tensor w = bk_param_weight(m, &m->params[i]);
    double *v = read_entry(file, m->params[i].name, &n);
    ck_assert_int_eq(n, bk_tensor_count(&w));
    OK(bk_tensor_write_f64(m->stream, &w, v));
    bk_free(ctx, v);
  }
  bk_st_close(file);
}

static void fixture_open(fixture *f, const char *name, const char *device, bk_dtype dtype,
                         int64_t micro_batch) {
  const char *top = getenv("TOP_SRCDIR");
  bk_model_config c;
  snprintf(f->folder, sizeof f->folder, "%s/tests/fixtures/%s", top ? top : ".", name);
  OK(bk_model_config_read(ctx, in_folder(f, "config.json"), &c));
  OK(bk_st_open(ctx, in_folder(f, "expected.safetensors"), &f->expected));
  const bk_st_entry *logits = bk_st_find(f->expected, "logits");
  f->B = logits->shape[0];
  f->T = logits->shape[1];
  f->r = (rig){.device = open_device(device, 2)};
  OK(bk_model_create(f->r.device, &c, dtype, &(bk_model_options){.trainable = true}, &f->r.model));
  OK(bk_model_init(f->r.model, 1));
  load_weights(f);
  bk_runner_options o = {.batch = micro_batch ? micro_batch : f->B,
                         .seq_len = f->T,
                         .slots = 1,
                         .backward = true,
                         .keep_logits = true};
  OK(bk_runner_create(f->r.model, &o, &f->r.runner));
}

static void fixture_close(fixture *f) {
  bk_st_close(f->expected);
  rig_close(&f->r);
}

/* ---- one batch ---- */
static void check_array(const fixture *f, const char *name, const double *got, int64_t count,
                        double bound) {
  int64_t n;
  double *want = read_entry(f->expected, name, &n);
  ck_assert_int_eq(n, count);
  double scale = fmax(1.0, norm_of(want, n) / sqrt((double)n));
  for (int64_t i = 0; i < n; i++) {
    ck_assert_msg(fabs(got[i] - want[i]) <= bound * scale, "%s: %s[%lld] is %.12g, not %.12g",
                  f->folder, name, (long long)i, got[i], want[i]);
  }
  bk_free(ctx, want);
}

static void read_ids(const fixture *f, const char *name, int32_t *ids) {
  bk_st_reader *file;
  int64_t n;
  OK(bk_st_open(ctx, in_folder(f, "input.safetensors"), &file));
  double *v = read_entry(file, name, &n);
  ck_assert_int_eq(n, f->B * f->T);
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)v[i];
  bk_free(ctx, v);
  bk_st_close(file);
}

static void check_gradients(const fixture *f, double bound) {
  const bk_model *m = f->r.model;
  int64_t count, at = 0, n;
  double *got = read_grads(m, &count), *want = bk_alloc_array(ctx, (size_t)count, sizeof *want);
  for (int i = 0; i < m->n_params; i++) {
    char name[160];
    if (!bk_param_trainable(m, &m->params[i])) continue;
    snprintf(name, sizeof name, "grad.%s", m->params[i].name);
    double *v = read_entry(f->expected, name, &n);
    memcpy(want + at, v, (size_t)n * sizeof *v);
    at += n;
    bk_free(ctx, v);
  }
  ck_assert_int_eq(at, count);
  const char *worst;
  double error = worst_grad_error(m, got, want, count, &worst);
  ck_assert_msg(error < bound, "%s: gradient of %s is off by %.3g", f->folder, worst, error);
  bk_free(ctx, got);
  bk_free(ctx, want);
}

static void check_maps(const fixture *f, double bound) {
  if (f->r.model->config.residual == BK_HC_PLAIN) return;
  int S = bk_runner_n_sublayers(f->r.runner);
  int64_t N = f->B * f->T, n = f->r.model->config.hc_mult, size = S * N * n;
  double *pre = bk_alloc_array(ctx, (size_t)size, sizeof *pre),
         *post = bk_alloc_array(ctx, (size_t)size, sizeof *post);
  double *res = bk_alloc_array(ctx, (size_t)(size * n), sizeof *res);
  for (int s = 0; s < S; s++) {
    bk_tensor tpre, tpost, tcomb;
    OK(bk_runner_maps(f->r.runner, 0, s, &tpre, &tpost, &tcomb));
    OK(bk_tensor_read_f64(f->r.model->stream, &tpre, pre + s * N * n));
    OK(bk_tensor_read_f64(f->r.model->stream, &tpost, post + s * N * n));
    double *h = res + s * N * n * n;
    if (bk_tensor_present(&tcomb)) {
      bk_tensor turned = bk_tensor_transpose(tcomb, 1, 2); /* (destination, source) */
      OK(bk_tensor_read_f64(f->r.model->stream, &turned, h));
    }
    for (int64_t i = 0; !bk_tensor_present(&tcomb) && i < N * n; i++) h[i * n + i % n] = 1.0;
  }
  check_array(f, "maps.pre", pre, size, bound);
  check_array(f, "maps.post", post, size, bound);
  check_array(f, "maps.res", res, size * n, bound);
  bk_free(ctx, pre);
  bk_free(ctx, post);
  bk_free(ctx, res);
}

static void check_batch(const char *name, const char *device, bk_dtype dtype, const bounds *b) {
  fixture f;
  int32_t ids[64], targets[64];
  int64_t kept = 0;
  fixture_open(&f, name, device, dtype, 0);
  ck_assert_int_le(f.B * f.T, 64);
  read_ids(&f, "input_ids", ids);
  read_ids(&f, "targets", targets);
  for (int64_t i = 0; i < f.B * f.T; i++) kept += targets[i] >= 0;
  double loss = run_step(&f.r, ids, targets, kept);
  check_array(&f, "loss", &loss, 1, b->value);
  bk_tensor t = bk_runner_logits(f.r.runner);
  double *logits = read_tensor(f.r.model, t);
  check_array(&f, "logits", logits, bk_tensor_count(&t), b->value);
  bk_free(ctx, logits);
  check_maps(&f, b->value);
  check_gradients(&f, b->gradient);
  fixture_close(&f);
}

/* ---- ten steps ---- */
static double number(const json_t *object, const char *key) {
  const json_t *v = json_object_get(object, key);
  ck_assert_msg(json_is_number(v), "no number %s", key);
  return json_number_value(v);
}

/* Tokens of one sequence, targets shifted by one. */
static void sequence(const json_t *row, int64_t T, int32_t *ids, int32_t *targets) {
  for (int64_t t = 0; t < T; t++)
    ids[t] = (int32_t)json_integer_value(json_array_get(row, (size_t)t));
  for (int64_t t = 0; t < T; t++) targets[t] = t + 1 < T ? ids[t + 1] : -100;
}

static void check_loads(const fixture *f, const json_t *layers, int step) {
  ck_assert_int_eq((int)json_array_size(layers), bk_runner_n_moe(f->r.runner));
  for (size_t l = 0; l < json_array_size(layers); l++) {
    const json_t *want = json_array_get(layers, l);
    double *got = read_tensor(f->r.model, bk_model_expert_load(f->r.model, (int)l));
    for (size_t e = 0; e < json_array_size(want); e++) {
      ck_assert_msg((double)json_integer_value(json_array_get(want, e)) == got[e],
                    "%s: step %d: load of expert %d is %g", f->folder, step, (int)e, got[e]);
    }
    bk_free(ctx, got);
  }
}

static void train_step(fixture *f, bk_optimizer *optimizer, const json_t *train, int step,
                       double bound) {
  const json_t *recipe = json_object_get(train, "recipe");
  const json_t *rows = json_array_get(json_object_get(train, "tokens"), (size_t)step - 1);
  int32_t ids[64], targets[64];
  int64_t kept = f->B * (f->T - 1);
  bk_step_results results;
  bk_step_values values = {.lr = number(recipe, "lr"),
                           .bc1 = 1.0 - pow(number(recipe, "adam_beta1"), step),
                           .bc2 = 1.0 - pow(number(recipe, "adam_beta2"), step),
                           .max_norm = number(recipe, "grad_clip"),
                           .loss_scale = 1.0 / (double)kept,
                           .balance_rate = number(recipe, "router_bias_lr")};
  OK(bk_step_begin(f->r.model, &values));
  for (int64_t b = 0; b < f->B; b++) {
    sequence(json_array_get(rows, (size_t)b), f->T, ids, targets);
    OK(bk_runner_forward(f->r.runner, 0, ids, targets));
    OK(bk_runner_backward(f->r.runner, 0));
  }
  OK(bk_optimizer_step(optimizer));
  OK(bk_step_end(f->r.model, &results));
  double loss =
      json_number_value(json_array_get(json_object_get(train, "losses"), (size_t)step - 1));
  double norm =
      json_number_value(json_array_get(json_object_get(train, "grad_norms"), (size_t)step - 1));
  ck_assert_msg(fabs(results.loss_sum / (double)kept - loss) <= bound * loss,
                "%s: step %d: loss %.12g, not %.12g", f->folder, step,
                results.loss_sum / (double)kept, loss);
  ck_assert_msg(fabs(results.grad_norm - norm) <= 10.0 * bound * norm,
                "%s: step %d: gradient norm %.12g, not %.12g", f->folder, step, results.grad_norm,
                norm);
  check_loads(f, json_array_get(json_object_get(train, "expert_load"), (size_t)step - 1), step);
}

static void check_after(const fixture *f, double bound) {
  int seen = 0;
  for (int i = 0; i < bk_st_count(f->expected); i++) {
    const bk_st_entry *e = bk_st_get(f->expected, i);
    if (strncmp(e->name, "after.", 6) != 0) continue;
    const bk_param *p = bk_model_find(f->r.model, e->name + 6);
    ck_assert_msg(p != NULL, "no tensor %s", e->name);
    int64_t n;
    double *want = read_entry(f->expected, e->name, &n),
           *got = read_tensor(f->r.model, bk_param_weight(f->r.model, p));
    double error = distance(got, want, n) / norm_of(want, n);
    ck_assert_msg(error < bound, "%s: %s is off by %.3g", f->folder, e->name, error);
    bk_free(ctx, want);
    bk_free(ctx, got);
    seen++;
  }
  ck_assert_int_gt(seen, 3);
}

static void check_training(const char *name, const char *device, bk_dtype dtype, const bounds *b) {
  fixture f;
  json_error_t why;
  fixture_open(&f, name, device, dtype, 1);
  json_t *train = json_load_file(in_folder(&f, "train.json"), JSON_REJECT_DUPLICATES, &why);
  ck_assert_msg(train != NULL, "%s: %s", f.folder, why.text);
  const json_t *recipe = json_object_get(train, "recipe");
  bk_optimizer *optimizer;
  bk_optimizer_options o = {number(recipe, "adam_beta1"), number(recipe, "adam_beta2"),
                            number(recipe, "adam_eps"), number(recipe, "weight_decay"), 0};
  OK(bk_optimizer_create(f.r.model, &o, &optimizer));
  int steps = (int)number(train, "steps");
  ck_assert_int_eq(steps, 10);
  for (int step = 1; step <= steps; step++) train_step(&f, optimizer, train, step, b->training);
  check_after(&f, b->after);
  json_decref(train);
  bk_optimizer_destroy(optimizer);
  fixture_close(&f);
}

static const char *const cases[] = {"plain",    "plain_qlora", "hc",  "mhc",   "mhc_eps",
                                    "mhc_lite", "mhc_lite_n3", "ihc", "kromhc"};
static const bounds exact = {.value = 1e-11, .gradient = 1e-9, .training = 1e-9, .after = 1e-8};
static const bounds single = {.value = 2e-5, .gradient = 2e-4, .training = 2e-6, .after = 1e-4};

START_TEST(test_ref_batch) { check_batch(cases[_i], "ref", BK_F64, &exact); }
END_TEST
START_TEST(test_ref_training) { check_training(cases[_i], "ref", BK_F64, &exact); }
END_TEST
START_TEST(test_cpu_batch) { check_batch(cases[_i], fast_device(), BK_F32, &single); }
END_TEST
START_TEST(test_cpu_training) { check_training(cases[_i], fast_device(), BK_F32, &single); }
END_TEST

int main(void) {
  const TTest *const tests[] = {test_ref_batch, test_ref_training, test_cpu_batch,
                                test_cpu_training};
  Suite *suite = suite_create("model_fixtures");
  TCase *tcase = tcase_create("model_fixtures");
  tcase_set_timeout(tcase, 120);
  tcase_add_checked_fixture(tcase, unit_open, unit_close);
  for (size_t i = 0; i < BK_COUNT(tests); i++)
    tcase_add_loop_test(tcase, tests[i], 0, (int)BK_COUNT(cases));
  suite_add_tcase(suite, tcase);
  return unit_run(suite);
}
