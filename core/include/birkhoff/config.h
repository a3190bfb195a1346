/* The model's configuration (config.json) and the training recipe: plain structs, described by
 * option tables, so that the JSON reader and writer, --set, --help-config and the range checks
 * are generic. config.h and config.c (defaults, tables, validation) need no JSON library;
 * config_json.c and config_family.c do. */
#ifndef BIRKHOFF_CONFIG_H
#define BIRKHOFF_CONFIG_H

#include <birkhoff/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- option tables (options.c) ---- */
typedef enum bk_option_type {
  BK_OPT_INT,
  BK_OPT_DOUBLE,
  BK_OPT_BOOL,
  BK_OPT_ENUM,
  BK_OPT_INT_OR_NULL, /* int64_t: "null" is 0 */
  BK_OPT_INT_OR_AUTO, /* int64_t: "auto" is -1, "off" is 0 */
} bk_option_type;
typedef struct bk_option {
  const char *name; /* key in config.json, --set and --help-config */
  bk_option_type type;
  size_t offset; /* in its struct: int64_t, double, bool (as bool), int (enum) */
  /* inclusive; for numbers (the words null, auto and off stand beside the range) */
  double min, max;
  const char *const *choices; /* BK_OPT_ENUM: NULL-terminated, the value is the index */
  const char *doc;
} bk_option;

typedef enum bk_hc_head { BK_HEAD_SUM, BK_HEAD_LEARNED } bk_hc_head;

#define BK_END_TOKENS 32
/* Keys are Hugging Face's for DeepSeek-V3, plus residual and hc_*. Sizes are counts. A
 * config.json is taken whose model_type is "deepseek_v3" or "birkhoff" and whose architectures
 * are "DeepseekV3ForCausalLM", "DeepseekV3Model" or "BirkhoffForCausalLM". Either may be absent;
 * where both are, kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim and
 * n_routed_experts must be there. An absent key takes DeepSeek-V3's value. null means:
 * q_lora_rank, no compression; n_shared_experts, 0; n_group, 1; topk_group, all groups (so does
 * its absence beside n_group null); num_key_value_heads, as many as num_attention_heads;
 * rope_theta, what rope_parameters says; eos_token_id (where -1 says the same),
 * num_nextn_predict_layers, rope_scaling, quantization_config, none. No other key that describes
 * the model may be null. */
typedef struct bk_model_config {
  int64_t vocab_size, hidden_size, intermediate_size, moe_intermediate_size, num_hidden_layers,
      num_attention_heads;
  int64_t n_shared_experts, n_routed_experts, num_experts_per_tok, n_group, topk_group,
      first_k_dense_replace;
  int64_t kv_lora_rank, q_lora_rank /* 0 = null: no query compression */, qk_rope_head_dim,
      qk_nope_head_dim, v_head_dim;
  int64_t max_position_embeddings;
  bool norm_topk_prob;
  double routed_scaling_factor, rms_norm_eps, rope_theta, initializer_range;
  /* bk_hc_kind, any but HEAD; key "residual": its name in small letters */
  int residual;
  int64_t hc_mult, hc_sinkhorn_iters;
  double hc_eps;
  int hc_head; /* bk_hc_head: sum, learned */
  /* Beside bk_model_keys, of config.json alone: what the model was made with, not what it
   * computes. */
  /* tokens that end a text, one or a list there; written again */
  int64_t eos_token_id[BK_END_TOKENS];
  /* 0: none is known; an id may be past vocab_size, which is warned about */
  int n_eos_token_ids;
  /* 0 to 64: layers past num_hidden_layers that predict further tokens; their tensors are not
   * loaded, and 0 is written */
  int64_t num_nextn_predict_layers;
} bk_model_config;
extern BK_API const bk_option bk_model_keys[]; /* ends with name NULL */

typedef enum bk_lr_schedule { BK_LR_STEP, BK_LR_COSINE, BK_LR_CONSTANT } bk_lr_schedule;
/* hc_recompute: -1 = auto (L_r = round(sqrt(n L / (n + 2)))), 0 = off, >= 1 = sublayers per
 * block. */
#define BK_RECOMPUTE_AUTO (-1)

typedef struct bk_train_config {
  int64_t steps, batch_size /* sequences per step */,
      micro_batch_size /* sequences; 0 = batch_size */, seq_len;
  uint64_t seed; /* as int64 option, >= 0 */
  double lr, min_lr_ratio, weight_decay, adam_beta1, adam_beta2, adam_eps, grad_clip /* 0 = off */,
      router_bias_lr;
  int lr_schedule;
  int64_t warmup_steps, save_every, keep, eval_every,
      eval_tokens /* most tokens of a validation pass in training; 0 = all */, gain_every;
  /* warned about beyond; 0 = off */
  double spike_factor /* on the median gradient norm */, gain_limit;
  int64_t hc_recompute; /* auto | off | N in text */
  int data_dtype;       /* 0 auto, 1 uint16, 2 uint32 */
  /* for whoever opens the data: bk_dataset_options whole_bin is its opposite */
  bool bin_validation;
  bool merge_stream; /* see the key */
  /* for whoever opens the device: bk_device_options allow_tf32 and no_graph; no effect on a CPU */
  bool allow_tf32, cuda_graph;
} bk_train_config;
extern BK_API const bk_option bk_train_keys[];

BK_API void bk_train_config_default(bk_train_config *t);

/* Applies "KEY=VALUE" to the struct that has KEY. Unknown key: BK_ERR_NOT_FOUND naming the
 * nearest of both tables; a bad or out-of-range value: BK_ERR_CONFIG with the range. Either
 * pointer may be NULL (then its keys are refused with the reason). */
BK_API bk_status bk_config_set(bk_context *ctx, bk_model_config *m, bk_train_config *t,
                               const char *assignment);
/* Ranges, sizes that do not divide, products that are too large. Logs a message for every
 * reason, not only for the first. */
BK_API bk_status bk_model_config_validate(bk_context *ctx, const bk_model_config *m);
BK_API bk_status bk_train_config_validate(bk_context *ctx, const bk_train_config *t);
/* L_r in force: number of sublayers per recompute block, 0 = off. */
BK_API int64_t bk_recompute_block(const bk_model_config *m, int64_t hc_recompute);
/* Learning rate of step t (1-based): linear warm-up over warmup_steps, then the schedule. step:
 * x 0.316 from 80 % of the steps, x 0.1 from 90 % (of the base rate; arXiv 2512.24880 appendix);
 * cosine: to min_lr_ratio x lr at the last step; constant. */
BK_API double bk_learning_rate(const bk_train_config *t, int64_t step);
/* Values as text (for --help-config, logs): into text, returns text. */
BK_API char *bk_option_value_text(const bk_option *o, const void *config, char *text, size_t size);

/* ---- config_json.c (jansson) ---- */
/* Reads, checks, validates. BK_ERR_DATA: no JSON object; BK_ERR_CONFIG: a model that is not
 * built here, with a message for every reason, which begins with the path (or `origin`). Another
 * family's name is the only reason given where the keys above are not all there: by which rules
 * would the rest be judged? */
BK_API bk_status bk_model_config_read(bk_context *ctx, const char *path, bk_model_config *m);
BK_API bk_status bk_model_config_parse(bk_context *ctx, const char *json, size_t bytes,
                                       const char *origin, bk_model_config *m);
BK_API bk_status bk_model_config_write(bk_context *ctx, const char *path, const bk_model_config *m,
                                       bk_dtype dtype);
/* The recipe and the trainer's state as one JSON document (trainer_state.json). */
typedef struct bk_trainer_state {
  bk_train_config recipe;
  int64_t step, tokens; /* done so far */
  /* of the training data: names are not part of it, lengths and contents are */
  uint64_t data_hash;
  bk_dtype dtype;
} bk_trainer_state;
BK_API bk_status bk_trainer_state_write(bk_context *ctx, const char *path,
                                        const bk_trainer_state *s);
BK_API bk_status bk_trainer_state_read(bk_context *ctx, const char *path, bk_trainer_state *s);

/* ---- kinds of residual connections ---- */
typedef struct bk_connection_info {
  const char *name;    /* in configurations and on the command line: "mhc" */
  const char *summary; /* a few words */
  char streams[32];    /* numbers of streams (hc_mult) that it can have: "1 to 8" */
  bool signed_maps;    /* entries of its maps may be negative, so that cancellation can hide gain */
} bk_connection_info;
/* False, and *info untouched: there is no such kind, or it is no residual connection (HEAD). */
BK_API bool bk_connection_describe(bk_hc_kind kind, bk_connection_info *info);

/* ---- presets: tiny, demo, mhc-3b, mhc-9b, mhc-27b ---- */
/* BK_ERR_NOT_FOUND lists the presets; also sets the recipe that goes with it; t may be NULL */
BK_API bk_status bk_model_preset(bk_context *ctx, const char *name, bk_model_config *m,
                                 bk_train_config *t);
BK_API const char *const *bk_model_preset_names(void); /* ends with NULL */

#ifdef __cplusplus
}
#endif
#endif
