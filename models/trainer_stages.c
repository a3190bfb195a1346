/* A trainer whose model is in a pipeline: what takes the ranks of a pipeline together
 * (trainer_priv.h). Whatever is measured has the numbers that one process would have got. */
#include "models/trainer_priv.h"

#include "comm/comm.h"
#include "models/chunk_priv.h"

#include <stdio.h>
#include <string.h>

static const bk_pipeline *layout(const bk_trainer *t) { return t->model->options.pipeline; }

bk_status bk_trainer_make_executor(bk_trainer *t) {
  const bk_train_config *r = &t->recipe;
  const bk_schedule *s = layout(t)->schedule;
  if (t->count != t->n_micro * t->micro || t->n_micro != s->micro_batches)
    return bk_fail(t->model->ctx, BK_ERR_ARGUMENT,
                   "trainer: %s is made for %d micro-batches; batch_size %lld in %d pipelines and "
                   "micro-batches of %lld sequences makes %lld%s",
                   s->name, s->micro_batches, (long long)r->batch_size, t->shares,
                   (long long)t->micro, (long long)t->n_micro,
                   t->count == t->n_micro * t->micro ? "" : ", the last of fewer sequences");
  bk_chunk_options options = {.batch = t->micro,
                              .seq_len = r->seq_len,
                              .hc_recompute = r->hc_recompute,
                              .recompute = r->recompute,
                              .merge_stream = r->merge_stream};
  return bk_executor_create(t->model, &options, &t->executor);
}

/* ---- a step ---- */

static bk_status feed(void *user, int64_t micro, const int32_t **ids, const int32_t **targets) {
  bk_trainer *t = user;
  BK_TRY(bk_trainer_read(t, micro, t->micro));
  *ids = t->ids;
  *targets = t->targets;
  return BK_OK;
}

static bk_status keep_loss(void *user, int64_t micro) {
  bk_trainer *t = user;
  return bk_optimizer_keep_loss(t->optimizer, t->first_micro + micro);
}

bk_status bk_trainer_run_stages(bk_trainer *t) {
  bk_executor_calls calls = {.feed = feed, .loss = keep_loss, .user = t, .parallel = t->parallel};
  return bk_executor_step(t->executor, &calls);
}

/* ---- loads of experts ---- */

/* Each layer from the first rank that holds it; the others add zeros. */
bk_status bk_trainer_gather_loads(bk_trainer *t) {
  int64_t experts = t->model->config.n_routed_experts;
  size_t n = (size_t)(t->n_moe * experts);
  double *all = t->gathered, *own = all + (size_t)t->ranks * n;
  memcpy(own, t->load_share, n * sizeof *own);
  if (bk_model_replica(t->model) > 0) memset(own, 0, n * sizeof *own);
  BK_TRY(bk_comm_gather(t->model->options.comm, own, n * sizeof *own, all));
  memset(t->load_share, 0, n * sizeof *own);
  for (int r = 0; r < t->ranks; r++)
    for (size_t i = 0; i < n; i++) t->load_share[i] += all[(size_t)r * n + i];
  return BK_OK;
}

/* ---- gain ---- */

static bool has_maps(const bk_trainer *t) {
  return bk_connection_kind_of((bk_hc_kind)t->model->config.residual)->comb;
}

static size_t product_numbers(const bk_trainer *t) {
  return (size_t)(t->micro * t->recipe.seq_len * t->gain->n * t->gain->n);
}

/* Of the chunk that has most; its maps are read at once. */
static int most_sublayers(const bk_trainer *t) {
  int most = 0;
  for (int i = 0; i < t->model->options.n_chunks; i++)
    if (bk_model_chunk_count(t->model, i) > most) most = bk_model_chunk_count(t->model, i);
  return most;
}

size_t bk_trainer_gain_bytes(const bk_trainer *t) {
  if (!t->gain || !has_maps(t)) return 0;
  size_t blocks = (size_t)(most_sublayers(t) + layout(t)->schedule->ranks + 1);
  return blocks * product_numbers(t) * sizeof(double);
}

bk_status bk_trainer_reserve_gain(bk_trainer *t) {
  if (!has_maps(t)) return BK_OK;
  BK_TRY(bk_gain_reserve(t->gain, t->micro * t->recipe.seq_len, most_sublayers(t)));
  t->products =
      bk_alloc_array(t->model->ctx, product_numbers(t) * (size_t)(layout(t)->schedule->ranks + 1),
                     sizeof *t->products);
  return t->products ? BK_OK : BK_ERR_MEMORY;
}

/* Rank p of the pipeline has worked on the products; all ranks of it get them. */
static bk_status pass_on(bk_trainer *t, int p) {
  size_t n = product_numbers(t);
  if (layout(t)->schedule->ranks == 1) return BK_OK;
  double *own = t->products, *all = own + n;
  BK_TRY(bk_comm_gather(layout(t)->line, own, n * sizeof *own, all));
  memcpy(own, all + (size_t)p * n, n * sizeof *own);
  return BK_OK;
}

/* The products of the maps go from stage to stage, and back for the gradients: the sums are made in
 * the order in which one process makes them. The maps are those of the step's last micro-batch,
 * which the last stream of the last pipeline has run. */
static bk_status measure_line(bk_trainer *t) {
  const bk_pipeline *l = layout(t);
  int stages = l->schedule->stages, stream = l->schedule->streams - 1, chunk, slot;
  int64_t tokens = t->micro * t->recipe.seq_len;
  bk_gain_identity(t->gain, t->products, tokens);
  for (int pass = 0; pass < 2; pass++) {
    for (int i = 0; i < stages; i++) {
      int stage = pass == 0 ? i : stages - 1 - i;
      int p = bk_schedule_holder(l->schedule, stream, stage, &chunk);
      if (p == l->p) {
        const bk_chunk *c = bk_executor_nth_chunk(t->executor, chunk, &slot);
        BK_TRY(bk_gain_pass(t->gain, c, slot, pass == 1, t->products));
      }
      BK_TRY(pass_on(t, p));
    }
    if (pass == 1) break;
    if (l->p == bk_schedule_holder(l->schedule, stream, stages - 1, &chunk))
      bk_gain_total(t->gain, t->products, tokens);
    bk_gain_identity(t->gain, t->products, tokens);
  }
  return BK_OK;
}

/* Of each number all ranks but one have a zero. */
static bk_status add_gains(bk_trainer *t) {
  size_t n = bk_trainer_gain_numbers(t);
  double *all = t->gathered, *own = all + (size_t)t->ranks * n;
  bk_trainer_pack_gain(t->gain, own, true);
  BK_TRY(bk_comm_gather(t->model->options.comm, own, n * sizeof *own, all));
  memset(own, 0, n * sizeof *own);
  for (int r = 0; r < t->ranks; r++)
    for (size_t i = 0; i < n; i++) own[i] += all[(size_t)r * n + i];
  bk_trainer_pack_gain(t->gain, own, false);
  return BK_OK;
}

bk_status bk_trainer_gain_stages(bk_trainer *t) {
  const bk_pipeline *l = layout(t);
  bk_gain_reset(t->gain);
  if (!has_maps(t)) {
    bk_gain_add_maps(t->gain, NULL, t->micro * t->recipe.seq_len);
    bk_gain_finish(t->gain);
    return BK_OK;
  }
  if (l->d == l->dp - 1) BK_TRY(measure_line(t));
  if (t->ranks > 1) BK_TRY(add_gains(t));
  bk_gain_finish(t->gain);
  return BK_OK;
}

/* ---- after a step that is not finite ---- */

typedef struct stage_search {
  bk_trainer *t;
  bk_watch_search *search;
  bk_finding *finding;
} stage_search;

static bk_status feed_search(void *user, int64_t micro, const int32_t **ids,
                             const int32_t **targets) {
  return feed(((stage_search *)user)->t, micro, ids, targets);
}

/* What is not finite goes on to other stages: that with the smallest order came up first. Forward
 * counts before backward, then the micro-batch, then the sublayer, which backward counts from the
 * end. */
static int64_t order_of(const bk_trainer *t, int64_t micro, const bk_piece *piece) {
  enum { SUBLAYERS = 1 << 20 };
  int64_t last = 2 * t->model->config.num_hidden_layers, at = piece->sublayer;
  if (at < 0) at = piece->part == BK_PART_EMBED ? -1 : last;
  bool forward = piece->pass == BK_PASS_F;
  if (!forward) at = last - at;
  return (((int64_t)!forward << 40) + t->first_micro + micro) * SUBLAYERS + at + 1;
}

/* A rank that has found something goes on without looking: others wait for what it makes. */
static bk_status look(void *user, const bk_piece *piece) {
  stage_search *s = user;
  int slot;
  if (s->finding->suspect.found) return BK_OK;
  const bk_chunk *c = bk_executor_chunk(s->t->executor, piece, &slot);
  bk_status status = bk_watch_search_look(s->search, c, slot, piece);
  if (status != BK_ERR_NOT_FINITE) return status;
  int64_t micro = bk_executor_micro(s->t->executor, piece);
  char *text = s->finding->suspect.what;
  size_t used = strlen(text);
  s->finding->order = order_of(s->t, micro, piece);
  snprintf(text + used, sizeof s->finding->suspect.what - used, " in micro-batch %lld on rank %d",
           (long long)(micro + 1), s->t->rank);
  return BK_OK;
}

bk_status bk_trainer_search_stages(bk_trainer *t, bk_finding *finding) {
  stage_search s = {t, NULL, finding};
  BK_TRY(bk_watch_search_begin(t->model->ctx, &finding->suspect, &s.search));
  bk_executor_calls calls = {.feed = feed_search, .look = look, .user = &s};
  bk_status status = bk_executor_step(t->executor, &calls);
  bk_watch_search_end(s.search);
  return status;
}

/* ---- validation ---- */

typedef struct stage_windows {
  bk_trainer *t;
  int64_t first, end; /* of the batch in progress, and of all */
  int64_t tokens;
} stage_windows;

static bk_status feed_windows(void *user, int64_t micro, const int32_t **ids,
                              const int32_t **targets) {
  stage_windows *w = user;
  bk_trainer *t = w->t;
  (void)micro;
  w->tokens = 0;
  BK_TRY(bk_eval_batch(t->val, t->micro, t->recipe.seq_len, w->first, w->end, t->ids, t->targets,
                       &w->tokens));
  *ids = t->ids;
  *targets = t->targets;
  return BK_OK;
}

static bool has_last_stage(const bk_trainer *t) {
  int chunk;
  const bk_pipeline *l = layout(t);
  return bk_schedule_holder(l->schedule, 0, l->schedule->stages - 1, &chunk) == l->p;
}

/* Each batch is a step of its own on every rank; the losses are added as one process adds them. */
static bk_status evaluate_windows(stage_windows *w, bk_eval_result *sum) {
  bk_trainer *t = w->t;
  bk_executor_calls calls = {.feed = feed_windows, .user = w};
  bool counts = has_last_stage(t);
  for (int64_t n = 0; w->first < w->end; w->first += t->micro, n++) {
    bk_step_results step;
    BK_TRY(bk_step_begin(t->model, &(bk_step_values){.bc1 = 1, .bc2 = 1}));
    BK_TRY(bk_executor_evaluate(t->executor, n, &calls));
    BK_TRY(bk_step_end(t->model, &step));
    if (!counts) continue;
    sum->loss_sum += step.loss_sum;
    sum->tokens += w->tokens;
  }
  return BK_OK;
}

bk_status bk_trainer_evaluate_stages(bk_trainer *t, int64_t first, int64_t end,
                                     bk_eval_result *result) {
  bk_eval_result sum = {0};
  stage_windows w = {t, first, end, 0};
  BK_TRY(evaluate_windows(&w, &sum));
  BK_TRY(bk_executor_finish(t->executor));
  *result = sum;
  return BK_OK;
}
