/* Communication between ranks: a vtable of its own, beside the compute backends.
 *
 * A comm is one rank's membership in a group of `size` ranks. Every operation is *posted* on a
 * stream of the rank's device: it begins when the work that the stream has been given so far is
 * done, and the call returns at once with a request. bk_comm_wait(request, stream) makes what the
 * stream is given from then on see the result: it is an event on a device whose transport works
 * there, and a wait of the host elsewhere, but never nothing. A request must be waited for once.
 * Requests are made beforehand (bk_comm_reserve): posting and waiting allocate nothing.
 *
 * All ranks of a group post the same collective operations in the same order, and groups that share
 * ranks share one order. In an exchange the sends of a rank to a peer meet the peer's receives from
 * it in the order in which they were posted; an exchange may be posted before or after a collective
 * operation. Kind, order, size, dtype and tag of every operation are compared between the ranks,
 * always; where they disagree, all fail, with both sides' view. Tensors are contiguous and on the
 * stream's device. Their memory must stay, and what is received must not be looked at, until the
 * request was waited for.
 *
 * Pieces: where an operation cuts a tensor among the ranks, piece r is the elements from
 * bk_comm_cut(count, size, r) to bk_comm_cut(count, size, r + 1). Pieces begin at multiples of 128
 * elements, so that some have more than others, and some may be empty: a tensor that stands for an
 * empty piece may be absent.
 *
 * Reductions are sums and maxima of fp32, fp64, bf16, i32 and i64. Sums have one order, that of a
 * balanced binary tree over the ranks, element by element: sum(lo, hi) = sum(lo, mid) + sum(mid,
 * hi) with mid = (lo + hi) / 2. Their bits depend on the number of ranks and not on the transport,
 * on time or on threads. They are made in the dtype; those of bf16 are made in fp32 and rounded
 * once, at the end. Sums of integers wrap around. A maximum with a NaN in it is a NaN.
 *
 * Errors: BK_ERR_ARGUMENT for what this rank passed wrong; BK_ERR_COMM when ranks disagree, the
 * transport failed, a time-out has passed or the group was aborted. After BK_ERR_COMM the group is
 * of no further use: its requests must be waited for all the same, and the first reason is logged
 * by the first call that meets it.
 *
 * A group is the caller's from bk_comm_open or bk_comm_split until bk_comm_destroy, before which
 * all requests must have been waited for. One thread uses a comm: that of its context. */
#ifndef BK_COMM_H
#define BK_COMM_H

#include <birkhoff/parallel.h>

#include "runtime/backend.h"

/* What became of an operation, in seconds of bk_context_seconds. All is 0 where nothing goes to
 * other ranks. */
typedef struct bk_comm_times {
  double begun, met, ended; /* met: all ranks that it exchanges data with had begun it too */
  double waited;            /* how long bk_comm_wait took for it */
  size_t sent;              /* bytes of data to other ranks */
} bk_comm_times;

/* One operation that was posted; the comm's own. A transport's requests begin with it. */
typedef struct bk_request {
  bk_comm *comm;
  int posted; /* how often it was posted and not waited for; comm.c's own */
  /* to be read from the end of bk_comm_wait until the next operation is posted */
  bk_comm_times times;
} bk_request;

/* The reductions that training needs: sums of gradients and losses, maxima of norms. */
typedef enum bk_reduce { BK_REDUCE_SUM, BK_REDUCE_MAX } bk_reduce;

/* One half of a point-to-point transfer. */
typedef struct bk_transfer {
  bool send; /* otherwise receive */
  /* a rank of the group */
  int peer;
  /* must be the same on both ends of a transfer; it is checked and selects nothing */
  int tag;
  bk_tensor data;
} bk_transfer;
#define BK_EXCHANGE_TRANSFERS 32 /* the most that one exchange can have */

/* Rows per peer: `host` [size], or a tensor i32 [size] on the device where host is NULL. */
typedef struct bk_comm_counts {
  const int64_t *host;
  bk_tensor device;
} bk_comm_counts;

/* What bk_comm_reserve makes room for. */
typedef enum bk_comm_room { BK_ROOM_COLLECTIVE, BK_ROOM_EXCHANGE, BK_ROOM_COUNT } bk_comm_room;

/* What a transport implements; no member may be NULL. comm.c has checked the arguments. The meaning
 * of each is that of the entry point of the same name below. */
typedef struct bk_comm_ops {
  void (*destroy)(bk_comm *comm);
  bk_status (*split)(bk_comm *comm, int color, int key, bk_comm **group);
  bk_status (*reserve)(bk_comm *comm, bk_comm_room room, int requests, size_t bytes);
  size_t (*room_bytes)(const bk_comm *comm, bk_comm_room room, int requests, size_t bytes);
  bk_status (*exchange)(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers, int n,
                        bk_request **request);
  bk_status (*all_reduce)(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                          const bk_tensor *dst, bk_request **request);
  bk_status (*reduce_scatter)(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                              const bk_tensor *dst, bk_request **request);
  bk_status (*all_gather)(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                          const bk_tensor *dst, bk_request **request);
  bk_status (*all_to_all)(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                          const bk_tensor *dst, bk_request **request);
  bk_status (*all_to_allv)(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                           const bk_comm_counts *send, const bk_tensor *dst,
                           const bk_comm_counts *recv, bk_request **request);
  bk_status (*broadcast)(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                         bk_request **request);
  bk_status (*barrier)(bk_comm *comm, bk_stream *stream, bk_request **request);
  bk_status (*wait)(bk_comm *comm, bk_request *request, bk_stream *stream);
  bk_status (*gather)(bk_comm *comm, const void *src, size_t bytes, void *dst);
  void (*statistics)(const bk_comm *comm, bk_comm_stats *stats);
  void (*abort)(bk_comm *comm);
} bk_comm_ops;

struct bk_comm {
  const bk_comm_ops *ops;
  bk_context *ctx;
  bk_device *device;
  /* this process's number in the group, from 0, and the number of its members */
  int rank, size;
  /* all_to_allv takes no counts on the device; the transport sets it when it makes the group */
  bool needs_host_counts;
  /* set by bk_comm_abort; later operations of this rank are refused */
  bool aborted;
};

/* self.c: a group of one rank, in which every operation is a copy or nothing. It needs neither
 * threads nor memory. */
bk_status bk_comm_self(bk_device *device, bk_comm **comm);

/* Where piece `rank` of `count` elements begins; rank == size gives count. */
int64_t bk_comm_cut(int64_t count, int size, int rank);

/* ---- comm.c: checked entry points, with those of birkhoff/parallel.h. All code calls these, and
 * only they call the vtable. bk_comm_open is in open.c, because it alone refers to transports. ----
 */
/* Collective: ranks that pass the same colour form a group, ordered by (key, rank); a negative
 * colour gives *group NULL. It waits. */
bk_status bk_comm_split(bk_comm *comm, int color, int key, bk_comm **group);
/* Makes room for so many collective operations under way at once, whose tensors have at most
 * `bytes` bytes each. Some of them work at once and others wait for their turn. A new comm has room
 * for 16 of 1 MiB. No request may be under way; what is reserved replaces what was. */
bk_status bk_comm_reserve(bk_comm *comm, int requests, size_t bytes);
/* The host memory that bk_comm_reserve takes for that, pinned memory included; for plans. */
size_t bk_comm_reserve_bytes(const bk_comm *comm, int requests, size_t bytes);
/* The same for exchanges, whose tensors have at most `bytes` bytes together. They never wait for
 * one another's room: on a device whose memory is not the host's this takes requests * bytes of
 * pinned memory. A new comm has room for 4 of 1 MiB. */
bk_status bk_comm_reserve_exchange(bk_comm *comm, int requests, size_t bytes);
/* The host memory that this takes. */
size_t bk_comm_exchange_bytes(const bk_comm *comm, int requests, size_t bytes);
/* All of the batch's transfers proceed together: no order among them can deadlock. A send to the
 * own rank meets a receive from it in the same batch. */
bk_status bk_comm_exchange(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers, int n,
                           bk_request **request);
/* dst = the reduction of all ranks' src, of equal count; dst may be src. */
bk_status bk_comm_all_reduce(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                             const bk_tensor *dst, bk_request **request);
/* dst = piece `rank` of the reduction of src; it may be that piece of src. */
bk_status bk_comm_reduce_scatter(bk_comm *comm, bk_stream *stream, bk_reduce op,
                                 const bk_tensor *src, const bk_tensor *dst, bk_request **request);
/* Piece r of dst is the src of rank r, which may be that piece of its dst. */
bk_status bk_comm_all_gather(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_request **request);
/* src and dst of equal size, `size` equal pieces each: piece p of src goes to rank p, piece p of
 * dst comes from rank p. Among several ranks src and dst do not overlap. */
bk_status bk_comm_all_to_all(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_request **request);
/* The same with counted pieces, one after the other; rows of src and dst have the same size. */
bk_status bk_comm_all_to_allv(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                              const bk_comm_counts *send, const bk_tensor *dst,
                              const bk_comm_counts *recv, bk_request **request);
/* The data of rank `root` replaces that of all others. */
bk_status bk_comm_broadcast(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                            bk_request **request);
/* It is done when all ranks have posted it, and the work of their streams before it is done. */
bk_status bk_comm_barrier(bk_comm *comm, bk_stream *stream, bk_request **request);
bk_status bk_comm_wait(bk_comm *comm, bk_request *request, bk_stream *stream);
/* Gives up: operations in flight and later ones end with BK_ERR_COMM on every rank. */
void bk_comm_abort(bk_comm *comm);

#endif
