/* Devices, configurations, checkpoints and data as the options name them. See cli.h. */
#include <string.h>

#include "tools/launch.h"

static bk_status open_for(cli_session *s, const char *given, const bk_train_config *recipe,
                          bk_device **device) {
  int of_rank = 0;
  char own[160];
  const char *name;
  BK_TRY(cli_rank_threads(s, &of_rank));
  int64_t threads = of_rank;
  BK_TRY(cli_int(s, "threads", 1, 1024, &threads));
  BK_TRY(cli_rank_device(s, given, own, sizeof own, &name));
  bk_device_options options = {.threads = (int)threads,
                               .allow_fallback = cli_given(&s->args, "allow-fallback"),
                               .no_graph = !recipe->cuda_graph,
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

bk_status cli_open_device(cli_session *s) {
  return cli_open_named(s, cli_value(&s->args, "device"), &s->device);
}

bk_status cli_open_device_for(cli_session *s, const bk_train_config *recipe) {
  return open_for(s, cli_value(&s->args, "device"), recipe, &s->device);
}

bool cli_stores(const bk_device *device, bk_dtype dtype) {
  return bk_device_properties(device)->storage_dtypes & BK_DT(dtype);
}

bk_status cli_dtype(cli_session *s, bk_dtype *dtype) {
  const char *text = cli_value(&s->args, "dtype");
  bk_dtype d;
  if (!text) return BK_OK;
  if (bk_dtype_parse(text, &d) != BK_OK)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--dtype %s: expected fp32, bf16 or fp64", text);
  if (s->device && !cli_stores(s->device, d))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--dtype %s: device %s does not store it%s", text,
                   bk_device_backend_name(s->device),
                   d == BK_F64 ? "; fp64 is for --device ref" : "");
  *dtype = d;
  return BK_OK;
}

bk_status cli_apply_sets(cli_session *s, bk_model_config *m, bk_train_config *t) {
  for (int i = 0; i < s->args.n_given; i++)
    if (strcmp(s->args.given[i].option->name, "set") == 0)
      BK_TRY(bk_config_set(s->ctx, m, t, s->args.given[i].value));
  return BK_OK;
}

static bool is_preset(const char *name) {
  for (const char *const *p = bk_model_preset_names(); *p; p++)
    if (strcmp(*p, name) == 0) return true;
  return false;
}

static bool is_json_file(const char *name) {
  size_t n = strlen(name);
  return strchr(name, '/') || (n > 5 && strcmp(name + n - 5, ".json") == 0);
}

/* The config.json of a folder: of a checkpoint, with or without its weights, or of a run's
 * newest checkpoint. */
static bk_status read_folder_config(cli_session *s, const char *folder, bk_model_config *m) {
  bk_context *ctx = s->ctx;
  char *file = bk_path_join(ctx, folder, "config.json"), *path = NULL;
  bk_status status = file ? BK_OK : BK_ERR_MEMORY;
  if (file && !bk_path_exists(ctx, file)) {
    bk_free(ctx, file);
    file = NULL;
    status = bk_checkpoint_resolve(ctx, folder, &path);
    if (status == BK_OK && !(file = bk_path_join(ctx, path, "config.json"))) status = BK_ERR_MEMORY;
  }
  if (status == BK_OK) status = bk_model_config_read(ctx, file, m);
  bk_free(ctx, path);
  bk_free(ctx, file);
  return status;
}

bk_status cli_model_config(cli_session *s, const char *name, bk_model_config *m,
                           bk_train_config *t) {
  bool folder = !is_preset(name) && bk_path_is_dir(s->ctx, name);
  if (folder) BK_TRY(read_folder_config(s, name, m));
  else if (is_json_file(name)) BK_TRY(bk_model_config_read(s->ctx, name, m));
  else BK_TRY(bk_model_preset(s->ctx, name, m, t));
  if (folder || is_json_file(name)) bk_train_config_default(t);
  BK_TRY(cli_apply_sets(s, m, t));
  return bk_model_config_validate(s->ctx, m);
}

bk_status cli_load_model(cli_session *s, const char *checkpoint, const bk_model_options *options,
                         bk_model **model, char **path_out) {
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
  if (status == BK_OK && dtype == BK_F64 && !cli_stores(s->device, BK_F64)) dtype = BK_F32;
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

bk_status cli_split(cli_session *s, bk_split *split) {
  static const char *const names[] = {"train", "val", "all"}; /* as bk_split */
  const char *text = cli_value(&s->args, "split");
  if (!text) return BK_OK;
  for (size_t i = 0; i < BK_COUNT(names); i++)
    if (strcmp(text, names[i]) == 0) {
      *split = (bk_split)i;
      return BK_OK;
    }
  return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--split %s: expected train, val or all", text);
}

bk_status cli_open_data(cli_session *s, const char *option, const bk_dataset_options *options,
                        bk_dataset **data) {
  const cli_paths *paths;
  BK_TRY(cli_data_paths(s, option, &paths));
  if (!paths->n)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "%s: --%s FILE... is needed", s->args.command->name,
                   option);
  return bk_dataset_open(s->ctx, (const char *const *)paths->list, paths->n, options, data);
}

/* ---- reading data as a run did ---- */

/* *known: there is a trainer_state.json; its recipe is then the run's. */
static bk_status read_run_recipe(cli_session *s, const char *folder, bk_train_config *recipe,
                                 bool *known) {
  bk_trainer_state state;
  int kind = -1;
  char *file = bk_path_join(s->ctx, folder, "trainer_state.json");
  if (!file) return BK_ERR_MEMORY;
  bk_status status = bk_path_kind(s->ctx, file, &kind);
  if (status == BK_OK && kind >= 0) status = bk_trainer_state_read(s->ctx, file, &state);
  bk_free(s->ctx, file);
  BK_TRY(status);
  *known = kind >= 0;
  if (*known) *recipe = state.recipe;
  return BK_OK;
}

bk_status cli_any_data(cli_session *s, bool bin, bool *any) {
  const cli_paths *paths;
  BK_TRY(cli_data_paths(s, "data", &paths));
  *any = false;
  for (int i = 0; i < paths->n; i++) *any |= bk_path_is_bin(paths->list[i]) == bin;
  return BK_OK;
}

bk_status cli_reading_of(cli_session *s, const char *folder, const bk_model_config *m,
                         cli_reading *reading) {
  int64_t longest = m->max_position_embeddings, asked = reading->seq_len, trained;
  bk_train_config recipe;
  bk_model_config ignored = *m;
  bool known = false, any_bin;
  BK_TRY(cli_any_data(s, true, &any_bin));
  bk_train_config_default(&recipe);
  recipe.seq_len = longest < 1024 ? longest : 1024;
  if (!asked || any_bin) BK_TRY(read_run_recipe(s, folder, &recipe, &known));
  trained = recipe.seq_len;
  BK_TRY(cli_apply_sets(s, &ignored, &recipe));
  reading->seq_len = asked ? asked : recipe.seq_len;
  reading->data = (bk_dataset_options){.vocab_size = m->vocab_size,
                                       .data_dtype = recipe.data_dtype,
                                       .whole_bin = !recipe.bin_validation};
  reading->why =
      asked || recipe.seq_len != trained ? "as asked for"
      : known                            ? "as in training"
              : "the model's longest, at most 1024: no trainer_state.json tells what training took";
  if (reading->seq_len <= longest) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                 "%s %lld: the model takes at most %lld (max_position_embeddings)",
                 asked ? "--seq-len" : "seq_len", (long long)reading->seq_len, (long long)longest);
}

int cli_exit_code(bk_status status) {
  switch (status) {
    case BK_OK: return 0;
    case BK_INTERRUPTED: return 128 + (cli_signal ? cli_signal : SIGINT);
    case BK_ERR_ARGUMENT:
    case BK_ERR_CONFIG:
    case BK_ERR_NOT_FOUND:
    case BK_ERR_DATA: return 2;
    default: return 1;
  }
}
