/* The store as other processes than rank 0's have it: a thread that owns the connection. It sends a
 * sign of life twice a second, hands the rank's requests over one at a time, and knows when to stop
 * hoping: when rank 0 says that the job was aborted, when the connection ends, or when nothing has
 * come back for the time-out, as on a link that was cut.
 *
 * An abort by this rank is sent to rank 0 first, whose answer has the reason that all ranks learn;
 * only where no answer comes is it the own one. */
#include "comm/store_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BEAT_S 0.5   /* between two signs of life; no longer than a quarter of the time-out */
#define ANSWER_S 1.0 /* that rank 0 has to answer an abort */

typedef enum phase { IDLE, ASKED, SENT, ANSWERED } phase;

struct store_client {
  bk_store *store;
  double timeout_s;
  int fd, wake[2];
  bool started;
  pthread_t thread;
  bk_fate own, learned; /* what this rank has said, and what counts */
  atomic_bool leaving;
  pthread_mutex_t turn;  /* of the callers: one request at a time */
  pthread_mutex_t calls; /* the handle's callback */
  pthread_mutex_t lock;  /* from here to `value` */
  pthread_cond_t changed;
  phase phase;
  bool ended; /* nothing is sent any more */
  size_t request_bytes, value_bytes;
  store_kind answer;
  unsigned char request[STORE_MESSAGE], value[BK_STORE_VALUE];
  /* the thread's own */
  double heard, beat, abort_sent;
  bool said_goodbye, finished;
  size_t in_used, out_used;
  unsigned char in[STORE_MESSAGE], out[2 * STORE_MESSAGE];
};

static void put(store_client *c, store_kind kind, const void *value, size_t bytes) {
  store_message m = {.kind = kind, .value = value, .value_bytes = bytes};
  store_put(c->out, sizeof c->out, &c->out_used, &m);
}

/* ---- what rank 0 says ---- */

static void lose(store_client *c, const char *reason) {
  char own[BK_STORE_REASON];
  c->finished = true;
  if (c->said_goodbye) return;
  bk_fate_seal(&c->learned, bk_fate_known(&c->own, own, sizeof own) ? own : reason);
}

static void take_aborted(store_client *c, const store_message *m) {
  char reason[BK_STORE_REASON];
  bk_fate_clean(reason, sizeof reason, (const char *)m->value, m->value_bytes);
  bk_fate_seal(&c->learned, reason);
  c->finished = true;
}

/* False where nobody has asked. */
static bool take_answer(store_client *c, const store_message *m) {
  pthread_mutex_lock(&c->lock);
  bool asked = c->phase == SENT;
  if (asked) {
    c->phase = ANSWERED;
    c->answer = m->kind;
    c->value_bytes = m->value_bytes;
    memcpy(c->value, m->value, m->value_bytes);
    pthread_cond_broadcast(&c->changed);
  }
  pthread_mutex_unlock(&c->lock);
  return asked;
}

static bool take(store_client *c, const store_message *m) {
  switch (m->kind) {
    case STORE_ALIVE: return true;
    case STORE_DONE:
    case STORE_FULL:
    case STORE_VALUE:
    case STORE_NOTHING: return take_answer(c, m);
    case STORE_ABORTED: take_aborted(c, m); return true;
    case STORE_FAREWELL: c->finished = c->said_goodbye; return c->said_goodbye;
    default: return false;
  }
}

static void read_answers(store_client *c, double now) {
  store_message m;
  size_t used;
  bool open = true, more = true;
  while (more && !c->finished) {
    size_t before = c->in_used;
    open = open && store_read_some(c->fd, c->in, sizeof c->in, &c->in_used);
    more = c->in_used > before;
    store_parsed parsed;
    while (!c->finished && (parsed = store_parse(c->in, c->in_used, &m, &used)) != STORE_PARTIAL) {
      if (parsed != STORE_WHOLE || !take(c, &m)) {
        lose(c, "rank 0 sent what is no message of the control store");
        return;
      }
      memmove(c->in, c->in + used, c->in_used - used);
      c->in_used -= used;
      c->heard = now;
    }
  }
  if (!open && !c->finished) lose(c, "rank 0, which serves the control store, has ended");
}

/* ---- what this rank says ---- */

static void put_request(store_client *c) {
  pthread_mutex_lock(&c->lock);
  if (c->phase == ASKED && sizeof c->out - c->out_used >= c->request_bytes) {
    memcpy(c->out + c->out_used, c->request, c->request_bytes);
    c->out_used += c->request_bytes;
    c->phase = SENT;
  }
  pthread_mutex_unlock(&c->lock);
}

static void put_abort(store_client *c, double now) {
  char reason[BK_STORE_REASON];
  if (!bk_fate_known(&c->own, reason, sizeof reason)) return;
  if (c->abort_sent > 0 && now - c->abort_sent > ANSWER_S) lose(c, reason);
  if (c->abort_sent > 0 || sizeof c->out - c->out_used < STORE_HEADER + BK_STORE_REASON) return;
  put(c, STORE_ABORT, reason, strlen(reason));
  c->abort_sent = now;
}

static void say(store_client *c, double now) {
  put_abort(c, now);
  if (!c->said_goodbye) put_request(c);
  if (!c->said_goodbye && c->out_used == 0 && now >= c->beat) {
    put(c, STORE_BEAT, NULL, 0);
    c->beat = now + (c->timeout_s < 4 * BEAT_S ? c->timeout_s / 4 : BEAT_S);
  }
  if (atomic_load(&c->leaving) && !c->said_goodbye && sizeof c->out - c->out_used >= STORE_HEADER) {
    put(c, STORE_GOODBYE, NULL, 0);
    c->said_goodbye = true;
  }
  if (!store_write_some(c->fd, c->out, &c->out_used))
    lose(c, "rank 0, which serves the control store, has ended");
}

static void judge(store_client *c, double now) {
  char text[128];
  if (c->finished || now - c->heard <= c->timeout_s) return;
  snprintf(text, sizeof text, "nothing was heard of rank 0 for %g s", c->timeout_s);
  lose(c, text);
}

/* ---- the thread ---- */

static int patience_ms(const store_client *c, double now) {
  double until = c->beat, end = c->heard + c->timeout_s;
  if (c->abort_sent > 0 && c->abort_sent + ANSWER_S < until) until = c->abort_sent + ANSWER_S;
  if (end < until) until = end;
  return until <= now ? 1 : (int)((until - now) * 1e3) + 1;
}

static void turn(store_client *c) {
  double now = bk_seconds();
  struct pollfd fds[2] = {{.fd = c->wake[0], .events = POLLIN},
                          {.fd = c->fd, .events = POLLIN | (c->out_used > 0 ? POLLOUT : 0)}};
  poll(fds, 2, patience_ms(c, now));
  now = bk_seconds();
  store_pipe_drain(c->wake);
  read_answers(c, now);
  if (!c->finished) say(c, now);
  judge(c, now);
}

static void call_back(store_client *c) {
  char reason[BK_STORE_REASON];
  if (!bk_fate_known(&c->learned, reason, sizeof reason)) return;
  pthread_mutex_lock(&c->calls);
  bk_store_abort_fn call = c->store->call;
  c->store->call = NULL;
  if (call) call(c->store->call_user, reason);
  pthread_mutex_unlock(&c->calls);
}

/* Rank 0 waits for the end of the connection, and so it comes before the callback. */
static void end_connection(store_client *c) {
  close(c->fd);
  pthread_mutex_lock(&c->lock);
  c->ended = true;
  pthread_cond_broadcast(&c->changed);
  pthread_mutex_unlock(&c->lock);
}

/* When the connection has ended, callbacks may still be asked for. */
static void *client_main(void *arg) {
  store_client *c = arg;
  while (!c->finished) turn(c);
  end_connection(c);
  call_back(c);
  while (!atomic_load(&c->leaving)) {
    struct pollfd fd = {.fd = c->wake[0], .events = POLLIN};
    poll(&fd, 1, -1);
    store_pipe_drain(c->wake);
    call_back(c);
  }
  return NULL;
}

/* ---- joining ---- */

/* Waits for one message of rank 0. False: the connection has ended, or the time is over. */
static bool await_message(store_client *c, store_message *m, double deadline) {
  for (;;) {
    size_t used;
    bool open = store_read_some(c->fd, c->in, sizeof c->in, &c->in_used);
    store_parsed parsed = store_parse(c->in, c->in_used, m, &used);
    if (parsed == STORE_WHOLE) {
      c->in_used -= used; /* what follows it, if anything, is moved when the fields were used */
      return true;
    }
    double left = deadline - bk_seconds();
    if (parsed != STORE_PARTIAL || !open || left <= 0) return false;
    struct pollfd fd = {.fd = c->fd, .events = POLLIN};
    poll(&fd, 1, left > 60 ? 60000 : (int)(left * 1e3) + 1);
  }
}

static void put_hello(store_client *c, const bk_store_options *o) {
  unsigned char value[8 + STORE_TOKEN];
  size_t token = o->token ? strlen(o->token) : 0;
  store_write_u32(value, (uint32_t)o->rank);
  store_write_u32(value + 4, (uint32_t)o->size);
  if (token) memcpy(value + 8, o->token, token);
  put(c, STORE_HELLO, value, 8 + token);
}

typedef enum joined { JOINED, NOT_YET, REFUSED } joined;

static joined greet(store_client *c, const bk_store_options *o, double deadline, char *reason,
                    size_t size) {
  store_message m;
  c->in_used = c->out_used = 0;
  put_hello(c, o);
  snprintf(reason, size, "the other side did not answer as a control store does");
  if (!store_write_some(c->fd, c->out, &c->out_used) || c->out_used > 0) return NOT_YET;
  if (!await_message(c, &m, deadline)) return NOT_YET;
  if (m.kind == STORE_WELCOME) {
    memmove(c->in, c->in + STORE_HEADER, c->in_used);
    return JOINED;
  }
  if (m.kind != STORE_REFUSED) return NOT_YET;
  bk_fate_clean(reason, size, (const char *)m.value, m.value_bytes);
  return REFUSED;
}

/* Rank 0 may begin later: until the time-out nothing is taken for its absence. Once it is
 * connected, the answer is waited for to the end, because whoever comes twice is refused. */
static bk_status join(bk_context *ctx, store_client *c, const bk_store_options *o) {
  double deadline = bk_seconds() + o->timeout_s, pause = 0.02;
  char reason[BK_STORE_REASON] = "no answer";
  for (bool first = true;; first = false) {
    c->fd = store_connect(o->address, deadline, reason, sizeof reason);
    joined result = NOT_YET;
    if (c->fd >= 0) {
      store_tune(c->fd, o->timeout_s);
      result = greet(c, o, deadline, reason, sizeof reason);
    }
    if (result == JOINED) return BK_OK;
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (result == REFUSED)
      return bk_fail(ctx, BK_ERR_COMM, "control store: rank 0 at %s refused rank %d: %s",
                     o->address, o->rank, reason);
    if (bk_seconds() + pause > deadline) break;
    if (first) bk_debug(ctx, "control store: waiting for rank 0 at %s (%s)", o->address, reason);
    poll(NULL, 0, (int)(pause * 1e3));
    if (pause < 0.5) pause *= 1.5;
  }
  return bk_fail(ctx, BK_ERR_COMM, "control store: rank %d did not reach rank 0 at %s for %g s: %s",
                 o->rank, o->address, o->timeout_s, reason);
}

static bk_status start(bk_context *ctx, store_client *c, const bk_store_options *o) {
  BK_TRY(store_check_address(ctx, o->address, o->token != NULL));
  if (!store_pipe(c->wake))
    return bk_fail(ctx, BK_ERR_IO, "control store: pipe: %s", strerror(errno));
  BK_TRY(join(ctx, c, o));
  c->heard = bk_seconds();
  c->started = store_thread(&c->thread, client_main, c);
  if (c->started) return BK_OK;
  close(c->fd);
  return bk_fail(ctx, BK_ERR_MEMORY, "control store: cannot start a thread");
}

bk_status store_client_open(bk_context *ctx, bk_store *store, const bk_store_options *options,
                            store_client **client) {
  store_client *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->store = store;
  made->timeout_s = options->timeout_s;
  made->fd = made->wake[0] = made->wake[1] = -1;
  pthread_mutex_init(&made->turn, NULL);
  pthread_mutex_init(&made->calls, NULL);
  pthread_mutex_init(&made->lock, NULL);
  store_cond_init(&made->changed);
  bk_status status = start(ctx, made, options);
  if (status == BK_OK) *client = made;
  else store_client_close(made);
  return status;
}

void store_client_close(store_client *c) {
  atomic_store(&c->leaving, true);
  if (c->started) {
    store_pipe_wake(c->wake);
    pthread_join(c->thread, NULL);
  }
  if (c->wake[0] >= 0) close(c->wake[0]), close(c->wake[1]);
  pthread_cond_destroy(&c->changed);
  pthread_mutex_destroy(&c->lock);
  pthread_mutex_destroy(&c->calls);
  pthread_mutex_destroy(&c->turn);
  bk_free(c->store->ctx, c);
}

/* ---- from other threads ---- */

static bool await_answer(store_client *c, store_kind *answer, unsigned char *value,
                         size_t *value_bytes) {
  pthread_mutex_lock(&c->lock);
  while (c->phase != ANSWERED && !c->ended) pthread_cond_wait(&c->changed, &c->lock);
  bool answered = c->phase == ANSWERED;
  if (answered) {
    *answer = c->answer;
    *value_bytes = c->value_bytes;
    memcpy(value, c->value, c->value_bytes);
  }
  c->phase = IDLE;
  pthread_mutex_unlock(&c->lock);
  return answered;
}

bool store_client_ask(store_client *c, const store_message *request, store_kind *answer,
                      unsigned char value[BK_STORE_VALUE], size_t *value_bytes) {
  pthread_mutex_lock(&c->turn);
  pthread_mutex_lock(&c->lock);
  c->request_bytes = 0;
  store_put(c->request, sizeof c->request, &c->request_bytes, request);
  c->phase = ASKED;
  pthread_mutex_unlock(&c->lock);
  store_pipe_wake(c->wake);
  bool answered = await_answer(c, answer, value, value_bytes);
  pthread_mutex_unlock(&c->turn);
  return answered;
}

void store_client_pause(store_client *c, double seconds) {
  pthread_mutex_lock(&c->lock);
  if (!c->ended) store_cond_wait(&c->changed, &c->lock, seconds);
  pthread_mutex_unlock(&c->lock);
}

void store_client_abort(store_client *c, const char *reason) {
  if (bk_fate_seal(&c->own, reason)) store_pipe_wake(c->wake);
}

bool store_client_aborted(store_client *c, char *reason, size_t size) {
  return bk_fate_known(&c->learned, reason, size) || bk_fate_known(&c->own, reason, size);
}

void store_client_on_abort(store_client *c, bk_store_abort_fn call, void *user) {
  pthread_mutex_lock(&c->calls);
  c->store->call = call;
  c->store->call_user = user;
  pthread_mutex_unlock(&c->calls);
  store_pipe_wake(c->wake);
}
