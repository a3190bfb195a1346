/* Many processes, or many threads of one process, that train one model together. A *job* is what
 * ranks do together: each rank has a number from 0, and one that runs alone is rank 0 of 1. A job
 * has a *transport*, which moves data ("self", "threads", "mpi"), and a *control store*, by which
 * ranks find each other and learn that one of them has died.
 *
 * The calls in their order: bk_job_find, bk_job_open, bk_comm_open for the rank's device; the comm
 * goes into bk_model_options, and what is made of that model then works together with the other
 * ranks. Calls that are collective say so: every rank makes them, in the same order.
 *
 * Errors: BK_ERR_COMM where ranks disagree, a rank has died or does not answer, or the job was
 * aborted. The job is then of no further use; what its ranks have written before stays whole. */
#ifndef BIRKHOFF_PARALLEL_H
#define BIRKHOFF_PARALLEL_H

#include <birkhoff/config.h>
#include <birkhoff/device.h>
#include <birkhoff/schedule.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_job bk_job;
typedef struct bk_comm bk_comm;

/* What the ranks of a job share that are threads of one process ("threads"). It is made before them
 * and destroyed after them. */
typedef struct bk_thread_world bk_thread_world;
BK_API bk_status bk_thread_world_create(bk_context *ctx, int size, bk_thread_world **world);
BK_API void bk_thread_world_destroy(bk_thread_world *world); /* NULL is allowed */

#define BK_JOB_TIMEOUT 120 /* seconds, by default */

typedef struct bk_job_options {
  /* The transport; NULL: "threads" with a world, else what launched the process calls for. */
  const char *comm;
  int rank, size;             /* size 0: as what launched the process says, alone if nothing does */
  int local_rank, local_size; /* among the ranks of this machine; local_size 0: not known */
  const char *rendezvous;     /* "HOST:PORT", where rank 0 listens; NULL: the transport has a way */
  int rendezvous_port;        /* not 0: `rendezvous` is the host alone (MASTER_ADDR) */
  const char *token;          /* what a rank must know to join; NULL: only from this machine */
  double timeout_s;           /* how long a rank waits for another; 0: BK_JOB_TIMEOUT */
  bk_thread_world *world;     /* "threads" */
  const char *launcher;       /* what bk_job_find went by, in words: "mpirun", "srun", ... */
} bk_job_options;

/* Fills in what the options leave open from what launched the process: MPI's variables, else
 * PMI_* and SLURM_*, else RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT (torchrun,
 * Kubernetes), else one rank alone. What the options give wins, and options that it has filled in
 * may be handed to it again. Afterwards `comm` is NULL where the launcher has no transport, and the
 * size is 0 where only the transport knows it: with a world, or of MPI's variables PMIX_RANK
 * alone. The texts are valid as long as the context's environment.
 * BK_ERR_ARGUMENT where variables contradict each other or are no numbers, by name. */
BK_API bk_status bk_job_find(bk_context *ctx, bk_job_options *options);
/* Collective. Opens store and transport. BK_ERR_ABSENT, with the reason, where the transport is not
 * here: without MPI there is none between processes. */
BK_API bk_status bk_job_open(bk_context *ctx, const bk_job_options *options, bk_job **job);
/* Collective unless the job was aborted; then it waits for nobody. NULL is allowed. */
BK_API void bk_job_close(bk_job *job);
BK_API int bk_job_rank(const bk_job *job);
BK_API int bk_job_size(const bk_job *job);
BK_API int bk_job_local_rank(const bk_job *job);
BK_API int bk_job_local_size(const bk_job *job);
BK_API const char *bk_job_transport(const bk_job *job); /* "self", "threads", "mpi" */

/* Gives up: tells all ranks, with one line of why; the first reason that is told is the one that
 * all learn. It may be called from any thread, and waits for nobody. */
BK_API void bk_job_abort(bk_job *job, const char *reason);
/* Whether the job was aborted, by whomever; `reason` then has why. From any thread. */
BK_API bool bk_job_aborted(bk_job *job, char *reason, size_t size);
/* `call` is called once, from a thread of the library, when this rank learns that the job was
 * aborted, also where the rank's own thread hangs. It may end the process, and may not close the
 * job. A job of one rank ("self") has no such thread: its bk_job_abort makes the call. */
typedef void (*bk_job_abort_fn)(void *user, const char *reason);
BK_API void bk_job_on_abort(bk_job *job, bk_job_abort_fn call, void *user);

/* ---- transports that are known ---- */
typedef struct bk_transport_report {
  char name[32];
  bool usable;
  char reason[256];      /* why it cannot be used; empty where it can */
  char description[128]; /* "Open MPI 4.1.4, MPI 3.1"; empty where it cannot */
} bk_transport_report;
typedef bk_status (*bk_transport_fn)(void *user, const bk_transport_report *report);
/* Calls `each` for one transport after the other; see bk_devices. */
BK_API bk_status bk_transports(bk_context *ctx, bk_transport_fn each, void *user);

/* ---- the ranks of a job on their devices ---- */
/* Collective. Makes the group of all ranks, of which this rank's tensors are on `device`. Job and
 * device must outlive it. */
BK_API bk_status bk_comm_open(bk_job *job, bk_device *device, bk_comm **comm);
BK_API void bk_comm_destroy(bk_comm *comm); /* NULL is allowed */
/* NULL stands for a rank that is alone: rank 0 of 1. */
BK_API int bk_comm_rank(const bk_comm *comm);
BK_API int bk_comm_size(const bk_comm *comm);
/* Collective, and waits. Every rank gives `bytes` bytes of host memory, the same number on each;
 * dst has room for size times as many and gets those of rank r at r * bytes. This is for small
 * things: flags, statuses, texts. comm may be NULL. */
BK_API bk_status bk_comm_gather(bk_comm *comm, const void *src, size_t bytes, void *dst);
/* Since the comm was opened: bytes that this rank has sent to others, the seconds in which
 * operations were under way, and those in which the rank waited for one. */
typedef struct bk_comm_stats {
  double bytes_sent, busy_s, wait_s;
} bk_comm_stats;
BK_API void bk_comm_statistics(const bk_comm *comm, bk_comm_stats *stats);

/* ---- pipelines ---- */

/* How the ranks of a comm are laid out as pipelines, and which sublayers each of them holds. With
 * pp ranks in a pipeline (those of the schedule) and dp pipelines beside each other, rank
 * p * dp + d is number p of pipeline d. Ranks that hold the same stages are *replicas*: the dp
 * ranks with one p, with dualpipe those with p and with pp - 1 - p. They sum their gradients, and
 * each keeps its share of masters and moments. */
typedef struct bk_pipeline bk_pipeline;
typedef struct bk_pipeline_options {
  const bk_schedule *schedule; /* must outlive the pipeline */
  /* Sublayers of each stage, "9,8,8,7"; NULL: cut by computed cost, so that the slowest stage is as
   * fast as can be. */
  const char *stages;
  /* What is cut by: [2 * num_hidden_layers + 2], of the embedding, the sublayers, and head and
   * loss, in any unit, as they were measured; NULL: the costs are computed. */
  const double *costs;
  int64_t seq_len; /* for the computed costs */
  /* Without a comm, for models that are only planned: rank `rank` of `ranks`. */
  int rank, ranks;
} bk_pipeline_options;
/* Collective. The comm must outlive the pipeline, which goes into bk_model_options.pipeline and
 * must outlive the model. BK_ERR_ARGUMENT where ranks, sublayers or `stages` do not go together,
 * with what would. */
BK_API bk_status bk_pipeline_create(bk_context *ctx, bk_comm *comm, const bk_model_config *config,
                                    const bk_pipeline_options *options, bk_pipeline **pipeline);
BK_API void bk_pipeline_destroy(bk_pipeline *pipeline); /* NULL is allowed */
/* This rank's number p in its pipeline, and the number d of that. */
BK_API int bk_pipeline_rank(const bk_pipeline *pipeline);
BK_API int bk_pipeline_number(const bk_pipeline *pipeline);
BK_API int bk_pipeline_count(const bk_pipeline *pipeline); /* dp */
/* Sublayers [*begin, *end) of a stage. */
BK_API void bk_pipeline_stage(const bk_pipeline *pipeline, int stage, int64_t *begin, int64_t *end);

/* ---- what a stage needs ---- */

/* A stage that is only planned: which sublayers, on what, and how they are run. */
typedef struct bk_stage_options {
  int64_t begin, end;     /* sublayers */
  int64_t batch, seq_len; /* of a micro-batch */
  int64_t hc_recompute;   /* as in the recipe; a block is no longer than the stage */
  int recompute;          /* bk_recompute_f */
  bool defer_wgrad;       /* the schedule puts weight gradients off */
  /* Ranks that share the routed experts: each holds so many times fewer, and computes the rows of
   * as many tokens as before. It divides n_routed_experts, and no fewer experts than a token
   * chooses are left. 0 is 1. */
  int64_t expert_ranks;
  int64_t head_rows; /* of logits, made at a time; 0: as many as on this device */
  /* Of matrix products and attention, and of memory; what an op takes is the longer of its flops
   * and its bytes. Other ops are counted by their bytes alone. */
  double flops_per_s, bytes_per_s;
} bk_stage_options;

typedef struct bk_stage_needs {
  /* Seconds. f of the last stage has the loss, and with it both gradients of the head. */
  bk_stage_costs seconds;
  double rebuild; /* of the backward pass, for recompute */
  /* What the streams of a micro-batch take that cross an edge of the stage. */
  double edge_bytes;
  /* Of one rank that holds the stage alone, with one micro-batch in flight. */
  size_t bytes[BK_MEM_CLASS_COUNT];
  size_t slot_bytes;   /* activations of each further micro-batch in flight */
  size_t kernel_bytes; /* of the workspace what is the kernels', which all stages of a rank share */
  /* Parameters, and those of them that are routed experts'. */
  double parameters, expert_parameters;
  int64_t expert_sublayers;
} bk_stage_needs;

/* Plans the stage on the device and takes nothing: sizes are the memory planner's, seconds come
 * from the costs of the ops that its recorded programs launch. */
BK_API bk_status bk_stage_plan(bk_device *device, const bk_model_config *config, bk_dtype dtype,
                               const bk_stage_options *options, bk_stage_needs *needs);

#ifdef __cplusplus
}
#endif
#endif
