/* birkhoff train: what to train, from where, with what; resume. The loop: train_loop.c; what is
 * printed: train_report.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/launch.h"
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

/* A network's file system may take some seconds to show what another machine has made. */
static bk_status see_out(train_run *r) {
  double begin = cli_seconds();
  while (!bk_path_is_dir(r->s->ctx, r->out)) {
    if (cli_seconds() - begin > 10)
      return bk_fail(r->s->ctx, BK_ERR_IO,
                     "%s, which rank 0 has made, is not here: all ranks write checkpoints, so the "
                     "folder of a run must be on a file system that they share",
                     r->out);
    usleep(100000);
  }
  return BK_OK;
}

static bk_status open_out(train_run *r) {
  BK_TRY(cli_team_agree(r->team, cli_team_leads(r->team) ? make_out(r) : BK_OK));
  return cli_team_agree(r->team, cli_team_leads(r->team) ? BK_OK : see_out(r));
}

/* The step of the checkpoint to go on from, or -1. */
static bk_status find_start(train_run *r, int64_t *newest) {
  bool resume = cli_given(&r->s->args, "resume");
  BK_TRY(lock_out(r));
  BK_TRY(bk_checkpoint_newest(r->s->ctx, r->out, resume ? BK_CHECKPOINT_RESUME : BK_CHECKPOINT_ANY,
                              newest));
  return *newest >= 0 && !resume ? fail_taken(r, *newest) : BK_OK;
}

static bk_status choose_from(train_run *r, int64_t newest) {
  bk_context *ctx = r->s->ctx;
  if (newest >= 0) BK_TRY(choose_resumed(r, newest));
  else BK_TRY(choose_fresh(r));
  BK_TRY(bk_train_config_validate(ctx, &r->recipe));
  if (r->recipe.seq_len > r->config.max_position_embeddings)
    return bk_fail(ctx, BK_ERR_CONFIG, "seq_len %lld is above max_position_embeddings %lld",
                   (long long)r->recipe.seq_len, (long long)r->config.max_position_embeddings);
  if (r->resumed_step > r->recipe.steps)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "--steps %lld: the run is at step %lld already",
                   (long long)r->recipe.steps, (long long)r->resumed_step);
  return BK_OK;
}

static char *append_keys(bk_context *ctx, char *text, const bk_option *keys, const void *values) {
  char value[64];
  for (const bk_option *o = keys; o->name && text; o++) {
    char *longer = bk_format(ctx, "%s\n%s = %s", text, o->name,
                             bk_option_value_text(o, values, value, sizeof value));
    bk_free(ctx, text);
    text = longer;
  }
  return text;
}

static const char *text_of(const cli_args *args, const char *option) {
  const char *value = cli_value(args, option);
  return value ? value : "not given";
}

/* What must be the same on all ranks, one key a line; NULL: out of memory. */
static char *describe(const train_run *r) {
  bk_context *ctx = r->s->ctx;
  const cli_args *args = &r->s->args;
  char *text = bk_format(ctx,
                         "%s --dry-run\n%s --profile\n--pp %s\n--schedule %s\n--stages %s\n--out "
                         "%s\nbegin %s\nstep %lld\ntokens "
                         "%lld\ndata_hash %016llx\ndtype %s",
                         cli_given(args, "dry-run") ? "with" : "without",
                         cli_given(args, "profile") ? "with" : "without", text_of(args, "pp"),
                         text_of(args, "schedule"), text_of(args, "stages"), r->out,
                         r->from ? r->from : "with initial values", (long long)r->resumed_step,
                         (long long)r->saved.tokens, (unsigned long long)r->saved.data_hash,
                         bk_dtype_name(r->dtype));
  text = append_keys(ctx, text, bk_model_keys, &r->config);
  return append_keys(ctx, text, bk_train_keys, &r->recipe);
}

/* Rank 0 decides where to begin, since folders may change while others look. */
static bk_status choose(train_run *r) {
  cli_session *s = r->s;
  int64_t newest = -1;
  bk_status status = BK_OK;
  r->out = cli_value(&s->args, "out");
  if (!cli_given(&s->args, "data"))
    status = bk_fail(s->ctx, BK_ERR_ARGUMENT, "train: --data FILE... is needed");
  else if (!r->out) status = bk_fail(s->ctx, BK_ERR_ARGUMENT, "train: --out DIR is needed");
  else if (cli_team_leads(r->team)) status = find_start(r, &newest);
  BK_TRY(cli_team_agree(r->team, status));
  BK_TRY(cli_team_follow(r->team, &newest, sizeof newest));
  BK_TRY(cli_team_agree(r->team, choose_from(r, newest)));
  char *text = describe(r);
  status = cli_team_agree(r->team, text ? BK_OK : BK_ERR_MEMORY);
  if (status == BK_OK) status = cli_team_same(r->team, "what this rank is to train", text);
  bk_free(s->ctx, text);
  return status;
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

/* Ranks on several machines may have files of one name that are not the same. */
static bk_status same_data(train_run *r) {
  char text[160];
  snprintf(text, sizeof text,
           "training data of %lld tokens (hash %016llx)\n"
           "validation data of %lld tokens (hash %016llx)",
           (long long)bk_dataset_tokens(r->train), (unsigned long long)bk_dataset_hash(r->train),
           r->val ? (long long)bk_dataset_tokens(r->val) : 0LL,
           r->val ? (unsigned long long)bk_dataset_hash(r->val) : 0ULL);
  return cli_team_same(r->team, "the data of this rank", text);
}

/* ---- model ---- */

static bk_status build(train_run *r, bool plan_only) {
  bk_model_options options = {.trainable = true,
                              .plan_only = plan_only,
                              .allow_nonfinite = cli_given(&r->s->args, "allow-nonfinite"),
                              .comm = r->team->comm,
                              .pipeline = r->pipeline};
  BK_TRY(cli_team_agree(r->team,
                        bk_model_create(r->s->device, &r->config, r->dtype, &options, &r->model)));
  if (!plan_only) {
    bk_status status = r->from ? bk_checkpoint_load_weights(r->model, r->from)
                               : bk_model_init(r->model, r->recipe.seed);
    BK_TRY(cli_team_agree(r->team, status));
    if (r->resumed_step)
      BK_TRY(cli_team_agree(r->team, bk_checkpoint_load_optimizer(r->model, r->from)));
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
  BK_TRY(open_out(r)); /* the profile may go there */
  BK_TRY(cli_profile_begin(r->s, r->model, &profile));
  bk_status status = cli_team_agree(r->team, cli_team_leads(r->team) ? open_metrics(r) : BK_OK);
  if (status != BK_OK) {
    bk_profile_destroy(profile);
    return status;
  }
  if (r->team->hears_signals)
    cli_catch_signals(!cli_team_leads(r->team) ? NULL
                                               : "\nbirkhoff: finishing the step and saving; a "
                                                 "second SIGINT or SIGTERM ends the program "
                                                 "at once\n");
  train_say_start(r);
  status = train_loop(r);
  /* what comes now, such as the SIGTERM of a launcher, has nothing to finish: no note */
  if (r->team->hears_signals) cli_catch_signals(NULL);
  return cli_profile_end(r->s, profile, status);
}

/* ---- the command ---- */

/* Every step ends in an agreement, so that no rank waits for one that has failed. */
static bk_status set_up(train_run *r, bool dry) {
  cli_session *s = r->s;
  BK_TRY(choose(r));
  /* a resumed run's recipe is its checkpoint's */
  bk_status status = cli_open_device_for(s, &r->recipe);
  /* again, now that it is known what the device stores */
  if (status == BK_OK) status = cli_dtype(s, &r->dtype);
  BK_TRY(cli_team_agree(r->team, status));
  BK_TRY(cli_team_agree(r->team, cli_team_open_comm(r->team)));
  BK_TRY(cli_team_agree(r->team, train_open_pipeline(r)));
  BK_TRY(cli_team_agree(r->team, open_data(r)));
  BK_TRY(same_data(r));
  train_warn_recipe(r);
  return cli_team_agree(r->team, build(r, dry));
}

static bk_status run_rank(cli_session *s) {
  train_run r = {.s = s, .team = s->team, .lock = -1, .last_val = NAN};
  bool dry = cli_given(&s->args, "dry-run");
  bk_status status = set_up(&r, dry);
  if (status == BK_OK && !dry) status = run_training(&r);
  if (status == BK_OK) status = dry ? train_report_plan(&r) : train_report(&r);
  if (cli_team_lost(r.team, status)) return status; /* the process ends without more ado */
  bk_metrics_close(r.metrics);
  bk_trainer_destroy(r.trainer);
  bk_model_destroy(r.model);
  bk_pipeline_destroy(r.pipeline);
  bk_schedule_destroy(s->ctx, r.schedule);
  bk_dataset_close(r.val);
  bk_dataset_close(r.train);
  bk_free(s->ctx, r.from);
  if (r.lock >= 0) close(r.lock);
  return status;
}

static bk_status run(cli_session *s) {
  if (cli_given(&s->args, "help-config")) {
    train_print_config_help();
    return cli_flush_stdout(s);
  }
  cli_catch_save();
  return cli_launch(s, run_rank);
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
    CLI_LAUNCH_OPTIONS,
    {"pp", CLI_ONE, "P", "ranks of a pipeline, each of which has some of the layers"},
    {"schedule", CLI_ONE, "NAME|FILE",
     "of pipelines: 1f1b (default), zb1p, dualpipe, dualpipev, or a JSON file"},
    {"stages", CLI_ONE, "LIST|FILE",
     "sublayers of each stage: 9,8,8,7, or by costs that bench step --json has measured (default: "
     "by computed cost)"},
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
