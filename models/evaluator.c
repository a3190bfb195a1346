/* The mean loss on data (birkhoff/train.h), also of a model that is being trained. */
#include "models/trainer_priv.h"

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

int64_t bk_eval_windows(const bk_dataset *data, int64_t batch, int64_t row, int64_t max_tokens) {
  int64_t windows = bk_dataset_eval_windows(data, row);
  if (max_tokens <= 0 || windows == 0) return windows;
  int64_t batches = (max_tokens - 1) / (batch * row) + 1;
  return batches <= (windows - 1) / batch ? batches * batch : windows;
}

bk_status bk_eval_batch(const bk_dataset *data, int64_t batch, int64_t row, int64_t first,
                        int64_t end, int32_t *all_ids, int32_t *all_targets, int64_t *tokens) {
  for (int64_t b = 0; b < batch; b++) {
    int32_t *ids = all_ids + b * row, *targets = all_targets + b * row;
    int64_t kept = 0;
    if (first + b < end) BK_TRY(bk_dataset_eval_window(data, row, first + b, ids, targets, &kept));
    else
      for (int64_t t = 0; t < row; t++) ids[t] = 0, targets[t] = -100;
    *tokens += kept;
  }
  return BK_OK;
}

bk_status bk_eval_run(bk_model *model, bk_runner *runner, int64_t batch, int64_t row,
                      int32_t *all_ids, int32_t *all_targets, const bk_dataset *data, int64_t first,
                      int64_t end, bk_eval_result *result) {
  bk_eval_result sum = {0};
  for (int64_t w = first; w < end; w += batch) {
    BK_TRY(bk_eval_batch(data, batch, row, w, end, all_ids, all_targets, &sum.tokens));
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
  return bk_eval_run(e->model, e->runner, e->batch, e->seq_len, e->ids, e->targets, data, 0,
                     bk_eval_windows(data, e->batch, e->seq_len, max_tokens), result);
}
