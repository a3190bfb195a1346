/* Completes any list of a schedule and proves it, rank by rank; see schedule.h. That the lists end
 * where ranks wait for each other is proven in rendezvous.c. Nothing here takes more than a few
 * steps for each record. */
#include "schedule/schedule.h"

#include <string.h>

/* How far a micro-batch is on a chunk. */
enum { NOT_BEGUN, FORWARD, DEFERRED, DONE };

typedef struct checker {
  bk_context *ctx;
  bk_schedule_whole *w;
  bk_schedule *s;
  int micro; /* of each stream */
  /* The rank and the record at hand, and what the records before it have done. */
  int rank, at;
  unsigned char *state; /* [chunks][micro] */
  int *deferred;        /* [chunks][micro]: the micro-batches of each chunk's I, in their order */
  /* of each chunk: I so far, W so far */
  int n_deferred[BK_SCHEDULE_CHUNKS], taken[BK_SCHEDULE_CHUNKS];
  int live[BK_SCHEDULE_CHUNKS], live_all; /* micro-batches whose activations are held */
  int passes[BK_SCHEDULE_CHUNKS][2];
  int *order; /* [ports][micro]: micro-batches in the order of the passes of a chunk */
} checker;

static bk_schedule_record *record_at(const checker *k) {
  return &k->s->rank[k->rank].records[k->at];
}
static size_t state_of(const checker *k, int chunk, int micro) {
  return (size_t)chunk * (size_t)k->micro + (size_t)micro;
}

/* Fails with the place of the record at hand in front; records are counted from 1 there. */
#define WRONG(k, format, ...)                                                                      \
  bk_fail((k)->ctx, BK_ERR_DATA, "%s: rank %d, record %d, %s: " format, (k)->w->origin, (k)->rank, \
          (k)->at + 1, bk_schedule_record_text(record_at(k), (char[BK_SCHEDULE_RECORD_TEXT]){0}),  \
          __VA_ARGS__)

/* ---- stages and ports ---- */

static bk_status place_chunk(checker *k, int rank, int chunk) {
  const bk_schedule_chunk *c = &k->s->rank[rank].chunks[chunk];
  if (c->stage < 0 || c->stage >= k->s->stages || c->stream < 0 || c->stream >= k->s->streams)
    return bk_fail(k->ctx, BK_ERR_DATA,
                   "%s: rank %d, chunk %d: there is no stage %d of stream %d; stages are 0 to %d "
                   "and streams 0 to %d",
                   k->w->origin, rank, chunk, c->stage, c->stream, k->s->stages - 1,
                   k->s->streams - 1);
  int *holder = &k->w->holder[(size_t)c->stream * (size_t)k->s->stages + (size_t)c->stage];
  if (*holder >= 0)
    return bk_fail(k->ctx, BK_ERR_DATA,
                   "%s: rank %d, chunk %d: stage %d of stream %d is chunk %d of rank %d already; "
                   "each stage of each stream is held once",
                   k->w->origin, rank, chunk, c->stage, c->stream, *holder % k->s->chunks,
                   *holder / k->s->chunks);
  *holder = rank * k->s->chunks + chunk;
  return BK_OK;
}

/* There are as many chunks as stages of all streams, so that none is left out where none comes
 * twice. */
static bk_status place_all(checker *k) {
  size_t held = (size_t)k->s->stages * (size_t)k->s->streams;
  for (size_t i = 0; i < held; i++) k->w->holder[i] = -1;
  for (int r = 0; r < k->s->ranks; r++)
    for (int c = 0; c < k->s->chunks; c++) BK_TRY(place_chunk(k, r, c));
  return BK_OK;
}

/* What a pass of a stage gets from (sends to) the stage `other`, over `edge`. */
static bk_schedule_message message_of(const checker *k, int stream, int other, int edge,
                                      int direction) {
  int peer = -1, chunk = -1;
  if (other >= 0 && other < k->s->stages) peer = bk_schedule_holder(k->s, stream, other, &chunk);
  return (bk_schedule_message){.peer = peer,
                               .edge = edge,
                               .stream = (int8_t)stream,
                               .peer_chunk = (int8_t)chunk,
                               .gradient = direction};
}

static int lane_of(const checker *k, int rank, size_t port) {
  size_t first = bk_schedule_port_of(k->s, rank, 0, 0);
  for (size_t i = first; i < port; i++)
    if (k->w->port[i].send.peer == k->w->port[port].send.peer) return (int)i;
  return (int)port;
}

static void make_ports(checker *k, int rank) {
  for (int c = 0; c < k->s->chunks; c++) {
    const bk_schedule_chunk *chunk = &k->s->rank[rank].chunks[c];
    int stage = chunk->stage;
    for (int d = 0; d < 2; d++) {
      size_t at = bk_schedule_port_of(k->s, rank, c, d);
      bk_schedule_port *port = &k->w->port[at];
      int before = d ? stage + 1 : stage - 1, after = d ? stage - 1 : stage + 1;
      port->receive = message_of(k, chunk->stream, before, d ? stage : stage - 1, d);
      port->send = message_of(k, chunk->stream, after, d ? stage - 1 : stage, d);
      port->lane = lane_of(k, rank, at);
    }
  }
}

/* ---- the records of one rank ---- */

static bk_status prove_numbers(const checker *k) {
  const bk_schedule_record *r = record_at(k);
  int chunks[2] = {r->chunk, r->back_chunk}, micros[2] = {r->micro, r->back_micro};
  if (r->kind < 0 || r->kind >= BK_WORKS)
    return bk_fail(k->ctx, BK_ERR_DATA, "%s: rank %d, record %d: there is no work of kind %d",
                   k->w->origin, k->rank, k->at + 1, (int)r->kind);
  for (int i = 0; i < 2; i++) {
    if (chunks[i] < 0 || chunks[i] >= k->s->chunks)
      return WRONG(k, "there is no chunk %d; a rank holds chunks 0 to %d", chunks[i],
                   k->s->chunks - 1);
    if (micros[i] < 0 || micros[i] >= k->micro)
      return WRONG(k, "there is no micro-batch %d; each stream has 0 to %d", micros[i],
                   k->micro - 1);
  }
  if (r->kind == BK_WORK_FB && r->chunk == r->back_chunk)
    return WRONG(k, "both passes are of chunk %d; they must be of two chunks", r->chunk);
  return BK_OK;
}

/* What a chunk of the same rank hands over was made by an earlier record. */
static bk_status prove_handed_over(const checker *k, const bk_schedule_message *m) {
  if (m->peer != k->rank) return BK_OK;
  int state = k->state[state_of(k, m->peer_chunk, m->micro)];
  if (state >= (m->gradient ? DEFERRED : FORWARD)) return BK_OK;
  return WRONG(k, "the %s pass of micro-batch %d through chunk %d of the same rank must come first",
               m->gradient ? "backward" : "forward", m->micro, m->peer_chunk);
}

static bk_status prove_state(const checker *k, int chunk, int micro, int direction) {
  int state = k->state[state_of(k, chunk, micro)];
  if (!direction && state != NOT_BEGUN)
    return WRONG(k, "micro-batch %d went forward through chunk %d already; it does so once", micro,
                 chunk);
  if (direction && state == NOT_BEGUN)
    return WRONG(k, "micro-batch %d must go forward through chunk %d first", micro, chunk);
  if (direction && state != FORWARD)
    return WRONG(k, "micro-batch %d went backward through chunk %d already; it does so once", micro,
                 chunk);
  return BK_OK;
}

/* A forward or a backward pass; its state is proven with those of the records before. */
static bk_status take_pass(checker *k, int direction) {
  bk_schedule_record *r = record_at(k);
  int chunk, micro;
  r->receive[direction].peer = r->send[direction].peer = -1;
  if (!bk_schedule_pass(r, direction, &chunk, &micro)) return BK_OK;
  size_t port = bk_schedule_port_of(k->s, k->rank, chunk, direction);
  BK_TRY(prove_state(k, chunk, micro, direction));
  r->receive[direction] = k->w->port[port].receive;
  r->send[direction] = k->w->port[port].send;
  r->receive[direction].micro = r->send[direction].micro = micro;
  BK_TRY(prove_handed_over(k, &r->receive[direction]));
  k->order[port * (size_t)k->micro + (size_t)k->passes[chunk][direction]++] = micro;
  return BK_OK;
}

static bk_status take_weights(checker *k) {
  const bk_schedule_record *r = record_at(k);
  size_t mine = state_of(k, r->chunk, r->micro);
  if (k->state[mine] != DEFERRED)
    return WRONG(k,
                 "no gradient of parameters is put off for micro-batch %d of chunk %d; an I "
                 "must come first, and a W once after it",
                 r->micro, r->chunk);
  int oldest = k->deferred[state_of(k, r->chunk, k->taken[r->chunk]++)];
  if (r->micro != oldest)
    return WRONG(k, "the W of a chunk come in the order of their I; %dW%d is next", r->chunk,
                 oldest);
  return BK_OK;
}

static void hold(checker *k, int chunk) {
  bk_schedule_rank *rank = &k->s->rank[k->rank];
  if (++k->live[chunk] > rank->chunks[chunk].slots) rank->chunks[chunk].slots = k->live[chunk];
  if (++k->live_all > rank->peak) rank->peak = k->live_all;
}

static void let_go(checker *k, int chunk, int micro) {
  k->state[state_of(k, chunk, micro)] = DONE;
  k->live[chunk]--;
  k->live_all--;
}

/* What a record changes once it is proven. An FB holds its new micro-batch before it lets go of
 * the old one. */
static void apply(checker *k) {
  const bk_schedule_record *r = record_at(k);
  if (r->kind == BK_WORK_F || r->kind == BK_WORK_FB) {
    k->state[state_of(k, r->chunk, r->micro)] = FORWARD;
    hold(k, r->chunk);
  }
  if (r->kind == BK_WORK_I) {
    k->s->rank[k->rank].puts_off = true;
    k->state[state_of(k, r->chunk, r->micro)] = DEFERRED;
    k->deferred[state_of(k, r->chunk, k->n_deferred[r->chunk]++)] = r->micro;
  } else if (r->kind != BK_WORK_F) {
    let_go(k, r->back_chunk, r->back_micro);
  }
}

static bk_status prove_end(checker *k) {
  for (int c = 0; c < k->s->chunks; c++)
    for (int m = 0; m < k->micro; m++) {
      static const char *const lacks[] = {"does not go through", "does not go backward through",
                                          "has no W on"};
      int state = k->state[state_of(k, c, m)];
      if (state != DONE)
        return bk_fail(k->ctx, BK_ERR_DATA,
                       "%s: rank %d: micro-batch %d %s chunk %d; each goes forward and backward "
                       "once, with a W after an I",
                       k->w->origin, k->rank, m, lacks[state], c);
    }
  return BK_OK;
}

static bk_status prove_rank(checker *k) {
  bk_schedule_rank *rank = &k->s->rank[k->rank];
  memset(k->state, NOT_BEGUN, (size_t)k->s->chunks * (size_t)k->micro);
  memset(k->live, 0, sizeof k->live);
  memset(k->passes, 0, sizeof k->passes);
  memset(k->n_deferred, 0, sizeof k->n_deferred);
  memset(k->taken, 0, sizeof k->taken);
  k->live_all = 0;
  rank->peak = 0;
  rank->puts_off = false;
  for (int c = 0; c < k->s->chunks; c++) rank->chunks[c].slots = 0;
  for (k->at = 0; k->at < rank->n_records; k->at++) {
    BK_TRY(prove_numbers(k));
    for (int d = 0; d < 2; d++) BK_TRY(take_pass(k, d));
    if (record_at(k)->kind == BK_WORK_W) BK_TRY(take_weights(k));
    apply(k);
  }
  return prove_end(k);
}

/* ---- both sides of an edge ---- */

/* A chunk sends in the order of its passes and receives in it, too. */
static bk_status prove_order(const checker *k, int rank, int chunk, int direction) {
  size_t port = bk_schedule_port_of(k->s, rank, chunk, direction), n = (size_t)k->micro;
  const bk_schedule_message *to = &k->w->port[port].send;
  if (to->peer < 0 || to->peer == rank) return BK_OK;
  const int *sent = k->order + port * n,
            *taken = k->order + bk_schedule_port_of(k->s, to->peer, to->peer_chunk, direction) * n;
  if (memcmp(sent, taken, n * sizeof *sent) == 0) return BK_OK;
  size_t i = 0;
  while (sent[i] == taken[i]) i++;
  return bk_fail(k->ctx, BK_ERR_DATA,
                 "%s: chunk %d of rank %d makes the %s of micro-batch %d as its number %zu, where "
                 "chunk %d of rank %d takes that of micro-batch %d; both must have one order",
                 k->w->origin, chunk, rank, direction ? "gradient" : "output", sent[i], i + 1,
                 to->peer_chunk, to->peer, taken[i]);
}

static bk_status prove_orders(checker *k) {
  for (int r = 0; r < k->s->ranks; r++)
    for (int c = 0; c < k->s->chunks; c++)
      for (int d = 0; d < 2; d++) BK_TRY(prove_order(k, r, c, d));
  return BK_OK;
}

static bk_status prove_all(checker *k) {
  BK_TRY(place_all(k));
  for (int r = 0; r < k->s->ranks; r++) make_ports(k, r);
  for (k->rank = 0; k->rank < k->s->ranks; k->rank++) BK_TRY(prove_rank(k));
  BK_TRY(prove_orders(k));
  return bk_schedule_check_ends(k->ctx, k->w);
}

bk_status bk_schedule_check(bk_context *ctx, bk_schedule *schedule) {
  bk_schedule_whole *w = (bk_schedule_whole *)schedule;
  int micro = schedule->micro_batches / schedule->streams;
  size_t ports = bk_schedule_port_of(schedule, schedule->ranks, 0, 0),
         states = (size_t)schedule->chunks * (size_t)micro;
  checker k = {.ctx = ctx, .w = w, .s = schedule, .micro = micro};
  if (!w->port) w->port = bk_alloc_array(ctx, ports, sizeof *w->port);
  k.state = bk_alloc(ctx, states);
  k.deferred = bk_alloc_array(ctx, states, sizeof *k.deferred);
  k.order = bk_alloc_array(ctx, ports * (size_t)micro, sizeof *k.order);
  bk_status status = w->port && k.state && k.deferred && k.order ? prove_all(&k) : BK_ERR_MEMORY;
  bk_free(ctx, k.order);
  bk_free(ctx, k.deferred);
  bk_free(ctx, k.state);
  return status;
}
