/* What pool.c and threads.c share: pool.c has the pool of one thread and needs no operating
 * system, threads.c has the others and comes in with the context's `os` only (os.c). */
#ifndef BK_POOL_PRIV_H
#define BK_POOL_PRIV_H

#include "base/base.h"

typedef struct bk_pool_ops {
  void (*destroy)(bk_pool *pool);
  /* The job of bk_pool_run, already clipped: grain >= 1 and more than one piece. */
  void (*run)(bk_pool *pool, int64_t count, int64_t grain, bk_pool_fn fn, void *arg);
} bk_pool_ops;

/* The first member of each implementation's own struct. */
struct bk_pool {
  const bk_pool_ops *ops;
  bk_context *ctx;
  int n_threads;
};

/* threads.c: n_threads > 1. */
bk_status bk_threads_create(bk_context *ctx, int n_threads, bk_pool **pool);

#endif
