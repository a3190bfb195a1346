/* The wire of ranks that are threads of one process. For each ordered pair of ranks and channel
 * there is a mailbox with the sends and the receives that have not met. Whoever brings the second
 * of the two copies the data, straight from the sender's memory to the receiver's and outside the
 * lock; nothing is kept in between, so that nothing is allocated after the world was made.
 *
 * A rank that leaves takes its messages out of the mailboxes, and waits for copies of its memory
 * that others are making. What is sent to a rank that has left is done at once. */
#include "comm/threads.h"
#include "comm/transport.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* How long a rank sleeps at most when nothing happens: its own thread posts without waking it. */
#define IDLE_NS 200000

typedef enum { FREE, PENDING, COPYING, DONE, BROKEN } message_state;

typedef struct message {
  struct message *next; /* in its mailbox */
  char *data;
  size_t bytes;
  message_state state;
  int rank; /* whose it is */
} message;

typedef struct queue {
  message *first, *last;
} queue;

typedef struct mailbox {
  queue sends, receives; /* one of the two is empty */
} mailbox;

typedef struct place {
  bk_wire base;
  bk_thread_world *world;
  message *messages; /* [slots] */
  bool open, left;
  bool waits;      /* sleeps on `event` */
  uint64_t events; /* messages of this rank that are done */
  uint64_t seen;
  uint64_t random; /* of this rank's thread alone */
  pthread_cond_t event;
} place;

struct bk_thread_world {
  bk_context *ctx;
  int size;
  uint64_t seed; /* of the disturbance; 0: none */
  pthread_mutex_t lock;
  place *places;      /* [size] */
  mailbox *mailboxes; /* [size * size * BK_WIRE_CHANNELS] */
  message *messages;  /* [size * slots] */
  void *kept;
  void (*release)(void *kept);
};

/* ---- the world ---- */

static void cond_init(pthread_cond_t *cond) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(cond, &attributes);
  pthread_condattr_destroy(&attributes);
}

static bk_status make_places(bk_thread_world *world) {
  size_t size = (size_t)world->size, slots = (size_t)BK_WIRE_SLOTS(world->size);
  world->mailboxes =
      bk_alloc_array(world->ctx, size * size * BK_WIRE_CHANNELS, sizeof *world->mailboxes);
  if (!world->mailboxes) return BK_ERR_MEMORY;
  world->messages = bk_alloc_array(world->ctx, size * slots, sizeof *world->messages);
  if (!world->messages) return BK_ERR_MEMORY;
  world->places = bk_alloc_array(world->ctx, size, sizeof *world->places);
  if (!world->places) return BK_ERR_MEMORY;
  for (size_t r = 0; r < size; r++) {
    world->places[r].world = world;
    world->places[r].messages = &world->messages[r * slots];
    cond_init(&world->places[r].event);
  }
  return BK_OK;
}

bk_status bk_thread_world_create(bk_context *ctx, int size, bk_thread_world **world) {
  if (size < 1 || size > BK_MAX_THREADS)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "threads: %d ranks are not in 1..%d", size,
                   BK_MAX_THREADS);
  bk_thread_world *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->ctx = ctx;
  made->size = size;
  pthread_mutex_init(&made->lock, NULL);
  bk_status status = make_places(made);
  if (status == BK_OK) *world = made;
  else bk_thread_world_destroy(made);
  return status;
}

void bk_thread_world_keep(bk_thread_world *world, void *kept, void (*release)(void *kept)) {
  if (world->release) world->release(world->kept);
  world->kept = kept;
  world->release = release;
}

void bk_thread_world_destroy(bk_thread_world *world) {
  if (!world) return;
  if (world->release) world->release(world->kept);
  for (int r = 0; world->places && r < world->size; r++)
    pthread_cond_destroy(&world->places[r].event);
  pthread_mutex_destroy(&world->lock);
  bk_free(world->ctx, world->places);
  bk_free(world->ctx, world->messages);
  bk_free(world->ctx, world->mailboxes);
  bk_free(world->ctx, world);
}

/* ---- disturbances, for tests ---- */

void bk_thread_world_disturb(bk_thread_world *world, uint64_t seed) {
  world->seed = seed;
  for (int r = 0; r < world->size; r++)
    world->places[r].random = seed ? bk_hash64(&(uint64_t[]){seed, (uint64_t)r}, 16) | 1 : 0;
}

/* xorshift; 0 where nothing is to be disturbed. */
static uint64_t next_random(place *own) {
  own->random ^= own->random << 13;
  own->random ^= own->random >> 7;
  own->random ^= own->random << 17;
  return own->random;
}

static void sleep_at_random(place *own) {
  uint64_t r = next_random(own);
  if (r % 4 == 0) nanosleep(&(struct timespec){.tv_nsec = (long)(r >> 8) % 300000 + 1}, NULL);
}

/* ---- messages. The lock is held in all of these. ---- */

static void append(queue *q, message *m) {
  m->next = NULL;
  if (q->last) q->last->next = m;
  else q->first = m;
  q->last = m;
}

static message *take(queue *q) {
  message *m = q->first;
  if (m) q->first = m->next;
  if (!q->first) q->last = NULL;
  return m;
}

static mailbox *mailbox_of(bk_thread_world *world, int from, int to, int channel) {
  return &world->mailboxes[(from * world->size + to) * BK_WIRE_CHANNELS + channel];
}

static void finish(bk_thread_world *world, message *m, message_state state) {
  place *owner = &world->places[m->rank];
  m->state = state;
  owner->events++;
  if (owner->waits) pthread_cond_signal(&owner->event);
}

/* The two have met. Their memory stays, since both owners wait for the state to change. */
static void copy(bk_thread_world *world, message *send, message *receive) {
  if (send->bytes != receive->bytes) {
    finish(world, send, BROKEN);
    finish(world, receive, BROKEN);
    return;
  }
  send->state = receive->state = COPYING;
  pthread_mutex_unlock(&world->lock);
  if (send->bytes) memcpy(receive->data, send->data, send->bytes);
  pthread_mutex_lock(&world->lock);
  finish(world, send, DONE);
  finish(world, receive, DONE);
}

/* ---- the wire ---- */

static int wire_begin(bk_wire *wire, int peer, int channel, void *data, size_t bytes, int slot,
                      bool send) {
  place *own = (place *)wire;
  bk_thread_world *world = own->world;
  message *m = &own->messages[slot];
  if (own->random && send) sleep_at_random(own);
  pthread_mutex_lock(&world->lock);
  *m = (message){.data = data, .bytes = bytes, .state = PENDING, .rank = wire->rank};
  mailbox *box = send ? mailbox_of(world, wire->rank, peer, channel)
                      : mailbox_of(world, peer, wire->rank, channel);
  message *other = take(send ? &box->receives : &box->sends);
  if (other) copy(world, send ? m : other, send ? other : m);
  else if (send && world->places[peer].left) finish(world, m, DONE);
  else append(send ? &box->sends : &box->receives, m);
  pthread_mutex_unlock(&world->lock);
  return 0;
}

static int wire_send(bk_wire *wire, int peer, int channel, const void *data, size_t bytes,
                     int slot) {
  return wire_begin(wire, peer, channel, (void *)data, bytes, slot, true);
}

static int wire_receive(bk_wire *wire, int peer, int channel, void *data, size_t bytes, int slot) {
  return wire_begin(wire, peer, channel, data, bytes, slot, false);
}

static int wire_test(bk_wire *wire, const int *slots, int n, bool *done) {
  place *own = (place *)wire;
  bool broken = false;
  pthread_mutex_lock(&own->world->lock);
  own->seen = own->events;
  for (int i = 0; i < n; i++) {
    message *m = &own->messages[slots[i]];
    done[i] = m->state == DONE;
    broken |= m->state == BROKEN;
    if (done[i] && own->random && next_random(own) % 2) {
      done[i] = false;
      own->seen--; /* there is still something to be seen: idle does not sleep */
    }
    if (done[i]) m->state = FREE;
  }
  pthread_mutex_unlock(&own->world->lock);
  if (broken)
    snprintf(wire->reason, sizeof wire->reason, "a message and its receive differ in size");
  return broken ? -1 : 0;
}

static void wire_idle(bk_wire *wire) {
  place *own = (place *)wire;
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_nsec += IDLE_NS;
  if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
  pthread_mutex_lock(&own->world->lock);
  own->waits = true;
  if (own->events == own->seen) pthread_cond_timedwait(&own->event, &own->world->lock, &until);
  own->waits = false;
  pthread_mutex_unlock(&own->world->lock);
}

/* Takes what is this rank's out of a queue. */
static void withdraw(queue *q, int rank) {
  queue kept = {NULL, NULL};
  for (message *m; (m = take(q));)
    if (m->rank != rank) append(&kept, m);
  *q = kept;
}

static void wire_close(bk_wire *wire, bool abandon) {
  place *own = (place *)wire;
  bk_thread_world *world = own->world;
  (void)abandon; /* nobody is waited for in either case, but for copies that are under way */
  pthread_mutex_lock(&world->lock);
  own->left = true;
  for (int peer = 0; peer < world->size; peer++)
    for (int c = 0; c < BK_WIRE_CHANNELS; c++) {
      mailbox *in = mailbox_of(world, peer, wire->rank, c);
      withdraw(&in->receives, wire->rank);
      withdraw(&mailbox_of(world, wire->rank, peer, c)->sends, wire->rank);
      for (message *m; (m = take(&in->sends));) finish(world, m, DONE);
    }
  own->waits = true;
  for (int i = 0; i < wire->slots; i++)
    while (own->messages[i].state == COPYING) pthread_cond_wait(&own->event, &world->lock);
  own->waits = own->open = false;
  pthread_mutex_unlock(&world->lock);
}

static const bk_wire_ops wire_ops = {
    .close = wire_close,
    .send = wire_send,
    .receive = wire_receive,
    .test = wire_test,
    .idle = wire_idle,
};

/* ---- the transport ---- */

static bk_status threads_probe(bk_context *ctx, char *reason, size_t reason_size, char *description,
                               size_t description_size) {
  (void)reason, (void)reason_size;
  if (!ctx->os) {
    snprintf(reason, reason_size, "the context is an embedded one and has no threads");
    return BK_ERR_ABSENT;
  }
  snprintf(description, description_size, "ranks are threads of one process");
  return BK_OK;
}

/* A place that a rank has left is not taken again: its peers still know it as gone. */
static bool enter(place *own) {
  pthread_mutex_lock(&own->world->lock);
  bool entered = !own->open && !own->left;
  if (entered) own->open = true;
  pthread_mutex_unlock(&own->world->lock);
  return entered;
}

static bk_status threads_open(bk_context *ctx, bk_job_options *options, bk_wire **wire) {
  bk_thread_world *world = options->world;
  if (!world)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "threads: the options have no world of rank threads");
  if (options->size != 0 && options->size != world->size)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "threads: the options say %d ranks, the world has %d",
                   options->size, world->size);
  if (options->rank < 0 || options->rank >= world->size)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "threads: rank %d is not in 0..%d", options->rank,
                   world->size - 1);
  place *own = &world->places[options->rank];
  if (!enter(own))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "threads: rank %d is there already, or was",
                   options->rank);
  own->base = (bk_wire){.ops = &wire_ops,
                        .rank = options->rank,
                        .size = world->size,
                        .slots = BK_WIRE_SLOTS(world->size),
                        .channels = BK_WIRE_CHANNELS};
  options->size = options->local_size = world->size;
  options->local_rank = options->rank;
  *wire = &own->base;
  return BK_OK;
}

const bk_transport bk_transport_threads = {
    .abi = BK_COMM_ABI, .name = "threads", .probe = threads_probe, .open = threads_open};
