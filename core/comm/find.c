/* What launched the process: which of a cluster's rank variables are set, and what they say. A
 * launcher sets all of its variables or none, so that half of them is a mistake that would end in
 * ranks that wait for each other; it is refused by name. */
#include <birkhoff/parallel.h>

#include "base/base.h"

#include <limits.h>
#include <math.h>
#include <string.h>

typedef struct source {
  const char *launcher;
  const char *comm; /* the transport that it calls for; NULL: it has none */
  const char *rank, *size, *local_rank, *local_size;
} source;

static const source mpi_sources[] = {
    {"mpirun", "mpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"mpirun", "mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    /* PMIx has no variable for the number of ranks: MPI says it when it is opened. */
    {"mpirun", "mpi", "PMIX_RANK", NULL, NULL, NULL},
};
static const source slurm = {
    "srun", NULL, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"};
static const source plain = {"RANK and WORLD_SIZE", NULL,         "RANK",
                             "WORLD_SIZE",          "LOCAL_RANK", "LOCAL_WORLD_SIZE"};

/* A variable that is set to nothing counts as one that is not set. */
static const char *variable(bk_context *ctx, const char *name) {
  const char *text = name ? bk_context_environment(ctx, name) : NULL;
  return text && *text ? text : NULL;
}

/* *value stays as it is where the variable is not set. */
static bk_status number(bk_context *ctx, const char *name, int least, int *value) {
  const char *text = variable(ctx, name);
  int64_t parsed;
  if (!text) return BK_OK;
  if (!bk_parse_int64(text, &parsed) || parsed < least || parsed > INT_MAX)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "environment: %s is \"%s\" and should be a number from %d",
                   name, text, least);
  *value = (int)parsed;
  return BK_OK;
}

/* Slurm sets SLURM_PROCID and SLURM_NTASKS in a batch script, too, which is one process however
 * many tasks it may start; only what srun starts has a step of its own. The numbers from 2^32 - 16
 * on are Slurm's names for scripts and shells. */
static bool in_slurm_step(bk_context *ctx) {
  const char *step = variable(ctx, "SLURM_STEP_ID");
  int64_t id;
  if (!step) step = variable(ctx, "SLURM_STEPID");
  return step && bk_parse_int64(step, &id) && id >= 0 && id < 0xfffffff0ll;
}

static bool is_set(bk_context *ctx, const source *s) {
  return variable(ctx, s->rank) || variable(ctx, s->size);
}

static const source *find_source(bk_context *ctx) {
  for (size_t i = 0; i < BK_COUNT(mpi_sources); i++)
    if (is_set(ctx, &mpi_sources[i])) return &mpi_sources[i];
  if (in_slurm_step(ctx) && is_set(ctx, &slurm)) return &slurm;
  return is_set(ctx, &plain) ? &plain : NULL;
}

/* Local numbers help to give out devices and are no part of the job: those that do not fit are
 * dropped. Slurm's tasks per node are those of the allocation, and a step may have fewer. */
static void settle_local(bk_job_options *o) {
  if (o->size > 0 && o->local_size > o->size) o->local_size = o->size;
  if (o->local_size <= o->local_rank) o->local_size = 0;
}

static bk_status read_local(bk_context *ctx, const source *s, bk_job_options *o) {
  if (s->comm && !variable(ctx, s->local_rank) && in_slurm_step(ctx)) s = &slurm;
  int local_rank = 0, local_size = 0;
  BK_TRY(number(ctx, s->local_rank, 0, &local_rank));
  BK_TRY(number(ctx, s->local_size, 1, &local_size));
  if (s != &slurm && local_size && local_rank >= local_size)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "environment: %s is %d and %s is %d", s->local_rank,
                   local_rank, s->local_size, local_size);
  o->local_rank = local_rank, o->local_size = local_size;
  settle_local(o);
  return BK_OK;
}

/* torchrun under srun has ranks of its own. */
static bk_status check_one_meaning(bk_context *ctx, const source *s, int size) {
  int other = size;
  if (s != &slurm) return BK_OK;
  BK_TRY(number(ctx, plain.size, 1, &other));
  if (other == size) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT,
                 "environment: %s is %d and %s is %d: unset the variables that are not those of "
                 "this job, or give rank, size and rendezvous",
                 s->size, size, plain.size, other);
}

static bk_status read_ranks(bk_context *ctx, const source *s, bk_job_options *o) {
  const char *rank = variable(ctx, s->rank), *size = variable(ctx, s->size);
  int r = 0, n = 0;
  if (s->size && !rank != !size)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "environment: %s is set and %s is not",
                   rank ? s->rank : s->size, rank ? s->size : s->rank);
  BK_TRY(number(ctx, s->rank, 0, &r));
  BK_TRY(number(ctx, s->size, 1, &n));
  if (!s->size && in_slurm_step(ctx)) BK_TRY(number(ctx, slurm.size, 1, &n));
  if (n && r >= n)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "environment: %s is %d and %s is %d", s->rank, r,
                   s->size ? s->size : slurm.size, n);
  if (o->rank > 0 && o->rank != r)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "job: rank %d is given, and %s is %d; the number of ranks is not given", o->rank,
                   s->rank, r);
  BK_TRY(check_one_meaning(ctx, s, n));
  o->rank = r, o->size = n;
  if (o->local_size == 0) return read_local(ctx, s, o);
  return BK_OK;
}

/* Where rank 0 listens, for launchers without a transport of their own. */
static bk_status read_rendezvous(bk_context *ctx, bk_job_options *o) {
  const char *host = variable(ctx, "MASTER_ADDR");
  int port = 0;
  if (!host || !variable(ctx, "MASTER_PORT"))
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "environment: WORLD_SIZE is %d and %s is not set: the ranks do not know where "
                   "to find rank 0",
                   o->size, host ? "MASTER_PORT" : "MASTER_ADDR");
  BK_TRY(number(ctx, "MASTER_PORT", 1, &port));
  if (port > 65535)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "environment: MASTER_PORT is %d, not in 1..65535", port);
  o->rendezvous = host;
  o->rendezvous_port = port;
  return BK_OK;
}

/* Numbers that the caller has given: they win, and half of them is refused, unless the transport
 * knows the other half. */
static bk_status check_given(bk_context *ctx, const bk_job_options *o) {
  if (o->size < 0 || o->rank < 0 || (o->size > 0 && o->rank >= o->size))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "job: rank %d of %d: ranks count from 0", o->rank,
                   o->size);
  bool knows = o->world || (o->comm && strcmp(o->comm, "mpi") == 0);
  if (o->size == 0 && o->rank > 0 && !knows)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "job: rank %d is given and the number of ranks is not",
                   o->rank);
  if (o->local_size < 0 || o->local_rank < 0 ||
      (o->local_size > 0 && o->local_rank >= o->local_size))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "job: local rank %d of %d", o->local_rank, o->local_size);
  if (!(o->timeout_s >= 0) || isinf(o->timeout_s))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "job: a time-out of %g s", bk_unsigned_nan(o->timeout_s));
  return BK_OK;
}

static bool is_self(const bk_job_options *o) { return o->comm && strcmp(o->comm, "self") == 0; }

/* Ranks that are given without a launcher need a place to meet. With one, this is the second call
 * for the same options. */
static bk_status fill_given(bk_context *ctx, const source *s, bk_job_options *o) {
  if (!o->comm && o->size == 1) o->comm = "self";
  if (!o->comm && s && s->comm) o->comm = s->comm;
  if (o->size > 1 && !o->comm && !o->rendezvous && !o->launcher)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "job: rank %d of %d is given and the rendezvous is not: the ranks do not know "
                   "where to find rank 0",
                   o->rank, o->size);
  if (!o->launcher) o->launcher = "options";
  return BK_OK;
}

static bk_status fill_found(bk_context *ctx, const source *s, bk_job_options *o) {
  BK_TRY(read_ranks(ctx, s, o));
  o->launcher = s->comm && s != &mpi_sources[0] && in_slurm_step(ctx) ? "srun" : s->launcher;
  if (!o->comm) o->comm = o->size == 1 ? "self" : s->comm;
  if (s == &plain && o->size > 1 && !o->rendezvous) return read_rendezvous(ctx, o);
  return BK_OK;
}

static bk_status fill_alone(bk_context *ctx, bk_job_options *o) {
  if (o->rendezvous)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "job: the rendezvous %s is given, and rank and number of ranks are not",
                   o->rendezvous);
  o->launcher = "none";
  if (o->comm && !is_self(o)) return BK_OK; /* the transport may know more */
  o->size = 1;
  o->comm = "self";
  return BK_OK;
}

static bk_status fill(bk_context *ctx, bk_job_options *o) {
  if (o->world) {
    if (!o->comm) o->comm = "threads";
    o->launcher = "threads";
    return BK_OK;
  }
  if (is_self(o) && o->size == 0) o->size = 1;
  const source *s = find_source(ctx);
  if (o->size > 0) return fill_given(ctx, s, o);
  return s ? fill_found(ctx, s, o) : fill_alone(ctx, o);
}

bk_status bk_job_find(bk_context *ctx, bk_job_options *options) {
  bk_job_options o = *options;
  BK_TRY(check_given(ctx, &o));
  BK_TRY(fill(ctx, &o));
  if (!o.token) o.token = variable(ctx, "BIRKHOFF_JOB_TOKEN");
  if (o.timeout_s == 0) o.timeout_s = BK_JOB_TIMEOUT;
  *options = o;
  return BK_OK;
}
