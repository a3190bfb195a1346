/* The insides of schedules (birkhoff/schedule.h): names.c makes the lists of those that have a
 * name, check.c completes and proves any list, text.c reads and writes the grammar and JSON,
 * simulate.c runs one in thought. */
#ifndef BK_SCHEDULE_H
#define BK_SCHEDULE_H

#include <birkhoff/schedule.h>

#include "base/base.h"

/* An empty schedule: lists are to be filled with bk_schedule_add, chunks by the caller. */
bk_status bk_schedule_new(bk_context *ctx, const char *name, int ranks, int chunks, int stages,
                          int streams, int micro_batches, bk_schedule **schedule);
bk_status bk_schedule_add(bk_context *ctx, bk_schedule *schedule, int rank,
                          const bk_schedule_record *record);

/* Fills in the messages of all records, slots and peaks, and proves:
 *   each stage of each stream is held once, and the stages of all streams alike
 *   each micro-batch goes once forward and once backward (B or I) through each chunk, forward
 *     first; each I has its W later, and the W of a rank come in the order of its I
 *   on each ordered pair of ranks what one sends in its order can be taken by the other: of one
 *     chunk and direction in the same order
 *   the lists end, where a rank that sends waits until its message before to the same peer was
 *     received, and receives are posted BK_SCHEDULE_AHEAD messages ahead for each edge
 *   F and B of an FB belong to different chunks
 * A message names rank, record and what would be right. */
bk_status bk_schedule_check(bk_context *ctx, bk_schedule *schedule);
#define BK_SCHEDULE_AHEAD 2

#endif
