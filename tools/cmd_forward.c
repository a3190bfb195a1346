/* birkhoff forward: one pass over given tokens, every result in a safetensors file
 * (doc/files.md): logits [B,T,V], loss [1], with --backward grad.NAME, with --maps maps.pre and
 * maps.post [S,B,T,n] and maps.res [S,B,T,n,n] (destination, source). The file is written beside
 * its final name and renamed. No state changes. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/safetensors.h"
#include "io/tokens.h"
#include "models/runner.h"
#include "tools/cli.h"

#define CHUNK ((int64_t)1 << 18) /* elements moved at a time */

typedef struct forward_run {
  cli_session *s;
  bk_model *model;
  bk_runner *runner;
  bool backward, maps;
  bk_tokens in;
  double loss;              /* mean over kept targets, nats */
  double *logits;           /* [B,T,V], read right after the forward pass */
  double *pre, *post, *res; /* maps, layouts as in the file */
  int64_t n_tensors;
} forward_run;

/* ---- the pass ---- */

/* One map of one sublayer, [N, count] doubles at dst; absent: the identity. */
static bk_status read_map(forward_run *r, const bk_tensor *t, int64_t n, bool square, double *dst) {
  int64_t tokens = r->in.batch * r->in.seq_len;
  if (bk_tensor_present(t)) return bk_tensor_read_f64(r->model->stream, t, dst);
  for (int64_t i = 0; square && i < tokens; i++)
    for (int64_t m = 0; m < n; m++) dst[(i * n + m) * n + m] = 1;
  return BK_OK;
}

/* comb[source][destination] -> res[destination][source], in place. */
static void transpose_maps(double *maps, int64_t count, int64_t n) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t m = 0; m < n; m++)
      for (int64_t k = 0; k < m; k++) {
        double *a = &maps[(i * n + m) * n + k], *b = &maps[(i * n + k) * n + m], t = *a;
        *a = *b;
        *b = t;
      }
}

static bk_status read_maps(forward_run *r) {
  bk_context *ctx = r->s->ctx;
  int64_t S = bk_runner_n_sublayers(r->runner), N = r->in.batch * r->in.seq_len,
          n = r->model->config.hc_mult;
  r->pre = bk_alloc_array(ctx, (size_t)(S * N * n), sizeof *r->pre);
  r->post = bk_alloc_array(ctx, (size_t)(S * N * n), sizeof *r->post);
  r->res = bk_alloc_array(ctx, (size_t)(S * N * n * n), sizeof *r->res);
  if (!r->pre || !r->post || !r->res) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < S; i++) {
    bk_tensor pre, post, comb;
    BK_TRY(bk_runner_maps(r->runner, 0, (int)i, &pre, &post, &comb));
    BK_TRY(read_map(r, &pre, n, false, r->pre + i * N * n));
    BK_TRY(read_map(r, &post, n, false, r->post + i * N * n));
    BK_TRY(read_map(r, &comb, n, true, r->res + i * N * n * n));
  }
  transpose_maps(r->res, S * N, n);
  return BK_OK;
}

static bk_status pass(forward_run *r) {
  bk_step_values values = {.bc1 = 1, .bc2 = 1, .loss_scale = 1 / (double)r->in.kept};
  bk_step_results results;
  bk_tensor logits = bk_runner_logits(r->runner);
  r->logits = bk_alloc_array(r->s->ctx, (size_t)bk_tensor_count(&logits), sizeof *r->logits);
  if (!r->logits) return BK_ERR_MEMORY;
  BK_TRY(bk_step_begin(r->model, &values));
  BK_TRY(bk_runner_forward(r->runner, 0, r->in.ids, r->in.targets));
  BK_TRY(bk_tensor_read_f64(r->model->stream, &logits, r->logits));
  if (r->maps) BK_TRY(read_maps(r));
  if (r->backward) BK_TRY(bk_runner_backward(r->runner, 0));
  BK_TRY(bk_step_end(r->model, &results));
  r->loss = results.loss_sum / (double)r->in.kept;
  if (isfinite(r->loss)) return BK_OK;
  return bk_fail(r->s->ctx, BK_ERR_NOT_FINITE, "forward: the loss is not finite");
}

/* ---- output ---- */

static bk_status write_values(forward_run *r, bk_st_writer *out, const double *values,
                              int64_t count) {
  if (r->model->ct == BK_F64) return bk_st_write(out, values, (size_t)count * sizeof *values);
  float *piece = bk_alloc_array(r->s->ctx, CHUNK, sizeof *piece);
  bk_status status = piece ? BK_OK : BK_ERR_MEMORY;
  for (int64_t at = 0; at < count && status == BK_OK; at += CHUNK) {
    int64_t n = count - at < CHUNK ? count - at : CHUNK;
    for (int64_t i = 0; i < n; i++) piece[i] = (float)values[at + i];
    status = bk_st_write(out, piece, (size_t)n * sizeof *piece);
  }
  bk_free(r->s->ctx, piece);
  return status;
}

static bk_status write_gradient(forward_run *r, bk_st_writer *out, const bk_param *p) {
  bk_tensor grad = bk_param_grad(r->model, p);
  int64_t count = bk_tensor_count(&grad);
  double *values = bk_alloc_array(r->s->ctx, (size_t)count, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  bk_status status = bk_tensor_read_f64(r->model->stream, &grad, values);
  if (status == BK_OK) status = write_values(r, out, values, count);
  bk_free(r->s->ctx, values);
  return status;
}

static bool has_gradient(const forward_run *r, const bk_param *p) {
  bk_tensor grad = bk_param_grad(r->model, p);
  return r->backward && bk_param_trainable(r->model, p) && bk_tensor_present(&grad);
}

static bk_status declare(forward_run *r, bk_st_writer *out) {
  const bk_model_config *c = &r->model->config;
  bk_dtype dtype = r->model->ct;
  int64_t B = r->in.batch, T = r->in.seq_len, S = bk_runner_n_sublayers(r->runner), n = c->hc_mult;
  BK_TRY(bk_st_add_metadata(out, "format", "pt"));
  BK_TRY(bk_st_add(out, "logits", dtype, 3, (int64_t[]){B, T, c->vocab_size}));
  BK_TRY(bk_st_add(out, "loss", dtype, 1, (int64_t[]){1}));
  if (r->maps) {
    BK_TRY(bk_st_add(out, "maps.pre", dtype, 4, (int64_t[]){S, B, T, n}));
    BK_TRY(bk_st_add(out, "maps.post", dtype, 4, (int64_t[]){S, B, T, n}));
    BK_TRY(bk_st_add(out, "maps.res", dtype, 5, (int64_t[]){S, B, T, n, n}));
  }
  r->n_tensors = r->maps ? 5 : 2;
  for (int i = 0; i < r->model->n_params; i++) {
    const bk_param *p = &r->model->params[i];
    if (!has_gradient(r, p)) continue;
    char *name = bk_format(r->s->ctx, "grad.%s", p->name);
    if (!name) return BK_ERR_MEMORY;
    bk_status status = bk_st_add(out, name, dtype, p->ndim, p->shape);
    bk_free(r->s->ctx, name);
    BK_TRY(status);
    r->n_tensors++;
  }
  return BK_OK;
}

static bk_status write_tensors(forward_run *r, bk_st_writer *out) {
  const bk_model_config *c = &r->model->config;
  int64_t N = r->in.batch * r->in.seq_len, S = bk_runner_n_sublayers(r->runner), n = c->hc_mult;
  BK_TRY(declare(r, out));
  BK_TRY(write_values(r, out, r->logits, N * c->vocab_size));
  BK_TRY(write_values(r, out, &r->loss, 1));
  if (r->maps) {
    BK_TRY(write_values(r, out, r->pre, S * N * n));
    BK_TRY(write_values(r, out, r->post, S * N * n));
    BK_TRY(write_values(r, out, r->res, S * N * n * n));
  }
  for (int i = 0; i < r->model->n_params; i++)
    if (has_gradient(r, &r->model->params[i])) BK_TRY(write_gradient(r, out, &r->model->params[i]));
  return BK_OK;
}

static bk_status write_output(forward_run *r, const char *path) {
  bk_context *ctx = r->s->ctx;
  char *partial = bk_format(ctx, "%s.tmp", path);
  if (!partial) return BK_ERR_MEMORY;
  bk_st_writer *out = NULL;
  bk_status status = bk_st_create(ctx, partial, &out);
  if (status == BK_OK) {
    status = write_tensors(r, out);
    if (status == BK_OK) status = bk_st_finish(out);
    if (status != BK_OK) bk_st_abandon(out);
  }
  int rc = status == BK_OK ? ctx->fs.rename(ctx->fs.user, partial, path) : 0;
  if (rc < 0) {
    status = bk_fail(ctx, BK_ERR_IO, "%s: cannot rename to %s: %s", partial, path, strerror(-rc));
    ctx->fs.remove(ctx->fs.user, partial);
  }
  bk_free(ctx, partial);
  return status;
}

static bk_status report(forward_run *r, const char *path) {
  if (r->s->json)
    return cli_print_json(
        r->s, json_pack("{s:o,s:I,s:I,s:s}", "loss", cli_number(r->loss), "targets",
                        (json_int_t)r->in.kept, "tensors", (json_int_t)r->n_tensors, "out", path));
  printf("loss     %.9g nats over %lld targets\nwritten  %s (%lld tensors)\n", r->loss,
         (long long)r->in.kept, path, (long long)r->n_tensors);
  return cli_flush_stdout(r->s);
}

/* ---- the command ---- */

/* Nothing is recomputed unless --set hc_recompute asks for it: the gradients have the same bits
 * either way. */
static bk_status recompute_setting(forward_run *r, int64_t *hc_recompute) {
  bk_train_config recipe;
  bk_model_config ignored = r->model->config;
  bk_train_config_default(&recipe);
  recipe.hc_recompute = 0;
  BK_TRY(cli_apply_sets(r->s, &ignored, &recipe));
  *hc_recompute = r->backward ? recipe.hc_recompute : 0;
  return BK_OK;
}

static bk_status forward(forward_run *r, const char *tokens, const char *out) {
  int64_t hc_recompute;
  const bk_model_config *c = &r->model->config;
  if (r->maps && r->model->config.residual == BK_HC_PLAIN)
    return bk_fail(r->s->ctx, BK_ERR_ARGUMENT,
                   "forward: --maps: a model with residual plain has no maps");
  BK_TRY(recompute_setting(r, &hc_recompute));
  BK_TRY(bk_tokens_read(r->s->ctx, tokens, c->vocab_size, c->max_position_embeddings, &r->in));
  bk_runner_options options = {.batch = r->in.batch,
                               .seq_len = r->in.seq_len,
                               .slots = 1,
                               .backward = r->backward,
                               .keep_logits = true,
                               .hc_recompute = hc_recompute};
  BK_TRY(bk_runner_create(r->model, &options, &r->runner));
  BK_TRY(pass(r));
  BK_TRY(write_output(r, out));
  return report(r, out);
}

static bk_status run(cli_session *s) {
  forward_run r = {
      .s = s, .backward = cli_given(&s->args, "backward"), .maps = cli_given(&s->args, "maps")};
  const char *tokens = cli_value(&s->args, "tokens"), *out = cli_value(&s->args, "out");
  if (!tokens)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "forward: --tokens IN.safetensors is needed");
  if (!out) return bk_fail(s->ctx, BK_ERR_ARGUMENT, "forward: --out OUT.safetensors is needed");
  BK_TRY(cli_open_device(s));
  bk_model_options options = {.trainable = r.backward};
  bk_status status = cli_load_model(s, s->args.words[0], &options, &r.model, NULL);
  if (status == BK_OK) status = forward(&r, tokens, out);
  bk_free(s->ctx, r.res);
  bk_free(s->ctx, r.post);
  bk_free(s->ctx, r.pre);
  bk_free(s->ctx, r.logits);
  bk_tokens_fini(s->ctx, &r.in);
  bk_runner_destroy(r.runner);
  bk_model_destroy(r.model);
  return status;
}

static const cli_option options[] = {
    {"tokens", CLI_ONE, "IN.safetensors",
     "input_ids [B,T] and, optionally, targets [B,T] (-100 = ignored), I32 or I64"},
    {"out", CLI_ONE, "OUT.safetensors", "what to write: logits, loss, grad.NAME, maps.*"},
    {"backward", CLI_FLAG, NULL, "gradients of the mean loss too"},
    {"maps", CLI_FLAG, NULL, "the residual maps of every sublayer too"},
    CLI_ALLOW_NONFINITE,
    {NULL, CLI_FLAG, NULL, NULL},
};
const cli_command cli_forward = {
    "forward",
    "CKPT --tokens IN.safetensors --out OUT.safetensors [OPTIONS]",
    "Runs a model on given tokens and writes logits, loss, gradients and maps.",
    options,
    1,
    1,
    run};
