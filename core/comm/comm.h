/* Communication between ranks: a vtable of its own, beside the compute backends.
 *
 * A comm is one rank's membership in a group of `size` ranks. Every operation is *posted* on a
 * stream of the rank's device: it begins when the work that the stream has been given so far is
 * done, and the call returns at once with a request. bk_comm_wait(request, stream) makes what the
 * stream is given from then on see the result: it is an event on a device whose transport works
 * there, and a wait of the host elsewhere, but never nothing. A request must be waited for once.
 * Requests are made beforehand (bk_comm_reserve): posting and waiting allocate nothing.
 *
 * All ranks of a group post the same operations in the same order, and groups that share ranks
 * share one order. In an exchange the sends of a rank to a peer meet the peer's receives from it in
 * the order in which they were posted. Kind, order, shape, dtype and tag of every operation are
 * compared between the ranks, always; where they disagree, all fail, with both sides' view.
 * Tensors are contiguous and on the stream's device. Their memory must stay until the request was
 * waited for.
 *
 * Sums have one order, that of a balanced binary tree over the ranks, element by element: their
 * bits depend on the number of ranks and not on the transport, on time or on threads.
 *
 * Errors: BK_ERR_ARGUMENT for what this rank passed wrong; BK_ERR_COMM when ranks disagree, the
 * transport failed, a time-out has passed or the group was aborted. After BK_ERR_COMM the group is
 * of no further use.
 *
 * A group is the caller's from bk_comm_open or bk_comm_split until bk_comm_destroy, before which
 * all requests must have been waited for. */
#ifndef BK_COMM_H
#define BK_COMM_H

#include "comm/transport.h"

#include "runtime/backend.h"

/* One operation that was posted; the comm's own. */
typedef struct bk_request bk_request;

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

/* Rows per peer: `host` [size], or a tensor i32 [size] on the device where host is NULL. */
typedef struct bk_comm_counts {
  const int64_t *host;
  bk_tensor device;
} bk_comm_counts;

/* What a transport implements; no member may be NULL. comm.c has checked the arguments. The meaning
 * of each is that of the entry point of the same name below. */
typedef struct bk_comm_ops {
  void (*destroy)(bk_comm *comm);
  /* Collective: ranks that pass the same colour form a group, ordered by (key, rank); a negative
   * colour gives *group NULL. */
  bk_status (*split)(bk_comm *comm, int color, int key, bk_comm **group);
  bk_status (*exchange)(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers, int n,
                        bk_event *done);
  bk_status (*all_reduce)(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                          const bk_tensor *dst, bk_event *done);
  bk_status (*reduce_scatter)(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                              const bk_tensor *dst, bk_event *done);
  bk_status (*all_gather)(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                          const bk_tensor *dst, bk_event *done);
  bk_status (*all_to_all)(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                          const bk_tensor *dst, bk_event *done);
  bk_status (*all_to_allv)(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                           const bk_comm_counts *send, const bk_tensor *dst,
                           const bk_comm_counts *recv, bk_event *done);
  bk_status (*broadcast)(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                         bk_event *done);
  bk_status (*barrier)(bk_comm *comm, bk_stream *stream, bk_event *done);
  void (*abort)(bk_comm *comm);
} bk_comm_ops;

struct bk_comm {
  const bk_comm_ops *ops;
  bk_context *ctx;
  bk_device *device;
  /* this process's number in the group, from 0, and the number of its members */
  int rank, size;
  /* see the counts of all_to_allv above; the transport sets it when it makes the group */
  bool needs_host_counts;
  /* set by bk_comm_abort; later operations of this rank are refused */
  bool aborted;
};

/* A transport: what `self` is, and what message-passing backends add. */
typedef struct bk_comm_backend {
  uint32_t abi;     /* BK_COMM_ABI */
  const char *name; /* "self", ... */
  int priority;
  bk_status (*probe)(bk_context *ctx, char *reason, size_t reason_size); /* as in bk_backend */
  /* Collective: makes the group of all ranks. */
  bk_status (*open)(bk_device *device, bk_comm **world);
} bk_comm_backend;

/* self.c: a group of one rank, in which every operation is a copy or nothing. */
extern const bk_comm_backend bk_comm_backend_self;

/* ---- comm.c: checked entry points. All code calls these, and only they call the vtable. ---- */
/* Collective where there are several ranks. BK_ERR_ABI: the transport was built for another
 * version, or its table has a hole; otherwise what its probe returns where it cannot be used, with
 * the reason. */
bk_status bk_comm_open_with(const bk_comm_backend *backend, bk_device *device, bk_comm **world);
void bk_comm_destroy(bk_comm *comm); /* NULL is allowed */
bk_status bk_comm_split(bk_comm *comm, int color, int key, bk_comm **group);
/* All of the batch's transfers proceed together: no order among them can deadlock. A send to the
 * own rank meets a receive from it in the same batch. */
bk_status bk_comm_exchange(bk_comm *comm, bk_stream *stream, const bk_transfer *transfers, int n,
                           bk_event *done);
/* dst = the reduction of all ranks' src, of equal shape and float dtype; dst may be src. Sums
 * run in rank order. */
bk_status bk_comm_all_reduce(bk_comm *comm, bk_stream *stream, bk_reduce op, const bk_tensor *src,
                             const bk_tensor *dst, bk_event *done);
/* src has size times the elements of dst; dst = piece `rank` of the reduction. */
bk_status bk_comm_reduce_scatter(bk_comm *comm, bk_stream *stream, bk_reduce op,
                                 const bk_tensor *src, const bk_tensor *dst, bk_event *done);
/* dst has size times the elements of src; piece r comes from rank r. */
bk_status bk_comm_all_gather(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_event *done);
/* src and dst of equal size, `size` pieces each: piece p of src goes to rank p, piece p of dst
 * comes from rank p. */
bk_status bk_comm_all_to_all(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                             const bk_tensor *dst, bk_event *done);
/* The same with counted pieces, one after the other; rows of src and dst have the same size. */
bk_status bk_comm_all_to_allv(bk_comm *comm, bk_stream *stream, const bk_tensor *src,
                              const bk_comm_counts *send, const bk_tensor *dst,
                              const bk_comm_counts *recv, bk_event *done);
/* The data of rank `root` replaces that of all others. */
bk_status bk_comm_broadcast(bk_comm *comm, bk_stream *stream, int root, const bk_tensor *data,
                            bk_event *done);
/* `done` is recorded when all ranks have come here. */
bk_status bk_comm_barrier(bk_comm *comm, bk_stream *stream, bk_event *done);
/* Gives up: operations in flight and later ones end with BK_ERR_COMM on every rank. */
void bk_comm_abort(bk_comm *comm);

#endif
