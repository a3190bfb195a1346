/* One model's part in a comparison, and choices of experts. See verify_priv.h.
 *
 * A side goes through init, keep, forward (once or more, for other batches), backward, step, fini;
 * what each leaves is copied to host memory as doubles, so that two sides can be compared without
 * their devices. bk_bisect, which compares call by call, needs no keep. */
#include "models/verify_priv.h"

#include <math.h>
#include <string.h>

static int64_t n_tokens(const bk_verify_batch *b) { return b->batch * b->seq_len; }

/* An array for each parameter, of its elements. What was made before a failure is freed by
 * side_fini. */
static bk_status alloc_param_arrays(bk_verify_side *side, double ***arrays) {
  bk_context *ctx = side->model->ctx;
  *arrays = bk_alloc_array(ctx, (size_t)side->model->n_params, sizeof **arrays);
  if (!*arrays) return BK_ERR_MEMORY;
  for (int i = 0; i < side->model->n_params; i++) {
    bk_tensor w = bk_param_weight(side->model, &side->model->params[i]);
    (*arrays)[i] = bk_alloc_array(ctx, (size_t)bk_tensor_count(&w), sizeof ***arrays);
    if (!(*arrays)[i]) return BK_ERR_MEMORY;
  }
  return BK_OK;
}

static void free_param_arrays(bk_verify_side *side, double **arrays) {
  for (int i = 0; arrays && i < side->model->n_params; i++) bk_free(side->model->ctx, arrays[i]);
  bk_free(side->model->ctx, arrays);
}

/* The weights as the optimiser sees them. */
static bk_status read_weights(bk_verify_side *side, double **values) {
  for (int i = 0; i < side->model->n_params; i++) {
    const bk_param *p = &side->model->params[i];
    bk_tensor master = bk_param_master(side->model, p), weight = bk_param_weight(side->model, p);
    BK_TRY(bk_tensor_read_f64(side->model->stream, bk_tensor_present(&master) ? &master : &weight,
                              values[i]));
  }
  return BK_OK;
}

/* The whole batch is one micro-batch. */
bk_status bk_verify_side_init(bk_verify_side *side, bk_model *model, const bk_verify_batch *batch) {
  side->model = model;
  bk_runner_options options = {.batch = batch->batch,
                               .seq_len = batch->seq_len,
                               .slots = 1,
                               .backward = true,
                               .keep_logits = true};
  bk_optimizer_options adam = {VERIFY_BETA1, VERIFY_BETA2, VERIFY_ADAM_EPS, VERIFY_WEIGHT_DECAY, 0};
  BK_TRY(bk_runner_create(model, &options, &side->runner));
  return bk_optimizer_create(model, &adam, &side->optimizer);
}

bk_status bk_verify_side_keep(bk_verify_side *side, const bk_verify_batch *batch) {
  bk_context *ctx = side->model->ctx;
  const bk_model_config *c = &side->model->config;
  size_t n = (size_t)n_tokens(batch), moe = (size_t)bk_runner_n_moe(side->runner);
  side->logits = bk_alloc_array(ctx, n * (size_t)c->vocab_size, sizeof *side->logits);
  side->scores = bk_alloc_array(ctx, moe * n * (size_t)c->n_routed_experts, sizeof *side->scores);
  side->index = bk_alloc_array(ctx, moe * n * (size_t)c->num_experts_per_tok, sizeof *side->index);
  if (!side->logits || !side->scores || !side->index) return BK_ERR_MEMORY;
  BK_TRY(alloc_param_arrays(side, &side->grad));
  BK_TRY(alloc_param_arrays(side, &side->before));
  BK_TRY(alloc_param_arrays(side, &side->after));
  return read_weights(side, side->before);
}

void bk_verify_side_fini(bk_verify_side *side) {
  if (!side->model) return;
  bk_context *ctx = side->model->ctx;
  free_param_arrays(side, side->after);
  free_param_arrays(side, side->before);
  free_param_arrays(side, side->grad);
  bk_free(ctx, side->index);
  bk_free(ctx, side->scores);
  bk_free(ctx, side->logits);
  bk_optimizer_destroy(side->optimizer);
  bk_runner_destroy(side->runner);
  *side = (bk_verify_side){0};
}

/* The forward pass has left scores and index of every layer with experts in slot 0. */
static bk_status read_choices(bk_verify_side *side, const bk_verify_batch *batch) {
  const bk_model_config *c = &side->model->config;
  int64_t n = n_tokens(batch);
  for (int l = 0; l < bk_runner_n_moe(side->runner); l++) {
    bk_tensor scores, index;
    BK_TRY(bk_runner_routing(side->runner, 0, l, &scores, &index));
    BK_TRY(bk_tensor_read_f64(side->model->stream, &scores,
                              side->scores + l * n * c->n_routed_experts));
    BK_TRY(bk_tensor_download(side->model->stream, &index,
                              side->index + l * n * c->num_experts_per_tok));
  }
  return BK_OK;
}

/* The first step: bias corrections are 1 - beta. The loss is a mean over the kept targets of all
 * passes. */
bk_status bk_verify_step_begin(bk_model *model, const bk_verify_batch *batch, int micros) {
  bk_step_values values = {.lr = VERIFY_LR,
                           .bc1 = 1 - VERIFY_BETA1,
                           .bc2 = 1 - VERIFY_BETA2,
                           .max_norm = VERIFY_MAX_NORM,
                           .loss_scale = 1 / ((double)batch->kept * micros),
                           .balance_rate = VERIFY_BALANCE_RATE};
  return bk_step_begin(model, &values);
}

/* The step begins here and ends in side_step; another forward begins it anew. */
bk_status bk_verify_side_forward(bk_verify_side *side, const bk_verify_batch *batch) {
  bk_tensor logits = bk_runner_logits(side->runner);
  BK_TRY(bk_verify_step_begin(side->model, batch, 1));
  BK_TRY(bk_runner_forward(side->runner, 0, batch->ids, batch->targets));
  BK_TRY(bk_tensor_read_f64(side->model->stream, &logits, side->logits));
  return read_choices(side, batch);
}

/* The gradients are those before clipping. */
bk_status bk_verify_side_backward(bk_verify_side *side) {
  BK_TRY(bk_runner_backward(side->runner, 0));
  for (int i = 0; i < side->model->n_params; i++) {
    bk_tensor grad = bk_param_grad(side->model, &side->model->params[i]);
    if (bk_tensor_present(&grad))
      BK_TRY(bk_tensor_read_f64(side->model->stream, &grad, side->grad[i]));
  }
  return BK_OK;
}

/* Replaces the side's own gradients. Parameters without one are passed over. */
static bk_status write_gradients(bk_verify_side *side, double *const *values) {
  for (int i = 0; i < side->model->n_params; i++) {
    bk_tensor grad = bk_param_grad(side->model, &side->model->params[i]);
    if (bk_tensor_present(&grad))
      BK_TRY(bk_tensor_write_f64(side->model->stream, &grad, values[i]));
  }
  return BK_OK;
}

bk_status bk_verify_side_step(bk_verify_side *side, const bk_verify_batch *batch,
                              double *const *grad) {
  bk_step_results results;
  if (grad) BK_TRY(write_gradients(side, grad));
  BK_TRY(bk_optimizer_step(side->optimizer));
  BK_TRY(bk_step_end(side->model, &results));
  side->loss = results.loss_sum / (double)batch->kept;
  if (!results.finite)
    return bk_fail(side->model->ctx, BK_ERR_NOT_FINITE,
                   "verify: loss %g, gradient norm %g on %s: not finite",
                   bk_unsigned_nan(side->loss), bk_unsigned_nan(results.grad_norm),
                   side->model->device->backend->name);
  return read_weights(side, side->after);
}

/* ---- expert choices ---- */

/* The router chooses by the score and the balancing bias together (arXiv 2412.19437 section
 * 2.1.2). */
static double biased(const bk_router_view *v, int64_t e) { return v->scores[e] + v->bias[e]; }

/* A group's score is the sum of its two best biased scores, as the op ROUTER has it. */
static double group_score(const bk_router_view *v, int64_t g) {
  int64_t size = v->n_experts / v->n_group;
  double best = -INFINITY, second = -INFINITY;
  for (int64_t e = g * size; e < (g + 1) * size; e++) {
    double s = biased(v, e);
    if (s > best) second = best, best = s;
    else if (s > second) second = s;
  }
  return size > 1 ? best + second : best;
}

/* The topk_group best groups are kept; of equal ones the lower index is better. */
static bool group_kept(const bk_router_view *v, int64_t g) {
  int64_t better = 0;
  double mine = group_score(v, g);
  for (int64_t other = 0; other < v->n_group; other++) {
    double s = group_score(v, other);
    better += s > mine || (s == mine && other < g);
  }
  return better < v->topk_group;
}

static bool contains(const int32_t *list, int64_t count, int64_t e) {
  for (int64_t i = 0; i < count; i++)
    if (list[i] == e) return true;
  return false;
}

/* Where the kept groups differ, they have decided: the margin is the width of the range of the
 * scores of those groups that only one side kept. Otherwise it is that of the experts that only one
 * side took. */
double bk_router_margin(const bk_router_view *a, const bk_router_view *ref, const int32_t *chosen,
                        const int32_t *wanted) {
  double low = INFINITY, high = -INFINITY;
  bool same = true;
  for (int64_t j = 0; j < ref->k; j++) {
    if (chosen[j] < 0 || chosen[j] >= ref->n_experts || contains(chosen, j, chosen[j]))
      return INFINITY;
    same = same && contains(wanted, ref->k, chosen[j]);
  }
  if (same) return -1;
  for (int64_t g = 0; g < ref->n_group; g++)
    if (group_kept(a, g) != group_kept(ref, g))
      low = fmin(low, group_score(ref, g)), high = fmax(high, group_score(ref, g));
  if (high >= low) return high - low;
  for (int64_t j = 0; j < ref->k; j++) {
    if (!contains(wanted, ref->k, chosen[j]))
      low = fmin(low, biased(ref, chosen[j])), high = fmax(high, biased(ref, chosen[j]));
    if (!contains(chosen, ref->k, wanted[j]))
      low = fmin(low, biased(ref, wanted[j])), high = fmax(high, biased(ref, wanted[j]));
  }
  return high - low;
}

/* Routers are counted in the order of the parameters. The bias is the one before the step. */
static const double *bias_of_layer(const bk_verify_side *side, int layer) {
  int found = 0;
  static const char leaf[] = "e_score_correction_bias";
  for (int i = 0; i < side->model->n_params; i++) {
    const char *name = side->model->params[i].name;
    size_t length = strlen(name);
    if (length > sizeof leaf && strcmp(name + length - (sizeof leaf - 1), leaf) == 0 &&
        found++ == layer)
      return side->before[i];
  }
  return NULL;
}

/* One layer's choices for every token. `clean` are the positions that earlier layers have left
 * clean; `first` gets the position of this layer's first flip in each sequence. */
static void compare_layer(const bk_verify_side *a, const bk_verify_side *ref,
                          const bk_verify_batch *batch, int layer, double tolerance,
                          const int64_t *clean, int64_t *first, bk_verify_flips *flips) {
  const bk_model_config *c = &ref->model->config;
  int64_t n = n_tokens(batch), E = c->n_routed_experts, k = c->num_experts_per_tok;
  const double *bias = bias_of_layer(ref, layer);
  for (int64_t i = 0; i < n; i++) {
    int64_t b = i / batch->seq_len, t = i % batch->seq_len, at = layer * n + i;
    bk_router_view va = {E, k, c->n_group, c->topk_group, a->scores + at * E, bias}, vr = va;
    vr.scores = ref->scores + at * E;
    double margin =
        t < clean[b] ? bk_router_margin(&va, &vr, a->index + at * k, ref->index + at * k) : -1;
    flips->choices++;
    if (margin < 0) continue;
    flips->flips++;
    flips->forbidden += !(margin < tolerance);
    flips->worst_margin = fmax(flips->worst_margin, margin);
    if (t < first[b]) first[b] = t;
  }
}

/* Layer by layer, because a flip in one changes what all later ones see of that position and the
 * ones after it. */
bk_status bk_verify_choices(const bk_verify_side *a, const bk_verify_side *ref,
                            const bk_verify_batch *batch, double tolerance, int64_t *clean,
                            bk_verify_flips *flips) {
  bk_context *ctx = ref->model->ctx;
  *flips = (bk_verify_flips){0};
  int64_t *first = bk_alloc_array(ctx, (size_t)batch->batch, sizeof *first);
  if (!first) return BK_ERR_MEMORY;
  for (int64_t b = 0; b < batch->batch; b++) clean[b] = batch->seq_len;
  for (int l = 0; l < bk_runner_n_moe(ref->runner); l++) {
    for (int64_t b = 0; b < batch->batch; b++) first[b] = clean[b];
    compare_layer(a, ref, batch, l, tolerance, clean, first, flips);
    for (int64_t b = 0; b < batch->batch; b++) clean[b] = first[b];
  }
  bk_free(ctx, first);
  return BK_OK;
}
