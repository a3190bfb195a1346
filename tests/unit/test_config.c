/* config.json, --set, the recipe and trainer_state.json: what is taken, what is refused and with
 * which words. */
#include "tests/unit/unit.h"

#include <locale.h>
#include <math.h>

#include "io/config.h"

/* The keys of a small model that Hugging Face's class accepts; EXTRA goes in front, later
 * duplicates are not allowed in JSON. */
#define SMALL_SIZES                                                                               \
  "\"vocab_size\":257,\"hidden_size\":64,\"intermediate_size\":128,\"moe_intermediate_size\":32," \
  "\"num_hidden_layers\":4,"                                                                      \
  "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"kv_lora_rank\":16,\"q_lora_rank\":null," \
  "\"qk_rope_head_dim\":8,"                                                                       \
  "\"qk_nope_head_dim\":16,\"v_head_dim\":16,\"n_shared_experts\":1,\"first_k_dense_replace\":1"
#define SMALL_EXPERTS \
  ",\"n_routed_experts\":8,\"num_experts_per_tok\":2,\"n_group\":4,\"topk_group\":2"
#define SMALL SMALL_SIZES SMALL_EXPERTS
/* Says whose the keys are that are absent. */
#define NAMED "\"model_type\":\"deepseek_v3\""

static bk_status parse(const char *json, bk_model_config *m) {
  return bk_model_config_parse(ctx, json, strlen(json), "x.json", m);
}

static void small(bk_model_config *m) { ck_assert_int_eq(parse("{" SMALL "}", m), BK_OK); }

static void expect_once(const char *part) {
  const char *newline = strchr(unit_messages, '\n');
  ck_assert_msg(newline && newline[1] == '\0', "exactly one message was expected:\n%s",
                unit_messages);
  unit_expect(part);
}

static void refused_as(bk_status status, const char *json, const char *part) {
  bk_model_config m;
  memset(&m, 0x5a, sizeof m);
  ck_assert_msg(parse(json, &m) == status, "status of: %s\n%s", json, unit_messages);
  /* outputs only on success */
  for (size_t i = 0; i < sizeof m; i++) ck_assert_int_eq(((unsigned char *)&m)[i], 0x5a);
  ck_assert_msg(strstr(unit_messages, "x.json") != NULL, "no origin in: %s", unit_messages);
  expect_once(part);
}

static void refused(const char *json, const char *part) { refused_as(BK_ERR_CONFIG, json, part); }

static void warned(const char *json, const char *part) {
  bk_model_config m;
  ck_assert_int_eq(parse(json, &m), BK_OK);
  if (part) expect_once(part);
  else unit_expect(NULL);
}

static void same_model(const bk_model_config *a, const bk_model_config *b) {
  char x[160], y[160];
  for (const bk_option *o = bk_model_keys; o->name; o++)
    ck_assert_msg(strcmp(bk_option_value_text(o, a, x, sizeof x),
                         bk_option_value_text(o, b, y, sizeof y)) == 0,
                  "%s: %s and %s", o->name, x, y);
}

/* ---- reading ---- */

START_TEST(absent_keys_are_hugging_faces) {
  bk_model_config m;
  ck_assert_int_eq(parse("{" NAMED "}", &m), BK_OK);
  ck_assert_int_eq(m.vocab_size, 129280);
  ck_assert_int_eq(m.hidden_size, 7168);
  ck_assert_int_eq(m.intermediate_size, 18432);
  ck_assert_int_eq(m.moe_intermediate_size, 2048);
  ck_assert_int_eq(m.num_hidden_layers, 61);
  ck_assert_int_eq(m.num_attention_heads, 128);
  ck_assert_int_eq(m.n_shared_experts, 1);
  ck_assert_int_eq(m.n_routed_experts, 256);
  ck_assert_int_eq(m.num_experts_per_tok, 8);
  ck_assert_int_eq(m.n_group, 8);
  ck_assert_int_eq(m.topk_group, 4);
  ck_assert_int_eq(m.first_k_dense_replace, 3);
  ck_assert_int_eq(m.kv_lora_rank, 512);
  ck_assert_int_eq(m.q_lora_rank, 1536);
  ck_assert_int_eq(m.qk_rope_head_dim, 64);
  ck_assert_int_eq(m.qk_nope_head_dim, 128);
  ck_assert_int_eq(m.v_head_dim, 128);
  ck_assert_int_eq(m.max_position_embeddings, 4096);
  ck_assert(m.norm_topk_prob && m.routed_scaling_factor == 2.5 && m.rms_norm_eps == 1e-6);
  ck_assert(m.rope_theta == 10000 && m.initializer_range == 0.02);
  ck_assert_int_eq(m.residual, BK_HC_PLAIN);
  ck_assert(m.hc_mult == 4 && m.hc_sinkhorn_iters == 20 && m.hc_eps == 0 &&
            m.hc_head == BK_HEAD_SUM);
}
END_TEST

/* As transformers 5 saves it: what it writes besides passes in silence. */
START_TEST(as_transformers_saves_it) {
  warned("{" SMALL
         ",\"_name_or_path\":\"\",\"architectures\":[\"DeepseekV3ForCausalLM\"],\"attention_bias\":"
         "false,\"attention_dropout\":0.0,"
         "\"bos_token_id\":0,\"chunk_size_feed_forward\":0,\"dtype\":\"float32\",\"eos_token_id\":"
         "1,\"head_dim\":8,\"hidden_act\":\"silu\","
         "\"id2label\":{\"0\":\"LABEL_0\"},\"initializer_range\":0.02,\"is_encoder_decoder\":false,"
         "\"label2id\":{\"LABEL_0\":0},"
         "\"max_position_embeddings\":64,\"model_type\":\"deepseek_v3\",\"norm_topk_prob\":true,"
         "\"num_nextn_predict_layers\":0,"
         "\"output_attentions\":false,\"output_hidden_states\":false,\"output_router_logits\":"
         "false,\"pad_token_id\":null,"
         "\"pretraining_tp\":1,\"problem_type\":null,\"qk_head_dim\":24,\"return_dict\":true,\"rms_"
         "norm_eps\":1e-06,"
         "\"rope_interleave\":true,\"rope_parameters\":{\"rope_theta\":10000.0,\"rope_type\":"
         "\"default\"},\"routed_scaling_factor\":2.5,"
         "\"tie_word_embeddings\":false,\"transformers_version\":\"5.23.0\",\"use_cache\":true}",
         NULL);
  warned("{" SMALL
         ",\"aux_loss_alpha\":0.001,\"auto_map\":{},\"ep_size\":1,\"moe_layer_freq\":1,\"scoring_"
         "func\":\"sigmoid\",\"seq_aux\":true,"
         "\"topk_method\":\"noaux_tc\",\"torch_dtype\":\"bfloat16\",\"num_local_experts\":8,\"rope_"
         "scaling\":null,\"rope_theta\":10000,"
         "\"quantization_config\":null,\"attention_dropout\":0,\"decoder_start_token_id\":3}",
         NULL);
}
END_TEST

START_TEST(keys_are_taken) {
  bk_model_config m;
  ck_assert_int_eq(parse("{" SMALL ",\"residual\":\"mhc_lite\",\"hc_mult\":5,\"hc_sinkhorn_iters\":"
                         "3,\"hc_eps\":1e-6,\"hc_head\":\"learned\","
                         "\"norm_topk_prob\":false,\"routed_scaling_factor\":1,\"rope_parameters\":"
                         "{\"rope_type\":\"default\",\"rope_theta\":500}}",
                         &m),
                   BK_OK);
  ck_assert_int_eq(m.q_lora_rank, 0);
  ck_assert_int_eq(m.residual, BK_HC_MHC_LITE);
  ck_assert_int_eq(m.hc_mult, 5);
  ck_assert_int_eq(m.hc_sinkhorn_iters, 3);
  ck_assert_int_eq(m.hc_head, BK_HEAD_LEARNED);
  ck_assert(m.hc_eps == 1e-6 && m.routed_scaling_factor == 1 && m.rope_theta == 500 &&
            !m.norm_topk_prob);
  ck_assert_int_eq(m.vocab_size, 257);
}
END_TEST

START_TEST(bad_json) {
  refused_as(BK_ERR_DATA, "", "x.json: line 1");
  refused_as(BK_ERR_DATA, "[1]", "holds an array, not an object");
  refused_as(BK_ERR_DATA, "{\"hidden_size\":64,}", "line 1");
  refused_as(BK_ERR_DATA, "{\"hidden_size\":64,\n\"hidden_size\":64}", "line 2");
  refused_as(BK_ERR_DATA, "{} {}", "line 1");
  refused_as(BK_ERR_DATA, "{\"hidden_size\":99999999999999999999}", "too big integer");
  refused_as(BK_ERR_DATA, "{\"rope_theta\":1e999}", "real number overflow");
}
END_TEST

START_TEST(wrong_types) {
  refused("{" NAMED ",\"hidden_size\":64.0}",
          "hidden_size must be an integer from 1 to 16777216, not a number with a fraction or "
          "exponent");
  refused("{" NAMED ",\"hidden_size\":\"64\"}",
          "hidden_size must be an integer from 1 to 16777216, not a string");
  refused("{" NAMED ",\"hidden_size\":null}", "not null");
  refused("{" NAMED ",\"norm_topk_prob\":1}",
          "norm_topk_prob must be true or false, not an integer");
  refused("{" NAMED ",\"rms_norm_eps\":\"1e-6\"}", "rms_norm_eps must be a number");
  refused("{" NAMED ",\"residual\":3}",
          "residual must be one of plain, hc, mhc, mhc_lite, ihc, kromhc, not an integer");
  refused("{" NAMED ",\"residual\":\"MHC\"}",
          "residual must be one of plain, hc, mhc, mhc_lite, ihc, kromhc, not MHC");
  refused("{" NAMED ",\"q_lora_rank\":0}",
          "q_lora_rank must be an integer from 1 to 16777216, or null, not 0");
}
END_TEST

START_TEST(ranges) {
  refused("{" NAMED ",\"hc_mult\":0}", "hc_mult must be an integer from 1 to 8, not 0");
  refused("{" NAMED ",\"hc_mult\":9}", "hc_mult must be an integer from 1 to 8, not 9");
  refused("{" NAMED ",\"hc_mult\":6,\"residual\":\"kromhc\"}",
          "hc_mult (6) must be 1, 2, 4 or 8 with residual kromhc");
  refused("{" NAMED ",\"hc_mult\":6,\"residual\":\"mhc_lite\"}",
          "hc_mult (6) must be 1 to 5 with residual mhc_lite");
  refused("{" NAMED ",\"hc_sinkhorn_iters\":65}",
          "hc_sinkhorn_iters must be an integer from 1 to 64, not 65");
  refused("{" NAMED ",\"hc_eps\":-1e-6}", "hc_eps must be a number from 0.0 to 1.0, not -1e-06");
  refused("{" NAMED ",\"rms_norm_eps\":0}", "rms_norm_eps");
  refused("{" NAMED ",\"vocab_size\":2147483648}",
          "vocab_size must be an integer from 1 to 2147483647, not 2147483648");
  refused("{" NAMED ",\"num_hidden_layers\":-1}", "num_hidden_layers");
}
END_TEST

START_TEST(sizes_that_do_not_fit) {
  refused("{" NAMED ",\"qk_rope_head_dim\":7}", "qk_rope_head_dim (7) must be even");
  refused("{" SMALL_SIZES ",\"n_routed_experts\":10,\"n_group\":4,\"topk_group\":2}",
          "n_routed_experts (10) cannot be divided by n_group (4)");
  refused("{" SMALL_SIZES ",\"n_routed_experts\":4,\"n_group\":4,\"topk_group\":2}",
          "fewer than 2 experts a group");
  refused("{" SMALL_SIZES ",\"n_routed_experts\":8,\"n_group\":4,\"topk_group\":5}",
          "topk_group (5) is above n_group (4)");
  refused("{" SMALL_SIZES
          ",\"n_routed_experts\":8,\"n_group\":4,\"topk_group\":2,\"num_experts_per_tok\":5}",
          "num_experts_per_tok (5) is above the 4 experts that are left");
  refused("{" SMALL_SIZES
          ",\"n_routed_experts\":8,\"n_group\":1,\"topk_group\":1,\"num_experts_per_tok\":9}",
          "num_experts_per_tok (9) is above the 8 experts that are left");
  refused(
      "{" NAMED
      ",\"num_attention_heads\":65536,\"num_key_value_heads\":65536,\"qk_nope_head_dim\":65536}",
      "at most 2147483647");
  refused("{" NAMED
          ",\"num_hidden_layers\":100000,\"hidden_size\":16777216,\"moe_intermediate_size\":"
          "268435456,\"n_shared_experts\":0}",
          "parameters");
}
END_TEST

START_TEST(refused_by_design) {
  refused("{" SMALL ",\"moe_layer_freq\":2}", "moe_layer_freq must be 1, not 2:");
  refused("{" SMALL ",\"scoring_func\":\"softmax\"}", "scoring_func must be sigmoid, not softmax");
  refused("{" SMALL ",\"topk_method\":\"greedy\"}", "topk_method must be noaux_tc, not greedy");
  refused("{" SMALL ",\"hidden_act\":\"gelu\"}", "hidden_act must be silu, not gelu");
  refused("{" SMALL ",\"rope_interleave\":false}", "rope_interleave must be true, not false");
  refused("{" SMALL ",\"tie_word_embeddings\":true}",
          "tie_word_embeddings must be false, not true");
  refused("{" SMALL ",\"attention_bias\":true}", "attention_bias must be false, not true");
  refused("{" SMALL ",\"attention_dropout\":0.1}", "attention_dropout must be 0.0, not 0.1");
  refused("{" SMALL ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40}}",
          "rope_scaling: type must be default, not yarn");
  refused("{" SMALL ",\"rope_parameters\":{\"rope_type\":\"linear\"}}",
          "rope_parameters: rope_type must be default, not linear");
  refused("{" SMALL
          ",\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}}",
          "partial_rotary_factor is not honoured");
  refused("{" SMALL ",\"rope_parameters\":7}",
          "rope_parameters must be null or an object, not an integer");
  refused("{" SMALL ",\"rope_theta\":100.0,\"rope_parameters\":{\"rope_theta\":200.0}}",
          "rope_theta is given twice");
  refused("{" SMALL ",\"quantization_config\":{\"quant_method\":\"fp8\"}}", "quantization_config");
  refused("{" SMALL ",\"head_dim\":16}", "head_dim (16) must equal qk_rope_head_dim (8)");
  refused("{" SMALL ",\"qk_head_dim\":25}",
          "qk_head_dim (25) must equal qk_nope_head_dim + qk_rope_head_dim (24)");
  refused("{" SMALL ",\"num_local_experts\":16}",
          "num_local_experts (16) must equal n_routed_experts (8)");
  refused("{" NAMED ",\"num_key_value_heads\":8}",
          "num_key_value_heads (8) must equal num_attention_heads (128)");
  refused("{" NAMED ",\"num_attention_heads\":4}",
          "num_key_value_heads is absent, which means 128");
  warned("{" NAMED ",\"num_attention_heads\":4,\"num_key_value_heads\":null}", NULL);
}
END_TEST

START_TEST(unknown_keys_warn) {
  warned("{" SMALL ",\"hiden_size\":64}",
         "unknown key \"hiden_size\" has no effect; the nearest known one is hidden_size");
  warned("{" SMALL ",\"zzzzzzzzzzzzzzzzzzzz\":64}",
         "unknown key \"zzzzzzzzzzzzzzzzzzzz\" has no effect\n");
  warned("{" SMALL ",\"hc_mult\":4}", "hc_mult has no effect: the key residual is absent");
}
END_TEST

/* ---- --set ---- */

START_TEST(set_values) {
  bk_model_config m;
  bk_train_config t;
  small(&m);
  bk_train_config_default(&t);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "residual=mhc"), BK_OK);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "hc_eps=1e-6"), BK_OK);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "q_lora_rank=24"), BK_OK);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "norm_topk_prob=false"), BK_OK);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "lr=0.01"), BK_OK);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "lr_schedule=cosine"), BK_OK);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "seed=9007199254740992"), BK_OK);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "adam_eps=1e-20"), BK_OK); /* the paper's */
  ck_assert(m.residual == BK_HC_MHC && m.hc_eps == 1e-6 && m.q_lora_rank == 24 &&
            !m.norm_topk_prob);
  ck_assert(t.lr == 0.01 && t.lr_schedule == BK_LR_COSINE && t.seed == 9007199254740992u &&
            t.adam_eps == 1e-20);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "q_lora_rank=null"), BK_OK);
  ck_assert_int_eq(m.q_lora_rank, 0);
  const char *const recompute[] = {"hc_recompute=off", "hc_recompute=auto", "hc_recompute=7"};
  const int64_t wanted[] = {0, BK_RECOMPUTE_AUTO, 7};
  for (size_t i = 0; i < BK_COUNT(wanted); i++) {
    ck_assert_int_eq(bk_config_set(ctx, NULL, &t, recompute[i]), BK_OK);
    ck_assert_int_eq(t.hc_recompute, wanted[i]);
  }
  ck_assert_int_eq(t.recompute, BK_RECOMPUTE_F_NONE);
  ck_assert_int_eq(bk_config_set(ctx, NULL, &t, "recompute=attention"), BK_OK);
  ck_assert_int_eq(t.recompute, BK_RECOMPUTE_F_ATTENTION);
  ck_assert_int_eq(bk_config_set(ctx, NULL, &t, "recompute=experts"), BK_OK);
  ck_assert_int_eq(t.recompute, BK_RECOMPUTE_F_EXPERTS);
  ck_assert_int_eq(bk_config_set(ctx, NULL, &t, "recompute=all"), BK_OK);
  ck_assert_int_eq(t.recompute, BK_RECOMPUTE_F_ALL);
}
END_TEST

START_TEST(set_refused) {
  bk_model_config m;
  bk_train_config t;
  small(&m);
  bk_train_config_default(&t);
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "hidden_sise=4"), BK_ERR_NOT_FOUND);
  expect_once("unknown key \"hidden_sise\"; the nearest known one is \"hidden_size\"");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "warmup=4"), BK_ERR_NOT_FOUND);
  expect_once("\"warmup\"");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "learning_schedule=step"), BK_ERR_NOT_FOUND);
  expect_once("the nearest known one is \"lr_schedule\"");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "hc_mult=9"), BK_ERR_CONFIG);
  expect_once("hc_mult must be an integer from 1 to 8, not 9");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "hc_mult=4.0"), BK_ERR_CONFIG);
  expect_once("hc_mult must be an integer from 1 to 8, not 4.0");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "lr=fast"), BK_ERR_CONFIG);
  expect_once("lr must be a number from 0.0 to 1000.0, not fast");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "lr=nan"), BK_ERR_CONFIG);
  expect_once("not nan");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "hc_recompute=-1"), BK_ERR_CONFIG);
  expect_once("hc_recompute must be an integer from 1 to 1000000, or auto, or off, not -1");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "recompute=2"), BK_ERR_CONFIG);
  expect_once("recompute must be one of none, attention, experts, all, not 2");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "residual=none"), BK_ERR_CONFIG);
  expect_once("residual must be one of plain, hc, mhc, mhc_lite, ihc, kromhc, not none");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "lr"), BK_ERR_ARGUMENT);
  expect_once("KEY=VALUE");
  ck_assert_int_eq(bk_config_set(ctx, &m, &t, "=1"), BK_ERR_ARGUMENT);
  expect_once("KEY=VALUE");
  ck_assert_int_eq(bk_config_set(ctx, NULL, &t, "hidden_size=4"), BK_ERR_CONFIG);
  expect_once("hidden_size is a key of the model");
  ck_assert_int_eq(bk_config_set(ctx, &m, NULL, "lr=4"), BK_ERR_CONFIG);
  expect_once("lr is a key of the training recipe");
  bk_model_config untouched;
  small(&untouched);
  same_model(&m, &untouched);
}
END_TEST

/* ---- round trips ---- */

static void round_trip_model(const bk_model_config *m, bk_dtype dtype) {
  bk_model_config back;
  ck_assert_int_eq(bk_model_config_write(ctx, unit_path("config.json"), m, dtype), BK_OK);
  ck_assert_int_eq(bk_model_config_read(ctx, unit_path("config.json"), &back), BK_OK);
  same_model(m, &back);
}

START_TEST(model_round_trip) {
  static const int kinds[] = {BK_HC_PLAIN, BK_HC_HC, BK_HC_MHC, BK_HC_MHC_LITE, BK_HC_IHC};
  bk_model_config m;
  small(&m);
  m.rms_norm_eps = 1e-20;
  m.routed_scaling_factor = 1.0 / 3;
  m.hc_eps = 1e-6;
  m.hc_head = BK_HEAD_LEARNED;
  m.norm_topk_prob = false;
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    m.residual = kinds[i];
    m.q_lora_rank = (int64_t)i * 8;
    round_trip_model(&m, BK_F32);
  }
  ck_assert_int_eq(bk_model_config_write(ctx, unit_path("config.json"), &m, BK_I32),
                   BK_ERR_ARGUMENT);
  expect_once("weights cannot be i32");
  m.hc_mult = 9;
  ck_assert_int_eq(bk_model_config_write(ctx, unit_path("config.json"), &m, BK_F32), BK_ERR_CONFIG);
  expect_once("hc_mult");
}
END_TEST

START_TEST(written_text) {
  static const char *const parts[] = {"\"architectures\": [\"DeepseekV3ForCausalLM\"]",
                                      "\"model_type\": \"deepseek_v3\"",
                                      "\"torch_dtype\": \"bfloat16\"",
                                      "\"q_lora_rank\": null",
                                      "\"n_group\": 4,",
                                      "\"topk_group\": 2,",
                                      "\"num_key_value_heads\": 4,",
                                      "\"rope_theta\": 10000.0,",
                                      "\"rope_interleave\": true",
                                      "\"num_nextn_predict_layers\": 0",
                                      "\"hidden_act\": \"silu\"",
                                      "\"tie_word_embeddings\": false",
                                      "\"attention_bias\": false",
                                      "\"attention_dropout\": 0.0",
                                      "\"scoring_func\": \"sigmoid\"",
                                      "\"topk_method\": \"noaux_tc\"",
                                      "\"moe_layer_freq\": 1",
                                      "\"routed_scaling_factor\": 2.5",
                                      "\"rms_norm_eps\": 1e-06",
                                      "\"hc_eps\": 0.0",
                                      "\"initializer_range\": 0.02",
                                      "\"residual\": \"plain\"",
                                      "\"hidden_size\": 64,",
                                      "\"hc_head\": \"sum\"",
                                      "\"norm_topk_prob\": true",
                                      "\"first_k_dense_replace\": 1,"};
  bk_model_config m;
  char *text;
  size_t bytes;
  small(&m);
  ck_assert_int_eq(bk_model_config_write(ctx, unit_path("config.json"), &m, BK_BF16), BK_OK);
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("config.json"), 65536, &text, &bytes), BK_OK);
  for (size_t i = 0; i < BK_COUNT(parts); i++)
    ck_assert_msg(strstr(text, parts[i]) != NULL, "%s is not in\n%s", parts[i], text);
  bk_free(ctx, text);
  m.residual = BK_HC_MHC; /* not a model that transformers should take for DeepSeek-V3 */
  ck_assert_int_eq(bk_model_config_write(ctx, unit_path("config.json"), &m, BK_BF16), BK_OK);
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("config.json"), 65536, &text, &bytes), BK_OK);
  ck_assert(strstr(text, "DeepseekV3") == NULL &&
            strstr(text, "\"model_type\": \"birkhoff\"") != NULL);
  bk_free(ctx, text);
}
END_TEST

/* A host program's decimal comma must not reach the files. */
START_TEST(locale) {
  const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8", "fr_FR.utf8"};
  bk_model_config m;
  bool set = false;
  for (size_t i = 0; i < BK_COUNT(names) && !set; i++)
    set = setlocale(LC_NUMERIC, names[i]) != NULL;
  small(&m);
  round_trip_model(&m, BK_F32);
  setlocale(LC_NUMERIC, "C");
  if (!set)
    fprintf(stderr, "no locale with a decimal comma is installed: only the C locale was tried\n");
}
END_TEST

START_TEST(files_that_cannot_be_read) {
  bk_model_config m;
  bk_trainer_state s;
  ck_assert_int_eq(bk_model_config_read(ctx, unit_path("absent.json"), &m), BK_ERR_IO);
  expect_once("absent.json");
  ck_assert_int_eq(bk_trainer_state_read(ctx, unit_path("absent.json"), &s), BK_ERR_IO);
  expect_once("absent.json");
  small(&m);
  ck_assert_int_eq(bk_model_config_write(ctx, unit_path("no/folder/config.json"), &m, BK_F32),
                   BK_ERR_IO);
  expect_once("no/folder/config.json");
}
END_TEST

/* What lies there in place of config.json. */
START_TEST(other_kinds) {
  static const struct {
    const char *bytes;
    size_t count;
    const char *part;
  } cases[] = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n", 67,
       "config.json: not JSON: it is a pointer of Git LFS in place of the file itself; fetch it: "
       "git lfs pull"},
      {"\x1f\x8b\x08\0\0\0\0\0", 8,
       "config.json: not JSON: it is a gzip archive; unpack it first (gunzip)"},
      {"\xff\xfe{\0\n\0}\0", 8, "config.json: not JSON: it is text in UTF-16; convert it"},
      {"hidden_size: 64\n", 16, "config.json: line 1, column"},
  };
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    bk_model_config m;
    ck_assert_int_eq(
        bk_file_write_atomic(ctx, unit_path("config.json"), cases[i].bytes, cases[i].count), BK_OK);
    ck_assert_int_eq(bk_model_config_read(ctx, unit_path("config.json"), &m), BK_ERR_DATA);
    expect_once(cases[i].part);
  }
}
END_TEST

static void fill_state(bk_trainer_state *s) {
  *s = (bk_trainer_state){
      .step = 123, .tokens = 1LL << 53, .data_hash = 0xfedcba9876543210u, .dtype = BK_BF16};
  bk_train_config_default(&s->recipe);
  s->recipe.lr = 0.1 + 0.2; /* needs 17 digits */
  s->recipe.lr_schedule = BK_LR_CONSTANT;
  s->recipe.seed = 77;
  s->recipe.data_dtype = 2;
  s->recipe.cuda_graph = false;
  s->recipe.allow_tf32 = s->recipe.merge_stream = true;
  s->recipe.recompute = BK_RECOMPUTE_F_EXPERTS;
}

START_TEST(state_round_trip) {
  static const int64_t recompute[] = {BK_RECOMPUTE_AUTO, 0, 5};
  bk_trainer_state s, back;
  char x[160], y[160];
  fill_state(&s);
  for (size_t i = 0; i < BK_COUNT(recompute); i++) {
    s.recipe.hc_recompute = recompute[i];
    memset(&back, 0, sizeof back);
    ck_assert_int_eq(bk_trainer_state_write(ctx, unit_path("trainer_state.json"), &s), BK_OK);
    ck_assert_int_eq(bk_trainer_state_read(ctx, unit_path("trainer_state.json"), &back), BK_OK);
    ck_assert(back.step == s.step && back.tokens == s.tokens && back.data_hash == s.data_hash &&
              back.dtype == s.dtype);
    ck_assert(back.recipe.lr == s.recipe.lr);
    for (const bk_option *o = bk_train_keys; o->name; o++)
      ck_assert_str_eq(bk_option_value_text(o, &s.recipe, x, sizeof x),
                       bk_option_value_text(o, &back.recipe, y, sizeof y));
  }
}
END_TEST

/* A document of a state with `files` as its list; bk_trainer_state_files reads it. */
static bk_status files_of(const char *files, bk_data_file **list, int *n) {
  char text[256];
  int bytes =
      snprintf(text, sizeof text, "{\"format\": 1%s%s}", *files ? ", \"data_files\": " : "", files);
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("f.json"), text, (size_t)bytes), BK_OK);
  return bk_trainer_state_files(ctx, unit_path("f.json"), list, n);
}

START_TEST(state_files) {
  static const bk_data_file files[] = {{0, 1}, {1LL << 62, 0xfedcba9876543210u}, {77, 0}};
  static const char *const wrong[] = {"7",
                                      "[]",
                                      "[[1]]",
                                      "[[1, \"0123456789abcdef\", 2]]",
                                      "[[-1, \"0123456789abcdef\"]]",
                                      "[[1.5, \"0123456789abcdef\"]]",
                                      "[[1, \"0123456789abcde\"]]",
                                      "[\"0123456789abcdef\"]",
                                      "{}"};
  bk_data_file *list = NULL;
  bk_trainer_state s, back;
  int n = -1;
  fill_state(&s);
  s.files = files, s.n_files = (int)BK_COUNT(files);
  ck_assert_int_eq(bk_trainer_state_write(ctx, unit_path("s.json"), &s), BK_OK);
  ck_assert_int_eq(bk_trainer_state_read(ctx, unit_path("s.json"), &back), BK_OK);
  ck_assert(back.files == NULL && back.n_files == 0 && back.data_hash == s.data_hash);
  ck_assert_int_eq(bk_trainer_state_files(ctx, unit_path("s.json"), &list, &n), BK_OK);
  ck_assert_int_eq(n, s.n_files);
  for (int i = 0; i < n; i++)
    ck_assert(list[i].bytes == files[i].bytes && list[i].hash == files[i].hash);
  bk_free(ctx, list);
  ck_assert_int_eq(files_of("", &list, &n), BK_OK); /* of an earlier version */
  ck_assert(list == NULL && n == 0);
  for (size_t i = 0; i < BK_COUNT(wrong); i++) {
    n = -1;
    ck_assert_int_eq(files_of(wrong[i], &list, &n), BK_ERR_DATA);
    ck_assert_int_eq(n, -1);
    expect_once("data_files must be a list of files");
  }
  ck_assert_int_eq(files_of("[[1, \"0123456789abcdef\"], [1, \"0123456789abcdeF\"]]", &list, &n),
                   BK_ERR_DATA);
  expect_once("number 2 is not");
}
END_TEST

/* Keys that a state may lack: their defaults, but for the split of .bin files, which there was
 * none of. */
START_TEST(state_without_later_keys) {
  static const char *const later[] = {"spike_factor", "gain_limit",     "allow_tf32", "cuda_graph",
                                      "merge_stream", "bin_validation", "save_async", "recompute"};
  bk_trainer_state s, back;
  bk_train_config usual;
  char x[160], y[160], kept[8192] = "", *text, *line;
  size_t bytes;
  fill_state(&s);
  s.recipe.spike_factor = s.recipe.gain_limit = 77;
  bk_train_config_default(&usual);
  ck_assert(usual.cuda_graph && !usual.allow_tf32 && !usual.merge_stream && usual.bin_validation &&
            !usual.save_async && usual.recompute == BK_RECOMPUTE_F_NONE);
  usual.bin_validation = false; /* of runs that knew nothing of it */
  ck_assert_int_eq(bk_trainer_state_write(ctx, unit_path("s.json"), &s), BK_OK);
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("s.json"), sizeof kept, &text, &bytes), BK_OK);
  for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    bool skip = false;
    for (size_t i = 0; i < BK_COUNT(later); i++) {
      snprintf(x, sizeof x, "\"%s\"", later[i]);
      skip |= strstr(line, x) != NULL;
    }
    size_t used = strlen(kept);
    if (skip) continue;
    /* after what is now the last key */
    if (line[2] == '}' && used && kept[used - 1] == ',') used--;
    snprintf(kept + used, sizeof kept - used, "%s", line);
  }
  bk_free(ctx, text);
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("s.json"), kept, strlen(kept)), BK_OK);
  ck_assert_int_eq(bk_trainer_state_read(ctx, unit_path("s.json"), &back), BK_OK);
  for (const bk_option *o = bk_train_keys; o->name; o++) {
    bool absent = false;
    for (size_t i = 0; i < BK_COUNT(later); i++) absent |= strcmp(o->name, later[i]) == 0;
    ck_assert_str_eq(bk_option_value_text(o, absent ? &usual : &s.recipe, x, sizeof x),
                     bk_option_value_text(o, &back.recipe, y, sizeof y));
  }
}
END_TEST

/* Each replacement makes the file refuse. */
START_TEST(bad_state) {
  static const struct {
    const char *from, *to, *part;
  } cases[] = {
      {"\"format\": 1", "\"format\": 2", "format 2 is not known"},
      {"\"step\": 123", "\"step\": -3", "step must be an integer from 0 to 1152921504606846976"},
      {"\"step\": 123", "\"step\": 9223372036854775807",
       "step must be an integer from 0 to 1152921504606846976"},
      {"\"step\": 123", "\"step\": 1.5", "step must be an integer"},
      {"\"step\": 123", "\"stop\": 123", "step is missing"},
      {"\"fedcba9876543210\"", "\"fedcba987654321g\"", "data_hash must be"},
      {"\"bf16\"", "\"i322\"", "dtype must be fp32, bf16 or fp64"},
      {"\"keep\": 2", "\"kept\": 2", "recipe has the unknown key \"kept\""},
      {"\"keep\": 2,", " ", "recipe lacks the key \"keep\""},
      {"\"keep\": 2", "\"keep\": 0", "keep must be an integer from 1"},
      {"\"recipe\": {", "\"recipe\": 1, \"x\": {", "recipe is missing or not an object"},
      {"\"keep\": 2", "\"keep\": 2, \"keep\": 2", "duplicate"},
  };
  bk_trainer_state s, back;
  char *text, changed[8192];
  size_t bytes;
  fill_state(&s);
  ck_assert_int_eq(bk_trainer_state_write(ctx, unit_path("s.json"), &s), BK_OK);
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("s.json"), sizeof changed / 2, &text, &bytes),
                   BK_OK);
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    char *found = strstr(text, cases[i].from);
    ck_assert_msg(found != NULL, "%s is not in\n%s", cases[i].from, text);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(found - text), text, cases[i].to,
             found + strlen(cases[i].from));
    ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("s.json"), changed, strlen(changed)),
                     BK_OK);
    ck_assert_msg(bk_trainer_state_read(ctx, unit_path("s.json"), &back) != BK_OK,
                  "%s was accepted", cases[i].to);
    expect_once(cases[i].part);
  }
  bk_free(ctx, text);
}
END_TEST

/* ---- the recipe ---- */

START_TEST(recipe_rules) {
  bk_train_config t;
  bk_train_config_default(&t);
  ck_assert_int_eq(bk_train_config_validate(ctx, &t), BK_OK);
  t.micro_batch_size = 3; /* the last micro-batch has 2 sequences */
  ck_assert_int_eq(bk_train_config_validate(ctx, &t), BK_OK);
  t.micro_batch_size = 16;
  ck_assert_int_eq(bk_train_config_validate(ctx, &t), BK_ERR_CONFIG);
  expect_once("micro_batch_size (16)");
  t.micro_batch_size = 4;
  ck_assert_int_eq(bk_train_config_validate(ctx, &t), BK_OK);
  t.batch_size = t.micro_batch_size = 1 << 20;
  t.seq_len = 1 << 20;
  ck_assert_int_eq(bk_train_config_validate(ctx, &t), BK_ERR_CONFIG);
  expect_once("more than 2147483647 tokens");
  bk_train_config_default(&t);
  t.lr = NAN;
  ck_assert_int_eq(bk_train_config_validate(ctx, &t), BK_ERR_CONFIG);
  expect_once("lr must be a number");
}
END_TEST

static void rate_is(const bk_train_config *t, int64_t step, double wanted) {
  double rate = bk_learning_rate(t, step);
  ck_assert_msg(fabs(rate - wanted) < 1e-12, "step %lld: %.17g, not %.17g", (long long)step, rate,
                wanted);
}

START_TEST(learning_rate) {
  bk_train_config t;
  bk_train_config_default(&t);
  t.steps = 100, t.lr = 2, t.warmup_steps = 10;
  rate_is(&t, 1, 0.2);
  rate_is(&t, 10, 2);
  rate_is(&t, 11, 2);
  rate_is(&t, 80, 2);
  rate_is(&t, 81, 0.632);
  rate_is(&t, 90, 0.632);
  rate_is(&t, 91, 0.2);
  rate_is(&t, 100, 0.2);
  t.steps = 7; /* 80 % is 5.6 steps, 90 % is 6.3 */
  t.warmup_steps = 0;
  rate_is(&t, 1, 2);
  rate_is(&t, 6, 2);
  rate_is(&t, 7, 0.632);
  t.steps = 110, t.warmup_steps = 10, t.lr_schedule = BK_LR_COSINE, t.min_lr_ratio = 0.25;
  rate_is(&t, 10, 2);
  rate_is(&t, 60, 2 * (0.25 + 0.75 * 0.5));
  rate_is(&t, 110, 0.5);
  rate_is(&t, 1000, 0.5);
  t.lr_schedule = BK_LR_CONSTANT;
  rate_is(&t, 5, 1);
  rate_is(&t, 110, 2);
}
END_TEST

START_TEST(recompute_block) {
  bk_model_config m;
  small(&m);
  ck_assert_int_eq(bk_recompute_block(&m, BK_RECOMPUTE_AUTO), 0); /* plain */
  m.residual = BK_HC_MHC;
  ck_assert_int_eq(bk_recompute_block(&m, 0), 0);
  ck_assert_int_eq(bk_recompute_block(&m, BK_RECOMPUTE_AUTO), 2); /* sqrt(4 * 8 / 6) = 2.31 */
  ck_assert_int_eq(bk_recompute_block(&m, 3), 3);
  ck_assert_int_eq(bk_recompute_block(&m, 100), 8); /* all sublayers */
  m.num_hidden_layers = 30;
  ck_assert_int_eq(bk_recompute_block(&m, BK_RECOMPUTE_AUTO), 6); /* sqrt(4 * 60 / 6) = 6.32 */
}
END_TEST

START_TEST(tables_are_sound) {
  const bk_option *const tables[] = {bk_model_keys, bk_train_keys};
  for (size_t k = 0; k < BK_COUNT(tables); k++)
    for (const bk_option *o = tables[k]; o->name; o++) {
      ck_assert_msg(o->doc && *o->doc, "%s has no description", o->name);
      ck_assert_msg((o->type == BK_OPT_ENUM) == (o->choices != NULL), "%s", o->name);
      ck_assert_msg(o->type == BK_OPT_ENUM || o->min < o->max, "%s", o->name);
    }
}
END_TEST

UNIT_MAIN("config", unit_folder_open, unit_folder_close, absent_keys_are_hugging_faces,
          as_transformers_saves_it, keys_are_taken, bad_json, wrong_types, ranges,
          sizes_that_do_not_fit, refused_by_design, unknown_keys_warn, set_values, set_refused,
          model_round_trip, written_text, locale, files_that_cannot_be_read, other_kinds,
          state_round_trip, state_files, state_without_later_keys, bad_state, recipe_rules,
          learning_rate, recompute_block, tables_are_sound)
