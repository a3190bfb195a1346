/* birkhoff plan: what training a model takes: parameters, memory by class, flops and bytes per
 * token. Sizes only: the model and its trainer are planned and never get memory, so that models
 * larger than the machine can be planned too. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"
#include "tools/plan_schedule.h"
#include "tools/plan_search.h"

typedef struct plan {
  bk_model_config config;
  bk_train_config recipe;
  bk_dtype dtype;
  int64_t micro_batch;     /* sequences that are on the device at once */
  int64_t recompute_block; /* L_r in force, in sublayers; 0 = off */
  bk_model_counts counts;
  size_t bytes[BK_MEM_CLASS_COUNT], bytes_total;
  char recompute[32]; /* which F is run again, in words */
  size_t bytes_data;  /* of the files of --data and --val-data, which are no memory */
} plan;

/* Bytes of the files of an option. */
static bk_status data_bytes(cli_session *s, const char *option, size_t *sum) {
  const cli_paths *paths;
  BK_TRY(cli_data_paths(s, option, &paths));
  for (int i = 0; i < paths->n; i++) {
    uint64_t bytes = 0;
    BK_TRY(bk_file_size(s->ctx, paths->list[i], &bytes));
    *sum += (size_t)bytes;
  }
  return BK_OK;
}

/* What saving and loading need, and what a save needs while training goes on. */
static size_t staging_bytes(const plan *p, const bk_model *model) {
  return bk_checkpoint_staging(model) +
         (p->recipe.save_async ? bk_checkpoint_save_bytes(model) : 0);
}

static bk_status measure(cli_session *s, plan *p) {
  bk_model *model = NULL;
  bk_trainer *trainer = NULL;
  bk_model_options options = {.trainable = true, .plan_only = true};
  bk_status status = bk_model_create(s->device, &p->config, p->dtype, &options, &model);
  if (status == BK_OK) status = bk_trainer_create(model, &p->recipe, NULL, NULL, &trainer);
  for (int c = 0; c < BK_MEM_CLASS_COUNT && status == BK_OK; c++) {
    p->bytes[c] = bk_model_bytes(model, c) + bk_trainer_bytes(trainer, c);
    if (c == BK_MEM_STAGING) p->bytes[c] += staging_bytes(p, model);
    p->bytes_total += p->bytes[c];
  }
  bk_trainer_destroy(trainer);
  bk_model_destroy(model);
  if (status == BK_OK) status = data_bytes(s, "data", &p->bytes_data);
  if (status == BK_OK) status = data_bytes(s, "val-data", &p->bytes_data);
  return status;
}

/* The key's row of the table knows the word. */
static void name_recompute(plan *p) {
  const bk_option *o = bk_train_keys;
  while (strcmp(o->name, "recompute") != 0) o++;
  bk_option_value_text(o, &p->recipe, p->recompute, sizeof p->recompute);
}

static double tokens_at_once(const plan *p) {
  return (double)p->micro_batch * (double)p->recipe.seq_len;
}
static double bytes_per_token(const plan *p) {
  return (double)p->bytes[BK_MEM_ACTIVATIONS] / tokens_at_once(p);
}

static bk_status print_json(cli_session *s, const plan *p) {
  json_t *bytes = json_object();
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++)
    json_object_set_new(bytes, bk_memory_class_name(c), json_integer((json_int_t)p->bytes[c]));
  json_object_set_new(bytes, "data", json_integer((json_int_t)p->bytes_data));
  return cli_print_json(
      s, json_pack("{s:I,s:I,s:I,s:o,s:I,s:f,s:f,s:s,s:I,s:I,s:I,s:I,s:s}", "parameters_total",
                   (json_int_t)p->counts.parameters_total, "parameters_active",
                   (json_int_t)p->counts.parameters_active, "parameters_connections",
                   (json_int_t)p->counts.parameters_connections, "bytes", bytes, "bytes_total",
                   (json_int_t)p->bytes_total, "flops_per_token", p->counts.flops_per_token,
                   "bytes_per_token", bytes_per_token(p), "dtype", bk_dtype_name(p->dtype),
                   "batch_size", (json_int_t)p->recipe.batch_size, "micro_batch_size",
                   (json_int_t)p->micro_batch, "seq_len", (json_int_t)p->recipe.seq_len,
                   "recompute_block", (json_int_t)p->recompute_block, "recompute", p->recompute));
}

static bk_status print_text(cli_session *s, const plan *p) {
  char a[32], b[32], c[32];
  printf("parameters       %s total, %s active, %s in connections\n",
         cli_count_text((double)p->counts.parameters_total, a, sizeof a),
         cli_count_text((double)p->counts.parameters_active, b, sizeof b),
         cli_count_text((double)p->counts.parameters_connections, c, sizeof c));
  printf("batch            %lld sequences a step, %lld at once, of %lld tokens, in %s\n",
         (long long)p->recipe.batch_size, (long long)p->micro_batch, (long long)p->recipe.seq_len,
         bk_dtype_name(p->dtype));
  if (p->recompute_block)
    printf("hc_recompute     blocks of %lld sublayers\n", (long long)p->recompute_block);
  else printf("hc_recompute     off\n");
  printf("recompute        %s\n", p->recompute);
  printf("memory\n");
  for (int i = 0; i < BK_MEM_CLASS_COUNT; i++)
    if (p->bytes[i])
      printf("  %-14s %12s\n", bk_memory_class_name(i),
             cli_bytes_text((double)p->bytes[i], a, sizeof a));
  printf("  %-14s %12s\n", "total", cli_bytes_text((double)p->bytes_total, a, sizeof a));
  if (p->bytes_data)
    printf("data             %s in files, which are read as training needs them\n",
           cli_bytes_text((double)p->bytes_data, a, sizeof a));
  printf("per token        %s flop in training, %s of kept activations\n",
         cli_count_text(p->counts.flops_per_token, a, sizeof a),
         cli_bytes_text(bytes_per_token(p), b, sizeof b));
  return cli_flush_stdout(s);
}

/* Options of a cluster mean nothing without one. */
static bk_status refuse_cluster_options(cli_session *s) {
  static const char *const names[] = {"ep",    "memory",           "bandwidth", "gpus-per-node",
                                      "flops", "device-bandwidth", "latency"};
  for (size_t i = 0; i < BK_COUNT(names); i++) {
    bool messages = strcmp(names[i], "bandwidth") == 0 || strcmp(names[i], "latency") == 0;
    if (messages && cli_given(&s->args, "schedule")) continue;
    if (cli_given(&s->args, names[i]))
      return bk_fail(s->ctx, BK_ERR_ARGUMENT, "plan: --%s has a meaning with --gpus alone",
                     names[i]);
  }
  return BK_OK;
}

static bk_status run(cli_session *s) {
  const char *name = cli_value(&s->args, "model");
  plan p = {.dtype = BK_F32};
  if (cli_given(&s->args, "gpus")) return plan_search_run(s);
  BK_TRY(refuse_cluster_options(s));
  if (cli_given(&s->args, "schedule")) return cli_plan_schedule(s);
  BK_TRY(cli_plan_without_schedule(s));
  if (!name) return bk_fail(s->ctx, BK_ERR_ARGUMENT, "plan: --model PRESET|FILE|DIR is needed");
  BK_TRY(cli_open_device(s));
  BK_TRY(cli_dtype(s, &p.dtype));
  BK_TRY(cli_model_config(s, name, &p.config, &p.recipe));
  BK_TRY(cli_recipe_option(s, "batch-size", "batch_size", &p.recipe));
  BK_TRY(cli_recipe_option(s, "seq-len", "seq_len", &p.recipe));
  BK_TRY(bk_train_config_validate(s->ctx, &p.recipe));
  if (p.recipe.seq_len > p.config.max_position_embeddings)
    return bk_fail(s->ctx, BK_ERR_CONFIG, "seq_len %lld is above max_position_embeddings %lld",
                   (long long)p.recipe.seq_len, (long long)p.config.max_position_embeddings);
  p.micro_batch = p.recipe.micro_batch_size ? p.recipe.micro_batch_size : p.recipe.batch_size;
  p.recompute_block = bk_recompute_block(&p.config, p.recipe.hc_recompute);
  name_recompute(&p);
  bk_model_count(&p.config, p.recipe.seq_len, &p.counts);
  BK_TRY(measure(s, &p));
  return s->json ? print_json(s, &p) : print_text(s, &p);
}

static const cli_option options[] = {
    {"model", CLI_ONE, "PRESET|FILE|DIR",
     "tiny, demo, mhc-3b, mhc-9b, mhc-27b, a config.json or a checkpoint's"},
    {"batch-size", CLI_ONE, "N", "sequences per step (default: the recipe's)"},
    {"seq-len", CLI_ONE, "N", "tokens per sequence (default: the recipe's)"},
    {"data", CLI_MANY, "FILE", "shows the size of these files, which are no memory"},
    {"val-data", CLI_MANY, "FILE", "the same of validation data"},
    {"schedule", CLI_ONE, "NAME|FILE",
     "without a model: sequential, 1f1b, zb1p, dualpipe, dualpipev, or a JSON file"},
    {"pp", CLI_ONE, "P", "of --schedule: ranks of the pipeline (a file has its own)"},
    {"micro", CLI_ONE, "M", "of --schedule: micro-batches of a step (a file has its own)"},
    {"costs", CLI_ONE, "LIST", "of --schedule: of passes (default: F=1,B=2,W=1,FB=3)"},
    {"measured", CLI_ONE, "FILE", "of --schedule: costs that bench step --json has measured"},
    {"gpus", CLI_ONE, "N",
     "searches how N GPUs train the model fastest; --schedule, --pp and --ep narrow"},
    {"ep", CLI_ONE, "N", "of --gpus: N ranks share the experts; 1: what can be run by now"},
    {"memory", CLI_ONE, "BYTES", "of --gpus: of each: 141G"},
    {"bandwidth", CLI_ONE, "A,B",
     "of --gpus: bytes a second and direction, inside a node and between: 450G,50G"},
    {"gpus-per-node", CLI_ONE, "N", "of --gpus: default 8"},
    {"flops", CLI_ONE, "RATE", "of --gpus: of matrix products, a second (default: 400T)"},
    {"device-bandwidth", CLI_ONE, "RATE", "of --gpus: of their memory (default: 3.3T)"},
    {"latency", CLI_ONE, "SECONDS", "of --gpus: of a message (default: 1e-5)"},
    {"svg", CLI_ONE, "FILE", "of --schedule and --gpus: draws the step, of the best plan"},
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_plan = {"plan",
                              "--model PRESET|FILE|DIR | --schedule NAME|FILE [OPTIONS]",
                              "Shows parameters, memory by class, flops and bytes per token of a "
                              "training run, or a pipeline's schedule; allocates nothing.",
                              options,
                              0,
                              0,
                              run};
