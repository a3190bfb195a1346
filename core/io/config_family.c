/* Which models a config.json may describe (config_family.h). A file of another family must not be
 * read as if it were one of these: most families share key names, so that such a file would parse,
 * and its model would compute something else. The names come first; where there are none, keys
 * decide that only this family has; and keys by which near relatives differ must ask for nothing.
 *
 * Every fault is logged, so that a user sees all of them at once. */
#include "io/config_family.h"

#include <stdio.h>
#include <string.h>

/* room for a list of names in a message */
#define LIST_TEXT 256

/* Adds a name to a list such as "a, b"; a name that does not fit is left out. */
static void add_name(char list[LIST_TEXT], const char *name) {
  size_t used = strlen(list), more = strlen(name) + (used ? 2 : 0);
  if (used + more >= LIST_TEXT) return;
  snprintf(list + used, LIST_TEXT - used, "%s%s", used ? ", " : "", name);
}

/* ---- names ---- */

/* The names that transformers gives to DeepSeek-V3, and those that this library writes for models
 * with other connections. */
static const char *const our_types[] = {"deepseek_v3", "birkhoff", NULL};
static const char *const our_architectures[] = {"DeepseekV3ForCausalLM", "DeepseekV3Model",
                                                "BirkhoffForCausalLM", NULL};

/* Keys of which no other family's file has all. */
static const char *const own_keys[] = {"kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim",
                                       "v_head_dim", "n_routed_experts"};

/* What model_type and architectures say. */
typedef struct names {
  bool given, ours;           /* one of the two keys is there; one of them names this family */
  const json_t *type;         /* the model_type, if it is another family's, else NULL */
  const json_t *architecture; /* the first architecture of another family, else NULL */
  bk_status status;           /* a failure where a key is not of the right kind */
} names;

static bool is_one_of(const json_t *value, const char *const *list) {
  for (; *list; list++)
    if (strcmp(json_string_value(value), *list) == 0) return true;
  return false;
}

/* Null is the same as absent. */
static void read_type(bk_context *ctx, const char *origin, const json_t *root, names *n) {
  const json_t *type = json_object_get(root, "model_type");
  if (!type || json_is_null(type)) return;
  n->given = true;
  if (!json_is_string(type))
    n->status = bk_fail(ctx, BK_ERR_CONFIG,
                        "%s: model_type must be a string, \"deepseek_v3\" or \"birkhoff\", not %s",
                        origin, bk_json_kind(type));
  else if (is_one_of(type, our_types)) n->ours = true;
  else n->type = type;
}

/* One known name in the list is enough. Some files have a single name in place of the list. */
static void read_architectures(bk_context *ctx, const char *origin, const json_t *root, names *n) {
  const json_t *list = json_object_get(root, "architectures"), *entry;
  size_t i;
  if (!list || json_is_null(list) || (json_is_array(list) && json_array_size(list) == 0)) return;
  n->given = true;
  if (json_is_string(list)) { /* one name without its list */
    if (is_one_of(list, our_architectures)) n->ours = true;
    else n->architecture = list;
    return;
  }
  const json_t *odd = json_is_array(list) ? NULL : list;
  json_array_foreach(list, i, entry) {
    if (!json_is_string(entry)) odd = odd ? odd : entry;
    else if (is_one_of(entry, our_architectures)) n->ours = true;
    else if (!n->architecture) n->architecture = entry;
  }
  if (odd)
    n->status = bk_fail(
        ctx, BK_ERR_CONFIG,
        "%s: architectures must be a list of names, such as [\"DeepseekV3ForCausalLM\"]; it %s %s",
        origin, odd == list ? "is" : "holds", bk_json_kind(odd));
}

/* The message shows whichever of the two names is foreign, and lists those that are known. */
static bk_status refuse_names(bk_context *ctx, const char *origin, const names *n) {
  char type[BK_JSON_SHOWN + 32] = "", architecture[BK_JSON_SHOWN + 32] = "", text[BK_JSON_SHOWN];
  if (n->type) snprintf(type, sizeof type, "model_type \"%s\"", bk_json_shown(n->type, text));
  if (n->architecture)
    snprintf(architecture, sizeof architecture, "architectures with \"%s\"",
             bk_json_shown(n->architecture, text));
  return bk_fail(
      ctx, BK_ERR_CONFIG,
      "%s: %s%s%s: another architecture, which is not built; model_type must be deepseek_v3 or "
      "birkhoff, and "
      "architectures may hold DeepseekV3ForCausalLM, DeepseekV3Model and BirkhoffForCausalLM",
      origin, type, n->type && n->architecture ? " and " : "", architecture);
}

/* A file without names is accepted only with all of the family's own keys; a file with foreign
 * names is refused even then. Where it has some of the keys, the other faults are still worth
 * telling. *alone tells the caller to stop: of a document that has next to nothing of this family
 * only the names are reported. */
bk_status bk_config_check_family(bk_context *ctx, const char *origin, const json_t *root,
                                 bool *alone) {
  char missing[LIST_TEXT] = "";
  size_t brought = 0;
  names n = {.status = BK_OK};
  read_type(ctx, origin, root, &n);
  read_architectures(ctx, origin, root, &n);
  for (size_t i = 0; i < BK_COUNT(own_keys); i++) {
    if (json_object_get(root, own_keys[i])) brought++;
    else add_name(missing, own_keys[i]);
  }
  bool foreign = n.type || n.architecture;
  *alone = foreign ? brought < BK_COUNT(own_keys) : !n.ours && brought == 0;
  if (foreign) return refuse_names(ctx, origin, &n);
  if (n.given || brought == BK_COUNT(own_keys)) return n.status;
  return bk_fail(
      ctx, BK_ERR_CONFIG,
      "%s: neither model_type nor architectures says which model this is, and keys that it needs "
      "are missing: "
      "%s; add them, or \"model_type\": \"deepseek_v3\" if absent keys are to be as in that model",
      origin, missing);
}

/* ---- keys of siblings ---- */

/* A row has keys that must ask for nothing, and says why more cannot be had. */
typedef struct sibling {
  /* The keys of a row ask for the same thing; NULL follows the last where there are fewer than
   * four. */
  const char *keys[4];
  const char *harmless; /* the value, as written in JSON, that asks for nothing; null always does */
  const char *why;      /* the end of the message */
} sibling;

static const char layer_types[] = "layer_types";

/* Keys of near relatives (DeepSeek-V3.2, Qwen, Kimi, Granite and others) that change the function
 * of the model. Left alone they would only be warned about as unknown, and the model would be
 * wrong. */
static const sibling siblings[] = {
    {{"index_topk", "index_n_heads", "index_head_dim"}, "null", "no sparse attention is built"},
    {{"sliding_window", "attention_chunk_size"}, "null", "attention looks at all earlier tokens"},
    {{"use_sliding_window"}, "false", "attention looks at all earlier tokens"},
    {{"linear_attn_config"}, "null", "no linear attention is built"},
    {{"partial_rotary_factor"}, "1.0", "all of the qk_rope_head_dim part is rotated"},
    {{"mlp_bias", "use_bias", "use_qkv_bias"}, "false", "projections have no bias"},
    {{"use_qk_norm", "qk_norm"}, "false", "queries and keys of a head are not normalised"},
    {{"mla_scale_q_lora", "mla_scale_kv_lora"},
     "false",
     "the compressed queries, keys and values are not scaled"},
    {{"zero_expert_num"}, "0", "there are no experts without weights"},
    {{"embedding_multiplier", "residual_multiplier", "logits_scaling"},
     "1.0",
     "there are no such factors"},
    {{"attention_multiplier", "scale_emb", "scale_depth"}, "null", "there are no such factors"},
    {{"attn_logit_softcapping", "final_logit_softcapping"},
     "null",
     "scores and logits are not capped"},
    {{"clip_qkv", "swiglu_limit"}, "null", "activations are not clipped"},
    {{"mlp_only_layers"}, "[]", "every layer past first_k_dense_replace has experts"},
    {{"decoder_sparse_step", "interleave_moe_layer_step", "logit_scale"},
     "1",
     "there are no such steps or factors"},
    {{"alibi", "parallel_attn", "attn_output_gate", "use_parallel_residual"},
     "false",
     "attention has no such form"},
    {{"use_mla"}, "true", "attention compresses keys and values"},
};

/* A sliding window that is switched off by its own key asks for nothing. */
static bool is_off(const json_t *root, const char *key) {
  return strcmp(key, "sliding_window") == 0 &&
         json_is_false(json_object_get(root, "use_sliding_window"));
}

/* Whether the value is the one at which the key changes nothing. Numbers are compared as numbers: 1
 * and 1.0 are the same here. */
static bool is_harmless(const sibling *s, const json_t *value) {
  double wanted;
  if (!value || json_is_null(value)) return true;
  if (strcmp(s->harmless, "[]") == 0) return json_is_array(value) && json_array_size(value) == 0;
  if (strcmp(s->harmless, "true") == 0) return json_is_true(value);
  if (strcmp(s->harmless, "false") == 0) return json_is_false(value);
  return json_is_number(value) && bk_parse_double(s->harmless, &wanted) &&
         json_number_value(value) == wanted;
}

/* Newer files name the kind of each layer's attention; only full attention is built. */
static bk_status check_layer_types(bk_context *ctx, const char *origin, const json_t *root) {
  const json_t *list = json_object_get(root, layer_types), *kind;
  size_t i;
  char text[BK_JSON_SHOWN];
  if (!list || json_is_null(list)) return BK_OK;
  json_array_foreach(list, i,
                     kind) if (!json_is_string(kind) ||
                               strcmp(json_string_value(kind), "full_attention") !=
                                   0) return bk_fail(ctx, BK_ERR_CONFIG,
                                                     "%s: layer_types must hold full_attention "
                                                     "alone, not %s: no other attention is built",
                                                     origin, bk_json_shown(kind, text));
  return json_is_array(list) ? BK_OK
                             : bk_fail(ctx, BK_ERR_CONFIG, "%s: layer_types must be a list, not %s",
                                       origin, bk_json_kind(list));
}

/* The keys of one row are reported together, since they would change the same thing. */
bk_status bk_config_check_siblings(bk_context *ctx, const char *origin, const json_t *root) {
  bk_status status = check_layer_types(ctx, origin, root);
  for (size_t i = 0; i < BK_COUNT(siblings); i++) {
    const sibling *s = &siblings[i];
    char found[LIST_TEXT] = "";
    for (size_t k = 0; k < BK_COUNT(s->keys) && s->keys[k]; k++)
      if (!is_off(root, s->keys[k]) && !is_harmless(s, json_object_get(root, s->keys[k])))
        add_name(found, s->keys[k]);
    if (found[0])
      status = bk_fail(ctx, BK_ERR_CONFIG, "%s: %s must be absent or %s: %s", origin, found,
                       s->harmless, s->why);
  }
  return status;
}

/* The warning about unknown keys leaves these out, since they have been checked already. */
bool bk_config_is_sibling_key(const char *key) {
  if (strcmp(key, layer_types) == 0) return true;
  for (size_t i = 0; i < BK_COUNT(siblings); i++)
    for (size_t k = 0; k < BK_COUNT(siblings[i].keys) && siblings[i].keys[k]; k++)
      if (strcmp(siblings[i].keys[k], key) == 0) return true;
  return false;
}
