/* Schedules as plain data: how they come to be, are filled and go; see schedule.h. */
#include "schedule/schedule.h"

#include <stdio.h>
#include <string.h>

/* The structs of these functions are this file's own, so that the casts are safe. */
static bk_schedule_whole *whole_of(bk_schedule *schedule) { return (bk_schedule_whole *)schedule; }

/* Whether the numbers are within the limits, without any product that could overflow. */
static bk_status take_sizes(bk_context *ctx, const char *name, const bk_schedule *s) {
  if (s->ranks < 1 || s->ranks > BK_SCHEDULE_RANKS)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "schedule %s: the number of ranks is 1 to %d; it is %d",
                   name, BK_SCHEDULE_RANKS, s->ranks);
  if (s->micro_batches < 1 || s->micro_batches > BK_SCHEDULE_MICRO)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "schedule %s: the number of micro-batches is 1 to %d; it is %d", name,
                   BK_SCHEDULE_MICRO, s->micro_batches);
  if (s->chunks < 1 || s->chunks > BK_SCHEDULE_CHUNKS)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "schedule %s: a rank holds 1 to %d chunks; it has %d",
                   name, BK_SCHEDULE_CHUNKS, s->chunks);
  if (s->streams < 1 || s->ranks * s->chunks != s->stages * s->streams)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "schedule %s: %d ranks of %d chunks cannot hold %d stages of %d streams once "
                   "each",
                   name, s->ranks, s->chunks, s->stages, s->streams);
  if (s->micro_batches % s->streams)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "schedule %s: the number of micro-batches is a multiple of that of streams, %d; "
                   "it is %d",
                   name, s->streams, s->micro_batches);
  int64_t passes = 2 * (int64_t)s->stages * s->micro_batches;
  if (passes > BK_SCHEDULE_RECORDS)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "schedule %s: %d stages and %d micro-batches make %lld passes, more than %d",
                   name, s->stages, s->micro_batches, (long long)passes, BK_SCHEDULE_RECORDS);
  return BK_OK;
}

bk_status bk_schedule_new(bk_context *ctx, const char *name, int ranks, int chunks, int stages,
                          int streams, int micro_batches, bk_schedule **schedule) {
  bk_schedule sizes = {.ranks = ranks,
                       .chunks = chunks,
                       .stages = stages,
                       .streams = streams,
                       .micro_batches = micro_batches};
  BK_TRY(take_sizes(ctx, name, &sizes));
  bk_schedule_whole *w = bk_alloc(ctx, sizeof *w);
  if (!w) return BK_ERR_MEMORY;
  size_t held = (size_t)stages * (size_t)streams;
  w->schedule = sizes;
  w->schedule.name = bk_strdup(ctx, name);
  w->origin = bk_format(ctx, "schedule %s", name);
  w->schedule.rank = bk_alloc_array(ctx, (size_t)ranks, sizeof *w->schedule.rank);
  w->room = bk_alloc_array(ctx, (size_t)ranks, sizeof *w->room);
  w->holder = bk_alloc_array(ctx, held, sizeof *w->holder);
  if (!w->schedule.name || !w->origin || !w->schedule.rank || !w->room || !w->holder) {
    bk_schedule_destroy(ctx, &w->schedule);
    return BK_ERR_MEMORY;
  }
  for (size_t i = 0; i < held; i++) w->holder[i] = -1;
  *schedule = &w->schedule;
  return BK_OK;
}

void bk_schedule_destroy(bk_context *ctx, bk_schedule *schedule) {
  if (!schedule) return;
  bk_schedule_whole *w = whole_of(schedule);
  for (int r = 0; schedule->rank && r < schedule->ranks; r++)
    bk_free(ctx, schedule->rank[r].records);
  bk_free(ctx, w->port);
  bk_free(ctx, w->holder);
  bk_free(ctx, w->room);
  bk_free(ctx, schedule->rank);
  bk_free(ctx, (void *)w->origin);
  bk_free(ctx, (void *)schedule->name);
  bk_free(ctx, w);
}

bk_status bk_schedule_set_origin(bk_context *ctx, bk_schedule *schedule, const char *origin) {
  char *copy = bk_strdup(ctx, origin);
  if (!copy) return BK_ERR_MEMORY;
  bk_free(ctx, (void *)whole_of(schedule)->origin);
  whole_of(schedule)->origin = copy;
  return BK_OK;
}

bk_status bk_schedule_add(bk_context *ctx, bk_schedule *schedule, int rank,
                          const bk_schedule_record *record) {
  bk_schedule_rank *r = &schedule->rank[rank];
  size_t needed = (size_t)r->n_records + 1;
  if (needed > BK_SCHEDULE_RECORDS)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: rank %d has more than %d records",
                   whole_of(schedule)->origin, rank, BK_SCHEDULE_RECORDS);
  BK_TRY(bk_grow(ctx, (void **)&r->records, &whole_of(schedule)->room[rank], needed,
                 sizeof *r->records));
  r->records[r->n_records++] = *record;
  return BK_OK;
}

int bk_schedule_holder(const bk_schedule *schedule, int stream, int stage, int *chunk) {
  const bk_schedule_whole *w = (const bk_schedule_whole *)schedule;
  int at = w->holder[(size_t)stream * (size_t)schedule->stages + (size_t)stage];
  *chunk = at % schedule->chunks;
  return at / schedule->chunks;
}

char *bk_schedule_record_text(const bk_schedule_record *r, char text[BK_SCHEDULE_RECORD_TEXT]) {
  static const char letter[BK_WORKS] = {'F', 'B', 'I', 'W', 'F'};
  if (r->kind == BK_WORK_FB)
    snprintf(text, BK_SCHEDULE_RECORD_TEXT, "(%dF%d;%dB%d)", r->chunk, r->micro, r->back_chunk,
             r->back_micro);
  else snprintf(text, BK_SCHEDULE_RECORD_TEXT, "%d%c%d", r->chunk, letter[r->kind], r->micro);
  return text;
}

/* ---- the queue ---- */

bk_status bk_schedule_queue_init(bk_context *ctx, bk_schedule_queue *queue, int ranks) {
  *queue = (bk_schedule_queue){.rank = bk_alloc_array(ctx, (size_t)ranks, sizeof *queue->rank),
                               .queued = bk_alloc_array(ctx, (size_t)ranks, sizeof *queue->queued),
                               .ranks = ranks};
  if (!queue->rank || !queue->queued) return BK_ERR_MEMORY;
  for (int r = 0; r < ranks; r++) bk_schedule_queue_add(queue, r);
  return BK_OK;
}

void bk_schedule_queue_fini(bk_context *ctx, bk_schedule_queue *queue) {
  bk_free(ctx, queue->rank);
  bk_free(ctx, queue->queued);
}

void bk_schedule_queue_add(bk_schedule_queue *queue, int rank) {
  if (queue->queued[rank]) return;
  queue->queued[rank] = true;
  queue->rank[(queue->first + queue->count++) % queue->ranks] = rank;
}

bool bk_schedule_queue_take(bk_schedule_queue *queue, int *rank) {
  if (!queue->count) return false;
  *rank = queue->rank[queue->first];
  queue->queued[*rank] = false;
  queue->first = (queue->first + 1) % queue->ranks;
  queue->count--;
  return true;
}
