/* Walks of a step as captured graphs: the first run of a walk is given to the stream call by
 * call, so that whatever is made at first use is made; the second is captured; from then on the
 * graph is launched. Only where the device's streams can be captured.
 *
 * A walk only enqueues: launches, fills, copies on the device; no uploads, downloads, events or
 * syncs. Its one lasting effect on the host is on the flags of parameter blocks
 * (bk_param_block), which also decide what is launched: whether a product adds to a gradient or
 * overwrites it. So a graph belongs to the flags that the walk began with, and its launch leaves
 * the flags as the walk left them. In other states than the first BK_GRAPH_STATES met, the walk
 * runs call by call.
 *
 * A capture that fails is warned about once per model, with the reason; the walk runs call by
 * call from then on. Graphs hold addresses: they end before the memory of their owner does. */
#ifndef BK_GRAPH_H
#define BK_GRAPH_H

#include "models/model.h"

/* Training has two: before and after the first micro-batch of a step. */
#define BK_GRAPH_STATES 2

typedef struct bk_graph_state {
  uint8_t *before, *after; /* flags of the blocks; NULL where there is no block */
  void *graph;             /* the backend's; NULL until captured */
  bool taken, warm, failed;
} bk_graph_state;

typedef struct bk_graph {
  bk_model *model; /* NULL: never reserved, the walk always runs call by call */
  const char *name;
  bk_param_block *blocks; /* those whose flags the walk reads or changes */
  int n_blocks;
  bk_graph_state states[BK_GRAPH_STATES];
} bk_graph;

typedef bk_status (*bk_graph_walk)(void *arg);

/* Whether steps of this model may be captured at all. */
bool bk_model_may_graph(const bk_model *model);
/* Makes room, so that nothing is allocated later; on a zeroed graph. Nothing to do where
 * bk_model_may_graph says no. name: "the backward pass". */
bk_status bk_graph_reserve(bk_graph *graph, bk_model *model, const char *name,
                           bk_param_block *blocks, int n_blocks);
/* Waits for the stream if there are graphs. Safe on a zeroed one; zeroes it. */
void bk_graph_fini(bk_graph *graph);
/* Runs the walk or launches what was captured of it; `may` false, or a profile of the model,
 * which times op by op: runs it. The arg must mean the same at each call. */
bk_status bk_graph_run(bk_graph *graph, bool may, bk_graph_walk walk, void *arg);

#endif
