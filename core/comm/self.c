/* self: a group of one rank. A reduction over one rank is its own value, and every other operation
 * is a copy on the stream, or nothing when source and destination are the same place. With counts
 * on the device the host does not know how many rows there are, and copies all of them: the rows
 * past those received are unspecified by contract. needs_host_counts can therefore be false.
 *
 * All operations have one request, since there is nothing to remember of each: whoever waits for
 * one waits for all copies that were posted before.
 *
 * A model built for several ranks runs on one without a second code path. */
#include "comm/comm.h"

#include <string.h>

typedef struct self {
  bk_comm base;
  bk_request request;
  bk_event *copied; /* recorded behind the copies of the operation that was posted last */
} self;

static bk_place place_of(const bk_tensor *t) { return (bk_place){t->buffer, t->offset}; }

/* The end of every operation. */
static bk_status finish(bk_comm *comm, bk_stream *stream, bk_request **request) {
  self *own = (self *)comm;
  BK_TRY(stream->ops->event_record(stream, own->copied));
  *request = &own->request;
  return BK_OK;
}

/* The one event stands for the operations of all streams, so that a stream first waits for those
 * before. */
static bk_status begin(bk_comm *comm, bk_stream *stream) {
  self *own = (self *)comm;
  return own->request.posted ? stream->ops->event_wait(stream, own->copied) : BK_OK;
}

/* In place means that nothing is to be done, as for a reduction into its own source. */
static bk_status copy_bytes(bk_stream *stream, const bk_tensor *src, const bk_tensor *dst,
                            size_t bytes) {
  bool in_place = src->buffer == dst->buffer && src->offset == dst->offset;
  return in_place || bytes == 0 ? BK_OK
                                : stream->ops->copy(stream, place_of(dst), place_of(src), bytes);
}

static bk_status copy_whole(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                            const bk_tensor *dst, bk_request **request) {
  BK_TRY(begin(comm, stream));
  BK_TRY(copy_bytes(stream, src, dst, bk_tensor_bytes(src)));
  return finish(comm, stream, request);
}

static void self_destroy(bk_comm *comm) {
  bk_event *copied = ((self *)comm)->copied;
  copied->ops->destroy(copied);
  bk_free(comm->ctx, comm);
}

/* A group of one splits into a group of one, or into none. */
static bk_status self_split(bk_comm *comm, int color, int key, bk_comm **group) {
  (void)key;
  if (color >= 0) return bk_comm_self(comm->device, group);
  *group = NULL;
  return BK_OK;
}

/* There is always room. */
static bk_status self_reserve(bk_comm *comm, bk_comm_room room, int requests, size_t bytes) {
  (void)comm, (void)room, (void)requests, (void)bytes;
  return BK_OK;
}

static size_t self_room_bytes(const bk_comm *comm, bk_comm_room room, int requests, size_t bytes) {
  (void)comm, (void)room, (void)requests, (void)bytes;
  return 0;
}

/* The k-th send meets the k-th receive; comm.c has checked that they fit. */
static bk_status self_exchange(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers,
                               int n, bk_request **request) {
  BK_TRY(begin(comm, stream));
  for (int s = 0, r = 0; s < n; s++, r++) {
    while (s < n && !transfers[s].send) s++;
    while (r < n && transfers[r].send) r++;
    if (s < n && r < n)
      BK_TRY(copy_bytes(stream, &transfers[s].data, &transfers[r].data,
                        bk_tensor_bytes(&transfers[s].data)));
  }
  return finish(comm, stream, request);
}

/* The reduction of one value is that value. */
static bk_status self_reduce(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                             const bk_tensor *dst, bk_request **request) {
  (void)op;
  return copy_whole(comm, stream, src, dst, request);
}

/* The counts of the one rank must agree with themselves; where only one side has them on the host,
 * that one counts. */
static bk_status self_all_to_allv(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                                  const bk_comm_counts *send, const bk_tensor *dst,
                                  const bk_comm_counts *recv, bk_request **request) {
  int64_t rows = src->shape[0] < dst->shape[0] ? src->shape[0] : dst->shape[0];
  if (send->host && recv->host && send->host[0] != recv->host[0])
    return bk_fail(comm->ctx, BK_ERR_COMM, "all_to_allv: %lld rows are sent and %lld received",
                   (long long)send->host[0], (long long)recv->host[0]);
  if (recv->host) rows = recv->host[0];
  else if (send->host) rows = send->host[0];
  if (rows > src->shape[0] || rows > dst->shape[0])
    return bk_fail(comm->ctx, BK_ERR_COMM,
                   "all_to_allv: %lld rows do not fit in src of %lld and dst of %lld",
                   (long long)rows, (long long)src->shape[0], (long long)dst->shape[0]);
  bk_tensor part = bk_tensor_slice(*src, 0, 0, rows);
  return copy_whole(comm, stream, &part, dst, request);
}

/* This rank is the root, and has the data. */
static bk_status self_broadcast(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                                bk_request **request) {
  (void)root;
  return copy_whole(comm, stream, data, data, request);
}

static bk_status self_barrier(bk_comm *comm, bk_stream *stream, bk_request **request) {
  BK_TRY(begin(comm, stream));
  return finish(comm, stream, request);
}

static bk_status self_wait(bk_comm *comm, bk_request *request, bk_stream *stream) {
  (void)request;
  return stream->ops->event_wait(stream, ((self *)comm)->copied);
}

static bk_status self_gather(bk_comm *comm, const void *src, size_t bytes, void *dst) {
  (void)comm;
  if (bytes) memmove(dst, src, bytes);
  return BK_OK;
}

/* Nothing is sent to others, and nobody is waited for. */
static void self_statistics(const bk_comm *comm, bk_comm_stats *stats) { (void)comm, (void)stats; }

/* Nothing can be in flight elsewhere; comm.c refuses later operations. */
static void self_abort(bk_comm *comm) { (void)comm; }

static const bk_comm_ops self_ops = {
    .destroy = self_destroy,
    .split = self_split,
    .reserve = self_reserve,
    .room_bytes = self_room_bytes,
    .exchange = self_exchange,
    .all_reduce = self_reduce,
    .reduce_scatter = self_reduce,
    .all_gather = copy_whole,
    .all_to_all = copy_whole,
    .all_to_allv = self_all_to_allv,
    .broadcast = self_broadcast,
    .barrier = self_barrier,
    .wait = self_wait,
    .gather = self_gather,
    .statistics = self_statistics,
    .abort = self_abort,
};

bk_status bk_comm_self(bk_device *device, bk_comm **comm) {
  self *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  bk_status status = device->ops->event_create(device, &made->copied);
  if (status != BK_OK) {
    bk_free(device->ctx, made);
    return status;
  }
  made->base = (bk_comm){.ops = &self_ops, .ctx = device->ctx, .device = device, .size = 1};
  made->request.comm = &made->base;
  *comm = &made->base;
  return BK_OK;
}
