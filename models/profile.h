/* Where the time of a step goes: every op that a step launches, timed by events of the device,
 * with its cost from the op's own model.
 *
 * What a profile is, and what a user of the library sees of it: birkhoff/profile.h. It is attached
 * to a model; bk_step_begin .. bk_step_end on that model is profiled, whichever runner or optimiser
 * launches the ops. Without one a launch costs one more pointer test.
 *
 * An event stands before and one after each launch. Where the stream runs by itself, the end of
 * an op is also the begin of the next one of its piece, which halves the events; on host memory,
 * where events read the clock as the host passes by, each op has a pair of its own, so that no
 * time of the host between two ops counts as an op's. A composed op counts as one op. What
 * lies between the ops (copies, zeros, gaps) is the rest: the time of the step less that of its
 * ops.
 *
 * All memory is taken at creation, so that a profiled step allocates nothing: BK_PROFILE_POOL
 * launches are held until their times can be read, at the end of the step, or sooner, after a
 * sync, in a step that has more of them. The sums are exact in any case; of the last
 * BK_PROFILE_STEPS steps the single launches are kept for a trace, BK_PROFILE_KEPT of each at
 * most.
 *
 * Of several ranks the operations between them are kept too, as they were waited for. Their times
 * are the host's clock's, which the transport reads; those of the ops are events of the device,
 * counted from the one at the begin of the step. The two are laid beside each other there: the
 * clock is read right before that event is recorded, on a device that has nothing to do, so that
 * they are apart by the time that a device takes for one event. On host memory both are the same
 * clock.
 *
 * profile.c records, profile_trace.c writes. */
#ifndef BK_PROFILE_H
#define BK_PROFILE_H

#include <birkhoff/profile.h>

#include "comm/comm.h"
#include "models/program.h"

#define BK_PROFILE_POOL 4096
#define BK_PROFILE_STEPS 3
#define BK_PROFILE_KEPT 32768

typedef struct bk_profile_record {
  const char *kernel; /* its row's name, "composed" for a composed op */
  double flops, bytes;
  double begin, seconds; /* begin: since the begin of the step */
  int first, last;       /* events, until the times are read */
  int sublayer;          /* -1: none */
  uint16_t op, phase;    /* bk_op, bk_phase */
} bk_profile_record;

typedef struct bk_profile_figures {
  double calls, seconds, flops, bytes;
} bk_profile_figures;

/* What one kernel of one op, or one phase, took: `now` in the step in progress, `sum` in the
 * steps that count. */
typedef struct bk_profile_row {
  int id; /* bk_op or bk_phase */
  const char *kernel;
  bk_profile_figures now, sum;
} bk_profile_row;

/* What goes between ranks in a step. */
typedef enum bk_profile_talk_kind {
  BK_TALK_REDUCE_SCATTER,
  BK_TALK_ALL_REDUCE,
  BK_TALK_ALL_GATHER,
  BK_TALK_EXCHANGE, /* between the stages of a pipeline */
  BK_TALK_COUNT
} bk_profile_talk_kind;

/* One operation between ranks. `at` and `seconds` are its part of the time in which one was under
 * way: from its begin, or from the end of those before it, so that parts do not overlap. */
typedef struct bk_profile_talk_record {
  bk_profile_talk_kind kind;
  int bucket;         /* -1: none */
  double at, seconds; /* at: since the creation of the profile */
  bk_comm_times times;
} bk_profile_talk_record;

typedef struct bk_profile_talk_row {
  bk_profile_exchange now, sum;
} bk_profile_talk_row;

typedef struct bk_profile_step {
  int64_t number; /* 1-based count of profiled steps; 0: nothing whole in here */
  double at;      /* seconds from the creation of the profile to the begin of the step */
  double seconds;
  bk_profile_record *records; /* [BK_PROFILE_KEPT] */
  int count;
  int64_t lost;                  /* launches that found no room */
  bk_profile_talk_record *talks; /* [talks_capacity of the profile] */
  int n_talks;
  bk_profile_exchange scatter; /* the sums of its reduce_scatters */
} bk_profile_step;

struct bk_profile {
  bk_model *model;
  bk_event **events; /* two a launch, then begin and end of the step */
  bk_profile_record *pool;
  /* in use; chain: the event that ended the last op, -1 where the next one may not begin with it */
  int n_pool, n_events, chain;
  bool shares;         /* the end of an op is the begin of the next */
  bool open;           /* within a profiled step */
  bool paused;         /* steps that begin now are not profiled */
  double origin;       /* of the clock */
  bk_profile_row *ops; /* in the order in which they came up */
  size_t n_ops, ops_capacity;
  bk_profile_row phases[BK_PHASE_COUNT];
  bk_profile_talk_row talks[BK_TALK_COUNT];
  int talks_capacity;  /* of a step; 0: one rank */
  double talked;       /* until when operations are in the parts of time before */
  double step_seconds; /* summed over the steps that count */
  int64_t done;        /* profiled steps that came to their end */
  bk_profile_step steps[BK_PROFILE_STEPS]; /* step `number` in [(number - 1) % BK_PROFILE_STEPS] */
};

/* Steps that count in the sums: the first is left out as soon as there are others, because it
 * warms up. */
static inline int64_t bk_profile_counted(const bk_profile *p) {
  return p->done > 1 ? p->done - 1 : p->done;
}
/* What a run is given: NULL outside of profiled steps. */
static inline bk_profile *bk_profile_of(const bk_model *m) {
  return m->profile && m->profile->open ? m->profile : NULL;
}

/* For bk_step_begin, after its sync; for bk_step_end, before and after its sync. */
bk_status bk_profile_step_begin(bk_profile *profile);
bk_status bk_profile_step_close(bk_profile *profile);
bk_status bk_profile_step_read(bk_profile *profile);
/* For bk_program_run, in the place of the plain launch of call `at`. */
bk_status bk_profile_launch(bk_profile *profile, const bk_program *program, int at);
/* For parallel.c, after an operation was waited for, in the order in which they began. */
void bk_profile_talk(bk_profile *profile, bk_profile_talk_kind kind, int bucket,
                     const bk_comm_times *times);
const char *bk_profile_talk_name(bk_profile_talk_kind kind);

#endif
