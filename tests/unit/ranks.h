/* Ranks that are threads of a test: each has a context, a device and a comm of its own. libcheck
 * belongs to the main thread, so that ranks note what they find wrong, and the test looks at it
 * when all have ended. */
#ifndef BK_TESTS_RANKS_H
#define BK_TESTS_RANKS_H

#include <check.h>
#include <stdio.h>
#include <string.h>

#include "comm/comm.h"
#include "comm/engine.h"
#include "comm/threads.h"

#include <pthread.h>

#define RANKS_MAX 8

typedef struct rank {
  int rank, size;
  bk_context *ctx;
  bk_device *device;
  bk_stream *stream;
  bk_engine *engine;
  bk_comm *comm;
  const struct ranks *all;
  bool abandon;        /* set by a body that has ended in a failure */
  char failure[512];   /* the first thing that was wrong */
  char messages[4096]; /* what the library said */
  pthread_t thread;
} rank;

typedef struct ranks {
  int size;
  const bk_backend *backend;
  int threads; /* of each rank's device; 0: one per processor */
  double timeout_s;
  uint64_t seed; /* of disturbances; 0: none */
  void (*body)(rank *r);
  int detail; /* the body's */
  bk_thread_world *world;
  rank rank[RANKS_MAX];
} ranks;

/* Notes the first failure, and goes on. */
#define EXPECT(r, condition)                                                                  \
  do {                                                                                        \
    if (!(condition) && !(r)->failure[0])                                                     \
      snprintf((r)->failure, sizeof(r)->failure, "rank %d, line %d: %s", (r)->rank, __LINE__, \
               #condition);                                                                   \
  } while (0)
#define EXPECT_OK(r, status) EXPECT(r, (status) == BK_OK)

/* Runs the body on every rank, and closes all. */
void ranks_run(ranks *all, bk_context *ctx);
/* What rank r said must hold `part`, and is forgotten. */
void rank_expect(ranks *all, int r, const char *part);

/* A device whose memory the host cannot look at, and whose streams do nothing until somebody waits
 * for them or asks how far they are: so late that a wait that is missing shows. */
extern const bk_backend late_backend;

#endif
