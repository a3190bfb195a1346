/* The insides of schedules (birkhoff/schedule.h): names.c makes the lists of those that have a
 * name, check.c and rendezvous.c complete and prove any list, text.c and read.c write and read the
 * grammar and JSON, simulate.c runs one in thought. */
#ifndef BK_SCHEDULE_H
#define BK_SCHEDULE_H

#include <birkhoff/schedule.h>

#include "base/base.h"

/* Larger schedules are refused, wherever they come from. */
#define BK_SCHEDULE_RANKS 16384
#define BK_SCHEDULE_MICRO (1 << 20)
#define BK_SCHEDULE_RECORDS (1 << 26) /* of all ranks */

/* Where the messages of a chunk in one direction come from and go to: they differ in their number
 * `micro` alone. */
typedef struct bk_schedule_port {
  bk_schedule_message receive, send;
  int lane; /* the first port of the rank that sends to the same peer: they share a link */
} bk_schedule_port;

/* A schedule with what only this folder knows of it. */
typedef struct bk_schedule_whole {
  bk_schedule schedule; /* first, so that a pointer to one is a pointer to the other */
  const char *origin;   /* what messages begin with */
  size_t *room;         /* [ranks]: for records */
  int *holder;          /* [streams][stages]: rank * chunks + chunk; -1: none yet */
  /* [ranks][chunks][2], by bk_schedule_port_of. The check makes them. */
  bk_schedule_port *port;
} bk_schedule_whole;

/* `direction` is 0 for forward and 1 for backward passes. */
static inline size_t bk_schedule_port_of(const bk_schedule *s, int rank, int chunk, int direction) {
  return 2 * ((size_t)rank * (size_t)s->chunks + (size_t)chunk) + (size_t)direction;
}
/* Whether a record has a pass of the direction, and of which chunk and micro-batch. */
static inline bool bk_schedule_pass(const bk_schedule_record *r, int direction, int *chunk,
                                    int *micro) {
  *chunk = direction ? r->back_chunk : r->chunk;
  *micro = direction ? r->back_micro : r->micro;
  if (r->kind == BK_WORK_FB) return true;
  return direction ? r->kind == BK_WORK_B || r->kind == BK_WORK_I : r->kind == BK_WORK_F;
}

/* A record in the grammar of doc/files.md. Returns text. */
#define BK_SCHEDULE_RECORD_TEXT 64
char *bk_schedule_record_text(const bk_schedule_record *record, char text[BK_SCHEDULE_RECORD_TEXT]);
/* The record that a line has at *at, which then moves behind it and the blanks that follow. False:
 * there is none; *at is as it was. */
bool bk_schedule_record_parse(const char **at, bk_schedule_record *record);

/* Ranks that can go on, each once at most, in the order in which they were added. */
typedef struct bk_schedule_queue {
  int *rank;
  bool *queued;
  int ranks, first, count;
} bk_schedule_queue;
bk_status bk_schedule_queue_init(bk_context *ctx, bk_schedule_queue *queue, int ranks); /* all */
void bk_schedule_queue_fini(bk_context *ctx, bk_schedule_queue *queue);
void bk_schedule_queue_add(bk_schedule_queue *queue, int rank);
bool bk_schedule_queue_take(bk_schedule_queue *queue, int *rank); /* false: there is none */

/* An empty schedule: lists are to be filled with bk_schedule_add, chunks by the caller. Messages
 * of the check begin with `origin`, a file (BK_ERR_DATA where the numbers cannot be), or where it
 * is NULL with the name (BK_ERR_ARGUMENT). */
bk_status bk_schedule_new(bk_context *ctx, const char *name, const char *origin, int ranks,
                          int chunks, int streams, int micro_batches, bk_schedule **schedule);
bk_status bk_schedule_add(bk_context *ctx, bk_schedule *schedule, int rank,
                          const bk_schedule_record *record);

/* Fills in the messages of all records, slots, peaks and puts_off, and proves:
 *   each stage of each stream is held once, and the stages of all streams alike
 *   each micro-batch goes once forward and once backward (B or I) through each chunk, forward
 *     first; each I has its W later, and the W of a chunk come in the order of its I
 *   on each ordered pair of ranks what one sends in its order can be taken by the other: of one
 *     chunk and direction in the same order
 *   the lists end, where a rank that sends waits until its message before to the same peer was
 *     received, and receives are posted BK_SCHEDULE_AHEAD messages ahead for each edge
 *   F and B of an FB belong to different chunks
 * A message names rank, record and what would be right. */
bk_status bk_schedule_check(bk_context *ctx, bk_schedule *schedule);
/* The last part of it: BK_ERR_DATA where the lists do not end. */
bk_status bk_schedule_check_ends(bk_context *ctx, const bk_schedule_whole *whole);

#endif
