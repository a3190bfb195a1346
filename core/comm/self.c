/* self: a group of one rank. A reduction over one rank is its own value, and every other operation
 * is a copy on the stream, or nothing when source and destination are the same place. With counts
 * on the device the host does not know how many rows there are, and copies all of them: the rows
 * past those received are unspecified by contract. needs_host_counts can therefore be false.
 *
 * A model built for several ranks runs on one without a second code path. */
#include "comm/comm.h"

static bk_place place_of(const bk_tensor *t) { return (bk_place){t->buffer, t->offset}; }

/* The end of every operation: `done` is recorded behind its copies on the stream. */
static bk_status finish(bk_stream *stream, bk_event *done) {
  return done ? stream->ops->event_record(stream, done) : BK_OK;
}

/* In place means that nothing is to be done, as for a reduction into its own source. */
static bk_status copy_bytes(bk_stream *stream, const bk_tensor *src, const bk_tensor *dst,
                            size_t bytes) {
  bool in_place = src->buffer == dst->buffer && src->offset == dst->offset;
  return in_place || bytes == 0 ? BK_OK
                                : stream->ops->copy(stream, place_of(dst), place_of(src), bytes);
}

static bk_status copy_whole(bk_stream *stream, const bk_tensor *src, const bk_tensor *dst,
                            bk_event *done) {
  BK_TRY(copy_bytes(stream, src, dst, bk_tensor_bytes(src)));
  return finish(stream, done);
}

static void self_destroy(bk_comm *comm) { bk_free(comm->ctx, comm); }

static bk_status self_make(bk_device *device, bk_comm **comm);

/* A group of one splits into a group of one, or into none. */
static bk_status self_split(bk_comm *comm, int color, int key, bk_comm **group) {
  (void)key;
  if (color >= 0) return self_make(comm->device, group);
  *group = NULL;
  return BK_OK;
}

/* The next send (or receive) at or after `from`, or n. */
static int next_half(const bk_transfer *transfers, int n, int from, bool send) {
  while (from < n && transfers[from].send != send) from++;
  return from;
}

/* What transports between ranks check in debug builds is always checked here, so that a test on one
 * rank finds a mistake that would hang several. */
static bk_status check_match(bk_comm *comm, const bk_transfer *s, const bk_transfer *r) {
  if (s->tag != r->tag)
    return bk_fail(comm->ctx, BK_ERR_COMM,
                   "exchange: a send with tag %d meets a receive with tag %d", s->tag, r->tag);
  if (s->data.dtype == r->data.dtype && bk_tensor_count(&s->data) == bk_tensor_count(&r->data))
    return BK_OK;
  return bk_fail(comm->ctx, BK_ERR_COMM,
                 "exchange: tag %d sends %lld of %s and receives %lld of %s", s->tag,
                 (long long)bk_tensor_count(&s->data), bk_dtype_name(s->data.dtype),
                 (long long)bk_tensor_count(&r->data), bk_dtype_name(r->data.dtype));
}

/* The k-th send meets the k-th receive. The first of the two rounds checks, the second copies, so
 * that a batch with a fault in it copies nothing. */
static bk_status self_exchange(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers,
                               int n, bk_event *done) {
  for (int copying = 0; copying < 2; copying++) {
    int s = next_half(transfers, n, 0, true), r = next_half(transfers, n, 0, false);
    for (; s < n && r < n;
         s = next_half(transfers, n, s + 1, true), r = next_half(transfers, n, r + 1, false)) {
      if (!copying) BK_TRY(check_match(comm, &transfers[s], &transfers[r]));
      else
        BK_TRY(copy_bytes(stream, &transfers[s].data, &transfers[r].data,
                          bk_tensor_bytes(&transfers[s].data)));
    }
    if (s < n || r < n)
      return bk_fail(comm->ctx, BK_ERR_COMM,
                     "exchange: a %s of tag %d with itself has no other half in the batch",
                     s < n ? "send" : "receive", transfers[s < n ? s : r].tag);
  }
  return finish(stream, done);
}

/* The reduction of one value is that value. */
static bk_status self_reduce(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                             const bk_tensor *dst, bk_event *done) {
  (void)comm, (void)op;
  return copy_whole(stream, src, dst, done);
}

/* There is one piece, the own one; all_to_all of one rank is the same. */
static bk_status self_gather(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_event *done) {
  (void)comm;
  return copy_whole(stream, src, dst, done);
}

/* The counts of the one rank must agree with themselves; where only one side has them on the host,
 * that one counts. */
static bk_status self_all_to_allv(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                                  const bk_comm_counts *send, const bk_tensor *dst,
                                  const bk_comm_counts *recv, bk_event *done) {
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
  return copy_whole(stream, &part, dst, done);
}

/* This rank is the root, and has the data. */
static bk_status self_broadcast(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                                bk_event *done) {
  (void)comm, (void)root, (void)data;
  return finish(stream, done);
}

static bk_status self_barrier(bk_comm *comm, bk_stream *stream, bk_event *done) {
  (void)comm;
  return finish(stream, done);
}

/* Nothing can be in flight elsewhere; comm.c refuses later operations. */
static void self_abort(bk_comm *comm) { (void)comm; }

static const bk_comm_ops self_ops = {
    .destroy = self_destroy,
    .split = self_split,
    .exchange = self_exchange,
    .all_reduce = self_reduce,
    .reduce_scatter = self_reduce,
    .all_gather = self_gather,
    .all_to_all = self_gather,
    .all_to_allv = self_all_to_allv,
    .broadcast = self_broadcast,
    .barrier = self_barrier,
    .abort = self_abort,
};

static bk_status self_make(bk_device *device, bk_comm **comm) {
  bk_comm *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  *made = (bk_comm){.ops = &self_ops, .ctx = device->ctx, .device = device, .rank = 0, .size = 1};
  *comm = made;
  return BK_OK;
}

static bk_status self_probe(bk_context *ctx, char *reason, size_t reason_size) {
  (void)ctx, (void)reason, (void)reason_size;
  return BK_OK;
}

const bk_comm_backend bk_comm_backend_self = {
    .abi = BK_COMM_ABI, .name = "self", .priority = 0, .probe = self_probe, .open = self_make};
