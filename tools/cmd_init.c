/* birkhoff init: a checkpoint of initial values, or a plain checkpoint turned into one with
 * another residual connection. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"

/* Only the connection may change; everything else belongs to the weights. */
static bk_status check_convertible(cli_session *s, const bk_model_config *was,
                                   const bk_model_config *now) {
  char a[64], b[64];
  if (was->residual != BK_HC_PLAIN)
    return bk_fail(s->ctx, BK_ERR_CONFIG, "init --from: the checkpoint is not a plain one");
  for (const bk_option *o = bk_model_keys; o->name; o++) {
    bk_option_value_text(o, was, a, sizeof a);
    bk_option_value_text(o, now, b, sizeof b);
    if (strcmp(a, b) != 0 && strcmp(o->name, "residual") != 0 && strncmp(o->name, "hc_", 3) != 0)
      return bk_fail(s->ctx, BK_ERR_CONFIG,
                     "init --from: %s cannot change (%s to %s), the weights depend on it", o->name,
                     a, b);
  }
  if (now->residual == BK_HC_PLAIN)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "init --from: --set residual=mhc, or another kind but plain, is needed");
  return BK_OK;
}

static bk_status convert(cli_session *s, const char *from, bk_dtype *dtype, bk_model **model) {
  char *path = NULL;
  bk_model_config was = {0}, now;
  bk_model_options model_options = {.allow_nonfinite = cli_given(&s->args, "allow-nonfinite")};
  bk_train_config ignored;
  bk_train_config_default(&ignored);
  BK_TRY(bk_checkpoint_resolve(s->ctx, from, &path));
  char *file = bk_path_join(s->ctx, path, "config.json");
  bk_status status = file ? bk_model_config_read(s->ctx, file, &was) : BK_ERR_MEMORY;
  bk_free(s->ctx, file);
  now = was;
  /* The sum of n equal streams is n x: the final norm undoes it only up to its eps. The learned
   * head is exact. */
  if (!cli_sets_key(s, "hc_head")) now.hc_head = BK_HEAD_LEARNED;
  if (status == BK_OK) status = cli_apply_sets(s, &now, &ignored);
  if (status == BK_OK) status = check_convertible(s, &was, &now);
  if (status == BK_OK) status = bk_model_config_validate(s->ctx, &now);
  if (status == BK_OK) status = bk_checkpoint_dtype(s->ctx, path, dtype);
  if (status == BK_OK) status = cli_dtype(s, dtype);
  if (status == BK_OK) status = bk_model_create(s->device, &now, *dtype, &model_options, model);
  if (status == BK_OK) status = bk_checkpoint_convert_plain(*model, path);
  bk_free(s->ctx, path);
  return status;
}

static bk_status fresh(cli_session *s, const char *name, bk_dtype *dtype, bk_model **model) {
  bk_model_config config;
  bk_train_config recipe;
  BK_TRY(cli_model_config(s, name, &config, &recipe));
  BK_TRY(cli_recipe_option(s, "seed", "seed", &recipe));
  BK_TRY(cli_dtype(s, dtype));
  BK_TRY(bk_model_create(s->device, &config, *dtype, &(bk_model_options){0}, model));
  return bk_model_init(*model, recipe.seed);
}

static bk_status run(cli_session *s) {
  const char *name = cli_value(&s->args, "model"), *from = cli_value(&s->args, "from"),
             *out = cli_value(&s->args, "out");
  if (!name == !from)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "init: exactly one of --model and --from is needed");
  if (!out) return bk_fail(s->ctx, BK_ERR_ARGUMENT, "init: --out CKPT is needed");
  if (bk_path_exists(s->ctx, out))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "%s is there already; choose another --out", out);
  BK_TRY(cli_open_device(s));
  bk_dtype dtype = BK_F32;
  bk_model *model = NULL;
  bk_status status = from ? convert(s, from, &dtype, &model) : fresh(s, name, &dtype, &model);
  if (status == BK_OK) status = bk_checkpoint_save(model, NULL, out);
  bk_model_destroy(model);
  BK_TRY(status);
  s->on_disk = out;
  if (s->json) return cli_print_json(s, json_pack("{s:s}", "checkpoint", out));
  printf("%s\n", out);
  return cli_flush_stdout(s);
}

static const cli_option options[] = {
    {"model", CLI_ONE, "PRESET|FILE|DIR",
     "what to make: a preset, a config.json or a checkpoint's"},
    {"from", CLI_ONE, "CKPT",
     "a plain checkpoint; with --set residual=mhc the result has the same logits"},
    {"out", CLI_ONE, "CKPT", "the new folder"},
    {"seed", CLI_ONE, "N", "of the initial weights"},
    CLI_ALLOW_NONFINITE,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_init = {"init",
                              "--model PRESET|FILE|DIR | --from CKPT --out CKPT [OPTIONS]",
                              "Writes a checkpoint of initial values.",
                              options,
                              0,
                              0,
                              run};
