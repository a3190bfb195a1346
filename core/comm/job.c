/* A job: the engine that moves data and the store beside it, each of which learns of what befalls
 * the other. An operation of the engine that has failed aborts the job by way of the store, and an
 * abort that the store has learnt of, from whichever rank, fails the engine.
 *
 * The transport is opened first: it may be the one that knows rank and size, and with it the ranks
 * hand around where the store is and what its token is. */
#include "comm/job.h"
#include "comm/threads.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define TOKEN_BYTES 16 /* of randomness in a token that rank 0 makes */

/* What each rank tells the others when the job is opened. */
typedef struct meeting {
  int status;        /* of what it has done so far */
  bk_store_hub *hub; /* of rank 0, for threads of its process */
  char address[512]; /* rank 0's store, for other processes */
  char token[2 * TOKEN_BYTES + 1];
} meeting;

/* ---- what the store and the engine tell each other ---- */

/* From the store's thread. */
static void store_aborted(void *user, const char *reason) {
  bk_job *job = user;
  pthread_mutex_lock(&job->lock);
  if (job->engine) bk_engine_fail(job->engine, reason);
  bk_job_abort_fn call = job->call;
  void *call_user = job->call_user;
  job->call = NULL;
  job->told = true;
  pthread_mutex_unlock(&job->lock);
  if (call) call(call_user, reason);
}

/* From the engine's thread. */
static void engine_failed(void *user, const char *reason) {
  bk_job *job = user;
  char text[BK_STORE_REASON];
  snprintf(text, sizeof text, "rank %d: %s", job->options.rank, reason);
  bk_store_abort(job->store, text);
}

/* ---- opening ---- */

/* Random bytes as text: whoever has it may join. */
static bk_status make_token(bk_context *ctx, char token[2 * TOKEN_BYTES + 1]) {
  unsigned char bytes[TOKEN_BYTES];
  if (getentropy(bytes, sizeof bytes) != 0)
    return bk_fail(ctx, BK_ERR_IO, "job: the system gives no random bytes: %s", strerror(errno));
  for (size_t i = 0; i < sizeof bytes; i++) snprintf(token + 2 * i, 3, "%02x", bytes[i]);
  return BK_OK;
}

static void release_hub(void *hub) { bk_store_release(hub); }

/* Rank 0's part for threads. The world keeps what is behind its handle: where opening fails on some
 * ranks only, one may be gone before another looks. */
static bk_status serve_threads(bk_job *job, meeting *own) {
  const bk_job_options *o = &job->options;
  BK_TRY(bk_store_open(job->ctx, &(bk_store_options){.size = o->size, .timeout_s = o->timeout_s},
                       &job->store));
  own->hub = bk_store_hold(job->store);
  bk_thread_world_keep(o->world, own->hub, release_hub);
  return BK_OK;
}

/* Ranks of one machine need no address that others can reach. */
static void choose_address(const bk_job_options *o, char *address, size_t size) {
  if (!o->rendezvous) {
    snprintf(address, size, "%s", o->local_size == o->size ? "127.0.0.1:0" : ":0");
  } else if (!o->rendezvous_port) snprintf(address, size, "%s", o->rendezvous);
  else
    snprintf(address, size, strchr(o->rendezvous, ':') ? "[%s]:%d" : "%s:%d", o->rendezvous,
             o->rendezvous_port);
}

/* Rank 0's part for processes. The transport hands the token around, so it can be a new one. */
static bk_status serve_processes(bk_job *job, meeting *own) {
  const bk_job_options *o = &job->options;
  char address[300];
  choose_address(o, address, sizeof address);
  BK_TRY(make_token(job->ctx, own->token));
  BK_TRY(bk_store_open(
      job->ctx,
      &(bk_store_options){
          .size = o->size, .address = address, .token = own->token, .timeout_s = o->timeout_s},
      &job->store));
  snprintf(own->address, sizeof own->address, "%s", bk_store_address(job->store));
  return BK_OK;
}

static bk_status serve(bk_job *job, meeting *own) {
  return job->options.world ? serve_threads(job, own) : serve_processes(job, own);
}

static bk_status join(bk_job *job, const meeting *zero) {
  const bk_job_options *o = &job->options;
  if (o->world) return bk_store_share(job->ctx, zero->hub, o->rank, &job->store);
  return bk_store_open(job->ctx,
                       &(bk_store_options){.rank = o->rank,
                                           .size = o->size,
                                           .address = zero->address,
                                           .token = zero->token,
                                           .timeout_s = o->timeout_s},
                       &job->store);
}

/* All ranks hear how all others have fared, so that none goes on alone. The first that failed has
 * said why; the others name it. */
static bk_status exchange(bk_job *job, meeting *own, bk_status status, meeting *all) {
  own->status = (int)status;
  bk_status gathered = bk_engine_gather(job->engine, own, sizeof *own, all);
  if (status != BK_OK || gathered != BK_OK) return status != BK_OK ? status : gathered;
  for (int r = 0; r < job->options.size; r++)
    if (all[r].status != BK_OK)
      return bk_fail(job->ctx, BK_ERR_COMM, "job: rank %d could not open the control store (%s)", r,
                     bk_status_name((bk_status)all[r].status));
  return BK_OK;
}

static bk_status open_store_with(bk_job *job, meeting *all) {
  meeting own = {0};
  bk_status status = job->options.rank == 0 ? serve(job, &own) : BK_OK;
  BK_TRY(exchange(job, &own, status, all));
  if (job->options.rank != 0) status = join(job, &all[0]);
  return exchange(job, &own, status, all);
}

static bk_status open_store(bk_job *job) {
  meeting *all = bk_alloc_array(job->ctx, (size_t)job->options.size, sizeof *all);
  if (!all) return BK_ERR_MEMORY;
  bk_status status = open_store_with(job, all);
  bk_free(job->ctx, all);
  return status;
}

/* ---- jobs that cannot be ---- */

typedef struct refusal {
  bool usable;
  char reason[256];
} refusal;

static bk_status note_mpi(void *user, const bk_transport_report *report) {
  refusal *r = user;
  if (strcmp(report->name, "mpi") != 0) return BK_OK;
  r->usable = report->usable;
  snprintf(r->reason, sizeof r->reason, "%s", report->reason);
  return BK_OK;
}

/* Several processes, and nothing that moves data between them. */
static bk_status check_transport(bk_context *ctx, const bk_job_options *o) {
  refusal mpi = {.reason = "this build knows no such transport"};
  char ranks[48] = "several ranks";
  if (o->comm && strcmp(o->comm, "mpi") != 0) return BK_OK;
  BK_TRY(bk_transports(ctx, note_mpi, &mpi));
  if (o->comm && mpi.usable) return BK_OK;
  if (o->comm && o->launcher && strcmp(o->launcher, "none") == 0)
    return bk_fail(ctx, BK_ERR_ABSENT, "job: the transport mpi cannot be used: %s", mpi.reason);
  if (o->size > 0) snprintf(ranks, sizeof ranks, "%d ranks", o->size);
  if (mpi.usable)
    return bk_fail(ctx, BK_ERR_ABSENT,
                   "job: %s were launched (%s), and not by MPI, which is the transport between "
                   "processes here: start them with mpirun, or with srun --mpi=pmix",
                   ranks, o->launcher);
  return bk_fail(ctx, BK_ERR_ABSENT,
                 "job: %s were launched (%s), and there is no transport between processes here: "
                 "mpi: %s",
                 ranks, o->launcher, mpi.reason);
}

static bk_status check_options(bk_context *ctx, const bk_job_options *o) {
  bool threads = o->comm && strcmp(o->comm, "threads") == 0;
  if (o->world && !threads)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "job: a world of threads goes with \"threads\", not \"%s\"", o->comm);
  if (threads && !o->world)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "job: the transport \"threads\" needs a world that the ranks share");
  if (o->comm && strcmp(o->comm, "self") == 0 && o->size != 1)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "job: the transport \"self\" is for 1 rank, not %d",
                   o->size);
  return threads ? BK_OK : check_transport(ctx, o);
}

/* ---- the job ---- */

static bk_status connect_ranks(bk_job *job) {
  const bk_transport *transport = NULL;
  BK_TRY(bk_transport_find(job->ctx, job->options.comm, &transport));
  if (!transport) return BK_OK; /* self */
  BK_TRY(bk_engine_open(job->ctx, transport, &job->options, &job->engine));
  job->options.comm = transport->name;
  BK_TRY(open_store(job));
  bk_store_on_abort(job->store, store_aborted, job);
  bk_engine_on_fail(job->engine, engine_failed, job);
  return BK_OK;
}

/* `abandon`: no other rank is waited for. */
static void take_down(bk_job *job, bool abandon) {
  pthread_mutex_lock(&job->lock);
  bk_engine *engine = job->engine;
  job->engine = NULL;
  pthread_mutex_unlock(&job->lock);
  if (engine) bk_engine_close(engine, abandon);
  bk_store_close(job->store);
  pthread_mutex_destroy(&job->lock);
  bk_free(job->ctx, job);
}

bk_status bk_job_open(bk_context *ctx, const bk_job_options *options, bk_job **job) {
  bk_job_options o = *options;
  BK_TRY(bk_job_find(ctx, &o));
  BK_TRY(check_options(ctx, &o));
  bk_job *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->ctx = ctx;
  made->options = o;
  pthread_mutex_init(&made->lock, NULL);
  bk_status status = connect_ranks(made);
  if (status != BK_OK) {
    char text[64];
    snprintf(text, sizeof text, "rank %d could not open the job", made->options.rank);
    if (made->store) bk_store_abort(made->store, text);
    take_down(made, true);
    return status;
  }
  if (!made->engine) made->options.comm = "self";
  made->options.rendezvous = made->options.token = made->options.launcher = NULL;
  *job = made;
  return BK_OK;
}

/* A rank that has closed its transport takes no part in an operation of others any more, and one
 * that has died says no goodbye. So all come together first, while an abort can still end the wait;
 * then the transport is closed, with the store still watching; then the ranks say goodbye to the
 * store, which is what tells an end from a death. */
void bk_job_close(bk_job *job) {
  if (!job) return;
  char one = 1, *all = job->engine ? bk_alloc(job->ctx, (size_t)job->options.size) : NULL;
  bool abandon = job->engine && (!all || bk_store_aborted(job->store, NULL, 0) ||
                                 bk_engine_gather(job->engine, &one, 1, all) != BK_OK);
  bk_free(job->ctx, all);
  if (abandon) bk_store_abort(job->store, "a rank gave up while the job was being closed");
  take_down(job, abandon);
}

int bk_job_rank(const bk_job *job) { return job->options.rank; }
int bk_job_size(const bk_job *job) { return job->options.size; }
int bk_job_local_rank(const bk_job *job) { return job->options.local_rank; }
int bk_job_local_size(const bk_job *job) { return job->options.local_size; }
const char *bk_job_transport(const bk_job *job) { return job->options.comm; }

/* Under the lock only one of an abort and a registration takes the call. */
static void tell_self(bk_job *job) {
  pthread_mutex_lock(&job->lock);
  bool due = bk_fate_known(&job->fate, NULL, 0);
  bk_job_abort_fn call = due ? job->call : NULL;
  if (due) job->call = NULL;
  void *user = job->call_user;
  pthread_mutex_unlock(&job->lock);
  if (call) call(user, job->fate.reason);
}

void bk_job_abort(bk_job *job, const char *reason) {
  if (job->store) {
    bk_store_abort(job->store, reason);
    return;
  }
  bk_fate_seal(&job->fate, reason);
  tell_self(job);
}

bool bk_job_aborted(bk_job *job, char *reason, size_t size) {
  return job->store ? bk_store_aborted(job->store, reason, size)
                    : bk_fate_known(&job->fate, reason, size);
}

/* Where the store has told already, it is asked to tell again. */
void bk_job_on_abort(bk_job *job, bk_job_abort_fn call, void *user) {
  pthread_mutex_lock(&job->lock);
  job->call = call;
  job->call_user = user;
  bool again = call && job->store && job->told;
  pthread_mutex_unlock(&job->lock);
  if (again) bk_store_on_abort(job->store, store_aborted, job);
  if (!job->store) tell_self(job);
}
