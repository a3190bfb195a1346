/* birkhoff eval: loss of a checkpoint on data. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>

#include "tools/cli.h"

static bk_status print_result(cli_session *s, const cli_reading *reading, const bk_dataset *data,
                              const bk_eval_result *r) {
  double loss = r->loss_sum / (double)r->tokens;
  int64_t bytes = bk_dataset_bytes(data);
  double bits = bytes > 0 ? r->loss_sum / (log(2) * (double)bytes) : NAN;
  if (s->json)
    return cli_print_json(
        s, json_pack("{s:o,s:o,s:o,s:I,s:I}", "loss", cli_number(loss), "perplexity",
                     cli_number(exp(loss)), "bits_per_byte", cli_number(bits), "tokens",
                     (json_int_t)r->tokens, "seq_len", (json_int_t)reading->seq_len));
  printf("loss           %.6f nats/token\nperplexity     %.4f\n", loss, exp(loss));
  if (bytes > 0) printf("bits_per_byte  %.6f\n", bits);
  printf("tokens         %lld\nwindow         %lld tokens, %s\n", (long long)r->tokens,
         (long long)reading->seq_len, reading->why);
  return cli_flush_stdout(s);
}

static bk_status evaluate(cli_session *s, bk_model *model, const cli_reading *reading) {
  bk_dataset *data = NULL;
  bk_evaluator *evaluator = NULL;
  bk_profile *profile = NULL;
  bk_eval_result result;
  bk_status status = cli_open_data(s, "data", &reading->data, &data);
  int64_t windows = status == BK_OK ? bk_dataset_eval_windows(data, reading->seq_len) : 0,
          batch = windows < 8 ? windows : 8;
  if (status == BK_OK && windows < 1)
    status = bk_fail(s->ctx, BK_ERR_DATA, "eval: the data has %lld tokens, at least 2 are needed",
                     (long long)bk_dataset_tokens(data));
  if (status == BK_OK) status = bk_evaluator_create(model, batch, reading->seq_len, &evaluator);
  if (status == BK_OK) status = cli_profile_begin(s, model, &profile);
  if (status == BK_OK)
    status = cli_profile_end(s, profile, bk_evaluator_run(evaluator, data, 0, &result));
  if (status == BK_OK && !isfinite(result.loss_sum))
    status = bk_fail(s->ctx, BK_ERR_NOT_FINITE, "eval: the loss is not finite");
  if (status == BK_OK) status = print_result(s, reading, data, &result);
  bk_evaluator_destroy(evaluator);
  bk_dataset_close(data);
  return status;
}

static bk_status run(cli_session *s) {
  bk_split split = BK_SPLIT_ALL;
  cli_reading reading = {0};
  BK_TRY(cli_split(s, &split));
  BK_TRY(cli_int(s, "seq-len", 1, 1 << 24, &reading.seq_len));
  if (!cli_given(&s->args, "data"))
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "eval: --data FILE... is needed");
  BK_TRY(cli_open_device(s));
  bk_model *model = NULL;
  char *folder = NULL;
  BK_TRY(cli_load_model(s, s->args.words[0], &(bk_model_options){0}, &model, &folder));
  bk_status status = cli_reading_of(s, folder, bk_model_config_of(model), &reading);
  reading.data.split = split;
  if (status == BK_OK) status = evaluate(s, model, &reading);
  bk_free(s->ctx, folder);
  bk_model_destroy(model);
  return status;
}

static const cli_option options[] = {
    {"data", CLI_MANY, "FILE", "UTF-8 text or .bin token streams: files, patterns, @LIST"},
    {"seq-len", CLI_ONE, "N",
     "inputs per window (default: as in training, else max_position_embeddings, at most 1024)"},
    {"split", CLI_ONE, "train|val|all", "part of each file (default: all)"},
    {"profile", CLI_ONE, "FILE",
     "time of every op and phase of a pass: tables at the end, a Chrome trace in FILE"},
    CLI_ALLOW_NONFINITE,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_eval = {"eval",
                              "CKPT --data FILE... [OPTIONS]",
                              "Measures loss, perplexity and bits per byte.",
                              options,
                              1,
                              1,
                              run};
