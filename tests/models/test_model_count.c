/* Presets and their counts: the paper's table (arXiv 2512.24880, appendix A.1), and counts
 * against the planned parameters. */
#include "tests/models/models.h"
#include "models/stage_costs.h"

static bk_model_counts count_of(const char *preset, bk_model_config *c) {
  bk_model_counts counts;
  OK(bk_model_preset(ctx, preset, c, NULL));
  bk_model_count(c, 4096, &counts);
  return counts;
}

/* Rounded to the digits that the paper prints. */
static void check_paper(const char *preset, double total, double total_unit, double active,
                        double active_unit, double vocabulary) {
  bk_model_config c;
  bk_model_counts n = count_of(preset, &c);
  ck_assert_double_eq(round((double)n.parameters_total / total_unit), round(total / total_unit));
  ck_assert_double_eq(round((double)n.parameters_active / active_unit),
                      round(active / active_unit));
  ck_assert_double_eq(round((double)n.parameters_vocabulary / 1e6), round(vocabulary / 1e6));
}

START_TEST(test_paper_counts) {
  check_paper("mhc-3b", 2.97e9, 1e7, 612e6, 1e6, 331e6);
  check_paper("mhc-9b", 9.18e9, 1e7, 1.66e9, 1e7, 496e6);
  check_paper("mhc-27b", 27.0e9, 1e8, 4.14e9, 1e7, 662e6);
}
END_TEST

static void check_planned(bk_device *device, const bk_model_config *c) {
  bk_model *m;
  bk_model_counts counts;
  int64_t views = 0, blocks = 0, connections = 0;
  OK(bk_model_create(device, c, BK_F32, &(bk_model_options){.trainable = true, .plan_only = true},
                     &m));
  bk_model_count(c, 128, &counts);
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor w = bk_param_weight(m, &m->params[i]);
    views += bk_tensor_count(&w);
    if (strstr(m->params[i].name, "hc_")) connections += bk_tensor_count(&w);
  }
  for (int i = 0; i < m->n_blocks; i++) blocks += bk_tensor_count(&m->blocks[i].weight);
  ck_assert_int_eq(views, counts.parameters_total);
  ck_assert_int_eq(blocks, counts.parameters_total);
  ck_assert_int_eq(connections, counts.parameters_connections);
  ck_assert_int_ge(counts.parameters_total, counts.parameters_active);
  bk_model_destroy(m);
}

START_TEST(test_counts_are_the_parameters) {
  bk_device *device = open_device("cpu", 1);
  bk_model_config c;
  for (const char *const *name = bk_model_preset_names(); *name; name++) {
    OK(bk_model_preset(ctx, *name, &c, NULL));
    check_planned(device, &c);
  }
  for (int kind = BK_HC_PLAIN; kind <= BK_HC_IHC; kind++) {
    c = small_config(kind);
    check_planned(device, &c);
    c.hc_head = BK_HEAD_LEARNED;
    c.q_lora_rank = 5;
    c.n_shared_experts = 0;
    check_planned(device, &c);
  }
  bk_device_close(device);
}
END_TEST

START_TEST(test_flops) {
  bk_model_config c = small_config(BK_HC_PLAIN);
  bk_model_counts n;
  bk_model_count(&c, 9, &n);
  /* query, key/value, output; dense; router, shared, experts; head */
  double attention = 12 * 20 + 12 * 11 + 7 * 18 + 6 * 12, sparse = 6 * 12 + (2 + 2) * 3 * 12 * 5;
  double matrices = 3 * attention + 3 * 12 * 14 + 2 * sparse + 23 * 12;
  ck_assert_double_eq(n.flops_per_token, 6 * matrices + 3.0 * (3 * 2 * (10 + 3)) * 10);
}
END_TEST

/* What each part costs adds up to what the model costs, and the parts are where they belong. */
START_TEST(test_sublayer_costs) {
  bk_model_config c;
  for (const char *const *name = bk_model_preset_names(); *name; name++) {
    bk_model_counts n = count_of(*name, &c);
    int parts = 2 * (int)c.num_hidden_layers + 2;
    double costs[128], sum = 0;
    ck_assert_int_le(parts, 128);
    bk_sublayer_costs(&c, 4096, costs);
    for (int i = 0; i < parts; i++) sum += costs[i];
    ck_assert_double_eq(sum, n.flops_per_token);
    ck_assert_double_eq(costs[0], 0);
    ck_assert_double_ge(costs[parts - 1], 6.0 * (double)(c.vocab_size * c.hidden_size));
  }
  c = small_config(BK_HC_PLAIN);
  double costs[8];
  bk_sublayer_costs(&c, 9, costs);
  double attention = 12 * 20 + 12 * 11 + 7 * 18 + 6 * 12, sparse = 6 * 12 + (2 + 2) * 3 * 12 * 5;
  ck_assert_double_eq(costs[1], 6 * attention + 3.0 * (2 * (10 + 3)) * 10);
  ck_assert_double_eq(costs[2], 6.0 * 3 * 12 * 14);
  ck_assert_double_eq(costs[6], 6 * sparse);
  ck_assert_double_eq(costs[7], 6.0 * 23 * 12);
}
END_TEST

/* A 27B model is planned, runner and optimiser too, without its memory. */
START_TEST(test_plan_only) {
  bk_device *device = open_device("cpu", 1);
  bk_model_config c;
  bk_train_config t;
  bk_model *m;
  bk_runner *r;
  bk_optimizer *o;
  OK(bk_model_preset(ctx, "mhc-27b", &c, &t));
  OK(bk_train_config_validate(ctx, &t));
  OK(bk_model_create(device, &c, BK_BF16, &(bk_model_options){.trainable = true, .plan_only = true},
                     &m));
  OK(bk_runner_create(m,
                      &(bk_runner_options){.batch = 1,
                                           .seq_len = t.seq_len,
                                           .slots = 1,
                                           .backward = true,
                                           .hc_recompute = BK_RECOMPUTE_AUTO},
                      &r));
  OK(bk_optimizer_create(m, &(bk_optimizer_options){0.9, 0.95, 1e-20, 0.1, 0}, &o));
  ck_assert_double_gt((double)bk_memory_bytes(m->memory, BK_MEM_WEIGHTS), 2 * 26.9e9);
  ck_assert_double_lt((double)bk_memory_bytes(m->memory, BK_MEM_WEIGHTS), 2 * 27.3e9);
  ck_assert_double_gt((double)bk_memory_bytes(m->memory, BK_MEM_OPTIMIZER), 8 * 26.9e9);
  ck_assert_uint_gt(bk_runner_bytes(r, BK_MEM_ACTIVATIONS), bk_runner_bytes(r, BK_MEM_WEIGHTS));
  ck_assert_uint_eq(device->buffer_allocs, 0);
  int32_t id = 0;
  ck_assert_int_eq(bk_runner_forward(r, 0, &id, NULL), BK_ERR_ARGUMENT);
  unit_expect("only planned");
  ck_assert_int_eq(bk_model_init(m, 1), BK_ERR_ARGUMENT);
  unit_expect("only planned");
  bk_optimizer_destroy(o);
  bk_runner_destroy(r);
  bk_model_destroy(m);
  bk_device_close(device);
}
END_TEST

START_TEST(test_presets) {
  bk_model_config c;
  bk_train_config t;
  for (const char *const *name = bk_model_preset_names(); *name; name++) {
    OK(bk_model_preset(ctx, *name, &c, &t));
    OK(bk_model_config_validate(ctx, &c));
    OK(bk_train_config_validate(ctx, &t));
    ck_assert_double_eq(c.rms_norm_eps, 1e-6);
    ck_assert_int_le(t.seq_len, c.max_position_embeddings);
  }
  ck_assert_int_eq(bk_model_preset(ctx, "mhc-4b", &c, NULL), BK_ERR_NOT_FOUND);
  unit_expect("tiny, demo, mhc-3b, mhc-9b, mhc-27b");
}
END_TEST

/* Initial values: doc/numerics.md; the same on every backend; nothing depends on the order
 * of creation. */
static void check_values(const bk_model *m, const char *name, const double *want, int64_t n) {
  const bk_param *p = bk_model_find(m, name);
  ck_assert_msg(p != NULL, "no %s", name);
  bk_tensor w = bk_param_weight(m, p);
  ck_assert_int_eq(bk_tensor_count(&w), n);
  double *got = read_tensor(m, w);
  for (int64_t i = 0; i < n; i++) {
    ck_assert_msg(got[i] == (double)(float)want[i], "%s[%d] is %g, not %g", name, (int)i, got[i],
                  want[i]);
  }
  bk_free(ctx, got);
}

static bk_model *fresh(bk_device *device, bk_model_config c, bk_dtype dtype) {
  bk_model *m;
  OK(bk_model_create(device, &c, dtype, &(bk_model_options){.trainable = true}, &m));
  OK(bk_model_init(m, 3));
  return m;
}

START_TEST(test_initial_values) {
  bk_device *device = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_MHC);
  c.hc_mult = 3;
  c.hc_head = BK_HEAD_LEARNED;
  bk_model *m = fresh(device, c, BK_F32);
  check_values(m, "model.layers.1.hc_attn_base",
               (double[]){-1, -1, 1, -1, -1, 1, 0, -8, -8, -8, 0, -8, -8, -8, 0}, 15);
  check_values(m, "model.layers.1.hc_ffn_base",
               (double[]){1, -1, -1, 1, -1, -1, 0, -8, -8, -8, 0, -8, -8, -8, 0}, 15);
  check_values(m, "model.layers.0.hc_attn_scale", (double[]){0.01, 0.01, 0.01}, 3);
  check_values(m, "model.hc_head_base", (double[]){0, 0, 0}, 3);
  check_values(m, "model.hc_head_scale", (double[]){1}, 1);
  check_values(m, "model.layers.1.mlp.gate.e_score_correction_bias", (double[]){0, 0, 0, 0, 0, 0},
               6);
  const bk_param *up = bk_model_find(m, "model.layers.2.mlp.experts.5.up_proj.weight");
  ck_assert(up && up->ndim == 2 && up->shape[0] == 5 && up->shape[1] == 12);
  double want[60];
  uint64_t stream = bk_hash64(up->name, strlen(up->name));
  for (uint64_t i = 0; i < 60; i++) want[i] = c.initializer_range * bk_normal(3, stream, i);
  check_values(m, up->name, want, 60);
  bk_model_destroy(m);
  c.residual = BK_HC_HC;
  m = fresh(device, c, BK_F32);
  check_values(m, "model.layers.1.hc_attn_base",
               (double[]){0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1}, 15);
  bk_model_destroy(m);
  c.residual = BK_HC_MHC_LITE;
  m = fresh(device, c, BK_F32);
  check_values(m, "model.layers.0.hc_ffn_base",
               (double[]){-1, 1, -1, -1, 1, -1, 0, -8, -8, -8, -8, -8}, 12);
  bk_model_destroy(m);
  bk_device_close(device);
}
END_TEST

/* Of more than 2^21 values 2^20 are drawn, then repeated; masters too. */
static void check_repeated(const bk_model *m, const bk_model *rough, bk_tensor t, bk_tensor u) {
  double *drawn = read_tensor(m, t), *got = read_tensor(rough, u);
  int64_t wrong = 0;
  for (int64_t k = 0; k < bk_tensor_count(&t); k++) wrong += got[k] != drawn[k % (1 << 20)];
  ck_assert_int_eq(wrong, 0);
  bk_free(ctx, got);
  bk_free(ctx, drawn);
}

START_TEST(test_rough_values) {
  bk_device *device = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_MHC);
  c.vocab_size = (1 << 21) / c.hidden_size + 1000;
  bk_model *m = fresh(device, c, BK_BF16), *rough = fresh(device, c, BK_BF16);
  OK(bk_model_init_rough(rough, 3));
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i], *q = &rough->params[i];
    bk_tensor master = bk_param_master(m, p);
    check_repeated(m, rough, bk_param_weight(m, p), bk_param_weight(rough, q));
    if (bk_tensor_present(&master)) check_repeated(m, rough, master, bk_param_master(rough, q));
  }
  bk_model_destroy(rough);
  bk_model_destroy(m);
  bk_device_close(device);
}
END_TEST

START_TEST(test_same_initial_values_everywhere) {
  bk_device *cpu = open_device("cpu", 2), *ref = open_device("ref", 1);
  bk_model_config c = small_config(BK_HC_MHC);
  bk_model *a = fresh(cpu, c, BK_F32), *b = fresh(ref, c, BK_F32), *h = fresh(cpu, c, BK_BF16);
  for (int i = 0; i < a->n_params; i++) {
    bk_tensor w = bk_param_weight(a, &a->params[i]), master = bk_param_master(h, &h->params[i]);
    int64_t n = bk_tensor_count(&w);
    double *x = read_tensor(a, w), *y = read_tensor(b, bk_param_weight(b, &b->params[i]));
    double *z = read_tensor(h, bk_param_weight(h, &h->params[i]));
    ck_assert_mem_eq(x, y, (size_t)n * sizeof *x);
    for (int64_t j = 0; j < n && bk_tensor_present(&master); j++) {
      ck_assert_double_eq(z[j], (double)bk_bf16_to_f32(bk_f32_to_bf16((float)x[j])));
    }
    if (bk_tensor_present(&master)) {
      double *q = read_tensor(h, master);
      ck_assert_mem_eq(x, q, (size_t)n * sizeof *x);
      bk_free(ctx, q);
    } else {
      ck_assert_mem_eq(x, z, (size_t)n * sizeof *x);
    }
    bk_free(ctx, x);
    bk_free(ctx, y);
    bk_free(ctx, z);
  }
  bk_model_destroy(a);
  bk_model_destroy(b);
  bk_model_destroy(h);
  bk_device_close(cpu);
  bk_device_close(ref);
}
END_TEST

UNIT_MAIN("model_count", unit_open, unit_close, test_paper_counts, test_counts_are_the_parameters,
          test_flops, test_sublayer_costs, test_plan_only, test_presets, test_initial_values,
          test_rough_values, test_same_initial_values_everywhere)
