/* cpu against ref on whole models, the same weights and storage: normalised mean squared error
 * of logits and gradients in fp32 and bf16; and the same bits from one thread and from two. In
 * bf16 one rounding that falls the other way is enough for all later ones to differ, so that two
 * correct runs end about as far from each other as from fp32: 1e-4 to 2e-4 in the logits of
 * these models. Single ops are held to tight bounds by the op tests. */
#include "tests/models/models.h"

enum { B = 2, T = 13 };

typedef struct outcome {
  double loss;
  double *logits, *grads, *loads;
  int64_t n_logits, n_grads, n_loads;
} outcome;

/* Biases that alone decide the choice, differently in each layer: rounding cannot flip it. */
static void decide(bk_model *m) {
  double bias[16];
  int E = (int)m->config.n_routed_experts, layer = 0;
  for (int i = 0; i < m->n_params; i++) {
    if (!strstr(m->params[i].name, "e_score_correction_bias")) continue;
    bk_tensor t = bk_param_weight(m, &m->params[i]);
    for (int e = 0; e < E; e++) bias[e] = -2.0 * ((e * 5 + layer) % E);
    OK(bk_tensor_write_f64(m->stream, &t, bias));
    layer++;
  }
}

/* calm: initial weights (hc's sums of pre do not nearly cancel, as lively ones may) and decided
 * choices. */
static outcome outcome_of(const char *device, int threads, bk_dtype dtype, bool calm,
                          const bk_model_config *c) {
  int32_t ids[B * T], targets[B * T];
  bk_runner_options options = {
      .batch = B, .seq_len = T, .slots = 1, .backward = true, .keep_logits = true};
  rig r = rig_open(device, threads, c, dtype, &options);
  if (calm) {
    OK(bk_model_init(r.model, 7));
    decide(r.model);
  }
  int64_t kept = make_tokens(c->vocab_size, B * T, 81, ids, targets);
  outcome o = {.loss = run_step(&r, ids, targets, kept)};
  bk_tensor logits = bk_runner_logits(r.runner);
  o.n_logits = bk_tensor_count(&logits);
  o.logits = read_tensor(r.model, logits);
  o.grads = read_grads(r.model, &o.n_grads);
  o.n_loads = bk_runner_n_moe(r.runner) * c->n_routed_experts;
  o.loads = bk_alloc_array(ctx, (size_t)o.n_loads, sizeof *o.loads);
  for (int i = 0; i < bk_runner_n_moe(r.runner); i++) {
    bk_tensor t = bk_model_expert_load(r.model, i);
    OK(bk_tensor_read_f64(r.model->stream, &t, o.loads + i * c->n_routed_experts));
  }
  rig_close(&r);
  return o;
}

static void outcome_free(outcome *o) {
  bk_free(ctx, o->logits);
  bk_free(ctx, o->grads);
  bk_free(ctx, o->loads);
}

static double nmse(const double *a, const double *b, int64_t n) {
  double d = distance(a, b, n) / norm_of(b, n);
  return d * d;
}

static bk_model_config config_of(int kind) {
  bk_model_config c = small_config(kind);
  c.hidden_size = 32;
  c.intermediate_size = 40;
  c.moe_intermediate_size = 24;
  c.q_lora_rank = kind % 2 ? 20 : 0;
  c.hc_head = kind == BK_HC_MHC_LITE ? BK_HEAD_LEARNED : BK_HEAD_SUM;
  c.initializer_range = 0.15;
  return c;
}

static void check_against_ref(int kind, bk_dtype dtype, double logits_bound, double grads_bound) {
  bk_model_config c = config_of(kind);
  bool calm = dtype == BK_BF16;
  outcome want = outcome_of("ref", 1, dtype, calm, &c);
  outcome got = outcome_of(fast_device(), 2, dtype, calm, &c),
          one = outcome_of(fast_device(), 1, dtype, calm, &c);
  ck_assert_mem_eq(got.logits, one.logits, (size_t)got.n_logits * sizeof(double));
  ck_assert_mem_eq(got.grads, one.grads, (size_t)got.n_grads * sizeof(double));
  ck_assert_mem_eq(&got.loss, &one.loss, sizeof got.loss);
  /* The same experts, or nothing else is comparable. */
  ck_assert_mem_eq(got.loads, want.loads, (size_t)got.n_loads * sizeof(double));
  double logits = nmse(got.logits, want.logits, got.n_logits),
         grads = nmse(got.grads, want.grads, got.n_grads);
  ck_assert_msg(logits < logits_bound, "kind %d %s: logits nmse %.3g", kind, bk_dtype_name(dtype),
                logits);
  ck_assert_msg(grads < grads_bound, "kind %d %s: gradients nmse %.3g", kind, bk_dtype_name(dtype),
                grads);
  ck_assert_double_eq_tol(got.loss, want.loss, sqrt(logits_bound) * want.loss);
  outcome_free(&want);
  outcome_free(&got);
  outcome_free(&one);
}

START_TEST(test_fp32) { check_against_ref(_i, BK_F32, 1e-10, 1e-9); }
END_TEST

START_TEST(test_bf16) { check_against_ref(_i, BK_BF16, 4e-4, 2e-3); }
END_TEST

/* bf16 storage stays near fp32: a wrong store or a forgotten conversion would not. */
START_TEST(test_bf16_near_fp32) {
  bk_model_config c = config_of(_i);
  outcome a = outcome_of(fast_device(), 2, BK_BF16, true, &c),
          b = outcome_of(fast_device(), 2, BK_F32, true, &c);
  double logits = nmse(a.logits, b.logits, a.n_logits);
  ck_assert_msg(logits > 1e-9 && logits < 1e-3, "kind %d: logits nmse %.3g", _i, logits);
  outcome_free(&a);
  outcome_free(&b);
}
END_TEST

int main(void) {
  const TTest *const tests[] = {test_fp32, test_bf16, test_bf16_near_fp32};
  Suite *suite = suite_create("model_cpu");
  TCase *tcase = tcase_create("model_cpu");
  tcase_set_timeout(tcase, 120);
  tcase_add_checked_fixture(tcase, unit_open, unit_close);
  for (size_t i = 0; i < BK_COUNT(tests); i++)
    tcase_add_loop_test(tcase, tests[i], BK_HC_PLAIN, BK_HC_IHC + 1);
  suite_add_tcase(suite, tcase);
  return unit_run(suite);
}
