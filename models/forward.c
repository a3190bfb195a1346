/* bk_forward: one pass at a time through a runner with one slot. See birkhoff/forward.h.
 *
 * It is a runner with logits kept, a state that keeps its calls in order, and the mean loss:
 * gradients are those of the mean over the kept targets because the step block's loss scale is 1 /
 * kept. */
#include <birkhoff/forward.h>

#include <math.h>

#include "models/runner.h"

/* What the pass has come to; each call says which states it may come in. */
typedef enum forward_state { IDLE, RAN, WENT_BACK } forward_state;

struct bk_forward {
  bk_model *model;
  bk_runner *runner;
  int64_t tokens;
  bool backward;
  int64_t kept; /* targets of this pass that count */
  forward_state state;
};

/* The runner has one slot; without `backward` the activations of its sublayers share memory. */
bk_status bk_forward_create(bk_model *model, const bk_forward_options *options,
                            bk_forward **forward) {
  bk_context *ctx = model->ctx;
  if (options->hc_recompute < BK_RECOMPUTE_AUTO)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "forward: hc_recompute %lld: -1 is auto, 0 off",
                   (long long)options->hc_recompute);
  if (options->recompute < BK_RECOMPUTE_F_NONE || options->recompute > BK_RECOMPUTE_F_ALL)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "forward: recompute %d is none of 0 to %d",
                   options->recompute, BK_RECOMPUTE_F_ALL);
  if (options->backward && !model->options.trainable)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "forward: backward needs a model that is trainable");
  BK_TRY(bk_model_check_pass(model, "forward", options->seq_len));
  bk_runner_options runner = {.batch = options->batch,
                              .seq_len = options->seq_len,
                              .slots = 1,
                              .backward = options->backward,
                              .keep_logits = true,
                              .hc_recompute = options->hc_recompute,
                              .recompute = options->recompute};
  bk_forward *f = bk_alloc(ctx, sizeof *f);
  if (!f) return BK_ERR_MEMORY;
  *f = (bk_forward){.model = model, .backward = options->backward};
  bk_status status = bk_runner_create(model, &runner, &f->runner);
  if (status != BK_OK) {
    bk_free(ctx, f);
    return status;
  }
  f->tokens = bk_runner_tokens(f->runner);
  *forward = f;
  return BK_OK;
}

void bk_forward_destroy(bk_forward *f) {
  if (!f) return;
  bk_runner_destroy(f->runner);
  bk_free(f->model->ctx, f);
}

/* The calls may come only as birkhoff/forward.h lists them. */
static bk_status out_of_order(const bk_forward *f, const char *call) {
  return bk_fail(f->model->ctx, BK_ERR_ARGUMENT, "forward: bk_forward_%s comes out of order", call);
}

/* After a failure the state is IDLE still, and run may be called again. Bias corrections are 1
 * because no optimiser follows that would divide by them. */
bk_status bk_forward_run(bk_forward *f, const int32_t *ids, const int32_t *targets) {
  if (f->state != IDLE) return out_of_order(f, "run");
  f->kept = 0;
  for (int64_t i = 0; targets && i < f->tokens; i++) f->kept += targets[i] >= 0;
  bk_step_values values = {.bc1 = 1, .bc2 = 1, .loss_scale = f->kept ? 1 / (double)f->kept : 0};
  BK_TRY(bk_step_begin(f->model, &values));
  BK_TRY(bk_runner_forward(f->runner, 0, ids, targets));
  f->state = RAN;
  return BK_OK;
}

/* The call waits for the pass. */
bk_status bk_forward_logits(bk_forward *f, double *logits) {
  if (f->state != RAN) return out_of_order(f, "logits");
  bk_tensor t = bk_runner_logits(f->runner);
  return bk_tensor_read_f64(f->model->stream, &t, logits);
}

/* Kinds without comb have the identity, which is written out: [B,T,n,n]. */
static bk_status read_comb(const bk_forward *f, const bk_tensor *t, double *comb) {
  int64_t n = bk_model_streams(f->model);
  if (bk_tensor_present(t)) return bk_tensor_read_f64(f->model->stream, t, comb);
  for (int64_t i = 0; i < f->tokens * n * n; i++) comb[i] = i / n % n == i % n;
  return BK_OK;
}

/* Maps are read before the backward pass, as logits are. */
bk_status bk_forward_maps(bk_forward *f, int sublayer, double *pre, double *post, double *comb) {
  bk_tensor a, b, c;
  if (f->state != RAN) return out_of_order(f, "maps");
  if (sublayer < 0 || sublayer >= bk_runner_n_sublayers(f->runner))
    return bk_fail(f->model->ctx, BK_ERR_ARGUMENT, "forward: sublayer %d: the model has 0 to %d",
                   sublayer, bk_runner_n_sublayers(f->runner) - 1);
  if (f->model->config.residual == BK_HC_PLAIN)
    return bk_fail(f->model->ctx, BK_ERR_ARGUMENT,
                   "forward: a model with residual plain has no maps");
  BK_TRY(bk_runner_maps(f->runner, 0, sublayer, &a, &b, &c));
  BK_TRY(bk_tensor_read_f64(f->model->stream, &a, pre));
  BK_TRY(bk_tensor_read_f64(f->model->stream, &b, post));
  return read_comb(f, &c, comb);
}

/* Gradients stay in the model until the next pass overwrites them. */
bk_status bk_forward_backward(bk_forward *f) {
  if (f->state != RAN || !f->backward) return out_of_order(f, "backward");
  if (!f->kept)
    return bk_fail(f->model->ctx, BK_ERR_ARGUMENT,
                   "forward: no target is kept, so nothing has a gradient");
  BK_TRY(bk_runner_backward(f->runner, 0));
  f->state = WENT_BACK;
  return BK_OK;
}

/* This may come after a run with or without a backward. Even if it fails the next pass may
 * begin. */
bk_status bk_forward_finish(bk_forward *f, double *loss) {
  bk_step_results results;
  if (f->state == IDLE) return out_of_order(f, "finish");
  f->state = IDLE;
  BK_TRY(bk_step_end(f->model, &results));
  if (loss) *loss = f->kept ? results.loss_sum / (double)f->kept : (double)NAN;
  return BK_OK;
}
