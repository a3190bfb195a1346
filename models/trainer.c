/* One training step after the other, and evaluation (birkhoff/train.h). A step is: the
 * micro-batches, whose gradients sum up in the model, the optimiser, and the reading of the
 * results. Whatever depends on the step's number is computed here and goes to the device in the
 * step block.
 *
 * A step whose loss or gradient norm is not finite is refused: the device has changed no weight
 * (BK_STEP_FINITE), and the step is run again with a look at every tensor, to say where the first
 * bad number came up.
 *
 * The state of a run beside the model: the numbers of steps and tokens done. A resumed run sets
 * them (bk_trainer_set_step) and goes on with the same sequences, since the order of the data is a
 * function of seed and position. */
#include "models/trainer.h"
#include "io/readahead.h"
#include "runtime/connection.h"

#include "models/profile.h"
#include "models/watch.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- evaluation ---- */

/* An evaluator is a runner without gradients, with room for one batch of tokens on the host. */
struct bk_evaluator {
  bk_model *model;
  bk_runner *runner;
  int64_t batch, seq_len;
  int32_t *ids, *targets; /* [batch * seq_len] */
};

bk_status bk_evaluator_create(bk_model *model, int64_t batch, int64_t seq_len,
                              bk_evaluator **evaluator) {
  bk_context *ctx = model->ctx;
  if (batch < 1 || seq_len < 1 || seq_len > INT32_MAX / batch)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "evaluator: %lld sequences of %lld tokens",
                   (long long)batch, (long long)seq_len);
  bk_evaluator *e = bk_alloc(ctx, sizeof *e);
  if (!e) return BK_ERR_MEMORY;
  *e = (bk_evaluator){.model = model, .batch = batch, .seq_len = seq_len};
  e->ids = bk_alloc_array(ctx, (size_t)(batch * seq_len), sizeof *e->ids);
  e->targets = bk_alloc_array(ctx, (size_t)(batch * seq_len), sizeof *e->targets);
  bk_runner_options options = {.batch = batch, .seq_len = seq_len, .slots = 1};
  bk_status status =
      e->ids && e->targets ? bk_runner_create(model, &options, &e->runner) : BK_ERR_MEMORY;
  if (status == BK_OK) *evaluator = e;
  else bk_evaluator_destroy(e);
  return status;
}

void bk_evaluator_destroy(bk_evaluator *e) {
  if (!e) return;
  bk_context *ctx = e->model->ctx;
  bk_runner_destroy(e->runner);
  bk_free(ctx, e->targets);
  bk_free(ctx, e->ids);
  bk_free(ctx, e);
}

size_t bk_evaluator_bytes(const bk_evaluator *e, bk_memory_class c) {
  return bk_runner_bytes(e->runner, c);
}

/* Sums the losses of a data set's windows on any runner of the model: an evaluator's own, or the
 * one that trains, whose activations are free between two steps. `all_ids` and `all_targets` have
 * room for one batch; rows past the last window are filled with ignored targets. */
static bk_status evaluate(bk_model *model, bk_runner *runner, int64_t batch, int64_t row,
                          int32_t *all_ids, int32_t *all_targets, const bk_dataset *data,
                          int64_t max_tokens, bk_eval_result *result) {
  int64_t windows = bk_dataset_eval_windows(data, row);
  bk_eval_result sum = {0};
  for (int64_t w = 0; w < windows && (max_tokens <= 0 || sum.tokens < max_tokens); w += batch) {
    for (int64_t b = 0; b < batch; b++) {
      int32_t *ids = all_ids + b * row, *targets = all_targets + b * row;
      if (w + b < windows) {
        int64_t kept;
        BK_TRY(bk_dataset_eval_window(data, row, w + b, ids, targets, &kept));
        sum.tokens += kept;
        continue;
      }
      for (int64_t t = 0; t < row; t++) ids[t] = 0, targets[t] = -100;
    }
    bk_step_results step;
    BK_TRY(bk_step_begin(model, &(bk_step_values){.bc1 = 1, .bc2 = 1}));
    BK_TRY(bk_runner_evaluate(runner, 0, all_ids, all_targets));
    BK_TRY(bk_step_end(model, &step));
    sum.loss_sum += step.loss_sum;
  }
  *result = sum;
  return BK_OK;
}

bk_status bk_evaluator_run(bk_evaluator *e, const bk_dataset *data, int64_t max_tokens,
                           bk_eval_result *result) {
  return evaluate(e->model, e->runner, e->batch, e->seq_len, e->ids, e->targets, data, max_tokens,
                  result);
}

/* ---- training ---- */

/* The data sets and the model are the caller's and outlive it; the rest is its own. */
struct bk_trainer {
  bk_model *model;
  bk_train_config recipe;
  const bk_dataset *train, *val;
  bk_readahead *ahead; /* of `train` */
  bk_runner *runner;
  bk_optimizer *optimizer;
  /* gain_fresh: the last step has measured it */
  bk_gain *gain; /* only with gain_every */
  bool gain_fresh;
  bk_watch watch;
  bk_refusal refusal;          /* row.step is 0 where the last step was taken */
  bool timed;                  /* the step in progress */
  bk_step_times times;         /* of its parts so far */
  double lap;                  /* when the part in progress began */
  int64_t step, tokens, micro; /* steps and tokens done; sequences of a micro-batch */
  int32_t *ids, *targets;      /* one micro-batch */
  int32_t *load;               /* [experts] */
  double *load_share;          /* [MoE layers][experts] */
};

/* Bytes of the host copy of the maps whose gain is measured. Kinds without comb need none: their
 * gain is 1. */
static size_t map_bytes(const bk_trainer *t) {
  const bk_model_config *c = &t->model->config;
  if (t->recipe.gain_every <= 0 || !bk_connection_kind_of((bk_hc_kind)c->residual)->comb) return 0;
  return (size_t)(bk_runner_n_sublayers(t->runner) * t->micro * t->recipe.seq_len * c->hc_mult *
                  c->hc_mult) *
         sizeof(double);
}

/* Host memory for one micro-batch and for the loads of the experts. */
static bk_status make_buffers(bk_trainer *t) {
  bk_context *ctx = t->model->ctx;
  size_t tokens = (size_t)(t->micro * t->recipe.seq_len),
         experts = (size_t)t->model->config.n_routed_experts;
  size_t layers = (size_t)bk_runner_n_moe(t->runner);
  t->ids = bk_alloc_array(ctx, tokens, sizeof *t->ids);
  t->targets = bk_alloc_array(ctx, tokens, sizeof *t->targets);
  t->load = bk_alloc_array(ctx, experts, sizeof *t->load);
  t->load_share = bk_alloc_array(ctx, layers * experts, sizeof *t->load_share);
  return t->ids && t->targets && t->load && t->load_share ? BK_OK : BK_ERR_MEMORY;
}

/* Everything that a run needs is made here, so that a step allocates nothing. */
static bk_status build(bk_trainer *t) {
  const bk_train_config *r = &t->recipe;
  bk_runner_options runner = {.batch = t->micro,
                              .seq_len = r->seq_len,
                              .slots = 1,
                              .backward = true,
                              .hc_recompute = r->hc_recompute,
                              .merge_stream = r->merge_stream};
  BK_TRY(bk_runner_create(t->model, &runner, &t->runner));
  bk_optimizer_options optimizer = {r->adam_beta1, r->adam_beta2, r->adam_eps, r->weight_decay};
  BK_TRY(bk_optimizer_create(t->model, &optimizer, &t->optimizer));
  if (r->gain_every > 0) {
    BK_TRY(bk_gain_create(t->model->ctx, bk_runner_n_sublayers(t->runner),
                          (int)bk_model_streams(t->model), &t->gain));
    if (map_bytes(t) && !t->model->options.plan_only)
      BK_TRY(bk_gain_reserve(t->gain, t->micro * r->seq_len));
  }
  BK_TRY(make_buffers(t));
  if (!t->train) return BK_OK;
  return bk_readahead_create(t->train, r->seed, r->seq_len, t->micro, &t->ahead);
}

/* Without data a model that is only planned can be sized. */
static bk_status check_use(const bk_model *model, const bk_train_config *recipe,
                           const bk_dataset *train) {
  int64_t micro = recipe->micro_batch_size ? recipe->micro_batch_size : recipe->batch_size;
  if (!model->options.trainable || model->n_sublayers != 2 * model->config.num_hidden_layers)
    return bk_fail(model->ctx, BK_ERR_ARGUMENT, "trainer: the model must be trainable and whole");
  if (micro < 1 || recipe->batch_size < 1 || recipe->batch_size % micro != 0)
    return bk_fail(model->ctx, BK_ERR_ARGUMENT,
                   "trainer: batch_size %lld is not a multiple of micro_batch_size %lld",
                   (long long)recipe->batch_size, (long long)micro);
  if (!train && model->options.plan_only) return BK_OK;
  return bk_dataset_check_seq_len(model->ctx, train, recipe->seq_len);
}

bk_status bk_trainer_create(bk_model *model, const bk_train_config *recipe, const bk_dataset *train,
                            const bk_dataset *val, bk_trainer **trainer) {
  BK_TRY(check_use(model, recipe, train));
  bk_trainer *t = bk_alloc(model->ctx, sizeof *t);
  if (!t) return BK_ERR_MEMORY;
  *t = (bk_trainer){.model = model, .recipe = *recipe, .train = train, .val = val};
  t->micro = recipe->micro_batch_size ? recipe->micro_batch_size : recipe->batch_size;
  bk_status status = build(t);
  if (status == BK_OK) *trainer = t;
  else bk_trainer_destroy(t);
  return status;
}

void bk_trainer_destroy(bk_trainer *t) {
  if (!t) return;
  bk_context *ctx = t->model->ctx;
  bk_free(ctx, t->load_share);
  bk_free(ctx, t->load);
  bk_free(ctx, t->targets);
  bk_free(ctx, t->ids);
  bk_readahead_destroy(t->ahead);
  bk_gain_destroy(t->gain);
  bk_optimizer_destroy(t->optimizer);
  bk_runner_destroy(t->runner);
  bk_free(ctx, t);
}

/* Bytes of the host copies of token ids and targets, in the runner, here and read ahead, and of the
 * maps. */
static size_t staging_bytes(const bk_trainer *t) {
  return 4 * (size_t)(t->micro * t->recipe.seq_len) * sizeof(int32_t) + map_bytes(t) +
         bk_readahead_bytes(t->model->ctx, t->train, t->recipe.seq_len, t->micro);
}

/* The model is not counted; see bk_model_bytes. */
size_t bk_trainer_bytes(const bk_trainer *t, bk_memory_class c) {
  return bk_runner_bytes(t->runner, c) + (c == BK_MEM_STAGING ? staging_bytes(t) : 0);
}

/* The next step is last_step + 1. */
void bk_trainer_set_step(bk_trainer *t, int64_t last_step, int64_t tokens) {
  t->step = last_step;
  t->tokens = tokens;
}

int64_t bk_trainer_step_done(const bk_trainer *t) { return t->step; }
int64_t bk_trainer_tokens_done(const bk_trainer *t) { return t->tokens; }
const bk_gain *bk_trainer_gain(const bk_trainer *t) { return t->gain_fresh ? t->gain : NULL; }
const bk_refusal *bk_trainer_refusal(const bk_trainer *t) {
  return t->refusal.row.step ? &t->refusal : NULL;
}

/* Fills ids and targets with the micro-batch that begins at sequence `first` of the step. The one
 * after it, which may be the next step's first, begins where it ends. */
static bk_status read_sequences(const bk_trainer *t, int64_t first) {
  /* The number of sequences done so far. It comes from the tokens and not from step x batch_size,
   * since a resumed run may have another batch size. */
  int64_t at = t->tokens / t->recipe.seq_len + first;
  return bk_readahead_get(t->ahead, at, t->micro, at + t->micro, t->ids, t->targets);
}

/* Ends a part of the step: adds its time to *seconds. Only a step that is timed waits for the
 * device here. */
static bk_status end_part(bk_trainer *t, double *seconds) {
  if (!t->timed) return BK_OK;
  BK_TRY(t->model->stream->ops->sync(t->model->stream));
  double now = bk_context_seconds(t->model->ctx);
  *seconds += now - t->lap;
  t->lap = now;
  return BK_OK;
}

/* Runs all micro-batches of step t->step + 1; their gradients are summed in the model. */
static bk_status run_micro_batches(bk_trainer *t) {
  for (int64_t first = 0; first < t->recipe.batch_size; first += t->micro) {
    BK_TRY(read_sequences(t, first));
    BK_TRY(bk_runner_forward(t->runner, 0, t->ids, t->targets));
    BK_TRY(end_part(t, &t->times.forward));
    BK_TRY(bk_runner_backward(t->runner, 0));
    BK_TRY(end_part(t, &t->times.backward));
  }
  return BK_OK;
}

/* AdamW's bias correction 1 - beta^t, written so that it loses no digits for small t. */
static double bias_correction(double beta, int64_t t) { return -expm1((double)t * log(beta)); }

/* Whether something that is done every so many steps is to be done now; the last step counts
 * too. */
static bool due(int64_t step, int64_t every, int64_t steps) {
  return every > 0 && (step % every == 0 || step == steps);
}

/* The share of each expert among all choices of a layer, for metrics. */
static bk_status read_loads(bk_trainer *t) {
  int64_t experts = t->model->config.n_routed_experts;
  for (int l = 0; l < bk_runner_n_moe(t->runner); l++) {
    bk_tensor load = bk_model_expert_load(t->model, l);
    BK_TRY(bk_tensor_download(t->model->stream, &load, t->load));
    double sum = 0;
    for (int64_t e = 0; e < experts; e++) sum += t->load[e];
    for (int64_t e = 0; e < experts; e++)
      t->load_share[l * experts + e] = sum > 0 ? t->load[e] / sum : 0;
  }
  return BK_OK;
}

/* The maps are those of the step's last micro-batch, which are still in the runner. */
static bk_status read_gain(bk_trainer *t, bk_metrics_row *row) {
  t->gain_fresh = false;
  if (!due(row->step, t->recipe.gain_every, t->recipe.steps)) return BK_OK;
  bk_gain_reset(t->gain);
  BK_TRY(bk_gain_add(t->gain, t->runner, 0));
  bk_gain_finish(t->gain);
  row->has_gain = t->gain_fresh = true;
  row->gain_forward = t->gain->total_forward;
  row->gain_backward = t->gain->total_backward;
  bk_watch_gain(t->model->ctx, &t->watch, row->step, row->gain_forward, row->gain_backward,
                t->recipe.gain_limit);
  return BK_OK;
}

/* Runs on the training runner: the step is over, and its activations are no longer needed. */
static bk_status validate(bk_trainer *t, bk_metrics_row *row) {
  if (!t->val || !due(row->step, t->recipe.eval_every, t->recipe.steps)) return BK_OK;
  bk_eval_result result;
  bk_profile_pause(t->model->profile, true);
  bk_status status = evaluate(t->model, t->runner, t->micro, t->recipe.seq_len, t->ids, t->targets,
                              t->val, t->recipe.eval_tokens, &result);
  bk_profile_pause(t->model->profile, false);
  BK_TRY(status);
  row->has_val = true;
  row->val_loss = result.tokens ? result.loss_sum / (double)result.tokens : NAN;
  return BK_OK;
}

/* Runs the step again with a look at every tensor. The passes give the same bits as before, so
 * that the fault comes up again. A norm that overflows although all gradients are finite is blamed
 * on the largest gradient. */
static bk_status find_cause(bk_trainer *t, const bk_step_values *values, bk_suspect *suspect) {
  bk_step_results unused;
  BK_TRY(bk_step_begin(t->model, values));
  bk_status status = BK_OK;
  for (int64_t first = 0; first < t->recipe.batch_size && status == BK_OK; first += t->micro) {
    status = read_sequences(t, first);
    if (status == BK_OK) status = bk_watch_pass(t->runner, t->ids, t->targets, suspect);
    size_t used = strlen(suspect->what);
    if (suspect->found && t->micro < t->recipe.batch_size)
      snprintf(suspect->what + used, sizeof suspect->what - used, " in micro-batch %lld",
               (long long)(first / t->micro + 1));
  }
  BK_TRY(bk_step_end(t->model, &unused));
  if (status == BK_OK && !isfinite(t->refusal.row.grad_norm))
    return bk_watch_largest_gradient(t->model, suspect);
  return status == BK_ERR_NOT_FINITE ? BK_OK : status;
}

/* The row of a refused step is kept for its reader, without the loads, which were not read. */
static bk_status refuse(bk_trainer *t, const bk_metrics_row *row, const bk_step_values *values) {
  bk_suspect suspect = {.found = false};
  t->refusal = (bk_refusal){.row = *row};
  t->refusal.row.n_layers = 0; /* no loads were read */
  bk_profile_pause(t->model->profile, true);
  bk_status searched = find_cause(t, values, &suspect);
  bk_profile_pause(t->model->profile, false);
  if (searched != BK_OK) snprintf(suspect.what, sizeof suspect.what, "unknown, the search failed");
  else if (!suspect.found)
    snprintf(suspect.what, sizeof suspect.what,
             "nothing, when the step was done again: a fault of the machine?");
  t->refusal.again = suspect.found;
  t->refusal.in_forward = suspect.found && suspect.in_forward;
  snprintf(t->refusal.first, sizeof t->refusal.first, "%s", suspect.what);
  return bk_fail(t->model->ctx, BK_ERR_NOT_FINITE,
                 "step %lld: loss %g, gradient norm %g: not finite, first of all: %s; the weights "
                 "are as they were before the step",
                 (long long)row->step, bk_unsigned_nan(row->loss), bk_unsigned_nan(row->grad_norm),
                 suspect.what);
}

/* The loss of each token is scaled by 1 / (tokens of the step), so that gradients do not depend on
 * how the batch is cut into micro-batches, except for rounding. The time that tokens_per_s reports
 * covers the step alone, without validation and measurements. */
bk_status bk_trainer_step(bk_trainer *t, bk_metrics_row *row) {
  const bk_train_config *r = &t->recipe;
  double begin = bk_context_seconds(t->model->ctx), tokens = (double)(r->batch_size * r->seq_len);
  int64_t step = t->step + 1;
  bk_step_values values = {.lr = bk_learning_rate(r, step),
                           .bc1 = bias_correction(r->adam_beta1, step),
                           .bc2 = bias_correction(r->adam_beta2, step),
                           .max_norm = r->grad_clip,
                           .loss_scale = 1 / tokens,
                           .balance_rate = r->router_bias_lr};
  bk_step_results results;
  /* all of the device's work of the step is enqueued before bk_step_end waits for it once */
  t->refusal.row.step = 0;
  t->lap = begin;
  BK_TRY(bk_step_begin(t->model, &values));
  BK_TRY(run_micro_batches(t));
  BK_TRY(bk_optimizer_step(t->optimizer));
  BK_TRY(bk_step_end(t->model, &results));
  BK_TRY(end_part(t, &t->times.optimizer));
  bk_metrics_row made = {.step = step,
                         .tokens = t->tokens + r->batch_size * r->seq_len,
                         .loss = results.loss_sum / tokens,
                         .lr = values.lr,
                         .grad_norm = results.grad_norm,
                         .n_layers = bk_runner_n_moe(t->runner),
                         .n_experts = (int)t->model->config.n_routed_experts,
                         .expert_load = t->load_share};
  made.tokens_per_s = tokens / (bk_context_seconds(t->model->ctx) - begin);
  if (!results.finite) return refuse(t, &made, &values);
  /* from here on the step counts, even if reading its loads or validating fails */
  bk_watch_norm(t->model->ctx, &t->watch, step, made.grad_norm, r->spike_factor);
  bk_trainer_set_step(t, step, made.tokens);
  BK_TRY(read_loads(t));
  BK_TRY(read_gain(t, &made));
  BK_TRY(validate(t, &made));
  *row = made;
  return BK_OK;
}

/* A timed step waits for the device after each part, and is slower for it. *times is written on
 * success only. */
bk_status bk_trainer_step_timed(bk_trainer *t, bk_metrics_row *row, bk_step_times *times) {
  t->timed = true;
  t->times = (bk_step_times){0};
  bk_status status = bk_trainer_step(t, row);
  t->timed = false;
  if (status == BK_OK) *times = t->times;
  return status;
}

int bk_trainer_warm_steps(const bk_trainer *t) {
  return t->model->device->props.captures ? 2 : 1; /* graph.h: the second run is captured */
}

/* Nothing runs: the calls are only listed. */
bk_status bk_trainer_program(const bk_trainer *t, bk_step_call_fn each, void *user) {
  return bk_list_step(t->runner, t->optimizer, t->micro < t->recipe.batch_size, each, user);
}
