/* A plain checkpoint into any residual kind: `init --from`. See birkhoff/model.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/checkpoint_priv.h"

static bool is_connection(const bk_param *p) { return strstr(p->name, ".hc_") != NULL; }

static bk_tensor weight_but_connections(const bk_model *model, const bk_param *p) {
  return is_connection(p) ? (bk_tensor){0} : bk_param_weight(model, p);
}

/* Values of base that make the mean of the streams follow the plain residual (checkpoint.h):
 * reads of 1/n each, writes that sum to n with more on stream (sublayer mod n), so that the
 * streams separate. */
static double base_value(const bk_model_config *c, int64_t sublayer, int64_t row) {
  int64_t n = c->hc_mult, stream = row % n;
  bool hc = c->residual == BK_HC_HC;
  if (row < n) {
    if (hc) return 1.0 / (double)n;
    double read = 1.0 / (double)n - c->hc_eps;
    return read < 1 ? log(read / (1 - read)) : 40; /* sigmoid(40) is 1 to the last bit */
  }
  if (row < 2 * n) {
    if (n == 1) return hc ? 1 : 0;
    double one = 2 / (1 + exp(-1.0)), rest = (((double)n - one) / ((double)n - 1));
    if (hc) return stream == sublayer % n ? one : rest;
    return stream == sublayer % n ? 1 : log(rest / 2 / (1 - rest / 2));
  }
  int64_t k = row - 2 * n;
  if (c->residual == BK_HC_MHC_LITE) return k == 0 ? 0 : -8;
  bool diagonal = k / n == k % n;
  return hc ? (diagonal ? 1 : 0) : (diagonal ? 0 : -8);
}

/* "model.layers.3.hc_ffn_base" -> 7; -1 for the head. */
static int64_t sublayer_of(const bk_param *p) {
  static const char prefix[] = "model.layers.";
  if (strncmp(p->name, prefix, sizeof prefix - 1) != 0) return -1;
  return 2 * strtoll(p->name + sizeof prefix - 1, NULL, 10) + (strstr(p->name, ".hc_ffn_") != NULL);
}

static bk_status fill_connection(bk_model *model, const bk_param *p) {
  bk_tensor views[2] = {bk_param_weight(model, p), bk_param_master(model, p)};
  int64_t count = bk_tensor_count(&views[0]), sublayer = sublayer_of(p);
  size_t length = strlen(p->name);
  bool fn = strcmp(p->name + length - 3, "_fn") == 0,
       base = strcmp(p->name + length - 5, "_base") == 0;
  double *values = bk_alloc_array(model->ctx, (size_t)count, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  bk_model_config head = model->config;
  head.residual = BK_HC_MHC; /* the head's gate is a sigmoid whatever the kind */
  const bk_model_config *c = sublayer < 0 ? &head : &model->config;
  for (int64_t i = 0; i < count; i++)
    values[i] = fn             ? 0
                : base         ? base_value(c, sublayer < 0 ? 0 : sublayer, i)
                : sublayer < 0 ? 1
                               : 0.01;
  bk_status status = BK_OK;
  for (int k = 0; k < 2 && status == BK_OK; k++)
    if (bk_tensor_present(&views[k]))
      status = bk_tensor_write_f64(model->stream, &views[k], values);
  bk_free(model->ctx, values);
  return status;
}

bk_status bk_checkpoint_convert_plain(bk_model *model, const char *path) {
  static const bk_column weights[] = {{"", weight_but_connections}};
  const bk_model_config *c = &model->config;
  if (c->residual != BK_HC_PLAIN && c->hc_eps * (double)c->hc_mult >= 1)
    return bk_fail(model->ctx, BK_ERR_CONFIG,
                   "hc_eps %g with %lld streams: a stream cannot be read with the weight 1/%lld "
                   "that keeps the logits; hc_eps must be below it",
                   c->hc_eps, (long long)c->hc_mult, (long long)c->hc_mult);
  bk_status status =
      bk_checkpoint_load_columns(model, path, weights, BK_COUNT(weights), bk_param_master);
  for (int i = 0; i < model->n_params && status == BK_OK; i++)
    if (is_connection(&model->params[i])) status = fill_connection(model, &model->params[i]);
  return status;
}
