/* birkhoff verify: one training step on two devices from the same weights and tokens, compared
 * tensor by tensor, or with --bisect call by call (birkhoff/verify.h). */
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
  const char *case_file;
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

/* ---- --bisect ---- */

/* "dx[0,3]" */
static const char *element_text(const bk_bisect_result *r, char *text, size_t size) {
  size_t used = (size_t)snprintf(text, size, "%s", r->operand);
  for (int d = 0; d < r->ndim && used < size; d++)
    used += (size_t)snprintf(text + used, size - used, "%s%lld", d ? "," : "[",
                             (long long)r->element[d]);
  if (r->ndim && used < size) snprintf(text + used, size - used, "]");
  return text;
}

static bk_status print_call_json(verify_command *v, const bk_bisect_result *r) {
  static const char *const causes[] = {"", "value", "wrote", "changed"}; /* as bk_bisect_cause */
  json_t *call = json_pack("{s:I,s:b}", "calls", (json_int_t)r->calls, "found", r->cause != 0);
  if (!call || !r->cause) return cli_print_json(v->s, call);
  json_t *element = json_array();
  for (int d = 0; d < r->ndim; d++) json_array_append_new(element, json_integer(r->element[d]));
  json_t *more = json_pack(
      "{s:s,s:i,s:s,s:s,s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:o}", "cause", causes[r->cause], "micro_batch",
      r->micro_batch, "stage", r->stage, "op", r->op, "kernel", r->kernel, "operand", r->operand,
      "element", element, "got", cli_number(r->got), "expected", cli_number(r->expected), "nmse",
      cli_number(r->nmse), "max_abs", cli_number(r->max_abs), "bound", cli_number(r->bound));
  int failed = !more || json_object_update(call, more) != 0;
  if (r->wrote_case) failed |= json_object_set_new(call, "case", json_string(v->case_file)) != 0;
  json_decref(more);
  if (!failed) return cli_print_json(v->s, call);
  json_decref(call);
  return cli_print_json(v->s, NULL);
}

static void print_found(const verify_command *v, const bk_bisect_result *r) {
  char element[128], pass[32] = "";
  if (r->micro_batch) snprintf(pass, sizeof pass, " (micro-batch %d)", r->micro_batch);
  printf("call %lld differs: %s, kernel %s\n", (long long)r->calls, r->op, r->kernel);
  printf("in       %s%s\n", r->stage, pass);
  printf("%-8s %s is %.9g, should be %s%.9g\n", r->cause == BK_BISECT_VALUE ? "output" : "input",
         element_text(r, element, sizeof element), r->got, r->bound > 0 ? "" : "exactly ",
         r->expected);
  if (r->cause == BK_BISECT_CHANGED)
    printf("         as the call that made it left it: something has written there since\n");
  else if (r->cause == BK_BISECT_WROTE)
    printf("         as it was before the call, which may not write there\n");
  else if (r->bound > 0)
    printf("nmse     %.2e, bound %.0e; off by at most %.2e\n", r->nmse, r->bound, r->max_abs);
  if (r->wrote_case)
    printf("case     %s (test_ops --case %s --device %s)\n", v->case_file, v->case_file,
           cli_value(&v->s->args, "device"));
}

static bk_status print_call_text(verify_command *v, const bk_bisect_result *r) {
  print_setting(v, &r->setting);
  if (r->cause) print_found(v, r);
  else printf("no call differs past its bound: %lld calls compared\n", (long long)r->calls);
  return cli_flush_stdout(v->s);
}

static bk_status bisect(verify_command *v) {
  bk_bisect_options options = {v->options, v->case_file};
  bk_bisect_result result;
  BK_TRY(bk_bisect(v->model, v->reference, &options, &result));
  BK_TRY(v->s->json ? print_call_json(v, &result) : print_call_text(v, &result));
  if (!result.cause) return BK_OK;
  return bk_fail(v->s->ctx, BK_ERR_BOUNDS, "verify: %s differs in %s", result.op, result.stage);
}

static void finish(verify_command *v) {
  for (size_t i = 0; i < v->n_rows; i++) bk_free(v->s->ctx, (void *)v->rows[i].tensor);
  bk_free(v->s->ctx, v->rows);
  bk_model_destroy(v->model);
  bk_model_destroy(v->reference);
  bk_device_close(v->ref_device);
}

/* A name with another ending would be a part of the name of a case to test_ops. */
static bk_status check_case_file(cli_session *s, const char *file) {
  size_t length = file ? strlen(file) : 0, ending = strlen(".safetensors");
  if (!file) return BK_OK;
  if (!cli_given(&s->args, "bisect"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "verify: --case FILE is for --bisect");
  if (length > ending && strcmp(file + length - ending, ".safetensors") == 0) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--case %s: the name has to end in .safetensors", file);
}

static bk_status run(cli_session *s) {
  const char *against = cli_value(&s->args, "against");
  const char *file = cli_value(&s->args, "case");
  verify_command v = {.s = s,
                      .against = against ? against : "ref",
                      .case_file = file ? file : "bisect-case.safetensors"};
  bool calls = cli_given(&s->args, "bisect");
  bk_verify_options_default(&v.options);
  if (!cli_given(&s->args, "device"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "verify: --device NAME is needed");
  BK_TRY(check_case_file(s, file));
  BK_TRY(cli_int(s, "batch-size", 1, 1 << 20, &v.options.batch));
  BK_TRY(cli_int(s, "seq-len", 2, 1 << 24, &v.options.seq_len));
  BK_TRY(cli_int(s, "seed", 0, INT64_MAX, &v.options.seed));
  BK_TRY(cli_double(s, "bounds", 0, 1e12, &v.options.bounds));
  bk_status status = prepare(&v);
  if (status == BK_OK) status = calls ? bisect(&v) : compare(&v);
  finish(&v);
  return status;
}

static const cli_option options[] = {
    {"against", CLI_ONE, "NAME", "the device to trust (default: ref)"},
    {"batch-size", CLI_ONE, "N", "sequences (default: 2)"},
    {"seq-len", CLI_ONE, "N", "tokens per sequence (default: 48)"},
    {"seed", CLI_ONE, "N", "of the tokens (default: 1)"},
    {"bounds", CLI_ONE, "X", "multiply the bounds by X (default: 1)"},
    {"bisect", CLI_FLAG, NULL, "find the first call of an op that is wrong instead"},
    {"case", CLI_ONE, "FILE", "that call, for test_ops (default: bisect-case.safetensors)"},
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
