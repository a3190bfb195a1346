/* Data parallel training: ranks that are threads of this program, each with a context, a device, a
 * model and a trainer of its own, against one rank: losses, gradients, weights, what each rank
 * keeps, refusals and failures of one rank. A rank's thread asserts nothing; the test looks at what
 * it leaves. */
#include "tests/models/models.h"

#include "comm/comm.h"
#include "comm/engine.h"
#include "comm/threads.h"
#include "models/profile.h"
#include "models/shards.h"
#include "models/trainer.h"

#include <pthread.h>

enum { RANKS = 8, STEPS = 20 };

/* ---- what is to be done ---- */

typedef struct spec {
  const char *device;
  bk_dtype dtype;
  bk_model_config config;
  bk_train_config recipe;
  int ranks, steps;
  uint64_t disturb; /* seed of the random delays; 0: none */
  int sick;         /* a rank that has a token in step 2 whose streams overflow; -1: none */
  int failing;      /* a rank whose device fails in step 2; -1: none */
  bool late;        /* when the gradients have been exchanged; otherwise before */
  int other;        /* a rank with another learning rate; -1: none */
  bool watched;     /* posts are counted, in step 2 */
  bool stored;      /* after the steps a moment of the last rank is made infinite */
  bool planned;     /* nothing runs: only sizes */
  bool profiled;
} spec;

/* What a rank leaves. */
typedef struct outcome {
  bk_status status; /* of the first call that failed, or BK_OK */
  char messages[2048];
  bk_metrics_row rows[STEPS];
  double *weights; /* after the last step */
  int64_t n_weights;
  double loads; /* all shares of the first step, each times a number of its own */
  double gain;
  size_t kept, allocations;
  uint64_t buffers;
  bool allocates;   /* in the steps after the second */
  bool slices;      /* the slices of all parameters are in order and within them */
  int early, late;  /* buckets that were posted before the backward pass had ended, and after */
  char stored[192]; /* what is not finite, in words */
  bk_profile_exchange exchanges[BK_TALK_COUNT]; /* with a profile; of all steps but the first */
  double sent; /* bytes of reduce_scatter and all_gather in one step, as they should be */
  int n_shards;
  bool talks; /* the list of the last step is whole, and its parts of time do not overlap */
  char *trace;
  bk_status looked, read; /* of bk_model_check_finite, and of reading a moment */
} outcome;

typedef struct job {
  spec s;
  const char *text;
  bk_thread_world *world;
  outcome out[RANKS];
  /* by element of the gradients' memory: after the first step, and how often it was covered */
  double *grads;
  uint8_t *covered;
  uint8_t *sliced; /* the same by the slices of parameters */
  int64_t n_grads;
  pthread_mutex_t lock; /* of the two above */
  bk_stream_ops broken; /* of the failing rank */
} job;

typedef struct rank_arg {
  job *j;
  int rank;
} rank_arg;

/* What a rank has, to be taken down again in one place. */
typedef struct rank_rig {
  bk_context *c;
  bk_engine *engine;
  bk_device *device;
  bk_comm *comm;
  bk_model *model;
  bk_dataset *train, *val;
  bk_trainer *trainer;
  bk_profile *profile;
} rank_rig;

static void rank_log(void *user, bk_log_level level, const char *message) {
  outcome *o = user;
  if (level > BK_LOG_WARN) return;
  size_t used = strlen(o->messages);
  snprintf(o->messages + used, sizeof o->messages - used, "%s\n", message);
}

/* ---- one rank ---- */

static bk_status rank_open(const job *j, int rank, rank_rig *r) {
  const spec *s = &j->s;
  bk_device_options device = {.threads = 1};
  bk_dataset_options text = {.vocab_size = 257, .split = BK_SPLIT_ALL};
  bk_model_options model = {.trainable = true, .plan_only = s->planned};
  BK_TRY(bk_device_open(r->c, s->device, &device, &r->device));
  if (s->ranks > 1) {
    bk_job_options o = {.rank = rank, .size = s->ranks, .timeout_s = 60, .world = j->world};
    BK_TRY(bk_engine_open(r->c, &bk_transport_threads, &o, &r->engine));
    BK_TRY(bk_engine_comm(r->engine, r->device, &r->comm));
  }
  model.comm = r->comm;
  BK_TRY(bk_dataset_open(r->c, &j->text, 1, &text, &r->train));
  BK_TRY(bk_dataset_open(r->c, &j->text, 1, &text, &r->val));
  BK_TRY(bk_model_create(r->device, &s->config, s->dtype, &model, &r->model));
  if (!s->planned) BK_TRY(bk_model_init(r->model, 7));
  bk_train_config recipe = s->recipe;
  if (s->other == rank) recipe.lr *= 2;
  BK_TRY(bk_trainer_create(r->model, &recipe, r->train, r->val, &r->trainer));
  return s->profiled ? bk_profile_create(r->model, &r->profile) : BK_OK;
}

static void rank_close(rank_rig *r, bool abandon) {
  bk_profile_destroy(r->profile);
  bk_trainer_destroy(r->trainer);
  bk_model_destroy(r->model);
  bk_dataset_close(r->val);
  bk_dataset_close(r->train);
  bk_comm_destroy(r->comm);
  if (r->engine) bk_engine_close(r->engine, abandon);
  if (r->device) bk_device_close(r->device);
}

/* All elements as doubles; the memory of these devices is the host's. */
static void read_flat(const bk_tensor *t, double *to) {
  const char *from = bk_tensor_data(t);
  size_t size = bk_dtype_size(t->dtype);
  for (int64_t i = 0; i < bk_tensor_count(t); i++)
    to[i] = bk_dtype_load(t->dtype, from + (size_t)i * size);
}

/* The pieces of all ranks together are every element of the gradients once. */
static void note_pieces(job *j, const bk_model *m, bool values) {
  for (int i = 0; i < m->n_shards; i++) {
    const bk_shard *s = &m->shards[i];
    if (s->count == 0) continue;
    int64_t at = (int64_t)(s->own_grad.offset / bk_dtype_size(m->ct));
    if (values) read_flat(&s->own_grad, j->grads + at);
    for (int64_t k = 0; k < s->count; k++) j->covered[at + k]++;
  }
}

/* The slices of each parameter: one after the other, and within it. */
static bool note_slices(job *j, const bk_model *m) {
  bool good = true;
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    bk_tensor g = bk_param_grad(m, p);
    int64_t end = 0, count = bk_tensor_count(&g);
    int64_t at = (int64_t)(g.offset / bk_dtype_size(m->ct));
    for (bk_slice s = {0}; bk_param_next_slice(m, p, &s); end = s.begin + s.count) {
      good &= s.begin >= end && s.count > 0 && s.begin + s.count <= count;
      good &= bk_tensor_count(&s.m) == s.count && bk_tensor_count(&s.v) == s.count;
      for (int64_t k = 0; good && k < s.count; k++) j->sliced[at + s.begin + k]++;
    }
  }
  return good;
}

static void read_weights(const rank_rig *r, outcome *o) {
  const bk_model *m = r->model;
  int64_t at = 0;
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor w = bk_param_weight(m, &m->params[i]);
    o->n_weights += bk_tensor_count(&w);
  }
  o->weights = malloc((size_t)o->n_weights * sizeof *o->weights);
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor w = bk_param_weight(m, &m->params[i]);
    read_flat(&w, o->weights + at);
    at += bk_tensor_count(&w);
  }
}

/* A token that the first sequence of that rank has in step 2, and no sequence of another rank. */
static int32_t token_of(const job *j, const rank_rig *r, int rank) {
  const bk_train_config *t = &j->s.recipe;
  int64_t n = t->batch_size, T = t->seq_len, share = n / j->s.ranks;
  int32_t ids[64][16], targets[16];
  for (int64_t i = 0; i < n; i++)
    bk_dataset_train_sequence(r->train, t->seed, T, n + i, ids[i], targets);
  for (int64_t k = 0; k < T; k++) {
    int32_t id = ids[rank * share][k];
    bool alone = true;
    for (int64_t i = 0; i < n; i++)
      for (int64_t m = 0; m < T && i / share != rank; m++) alone &= ids[i][m] != id;
    if (alone) return id;
  }
  return -1;
}

/* All weights are finite, but the sum of four streams of this token is not. */
static void poison(const job *j, const rank_rig *r) {
  bk_tensor w = bk_param_weight(r->model, bk_model_find(r->model, "model.embed_tokens.weight"));
  int32_t id = token_of(j, r, j->s.sick);
  float *row = (float *)bk_tensor_data(&w) + (int64_t)id * w.shape[1];
  for (int64_t i = 0; id >= 0 && i < w.shape[1]; i++) row[i] = 3e38f;
}

/* A device of which one function has ceased to work. */
static bk_status broken_copy(bk_stream *stream, bk_place to, bk_place from, size_t bytes) {
  (void)to, (void)from, (void)bytes;
  return bk_fail(stream->device->ctx, BK_ERR_DEVICE, "the device copies no more");
}
static bk_status broken_download(bk_stream *stream, void *to, bk_place from, size_t bytes) {
  (void)to, (void)from, (void)bytes;
  return bk_fail(stream->device->ctx, BK_ERR_DEVICE, "the device downloads no more");
}

static void spoil(const job *j, const rank_rig *r, bk_stream_ops *ops) {
  *ops = *r->model->stream->ops;
  if (j->s.late) ops->download = broken_download;
  else ops->copy = broken_copy;
  r->model->stream->ops = ops;
}

/* A comm that counts. The gradient of the embedding is the last that the backward pass writes: as
 * long as it is what the test has put there, the pass has not ended. */
typedef struct counting {
  bk_comm_ops ops;
  const bk_comm_ops *real;
  const float *mark;
  int early, late;
} counting;
enum { MARK = 12345 };

static bk_status count_post(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                            const bk_tensor *dst, bk_request **request) {
  counting *c = (counting *)comm->ops;
  if (*c->mark == MARK) c->early++;
  else c->late++;
  comm->ops = c->real;
  bk_status status = c->real->reduce_scatter(comm, stream, op, src, dst, request);
  comm->ops = &c->ops;
  return status;
}

static bk_status counted_step(const rank_rig *r, outcome *o, bk_metrics_row *row) {
  bk_tensor g = bk_param_grad(r->model, bk_model_find(r->model, "model.embed_tokens.weight"));
  float *mark = bk_tensor_data(&g);
  counting c = {.ops = *r->comm->ops, .real = r->comm->ops, .mark = mark};
  c.ops.reduce_scatter = count_post;
  *mark = MARK;
  r->comm->ops = &c.ops;
  bk_status status = bk_trainer_step(r->trainer, row);
  r->comm->ops = c.real;
  o->early = c.early;
  o->late = c.late;
  return status;
}

/* What asks for parts that no rank has as a whole is refused; what looks at all of them is not. */
static void look_at_state(const job *j, int rank, const rank_rig *r, outcome *o) {
  bk_model *m = r->model;
  bk_shard *s = &m->shards[m->n_shards - 1];
  if (rank == j->s.ranks - 1) bk_dtype_store(s->m.dtype, bk_tensor_data(&s->m), INFINITY);
  o->looked = bk_model_check_finite(m, o->stored, sizeof o->stored);
  o->read = bk_model_param_read(m, 0, BK_PARAM_M, &(double){0});
}

/* Every bucket once in each direction, then all numbers that belong together. */
static bool talks_are_whole(const bk_profile *p, int n_shards) {
  const bk_profile_step *step = &p->steps[(p->done - 1) % BK_PROFILE_STEPS];
  double until = 0;
  int scattered = 0, gathered = 0;
  for (int i = 0; i < step->n_talks; i++) {
    const bk_profile_talk_record *t = &step->talks[i];
    if (t->seconds < 0 || t->at < until - 1e-9 || t->times.begun > t->times.met) return false;
    if (t->at + t->seconds > step->at + step->seconds + 1e-3) return false;
    until = t->at + t->seconds;
    if ((t->kind == BK_TALK_ALL_REDUCE) != (t->bucket < 0) || t->bucket >= n_shards) return false;
    if (t->kind == BK_TALK_REDUCE_SCATTER) scattered |= 1 << t->bucket;
    if (t->kind == BK_TALK_ALL_GATHER) gathered |= 1 << t->bucket;
  }
  return step->n_talks == 2 * n_shards + 2 && n_shards < 31 && scattered == (1 << n_shards) - 1 &&
         gathered == scattered;
}

static bk_status look_at_profile(const rank_rig *r, int rank, outcome *o) {
  size_t bytes;
  char *text = NULL;
  o->n_shards = r->model->n_shards;
  for (int i = 0; i < bk_profile_exchange_count(r->profile); i++)
    bk_profile_exchange_get(r->profile, i, &o->exchanges[i]);
  for (int i = 0; i < o->n_shards; i++)
    o->sent += (double)(bk_tensor_bytes(&r->model->shards[i].grad) -
                        bk_tensor_bytes(&r->model->shards[i].own_grad));
  o->talks = talks_are_whole(r->profile, o->n_shards);
  BK_TRY(bk_profile_trace_events(r->profile, rank, &text, &bytes));
  o->trace = strdup(text);
  bk_free(r->c, text);
  return BK_OK;
}

static bk_status rank_step(job *j, int rank, rank_rig *r, int step) {
  outcome *o = &j->out[rank];
  bk_memory_stats stats;
  if (step == 2 && j->s.sick >= 0) poison(j, r);
  if (step == 2 && j->s.failing == rank) spoil(j, r, &j->broken);
  BK_TRY(step == 2 && j->s.watched ? counted_step(r, o, &o->rows[step - 1])
                                   : bk_trainer_step(r->trainer, &o->rows[step - 1]));
  const bk_metrics_row *row = &o->rows[step - 1];
  for (int e = 0; step == 1 && e < row->n_layers * row->n_experts; e++)
    o->loads += row->expert_load[e] * (e * e + 1);
  bk_context_memory_stats(r->c, &stats);
  if (step > 2)
    o->allocates |= stats.allocations != o->allocations || r->device->buffer_allocs != o->buffers;
  o->allocations = stats.allocations;
  o->buffers = r->device->buffer_allocs;
  if (step > 1) return BK_OK;
  pthread_mutex_lock(&j->lock);
  note_pieces(j, r->model, true);
  o->slices = note_slices(j, r->model);
  pthread_mutex_unlock(&j->lock);
  return BK_OK;
}

static bk_status rank_work(job *j, int rank, rank_rig *r) {
  outcome *o = &j->out[rank];
  BK_TRY(rank_open(j, rank, r));
  o->kept = bk_model_bytes(r->model, BK_MEM_MASTERS) + bk_model_bytes(r->model, BK_MEM_OPTIMIZER);
  if (j->s.planned) {
    pthread_mutex_lock(&j->lock);
    note_pieces(j, r->model, false);
    o->slices = note_slices(j, r->model);
    pthread_mutex_unlock(&j->lock);
  }
  for (int step = 1; step <= j->s.steps; step++) BK_TRY(rank_step(j, rank, r, step));
  if (j->s.steps) read_weights(r, o);
  if (j->s.stored) look_at_state(j, rank, r, o);
  if (r->profile) BK_TRY(look_at_profile(r, rank, o));
  if (j->s.steps && j->s.recipe.gain_every) o->gain = bk_trainer_gain(r->trainer)->total_forward;
  return BK_OK;
}

static void *rank_main(void *arg) {
  rank_arg *a = arg;
  outcome *o = &a->j->out[a->rank];
  rank_rig r = {0};
  bk_context_options options = {.log = rank_log, .log_user = o, .log_level = BK_LOG_WARN};
  o->status = bk_context_create(&options, &r.c);
  if (o->status != BK_OK) return NULL;
  o->status = rank_work(a->j, a->rank, &r);
  rank_close(&r, o->status != BK_OK);
  bk_context_destroy(r.c);
  return NULL;
}

/* ---- all ranks ---- */

static int64_t grads_of(const spec *s) {
  bk_device *device = open_device(s->device, 1);
  bk_model *m = NULL;
  OK(bk_model_create(device, &s->config, s->dtype,
                     &(bk_model_options){.trainable = true, .plan_only = true}, &m));
  int64_t n = (int64_t)(bk_model_bytes(m, BK_MEM_GRADIENTS) / bk_dtype_size(m->ct));
  bk_model_destroy(m);
  bk_device_close(device);
  return n;
}

/* The device is opened here first, which registers the backends. */
static job *run_job(const spec *s, const char *text) {
  job *j = calloc(1, sizeof *j);
  pthread_t threads[RANKS];
  rank_arg args[RANKS];
  j->s = *s;
  j->text = text;
  j->n_grads = grads_of(s);
  j->grads = calloc((size_t)j->n_grads, sizeof *j->grads);
  j->covered = calloc((size_t)j->n_grads, 1);
  j->sliced = calloc((size_t)j->n_grads, 1);
  pthread_mutex_init(&j->lock, NULL);
  OK(bk_thread_world_create(ctx, s->ranks, &j->world));
  if (s->disturb) bk_thread_world_disturb(j->world, s->disturb);
  for (int r = 0; r < s->ranks; r++) {
    args[r] = (rank_arg){j, r};
    ck_assert_int_eq(pthread_create(&threads[r], NULL, rank_main, &args[r]), 0);
  }
  for (int r = 0; r < s->ranks; r++) pthread_join(threads[r], NULL);
  bk_thread_world_destroy(j->world);
  return j;
}

static void job_free(job *j) {
  for (int r = 0; r < j->s.ranks; r++) free(j->out[r].weights);
  pthread_mutex_destroy(&j->lock);
  free(j->sliced);
  free(j->covered);
  free(j->grads);
  free(j);
}

/* Every rank has come to its end, without a word. */
static void check_ended(const job *j) {
  for (int r = 0; r < j->s.ranks; r++)
    ck_assert_msg(j->out[r].status == BK_OK && !j->out[r].messages[0], "rank %d of %d: %s\n%s", r,
                  j->s.ranks, bk_status_name(j->out[r].status), j->out[r].messages);
}

static spec make_spec(const char *device, bk_dtype dtype, int kind, int ranks) {
  spec s = {.device = device,
            .dtype = dtype,
            .config = text_config(kind),
            .ranks = ranks,
            .steps = quick() ? 5 : STEPS,
            .sick = -1,
            .failing = -1,
            .other = -1};
  bk_train_config_default(&s.recipe);
  s.recipe.steps = s.steps;
  s.recipe.batch_size = 4;
  s.recipe.micro_batch_size = 1;
  s.recipe.seq_len = 8;
  s.recipe.lr = 5e-3;
  s.recipe.warmup_steps = 2;
  s.recipe.router_bias_lr = 1e-2;
  s.recipe.gain_every = s.recipe.eval_every = s.steps;
  s.recipe.eval_tokens = 0;
  return s;
}

/* ---- the same as one rank ---- */

static double nmse(const double *a, const double *b, int64_t n) {
  double d = 0, q = 0;
  for (int64_t i = 0; i < n; i++) d += (a[i] - b[i]) * (a[i] - b[i]), q += b[i] * b[i];
  return d / q;
}

static bool close_to(double a, double b, double bound) { return fabs(a - b) <= bound * fabs(b); }

/* Ranks have the same numbers, bit for bit. */
static void check_ranks_agree(const job *j) {
  const outcome *first = &j->out[0];
  for (int r = 1; r < j->s.ranks; r++) {
    const outcome *o = &j->out[r];
    ck_assert(memcmp(o->weights, first->weights, (size_t)o->n_weights * sizeof(double)) == 0);
    for (int i = 0; i < j->s.steps; i++) {
      ck_assert_double_eq(o->rows[i].loss, first->rows[i].loss);
      ck_assert_double_eq(o->rows[i].grad_norm, first->rows[i].grad_norm);
      ck_assert_double_eq(o->rows[i].comm_bytes, first->rows[i].comm_bytes);
    }
    ck_assert_double_eq(o->rows[j->s.steps - 1].val_loss, first->rows[j->s.steps - 1].val_loss);
    ck_assert_double_eq(o->gain, first->gain);
    ck_assert_double_eq(o->loads, first->loads);
  }
}

/* Within a bucket and in the gaps of alignment, each element is one rank's. */
static void check_covered(const job *j) {
  int64_t wrong = 0; /* an assertion for each element would take most of the test's time */
  for (int64_t i = 0; i < j->n_grads; i++)
    wrong += j->covered[i] > 1 || j->sliced[i] > j->covered[i] ||
             (j->grads[i] != 0 && j->sliced[i] != 1);
  ck_assert_int_eq(wrong, 0);
  for (int r = 0; r < j->s.ranks; r++) ck_assert(j->out[r].slices);
}

typedef struct bounds {
  double grads, weights, losses;
  bool first_loss; /* of the first step, to the bit */
} bounds;

static void check_like_one(const job *one, const job *j, const bounds *b, const char *what) {
  const outcome *a = &j->out[0], *o = &one->out[0];
  int last = j->s.steps - 1;
  double worst = 0, norm = norm_of(one->grads, one->n_grads);
  check_ended(j);
  check_ranks_agree(j);
  check_covered(j);
  if (b->first_loss)
    ck_assert_msg(a->rows[0].loss == o->rows[0].loss, "%s: the first loss is %.17g, not %.17g",
                  what, a->rows[0].loss, o->rows[0].loss);
  for (int i = 0; i <= last; i++)
    ck_assert_msg(close_to(a->rows[i].loss, o->rows[i].loss, b->losses),
                  "%s: step %d: loss %.17g, not %.17g", what, i + 1, a->rows[i].loss,
                  o->rows[i].loss);
  worst = distance(j->grads, one->grads, one->n_grads) / norm;
  ck_assert_msg(worst <= b->grads, "%s: gradients are %.3g apart", what, worst);
  worst = nmse(a->weights, o->weights, o->n_weights);
  ck_assert_msg(worst <= b->weights, "%s: weights are %.3g apart", what, worst);
  ck_assert(close_to(a->rows[last].val_loss, o->rows[last].val_loss, 10 * b->losses));
  ck_assert(close_to(a->gain, o->gain, 1e-3));
  ck_assert(o->loads > 0 && close_to(a->loads, o->loads, 1e-12));
  ck_assert(a->rows[0].has_comm && !o->rows[0].has_comm && a->rows[0].comm_bytes > 0);
  for (int r = 0; r < j->s.ranks; r++)
    ck_assert_msg(!j->out[r].allocates, "%s: rank %d allocates in a step", what, r);
}

/* One rank, then so many, of one specification. */
static void compare(spec s, const int *ranks, size_t n, const bounds *b) {
  const char *text = path_of_text();
  s.ranks = 1;
  job *one = run_job(&s, text);
  check_ended(one);
  for (size_t i = 0; i < n; i++) {
    char what[128];
    s.ranks = ranks[i];
    snprintf(what, sizeof what, "%s, %s, kind %d, batch %d of %d, %d ranks", s.device,
             bk_dtype_name(s.dtype), s.config.residual, (int)s.recipe.batch_size,
             (int)s.recipe.micro_batch_size, s.ranks);
    job *j = run_job(&s, text);
    check_like_one(one, j, b, what);
    job_free(j);
  }
  job_free(one);
}

static const bounds exact = {1e-12, 1e-10, 1e-9, true}, rounded = {1e-12, 1e-10, 1e-9, false},
                    single = {1e-5, 1e-8, 1e-4, false};
static const int all_ranks[] = {2, 3, 4, 8};

/* Micro-batches of one sequence are the same micro-batches on any number of ranks. Of many losses,
 * the sum in another order would have other bits. */
START_TEST(test_kinds) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    spec s = make_spec("ref", BK_F64, kinds[i], 2);
    s.steps = thorough() ? STEPS : 3;
    if (kinds[i] == BK_HC_PLAIN) s.recipe.batch_size = 13;
    s.recipe.gain_every = s.recipe.eval_every = s.steps;
    compare(s, thorough() ? all_ranks : &all_ranks[i % 3], thorough() ? BK_COUNT(all_ranks) : 1,
            &exact);
  }
}
END_TEST

START_TEST(test_twenty_steps) {
  static const int two[] = {2}, four[] = {4};
  spec s = make_spec("ref", BK_F64, BK_HC_MHC, 2);
  s.recipe.batch_size = 2;
  compare(s, two, 1, &exact);
  s = make_spec("cpu", BK_F32, BK_HC_MHC, 2);
  s.recipe.micro_batch_size = 0;
  compare(s, thorough() ? all_ranks : four, thorough() ? BK_COUNT(all_ranks) : 1, &single);
}
END_TEST

/* Shares that differ, a shorter last micro-batch, ranks without sequences, merges on a lane of
 * their own. */
START_TEST(test_shares) {
  static const struct {
    int64_t batch, micro;
    bool merge_stream;
  } cases[] = {{3, 1, false}, {5, 2, true}, {7, 0, false}, {1, 0, false}, {6, 4, false}};
  size_t n = quick() ? 4 : BK_COUNT(cases);
  for (size_t i = quick() ? 1 : 0; i < n; i++) {
    spec s = make_spec("ref", BK_F64, BK_HC_MHC, 4);
    s.recipe.batch_size = cases[i].batch;
    s.recipe.micro_batch_size = cases[i].micro;
    s.recipe.merge_stream = cases[i].merge_stream;
    s.steps = 3;
    s.recipe.gain_every = s.recipe.eval_every = s.steps;
    compare(s, thorough() ? all_ranks : &all_ranks[1 + i % 2], thorough() ? BK_COUNT(all_ranks) : 1,
            &rounded);
  }
}
END_TEST

/* Weights in bf16 with masters, and a model whose spans are cut into buckets. */
static spec large_spec(bk_dtype dtype, int ranks) {
  spec s = make_spec("cpu", dtype, BK_HC_MHC, ranks);
  s.config.vocab_size = 12000;
  s.config.hidden_size = 32;
  s.steps = 3;
  s.recipe.batch_size = 4;
  s.recipe.gain_every = s.recipe.eval_every = s.steps;
  return s;
}

START_TEST(test_buckets) {
  static const int some[] = {3};
  static const bounds coarse = {2e-2, 1e-4, 1e-2, false};
  spec s = large_spec(BK_F32, 3);
  if (!quick())
    compare(s, thorough() ? all_ranks : some, thorough() ? BK_COUNT(all_ranks) : 1, &single);
  s = large_spec(BK_BF16, 3);
  compare(s, thorough() ? all_ranks : some, thorough() ? BK_COUNT(all_ranks) : 1, &coarse);
}
END_TEST

/* Whatever the delays, and again. */
START_TEST(test_same_bits) {
  const char *text = path_of_text();
  spec s = large_spec(BK_F32, 3);
  s.recipe.merge_stream = true;
  job *first = run_job(&s, text);
  check_ended(first);
  for (uint64_t seed = 0; seed < (thorough() ? 20 : quick() ? 2 : 3); seed++) {
    s.disturb = seed;
    job *j = run_job(&s, text);
    check_ended(j);
    check_ranks_agree(j);
    const outcome *a = &j->out[0], *b = &first->out[0];
    ck_assert(memcmp(a->weights, b->weights, (size_t)b->n_weights * sizeof(double)) == 0);
    ck_assert_double_eq(a->rows[s.steps - 1].loss, b->rows[s.steps - 1].loss);
    job_free(j);
  }
  job_free(first);
}
END_TEST

static int times(const char *text, const char *part) {
  int n = 0;
  for (const char *at = text; (at = strstr(at, part)); at++) n++;
  return n;
}

/* ---- when buckets are posted ---- */

/* Those of the head and of the layers go out while the backward pass goes on; those of the
 * embedding, which it writes last, after it. */
START_TEST(test_early) {
  spec s = large_spec(BK_F32, 3);
  s.recipe.batch_size = 3;
  s.watched = true;
  job *j = run_job(&s, path_of_text());
  check_ended(j);
  for (int r = 0; r < s.ranks; r++) {
    ck_assert_int_ge(j->out[r].early, 4);
    ck_assert_int_ge(j->out[r].late, 1);
    ck_assert_int_eq(j->out[r].early, j->out[0].early);
    ck_assert_int_eq(j->out[r].late, j->out[0].late);
  }
  job_free(j);
}
END_TEST

/* ---- profiles ---- */

/* What goes between the ranks is in the profile of each: how often, how much, in the trace; the
 * weights are the same, and a step still allocates nothing. */
START_TEST(test_profile) {
  const char *text = path_of_text();
  spec s = large_spec(BK_F32, 3);
  job *without = run_job(&s, text);
  s.profiled = true;
  job *j = run_job(&s, text);
  check_ended(without);
  check_ended(j);
  check_ranks_agree(j);
  const outcome *a = &j->out[0], *b = &without->out[0];
  ck_assert(memcmp(a->weights, b->weights, (size_t)b->n_weights * sizeof(double)) == 0);
  int counted = s.steps - 1;
  for (int r = 0; r < s.ranks; r++) {
    const outcome *o = &j->out[r];
    ck_assert(o->talks && !o->allocates);
    const bk_profile_exchange *e = o->exchanges;
    ck_assert_str_eq(e[0].name, "reduce_scatter");
    ck_assert_str_eq(e[1].name, "all_reduce");
    ck_assert_str_eq(e[2].name, "all_gather");
    ck_assert_double_eq(e[0].calls, counted * o->n_shards);
    ck_assert_double_eq(e[1].calls, counted * 2);
    ck_assert_double_eq(e[2].calls, counted * o->n_shards);
    ck_assert_double_eq(e[0].bytes, counted * o->sent);
    for (int i = 0; i < BK_TALK_EXCHANGE; i++) ck_assert(e[i].busy_s > 0 && e[i].wait_s > 0);
    ck_assert_double_eq(e[BK_TALK_EXCHANGE].calls, 0); /* there is no pipeline */
    double hidden = bk_profile_hidden(&e[0]);
    ck_assert(hidden >= 0 && hidden < 1);
    ck_assert_int_eq(times(o->trace, "\"cat\":\"comm\""), s.steps * (2 * o->n_shards + 2));
    ck_assert_int_eq(times(o->trace, "\"args\":{\"name\":\"comm\"}"), 1);
    ck_assert_int_eq(times(o->trace, "\"hidden_share\":"), s.steps);
    free(o->trace);
  }
  ck_assert(isnan(bk_profile_hidden(&(bk_profile_exchange){.wait_s = 1})));
  ck_assert_double_eq(bk_profile_hidden(&(bk_profile_exchange){.busy_s = 1, .wait_s = 2}), 0);
  ck_assert_double_eq(bk_profile_hidden(&(bk_profile_exchange){.busy_s = 4, .wait_s = 1}), 0.75);
  job_free(j);
  job_free(without);
}
END_TEST

/* ---- the state ---- */

START_TEST(test_state) {
  spec s = make_spec("cpu", BK_F32, BK_HC_MHC, 3);
  s.steps = 2;
  s.recipe.gain_every = s.recipe.eval_every = s.steps;
  s.stored = true;
  job *j = run_job(&s, path_of_text());
  for (int r = 0; r < s.ranks; r++) {
    const outcome *o = &j->out[r];
    ck_assert_int_eq(o->status, BK_OK);
    ck_assert_int_eq(o->looked, BK_ERR_NOT_FINITE);
    ck_assert_msg(strstr(o->stored, "the first moment of ") == o->stored, "%s", o->stored);
    ck_assert_str_eq(o->stored, j->out[0].stored);
    ck_assert_int_eq(o->read, BK_ERR_ARGUMENT);
    ck_assert_msg(strstr(o->messages, "each of 3 ranks has parts of its first moment") != NULL,
                  "%s", o->messages);
  }
  job_free(j);
}
END_TEST

/* ---- memory ---- */

START_TEST(test_bytes) {
  const char *text = path_of_text();
  static const bk_dtype dtypes[] = {BK_F32, BK_BF16};
  for (size_t i = 0; i < BK_COUNT(dtypes); i++) {
    spec s = make_spec("cpu", dtypes[i], BK_HC_MHC, 1);
    bk_train_config unused;
    OK(bk_model_preset(ctx, "tiny", &s.config, &unused));
    s.planned = true;
    s.steps = 0;
    job *one = run_job(&s, text);
    check_ended(one);
    s.ranks = 4;
    job *j = run_job(&s, text);
    check_ended(j);
    check_covered(j);
    for (int r = 0; r < s.ranks; r++)
      ck_assert_msg((double)j->out[r].kept <= 0.26 * (double)one->out[0].kept,
                    "rank %d keeps %zu bytes, one rank %zu", r, j->out[r].kept, one->out[0].kept);
    job_free(j);
    job_free(one);
  }
}
END_TEST

/* ---- what is refused, and what fails ---- */

/* Each letter stands in one place of this text. */
static const char *write_letters(void) {
  const char *path = unit_path("letters.txt");
  char text[800];
  for (size_t i = 0; i < sizeof text; i++) text[i] = (char)(' ' + i / 9);
  OK(bk_file_write_atomic(ctx, path, text, sizeof text));
  return path;
}

/* What is not finite on one rank is refused by all, and one says where it was. */
START_TEST(test_not_finite) {
  const char *text = write_letters();
  for (int sick = 0; sick < 3; sick++) {
    spec s = make_spec("cpu", BK_F32, BK_HC_MHC, 3);
    char place[64];
    s.recipe.batch_size = 6;
    s.steps = 3;
    s.sick = sick;
    job *j = run_job(&s, text);
    snprintf(place, sizeof place, "in micro-batch 1 on rank %d; the weights", sick);
    for (int r = 0; r < s.ranks; r++) ck_assert_int_eq(j->out[r].status, BK_ERR_NOT_FINITE);
    ck_assert_msg(strstr(j->out[0].messages, place) != NULL, "not \"%s\": %s", place,
                  j->out[0].messages);
    ck_assert_int_eq(times(j->out[0].messages, "not finite"), 1);
    for (int r = 1; r < s.ranks; r++) ck_assert_str_eq(j->out[r].messages, "");
    job_free(j);
  }
}
END_TEST

/* What fails on one rank ends all, and at once. */
START_TEST(test_failure) {
  const char *text = path_of_text();
  for (int late = 0; late < 2; late++) {
    spec s = make_spec("cpu", BK_F32, BK_HC_MHC, 3);
    s.steps = 3;
    s.failing = 1;
    s.late = late;
    double begin = bk_seconds();
    job *j = run_job(&s, text);
    ck_assert_double_lt(bk_seconds() - begin, 30); /* ranks wait for up to 60 s */
    ck_assert_int_eq(j->out[1].status, BK_ERR_DEVICE);
    ck_assert_int_eq(j->out[0].status, BK_ERR_COMM);
    ck_assert_int_eq(j->out[2].status, BK_ERR_COMM);
    for (int r = 0; r < s.ranks; r++)
      ck_assert_msg(times(j->out[r].messages, "\n") == 1, "rank %d: %s", r, j->out[r].messages);
    job_free(j);
  }
}
END_TEST

/* A rank with another recipe is found out before the first step. */
START_TEST(test_other_recipe) {
  spec s = make_spec("cpu", BK_F32, BK_HC_MHC, 3);
  s.other = 1;
  job *j = run_job(&s, path_of_text());
  for (int r = 0; r < s.ranks; r++) {
    ck_assert_int_eq(j->out[r].status, BK_ERR_COMM);
    ck_assert_msg(
        strstr(j->out[r].messages, "rank 1 has another configuration, recipe or data") != NULL,
        "rank %d: %s", r, j->out[r].messages);
  }
  job_free(j);
}
END_TEST

UNIT_MAIN("parallel", unit_folder_open, unit_folder_close, test_kinds, test_twenty_steps,
          test_shares, test_buckets, test_same_bits, test_early, test_profile, test_state,
          test_bytes, test_not_finite, test_failure, test_other_recipe)
