/* Loads a plain checkpoint into a model of any residual kind: `init --from` (birkhoff/model.h).
 * The weights of F and of the ends are taken over; the connection's parameters get the values with
 * which the mean of the streams follows the plain residual stream, so that the new model begins
 * with the plain one's logits. */
#include "models/checkpoint_priv.h"
#include "runtime/connection.h"

static bk_tensor weight_but_connections(const bk_model *model, const bk_param *p) {
  return p->connection ? (bk_tensor){0} : bk_param_weight(model, p);
}

/* The weight, and what this rank keeps of its master. */
static bk_status write_values(bk_model *model, const bk_param *p, const double *values) {
  bk_tensor weight = bk_param_weight(model, p);
  BK_TRY(bk_tensor_write_f64(model->stream, &weight, values));
  for (bk_slice s = {0}; bk_param_next_slice(model, p, &s);)
    if (bk_tensor_present(&s.master))
      BK_TRY(bk_tensor_write_f64(model->stream, &s.master, values + s.begin));
  return BK_OK;
}

static bk_status fill_connection(bk_model *model, const bk_param *p) {
  const bk_model_config *c = &model->config;
  bk_tensor weight = bk_param_weight(model, p);
  int64_t count = bk_tensor_count(&weight);
  double *values = bk_alloc_array(model->ctx, (size_t)count, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  if (p->connection->from_plain)
    p->connection->from_plain(p->kind, values, count, (int)c->hc_mult, p->sublayer, c->hc_eps);
  bk_status status = write_values(model, p, values);
  bk_free(model->ctx, values);
  return status;
}

/* hc_eps is added to each read gate, so that a read of 1/n is out of reach where hc_eps is not
 * below it. */
bk_status bk_checkpoint_convert_plain(bk_model *model, const char *path) {
  const bk_model_config *c = &model->config;
  if (bk_model_streams(model) > 1 && c->hc_eps * (double)c->hc_mult >= 1)
    return bk_fail(model->ctx, BK_ERR_CONFIG,
                   "hc_eps %g with %lld streams: a stream cannot be read with the weight 1/%lld "
                   "that keeps the logits; hc_eps must be below it",
                   c->hc_eps, (long long)c->hc_mult, (long long)c->hc_mult);
  bk_status status = bk_checkpoint_load_view(model, path, weight_but_connections);
  for (int i = 0; i < model->n_params && status == BK_OK; i++)
    if (model->params[i].connection) status = fill_connection(model, &model->params[i]);
  return status;
}
