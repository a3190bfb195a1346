/* The work of the engine's thread. Nothing here waits: each call does what can be done, and the
 * order of what is begun is the same on all ranks, so that messages on one channel meet.
 *
 * Channel 0 has headers, 1 the data of collective operations, 2 those of the second round of an
 * all_reduce, 3 those of exchanges. Data of a round are begun in the order of the operations: those
 * of the first because headers of a peer are met in their order, those of the second because an
 * operation waits for those before it to begin theirs. */
#include "comm/engine_priv.h"

#include <stdio.h>
#include <string.h>

enum { CHANNEL_HEADERS, CHANNEL_FIRST, CHANNEL_SECOND, CHANNEL_EXCHANGE };

void bk_list_append(bk_list *list, bk_operation *o) {
  o->next = NULL;
  if (list->last) list->last->next = o;
  else list->first = o;
  list->last = o;
}

bk_operation *bk_list_take(bk_list *list) {
  bk_operation *o = list->first;
  if (!o) return NULL;
  list->first = o->next;
  if (!list->first) list->last = NULL;
  return o;
}

static void list_remove(bk_list *list, bk_operation *o) {
  bk_operation *before = NULL, *at = list->first;
  while (at != o) before = at, at = at->next;
  if (before) before->next = o->next;
  else list->first = o->next;
  if (list->last == o) list->last = before;
}

/* ---- messages ---- */

static bool wire_failed(bk_engine *e) {
  char text[sizeof e->wire->reason + 64];
  snprintf(text, sizeof text, "rank %d: the transport %s failed: %s", e->rank, e->transport->name,
           e->wire->reason);
  return bk_engine_fault(e, text);
}

/* There is always a free slot: operations are begun only with slots for all of theirs. */
static int take_slot(bk_engine *e, bk_message message) {
  int slot = e->free_slots[--e->n_free];
  e->messages[slot] = message;
  e->slots[e->n_slots++] = slot;
  if (message.operation) message.operation->under_way++;
  else if (!message.inbox) e->own_messages++;
  return slot;
}

static bool send(bk_engine *e, bk_operation *o, int peer, int channel, const void *data,
                 size_t bytes) {
  int slot = take_slot(e, (bk_message){.operation = o, .peer = peer});
  return e->wire->ops->send(e->wire, peer, channel, data, bytes, slot) == 0 || wire_failed(e);
}

static bool receive(bk_engine *e, bk_operation *o, int peer, int channel, void *data,
                    size_t bytes) {
  int slot = take_slot(e, (bk_message){.operation = o, .peer = peer});
  return e->wire->ops->receive(e->wire, peer, channel, data, bytes, slot) == 0 || wire_failed(e);
}

bool bk_engine_send_own(bk_engine *e, int peer, const bk_header *header) {
  return send(e, NULL, peer, CHANNEL_HEADERS, header, sizeof *header);
}

/* The receives first: what is sent then goes straight to its place. */
static bool begin_data(bk_engine *e, bk_operation *o, bk_flow *f, int channel) {
  if (f->receive_bytes && !receive(e, o, f->peer, channel, f->receive, f->receive_bytes))
    return false;
  if (!f->send_bytes) return true;
  o->base.times.sent += f->send_bytes;
  return send(e, o, f->peer, channel, f->send, f->send_bytes);
}

/* ---- what an operation sends and receives ---- */

static size_t cut_bytes(const bk_operation *o, int rank) {
  return (size_t)bk_comm_cut(o->count, o->comm->base.size, rank) * bk_dtype_size(o->dtype);
}

static size_t piece_bytes(const bk_operation *o, int rank) {
  return cut_bytes(o, rank + 1) - cut_bytes(o, rank);
}

static size_t whole_bytes(const bk_operation *o) {
  return o->kind == BK_GATHER ? (size_t)o->count : (size_t)o->count * bk_dtype_size(o->dtype);
}

/* The same on all ranks, which have compared their counts. */
static bool is_small(const bk_operation *o) {
  return o->kind == BK_ALL_REDUCE && whole_bytes(o) <= BK_SMALL_BYTES / (size_t)o->comm->base.size;
}

static bool needs_scratch(const bk_operation *o) {
  return o->kind == BK_ALL_REDUCE || o->kind == BK_REDUCE_SCATTER;
}

static void flow_set(bk_flow *f, char *send, size_t send_bytes, char *receive,
                     size_t receive_bytes) {
  f->send = send;
  f->send_bytes = send_bytes;
  f->receive = receive;
  f->receive_bytes = receive_bytes;
}

/* The i-th flow of a collective operation in its first round. */
static void flow_plan(bk_operation *o, int i) {
  bk_flow *f = &o->flows[i];
  int me = o->comm->base.rank;
  size_t whole = whole_bytes(o), own = piece_bytes(o, me);
  switch (o->kind) {
    case BK_ALL_REDUCE:
    case BK_REDUCE_SCATTER:
      if (is_small(o)) flow_set(f, o->in, whole, o->scratch + (size_t)i * whole, whole);
      else
        flow_set(f, o->in + cut_bytes(o, f->index), piece_bytes(o, f->index),
                 o->scratch + (size_t)i * own, own);
      break;
    case BK_ALL_GATHER:
      flow_set(f, o->in, own, o->out + cut_bytes(o, f->index), piece_bytes(o, f->index));
      break;
    case BK_GATHER: flow_set(f, o->in, whole, o->out + (size_t)f->index * whole, whole); break;
    case BK_ALL_TO_ALL:
      whole /= (size_t)o->comm->base.size;
      flow_set(f, o->in + (size_t)f->index * whole, whole, o->out + (size_t)f->index * whole,
               whole);
      break;
    case BK_BROADCAST:
      flow_set(f, o->in, me == o->root ? whole : 0, o->out, f->index == o->root ? whole : 0);
      break;
    case BK_ALL_TO_ALLV:
      f->send = o->in + f->send_at;
      f->receive = o->out + f->receive_at;
      break;
    case BK_BARRIER: flow_set(f, NULL, 0, NULL, 0); break;
    default: break;
  }
}

static void copy_own(char *to, const char *from, size_t bytes) {
  if (to != from && bytes) memmove(to, from, bytes);
}

/* What goes from this rank to itself. */
static void keep_own(bk_operation *o) {
  size_t me = (size_t)o->comm->base.rank, whole = whole_bytes(o);
  switch (o->kind) {
    case BK_ALL_GATHER:
      copy_own(o->out + cut_bytes(o, (int)me), o->in, piece_bytes(o, (int)me));
      break;
    case BK_GATHER: copy_own(o->out + me * whole, o->in, whole); break;
    case BK_ALL_TO_ALL:
      whole /= (size_t)o->comm->base.size;
      copy_own(o->out + me * whole, o->in + me * whole, whole);
      break;
    case BK_ALL_TO_ALLV: copy_own(o->out + o->own_to, o->in + o->own_from, o->own_bytes); break;
    default: break;
  }
}

/* ---- operations begin ---- */

static bool take_scratch(bk_operation *o) {
  if (!needs_scratch(o)) return true;
  for (int i = 0; i < BK_SCRATCH_SLOTS; i++) {
    char *memory = o->comm->rooms[BK_ROOM_COLLECTIVE].scratch[i];
    if (!memory || o->comm->scratch_used[i]) continue;
    o->comm->scratch_used[i] = true;
    o->scratch_slot = i;
    o->scratch = memory;
    return true;
  }
  return false;
}

/* A header, a send and a receive for each flow. */
static int slots_of(const bk_operation *o) { return 3 * o->n_flows; }

/* An inbox takes one of each peer, and the end of the job another. */
static bool slots_suffice(const bk_engine *e, const bk_operation *o) {
  return e->promised + slots_of(o) + 2 * e->size <= e->wire->slots;
}

static bool begin(bk_engine *e, bk_operation *o) {
  if (e->active.first == NULL) e->busy_since = e->seconds();
  bk_list_append(&e->active, o);
  e->promised += slots_of(o);
  o->base.times = (bk_comm_times){.begun = e->seconds()};
  o->since = o->base.times.begun;
  o->round = o->under_way = 0;
  o->unmatched = o->n_flows;
  if (o->unmatched == 0) o->base.times.met = o->base.times.begun;
  for (int i = 0; i < o->n_flows; i++) {
    bk_flow *f = &o->flows[i];
    if (o->kind != BK_SEND) flow_plan(o, i);
    f->matched = false;
    if (!send(e, o, f->peer, CHANNEL_HEADERS, &f->header, sizeof f->header)) return false;
  }
  if (o->kind != BK_SEND) keep_own(o);
  return true;
}

/* In the order in which they were posted: one that cannot begin holds up those behind it. */
static bool begin_queue(bk_engine *e, bk_list *queue, bool *moved) {
  while (queue->first) {
    bk_operation *o = queue->first;
    pthread_mutex_lock(&e->lock);
    bool ready = o->state == BK_REQUEST_TAKEN;
    pthread_mutex_unlock(&e->lock);
    if (!ready || !slots_suffice(e, o) || !take_scratch(o)) return true;
    bk_list_take(queue);
    *moved = true;
    if (!begin(e, o)) return false;
  }
  return true;
}

/* ---- headers meet ---- */

/* Which of the three kinds of headers; see engine_priv.h. */
static int class_of(int kind) { return kind == BK_SEND ? 1 : kind == BK_RECEIVE ? 2 : 0; }

static int meets(int class) { return class == 1 ? 2 : class == 2 ? 1 : 0; }

/* The first flow that waits for a header of this class from this peer. */
static bk_flow *find_flow(bk_engine *e, int peer, int class, bk_operation **operation) {
  for (bk_operation *o = e->active.first; o; o = o->next) {
    if (o->unmatched == 0 || (o->kind == BK_SEND) != (class != 0)) continue;
    for (int i = 0; i < o->n_flows; i++) {
      bk_flow *f = &o->flows[i];
      if (f->matched || f->peer != peer || class_of(f->header.kind) != meets(class)) continue;
      *operation = o;
      return f;
    }
  }
  return NULL;
}

static bool meet(bk_engine *e, bk_operation *o, bk_flow *f, const bk_header *theirs) {
  char text[512];
  if (!bk_header_compare(&f->header, theirs, e->rank, f->peer, text, sizeof text))
    return bk_engine_fault(e, text);
  f->matched = true;
  if (--o->unmatched == 0) o->base.times.met = e->seconds();
  return begin_data(e, o, f, o->kind == BK_SEND ? CHANNEL_EXCHANGE : CHANNEL_FIRST);
}

/* A header of a class waits behind one of its class that has not met its own. */
static bool meet_peer(bk_engine *e, int peer, bool *moved) {
  bk_inbox *inbox = &e->inboxes[peer];
  bool blocked[3] = {false, false, false};
  for (int i = 0; i < inbox->n;) {
    bk_operation *o = NULL;
    int class = class_of(inbox->headers[i].kind);
    bk_flow *f = blocked[class] ? NULL : find_flow(e, peer, class, &o);
    blocked[class] |= !f;
    if (!f) {
      i++;
      continue;
    }
    if (!meet(e, o, f, &inbox->headers[i])) return false;
    memmove(&inbox->headers[i], &inbox->headers[i + 1],
            (size_t)(inbox->n - i - 1) * sizeof inbox->headers[0]);
    inbox->n--;
    *moved = true;
  }
  return true;
}

static bool header_arrived(bk_engine *e, int peer) {
  bk_inbox *inbox = &e->inboxes[peer];
  bk_header *h = &inbox->arriving;
  char text[512];
  inbox->receiving = false;
  if (!bk_header_valid(h, peer)) {
    snprintf(text, sizeof text, "rank %d has sent what is not a header", peer);
    return bk_engine_fault(e, text);
  }
  if (h->kind == BK_FAULT) {
    pthread_mutex_lock(&e->lock);
    e->told = true; /* the sender has told all others too */
    pthread_mutex_unlock(&e->lock);
    return bk_engine_fault(e, h->text);
  }
  if (h->kind == BK_LEAVE) inbox->left = true;
  inbox->headers[inbox->n++] = *h;
  return true;
}

/* A receive is under way from every peer for which there is room. */
bool bk_engine_receive_headers(bk_engine *e) {
  for (int p = 0; p < e->size; p++) {
    bk_inbox *inbox = &e->inboxes[p];
    if (p == e->rank || inbox->receiving || inbox->left || inbox->n == BK_INBOX) continue;
    int slot = take_slot(e, (bk_message){.inbox = inbox});
    inbox->receiving = true;
    if (e->wire->ops->receive(e->wire, p, CHANNEL_HEADERS, &inbox->arriving, sizeof inbox->arriving,
                              slot) != 0)
      return wire_failed(e);
  }
  return true;
}

/* ---- operations end ---- */

void bk_engine_complete(bk_engine *e, bk_operation *o, bk_status status) {
  if (o->scratch_slot >= 0) o->comm->scratch_used[o->scratch_slot] = false;
  o->scratch_slot = -1;
  o->base.times.ended = e->seconds();
  pthread_mutex_lock(&e->lock);
  e->stats.bytes_sent += (double)o->base.times.sent;
  o->status = status;
  o->state = BK_REQUEST_DONE;
  e->completed++;
  pthread_cond_broadcast(&e->done);
  pthread_mutex_unlock(&e->lock);
}

/* The values of all ranks lie in scratch, as the flows do, and the own ones where they were. */
static void reduce(bk_operation *o) {
  bk_engine_comm_state *c = o->comm;
  int me = c->base.rank;
  bool whole = is_small(o);
  size_t from = whole ? 0 : cut_bytes(o, me), to = o->kind == BK_ALL_REDUCE ? from : 0;
  size_t bytes = whole ? whole_bytes(o) : piece_bytes(o, me);
  for (int i = 0; i < o->n_flows; i++) c->leaves[o->flows[i].index] = o->flows[i].receive;
  c->leaves[me] = o->in + from;
  bk_reduce_tree(o->dtype, o->reduce, c->leaves, c->base.size,
                 (int64_t)(bytes / bk_dtype_size(o->dtype)), o->out + to);
}

/* The second round of an all_reduce: everyone sends its piece of the sum. The memory that is
 * received into was sent from in the first round, which is through. */
static bool gather_sums(bk_engine *e, bk_operation *o) {
  int me = o->comm->base.rank;
  o->round = 1;
  for (int i = 0; i < o->n_flows; i++) {
    bk_flow *f = &o->flows[i];
    flow_set(f, o->out + cut_bytes(o, me), piece_bytes(o, me), o->out + cut_bytes(o, f->index),
             piece_bytes(o, f->index));
    if (!begin_data(e, o, f, CHANNEL_SECOND)) return false;
  }
  return true;
}

/* *earlier: an operation before this one has still to begin its second round. */
static bool advance(bk_engine *e, bk_operation *o, bool *earlier, bool *done) {
  bool second = o->kind == BK_ALL_REDUCE && !is_small(o) && o->n_flows > 0;
  *done = false;
  if (o->unmatched || o->under_way || (second && o->round == 0 && *earlier)) {
    *earlier |= second && o->round == 0;
    return true;
  }
  if (o->round == 0 && needs_scratch(o)) reduce(o);
  if (second && o->round == 0) return gather_sums(e, o);
  *done = true;
  return true;
}

static bool advance_all(bk_engine *e, bool *moved) {
  bool earlier = false, done = false;
  for (bk_operation *o = e->active.first, *next; o; o = next) {
    next = o->next;
    if (!advance(e, o, &earlier, &done)) return false;
    if (!done) continue;
    list_remove(&e->active, o);
    e->promised -= slots_of(o);
    if (!e->active.first) {
      pthread_mutex_lock(&e->lock);
      e->stats.busy_s += e->seconds() - e->busy_since;
      pthread_mutex_unlock(&e->lock);
    }
    bk_engine_complete(e, o, BK_OK);
    *moved = true;
  }
  return true;
}

/* ---- one round ---- */

bool bk_engine_finish_messages(bk_engine *e, bool *moved) {
  bool healthy = true;
  int kept = 0;
  if (e->wire->ops->test(e->wire, e->slots, e->n_slots, e->slot_done) != 0) return wire_failed(e);
  for (int i = 0; i < e->n_slots; i++) {
    int slot = e->slots[i];
    if (!e->slot_done[i]) {
      e->slots[kept++] = slot;
      continue;
    }
    *moved = true;
    bk_message m = e->messages[slot];
    e->free_slots[e->n_free++] = slot;
    if (m.operation) m.operation->under_way--;
    else if (!m.inbox) e->own_messages--;
    else healthy &= header_arrived(e, (int)(m.inbox - e->inboxes));
  }
  e->n_slots = kept;
  return healthy;
}

static bool check_deadlines(bk_engine *e) {
  char text[512];
  double now = e->seconds();
  for (bk_operation *o = e->active.first; o; o = o->next) {
    if (o->kind == BK_SEND && !atomic_load(&o->awaited)) o->since = now;
    if (now - o->since <= e->timeout_s) continue;
    bk_operation_missing(e, o, text, sizeof text);
    return bk_engine_fault(e, text);
  }
  return true;
}

bool bk_engine_work(bk_engine *e) {
  bool moved = false;
  if (!begin_queue(e, &e->collectives, &moved) || !begin_queue(e, &e->exchanges, &moved))
    return false;
  if (!bk_engine_receive_headers(e) || !bk_engine_finish_messages(e, &moved)) return false;
  for (int p = 0; p < e->size; p++)
    if (!meet_peer(e, p, &moved)) return false;
  if (!advance_all(e, &moved) || !check_deadlines(e)) return false;
  if (moved) e->quiet = 0;
  else if (++e->quiet > 4) e->wire->ops->idle(e->wire);
  return true;
}
