/* The engine's life. bk_engine_open starts the thread, which opens the wire, and gives it its
 * memory once it is known how many ranks there are. The thread sleeps while there is nothing to do;
 * it never uses the context but while bk_engine_open waits for it.
 *
 * Its end is one of two. At the end of the job every rank tells all others that it leaves and waits
 * for their word, so that no message is under way when the wire is closed. After a failure it tells
 * the others why, if they will hear it within a moment, closes the wire without them, and ends all
 * operations with the reason. */
#include "comm/engine_priv.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

/* How long a rank that has failed tries to tell the others, in seconds. */
#define LAST_WORDS 0.25

/* ---- failure ---- */

/* The first reason counts. */
static void set_failed(bk_engine *e, const char *reason, bool by_itself) {
  pthread_mutex_lock(&e->lock);
  if (!e->failed) {
    e->failed = true;
    e->by_itself = by_itself;
    snprintf(e->reason, sizeof e->reason, "%s", reason);
    pthread_cond_broadcast(&e->work);
    pthread_cond_broadcast(&e->done);
  }
  pthread_mutex_unlock(&e->lock);
}

void bk_engine_fail(bk_engine *e, const char *reason) { set_failed(e, reason, false); }

bool bk_engine_fault(bk_engine *e, const char *reason) {
  set_failed(e, reason, true);
  return false;
}

bool bk_engine_has_failed(bk_engine *e) {
  pthread_mutex_lock(&e->lock);
  bool failed = e->failed;
  pthread_mutex_unlock(&e->lock);
  return failed;
}

/* The reason does not change any more once there is one. */
bk_status bk_engine_report(bk_engine *e, bk_context *ctx) {
  if (e->logged) return BK_ERR_COMM;
  e->logged = true;
  return bk_fail(ctx, BK_ERR_COMM, "%s", e->reason);
}

void bk_engine_on_fail(bk_engine *e, bk_engine_fail_fn call, void *user) {
  pthread_mutex_lock(&e->lock);
  e->on_fail = call;
  e->on_fail_user = user;
  pthread_cond_broadcast(&e->work);
  pthread_mutex_unlock(&e->lock);
}

/* ---- the thread ---- */

static void say(bk_engine *e, bk_kind kind, const char *text) {
  e->farewell = (bk_header){.magic = BK_HEADER_MAGIC, .kind = kind, .from = e->rank};
  snprintf(e->farewell.text, sizeof e->farewell.text, "%s", text);
  for (int p = 0; p < e->size; p++)
    if (p != e->rank && !bk_engine_send_own(e, p, &e->farewell)) return;
}

/* What others have sent goes unread, but for their own last words, which are told already. */
static void tell_others(bk_engine *e) {
  double until = e->seconds() + LAST_WORDS;
  bool moved = false, told;
  pthread_mutex_lock(&e->lock);
  told = e->told;
  pthread_mutex_unlock(&e->lock);
  if (told || e->own_messages) return;
  say(e, BK_FAULT, e->reason);
  while (e->own_messages && e->seconds() < until) {
    bk_engine_receive_headers(e);
    bk_engine_finish_messages(e, &moved);
    if (!moved) e->wire->ops->idle(e->wire);
    moved = false;
  }
}

static bool all_have_left(const bk_engine *e) {
  bool all = true;
  for (int p = 0; p < e->size; p++) all &= p == e->rank || e->inboxes[p].left;
  return all;
}

/* False: a rank has failed, or does not leave in time. */
static bool leave(bk_engine *e) {
  double until = e->seconds() + e->timeout_s;
  bool moved = false;
  say(e, BK_LEAVE, "");
  while (e->own_messages || !all_have_left(e)) {
    if (bk_engine_has_failed(e) || !bk_engine_receive_headers(e) ||
        !bk_engine_finish_messages(e, &moved))
      return false;
    if (e->seconds() > until)
      return bk_engine_fault(e, "the job was left by some of its ranks only");
    if (!moved) e->wire->ops->idle(e->wire);
    moved = false;
  }
  return true;
}

/* Ends what is under way and what nobody has looked at yet. Nothing is posted any more, because
 * `failed` is seen under the lock. */
static void complete_all(bk_engine *e) {
  bk_list *lists[] = {&e->active, &e->collectives, &e->exchanges, &e->posted};
  for (size_t i = 0; i < BK_COUNT(lists); i++)
    for (;;) {
      pthread_mutex_lock(&e->lock);
      bk_operation *o = bk_list_take(lists[i]);
      pthread_mutex_unlock(&e->lock);
      if (!o) break;
      bk_engine_complete(e, o, BK_ERR_COMM);
    }
}

/* With the lock held, but not during the call. False: nobody is to be told. */
static bool call_locked(bk_engine *e) {
  bk_engine_fail_fn call = e->by_itself ? e->on_fail : NULL;
  void *user = e->on_fail_user;
  if (!call) return false;
  e->by_itself = false;
  pthread_mutex_unlock(&e->lock);
  call(user, e->reason);
  pthread_mutex_lock(&e->lock);
  return true;
}

static void call_on_fail(bk_engine *e) {
  pthread_mutex_lock(&e->lock);
  call_locked(e);
  pthread_mutex_unlock(&e->lock);
}

static void end_failed(bk_engine *e) {
  call_on_fail(e);
  tell_others(e);
  e->wire->ops->close(e->wire, true);
  complete_all(e);
  pthread_mutex_lock(&e->lock);
  while (!e->stop) /* whoever asks to be told may ask after the failure */
    if (!call_locked(e)) pthread_cond_wait(&e->work, &e->lock);
  pthread_mutex_unlock(&e->lock);
}

static bool head_is_ready(const bk_list *list) {
  return list->first && list->first->state == BK_REQUEST_TAKEN;
}

/* Sleeps until there is something to do, with the lock held. */
static void await_work(bk_engine *e) {
  while (!e->stop && !e->failed && !e->posted.first && !e->active.first &&
         !head_is_ready(&e->collectives) && !head_is_ready(&e->exchanges))
    pthread_cond_wait(&e->work, &e->lock);
}

/* False: the engine ends. */
static bool take_posted(bk_engine *e) {
  pthread_mutex_lock(&e->lock);
  await_work(e);
  for (bk_operation *o; (o = bk_list_take(&e->posted));)
    bk_list_append(o->kind == BK_SEND ? &e->exchanges : &e->collectives, o);
  bool goes_on = !e->failed && !(e->stop && (e->abandon || !e->active.first));
  pthread_mutex_unlock(&e->lock);
  return goes_on;
}

/* Opens the wire, tells bk_engine_open, and waits for its word. False: the thread is not needed. */
static bool open_wire(bk_engine *e) {
  bk_status status = e->transport->open(e->ctx, e->options, &e->wire);
  pthread_mutex_lock(&e->lock);
  e->open_status = status;
  e->opened = true;
  pthread_cond_broadcast(&e->done);
  while (!e->started && !e->stop) pthread_cond_wait(&e->work, &e->lock);
  bool started = e->started;
  pthread_mutex_unlock(&e->lock);
  return started;
}

static void *engine_main(void *arg) {
  bk_engine *e = arg;
  if (!open_wire(e)) {
    if (e->wire) e->wire->ops->close(e->wire, true);
    return NULL;
  }
  while (take_posted(e) && bk_engine_work(e))
    ;
  if (bk_engine_has_failed(e) || (!e->abandon && !leave(e))) end_failed(e);
  else e->wire->ops->close(e->wire, e->abandon);
  return NULL;
}

/* ---- open and close ---- */

/* A new thread inherits the signal mask of its creator: signals are the host program's. */
static bk_status start_thread(bk_engine *e) {
  pthread_attr_t attributes;
  sigset_t all, before;
  int error = pthread_attr_init(&attributes);
  if (!error) {
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_attr_setstacksize(&attributes, BK_WORKER_STACK);
    if (!error) error = pthread_create(&e->thread, &attributes, engine_main, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
  }
  if (error)
    return bk_fail(e->ctx, BK_ERR_MEMORY, "cannot start the thread of communication: %s",
                   strerror(error));
  pthread_mutex_lock(&e->lock);
  while (!e->opened) pthread_cond_wait(&e->done, &e->lock);
  pthread_mutex_unlock(&e->lock);
  return BK_OK;
}

static bk_status check_wire(bk_engine *e) {
  BK_TRY(e->open_status);
  const bk_wire *w = e->wire;
  if (w->size > 0 && w->rank >= 0 && w->rank < w->size && w->channels >= BK_WIRE_CHANNELS &&
      w->slots >= BK_WIRE_SLOTS(w->size) && w->size <= 1 << BK_REDUCE_DEPTH)
    return BK_OK;
  return bk_fail(
      e->ctx, BK_ERR_ABI,
      "transport %s: rank %d of %d, %d channels, %d slots; needed are at most %d ranks, %d "
      "channels and %d slots",
      e->transport->name, w->rank, w->size, w->channels, w->slots, 1 << BK_REDUCE_DEPTH,
      BK_WIRE_CHANNELS, BK_WIRE_SLOTS(w->size));
}

static bk_status make_room(bk_engine *e) {
  size_t slots = (size_t)e->wire->slots;
  e->inboxes = bk_alloc_array(e->ctx, (size_t)e->size, sizeof *e->inboxes);
  if (!e->inboxes) return BK_ERR_MEMORY;
  e->free_slots = bk_alloc_array(e->ctx, slots, sizeof *e->free_slots);
  if (!e->free_slots) return BK_ERR_MEMORY;
  e->slots = bk_alloc_array(e->ctx, slots, sizeof *e->slots);
  if (!e->slots) return BK_ERR_MEMORY;
  e->slot_done = bk_alloc_array(e->ctx, slots, sizeof *e->slot_done);
  if (!e->slot_done) return BK_ERR_MEMORY;
  e->messages = bk_alloc_array(e->ctx, slots, sizeof *e->messages);
  if (!e->messages) return BK_ERR_MEMORY;
  while (e->n_free < e->wire->slots) {
    e->free_slots[e->n_free] = e->n_free;
    e->n_free++;
  }
  return BK_OK;
}

/* The group of all ranks, for bk_engine_gather. */
static bk_status make_all(bk_engine *e) {
  int size = e->size;
  int *members = bk_alloc_array(e->ctx, (size_t)size, sizeof *members);
  if (!members) return BK_ERR_MEMORY;
  for (int r = 0; r < size; r++) members[r] = r;
  bk_status status = bk_engine_comm_make(e, NULL, members, size, e->rank, 0, &e->all);
  bk_free(e->ctx, members);
  return status;
}

static void end_thread(bk_engine *e) {
  pthread_mutex_lock(&e->lock);
  e->stop = true;
  pthread_cond_broadcast(&e->work);
  pthread_mutex_unlock(&e->lock);
  pthread_join(e->thread, NULL);
}

static void engine_free(bk_engine *e) {
  if (e->all) bk_engine_comm_free(e->all);
  pthread_cond_destroy(&e->done);
  pthread_cond_destroy(&e->work);
  pthread_mutex_destroy(&e->lock);
  bk_free(e->ctx, e->messages);
  bk_free(e->ctx, e->slot_done);
  bk_free(e->ctx, e->slots);
  bk_free(e->ctx, e->free_slots);
  bk_free(e->ctx, e->inboxes);
  bk_free(e->ctx, e);
}

/* The thread waits for `started`. */
static bk_status complete_open(bk_engine *e, bk_job_options *options) {
  BK_TRY(check_wire(e));
  e->rank = e->wire->rank;
  e->size = e->wire->size;
  BK_TRY(make_room(e));
  BK_TRY(make_all(e));
  options->rank = e->rank;
  options->size = e->size;
  pthread_mutex_lock(&e->lock);
  e->started = true;
  e->options = NULL;
  pthread_cond_broadcast(&e->work);
  pthread_mutex_unlock(&e->lock);
  return BK_OK;
}

bk_status bk_engine_open(bk_context *ctx, const bk_transport *transport, bk_job_options *options,
                         bk_engine **engine) {
  if (!ctx->os) return bk_fail(ctx, BK_ERR_UNSUPPORTED, "comm: an embedded context has no threads");
  bk_engine *e = bk_alloc(ctx, sizeof *e);
  if (!e) return BK_ERR_MEMORY;
  e->ctx = ctx;
  e->transport = transport;
  e->options = options;
  e->seconds = ctx->os->seconds;
  e->timeout_s = options->timeout_s > 0 ? options->timeout_s : BK_JOB_TIMEOUT;
  pthread_mutex_init(&e->lock, NULL);
  pthread_cond_init(&e->work, NULL);
  pthread_cond_init(&e->done, NULL);
  bk_status status = start_thread(e);
  if (status == BK_OK) {
    status = complete_open(e, options);
    if (status == BK_OK) {
      *engine = e;
      return BK_OK;
    }
    end_thread(e);
  }
  engine_free(e);
  return status;
}

void bk_engine_close(bk_engine *e, bool abandon) {
  pthread_mutex_lock(&e->lock);
  e->abandon = abandon;
  pthread_mutex_unlock(&e->lock);
  end_thread(e);
  engine_free(e);
}

bk_status bk_engine_gather(bk_engine *e, const void *src, size_t bytes, void *dst) {
  return bk_engine_comm_gather(e->all, src, bytes, dst);
}

/* Ranks make their comms in the same order, so that the numbers of their groups agree. */
bk_status bk_engine_comm(bk_engine *e, bk_device *device, bk_comm **comm) {
  bk_engine_comm_state *made = NULL;
  BK_TRY(bk_engine_comm_make(e, device, e->all->members, e->size, e->rank, ++e->comms_made, &made));
  *comm = &made->base;
  return BK_OK;
}
