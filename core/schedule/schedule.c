/* Schedules as plain data: how they come to be, are filled and go; see schedule.h. */
#include "schedule/schedule.h"

/* The structs of these functions are this file's own, so that the casts are safe. */
static bk_schedule_whole *whole_of(bk_schedule *schedule) { return (bk_schedule_whole *)schedule; }

/* Whether the numbers are within the limits. No product overflows, in the order of these lines. */
static bk_status take_sizes(bk_context *ctx, const bk_schedule_whole *w, bk_status status) {
  const bk_schedule *s = &w->schedule;
  if (s->ranks < 1 || s->ranks > BK_SCHEDULE_RANKS)
    return bk_fail(ctx, status, "%s: the number of ranks is 1 to %d; it is %d", w->origin,
                   BK_SCHEDULE_RANKS, s->ranks);
  if (s->micro_batches < 1 || s->micro_batches > BK_SCHEDULE_MICRO)
    return bk_fail(ctx, status, "%s: the number of micro-batches is 1 to %d; it is %d", w->origin,
                   BK_SCHEDULE_MICRO, s->micro_batches);
  if (s->chunks < 1 || s->chunks > BK_SCHEDULE_CHUNKS)
    return bk_fail(ctx, status, "%s: a rank holds 1 to %d chunks; it has %d", w->origin,
                   BK_SCHEDULE_CHUNKS, s->chunks);
  if (s->streams < 1 || s->ranks * s->chunks % s->streams)
    return bk_fail(ctx, status,
                   "%s: each stream has the same number of stages; %d ranks of %d chunks cannot be "
                   "divided among %d streams",
                   w->origin, s->ranks, s->chunks, s->streams);
  if (s->micro_batches % s->streams)
    return bk_fail(ctx, status,
                   "%s: the number of micro-batches is a multiple of that of streams, %d; it is %d",
                   w->origin, s->streams, s->micro_batches);
  int64_t passes = 2 * (int64_t)s->ranks * s->chunks / s->streams * s->micro_batches;
  if (passes > BK_SCHEDULE_RECORDS)
    return bk_fail(ctx, status,
                   "%s: %d micro-batches on %d ranks make %lld passes, more than the limit of %d",
                   w->origin, s->micro_batches, s->ranks, (long long)passes, BK_SCHEDULE_RECORDS);
  return BK_OK;
}

static bk_status fill(bk_context *ctx, bk_schedule_whole *w) {
  bk_schedule *s = &w->schedule;
  size_t held = (size_t)s->ranks * (size_t)s->chunks, ranks = (size_t)s->ranks;
  s->stages = s->ranks * s->chunks / s->streams;
  s->rank = bk_alloc_array(ctx, ranks, sizeof *s->rank);
  w->room = bk_alloc_array(ctx, ranks, sizeof *w->room);
  w->holder = bk_alloc_array(ctx, held, sizeof *w->holder);
  if (!s->rank || !w->room || !w->holder) return BK_ERR_MEMORY;
  for (size_t i = 0; i < held; i++) w->holder[i] = -1;
  return BK_OK;
}

bk_status bk_schedule_new(bk_context *ctx, const char *name, const char *origin, int ranks,
                          int chunks, int streams, int micro_batches, bk_schedule **schedule) {
  bk_schedule_whole *w = bk_alloc(ctx, sizeof *w);
  if (!w) return BK_ERR_MEMORY;
  w->schedule = (bk_schedule){.name = bk_strdup(ctx, name),
                              .ranks = ranks,
                              .chunks = chunks,
                              .streams = streams,
                              .micro_batches = micro_batches};
  w->origin = origin ? bk_strdup(ctx, origin) : bk_format(ctx, "schedule %s", name);
  bk_status status = w->schedule.name && w->origin ? BK_OK : BK_ERR_MEMORY;
  if (status == BK_OK) status = take_sizes(ctx, w, origin ? BK_ERR_DATA : BK_ERR_ARGUMENT);
  if (status == BK_OK) status = fill(ctx, w);
  if (status == BK_OK) *schedule = &w->schedule;
  else bk_schedule_destroy(ctx, &w->schedule);
  return status;
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

bk_status bk_schedule_add(bk_context *ctx, bk_schedule *schedule, int rank,
                          const bk_schedule_record *record) {
  bk_schedule_rank *r = &schedule->rank[rank];
  BK_TRY(bk_grow(ctx, (void **)&r->records, &whole_of(schedule)->room[rank],
                 (size_t)r->n_records + 1, sizeof *r->records));
  r->records[r->n_records++] = *record;
  return BK_OK;
}

int bk_schedule_holder(const bk_schedule *schedule, int stream, int stage, int *chunk) {
  const bk_schedule_whole *w = (const bk_schedule_whole *)schedule;
  int at = w->holder[(size_t)stream * (size_t)schedule->stages + (size_t)stage];
  *chunk = at % schedule->chunks;
  return at / schedule->chunks;
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
