/* A backend for tests: `cpu` with streams that can be captured. While one is, launches, fills
 * and copies are noted and not done, and what involves the host is refused, as on a GPU; a graph
 * is the list of notes. What it does can be set and is counted in `graphs`. */
#ifndef BK_TESTS_GRAPH_DEVICE_H
#define BK_TESTS_GRAPH_DEVICE_H

#include "runtime/backend.h"

typedef struct graph_counts {
  /* captures fail at their beginning, at their end, or end without a graph */
  bool refuse_begin, refuse_end, lose;
  int refuse_launch;     /* > 0: that launch within a capture fails */
  int captures, replays; /* begun; launches of graphs */
  int held;              /* graphs not destroyed yet */
  /* launches and fills: done at once, within captures, within replays */
  int calls, noted, replayed;
  int begun_and_not_ended;
} graph_counts;

extern graph_counts graphs;

/* Registers it as "graphs" and resets the counts. lacks: an op that it has no kernel for, or
 * BK_OP_NONE. */
bk_status graph_backend_register(bk_context *ctx, bk_op lacks);

#endif
