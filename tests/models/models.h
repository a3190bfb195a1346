/* What the model tests share: small configurations, lively weights, one training step, gradients
 * as doubles. */
#ifndef BK_TESTS_MODELS_H
#define BK_TESTS_MODELS_H

#include "io/dataset.h"
#include "models/runner.h"
#include "tests/unit/unit.h"

#include <math.h>

#define OK(call) ck_assert_int_eq(call, BK_OK)

typedef struct rig {
  bk_device *device;
  bk_model *model;
  bk_runner *runner;
} rig;

/* Every kind of connection between sublayers. */
static BK_UNUSED const int kinds[] = {BK_HC_PLAIN,    BK_HC_HC,  BK_HC_MHC,
                                      BK_HC_MHC_LITE, BK_HC_IHC, BK_HC_KROMHC};

/* Three layers, the first dense; every size different, so that mixed-up dimensions show. */
static BK_UNUSED bk_model_config small_config(int residual) {
  return (bk_model_config){.vocab_size = 23,
                           .hidden_size = 12,
                           .intermediate_size = 14,
                           .moe_intermediate_size = 5,
                           .num_hidden_layers = 3,
                           .num_attention_heads = 2,
                           .n_shared_experts = 2,
                           .n_routed_experts = 6,
                           .num_experts_per_tok = 2,
                           .n_group = 3,
                           .topk_group = 2,
                           .first_k_dense_replace = 1,
                           .kv_lora_rank = 7,
                           .q_lora_rank = 0,
                           .qk_rope_head_dim = 4,
                           .qk_nope_head_dim = 6,
                           .v_head_dim = 3,
                           .max_position_embeddings = 64,
                           .norm_topk_prob = true,
                           .routed_scaling_factor = 1.7,
                           .rms_norm_eps = 1e-6,
                           .rope_theta = 100.0,
                           .initializer_range = 0.3,
                           .residual = residual,
                           .hc_mult = 4,
                           .hc_sinkhorn_iters = 20,
                           .hc_head = BK_HEAD_SUM};
}

/* For texts of bytes. */
static BK_UNUSED bk_model_config text_config(int residual) {
  bk_model_config c = small_config(residual);
  c.vocab_size = 257;
  c.initializer_range = 0.1;
  return c;
}

/* A file with such a text. */
static BK_UNUSED const char *path_of_text(void) {
  const char *path = unit_path("text.txt");
  char text[1500];
  for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + i * i % 23 % (1 + i % 7));
  OK(bk_file_write_atomic(ctx, path, text, sizeof text));
  return path;
}

/* The level of tests; neither is the ordinary one. */
static BK_UNUSED bool quick(void) { return getenv("BK_TEST_QUICK") != NULL; }
static BK_UNUSED bool thorough(void) { return getenv("BK_TEST_LONG") != NULL; }

/* The backend that is compared with ref: cpu, or what BK_TEST_DEVICE names. */
static BK_UNUSED const char *fast_device(void) {
  const char *name = getenv("BK_TEST_DEVICE");
  return name && *name ? name : "cpu";
}

static BK_UNUSED bk_device *open_device(const char *name, int threads) {
  bk_device *device = NULL;
  bk_device_options options = {.threads = threads};
  OK(bk_device_open(ctx, name, &options, &device));
  return device;
}

/* Adds noise to what starts constant, so that no gradient is near zero by symmetry; biases stay
 * around -0.5. */
static BK_UNUSED void enliven(bk_model *m, uint64_t seed) {
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    if (p->init == BK_INIT_NORMAL) continue;
    bk_tensor w = bk_param_weight(m, p), master = bk_param_master(m, p);
    int64_t n = bk_tensor_count(&w);
    double *v = bk_alloc_array(ctx, (size_t)n, sizeof *v);
    OK(bk_tensor_read_f64(m->stream, &w, v));
    bool bias = strstr(p->name, "bias") != NULL, comb = p->init == BK_INIT_VALUES;
    for (int64_t j = 0; j < n; j++) {
      double noise = bk_normal(seed, (uint64_t)i, (uint64_t)j);
      v[j] = bias ? -0.5 + 0.1 * noise : (comb && v[j] < -4.0 ? -1.0 : v[j]) + 0.3 * noise;
      if (p->init == BK_INIT_CONST && strstr(p->name, "scale")) v[j] = 0.4 + 0.1 * noise;
    }
    OK(bk_tensor_write_f64(m->stream, &w, v));
    if (bk_tensor_present(&master)) OK(bk_tensor_write_f64(m->stream, &master, v));
    bk_free(ctx, v);
  }
}

static BK_UNUSED rig rig_open(const char *device, int threads, const bk_model_config *config,
                              bk_dtype dtype, const bk_runner_options *options) {
  rig r = {.device = open_device(device, threads)};
  OK(bk_model_create(r.device, config, dtype, &(bk_model_options){.trainable = true}, &r.model));
  OK(bk_model_init(r.model, 7));
  enliven(r.model, 11);
  OK(bk_runner_create(r.model, options, &r.runner));
  return r;
}

static BK_UNUSED void rig_close(rig *r) {
  bk_runner_destroy(r->runner);
  bk_model_destroy(r->model);
  bk_device_close(r->device);
  *r = (rig){0};
}

/* Pseudo-random tokens; every fifth target is ignored. Returns the number kept. */
static BK_UNUSED int64_t make_tokens(int64_t vocab, int64_t n, uint64_t seed, int32_t *ids,
                                     int32_t *targets) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    ids[i] = (int32_t)(bk_uniform(seed, 1, (uint64_t)i) * (double)vocab);
    targets[i] = i % 5 == 3 ? -100 : (int32_t)(bk_uniform(seed, 2, (uint64_t)i) * (double)vocab);
    kept += targets[i] >= 0;
  }
  return kept;
}

static BK_UNUSED void begin_step(bk_model *m, int64_t kept) {
  bk_step_values values = {
      .lr = 1e-3, .bc1 = 0.1, .bc2 = 0.05, .max_norm = 1.0, .loss_scale = 1.0 / (double)kept};
  OK(bk_step_begin(m, &values));
}

static BK_UNUSED double end_step(bk_model *m, int64_t kept) {
  bk_step_results results;
  OK(bk_step_end(m, &results));
  ck_assert(results.finite);
  return results.loss_sum / (double)kept;
}

/* Forward, backward, gradients overwritten; the mean loss. */
static BK_UNUSED double run_step(rig *r, const int32_t *ids, const int32_t *targets, int64_t kept) {
  begin_step(r->model, kept);
  OK(bk_runner_forward(r->runner, 0, ids, targets));
  OK(bk_runner_backward(r->runner, 0));
  return end_step(r->model, kept);
}

/* All gradients one after the other in parameter order; bk_free. */
static BK_UNUSED double *read_grads(const bk_model *m, int64_t *count) {
  int64_t n = 0, at = 0;
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor g = bk_param_grad(m, &m->params[i]);
    n += bk_tensor_count(&g);
  }
  double *values = bk_alloc_array(ctx, (size_t)n, sizeof *values);
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor g = bk_param_grad(m, &m->params[i]);
    if (!bk_tensor_present(&g)) continue;
    OK(bk_tensor_read_f64(m->stream, &g, values + at));
    at += bk_tensor_count(&g);
  }
  *count = n;
  return values;
}

static BK_UNUSED double *read_tensor(const bk_model *m, bk_tensor t) {
  double *v = bk_alloc_array(ctx, (size_t)bk_tensor_count(&t), sizeof *v);
  OK(bk_tensor_read_f64(m->stream, &t, v));
  return v;
}

static BK_UNUSED double norm_of(const double *v, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; i++) sum += v[i] * v[i];
  return sqrt(sum);
}

static BK_UNUSED double distance(const double *a, const double *b, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sqrt(sum);
}

/* Worst over tensors of |a - b| / max(|b|, 1e-6 global |b|) (doc/numerics.md, Comparing);
 * names the tensor. */
static BK_UNUSED double worst_grad_error(const bk_model *m, const double *a, const double *b,
                                         int64_t count, const char **name) {
  double floor_norm = 1e-6 * norm_of(b, count), worst = 0.0;
  int64_t at = 0;
  *name = "";
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor g = bk_param_grad(m, &m->params[i]);
    int64_t n = bk_tensor_count(&g);
    if (n == 0) continue;
    double e = distance(a + at, b + at, n) / fmax(norm_of(b + at, n), floor_norm);
    if (!(e <= worst)) {
      worst = e;
      *name = m->params[i].name;
    }
    at += n;
  }
  return worst;
}

/* Weights, masters, moments and gradients bit for bit; on devices whose memory is the host's. */
static BK_UNUSED void check_same_params(const bk_model *a, const bk_model *b, const char *what) {
  typedef bk_tensor (*view_fn)(const bk_model *, const bk_param *);
  static const view_fn views[] = {bk_param_weight, bk_param_master, bk_param_m, bk_param_v,
                                  bk_param_grad};
  for (int i = 0; i < a->n_params; i++)
    for (size_t k = 0; k < BK_COUNT(views); k++) {
      bk_tensor x = views[k](a, &a->params[i]), y = views[k](b, &b->params[i]);
      if (!bk_tensor_present(&x)) continue;
      ck_assert_msg(memcmp(bk_tensor_data(&x), bk_tensor_data(&y), bk_tensor_bytes(&x)) == 0,
                    "%s: %s differs (part %d)", what, a->params[i].name, (int)k);
    }
}

/* So many letters, for training and validation both; wants the folder of unit_folder_open. */
static BK_UNUSED bk_dataset *text_of(size_t letters) {
  bk_dataset *data = NULL;
  const char *file = unit_path("text.txt");
  char text[2000];
  ck_assert_uint_le(letters, sizeof text);
  for (size_t i = 0; i < letters; i++) text[i] = (char)('a' + i * i % 23 % (1 + i % 7));
  OK(bk_file_write_atomic(ctx, file, text, letters));
  OK(bk_dataset_open(ctx, &file, 1, &(bk_dataset_options){.vocab_size = 257, .split = BK_SPLIT_ALL},
                     &data));
  return data;
}
static BK_UNUSED bk_dataset *small_text(void) { return text_of(400); }

#endif
