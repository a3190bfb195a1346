/* What lies behind bk_job (birkhoff/parallel.h). */
#ifndef BK_JOB_H
#define BK_JOB_H

#include "comm/engine.h"
#include "comm/fate.h"
#include "comm/store.h"

#include <pthread.h>

struct bk_job {
  bk_context *ctx;
  bk_job_options options; /* filled in: size is at least 1, comm is a name; no other text */
  bk_engine *engine;      /* NULL: "self" */
  bk_store *store;        /* NULL: "self" */
  bk_fate fate;           /* of "self", which has no store */
  /* Guards what follows, and that the engine is there while the store's thread fails it. */
  pthread_mutex_t lock;
  bool told; /* the store has told of an abort */
  bk_job_abort_fn call;
  void *call_user;
};

#endif
