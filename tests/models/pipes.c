#include "tests/models/pipes.h"

#include "io/dataset.h"
#include "models/shards.h"

#include <math.h>
#include <stdlib.h>

/* Ranks of one run at a time. */
static pipes *now;

/* What a rank has, to be taken down again in one place. */
typedef struct rig {
  bk_schedule *schedule;
  bk_pipeline *layout;
  bk_model *model;
  bk_dataset *train, *val;
  bk_trainer *trainer;
  bk_profile *profile;
  bk_executor *executor;
  bk_runner *runner;
  int32_t ids[2][64]; /* tokens and targets of a micro-batch */
} rig;

/* ---- parameters ---- */

static double *read_all(const bk_model *m, bk_tensor t) {
  double *v = bk_alloc_array(m->ctx, (size_t)bk_tensor_count(&t), sizeof *v);
  if (!v || bk_tensor_read_f64(m->stream, &t, v) == BK_OK) return v;
  bk_free(m->ctx, v);
  return NULL;
}

/* Noise on what begins constant, so that no gradient is zero by symmetry. It depends on the name:
 * ranks have different parameters. */
static bk_status enliven(bk_model *m) {
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    if (p->init == BK_INIT_NORMAL) continue;
    bk_tensor w = bk_param_weight(m, p);
    uint64_t name = bk_hash64(p->name, strlen(p->name));
    double *v = read_all(m, w);
    if (!v) return BK_ERR_MEMORY;
    for (int64_t k = 0; k < bk_tensor_count(&w); k++)
      v[k] += 0.1 * bk_normal(11, name, (uint64_t)k);
    bk_status status = bk_tensor_write_f64(m->stream, &w, v);
    bk_free(m->ctx, v);
    BK_TRY(status);
  }
  return BK_OK;
}

/* The number of a parameter in the whole model. */
static int whole_index(const pipes *p, const char *name) {
  for (int i = 0; i < p->whole->n_params; i++)
    if (strcmp(p->whole->params[i].name, name) == 0) return i;
  return -1;
}

static void note(pipes *p, pipes_part part, int64_t at, const double *v, int64_t n,
                 const char *name) {
  for (int64_t k = 0; k < n; k++) {
    bool seen = p->seen[part][at + k]++;
    if (part == PIPES_WEIGHT && seen && memcmp(&p->part[part][at + k], &v[k], sizeof *v) != 0)
      snprintf(p->differs, sizeof p->differs, "%s", name);
    p->part[part][at + k] = v[k];
  }
}

/* A part of a slice. */
static bk_status note_tensor(pipes *p, const bk_model *m, pipes_part part, bk_tensor t, int64_t at,
                             const char *name) {
  if (!bk_tensor_present(&t)) return BK_OK;
  double *v = read_all(m, t);
  if (!v) return BK_ERR_MEMORY;
  note(p, part, at, v, bk_tensor_count(&t), name);
  bk_free(m->ctx, v);
  return BK_OK;
}

/* What this rank has of the sum of all gradients. */
static bk_status note_grads(pipes *p, const bk_model *m) {
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *q = &m->params[i];
    bk_tensor g = bk_param_grad(m, q);
    int64_t at = p->at[whole_index(p, q->name)];
    if (!bk_tensor_present(&g)) continue;
    double *v = read_all(m, g);
    if (!v) return BK_ERR_MEMORY;
    for (bk_slice s = {0}; bk_param_next_slice(m, q, &s);)
      note(p, PIPES_GRAD, at + s.begin, v + s.begin, s.count, q->name);
    bk_free(m->ctx, v);
  }
  return BK_OK;
}

/* The executor's gradients, which are not summed over ranks yet. */
static bk_status add_grads(pipes *p, const bk_model *m) {
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor g = bk_param_grad(m, &m->params[i]);
    int64_t at = p->at[whole_index(p, m->params[i].name)];
    if (!bk_tensor_present(&g)) continue;
    double *v = read_all(m, g);
    if (!v) return BK_ERR_MEMORY;
    for (int64_t k = 0; k < bk_tensor_count(&g); k++) {
      p->part[PIPES_GRAD][at + k] += v[k];
      p->seen[PIPES_GRAD][at + k] = 1;
    }
    bk_free(m->ctx, v);
  }
  return BK_OK;
}

static bk_status note_state(pipes *p, const bk_model *m) {
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *q = &m->params[i];
    int64_t at = p->at[whole_index(p, q->name)];
    BK_TRY(note_tensor(p, m, PIPES_WEIGHT, bk_param_weight(m, q), at, q->name));
    for (bk_slice s = {0}; bk_param_next_slice(m, q, &s);) {
      BK_TRY(note_tensor(p, m, PIPES_MASTER, s.master, at + s.begin, q->name));
      BK_TRY(note_tensor(p, m, PIPES_M, s.m, at + s.begin, q->name));
      BK_TRY(note_tensor(p, m, PIPES_V, s.v, at + s.begin, q->name));
    }
  }
  return BK_OK;
}

static bk_status fall_ill(bk_model *m, const pipes_ill *ill) {
  const bk_param *p = bk_model_find(m, ill->name);
  if (!p) return BK_OK;
  bk_tensor w = bk_param_weight(m, p);
  double *v = read_all(m, w);
  if (!v) return BK_ERR_MEMORY;
  if (isnan(ill->factor)) v[0] = NAN;
  else
    for (int64_t i = 0; i < bk_tensor_count(&w); i++) v[i] *= ill->factor;
  bk_status status = bk_tensor_write_f64(m->stream, &w, v);
  bk_free(m->ctx, v);
  return status;
}

/* ---- one rank ---- */

static bk_chunk_options chunk_options(const rank *r) {
  const bk_train_config *t = &now->s.recipe;
  return (bk_chunk_options){.batch = t->micro_batch_size,
                            .seq_len = t->seq_len - (now->s.other_tokens == r->rank + 1),
                            .slots = 1,
                            .backward = true,
                            .hc_recompute = t->hc_recompute,
                            .recompute = t->recompute,
                            .merge_stream = t->merge_stream};
}

static bk_status open_layout(rank *r, rig *g) {
  const pipes_spec *s = &now->s;
  const bk_train_config *t = &s->recipe;
  int micros = (int)(t->batch_size / t->micro_batch_size / s->dp);
  if (!s->schedule) return BK_OK;
  if (strchr(s->schedule, '/')) BK_TRY(bk_schedule_read(r->ctx, s->schedule, &g->schedule));
  else BK_TRY(bk_schedule_create(r->ctx, s->schedule, s->pp, micros, &g->schedule));
  if (s->tamper) BK_TRY(s->tamper(r, g->schedule));
  bk_pipeline_options o = {.schedule = g->schedule, .stages = s->stages, .seq_len = t->seq_len};
  return bk_pipeline_create(r->ctx, r->comm, &s->config, &o, &g->layout);
}

static bk_status open_rank(rank *r, rig *g) {
  const pipes_spec *s = &now->s;
  bk_dataset_options text = {.vocab_size = s->config.vocab_size, .split = BK_SPLIT_ALL};
  bk_chunk_options chunk = chunk_options(r);
  bk_model_options o = {.trainable = true};
  BK_TRY(open_layout(r, g));
  o.pipeline = g->layout;
  if (g->layout || r->size > 1) o.comm = r->comm;
  BK_TRY(bk_model_create(r->device, &s->config, s->dtype, &o, &g->model));
  BK_TRY(bk_model_init(g->model, 7));
  if (!s->steps) {
    BK_TRY(enliven(g->model));
    return g->layout ? bk_executor_create(g->model, &chunk, &g->executor)
                     : bk_runner_create(g->model, &chunk, &g->runner);
  }
  BK_TRY(bk_dataset_open(r->ctx, &now->text, 1, &text, &g->train));
  BK_TRY(bk_dataset_open(r->ctx, &now->text, 1, &text, &g->val));
  BK_TRY(bk_trainer_create(g->model, &s->recipe, g->train, g->val, &g->trainer));
  return s->profiled ? bk_profile_create(g->model, &g->profile) : BK_OK;
}

static void close_rank(rig *g, rank *r) {
  bk_executor_destroy(g->executor);
  bk_runner_destroy(g->runner);
  bk_profile_destroy(g->profile);
  bk_trainer_destroy(g->trainer);
  bk_model_destroy(g->model);
  bk_dataset_close(g->val);
  bk_dataset_close(g->train);
  bk_pipeline_destroy(g->layout);
  bk_schedule_destroy(r->ctx, g->schedule);
}

/* ---- steps of a trainer ---- */

typedef struct allocations {
  size_t host;
  uint64_t device;
} allocations;

static allocations count_allocations(const rank *r) {
  bk_memory_stats stats;
  bk_context_memory_stats(r->ctx, &stats);
  return (allocations){stats.allocations, r->device->buffer_allocs};
}

static void add_loads(pipes_outcome *o, const bk_metrics_row *row) {
  for (int e = 0; e < row->n_layers * row->n_experts; e++)
    o->loads += row->expert_load[e] * (e * e + 1 + 100 * (double)row->step);
}

static bk_status train(rank *r, rig *g, pipes_outcome *o) {
  bk_status status = BK_OK;
  for (int step = 1; step <= now->s.steps && status == BK_OK; step++) {
    for (size_t i = 0; step == 2 && i < BK_COUNT(now->s.ill) && now->s.ill[i].name; i++)
      BK_TRY(fall_ill(g->model, &now->s.ill[i]));
    allocations before = count_allocations(r);
    status = bk_trainer_step(g->trainer, &o->rows[step - 1]);
    allocations after = count_allocations(r);
    if (status != BK_OK) break;
    o->allocates |= step > 2 && memcmp(&before, &after, sizeof before) != 0;
    add_loads(o, &o->rows[step - 1]);
    if (step > 1) continue;
    pthread_mutex_lock(&now->lock);
    status = note_grads(now, g->model);
    pthread_mutex_unlock(&now->lock);
  }
  const bk_refusal *refusal = bk_trainer_refusal(g->trainer);
  if (refusal) snprintf(o->refusal, sizeof o->refusal, "%s", refusal->first);
  const bk_gain *gain = bk_trainer_gain(g->trainer);
  if (!gain) return status;
  o->gain[0] = gain->total_forward;
  o->gain[1] = gain->total_backward;
  for (int i = 0; i < gain->n * gain->n; i++)
    o->mean_composite += gain->mean_composite[i] * (i * i + 1);
  return status;
}

/* ---- one step of the executor, or of a runner ---- */

/* The same tokens for micro-batch `micro`, whoever asks. Some targets are ignored. */
static bk_status feed(void *user, int64_t micro, const int32_t **ids, const int32_t **targets) {
  rig *g = user;
  const bk_train_config *t = &now->s.recipe;
  int64_t n = t->micro_batch_size * t->seq_len, vocab = now->s.config.vocab_size;
  for (int64_t i = 0; i < n; i++) {
    uint64_t seed = 70 + (uint64_t)micro;
    g->ids[0][i] = (int32_t)(bk_uniform(seed, 1, (uint64_t)i) * (double)vocab);
    g->ids[1][i] = i % 5 == 3 ? -100 : (int32_t)(bk_uniform(seed, 2, (uint64_t)i) * (double)vocab);
  }
  *ids = g->ids[0];
  *targets = g->ids[1];
  return BK_OK;
}

static _Thread_local rank *own;
static bk_status look(void *user, const bk_piece *piece) {
  (void)user;
  return now->s.look(own, now, piece);
}

static bk_status run_passes(rig *g) {
  const bk_train_config *t = &now->s.recipe;
  const int32_t *ids, *targets;
  bk_executor_calls calls = {.feed = feed, .look = now->s.look ? look : NULL, .user = g};
  if (g->executor) return bk_executor_step(g->executor, &calls);
  for (int64_t k = 0; k < t->batch_size / t->micro_batch_size; k++) {
    BK_TRY(feed(g, k, &ids, &targets));
    BK_TRY(bk_runner_forward(g->runner, 0, ids, targets));
    BK_TRY(bk_runner_backward(g->runner, 0));
  }
  return BK_OK;
}

static bk_status step_once(rank *r, rig *g, pipes_outcome *o) {
  bk_step_results results;
  own = r;
  BK_TRY(bk_step_begin(g->model, &(bk_step_values){.bc1 = 1, .bc2 = 1, .loss_scale = 0.02}));
  BK_TRY(run_passes(g));
  BK_TRY(bk_step_end(g->model, &results));
  o->loss = results.loss_sum;
  pthread_mutex_lock(&now->lock);
  bk_status status = add_grads(now, g->model);
  pthread_mutex_unlock(&now->lock);
  return status;
}

/* Each message is one exchange at either end. */
static void look_at_profile(const rig *g, pipes_outcome *o) {
  const bk_schedule_rank *own_list = &g->schedule->rank[bk_pipeline_rank(g->layout)];
  bk_profile_exchange_get(g->profile, BK_TALK_EXCHANGE, &o->exchange);
  for (int i = 0; i < own_list->n_records; i++)
    for (int side = 0; side < 2; side++) {
      const bk_schedule_record *r = &own_list->records[i];
      int me = bk_pipeline_rank(g->layout), from = r->receive[side].peer, to = r->send[side].peer;
      o->messages += (from >= 0 && from != me) + (to >= 0 && to != me);
    }
  o->messages *= now->s.steps - 1;
}

static bk_status work(rank *r, rig *g, pipes_outcome *o) {
  BK_TRY(open_rank(r, g));
  double begin = bk_context_seconds(r->ctx);
  bk_status status = now->s.steps ? train(r, g, o) : step_once(r, g, o);
  o->seconds = bk_context_seconds(r->ctx) - begin;
  BK_TRY(status);
  if (g->profile && g->layout) look_at_profile(g, o);
  pthread_mutex_lock(&now->lock);
  status = note_state(now, g->model);
  pthread_mutex_unlock(&now->lock);
  return status;
}

static void body(rank *r) {
  pipes_outcome *o = &now->out[r->rank];
  rig g = {0};
  o->status = work(r, &g, o);
  r->abandon = o->status != BK_OK;
  close_rank(&g, r);
}

/* ---- all ranks ---- */

/* Names and places are those of a model that is only planned. */
static void find_places(pipes *p) {
  bk_device_options one = {.threads = 1};
  const pipes_spec *s = &p->s;
  ck_assert_int_eq(bk_device_open_backend(p->ctx, s->backend, &one, &p->device), BK_OK);
  ck_assert_int_eq(
      bk_model_create(p->device, &s->config, s->dtype,
                      &(bk_model_options){.trainable = true, .plan_only = true}, &p->whole),
      BK_OK);
  p->at = calloc((size_t)p->whole->n_params, sizeof *p->at);
  for (int i = 0; i < p->whole->n_params; i++) {
    bk_tensor w = bk_param_weight(p->whole, &p->whole->params[i]);
    p->at[i] = p->n;
    p->n += bk_tensor_count(&w);
  }
}

pipes *pipes_run(bk_context *ctx, const pipes_spec *spec, const char *text) {
  pipes *p = calloc(1, sizeof *p);
  p->s = *spec;
  p->ctx = ctx;
  p->text = text;
  find_places(p);
  for (int i = 0; i < PIPES_PARTS; i++) {
    p->part[i] = calloc((size_t)p->n, sizeof *p->part[i]);
    p->seen[i] = calloc((size_t)p->n, 1);
  }
  pthread_mutex_init(&p->lock, NULL);
  p->all = (ranks){.size = spec->pp * spec->dp,
                   .backend = spec->backend,
                   .threads = 1,
                   .timeout_s = spec->timeout_s > 0 ? spec->timeout_s : 60,
                   .seed = spec->disturb,
                   .body = body};
  now = p;
  ranks_run(&p->all, ctx);
  now = NULL;
  return p;
}

void pipes_free(pipes *p) {
  for (int i = 0; i < PIPES_PARTS; i++) {
    free(p->part[i]);
    free(p->seen[i]);
  }
  free(p->at);
  bk_model_destroy(p->whole);
  bk_device_close(p->device);
  pthread_mutex_destroy(&p->lock);
  free(p);
}

/* ---- comparisons ---- */

/* Whether the trained elements of a parameter are each one rank's; the weights are some rank's. */
static void check_seen(const pipes *p, const char *what) {
  bool masters = p->s.dtype == BK_BF16;
  for (int i = 0; i < p->whole->n_params; i++) {
    const bk_param *q = &p->whole->params[i];
    bk_tensor w = bk_param_weight(p->whole, q);
    bool trained = bk_param_trainable(p->whole, q);
    for (int64_t k = 0; k < bk_tensor_count(&w); k++) {
      int64_t at = p->at[i] + k;
      bool good = p->seen[PIPES_WEIGHT][at] >= 1 && p->seen[PIPES_GRAD][at] == trained;
      if (p->s.steps)
        good &= p->seen[PIPES_M][at] == trained && p->seen[PIPES_V][at] == trained &&
                p->seen[PIPES_MASTER][at] == (trained && masters && w.dtype == BK_BF16);
      ck_assert_msg(good, "%s: %s: element %lld is not once on the ranks that hold it", what,
                    q->name, (long long)k);
    }
  }
}

static void check_rows_agree(const pipes *p, int r, const char *what) {
  const pipes_outcome *a = &p->out[r], *b = &p->out[0];
  for (int i = 0; i < p->s.steps; i++) {
    const bk_metrics_row *x = &a->rows[i], *y = &b->rows[i];
    ck_assert_msg(x->loss == y->loss && x->grad_norm == y->grad_norm &&
                      x->comm_bytes == y->comm_bytes && x->val_loss == y->val_loss,
                  "%s: ranks 0 and %d have different rows of step %d", what, r, i + 1);
  }
  ck_assert_msg(a->loads == b->loads, "%s: ranks 0 and %d have different loads", what, r);
  ck_assert(memcmp(a->gain, b->gain, sizeof a->gain) == 0);
  ck_assert(a->mean_composite == b->mean_composite);
}

void pipes_check_ended(const pipes *p, const char *what) {
  for (int r = 0; r < p->all.size; r++)
    ck_assert_msg(p->out[r].status == BK_OK && !p->all.rank[r].messages[0],
                  "%s: rank %d of %d: %s\n%s", what, r, p->all.size,
                  bk_status_name(p->out[r].status), p->all.rank[r].messages);
  ck_assert_msg(!p->differs[0], "%s: ranks have different weights %s", what, p->differs);
  check_seen(p, what);
  for (int r = 0; r < p->all.size; r++) {
    ck_assert_msg(!p->out[r].allocates, "%s: rank %d allocates in a step", what, r);
    check_rows_agree(p, r, what);
  }
}

static bool is_close(double a, double b, double bound) {
  return bound > 0 ? fabs(a - b) <= bound * fabs(b) : memcmp(&a, &b, sizeof a) == 0;
}

static void check_number(double a, double b, double bound, const char *what, const char *name) {
  ck_assert_msg(is_close(a, b, bound), "%s: %s is %.17g, not %.17g", what, name, a, b);
}

static void check_rows(const pipes *p, const pipes *one, double bound, const char *what) {
  const pipes_outcome *a = &p->out[0], *b = &one->out[0];
  for (int i = 0; i < p->s.steps; i++) {
    const bk_metrics_row *x = &a->rows[i], *y = &b->rows[i];
    ck_assert(x->has_gain == y->has_gain && x->has_val == y->has_val);
    check_number(x->loss, y->loss, bound, what, "a loss");
    check_number(x->grad_norm, y->grad_norm, bound, what, "a gradient norm");
    if (x->has_gain) check_number(x->gain_forward, y->gain_forward, bound, what, "a gain");
    if (x->has_val) check_number(x->val_loss, y->val_loss, bound, what, "a validation loss");
  }
  check_number(a->gain[0], b->gain[0], bound, what, "the composite gain forward");
  check_number(a->gain[1], b->gain[1], bound, what, "the composite gain backward");
  check_number(a->mean_composite, b->mean_composite, bound, what, "the mean of the maps");
  check_number(a->loads, b->loads, bound, what, "the sum of the loads");
}

/* The losses of ranks without the head are 0. */
static double sum_losses(const pipes *p) {
  double sum = 0;
  for (int r = 0; r < p->all.size; r++) sum += p->out[r].loss;
  return sum;
}

static void check_part(const pipes *p, const pipes *one, pipes_part part, double bound,
                       const char *what) {
  static const char *const names[] = {"weights", "gradients", "masters", "first moments",
                                      "second moments"};
  const double *a = p->part[part], *b = one->part[part];
  double d = 0, q = 0;
  if (memcmp(a, b, (size_t)p->n * sizeof *a) == 0) return;
  for (int64_t i = 0; i < p->n; i++) d += (a[i] - b[i]) * (a[i] - b[i]), q += b[i] * b[i];
  for (int i = 0; bound == 0 && i < p->whole->n_params; i++) {
    bk_tensor w = bk_param_weight(p->whole, &p->whole->params[i]);
    bool same = memcmp(a + p->at[i], b + p->at[i], (size_t)bk_tensor_count(&w) * sizeof *a) == 0;
    ck_assert_msg(same, "%s: %s of %s differ; all of them are %.3g apart", what, names[part],
                  p->whole->params[i].name, sqrt(d / q));
  }
  ck_assert_msg(sqrt(d / q) <= bound, "%s: %s are %.3g apart", what, names[part], sqrt(d / q));
}

void pipes_check_equal(const pipes *p, const pipes *one, double bound, const char *what) {
  pipes_check_ended(p, what);
  ck_assert_int_eq(p->n, one->n);
  if (p->s.steps) check_rows(p, one, bound, what);
  else check_number(sum_losses(p), sum_losses(one), bound, what, "the loss");
  for (int i = 0; i < PIPES_PARTS; i++) check_part(p, one, (pipes_part)i, bound, what);
}
