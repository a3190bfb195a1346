/* Communication in a training step (parallel.h). When a bucket is whole is found in the recorded
 * programs, from the ops' descriptors: whatever writes a gradient is seen there, so that no layer
 * has to say when it is done. */
#include "models/parallel.h"

#include "comm/comm.h"
#include "models/model_priv.h"
#include "models/profile.h"
#include "models/shards.h"
#include "ops/ops.h"

/* A bucket, and the last piece that writes to it; NULL: none does. `when` counts the pieces of all
 * programs that were looked at; after bk_parallel_agree it is the largest of all replicas. */
typedef struct due {
  int64_t shard, when;
  const bk_piece *piece;
  int position;
  bool whole; /* in this step */
} due;

struct bk_parallel {
  bk_model *model;
  bk_comm *comm;         /* of the replicas, who have the same buckets */
  due *order;            /* [n], in the order in which they are posted */
  bk_request **requests; /* [n], in that order */
  int64_t *whens;        /* [replicas + 1][n]: for bk_parallel_agree */
  /* buckets, none without other replicas; of them, in this step */
  int n, posted, waited;
  int position;
  bk_event *event; /* joins the lanes before a post */
};

/* All waits of this file; `bucket` is -1 for what is not one. */
static bk_status await(bk_model *m, bk_request *request, bk_profile_talk_kind kind, int bucket) {
  bk_status status = bk_comm_wait(request->comm, request, m->stream);
  bk_profile *profile = bk_profile_of(m);
  if (profile && status == BK_OK) bk_profile_talk(profile, kind, bucket, &request->times);
  return status;
}

/* ---- creation ---- */

bk_status bk_parallel_create(bk_model *model, int64_t sums, bk_parallel **parallel) {
  bk_parallel *p = bk_alloc(model->ctx, sizeof *p);
  if (!p) return BK_ERR_MEMORY;
  int replicas = bk_model_replicas(model);
  *p = (bk_parallel){.model = model,
                     .comm = bk_model_replica_comm(model),
                     .n = replicas > 1 ? model->n_shards : 0};
  p->order = bk_alloc_array(model->ctx, (size_t)p->n, sizeof *p->order);
  p->requests = bk_alloc_array(model->ctx, (size_t)p->n, sizeof *p->requests);
  p->whens = bk_alloc_array(model->ctx, (size_t)p->n * ((size_t)replicas + 1), sizeof *p->whens);
  bk_status status = p->order && p->requests && p->whens ? BK_OK : BK_ERR_MEMORY;
  if (status == BK_OK) status = model->device->ops->event_create(model->device, &p->event);
  if (status == BK_OK) status = bk_model_reserve_comm(model, (size_t)sums);
  for (int i = 0; i < p->n && status == BK_OK; i++) p->order[i].shard = i;
  if (status == BK_OK) *parallel = p;
  else bk_parallel_destroy(p);
  return status;
}

void bk_parallel_destroy(bk_parallel *p) {
  if (!p) return;
  bk_context *ctx = p->model->ctx;
  if (p->event) p->event->ops->destroy(p->event);
  bk_free(ctx, p->whens);
  bk_free(ctx, p->requests);
  bk_free(ctx, p->order);
  bk_free(ctx, p);
}

/* ---- when a bucket is whole ---- */

/* Where the search is. */
typedef struct place {
  const bk_piece *piece;
  int position;
  int64_t when;
} place;

/* `found` is in the order of the shards here. */
static void note_write(const bk_parallel *p, due *found, const bk_tensor *t, const place *at) {
  if (!bk_tensor_present(t) || !t->buffer || t->buffer->mem_class != BK_MEM_GRADIENTS) return;
  size_t begin = t->offset, end = begin + bk_tensor_span(t);
  for (int i = 0; i < p->n; i++) {
    const bk_tensor *g = &p->model->shards[i].grad;
    if (g->buffer != t->buffer || end <= g->offset || g->offset + bk_tensor_bytes(g) <= begin)
      continue;
    found[i].when = at->when;
    found[i].piece = at->piece;
    found[i].position = at->position;
  }
}

static void note_call(const bk_parallel *p, due *found, const bk_call *c, const place *at) {
  if (c->kind == BK_CALL_ZERO) note_write(p, found, c->args, at);
  if (c->kind != BK_CALL_OP) return;
  const bk_op_desc *d = bk_op_describe(c->op);
  for (int i = 0; i < d->n_fields; i++)
    if (d->fields[i].role != BK_IN)
      note_write(p, found, bk_op_field_get(c->args, &d->fields[i]), at);
}

/* Only the last run of a program counts, and what it writes in all others it writes in that one
 * too: the others need not be looked at. */
static bool runs_again(const bk_pass_run *runs, int n, int i) {
  for (int k = i + 1; k < n; k++)
    if (runs[k].program == runs[i].program) return true;
  return false;
}

/* By insertion, stable, so that buckets that are whole at the same time keep their order. Those
 * that nobody writes come last. */
static void sort(due *list, int n) {
  for (int i = 1; i < n; i++) {
    due d = list[i];
    int at = i;
    for (; at > 0 && (list[at - 1].when > d.when ||
                      (list[at - 1].when == d.when && list[at - 1].shard > d.shard));
         at--)
      list[at] = list[at - 1];
    list[at] = d;
  }
}

void bk_parallel_follow(bk_parallel *p, const bk_pass_run *runs, int n) {
  place at = {0};
  for (int i = 0; i < p->n; i++) p->order[i] = (due){.shard = i, .when = INT64_MAX};
  for (int r = 0; r < n; r++) {
    const bk_program *program = runs[r].program;
    if (runs_again(runs, n, r)) continue;
    at.position = runs[r].position;
    for (int i = 0; i < program->n_pieces; i++, at.when++) {
      at.piece = &program->pieces[i];
      for (int k = at.piece->begin; k < at.piece->end; k++)
        note_call(p, p->order, &program->calls[k], &at);
    }
  }
  sort(p->order, p->n);
}

/* In the order in which the runner runs them: the losses, then back through the chunks. A program
 * that a chunk does not have is NULL. */
void bk_parallel_follow_runner(bk_parallel *p, const bk_runner *r, bk_micro micro) {
  bk_pass_run runs[BK_CHUNKS_MAX + 1];
  int n = 0, last = bk_runner_n_chunks(r) - 1;
  runs[n].program = bk_chunk_program(bk_runner_chunk(r, last), 0, BK_PROGRAM_LOSS + (int)micro);
  if (runs[n].program) runs[n++].position = 0;
  for (int i = last; i >= 0; i--) {
    const bk_program *back =
        bk_chunk_program(bk_runner_chunk(r, i), 0, BK_PROGRAM_BACKWARD + (int)micro);
    if (back) runs[n++] = (bk_pass_run){back, 0};
  }
  bk_parallel_follow(p, runs, n);
}

bk_status bk_parallel_agree(bk_parallel *p) {
  int replicas = bk_model_replicas(p->model);
  int64_t *own = p->whens + (size_t)replicas * (size_t)p->n;
  if (p->n == 0) return BK_OK;
  for (int i = 0; i < p->n; i++) own[p->order[i].shard] = p->order[i].when;
  BK_TRY(bk_comm_gather(p->comm, own, (size_t)p->n * sizeof *own, p->whens));
  for (int i = 0; i < p->n; i++)
    for (int r = 0; r < replicas; r++) {
      int64_t when = p->whens[(size_t)r * (size_t)p->n + (size_t)p->order[i].shard];
      if (when > p->order[i].when) p->order[i].when = when;
    }
  sort(p->order, p->n);
  return BK_OK;
}

/* ---- a step ---- */

void bk_parallel_begin(bk_parallel *p) {
  p->posted = p->waited = p->position = 0;
  for (int i = 0; i < p->n; i++) p->order[i].whole = false;
}

bool bk_parallel_at(bk_parallel *p, int position) {
  bool due = false;
  p->position = position;
  for (int i = p->posted; i < p->n; i++)
    due |= p->order[i].piece && p->order[i].position == position;
  return due;
}

bk_status bk_parallel_zero(bk_parallel *p) {
  for (int i = 0; i < p->model->n_shards; i++)
    BK_TRY(bk_tensor_zero(p->model->stream, &p->model->shards[i].grad));
  return BK_OK;
}

/* An operation begins behind what the compute lane has been given; what other lanes have been given
 * may write to the same bucket. */
static bk_status join_lanes(bk_parallel *p) {
  for (int i = 0; i < BK_LANES; i++) {
    bk_stream *other = p->model->lanes.stream[i];
    if (!other || i == BK_LANE_COMPUTE) continue;
    BK_TRY(other->ops->event_record(other, p->event));
    BK_TRY(p->model->stream->ops->event_wait(p->model->stream, p->event));
  }
  return BK_OK;
}

static bk_status post(bk_parallel *p) {
  const bk_shard *s = &p->model->shards[p->order[p->posted].shard];
  BK_TRY(bk_comm_reduce_scatter(p->comm, p->model->stream, BK_REDUCE_SUM, &s->grad, &s->own_grad,
                                &p->requests[p->posted]));
  p->posted++;
  return BK_OK;
}

bk_status bk_parallel_after(void *parallel, const bk_piece *piece) {
  bk_parallel *p = parallel;
  for (int i = p->posted; i < p->n; i++)
    if (p->order[i].piece == piece && p->order[i].position == p->position) p->order[i].whole = true;
  if (p->posted == p->n || !p->order[p->posted].whole) return BK_OK;
  BK_TRY(join_lanes(p));
  while (p->posted < p->n && p->order[p->posted].whole) BK_TRY(post(p));
  return BK_OK;
}

/* A request that was waited for is done with, whatever came of it. */
static bk_status wait(bk_parallel *p) {
  while (p->waited < p->posted) {
    int i = p->waited++;
    BK_TRY(await(p->model, p->requests[i], BK_TALK_REDUCE_SCATTER, (int)p->order[i].shard));
  }
  return BK_OK;
}

bk_status bk_parallel_gradients(bk_parallel *p) {
  BK_TRY(join_lanes(p));
  while (p->posted < p->n) BK_TRY(post(p));
  return wait(p);
}

/* Both are under way together, and both have come back, whatever came of the first. Sums are those
 * of all ranks, loads those of the replicas. */
bk_status bk_parallel_sum(bk_parallel *p, const bk_tensor *own, const bk_tensor *all) {
  bk_request *sums, *loads;
  bk_stream *stream = p->model->stream;
  const bk_tensor *load = &p->model->parts->load;
  BK_TRY(bk_comm_all_reduce(p->model->options.comm, stream, BK_REDUCE_SUM, own, all, &sums));
  if (!bk_tensor_present(load) || bk_model_replicas(p->model) == 1)
    return await(p->model, sums, BK_TALK_ALL_REDUCE, -1);
  bk_status status = bk_comm_all_reduce(p->comm, stream, BK_REDUCE_SUM, load, load, &loads);
  bk_status first = await(p->model, sums, BK_TALK_ALL_REDUCE, -1);
  if (status == BK_OK) status = await(p->model, loads, BK_TALK_ALL_REDUCE, -1);
  return first != BK_OK ? first : status;
}

void bk_parallel_give_up(bk_parallel *p) {
  bk_comm_abort(p->model->options.comm);
  while (p->waited < p->posted) bk_comm_wait(p->comm, p->requests[p->waited++], p->model->stream);
}

/* ---- weights ---- */

/* How many requests of how many bytes the replicas need. */
static int room(const bk_model *m, size_t *most) {
  enum { LOADS_AND_SUMS = 2 };
  *most = bk_tensor_bytes(&m->parts->load);
  for (int i = 0; i < m->n_shards; i++) {
    size_t bytes = bk_tensor_bytes(&m->shards[i].grad);
    if (bytes > *most) *most = bytes;
  }
  return m->n_shards + LOADS_AND_SUMS;
}

/* `sums` is how many numbers in ct a caller will sum beside the buckets. They hardly ever need more
 * room than a bucket does, for which the model has made it before. */
bk_status bk_model_reserve_comm(bk_model *m, size_t sums) {
  size_t most, bytes = sums * bk_dtype_size(m->ct);
  int requests = room(m, &most);
  bool apart = m->options.pipeline;
  if (!apart && bytes > most) most = bytes;
  if (most > m->parts->comm_room && bk_model_replicas(m) > 1) {
    BK_TRY(bk_comm_reserve(bk_model_replica_comm(m), requests, most));
    m->parts->comm_room = most;
  }
  return apart && bytes ? bk_comm_reserve(m->options.comm, 1, bytes) : BK_OK;
}

size_t bk_model_comm_bytes(const bk_model *m) {
  size_t most;
  int requests = room(m, &most);
  if (bk_model_replicas(m) == 1 || !m->n_shards || !bk_model_replica_comm(m)) return 0;
  return bk_comm_reserve_bytes(bk_model_replica_comm(m), requests, most);
}

/* In place: each rank has its own pieces already. After a failure the others are waited for all the
 * same. */
bk_status bk_model_gather_weights(bk_model *m) {
  bk_comm *comm = bk_model_replica_comm(m);
  if (bk_model_replicas(m) == 1) return BK_OK;
  bk_status status = BK_OK;
  int posted = 0;
  for (; posted < m->n_shards && status == BK_OK; posted += status == BK_OK) {
    const bk_shard *s = &m->shards[posted];
    status = bk_comm_all_gather(comm, m->stream, &s->own_weight, &s->weight,
                                &m->parts->requests[posted]);
  }
  for (int i = 0; i < posted; i++) {
    bk_status one = await(m, m->parts->requests[i], BK_TALK_ALL_GATHER, i);
    if (status == BK_OK) status = one;
  }
  return status;
}
