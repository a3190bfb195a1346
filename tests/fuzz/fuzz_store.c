/* libFuzzer target: any bytes as what a connection sends to rank 0's control store. The first byte
 * says in which pieces they arrive. Whatever they are, the answers are messages in their turn, no
 * key is taken from a stranger, and nothing is read or written outside of the two buffers. */
#include "comm/store_priv.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const fuzz_target fuzz = {"store", 20000};

#define SIZE 4
#define TOKEN "token" /* that of the seeds */

static void check(bool holds) {
  if (!holds) abort();
}

/* Takes all answers out of the peer's output, as a client would that keeps up. */
static void check_answers(store_peer *peer) {
  size_t at = 0, used;
  store_message m;
  check(peer->out_used <= sizeof peer->out);
  while (at < peer->out_used) {
    check(store_parse(peer->out + at, peer->out_used - at, &m, &used) == STORE_WHOLE);
    check(m.kind >= STORE_WELCOME);
    check(peer->rank >= 0 || m.kind == STORE_REFUSED);
    at += used;
  }
  peer->out_used = 0;
}

/* What the network does between two calls of store_serve. */
static void feed(bk_store_hub *hub, store_peer *peer, const uint8_t *data, size_t size) {
  size_t piece = size ? (size_t)data[0] * 16 + 1 : 1, at = 1;
  while (!peer->ending) {
    size_t before = peer->in_used, room = sizeof peer->in - peer->in_used;
    size_t n = at < size ? size - at : 0;
    if (n > piece) n = piece;
    if (n > room) n = room;
    if (n) memcpy(peer->in + peer->in_used, data + at, n);
    at += n, peer->in_used += n, before += n;
    store_serve(hub, peer, 0);
    check(peer->in_used <= before);
    store_tell(hub, peer);
    check_answers(peer);
    if (n == 0 && peer->in_used == before) return; /* the rest is no whole message */
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static store_table table; /* 17 MB: made once */
  static store_peer peer;
  store_presence members[SIZE] = {STORE_AWAITED};
  bk_store_hub hub = {
      .size = SIZE, .token_bytes = sizeof TOKEN - 1, .token = TOKEN, .away = SIZE - 1};
  pthread_mutex_init(&hub.lock, NULL);
  pthread_cond_init(&hub.changed, NULL);
  table.count = 0;
  hub.table = &table;
  hub.members = members;
  peer.fd = 0, peer.rank = -1, peer.ending = peer.told = false;
  peer.in_used = peer.out_used = 0;
  feed(&hub, &peer, data, size);
  check(peer.rank >= -1 && peer.rank != 0 && peer.rank < SIZE);
  check(peer.rank >= 0 || table.count == 0);
  bool left = peer.rank >= 0 && members[peer.rank] == STORE_LEFT;
  int rank = peer.rank;
  store_peer_lost(&hub, &peer);
  check(hub.away == SIZE - 1 - (rank >= 0));
  check(rank < 0 || left || bk_fate_known(&hub.fate, NULL, 0)); /* no death is overlooked */
  pthread_cond_destroy(&hub.changed);
  pthread_mutex_destroy(&hub.lock);
  return 0;
}
