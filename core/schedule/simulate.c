/* Runs a schedule in thought: when each record begins and ends if passes cost what they are said to
 * cost; see birkhoff/schedule.h. Each message has one sender and one receiver, and a link carries
 * messages in the order in which its sender makes them, so that ranks can be looked at one after
 * the other, in any order in which what is needed is known. */
#include "schedule/schedule.h"

#include <math.h>
#include <string.h>

typedef struct simulation {
  const bk_schedule_whole *w;
  const bk_schedule *s;
  const bk_schedule_costs *costs;
  bk_timeline *t;
  int micro;         /* of each stream */
  int *at;           /* [ranks]: the record that is next */
  double *clock;     /* [ranks]: the end of the one before */
  double *arrival;   /* [ports][micro]: of the messages to a port, in their order */
  int *sent, *taken; /* [ports]: messages to it */
  double *link_free; /* [ports], of lanes */
  bk_schedule_queue queue;
} simulation;

/* What the timeline hands out and what only this file knows of it. */
typedef struct whole_timeline {
  bk_timeline timeline; /* first: see whole_of in schedule.c */
  bk_schedule_span *all, *all_messages;
} whole_timeline;

/* ---- costs ---- */

static bool is_cost(double x) { return isfinite(x) && x >= 0; }

static bk_status take_costs(bk_context *ctx, const bk_schedule *s, const bk_schedule_costs *c) {
  for (int i = 0; i < s->stages; i++) {
    const bk_stage_costs *x = &c->stage[i];
    if (!is_cost(x->f) || !is_cost(x->b) || !is_cost(x->w) || x->w > x->b)
      return bk_fail(ctx, BK_ERR_ARGUMENT,
                     "costs of stage %d: F %g, B %g, W %g; each is 0 or more, and W is a part of B",
                     i, x->f, x->b, x->w);
  }
  if (!is_cost(c->fb) || !is_cost(c->latency) || !is_cost(c->transfer))
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "costs: FB %g, latency %g, transfer %g; each must be 0 or more", c->fb,
                   c->latency, c->transfer);
  if (!is_cost(c->overlap) || c->overlap > 1)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "costs: the overlap of an FB is 0 to 1; it is %g",
                   c->overlap);
  return BK_OK;
}

static const bk_stage_costs *stage_costs(const simulation *m, int rank, int chunk) {
  return &m->costs->stage[m->s->rank[rank].chunks[chunk].stage];
}

static double cost_of(const simulation *m, int rank, const bk_schedule_record *r) {
  const bk_stage_costs *c = stage_costs(m, rank, r->chunk);
  if (r->kind == BK_WORK_F) return c->f;
  if (r->kind == BK_WORK_B) return c->b;
  if (r->kind == BK_WORK_I) return c->b - c->w;
  if (r->kind == BK_WORK_W) return c->w;
  double b = stage_costs(m, rank, r->back_chunk)->b;
  return m->costs->fb > 0 ? m->costs->fb : c->f + b - m->costs->overlap * fmin(c->f, b);
}

/* ---- messages ---- */

static bool comes_from_afar(const bk_schedule_message *m, int rank) {
  return m->peer >= 0 && m->peer != rank;
}

/* When the message of a pass has arrived; the record begins no sooner. False: it was not sent. */
static bool arrival_of(const simulation *m, int rank, const bk_schedule_record *r, int direction,
                       double *arrival) {
  *arrival = 0;
  if (!comes_from_afar(&r->receive[direction], rank)) return true;
  size_t port = bk_schedule_port_of(m->s, rank, direction ? r->back_chunk : r->chunk, direction);
  if (m->taken[port] == m->sent[port]) return false;
  *arrival = m->arrival[port * (size_t)m->micro + (size_t)m->taken[port]];
  return true;
}

/* The part of the message's time in which the rank, idle since `idle`, did nothing but wait. */
static void take_message(simulation *m, int rank, const bk_schedule_record *r, int direction,
                         double idle, double arrival) {
  if (!comes_from_afar(&r->receive[direction], rank)) return;
  m->taken[bk_schedule_port_of(m->s, rank, direction ? r->back_chunk : r->chunk, direction)]++;
  double begin = arrival - m->costs->transfer - m->costs->latency;
  m->t->exposed += fmax(0, arrival - fmax(begin, idle));
}

/* *span is the message's. */
static void send_message(simulation *m, int rank, const bk_schedule_record *r, int direction,
                         double end, bk_schedule_span *span) {
  const bk_schedule_message *to = &r->send[direction];
  if (!comes_from_afar(to, rank)) return;
  int chunk = direction ? r->back_chunk : r->chunk;
  double *free_at =
      &m->link_free[m->w->port[bk_schedule_port_of(m->s, rank, chunk, direction)].lane];
  size_t port = bk_schedule_port_of(m->s, to->peer, to->peer_chunk, direction);
  span->begin = fmax(*free_at, end + m->costs->latency);
  span->end = *free_at = span->begin + m->costs->transfer;
  m->arrival[port * (size_t)m->micro + (size_t)m->sent[port]++] = *free_at;
  m->t->sent += m->costs->latency + m->costs->transfer;
  bk_schedule_queue_add(&m->queue, to->peer);
}

/* ---- ranks ---- */

/* When a record has made what it sends. */
static double made_at(const simulation *m, int rank, const bk_schedule_record *r,
                      const bk_schedule_span *span) {
  const bk_stage_costs *c = stage_costs(m, rank, r->back_chunk);
  double all = c->b, seconds = span->end - span->begin;
  bool early = m->costs->weights_last && (r->kind == BK_WORK_B || r->kind == BK_WORK_FB);
  if (r->kind == BK_WORK_FB) all += stage_costs(m, rank, r->chunk)->f;
  if (!early || !m->s->rank[rank].puts_off || !(all > 0)) return span->end;
  return span->begin + seconds * (all - c->w) / all;
}

/* False where a message that the record needs is not known yet. */
static bool do_record(simulation *m, int rank, int at) {
  const bk_schedule_record *r = &m->s->rank[rank].records[at];
  bk_schedule_span *span = &m->t->spans[rank][at], *sent = &m->t->messages[rank][2 * at];
  double arrival[2], idle = m->clock[rank];
  for (int d = 0; d < 2; d++)
    if (!arrival_of(m, rank, r, d, &arrival[d])) return false;
  for (int d = 0; d < 2; d++) take_message(m, rank, r, d, idle, arrival[d]);
  double cost = cost_of(m, rank, r);
  span->begin = fmax(idle, fmax(arrival[0], arrival[1]));
  span->end = m->clock[rank] = span->begin + cost;
  m->t->busy[rank] += cost;
  double made = made_at(m, rank, r, span);
  send_message(m, rank, r, 1, made, &sent[1]);
  send_message(m, rank, r, 0, made, &sent[0]);
  return true;
}

static void advance(simulation *m, int rank) {
  const bk_schedule_rank *list = &m->s->rank[rank];
  int *at = &m->at[rank];
  while (*at < list->n_records && do_record(m, rank, *at)) ++*at;
}

/* The lists end: the schedule has been checked. */
static void run(simulation *m) {
  int rank;
  while (bk_schedule_queue_take(&m->queue, &rank)) advance(m, rank);
  for (rank = 0; rank < m->s->ranks; rank++) m->t->time = fmax(m->t->time, m->clock[rank]);
  for (rank = 0; rank < m->s->ranks; rank++)
    m->t->bubble = fmax(m->t->bubble, m->t->time - m->t->busy[rank]);
}

static bk_status timeline_new(bk_context *ctx, const bk_schedule *s, bk_timeline **timeline) {
  whole_timeline *w = bk_alloc(ctx, sizeof *w);
  if (!w) return BK_ERR_MEMORY;
  size_t records = 0;
  for (int r = 0; r < s->ranks; r++) records += (size_t)s->rank[r].n_records;
  w->timeline.busy = bk_alloc_array(ctx, (size_t)s->ranks, sizeof *w->timeline.busy);
  w->timeline.spans = bk_alloc_array(ctx, (size_t)s->ranks, sizeof *w->timeline.spans);
  w->timeline.messages = bk_alloc_array(ctx, (size_t)s->ranks, sizeof *w->timeline.messages);
  w->all = bk_alloc_array(ctx, records, sizeof *w->all);
  w->all_messages = bk_alloc_array(ctx, 2 * records, sizeof *w->all_messages);
  if (!w->timeline.busy || !w->timeline.spans || !w->timeline.messages || !w->all ||
      !w->all_messages) {
    bk_timeline_destroy(ctx, &w->timeline);
    return BK_ERR_MEMORY;
  }
  records = 0;
  for (int r = 0; r < s->ranks; r++) {
    w->timeline.spans[r] = w->all + records;
    w->timeline.messages[r] = w->all_messages + 2 * records;
    records += (size_t)s->rank[r].n_records;
  }
  *timeline = &w->timeline;
  return BK_OK;
}

void bk_timeline_destroy(bk_context *ctx, bk_timeline *timeline) {
  if (!timeline) return;
  whole_timeline *w = (whole_timeline *)timeline;
  bk_free(ctx, w->all_messages);
  bk_free(ctx, w->all);
  bk_free(ctx, timeline->messages);
  bk_free(ctx, timeline->spans);
  bk_free(ctx, timeline->busy);
  bk_free(ctx, w);
}

static bk_status simulation_init(bk_context *ctx, simulation *m) {
  size_t ranks = (size_t)m->s->ranks, ports = bk_schedule_port_of(m->s, m->s->ranks, 0, 0);
  m->at = bk_alloc_array(ctx, ranks, sizeof *m->at);
  m->clock = bk_alloc_array(ctx, ranks, sizeof *m->clock);
  m->arrival = bk_alloc_array(ctx, ports * (size_t)m->micro, sizeof *m->arrival);
  m->sent = bk_alloc_array(ctx, ports, sizeof *m->sent);
  m->taken = bk_alloc_array(ctx, ports, sizeof *m->taken);
  m->link_free = bk_alloc_array(ctx, ports, sizeof *m->link_free);
  BK_TRY(bk_schedule_queue_init(ctx, &m->queue, m->s->ranks));
  bool all = m->at && m->clock && m->arrival && m->sent && m->taken && m->link_free;
  return all ? timeline_new(ctx, m->s, &m->t) : BK_ERR_MEMORY;
}

static void simulation_fini(bk_context *ctx, simulation *m) {
  bk_schedule_queue_fini(ctx, &m->queue);
  bk_free(ctx, m->link_free);
  bk_free(ctx, m->taken);
  bk_free(ctx, m->sent);
  bk_free(ctx, m->arrival);
  bk_free(ctx, m->clock);
  bk_free(ctx, m->at);
}

bk_status bk_schedule_simulate(bk_context *ctx, const bk_schedule *schedule,
                               const bk_schedule_costs *costs, bk_timeline **timeline) {
  simulation m = {.w = (const bk_schedule_whole *)schedule,
                  .s = schedule,
                  .costs = costs,
                  .micro = schedule->micro_batches / schedule->streams};
  BK_TRY(take_costs(ctx, schedule, costs));
  bk_status status = simulation_init(ctx, &m);
  if (status == BK_OK) {
    run(&m);
    *timeline = m.t;
  }
  simulation_fini(ctx, &m);
  return status;
}
