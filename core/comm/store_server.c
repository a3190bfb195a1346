/* Rank 0's thread. It waits for sockets, hands bytes to store_serve, and watches the clock: a
 * stranger has a few seconds to say who it is, and a rank that is silent for the time-out ends the
 * job. An abort is told to all ranks first and to the handles of this process then, because what
 * they call may end the process, and with it the connections. */
#include "comm/store_priv.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define HELLO_S 5.0 /* that a connection has to say who it is */
#define TELL_S 0.25 /* that ranks have to hear of an abort before this process is told */
#define LEAVE_S 1.0 /* the same when rank 0 closes the store */
#define TICK_MS 250 /* between two looks at the clock */

void store_hub_wake(bk_store_hub *hub) { store_pipe_wake(hub->wake); }

void store_hub_call(bk_store_hub *hub) {
  char reason[BK_STORE_REASON];
  if (!bk_fate_known(&hub->fate, reason, sizeof reason)) return;
  pthread_mutex_lock(&hub->calls);
  for (bk_store *s = hub->listed; s; s = s->next) {
    bk_store_abort_fn call = s->call;
    s->call = NULL;
    if (call) call(s->call_user, reason);
  }
  pthread_mutex_unlock(&hub->calls);
}

/* ---- connections ---- */

static void drop(bk_store_hub *hub, store_peer *peer) {
  close(peer->fd);
  store_peer_lost(hub, peer);
}

/* A place for a connection: a free one, or that of the stranger who has been silent longest. Ranks
 * say who they are at once, so that many strangers cannot keep them out. */
static store_peer *place_for_stranger(bk_store_hub *hub) {
  store_peer *free_one = NULL, *oldest = NULL;
  int strangers = 0;
  for (int i = 0; i < hub->n_peers; i++) {
    store_peer *p = &hub->peers[i];
    if (p->fd < 0) free_one = p;
    if (p->fd < 0 || p->rank >= 0) continue;
    strangers++;
    if (!oldest || p->since < oldest->since) oldest = p;
  }
  if (free_one && strangers < STORE_STRANGERS) return free_one;
  if (oldest) drop(hub, oldest);
  return oldest;
}

/* One connection per turn, so that it is read before the next one may take its place. */
static void accept_one(bk_store_hub *hub, int listener, double now) {
  int fd = store_accept(listener);
  if (fd < 0) {
    poll(NULL, 0, 20); /* out of descriptors: the listener would be ready again at once */
    return;
  }
  store_peer *peer = place_for_stranger(hub);
  if (!peer) {
    close(fd);
    return;
  }
  store_tune(fd, hub->timeout_s);
  peer->fd = fd, peer->rank = -1, peer->since = now;
  peer->ending = peer->told = false;
  peer->in_used = peer->out_used = 0;
}

/* What is there is read before a rank is judged by its silence, or a connection by its end: a
 * goodbye may lie before the end. */
static void work_on(bk_store_hub *hub, store_peer *peer, double now) {
  bool broken = false;
  for (bool moved = true; moved && !peer->ending;) {
    size_t before = peer->in_used;
    if (!store_read_some(peer->fd, peer->in, sizeof peer->in, &peer->in_used)) broken = true;
    moved = peer->in_used > before;
    before = peer->in_used;
    store_serve(hub, peer, now);
    if (peer->in_used < before) moved = true;
    if (!store_write_some(peer->fd, peer->out, &peer->out_used)) broken = true;
    if (peer->out_used > 0) break;
  }
  if (broken || (peer->ending && peer->out_used == 0)) drop(hub, peer);
}

static void judge(bk_store_hub *hub, store_peer *peer, double now) {
  char text[128];
  double silent = now - peer->since;
  if (peer->rank < 0 || peer->ending) {
    if (silent > HELLO_S) drop(hub, peer);
    return;
  }
  if (silent <= hub->timeout_s) return;
  snprintf(text, sizeof text, "nothing was heard of rank %d for %g s", peer->rank, hub->timeout_s);
  bk_fate_seal(&hub->fate, text);
}

static void judge_awaited(bk_store_hub *hub, double now) {
  char text[128];
  if (!hub->peers || now - hub->opened <= hub->timeout_s) return;
  for (int r = 1; r < hub->size; r++) {
    if (hub->members[r] != STORE_AWAITED) continue;
    snprintf(text, sizeof text, "rank %d has not come within %g s", r, hub->timeout_s);
    bk_fate_seal(&hub->fate, text);
    return;
  }
}

/* ---- the loop ---- */

/* The number of descriptors; those of the peers begin at *first. */
static int watch(bk_store_hub *hub, int *first) {
  struct pollfd *fds = hub->fds;
  int n = 0;
  fds[n++] = (struct pollfd){.fd = hub->wake[0], .events = POLLIN};
  for (int i = 0; i < hub->n_listeners; i++)
    fds[n++] = (struct pollfd){.fd = hub->listeners[i], .events = POLLIN};
  *first = n;
  for (int i = 0; i < hub->n_peers; i++) {
    short events = hub->peers[i].out_used > 0 ? POLLOUT : POLLIN;
    fds[n++] = (struct pollfd){.fd = hub->peers[i].fd, .events = events};
  }
  return n;
}

static int tick(const bk_store_hub *hub) {
  if (!hub->peers) return -1; /* threads: nothing but the pipe happens */
  double ms = hub->timeout_s * 250;
  return ms < 1 ? 1 : ms < TICK_MS ? (int)ms : TICK_MS;
}

static void turn(bk_store_hub *hub) {
  struct pollfd *fds = hub->fds;
  int first, n = watch(hub, &first);
  if (poll(fds, (nfds_t)n, tick(hub)) < 0) return;
  double now = bk_seconds();
  store_pipe_drain(hub->wake);
  for (int i = 0; i < hub->n_peers; i++)
    if (fds[first + i].revents && hub->peers[i].fd >= 0) work_on(hub, &hub->peers[i], now);
  for (int i = 0; i < hub->n_listeners; i++)
    if (fds[1 + i].revents) accept_one(hub, hub->listeners[i], now);
  for (int i = 0; i < hub->n_peers; i++)
    if (hub->peers[i].fd >= 0) judge(hub, &hub->peers[i], now);
  judge_awaited(hub, now);
}

static bool anybody(const bk_store_hub *hub) {
  for (int i = 0; i < hub->n_peers; i++)
    if (hub->peers[i].fd >= 0 && hub->peers[i].rank >= 0) return true;
  return false;
}

/* Sends the news of the abort to all; ranks that have it end their connections. */
static void spread(bk_store_hub *hub, double seconds) {
  double deadline = bk_seconds() + seconds;
  do {
    for (int i = 0; i < hub->n_peers; i++) {
      store_peer *p = &hub->peers[i];
      if (p->fd < 0) continue;
      store_tell(hub, p);
      if (p->out_used > 0 && !store_write_some(p->fd, p->out, &p->out_used)) drop(hub, p);
    }
    if (!anybody(hub)) return;
    turn(hub);
  } while (bk_seconds() < deadline);
}

static void learn(bk_store_hub *hub) {
  pthread_mutex_lock(&hub->lock);
  pthread_cond_broadcast(&hub->changed);
  pthread_mutex_unlock(&hub->lock);
  spread(hub, TELL_S);
}

static void *server_main(void *arg) {
  bk_store_hub *hub = arg;
  bool learned = false;
  while (!atomic_load(&hub->stop)) {
    turn(hub);
    if (!bk_fate_known(&hub->fate, NULL, 0)) continue;
    if (!learned) learn(hub);
    learned = true;
    store_hub_call(hub);
    pthread_mutex_lock(&hub->lock);
    hub->called = true;
    pthread_cond_broadcast(&hub->changed);
    pthread_mutex_unlock(&hub->lock);
  }
  if (bk_fate_known(&hub->fate, NULL, 0)) spread(hub, LEAVE_S);
  for (int i = 0; i < hub->n_peers; i++)
    if (hub->peers[i].fd >= 0) close(hub->peers[i].fd);
  return NULL;
}

/* ---- opening and closing ---- */

static bk_status allocate(bk_context *ctx, bk_store_hub *hub, bool sockets) {
  hub->members = calloc((size_t)hub->size, sizeof *hub->members);
  hub->table = calloc(1, sizeof *hub->table);
  hub->n_peers = sockets ? hub->size - 1 + STORE_STRANGERS : 0;
  hub->fds = calloc((size_t)hub->n_peers + 3, sizeof *hub->fds);
  if (sockets) hub->peers = calloc((size_t)hub->n_peers, sizeof *hub->peers);
  if (!hub->members || !hub->table || !hub->fds || (sockets && !hub->peers))
    return bk_fail(ctx, BK_ERR_MEMORY, "control store: out of memory for %d ranks", hub->size);
  for (int i = 0; i < hub->n_peers; i++) hub->peers[i].fd = -1;
  return BK_OK;
}

/* A socket for each rank, and some more. */
static bk_status check_limit(bk_context *ctx, int size) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= (rlim_t)size + 64) return BK_OK;
  return bk_fail(ctx, BK_ERR_IO,
                 "control store: rank 0 keeps a connection to each of %d ranks, and the limit of "
                 "open files is %llu (ulimit -n)",
                 size, (unsigned long long)limit.rlim_cur);
}

static bk_status start(bk_context *ctx, const bk_store_options *options, bk_store_hub *hub) {
  BK_TRY(allocate(ctx, hub, options->address != NULL));
  if (!store_pipe(hub->wake))
    return bk_fail(ctx, BK_ERR_IO, "control store: pipe: %s", strerror(errno));
  if (options->address) {
    BK_TRY(check_limit(ctx, hub->size));
    BK_TRY(store_listen(ctx, options->address, options->token != NULL, hub));
  }
  hub->started = store_thread(&hub->thread, server_main, hub);
  return hub->started ? BK_OK : bk_fail(ctx, BK_ERR_MEMORY, "control store: cannot start a thread");
}

bk_status store_hub_open(bk_context *ctx, const bk_store_options *options, bk_store_hub **hub) {
  bk_store_hub *made = calloc(1, sizeof *made);
  if (!made) return bk_fail(ctx, BK_ERR_MEMORY, "control store: out of memory");
  made->size = options->size;
  made->timeout_s = options->timeout_s;
  made->opened = bk_seconds();
  made->away = options->size - 1;
  made->wake[0] = made->wake[1] = -1;
  if (options->token) {
    made->token_bytes = strlen(options->token);
    memcpy(made->token, options->token, made->token_bytes);
  }
  pthread_mutex_init(&made->lock, NULL);
  pthread_mutex_init(&made->calls, NULL);
  store_cond_init(&made->changed);
  bk_status status = start(ctx, options, made);
  if (status == BK_OK) *hub = made;
  else store_hub_close(made);
  return status;
}

void store_hub_close(bk_store_hub *hub) {
  atomic_store(&hub->stop, true);
  if (hub->started) {
    store_hub_wake(hub);
    pthread_join(hub->thread, NULL);
  }
  for (int i = 0; i < hub->n_listeners; i++) close(hub->listeners[i]);
  if (hub->wake[0] >= 0) close(hub->wake[0]), close(hub->wake[1]);
  pthread_cond_destroy(&hub->changed);
  pthread_mutex_destroy(&hub->calls);
  pthread_mutex_destroy(&hub->lock);
  free(hub->members);
  free(hub->table);
  free(hub->fds);
  free(hub->peers);
  free(hub);
}
