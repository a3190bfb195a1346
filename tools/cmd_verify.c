/* birkhoff verify: one training step on two devices from the same weights and tokens, compared
 * tensor by tensor (birkhoff/verify.h). */
#include <birkhoff/verify.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"

typedef struct verify_command {
  cli_session *s;
  const char *against;
  bk_device *ref_device;
  bk_model *model, *reference;
  bk_verify_options options;
  bk_verify_row *rows; /* with names of their own */
  size_t n_rows, capacity;
} verify_command;

/* ---- the models ---- */

static bk_status load(cli_session *s, bk_device *device, bk_model **model) {
  const char *name = s->args.words[0];
  bk_model_options options = {.trainable = true};
  bk_device *own = s->device;
  bk_status status;
  s->device = device; /* cli_load_model and cli_dtype look there */
  if (bk_path_is_dir(s->ctx, name)) {
    status = cli_load_model(s, name, &options, model, NULL);
  } else {
    bk_model_config config;
    bk_train_config recipe;
    bk_dtype dtype = BK_F32;
    bk_model *made = NULL;
    status = cli_dtype(s, &dtype);
    if (status == BK_OK) status = cli_model_config(s, name, &config, &recipe);
    if (status == BK_OK) status = bk_model_create(device, &config, dtype, &options, &made);
    if (status == BK_OK) status = bk_model_init(made, recipe.seed);
    if (status == BK_OK) *model = made;
    else bk_model_destroy(made);
  }
  s->device = own;
  return status;
}

static bk_status prepare(verify_command *v) {
  BK_TRY(cli_open_device(v->s));
  BK_TRY(cli_open_named(v->s, v->against, &v->ref_device));
  BK_TRY(load(v->s, v->s->device, &v->model));
  return load(v->s, v->ref_device, &v->reference);
}

/* ---- results ---- */

static bk_status keep_row(void *user, const bk_verify_row *row) {
  verify_command *v = user;
  bk_context *ctx = v->s->ctx;
  BK_TRY(bk_grow(ctx, (void **)&v->rows, &v->capacity, v->n_rows + 1, sizeof *v->rows));
  char *name = bk_strdup(ctx, row->tensor);
  if (!name) return BK_ERR_MEMORY;
  v->rows[v->n_rows] = *row;
  v->rows[v->n_rows++].tensor = name;
  return BK_OK;
}

static bk_status print_json(verify_command *v) {
  json_t *list = json_array();
  for (size_t i = 0; i < v->n_rows; i++) {
    const bk_verify_row *row = &v->rows[i];
    json_array_append_new(
        list, json_pack("{s:s,s:o,s:o,s:o,s:b,s:f}", "tensor", row->tensor, "nmse",
                        cli_number(row->nmse), "max_abs", cli_number(row->max_abs), "bound",
                        cli_number(row->bound), "pass", row->pass, "judged", row->judged));
  }
  return cli_print_json(v->s, list);
}

static void print_setting(const verify_command *v, const bk_verify_setting *set) {
  printf("%s on %s against %s, %s, %lld sequences of %lld tokens\n", v->s->args.words[0],
         set->device, v->against, bk_dtype_name(set->dtype), (long long)set->batch,
         (long long)set->seq_len);
}

static bk_status print_text(verify_command *v, const bk_verify_result *result) {
  int width = 6;
  for (size_t i = 0; i < v->n_rows; i++)
    width = (int)strlen(v->rows[i].tensor) > width ? (int)strlen(v->rows[i].tensor) : width;
  print_setting(v, &result->setting);
  printf("%-*s %10s %10s %10s %7s\n", width, "tensor", "nmse", "max abs", "bound", "judged");
  for (size_t i = 0; i < v->n_rows; i++) {
    const bk_verify_row *row = &v->rows[i];
    printf("%-*s %10.2e %10.2e %10.2e %6.1f%% %s\n", width, row->tensor, row->nmse, row->max_abs,
           row->bound, 100 * row->judged, row->pass ? "ok" : "FAIL");
  }
  printf("%lld of %lld within their bounds\n", (long long)(result->rows - result->failed),
         (long long)result->rows);
  return cli_flush_stdout(v->s);
}

static bk_status compare(verify_command *v) {
  bk_verify_result result;
  BK_TRY(bk_verify(v->model, v->reference, &v->options, keep_row, v, &result));
  BK_TRY(v->s->json ? print_json(v) : print_text(v, &result));
  if (!result.failed) return BK_OK;
  return bk_fail(v->s->ctx, BK_ERR_BOUNDS, "verify: %lld of %lld results are past their bounds",
                 (long long)result.failed, (long long)result.rows);
}

static void finish(verify_command *v) {
  for (size_t i = 0; i < v->n_rows; i++) bk_free(v->s->ctx, (void *)v->rows[i].tensor);
  bk_free(v->s->ctx, v->rows);
  bk_model_destroy(v->model);
  bk_model_destroy(v->reference);
  bk_device_close(v->ref_device);
}

static bk_status run(cli_session *s) {
  const char *against = cli_value(&s->args, "against");
  verify_command v = {.s = s, .against = against ? against : "ref"};
  bk_verify_options_default(&v.options);
  if (!cli_given(&s->args, "device"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "verify: --device NAME is needed");
  BK_TRY(cli_int(s, "batch-size", 1, 1 << 20, &v.options.batch));
  BK_TRY(cli_int(s, "seq-len", 2, 1 << 24, &v.options.seq_len));
  BK_TRY(cli_int(s, "seed", 0, INT64_MAX, &v.options.seed));
  BK_TRY(cli_double(s, "bounds", 0, 1e12, &v.options.bounds));
  bk_status status = prepare(&v);
  if (status == BK_OK) status = compare(&v);
  finish(&v);
  return status;
}

static const cli_option options[] = {
    {"against", CLI_ONE, "NAME", "the device to trust (default: ref)"},
    {"batch-size", CLI_ONE, "N", "sequences (default: 2)"},
    {"seq-len", CLI_ONE, "N", "tokens per sequence (default: 48)"},
    {"seed", CLI_ONE, "N", "of the tokens (default: 1)"},
    {"bounds", CLI_ONE, "X", "multiply the bounds by X (default: 1)"},
    CLI_ALLOW_NONFINITE,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_verify = {
    "verify",
    "CKPT|PRESET --device NAME [--against NAME] [OPTIONS]",
    "Compares a training step on a device with the same step on another.",
    options,
    1,
    1,
    run};
