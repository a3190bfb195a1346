/* Jobs: opening and closing them alone and as threads, aborts, what befalls one side and must reach
 * the other, and jobs that cannot be. */
#include "tests/unit/unit.h"

#include "comm/job.h"

#include <pthread.h>
#include <unistd.h>

#define RANKS 4

/* ---- ranks that are threads ---- */

/* What one rank heard, said and got. */
typedef struct rank {
  pthread_t thread;
  bk_thread_world *world;
  int number;
  double timeout_s;
  void (*main)(struct rank *rank);
  bk_context *ctx;
  bk_job *job;
  bk_status opened;
  atomic_int calls;
  double started, ended;
  char messages[1024], reason[BK_STORE_REASON], heard[BK_STORE_REASON];
} rank;

static void keep_message(void *user, bk_log_level level, const char *message) {
  rank *r = user;
  size_t used = strlen(r->messages);
  if (level <= BK_LOG_WARN)
    snprintf(r->messages + used, sizeof r->messages - used, "%s\n", message);
}

static void hear(void *user, const char *reason) {
  rank *r = user;
  snprintf(r->heard, sizeof r->heard, "%s", reason);
  atomic_fetch_add(&r->calls, 1);
}

static void *rank_main(void *arg) {
  rank *r = arg;
  bk_context_options options = {.log = keep_message, .log_user = r, .log_level = BK_LOG_WARN};
  ck_assert_int_eq(bk_context_create(&options, &r->ctx), BK_OK);
  bk_job_options job = {.rank = r->number, .world = r->world, .timeout_s = r->timeout_s};
  r->started = bk_seconds();
  r->opened = bk_job_open(r->ctx, &job, &r->job);
  if (r->opened == BK_OK) r->main(r);
  bk_job_close(r->job);
  r->ended = bk_seconds();
  bk_context_destroy(r->ctx);
  return NULL;
}

/* `absent` ranks are not started; -1: none. */
static rank *run_ranks(int absent, double timeout_s, void (*body)(rank *)) {
  static rank ranks[RANKS];
  bk_thread_world *world = NULL;
  memset(ranks, 0, sizeof ranks);
  ck_assert_int_eq(bk_thread_world_create(ctx, RANKS, &world), BK_OK);
  for (int r = 0; r < RANKS; r++) {
    ranks[r].world = world, ranks[r].number = r, ranks[r].main = body;
    ranks[r].timeout_s = timeout_s;
    if (r != absent)
      ck_assert_int_eq(pthread_create(&ranks[r].thread, NULL, rank_main, &ranks[r]), 0);
  }
  for (int r = 0; r < RANKS; r++)
    if (r != absent) pthread_join(ranks[r].thread, NULL);
  bk_thread_world_destroy(world);
  return ranks;
}

static void await_abort(rank *r) {
  while (!bk_job_aborted(r->job, r->reason, sizeof r->reason)) usleep(500);
}

static void await_call(rank *r) {
  while (atomic_load(&r->calls) == 0) usleep(500);
}

/* ---- one rank ---- */

static void count_call(void *user, const char *reason) {
  ck_assert_str_eq(reason, "no more");
  ++*(int *)user;
}

START_TEST(alone) {
  for (int named = 0; named < 2; named++) {
    bk_job *job = NULL;
    int early = 0, late = 0;
    char reason[16] = "before";
    bk_job_options options = {.size = 1, .comm = named ? "self" : NULL};
    ck_assert_int_eq(bk_job_open(ctx, &options, &job), BK_OK);
    ck_assert(bk_job_rank(job) == 0 && bk_job_size(job) == 1 && bk_job_local_rank(job) == 0);
    ck_assert_str_eq(bk_job_transport(job), "self");
    ck_assert(!bk_job_aborted(job, reason, sizeof reason));
    ck_assert_str_eq(reason, "before");
    bk_job_on_abort(job, count_call, &early);
    bk_job_abort(job, "no more");
    bk_job_abort(job, "another");
    bk_job_on_abort(job, count_call, &late);
    ck_assert(early == 1 && late == 1);
    ck_assert(bk_job_aborted(job, reason, sizeof reason));
    ck_assert_str_eq(reason, "no more");
    bk_job_close(job);
  }
  bk_job_close(NULL);
}
END_TEST

/* ---- threads ---- */

static void look_around(rank *r) {
  int sum[RANKS] = {0}, own = 10 + r->number;
  ck_assert(bk_job_rank(r->job) == r->number && bk_job_size(r->job) == RANKS);
  ck_assert(bk_job_local_rank(r->job) == r->number && bk_job_local_size(r->job) == RANKS);
  ck_assert_str_eq(bk_job_transport(r->job), "threads");
  ck_assert_int_eq(bk_engine_gather(r->job->engine, &own, sizeof own, sum), BK_OK);
  for (int i = 0; i < RANKS; i++) ck_assert_int_eq(sum[i], 10 + i);
  usleep(20000u * (unsigned)(r->number % 3)); /* they come to the end at different times */
}

START_TEST(open_and_close) {
  for (int turn = 0; turn < 20; turn++) {
    rank *ranks = run_ranks(-1, 20, look_around);
    for (int r = 0; r < RANKS; r++) {
      ck_assert_int_eq(ranks[r].opened, BK_OK);
      ck_assert_str_eq(ranks[r].messages, "");
    }
  }
}
END_TEST

static int who_aborts;

/* When it returns, all ranks have opened the job; one that is late may learn of an abort here. */
static void meet(rank *r) {
  char one = 1, all[RANKS];
  bk_engine_gather(r->job->engine, &one, 1, all);
}

static void abort_one(rank *r) {
  meet(r);
  bk_job_on_abort(r->job, hear, r);
  if (r->number == who_aborts) bk_job_abort(r->job, "the disk is full");
  await_call(r);
  await_abort(r);
}

/* Whoever it is, all learn it, and nobody waits for the time-out. */
START_TEST(abort_reaches_all) {
  for (who_aborts = 0; who_aborts < RANKS; who_aborts++) {
    double start = bk_seconds();
    rank *ranks = run_ranks(-1, 60, abort_one);
    for (int r = 0; r < RANKS; r++) {
      ck_assert_str_eq(ranks[r].heard, "the disk is full");
      ck_assert_str_eq(ranks[r].reason, "the disk is full");
      ck_assert_int_eq(atomic_load(&ranks[r].calls), 1);
    }
    ck_assert(bk_seconds() - start < 10);
  }
}
END_TEST

/* A rank that hangs in an operation is freed by an abort of another. */
static void hang(rank *r) {
  char one = 1, all[RANKS];
  meet(r);
  if (r->number == 2) {
    usleep(50000);
    bk_job_abort(r->job, "had enough");
  } else ck_assert_int_eq(bk_engine_gather(r->job->engine, &one, 1, all), BK_ERR_COMM);
  await_abort(r);
}

START_TEST(abort_ends_an_operation) {
  double start = bk_seconds();
  rank *ranks = run_ranks(-1, 60, hang);
  for (int r = 0; r < RANKS; r++) {
    ck_assert_str_eq(ranks[r].reason, "had enough");
    if (r != 2) ck_assert_ptr_nonnull(strstr(ranks[r].messages, "had enough"));
  }
  ck_assert(bk_seconds() - start < 10);
}
END_TEST

/* Ranks that disagree: the engine notices it, and the job is aborted. */
static void disagree(rank *r) {
  char bytes[8] = "", all[8 * RANKS];
  size_t n = r->number == 1 ? 8 : 4;
  meet(r);
  bk_job_on_abort(r->job, hear, r);
  ck_assert_int_eq(bk_engine_gather(r->job->engine, bytes, n, all), BK_ERR_COMM);
  await_call(r);
  await_abort(r);
}

START_TEST(failure_aborts) {
  rank *ranks = run_ranks(-1, 60, disagree);
  for (int r = 0; r < RANKS; r++) {
    ck_assert_str_eq(ranks[r].reason, ranks[0].reason);
    ck_assert_str_eq(ranks[r].heard, ranks[0].reason);
    ck_assert_msg(strncmp(ranks[r].reason, "rank ", 5) == 0, "%s", ranks[r].reason);
  }
}
END_TEST

static void leave(rank *r) { (void)r; }

/* One rank never comes: the others do not wait for ever. */
START_TEST(absent_rank) {
  for (int absent = 0; absent < 2; absent++) {
    rank *ranks = run_ranks(absent, 0.5, leave);
    for (int r = 0; r < RANKS; r++) {
      if (r == absent) continue;
      ck_assert_int_eq(ranks[r].opened, BK_ERR_COMM);
      ck_assert_msg(ranks[r].messages[0] != '\0', "rank %d says nothing", r);
      ck_assert_msg(ranks[r].ended - ranks[r].started < 4, "%g s",
                    ranks[r].ended - ranks[r].started);
    }
  }
}
END_TEST

static void stay(rank *r) {
  if (r->number != 3) return;
  usleep(300000);
  bk_job_abort(r->job, "too late");
}

/* An abort while the others are closing. */
START_TEST(abort_while_closing) {
  rank *ranks = run_ranks(-1, 60, stay);
  for (int r = 0; r < RANKS; r++) ck_assert(ranks[r].ended - ranks[r].started < 10);
}
END_TEST

/* ---- jobs that cannot be ---- */

static void clear_environment(void) {
  static const char *const names[] = {"OMPI_COMM_WORLD_RANK",
                                      "OMPI_COMM_WORLD_SIZE",
                                      "PMI_RANK",
                                      "PMI_SIZE",
                                      "PMIX_RANK",
                                      "SLURM_STEP_ID",
                                      "SLURM_STEPID",
                                      "RANK",
                                      "WORLD_SIZE",
                                      "BIRKHOFF_JOB_TOKEN"};
  for (size_t i = 0; i < BK_COUNT(names); i++) unsetenv(names[i]);
}

static void refused(const bk_job_options *options, bk_status status, const char *message) {
  bk_job *job = NULL;
  ck_assert_int_eq(bk_job_open(ctx, options, &job), status);
  unit_expect(message);
  ck_assert_ptr_null(job);
}

START_TEST(refusals) {
  bk_thread_world *world = NULL;
  clear_environment();
  ck_assert_int_eq(bk_thread_world_create(ctx, 2, &world), BK_OK);
  refused(&(bk_job_options){.comm = "threads", .size = 2, .rank = 1}, BK_ERR_ARGUMENT,
          "\"threads\" needs a world that the ranks share");
  refused(&(bk_job_options){.comm = "mpi", .world = world}, BK_ERR_ARGUMENT,
          "a world of threads goes with \"threads\", not \"mpi\"");
  refused(&(bk_job_options){.comm = "self", .size = 2}, BK_ERR_ARGUMENT, "for 1 rank, not 2");
  refused(&(bk_job_options){.world = world, .size = 3, .timeout_s = 1}, BK_ERR_ARGUMENT,
          "the options say 3 ranks, the world has 2");
  refused(&(bk_job_options){.comm = "pigeons", .size = 2, .timeout_s = 1}, BK_ERR_NOT_FOUND,
          "no transport \"pigeons\"");
  bk_thread_world_destroy(world);
}
END_TEST

/* Several processes and nothing between them. */
START_TEST(no_transport) {
  clear_environment();
  setenv("BIRKHOFF_BACKEND_DIR", "/nowhere", 1);
  setenv("RANK", "1", 1);
  setenv("WORLD_SIZE", "8", 1);
  setenv("MASTER_ADDR", "localhost", 1);
  setenv("MASTER_PORT", "29500", 1);
  refused(&(bk_job_options){0}, BK_ERR_ABSENT,
          "8 ranks were launched (RANK and WORLD_SIZE), and there is no transport between "
          "processes here: mpi: ");
  unsetenv("WORLD_SIZE");
  unsetenv("RANK");
  setenv("OMPI_COMM_WORLD_RANK", "0", 1);
  setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  refused(&(bk_job_options){0}, BK_ERR_ABSENT, "2 ranks were launched (mpirun), and there is no");
  unsetenv("OMPI_COMM_WORLD_RANK");
  unsetenv("OMPI_COMM_WORLD_SIZE");
  setenv("PMIX_RANK", "1", 1);
  refused(&(bk_job_options){0}, BK_ERR_ABSENT, "several ranks were launched (mpirun), and");
}
END_TEST

UNIT_MAIN("job", unit_open, unit_close, alone, open_and_close, abort_reaches_all,
          abort_ends_an_operation, failure_aborts, absent_rank, abort_while_closing, refusals,
          no_transport)
