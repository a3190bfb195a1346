/* The configuration's tables, defaults and rules. What is refused and why: doc/model.md.
 * Defaults: the model has none of its own (an absent key takes Hugging Face's, see
 * bk_model_config_absent); the recipe's are those of arXiv 2512.24880's appendix scaled to small
 * runs (warm-up 100 steps, not 2000; AdamW eps 1e-8, not 1e-20).
 *
 * Two tables hold every key once, with its range and its help text: reading, writing, --set and
 * the manual all work from them. A range bounds one key by itself; rules[] below has what several
 * keys must fulfil together. Every fault is logged, not only the first one.
 *
 * To add a key: its row here, its member in birkhoff/config.h, its default below; for the recipe
 * also the value that an older trainer_state.json stands for without it (later_keys in
 * config_json.c). */
#include <math.h>
#include <string.h>

#include "io/config_priv.h"
#include "runtime/connection.h"

/* what kernels and index tensors count with */
#define INT32_TOP 2147483647.0
#define PARAMETERS_MAX 0x1p50 /* keeps every product of sizes, times a few bytes, inside 63 bits */
#define MIN_EPS 1e-30         /* above 0, and a normal number in fp32, in which kernels use it */

/* The choices of an enum stand in the order of their numbers in birkhoff/config.h. */
static const char *const head_names[] = {"sum", "learned", NULL};
static const char *const schedule_names[] = {"step", "cosine", "constant", NULL};
static const char *const recompute_names[] = {"none", "attention", "experts", "all", NULL};
static const char *const dtype_names[] = {"auto", "uint16", "uint32", NULL};

/* One row of a table: the key is named as the member of the struct; low and high are its range, and
 * `text` is its line in the help and in the manual. CONFIG is the struct of the table. */
#define INT(field, low, high, text) \
  { #field, BK_OPT_INT, offsetof(CONFIG, field), low, high, NULL, text }
#define DOUBLE(field, low, high, text) \
  { #field, BK_OPT_DOUBLE, offsetof(CONFIG, field), low, high, NULL, text }
#define BOOL(field, text) \
  { #field, BK_OPT_BOOL, offsetof(CONFIG, field), 0, 1, NULL, text }
#define ENUM(field, names, text) \
  { #field, BK_OPT_ENUM, offsetof(CONFIG, field), 0, 0, names, text }

#define CONFIG bk_model_config
/* The keys of config.json, named as Hugging Face's DeepseekV3Config names them; residual and hc_*
 * are Birkhoff's own. */
const bk_option bk_model_keys[] = {
    INT(vocab_size, 1, INT32_TOP, "number of tokens (byte tokens need 257)"),
    INT(hidden_size, 1, 1 << 24, "model width C"),
    INT(intermediate_size, 1, 1 << 28, "width of a dense feed-forward layer"),
    INT(moe_intermediate_size, 1, 1 << 28, "width of one expert"),
    INT(num_hidden_layers, 1, 100000, "layers; each has two sublayers, attention and feed-forward"),
    INT(num_attention_heads, 1, 65536, "attention heads"),
    INT(n_shared_experts, 0, 65536, "experts that every token passes through"),
    INT(n_routed_experts, 1, 1 << 20, "experts that tokens are routed to"),
    INT(num_experts_per_tok, 1, 1024, "routed experts per token (top-k)"),
    INT(n_group, 1, 1 << 20, "groups of routed experts"),
    INT(topk_group, 1, 1 << 20, "groups kept per token"),
    INT(first_k_dense_replace, 0, 100000, "leading layers with a dense feed-forward layer"),
    INT(kv_lora_rank, 1, 1 << 24, "width of the compressed keys and values"),
    {"q_lora_rank", BK_OPT_INT_OR_NULL, offsetof(CONFIG, q_lora_rank), 1, 1 << 24, NULL,
     "width of the compressed queries; null: no compression"},
    INT(qk_rope_head_dim, 2, 65536, "rotated part of a query or key head (even)"),
    INT(qk_nope_head_dim, 1, 65536, "unrotated part of a query or key head"),
    INT(v_head_dim, 1, 65536, "width of a value head"),
    INT(max_position_embeddings, 1, INT32_TOP, "longest sequence that the model is meant for"),
    BOOL(norm_topk_prob, "expert weights of a token are divided by their sum"),
    DOUBLE(routed_scaling_factor, 1e-6, 1e6, "factor on the expert weights"),
    DOUBLE(rms_norm_eps, MIN_EPS, 1, "eps of the RMS norms"),
    DOUBLE(rope_theta, 1, 1e15, "base of the rotary frequencies"),
    DOUBLE(initializer_range, 0, 100, "standard deviation of initial matrices"),
    ENUM(residual, bk_connection_names, "residual connection"),
    INT(hc_mult, 1, BK_HC_MAX_N, "streams n of the residual connection (some kinds take fewer)"),
    INT(hc_sinkhorn_iters, 1, BK_SINKHORN_MAX_ITERS, "Sinkhorn iterations (mhc)"),
    DOUBLE(hc_eps, 0, 1, "eps of the connection's maps; 0: the paper's form, 1e-6: DeepSeek-V4's"),
    ENUM(hc_head, head_names, "how streams become one at the end"),
    {.name = NULL},
};
#undef CONFIG
_Static_assert(BK_COUNT(bk_model_keys) <= 64, "bk_option_set has a bit for each");

#define CONFIG bk_train_config
/* These are the keys of the recipe, which trainer_state.json keeps. */
const bk_option bk_train_keys[] = {
    INT(steps, 1, 1e15, "optimiser steps in all"),
    INT(batch_size, 1, 1 << 24, "sequences per step"),
    INT(micro_batch_size, 0, 1 << 24,
        "sequences per forward and backward pass of a rank; 0: all that it has of batch_size"),
    INT(seq_len, 1, 1 << 26, "tokens per sequence"),
    INT(seed, 0, 9007199254740992.0, "seed of initial weights and data order"),
    DOUBLE(lr, 0, 1e3, "base learning rate"),
    ENUM(lr_schedule, schedule_names,
         "after warm-up; step: x 0.316 at 80 % of the steps, x 0.1 at 90 %"),
    INT(warmup_steps, 0, 1e15, "steps of linear warm-up"),
    DOUBLE(min_lr_ratio, 0, 1, "share of lr at the end of the cosine schedule"),
    DOUBLE(weight_decay, 0, 1e3, "decoupled, on matrices only"),
    DOUBLE(adam_beta1, 0, 0.999999999, "AdamW: decay of the first moment"),
    DOUBLE(adam_beta2, 0, 0.999999999, "AdamW: decay of the second moment"),
    DOUBLE(adam_eps, MIN_EPS, 1, "AdamW: eps beside the root of the second moment"),
    DOUBLE(grad_clip, 0, 1e30, "largest global gradient norm; 0: off"),
    DOUBLE(router_bias_lr, 0, 1, "step of the experts' balancing bias; 0: off"),
    INT(save_every, 0, 1e15, "steps between checkpoints; 0: only the last step"),
    INT(keep, 1, 1e9, "checkpoints kept, the newest"),
    BOOL(save_async, "checkpoints are written by a thread while training goes on"),
    INT(eval_every, 0, 1e15, "steps between validation passes; 0: none"),
    INT(eval_tokens, 0, 1e15, "most tokens of such a pass; 0: all"),
    INT(gain_every, 0, 1e15, "steps between measurements of the composite gain; 0: none"),
    DOUBLE(spike_factor, 0, 1e30,
           "warns once of a gradient norm above this x the median of the last 32; 0: off"),
    DOUBLE(gain_limit, 0, 1e30,
           "warns once of a composite gain above this (1: neither amplified nor damped); 0: off"),
    {"hc_recompute", BK_OPT_INT_OR_AUTO, offsetof(CONFIG, hc_recompute), 1, 1e6, NULL,
     "sublayers per block whose connections are recomputed in the backward pass"},
    ENUM(recompute, recompute_names,
         "sublayers whose inside is recomputed in the backward pass (experts: all feed-forward "
         "ones); less memory, the same bits"),
    BOOL(bin_validation,
         "the last tenth of each .bin file is validation data, as of a text; a run keeps what it "
         "began with"),
    ENUM(data_dtype, dtype_names, "token type of .bin files; auto: uint16 if the vocabulary fits"),
    BOOL(allow_tf32, "GPU backends: fp32 products may round their operands to TF32"),
    BOOL(cuda_graph,
         "GPU backends: passes are captured once as graphs, then replayed; the same bits"),
    BOOL(merge_stream,
         "GPU backends: feed-forward sublayers' merges run on a stream of high priority; the same "
         "bits"),
    {.name = NULL},
};
#undef CONFIG
_Static_assert(BK_COUNT(bk_train_keys) <= 64, "bk_option_set has a bit for each");

/* This is what a key means that a config.json leaves out (config_priv.h). */
const bk_model_config bk_model_config_absent = {
    .vocab_size = 129280,
    .hidden_size = 7168,
    .intermediate_size = 18432,
    .moe_intermediate_size = 2048,
    .num_hidden_layers = 61,
    .num_attention_heads = 128,
    .n_shared_experts = 1,
    .n_routed_experts = 256,
    .num_experts_per_tok = 8,
    .n_group = 8,
    .topk_group = 4,
    .first_k_dense_replace = 3,
    .kv_lora_rank = 512,
    .q_lora_rank = 1536,
    .qk_rope_head_dim = 64,
    .qk_nope_head_dim = 128,
    .v_head_dim = 128,
    .max_position_embeddings = 4096,
    .norm_topk_prob = true,
    .routed_scaling_factor = 2.5,
    .rms_norm_eps = 1e-6,
    .rope_theta = 10000,
    .initializer_range = 0.02,
    .residual = BK_HC_PLAIN,
    .hc_mult = 4,
    .hc_sinkhorn_iters = 20,
    .hc_eps = 0,
    .hc_head = BK_HEAD_SUM,
};

/* Keys that are not listed are 0, false, or the first of their choices. */
void bk_train_config_default(bk_train_config *t) {
  *t = (bk_train_config){
      .steps = 1000,
      .batch_size = 8,
      .seq_len = 256,
      .seed = 1,
      .lr = 3e-4,
      .min_lr_ratio = 0.1,
      .weight_decay = 0.1,
      .adam_beta1 = 0.9,
      .adam_beta2 = 0.95,
      .adam_eps = 1e-8,
      .grad_clip = 1.0,
      .router_bias_lr = 1e-3,
      .lr_schedule = BK_LR_STEP,
      .warmup_steps = 100,
      .save_every = 500,
      .keep = 2,
      .eval_every = 100,
      .eval_tokens = 65536,
      .gain_every = 100,
      .spike_factor = 10,
      .gain_limit = 100,
      .hc_recompute = BK_RECOMPUTE_AUTO,
      .bin_validation = true,
      .cuda_graph = true,
  };
}

/* ---- --set ---- */

/* A key may be of the model or of the recipe; the nearest name is looked for among both. */
static bk_status unknown_key(bk_context *ctx, const char *key) {
  const char *names[BK_COUNT(bk_model_keys) + BK_COUNT(bk_train_keys)];
  size_t count = 0;
  for (const bk_option *o = bk_model_keys; o->name; o++) names[count++] = o->name;
  for (const bk_option *o = bk_train_keys; o->name; o++) names[count++] = o->name;
  const char *nearest = bk_nearest(key, names, count);
  if (nearest)
    return bk_fail(ctx, BK_ERR_NOT_FOUND,
                   "--set: unknown key \"%s\"; the nearest known one is \"%s\"", key, nearest);
  return bk_fail(ctx, BK_ERR_NOT_FOUND, "--set: unknown key \"%s\", and no known one is near it",
                 key);
}

/* A key of the one table is never a key of the other, so that its name decides. */
static bk_status set_key(bk_context *ctx, bk_model_config *m, bk_train_config *t, const char *key,
                         const char *value) {
  const bk_option *model = bk_option_find(bk_model_keys, key, strlen(key));
  const bk_option *recipe = bk_option_find(bk_train_keys, key, strlen(key));
  if (!model && !recipe) return unknown_key(ctx, key);
  if (model && m) return bk_option_set_text(ctx, "--set", model, value, m);
  if (recipe && t) return bk_option_set_text(ctx, "--set", recipe, value, t);
  return bk_fail(ctx, BK_ERR_CONFIG, "--set: %s is a key of the %s, which is fixed here", key,
                 model ? "model" : "training recipe");
}

/* One assignment of the command line. Without a model (m NULL) or a recipe (t NULL) the keys of
 * that one are refused: they were fixed when the run began. */
bk_status bk_config_set(bk_context *ctx, bk_model_config *m, bk_train_config *t,
                        const char *assignment) {
  const char *equals = strchr(assignment, '=');
  if (!equals || equals == assignment)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "--set: KEY=VALUE is needed, not \"%s\"", assignment);
  char *key = bk_format(ctx, "%.*s", (int)(equals - assignment), assignment);
  if (!key) return BK_ERR_MEMORY;
  bk_status status = set_key(ctx, m, t, key, equals + 1);
  bk_free(ctx, key);
  return status;
}

/* ---- validation ---- */

/* Each of these functions checks one rule of the table below. It returns BK_OK, or logs and returns
 * BK_ERR_CONFIG. */
static bk_status check_rotation(bk_context *ctx, const char *origin, const bk_model_config *m) {
  if (m->qk_rope_head_dim % 2 == 0) return BK_OK;
  return bk_fail(ctx, BK_ERR_CONFIG,
                 "%s: qk_rope_head_dim (%lld) must be even: it is rotated in pairs", origin,
                 (long long)m->qk_rope_head_dim);
}

/* Groups must be of equal size, with at least two experts each. */
static bool groups_fit(const bk_model_config *m) {
  return m->n_routed_experts % m->n_group == 0 && m->n_routed_experts / m->n_group >= 2;
}

static bk_status check_groups(bk_context *ctx, const char *origin, const bk_model_config *m) {
  long long experts = m->n_routed_experts, groups = m->n_group;
  if (groups_fit(m)) return BK_OK;
  if (experts % groups != 0)
    return bk_fail(ctx, BK_ERR_CONFIG,
                   "%s: n_routed_experts (%lld) cannot be divided by n_group (%lld)", origin,
                   experts, groups);
  return bk_fail(ctx, BK_ERR_CONFIG,
                 "%s: n_routed_experts (%lld) / n_group (%lld) gives fewer than 2 experts a "
                 "group; the two best score a group",
                 origin, experts, groups);
}

/* More groups than there are cannot be kept. */
static bk_status check_kept_groups(bk_context *ctx, const char *origin, const bk_model_config *m) {
  if (m->topk_group <= m->n_group) return BK_OK;
  return bk_fail(ctx, BK_ERR_CONFIG, "%s: topk_group (%lld) is above n_group (%lld)", origin,
                 (long long)m->topk_group, (long long)m->n_group);
}

/* Silent where the groups themselves do not fit, since check_groups has already said so. The
 * experts of a token come from its kept groups alone, so that these must hold enough of them. */
static bk_status check_top_k(bk_context *ctx, const char *origin, const bk_model_config *m) {
  long long experts = m->n_routed_experts, groups = m->n_group, kept = m->topk_group,
            k = m->num_experts_per_tok;
  if (!groups_fit(m) || kept > groups || k <= kept * (experts / groups)) return BK_OK;
  return bk_fail(ctx, BK_ERR_CONFIG,
                 "%s: num_experts_per_tok (%lld) is above the %lld experts that are left "
                 "(topk_group %lld of n_group %lld, n_routed_experts %lld)",
                 origin, k, kept * (experts / groups), kept, groups, experts);
}

/* Which numbers of streams are possible is the kind's business; a plain model has one whatever
 * hc_mult says. */
static bk_status check_streams(bk_context *ctx, const char *origin, const bk_model_config *m) {
  const bk_connection_kind *kind = bk_connection_kind_of((bk_hc_kind)m->residual);
  char text[64];
  if (kind->max_streams == 1 || bk_connection_takes(kind, m->hc_mult)) return BK_OK;
  return bk_fail(ctx, BK_ERR_CONFIG, "%s: hc_mult (%lld) must be %s with residual %s", origin,
                 (long long)m->hc_mult, bk_connection_streams_text(kind, text, sizeof text),
                 kind->name);
}

/* Every width that a kernel meets must fit 31 bits. The products are taken in doubles, which are
 * exact up to 2^53 and do not wrap beyond, so that no overflow is missed. */
static bk_status check_width(bk_context *ctx, const char *origin, const char *what, double value) {
  if (value <= INT32_TOP) return BK_OK;
  return bk_fail(ctx, BK_ERR_CONFIG, "%s: %s is %.0f, at most 2147483647 can be", origin, what,
                 value);
}

/* This is the number of rows of q_proj or q_b_proj. */
static double query_width(const bk_model_config *m) {
  return (double)m->num_attention_heads * (double)(m->qk_nope_head_dim + m->qk_rope_head_dim);
}

static bk_status check_query_width(bk_context *ctx, const char *origin, const bk_model_config *m) {
  return check_width(ctx, origin, "num_attention_heads x (qk_nope_head_dim + qk_rope_head_dim)",
                     query_width(m));
}

/* This is the number of rows of kv_b_proj: each head has an unrotated key and a value there. */
static double value_width(const bk_model_config *m) {
  return (double)m->num_attention_heads * (double)(m->qk_nope_head_dim + m->v_head_dim);
}

/* Silent where check_query_width has already said that the heads are too many or too wide. */
static bk_status check_value_width(bk_context *ctx, const char *origin, const bk_model_config *m) {
  if (query_width(m) > INT32_TOP) return BK_OK;
  return check_width(ctx, origin, "num_attention_heads x (qk_nope_head_dim + v_head_dim)",
                     value_width(m));
}

/* The shared experts are one MLP, whose width is the sum of theirs. */
static double shared_width(const bk_model_config *m) {
  return (double)m->n_shared_experts * (double)m->moe_intermediate_size;
}

static bk_status check_shared_width(bk_context *ctx, const char *origin, const bk_model_config *m) {
  return check_width(ctx, origin, "n_shared_experts x moe_intermediate_size", shared_width(m));
}

/* The flattened streams of a token, and so a row of fn, have this width. */
static bk_status check_stream_width(bk_context *ctx, const char *origin, const bk_model_config *m) {
  return check_width(ctx, origin, "hc_mult x hidden_size",
                     (double)m->hc_mult * (double)m->hidden_size);
}

/* Weights of one layer's multi-head latent attention: queries (with their compression, where there
 * is one), the compressed keys and values with the rotated key, their expansion, and the output. */
static double attention_parameters(const bk_model_config *m) {
  double c = (double)m->hidden_size, heads = (double)m->num_attention_heads;
  double q = (double)m->q_lora_rank, kv = (double)m->kv_lora_rank;
  double rope = (double)m->qk_rope_head_dim, nope = (double)m->qk_nope_head_dim,
         v = (double)m->v_head_dim;
  double query = heads * (nope + rope);
  return (q > 0 ? q * (c + query) : c * query) + c * (kv + rope) + kv * heads * (nope + v) +
         heads * v * c;
}

/* The number of parameters within a few percent; norms and connections are left out. Silent where
 * a width is too large, which has been said already. */
static bk_status check_total(bk_context *ctx, const char *origin, const bk_model_config *m) {
  double c = (double)m->hidden_size, layers = (double)m->num_hidden_layers;
  double dense = fmin(layers, (double)m->first_k_dense_replace),
         expert = 3 * c * (double)m->moe_intermediate_size;
  double total = 2 * (double)m->vocab_size * c + layers * attention_parameters(m);
  total += dense * 3 * c * (double)m->intermediate_size;
  total += (layers - dense) * expert * (double)(m->n_routed_experts + m->n_shared_experts);
  double widest = fmax(shared_width(m), fmax(query_width(m), value_width(m)));
  if (total <= PARAMETERS_MAX || widest > INT32_TOP) return BK_OK;
  return bk_fail(ctx, BK_ERR_CONFIG,
                 "%s: these sizes make about %.3g parameters; at most %.3g can be addressed",
                 origin, total, PARAMETERS_MAX);
}

/* Read from files, and also set by programs, which may put anything there. */
static bk_status check_end_tokens(bk_context *ctx, const char *origin, const bk_model_config *m) {
  if (m->n_eos_token_ids < 0 || m->n_eos_token_ids > BK_END_TOKENS)
    return bk_fail(ctx, BK_ERR_CONFIG, "%s: there can be 0 to %d end tokens, not %d", origin,
                   BK_END_TOKENS, m->n_eos_token_ids);
  for (int i = 0; i < m->n_eos_token_ids; i++)
    if (m->eos_token_id[i] < 0)
      return bk_fail(ctx, BK_ERR_CONFIG, "%s: eos_token_id (%lld) must be at least 0", origin,
                     (long long)m->eos_token_id[i]);
  return BK_OK;
}

/* They are only counted, so that their tensors in a checkpoint can be told from foreign ones. */
static bk_status check_further_layers(bk_context *ctx, const char *origin,
                                      const bk_model_config *m) {
  if (m->num_nextn_predict_layers >= 0 && m->num_nextn_predict_layers <= BK_NEXTN_MAX) return BK_OK;
  return bk_fail(ctx, BK_ERR_CONFIG,
                 "%s: num_nextn_predict_layers must be an integer from 0 to %d, not %lld", origin,
                 BK_NEXTN_MAX, (long long)m->num_nextn_predict_layers);
}

/* A rule is something that several keys must fulfil together. */
typedef struct rule {
  bk_status (*check)(bk_context *ctx, const char *origin, const bk_model_config *m);
  const char *keys; /* the keys that it looks at: without them all it is not applied */
} rule;

/* Faults are reported in this order. */
static const rule rules[] = {
    {check_rotation, "qk_rope_head_dim"},
    {check_groups, "n_routed_experts n_group"},
    {check_kept_groups, "topk_group n_group"},
    {check_top_k, "num_experts_per_tok topk_group n_group n_routed_experts"},
    {check_streams, "residual hc_mult"},
    {check_query_width, "num_attention_heads qk_nope_head_dim qk_rope_head_dim"},
    {check_value_width, "num_attention_heads qk_nope_head_dim qk_rope_head_dim v_head_dim"},
    {check_shared_width, "n_shared_experts moe_intermediate_size"},
    {check_stream_width, "hc_mult hidden_size"},
    {check_total,
     "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers "
     "num_attention_heads n_shared_experts "
     "n_routed_experts first_k_dense_replace kv_lora_rank q_lora_rank qk_rope_head_dim "
     "qk_nope_head_dim v_head_dim"},
    {check_end_tokens, ""},
    {check_further_layers, ""},
};

/* A rule needs all of its keys to be known: a rule on a key that was already refused would only
 * repeat the complaint in other words. */
bk_status bk_model_config_check(bk_context *ctx, const char *origin, const bk_model_config *m,
                                bk_option_set known) {
  bk_status status = bk_options_check(ctx, origin, bk_model_keys, m, &known);
  for (size_t i = 0; i < BK_COUNT(rules); i++) {
    bk_option_set keys = bk_option_bits(bk_model_keys, rules[i].keys);
    if ((known & keys) == keys && rules[i].check(ctx, origin, m) != BK_OK) status = BK_ERR_CONFIG;
  }
  return status;
}

/* A program has filled this configuration in, so that every key counts as known. */
bk_status bk_model_config_validate(bk_context *ctx, const bk_model_config *m) {
  return bk_model_config_check(ctx, "model configuration", m, BK_OPTION_ALL);
}

/* Ranges are checked first. micro_batch_size 0 means a single micro-batch of all of a rank's
 * sequences, which are the whole batch where there is one rank. */
bk_status bk_train_config_check(bk_context *ctx, const char *origin, const bk_train_config *t) {
  bk_option_set all = BK_OPTION_ALL;
  BK_TRY(bk_options_check(ctx, origin, bk_train_keys, t, &all));
  long long micro = t->micro_batch_size ? t->micro_batch_size : t->batch_size;
  if (micro > t->batch_size)
    return bk_fail(ctx, BK_ERR_CONFIG, "%s: micro_batch_size (%lld) is above batch_size (%lld)",
                   origin, micro, (long long)t->batch_size);
  if ((double)micro * (double)t->seq_len > INT32_TOP)
    return bk_fail(ctx, BK_ERR_CONFIG,
                   "%s: a micro-batch of %lld sequences of seq_len %lld has more than "
                   "2147483647 tokens",
                   origin, micro, (long long)t->seq_len);
  return BK_OK;
}

bk_status bk_train_config_validate(bk_context *ctx, const bk_train_config *t) {
  return bk_train_config_check(ctx, "training recipe", t);
}

/* ---- derived ---- */

/* By arXiv 2512.24880 section 4.3.2 a block of L_r = sqrt(n L / (n + 2)) of L sublayers keeps the
 * fewest activations: n C L / L_r for the streams at the start of each block, and (n + 2) C L_r
 * for what is made again within one. 0 means that nothing is recomputed. */
int64_t bk_recompute_block(const bk_model_config *m, int64_t hc_recompute) {
  int64_t sublayers = 2 * m->num_hidden_layers;
  if (m->residual == BK_HC_PLAIN || hc_recompute == 0) return 0;
  double n = (double)m->hc_mult;
  int64_t block =
      hc_recompute > 0 ? hc_recompute : (int64_t)floor(sqrt(n * (double)sublayers / (n + 2)) + 0.5);
  return block < 1 ? 1 : block > sublayers ? sublayers : block;
}

/* The paper's step schedule: a factor of sqrt(0.1) after 80 % of the steps, of 0.1 after 90 %. Both
 * are shares rounded up and computed from tenths in integers, which are exact for any number of
 * steps. `step` counts from 1, so that step - 1 steps are done when its rate is taken. */
static double step_factor(const bk_train_config *t, int64_t step) {
  int64_t done = step - 1, tenth = t->steps / 10, rest = t->steps % 10;
  int64_t eighty = 8 * tenth + (8 * rest + 9) / 10, ninety = 9 * tenth + (9 * rest + 9) / 10;
  return done >= ninety ? 0.1 : done >= eighty ? 0.316 : 1;
}

/* Half a cosine from 1 at the end of the warm-up down to min_lr_ratio at the last step. Past the
 * last step, to which a resumed run may go, it stays at min_lr_ratio. */
static double cosine_factor(const bk_train_config *t, int64_t step) {
  const double pi = 3.14159265358979323846;
  int64_t length = t->steps - t->warmup_steps;
  double progress = length > 0 ? (double)(step - t->warmup_steps) / (double)length : 1;
  if (progress >= 1) return t->min_lr_ratio;
  return t->min_lr_ratio + (1 - t->min_lr_ratio) * 0.5 * (1 + cos(pi * progress));
}

/* Steps count from 1, so that the first step of a warm-up already has a rate above 0. */
double bk_learning_rate(const bk_train_config *t, int64_t step) {
  if (step <= t->warmup_steps) return t->lr * ((double)step / (double)t->warmup_steps);
  switch (t->lr_schedule) {
    case BK_LR_STEP: return t->lr * step_factor(t, step);
    case BK_LR_COSINE: return t->lr * cosine_factor(t, step);
    default: return t->lr;
  }
}
