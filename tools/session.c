/* Devices, configurations, checkpoints and data as the options name them. See cli.h. */
#include "tools/cli.h"

#include <string.h>
#include <unistd.h>

#include "models/checkpoint.h"

volatile sig_atomic_t cli_signal;

static const char *volatile signal_note;

static void on_signal(int number) {
  const char *note = signal_note;
  cli_signal = number;
  signal_note = NULL;
  if (note && write(STDERR_FILENO, note, strlen(note)) < 0) return; /* nothing can be done about it here */
}

void cli_catch_signals(const char *note) {
  signal_note = note;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND}; /* a second one ends the program */
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
}

static bk_status open_for(cli_session *s, const char *name, const bk_train_config *recipe, bk_device **device) {
  int64_t threads = 0;
  BK_TRY(cli_int(s, "threads", 1, 1024, &threads));
  bk_device_options options = {.threads = (int)threads, .allow_fallback = cli_given(&s->args, "allow-fallback"), .no_graph = !recipe->cuda_graph,
                               .allow_tf32 = recipe->allow_tf32};
  return bk_device_open(s->ctx, name, &options, device);
}

bk_status cli_open_named(cli_session *s, const char *name, bk_device **device) {
  bk_model_config ignored = {0};
  bk_train_config recipe;
  bk_train_config_default(&recipe);
  BK_TRY(cli_apply_sets(s, &ignored, &recipe));
  return open_for(s, name, &recipe, device);
}

bk_status cli_open_device(cli_session *s) { return cli_open_named(s, cli_value(&s->args, "device"), &s->device); }

bk_status cli_open_device_for(cli_session *s, const bk_train_config *recipe) {
  return open_for(s, cli_value(&s->args, "device"), recipe, &s->device);
}

bk_status cli_dtype(cli_session *s, bk_dtype *dtype) {
  const char *text = cli_value(&s->args, "dtype");
  bk_dtype d;
  if (!text) return BK_OK;
  if (bk_dtype_parse(text, &d) != BK_OK) return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--dtype %s: expected fp32, bf16 or fp64", text);
  if (s->device && !(s->device->props.storage_dtypes & BK_DT(d)))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--dtype %s: device %s does not store it%s", text, s->device->backend->name, d == BK_F64 ? "; fp64 is for --device ref" : "");
  *dtype = d;
  return BK_OK;
}

bk_status cli_apply_sets(cli_session *s, bk_model_config *m, bk_train_config *t) {
  for (int i = 0; i < s->args.n_given; i++)
    if (strcmp(s->args.given[i].option->name, "set") == 0) BK_TRY(bk_config_set(s->ctx, m, t, s->args.given[i].value));
  return BK_OK;
}

static bool is_json_file(const char *name) {
  size_t n = strlen(name);
  return strchr(name, '/') || (n > 5 && strcmp(name + n - 5, ".json") == 0);
}

bk_status cli_model_config(cli_session *s, const char *name, bk_model_config *m, bk_train_config *t) {
  if (is_json_file(name)) {
    BK_TRY(bk_model_config_read(s->ctx, name, m));
    bk_train_config_default(t);
  } else {
    BK_TRY(bk_model_preset(s->ctx, name, m, t));
  }
  BK_TRY(cli_apply_sets(s, m, t));
  return bk_model_config_validate(s->ctx, m);
}

bk_status cli_load_model(cli_session *s, const char *checkpoint, const bk_model_options *options, bk_model **model, char **path_out) {
  char *path = NULL;
  BK_TRY(bk_checkpoint_resolve(s->ctx, checkpoint, &path));
  bk_model_config config;
  bk_train_config ignored;
  bk_train_config_default(&ignored);
  bk_dtype dtype = BK_NONE;
  bk_model *made = NULL;
  bk_model_options all = *options;
  all.allow_nonfinite |= cli_given(&s->args, "allow-nonfinite");
  char *file = bk_path_join(s->ctx, path, "config.json");
  bk_status status = file ? bk_model_config_read(s->ctx, file, &config) : BK_ERR_MEMORY;
  bk_free(s->ctx, file);
  if (status == BK_OK) status = cli_apply_sets(s, &config, &ignored);
  if (status == BK_OK) status = bk_model_config_validate(s->ctx, &config);
  if (status == BK_OK) status = bk_checkpoint_dtype(s->ctx, path, &dtype);
  if (status == BK_OK && dtype == BK_F64 && !(s->device->props.storage_dtypes & BK_DT(BK_F64))) dtype = BK_F32;
  if (status == BK_OK) status = cli_dtype(s, &dtype);
  if (status == BK_OK) status = bk_model_create(s->device, &config, dtype, &all, &made);
  if (status == BK_OK) status = bk_checkpoint_load_weights(made, path);
  if (status == BK_OK) {
    *model = made;
    if (path_out) *path_out = path;
  } else {
    bk_model_destroy(made);
  }
  if (status != BK_OK || !path_out) bk_free(s->ctx, path);
  return status;
}

bk_status cli_open_data(cli_session *s, const char *option, bk_split split, int64_t vocab_size, int data_dtype, bk_dataset **data) {
  int n = cli_values(&s->args, option, NULL, 0);
  if (!n) return bk_fail(s->ctx, BK_ERR_ARGUMENT, "%s: --%s FILE... is needed", s->args.command->name, option);
  const char **paths = bk_alloc_array(s->ctx, (size_t)n, sizeof *paths);
  if (!paths) return BK_ERR_MEMORY;
  cli_values(&s->args, option, paths, n);
  bk_dataset_options options = {.vocab_size = vocab_size, .data_dtype = data_dtype, .split = split};
  bk_status status = bk_dataset_open(s->ctx, paths, n, &options, data);
  bk_free(s->ctx, paths);
  return status;
}

int cli_exit_code(bk_status status) {
  switch (status) {
    case BK_OK: return 0;
    case BK_INTERRUPTED: return 128 + (cli_signal ? cli_signal : SIGINT);
    case BK_ERR_ARGUMENT: case BK_ERR_CONFIG: case BK_ERR_NOT_FOUND: case BK_ERR_DATA: return 2;
    default: return 1;
  }
}
