/* Lanes: the streams that a model's programs run on, each with a workspace of its own, so that two
 * lanes never share scratch of a kernel. All chunks and the optimiser of a model use one set.
 *
 *   compute   everything, unless a program says otherwise; it is the model's stream
 *   urgent    work that other devices or streams wait for: the merges of feed-forward sublayers
 *             (mHC paper, section 4.3.3)
 *
 * To add a lane, give it a name here, record a piece on it (pieces.c), and open it with
 * bk_lanes_open where it is wanted; the recorder finds out what has to wait for what (program.h).
 * Until a lane is open, its pieces run on compute. */
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
  size_t bytes[BK_LANES];  /* size of each workspace */
  size_t wanted[BK_LANES]; /* the most that a program has asked for */
  bk_memory **memory; /* all workspaces that there were: captured graphs know their addresses */
  int n_memory;
  size_t capacity;
} bk_lanes;

/* Opens the compute lane. With plan_only sizes are planned, and no memory is taken. */
bk_status bk_lanes_init(bk_lanes *lanes, bk_device *device, bool plan_only);
void bk_lanes_fini(bk_lanes *lanes); /* waits for what is under way; safe on a zeroed one */
bk_status bk_lanes_open(bk_lanes *lanes, bk_lane lane);
static inline bool bk_lanes_has(const bk_lanes *lanes, bk_lane lane) { return lanes->stream[lane]; }
/* Says that a program will launch a kernel with a workspace of this size on the lane. Commit then
 * makes room for the largest. */
void bk_lanes_want(bk_lanes *lanes, bk_lane lane, size_t bytes);
bk_status bk_lanes_commit(bk_lanes *lanes);
bk_status bk_lanes_sync(const bk_lanes *lanes);
size_t bk_lanes_bytes(const bk_lanes *lanes); /* class workspace */

#endif
