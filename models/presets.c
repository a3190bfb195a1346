/* Named models with the recipe that goes with each. mhc-3b, mhc-9b, mhc-27b: arXiv 2512.24880
 * appendix A.1. What its table leaves open was derived so that all six parameter counts come out
 * (2.97B/612M, 9.18B/1.66B, 27.0B/4.14B): query/key 128 + 64, value 128, no query compression,
 * dense FFN width = (active + shared) x expert width. Not stated there and chosen here: no
 * expert groups, weights normalised over the chosen experts and scaled by 2.5, as DeepSeek-V3.
 * rms_norm_eps and adam_eps: doc/model.md and arXiv 2512.24880. */
#include "models/model.h"

#include <string.h>

static const char *const names[] = {"tiny", "demo", "mhc-3b", "mhc-9b", "mhc-27b", NULL};

const char *const *bk_model_preset_names(void) { return names; }

/* This model is for tests: it has every part of the architecture in a few hundred thousand
 * parameters, query compression and expert groups included. 257 are the byte tokens and the end
 * token. */
static const bk_model_config tiny = {.vocab_size = 257,
                                     .hidden_size = 64,
                                     .intermediate_size = 96,
                                     .moe_intermediate_size = 32,
                                     .num_hidden_layers = 3,
                                     .num_attention_heads = 4,
                                     .n_shared_experts = 1,
                                     .n_routed_experts = 8,
                                     .num_experts_per_tok = 2,
                                     .n_group = 2,
                                     .topk_group = 1,
                                     .first_k_dense_replace = 1,
                                     .kv_lora_rank = 32,
                                     .q_lora_rank = 24,
                                     .qk_rope_head_dim = 8,
                                     .qk_nope_head_dim = 16,
                                     .v_head_dim = 16,
                                     .max_position_embeddings = 1024,
                                     .norm_topk_prob = true,
                                     .routed_scaling_factor = 1.0,
                                     .rms_norm_eps = 1e-6,
                                     .rope_theta = 10000.0,
                                     .initializer_range = 0.02,
                                     .residual = BK_HC_MHC,
                                     .hc_mult = 4,
                                     .hc_sinkhorn_iters = 20,
                                     .hc_head = BK_HEAD_SUM};

/* This model trains within minutes on a desktop computer. */
static const bk_model_config demo = {.vocab_size = 257,
                                     .hidden_size = 160,
                                     .intermediate_size = 480,
                                     .moe_intermediate_size = 160,
                                     .num_hidden_layers = 4,
                                     .num_attention_heads = 4,
                                     .n_shared_experts = 1,
                                     .n_routed_experts = 8,
                                     .num_experts_per_tok = 2,
                                     .n_group = 1,
                                     .topk_group = 1,
                                     .first_k_dense_replace = 1,
                                     .kv_lora_rank = 64,
                                     .q_lora_rank = 0,
                                     .qk_rope_head_dim = 16,
                                     .qk_nope_head_dim = 32,
                                     .v_head_dim = 32,
                                     .max_position_embeddings = 1024,
                                     .norm_topk_prob = true,
                                     .routed_scaling_factor = 1.0,
                                     .rms_norm_eps = 1e-6,
                                     .rope_theta = 10000.0,
                                     .initializer_range = 0.02,
                                     .residual = BK_HC_MHC,
                                     .hc_mult = 4,
                                     .hc_sinkhorn_iters = 20,
                                     .hc_head = BK_HEAD_SUM};

typedef struct paper_row {
  const char *name;
  int64_t layers, width, heads, expert_width, experts, batch, steps;
  double lr;
} paper_row;

/* The columns in which the paper's three models differ (arXiv 2512.24880 appendix A.1). */
static const paper_row paper[] = {
    {"mhc-3b", 12, 1280, 16, 896, 64, 320, 30000, 8.6e-4},
    {"mhc-9b", 18, 1920, 24, 1280, 64, 512, 50000, 5.9e-4},
    {"mhc-27b", 30, 2560, 32, 1536, 72, 1280, 50000, 4.0e-4},
};

/* The paper counts 6 active and 2 shared experts in all three models. */
static bk_model_config paper_model(const paper_row *p) {
  int64_t active = 6, shared = 2;
  return (bk_model_config){.vocab_size = 129280,
                           .hidden_size = p->width,
                           .intermediate_size = (active + shared) * p->expert_width,
                           .moe_intermediate_size = p->expert_width,
                           .num_hidden_layers = p->layers,
                           .num_attention_heads = p->heads,
                           .n_shared_experts = shared,
                           .n_routed_experts = p->experts,
                           .num_experts_per_tok = active,
                           .n_group = 1,
                           .topk_group = 1,
                           .first_k_dense_replace = 1,
                           .kv_lora_rank = 512,
                           .q_lora_rank = 0,
                           .qk_rope_head_dim = 64,
                           .qk_nope_head_dim = 128,
                           .v_head_dim = 128,
                           .max_position_embeddings = 4096,
                           .norm_topk_prob = true,
                           .routed_scaling_factor = 2.5,
                           .rms_norm_eps = 1e-6,
                           .rope_theta = 10000.0,
                           .initializer_range = 0.02,
                           .residual = BK_HC_MHC,
                           .hc_mult = 4,
                           .hc_sinkhorn_iters = 20,
                           .hc_head = BK_HEAD_SUM};
}

/* The recipe of the appendix. It says nothing of clipping, of the step of the router's bias and of
 * micro_batch_size, which are chosen here. */
static void paper_recipe(const paper_row *p, bk_train_config *t) {
  t->steps = p->steps;
  t->batch_size = p->batch;
  t->micro_batch_size = 1;
  t->seq_len = 4096;
  t->lr = p->lr;
  t->lr_schedule = BK_LR_STEP;
  t->warmup_steps = 2000;
  t->weight_decay = 0.1;
  t->adam_beta1 = 0.9;
  t->adam_beta2 = 0.95;
  t->adam_eps = 1e-20;
  t->grad_clip = 1.0;
  t->router_bias_lr = 1e-3;
}

/* For the presets that train on a desktop computer within minutes: no micro-batches, short
 * warm-up. */
static void small_recipe(int64_t steps, int64_t batch, int64_t seq_len, double lr,
                         bk_train_config *t) {
  t->steps = steps;
  t->batch_size = batch;
  t->micro_batch_size = 0;
  t->seq_len = seq_len;
  t->lr = lr;
  t->warmup_steps = steps / 20;
}

/* The result is NULL for a name that is none of the paper's models. */
static const paper_row *find_paper(const char *name) {
  for (size_t i = 0; i < BK_COUNT(paper); i++) {
    if (strcmp(name, paper[i].name) == 0) return &paper[i];
  }
  return NULL;
}

/* t may be NULL where the model alone is wanted. */
bk_status bk_model_preset(bk_context *ctx, const char *name, bk_model_config *m,
                          bk_train_config *t) {
  const paper_row *p = find_paper(name);
  bool is_tiny = strcmp(name, "tiny") == 0;
  if (!p && !is_tiny && strcmp(name, "demo") != 0) {
    return bk_fail(ctx, BK_ERR_NOT_FOUND,
                   "no preset '%s'; there are tiny, demo, mhc-3b, mhc-9b, mhc-27b", name);
  }
  *m = p ? paper_model(p) : is_tiny ? tiny : demo;
  if (!t) return BK_OK;
  bk_train_config_default(t);
  if (p) paper_recipe(p, t);
  else if (is_tiny) small_recipe(200, 4, 64, 3e-3, t);
  else small_recipe(600, 8, 256, 3e-3, t);
  return BK_OK;
}
