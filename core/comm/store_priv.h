/* What the files of the control store share.
 *
 *   store.c          the handles and what is called with them
 *   store_message.c  the messages: bytes to fields and back, nothing else
 *   store_table.c    rank 0's keys and values
 *   store_serve.c    what rank 0 answers to a message; it moves bytes between memory and memory
 *   store_server.c   rank 0's thread, its sockets and deadlines
 *   store_client.c   the thread of any other process
 *   store_net.c      addresses, and sockets made from them
 *
 * None of the threads uses the context, which belongs to the rank's own thread: they log nothing
 * and allocate nothing, and what they have to say is in the reason of the abort. */
#ifndef BK_STORE_PRIV_H
#define BK_STORE_PRIV_H

#include "comm/fate.h"
#include "comm/store.h"

#include <pthread.h>
#include <poll.h>
#include <stdatomic.h>

/* ---- store_message.c ---- */

#define STORE_MAGIC 0x54534b42u /* "BKST" */
#define STORE_VERSION 1u
#define STORE_HEADER 16
#define STORE_TOKEN 256
#define STORE_MESSAGE (STORE_HEADER + BK_STORE_KEY + BK_STORE_VALUE) /* the longest */

/* A client's messages, each of which is answered, and the server's. ABORTED also comes unasked. */
typedef enum store_kind {
  STORE_HELLO = 1, /* value: rank and size, 4 bytes each, then the token */
  STORE_BEAT,      /* a sign of life */
  STORE_SET,       /* key and value */
  STORE_GET,       /* key */
  STORE_ABORT,     /* value: why */
  STORE_GOODBYE,
  STORE_WELCOME = 64, /* to HELLO */
  STORE_REFUSED,      /* to HELLO; value: why */
  STORE_ALIVE,        /* to BEAT */
  STORE_DONE,         /* to SET */
  STORE_FULL,         /* to SET */
  STORE_VALUE,        /* to GET; value */
  STORE_NOTHING,      /* to GET */
  STORE_ABORTED,      /* to ABORT, or to all; value: why */
  STORE_FAREWELL      /* to GOODBYE */
} store_kind;

typedef struct store_message {
  store_kind kind;
  const unsigned char *key, *value; /* in the bytes that were parsed */
  size_t key_bytes, value_bytes;
} store_message;

typedef enum store_parsed {
  STORE_PARTIAL, /* more bytes are needed */
  STORE_WHOLE,   /* one message, of *used bytes */
  STORE_OTHER_VERSION /* of a Birkhoff that speaks another version */,
  STORE_GARBAGE
} store_parsed;

/* Looks at nothing but the bytes; every length in them is checked before it is used. */
store_parsed store_parse(const unsigned char *data, size_t bytes, store_message *message,
                         size_t *used);
/* Appends a message to `out`, of which *used bytes of `room` are taken. False, and nothing is
 * appended, where there is no room. The lengths have been checked. */
bool store_put(unsigned char *out, size_t room, size_t *used, const store_message *message);
uint32_t store_read_u32(const unsigned char *p);
void store_write_u32(unsigned char *p, uint32_t x);

/* ---- store_table.c ---- */

typedef struct store_entry {
  uint32_t key_bytes, value_bytes;
  char key[BK_STORE_KEY];
  unsigned char value[BK_STORE_VALUE];
} store_entry;

/* Searched from front to back: it is small, and read when a job begins and ends. */
typedef struct store_table {
  int count;
  uint32_t hashes[BK_STORE_ENTRIES];
  store_entry entries[BK_STORE_ENTRIES];
} store_table;

/* False where the table is full. */
bool store_table_set(store_table *table, const void *key, size_t key_bytes, const void *value,
                     size_t value_bytes);
const store_entry *store_table_get(const store_table *table, const void *key, size_t key_bytes);

/* ---- store_serve.c ---- */

#define STORE_STRANGERS 16 /* connections that have not said who they are */

/* One connection. Its input is read only while there is no output, so that one message's answer
 * and the news of an abort are the most that `out` ever holds. */
typedef struct store_peer {
  int fd;       /* -1: none */
  int rank;     /* -1: has not said who it is */
  bool ending;  /* to be closed when `out` has been sent */
  bool told;    /* of the abort */
  double since; /* when it was accepted, then when something was last heard of it */
  size_t in_used, out_used;
  unsigned char in[STORE_MESSAGE];
  unsigned char out[STORE_MESSAGE + STORE_HEADER + BK_STORE_REASON];
} store_peer;

typedef enum store_presence { STORE_AWAITED, STORE_JOINED, STORE_LEFT } store_presence;

/* Rank 0's side of the store. In a job of threads every rank has a handle on it; whoever lets go
 * last frees it. It comes from the C library and not from a context, of which each rank has its
 * own. */
struct bk_store_hub {
  int size;
  double timeout_s;
  size_t token_bytes;
  char token[STORE_TOKEN];
  bk_fate fate;
  pthread_mutex_t lock; /* table, away, called, holders */
  pthread_cond_t changed;
  store_table *table;
  int away;                /* ranks that have not said goodbye, rank 0 not counted */
  bool called;             /* of an abort: the handles that were there */
  int holders;             /* handles that are open, and whoever holds it beside them */
  pthread_mutex_t calls;   /* held while handles are called back */
  struct bk_store *listed; /* the handles */
  /* the server thread's own */
  pthread_t thread;
  bool started;
  int wake[2];
  atomic_bool stop;
  int listeners[2], n_listeners;
  store_presence *members; /* [size] */
  double opened;
  store_peer *peers; /* [n_peers] */
  int n_peers;
  struct pollfd *fds; /* [n_peers + 3] */
  char address[512];
};

/* Answers what peer->in has, as long as peer->out is empty. Only memory is touched. */
void store_serve(bk_store_hub *hub, store_peer *peer, double now);
/* Puts the news of the abort into peer->out, once. */
void store_tell(bk_store_hub *hub, store_peer *peer);
/* The end of a connection, of which `peer` is then free; without a goodbye it is the rank's. */
void store_peer_lost(bk_store_hub *hub, store_peer *peer);

/* ---- store_server.c ---- */

bk_status store_hub_open(bk_context *ctx, const bk_store_options *options, bk_store_hub **hub);
/* Of the last handle: ends the thread and frees the hub. */
void store_hub_close(bk_store_hub *hub);
void store_hub_wake(bk_store_hub *hub);
/* Calls the handles that have not been told of the abort. */
void store_hub_call(bk_store_hub *hub);

/* ---- store_client.c ---- */

typedef struct store_client store_client;
bk_status store_client_open(bk_context *ctx, struct bk_store *store,
                            const bk_store_options *options, store_client **client);
void store_client_close(store_client *client);
/* Sends a request and waits for its answer. *answer has the kind, and `value` what came with it.
 * False: the job was aborted. */
bool store_client_ask(store_client *client, const store_message *request, store_kind *answer,
                      unsigned char value[BK_STORE_VALUE], size_t *value_bytes);
void store_client_abort(store_client *client, const char *reason);
bool store_client_aborted(store_client *client, char *reason, size_t size);
void store_client_on_abort(store_client *client, bk_store_abort_fn call, void *user);
/* Waits, no longer than the job lives. */
void store_client_pause(store_client *client, double seconds);

/* ---- store_net.c ---- */

/* Nonblocking, not inherited by programs that are started, without delay for small messages. */
bk_status store_listen(bk_context *ctx, const char *address, bool token, bk_store_hub *hub);
/* One round over the addresses. -1, with the reason in words, where none answers until
 * `deadline`. */
int store_connect(const char *addresses, double deadline, char *reason, size_t size);
/* BK_ERR_ARGUMENT where an address is none, or where it takes a token to go there. */
bk_status store_check_address(bk_context *ctx, const char *addresses, bool token);
/* Of a connection that is open: what it needs to notice a dead peer. */
void store_tune(int fd, double timeout_s);
int store_accept(int listener);
bool store_pipe(int wake[2]);
void store_pipe_wake(int wake[2]);
void store_pipe_drain(int wake[2]);
/* Both move what can be moved now. 0: the other side has ended or the connection is broken. */
bool store_read_some(int fd, unsigned char *in, size_t room, size_t *used);
bool store_write_some(int fd, unsigned char *out, size_t *used);
/* A condition that is waited for by the clock of bk_seconds; `seconds` at most. */
void store_cond_init(pthread_cond_t *cond);
void store_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, double seconds);
/* Starts a thread that gets no signals. */
bool store_thread(pthread_t *thread, void *(*main)(void *), void *arg);

/* ---- store.c ---- */

struct bk_store {
  bk_context *ctx;
  int rank, size;
  double timeout_s;
  bk_store_hub *hub; /* NULL: a client */
  store_client *client;
  /* under the lock of the thread that calls */
  bk_store_abort_fn call;
  void *call_user;
  struct bk_store *next; /* of the hub's handles */
};

#endif
