/* A worker over POSIX threads: it sleeps until there is a job, and whoever waits for it sleeps
 * too. Only os.c refers to this file. */
#include "base/worker.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

/* Everything but `thread` and `ctx` is guarded by the lock. The caller's writes before start are
 * seen by the job, and the job's by the caller after wait, since both go through the lock. */
struct bk_worker {
  bk_context *ctx;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bk_worker_fn fn; /* NULL: no job */
  void *arg;
  bool stop;
};

static void *worker_main(void *arg) {
  bk_worker *w = arg;
  pthread_mutex_lock(&w->lock);
  while (!w->stop) {
    if (!w->fn) {
      pthread_cond_wait(&w->changed, &w->lock);
      continue;
    }
    pthread_mutex_unlock(&w->lock);
    w->fn(w->arg);
    pthread_mutex_lock(&w->lock);
    w->fn = NULL;
    pthread_cond_broadcast(&w->changed);
  }
  pthread_mutex_unlock(&w->lock);
  return NULL;
}

/* Signals are blocked meanwhile, and so in the new thread: the host program's handlers run in its
 * own threads. Returns an errno value. */
static int start_thread(bk_worker *w) {
  pthread_attr_t attributes;
  sigset_t all, before;
  int error = pthread_attr_init(&attributes);
  if (error) return error;
  error = pthread_attr_setstacksize(&attributes, BK_WORKER_STACK);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  if (!error) error = pthread_create(&w->thread, &attributes, worker_main, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return error;
}

static void free_worker(bk_worker *w) {
  pthread_cond_destroy(&w->changed);
  pthread_mutex_destroy(&w->lock);
  bk_free(w->ctx, w);
}

/* `name` says in the message what the thread was to do. */
static bk_status worker_create(bk_context *ctx, const char *name, bk_worker **worker) {
  bk_worker *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->ctx = ctx;
  pthread_mutex_init(&made->lock, NULL);
  pthread_cond_init(&made->changed, NULL);
  int error = start_thread(made);
  if (error) {
    free_worker(made);
    return bk_fail(ctx, BK_ERR_MEMORY, "cannot start the thread that %s: %s", name,
                   strerror(error));
  }
  *worker = made;
  return BK_OK;
}

static void worker_start(bk_worker *w, bk_worker_fn fn, void *arg) {
  pthread_mutex_lock(&w->lock);
  w->fn = fn;
  w->arg = arg;
  pthread_cond_broadcast(&w->changed);
  pthread_mutex_unlock(&w->lock);
}

static void worker_wait(bk_worker *w) {
  pthread_mutex_lock(&w->lock);
  while (w->fn) pthread_cond_wait(&w->changed, &w->lock);
  pthread_mutex_unlock(&w->lock);
}

static void worker_destroy(bk_worker *w) {
  if (!w) return;
  worker_wait(w);
  pthread_mutex_lock(&w->lock);
  w->stop = true;
  pthread_cond_broadcast(&w->changed);
  pthread_mutex_unlock(&w->lock);
  pthread_join(w->thread, NULL);
  free_worker(w);
}

const struct bk_worker_ops bk_worker_posix = {worker_create, worker_start, worker_wait,
                                              worker_destroy};
