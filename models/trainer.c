/* One training step after the other, and evaluation (birkhoff/train.h). A step is: the
 * micro-batches, whose gradients sum up in the model, the optimiser, and the reading of the
 * results. Whatever depends on the step's number is computed here and goes to the device in the
 * step block.
 *
 * A step whose loss or gradient norm is not finite is refused: the device has changed no weight
 * (BK_STEP_FINITE), and the step is run again with a look at every tensor, to say where the first
 * bad number came up.
 *
 * Of several ranks (parallel.h) each runs its share of a step's sequences, and all end the step
 * with the same loss, norm and loads. Where a step is refused, all refuse it; where something fails
 * on one rank, it aborts the group, so that none waits for it.
 *
 * The state of a run beside the model: the numbers of steps and tokens done. A resumed run sets
 * them (bk_trainer_set_step) and goes on with the same sequences, since the order of the data is a
 * function of seed and position. */
#include "models/trainer_priv.h"

#include "comm/comm.h"
#include "models/model_priv.h"
#include "models/profile.h"
#include "runtime/connection.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- training ---- */

/* Bytes of the host copy of the maps whose gain is measured. Kinds without comb need none: their
 * gain is 1. */
static size_t map_bytes(const bk_trainer *t) {
  const bk_model_config *c = &t->model->config;
  if (t->recipe.gain_every <= 0 || !bk_connection_kind_of((bk_hc_kind)c->residual)->comb) return 0;
  return (size_t)(t->model->n_sublayers * t->micro * t->recipe.seq_len * c->hc_mult * c->hc_mult) *
         sizeof(double);
}

/* Host memory for one micro-batch and for the loads of the experts. */
static bk_status make_buffers(bk_trainer *t) {
  bk_context *ctx = t->model->ctx;
  size_t tokens = (size_t)(t->micro * t->recipe.seq_len),
         experts = (size_t)t->model->config.n_routed_experts;
  size_t layers = (size_t)t->n_moe;
  t->ids = bk_alloc_array(ctx, tokens, sizeof *t->ids);
  t->targets = bk_alloc_array(ctx, tokens, sizeof *t->targets);
  t->load = bk_alloc_array(ctx, experts, sizeof *t->load);
  t->load_share = bk_alloc_array(ctx, layers * experts, sizeof *t->load_share);
  return t->ids && t->targets && t->load && t->load_share ? BK_OK : BK_ERR_MEMORY;
}

/* The runner of this rank's micro-batch k, and its number of sequences. */
static bk_runner *micro_runner(const bk_trainer *t, int64_t k, int64_t *sequences) {
  *sequences = t->count - k * t->micro < t->micro ? t->count - k * t->micro : t->micro;
  return *sequences == t->micro ? t->runner : t->tail;
}

/* A rank without sequences has a runner too: it validates. */
static bk_status make_runners(bk_trainer *t) {
  const bk_train_config *r = &t->recipe;
  if (t->model->options.pipeline) return bk_trainer_make_executor(t);
  bk_runner_options options = {.batch = t->micro,
                               .seq_len = r->seq_len,
                               .slots = 1,
                               .backward = true,
                               .hc_recompute = r->hc_recompute,
                               .recompute = r->recompute,
                               .merge_stream = r->merge_stream};
  BK_TRY(bk_runner_create(t->model, &options, &t->runner));
  options.batch = t->count % t->micro;
  return options.batch ? bk_runner_create(t->model, &options, &t->tail) : BK_OK;
}

/* Buckets are posted in the last micro-batch. A rank that has none follows the order that it would
 * have if it had one, which is that of the others. */
static bk_status make_optimizer(bk_trainer *t) {
  const bk_train_config *r = &t->recipe;
  bk_optimizer_options options = {r->adam_beta1, r->adam_beta2, r->adam_eps, r->weight_decay,
                                  t->all_micro};
  BK_TRY(bk_optimizer_create(t->model, &options, &t->optimizer));
  t->parallel = bk_optimizer_parallel(t->optimizer);
  if (!t->parallel) return BK_OK;
  if (t->executor) {
    int n;
    const bk_pass_run *runs = bk_executor_runs(t->executor, &n);
    bk_parallel_follow(t->parallel, runs, n);
    return BK_OK;
  }
  bk_parallel_follow_runner(t->parallel, t->tail ? t->tail : t->runner,
                            t->n_micro > 1 ? BK_MICRO_NEXT : BK_MICRO_FIRST);
  return BK_OK;
}

/* Everything that a run needs is made here, so that a step allocates nothing. */
static bk_status build(bk_trainer *t) {
  BK_TRY(make_runners(t));
  BK_TRY(make_optimizer(t));
  if (t->recipe.gain_every > 0) {
    int sublayers = 2 * (int)t->model->config.num_hidden_layers;
    BK_TRY(bk_gain_create(t->model->ctx, sublayers, (int)bk_model_streams(t->model), &t->gain));
    if (t->executor && !t->model->options.plan_only) BK_TRY(bk_trainer_reserve_gain(t));
    else if (map_bytes(t) && !t->model->options.plan_only)
      BK_TRY(bk_gain_reserve(t->gain, t->micro * t->recipe.seq_len, sublayers));
  }
  BK_TRY(make_buffers(t));
  if (!t->train) return BK_OK;
  return bk_readahead_create(t->train, t->recipe.seed, t->recipe.seq_len, t->micro, &t->ahead);
}

static int64_t share_begin(const bk_trainer *t, int share) {
  return t->recipe.batch_size * share / t->shares;
}

/* micro_batch_size is each share's; 0 stands for all of it, and in a pipeline for one sequence. */
static void find_share(bk_trainer *t) {
  const bk_pipeline *l = t->model->options.pipeline;
  int64_t most = t->recipe.micro_batch_size ? t->recipe.micro_batch_size : l ? 1 : 0;
  t->rank = l ? l->rank : bk_model_rank(t->model);
  t->ranks = l ? l->ranks : bk_model_ranks(t->model);
  t->share = l ? l->d : t->rank;
  t->shares = l ? l->dp : t->ranks;
  for (int r = 0; r < t->shares; r++) {
    int64_t begin = share_begin(t, r), count = share_begin(t, r + 1) - begin;
    int64_t micro = most && most < count ? most : count > 0 ? count : 1;
    int64_t n = (count + micro - 1) / micro;
    if (r == t->share) {
      t->begin = begin, t->count = count, t->micro = micro, t->n_micro = n;
      t->first_micro = t->all_micro;
    }
    t->all_micro += n;
  }
}

/* Without data a model that is only planned can be sized. */
static bk_status check_use(const bk_model *model, const bk_train_config *recipe,
                           const bk_dataset *train) {
  bool whole = model->n_sublayers == 2 * model->config.num_hidden_layers;
  if (!model->options.trainable || (!whole && !model->options.pipeline))
    return bk_fail(model->ctx, BK_ERR_ARGUMENT, "trainer: the model must be trainable and whole");
  if (recipe->micro_batch_size < 0 || recipe->batch_size < 1)
    return bk_fail(model->ctx, BK_ERR_ARGUMENT,
                   "trainer: batch_size %lld and micro_batch_size %lld; the first must be at least "
                   "1 and the second not negative",
                   (long long)recipe->batch_size, (long long)recipe->micro_batch_size);
  if (!train && model->options.plan_only) return BK_OK;
  return bk_dataset_check_seq_len(model->ctx, train, recipe->seq_len);
}

/* ---- what ranks tell one another ---- */

/* Whether a rank has made its trainer, and a number that is the same for the same configuration,
 * recipe and data. */
typedef struct readiness {
  int32_t status;
  uint32_t unused;
  uint64_t hash;
} readiness;

/* A gain as numbers: totals and tokens, then its arrays. */
size_t bk_trainer_gain_numbers(const bk_trainer *t) {
  const bk_model *m = t->model;
  size_t sublayers = 2 * (size_t)m->config.num_hidden_layers;
  size_t rows = 2 * sublayers * sizeof(bk_gain_row) / sizeof(double);
  return 3 + rows + (size_t)(bk_model_streams(m) * bk_model_streams(m));
}

/* Room for the largest of what is gathered, once for each rank and once for this one. */
static bk_status make_room(bk_trainer *t) {
  size_t most = sizeof(bk_finding), gain = bk_trainer_gain_numbers(t) * sizeof(double);
  size_t loads = (size_t)t->n_moe * (size_t)t->model->config.n_routed_experts * sizeof(double);
  if (gain > most) most = gain;
  if (loads > most) most = loads;
  t->gathered = bk_alloc_array(t->model->ctx, (size_t)t->ranks + 1, most);
  if (t->gathered) return BK_OK;
  bk_comm_abort(t->model->options.comm);
  return BK_ERR_MEMORY;
}

static uint64_t hash_options(uint64_t hash, const bk_option *options, const void *config) {
  char text[256];
  for (const bk_option *o = options; o->name; o++) {
    bk_option_value_text(o, config, text, sizeof text);
    uint64_t both[2] = {hash, bk_hash64(text, strlen(text))};
    hash = bk_hash64(both, sizeof both);
  }
  return hash;
}

static uint64_t hash_data(uint64_t hash, const bk_dataset *data) {
  uint64_t both[2] = {hash, data ? bk_dataset_hash(data) : 0};
  return bk_hash64(both, sizeof both);
}

/* All ranks have made their trainers from the same numbers, or all fail. */
static bk_status agree(const bk_trainer *t, bk_status status) {
  bk_context *ctx = t->model->ctx;
  const readiness *all = t->gathered;
  readiness own = {.status = status};
  own.hash = hash_options(own.hash, bk_model_keys, &t->model->config);
  own.hash = hash_options(own.hash, bk_train_keys, &t->recipe);
  own.hash = hash_data(hash_data(own.hash, t->train), t->val);
  BK_TRY(bk_comm_gather(t->model->options.comm, &own, sizeof own, t->gathered));
  if (status != BK_OK) return status;
  for (int r = 0; r < t->ranks; r++)
    if (all[r].status != BK_OK)
      return bk_fail(ctx, (bk_status)all[r].status,
                     "trainer: rank %d has failed to make its own: %s", r,
                     bk_status_name((bk_status)all[r].status));
  for (int r = 0; r < t->ranks; r++)
    if (all[r].hash != all[0].hash)
      return bk_fail(ctx, BK_ERR_COMM,
                     "trainer: rank %d has another configuration, recipe or data than rank 0", r);
  return bk_parallel_agree(t->parallel);
}

/* Room for gathering comes first: with it a rank that fails can say so. */
static bk_status trainer_fill(bk_trainer *t) {
  bool alone = t->ranks == 1 || t->model->options.plan_only;
  if (!alone) BK_TRY(make_room(t));
  bk_status status = check_use(t->model, &t->recipe, t->train);
  if (status == BK_OK) status = build(t);
  return alone ? status : agree(t, status);
}

bk_status bk_trainer_create(bk_model *model, const bk_train_config *recipe, const bk_dataset *train,
                            const bk_dataset *val, bk_trainer **trainer) {
  bk_trainer *t = bk_alloc(model->ctx, sizeof *t);
  if (!t) return BK_ERR_MEMORY;
  *t = (bk_trainer){.model = model, .recipe = *recipe, .train = train, .val = val};
  int64_t moe = model->config.num_hidden_layers - model->config.first_k_dense_replace;
  t->n_moe = moe > 0 ? (int)moe : 0;
  find_share(t);
  bk_status status = trainer_fill(t);
  if (status == BK_OK) *trainer = t;
  else bk_trainer_destroy(t);
  return status;
}

void bk_trainer_destroy(bk_trainer *t) {
  if (!t) return;
  bk_context *ctx = t->model->ctx;
  bk_free(ctx, t->gathered);
  bk_free(ctx, t->load_share);
  bk_free(ctx, t->load);
  bk_free(ctx, t->targets);
  bk_free(ctx, t->ids);
  bk_readahead_destroy(t->ahead);
  bk_gain_destroy(t->gain);
  bk_free(ctx, t->products);
  bk_optimizer_destroy(t->optimizer);
  bk_executor_destroy(t->executor);
  bk_runner_destroy(t->tail);
  bk_runner_destroy(t->runner);
  bk_free(ctx, t);
}

/* Bytes of the host copies of token ids and targets, in the runners, here and read ahead, and of
 * the maps. */
static size_t staging_bytes(const bk_trainer *t) {
  int64_t tail = t->tail ? bk_runner_tokens(t->tail) : 0;
  size_t copies = t->executor ? 2 : 4; /* an executor counts its own */
  size_t gain = t->executor ? bk_trainer_gain_bytes(t) : map_bytes(t);
  return (copies * (size_t)(t->micro * t->recipe.seq_len) + 2 * (size_t)tail) * sizeof(int32_t) +
         gain + bk_readahead_bytes(t->model->ctx, t->train, t->recipe.seq_len, t->micro);
}

/* The model is not counted; see bk_model_bytes. */
size_t bk_trainer_bytes(const bk_trainer *t, bk_memory_class c) {
  size_t passes = t->executor ? bk_executor_bytes(t->executor, c) : bk_runner_bytes(t->runner, c);
  return passes + (t->tail ? bk_runner_bytes(t->tail, c) : 0) +
         bk_optimizer_bytes(t->optimizer, c) + (c == BK_MEM_STAGING ? staging_bytes(t) : 0);
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

/* The micro-batch that is read after it, which may be the first of the next step, is read ahead. */
bk_status bk_trainer_read(const bk_trainer *t, int64_t k, int64_t sequences) {
  /* The number of sequences done so far. It comes from the tokens and not from step x batch_size,
   * since a resumed run may have another batch size. */
  int64_t begin = t->tokens / t->recipe.seq_len + t->begin;
  int64_t next = k + 1 < t->n_micro ? begin + (k + 1) * t->micro : begin + t->recipe.batch_size;
  return bk_readahead_get(t->ahead, begin + k * t->micro, sequences, next, t->ids, t->targets);
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

static bk_status run_micro_batch(bk_trainer *t, int64_t k) {
  int64_t sequences;
  bk_runner *runner = micro_runner(t, k, &sequences);
  BK_TRY(bk_trainer_read(t, k, sequences));
  BK_TRY(bk_runner_forward(runner, 0, t->ids, t->targets));
  BK_TRY(bk_optimizer_keep_loss(t->optimizer, t->first_micro + k));
  BK_TRY(end_part(t, &t->times.forward));
  BK_TRY(bk_runner_backward(runner, 0));
  return end_part(t, &t->times.backward);
}

/* Runs this rank's micro-batches of step t->step + 1; their gradients are summed in the model. In
 * the last one buckets of gradients are handed to the other ranks as they become whole. */
static bk_status run_micro_batches(bk_trainer *t) {
  if (t->executor) {
    BK_TRY(bk_trainer_run_stages(t));
    return end_part(t, &t->times.backward);
  }
  for (int64_t k = 0; k + 1 < t->n_micro; k++) BK_TRY(run_micro_batch(t, k));
  if (t->n_micro == 0) return bk_parallel_zero(t->parallel);
  int64_t sequences;
  bk_runner *last = micro_runner(t, t->n_micro - 1, &sequences);
  if (t->parallel) bk_runner_after(last, bk_parallel_after, t->parallel);
  bk_status status = run_micro_batch(t, t->n_micro - 1);
  bk_runner_after(last, NULL, NULL);
  return status;
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
  const bk_model *m = t->model;
  int64_t experts = m->config.n_routed_experts;
  memset(t->load_share, 0, (size_t)(t->n_moe * experts) * sizeof *t->load_share);
  for (int s = 0; s < m->n_sublayers; s++) {
    if (m->sublayers[s].moe_layer < 0) continue;
    int64_t layer = m->sublayers[s].index / 2 - m->config.first_k_dense_replace;
    bk_tensor load = bk_model_expert_load(m, m->sublayers[s].moe_layer);
    BK_TRY(bk_tensor_download(m->stream, &load, t->load));
    double sum = 0;
    for (int64_t e = 0; e < experts; e++) sum += t->load[e];
    for (int64_t e = 0; e < experts; e++)
      t->load_share[layer * experts + e] = sum > 0 ? t->load[e] / sum : 0;
  }
  return t->executor && t->ranks > 1 && t->n_moe ? bk_trainer_gather_loads(t) : BK_OK;
}

void bk_trainer_pack_gain(bk_gain *g, double *numbers, bool pack) {
  double tokens = (double)g->tokens;
  struct {
    void *data;
    size_t bytes;
  } parts[] = {{&tokens, sizeof tokens},
               {&g->total_forward, sizeof(double)},
               {&g->total_backward, sizeof(double)},
               {g->sublayers, (size_t)g->n_sublayers * sizeof *g->sublayers},
               {g->composite, (size_t)g->n_sublayers * sizeof *g->composite},
               {g->mean_composite, (size_t)(g->n * g->n) * sizeof(double)}};
  char *at = (char *)numbers;
  for (size_t i = 0; i < BK_COUNT(parts); at += parts[i++].bytes) {
    if (pack) memcpy(at, parts[i].data, parts[i].bytes);
    else memcpy(parts[i].data, at, parts[i].bytes);
  }
  g->tokens = (int64_t)tokens;
}

/* The step's last micro-batch is the last rank's, whose share is never empty. */
static bk_status measure_gain(bk_trainer *t) {
  int64_t sequences;
  size_t numbers = bk_trainer_gain_numbers(t);
  double *all = t->gathered, *own = all ? all + (size_t)t->ranks * numbers : NULL;
  if (t->executor) return bk_trainer_gain_stages(t);
  bk_gain_reset(t->gain);
  if (t->rank == t->ranks - 1) {
    BK_TRY(bk_gain_add(t->gain, micro_runner(t, t->n_micro - 1, &sequences), 0));
    bk_gain_finish(t->gain);
  }
  if (t->ranks == 1) return BK_OK;
  bk_trainer_pack_gain(t->gain, own, true);
  BK_TRY(bk_comm_gather(t->model->options.comm, own, numbers * sizeof *own, all));
  bk_trainer_pack_gain(t->gain, all + (size_t)(t->ranks - 1) * numbers, false);
  return BK_OK;
}

/* The maps are those of the step's last micro-batch, which are still in the runner. What all ranks
 * see is warned about by one. */
static bk_status read_gain(bk_trainer *t, bk_metrics_row *row) {
  t->gain_fresh = false;
  if (!due(row->step, t->recipe.gain_every, t->recipe.steps)) return BK_OK;
  BK_TRY(measure_gain(t));
  row->has_gain = t->gain_fresh = true;
  row->gain_forward = t->gain->total_forward;
  row->gain_backward = t->gain->total_backward;
  if (t->rank == 0)
    bk_watch_gain(t->model->ctx, &t->watch, row->step, row->gain_forward, row->gain_backward,
                  t->recipe.gain_limit);
  return BK_OK;
}

/* The windows that one rank would take, in contiguous parts; the sums of the parts are added in the
 * order of the ranks. */
static bk_status evaluate_shares(bk_trainer *t, bk_eval_result *result) {
  const bk_train_config *r = &t->recipe;
  int64_t batch = r->micro_batch_size ? r->micro_batch_size : r->batch_size;
  int64_t windows = bk_eval_windows(t->val, batch, r->seq_len, r->eval_tokens);
  int64_t first = windows * t->share / t->shares, end = windows * (t->share + 1) / t->shares;
  bk_eval_result own, *all = t->gathered;
  if (t->executor) BK_TRY(bk_trainer_evaluate_stages(t, first, end, &own));
  else
    BK_TRY(bk_eval_run(t->model, t->runner, t->micro, r->seq_len, t->ids, t->targets, t->val, first,
                       end, &own));
  if (t->ranks == 1) {
    *result = own;
    return BK_OK;
  }
  BK_TRY(bk_comm_gather(t->model->options.comm, &own, sizeof own, all));
  *result = (bk_eval_result){0};
  for (int i = 0; i < t->ranks; i++) {
    result->loss_sum += all[i].loss_sum;
    result->tokens += all[i].tokens;
  }
  return BK_OK;
}

/* Runs on the training runner: the step is over, and its activations are no longer needed. */
static bk_status validate(bk_trainer *t, bk_metrics_row *row) {
  if (!t->val || !due(row->step, t->recipe.eval_every, t->recipe.steps)) return BK_OK;
  bk_eval_result result;
  bk_profile_pause(t->model->profile, true);
  bk_status status = evaluate_shares(t, &result);
  bk_profile_pause(t->model->profile, false);
  BK_TRY(status);
  row->has_val = true;
  row->val_loss = result.tokens ? result.loss_sum / (double)result.tokens : NAN;
  return BK_OK;
}

/* Says in which micro-batch it was found, and of several ranks, on which. */
static void name_place(const bk_trainer *t, int64_t k, bk_suspect *suspect) {
  char *text = suspect->what;
  size_t used = strlen(text), size = sizeof suspect->what;
  if (t->ranks > 1)
    snprintf(text + used, size - used, " in micro-batch %lld on rank %d", (long long)(k + 1),
             t->rank);
  else if (t->n_micro > 1)
    snprintf(text + used, size - used, " in micro-batch %lld", (long long)(k + 1));
}

/* Runs the step again with a look at every tensor. The passes give the same bits as before, so
 * that the fault comes up again. A norm that overflows although all gradients are finite is blamed
 * on the largest gradient. A rank looks at its own micro-batches, without the others. */
static bk_status search(bk_trainer *t, const bk_step_values *values, bk_finding *own) {
  bk_suspect *suspect = &own->suspect;
  bk_step_results unused;
  BK_TRY(bk_step_begin(t->model, values));
  if (t->executor) {
    BK_TRY(bk_trainer_search_stages(t, own));
    BK_TRY(bk_step_end(t->model, &unused));
    if (suspect->found || isfinite(t->refusal.row.grad_norm)) return BK_OK;
    return bk_watch_largest_gradient(t->model, suspect, &own->largest);
  }
  bk_status status = t->n_micro ? BK_OK : bk_parallel_zero(t->parallel); /* of sums with others */
  for (int64_t k = 0; k < t->n_micro && status == BK_OK; k++) {
    int64_t sequences;
    bk_runner *runner = micro_runner(t, k, &sequences);
    status = bk_trainer_read(t, k, sequences);
    if (status == BK_OK) status = bk_watch_pass(runner, t->ids, t->targets, suspect);
    if (suspect->found) name_place(t, k, suspect);
  }
  BK_TRY(bk_step_end(t->model, &unused));
  if (status == BK_OK && !isfinite(t->refusal.row.grad_norm))
    return bk_watch_largest_gradient(t->model, suspect, &own->largest);
  return status == BK_ERR_NOT_FINITE ? BK_OK : status;
}

/* Of two ranks' findings that which tells more: the first that is not finite, else the largest
 * gradient. */
static const bk_finding *better(const bk_finding *a, const bk_finding *b) {
  bool bad_a = a->suspect.found && a->largest < 0, bad_b = b->suspect.found && b->largest < 0;
  if (bad_a != bad_b) return bad_a ? a : b;
  if (bad_a) return a->order <= b->order ? a : b;
  return a->largest >= b->largest ? a : b;
}

/* Of what the ranks have found, the first that is not finite counts; where none is, the largest
 * gradient. */
static bk_status find_cause(bk_trainer *t, const bk_step_values *values, bk_suspect *suspect) {
  bk_finding own = {.largest = -1, .order = t->rank}, *all = t->gathered;
  own.status = search(t, values, &own);
  *suspect = own.suspect;
  if (t->ranks == 1) return (bk_status)own.status;
  BK_TRY(bk_comm_gather(t->model->options.comm, &own, sizeof own, all));
  const bk_finding *best = &all[0];
  bool failed = false;
  for (int r = 0; r < t->ranks; r++) {
    best = better(best, &all[r]);
    failed |= all[r].status != BK_OK;
  }
  *suspect = best->suspect;
  return failed && !suspect->found ? BK_ERR_DEVICE : BK_OK;
}

/* The row of a refused step is kept for its reader, without the loads, which were not read. All
 * ranks refuse alike, and one of them says so. */
static bk_status refuse(bk_trainer *t, const bk_metrics_row *row, const bk_step_values *values) {
  bk_suspect suspect = {.found = false};
  t->refusal = (bk_refusal){.row = *row};
  t->refusal.row.n_layers = 0; /* no loads were read */
  bk_profile_pause(t->model->profile, true);
  bk_status searched = find_cause(t, values, &suspect);
  bk_profile_pause(t->model->profile, false);
  if (searched == BK_ERR_COMM) return searched;
  if (searched != BK_OK) snprintf(suspect.what, sizeof suspect.what, "unknown, the search failed");
  else if (!suspect.found)
    snprintf(suspect.what, sizeof suspect.what,
             "nothing, when the step was done again: a fault of the machine?");
  t->refusal.again = suspect.found;
  t->refusal.in_forward = suspect.found && suspect.in_forward;
  snprintf(t->refusal.first, sizeof t->refusal.first, "%s", suspect.what);
  bk_log(t->model->ctx, t->rank == 0 ? BK_LOG_ERROR : BK_LOG_DEBUG,
         "step %lld: loss %g, gradient norm %g: not finite, first of all: %s; the weights are as "
         "they were before the step",
         (long long)row->step, bk_unsigned_nan(row->loss), bk_unsigned_nan(row->grad_norm),
         suspect.what);
  return BK_ERR_NOT_FINITE;
}

/* What went between the ranks in this step; bytes are those that all have sent. */
static bk_status read_comm(bk_trainer *t, bk_metrics_row *row) {
  bk_comm_stats now;
  double own, *all = t->gathered;
  if (t->ranks == 1) return BK_OK;
  bk_comm_statistics(t->model->options.comm, &now);
  own = now.bytes_sent - t->before.bytes_sent;
  BK_TRY(bk_comm_gather(t->model->options.comm, &own, sizeof own, all));
  row->has_comm = true;
  row->comm_wait_s = now.wait_s - t->before.wait_s;
  row->comm_busy_s = now.busy_s - t->before.busy_s;
  for (int r = 0; r < t->ranks; r++) row->comm_bytes += all[r];
  return BK_OK;
}

/* All of the device's work of the step is enqueued before bk_step_end waits for it once. */
static bk_status run_step(bk_trainer *t, const bk_step_values *values, bk_step_results *results) {
  BK_TRY(bk_step_begin(t->model, values));
  if (t->parallel) {
    bk_parallel_begin(t->parallel);
    bk_comm_statistics(t->model->options.comm, &t->before);
  }
  BK_TRY(run_micro_batches(t));
  BK_TRY(bk_optimizer_step(t->optimizer));
  BK_TRY(bk_step_end(t->model, results));
  return end_part(t, &t->times.optimizer);
}

/* The loss of each token is scaled by 1 / (tokens of the step), so that gradients do not depend on
 * how the batch is cut into micro-batches and ranks, except for rounding. The time that
 * tokens_per_s reports covers the step alone, without validation and measurements. */
static bk_status do_step(bk_trainer *t, bk_metrics_row *row) {
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
  t->refusal.row.step = 0;
  t->lap = begin;
  BK_TRY(run_step(t, &values, &results));
  bk_metrics_row made = {.step = step,
                         .tokens = t->tokens + r->batch_size * r->seq_len,
                         .loss = results.loss_sum / tokens,
                         .lr = values.lr,
                         .grad_norm = results.grad_norm,
                         .n_layers = t->n_moe,
                         .n_experts = (int)t->model->config.n_routed_experts,
                         .expert_load = t->load_share};
  made.tokens_per_s = tokens / (bk_context_seconds(t->model->ctx) - begin);
  BK_TRY(read_comm(t, &made));
  if (!results.finite) return refuse(t, &made, &values);
  /* from here on the step counts, even if reading its loads or validating fails */
  if (t->rank == 0) bk_watch_norm(t->model->ctx, &t->watch, step, made.grad_norm, r->spike_factor);
  bk_trainer_set_step(t, step, made.tokens);
  BK_TRY(read_loads(t));
  BK_TRY(read_gain(t, &made));
  BK_TRY(validate(t, &made));
  *row = made;
  return BK_OK;
}

/* A step that is refused is refused by all ranks. What fails on this one alone must not leave the
 * others waiting for it. */
bk_status bk_trainer_step(bk_trainer *t, bk_metrics_row *row) {
  bk_status status = do_step(t, row);
  if (t->parallel && status != BK_OK && status != BK_ERR_NOT_FINITE)
    bk_parallel_give_up(t->parallel);
  return status;
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
  if (t->executor)
    return bk_fail(t->model->ctx, BK_ERR_UNSUPPORTED,
                   "the calls of a step are listed of a model that is whole");
  return bk_list_step(t->runner, t->optimizer, t->n_micro > 1, each, user);
}
