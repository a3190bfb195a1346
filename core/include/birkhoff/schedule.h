/* Pipeline schedules: who does what in a training step, in which order, as plain data.
 *
 * A model of L layers is cut into *stages*. A *schedule* says which stages each rank of a pipeline
 * holds (its *chunks*), and gives each rank a list of records: forward and backward passes of one
 * micro-batch through one chunk. A list follows from the name of the schedule, the number of ranks
 * and that of micro-batches alone, so that every rank can work out all lists.
 *
 *   sequential   one rank: F and B of one micro-batch after the other
 *   1f1b         one forward, one backward (PipeDream-Flush, arXiv 2104.04473)
 *   zb1p         the same with weight gradients put off (ZB-H1, arXiv 2401.10241)
 *   dualpipe     two streams that enter at both ends; each stage is held by two ranks
 *                (arXiv 2412.19437); the number of ranks is even
 *   dualpipev    the same folded: one stream, 2 stages a rank, from the first rank to the last and
 *                back
 *
 * A *stream* is a sequence of micro-batches that enter at stage 0 and leave at the last stage. The
 * micro-batches of a step are numbered through, stream after stream; within a stream from 0. */
#ifndef BIRKHOFF_SCHEDULE_H
#define BIRKHOFF_SCHEDULE_H

#include <birkhoff/context.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum bk_work {
  BK_WORK_F,  /* forward */
  BK_WORK_B,  /* backward: gradients of activations and of parameters */
  BK_WORK_I,  /* backward: gradients of activations alone */
  BK_WORK_W,  /* the gradients of parameters that an I has put off; of a chunk the oldest first */
  BK_WORK_FB, /* F of one chunk and B of another, piece by piece in turn */
  BK_WORKS
} bk_work;

/* What crosses an edge between two stages: streams on their way forward, or their gradient. */
typedef struct bk_schedule_message {
  int peer;  /* a rank; the own rank: handed over there; -1: there is no such message */
  int edge;  /* between stages `edge` and `edge` + 1 */
  int micro; /* in its stream */
  int8_t stream, peer_chunk; /* the chunk of the peer that it comes from or goes to */
  bool gradient;
} bk_schedule_message;

typedef struct bk_schedule_record {
  bk_work kind;
  int chunk, micro;           /* of FB those of the forward pass */
  int back_chunk, back_micro; /* FB: those of the backward pass; else as chunk and micro */
  /* Index 0 is the forward pass's and 1 the backward pass's. A W has no messages. */
  bk_schedule_message receive[2], send[2];
} bk_schedule_record;

/* A stage of a stream, as a rank holds it. */
typedef struct bk_schedule_chunk {
  int stage, stream;
  int slots; /* the most micro-batches whose activations it holds at once */
} bk_schedule_chunk;

#define BK_SCHEDULE_CHUNKS 8 /* the most that a rank can hold */

typedef struct bk_schedule_rank {
  bk_schedule_chunk chunks[BK_SCHEDULE_CHUNKS];
  bk_schedule_record *records;
  int n_records;
  int peak;      /* the most micro-batches whose activations all its chunks hold at once */
  bool puts_off; /* its list has I and W */
} bk_schedule_rank;

/* How many messages a rank takes ahead of need, for each chunk and direction. */
#define BK_SCHEDULE_AHEAD 2

/* To be read only. All schedules that the functions below return have been checked. */
typedef struct bk_schedule {
  const char *name;
  int ranks, chunks; /* chunks of each rank */
  int stages, streams;
  int micro_batches;      /* of all streams; each has the same number */
  bk_schedule_rank *rank; /* [ranks] */
} bk_schedule;

/* BK_ERR_ARGUMENT where there is no such schedule, or none for these numbers: the message says
 * which would do. To be destroyed by the caller. */
BK_API bk_status bk_schedule_create(bk_context *ctx, const char *name, int ranks, int micro_batches,
                                    bk_schedule **schedule);
/* From a JSON file, as `birkhoff plan --schedule NAME --json` writes it (doc/files.md). The file is
 * not trusted: BK_ERR_DATA with what the check below has found. */
BK_API bk_status bk_schedule_read(bk_context *ctx, const char *path, bk_schedule **schedule);
BK_API void bk_schedule_destroy(bk_context *ctx, bk_schedule *schedule); /* NULL is allowed */
/* The names of the schedules that there are, NULL at the end. */
BK_API const char *const *bk_schedule_names(void);
/* The rank that holds a stage of a stream, and the number of the chunk there. */
BK_API int bk_schedule_holder(const bk_schedule *schedule, int stream, int stage, int *chunk);
/* A rank's list as a line in the grammar of doc/files.md: "0F0 1F0 (0F1;1B0) 1I1 1W1". bk_free;
 * NULL: out of memory. */
BK_API char *bk_schedule_text(bk_context *ctx, const bk_schedule *schedule, int rank);

/* ---- time ---- */

/* What one micro-batch costs in one stage, in any unit of time. */
typedef struct bk_stage_costs {
  double f, b, w; /* F, B, W; I is b - w */
} bk_stage_costs;

typedef struct bk_schedule_costs {
  const bk_stage_costs *stage; /* [stages] */
  /* An FB takes the F and the B of its stages, less `overlap` of the smaller of the two: 0 one
   * after the other, 1 the smaller is hidden. With fb > 0 every FB takes fb. */
  double overlap, fb;
  /* A message takes `latency` and then `transfer`, during which its link (one for each ordered pair
   * of ranks) is busy; it begins when the record that makes it ends, unless its link is busy. It
   * takes no time of the ranks themselves. */
  double latency, transfer;
  /* Where a rank's list has I, so that gradients of parameters are made by themselves, they are the
   * last that a B or FB does, and its messages leave before them. The trainer does it so. */
  bool weights_last;
} bk_schedule_costs;

typedef struct bk_schedule_span {
  double begin, end;
} bk_schedule_span;

/* What a simulated step is like. */
typedef struct bk_timeline {
  double time;              /* from its beginning to the end of the last record */
  double bubble;            /* idle time of the rank that has the most */
  double *busy;             /* [ranks] */
  double sent, exposed;     /* time of all messages; of it, the time in which a receiver waited */
  bk_schedule_span **spans; /* [ranks][n_records] */
  /* [ranks][n_records][2]: when the outputs and the gradients of its records are on their links;
   * where there is no such message begin and end are both 0 */
  bk_schedule_span **messages;
} bk_timeline;

BK_API bk_status bk_schedule_simulate(bk_context *ctx, const bk_schedule *schedule,
                                      const bk_schedule_costs *costs, bk_timeline **timeline);
BK_API void bk_timeline_destroy(bk_context *ctx, bk_timeline *timeline); /* NULL is allowed */

#ifdef __cplusplus
}
#endif
#endif
