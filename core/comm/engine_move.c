/* Transfers between a device whose memory is not the host's and pinned memory. They are made by the
 * rank's own thread, in post and wait, on a stream of the comm's own:
 *
 *   posted - staging is free - download begun - download through - the engine's - upload begun
 *
 * An operation has its place in the engine's order from the beginning; the engine waits for its
 * data as for everything else. All transfers of all comms go on whatever is waited for, since the
 * rank that another waits for may be waiting for something else.
 *
 * A failure of the device ends the job: the other ranks cannot go on. */
#include "comm/engine_priv.h"

#include <stdio.h>

/* ---- memory ---- */

static bk_status make_staging(bk_engine_comm_state *c, bk_engine_room *room) {
  bk_device *device = c->base.device;
  room->staging = bk_alloc_array(c->base.ctx, (size_t)room->n_staging, sizeof *room->staging);
  if (!room->staging) return BK_ERR_MEMORY;
  for (int i = 0; i < room->n_staging; i++) {
    void *memory = NULL;
    BK_TRY(device->ops->host_alloc(device, room->staging_bytes, &memory));
    room->staging[i].memory = memory;
    BK_TRY(device->ops->event_create(device, &room->staging[i].uploaded));
  }
  return BK_OK;
}

bk_status bk_move_reserve(bk_engine_comm_state *c, bk_engine_room *room) {
  for (int i = 0; i < room->n; i++)
    BK_TRY(c->base.device->ops->event_create(c->base.device, &room->operations[i].ready));
  return make_staging(c, room);
}

static void event_destroy(bk_event *event) {
  if (event) event->ops->destroy(event);
}

void bk_move_release(bk_engine_comm_state *c, bk_engine_room *room) {
  bk_device *device = c->base.device;
  if (c->stream) c->stream->ops->sync(c->stream); /* uploads may be under way */
  for (int i = 0; room->operations && i < room->n; i++) event_destroy(room->operations[i].ready);
  for (int i = 0; room->staging && i < room->n_staging; i++) {
    event_destroy(room->staging[i].uploaded);
    if (room->staging[i].memory)
      device->ops->host_free(device, room->staging[i].memory, room->staging_bytes);
  }
}

/* ---- the steps ---- */

static bk_engine_room *room_of(const bk_operation *o) {
  return &o->comm->rooms[o->kind == BK_SEND ? BK_ROOM_EXCHANGE : BK_ROOM_COLLECTIVE];
}

static bool stream_is_through(bk_stream *stream) {
  bool done = false;
  return stream->ops->query(stream, &done) == BK_OK && done;
}

bk_status bk_move_begin(bk_operation *o, bk_stream *stream) {
  o->downloading = o->uploaded = false;
  o->staging = NULL;
  return stream->ops->event_record(stream, o->ready);
}

/* `through`: all that the comm's stream was given is done. */
static bool find_staging(bk_operation *o, bool through) {
  bk_engine_room *room = room_of(o);
  for (int i = 0; i < room->n_staging; i++) {
    bk_staging *s = &room->staging[i];
    if (s->uploading && through) s->used = s->uploading = false;
    if (s->used) continue;
    s->used = true;
    o->staging = s;
    o->in = s->memory + o->in_at;
    o->out = s->memory + o->out_at;
    for (int f = 0; o->kind == BK_SEND && f < o->n_flows; f++)
      o->flows[f].send = o->flows[f].receive = s->memory + o->flows[f].send_at;
    return true;
  }
  return false;
}

static bk_status download(bk_operation *o) {
  bk_stream *stream = o->comm->stream;
  BK_TRY(stream->ops->event_wait(stream, o->ready));
  if (o->download.bytes)
    BK_TRY(stream->ops->download(stream, o->staging->memory + o->download.at, o->download.place,
                                 o->download.bytes));
  for (int i = 0; o->kind == BK_SEND && i < o->n_flows; i++) {
    bk_flow *f = &o->flows[i];
    if (f->send_bytes) BK_TRY(stream->ops->download(stream, f->send, f->place, f->send_bytes));
  }
  return stream->ops->event_record(stream, o->ready);
}

static bk_status upload(bk_operation *o) {
  bk_stream *stream = o->comm->stream;
  if (o->upload.bytes)
    BK_TRY(stream->ops->upload(stream, o->upload.place, o->staging->memory + o->upload.at,
                               o->upload.bytes));
  for (int i = 0; o->kind == BK_SEND && i < o->n_flows; i++) {
    bk_flow *f = &o->flows[i];
    if (f->receive_bytes)
      BK_TRY(stream->ops->upload(stream, f->place, f->receive, f->receive_bytes));
  }
  BK_TRY(stream->ops->event_record(stream, o->ready));
  BK_TRY(stream->ops->event_record(stream, o->staging->uploaded));
  o->staging->uploading = true;
  o->uploaded = true;
  return BK_OK;
}

static void device_failed(bk_engine *e, bk_status status) {
  char text[160];
  snprintf(text, sizeof text, "rank %d: a transfer between device and host failed: %s", e->rank,
           bk_status_name(status));
  bk_engine_fail(e, text);
}

static bk_request_state state_now(bk_engine *e, const bk_operation *o) {
  pthread_mutex_lock(&e->lock);
  bk_request_state state = o->state;
  pthread_mutex_unlock(&e->lock);
  return state;
}

/* The data are on the host. After a failure the engine has ended the operation already. */
static void hand_over(bk_engine *e, bk_operation *o) {
  pthread_mutex_lock(&e->lock);
  if (o->state == BK_REQUEST_LATER) o->state = BK_REQUEST_TAKEN;
  pthread_cond_signal(&e->work);
  pthread_mutex_unlock(&e->lock);
}

static bk_status step_later(bk_engine *e, bk_operation *o) {
  bk_stream *stream = o->comm->stream;
  if (!o->downloading) {
    bk_engine_room *room = room_of(o);
    room->starved = room->starved || !find_staging(o, stream_is_through(stream));
    if (room->starved) return BK_OK;
    BK_TRY(download(o));
    o->downloading = true;
  }
  if (stream_is_through(stream)) hand_over(e, o);
  return BK_OK;
}

/* True: nothing is left to be moved. */
static bool step(bk_engine *e, bk_operation *o) {
  bk_status status = BK_OK;
  bk_request_state state = state_now(e, o);
  if (state == BK_REQUEST_LATER) status = step_later(e, o);
  if (state == BK_REQUEST_DONE && o->status == BK_OK) status = upload(o);
  if (status != BK_OK) device_failed(e, status);
  if (status != BK_OK && state == BK_REQUEST_DONE) o->status = BK_ERR_COMM;
  return state == BK_REQUEST_DONE;
}

/* Staging is given out in the order of the operations, which is that of the engine too: one that
 * gets none holds up those behind it, until the next round. */
void bk_move_pump(bk_engine *e) {
  for (bk_operation *o = e->moving; o; o = o->next_moving) room_of(o)->starved = false;
  for (bk_operation **at = &e->moving; *at;) {
    if (step(e, *at)) *at = (*at)->next_moving;
    else at = &(*at)->next_moving;
  }
}

/* ---- waiting ---- */

/* Waits for a transfer that others wait for; false: there is none. */
static bool await_transfer(bk_engine *e) {
  for (bk_operation *o = e->moving; o; o = o->next_moving) {
    if (state_now(e, o) != BK_REQUEST_LATER) continue;
    bk_engine_room *room = room_of(o);
    bk_event *event = o->downloading ? o->ready : NULL;
    for (int i = 0; !event && i < room->n_staging; i++)
      if (room->staging[i].uploading) event = room->staging[i].uploaded;
    if (!event) continue;
    bk_status status = event->ops->sync(event);
    if (status != BK_OK) device_failed(e, status);
    else if (o->downloading) hand_over(e, o);
    else
      for (int i = 0; i < room->n_staging; i++)
        if (room->staging[i].uploaded == event)
          room->staging[i].used = room->staging[i].uploading = false;
    return true;
  }
  return false;
}

/* What happens between the count and the wait is not missed: it changes the count. After a failure
 * the engine ends every operation, and counts it. */
void bk_move_await(bk_engine *e, bk_operation *o) {
  for (;;) {
    pthread_mutex_lock(&e->lock);
    uint64_t completed = e->completed;
    bool done = o->state == BK_REQUEST_DONE;
    pthread_mutex_unlock(&e->lock);
    bk_move_pump(e);
    if (done) return;
    if (e->moving && !bk_engine_has_failed(e) && await_transfer(e)) continue;
    pthread_mutex_lock(&e->lock);
    while (e->completed == completed && o->state != BK_REQUEST_DONE)
      pthread_cond_wait(&e->done, &e->lock);
    pthread_mutex_unlock(&e->lock);
  }
}

/* The staging may be another operation's by now, and the download of one that failed may still be
 * under way. */
bk_status bk_move_finish(bk_operation *o, bk_stream *stream) {
  if (o->uploaded) return stream->ops->event_wait(stream, o->ready);
  bk_status status = o->comm->stream->ops->sync(o->comm->stream);
  if (o->staging) o->staging->used = false;
  return status;
}
