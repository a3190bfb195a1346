/* config.json of other families, and of DeepSeek-V3's as the hub has them: which are taken,
 * which are refused, and with every reason at once. */
#include "tests/unit/unit.h"

#include "io/config.h"

/* Sizes and routing as DeepSeek-V3's class has them; every file of the family brings these. */
#define MLA "\"kv_lora_rank\":16,\"qk_rope_head_dim\":8,\"qk_nope_head_dim\":16,\"v_head_dim\":16"
#define FAMILY MLA ",\"n_routed_experts\":8"
#define SIZES                                                                                      \
  "\"vocab_size\":300,\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":4,\"num_" \
  "attention_heads\":4,\"num_key_value_heads\":4"
#define EXPERTS                                                                                    \
  "\"moe_intermediate_size\":32,\"n_shared_experts\":1,\"num_experts_per_tok\":2,\"first_k_dense_" \
  "replace\":1"
#define GROUPS "\"n_group\":4,\"topk_group\":2"
#define SMALL SIZES "," EXPERTS "," FAMILY "," GROUPS
#define NAMED(type, class) "\"model_type\":\"" type "\",\"architectures\":[\"" class "\"]"
#define OURS NAMED("deepseek_v3", "DeepseekV3ForCausalLM")
#define YARN                                                                                       \
  "{\"type\":\"yarn\",\"factor\":40,\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,\"mscale_all_" \
  "dim\":1.0,\"original_max_position_embeddings\":4096}"
#define FP8                                                                                      \
  "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\",\"weight_block_" \
  "size\":[128,128]}"
/* DeepSeek-V3's keys on the hub, but for its name. */
#define V3                                                                                         \
  "\"attention_bias\":false,\"attention_dropout\":0.0,\"auto_map\":{\"AutoConfig\":"               \
  "\"configuration_deepseek.DeepseekV3Config\"},"                                                  \
  "\"bos_token_id\":0,\"eos_token_id\":1,\"ep_size\":1,\"first_k_dense_replace\":3,\"hidden_"      \
  "act\":\"silu\",\"hidden_size\":7168,"                                                           \
  "\"initializer_range\":0.02,\"intermediate_size\":18432,\"kv_lora_rank\":512,\"max_position_"    \
  "embeddings\":163840,"                                                                           \
  "\"moe_intermediate_size\":2048,\"moe_layer_freq\":1,\"n_group\":8,\"n_routed_experts\":256,"    \
  "\"n_shared_experts\":1,"                                                                        \
  "\"norm_topk_prob\":true,\"num_attention_heads\":128,\"num_experts_per_tok\":8,\"num_hidden_"    \
  "layers\":61,"                                                                                   \
  "\"num_key_value_heads\":128,\"num_nextn_predict_layers\":1,\"q_lora_rank\":1536,\"qk_nope_"     \
  "head_dim\":128,"                                                                                \
  "\"qk_rope_head_dim\":64,\"quantization_config\":" FP8                                           \
  ",\"rms_norm_eps\":1e-06,\"rope_scaling\":" YARN                                                 \
  ",\"rope_theta\":10000,"                                                                         \
  "\"routed_scaling_factor\":2.5,\"scoring_func\":\"sigmoid\",\"tie_word_embeddings\":false,"      \
  "\"topk_group\":4,"                                                                              \
  "\"topk_method\":\"noaux_tc\",\"torch_dtype\":\"bfloat16\",\"transformers_version\":\"4.33.1\"," \
  "\"use_cache\":true,"                                                                            \
  "\"v_head_dim\":128,\"vocab_size\":129280"

static bk_status parse(const char *json, bk_model_config *m) {
  return bk_model_config_parse(ctx, json, strlen(json), "x.json", m);
}

static int lines(void) {
  int count = 0;
  for (const char *p = unit_messages; *p; p++) count += *p == '\n';
  return count;
}

/* One error line for each part, all of which begin with the origin, and nothing else; the struct
 * is as it was. */
static void refused_for(const char *json, const char *const *parts, int count) {
  bk_model_config m;
  memset(&m, 0x5a, sizeof m);
  ck_assert_msg(parse(json, &m) == BK_ERR_CONFIG, "status of: %s\n%s", json, unit_messages);
  for (size_t i = 0; i < sizeof m; i++) ck_assert_int_eq(((unsigned char *)&m)[i], 0x5a);
  for (int i = 0; i < count; i++)
    ck_assert_msg(strstr(unit_messages, parts[i]) != NULL, "\"%s\" is not in:\n%s", parts[i],
                  unit_messages);
  ck_assert_msg(lines() == count, "%d lines were expected of: %s\n%s", count, json, unit_messages);
  for (const char *line = unit_messages; *line; line = strchr(line, '\n') + 1)
    ck_assert_msg(strncmp(line, "error: x.json: ", 15) == 0, "no error with its origin: %s", line);
  unit_messages[0] = '\0';
}

#define REFUSED(json, ...)                              \
  refused_for(json, (const char *const[]){__VA_ARGS__}, \
              (int)BK_COUNT(((const char *const[]){__VA_ARGS__})))

/* `part` NULL: in silence, else with the one warning. */
static void taken(const char *json, const char *part, bk_model_config *m) {
  ck_assert_msg(parse(json, m) == BK_OK, "refused: %s\n%s", json, unit_messages);
  ck_assert_msg(lines() == (part ? 1 : 0), "%s\n%s", json, unit_messages);
  ck_assert_int_eq(unit_errors(), 0);
  unit_expect(part);
}

/* ---- names ---- */

START_TEST(our_names) {
  bk_model_config m;
  taken("{" OURS "," SMALL "}", NULL, &m);
  taken("{" NAMED("birkhoff", "BirkhoffForCausalLM") "," SMALL ",\"residual\":\"mhc\"}", NULL, &m);
  taken("{" NAMED("deepseek_v3", "DeepseekV3Model") "," SMALL "}", NULL, &m);
  taken("{" NAMED("birkhoff", "DeepseekV3ForCausalLM") "," SMALL "}", NULL, &m);
  taken("{\"model_type\":\"deepseek_v3\",\"architectures\":null," SMALL "}", NULL, &m);
  taken("{\"model_type\":\"deepseek_v3\",\"architectures\":[]," SMALL "}", NULL, &m);
  taken(
      "{\"model_type\":null,\"architectures\":[\"DeepseekV3Model\",\"DeepseekV3ForCausalLM\"]"
      "," SMALL "}",
      NULL, &m);
  /* absent keys are that class's */
  taken("{\"architectures\":[\"DeepseekV3ForCausalLM\"]}", NULL, &m);
  ck_assert_int_eq(m.n_routed_experts, 256);
}
END_TEST

START_TEST(bad_names) {
  REFUSED("{\"model_type\":3," SMALL "}",
          "model_type must be a string, \"deepseek_v3\" or \"birkhoff\", not an integer");
  REFUSED("{\"model_type\":[\"deepseek_v3\"]," SMALL "}",
          "model_type must be a string, \"deepseek_v3\" or \"birkhoff\", not an array");
  REFUSED("{\"architectures\":\"LlamaForCausalLM\"," SMALL "}",
          "architectures with \"LlamaForCausalLM\": another architecture");
  REFUSED("{\"architectures\":7," SMALL "}",
          "architectures must be a list of names, such as [\"DeepseekV3ForCausalLM\"]; it is an "
          "integer");
  REFUSED("{\"architectures\":[\"DeepseekV3ForCausalLM\",null]," SMALL "}", "it holds null");
  REFUSED("{\"model_type\":\"DeepSeek_V3\"," SMALL "}",
          "model_type \"DeepSeek_V3\": another architecture");
  REFUSED("{\"model_type\":\"\"," SMALL "}", "model_type \"\": another architecture");
  REFUSED("{" NAMED("deepseek_v3", "DeepseekV3ForSequenceClassification") "," SMALL "}",
          "architectures with \"DeepseekV3ForSequenceClassification\"");
  REFUSED("{\"architectures\":[\"DeepseekV3ForCausalLM\",\"LlamaForCausalLM\"]," SMALL "}",
          "architectures with \"LlamaForCausalLM\"");
  REFUSED("{" NAMED("llama", "DeepseekV3ForCausalLM") "," SMALL "}",
          "x.json: model_type \"llama\": another architecture, which is not built; model_type must "
          "be deepseek_v3 or birkhoff");
  /* shown without control characters, and not in full */
  REFUSED("{\"model_type\":\"a\\nerror: \\u001b[31m\"," SMALL "}", "model_type \"a?error: ?[31m\"");
  REFUSED(
      "{\"model_type\":"
      "\"0123456789012345678901234567890123456789012345678901234567890123456\\u00e4567\"," SMALL
      "}",
      "model_type \"0123456789012345678901234567890123456789012345678901234567890123456...\"");
}
END_TEST

/* Nothing of theirs is judged by DeepSeek-V3's rules: the name is the whole reason. */
START_TEST(foreign_families) {
  REFUSED("{" NAMED("llama", "LlamaForCausalLM") ",\"hidden_size\":4096,"
          "\"intermediate_size\":11008,\"num_attention_heads\":32,\"num_key_value_heads\":32,"
          "\"hidden_act\":\"silu\",\"rope_scaling\":null,\"pretraining_tp\":1,"
          "\"vocab_size\":32000,\"tie_word_embeddings\":false,\"num_hidden_layers\":32}",
          "x.json: model_type \"llama\" and architectures with \"LlamaForCausalLM\": another "
          "architecture");
  REFUSED("{" NAMED("qwen2", "Qwen2ForCausalLM") ",\"hidden_size\":896,\"num_attention_heads\":14,"
          "\"num_key_value_heads\":2,\"use_sliding_window\":false,"
          "\"sliding_window\":32768,\"max_window_layers\":21,\"tie_word_embeddings\":true}",
          "Qwen2ForCausalLM");
  REFUSED("{" NAMED("qwen2_moe", "Qwen2MoeForCausalLM") ",\"num_experts\":60,"
          "\"num_experts_per_tok\":4,\"norm_topk_prob\":false,\"moe_intermediate_size\":1408,"
          "\"shared_expert_intermediate_size\":5632,\"decoder_sparse_step\":1}", "qwen2_moe");
  REFUSED("{" NAMED("olmo", "OlmoForCausalLM") ",\"clip_qkv\":8.0,\"num_attention_heads\":16,"
          "\"attention_bias\":false}", "olmo");
  REFUSED("{" NAMED("granite", "GraniteForCausalLM") ",\"attention_multiplier\":0.0078125,"
          "\"embedding_multiplier\":12.0,\"residual_multiplier\":0.22}", "granite");
  REFUSED("{" NAMED("mistral",
                    "MistralForCausalLM") ",\"sliding_window\":4096,\"num_key_value_heads\":8}",
          "mistral");
  REFUSED("{" NAMED("gemma2", "Gemma2ForCausalLM") ",\"hidden_act\":\"gelu_pytorch_tanh\","
          "\"attn_logit_softcapping\":50.0,\"head_dim\":256}", "gemma2");
  REFUSED("{" NAMED("gpt2", "GPT2LMHeadModel") ",\"n_embd\":768,\"n_head\":12,\"n_layer\":12}",
          "gpt2");
  REFUSED("{" NAMED("mixtral",
                    "MixtralForCausalLM") ",\"num_local_experts\":8,\"num_experts_per_tok\":2}",
          "mixtral");
  REFUSED("{" NAMED("minicpm3", "MiniCPM3ForCausalLM") ",\"kv_lora_rank\":256,"
          "\"qk_nope_head_dim\":64,\"qk_rope_head_dim\":32,\"scale_emb\":12}", "minicpm3");
  REFUSED("{" NAMED("kimi_linear",
                    "KimiLinearForCausalLM") "," MLA
                                             ",\"num_experts\":256,\"linear_attn_config\":{}}",
          "kimi_linear");
  REFUSED("{\"architectures\":[\"LlamaForCausalLM\"],\"num_attention_heads\":32}",
          "x.json: architectures with \"LlamaForCausalLM\": another");
  REFUSED("{\"model_type\":\"phi3\",\"vocab_size\":\"32064\"}",
          "x.json: model_type \"phi3\": another");
}
END_TEST

/* Near enough for every other reason to be one. What they leave out says nothing: it is not
 * DeepSeek-V3's default. */
START_TEST(sibling_families) {
  REFUSED("{" NAMED("deepseek_v2", "DeepseekV2ForCausalLM") ",\"hidden_size\":2048,"
          "\"intermediate_size\":10944,\"kv_lora_rank\":512,\"moe_intermediate_size\":1408,"
          "\"n_group\":1,\"n_routed_experts\":64,\"n_shared_experts\":2,\"norm_topk_prob\":false,"
          "\"num_attention_heads\":16,\"num_experts_per_tok\":6,"
          "\"num_hidden_layers\":27,\"num_key_value_heads\":16,\"q_lora_rank\":null,"
          "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"rope_scaling\":" YARN ","
          "\"scoring_func\":\"softmax\",\"topk_group\":1,\"topk_method\":\"greedy\","
          "\"v_head_dim\":128,\"vocab_size\":102400,\"moe_layer_freq\":1}",
          "model_type \"deepseek_v2\" and architectures with \"DeepseekV2ForCausalLM\"",
          "scoring_func must be sigmoid, not softmax",
          "topk_method must be noaux_tc, not greedy", "rope_scaling: type must be default, not "
          "yarn: no scaling of positions is built");
  REFUSED("{" NAMED("deepseek_v32", "DeepseekV32ForCausalLM") "," V3
                                                              ",\"index_head_dim\":128,\"index_n_"
                                                              "heads\":64,\"index_topk\":2048}",
          "deepseek_v32", "quantization_config", "not yarn",
          "index_topk, index_n_heads, index_head_dim must be absent or null: no sparse attention "
          "is built");
  REFUSED("{" NAMED("kimi_k2", "DeepseekV3ForCausalLM") "," SMALL ",\"quantization_config\":" FP8
                                                        ",\"rope_scaling\":" YARN
                                                        ",\"eos_token_id\":163586}",
          "x.json: model_type \"kimi_k2\": another", "quantization_config", "not yarn");
  REFUSED("{" NAMED("longcat_flash",
                    "LongcatFlashForCausalLM") "," MLA
                                               ",\"n_routed_experts\":512,\"hidden_size\":6144,"
                                               "\"num_layers\":28,\"num_attention_heads\":64,"
                                               "\"moe_topk\":12,\"mla_scale_q_lora\":true,\"mla_"
                                               "scale_kv_lora\":true,\"zero_expert_num\":256,"
                                               "\"attention_method\":\"MLA\"}",
          "longcat_flash", "mla_scale_q_lora, mla_scale_kv_lora must be absent or false",
          "zero_expert_num must be absent or 0");
  REFUSED("{" NAMED("glm_moe_dsa",
                    "GlmMoeDsaForCausalLM") "," SMALL
                                            ",\"index_topk\":2048,\"indexer_rope_interleave\":true,"
                                            "\"rope_parameters\":{\"rope_theta\":1000000,\"rope_"
                                            "type\":\"default\"}}",
          "glm_moe_dsa", "index_topk must be absent or null");
  REFUSED(
      "{" NAMED("glm4_moe_lite",
                "Glm4MoeLiteForCausalLM") "," SMALL
                                          ",\"partial_rotary_factor\":1.0,\"attention_bias\":true}",
      "glm4_moe_lite", "attention_bias");
  REFUSED("{" NAMED("deepseek_v2", "DeepseekV2ForCausalLM") "," SMALL
                                                            ",\"topk_method\":\"group_limited_"
                                                            "greedy\",\"moe_layer_freq\":2}",
          "deepseek_v2", "topk_method must be noaux_tc, not group_limited_greedy",
          "moe_layer_freq");
}
END_TEST

START_TEST(nameless) {
  bk_model_config m;
  taken("{" SMALL "}", NULL, &m);
  taken("{\"model_type\":null,\"architectures\":[]," FAMILY ",\"n_group\":1,\"topk_group\":1}",
        NULL, &m);
  ck_assert_int_eq(m.hidden_size, 7168);
  REFUSED("{}",
          "neither model_type nor architectures says which model this is, and keys that it needs "
          "are missing: kv_lora_rank, qk_rope_head_dim, "
          "qk_nope_head_dim, v_head_dim, n_routed_experts; add them, or \"model_type\": "
          "\"deepseek_v3\"");
  REFUSED(
      "{\"vocab_size\":32000,\"num_attention_heads\":32,\"num_key_value_heads\":8,\"tie_word_"
      "embeddings\":true,\"hidden_act\":\"gelu\"}",
      "keys that it needs are missing");
  REFUSED("{" MLA ",\"num_experts\":8}", "are missing: n_routed_experts; add");
  REFUSED(
      "{\"architectures\":null,\"kv_lora_rank\":16,\"n_routed_experts\":8,\"hidden_act\":\"gelu\","
      "\"hidden_size\":0}",
      "are missing: qk_rope_head_dim, qk_nope_head_dim, v_head_dim; add", "hidden_act must be silu",
      "hidden_size must be an integer from 1");
  REFUSED(
      "{\"kv_lora_rank\":null,\"qk_rope_head_dim\":8,\"qk_nope_head_dim\":16,\"v_head_dim\":16,\"n_"
      "routed_experts\":256}",
      "kv_lora_rank must be an integer");
}
END_TEST

/* ---- every reason ---- */

START_TEST(deepseek_v3_of_the_hub) {
  REFUSED("{" OURS "," V3 "}", "quantization_config: quantised weights are not read",
          "rope_scaling: type must be default, not yarn");
}
END_TEST

START_TEST(moonlight) {
  bk_model_config m;
  taken("{" OURS
        ",\"aux_loss_alpha\":0.001,\"bos_token_id\":163584,\"eos_token_id\":163585,\"ep_size\":1,"
        "\"first_k_dense_replace\":1,\"hidden_act\":\"silu\","
        "\"hidden_size\":2048,\"initializer_range\":0.02,\"intermediate_size\":11264,\"kv_lora_"
        "rank\":512,\"max_position_embeddings\":8192,"
        "\"moe_intermediate_size\":1408,\"moe_layer_freq\":1,\"n_group\":1,\"n_routed_experts\":64,"
        "\"n_shared_experts\":2,\"norm_topk_prob\":true,"
        "\"num_attention_heads\":16,\"num_experts_per_tok\":6,\"num_hidden_layers\":27,\"num_key_"
        "value_heads\":16,\"num_nextn_predict_layers\":0,"
        "\"pretraining_tp\":1,\"q_lora_rank\":null,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":"
        "64,\"rms_norm_eps\":1e-05,\"rope_theta\":50000.0,"
        "\"routed_scaling_factor\":2.446,\"scoring_func\":\"sigmoid\",\"seq_aux\":true,\"tie_word_"
        "embeddings\":false,\"topk_group\":1,"
        "\"topk_method\":\"noaux_tc\",\"torch_dtype\":\"bfloat16\",\"use_cache\":true,\"v_head_"
        "dim\":128,\"vocab_size\":163840}",
        NULL, &m);
  ck_assert(m.n_shared_experts == 2 && m.rope_theta == 50000 && m.n_eos_token_ids == 1 &&
            m.eos_token_id[0] == 163585);
}
END_TEST

START_TEST(every_reason) {
  REFUSED("{" OURS "," SIZES "," EXPERTS
          ",\"kv_lora_rank\":\"16\",\"qk_rope_head_dim\":7,\"n_routed_experts\":10,\"n_group\":4,"
          "\"topk_group\":5,"
          "\"rms_norm_eps\":2,\"norm_topk_prob\":1,\"hidden_act\":\"gelu\",\"attention_bias\":true,"
          "\"rope_scaling\":7,\"quantization_config\":{},"
          "\"eos_token_id\":-2,\"num_nextn_predict_layers\":65,\"mlp_bias\":true,\"num_local_"
          "experts\":11,\"residual\":\"mhc_lite\",\"hc_mult\":6}",
          "kv_lora_rank must be", "qk_rope_head_dim (7) must be even",
          "n_routed_experts (10) cannot be divided", "topk_group (5) is above n_group (4)",
          "rms_norm_eps must be", "norm_topk_prob must be", "hidden_act must be",
          "attention_bias must be", "rope_scaling must be null or an object", "quantization_config",
          "eos_token_id must be", "num_nextn_predict_layers must be", "mlp_bias must be",
          "num_local_experts (11) must equal", "hc_mult (6)");
  REFUSED("{" OURS "," SIZES "," FAMILY
          ",\"n_shared_experts\":65536,\"moe_intermediate_size\":65536,\"num_experts_per_tok\":9,"
          "\"n_group\":1,\"topk_group\":1}",
          "n_shared_experts x moe_intermediate_size",
          "num_experts_per_tok (9) is above the 8 experts that are left");
}
END_TEST

/* What could not be read takes no part in what it would have to agree with. */
START_TEST(no_reason_that_only_follows) {
  REFUSED("{" OURS ",\"num_attention_heads\":\"4\",\"num_key_value_heads\":4}",
          "num_attention_heads must be");
  REFUSED("{" OURS ",\"qk_rope_head_dim\":1.5,\"head_dim\":8,\"qk_head_dim\":24}",
          "qk_rope_head_dim must be");
  REFUSED("{" OURS
          ",\"n_routed_experts\":null,\"num_local_experts\":10,\"num_experts_per_tok\":500}",
          "n_routed_experts must be");
  REFUSED("{" OURS ",\"n_group\":0,\"topk_group\":null,\"n_routed_experts\":7}", "n_group must be");
  REFUSED("{" OURS ",\"topk_group\":\"1\",\"n_group\":1}", "topk_group must be");
  REFUSED(
      "{" OURS
      ",\"rope_theta\":\"1e4\",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":500}}",
      "rope_theta must be");
  REFUSED("{" OURS
          ",\"num_hidden_layers\":100000,\"hidden_size\":16777216,\"moe_intermediate_size\":"
          "268435456,\"n_shared_experts\":\"0\"}",
          "n_shared_experts must be");
  REFUSED("{" OURS ",\"num_key_value_heads\":1.5,\"num_attention_heads\":4}",
          "num_key_value_heads must be an integer");
}
END_TEST

START_TEST(scaled_positions) {
  bk_model_config m;
  REFUSED("{" OURS ",\"rope_scaling\":{\"factor\":4,\"mscale\":1}}",
          "rope_scaling: factor is not honoured, only rope_type \"default\" and rope_theta are");
  REFUSED("{" OURS
          ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8,\"rope_theta\":-1}}",
          "rope_parameters: rope_type must be default, not llama3");
  REFUSED("{" OURS ",\"rope_scaling\":{\"type\":\"default\",\"rope_type\":\"linear\"}}",
          "rope_scaling: rope_type must be default, not linear");
  REFUSED("{" OURS ",\"rope_scaling\":{\"type\":3}}", "rope_scaling: type must be default, not 3");
  REFUSED(
      "{" OURS
      ",\"rope_scaling\":{\"type\":\"dynamic\"},\"rope_parameters\":{\"rope_type\":\"longrope\"}}",
      "not dynamic", "not longrope");
  taken("{" OURS ",\"rope_scaling\":{\"type\":\"default\",\"rope_theta\":500}}", NULL, &m);
  ck_assert(m.rope_theta == 500);
}
END_TEST

/* ---- siblings' keys ---- */

START_TEST(keys_of_siblings) {
  bk_model_config m;
  taken("{" OURS
        ",\"mlp_bias\":false,\"sliding_window\":null,\"index_topk\":null,\"partial_rotary_factor\":"
        "1,\"embedding_multiplier\":1.0,\"zero_expert_num\":0,"
        "\"use_sliding_window\":false,\"clip_qkv\":null}",
        NULL, &m);
  REFUSED("{" OURS ",\"mlp_bias\":true}",
          "mlp_bias must be absent or false: projections have no bias");
  REFUSED("{" OURS ",\"mlp_bias\":1}", "mlp_bias");
  REFUSED("{" OURS ",\"sliding_window\":4096}", "sliding_window must be absent or null");
  REFUSED("{" OURS ",\"partial_rotary_factor\":0.5}",
          "partial_rotary_factor must be absent or 1.0");
  REFUSED("{" OURS ",\"residual_multiplier\":\"1\"}", "residual_multiplier");
  REFUSED("{" SMALL ",\"swiglu_limit\":7.0,\"use_qk_norm\":true}", "swiglu_limit", "use_qk_norm");
}
END_TEST

/* ---- null, and a byte order mark ---- */

START_TEST(nulls) {
  bk_model_config m;
  taken("{" OURS "," SIZES "," EXPERTS "," FAMILY ",\"n_group\":null}", NULL, &m);
  ck_assert(m.n_group == 1 && m.topk_group == 1);
  taken("{" OURS "," SIZES "," EXPERTS "," FAMILY ",\"n_group\":null,\"topk_group\":null}", NULL,
        &m);
  ck_assert(m.n_group == 1 && m.topk_group == 1);
  taken("{" OURS "," SIZES "," EXPERTS "," FAMILY ",\"n_group\":4,\"topk_group\":null}", NULL, &m);
  ck_assert(m.n_group == 4 && m.topk_group == 4);
  taken("{" OURS ",\"topk_group\":null}", NULL, &m);
  ck_assert(m.n_group == 8 && m.topk_group == 8);
  taken("{" OURS "," SIZES "," FAMILY "," GROUPS
        ",\"num_experts_per_tok\":2,\"n_shared_experts\":null}",
        NULL, &m);
  ck_assert_int_eq(m.n_shared_experts, 0);
  taken("{" OURS
        ",\"q_lora_rank\":null,\"num_key_value_heads\":null,\"head_dim\":null,\"rope_scaling\":"
        "null,\"rope_parameters\":null,\"quantization_config\":null,"
        "\"pad_token_id\":null,\"eos_token_id\":null,\"num_nextn_predict_layers\":null,\"num_mtp_"
        "layers\":null}",
        NULL, &m);
  ck_assert(m.q_lora_rank == 0 && m.n_eos_token_ids == 0 && m.num_nextn_predict_layers == 0);
  taken("{" OURS
        ",\"rope_theta\":null,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":500}}",
        NULL, &m);
  ck_assert(m.rope_theta == 500);
  REFUSED("{" OURS ",\"n_group\":null,\"topk_group\":2}", "topk_group (2) is above n_group (1)");
  REFUSED("{" OURS ",\"rope_theta\":null}",
          "rope_theta must be a number from 1.0 to 1e+15, not null");
  REFUSED("{" OURS ",\"norm_topk_prob\":null,\"n_routed_experts\":null}",
          "norm_topk_prob must be true or false, not null", "n_routed_experts must be");
  REFUSED("{" OURS ",\"first_k_dense_replace\":null}",
          "first_k_dense_replace must be an integer from 0 to 100000, not null");
}
END_TEST

START_TEST(byte_order_mark) {
  bk_model_config m;
  bk_trainer_state state;
  taken("\xef\xbb\xbf{" OURS "}", NULL, &m);
  taken("\xef\xbb\xbf\r\n{" OURS ",\"hidden_size\":64}", NULL, &m);
  ck_assert_int_eq(m.hidden_size, 64);
  static const char *const bad[] = {"\xef\xbb\xbf", "\xef\xbb\xbf\xef\xbb\xbf{}", "\xef\xbb{}",
                                    "{\xef\xbb\xbf}", "\xff\xfe{}"};
  for (size_t i = 0; i < BK_COUNT(bad); i++) {
    ck_assert_msg(parse(bad[i], &m) == BK_ERR_DATA && lines() == 1, "%zu: %s", i, unit_messages);
    unit_expect("x.json: line 1");
  }
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("s.json"), "\xef\xbb\xbf{\"format\":7}", 15),
                   BK_OK);
  ck_assert_int_eq(bk_trainer_state_read(ctx, unit_path("s.json"), &state), BK_ERR_DATA);
  unit_expect("format 7 is not known");
}
END_TEST

/* ---- what the model was made with ---- */

START_TEST(further_layers) {
  bk_model_config m;
  taken("{" OURS ",\"num_nextn_predict_layers\":0,\"num_mtp_layers\":0}", NULL, &m);
  taken("{" OURS ",\"num_nextn_predict_layers\":1}",
        "num_nextn_predict_layers is 1: the model is read without its multi-token prediction "
        "layer, whose tensors are not read",
        &m);
  ck_assert_int_eq(m.num_nextn_predict_layers, 1);
  taken("{" OURS ",\"num_mtp_layers\":64,\"num_nextn_predict_layers\":null}",
        "num_mtp_layers is 64: the model is read without its multi-token prediction layers, whose",
        &m);
  ck_assert_int_eq(m.num_nextn_predict_layers, 64);
  taken("{" OURS ",\"num_mtp_layers\":2,\"num_nextn_predict_layers\":2}", "is 2", &m);
  REFUSED("{" OURS ",\"num_nextn_predict_layers\":65}",
          "num_nextn_predict_layers must be an integer from 0 to 64, or null, not 65");
  REFUSED("{" OURS ",\"num_nextn_predict_layers\":-1}", "not -1");
  REFUSED("{" OURS ",\"num_nextn_predict_layers\":1.0}", "not 1.0");
  REFUSED("{" OURS ",\"num_mtp_layers\":\"1\"}",
          "num_mtp_layers must be an integer from 0 to 64, or null, not 1");
  REFUSED("{" OURS ",\"num_mtp_layers\":true}", "not true");
  REFUSED("{" OURS ",\"num_mtp_layers\":2,\"num_nextn_predict_layers\":1}",
          "num_mtp_layers (2) must equal num_nextn_predict_layers (1)");
  ck_assert_int_eq(parse("{" SMALL "}", &m), BK_OK);
  m.num_nextn_predict_layers = 64;
  ck_assert_int_eq(bk_model_config_validate(ctx, &m), BK_OK);
  m.num_nextn_predict_layers = 65;
  ck_assert_int_eq(bk_model_config_validate(ctx, &m), BK_ERR_CONFIG);
  unit_expect("num_nextn_predict_layers must be an integer from 0 to 64, not 65");
  m.num_nextn_predict_layers = -1;
  ck_assert_int_eq(bk_model_config_validate(ctx, &m), BK_ERR_CONFIG);
  unit_expect("not -1");
}
END_TEST

START_TEST(end_tokens) {
  bk_model_config m;
  taken("{" OURS "}", NULL, &m);
  ck_assert_int_eq(m.n_eos_token_ids, 0);
  taken("{" OURS ",\"eos_token_id\":[]}", NULL, &m);
  ck_assert_int_eq(m.n_eos_token_ids, 0);
  taken("{" OURS ",\"eos_token_id\":-1}", NULL, &m);
  ck_assert_int_eq(m.n_eos_token_ids, 0);
  taken("{" OURS ",\"eos_token_id\":0}", NULL, &m);
  ck_assert(m.n_eos_token_ids == 1 && m.eos_token_id[0] == 0);
  taken("{" OURS ",\"eos_token_id\":[8,7,6,5,4,3,2,1]}", NULL, &m);
  ck_assert(m.n_eos_token_ids == 8 && m.eos_token_id[0] == 8 && m.eos_token_id[7] == 1);
  taken("{" OURS ",\"eos_token_id\":[1,129280]}",
        "eos_token_id 129280 is not below vocab_size (129280)", &m);
  ck_assert(m.n_eos_token_ids == 2 && m.eos_token_id[1] == 129280);
  REFUSED("{" OURS
          ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6]}",
          "eos_token_id lists 33 tokens, at most 32 can be");
  REFUSED("{" OURS ",\"eos_token_id\":-2}",
          "eos_token_id must be an integer that is not negative, a list of at most 32 of them, or "
          "null; it is -2");
  REFUSED("{" OURS ",\"eos_token_id\":\"2\"}", "it is the string 2");
  REFUSED("{" OURS ",\"eos_token_id\":[1,-1]}", "it holds -1");
  REFUSED("{" OURS ",\"eos_token_id\":1.0}", "it is 1.0");
  REFUSED("{" OURS ",\"eos_token_id\":\"</s>\"}", "it is the string </s>");
  REFUSED("{" OURS ",\"eos_token_id\":[null]}", "it holds null");
  REFUSED("{" OURS ",\"eos_token_id\":{}}", "it is an object");
  m.eos_token_id[1] = -1;
  ck_assert_int_eq(bk_model_config_validate(ctx, &m), BK_ERR_CONFIG);
  unit_expect("eos_token_id (-1) must be at least 0");
  m.n_eos_token_ids = 33;
  ck_assert_int_eq(bk_model_config_validate(ctx, &m), BK_ERR_CONFIG);
  unit_expect("there can be 0 to 32 end tokens, not 33");
}
END_TEST

/* The written text holds `part`, or no end token at all; and reads as it was, further layers
 * aside. */
static void written_and_read(bk_model_config *m, const char *part) {
  bk_model_config back;
  char *text;
  size_t bytes;
  ck_assert_int_eq(bk_model_config_write(ctx, unit_path("config.json"), m, BK_F32), BK_OK);
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("config.json"), 65536, &text, &bytes), BK_OK);
  ck_assert_msg(strstr(text, part ? part : "eos_token_id") == NULL ? !part : part != NULL, "%s\n%s",
                part ? part : "no eos_token_id", text);
  ck_assert_ptr_nonnull(strstr(text, "\"num_nextn_predict_layers\": 0"));
  bk_free(ctx, text);
  ck_assert_int_eq(bk_model_config_read(ctx, unit_path("config.json"), &back), BK_OK);
  unit_expect(NULL);
  ck_assert_int_eq(back.n_eos_token_ids, m->n_eos_token_ids);
  for (int i = 0; i < m->n_eos_token_ids; i++)
    ck_assert_int_eq(back.eos_token_id[i], m->eos_token_id[i]);
  ck_assert_int_eq(back.num_nextn_predict_layers, 0);
}

START_TEST(written_again) {
  bk_model_config m;
  for (int kind = BK_HC_PLAIN; kind <= BK_HC_IHC; kind++) {
    ck_assert_int_eq(parse("{" SMALL "}", &m), BK_OK);
    m.residual = kind;
    m.num_nextn_predict_layers = 1;
    written_and_read(&m, NULL);
    m.eos_token_id[0] = 299, m.n_eos_token_ids = 1;
    written_and_read(&m, "\"eos_token_id\": 299\n");
    m.eos_token_id[1] = 7, m.n_eos_token_ids = 2;
    written_and_read(&m, "\"eos_token_id\": [299, 7]\n");
  }
}
END_TEST

UNIT_MAIN("config_family", unit_folder_open, unit_folder_close, our_names, bad_names,
          foreign_families, sibling_families, nameless, deepseek_v3_of_the_hub, moonlight,
          every_reason, no_reason_that_only_follows, scaled_positions, keys_of_siblings, nulls,
          byte_order_mark, further_layers, end_tokens, written_again)
