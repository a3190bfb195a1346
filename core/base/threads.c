/* A pool of more than one thread: the caller and its workers, which share one loop at a time.
 *
 * A run opens a job. Workers that are awake enter it (`inside`), take pieces from `next` until
 * none is left, and leave. The caller works too, then closes the job and waits for those inside; a
 * worker that wakes too late misses the job, which costs nothing but its help.
 *
 * What makes this safe is the order of two pairs of sequentially consistent operations: a worker
 * announces itself before it looks whether the job is open, and the caller closes the job before
 * it looks who is inside. One of the two therefore sees the other. Sleeping is guarded the same
 * way: a worker counts itself among `sleepers` before it looks for a new job, and the caller opens
 * the job before it looks for sleepers.
 *
 * Waiting is a short spin, then a condition variable. Workers never allocate, and they block all
 * signals, so that the host program's handlers run in its own threads. */
#include "base/pool_priv.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

/* Turns of a spin before a thread sleeps: some tens of microseconds, which is the gap between two
 * ops of a step. A worker that slept in each gap would be woken late for each op. */
#define SPIN_TURNS 2000

typedef struct threads threads;

typedef struct worker {
  threads *pool;
  int index;
  pthread_t thread;
} worker;

struct threads {
  bk_pool base;
  int n_started;
  int spin_turns;
  worker *workers;
  /* The job. It is written while `open` is false and nobody is inside, and only read otherwise. */
  int64_t count, grain, pieces;
  bk_pool_fn fn;
  void *arg;
  _Atomic int64_t next;
  atomic_bool open, stop;
  atomic_uint generation; /* jobs opened so far; a worker compares it with the last it has seen */
  atomic_int inside, sleepers;
  atomic_bool caller_waits;
  pthread_mutex_t lock;
  pthread_cond_t work, done;
};

static inline void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Pieces are taken as threads get to them, so that a slow thread holds up one piece and not its
 * share of the whole. Which thread computes a piece does not matter to the result. */
static void run_pieces(threads *pool, int index) {
  for (;;) {
    int64_t piece = atomic_fetch_add(&pool->next, 1);
    if (piece >= pool->pieces) return;
    int64_t begin = piece * pool->grain;
    int64_t end = pool->count - begin < pool->grain ? pool->count : begin + pool->grain;
    pool->fn(pool->arg, begin, end, index);
  }
}

/* The last one out wakes the caller if that has gone to sleep. The lock is taken around the signal
 * so that it cannot fall between the caller's look at `inside` and its wait. */
static void enter_job(threads *pool, int index) {
  atomic_fetch_add(&pool->inside, 1);
  if (atomic_load(&pool->open)) run_pieces(pool, index);
  if (atomic_fetch_sub(&pool->inside, 1) != 1 || !atomic_load(&pool->caller_waits)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_signal(&pool->done);
  pthread_mutex_unlock(&pool->lock);
}

/* Returns when a job newer than `seen` was opened or the pool stops. */
static void await_job(threads *pool, unsigned seen) {
  for (int i = 0; i < pool->spin_turns; i++) {
    if (atomic_load(&pool->generation) != seen || atomic_load(&pool->stop)) return;
    spin_pause();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleepers, 1);
  while (atomic_load(&pool->generation) == seen && !atomic_load(&pool->stop))
    pthread_cond_wait(&pool->work, &pool->lock);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->lock);
}

/* A worker counts the jobs it has seen by `generation`; the one that it enters may be newer
 * still. */
static void *worker_main(void *arg) {
  worker *self = arg;
  threads *pool = self->pool;
  for (unsigned seen = 0;;) {
    await_job(pool, seen);
    if (atomic_load(&pool->stop)) return NULL;
    seen = atomic_load(&pool->generation);
    enter_job(pool, self->index);
  }
}

static void wake_sleepers(threads *pool) {
  if (atomic_load(&pool->sleepers) == 0) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->work);
  pthread_mutex_unlock(&pool->lock);
}

/* `caller_waits` is set under the lock before `inside` is looked at again, so that the last worker
 * out either is seen by this look or sees the flag and signals. */
static void await_workers(threads *pool) {
  for (int i = 0; i < pool->spin_turns; i++) {
    if (atomic_load(&pool->inside) == 0) return;
    spin_pause();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->caller_waits, true);
  while (atomic_load(&pool->inside) != 0) pthread_cond_wait(&pool->done, &pool->lock);
  atomic_store(&pool->caller_waits, false);
  pthread_mutex_unlock(&pool->lock);
}

/* The caller returns only when nobody is inside, so that the next run may write the job's
 * fields. */
static void threads_run(bk_pool *base, int64_t count, int64_t grain, bk_pool_fn fn, void *arg) {
  threads *pool = (threads *)base;
  pool->count = count;
  pool->grain = grain;
  pool->pieces = (count - 1) / grain + 1;
  pool->fn = fn;
  pool->arg = arg;
  atomic_store(&pool->next, 0);
  atomic_store(&pool->open, true);
  atomic_fetch_add(&pool->generation, 1);
  wake_sleepers(pool);
  run_pieces(pool, 0);
  atomic_store(&pool->open, false);
  await_workers(pool);
}

/* Returns an errno value. `n_started` says how many workers threads_destroy has to join. */
static int create_workers(threads *pool) {
  pthread_attr_t attributes;
  int error = pthread_attr_init(&attributes);
  if (error) return error;
  error = pthread_attr_setstacksize(&attributes, BK_WORKER_STACK);
  while (pool->n_started < pool->base.n_threads - 1 && !error) {
    worker *w = &pool->workers[pool->n_started];
    *w = (worker){.pool = pool, .index = pool->n_started + 1};
    error = pthread_create(&w->thread, &attributes, worker_main, w);
    if (!error) pool->n_started++;
  }
  pthread_attr_destroy(&attributes);
  return error;
}

/* A new thread inherits the signal mask of its creator, so that signals are blocked in the
 * meantime. */
static bk_status start_workers(threads *pool) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = create_workers(pool);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!error) return BK_OK;
  return bk_fail(pool->base.ctx, BK_ERR_MEMORY, "cannot start thread %d of %d: %s",
                 pool->n_started + 2, pool->base.n_threads, strerror(error));
}

/* Also ends a pool of which only some workers were started. */
static void threads_destroy(bk_pool *base) {
  threads *pool = (threads *)base;
  atomic_store(&pool->stop, true);
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->work);
  pthread_mutex_unlock(&pool->lock);
  for (int i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i].thread, NULL);
  pthread_cond_destroy(&pool->done);
  pthread_cond_destroy(&pool->work);
  pthread_mutex_destroy(&pool->lock);
  bk_free(base->ctx, pool->workers);
  bk_free(base->ctx, pool);
}

static const bk_pool_ops threads_ops = {threads_destroy, threads_run};

/* With more threads than processors a spin would only keep another thread from its work: no spin
 * then. */
bk_status bk_threads_create(bk_context *ctx, int n_threads, bk_pool **pool) {
  threads *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->base = (bk_pool){&threads_ops, ctx, n_threads};
  made->spin_turns = n_threads <= bk_cpu_count() ? SPIN_TURNS : 0;
  pthread_mutex_init(&made->lock, NULL);
  pthread_cond_init(&made->work, NULL);
  pthread_cond_init(&made->done, NULL);
  made->workers = bk_alloc_array(ctx, (size_t)n_threads, sizeof *made->workers);
  bk_status status = made->workers ? start_workers(made) : BK_ERR_MEMORY;
  if (status != BK_OK) {
    threads_destroy(&made->base);
    return status;
  }
  *pool = &made->base;
  return BK_OK;
}
