/* config.json. Reading goes through jansson (64-bit integers, duplicate keys refused); writing
 * makes the text here, because transformers checks types: a float key always has a point or an
 * exponent, an integer key never.
 *
 * A key is one of: the model's name (config_family.h); an architecture key (bk_model_keys); a key
 * with one value that the runtime honours (fixed[]); a key that must agree with others
 * (num_key_value_heads, head_dim, ...); a sibling family's, which must ask for nothing
 * (config_family.h); what the model was made with (eos_token_id, num_nextn_predict_layers); a key
 * that says nothing about the model (silent[]); anything else, which is a warning.
 *
 * Reading goes on past a fault so that a user sees all of them, and leaves the caller's struct
 * alone if there is one. */
#include <string.h>

#include "io/config_document.h"
#include "io/config_family.h"

/* A text that is no JSON is no failure here: the answer is false. */
bk_status bk_json_whole(bk_context *ctx, const char *origin, const char *text, size_t bytes,
                        bool *whole) {
  json_t *root = NULL;
  json_error_t unused;
  bk_status status = bk_json_try(ctx, origin, text, bytes, &root, &unused);
  json_decref(root);
  *whole = status == BK_OK;
  return status == BK_ERR_DATA ? BK_OK : status;
}

/* On success doc->root is to be json_decref'd; on failure there is none. */
bk_status bk_document_load(bk_document *doc, const char *json, size_t bytes) {
  BK_TRY(bk_json_load(doc->ctx, doc->origin, json, bytes, &doc->root));
  if (json_is_object(doc->root)) return BK_OK;
  bk_status status = bk_fail(doc->ctx, BK_ERR_DATA, "%s: holds %s, not an object", doc->origin,
                             bk_json_kind(doc->root));
  json_decref(doc->root);
  doc->root = NULL;
  return status;
}

/* The message says what kind of value was wanted and what kind was found. */
static bk_status wrong_kind(const bk_document *doc, const bk_option *o, const json_t *value) {
  char range[BK_OPTION_TEXT];
  return bk_fail(doc->ctx, BK_ERR_CONFIG, "%s: %s must be %s, not %s", doc->origin, o->name,
                 bk_option_range_text(o, range, sizeof range), bk_json_kind(value));
}

/* Integers are accepted for float keys (files on the hub have "rope_theta": 10000), but floats
 * never for integer keys. */
bk_status bk_document_option(const bk_document *doc, const bk_option *o, const json_t *value,
                             void *config) {
  bool word = o->type == BK_OPT_ENUM || o->type == BK_OPT_INT_OR_AUTO;
  if (json_is_string(value) && word)
    return bk_option_set_text(doc->ctx, doc->origin, o, json_string_value(value), config);
  if (json_is_boolean(value) && o->type == BK_OPT_BOOL)
    return bk_option_set_text(doc->ctx, doc->origin, o, json_is_true(value) ? "true" : "false",
                              config);
  if (json_is_null(value) && o->type == BK_OPT_INT_OR_NULL)
    return bk_option_set_text(doc->ctx, doc->origin, o, "null", config);
  if (json_is_number(value) && o->type == BK_OPT_DOUBLE)
    return bk_option_set_double(doc->ctx, doc->origin, o, json_number_value(value), config);
  bool integral =
      o->type == BK_OPT_INT || o->type == BK_OPT_INT_OR_NULL || o->type == BK_OPT_INT_OR_AUTO;
  if (json_is_integer(value) && integral)
    return bk_option_set_int(doc->ctx, doc->origin, o, (int64_t)json_integer_value(value), config);
  return wrong_kind(doc, o, value);
}

/* ---- config.json: the architecture's keys ---- */

/* What has been read of a config.json so far. */
typedef struct reading {
  bk_model_config m;
  bk_option_set known; /* keys of m whose value stands: what was read well, and defaults */
  /* An absent key means Hugging Face's default; false where the document is another family's, of
   * which that cannot be said. */
  bool defaults;
  bk_status status; /* the first failure */
} reading;

/* Remembers the first failure; all of them have been logged. */
static void note(reading *r, bk_status status) {
  if (r->status == BK_OK) r->status = status;
}

/* Whether all of the keys in `names` have a value that stands. */
static bool is_known(const reading *r, const char *names) {
  bk_option_set keys = bk_option_bits(bk_model_keys, names);
  return (r->known & keys) == keys;
}

/* ---- config.json: keys with one honoured value ---- */

typedef enum fixed_kind { FIXED_INT, FIXED_NUMBER, FIXED_BOOL, FIXED_STRING } fixed_kind;
/* A key that may have one value only, and the reason why, in words. */
typedef struct fixed_key {
  const char *name;
  fixed_kind kind;
  const char *text; /* the value as written in JSON; strings without quotes */
  const char *why;
} fixed_key;

/* Keys of DeepSeek-V3 whose other values are not built. They are written with these values too. */
static const fixed_key fixed[] = {
    {"moe_layer_freq", FIXED_INT, "1", "every layer past first_k_dense_replace has experts"},
    {"scoring_func", FIXED_STRING, "sigmoid", "no other score is built"},
    {"topk_method", FIXED_STRING, "noaux_tc", "no other choice of experts is built"},
    {"hidden_act", FIXED_STRING, "silu", "no other activation is built"},
    {"rope_interleave", FIXED_BOOL, "true", "rotation works on interleaved pairs"},
    {"tie_word_embeddings", FIXED_BOOL, "false", "the two vocabulary matrices are separate"},
    {"attention_bias", FIXED_BOOL, "false", "projections have no bias"},
    {"attention_dropout", FIXED_NUMBER, "0.0", "there is no dropout"},
};

/* Compares with the one value that is honoured, of exactly its kind: 1 is not 1.0 for an integer
 * key. */
static bool fixed_holds(const fixed_key *key, const json_t *value) {
  double wanted = 0;
  switch (key->kind) {
    case FIXED_STRING:
      return json_is_string(value) && strcmp(json_string_value(value), key->text) == 0;
    case FIXED_BOOL:
      return json_is_boolean(value) && json_is_true(value) == (strcmp(key->text, "true") == 0);
    case FIXED_INT:
      return json_is_integer(value) && bk_parse_double(key->text, &wanted) &&
             json_number_value(value) == wanted;
    case FIXED_NUMBER:
      return json_is_number(value) && bk_parse_double(key->text, &wanted) &&
             json_number_value(value) == wanted;
  }
  return false;
}

/* An absent key means the value that is built. */
static void check_fixed(const bk_document *doc, reading *r) {
  char given[BK_JSON_SHOWN];
  for (size_t i = 0; i < BK_COUNT(fixed); i++) {
    const fixed_key *key = &fixed[i];
    json_t *value = json_object_get(doc->root, key->name);
    if (value && !fixed_holds(key, value))
      note(r, bk_fail(doc->ctx, BK_ERR_CONFIG, "%s: %s must be %s, not %s: %s", doc->origin,
                      key->name, key->text, bk_json_shown(value, given), key->why));
  }
}

/* ---- config.json: rotary position ---- */

/* The first is the name in older files, the second in newer ones. */
static const char *const rope_objects[] = {"rope_scaling", "rope_parameters"};

/* Only the default kind is built, with its theta. A wrong kind makes the other members
 * meaningless, so that it alone is reported. */
static bk_status check_rope_kind(const bk_document *doc, const char *name, json_t *rope) {
  static const char *const kinds[] = {"rope_type", "type"};
  char given[BK_JSON_SHOWN];
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    json_t *kind = json_object_get(rope, kinds[i]);
    if (!kind || (json_is_string(kind) && strcmp(json_string_value(kind), "default") == 0))
      continue;
    return bk_fail(doc->ctx, BK_ERR_CONFIG,
                   "%s: %s: %s must be default, not %s: no scaling of positions is built",
                   doc->origin, name, kinds[i], bk_json_shown(kind, given));
  }
  return BK_OK;
}

/* Any member but the kind and theta asks for a scaling of positions, which is not built. */
static bk_status check_rope_members(const bk_document *doc, const char *name, json_t *rope) {
  const char *key;
  json_t *value;
  BK_TRY(check_rope_kind(doc, name, rope));
  json_object_foreach(
      rope, key,
      value) if (strcmp(key, "rope_theta") != 0 && strcmp(key, "rope_type") != 0 &&
                 strcmp(key, "type") !=
                     0) return bk_fail(doc->ctx, BK_ERR_CONFIG,
                                       "%s: %s: %.64s is not honoured, only rope_type \"default\" "
                                       "and rope_theta are: no scaling of positions "
                                       "is built",
                                       doc->origin, name, key);
  return BK_OK;
}

/* rope_theta may stand outside of the rope object, inside, or in both places with the same
 * value. */
static bk_status read_rope(const bk_document *doc, const char *name, reading *r) {
  json_t *rope = json_object_get(doc->root, name),
         *outside = json_object_get(doc->root, "rope_theta");
  if (!rope || json_is_null(rope)) return BK_OK;
  if (!json_is_object(rope))
    return bk_fail(doc->ctx, BK_ERR_CONFIG, "%s: %s must be null or an object, not %s", doc->origin,
                   name, bk_json_kind(rope));
  BK_TRY(check_rope_members(doc, name, rope));
  json_t *theta = json_object_get(rope, "rope_theta");
  if (!theta) return BK_OK;
  double before = r->m.rope_theta;
  BK_TRY(bk_document_option(doc, bk_option_find(bk_model_keys, "rope_theta", 10), theta, &r->m));
  if (json_is_number(outside) && is_known(r, "rope_theta") && before != r->m.rope_theta)
    return bk_fail(doc->ctx, BK_ERR_CONFIG, "%s: rope_theta is given twice, as %g and in %s as %g",
                   doc->origin, before, name, r->m.rope_theta);
  return BK_OK;
}

/* ---- config.json: keys that must agree ---- */

/* Compares a key that repeats others. `with` names the keys that make up `wanted`; where one of
 * them is not known nothing can be said. `absent` is the value that a missing key stands for, or
 * below 0 where a missing key agrees with anything. null always agrees. */
static bk_status check_agrees(const bk_document *doc, const reading *r, const char *name,
                              int64_t absent, int64_t wanted, const char *with) {
  json_t *value = json_object_get(doc->root, name);
  if (value && json_is_null(value)) return BK_OK;
  if (value && !json_is_integer(value))
    return bk_fail(doc->ctx, BK_ERR_CONFIG, "%s: %s must be an integer, not %s", doc->origin, name,
                   bk_json_kind(value));
  if (!is_known(r, with) || (!value && (!r->defaults || absent < 0 || absent == wanted)))
    return BK_OK;
  if (!value)
    return bk_fail(doc->ctx, BK_ERR_CONFIG,
                   "%s: %s is absent, which means %lld; it must equal %s (%lld)", doc->origin, name,
                   (long long)absent, with, (long long)wanted);
  if (json_integer_value(value) == wanted) return BK_OK;
  return bk_fail(doc->ctx, BK_ERR_CONFIG, "%s: %s (%lld) must equal %s (%lld)", doc->origin, name,
                 (long long)json_integer_value(value), with, (long long)wanted);
}

/* 128 is Hugging Face's default for num_key_value_heads, so that a file without it and with fewer
 * heads describes grouped keys, which are not built. */
static void check_agreements(const bk_document *doc, reading *r) {
  const bk_model_config *m = &r->m;
  note(r, check_agrees(doc, r, "num_key_value_heads", 128, m->num_attention_heads,
                       "num_attention_heads"));
  note(r, check_agrees(doc, r, "head_dim", -1, m->qk_rope_head_dim, "qk_rope_head_dim"));
  note(r, check_agrees(doc, r, "qk_head_dim", -1, m->qk_nope_head_dim + m->qk_rope_head_dim,
                       "qk_nope_head_dim + qk_rope_head_dim"));
  note(r, check_agrees(doc, r, "num_local_experts", -1, m->n_routed_experts, "n_routed_experts"));
  json_t *quantised = json_object_get(doc->root, "quantization_config");
  if (quantised && !json_is_null(quantised))
    note(r, bk_fail(doc->ctx, BK_ERR_CONFIG,
                    "%s: quantization_config: quantised weights are not read; convert them "
                    "to bf16 first",
                    doc->origin));
}

/* ---- config.json: what the model was made with ---- */

/* Whether it is below vocab_size is another question, which is a warning only (warn). */
static bool is_end_token(const json_t *value) {
  return json_is_integer(value) && json_integer_value(value) >= 0;
}

/* One token that ends a text, or a list of them. */
static bk_status read_end_tokens(const bk_document *doc, bk_model_config *m) {
  json_t *value = json_object_get(doc->root, "eos_token_id");
  char given[BK_JSON_SHOWN];
  /* Some files write -1 for "none". */
  if (!value || json_is_null(value) || (json_is_integer(value) && json_integer_value(value) == -1))
    return BK_OK;
  size_t count = json_is_array(value) ? json_array_size(value) : 1;
  if (count > BK_END_TOKENS)
    return bk_fail(doc->ctx, BK_ERR_CONFIG, "%s: eos_token_id lists %zu tokens, at most %d can be",
                   doc->origin, count, BK_END_TOKENS);
  for (size_t i = 0; i < count; i++) {
    json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
    if (!is_end_token(id))
      return bk_fail(doc->ctx, BK_ERR_CONFIG,
                     "%s: eos_token_id must be an integer that is not negative, a list of at most "
                     "%d of them, or null; "
                     "it %s %s%s",
                     doc->origin, BK_END_TOKENS, id == value ? "is" : "holds",
                     json_is_string(id) ? "the string " : "", bk_json_shown(id, given));
    m->eos_token_id[i] = json_integer_value(id);
  }
  m->n_eos_token_ids = (int)count;
  return BK_OK;
}

/* Two names for the number of multi-token prediction layers. */
static const char *const further_layers[] = {"num_nextn_predict_layers", "num_mtp_layers"};

/* Where a file has both names they must agree. */
static bk_status read_further_layers(const bk_document *doc, bk_model_config *m) {
  const char *said_by = NULL;
  char given[BK_JSON_SHOWN];
  for (size_t i = 0; i < BK_COUNT(further_layers); i++) {
    json_t *value = json_object_get(doc->root, further_layers[i]);
    if (!value || json_is_null(value)) continue;
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > BK_NEXTN_MAX)
      return bk_fail(doc->ctx, BK_ERR_CONFIG,
                     "%s: %s must be an integer from 0 to %d, or null, not %s", doc->origin,
                     further_layers[i], BK_NEXTN_MAX, bk_json_shown(value, given));
    if (said_by && json_integer_value(value) != m->num_nextn_predict_layers)
      return bk_fail(doc->ctx, BK_ERR_CONFIG, "%s: %s (%lld) must equal %s (%lld)", doc->origin,
                     further_layers[i], (long long)json_integer_value(value), said_by,
                     (long long)m->num_nextn_predict_layers);
    said_by = further_layers[i];
    m->num_nextn_predict_layers = json_integer_value(value);
  }
  return BK_OK;
}

/* ---- config.json: the other keys ---- */

/* Keys about files, tokens, generation or training, never about the model's function. Some are
 * checked elsewhere (num_key_value_heads, head_dim, rope_scaling, quantization_config) and listed
 * here so that no warning about an unknown key follows. */
static const char *const silent[] = {
    "architectures",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "pretraining_tp",
    "auto_map",
    "aux_loss_alpha",
    "seq_aux",
    "ep_size",
    "num_local_experts",
    "model_type",
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "output_router_logits",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "router_aux_loss_coef",
    "is_encoder_decoder",
    "is_decoder",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "tokenizer_class",
    "task_specific_params",
    "torchscript",
    "tf_legacy_loss",
    "use_bfloat16",
    "pruned_heads",
    "prefix",
    "finetuning_task",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
    "num_key_value_heads",
    "head_dim",
    "qk_head_dim",
    "rope_scaling",
    "rope_parameters",
    "quantization_config",
};

/* Keys that end in _token_id concern the tokenizer, and there are many of them. */
static bool is_expected(const char *key) {
  const char suffix[] = "_token_id";
  size_t length = strlen(key), tail = sizeof suffix - 1;
  if (bk_option_find(bk_model_keys, key, length) || bk_config_is_sibling_key(key)) return true;
  if (length > tail && strcmp(key + length - tail, suffix) == 0) return true;
  for (size_t i = 0; i < BK_COUNT(fixed); i++)
    if (strcmp(key, fixed[i].name) == 0) return true;
  for (size_t i = 0; i < BK_COUNT(silent); i++)
    if (strcmp(key, silent[i]) == 0) return true;
  return false;
}

/* An unknown key may be misspelt. The nearest known name is suggested, but an unknown key is never
 * an error: files on the hub carry many that nobody reads. */
static void warn_unknown(const bk_document *doc) {
  const char *key, *names[BK_COUNT(fixed) + 64];
  json_t *value;
  size_t count = 0;
  for (const bk_option *o = bk_model_keys; o->name && count < 64; o++) names[count++] = o->name;
  for (size_t i = 0; i < BK_COUNT(fixed); i++) names[count++] = fixed[i].name;
  json_object_foreach(doc->root, key, value) {
    if (is_expected(key)) continue;
    const char *nearest = bk_nearest(key, names, count);
    bk_warn(doc->ctx, "%s: unknown key \"%s\" has no effect%s%s", doc->origin, key,
            nearest ? "; the nearest known one is " : "", nearest ? nearest : "");
  }
  if (json_object_get(doc->root, "hc_mult") && !json_object_get(doc->root, "residual"))
    bk_warn(doc->ctx,
            "%s: hc_mult has no effect: the key residual is absent, so the model is plain",
            doc->origin);
}

/* Warnings about what is accepted but may surprise the user. */
static void warn(const bk_document *doc, const bk_model_config *m) {
  warn_unknown(doc);
  for (int i = 0; i < m->n_eos_token_ids; i++)
    if (m->eos_token_id[i] >= m->vocab_size)
      bk_warn(doc->ctx,
              "%s: eos_token_id %lld is not below vocab_size (%lld): no text ends with it",
              doc->origin, (long long)m->eos_token_id[i], (long long)m->vocab_size);
  const char *name =
      further_layers[json_is_integer(json_object_get(doc->root, further_layers[0])) ? 0 : 1];
  if (m->num_nextn_predict_layers > 0)
    bk_warn(doc->ctx,
            "%s: %s is %lld: the model is read without its multi-token prediction layer%s, whose "
            "tensors are not read",
            doc->origin, name, (long long)m->num_nextn_predict_layers,
            m->num_nextn_predict_layers == 1 ? "" : "s");
}

/* ---- config.json: all of it ---- */

/* A key that is absent is not null. */
static bool is_null(const bk_document *doc, const char *name) {
  return json_is_null(json_object_get(doc->root, name));
}

/* Whether a key's null is understood and needs no value. For n_shared_experts and n_group it means
 * one thing only; for topk_group it means n_group (read_groups); for rope_theta it means the value
 * in a rope object, if there is one. */
static bool take_null(const bk_document *doc, const char *name, bk_model_config *m) {
  if (!is_null(doc, name)) return false;
  if (strcmp(name, "n_shared_experts") == 0) {
    m->n_shared_experts = 0;
    return true;
  }
  if (strcmp(name, "n_group") == 0) {
    m->n_group = 1;
    return true;
  }
  bool inside = false;
  for (size_t i = 0; i < BK_COUNT(rope_objects); i++)
    inside |= json_object_get(json_object_get(doc->root, rope_objects[i]), "rope_theta") != NULL;
  return strcmp(name, "topk_group") == 0 || (strcmp(name, "rope_theta") == 0 && inside);
}

/* A key counts as known if its value was read well, or if its absence has a meaning. */
static void read_keys(const bk_document *doc, reading *r) {
  for (const bk_option *o = bk_model_keys; o->name; o++) {
    json_t *value = json_object_get(doc->root, o->name);
    bk_status status = BK_OK;
    if (value && !take_null(doc, o->name, &r->m)) status = bk_document_option(doc, o, value, &r->m);
    note(r, status);
    if (status == BK_OK && (value || r->defaults))
      r->known |= bk_option_bits(bk_model_keys, o->name);
  }
}

/* Without groups every expert may be chosen: where no number of kept groups is given, or no groups
 * at all, all groups are kept. */
static void read_groups(const bk_document *doc, reading *r) {
  bool absent = !json_object_get(doc->root, "topk_group");
  if (!is_null(doc, "topk_group") && !(absent && is_null(doc, "n_group"))) return;
  r->m.topk_group = r->m.n_group;
  r->known &= ~bk_option_bits(bk_model_keys, "topk_group");
  if (is_known(r, "n_group")) r->known |= bk_option_bits(bk_model_keys, "topk_group");
}

/* Goes on past a fault so that all of them are reported. A key that could not be read takes no part
 * in the rules that combine it with others. Order: the family decides whether absent keys have
 * defaults; then the keys; then what depends on them. Rules over several keys come last, with the
 * set of those that are known. */
static bk_status read_model(const bk_document *doc, bk_model_config *m) {
  reading r = {.m = bk_model_config_absent};
  bool alone = false;
  r.status = bk_config_check_family(doc->ctx, doc->origin, doc->root, &alone);
  if (r.status != BK_OK && alone) return r.status;
  r.defaults = r.status == BK_OK;
  read_keys(doc, &r);
  read_groups(doc, &r);
  check_fixed(doc, &r);
  for (size_t i = 0; i < BK_COUNT(rope_objects); i++) note(&r, read_rope(doc, rope_objects[i], &r));
  note(&r, bk_config_check_siblings(doc->ctx, doc->origin, doc->root));
  check_agreements(doc, &r);
  note(&r, read_end_tokens(doc, &r.m));
  note(&r, read_further_layers(doc, &r.m));
  note(&r, bk_model_config_check(doc->ctx, doc->origin, &r.m, r.known));
  if (r.status != BK_OK) return r.status;
  warn(doc, &r.m);
  *m = r.m;
  return BK_OK;
}

/* *m is written on success only. */
bk_status bk_model_config_parse(bk_context *ctx, const char *json, size_t bytes, const char *origin,
                                bk_model_config *m) {
  bk_document doc = {.ctx = ctx, .origin = origin};
  BK_TRY(bk_document_load(&doc, json, bytes));
  bk_status status = read_model(&doc, m);
  json_decref(doc.root);
  return status;
}

/* The path begins every message. */
bk_status bk_model_config_read(bk_context *ctx, const char *path, bk_model_config *m) {
  char *text;
  size_t bytes;
  BK_TRY(bk_file_read_all(ctx, path, BK_CONFIG_BYTES_MAX, &text, &bytes));
  bk_status status = bk_model_config_parse(ctx, text, bytes, path, m);
  bk_free(ctx, text);
  return status;
}

/* ---- writing ---- */

/* Whether a comma is needed is seen from what stands before. Every member gets a line of its
 * own. */
void bk_document_member(bk_json_out *out, const char *indent, const char *key) {
  bool first = out->length > 0 && out->data[out->length - 1] == '{';
  bk_json_out_text(out, first ? "\n" : ",\n");
  bk_json_out_text(out, indent);
  bk_json_out_string(out, key);
  bk_json_out_text(out, ": ");
}

/* Words are quoted in JSON, except for null; numbers and booleans are not. */
void bk_document_write_option(bk_json_out *out, const char *indent, const bk_option *o,
                              const void *config) {
  char text[BK_OPTION_TEXT];
  bk_document_member(out, indent, o->name);
  bk_option_value_text(o, config, text, sizeof text);
  bool word =
      o->type == BK_OPT_ENUM || (o->type == BK_OPT_INT_OR_AUTO && bk_option_int(o, config) <= 0);
  if (word) bk_json_out_string(out, text);
  else bk_json_out_text(out, text);
}

/* `json` is written as it is, quotes included. */
void bk_document_text_member(bk_json_out *out, const char *key, const char *json) {
  bk_document_member(out, "  ", key);
  bk_json_out_text(out, json);
}

/* The end tokens in the form in which they came: one as an integer, several as a list, none not at
 * all. */
static void write_end_tokens(bk_json_out *out, const bk_model_config *m) {
  if (m->n_eos_token_ids == 0) return;
  bk_document_member(out, "  ", "eos_token_id");
  if (m->n_eos_token_ids > 1) bk_json_out_text(out, "[");
  for (int i = 0; i < m->n_eos_token_ids; i++) {
    if (i > 0) bk_json_out_text(out, ", ");
    bk_json_out_int(out, m->eos_token_id[i]);
  }
  if (m->n_eos_token_ids > 1) bk_json_out_text(out, "]");
}

/* Written so that transformers reads it, with every key in full: nothing depends on its
 * defaults. */
static void write_model(bk_json_out *out, const bk_model_config *m, bk_dtype dtype) {
  const char *torch = dtype == BK_BF16  ? "\"bfloat16\""
                      : dtype == BK_F64 ? "\"float64\""
                                        : "\"float32\"";
  bk_json_out_text(out, "{");
  /* Only the plain model is DeepSeek-V3's: transformers would load another one and leave its
   * connections out. */
  bool plain = m->residual == BK_HC_PLAIN;
  bk_document_text_member(out, "architectures",
                          plain ? "[\"DeepseekV3ForCausalLM\"]" : "[\"BirkhoffForCausalLM\"]");
  bk_document_text_member(out, "model_type", plain ? "\"deepseek_v3\"" : "\"birkhoff\"");
  bk_document_text_member(out, "torch_dtype", torch);
  for (const bk_option *o = bk_model_keys; o->name; o++) bk_document_write_option(out, "  ", o, m);
  bk_document_member(out, "  ", "num_key_value_heads");
  bk_json_out_int(out, m->num_attention_heads);
  for (size_t i = 0; i < BK_COUNT(fixed); i++) {
    bk_document_member(out, "  ", fixed[i].name);
    if (fixed[i].kind == FIXED_STRING) bk_json_out_string(out, fixed[i].text);
    else bk_json_out_text(out, fixed[i].text);
  }
  bk_document_text_member(out, "rope_scaling", "null");
  /* Layers for multi-token prediction are not loaded, so that none are saved. */
  bk_document_text_member(out, "num_nextn_predict_layers", "0");
  write_end_tokens(out, m);
  bk_json_out_text(out, "\n}\n");
}

/* The text is freed, whether or not it could be written. */
bk_status bk_document_save(bk_json_out *out, const char *path) {
  bk_status status = out->status;
  if (status == BK_OK) status = bk_file_write_atomic(out->ctx, path, out->data, out->length);
  bk_json_out_fini(out);
  return status;
}

/* Checked before it is written: a file that could not be read again must not come about. */
bk_status bk_model_config_write(bk_context *ctx, const char *path, const bk_model_config *m,
                                bk_dtype dtype) {
  if (!bk_dtype_is_float(dtype))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: weights cannot be %s", path, bk_dtype_name(dtype));
  BK_TRY(bk_model_config_check(ctx, path, m, BK_OPTION_ALL));
  bk_json_out out;
  bk_json_out_init(&out, ctx);
  write_model(&out, m, dtype);
  return bk_document_save(&out, path);
}
