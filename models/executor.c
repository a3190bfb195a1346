/* Running a schedule (executor.h). The lists of all ranks are known everywhere, so that a rank
 * works out at creation what each of its peers will send, and which slot each micro-batch gets. */
#include "models/executor.h"

#include "comm/comm.h"
#include "models/chunk_priv.h"
#include "models/profile.h"

enum { STREAMS, GRADIENTS, SIDES }; /* what comes in at the two sides of a chunk, and goes out */
enum { SENDS = 2 };                 /* sends to one peer that may be under way at once */

/* Buffers of what comes in at one side of a chunk, used in turn. */
typedef struct ring {
  bk_port buffers[BK_SCHEDULE_AHEAD];
  bk_request *requests[BK_SCHEDULE_AHEAD];
  int posted, taken; /* of this step */
} ring;

/* What a peer sends to this rank, in its order. */
typedef struct source {
  bk_schedule_message *messages; /* of which peer_chunk is the chunk of this rank */
  int n, next;
} source;

/* Sends to a peer that are under way, the oldest first. */
typedef struct outlet {
  bk_request **sent[SENDS]; /* where the requests are kept */
  int n;
} outlet;

/* A chunk with its slots: which micro-batch has which. */
typedef struct held {
  bk_chunk *chunk;
  ring rings[SIDES];
  int *slots;              /* [micro-batches of a stream] */
  bk_request **sent;       /* [slots][SIDES]: what goes out of a slot's ports; NULL: nothing does */
  int *queue, head, count; /* [slots]: micro-batches whose W waits, a ring */
} held;

/* Programs that are run one after the other, and how far they are. What they make for another chunk
 * is there when the first `makes` of them are done; `end` then hands it on, once. */
typedef struct work {
  bk_program *programs[2];
  int n, program, piece, makes;
  bk_status (*end)(bk_executor *e, const bk_schedule_record *r);
} work;

/* What a record does forward and what it does backward, for looks at it. */
typedef struct part {
  int chunk, micro;
} part;

struct bk_executor {
  bk_model *model;
  const bk_pipeline *layout;
  const bk_schedule *schedule;
  const bk_schedule_rank *own;
  bk_memory *memory; /* of the rings */
  held *held;        /* [chunks] */
  source *sources;   /* [ranks of the pipeline] */
  outlet *outlets;   /* [the same] */
  bk_pass_run *runs;
  int n_runs, n_held, micros;     /* micro-batches of a stream */
  const bk_executor_calls *calls; /* of the run in progress */
  bk_run how;
  part parts[2]; /* of the record in progress: forward, backward */
};

/* ---- creation ---- */

static bool goes_forward(const bk_schedule_record *r) {
  return r->kind == BK_WORK_F || r->kind == BK_WORK_FB;
}

static bool goes_back(const bk_schedule_record *r) {
  return r->kind != BK_WORK_F && r->kind != BK_WORK_W;
}

/* A slot is taken by an F and given back by the B or W of the micro-batch; the lowest that is free
 * is taken. */
static bk_status deal_slots(bk_executor *e, int chunk) {
  held *h = &e->held[chunk];
  int slots = e->own->chunks[chunk].slots;
  bool *used = bk_alloc_array(e->model->ctx, (size_t)slots, sizeof *used);
  h->slots = bk_alloc_array(e->model->ctx, (size_t)e->micros, sizeof *h->slots);
  if (!used || !h->slots) {
    bk_free(e->model->ctx, used);
    return BK_ERR_MEMORY;
  }
  for (int i = 0; i < e->own->n_records; i++) {
    const bk_schedule_record *r = &e->own->records[i];
    bool ends = r->kind == BK_WORK_W || r->kind == BK_WORK_B || r->kind == BK_WORK_FB;
    if (goes_forward(r) && r->chunk == chunk) {
      int slot = 0;
      while (slot + 1 < slots && used[slot]) slot++;
      used[slot] = true;
      h->slots[r->micro] = slot;
    }
    if (ends && r->back_chunk == chunk) used[h->slots[r->back_micro]] = false;
  }
  bk_free(e->model->ctx, used);
  return BK_OK;
}

static bk_tensor ring_tensor(bk_executor *e, bk_tensor like, bk_status *status) {
  bk_tensor t = {0};
  if (*status == BK_OK && bk_tensor_present(&like))
    *status = bk_memory_tensor(e->memory, BK_MEM_COMM, like.dtype, like.ndim, like.shape, &t);
  return t;
}

/* Only what comes from other ranks needs buffers. */
static bool receives(const bk_executor *e, int chunk, int side) {
  for (int i = 0; i < e->own->n_records; i++) {
    const bk_schedule_record *r = &e->own->records[i];
    const bk_schedule_message *m = &r->receive[side];
    if ((side == STREAMS ? r->chunk : r->back_chunk) != chunk) continue;
    if (m->peer >= 0 && m->peer != e->layout->p) return true;
  }
  return false;
}

static bk_status make_rings(bk_executor *e, int chunk) {
  held *h = &e->held[chunk];
  bk_status status = BK_OK;
  for (int side = 0; side < SIDES; side++) {
    bk_port like =
        side == STREAMS ? bk_chunk_input(h->chunk, 0) : bk_chunk_output_grad(h->chunk, 0);
    if (!receives(e, chunk, side)) continue;
    for (int i = 0; i < BK_SCHEDULE_AHEAD; i++) {
      h->rings[side].buffers[i].streams = ring_tensor(e, like.streams, &status);
      h->rings[side].buffers[i].carry = ring_tensor(e, like.carry, &status);
    }
  }
  return status;
}

static bk_status make_chunk(bk_executor *e, int i, const bk_chunk_options *options) {
  bk_context *ctx = e->model->ctx;
  held *h = &e->held[i];
  bk_chunk_options o = *options;
  o.slots = e->own->chunks[i].slots;
  o.backward = true;
  o.defer_wgrad = e->own->puts_off;
  BK_TRY(bk_chunk_create(e->model, i, &o, NULL, &h->chunk));
  h->sent = bk_alloc_array(ctx, (size_t)o.slots * SIDES, sizeof(bk_request *));
  h->queue = bk_alloc_array(ctx, (size_t)o.slots, sizeof *h->queue);
  if (!h->sent || !h->queue) return BK_ERR_MEMORY;
  BK_TRY(deal_slots(e, i));
  return make_rings(e, i);
}

/* A peer's messages to this rank. Counted first, then kept. */
static bk_status list_source(bk_executor *e, int peer) {
  const bk_schedule_rank *rank = &e->schedule->rank[peer];
  source *s = &e->sources[peer];
  for (int keep = 0; keep < 2; keep++) {
    int n = 0;
    for (int i = 0; i < rank->n_records; i++)
      for (int side = SIDES - 1; side >= 0; side--) { /* of an FB the gradient goes first */
        const bk_schedule_message *m = &rank->records[i].send[side];
        if (m->peer != e->layout->p) continue;
        if (keep) s->messages[n] = *m;
        n++;
      }
    if (keep || n == 0) break;
    s->messages = bk_alloc_array(e->model->ctx, (size_t)n, sizeof *s->messages);
    if (!s->messages) return BK_ERR_MEMORY;
    s->n = n;
  }
  return BK_OK;
}

static bk_status list_sources(bk_executor *e) {
  size_t ranks = (size_t)e->schedule->ranks;
  e->sources = bk_alloc_array(e->model->ctx, ranks, sizeof *e->sources);
  e->outlets = bk_alloc_array(e->model->ctx, ranks, sizeof *e->outlets);
  if (!e->sources || !e->outlets) return BK_ERR_MEMORY;
  for (int p = 0; p < e->schedule->ranks; p++)
    if (p != e->layout->p) BK_TRY(list_source(e, p));
  return BK_OK;
}

static void add_run(bk_executor *e, int chunk, int slot, int program, bool *begun, int position) {
  bk_micro micro = begun[chunk * BK_PROGRAMS + program] ? BK_MICRO_NEXT : BK_MICRO_FIRST;
  const bk_program *p = bk_chunk_program(e->held[chunk].chunk, slot, program + (int)micro);
  begun[chunk * BK_PROGRAMS + program] = true;
  if (p) e->runs[e->n_runs++] = (bk_pass_run){p, position};
}

/* What the records run, as bk_step_micro will have it. */
static bk_status list_runs(bk_executor *e) {
  enum { EACH = 3 }; /* loss, backward and wgrad of an FB */
  bool begun[BK_SCHEDULE_CHUNKS * BK_PROGRAMS] = {false};
  e->runs = bk_alloc_array(e->model->ctx, (size_t)e->own->n_records * EACH, sizeof *e->runs);
  if (!e->runs) return BK_ERR_MEMORY;
  for (int i = 0; i < e->own->n_records; i++) {
    const bk_schedule_record *r = &e->own->records[i];
    if (goes_forward(r))
      add_run(e, r->chunk, e->held[r->chunk].slots[r->micro], BK_PROGRAM_LOSS, begun, i);
    if (r->kind == BK_WORK_F) continue;
    int slot = e->held[r->back_chunk].slots[r->back_micro];
    if (r->kind != BK_WORK_W) add_run(e, r->back_chunk, slot, BK_PROGRAM_BACKWARD, begun, i);
    if (r->kind != BK_WORK_I) add_run(e, r->back_chunk, slot, BK_PROGRAM_WGRAD, begun, i);
  }
  return BK_OK;
}

/* How many exchanges may be under way at once, and the bytes of the largest. */
static int exchanges(const bk_executor *e, size_t *bytes_of_largest) {
  int requests = 0;
  size_t most = 0;
  for (int c = 0; c < e->n_held; c++)
    for (int side = 0; side < SIDES; side++) {
      bk_port ports[] = {bk_chunk_input(e->held[c].chunk, 0), bk_chunk_output(e->held[c].chunk, 0)};
      for (size_t i = 0; i < BK_COUNT(ports); i++) {
        size_t bytes = bk_tensor_bytes(&ports[i].streams) + bk_tensor_bytes(&ports[i].carry);
        if (bytes > most) most = bytes;
      }
      if (bk_tensor_present(&e->held[c].rings[side].buffers[0].streams))
        requests += BK_SCHEDULE_AHEAD;
    }
  for (int p = 0; p < e->schedule->ranks; p++) requests += e->sources[p].n ? SENDS : 0;
  *bytes_of_largest = most;
  return requests;
}

static bk_status executor_fill(bk_executor *e, const bk_chunk_options *options) {
  bk_model *m = e->model;
  e->held = bk_alloc_array(m->ctx, (size_t)e->schedule->chunks, sizeof *e->held);
  if (!e->held) return BK_ERR_MEMORY;
  BK_TRY(bk_memory_create(m->device, &e->memory));
  for (; e->n_held < e->schedule->chunks; e->n_held++) BK_TRY(make_chunk(e, e->n_held, options));
  BK_TRY(list_sources(e));
  BK_TRY(list_runs(e));
  if (m->options.plan_only) return BK_OK;
  size_t most;
  int requests = exchanges(e, &most);
  BK_TRY(bk_memory_commit(e->memory));
  return requests ? bk_comm_reserve_exchange(e->layout->line, requests, most) : BK_OK;
}

bk_status bk_executor_create(bk_model *model, const bk_chunk_options *options,
                             bk_executor **executor) {
  const bk_pipeline *layout = model->options.pipeline;
  if (!layout)
    return bk_fail(model->ctx, BK_ERR_ARGUMENT, "executor: the model is not in a pipeline");
  bk_executor *e = bk_alloc(model->ctx, sizeof *e);
  if (!e) return BK_ERR_MEMORY;
  *e = (bk_executor){.model = model,
                     .layout = layout,
                     .schedule = layout->schedule,
                     .own = &layout->schedule->rank[layout->p],
                     .micros = layout->schedule->micro_batches / layout->schedule->streams};
  bk_status status = executor_fill(e, options);
  if (status == BK_OK) *executor = e;
  else bk_executor_destroy(e);
  return status;
}

static void drop_all(bk_executor *e);

/* A chunk that could not be made whole is freed too: e->held[n_held] may be in part. */
void bk_executor_destroy(bk_executor *e) {
  if (!e) return;
  bk_context *ctx = e->model->ctx;
  bk_lanes_sync(&e->model->lanes);
  if (e->outlets) drop_all(e);
  for (int c = 0; e->held && c < e->schedule->chunks; c++) {
    bk_chunk_destroy(e->held[c].chunk);
    bk_free(ctx, e->held[c].slots);
    bk_free(ctx, e->held[c].sent);
    bk_free(ctx, e->held[c].queue);
  }
  for (int p = 0; e->sources && p < e->schedule->ranks; p++) bk_free(ctx, e->sources[p].messages);
  bk_memory_destroy(e->memory);
  bk_free(ctx, e->runs);
  bk_free(ctx, e->outlets);
  bk_free(ctx, e->sources);
  bk_free(ctx, e->held);
  bk_free(ctx, e);
}

/* Of the class comm with what the comm takes for the messages. */
size_t bk_executor_bytes(const bk_executor *e, bk_memory_class c) {
  size_t sum = bk_memory_bytes(e->memory, c), most;
  int requests = exchanges(e, &most);
  if (c == BK_MEM_COMM && requests && e->layout->line)
    sum += bk_comm_exchange_bytes(e->layout->line, requests, most);
  for (int i = 0; i < e->n_held; i++) {
    const bk_chunk *chunk = e->held[i].chunk;
    sum += bk_chunk_bytes(chunk, c);
    if (c == BK_MEM_STAGING) /* ids and targets */
      sum += 2 * (size_t)chunk->options.slots * (size_t)chunk->tokens * sizeof(int32_t);
  }
  return sum;
}

/* ---- messages ---- */

/* Different for any two messages of a step, as long as it has fewer than 2^31 of them. */
static int tag_of(const bk_executor *e, const bk_schedule_message *m) {
  int64_t tag = ((int64_t)m->micro * e->schedule->stages + m->edge) * SIDES + m->gradient;
  return (int)((tag * e->schedule->streams + m->stream) & INT32_MAX);
}

static bk_status post(bk_executor *e, bool send, const bk_port *port, const bk_schedule_message *m,
                      int peer, bk_request **request) {
  bk_transfer transfers[2] = {{send, peer, tag_of(e, m), port->streams},
                              {send, peer, tag_of(e, m), port->carry}};
  int n = bk_tensor_present(&port->carry) ? 2 : 1;
  return bk_comm_exchange(e->layout->line, e->model->stream, transfers, n, request);
}

/* What is posted ahead is under way from when its peer has posted it too. */
static bk_status await(bk_executor *e, bk_request **request) {
  bk_request *r = *request;
  *request = NULL;
  if (!r) return BK_OK;
  BK_TRY(bk_comm_wait(e->layout->line, r, e->model->stream));
  bk_comm_times times = r->times;
  times.begun = times.met;
  bk_profile *profile = bk_profile_of(e->model);
  if (profile) bk_profile_talk(profile, BK_TALK_EXCHANGE, -1, &times);
  return BK_OK;
}

/* Posts what peers will send next, as far as there are buffers. */
static bk_status post_receives(bk_executor *e) {
  for (int p = 0; p < e->schedule->ranks; p++)
    for (source *s = &e->sources[p]; s->next < s->n; s->next++) {
      const bk_schedule_message *m = &s->messages[s->next];
      ring *r = &e->held[m->peer_chunk].rings[m->gradient];
      if (r->posted - r->taken == BK_SCHEDULE_AHEAD) break;
      int at = r->posted % BK_SCHEDULE_AHEAD;
      BK_TRY(post(e, false, &r->buffers[at], m, p, &r->requests[at]));
      r->posted++;
    }
  return BK_OK;
}

/* The next message of a ring, into a port. */
static bk_status take(bk_executor *e, ring *r, const bk_port *to) {
  int at = r->taken % BK_SCHEDULE_AHEAD;
  BK_TRY(await(e, &r->requests[at]));
  r->taken++;
  return bk_port_copy(e->model->stream, &r->buffers[at], to);
}

/* Waits for send i of an outlet. */
static bk_status finish(bk_executor *e, outlet *o, int i) {
  bk_request **sent = o->sent[i];
  for (int k = i + 1; k < o->n; k++) o->sent[k - 1] = o->sent[k];
  o->n--;
  return await(e, sent);
}

/* *sent is where a later use of the port looks whether it is free. */
static bk_status send(bk_executor *e, const bk_schedule_message *m, const bk_port *port,
                      bk_request **sent) {
  outlet *o = &e->outlets[m->peer];
  if (o->n == SENDS) BK_TRY(finish(e, o, 0));
  BK_TRY(post(e, true, port, m, m->peer, sent));
  o->sent[o->n++] = sent;
  return BK_OK;
}

/* Makes a port free: waits until what went out of it has arrived. */
static bk_status finish_send(bk_executor *e, bk_request **sent) {
  for (int p = 0; *sent && p < e->schedule->ranks; p++)
    for (int i = 0; *sent && i < e->outlets[p].n; i++)
      if (e->outlets[p].sent[i] == sent) BK_TRY(finish(e, &e->outlets[p], i));
  return BK_OK;
}

bk_status bk_executor_finish(bk_executor *e) {
  bk_status status = BK_OK;
  for (int p = 0; p < e->schedule->ranks; p++) {
    while (e->outlets[p].n) {
      bk_status one = finish(e, &e->outlets[p], 0);
      if (status == BK_OK) status = one;
    }
  }
  return status;
}

/* After a failure: the group has been aborted, so that nothing of this waits for long. */
static void drop_all(bk_executor *e) {
  bk_executor_finish(e);
  for (int c = 0; c < e->n_held; c++)
    for (int side = 0; side < SIDES; side++)
      for (int i = 0; i < BK_SCHEDULE_AHEAD; i++) await(e, &e->held[c].rings[side].requests[i]);
}

/* ---- passes ---- */

static void add_program(bk_executor *e, work *w, int chunk, int slot, int program) {
  bk_micro micro = BK_MICRO_FIRST;
  if (program >= BK_PROGRAM_LOSS) micro = bk_step_micro(e->model, chunk, program);
  bk_program *p = bk_chunk_program(e->held[chunk].chunk, slot, program + (int)micro);
  if (p) w->programs[w->n++] = p;
}

static const bk_piece *next_piece(const work *w) {
  if (w->program == w->n) return NULL;
  return &w->programs[w->program]->pieces[w->piece];
}

static bk_status run_piece(const bk_executor *e, work *w) {
  const bk_program *p = w->programs[w->program];
  const bk_piece *piece = &p->pieces[w->piece++];
  if (w->piece == p->n_pieces) w->program++, w->piece = 0;
  return bk_program_run_piece(p, piece, &e->how);
}

static bk_status hand_on(bk_executor *e, const bk_schedule_record *r, work *w) {
  bk_status (*end)(bk_executor *, const bk_schedule_record *) = w->end;
  if (!end || w->program < w->makes) return BK_OK;
  w->end = NULL;
  return end(e, r);
}

/* Programs that were not begun are run as a whole, which may be by a graph. */
static bk_status run_rest(bk_executor *e, const bk_schedule_record *r, work *w) {
  while (w->program < w->n) {
    if (w->piece) BK_TRY(run_piece(e, w));
    else BK_TRY(bk_program_run(w->programs[w->program++], &e->how));
    BK_TRY(hand_on(e, r, w));
  }
  return BK_OK;
}

/* What needs no gradient yet. */
static bk_status run_rebuild(const bk_executor *e, work *w) {
  for (const bk_piece *p = next_piece(w); p && p->part == BK_PART_REBUILD; p = next_piece(w))
    BK_TRY(run_piece(e, w));
  return BK_OK;
}

/* Those whose results are handed on. */
static int pieces_of(const work *w) {
  int n = 0;
  for (int i = 0; i < w->makes; i++) n += w->programs[i]->n_pieces;
  return n;
}

/* What both make for other chunks in turn, so that both end at about the same time; then the wgrad,
 * under which the two messages travel. The gradient is handed on first, which is the order in which
 * its receiver expects them. */
static bk_status run_both(bk_executor *e, const bk_schedule_record *r, work *forward, work *back) {
  int64_t all[2] = {pieces_of(forward), pieces_of(back)}, done[2] = {0, 0};
  while (forward->program < forward->makes || back->program < back->makes) {
    bool first = back->program == back->makes ||
                 (forward->program < forward->makes && done[0] * all[1] <= done[1] * all[0]);
    done[first ? 0 : 1]++;
    BK_TRY(run_piece(e, first ? forward : back));
    BK_TRY(hand_on(e, r, back));
    if (!back->end) BK_TRY(hand_on(e, r, forward));
  }
  return run_rest(e, r, back);
}

/* ---- records ---- */

static int64_t number_of(const bk_executor *e, int chunk, int micro) {
  return (int64_t)e->own->chunks[chunk].stream * e->micros + micro;
}

/* The port of the chunk of this rank at the other side of an edge that no message crosses. */
static bk_port neighbour(const bk_executor *e, const bk_schedule_message *m) {
  const held *h = &e->held[m->peer_chunk];
  int slot = h->slots[m->micro];
  return m->gradient ? bk_chunk_output_grad(h->chunk, slot) : bk_chunk_output(h->chunk, slot);
}

static bk_status end_forward(bk_executor *e, const bk_schedule_record *r) {
  held *h = &e->held[r->chunk];
  int slot = h->slots[r->micro];
  bk_port out = bk_chunk_output(h->chunk, slot);
  if (h->chunk->has_head && e->calls->loss)
    BK_TRY(e->calls->loss(e->calls->user, number_of(e, r->chunk, r->micro)));
  const bk_schedule_message *m = &r->send[STREAMS];
  if (m->peer < 0 || m->peer == e->layout->p) return BK_OK;
  return send(e, m, &out, &h->sent[slot * SIDES + STREAMS]);
}

static bk_status begin_forward(bk_executor *e, const bk_schedule_record *r, work *w) {
  held *h = &e->held[r->chunk];
  int slot = h->slots[r->micro];
  bk_port in = bk_chunk_input(h->chunk, slot);
  for (int side = 0; side < SIDES; side++) BK_TRY(finish_send(e, &h->sent[slot * SIDES + side]));
  if (h->chunk->has_embed || h->chunk->has_head) {
    const int32_t *ids, *targets;
    BK_TRY(e->calls->feed(e->calls->user, number_of(e, r->chunk, r->micro), &ids, &targets));
    BK_TRY(bk_chunk_upload(h->chunk, slot, ids, targets));
  }
  if (r->receive[STREAMS].peer == e->layout->p) {
    bk_port from = neighbour(e, &r->receive[STREAMS]);
    BK_TRY(bk_port_copy(e->model->stream, &from, &in));
  } else if (r->receive[STREAMS].peer >= 0) {
    BK_TRY(take(e, &h->rings[STREAMS], &in));
  }
  add_program(e, w, r->chunk, slot, BK_PROGRAM_FORWARD);
  if (h->chunk->has_head) add_program(e, w, r->chunk, slot, BK_PROGRAM_LOSS);
  w->makes = w->n;
  w->end = end_forward;
  return BK_OK;
}

static bk_status end_backward(bk_executor *e, const bk_schedule_record *r) {
  held *h = &e->held[r->back_chunk];
  int slot = h->slots[r->back_micro];
  bk_port grad = bk_chunk_input_grad(h->chunk, slot);
  const bk_schedule_message *m = &r->send[GRADIENTS];
  if (r->kind == BK_WORK_I)
    h->queue[(h->head + h->count++) % e->own->chunks[r->back_chunk].slots] = r->back_micro;
  if (m->peer == e->layout->p) {
    held *next = &e->held[m->peer_chunk];
    bk_port to = neighbour(e, m);
    BK_TRY(finish_send(e, &next->sent[next->slots[m->micro] * SIDES + GRADIENTS]));
    return bk_port_copy(e->model->stream, &grad, &to);
  }
  return m->peer < 0 ? BK_OK : send(e, m, &grad, &h->sent[slot * SIDES + GRADIENTS]);
}

/* A gradient that a chunk of this rank has made is in its place already. */
static bk_status begin_backward(bk_executor *e, const bk_schedule_record *r, work *w) {
  held *h = &e->held[r->back_chunk];
  int slot = h->slots[r->back_micro];
  bk_port grad = bk_chunk_output_grad(h->chunk, slot);
  BK_TRY(finish_send(e, &h->sent[slot * SIDES + GRADIENTS]));
  add_program(e, w, r->back_chunk, slot, BK_PROGRAM_BACKWARD);
  w->makes = w->n;
  w->end = end_backward;
  if (e->own->puts_off && r->kind != BK_WORK_I)
    add_program(e, w, r->back_chunk, slot, BK_PROGRAM_WGRAD);
  if (r->receive[GRADIENTS].peer < 0 || r->receive[GRADIENTS].peer == e->layout->p) return BK_OK;
  BK_TRY(run_rebuild(e, w));
  return take(e, &h->rings[GRADIENTS], &grad);
}

static bk_status run_wgrad(bk_executor *e, const bk_schedule_record *r) {
  held *h = &e->held[r->chunk];
  work w = {.n = 0};
  if (h->count == 0 || h->queue[h->head] != r->micro)
    return bk_fail(e->model->ctx, BK_ERR_ARGUMENT,
                   "%s: W of micro-batch %d of chunk %d is not the oldest that waits",
                   e->schedule->name, r->micro, r->chunk);
  h->head = (h->head + 1) % e->own->chunks[r->chunk].slots;
  h->count--;
  add_program(e, &w, r->chunk, h->slots[r->micro], BK_PROGRAM_WGRAD);
  return run_rest(e, r, &w);
}

static bk_status run_record(bk_executor *e, const bk_schedule_record *r) {
  work forward = {.n = 0}, back = {.n = 0};
  e->parts[0] = (part){r->chunk, r->micro};
  e->parts[1] = (part){r->back_chunk, r->back_micro};
  BK_TRY(post_receives(e));
  if (r->kind == BK_WORK_W) return run_wgrad(e, r);
  if (goes_forward(r)) BK_TRY(begin_forward(e, r, &forward));
  if (goes_back(r)) BK_TRY(begin_backward(e, r, &back));
  BK_TRY(post_receives(e)); /* buffers have become free */
  if (r->kind == BK_WORK_FB) return run_both(e, r, &forward, &back);
  return run_rest(e, r, goes_forward(r) ? &forward : &back);
}

/* ---- a step ---- */

static void begin(bk_executor *e, const bk_executor_calls *calls) {
  e->calls = calls;
  e->how = (bk_run){.profile = bk_profile_of(e->model),
                    .look = calls->look,
                    .look_arg = calls->user,
                    .after_arg = calls->parallel};
  for (int p = 0; p < e->schedule->ranks; p++) e->sources[p].next = 0;
  for (int c = 0; c < e->n_held; c++) {
    held *h = &e->held[c];
    h->head = h->count = 0;
    for (int side = 0; side < SIDES; side++) h->rings[side].posted = h->rings[side].taken = 0;
  }
}

/* Where no bucket becomes whole, programs may run as graphs. */
static bk_status run_records(bk_executor *e) {
  bk_parallel *parallel = e->calls->parallel;
  for (int i = 0; i < e->own->n_records; i++) {
    bool due = parallel && bk_parallel_at(parallel, i);
    e->how.after = due ? bk_parallel_after : NULL;
    BK_TRY(run_record(e, &e->own->records[i]));
  }
  return BK_OK;
}

bk_status bk_executor_step(bk_executor *e, const bk_executor_calls *calls) {
  begin(e, calls);
  bk_status status = run_records(e);
  if (status != BK_OK) {
    bk_lanes_sync(&e->model->lanes);
    if (e->model->options.comm) bk_comm_abort(e->model->options.comm);
    drop_all(e);
    return status;
  }
  return bk_executor_finish(e);
}

/* ---- evaluation ---- */

/* The messages of a forward pass alone, of stream 0. */
static bk_schedule_message message(const bk_executor *e, int stage, int edge, int64_t n) {
  int chunk, peer = bk_schedule_holder(e->schedule, 0, stage, &chunk);
  return (bk_schedule_message){
      .peer = peer, .peer_chunk = (int8_t)chunk, .edge = edge, .micro = (int)(n % e->micros)};
}

static bk_status evaluate_chunk(bk_executor *e, int c, int64_t n) {
  held *h = &e->held[c];
  int stage = e->own->chunks[c].stage, slot = (int)(n % e->own->chunks[c].slots);
  bk_port in = bk_chunk_input(h->chunk, slot), out = bk_chunk_output(h->chunk, slot);
  work w = {.n = 0};
  BK_TRY(finish_send(e, &h->sent[slot * SIDES + STREAMS]));
  if (h->chunk->has_embed || h->chunk->has_head) {
    const int32_t *ids, *targets;
    BK_TRY(e->calls->feed(e->calls->user, n, &ids, &targets));
    BK_TRY(bk_chunk_upload(h->chunk, slot, ids, targets));
  }
  if (stage > 0) {
    bk_schedule_message m = message(e, stage - 1, stage - 1, n);
    if (m.peer == e->layout->p) {
      const held *before = &e->held[m.peer_chunk];
      bk_port from = bk_chunk_output(before->chunk, (int)(n % e->own->chunks[m.peer_chunk].slots));
      BK_TRY(bk_port_copy(e->model->stream, &from, &in));
    } else {
      bk_request *request;
      BK_TRY(post(e, false, &h->rings[STREAMS].buffers[0], &m, m.peer, &request));
      BK_TRY(await(e, &request));
      BK_TRY(bk_port_copy(e->model->stream, &h->rings[STREAMS].buffers[0], &in));
    }
  }
  add_program(e, &w, c, slot, BK_PROGRAM_FORWARD);
  if (h->chunk->has_head) add_program(e, &w, c, slot, BK_PROGRAM_EVALUATE);
  BK_TRY(run_rest(e, NULL, &w));
  if (h->chunk->has_head) return BK_OK;
  bk_schedule_message m = message(e, stage + 1, stage, n);
  return m.peer == e->layout->p ? BK_OK : send(e, &m, &out, &h->sent[slot * SIDES + STREAMS]);
}

bk_status bk_executor_evaluate(bk_executor *e, int64_t n, const bk_executor_calls *calls) {
  begin(e, calls);
  for (int stage = 0; stage < e->schedule->stages; stage++)
    for (int c = 0; c < e->n_held; c++)
      if (e->own->chunks[c].stage == stage && e->own->chunks[c].stream == 0)
        BK_TRY(evaluate_chunk(e, c, n));
  return BK_OK;
}

/* ---- for those who look ---- */

const bk_pass_run *bk_executor_runs(const bk_executor *e, int *n) {
  *n = e->n_runs;
  return e->runs;
}

/* Of an FB the two passes are of different chunks. */
static const part *part_of(const bk_executor *e, const bk_piece *piece) {
  return &e->parts[piece->pass == BK_PASS_F ? 0 : 1];
}

const bk_chunk *bk_executor_chunk(const bk_executor *e, const bk_piece *piece, int *slot) {
  const part *p = part_of(e, piece);
  *slot = e->held[p->chunk].slots[p->micro];
  return e->held[p->chunk].chunk;
}

int64_t bk_executor_micro(const bk_executor *e, const bk_piece *piece) {
  const part *p = part_of(e, piece);
  return number_of(e, p->chunk, p->micro);
}

bk_chunk *bk_executor_nth_chunk(const bk_executor *e, int i, int *slot) {
  *slot = e->held[i].slots[e->micros - 1];
  return e->held[i].chunk;
}
