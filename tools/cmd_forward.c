/* birkhoff forward: one pass over given tokens, every result in a safetensors file
 * (doc/files.md): logits [B,T,V], loss [1], with --backward grad.NAME, with --maps maps.pre and
 * maps.post [S,B,T,n] and maps.res [S,B,T,n,n] (destination, source). The file is written beside
 * its final name and renamed. No state changes. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"

#define CHUNK ((int64_t)1 << 18) /* elements moved at a time */

typedef struct forward_run {
  cli_session *s;
  bk_model *model;
  bk_forward *forward;
  const bk_model_config *config;
  int64_t sublayers;
  bk_dtype dtype; /* of what is written */
  bool backward, maps;
  bk_tokens in;
  double loss;              /* mean over kept targets, nats */
  double *logits;           /* [B,T,V], read right after the forward pass */
  double *pre, *post, *res; /* maps, layouts as in the file */
  int64_t n_tensors;
} forward_run;

/* ---- the pass ---- */

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
  int64_t S = r->sublayers, N = r->in.batch * r->in.seq_len, n = r->config->hc_mult;
  r->pre = bk_alloc_array(ctx, (size_t)(S * N * n), sizeof *r->pre);
  r->post = bk_alloc_array(ctx, (size_t)(S * N * n), sizeof *r->post);
  r->res = bk_alloc_array(ctx, (size_t)(S * N * n * n), sizeof *r->res);
  if (!r->pre || !r->post || !r->res) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < S; i++)
    BK_TRY(bk_forward_maps(r->forward, (int)i, r->pre + i * N * n, r->post + i * N * n,
                           r->res + i * N * n * n));
  transpose_maps(r->res, S * N, n);
  return BK_OK;
}

static bk_status pass(forward_run *r) {
  int64_t count = r->in.batch * r->in.seq_len * r->config->vocab_size;
  r->logits = bk_alloc_array(r->s->ctx, (size_t)count, sizeof *r->logits);
  if (!r->logits) return BK_ERR_MEMORY;
  BK_TRY(bk_forward_run(r->forward, r->in.ids, r->in.targets));
  BK_TRY(bk_forward_logits(r->forward, r->logits));
  if (r->maps) BK_TRY(read_maps(r));
  if (r->backward) BK_TRY(bk_forward_backward(r->forward));
  BK_TRY(bk_forward_finish(r->forward, &r->loss));
  if (isfinite(r->loss)) return BK_OK;
  return bk_fail(r->s->ctx, BK_ERR_NOT_FINITE, "forward: the loss is not finite");
}

/* ---- output ---- */

static bk_status write_values(forward_run *r, bk_st_writer *out, const double *values,
                              int64_t count) {
  if (r->dtype == BK_F64) return bk_st_write(out, values, (size_t)count * sizeof *values);
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

static bk_status write_gradient(forward_run *r, bk_st_writer *out, int i, int64_t count) {
  double *values = bk_alloc_array(r->s->ctx, (size_t)count, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  bk_status status = bk_model_param_read(r->model, i, BK_PARAM_GRAD, values);
  if (status == BK_OK) status = write_values(r, out, values, count);
  bk_free(r->s->ctx, values);
  return status;
}

/* The next parameter from *i on that has a gradient; false: there is none. */
static bool next_gradient(const forward_run *r, int *i, bk_param_info *info) {
  for (; r->backward && *i < bk_model_param_count(r->model); ++*i)
    if (bk_model_param_info(r->model, *i, info) == BK_OK && info->trainable) return true;
  return false;
}

static bk_status declare(forward_run *r, bk_st_writer *out) {
  int64_t B = r->in.batch, T = r->in.seq_len, S = r->sublayers, n = r->config->hc_mult;
  bk_param_info info;
  BK_TRY(bk_st_add_metadata(out, "format", "pt"));
  BK_TRY(bk_st_add(out, "logits", r->dtype, 3, (int64_t[]){B, T, r->config->vocab_size}));
  BK_TRY(bk_st_add(out, "loss", r->dtype, 1, (int64_t[]){1}));
  if (r->maps) {
    BK_TRY(bk_st_add(out, "maps.pre", r->dtype, 4, (int64_t[]){S, B, T, n}));
    BK_TRY(bk_st_add(out, "maps.post", r->dtype, 4, (int64_t[]){S, B, T, n}));
    BK_TRY(bk_st_add(out, "maps.res", r->dtype, 5, (int64_t[]){S, B, T, n, n}));
  }
  r->n_tensors = r->maps ? 5 : 2;
  for (int i = 0; next_gradient(r, &i, &info); i++) {
    char *name = bk_format(r->s->ctx, "grad.%s", info.name);
    if (!name) return BK_ERR_MEMORY;
    bk_status status = bk_st_add(out, name, r->dtype, info.ndim, info.shape);
    bk_free(r->s->ctx, name);
    BK_TRY(status);
    r->n_tensors++;
  }
  return BK_OK;
}

static bk_status write_tensors(forward_run *r, bk_st_writer *out) {
  int64_t N = r->in.batch * r->in.seq_len, S = r->sublayers, n = r->config->hc_mult;
  bk_param_info info;
  BK_TRY(declare(r, out));
  BK_TRY(write_values(r, out, r->logits, N * r->config->vocab_size));
  BK_TRY(write_values(r, out, &r->loss, 1));
  if (r->maps) {
    BK_TRY(write_values(r, out, r->pre, S * N * n));
    BK_TRY(write_values(r, out, r->post, S * N * n));
    BK_TRY(write_values(r, out, r->res, S * N * n * n));
  }
  for (int i = 0; next_gradient(r, &i, &info); i++) BK_TRY(write_gradient(r, out, i, info.count));
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
  const bk_fs *fs = bk_context_fs(ctx);
  int rc = status == BK_OK ? fs->rename(fs->user, partial, path) : 0;
  if (rc < 0) {
    status = bk_fail(ctx, BK_ERR_IO, "%s: cannot rename to %s: %s", partial, path, strerror(-rc));
    fs->remove(fs->user, partial);
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

/* Nothing is recomputed unless --set hc_recompute or recompute asks for it: the gradients have the
 * same bits either way. */
static bk_status recompute_settings(forward_run *r, bk_forward_options *options) {
  bk_train_config recipe;
  bk_model_config ignored = *r->config;
  bk_train_config_default(&recipe);
  recipe.hc_recompute = 0;
  BK_TRY(cli_apply_sets(r->s, &ignored, &recipe));
  options->hc_recompute = r->backward ? recipe.hc_recompute : 0;
  options->recompute = r->backward ? recipe.recompute : BK_RECOMPUTE_F_NONE;
  return BK_OK;
}

static bk_status forward(forward_run *r, const char *tokens, const char *out) {
  bk_forward_options options = {.backward = r->backward};
  const bk_model_config *c = r->config = bk_model_config_of(r->model);
  r->dtype = bk_model_dtype(r->model) == BK_F64 ? BK_F64 : BK_F32;
  r->sublayers = 2 * c->num_hidden_layers;
  if (r->maps && c->residual == BK_HC_PLAIN)
    return bk_fail(r->s->ctx, BK_ERR_ARGUMENT,
                   "forward: --maps: a model with residual plain has no maps");
  BK_TRY(recompute_settings(r, &options));
  BK_TRY(bk_tokens_read(r->s->ctx, tokens, c->vocab_size, c->max_position_embeddings, &r->in));
  options.batch = r->in.batch;
  options.seq_len = r->in.seq_len;
  BK_TRY(bk_forward_create(r->model, &options, &r->forward));
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
  bk_forward_destroy(r.forward);
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
