/* A first program: trains the `tiny` preset on a text file for 20 steps and prints the loss and
 * the gains. cc train.c $(pkg-config --cflags --libs birkhoff) && ./a.out some.txt */
#include <birkhoff/birkhoff.h>
#include <stdio.h>

static void print_message(void *user, bk_log_level level, const char *message) {
  (void)user, (void)level;
  fprintf(stderr, "%s\n", message);
}

static bk_status train(bk_context *ctx, const char *path) {
  bk_device *device = NULL;
  bk_dataset *data = NULL;
  bk_model *model = NULL;
  bk_trainer *trainer = NULL;
  bk_model_config config;
  bk_train_config recipe;
  bk_status status = bk_model_preset(ctx, "tiny", &config, &recipe);
  if (status == BK_OK) status = bk_config_set(ctx, &config, &recipe, "residual=mhc");
  recipe.steps = 20;
  recipe.gain_every = 10;
  bk_dataset_options text = {.vocab_size = config.vocab_size, .split = BK_SPLIT_ALL};
  if (status == BK_OK) status = bk_device_open(ctx, NULL, NULL, &device);
  if (status == BK_OK) status = bk_dataset_open(ctx, &path, 1, &text, &data);
  if (status == BK_OK) status = bk_dataset_check_seq_len(ctx, data, recipe.seq_len);
  if (status == BK_OK)
    status =
        bk_model_create(device, &config, BK_F32, &(bk_model_options){.trainable = true}, &model);
  if (status == BK_OK) status = bk_model_init(model, recipe.seed);
  if (status == BK_OK) status = bk_trainer_create(model, &recipe, data, NULL, &trainer);
  for (int i = 0; status == BK_OK && i < recipe.steps; i++) {
    bk_metrics_row row;
    status = bk_trainer_step(trainer, &row);
    if (status == BK_OK && (i == 0 || row.has_gain))
      printf("step %lld  loss %.4f  gain %.3f\n", (long long)row.step, row.loss,
             row.has_gain ? row.gain_forward : 1.0);
  }
  bk_trainer_destroy(trainer);
  bk_model_destroy(model);
  bk_dataset_close(data);
  bk_device_close(device);
  return status;
}

int main(int argc, char **argv) {
  bk_context *ctx = NULL;
  bk_context_options options = {.log = print_message, .log_level = BK_LOG_WARN};
  if (argc != 2) return fprintf(stderr, "usage: %s TEXT\n", argv[0]), 2;
  if (bk_context_create(&options, &ctx) != BK_OK) return 1;
  bk_status status = train(ctx, argv[1]);
  bk_context_destroy(ctx);
  return status == BK_OK ? 0 : 1;
}
