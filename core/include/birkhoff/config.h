/* The model's configuration (config.json) and the training recipe. Both are plain structs that
 * tables of options describe, and the JSON reader and writer, --set, --help-config and the range
 * checks all follow these tables. doc/model.md says what the keys mean and what is refused.
 * core/io/config.c (defaults, tables, validation) needs no JSON library; config_json.c,
 * config_family.c and trainer_state.c do. */
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
  const char *name; /* the key in config.json, --set and --help-config */
  bk_option_type type;
  size_t offset; /* of the member in its struct: an int64_t, double, bool, or int for an enum */
  /* the range of a number, both ends included; the words null, auto and off are allowed beside
   * it */
  double min, max;
  const char *const *choices; /* BK_OPT_ENUM: the words, ended by NULL; the value is the index */
  const char *doc;            /* what --help-config says */
} bk_option;

typedef enum bk_hc_head { BK_HEAD_SUM, BK_HEAD_LEARNED } bk_hc_head;

#define BK_END_TOKENS 32
/* The members are named as the keys of Hugging Face's DeepSeek-V3 configuration, plus residual and
 * hc_*. Sizes are counts. A config.json is taken if its model_type is "deepseek_v3" or "birkhoff"
 * and its architectures are "DeepseekV3ForCausalLM", "DeepseekV3Model" or "BirkhoffForCausalLM".
 * Either may be absent; where both are, kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim,
 * v_head_dim and n_routed_experts must be there. An absent key has DeepSeek-V3's value.
 *
 * null is allowed for these keys:
 *   q_lora_rank          no compression
 *   n_shared_experts     0
 *   n_group              1
 *   topk_group           all groups; an absent topk_group beside an n_group of null means that too
 *   num_key_value_heads  as many as num_attention_heads
 *   rope_theta           what rope_parameters says
 *   eos_token_id, num_nextn_predict_layers, rope_scaling, quantization_config
 *                        there is none; an eos_token_id of -1 says the same
 * No other key that describes the model may be null. */
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
  /* a bk_hc_kind other than BK_HC_HEAD; as a key, the kind's name in small letters */
  int residual;
  int64_t hc_mult, hc_sinkhorn_iters;
  double hc_eps;
  int hc_head; /* a bk_hc_head; as a key, "sum" or "learned" */
  /* The members below are not in bk_model_keys. They come from config.json alone and say how the
   * model was made, not what it computes. */
  /* The tokens that end a text: one or a list in config.json. They are written there again. */
  int64_t eos_token_id[BK_END_TOKENS];
  /* 0 where none is known. An id that is not below vocab_size gets a warning. */
  int n_eos_token_ids;
  /* 0 to 64: layers past num_hidden_layers that predict further tokens. Their tensors are not
   * loaded, and 0 is written. */
  int64_t num_nextn_predict_layers;
} bk_model_config;
extern BK_API const bk_option bk_model_keys[]; /* ends with an entry whose name is NULL */

typedef enum bk_lr_schedule { BK_LR_STEP, BK_LR_COSINE, BK_LR_CONSTANT } bk_lr_schedule;
/* A value of hc_recompute: the library chooses round(sqrt(n L / (n + 2))) sublayers per block, for
 * n streams and L sublayers in all. */
#define BK_RECOMPUTE_AUTO (-1)
/* Whose activations inside F are not kept but made again in the backward pass: of attention, of the
 * feed-forward sublayers (experts and dense ones alike), or of both. */
typedef enum bk_recompute_f {
  BK_RECOMPUTE_F_NONE,
  BK_RECOMPUTE_F_ATTENTION,
  BK_RECOMPUTE_F_EXPERTS,
  BK_RECOMPUTE_F_ALL
} bk_recompute_f;

/* The recipe. --help-config and doc/model.md say what each key does. */
typedef struct bk_train_config {
  int64_t steps, batch_size /* sequences per step, of all ranks together */,
      micro_batch_size /* sequences of one rank; 0 = all that it has of batch_size */, seq_len;
  uint64_t seed; /* as a key, an int64_t that is not negative */
  double lr, min_lr_ratio, weight_decay, adam_beta1, adam_beta2, adam_eps, grad_clip /* 0 = off */,
      router_bias_lr;
  int lr_schedule;
  int64_t warmup_steps, save_every, keep, eval_every,
      eval_tokens /* most tokens of a validation pass in training; 0 = all */, gain_every;
  /* A run warns beyond these limits, 0 for none: of the gradient norm divided by its median, and of
   * the composite gain. */
  double spike_factor, gain_limit;
  /* sublayers per recompute block, 0 for no recompute, or BK_RECOMPUTE_AUTO */
  int64_t hc_recompute;
  int recompute;  /* a bk_recompute_f; as a key, "none", "attention", "experts" or "all" */
  int data_dtype; /* 0 auto, 1 uint16, 2 uint32 */
  /* The trainer does not use this one: whoever opens the data sets bk_dataset_options.whole_bin to
   * its opposite. */
  bool bin_validation;
  /* Nor this one: whoever saves checkpoints uses bk_checkpoint_save_begin by it. */
  bool save_async;
  bool merge_stream; /* merges run on a stream of high priority */
  /* Nor these: whoever opens the device sets allow_tf32 and no_graph of bk_device_options by them.
   * They have no effect on a CPU. */
  bool allow_tf32, cuda_graph;
} bk_train_config;
extern BK_API const bk_option bk_train_keys[];

BK_API void bk_train_config_default(bk_train_config *t);

/* Applies "KEY=VALUE" to the struct that has KEY. Returns BK_ERR_NOT_FOUND for an unknown key, with
 * the nearest one of both tables, and BK_ERR_CONFIG for a value that is malformed or out of range,
 * with the range. Either pointer may be NULL; its keys are then refused with that reason. */
BK_API bk_status bk_config_set(bk_context *ctx, bk_model_config *m, bk_train_config *t,
                               const char *assignment);
/* These check ranges, sizes that must divide one another, and products that could be too large.
 * They log a message for every reason, not only for the first, and return BK_ERR_CONFIG. */
BK_API bk_status bk_model_config_validate(bk_context *ctx, const bk_model_config *m);
BK_API bk_status bk_train_config_validate(bk_context *ctx, const bk_train_config *t);
/* The number of sublayers per recompute block that hc_recompute means for this model; 0 = off. */
BK_API int64_t bk_recompute_block(const bk_model_config *m, int64_t hc_recompute);
/* The learning rate of a step, counted from 1: a linear warm-up over warmup_steps, then the
 * schedule. "step" multiplies lr by 0.316 from 80 % of the steps on and by 0.1 from 90 % on (arXiv
 * 2512.24880, appendix), "cosine" falls to min_lr_ratio times lr at the last step, "constant" stays
 * at lr. */
BK_API double bk_learning_rate(const bk_train_config *t, int64_t step);
/* Writes an option's value in `config` into `text`, for help and logs, and returns `text`. */
BK_API char *bk_option_value_text(const bk_option *o, const void *config, char *text, size_t size);

/* ---- config_json.c and trainer_state.c (jansson) ---- */
/* Read a configuration, check it and validate it. BK_ERR_DATA: it is no JSON object. BK_ERR_CONFIG:
 * it describes a model that this library does not build. There is a message for every reason, which
 * begins with the path or with `origin`. If the configuration is of another family and lacks some
 * of the keys that only DeepSeek-V3's has together (above), the family's name is the only reason
 * given, because there are no rules by which to judge the rest. */
BK_API bk_status bk_model_config_read(bk_context *ctx, const char *path, bk_model_config *m);
BK_API bk_status bk_model_config_parse(bk_context *ctx, const char *json, size_t bytes,
                                       const char *origin, bk_model_config *m);
/* Writes config.json for a model whose weights are in `dtype`. */
BK_API bk_status bk_model_config_write(bk_context *ctx, const char *path, const bk_model_config *m,
                                       bk_dtype dtype);
/* What identifies a file of training data: its size, and a hash of the part that is trained on. */
typedef struct bk_data_file {
  uint64_t bytes, hash;
} bk_data_file;

/* The recipe and the trainer's state, which are one JSON document, trainer_state.json. */
typedef struct bk_trainer_state {
  bk_train_config recipe;
  int64_t step, tokens; /* done so far */
  /* a hash of the training data: of its lengths and contents, not of its files' names */
  uint64_t data_hash;
  bk_dtype dtype;
  /* What is written as the files of that data; reading leaves none here, see below. */
  const bk_data_file *files;
  int n_files;
} bk_trainer_state;
BK_API bk_status bk_trainer_state_write(bk_context *ctx, const char *path,
                                        const bk_trainer_state *s);
/* BK_ERR_DATA for a document that is not one of these, with the key that is wrong or missing. */
BK_API bk_status bk_trainer_state_read(bk_context *ctx, const char *path, bk_trainer_state *s);
/* The files of the data in such a document; bk_free. States of earlier versions have none: then
 * *files is NULL and *n_files 0. */
BK_API bk_status bk_trainer_state_files(bk_context *ctx, const char *path, bk_data_file **files,
                                        int *n_files);

/* ---- kinds of residual connections ---- */
typedef struct bk_connection_info {
  const char *name;    /* in configurations and on the command line: "mhc" */
  const char *summary; /* a few words */
  char streams[32];    /* the numbers of streams (hc_mult) that it can have: "1 to 8" */
  bool signed_maps;    /* entries of its maps may be negative, so cancellation can hide a gain */
} bk_connection_info;
/* Returns false and leaves *info as it was where there is no such kind, and for BK_HC_HEAD, which
 * is no residual connection. */
BK_API bool bk_connection_describe(bk_hc_kind kind, bk_connection_info *info);

/* ---- presets: tiny, demo, mhc-3b, mhc-9b, mhc-27b ---- */
/* Sets a preset's model and the recipe that goes with it; t may be NULL. An unknown name is
 * BK_ERR_NOT_FOUND, and the message lists the presets. */
BK_API bk_status bk_model_preset(bk_context *ctx, const char *name, bk_model_config *m,
                                 bk_train_config *t);
BK_API const char *const *bk_model_preset_names(void); /* ends with NULL */

#ifdef __cplusplus
}
#endif
#endif
