/* The checked entry points of communication. Whatever a transport may rely on is tested here,
 * once, on each rank by itself: no check here talks to another rank. A rank whose arguments are
 * refused has posted nothing, so that the others may wait for it until the group is aborted. */
#include "comm/comm.h"

/* The first check of every operation, since an aborted group is of no further use. */
static bk_status check_alive(bk_comm *comm, const char *what) {
  return comm->aborted ? bk_fail(comm->ctx, BK_ERR_COMM, "%s: the group was aborted", what) : BK_OK;
}

/* Transports move ranges of memory, so that tensors must be contiguous. */
static bk_status check_tensor(bk_comm *comm, const bk_tensor *t, const char *what,
                              const char *field) {
  char text[128];
  if (bk_tensor_present(t) && bk_tensor_contiguous(t) && t->buffer &&
      t->buffer->device == comm->device)
    return BK_OK;
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                 "%s: %s must be contiguous and on the group's device, it is %s", what, field,
                 bk_tensor_describe(t, text, sizeof text));
}

/* dst must have `numerator / denominator` times the elements of src. */
static bk_status check_pair(bk_comm *comm, const char *what, const bk_tensor *src,
                            const bk_tensor *dst, int numerator, int denominator) {
  BK_TRY(check_alive(comm, what));
  BK_TRY(check_tensor(comm, src, what, "src"));
  BK_TRY(check_tensor(comm, dst, what, "dst"));
  if (src->dtype == dst->dtype &&
      bk_tensor_count(dst) * denominator == bk_tensor_count(src) * numerator)
    return BK_OK;
  char a[128], b[128];
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                 "%s: dst must have %d/%d of the elements of src and its dtype; src %s, dst %s",
                 what, numerator, denominator, bk_tensor_describe(src, a, sizeof a),
                 bk_tensor_describe(dst, b, sizeof b));
}

/* Sums and maxima of floats are all that training reduces. */
static bk_status check_reducible(bk_comm *comm, const char *what, bk_reduce op,
                                 const bk_tensor *t) {
  if ((op == BK_REDUCE_SUM || op == BK_REDUCE_MAX) && bk_dtype_is_float(t->dtype)) return BK_OK;
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                 "%s: reduction %d of dtype %s; only sum and max of floats", what, (int)op,
                 bk_dtype_name(t->dtype));
}

static bk_status check_rank(bk_comm *comm, const char *what, int rank) {
  if (rank >= 0 && rank < comm->size) return BK_OK;
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "%s: rank %d is not in 0..%d", what, rank,
                 comm->size - 1);
}

/* A table with a hole is refused as a whole, so that no call has to test for NULL. */
static bool whole(const bk_comm_ops *o) {
  return o->destroy && o->split && o->exchange && o->all_reduce && o->reduce_scatter &&
         o->all_gather && o->all_to_all && o->all_to_allv && o->broadcast && o->barrier && o->abort;
}

/* A transport may be a module, like a backend: its number is compared and its table checked before
 * anything of it is used. */
bk_status bk_comm_open_with(const bk_comm_backend *backend, bk_device *device, bk_comm **world) {
  bk_context *ctx = device->ctx;
  char reason[256] = "";
  if (backend->abi != BK_COMM_ABI)
    return bk_fail(ctx, BK_ERR_ABI,
                   "comm: the transport was built for ABI %u, this library has ABI %u",
                   (unsigned)backend->abi, BK_COMM_ABI);
  bk_status status = backend->probe(ctx, reason, sizeof reason);
  if (status != BK_OK)
    return bk_fail(ctx, status, "comm %s is not here: %s", backend->name, reason);
  bk_comm *opened = NULL;
  BK_TRY(backend->open(device, &opened));
  if (whole(opened->ops)) {
    *world = opened;
    return BK_OK;
  }
  if (opened->ops->destroy) opened->ops->destroy(opened);
  return bk_fail(ctx, BK_ERR_ABI, "comm %s: the table has a hole", backend->name);
}

void bk_comm_destroy(bk_comm *comm) {
  if (comm) comm->ops->destroy(comm);
}

/* Any colour and key is legal: whether ranks agree is seen by the transport alone. */
bk_status bk_comm_split(bk_comm *comm, int color, int key, bk_comm **group) {
  BK_TRY(check_alive(comm, "split"));
  return comm->ops->split(comm, color, key, group);
}

/* All transfers are checked before one is posted. */
bk_status bk_comm_exchange(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers, int n,
                           bk_event *done) {
  BK_TRY(check_alive(comm, "exchange"));
  for (int i = 0; i < n; i++) {
    BK_TRY(check_rank(comm, "exchange", transfers[i].peer));
    BK_TRY(check_tensor(comm, &transfers[i].data, "exchange",
                        transfers[i].send ? "a sent tensor" : "a received tensor"));
  }
  return comm->ops->exchange(comm, stream, transfers, n, done);
}

bk_status bk_comm_all_reduce(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                             const bk_tensor *dst, bk_event *done) {
  BK_TRY(check_pair(comm, "all_reduce", src, dst, 1, 1));
  BK_TRY(check_reducible(comm, "all_reduce", op, src));
  return comm->ops->all_reduce(comm, stream, op, src, dst, done);
}

/* src has `size` pieces, dst one. */
bk_status bk_comm_reduce_scatter(bk_comm *comm, bk_stream *stream, bk_reduce op,
                                 const bk_tensor *src, const bk_tensor *dst, bk_event *done) {
  BK_TRY(check_pair(comm, "reduce_scatter", src, dst, 1, comm->size));
  BK_TRY(check_reducible(comm, "reduce_scatter", op, src));
  return comm->ops->reduce_scatter(comm, stream, op, src, dst, done);
}

/* The other way round: dst has a piece of every rank. */
bk_status bk_comm_all_gather(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_event *done) {
  BK_TRY(check_pair(comm, "all_gather", src, dst, comm->size, 1));
  return comm->ops->all_gather(comm, stream, src, dst, done);
}

/* Pieces are equal, so that the number of elements must divide by the number of ranks. */
bk_status bk_comm_all_to_all(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_event *done) {
  BK_TRY(check_pair(comm, "all_to_all", src, dst, 1, 1));
  if (bk_tensor_count(src) % comm->size == 0)
    return comm->ops->all_to_all(comm, stream, src, dst, done);
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                 "all_to_all: %lld elements do not divide among %d ranks",
                 (long long)bk_tensor_count(src), comm->size);
}

/* Counts on the host must fit the rows; counts on the device cannot be seen from here, so that
 * only their dtype and number are checked. */
static bk_status check_counts(bk_comm *comm, const bk_comm_counts *counts, int64_t rows,
                              const char *field) {
  if (!counts->host) {
    if (comm->needs_host_counts)
      return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                     "all_to_allv: this group needs the %s counts on the host", field);
    BK_TRY(check_tensor(comm, &counts->device, "all_to_allv", field));
    if (counts->device.dtype == BK_I32 && bk_tensor_count(&counts->device) == comm->size)
      return BK_OK;
    return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "all_to_allv: %s counts must be i32 [%d]", field,
                   comm->size);
  }
  int64_t left = rows;
  for (int r = 0; r < comm->size; r++) {
    if (counts->host[r] < 0 || counts->host[r] > left)
      return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                     "all_to_allv: %s count %lld of rank %d, %lld of %lld rows are left", field,
                     (long long)counts->host[r], r, (long long)left, (long long)rows);
    left -= counts->host[r];
  }
  return BK_OK;
}

/* The number of rows may differ from rank to rank, but the shape of a row may not. */
bk_status bk_comm_all_to_allv(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                              const bk_comm_counts *send, const bk_tensor *dst,
                              const bk_comm_counts *recv, bk_event *done) {
  BK_TRY(check_alive(comm, "all_to_allv"));
  BK_TRY(check_tensor(comm, src, "all_to_allv", "src"));
  BK_TRY(check_tensor(comm, dst, "all_to_allv", "dst"));
  bool same_rows = src->dtype == dst->dtype && src->ndim == dst->ndim && src->ndim > 0;
  for (int i = 1; same_rows && i < src->ndim; i++) same_rows = src->shape[i] == dst->shape[i];
  if (!same_rows)
    return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "all_to_allv: rows of src and dst differ");
  BK_TRY(check_counts(comm, send, src->shape[0], "send"));
  BK_TRY(check_counts(comm, recv, dst->shape[0], "receive"));
  return comm->ops->all_to_allv(comm, stream, src, send, dst, recv, done);
}

bk_status bk_comm_broadcast(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                            bk_event *done) {
  BK_TRY(check_alive(comm, "broadcast"));
  BK_TRY(check_rank(comm, "broadcast", root));
  BK_TRY(check_tensor(comm, data, "broadcast", "data"));
  return comm->ops->broadcast(comm, stream, root, data, done);
}

bk_status bk_comm_barrier(bk_comm *comm, bk_stream *stream, bk_event *done) {
  BK_TRY(check_alive(comm, "barrier"));
  return comm->ops->barrier(comm, stream, done);
}

/* Marked before the transport is told, so that no operation can be posted in between. */
void bk_comm_abort(bk_comm *comm) {
  comm->aborted = true;
  comm->ops->abort(comm);
}
