/* The transport mpi: a wire (core/comm/wire.h) over MPI-3, a loadable module. Every call of MPI is
 * made by the thread that opens the wire, the engine's; MPI_THREAD_FUNNELED is what that takes.
 *
 * A slot is one message. Counts of MPI are int, so that a message of more than PIECE bytes goes in
 * several pieces, all of which begin at once: pieces that began one after the other would let a
 * later message of the same channel come between them. A channel is a tag.
 *
 * MPI begins when the first wire of a process is opened and ends when it is closed, since MPI
 * cannot begin twice in a process. A wire that is abandoned leaves it as it is: MPI_Finalize waits
 * for all ranks. The launcher sees a process that ends without it, and ends the others. */
#include <dlfcn.h>
#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "base/signals.h"
#include "comm/transport.h"

#ifndef PIECE_BYTES /* tests have small pieces */
#define PIECE_BYTES (1 << 30)
#endif
#define PIECE ((size_t)PIECE_BYTES)
#define PIECES 64 /* of one message */
#define BATCH 128 /* requests in one call of MPI_Testsome */
#define IDLE_NS 50000

typedef struct mpi_slot {
  int peer;
  bool receive;
  size_t bytes;
  int pieces, left; /* left: those that are not done */
  MPI_Request requests[PIECES];
} mpi_slot;

typedef struct mpi_wire {
  bk_wire wire; /* first: the engine's view */
  bk_context *ctx;
  MPI_Comm comm;
  bool ours;       /* this wire has initialised MPI, and ends it */
  mpi_slot *slots; /* [wire.slots] */
} mpi_wire;

/* ---- messages ---- */

/* The wire's reason, in MPI's words, of which the end is cut off where there is no room for it. */
static int broken(mpi_wire *m, const char *what, int peer, int code) {
  char text[MPI_MAX_ERROR_STRING] = "no reason given";
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) snprintf(text, sizeof text, "?");
  snprintf(m->wire.reason, sizeof m->wire.reason, "mpi: %s rank %d: %.200s", what, peer, text);
  return -1;
}

static size_t piece_bytes(const mpi_slot *slot, int piece) {
  size_t begin = (size_t)piece * PIECE;
  return slot->bytes - begin < PIECE ? slot->bytes - begin : PIECE;
}

/* A message of no bytes is one piece, too: the other side waits for it. */
static int begin(bk_wire *wire, int peer, int channel, void *data, size_t bytes, int number,
                 bool receive) {
  mpi_wire *m = (mpi_wire *)wire;
  mpi_slot *slot = &m->slots[number];
  size_t pieces = bytes ? (bytes - 1) / PIECE + 1 : 1;
  if (pieces > PIECES) {
    snprintf(wire->reason, sizeof wire->reason,
             "mpi: a message of %zu bytes, one may have at most %zu", bytes, PIECES * PIECE);
    return -1;
  }
  *slot = (mpi_slot){.peer = peer, .receive = receive, .bytes = bytes};
  for (int i = 0; i < (int)pieces; i++) {
    char *at = (char *)data + (size_t)i * PIECE;
    int count = (int)piece_bytes(slot, i);
    int code = receive ? MPI_Irecv(at, count, MPI_BYTE, peer, channel, m->comm, &slot->requests[i])
                       : MPI_Isend(at, count, MPI_BYTE, peer, channel, m->comm, &slot->requests[i]);
    if (code != MPI_SUCCESS)
      return broken(m, receive ? "receiving from" : "sending to", peer, code);
    slot->pieces++, slot->left++;
  }
  return 0;
}

static int mpi_send(bk_wire *wire, int peer, int channel, const void *data, size_t bytes,
                    int slot) {
  /* MPI_Isend reads alone; one function serves both directions. */
  return begin(wire, peer, channel, (void *)(uintptr_t)data, bytes, slot, false);
}

static int mpi_receive(bk_wire *wire, int peer, int channel, void *data, size_t bytes, int slot) {
  return begin(wire, peer, channel, data, bytes, slot, true);
}

/* Requests that are tested together, and whose they are. */
typedef struct mpi_batch {
  int n;
  MPI_Request requests[BATCH];
  struct {
    mpi_slot *slot;
    int piece;
  } owners[BATCH];
} mpi_batch;

/* A receive that got less than it has room for would otherwise leave old bytes behind. */
static int check_piece(mpi_wire *m, const mpi_slot *slot, int piece, const MPI_Status *status) {
  int count = 0;
  if (!slot->receive) return 0;
  int code = MPI_Get_count(status, MPI_BYTE, &count);
  if (code != MPI_SUCCESS) return broken(m, "receiving from", slot->peer, code);
  if ((size_t)count == piece_bytes(slot, piece)) return 0;
  snprintf(m->wire.reason, sizeof m->wire.reason,
           "mpi: rank %d has sent %d bytes where %zu were expected", slot->peer, count,
           piece_bytes(slot, piece));
  return -1;
}

/* MPI frees a request that is done, with an error too, and says so by MPI_REQUEST_NULL. */
static void take_back(mpi_batch *b) {
  for (int i = 0; i < b->n; i++) {
    mpi_slot *slot = b->owners[i].slot;
    slot->requests[b->owners[i].piece] = b->requests[i];
    if (b->requests[i] == MPI_REQUEST_NULL) slot->left--;
  }
  b->n = 0;
}

static int test_batch(mpi_wire *m, mpi_batch *b) {
  int count = 0, indices[BATCH];
  MPI_Status statuses[BATCH];
  if (b->n == 0) return 0;
  int code = MPI_Testsome(b->n, b->requests, &count, indices, statuses);
  take_back(b);
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS)
    return broken(m, "testing the messages of", m->wire.rank, code);
  for (int i = 0; count != MPI_UNDEFINED && i < count; i++) {
    const mpi_slot *slot = b->owners[indices[i]].slot;
    if (code == MPI_ERR_IN_STATUS && statuses[i].MPI_ERROR != MPI_SUCCESS)
      return broken(m, slot->receive ? "receiving from" : "sending to", slot->peer,
                    statuses[i].MPI_ERROR);
    if (check_piece(m, slot, b->owners[indices[i]].piece, &statuses[i]) != 0) return -1;
  }
  return 0;
}

static int mpi_test(bk_wire *wire, const int *slots, int n, bool *done) {
  mpi_wire *m = (mpi_wire *)wire;
  mpi_batch b;
  b.n = 0;
  for (int i = 0; i < n; i++) {
    mpi_slot *slot = &m->slots[slots[i]];
    for (int p = 0; p < slot->pieces; p++) {
      if (slot->requests[p] == MPI_REQUEST_NULL) continue;
      b.requests[b.n] = slot->requests[p];
      b.owners[b.n].slot = slot, b.owners[b.n++].piece = p;
      if (b.n == BATCH && test_batch(m, &b) != 0) return -1;
    }
  }
  if (test_batch(m, &b) != 0) return -1;
  for (int i = 0; i < n; i++) done[i] = m->slots[slots[i]].left == 0;
  return 0;
}

/* MPI's own waits turn in a loop. Ranks may share a core, so this one sleeps. */
static void mpi_idle(bk_wire *wire) {
  const struct timespec while_idle = {.tv_nsec = IDLE_NS};
  (void)wire;
  (void)nanosleep(&while_idle, NULL);
}

/* ---- the end ---- */

/* Nothing of this waits. What a peer is writing already cannot be stopped. */
static void drop_requests(mpi_wire *m) {
  for (int s = 0; s < m->wire.slots; s++) {
    mpi_slot *slot = &m->slots[s];
    for (int p = 0; slot->left > 0 && p < slot->pieces; p++) {
      if (slot->requests[p] == MPI_REQUEST_NULL) continue;
      if (slot->receive) (void)MPI_Cancel(&slot->requests[p]);
      (void)MPI_Request_free(&slot->requests[p]);
    }
  }
}

static void mpi_close(bk_wire *wire, bool abandon) {
  mpi_wire *m = (mpi_wire *)wire;
  drop_requests(m);
  if (!abandon) {
    (void)MPI_Comm_free(&m->comm);
    if (m->ours) (void)MPI_Finalize();
  }
  bk_free(m->ctx, m->slots);
  bk_free(m->ctx, m);
}

static const bk_wire_ops mpi_ops = {mpi_close, mpi_send, mpi_receive, mpi_test, mpi_idle};

/* ---- the beginning ---- */

/* MPI's plugins ask for symbols of its library, which the loader of this module keeps to itself
 * (RTLD_LOCAL), and some builds of Open MPI do not link them to it. */
static void make_library_global(bk_context *ctx) {
  int (*function)(int *, char ***, int, int *) = MPI_Init_thread;
  void *address;
  Dl_info info;
  _Static_assert(sizeof address == sizeof function,
                 "function pointers must have the size of object pointers");
  memcpy(&address, &function, sizeof address);
  if (dladdr(address, &info) == 0 || !info.dli_fname) return;
  if (dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL) == NULL)
    bk_debug(ctx, "mpi: the symbols of %s stay local", info.dli_fname);
}

static bk_status initialise(bk_context *ctx) {
  bk_signals kept;
  int provided = MPI_THREAD_SINGLE;
  make_library_global(ctx);
  bk_signals_keep(&kept);
  int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
  bk_signals_restore(ctx, &kept);
  if (code != MPI_SUCCESS) return bk_fail(ctx, BK_ERR_COMM, "mpi: MPI_Init_thread: error %d", code);
  /* The job's store and abort reach ranks by another way than MPI, and an error of it must not end
   * the process before they have. */
  (void)MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (provided >= MPI_THREAD_FUNNELED) return BK_OK;
  (void)MPI_Finalize();
  return bk_fail(ctx, BK_ERR_UNSUPPORTED,
                 "mpi: this MPI was built for programs of one thread (MPI_THREAD_SINGLE)");
}

/* A program that has initialised MPI itself may go on to use it: so this thread may call it only
 * at MPI_THREAD_MULTIPLE, or where it is MPI's main thread. */
static bk_status check_level(bk_context *ctx) {
  static const struct {
    int level;
    const char *name;
  } levels[] = {{MPI_THREAD_SINGLE, "MPI_THREAD_SINGLE"},
                {MPI_THREAD_FUNNELED, "MPI_THREAD_FUNNELED"},
                {MPI_THREAD_SERIALIZED, "MPI_THREAD_SERIALIZED"}};
  int level = MPI_THREAD_SINGLE, is_main = 0;
  const char *name = "?";
  (void)MPI_Query_thread(&level);
  (void)MPI_Is_thread_main(&is_main);
  if (level >= MPI_THREAD_MULTIPLE || (level >= MPI_THREAD_FUNNELED && is_main)) return BK_OK;
  for (size_t i = 0; i < BK_COUNT(levels); i++)
    if (levels[i].level == level) name = levels[i].name;
  return bk_fail(ctx, BK_ERR_UNSUPPORTED,
                 "mpi: MPI was initialised before with %s, and a job calls it from a thread of its "
                 "own: it must be MPI_THREAD_MULTIPLE, or left to the job",
                 name);
}

/* *ours: MPI begins here. */
static bk_status start(bk_context *ctx, bool *ours) {
  int begun = 0, ended = 0;
  (void)MPI_Initialized(&begun);
  (void)MPI_Finalized(&ended);
  if (ended)
    return bk_fail(ctx, BK_ERR_UNSUPPORTED,
                   "mpi: MPI has ended in this process, and cannot begin a second time");
  *ours = !begun;
  return begun ? check_level(ctx) : initialise(ctx);
}

/* Ranks that came by different launchers would wait for each other in vain: where one rank was told
 * something else than MPI says, all of them are refused. */
static bk_status agree(bk_context *ctx, const bk_job_options *given, const bk_job_options *found) {
  bool rank_differs = given->size > 0 && (given->size != found->size || given->rank != found->rank);
  bool local_differs = given->local_size > 0 && (given->local_size != found->local_size ||
                                                 given->local_rank != found->local_rank);
  int differs = rank_differs || local_differs, any = 0;
  int code = MPI_Allreduce(&differs, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (code != MPI_SUCCESS) return bk_fail(ctx, BK_ERR_COMM, "mpi: MPI_Allreduce: error %d", code);
  if (rank_differs)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "mpi: MPI says rank %d of %d, %s says rank %d of %d; was the program started by "
                   "a launcher of this MPI?",
                   found->rank, found->size, given->launcher ? given->launcher : "the caller",
                   given->rank, given->size);
  if (local_differs)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "mpi: of the ranks of this machine MPI says %d of %d, %s says %d of %d",
                   found->local_rank, found->local_size,
                   given->launcher ? given->launcher : "the caller", given->local_rank,
                   given->local_size);
  return any ? bk_fail(ctx, BK_ERR_ARGUMENT, "mpi: another rank was told another size or number")
             : BK_OK;
}

static bk_status find_place(bk_context *ctx, bk_job_options *options) {
  bk_job_options found = *options;
  MPI_Comm node = MPI_COMM_NULL;
  int code = MPI_Comm_rank(MPI_COMM_WORLD, &found.rank);
  if (code == MPI_SUCCESS) code = MPI_Comm_size(MPI_COMM_WORLD, &found.size);
  if (code == MPI_SUCCESS)
    code =
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, found.rank, MPI_INFO_NULL, &node);
  if (code == MPI_SUCCESS) code = MPI_Comm_rank(node, &found.local_rank);
  if (code == MPI_SUCCESS) code = MPI_Comm_size(node, &found.local_size);
  if (node != MPI_COMM_NULL) (void)MPI_Comm_free(&node);
  if (code != MPI_SUCCESS)
    return bk_fail(ctx, BK_ERR_COMM, "mpi: finding rank and size: error %d", code);
  BK_TRY(agree(ctx, options, &found));
  *options = found;
  return BK_OK;
}

/* The wire's own communicator: nothing that the program sends meets what the wire does. */
static bk_status join(bk_context *ctx, bk_job_options *options, mpi_wire *m) {
  BK_TRY(find_place(ctx, options));
  m->wire.rank = options->rank, m->wire.size = options->size;
  m->wire.slots = BK_WIRE_SLOTS(options->size), m->wire.channels = BK_WIRE_CHANNELS;
  int code = MPI_Comm_dup(MPI_COMM_WORLD, &m->comm);
  if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN);
  return code == MPI_SUCCESS
             ? BK_OK
             : bk_fail(ctx, BK_ERR_COMM, "mpi: making a communicator: error %d", code);
}

static bk_status open_wire(bk_context *ctx, bk_job_options *options, mpi_wire *m) {
  BK_TRY(start(ctx, &m->ours));
  bk_status status = join(ctx, options, m);
  if (status == BK_OK) {
    m->slots = bk_alloc_array(ctx, (size_t)m->wire.slots, sizeof *m->slots);
    if (!m->slots) status = BK_ERR_MEMORY;
  }
  if (status != BK_OK && m->ours) (void)MPI_Finalize();
  return status;
}

static bk_status mpi_open(bk_context *ctx, bk_job_options *options, bk_wire **wire) {
  mpi_wire *m = bk_alloc(ctx, sizeof *m);
  if (!m) return BK_ERR_MEMORY;
  m->wire.ops = &mpi_ops;
  m->ctx = ctx;
  bk_status status = open_wire(ctx, options, m);
  if (status == BK_OK) *wire = &m->wire;
  else bk_free(ctx, m);
  return status;
}

/* The version is what may be asked before MPI begins, which is not done here. A library tells it in
 * one line or many, of which the first words are its name and number. */
static bk_status mpi_probe(bk_context *ctx, char *reason, size_t reason_size, char *description,
                           size_t description_size) {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0, version = 0, subversion = 0;
  (void)ctx, (void)reason, (void)reason_size;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) text[0] = '\0';
  text[strcspn(text, "\r\n,")] = '\0';
  for (char *at = text; *at; at++)
    if (*at == '\t') *at = ' ';
  (void)MPI_Get_version(&version, &subversion);
  snprintf(description, description_size, "%.80s%sMPI %d.%d", text, text[0] ? ", " : "", version,
           subversion);
  return BK_OK;
}

static const bk_transport transport = {
    .abi = BK_COMM_ABI, .name = "mpi", .probe = mpi_probe, .open = mpi_open};

const bk_transport *bk_transport_module(void) { return &transport; }
