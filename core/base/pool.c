/* Pools of threads as their users see them, and the pool of one thread, which is the caller's own
 * and needs nothing of the operating system.
 *
 * A run cuts [0, count) into pieces of `grain`, and the cuts depend on these two numbers alone,
 * not on the number of threads. A kernel that sums within a piece therefore gives the same bits on
 * any number of threads. The pool of one thread makes the same cuts for that reason. */
#include "base/pool_priv.h"

static void inline_run(bk_pool *pool, int64_t count, int64_t grain, bk_pool_fn fn, void *arg) {
  (void)pool;
  int64_t begin = 0;
  for (; count - begin > grain; begin += grain) fn(arg, begin, begin + grain, 0);
  fn(arg, begin, count, 0);
}

static void inline_destroy(bk_pool *pool) { bk_free(pool->ctx, pool); }

static const bk_pool_ops inline_ops = {inline_destroy, inline_run};

bk_status bk_pool_create(bk_context *ctx, int n_threads, bk_pool **pool) {
  if (n_threads < 1 || n_threads > BK_MAX_THREADS)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "threads: %d is not in 1..%d", n_threads, BK_MAX_THREADS);
  if (n_threads > 1 && ctx->os) return ctx->os->threads_create(ctx, n_threads, pool);
  if (n_threads > 1)
    return bk_fail(ctx, BK_ERR_UNSUPPORTED, "threads: an embedded context has 1, not %d",
                   n_threads);
  bk_pool *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  *made = (bk_pool){&inline_ops, ctx, 1};
  *pool = made;
  return BK_OK;
}

void bk_pool_destroy(bk_pool *pool) {
  if (pool) pool->ops->destroy(pool);
}

int bk_pool_size(const bk_pool *pool) { return pool->n_threads; }

/* A job of a single piece runs in the caller at once: to wake workers would cost more than it
 * saves. */
void bk_pool_run(bk_pool *pool, int64_t count, int64_t grain, bk_pool_fn fn, void *arg) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  if (count <= grain) fn(arg, 0, count, 0);
  else pool->ops->run(pool, count, grain, fn, arg);
}
