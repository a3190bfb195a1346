/* What lies behind bk_job (birkhoff/parallel.h). */
#ifndef BK_JOB_H
#define BK_JOB_H

#include "comm/engine.h"
#include "comm/store.h"

struct bk_job {
  bk_context *ctx;
  bk_job_options options; /* filled in: size is at least 1, comm is a name */
  bk_engine *engine;      /* NULL: "self" */
  bk_store *store;        /* NULL: "self" */
};

#endif
