/* birkhoff train: what to train, from where, with what; resume; results. The loop: train_loop.c. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/run_lock.h"
#include "tools/train.h"

/* ---- what to train ---- */

/* The configurations must agree in every key. */
static bk_status check_same_model(bk_context *ctx, const bk_model_config *was,
                                  const bk_model_config *now) {
  char a[64], b[64];
  for (const bk_option *o = bk_model_keys; o->name; o++) {
    bk_option_value_text(o, was, a, sizeof a);
    bk_option_value_text(o, now, b, sizeof b);
    if (strcmp(a, b) != 0)
      return bk_fail(ctx, BK_ERR_CONFIG,
                     "--resume: the checkpoint's model has %s = %s, %s was asked for; a resumed "
                     "run keeps its model",
                     o->name, a, b);
  }
  return BK_OK;
}

static bk_status read_config_of(cli_session *s, const char *folder, bk_model_config *config) {
  char *file = bk_path_join(s->ctx, folder, "config.json");
  bk_status status = file ? bk_model_config_read(s->ctx, file, config) : BK_ERR_MEMORY;
  bk_free(s->ctx, file);
  return status;
}

/* Model and recipe of the newest checkpoint in DIR; what the command line says is compared with
 * it. */
static bk_status choose_resumed(train_run *r, int64_t step) {
  cli_session *s = r->s;
  r->resumed_step = r->saved_step = step;
  if (!(r->from = bk_checkpoint_step_path(s->ctx, r->out, step))) return BK_ERR_MEMORY;
  BK_TRY(read_config_of(s, r->from, &r->config));
  char *file = bk_path_join(s->ctx, r->from, "trainer_state.json");
  bk_status status = file ? bk_trainer_state_read(s->ctx, file, &r->saved) : BK_ERR_MEMORY;
  bk_free(s->ctx, file);
  BK_TRY(status);
  const char *name = cli_value(&s->args, "model");
  bk_model_config asked = r->config;
  bk_train_config ignored = r->saved.recipe;
  r->recipe = r->saved.recipe;
  if (name) BK_TRY(cli_model_config(s, name, &asked, &ignored));
  else BK_TRY(cli_apply_sets(s, &asked, &ignored));
  BK_TRY(check_same_model(s->ctx, &r->config, &asked));
  BK_TRY(cli_apply_sets(s, &asked, &r->recipe));
  BK_TRY(train_recipe_options(s, &r->recipe));
  if (r->recipe.bin_validation != r->saved.recipe.bin_validation) {
    bk_warn(s->ctx, "bin_validation stays %s: a resumed run keeps the split of its data",
            r->saved.recipe.bin_validation ? "true" : "false");
    r->recipe.bin_validation = r->saved.recipe.bin_validation;
  }
  train_log_changed_keys(s->ctx, &r->saved.recipe, &r->recipe);
  r->dtype = r->saved.dtype;
  BK_TRY(cli_dtype(s, &r->dtype));
  if (r->dtype != r->saved.dtype)
    return bk_fail(s->ctx, BK_ERR_CONFIG, "--resume: the run is in %s, --dtype says %s",
                   bk_dtype_name(r->saved.dtype), bk_dtype_name(r->dtype));
  return BK_OK;
}

static bk_status choose_fresh(train_run *r) {
  cli_session *s = r->s;
  const char *name = cli_value(&s->args, "model"), *init = cli_value(&s->args, "init");
  if (!name == !init)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "train: exactly one of --model and --init is needed");
  r->dtype = BK_F32;
  if (init) {
    BK_TRY(bk_checkpoint_resolve(s->ctx, init, &r->from));
    BK_TRY(read_config_of(s, r->from, &r->config));
    BK_TRY(bk_checkpoint_dtype(s->ctx, r->from, &r->dtype));
    bk_train_config_default(&r->recipe);
    BK_TRY(cli_apply_sets(s, &r->config, &r->recipe));
    BK_TRY(bk_model_config_validate(s->ctx, &r->config));
  } else {
    BK_TRY(cli_model_config(s, name, &r->config, &r->recipe));
  }
  BK_TRY(train_recipe_options(s, &r->recipe));
  return cli_dtype(s, &r->dtype);
}

/* Before anything in DIR is looked at, so that what is found stays as it is. What a DIR that is
 * yet to be made will be on is looked at too. */
static bk_status lock_out(train_run *r) {
  int kind;
  if (cli_given(&r->s->args, "dry-run")) return BK_OK;
  BK_TRY(bk_path_kind(r->s->ctx, r->out, &kind));
  return kind == 1 ? run_lock_take(r->s->ctx, r->out, &r->lock) : run_lock_check(r->s->ctx, r->out);
}

/* --resume is no advice where no checkpoint is whole: then that is said, by who looks for it. */
static bk_status fail_taken(const train_run *r, int64_t newest) {
  int64_t whole;
  BK_TRY(bk_checkpoint_newest(r->s->ctx, r->out, BK_CHECKPOINT_RESUME, &whole));
  return bk_fail(
      r->s->ctx, BK_ERR_ARGUMENT,
      "%s has checkpoints (newest: step %lld); --resume goes on with it, or choose another --out",
      r->out, (long long)newest);
}

/* DIR, which was not there before, and its lock. Another run may have come and gone meanwhile. */
static bk_status make_out(train_run *r) {
  int64_t newest;
  BK_TRY(bk_mkdirs(r->s->ctx, r->out));
  if (r->lock >= 0) return BK_OK;
  BK_TRY(run_lock_take(r->s->ctx, r->out, &r->lock));
  BK_TRY(bk_checkpoint_newest(r->s->ctx, r->out, BK_CHECKPOINT_ANY, &newest));
  return newest >= 0 ? fail_taken(r, newest) : BK_OK;
}

static bk_status choose(train_run *r) {
  cli_session *s = r->s;
  int64_t newest;
  if (!(r->out = cli_value(&s->args, "out")))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "train: --out DIR is needed");
  BK_TRY(lock_out(r));
  bool resume = cli_given(&s->args, "resume");
  BK_TRY(bk_checkpoint_newest(s->ctx, r->out, resume ? BK_CHECKPOINT_RESUME : BK_CHECKPOINT_ANY,
                              &newest));
  if (newest >= 0 && !resume) return fail_taken(r, newest);
  if (newest >= 0) BK_TRY(choose_resumed(r, newest));
  else BK_TRY(choose_fresh(r));
  BK_TRY(bk_train_config_validate(s->ctx, &r->recipe));
  if (r->recipe.seq_len > r->config.max_position_embeddings)
    return bk_fail(s->ctx, BK_ERR_CONFIG, "seq_len %lld is above max_position_embeddings %lld",
                   (long long)r->recipe.seq_len, (long long)r->config.max_position_embeddings);
  if (r->resumed_step > r->recipe.steps)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--steps %lld: the run is at step %lld already",
                   (long long)r->recipe.steps, (long long)r->resumed_step);
  return BK_OK;
}

/* ---- data ---- */

/* Validation: --val-data whole, else the last tenth of each file. None is left where all are
 * streams that keep nothing back. */
static bk_status open_validation(train_run *r, bk_dataset_options options) {
  cli_session *s = r->s;
  bool given = cli_given(&s->args, "val-data"), text;
  options.split = given ? BK_SPLIT_ALL : BK_SPLIT_VAL;
  BK_TRY(cli_any_data(s, false, &text));
  if (!given && !text && bk_dataset_kept_back(r->train) == 0) return BK_OK;
  return cli_open_data(s, given ? "val-data" : "data", &options, &r->val);
}

static bk_status open_training(train_run *r, bk_dataset_options *options) {
  options->whole_bin = !r->recipe.bin_validation;
  return cli_open_data(r->s, "data", options, &r->train);
}

/* A new run whose .bin files are so short that, without their last tenth, nothing would be left
 * to train on, or that have no tenth to validate on, trains on all of them; its recipe says so,
 * and a resumed run does the same. */
static bk_status spare_tenth(train_run *r, bk_dataset_options *options) {
  bool any_bin;
  BK_TRY(cli_any_data(r->s, true, &any_bin));
  bool split =
      options->split == BK_SPLIT_TRAIN && r->recipe.bin_validation && !r->resumed_step && any_bin;
  int64_t kept_back = bk_dataset_kept_back(r->train);
  if (!split || (kept_back > 0 && bk_dataset_tokens(r->train) > r->recipe.seq_len)) return BK_OK;
  r->recipe.bin_validation = false;
  r->unsplit = true;
  bk_info(r->s->ctx,
          "the .bin files are too short to spare a tenth for validation: bin_validation=false");
  if (kept_back == 0) return BK_OK;
  bk_dataset_close(r->train);
  r->train = NULL;
  return open_training(r, options);
}

/* The first of the files that is not what it was; `then` are the n files that the run began with,
 * of which earlier versions kept no list. */
static bk_status fail_other_data(train_run *r, const bk_data_file *then, int n) {
  static const char begin[] = "--resume: the training data is not the data that the run in";
  bk_context *ctx = r->s->ctx;
  const cli_paths *paths;
  const bk_data_file *now;
  int n_now = bk_dataset_files(r->train, &now), i = 0;
  BK_TRY(cli_data_paths(r->s, "data", &paths));
  while (i < n && i < n_now && now[i].bytes == then[i].bytes && now[i].hash == then[i].hash) i++;
  if (n && n != n_now)
    return bk_fail(ctx, BK_ERR_DATA, "%s %s began with: it is in %d file%s now, %d then", begin,
                   r->out, n_now, n_now == 1 ? "" : "s", n);
  if (i < n && now[i].bytes != then[i].bytes)
    return bk_fail(ctx, BK_ERR_DATA, "%s %s began with: file %d, %s, has %llu bytes, %llu then",
                   begin, r->out, i + 1, paths->list[i], (unsigned long long)now[i].bytes,
                   (unsigned long long)then[i].bytes);
  if (i < n)
    return bk_fail(ctx, BK_ERR_DATA, "%s %s began with: file %d, %s, has other contents", begin,
                   r->out, i + 1, paths->list[i]);
  return bk_fail(ctx, BK_ERR_DATA, "%s %s began with", begin, r->out);
}

/* A checkpoint without a list of files is of an earlier version, which hashed all of the data. */
static bk_status check_data(train_run *r) {
  bk_context *ctx = r->s->ctx;
  bk_data_file *then = NULL;
  int n = 0;
  uint64_t hash = bk_dataset_hash(r->train);
  if (!r->resumed_step || hash == r->saved.data_hash) return BK_OK;
  char *file = bk_path_join(ctx, r->from, "trainer_state.json");
  bk_status status = file ? bk_trainer_state_files(ctx, file, &then, &n) : BK_ERR_MEMORY;
  bk_free(ctx, file);
  BK_TRY(status);
  if (n == 0 && bk_dataset_sampled(r->train)) {
    bk_info(ctx, "reading all of the data: the checkpoint has a hash of it as older versions made");
    BK_TRY(bk_dataset_hash_whole(r->train, &hash));
    if (hash == r->saved.data_hash) return BK_OK;
  }
  status = fail_other_data(r, then, n);
  bk_free(ctx, then);
  return status;
}

static bk_status open_data(train_run *r) {
  cli_session *s = r->s;
  bk_dataset_options options = {.vocab_size = r->config.vocab_size,
                                .data_dtype = r->recipe.data_dtype};
  options.split = cli_given(&s->args, "val-data") ? BK_SPLIT_ALL : BK_SPLIT_TRAIN;
  BK_TRY(open_training(r, &options));
  BK_TRY(spare_tenth(r, &options));
  BK_TRY(bk_dataset_check_seq_len(s->ctx, r->train, r->recipe.seq_len));
  BK_TRY(open_validation(r, options));
  return check_data(r);
}

/* ---- model ---- */

static bk_status build(train_run *r, bool plan_only) {
  bk_model_options options = {.trainable = true,
                              .plan_only = plan_only,
                              .allow_nonfinite = cli_given(&r->s->args, "allow-nonfinite")};
  BK_TRY(bk_model_create(r->s->device, &r->config, r->dtype, &options, &r->model));
  if (!plan_only) {
    if (!r->from) BK_TRY(bk_model_init(r->model, r->recipe.seed));
    else BK_TRY(bk_checkpoint_load_weights(r->model, r->from));
    if (r->resumed_step) BK_TRY(bk_checkpoint_load_optimizer(r->model, r->from));
  }
  BK_TRY(bk_trainer_create(r->model, &r->recipe, r->train, r->val, &r->trainer));
  bk_trainer_set_step(r->trainer, r->resumed_step, r->saved.tokens);
  return BK_OK;
}

static bk_status open_metrics(train_run *r) {
  bk_context *ctx = r->s->ctx;
  char *path = bk_path_join(ctx, r->out, "metrics.jsonl");
  if (!path) return BK_ERR_MEMORY;
  bk_status status = bk_metrics_cut(ctx, path, r->resumed_step);
  if (status == BK_OK) status = bk_metrics_open(ctx, path, &r->metrics);
  bk_free(ctx, path);
  return status;
}

static bk_status run_training(train_run *r) {
  bk_profile *profile;
  BK_TRY(make_out(r)); /* the profile may go there */
  BK_TRY(cli_profile_begin(r->s, r->model, &profile));
  bk_status status = open_metrics(r);
  if (status != BK_OK) {
    bk_profile_destroy(profile);
    return status;
  }
  cli_catch_signals(
      "\nbirkhoff: finishing the step and saving; a second SIGINT or SIGTERM ends the program at "
      "once\n");
  return cli_profile_end(r->s, profile, train_loop(r));
}

/* ---- results ---- */

static bk_status report_plan(train_run *r) {
  bk_model_counts counts;
  char a[32], b[32];
  bk_model_count(&r->config, r->recipe.seq_len, &counts);
  double step_tokens = (double)(r->recipe.batch_size * r->recipe.seq_len);
  json_t *bytes = json_object();
  if (!r->s->json) {
    printf("parameters  %s, %s active\n",
           cli_count_text((double)counts.parameters_total, a, sizeof a),
           cli_count_text((double)counts.parameters_active, b, sizeof b));
    printf("data        %lld tokens for training, %lld for validation\n",
           (long long)bk_dataset_tokens(r->train),
           r->val ? (long long)bk_dataset_tokens(r->val) : 0LL);
    if (r->unsplit)
      printf(
          "            (the .bin files are too short to spare a tenth for validation: "
          "bin_validation=false)\n");
    printf("steps       %lld of %s tokens: %.2f epochs\n", (long long)r->recipe.steps,
           cli_count_text(step_tokens, a, sizeof a),
           (double)r->recipe.steps * step_tokens / (double)bk_dataset_tokens(r->train));
  }
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++) {
    size_t n = bk_model_bytes(r->model, c) + bk_trainer_bytes(r->trainer, c) +
               (c == BK_MEM_STAGING ? bk_checkpoint_staging() : 0);
    json_object_set_new(bytes, bk_memory_class_name(c), json_integer((json_int_t)n));
    if (!r->s->json && n)
      printf("%-11s %s\n", bk_memory_class_name(c), cli_bytes_text((double)n, a, sizeof a));
  }
  if (r->s->json)
    return cli_print_json(
        r->s, json_pack("{s:I,s:I,s:o,s:f,s:I,s:I}", "parameters_total",
                        (json_int_t)counts.parameters_total, "parameters_active",
                        (json_int_t)counts.parameters_active, "bytes", bytes, "flops_per_token",
                        counts.flops_per_token, "steps", (json_int_t)r->recipe.steps, "step_tokens",
                        (json_int_t)step_tokens));
  json_decref(bytes);
  return cli_flush_stdout(r->s);
}

static bk_status report(train_run *r) {
  int64_t step = bk_trainer_step_done(r->trainer);
  if (cli_signal && step < r->recipe.steps) {
    char *command = train_resume_command(r, "");
    fprintf(stderr, "birkhoff: stopped at step %lld of %lld, saved; to go on: %s\n",
            (long long)step, (long long)r->recipe.steps, command ? command : "--resume");
    bk_free(r->s->ctx, command);
    return BK_INTERRUPTED;
  }
  char *path = bk_checkpoint_step_path(r->s->ctx, r->out, step);
  if (!path) return BK_ERR_MEMORY;
  bk_status status = BK_OK;
  r->s->on_disk = r->out;
  if (r->s->json)
    status =
        cli_print_json(r->s, json_pack("{s:I,s:I,s:o,s:o,s:s}", "step", (json_int_t)step, "tokens",
                                       (json_int_t)bk_trainer_tokens_done(r->trainer), "loss",
                                       cli_number(r->last.step ? r->last.loss : NAN), "val_loss",
                                       cli_number(r->last_val), "checkpoint", path));
  else printf("%s\n", path);
  bk_free(r->s->ctx, path);
  return status;
}

static void print_config_help(void) {
  bk_train_config t;
  char text[64];
  bk_train_config_default(&t);
  printf("Recipe keys (--set KEY=VALUE), with their defaults (a preset brings its own):\n");
  for (const bk_option *o = bk_train_keys; o->name; o++)
    printf("  %-20s %-10s %s\n", o->name, bk_option_value_text(o, &t, text, sizeof text), o->doc);
  printf("\nModel keys (config.json, --set KEY=VALUE):\n");
  for (const bk_option *o = bk_model_keys; o->name; o++) printf("  %-31s %s\n", o->name, o->doc);
  printf("\nResidual connections, and the streams (hc_mult) that they can have:\n");
  bk_connection_info kind;
  for (int i = 0; bk_connection_describe((bk_hc_kind)i, &kind); i++)
    printf("  residual=%-22s %s; %s\n", kind.name, kind.summary, kind.streams);
}

static bk_status run(cli_session *s) {
  if (cli_given(&s->args, "help-config")) {
    print_config_help();
    return cli_flush_stdout(s);
  }
  cli_catch_save();
  train_run r = {.s = s, .lock = -1, .last_val = NAN};
  bool dry = cli_given(&s->args, "dry-run");
  bk_status status = cli_given(&s->args, "data")
                         ? choose(&r)
                         : bk_fail(s->ctx, BK_ERR_ARGUMENT, "train: --data FILE... is needed");
  /* a resumed run's recipe is its checkpoint's */
  if (status == BK_OK) status = cli_open_device_for(s, &r.recipe);
  /* again, now that it is known what the device stores */
  if (status == BK_OK) status = cli_dtype(s, &r.dtype);
  if (status == BK_OK) status = open_data(&r);
  if (status == BK_OK) train_warn_recipe(&r);
  if (status == BK_OK) status = build(&r, dry);
  if (status == BK_OK && !dry) status = run_training(&r);
  if (status == BK_OK) status = dry ? report_plan(&r) : report(&r);
  bk_metrics_close(r.metrics);
  bk_trainer_destroy(r.trainer);
  bk_model_destroy(r.model);
  bk_dataset_close(r.val);
  bk_dataset_close(r.train);
  bk_free(s->ctx, r.from);
  if (r.lock >= 0) close(r.lock);
  return status;
}

static const cli_option options[] = {
    {"model", CLI_ONE, "PRESET|FILE|DIR",
     "what to train: tiny, demo, mhc-3b, mhc-9b, mhc-27b, a config.json or a checkpoint's"},
    {"init", CLI_ONE, "CKPT", "begin with the model and weights of a checkpoint"},
    {"data", CLI_MANY, "FILE", "UTF-8 text or .bin token streams: files, patterns, @LIST"},
    {"val-data", CLI_MANY, "FILE",
     "validation data; default: the last tenth of each file of --data"},
    {"out", CLI_ONE, "DIR", "folder for checkpoints and metrics.jsonl"},
    {"steps", CLI_ONE, "N", "optimiser steps in all"},
    {"batch-size", CLI_ONE, "N", "sequences per step"},
    {"seq-len", CLI_ONE, "N", "tokens per sequence"},
    {"lr", CLI_ONE, "X", "peak learning rate"},
    {"seed", CLI_ONE, "N", "of the initial weights and of the data order"},
    {"resume", CLI_FLAG, NULL, "go on from the newest checkpoint in DIR, bit for bit"},
    CLI_ALLOW_NONFINITE,
    {"profile", CLI_ONE, "FILE",
     "time of every op and phase: tables at the end, a Chrome trace in FILE"},
    {"dry-run", CLI_FLAG, NULL, "check everything, print the plan, train nothing"},
    {"help-config", CLI_FLAG, NULL, "list the keys of --set"},
    {NULL, CLI_FLAG, NULL, NULL},
};

const cli_command cli_train = {
    "train",
    "--model PRESET|FILE|DIR | --init CKPT --data FILE... --out DIR [OPTIONS]",
    "Trains a model and writes checkpoints and metrics.",
    options,
    0,
    0,
    run};
