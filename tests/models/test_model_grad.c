/* Every gradient of a whole small model on ref in double against central differences (6 points),
 * for each residual connection. */
#include "tests/models/models.h"

enum { B = 2, T = 5, SAMPLES = 4, TRIES = 12, MAX_LOADS = 64 };

/* Expert choices are steps in the loss: a point whose neighbours choose differently is not
 * comparable. */
typedef struct loads {
  double count[MAX_LOADS];
} loads;
static loads expected;
static bool flipped;

static loads read_loads(const rig *r) {
  loads l = {{0}};
  int E = (int)r->model->config.n_routed_experts;
  for (int i = 0; i < bk_runner_n_moe(r->runner); i++) {
    bk_tensor t = bk_model_expert_load(r->model, i);
    ck_assert_int_le((i + 1) * E, MAX_LOADS);
    OK(bk_tensor_read_f64(r->model->stream, &t, l.count + i * E));
  }
  return l;
}

static double loss_of(rig *r, const int32_t *ids, const int32_t *targets, int64_t kept) {
  begin_step(r->model, kept);
  OK(bk_runner_forward(r->runner, 0, ids, targets));
  double loss = end_step(r->model, kept);
  loads now = read_loads(r);
  flipped |= memcmp(&now, &expected, sizeof now) != 0;
  return loss;
}

static double loss_at(rig *r, const bk_tensor *element, double value, const int32_t *ids,
                      const int32_t *targets, int64_t kept) {
  OK(bk_tensor_write_f64(r->model->stream, element, &value));
  return loss_of(r, ids, targets, kept);
}

static double difference(rig *r, const bk_tensor *element, double step, const int32_t *ids,
                         const int32_t *targets, int64_t kept) {
  static const double weight[3] = {45.0 / 60.0, -9.0 / 60.0, 1.0 / 60.0};
  double value, sum = 0.0;
  OK(bk_tensor_read_f64(r->model->stream, element, &value));
  for (int i = 0; i < 3; i++) {
    double h = step * (i + 1);
    sum += weight[i] * (loss_at(r, element, value + h, ids, targets, kept) -
                        loss_at(r, element, value - h, ids, targets, kept));
  }
  OK(bk_tensor_write_f64(r->model->stream, element, &value));
  return sum / step;
}

static bk_tensor element_of(bk_tensor t, int64_t i) {
  return bk_tensor_slice(bk_tensor_reshape(t, 1, (int64_t[]){bk_tensor_count(&t)}), 0, i, 1);
}

static void check_param(rig *r, int index, double floor_norm, const int32_t *ids,
                        const int32_t *targets, int64_t kept) {
  const bk_param *p = &r->model->params[index];
  if (!bk_param_trainable(r->model, p)) return;
  double *grad = read_tensor(r->model, bk_param_grad(r->model, p));
  bk_tensor weight = bk_param_weight(r->model, p);
  int64_t count = bk_tensor_count(&weight);
  double scale = fmax(norm_of(grad, count), floor_norm);
  int checked = 0;
  for (int j = 0; j < TRIES && checked < SAMPLES && (checked < count || j < count); j++) {
    int64_t i = count <= TRIES
                    ? j % count
                    : (int64_t)(bk_uniform(3, (uint64_t)index, (uint64_t)j) * (double)count);
    bk_tensor e = element_of(weight, i);
    flipped = false;
    /* A long step has less rounding noise, a short one less curvature (norms of nearly cancelled
     * sums bend sharply). */
    double error = fabs(difference(r, &e, 3e-3, ids, targets, kept) - grad[i]) / scale;
    if (flipped || error > 1e-6) {
      flipped = false;
      error = fabs(difference(r, &e, 3e-4, ids, targets, kept) - grad[i]) / scale;
    }
    if (flipped) continue;
    checked++;
    ck_assert_msg(error < 1e-6, "%s[%lld]: relative error %.3g, gradient %.6g", p->name,
                  (long long)i, error, grad[i]);
  }
  ck_assert_msg(checked > 0, "%s: expert choices flipped at every point", p->name);
  bk_free(ctx, grad);
}

static void check_model(const bk_model_config *config, uint64_t seed) {
  int32_t ids[B * T], targets[B * T];
  bk_runner_options options = {.batch = B, .seq_len = T, .slots = 1, .backward = true};
  rig r = rig_open("ref", 1, config, BK_F64, &options);
  int64_t count, kept = make_tokens(config->vocab_size, B * T, seed, ids, targets);
  run_step(&r, ids, targets, kept);
  double *grads = read_grads(r.model, &count);
  double norm = norm_of(grads, count);
  expected = read_loads(&r);
  ck_assert(norm > 1e-3);
  /* Forward passes change the gradients of lm_head, so the analytic ones are put back before
   * each tensor is looked at. */
  for (int i = 0; i < r.model->n_params; i++) {
    run_step(&r, ids, targets, kept);
    check_param(&r, i, 1e-6 * norm, ids, targets, kept);
  }
  bk_free(ctx, grads);
  rig_close(&r);
}

START_TEST(test_plain) {
  bk_model_config c = small_config(BK_HC_PLAIN);
  check_model(&c, 5);
}
END_TEST

START_TEST(test_hc) {
  bk_model_config c = small_config(BK_HC_HC);
  c.q_lora_rank = 5;
  check_model(&c, 5);
}
END_TEST

START_TEST(test_mhc) {
  bk_model_config c = small_config(BK_HC_MHC);
  check_model(&c, 5);
}
END_TEST

START_TEST(test_mhc_eps_learned) {
  bk_model_config c = small_config(BK_HC_MHC);
  c.hc_eps = 1e-3;
  c.hc_sinkhorn_iters = 3;
  c.hc_head = BK_HEAD_LEARNED;
  c.hc_mult = 3;
  c.n_shared_experts = 0;
  check_model(&c, 5);
}
END_TEST

START_TEST(test_mhc_lite_learned) {
  bk_model_config c = small_config(BK_HC_MHC_LITE);
  c.hc_mult = 3;
  c.hc_head = BK_HEAD_LEARNED;
  c.q_lora_rank = 5;
  c.norm_topk_prob = false;
  check_model(&c, 5);
}
END_TEST

START_TEST(test_ihc) {
  bk_model_config c = small_config(BK_HC_IHC);
  c.hc_mult = 2;
  c.hc_eps = 1e-2;
  c.first_k_dense_replace = 0;
  check_model(&c, 5);
}
END_TEST

START_TEST(test_kromhc) {
  bk_model_config c = small_config(BK_HC_KROMHC);
  c.hc_mult = 4;
  c.hc_eps = 1e-2;
  check_model(&c, 5);
}
END_TEST

START_TEST(test_one_stream) {
  bk_model_config c = small_config(BK_HC_MHC);
  c.hc_mult = 1;
  c.first_k_dense_replace = 3;
  check_model(&c, 5);
}
END_TEST

UNIT_MAIN("model_grad", unit_open, unit_close, test_plain, test_hc, test_mhc, test_mhc_eps_learned,
          test_mhc_lite_learned, test_ihc, test_kromhc, test_one_stream)
