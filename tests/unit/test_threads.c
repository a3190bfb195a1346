/* The pool: every piece once, the same pieces for any number of threads, no allocation, many
 * short runs in a row. */
#include "tests/unit/unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

typedef struct tally {
  atomic_int hits[4096];
  int64_t begins[4096]; /* by begin: the piece's end */
  atomic_int pieces, bad_worker;
  int n_threads;
} tally;

static void tally_piece(void *arg, int64_t begin, int64_t end, int worker) {
  tally *t = arg;
  for (int64_t i = begin; i < end; i++) atomic_fetch_add(&t->hits[i], 1);
  t->begins[begin] = end;
  atomic_fetch_add(&t->pieces, 1);
  if (worker < 0 || worker >= t->n_threads) atomic_fetch_add(&t->bad_worker, 1);
}

static void check_run(bk_pool *pool, tally *t, int64_t count, int64_t grain) {
  memset(t, 0, sizeof *t);
  t->n_threads = bk_pool_size(pool);
  bk_pool_run(pool, count, grain, tally_piece, t);
  for (int64_t i = 0; i < count; i++) ck_assert_int_eq(atomic_load(&t->hits[i]), 1);
  for (int64_t b = 0; b < count; b += grain)
    ck_assert_int_eq(t->begins[b], b + grain < count ? b + grain : count);
  ck_assert_int_eq(atomic_load(&t->pieces), (count + grain - 1) / grain);
  ck_assert_int_eq(atomic_load(&t->bad_worker), 0);
}

START_TEST(every_piece_once) {
  static tally t;
  static const int64_t counts[] = {1, 2, 7, 100, 4096}, grains[] = {1, 3, 64, 5000};
  for (int n = 1; n <= 5; n++) {
    bk_pool *pool = NULL;
    ck_assert_int_eq(bk_pool_create(ctx, n, &pool), BK_OK);
    ck_assert_int_eq(bk_pool_size(pool), n);
    for (size_t c = 0; c < BK_COUNT(counts); c++)
      for (size_t g = 0; g < BK_COUNT(grains); g++) check_run(pool, &t, counts[c], grains[g]);
    memset(&t, 0, sizeof t);
    bk_pool_run(pool, 0, 4, tally_piece, &t);
    ck_assert_int_eq(atomic_load(&t.pieces), 0);
    bk_pool_destroy(pool);
  }
}
END_TEST

static void add_plain(void *arg, int64_t begin, int64_t end, int worker) {
  (void)worker;
  for (int64_t i = begin; i < end; i++) ((int64_t *)arg)[i] += i;
}

/* Plain (not atomic) data handed from run to run: what one run wrote, the next sees, whoever
 * worked on it. */
START_TEST(runs_are_ordered) {
  enum { COUNT = 257, RUNS = 3000 };
  static int64_t data[COUNT];
  bk_pool *pool = NULL;
  memset(data, 0, sizeof data);
  ck_assert_int_eq(bk_pool_create(ctx, 3, &pool), BK_OK);
  for (int r = 0; r < RUNS; r++) {
    bk_pool_run(pool, COUNT, 16, add_plain, data);
    data[0] += 1; /* the caller's own work between runs */
  }
  ck_assert_int_eq(data[0], RUNS);
  for (int64_t i = 1; i < COUNT; i++) ck_assert_int_eq(data[i], i * RUNS);
  bk_pool_destroy(pool);
}
END_TEST

/* With pauses between, so that the workers are asleep when the next run comes. */
START_TEST(sleepers_wake) {
  static tally t;
  bk_pool *pool = NULL;
  ck_assert_int_eq(bk_pool_create(ctx, 2, &pool), BK_OK);
  for (int r = 0; r < 20; r++) {
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    check_run(pool, &t, 500, 10);
  }
  bk_pool_destroy(pool);
}
END_TEST

typedef struct meeting {
  atomic_int present;
  atomic_int met;
} meeting;

static void meet(void *arg, int64_t begin, int64_t end, int worker) {
  (void)begin, (void)end, (void)worker;
  meeting *m = arg;
  atomic_fetch_add(&m->present, 1);
  for (int i = 0; i < 5000 && atomic_load(&m->present) < 2; i++)
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  if (atomic_load(&m->present) >= 2) atomic_fetch_add(&m->met, 1);
}

/* Two pieces wait for each other: they only end if two threads run them at once. */
START_TEST(pieces_run_at_once) {
  meeting m = {0};
  bk_pool *pool = NULL;
  ck_assert_int_eq(bk_pool_create(ctx, 2, &pool), BK_OK);
  bk_pool_run(pool, 2, 1, meet, &m);
  ck_assert_int_eq(atomic_load(&m.met), 2);
  bk_pool_destroy(pool);
}
END_TEST

/* As deep as the kernels may go, in a worker for certain: both pieces are under way at once. */
static void meet_deep(void *arg, int64_t begin, int64_t end, int worker) {
  volatile char space[BK_WORKER_STACK / 3];
  for (size_t i = 0; i < sizeof space; i += 1024) space[i] = (char)i;
  meet(arg, begin, end, worker);
}

/* Stacks of workers are as large where the system's limit is small. */
START_TEST(workers_have_stack) {
#ifdef HAVE_PTHREAD_SETATTR_DEFAULT_NP
  pthread_attr_t before, small;
  ck_assert_int_eq(pthread_getattr_default_np(&before), 0);
  ck_assert_int_eq(pthread_attr_init(&small), 0);
  ck_assert_int_eq(pthread_attr_setstacksize(&small, (size_t)128 << 10), 0);
  ck_assert_int_eq(pthread_setattr_default_np(&small), 0);
#endif
  meeting m = {0};
  bk_pool *pool = NULL;
  ck_assert_int_eq(bk_pool_create(ctx, 2, &pool), BK_OK);
  bk_pool_run(pool, 2, 1, meet_deep, &m);
  ck_assert_int_eq(atomic_load(&m.met), 2);
  bk_pool_destroy(pool);
#ifdef HAVE_PTHREAD_SETATTR_DEFAULT_NP
  ck_assert_int_eq(pthread_setattr_default_np(&before), 0);
  pthread_attr_destroy(&small);
  pthread_attr_destroy(&before);
#endif
}
END_TEST

START_TEST(no_allocation_and_no_thread_for_one) {
  static int64_t data[100];
  bk_memory_stats before, after;
  bk_pool *pool = NULL;
  ck_assert_int_eq(bk_pool_create(ctx, 1, &pool), BK_OK);
  bk_context_memory_stats(ctx, &before);
  bk_pool_run(pool, 100, 7, add_plain, data);
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_eq(after.allocations, before.allocations);
  bk_pool_destroy(pool);
  bk_pool_destroy(NULL);
}
END_TEST

START_TEST(bad_sizes) {
  bk_pool *pool = NULL;
  ck_assert_int_eq(bk_pool_create(ctx, 0, &pool), BK_ERR_ARGUMENT);
  unit_expect("threads: 0");
  ck_assert_int_eq(bk_pool_create(ctx, 100000, &pool), BK_ERR_ARGUMENT);
  unit_expect("threads: 100000");
  ck_assert_ptr_null(pool);
}
END_TEST

UNIT_MAIN("threads", unit_open, unit_close, every_piece_once, runs_are_ordered, sleepers_wake,
          pieces_run_at_once, workers_have_stack, no_allocation_and_no_thread_for_one, bad_sizes)
