/* Initial values, made on the host from (seed, hash of the tensor's name, element): the same bits
 * on every machine and backend, on any number of threads and ranks (doc/numerics.md). Stored
 * weights are the rounded fp32 master values.
 *
 * Drawing is what takes time, so that all threads draw, and of several ranks each draws the pieces
 * of trained parameters that it updates and gets the weights of the others from them. */
#include "models/model_priv.h"
#include "models/shards.h"

#include <string.h>

enum { PIECE = 1 << 14, BATCH = 1 << 20 }; /* elements that a thread draws at a time; all of them */
/* How much of a tensor is drawn for a benchmark: all of a tensor of up to 2^21 elements. A router
 * whose rows repeat would have experts that tie, and its routing would be unlike that of a real
 * one. */
enum { ROUGH_WHOLE = 1 << 21, ROUGH_DRAWN = 64 * PIECE };

enum { WEIGHT, MASTER, OUTPUTS };

/* What the drawing of a model needs. */
typedef struct drawing {
  bk_model *m;
  bk_pool *pool;
  uint64_t seed;
  int64_t distinct;   /* of a larger tensor so many elements are drawn; they repeat */
  int64_t room;       /* elements drawn at a time: those of the largest parameter, at most BATCH */
  char *out[OUTPUTS]; /* [room] elements each, in the dtype of what they are for */
} drawing;

/* A batch of one parameter: its elements from `first` on. */
typedef struct batch {
  const drawing *d;
  const bk_param *p;
  uint64_t stream;
  int64_t first, period;
  bk_dtype dtypes[OUTPUTS]; /* BK_NONE: not wanted */
} batch;

/* The value depends on seed, name and element alone, and not on which other parameters there
 * are. */
static double initial_value(const bk_param *p, uint64_t seed, uint64_t stream, int64_t i) {
  if (p->init == BK_INIT_NORMAL) return p->init_std * bk_normal(seed, stream, (uint64_t)i);
  return p->init == BK_INIT_CONST ? p->init_value : p->init_values[i];
}

static void draw(void *arg, int64_t begin, int64_t end, int worker) {
  const batch *b = arg;
  const drawing *d = b->d;
  (void)worker;
  for (int64_t i = begin; i < end; i++) {
    int64_t at = b->first + i;
    if (at >= b->period) at %= b->period;
    double v = initial_value(b->p, d->seed, b->stream, at);
    if (d->m->ct != BK_F64) v = (float)v;
    for (int k = 0; k < OUTPUTS; k++)
      if (b->dtypes[k])
        bk_dtype_store(b->dtypes[k], d->out[k] + (size_t)i * bk_dtype_size(b->dtypes[k]), v);
  }
}

/* The tensor is seen as flat, and its elements [first, first + count) are meant. */
static bk_tensor piece(bk_tensor t, int64_t first, int64_t count) {
  bk_tensor flat = bk_tensor_reshape(t, 1, (int64_t[]){bk_tensor_count(&t)});
  return bk_tensor_slice(flat, 0, first, count);
}

/* Elements [begin, begin + count) of the parameter, whose weight and master are these; the master
 * may be absent. */
static bk_status draw_elements(const drawing *d, const bk_param *p, int64_t begin, int64_t count,
                               int64_t period, const bk_tensor *to) {
  batch b = {.d = d,
             .p = p,
             .stream = bk_hash64(p->name, strlen(p->name)),
             .period = period,
             .dtypes = {to[WEIGHT].dtype, to[MASTER].dtype}};
  for (int64_t done = 0; done < count; done += d->room) {
    int64_t n = count - done < d->room ? count - done : d->room;
    b.first = begin + done;
    bk_pool_run(d->pool, n, PIECE, draw, &b);
    for (int k = 0; k < OUTPUTS; k++) {
      if (!b.dtypes[k]) continue;
      bk_tensor part = piece(to[k], done, n);
      BK_TRY(bk_tensor_upload(d->m->stream, &part, d->out[k]));
    }
  }
  return BK_OK;
}

/* Fills the elements from `done` on with copies of those before, made on the device; each copy
 * doubles what is there. */
static bk_status repeat(bk_model *m, const bk_tensor *t, int64_t done) {
  int64_t count = bk_tensor_count(t);
  while (done < count) {
    int64_t more = count - done < done ? count - done : done;
    bk_tensor from = piece(*t, 0, more), to = piece(*t, done, more);
    BK_TRY(m->stream->ops->copy(m->stream, (bk_place){to.buffer, to.offset},
                                (bk_place){from.buffer, from.offset}, bk_tensor_bytes(&to)));
    done += more;
  }
  return BK_OK;
}

/* All of a parameter: with one rank, and where it is not trained. */
static bk_status init_whole(const drawing *d, const bk_param *p, int64_t period) {
  bk_tensor to[OUTPUTS] = {bk_param_weight(d->m, p), bk_param_master(d->m, p)};
  BK_TRY(draw_elements(d, p, 0, period, period, to));
  BK_TRY(repeat(d->m, &to[WEIGHT], period));
  return bk_tensor_present(&to[MASTER]) ? repeat(d->m, &to[MASTER], period) : BK_OK;
}

static bk_status init_param(const drawing *d, const bk_param *p) {
  bk_tensor weight = bk_param_weight(d->m, p);
  int64_t count = bk_tensor_count(&weight), period = count;
  if (count > d->distinct && count > ROUGH_WHOLE) period = d->distinct;
  if (bk_model_replicas(d->m) == 1 || !d->m->n_shards || !bk_param_trainable(d->m, p))
    return init_whole(d, p, period);
  for (bk_slice s = {0}; bk_param_next_slice(d->m, p, &s);) {
    bk_tensor to[OUTPUTS] = {piece(weight, s.begin, s.count), s.master};
    BK_TRY(draw_elements(d, p, s.begin, s.count, period, to));
  }
  return BK_OK;
}

/* Memory comes zeroed, but a model may be initialised again after it was trained. */
static bk_status zero_moments(bk_model *m) {
  for (int i = 0; i < m->n_shards; i++) {
    const bk_shard *s = &m->shards[i];
    if (s->count == 0) continue;
    BK_TRY(bk_tensor_zero(m->stream, &s->m));
    BK_TRY(bk_tensor_zero(m->stream, &s->v));
  }
  return BK_OK;
}

static bk_status draw_all(drawing *d) {
  bk_model *m = d->m;
  int threads = m->device->options.threads;
  if (threads <= 0) threads = bk_context_cpu_count(m->ctx);
  for (int i = 0; i < m->n_params; i++) {
    bk_tensor t = bk_param_weight(m, &m->params[i]);
    if (bk_tensor_count(&t) > d->room) d->room = bk_tensor_count(&t);
  }
  if (d->room > BATCH) d->room = BATCH;
  BK_TRY(bk_pool_create(m->ctx, threads, &d->pool));
  for (int k = 0; k < OUTPUTS; k++) {
    d->out[k] = bk_alloc_array(m->ctx, (size_t)d->room, bk_dtype_size(m->ct));
    if (!d->out[k]) return BK_ERR_MEMORY;
  }
  for (int i = 0; i < m->n_params; i++) BK_TRY(init_param(d, &m->params[i]));
  return BK_OK;
}

/* `distinct` is how many elements of a larger tensor are drawn, a whole number of pieces; the rest
 * repeats them. */
static bk_status init_params(bk_model *m, uint64_t seed, int64_t distinct) {
  if (m->options.plan_only)
    return bk_fail(m->ctx, BK_ERR_ARGUMENT, "a model that was only planned has no values");
  drawing d = {.m = m, .seed = seed, .distinct = distinct};
  bk_status status = draw_all(&d);
  for (int k = 0; k < OUTPUTS; k++) bk_free(m->ctx, d.out[k]);
  if (d.pool) bk_pool_destroy(d.pool);
  BK_TRY(status);
  BK_TRY(bk_model_gather_weights(m));
  return zero_moments(m);
}

bk_status bk_model_init(bk_model *m, uint64_t seed) { return init_params(m, seed, INT64_MAX); }
bk_status bk_model_init_rough(bk_model *m, uint64_t seed) {
  return init_params(m, seed, ROUGH_DRAWN);
}
