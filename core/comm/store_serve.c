/* What rank 0 answers. Nothing here knows of sockets: a peer is two buffers, so that any bytes can
 * be tried on it without a network (tests/fuzz/fuzz_store.c).
 *
 * A stranger is told as little as possible. Whoever has the token is a rank of the job, and is
 * told exactly what does not fit. */
#include "comm/store_priv.h"

#include <stdio.h>
#include <string.h>

static void answer(store_peer *peer, store_kind kind, const void *value, size_t bytes) {
  store_message m = {.kind = kind, .value = value, .value_bytes = bytes};
  /* the room is that of the longest answer, and an answer is made only when nothing is before it */
  if (!store_put(peer->out, sizeof peer->out, &peer->out_used, &m)) peer->ending = true;
}

static void refuse(store_peer *peer, const char *reason) {
  answer(peer, STORE_REFUSED, reason, strlen(reason));
  peer->ending = true;
}

/* In a time that does not depend on where the two differ. */
static bool token_matches(const bk_store_hub *hub, const unsigned char *token, size_t bytes) {
  unsigned char differs = bytes != hub->token_bytes;
  for (size_t i = 0; i < bytes; i++)
    differs |= (unsigned char)(token[i] ^ (unsigned char)hub->token[i]);
  return !differs;
}

static void take_rank(bk_store_hub *hub, store_peer *peer, uint32_t rank, uint32_t size) {
  char text[BK_STORE_REASON];
  if (size != (uint32_t)hub->size)
    snprintf(text, sizeof text, "this rank belongs to a job of %u ranks, and rank 0 to one of %d",
             size, hub->size);
  else if (rank == 0 || rank >= size)
    snprintf(text, sizeof text, "rank %u is not in 1..%d", rank, hub->size - 1);
  else if (hub->members[rank] != STORE_AWAITED)
    snprintf(text, sizeof text, "rank %u is in the job already: two processes have one number",
             rank);
  else {
    hub->members[rank] = STORE_JOINED;
    peer->rank = (int)rank;
    answer(peer, STORE_WELCOME, NULL, 0);
    return;
  }
  refuse(peer, text);
}

static void hello(bk_store_hub *hub, store_peer *peer, const store_message *m) {
  char reason[BK_STORE_REASON], text[BK_STORE_REASON];
  if (!token_matches(hub, m->value + 8, m->value_bytes - 8))
    refuse(peer, "the token is wrong: every rank needs the same BIRKHOFF_JOB_TOKEN");
  else if (bk_fate_known(&hub->fate, reason, sizeof reason - 32)) {
    snprintf(text, sizeof text, "the job was aborted: %.*s", BK_STORE_REASON - 32, reason);
    refuse(peer, text);
  } else take_rank(hub, peer, store_read_u32(m->value), store_read_u32(m->value + 4));
}

static void set(bk_store_hub *hub, store_peer *peer, const store_message *m) {
  pthread_mutex_lock(&hub->lock);
  bool done = store_table_set(hub->table, m->key, m->key_bytes, m->value, m->value_bytes);
  pthread_cond_broadcast(&hub->changed);
  pthread_mutex_unlock(&hub->lock);
  answer(peer, done ? STORE_DONE : STORE_FULL, NULL, 0);
}

static void get(bk_store_hub *hub, store_peer *peer, const store_message *m) {
  pthread_mutex_lock(&hub->lock);
  const store_entry *e = store_table_get(hub->table, m->key, m->key_bytes);
  if (e) answer(peer, STORE_VALUE, e->value, e->value_bytes);
  pthread_mutex_unlock(&hub->lock);
  if (!e) answer(peer, STORE_NOTHING, NULL, 0);
}

/* Nothing more is expected of the rank. */
static void leave(bk_store_hub *hub, int rank) {
  hub->members[rank] = STORE_LEFT;
  pthread_mutex_lock(&hub->lock);
  hub->away--;
  pthread_cond_broadcast(&hub->changed);
  pthread_mutex_unlock(&hub->lock);
}

static void goodbye(bk_store_hub *hub, store_peer *peer) {
  leave(hub, peer->rank);
  answer(peer, STORE_FAREWELL, NULL, 0);
  peer->ending = true;
}

/* Its answer is the reason that counts, which may be an earlier one. */
static void take_abort(bk_store_hub *hub, store_peer *peer, const store_message *m) {
  char reason[BK_STORE_REASON];
  bk_fate_clean(reason, sizeof reason, (const char *)m->value, m->value_bytes);
  bk_fate_seal(&hub->fate, reason);
  store_tell(hub, peer);
}

/* The connection ends, and with it the rank, if it is one's. */
static void garbage(bk_store_hub *hub, store_peer *peer) {
  char text[128];
  snprintf(text, sizeof text, "rank %d sent what is no message to the control store", peer->rank);
  if (peer->rank >= 0) bk_fate_seal(&hub->fate, text);
  peer->ending = true;
}

static void serve_rank(bk_store_hub *hub, store_peer *peer, const store_message *m) {
  switch (m->kind) {
    case STORE_BEAT: answer(peer, STORE_ALIVE, NULL, 0); break;
    case STORE_SET: set(hub, peer, m); break;
    case STORE_GET: get(hub, peer, m); break;
    case STORE_ABORT: take_abort(hub, peer, m); break;
    case STORE_GOODBYE: goodbye(hub, peer); break;
    default: garbage(hub, peer);
  }
}

static void take(bk_store_hub *hub, store_peer *peer, const store_message *m, double now) {
  if (peer->rank < 0 && m->kind == STORE_HELLO) hello(hub, peer, m);
  else if (peer->rank < 0) peer->ending = true;
  else serve_rank(hub, peer, m);
  peer->since = now;
}

static void other_version(store_peer *peer) {
  char text[BK_STORE_REASON];
  snprintf(text, sizeof text, "rank 0 speaks version %u of the control store, and this rank %u",
           STORE_VERSION, (unsigned)(peer->in[4] | peer->in[5] << 8));
  if (peer->rank < 0) refuse(peer, text);
  peer->ending = true;
}

void store_serve(bk_store_hub *hub, store_peer *peer, double now) {
  while (!peer->ending && peer->out_used == 0) {
    store_message m;
    size_t used;
    store_parsed parsed = store_parse(peer->in, peer->in_used, &m, &used);
    if (parsed == STORE_PARTIAL) return;
    if (parsed == STORE_OTHER_VERSION) other_version(peer);
    if (parsed == STORE_GARBAGE) garbage(hub, peer);
    if (parsed != STORE_WHOLE) return;
    take(hub, peer, &m, now);
    memmove(peer->in, peer->in + used, peer->in_used - used);
    peer->in_used -= used;
  }
}

void store_tell(bk_store_hub *hub, store_peer *peer) {
  char reason[BK_STORE_REASON];
  if (peer->told || peer->rank < 0 || peer->ending) return;
  if (!bk_fate_known(&hub->fate, reason, sizeof reason)) return;
  peer->told = true;
  answer(peer, STORE_ABORTED, reason, strlen(reason));
}

void store_peer_lost(bk_store_hub *hub, store_peer *peer) {
  int rank = peer->rank;
  peer->fd = -1, peer->rank = -1;
  if (rank < 0 || hub->members[rank] == STORE_LEFT) return;
  char text[64];
  snprintf(text, sizeof text, "rank %d has ended", rank);
  leave(hub, rank);
  bk_fate_seal(&hub->fate, text);
}
