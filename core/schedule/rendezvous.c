/* Proves that the lists of a schedule end where ranks wait for each other. It runs them without
 * times: what is possible does not depend on who is first, because each message has one sender and
 * one receiver and each rank does its records in its order.
 *
 * A message is *received* once its receiver has posted a receive for it. A receiver posts receives
 * from a peer in the order in which the peer sends, but holds at most BK_SCHEDULE_AHEAD messages
 * for a chunk and direction that no record has taken yet. A sender goes on with a message that is
 * not received yet; it must be received before the sender's next one to the same peer begins. Of
 * the two messages of an FB the gradient goes first, which is made before weights' gradients. */
#include "schedule/schedule.h"

#include <stdio.h>

typedef struct place {
  int at;   /* the record */
  int part; /* 0: before it; 1 and 2: before its gradient and its output is sent */
} place;

typedef struct run {
  bk_context *ctx;
  const bk_schedule_whole *w;
  const bk_schedule *s;
  place *place;       /* [ranks] */
  int *held;          /* [ports]: messages that are received and not taken */
  int64_t *under_way; /* [ports], of lanes: the receiving port of a message, -1: there is none */
  bk_schedule_queue queue;
} run;

static const bk_schedule_record *record_of(const run *x, int rank) {
  return &x->s->rank[rank].records[x->place[rank].at];
}

/* The port that a pass of a record receives by, -1: it needs no message of another rank. */
static int64_t receiving(const run *x, int rank, const bk_schedule_record *r, int direction) {
  int peer = r->receive[direction].peer;
  if (peer < 0 || peer == rank) return -1;
  return (int64_t)bk_schedule_port_of(x->s, rank, direction ? r->back_chunk : r->chunk, direction);
}

/* The message under way on a lane is received if there is room for it. */
static bool settle(run *x, int64_t *under_way) {
  if (*under_way < 0) return true;
  if (x->held[*under_way] >= BK_SCHEDULE_AHEAD) return false;
  x->held[*under_way]++;
  *under_way = -1;
  return true;
}

static int64_t *lane_of(const run *x, int rank, int chunk, int direction) {
  return &x->under_way[x->w->port[bk_schedule_port_of(x->s, rank, chunk, direction)].lane];
}

/* Takes the messages of a record, all or none. */
static bool take(run *x, int rank) {
  const bk_schedule_record *r = record_of(x, rank);
  for (int d = 0; d < 2; d++) {
    int64_t port = receiving(x, rank, r, d);
    if (port >= 0 && x->held[port] == 0) return false;
  }
  for (int d = 0; d < 2; d++) {
    int64_t port = receiving(x, rank, r, d);
    if (port < 0) continue;
    x->held[port]--;
    settle(x, lane_of(x, r->receive[d].peer, r->receive[d].peer_chunk, d));
    bk_schedule_queue_add(&x->queue, r->receive[d].peer);
  }
  return true;
}

static bool send(run *x, int rank, int direction) {
  const bk_schedule_record *r = record_of(x, rank);
  const bk_schedule_message *m = &r->send[direction];
  if (m->peer < 0 || m->peer == rank) return true;
  int64_t *lane = lane_of(x, rank, direction ? r->back_chunk : r->chunk, direction);
  if (!settle(x, lane)) return false;
  *lane = (int64_t)bk_schedule_port_of(x->s, m->peer, m->peer_chunk, direction);
  settle(x, lane);
  bk_schedule_queue_add(&x->queue, m->peer);
  return true;
}

/* Goes on with a rank as far as it can. */
static void advance(run *x, int rank) {
  place *p = &x->place[rank];
  while (p->at < x->s->rank[rank].n_records) {
    if (!(p->part == 0 ? take(x, rank) : send(x, rank, 2 - p->part))) return;
    if (++p->part == 3) *p = (place){.at = p->at + 1};
  }
}

/* ---- who waits for whom ---- */

/* The message that a rank waits for, its own or that of a peer. */
static const bk_schedule_message *awaited(const run *x, int rank, int *direction) {
  const bk_schedule_record *r = record_of(x, rank);
  int part = x->place[rank].part;
  *direction = part ? 2 - part : 0;
  if (part) return &r->send[*direction];
  int64_t port = receiving(x, rank, r, 0);
  if (port < 0 || x->held[port]) *direction = 1;
  return &r->receive[*direction];
}

static int waits_for(const run *x, int rank) {
  int direction;
  return awaited(x, rank, &direction)->peer;
}

#define WAIT_TEXT 200
static char *wait_text(const run *x, int rank, char text[WAIT_TEXT]) {
  char record[BK_SCHEDULE_RECORD_TEXT];
  int direction;
  const bk_schedule_message *m = awaited(x, rank, &direction);
  int used = snprintf(text, WAIT_TEXT, "rank %d, %s record %d, %s, waits for rank %d ", rank,
                      x->place[rank].part ? "after" : "before", x->place[rank].at + 1,
                      bk_schedule_record_text(record_of(x, rank), record), m->peer);
  const char *what = m->gradient ? "gradient" : "output";
  if (x->place[rank].part)
    snprintf(text + used, WAIT_TEXT - (size_t)used,
             "to receive what it sent before the %s of micro-batch %d (%d are held there)", what,
             m->micro, BK_SCHEDULE_AHEAD);
  else
    snprintf(text + used, WAIT_TEXT - (size_t)used, "to send the %s of micro-batch %d", what,
             m->micro);
  return text;
}

/* A rank that waits waits for one that waits, too, so that there is a circle; it is reached after
 * as many steps as there are ranks. */
static bk_status fail_circle(const run *x, int rank) {
  char one[WAIT_TEXT], other[WAIT_TEXT];
  for (int i = 0; i < x->s->ranks; i++) rank = waits_for(x, rank);
  return bk_fail(x->ctx, BK_ERR_DATA,
                 "%s: the lists never end: %s; %s; no rank may wait for one that waits for it",
                 x->w->origin, wait_text(x, rank, one), wait_text(x, waits_for(x, rank), other));
}

static bk_status run_all(run *x) {
  int rank;
  while (bk_schedule_queue_take(&x->queue, &rank)) advance(x, rank);
  for (rank = 0; rank < x->s->ranks; rank++)
    if (x->place[rank].at < x->s->rank[rank].n_records) return fail_circle(x, rank);
  return BK_OK;
}

bk_status bk_schedule_check_ends(bk_context *ctx, const bk_schedule_whole *whole) {
  const bk_schedule *s = &whole->schedule;
  size_t ports = bk_schedule_port_of(s, s->ranks, 0, 0);
  run x = {.ctx = ctx, .w = whole, .s = s};
  x.place = bk_alloc_array(ctx, (size_t)s->ranks, sizeof *x.place);
  x.held = bk_alloc_array(ctx, ports, sizeof *x.held);
  x.under_way = bk_alloc_array(ctx, ports, sizeof *x.under_way);
  bk_status status = bk_schedule_queue_init(ctx, &x.queue, s->ranks);
  if (!x.place || !x.held || !x.under_way) status = BK_ERR_MEMORY;
  for (size_t i = 0; i < ports && status == BK_OK; i++) x.under_way[i] = -1;
  if (status == BK_OK) status = run_all(&x);
  bk_schedule_queue_fini(ctx, &x.queue);
  bk_free(ctx, x.under_way);
  bk_free(ctx, x.held);
  bk_free(ctx, x.place);
  return status;
}
