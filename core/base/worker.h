/* One thread beside the caller's, which does one job at a time: what is read or written while
 * something else goes on. A context has workers only where it has an operating system
 * (ctx->os->worker), so that a static link without one leaves threads out. */
#ifndef BK_WORKER_H
#define BK_WORKER_H

#include "base/base.h"

typedef struct bk_worker bk_worker;

/* A job must not use the context, whose allocator and log are the caller's thread's alone. */
typedef void (*bk_worker_fn)(void *arg);

struct bk_worker_ops {
  bk_status (*create)(bk_context *ctx, const char *name, bk_worker **worker);
  /* The job before must have been waited for. */
  void (*start)(bk_worker *worker, bk_worker_fn fn, void *arg);
  void (*wait)(bk_worker *worker);    /* until the job is done; at once where none is in progress */
  void (*destroy)(bk_worker *worker); /* waits; NULL is allowed */
};
extern const struct bk_worker_ops bk_worker_posix; /* worker.c */

#endif
