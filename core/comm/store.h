/* The control store: a few small values that the ranks of a job share beside the transport, by
 * which they find each other and learn of each other's death. Rank 0 serves it, on a TCP port or,
 * for ranks that are threads of one process, by itself; other ranks connect.
 *
 * Keys are texts of at most BK_STORE_KEY bytes and values at most BK_STORE_VALUE bytes; there are
 * at most BK_STORE_ENTRIES. A client whose first message does not have the token is sent away; what
 * is not a message ends its connection. Every rank sends a sign of life twice a second and in each
 * answer learns whether the job was aborted. A connection that ends without a goodbye, or is
 * silent for the time-out, aborts the job with the rank's number; a client that loses rank 0 takes
 * the job for aborted. */
#ifndef BK_STORE_H
#define BK_STORE_H

#include "base/base.h"

#define BK_STORE_KEY 128
#define BK_STORE_VALUE 4096
#define BK_STORE_ENTRIES 4096
#define BK_STORE_REASON 512

typedef struct bk_store bk_store;

typedef struct bk_store_options {
  int rank, size;
  /* "HOST:PORT", or several of them with commas in between. Rank 0 listens at the first, with port
   * 0 at any free one and without a host on all interfaces; others try one after the other. NULL:
   * no socket, the ranks are threads (bk_store_share). */
  const char *address;
  const char *token; /* NULL: only from the same machine */
  double timeout_s;
} bk_store_options;

/* Rank 0 returns at once, others when they are connected, or BK_ERR_COMM after the time-out. */
bk_status bk_store_open(bk_context *ctx, const bk_store_options *options, bk_store **store);
/* For ranks that are threads: what lies behind rank 0's handle. It outlives that handle, until it
 * is released and the other handles on it are closed, so that ranks may come or leave late. */
typedef struct bk_store_hub bk_store_hub;
bk_store_hub *bk_store_hold(bk_store *store);
void bk_store_release(bk_store_hub *hub); /* NULL is allowed */
/* A handle of another rank on it, with a context of its own. */
bk_status bk_store_share(bk_context *ctx, bk_store_hub *hub, int rank, bk_store **store);
/* Says goodbye. Rank 0 waits, for a time-out at most, until all have; when the job was aborted, for
 * a second at most, until all know. */
void bk_store_close(bk_store *store);
/* Where others reach rank 0: "HOST:PORT", or several of them with commas in between. */
const char *bk_store_address(const bk_store *store);

bk_status bk_store_set(bk_store *store, const char *key, const void *value, size_t bytes);
/* *found false: there is no such key. `size` is the room; *bytes the value's size. */
bk_status bk_store_get(bk_store *store, const char *key, void *value, size_t size, size_t *bytes,
                       bool *found);
/* Waits for the key, for `seconds` at most: BK_ERR_COMM names it then. */
bk_status bk_store_wait(bk_store *store, const char *key, double seconds, void *value, size_t size,
                        size_t *bytes);

/* From any thread; neither waits nor allocates. The first reason counts. */
void bk_store_abort(bk_store *store, const char *reason);
bool bk_store_aborted(bk_store *store, char *reason, size_t size);
/* Called once from the store's thread when it learns of an abort. */
typedef void (*bk_store_abort_fn)(void *user, const char *reason);
void bk_store_on_abort(bk_store *store, bk_store_abort_fn call, void *user);

#endif
