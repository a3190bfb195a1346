/* Lanes: the streams that a model's programs run on, each with a workspace of its own, so that two
 * lanes never share scratch of a kernel. All chunks and the optimiser of a model use one set.
 *
 *   compute   everything, unless a program says otherwise; the model's stream
 *   urgent    what others wait for: the merges of feed-forward sublayers (mHC paper, section 4.3.3)
 *
 * A new lane is a name here, a piece that is recorded on it (pieces.c), and bk_lanes_open where it
 * is wanted; the recorder finds out what has to wait for what (program.h). Until it is open, its
 * pieces run on compute. */
#ifndef BK_LANES_H
#define BK_LANES_H

#include "runtime/backend.h"

/* X(ID, name, priority); a stream has as high a priority as the device knows, at most this. */
#define BK_LANE_LIST(X)    \
  X(COMPUTE, "compute", 0) \
  X(URGENT, "urgent", 5)
typedef enum bk_lane {
#define BK_LANE_ENUM(id, name, priority) BK_LANE_##id,
  BK_LANE_LIST(BK_LANE_ENUM)
#undef BK_LANE_ENUM
      BK_LANES
} bk_lane;
const char *bk_lane_name(bk_lane lane);

typedef struct bk_lanes {
  bk_device *device;
  bool plan_only;
  bk_stream *stream[BK_LANES]; /* NULL: not open */
  bk_place workspace[BK_LANES];
  size_t bytes[BK_LANES];  /* of the workspace */
  size_t wanted[BK_LANES]; /* the most that a program has asked for */
  bk_memory **memory; /* all workspaces that there were: captured graphs know their addresses */
  int n_memory;
  size_t capacity;
} bk_lanes;

/* Opens the compute lane. plan_only: sizes alone, no memory. */
bk_status bk_lanes_init(bk_lanes *lanes, bk_device *device, bool plan_only);
void bk_lanes_fini(bk_lanes *lanes); /* waits for what is under way; safe on a zeroed one */
bk_status bk_lanes_open(bk_lanes *lanes, bk_lane lane);
static inline bool bk_lanes_has(const bk_lanes *lanes, bk_lane lane) { return lanes->stream[lane]; }
/* A program will launch a kernel with so large a workspace; commit makes room for all such. */
void bk_lanes_want(bk_lanes *lanes, bk_lane lane, size_t bytes);
bk_status bk_lanes_commit(bk_lanes *lanes);
bk_status bk_lanes_sync(const bk_lanes *lanes);
size_t bk_lanes_bytes(const bk_lanes *lanes); /* class workspace */

#endif
