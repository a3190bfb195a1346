/* A comm of the engine, as the rank's own thread sees it: operations are made of requests that lie
 * ready, posted, and waited for. */
#include "comm/engine_priv.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_REQUESTS 16
#define DEFAULT_EXCHANGES 4
#define DEFAULT_BYTES ((size_t)1 << 20)

/* ---- operations are posted ---- */

static bk_engine_comm_state *state_of(bk_comm *comm) { return (bk_engine_comm_state *)comm; }

/* A request that is free. `bytes`: of the larger tensor, or of all of an exchange. */
static bk_status take(bk_engine_comm_state *c, bk_kind kind, size_t bytes, bk_operation **taken) {
  bool exchange = kind == BK_SEND;
  const char *what = exchange ? "exchange" : bk_kind_name(kind);
  const char *call = exchange ? "bk_comm_reserve_exchange" : "bk_comm_reserve";
  bk_engine_room *room = &c->rooms[exchange ? BK_ROOM_EXCHANGE : BK_ROOM_COLLECTIVE];
  if (bk_engine_has_failed(c->engine)) return bk_engine_report(c->engine, c->base.ctx);
  if (bytes > room->bytes)
    return bk_fail(c->base.ctx, BK_ERR_ARGUMENT, "%s: %zu bytes, there is room for %zu (%s)", what,
                   bytes, room->bytes, call);
  for (int i = 0; i < room->n; i++) {
    bk_operation *o = &room->operations[i];
    if (o->used) continue;
    o->used = true;
    o->kind = kind;
    o->reduce = BK_REDUCE_SUM;
    o->dtype = BK_NONE;
    o->count = o->root = o->n_flows = 0;
    o->in = o->out = NULL;
    o->moves = false;
    atomic_store(&o->awaited, false);
    o->download = o->upload = (bk_move){0};
    o->base.times = (bk_comm_times){0};
    o->in_at = o->out_at = 0;
    o->number = exchange ? ++c->exchanges : ++c->numbers;
    *taken = o;
    return BK_OK;
  }
  return bk_fail(c->base.ctx, BK_ERR_ARGUMENT, "%s: all %d requests are under way (%s)", what,
                 room->n, call);
}

/* The view that others compare with theirs. A root is named by its number in the job. */
static bk_header header_of(const bk_operation *o) {
  const bk_engine_comm_state *c = o->comm;
  return (bk_header){.magic = BK_HEADER_MAGIC,
                     .kind = o->kind,
                     .from = c->engine->rank,
                     .reduce = o->reduce,
                     .dtype = o->dtype,
                     .root = c->members[o->root],
                     .group = c->group,
                     .number = o->number,
                     .count = o->count};
}

/* One flow for each other rank of the group, beginning with the next one, so that not all send to
 * the same rank at first. */
static void flows_to_all(bk_operation *o) {
  const bk_engine_comm_state *c = o->comm;
  for (int k = 1; k < c->base.size; k++) {
    bk_flow *f = &o->flows[o->n_flows++];
    f->index = (c->base.rank + k) % c->base.size;
    f->peer = c->members[f->index];
    f->header = header_of(o);
  }
}

static void release(bk_operation *o) { o->used = false; }

/* Hands the operation to the engine. From here on it has a place in the order of all. */
static bk_status post(bk_operation *o, bk_stream *stream, bk_request **request) {
  bk_engine *e = o->comm->engine;
  bk_status status = BK_OK;
  if (o->moves) status = bk_move_begin(o, stream);
  else if (stream) status = stream->ops->sync(stream); /* the memory is the host's */
  if (status != BK_OK) {
    release(o);
    return status;
  }
  pthread_mutex_lock(&e->lock);
  bool failed = e->failed;
  if (!failed) {
    o->state = o->moves ? BK_REQUEST_LATER : BK_REQUEST_TAKEN;
    bk_list_append(&e->posted, o);
    pthread_cond_signal(&e->work);
  }
  pthread_mutex_unlock(&e->lock);
  if (failed) {
    release(o);
    return bk_engine_report(e, o->comm->base.ctx);
  }
  if (o->moves) {
    bk_operation **end = &e->moving;
    while (*end) end = &(*end)->next_moving;
    *end = o;
    o->next_moving = NULL;
  }
  bk_move_pump(e);
  *request = &o->base;
  return BK_OK;
}

static bk_move move_of(const bk_tensor *t, size_t at) {
  return (bk_move){{t->buffer, t->offset}, at, bk_tensor_bytes(t)};
}

/* Where source and result are: in the tensors, or at their places in staging. */
static void place(bk_operation *o, const bk_tensor *src, size_t in_at, const bk_tensor *dst,
                  size_t out_at) {
  o->moves = o->comm->stream != NULL;
  if (o->moves) {
    o->in_at = in_at;
    o->out_at = out_at;
    if (src) o->download = move_of(src, in_at);
    if (dst) o->upload = move_of(dst, out_at);
    return;
  }
  if (src && src->buffer) o->in = bk_tensor_data(src);
  if (dst && dst->buffer) o->out = bk_tensor_data(dst);
}

static size_t larger(const bk_tensor *a, const bk_tensor *b) {
  size_t x = bk_tensor_bytes(a), y = bk_tensor_bytes(b);
  return x > y ? x : y;
}

static size_t own_at(const bk_comm *comm, const bk_tensor *whole) {
  return (size_t)bk_comm_cut(bk_tensor_count(whole), comm->size, comm->rank) *
         bk_dtype_size(whole->dtype);
}

static bk_status comm_all_reduce(bk_comm *comm, bk_stream *stream, bk_reduce op,
                                 const bk_tensor *src, const bk_tensor *dst, bk_request **request) {
  bk_operation *o = NULL;
  BK_TRY(take(state_of(comm), BK_ALL_REDUCE, bk_tensor_bytes(src), &o));
  o->reduce = op;
  o->dtype = src->dtype;
  o->count = bk_tensor_count(src);
  place(o, src, 0, dst, 0);
  flows_to_all(o);
  return post(o, stream, request);
}

static bk_status comm_reduce_scatter(bk_comm *comm, bk_stream *stream, bk_reduce op,
                                     const bk_tensor *src, const bk_tensor *dst,
                                     bk_request **request) {
  bk_operation *o = NULL;
  BK_TRY(take(state_of(comm), BK_REDUCE_SCATTER, bk_tensor_bytes(src), &o));
  o->reduce = op;
  o->dtype = src->dtype;
  o->count = bk_tensor_count(src);
  place(o, src, 0, dst, own_at(comm, src));
  flows_to_all(o);
  return post(o, stream, request);
}

static bk_status comm_all_gather(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                                 const bk_tensor *dst, bk_request **request) {
  bk_operation *o = NULL;
  BK_TRY(take(state_of(comm), BK_ALL_GATHER, bk_tensor_bytes(dst), &o));
  o->dtype = dst->dtype;
  o->count = bk_tensor_count(dst);
  place(o, src, own_at(comm, dst), dst, 0);
  flows_to_all(o);
  return post(o, stream, request);
}

/* In staging the result lies behind the source. */
static size_t second_half(const bk_operation *o) {
  return BK_ALIGN_UP(o->comm->rooms[BK_ROOM_COLLECTIVE].bytes, 64);
}

static bk_status comm_all_to_all(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                                 const bk_tensor *dst, bk_request **request) {
  bk_operation *o = NULL;
  BK_TRY(take(state_of(comm), BK_ALL_TO_ALL, bk_tensor_bytes(src), &o));
  o->dtype = src->dtype;
  o->count = bk_tensor_count(src);
  place(o, src, 0, dst, second_half(o));
  flows_to_all(o);
  return post(o, stream, request);
}

/* Bytes of the rows before those of `rank`. */
static size_t rows_before(const int64_t *counts, int rank, size_t row) {
  int64_t rows = 0;
  for (int r = 0; r < rank; r++) rows += counts[r];
  return (size_t)rows * row;
}

static void counted_flow(bk_flow *f, const int64_t *send, const int64_t *recv, size_t row) {
  f->send_at = rows_before(send, f->index, row);
  f->send_bytes = (size_t)send[f->index] * row;
  f->receive_at = rows_before(recv, f->index, row);
  f->receive_bytes = (size_t)recv[f->index] * row;
  f->header.give = send[f->index];
  f->header.take = recv[f->index];
}

static bk_status comm_all_to_allv(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                                  const bk_comm_counts *send, const bk_tensor *dst,
                                  const bk_comm_counts *recv, bk_request **request) {
  bk_operation *o = NULL;
  int me = comm->rank;
  if (send->host[me] != recv->host[me])
    return bk_fail(comm->ctx, BK_ERR_COMM,
                   "all_to_allv: rank %d sends %lld rows to itself and receives %lld", me,
                   (long long)send->host[me], (long long)recv->host[me]);
  BK_TRY(take(state_of(comm), BK_ALL_TO_ALLV, larger(src, dst), &o));
  o->dtype = src->dtype;
  o->count = 1;
  for (int d = 1; d < src->ndim; d++) o->count *= src->shape[d];
  size_t row = (size_t)o->count * bk_dtype_size(src->dtype);
  place(o, src, 0, dst, second_half(o));
  o->download.bytes = rows_before(send->host, comm->size, row);
  o->upload.bytes = rows_before(recv->host, comm->size, row);
  o->own_from = rows_before(send->host, me, row);
  o->own_to = rows_before(recv->host, me, row);
  o->own_bytes = (size_t)send->host[me] * row;
  flows_to_all(o);
  for (int i = 0; i < o->n_flows; i++) counted_flow(&o->flows[i], send->host, recv->host, row);
  return post(o, stream, request);
}

static bk_status comm_broadcast(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                                bk_request **request) {
  bk_operation *o = NULL;
  bool is_root = comm->rank == root;
  BK_TRY(take(state_of(comm), BK_BROADCAST, bk_tensor_bytes(data), &o));
  o->dtype = data->dtype;
  o->count = bk_tensor_count(data);
  o->root = root;
  place(o, is_root ? data : NULL, 0, is_root ? NULL : data, 0);
  flows_to_all(o);
  return post(o, stream, request);
}

static bk_status comm_barrier(bk_comm *comm, bk_stream *stream, bk_request **request) {
  bk_operation *o = NULL;
  BK_TRY(take(state_of(comm), BK_BARRIER, 0, &o));
  place(o, NULL, 0, NULL, 0);
  flows_to_all(o);
  return post(o, stream, request);
}

/* ---- exchange ---- */

static size_t exchange_bytes(const bk_transfer *transfers, int n) {
  size_t bytes = 0;
  for (int i = 0; i < n; i++) bytes += bk_tensor_bytes(&transfers[i].data);
  return bytes;
}

/* The k-th send to the own rank meets the k-th receive; comm.c has checked that they fit. */
static bk_status copy_own(bk_comm *comm, bk_stream *stream, const bk_transfer *t, int n) {
  for (int s = 0, r = 0; s < n; s++, r++) {
    while (s < n && (!t[s].send || t[s].peer != comm->rank)) s++;
    while (r < n && (t[r].send || t[r].peer != comm->rank)) r++;
    if (s == n || r == n) break;
    const bk_tensor *from = &t[s].data, *to = &t[r].data;
    size_t bytes = bk_tensor_bytes(from);
    if (bytes && (from->buffer != to->buffer || from->offset != to->offset))
      BK_TRY(stream->ops->copy(stream, (bk_place){to->buffer, to->offset},
                               (bk_place){from->buffer, from->offset}, bytes));
  }
  return BK_OK;
}

static void transfer_flow(bk_operation *o, const bk_transfer *t, size_t at) {
  bk_flow *f = &o->flows[o->n_flows++];
  size_t bytes = bk_tensor_bytes(&t->data);
  f->index = t->peer;
  f->peer = o->comm->members[t->peer];
  f->send_at = at;
  f->place = (bk_place){t->data.buffer, t->data.offset};
  f->send_bytes = t->send ? bytes : 0;
  f->receive_bytes = t->send ? 0 : bytes;
  f->send = f->receive = o->moves ? NULL : bk_tensor_data(&t->data);
  f->header = header_of(o);
  f->header.kind = t->send ? BK_SEND : BK_RECEIVE;
  f->header.dtype = t->data.dtype;
  f->header.count = bk_tensor_count(&t->data);
  f->header.tag = t->tag;
}

static bk_status comm_exchange(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers,
                               int n, bk_request **request) {
  bk_operation *o = NULL;
  size_t at = 0;
  BK_TRY(take(state_of(comm), BK_SEND, exchange_bytes(transfers, n), &o));
  bk_status status = copy_own(comm, stream, transfers, n);
  if (status != BK_OK) {
    release(o);
    return status;
  }
  place(o, NULL, 0, NULL, 0);
  for (int i = 0; i < n; i++) {
    if (transfers[i].peer == comm->rank) continue;
    transfer_flow(o, &transfers[i], at);
    at += BK_ALIGN_UP(bk_tensor_bytes(&transfers[i].data), 64);
  }
  return post(o, stream, request);
}

/* ---- waiting ---- */

static bk_status await(bk_operation *o, bk_stream *stream) {
  bk_engine *e = o->comm->engine;
  double begin = e->seconds();
  atomic_store(&o->awaited, true);
  bk_move_await(e, o);
  bk_status status = o->status;
  if (o->moves) {
    bk_status moved = bk_move_finish(o, stream);
    if (status == BK_OK) status = moved;
  }
  o->base.times.waited = e->seconds() - begin;
  pthread_mutex_lock(&e->lock);
  e->stats.wait_s += o->base.times.waited;
  pthread_mutex_unlock(&e->lock);
  release(o);
  return status == BK_ERR_COMM ? bk_engine_report(e, o->comm->base.ctx) : status;
}

static bk_status comm_wait(bk_comm *comm, bk_request *request, bk_stream *stream) {
  (void)comm;
  return await((bk_operation *)request, stream);
}

/* Host memory on every device. */
bk_status bk_engine_comm_gather(bk_engine_comm_state *c, const void *src, size_t bytes, void *dst) {
  bk_operation *o = NULL;
  bk_request *request = NULL;
  BK_TRY(take(c, BK_GATHER, 0, &o));
  o->count = (int64_t)bytes;
  o->in = (char *)src;
  o->out = dst;
  flows_to_all(o);
  BK_TRY(post(o, NULL, &request));
  return await(o, NULL);
}

static bk_status comm_gather(bk_comm *comm, const void *src, size_t bytes, void *dst) {
  return bk_engine_comm_gather(state_of(comm), src, bytes, dst);
}

static bk_comm_stats engine_statistics(bk_engine *e) {
  pthread_mutex_lock(&e->lock);
  bk_comm_stats stats = e->stats;
  pthread_mutex_unlock(&e->lock);
  return stats;
}

static void comm_statistics(const bk_comm *comm, bk_comm_stats *stats) {
  const bk_engine_comm_state *c = (const bk_engine_comm_state *)comm;
  bk_comm_stats now = engine_statistics(c->engine);
  *stats = (bk_comm_stats){now.bytes_sent - c->before.bytes_sent, now.busy_s - c->before.busy_s,
                           now.wait_s - c->before.wait_s};
}

static void comm_abort(bk_comm *comm) {
  char text[64];
  snprintf(text, sizeof text, "rank %d has given up", state_of(comm)->engine->rank);
  bk_engine_fail(state_of(comm)->engine, text);
  state_of(comm)->engine->logged = true; /* by this rank, with its own reason */
}

/* ---- rooms ---- */

static void room_free(bk_engine_comm_state *c, bk_engine_room *room) {
  bk_context *ctx = c->base.ctx;
  bk_move_release(c, room);
  for (int i = 0; i < BK_SCRATCH_SLOTS; i++) bk_free(ctx, room->scratch[i]);
  bk_free(ctx, room->staging);
  bk_free(ctx, room->flows);
  bk_free(ctx, room->operations);
}

static bk_status make_operations(bk_engine_comm_state *c, bk_engine_room *room, int flows) {
  size_t n = (size_t)room->n;
  room->operations = bk_alloc_array(c->base.ctx, n, sizeof *room->operations);
  if (!room->operations) return BK_ERR_MEMORY;
  room->flows = bk_alloc_array(c->base.ctx, n * (size_t)flows, sizeof *room->flows);
  if (!room->flows) return BK_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    bk_operation *o = &room->operations[i];
    o->base.comm = &c->base;
    o->comm = c;
    o->scratch_slot = -1;
    o->flows = &room->flows[i * (size_t)flows];
  }
  return BK_OK;
}

/* The own piece of every other rank, or all of a small tensor of each. */
static size_t scratch_bytes(const bk_comm *comm, size_t largest) {
  size_t bytes = largest + (size_t)comm->size * 128 * sizeof(double);
  return bytes < BK_SMALL_BYTES ? BK_SMALL_BYTES : bytes;
}

static bk_status make_scratch(bk_engine_comm_state *c, bk_engine_room *room) {
  size_t bytes = scratch_bytes(&c->base, room->bytes);
  for (int i = 0; i < BK_SCRATCH_SLOTS && i < room->n; i++) {
    room->scratch[i] = bk_alloc(c->base.ctx, bytes);
    if (!room->scratch[i]) return BK_ERR_MEMORY;
  }
  return BK_OK;
}

/* Of how many operations the tensors are summed, or have staging, at once. */
static int at_once(bk_comm_room which, int requests) {
  return which == BK_ROOM_EXCHANGE || requests < BK_SCRATCH_SLOTS ? requests : BK_SCRATCH_SLOTS;
}

static int flows_of_one(const bk_comm *comm, bk_comm_room which) {
  return which == BK_ROOM_EXCHANGE ? BK_EXCHANGE_TRANSFERS : comm->size;
}

static size_t staging_bytes(bk_comm_room which, size_t bytes) {
  return which == BK_ROOM_EXCHANGE ? bytes + (size_t)64 * BK_EXCHANGE_TRANSFERS
                                   : 2 * BK_ALIGN_UP(bytes, 64);
}

static bk_status room_make(bk_engine_comm_state *c, bk_comm_room which, bk_engine_room *room) {
  BK_TRY(make_operations(c, room, flows_of_one(&c->base, which)));
  if (!c->base.device) return BK_OK;
  if (which != BK_ROOM_EXCHANGE) BK_TRY(make_scratch(c, room));
  if (!c->stream) return BK_OK;
  room->n_staging = at_once(which, room->n);
  room->staging_bytes = staging_bytes(which, room->bytes);
  return bk_move_reserve(c, room);
}

/* What room_make takes. */
static size_t comm_room_bytes(const bk_comm *comm, bk_comm_room which, int requests, size_t bytes) {
  size_t n = (size_t)requests, slots = (size_t)at_once(which, requests);
  size_t sum = n * sizeof(bk_operation) + n * (size_t)flows_of_one(comm, which) * sizeof(bk_flow);
  if (!comm->device) return sum;
  if (which != BK_ROOM_EXCHANGE) sum += slots * scratch_bytes(comm, bytes);
  return comm->device->props.host_memory ? sum : sum + slots * staging_bytes(which, bytes);
}

static bool in_use(const bk_engine_room *room) {
  bool used = false;
  for (int i = 0; i < room->n; i++) used |= room->operations[i].used;
  return used;
}

static bk_status comm_reserve(bk_comm *comm, bk_comm_room which, int requests, size_t bytes) {
  bk_engine_comm_state *c = state_of(comm);
  bk_engine_room made = {.n = requests, .bytes = bytes};
  if (in_use(&c->rooms[which]))
    return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "reserve: requests of the group are under way");
  bk_status status = room_make(c, which, &made);
  if (status != BK_OK) {
    room_free(c, &made);
    return status;
  }
  room_free(c, &c->rooms[which]);
  c->rooms[which] = made;
  return BK_OK;
}

/* ---- groups ---- */

/* Requests that nobody has waited for are a fault of the program, and their memory may still be
 * written: all ends. */
static void end_requests(bk_engine_comm_state *c) {
  for (int r = 0; r < BK_ROOM_COUNT; r++)
    for (int i = 0; i < c->rooms[r].n; i++) {
      bk_operation *o = &c->rooms[r].operations[i];
      if (!o->used) continue;
      bk_engine_fail(c->engine, "a group was destroyed before its requests were waited for");
      bk_move_await(c->engine, o);
      if (o->moves) bk_move_finish(o, c->stream);
    }
}

void bk_engine_comm_free(bk_engine_comm_state *c) {
  bk_context *ctx = c->base.ctx;
  end_requests(c);
  for (int i = 0; i < BK_ROOM_COUNT; i++) room_free(c, &c->rooms[i]);
  bk_stream_destroy(c->stream);
  bk_free(ctx, c->leaves);
  bk_free(ctx, c->members);
  bk_free(ctx, c);
}

static void comm_destroy(bk_comm *comm) { bk_engine_comm_free(state_of(comm)); }

static bk_status comm_split(bk_comm *comm, int color, int key, bk_comm **group);

static const bk_comm_ops engine_ops = {
    .destroy = comm_destroy,
    .split = comm_split,
    .reserve = comm_reserve,
    .room_bytes = comm_room_bytes,
    .exchange = comm_exchange,
    .all_reduce = comm_all_reduce,
    .reduce_scatter = comm_reduce_scatter,
    .all_gather = comm_all_gather,
    .all_to_all = comm_all_to_all,
    .all_to_allv = comm_all_to_allv,
    .broadcast = comm_broadcast,
    .barrier = comm_barrier,
    .wait = comm_wait,
    .gather = comm_gather,
    .statistics = comm_statistics,
    .abort = comm_abort,
};

/* A comm without a device gathers, one operation at a time, and does nothing else. */
static bk_status make_rooms(bk_engine_comm_state *c) {
  const bk_device *device = c->base.device;
  if (!device) return comm_reserve(&c->base, BK_ROOM_COLLECTIVE, 1, 0);
  if (!device->props.host_memory) BK_TRY(bk_stream_create(c->base.device, 0, &c->stream));
  BK_TRY(comm_reserve(&c->base, BK_ROOM_COLLECTIVE, DEFAULT_REQUESTS, DEFAULT_BYTES));
  return comm_reserve(&c->base, BK_ROOM_EXCHANGE, DEFAULT_EXCHANGES, DEFAULT_BYTES);
}

static bk_status fill(bk_engine_comm_state *c, const int *members) {
  size_t size = (size_t)c->base.size;
  c->members = bk_alloc_array(c->base.ctx, size, sizeof *c->members);
  if (!c->members) return BK_ERR_MEMORY;
  c->leaves = bk_alloc_array(c->base.ctx, size, sizeof *c->leaves);
  if (!c->leaves) return BK_ERR_MEMORY;
  memcpy(c->members, members, size * sizeof *c->members);
  return make_rooms(c);
}

bk_status bk_engine_comm_make(bk_engine *e, bk_device *device, const int *members, int size,
                              int rank, uint64_t group, bk_engine_comm_state **comm) {
  bk_context *ctx = device ? device->ctx : e->ctx;
  bk_engine_comm_state *c = bk_alloc(ctx, sizeof *c);
  if (!c) return BK_ERR_MEMORY;
  c->base = (bk_comm){.ops = &engine_ops,
                      .ctx = ctx,
                      .device = device,
                      .rank = rank,
                      .size = size,
                      .needs_host_counts = true};
  c->engine = e;
  c->group = group;
  bk_status status = fill(c, members);
  if (status != BK_OK) {
    bk_engine_comm_free(c);
    return status;
  }
  c->before = engine_statistics(c->engine);
  *comm = c;
  return BK_OK;
}

/* What each rank says of itself in a split. */
typedef struct choice {
  int color, key;
} choice;

/* The members of a colour by (key, rank): an insertion for each, into `members`. */
static int members_of(const bk_engine_comm_state *c, const choice *choices, int color, int *members,
                      int *own) {
  int n = 0;
  for (int r = 0; r < c->base.size; r++) {
    if (choices[r].color != color) continue;
    int at = n++;
    while (at > 0 && choices[members[at - 1]].key > choices[r].key)
      members[at] = members[at - 1], at--;
    members[at] = r;
  }
  for (int i = 0; i < n; i++) {
    if (members[i] == c->base.rank) *own = i;
    members[i] = c->members[members[i]];
  }
  return n;
}

static bk_status comm_split(bk_comm *comm, int color, int key, bk_comm **group) {
  bk_engine_comm_state *c = state_of(comm), *made = NULL;
  choice mine = {color, key};
  choice *choices = bk_alloc_array(comm->ctx, (size_t)comm->size, sizeof *choices);
  int *members = bk_alloc_array(comm->ctx, (size_t)comm->size, sizeof *members), own = 0;
  bk_status status =
      choices && members ? comm_gather(comm, &mine, sizeof mine, choices) : BK_ERR_MEMORY;
  c->splits++;
  if (status == BK_OK && color >= 0) {
    uint64_t id[] = {c->group, c->splits, (uint64_t)color};
    int n = members_of(c, choices, color, members, &own);
    status = bk_engine_comm_make(c->engine, comm->device, members, n, own, bk_hash64(id, sizeof id),
                                 &made);
  }
  bk_free(comm->ctx, members);
  bk_free(comm->ctx, choices);
  if (status == BK_OK) *group = made ? &made->base : NULL;
  return status;
}
