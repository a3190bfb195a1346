/* What the files of the engine share.
 *
 * engine.c       the thread, its life and its end, and what other threads ask of it
 * engine_work.c  the thread's work: messages, headers that meet, the steps of an operation
 * engine_text.c  operations in words, and what ranks disagree on
 * engine_comm.c  a comm of the engine: what the rank's own thread posts and waits for
 * engine_move.c  staging: what the rank's own thread moves between a device and the host
 *
 * Every rank of an operation first sends a header with its view of it to each rank that it will
 * exchange data with (in a collective operation: to all). Data flow between two ranks once each has
 * seen the other's header and found it equal to its own. So nothing of an operation on which ranks
 * disagree is ever received, both sides can say what is wrong, and no data arrive that nobody has
 * asked for.
 *
 * Headers of one rank arrive in the order in which they were sent, and are of three kinds that meet
 * independently of each other, so that an exchange does not wait for a collective operation or the
 * other way round: those of collective operations, of sends and of receives. */
#ifndef BK_ENGINE_PRIV_H
#define BK_ENGINE_PRIV_H

#include "comm/engine.h"
#include "comm/reduce.h"

#include <pthread.h>
#include <stdatomic.h>

typedef enum bk_kind {
  BK_ALL_REDUCE,
  BK_REDUCE_SCATTER,
  BK_ALL_GATHER,
  BK_ALL_TO_ALL,
  BK_ALL_TO_ALLV,
  BK_BROADCAST,
  BK_BARRIER,
  BK_GATHER,
  BK_SEND, /* of an exchange */
  BK_RECEIVE,
  BK_LEAVE, /* the end of a job */
  BK_FAULT, /* the sender has failed; `text` says why */
  BK_KIND_COUNT
} bk_kind;

/* A rank's view of an operation. It comes from another process, so that whatever is in it may be
 * wrong. */
typedef struct bk_header {
  uint32_t magic;
  int32_t kind, from; /* a rank of the job */
  int32_t reduce, dtype, root, tag;
  int32_t unused;
  uint64_t group, number; /* the number of the operation in its group */
  int64_t count;          /* elements; of BK_ALL_TO_ALLV those of a row */
  int64_t give, take;     /* BK_ALL_TO_ALLV: rows to the peer and from it */
  char text[176];
} bk_header;
#define BK_HEADER_MAGIC 0x424b4832u

/* What an operation does with one peer. */
typedef struct bk_flow {
  int peer;  /* a rank of the job */
  int index; /* in the group */
  bool matched;
  char *send, *receive;
  size_t send_bytes, receive_bytes;
  /* all_to_allv: where in source and result; exchange: `send_at`, where in staging */
  size_t send_at, receive_at;
  bk_place place; /* exchange: the tensor */
  bk_header header;
} bk_flow;

typedef struct bk_engine_comm_state bk_engine_comm_state;

/* A range of a device's memory, and where its image lies in staging. */
typedef struct bk_move {
  bk_place place;
  size_t at, bytes;
} bk_move;

/* Pinned memory for the tensors of one operation of a device. */
typedef struct bk_staging {
  char *memory;
  bk_event *uploaded; /* recorded behind the upload of what it holds */
  bool used;
  bool uploading; /* free again when `uploaded` has passed */
} bk_staging;

/* FREE and LATER belong to the rank's thread, TAKEN to the engine's. */
typedef enum bk_request_state {
  BK_REQUEST_FREE,
  BK_REQUEST_LATER, /* its data are not on the host yet */
  BK_REQUEST_TAKEN,
  BK_REQUEST_DONE
} bk_request_state;

typedef struct bk_operation bk_operation;
struct bk_operation {
  bk_request base;
  bk_engine_comm_state *comm;
  bk_operation *next; /* in one of the engine's lists */
  bk_operation *next_moving;
  bk_kind kind;
  bk_reduce reduce;
  bk_dtype dtype;
  int64_t count;
  int root;
  uint64_t number;
  /* host memory of the whole source and the whole result; they may be the same */
  char *in, *out;
  size_t own_from, own_to, own_bytes; /* all_to_allv: the part that stays here */
  bk_flow *flows;
  int n_flows;
  /* the engine's */
  char *scratch;
  int scratch_slot; /* -1: none */
  int round;        /* 0: headers and first data, 1: the gathering of an all_reduce */
  int under_way;    /* messages */
  int unmatched;    /* flows */
  double since;     /* when the time-out began to run */
  bk_status status;
  /* Exchanges: the rank waits for it. Receives are posted early, long before their message can
   * come, so that the time-out does not run from there. */
  atomic_bool awaited;
  /* shared, under the engine's lock */
  bk_request_state state;
  /* the rank's thread's */
  bool used;
  bool moves;       /* on a device whose memory is not the host's; of all that follows */
  bool downloading; /* or downloaded */
  bool uploaded;
  bk_staging *staging;
  /* behind what the tensor's stream was given before, then the download, then the upload */
  bk_event *ready;
  bk_move download, upload;
  size_t in_at, out_at; /* where `in` and `out` are in staging */
};

/* How many operations of a comm are summed, or have staging, at once. */
#define BK_SCRATCH_SLOTS 4

typedef struct bk_engine_room {
  bk_operation *operations;
  bk_flow *flows;
  bk_staging *staging;
  int n, n_staging;
  size_t bytes; /* of a tensor, or of all tensors of an exchange */
  size_t staging_bytes;
  bool starved; /* an operation waits for staging */
  char *scratch[BK_SCRATCH_SLOTS];
} bk_engine_room;
/* An all_reduce of which all ranks together get no more than this sends everything to everyone,
 * which takes one round in place of two. The bits are the same. */
#define BK_SMALL_BYTES ((size_t)64 << 10)

struct bk_engine_comm_state {
  bk_comm base;
  bk_engine *engine;
  uint64_t group, numbers, exchanges, splits;
  int *members;        /* [size] ranks of the job */
  const void **leaves; /* [size] sources of a reduction; the engine's */
  bk_engine_room rooms[BK_ROOM_COUNT];
  bool scratch_used[BK_SCRATCH_SLOTS]; /* the engine's thread's */
  bk_stream *stream;                   /* of its own; NULL where memory is the host's */
  bk_comm_stats before;                /* the engine's when the comm was made */
};

/* Headers of a peer that have not met theirs. */
#define BK_INBOX 64
typedef struct bk_inbox {
  bk_header arriving, headers[BK_INBOX];
  int n;
  bool receiving; /* `arriving` */
  bool left;      /* the peer has said that it leaves */
} bk_inbox;

/* Whose a message of the wire is. */
typedef struct bk_message {
  bk_operation *operation; /* NULL: the engine's own */
  bk_inbox *inbox;         /* of a header that is received */
  int peer;                /* of an operation's: the other rank */
} bk_message;

typedef struct bk_list {
  bk_operation *first, *last;
} bk_list;

struct bk_engine {
  bk_context *ctx;
  const bk_transport *transport;
  bk_job_options *options; /* while the wire is opened */
  double (*seconds)(void);
  double timeout_s;
  bk_wire *wire; /* the engine's thread's, which closes it when the engine fails */
  int rank, size;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t work, done;
  /* under the lock */
  bool opened, started, stop, abandon, failed, by_itself, told;
  bk_status open_status;
  char reason[512];
  bk_engine_fail_fn on_fail;
  void *on_fail_user;
  uint64_t completed; /* operations */
  bk_list posted;
  bk_comm_stats stats; /* wait_s is the rank's thread's */
  /* the rank's thread's */
  bool logged;
  bk_engine_comm_state *all; /* of the job, without a device */
  uint64_t comms_made;
  bk_operation *moving; /* those with transfers, as they were posted */
  /* the engine's thread's */
  bk_list collectives, exchanges, active;
  double busy_since;
  int quiet;         /* rounds in which nothing happened */
  int own_messages;  /* under way, to others: the end of the job or its failure */
  int promised;      /* slots of the operations that have begun */
  bk_inbox *inboxes; /* [size] */
  bk_header farewell;
  int *free_slots, *slots; /* [wire->slots] */
  bool *slot_done;
  bk_message *messages; /* by slot */
  int n_free, n_slots;
};

/* ---- engine.c ---- */
bool bk_engine_has_failed(bk_engine *e);
/* From the engine's thread: an operation has failed by itself. Returns false. */
bool bk_engine_fault(bk_engine *e, const char *reason);
/* In the rank's thread: BK_ERR_COMM, with the reason in the log the first time. */
bk_status bk_engine_report(bk_engine *e, bk_context *ctx);

/* ---- engine_work.c: the engine's thread. False: the engine has failed. ---- */
/* Everything that can be done at this moment. */
bool bk_engine_work(bk_engine *e);
/* Two parts of it, for the end. */
bool bk_engine_receive_headers(bk_engine *e);
bool bk_engine_finish_messages(bk_engine *e, bool *moved);
/* Begins a message of the engine's own. */
bool bk_engine_send_own(bk_engine *e, int peer, const bk_header *header);
void bk_engine_complete(bk_engine *e, bk_operation *o, bk_status status);
bk_operation *bk_list_take(bk_list *list);
void bk_list_append(bk_list *list, bk_operation *o);

/* ---- engine_text.c ---- */
const char *bk_kind_name(int kind);
/* "all_reduce 17: fp32 [1024], sum" */
void bk_header_describe(const bk_header *h, char *text, size_t size);
/* False: the two do not fit, and `text` has both. */
bool bk_header_compare(const bk_header *own, const bk_header *theirs, int rank, int peer,
                       char *text, size_t size);
/* False: it cannot be a header of this peer. A text in it is one line afterwards. */
bool bk_header_valid(bk_header *h, int peer);
/* What a time-out says of an operation. */
void bk_operation_missing(bk_engine *e, const bk_operation *o, char *text, size_t size);

/* ---- engine_comm.c ---- */
bk_status bk_engine_comm_make(bk_engine *e, bk_device *device, const int *members, int size,
                              int rank, uint64_t group, bk_engine_comm_state **comm);
bk_status bk_engine_comm_gather(bk_engine_comm_state *c, const void *src, size_t bytes, void *dst);
void bk_engine_comm_free(bk_engine_comm_state *c);

/* ---- engine_move.c: the rank's thread ---- */
/* Events of operations and memory of staging; *room is the caller's to free in any case. */
bk_status bk_move_reserve(bk_engine_comm_state *c, bk_engine_room *room);
void bk_move_release(bk_engine_comm_state *c, bk_engine_room *room);
/* Before an operation is posted whose tensors belong to `stream`. */
bk_status bk_move_begin(bk_operation *o, bk_stream *stream);
/* Goes on with all transfers, as far as that takes no waiting. Failures are the engine's. */
void bk_move_pump(bk_engine *e);
/* Waits until the operation is done and its result is on the way. */
void bk_move_await(bk_engine *e, bk_operation *o);
/* What `stream` is given from now on sees the result; the staging is given back. */
bk_status bk_move_finish(bk_operation *o, bk_stream *stream);

#endif
