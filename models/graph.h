/* A walk is a part of a step that gives the stream the same things each time: launches, fills and
 * events between lanes, but no uploads, downloads or syncs. A program is one (program.h). Captured
 * as a graph, it is given to the device in one call, which saves the host's time for each launch.
 *
 * The first run is made call by call, so that whatever is created at first use gets created. The
 * second run is captured, and from then on the graph is launched. This happens only where the
 * device's streams can be captured.
 *
 * A capture that fails is warned about once per model, with the reason; the walk runs call by call
 * from then on. Graphs hold addresses: they end before the memory of their owner does. */
#ifndef BK_GRAPH_H
#define BK_GRAPH_H

#include "runtime/backend.h"

typedef struct bk_graph {
  bk_stream *stream; /* NULL: the walk always runs call by call */
  const char *name;  /* for the warning: "the backward pass" */
  bool *warned;      /* shared by all graphs that warn only once between them */
  bool warm, failed;
  void *graph; /* the backend's; NULL until captured */
} bk_graph;

typedef bk_status (*bk_graph_walk)(void *arg);

/* Waits for the stream if there is a graph. Safe on a zeroed one; zeroes it. */
void bk_graph_fini(bk_graph *graph);
/* Runs the walk, or launches its graph. With `may` false the walk is always run. */
bk_status bk_graph_run(bk_graph *graph, bool may, bk_graph_walk walk, void *arg);

#endif
