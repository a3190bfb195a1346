/* The two halves of a pool: pool.c, which needs no thread, and threads.c, which a context's os
 * brings in. */
#ifndef BK_POOL_PRIV_H
#define BK_POOL_PRIV_H

#include "base/base.h"

typedef struct bk_pool_ops {
  void (*destroy)(bk_pool *pool);
  /* The job of bk_pool_run, already clipped: grain >= 1 and more than one piece. */
  void (*run)(bk_pool *pool, int64_t count, int64_t grain, bk_pool_fn fn, void *arg);
} bk_pool_ops;

/* First member of an implementation's own struct. */
struct bk_pool {
  const bk_pool_ops *ops;
  bk_context *ctx;
  int n_threads;
};

/* threads.c: n_threads > 1. */
bk_status bk_threads_create(bk_context *ctx, int n_threads, bk_pool **pool);

#endif
