/* The checked entry points of communication. Whatever a transport may rely on is tested here,
 * once, on each rank by itself: no check here talks to another rank. A rank whose arguments are
 * refused has posted nothing, so that the others may wait for it until the group is aborted. */
#include "comm/comm.h"

#include <string.h>

/* Pieces begin at multiples of this many elements, so that each begins at a line of the cache and
 * at an offset that any kernel takes. */
#define CUT 128

/* count * rank / size without the product, which may be too large. */
int64_t bk_comm_cut(int64_t count, int size, int rank) {
  if (rank >= size) return count;
  int64_t begin = count / size * rank + count % size * rank / size;
  return begin / CUT * CUT;
}

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

/* Of `whole` the tensor `piece` is what belongs to this rank; it may be absent if that is empty. */
static bk_status check_piece(bk_comm *comm, const char *what, const bk_tensor *whole,
                             const bk_tensor *piece, const char *whole_name,
                             const char *piece_name) {
  int64_t count = bk_tensor_count(whole);
  int64_t own =
      bk_comm_cut(count, comm->size, comm->rank + 1) - bk_comm_cut(count, comm->size, comm->rank);
  BK_TRY(check_alive(comm, what));
  BK_TRY(check_tensor(comm, whole, what, whole_name));
  if (own == 0 && bk_tensor_count(piece) == 0) return BK_OK;
  BK_TRY(check_tensor(comm, piece, what, piece_name));
  if (piece->dtype == whole->dtype && bk_tensor_count(piece) == own) return BK_OK;
  char a[128], b[128];
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                 "%s: %s must be piece %d of %d of %s, which has %lld elements; %s %s, %s %s", what,
                 piece_name, comm->rank, comm->size, whole_name, (long long)own, whole_name,
                 bk_tensor_describe(whole, a, sizeof a), piece_name,
                 bk_tensor_describe(piece, b, sizeof b));
}

/* dst is like src. */
static bk_status check_equal(bk_comm *comm, const char *what, const bk_tensor *src,
                             const bk_tensor *dst) {
  BK_TRY(check_alive(comm, what));
  BK_TRY(check_tensor(comm, src, what, "src"));
  BK_TRY(check_tensor(comm, dst, what, "dst"));
  if (src->dtype == dst->dtype && bk_tensor_count(dst) == bk_tensor_count(src)) return BK_OK;
  char a[128], b[128];
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                 "%s: dst must have the elements of src and its dtype; src %s, dst %s", what,
                 bk_tensor_describe(src, a, sizeof a), bk_tensor_describe(dst, b, sizeof b));
}

/* What is sent to several ranks in parts must not be overwritten by what comes from them. */
static bk_status check_apart(bk_comm *comm, const char *what, const bk_tensor *src,
                             const bk_tensor *dst) {
  size_t s = bk_tensor_bytes(src), d = bk_tensor_bytes(dst);
  bool apart = src->buffer != dst->buffer || src->offset + s <= dst->offset ||
               dst->offset + d <= src->offset || s == 0 || d == 0;
  return comm->size == 1 || apart
             ? BK_OK
             : bk_fail(comm->ctx, BK_ERR_ARGUMENT, "%s: src and dst overlap", what);
}

static bk_status check_reducible(bk_comm *comm, const char *what, bk_reduce op,
                                 const bk_tensor *t) {
  bool number = bk_dtype_is_float(t->dtype) || t->dtype == BK_I32 || t->dtype == BK_I64;
  if ((op == BK_REDUCE_SUM || op == BK_REDUCE_MAX) && number) return BK_OK;
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                 "%s: reduction %d of dtype %s; only sum and max of floats, i32 and i64", what,
                 (int)op, bk_dtype_name(t->dtype));
}

static bk_status check_rank(bk_comm *comm, const char *what, int rank) {
  if (rank >= 0 && rank < comm->size) return BK_OK;
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "%s: rank %d is not in 0..%d", what, rank,
                 comm->size - 1);
}

/* A request counts as posted only if the transport took the operation. */
static bk_status posted(bk_status status, bk_request **made, bk_request **request) {
  if (status != BK_OK) return status;
  (*made)->posted++;
  *request = *made;
  return BK_OK;
}

void bk_comm_destroy(bk_comm *comm) {
  if (comm) comm->ops->destroy(comm);
}

int bk_comm_rank(const bk_comm *comm) { return comm ? comm->rank : 0; }
int bk_comm_size(const bk_comm *comm) { return comm ? comm->size : 1; }

/* Alone, what this rank gives is all that there is. */
bk_status bk_comm_gather(bk_comm *comm, const void *src, size_t bytes, void *dst) {
  if (comm) {
    BK_TRY(check_alive(comm, "gather"));
    return comm->ops->gather(comm, src, bytes, dst);
  }
  if (bytes) memmove(dst, src, bytes);
  return BK_OK;
}

void bk_comm_statistics(const bk_comm *comm, bk_comm_stats *stats) {
  *stats = (bk_comm_stats){0};
  if (comm) comm->ops->statistics(comm, stats);
}

/* Any colour and key is legal: whether ranks agree is seen by the transport alone. */
bk_status bk_comm_split(bk_comm *comm, int color, int key, bk_comm **group) {
  BK_TRY(check_alive(comm, "split"));
  return comm->ops->split(comm, color, key, group);
}

static bk_status reserve(bk_comm *comm, bk_comm_room room, int requests, size_t bytes) {
  BK_TRY(check_alive(comm, "reserve"));
  if (requests > 0) return comm->ops->reserve(comm, room, requests, bytes);
  return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "reserve: %d requests", requests);
}

bk_status bk_comm_reserve(bk_comm *comm, int requests, size_t bytes) {
  return reserve(comm, BK_ROOM_COLLECTIVE, requests, bytes);
}

size_t bk_comm_reserve_bytes(const bk_comm *comm, int requests, size_t bytes) {
  return comm->ops->room_bytes(comm, BK_ROOM_COLLECTIVE, requests, bytes);
}

bk_status bk_comm_reserve_exchange(bk_comm *comm, int requests, size_t bytes) {
  return reserve(comm, BK_ROOM_EXCHANGE, requests, bytes);
}

size_t bk_comm_exchange_bytes(const bk_comm *comm, int requests, size_t bytes) {
  return comm->ops->room_bytes(comm, BK_ROOM_EXCHANGE, requests, bytes);
}

/* ---- exchange ---- */

/* The next send (or receive) with the own rank at or after `from`, or n. */
static int next_half(bk_comm *comm, const bk_transfer *transfers, int n, int from, bool send) {
  while (from < n && (transfers[from].send != send || transfers[from].peer != comm->rank)) from++;
  return from;
}

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

/* The k-th send to the own rank meets the k-th receive from it. */
static bk_status check_own(bk_comm *comm, const bk_transfer *transfers, int n) {
  int s = next_half(comm, transfers, n, 0, true), r = next_half(comm, transfers, n, 0, false);
  for (; s < n && r < n; s = next_half(comm, transfers, n, s + 1, true),
                         r = next_half(comm, transfers, n, r + 1, false))
    BK_TRY(check_match(comm, &transfers[s], &transfers[r]));
  if (s == n && r == n) return BK_OK;
  return bk_fail(comm->ctx, BK_ERR_COMM,
                 "exchange: a %s of tag %d with itself has no other half in the batch",
                 s < n ? "send" : "receive", transfers[s < n ? s : r].tag);
}

/* All transfers are checked before one is posted. */
bk_status bk_comm_exchange(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers, int n,
                           bk_request **request) {
  BK_TRY(check_alive(comm, "exchange"));
  if (n < 0 || n > BK_EXCHANGE_TRANSFERS)
    return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "exchange: %d transfers, at most %d are possible", n,
                   BK_EXCHANGE_TRANSFERS);
  for (int i = 0; i < n; i++) {
    BK_TRY(check_rank(comm, "exchange", transfers[i].peer));
    BK_TRY(check_tensor(comm, &transfers[i].data, "exchange",
                        transfers[i].send ? "a sent tensor" : "a received tensor"));
  }
  BK_TRY(check_own(comm, transfers, n));
  bk_request *made = NULL;
  return posted(comm->ops->exchange(comm, stream, transfers, n, &made), &made, request);
}

/* ---- collective operations ---- */

bk_status bk_comm_all_reduce(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                             const bk_tensor *dst, bk_request **request) {
  BK_TRY(check_equal(comm, "all_reduce", src, dst));
  BK_TRY(check_reducible(comm, "all_reduce", op, src));
  bk_request *made = NULL;
  return posted(comm->ops->all_reduce(comm, stream, op, src, dst, &made), &made, request);
}

bk_status bk_comm_reduce_scatter(bk_comm *comm, bk_stream *stream, bk_reduce op,
                                 const bk_tensor *src, const bk_tensor *dst, bk_request **request) {
  BK_TRY(check_piece(comm, "reduce_scatter", src, dst, "src", "dst"));
  BK_TRY(check_reducible(comm, "reduce_scatter", op, src));
  bk_request *made = NULL;
  return posted(comm->ops->reduce_scatter(comm, stream, op, src, dst, &made), &made, request);
}

bk_status bk_comm_all_gather(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_request **request) {
  BK_TRY(check_piece(comm, "all_gather", dst, src, "dst", "src"));
  bk_request *made = NULL;
  return posted(comm->ops->all_gather(comm, stream, src, dst, &made), &made, request);
}

/* Pieces are equal, so that the number of elements must divide by the number of ranks. */
bk_status bk_comm_all_to_all(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_request **request) {
  BK_TRY(check_equal(comm, "all_to_all", src, dst));
  BK_TRY(check_apart(comm, "all_to_all", src, dst));
  if (bk_tensor_count(src) % comm->size != 0)
    return bk_fail(comm->ctx, BK_ERR_ARGUMENT,
                   "all_to_all: %lld elements do not divide among %d ranks",
                   (long long)bk_tensor_count(src), comm->size);
  bk_request *made = NULL;
  return posted(comm->ops->all_to_all(comm, stream, src, dst, &made), &made, request);
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
                              const bk_comm_counts *recv, bk_request **request) {
  BK_TRY(check_alive(comm, "all_to_allv"));
  BK_TRY(check_tensor(comm, src, "all_to_allv", "src"));
  BK_TRY(check_tensor(comm, dst, "all_to_allv", "dst"));
  bool same_rows = src->dtype == dst->dtype && src->ndim == dst->ndim && src->ndim > 0;
  for (int i = 1; same_rows && i < src->ndim; i++) same_rows = src->shape[i] == dst->shape[i];
  if (!same_rows)
    return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "all_to_allv: rows of src and dst differ");
  BK_TRY(check_apart(comm, "all_to_allv", src, dst));
  BK_TRY(check_counts(comm, send, src->shape[0], "send"));
  BK_TRY(check_counts(comm, recv, dst->shape[0], "receive"));
  bk_request *made = NULL;
  return posted(comm->ops->all_to_allv(comm, stream, src, send, dst, recv, &made), &made, request);
}

bk_status bk_comm_broadcast(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                            bk_request **request) {
  BK_TRY(check_alive(comm, "broadcast"));
  BK_TRY(check_rank(comm, "broadcast", root));
  BK_TRY(check_tensor(comm, data, "broadcast", "data"));
  bk_request *made = NULL;
  return posted(comm->ops->broadcast(comm, stream, root, data, &made), &made, request);
}

bk_status bk_comm_barrier(bk_comm *comm, bk_stream *stream, bk_request **request) {
  BK_TRY(check_alive(comm, "barrier"));
  bk_request *made = NULL;
  return posted(comm->ops->barrier(comm, stream, &made), &made, request);
}

/* Also where the group was aborted: requests have to come back. */
bk_status bk_comm_wait(bk_comm *comm, bk_request *request, bk_stream *stream) {
  if (!request || request->comm != comm || request->posted == 0)
    return bk_fail(comm->ctx, BK_ERR_ARGUMENT, "wait: %s",
                   !request || request->comm != comm
                       ? "the request is none of this group's"
                       : "the request was waited for already, or never posted");
  request->posted--;
  return comm->ops->wait(comm, request, stream);
}

/* Marked before the transport is told, so that no operation can be posted in between. */
void bk_comm_abort(bk_comm *comm) {
  comm->aborted = true;
  comm->ops->abort(comm);
}
