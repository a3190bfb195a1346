/* Handles of the control store, and what is called with them. A handle is on rank 0's side, where
 * the table is in reach, or it is a client of another process's. */
#include "comm/store_priv.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PAUSE_LEAST 0.001 /* seconds between two questions for a key that is waited for */
#define PAUSE_MOST 0.05
#define RANKS_MOST 65536

/* ---- opening ---- */

static bk_status check_options(bk_context *ctx, const bk_store_options *o) {
  if (o->size < 1 || o->size > RANKS_MOST || o->rank < 0 || o->rank >= o->size)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "control store: rank %d of %d", o->rank, o->size);
  if (!(o->timeout_s > 0) || isinf(o->timeout_s))
    return bk_fail(ctx, BK_ERR_ARGUMENT, "control store: a time-out of %g s",
                   bk_unsigned_nan(o->timeout_s));
  if (!o->address && o->rank != 0)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "control store: rank %d has no address of rank 0",
                   o->rank);
  size_t token = o->token ? strlen(o->token) : 1;
  if (token >= 1 && token <= STORE_TOKEN) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "control store: a token of %zu bytes, not 1 to %d", token,
                 STORE_TOKEN);
}

static void hold(bk_store_hub *hub) {
  pthread_mutex_lock(&hub->lock);
  hub->holders++;
  pthread_mutex_unlock(&hub->lock);
}

bk_store_hub *bk_store_hold(bk_store *store) {
  hold(store->hub);
  return store->hub;
}

void bk_store_release(bk_store_hub *hub) {
  if (!hub) return;
  pthread_mutex_lock(&hub->lock);
  bool last = --hub->holders == 0;
  pthread_mutex_unlock(&hub->lock);
  if (last) store_hub_close(hub);
}

/* One more handle on rank 0's side. */
static void list(bk_store *store, bk_store_hub *hub) {
  store->hub = hub;
  pthread_mutex_lock(&hub->calls);
  store->next = hub->listed;
  hub->listed = store;
  pthread_mutex_unlock(&hub->calls);
  hold(hub);
}

bk_status bk_store_open(bk_context *ctx, const bk_store_options *options, bk_store **store) {
  BK_TRY(check_options(ctx, options));
  bk_store *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  *made = (bk_store){
      .ctx = ctx, .rank = options->rank, .size = options->size, .timeout_s = options->timeout_s};
  bk_store_hub *hub = NULL;
  bk_status status = options->rank == 0 ? store_hub_open(ctx, options, &hub)
                                        : store_client_open(ctx, made, options, &made->client);
  if (status != BK_OK) {
    bk_free(ctx, made);
    return status;
  }
  if (hub) list(made, hub);
  *store = made;
  return BK_OK;
}

bk_status bk_store_share(bk_context *ctx, bk_store_hub *hub, int rank, bk_store **store) {
  if (rank < 1 || rank >= hub->size)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "control store: rank %d of %d cannot share it", rank,
                   hub->size);
  bk_store *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  *made = (bk_store){.ctx = ctx, .rank = rank, .size = hub->size, .timeout_s = hub->timeout_s};
  list(made, hub);
  *store = made;
  return BK_OK;
}

const char *bk_store_address(const bk_store *store) {
  return store->hub ? store->hub->address : "";
}

/* ---- closing ---- */

/* Rank 0 stays until the others have said goodbye: they would take its end for a death. */
static void await_goodbyes(bk_store *store) {
  bk_store_hub *hub = store->hub;
  double deadline = bk_seconds() + hub->timeout_s;
  pthread_mutex_lock(&hub->lock);
  for (;;) {
    double left = deadline - bk_seconds();
    if (hub->away == 0 || left <= 0 || bk_fate_known(&hub->fate, NULL, 0)) break;
    store_cond_wait(&hub->changed, &hub->lock, left < 1 ? left : 1);
  }
  int away = hub->away;
  pthread_mutex_unlock(&hub->lock);
  if (away > 0 && !bk_fate_known(&hub->fate, NULL, 0))
    bk_warn(store->ctx, "control store: %d of %d ranks have not said goodbye within %g s", away,
            store->size, hub->timeout_s);
}

/* Whoever closes because of an abort is called first, like all others, and that is when the other
 * processes have been told: what is called may end this one. */
static void await_calls(bk_store_hub *hub) {
  pthread_mutex_lock(&hub->lock);
  while (bk_fate_known(&hub->fate, NULL, 0) && !hub->called)
    pthread_cond_wait(&hub->changed, &hub->lock);
  pthread_mutex_unlock(&hub->lock);
}

static void unlist(bk_store_hub *hub, bk_store *store) {
  pthread_mutex_lock(&hub->calls);
  bk_store **at = &hub->listed;
  while (*at != store) at = &(*at)->next;
  *at = store->next;
  pthread_mutex_unlock(&hub->calls);
}

static void close_on_hub(bk_store *store) {
  bk_store_hub *hub = store->hub;
  if (store->rank == 0) await_goodbyes(store);
  await_calls(hub);
  unlist(hub, store);
  pthread_mutex_lock(&hub->lock);
  if (store->rank != 0) hub->away--;
  pthread_cond_broadcast(&hub->changed);
  pthread_mutex_unlock(&hub->lock);
  bk_store_release(hub);
}

void bk_store_close(bk_store *store) {
  if (!store) return;
  if (store->hub) close_on_hub(store);
  else store_client_close(store->client);
  bk_free(store->ctx, store);
}

/* ---- keys and values ---- */

static bk_status check_key(const bk_store *store, const char *key) {
  size_t bytes = strlen(key);
  if (bytes >= 1 && bytes <= BK_STORE_KEY) return BK_OK;
  return bk_fail(store->ctx, BK_ERR_ARGUMENT, "control store: a key of %zu bytes, not 1 to %d",
                 bytes, BK_STORE_KEY);
}

static bk_status fail_aborted(bk_store *store, const char *key) {
  char reason[BK_STORE_REASON] = "";
  if (!bk_store_aborted(store, reason, sizeof reason))
    return bk_fail(store->ctx, BK_ERR_COMM, "control store: %s: the connection has ended", key);
  return bk_fail(store->ctx, BK_ERR_COMM, "control store: %s: the job was aborted: %s", key,
                 reason);
}

bk_status bk_store_set(bk_store *store, const char *key, const void *value, size_t bytes) {
  BK_TRY(check_key(store, key));
  if (bytes > BK_STORE_VALUE)
    return bk_fail(store->ctx, BK_ERR_ARGUMENT, "control store: %s: %zu bytes, at most %d", key,
                   bytes, BK_STORE_VALUE);
  store_kind answer = STORE_DONE;
  if (bk_store_aborted(store, NULL, 0)) return fail_aborted(store, key);
  if (store->hub) {
    pthread_mutex_lock(&store->hub->lock);
    if (!store_table_set(store->hub->table, key, strlen(key), value, bytes)) answer = STORE_FULL;
    pthread_cond_broadcast(&store->hub->changed);
    pthread_mutex_unlock(&store->hub->lock);
  } else {
    unsigned char nothing[BK_STORE_VALUE];
    size_t none;
    store_message m = {STORE_SET, (const unsigned char *)key, value, strlen(key), bytes};
    if (!store_client_ask(store->client, &m, &answer, nothing, &none))
      return fail_aborted(store, key);
  }
  if (answer == STORE_DONE) return BK_OK;
  return bk_fail(store->ctx, BK_ERR_COMM, "control store: no room for %s: it has %d keys", key,
                 BK_STORE_ENTRIES);
}

/* One look. The hub's lock is held. */
static bool look(const bk_store_hub *hub, const char *key, unsigned char *value, size_t *bytes) {
  const store_entry *e = store_table_get(hub->table, key, strlen(key));
  if (!e) return false;
  memcpy(value, e->value, e->value_bytes);
  *bytes = e->value_bytes;
  return true;
}

static bk_status fetch(bk_store *store, const char *key, unsigned char *value, size_t *bytes,
                       bool *found) {
  store_message m = {.kind = STORE_GET, .key = (const unsigned char *)key};
  m.key_bytes = strlen(key);
  store_kind answer;
  if (bk_store_aborted(store, NULL, 0)) return fail_aborted(store, key);
  if (store->hub) {
    pthread_mutex_lock(&store->hub->lock);
    *found = look(store->hub, key, value, bytes);
    pthread_mutex_unlock(&store->hub->lock);
    return BK_OK;
  }
  if (!store_client_ask(store->client, &m, &answer, value, bytes)) return fail_aborted(store, key);
  *found = answer == STORE_VALUE;
  return BK_OK;
}

static bk_status deliver(bk_store *store, const char *key, const unsigned char *from,
                         size_t from_bytes, void *value, size_t size, size_t *bytes) {
  if (from_bytes > size)
    return bk_fail(store->ctx, BK_ERR_COMM, "control store: %s has %zu bytes, at most %zu expected",
                   key, from_bytes, size);
  if (from_bytes) memcpy(value, from, from_bytes);
  *bytes = from_bytes;
  return BK_OK;
}

bk_status bk_store_get(bk_store *store, const char *key, void *value, size_t size, size_t *bytes,
                       bool *found) {
  unsigned char taken[BK_STORE_VALUE];
  size_t taken_bytes = 0;
  bool there = false;
  BK_TRY(check_key(store, key));
  BK_TRY(fetch(store, key, taken, &taken_bytes, &there));
  if (there) BK_TRY(deliver(store, key, taken, taken_bytes, value, size, bytes));
  *found = there;
  return BK_OK;
}

/* Rank 0's process is woken by every change; others ask again and again. */
static void pause_for_key(bk_store *store, const char *key, double seconds) {
  unsigned char value[BK_STORE_VALUE];
  size_t bytes;
  if (!store->hub) {
    store_client_pause(store->client, seconds);
    return;
  }
  pthread_mutex_lock(&store->hub->lock);
  if (!look(store->hub, key, value, &bytes) && !bk_fate_known(&store->hub->fate, NULL, 0))
    store_cond_wait(&store->hub->changed, &store->hub->lock, seconds);
  pthread_mutex_unlock(&store->hub->lock);
}

bk_status bk_store_wait(bk_store *store, const char *key, double seconds, void *value, size_t size,
                        size_t *bytes) {
  unsigned char taken[BK_STORE_VALUE];
  size_t taken_bytes = 0;
  double deadline = bk_seconds() + seconds, pause = PAUSE_LEAST;
  BK_TRY(check_key(store, key));
  for (;;) {
    bool there = false;
    BK_TRY(fetch(store, key, taken, &taken_bytes, &there));
    if (there) return deliver(store, key, taken, taken_bytes, value, size, bytes);
    double left = deadline - bk_seconds();
    if (!(left > 0)) break;
    pause_for_key(store, key, left < pause ? left : pause);
    pause = pause * 1.5 < PAUSE_MOST ? pause * 1.5 : PAUSE_MOST;
  }
  return bk_fail(store->ctx, BK_ERR_COMM, "control store: nobody has set %s within %g s", key,
                 seconds);
}

/* ---- aborts ---- */

void bk_store_abort(bk_store *store, const char *reason) {
  if (!store->hub) store_client_abort(store->client, reason);
  else if (bk_fate_seal(&store->hub->fate, reason)) store_hub_wake(store->hub);
}

bool bk_store_aborted(bk_store *store, char *reason, size_t size) {
  return store->hub ? bk_fate_known(&store->hub->fate, reason, size)
                    : store_client_aborted(store->client, reason, size);
}

void bk_store_on_abort(bk_store *store, bk_store_abort_fn call, void *user) {
  if (!store->hub) {
    store_client_on_abort(store->client, call, user);
    return;
  }
  pthread_mutex_lock(&store->hub->calls);
  store->call = call;
  store->call_user = user;
  pthread_mutex_unlock(&store->hub->calls);
  store_hub_wake(store->hub);
}
