/* libFuzzer target: any bytes as config.json, and as trainer_state.json. What is accepted must pass its own checks.
 * Build: clang -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Icore -Icore/include -I. tests/fuzz/fuzz_config.c LIBRARY -ljansson */
#include "io/config.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_seed fuzz_seeds[] = {
    FUZZ_SEED("{\"hidden_size\":64,\"num_attention_heads\":4,\"num_key_value_heads\":4,\"q_lora_rank\":null,\"residual\":\"mhc\","
              "\"hc_mult\":4,\"hc_eps\":1e-6,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000.0},\"head_dim\":64}"),
    FUZZ_SEED("{\"format\":1,\"step\":12,\"tokens\":99,\"data_hash\":\"0123456789abcdef\",\"dtype\":\"bf16\",\"recipe\":{\"steps\":20,"
              "\"batch_size\":8,\"micro_batch_size\":0,\"seq_len\":16,\"seed\":1,\"lr\":0.1,\"lr_schedule\":\"step\",\"warmup_steps\":1,"
              "\"min_lr_ratio\":0.1,\"weight_decay\":0.1,\"adam_beta1\":0.9,\"adam_beta2\":0.95,\"adam_eps\":1e-8,\"grad_clip\":1.0,"
              "\"router_bias_lr\":0.001,\"save_every\":5,\"keep\":2,\"eval_every\":1,\"eval_tokens\":0,\"gain_every\":1,"
              "\"hc_recompute\":\"auto\",\"data_dtype\":\"auto\",\"allow_tf32\":false,\"cuda_graph\":false}}"),
};
const size_t fuzz_seed_count = BK_COUNT(fuzz_seeds);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  memory_file file = {data, size};
  bk_fs fs = memory_fs(&file);
  size_t logged = 0;
  bk_model_config model;
  bk_trainer_state state;
  bk_context *ctx = memory_context(&fs, &logged);
  bk_status status = bk_model_config_read(ctx, "input", &model);
  if (status == BK_OK && bk_model_config_validate(ctx, &model) != BK_OK) abort();
  if (status != BK_OK && logged == 0) abort();
  logged = 0;
  status = bk_trainer_state_read(ctx, "input", &state);
  if (status == BK_OK && bk_train_config_validate(ctx, &state.recipe) != BK_OK) abort();
  if (status != BK_OK && logged == 0) abort();
  memory_context_close(ctx, &logged);
  return 0;
}
