/* The control store: keys and values, who may join, and how the ranks learn that one of them, or
 * rank 0, has died. Ranks are threads where that is enough, and processes where one is to die. */
#include "tests/unit/unit.h"

#include "comm/store_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define TOKEN "a secret"

/* ---- helpers ---- */

static bk_context *quiet(void) {
  bk_context *made = NULL;
  ck_assert_int_eq(bk_context_create(NULL, &made), BK_OK);
  return made;
}

static bk_store *serve(int size, const char *address, const char *token, double timeout_s) {
  bk_store *store = NULL;
  bk_store_options options = {
      .size = size, .address = address, .token = token, .timeout_s = timeout_s};
  ck_assert_int_eq(bk_store_open(ctx, &options, &store), BK_OK);
  return store;
}

static bk_status join_as(bk_context *of, const char *address, const char *token, int rank, int size,
                         double timeout_s, bk_store **store) {
  bk_store_options options = {
      .rank = rank, .size = size, .address = address, .token = token, .timeout_s = timeout_s};
  return bk_store_open(of, &options, store);
}

static double since(double start) { return bk_seconds() - start; }

/* Waits until the store knows of an abort, and gives its reason. */
static const char *await_abort(bk_store *store, double seconds) {
  static char reason[BK_STORE_REASON];
  double start = bk_seconds();
  while (!bk_store_aborted(store, reason, sizeof reason)) {
    ck_assert_msg(since(start) < seconds, "no abort within %g s", seconds);
    usleep(2000);
  }
  return reason;
}

/* A process that is a rank: it reads the address, says 'j' when it has joined, and does what a byte
 * tells it:
 * 'q' says goodbye and ends with 0; 'w' waits for the abort and writes its reason. */
typedef struct child {
  pid_t pid;
  int to, from;
} child;

/* Nothing of this process is left, nor of what its parent gave it: a checker of memory looks. */
static _Noreturn void child_exit(bk_context *own, bk_store *store) {
  bk_store_close(store);
  bk_context_destroy(own);
  bk_context_destroy(ctx);
  _exit(0);
}

static void child_main(int in, int out, int rank, int size, double timeout_s) {
  bk_context *own = NULL;
  bk_store *store = NULL;
  char address[512] = "", reason[BK_STORE_REASON] = "";
  if (bk_context_create(NULL, &own) != BK_OK || read(in, address, sizeof address) <= 0) _exit(1);
  if (join_as(own, address, TOKEN, rank, size, timeout_s, &store) != BK_OK) _exit(2);
  if (write(out, "j", 1) != 1) _exit(3);
  for (char what; read(in, &what, 1) == 1;) {
    if (what == 'q') child_exit(own, store);
    while (!bk_store_aborted(store, reason, sizeof reason)) usleep(1000);
    if (write(out, reason, sizeof reason) != sizeof reason) _exit(4);
    child_exit(own, store);
  }
  _exit(5);
}

/* Before there are threads. */
static child start_child(int rank, int size, double timeout_s) {
  int to[2], from[2];
  ck_assert_int_eq(pipe(to), 0);
  ck_assert_int_eq(pipe(from), 0);
  pid_t pid = fork();
  ck_assert_int_ge(pid, 0);
  if (pid == 0) {
    close(to[1]);
    close(from[0]);
    child_main(to[0], from[1], rank, size, timeout_s);
  }
  close(to[0]);
  close(from[1]);
  return (child){.pid = pid, .to = to[1], .from = from[0]};
}

static void tell(const child *c, const void *bytes, size_t count) {
  ck_assert_int_eq(write(c->to, bytes, count), (ssize_t)count);
}

static void let_join(const child *c, const bk_store *server) {
  char joined = 0, address[512] = "";
  snprintf(address, sizeof address, "%s", bk_store_address(server));
  tell(c, address, sizeof address);
  ck_assert_int_eq(read(c->from, &joined, 1), 1);
  ck_assert_int_eq(joined, 'j');
}

static void end_child(const child *c, bool by_itself) {
  int status = 0;
  ck_assert_int_eq(waitpid(c->pid, &status, 0), c->pid);
  if (by_itself) ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  close(c->to);
  close(c->from);
}

/* What the child says of the abort. */
static const char *reason_of(const child *c) {
  static char reason[BK_STORE_REASON];
  tell(c, "w", 1);
  ck_assert_int_eq(read(c->from, reason, sizeof reason), (ssize_t)sizeof reason);
  return reason;
}

/* ---- keys and values ---- */

static void check_values(bk_store *a, bk_store *b) {
  char value[BK_STORE_VALUE + 1], big[BK_STORE_VALUE], key[BK_STORE_KEY + 2];
  size_t bytes = 99;
  bool found = true;
  ck_assert_int_eq(bk_store_get(a, "none", value, sizeof value, &bytes, &found), BK_OK);
  ck_assert(!found && bytes == 99);
  ck_assert_int_eq(bk_store_set(a, "k", "one", 3), BK_OK);
  ck_assert_int_eq(bk_store_get(b, "k", value, sizeof value, &bytes, &found), BK_OK);
  ck_assert(found && bytes == 3 && memcmp(value, "one", 3) == 0);
  ck_assert_int_eq(bk_store_set(b, "k", "", 0), BK_OK); /* replaced, by nothing */
  ck_assert_int_eq(bk_store_get(a, "k", value, sizeof value, &bytes, &found), BK_OK);
  ck_assert(found && bytes == 0);

  memset(big, 'x', sizeof big);
  memset(key, 'k', sizeof key);
  key[BK_STORE_KEY] = '\0';
  ck_assert_int_eq(bk_store_set(a, key, big, sizeof big), BK_OK);
  ck_assert_int_eq(bk_store_get(b, key, value, sizeof value, &bytes, &found), BK_OK);
  ck_assert(found && bytes == sizeof big && memcmp(value, big, sizeof big) == 0);
}

/* All that is refused before anything is sent. */
static void check_bounds(bk_store *store) {
  char value[BK_STORE_VALUE + 1] = "", key[BK_STORE_KEY + 2];
  size_t bytes = 99;
  bool found = false;
  memset(key, 'k', sizeof key);
  key[BK_STORE_KEY + 1] = '\0';
  ck_assert_int_eq(bk_store_set(store, key, "", 0), BK_ERR_ARGUMENT);
  unit_expect("a key of 129 bytes, not 1 to 128");
  ck_assert_int_eq(bk_store_set(store, "", "", 0), BK_ERR_ARGUMENT);
  unit_expect("a key of 0 bytes");
  ck_assert_int_eq(bk_store_set(store, "k", value, sizeof value), BK_ERR_ARGUMENT);
  unit_expect("4097 bytes, at most 4096");
  ck_assert_int_eq(bk_store_get(store, "", value, 1, &bytes, &found), BK_ERR_ARGUMENT);
  unit_expect("a key of 0 bytes");
  ck_assert_int_eq(bk_store_set(store, "four", "1234", 4), BK_OK);
  ck_assert_int_eq(bk_store_get(store, "four", value, 3, &bytes, &found), BK_ERR_COMM);
  unit_expect("four has 4 bytes, at most 3 expected");
  ck_assert(!found && bytes == 99);
}

START_TEST(values_over_a_socket) {
  bk_store *server = serve(2, "127.0.0.1:0", TOKEN, 5), *client = NULL;
  ck_assert_int_eq(join_as(ctx, bk_store_address(server), TOKEN, 1, 2, 5, &client), BK_OK);
  check_values(server, client);
  check_values(client, server);
  check_values(client, client);
  check_bounds(server);
  check_bounds(client);
  bk_store_close(client);
  bk_store_close(server);
}
END_TEST

START_TEST(values_of_threads) {
  bk_store *server = serve(2, NULL, NULL, 5), *other = NULL;
  bk_store_hub *hub = bk_store_hold(server);
  ck_assert_int_eq(bk_store_share(ctx, hub, 2, &other), BK_ERR_ARGUMENT);
  unit_expect("rank 2 of 2 cannot share it");
  ck_assert_int_eq(bk_store_share(ctx, hub, 1, &other), BK_OK);
  check_values(server, other);
  check_bounds(other);
  bk_store_close(other);
  bk_store_close(server);
  bk_store_release(hub);
}
END_TEST

/* As many keys as there may be, and one more; they can still be replaced. */
START_TEST(full_table) {
  bk_store *server = serve(2, "127.0.0.1:0", TOKEN, 5), *client = NULL;
  ck_assert_int_eq(join_as(ctx, bk_store_address(server), TOKEN, 1, 2, 5, &client), BK_OK);
  for (int i = 0; i < BK_STORE_ENTRIES; i++) {
    char key[16];
    snprintf(key, sizeof key, "key %d", i);
    ck_assert_int_eq(bk_store_set(server, key, &i, sizeof i), BK_OK);
  }
  ck_assert_int_eq(bk_store_set(server, "more", "", 0), BK_ERR_COMM);
  unit_expect("no room for more: it has 4096 keys");
  ck_assert_int_eq(bk_store_set(client, "more", "", 0), BK_ERR_COMM);
  unit_expect("no room for more: it has 4096 keys");
  ck_assert_int_eq(bk_store_set(client, "key 7", "seven", 5), BK_OK);
  char value[8];
  size_t bytes;
  bool found;
  ck_assert_int_eq(bk_store_get(server, "key 7", value, sizeof value, &bytes, &found), BK_OK);
  ck_assert(found && bytes == 5);
  bk_store_close(client);
  bk_store_close(server);
}
END_TEST

static void *set_late(void *store) {
  usleep(100000);
  ck_assert_int_eq(bk_store_set(store, "late", "here", 4), BK_OK);
  return NULL;
}

static void check_wait(bk_store *waits, bk_store *sets) {
  pthread_t thread;
  char value[8];
  size_t bytes = 0;
  double start = bk_seconds();
  ck_assert_int_eq(bk_store_wait(waits, "never", 0.1, value, sizeof value, &bytes), BK_ERR_COMM);
  unit_expect("nobody has set never within 0.1 s");
  ck_assert(since(start) >= 0.1);
  ck_assert_int_eq(pthread_create(&thread, NULL, set_late, sets), 0);
  ck_assert_int_eq(bk_store_wait(waits, "late", 5, value, sizeof value, &bytes), BK_OK);
  ck_assert(bytes == 4 && memcmp(value, "here", 4) == 0 && since(start) < 4);
  pthread_join(thread, NULL);
}

START_TEST(waiting_for_a_key) {
  for (int turned = 0; turned < 2; turned++) {
    bk_store *server = serve(2, "127.0.0.1:0", TOKEN, 5), *client = NULL;
    ck_assert_int_eq(join_as(ctx, bk_store_address(server), TOKEN, 1, 2, 5, &client), BK_OK);
    check_wait(turned ? client : server, turned ? server : client);
    bk_store_close(client);
    bk_store_close(server);
  }
}
END_TEST

/* ---- who may join ---- */

static void refused(const char *address, const char *token, int rank, int size, const char *part) {
  bk_store *client = NULL;
  ck_assert_int_eq(join_as(ctx, address, token, rank, size, 2, &client), BK_ERR_COMM);
  unit_expect(part);
  ck_assert_ptr_null(client);
}

START_TEST(who_may_join) {
  bk_store *server = serve(3, "127.0.0.1:0", TOKEN, 5), *one = NULL, *two = NULL;
  const char *address = bk_store_address(server);
  refused(address, "a secreT", 1, 3, "refused rank 1: the token is wrong");
  refused(address, "a secret or more", 1, 3, "the token is wrong");
  refused(address, "a", 1, 3, "the token is wrong");
  refused(address, NULL, 1, 3, "the token is wrong");
  refused(address, TOKEN, 1, 4, "a job of 4 ranks, and rank 0 to one of 3");
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 1, 3, 5, &one), BK_OK);
  refused(address, TOKEN, 1, 3, "rank 1 is in the job already: two processes have one number");
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 2, 3, 5, &two), BK_OK);
  ck_assert(!bk_store_aborted(server, NULL, 0)); /* none of these has hurt the job */
  bk_store_close(two);
  refused(address, TOKEN, 2, 3, "rank 2 is in the job already");
  bk_store_close(one);
  bk_store_close(server);
}
END_TEST

START_TEST(addresses) {
  bk_store *store = NULL;
  static const char *const wrong[] = {"",         "localhost", "localhost:", "localhost:x",
                                      "::1:2000", "[::1]",     ":99999999",  "localhost:65536"};
  for (size_t i = 0; i < BK_COUNT(wrong); i++)
    for (int rank = 0; rank < 2; rank++) {
      ck_assert_int_eq(join_as(ctx, wrong[i], TOKEN, rank, 2, 1, &store), BK_ERR_ARGUMENT);
      unit_expect("is not HOST:PORT");
    }
  for (int rank = 0; rank < 2; rank++) { /* without a token */
    ck_assert_int_eq(join_as(ctx, "192.0.2.1:2000", NULL, rank, 2, 1, &store), BK_ERR_ARGUMENT);
    unit_expect(
        "\"192.0.2.1\" is not an address of it alone, as localhost is: set "
        "BIRKHOFF_JOB_TOKEN");
    ck_assert_int_eq(join_as(ctx, ":2000", NULL, rank, 2, 1, &store), BK_ERR_ARGUMENT);
    unit_expect("set BIRKHOFF_JOB_TOKEN");
  }
  ck_assert_int_eq(join_as(ctx, "192.0.2.1:2000", TOKEN, 0, 2, 1, &store), BK_ERR_COMM);
  unit_expect("rank 0 cannot listen at 192.0.2.1:2000");
  ck_assert_int_eq(join_as(ctx, "localhost:0", "", 0, 2, 1, &store), BK_ERR_ARGUMENT);
  unit_expect("a token of 0 bytes");
}
END_TEST

static void check_address(const char *address, const char *token) {
  bk_store *server = serve(2, address, token, 5), *client = NULL;
  ck_assert_int_eq(join_as(ctx, bk_store_address(server), token, 1, 2, 5, &client), BK_OK);
  bk_store_close(client);
  bk_store_close(server);
}

/* Where rank 0 can be reached, by name, over IPv6 where the machine has it, on all interfaces. */
START_TEST(ways_to_rank_0) {
  check_address("localhost:0", NULL);
  check_address("127.0.0.1:0", NULL);
  check_address(":0", TOKEN);
  struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
  int fd = socket(AF_INET6, SOCK_STREAM, 0);
  if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0) check_address("[::1]:0", NULL);
  if (fd >= 0) close(fd);

  /* the second of two addresses */
  bk_store *server = serve(2, "127.0.0.1:0", TOKEN, 5), *client = NULL;
  char both[600];
  snprintf(both, sizeof both, "127.0.0.1:1,%s", bk_store_address(server));
  ck_assert_int_eq(join_as(ctx, both, TOKEN, 1, 2, 5, &client), BK_OK);
  bk_store_close(client);
  bk_store_close(server);
}
END_TEST

/* Somebody listens on the port and says nothing that is of the protocol. */
START_TEST(no_rank_0) {
  bk_store *client = NULL;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof a;
  char address[32];
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
  ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&a, &length), 0);
  snprintf(address, sizeof address, "127.0.0.1:%d", ntohs(a.sin_port));
  double start = bk_seconds();
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 1, 2, 0.3, &client), BK_ERR_COMM);
  unit_expect("rank 1 did not reach rank 0");
  ck_assert_int_eq(listen(fd, 5), 0); /* connections are taken and nobody answers */
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 1, 2, 0.3, &client), BK_ERR_COMM);
  unit_expect("did not answer as a control store does");
  ck_assert(since(start) < 2);
  close(fd);
}
END_TEST

static void *serve_late(void *address) {
  usleep(200000);
  bk_context *own = quiet();
  bk_store *server = NULL;
  bk_store_options options = {.size = 2, .address = address, .token = TOKEN, .timeout_s = 5};
  ck_assert_int_eq(bk_store_open(own, &options, &server), BK_OK);
  bk_store_close(server);
  bk_context_destroy(own);
  return NULL;
}

START_TEST(rank_0_comes_later) {
  pthread_t thread;
  char address[32];
  bk_store *first = serve(1, "127.0.0.1:0", TOKEN, 5), *client = NULL;
  snprintf(address, sizeof address, "%s", bk_store_address(first));
  bk_store_close(first);
  ck_assert_int_eq(pthread_create(&thread, NULL, serve_late, address), 0);
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 1, 2, 5, &client), BK_OK);
  bk_store_close(client);
  pthread_join(thread, NULL);
}
END_TEST

/* ---- aborts ---- */

typedef struct heard {
  atomic_int calls;
  char reason[BK_STORE_REASON];
} heard;

static void hear(void *user, const char *reason) {
  heard *h = user;
  snprintf(h->reason, sizeof h->reason, "%s", reason);
  atomic_fetch_add(&h->calls, 1);
}

static void expect_heard(heard *h, const char *reason) {
  double start = bk_seconds();
  while (atomic_load(&h->calls) == 0) {
    ck_assert_msg(since(start) < 5, "nothing was heard");
    usleep(1000);
  }
  ck_assert_str_eq(h->reason, reason);
}

START_TEST(abort_reaches_all) {
  for (int who = 0; who < 3; who++) {
    bk_store *stores[3] = {serve(3, "127.0.0.1:0", TOKEN, 20)};
    heard heards[3] = {{0}}, later[3] = {{0}};
    char value[4];
    size_t bytes;
    for (int r = 1; r < 3; r++)
      ck_assert_int_eq(join_as(ctx, bk_store_address(stores[0]), TOKEN, r, 3, 20, &stores[r]),
                       BK_OK);
    for (int r = 0; r < 3; r++) bk_store_on_abort(stores[r], hear, &heards[r]);
    bk_store_abort(stores[who], "out of\n\x1b[31mpatience\xff \xc2\x85 \xc3\xa9");
    bk_store_abort(stores[who], "a second reason");
    ck_assert(bk_store_aborted(stores[who], NULL, 0));
    for (int r = 0; r < 3; r++) expect_heard(&heards[r], "out of  [31mpatience?  ? \xc3\xa9");
    for (int r = 0; r < 3; r++) { /* who asks later is told, too */
      bk_store_on_abort(stores[r], hear, &later[r]);
      expect_heard(&later[r], "out of  [31mpatience?  ? \xc3\xa9");
      ck_assert_int_eq(atomic_load(&heards[r].calls), 1);
      ck_assert_int_eq(bk_store_wait(stores[r], "k", 20, value, 4, &bytes), BK_ERR_COMM);
      unit_expect("the job was aborted: out of");
      ck_assert_int_eq(bk_store_set(stores[r], "k", "", 0), BK_ERR_COMM);
      unit_expect("the job was aborted: out of");
    }
    double start = bk_seconds(); /* nobody waits for goodbyes */
    for (int r = 0; r < 3; r++) bk_store_close(stores[r]);
    ck_assert(since(start) < 3);
  }
}
END_TEST

/* Whoever aborts and closes at once is called all the same, and so are the others. */
START_TEST(abort_and_close) {
  for (int who = 0; who < 2; who++) {
    bk_store *stores[2] = {serve(2, "127.0.0.1:0", TOKEN, 20)};
    heard heards[2] = {{0}};
    ck_assert_int_eq(join_as(ctx, bk_store_address(stores[0]), TOKEN, 1, 2, 20, &stores[1]), BK_OK);
    for (int r = 0; r < 2; r++) bk_store_on_abort(stores[r], hear, &heards[r]);
    bk_store_abort(stores[who], "at once");
    bk_store_close(stores[who]);
    ck_assert_int_eq(atomic_load(&heards[who].calls), 1);
    expect_heard(&heards[1 - who], "at once");
    bk_store_close(stores[1 - who]);
  }
}
END_TEST

/* Of two reasons at about the same time all ranks learn one. */
START_TEST(one_reason) {
  bk_store *stores[3] = {serve(3, "127.0.0.1:0", TOKEN, 20)};
  heard heards[3] = {{0}};
  for (int r = 1; r < 3; r++)
    ck_assert_int_eq(join_as(ctx, bk_store_address(stores[0]), TOKEN, r, 3, 20, &stores[r]), BK_OK);
  for (int r = 0; r < 3; r++) bk_store_on_abort(stores[r], hear, &heards[r]);
  static const char *const reasons[] = {"first", "second", "third"};
  for (int r = 2; r >= 0; r--) bk_store_abort(stores[r], reasons[r]);
  const char *counts = await_abort(stores[0], 5);
  for (int r = 0; r < 3; r++) expect_heard(&heards[r], counts);
  for (int r = 2; r >= 0; r--) bk_store_close(stores[r]);
}
END_TEST

/* Rank 0 is told and gone before the others have looked. */
START_TEST(abort_of_threads) {
  bk_store *stores[3] = {serve(3, NULL, NULL, 20)};
  bk_store_hub *hub = bk_store_hold(stores[0]);
  heard heards[3] = {{0}};
  for (int r = 1; r < 3; r++) ck_assert_int_eq(bk_store_share(ctx, hub, r, &stores[r]), BK_OK);
  for (int r = 0; r < 3; r++) bk_store_on_abort(stores[r], hear, &heards[r]);
  bk_store_abort(stores[1], "enough");
  expect_heard(&heards[0], "enough");
  bk_store_close(stores[0]);
  bk_store_release(hub);
  for (int r = 1; r < 3; r++) {
    expect_heard(&heards[r], "enough");
    ck_assert_int_eq(bk_store_set(stores[r], "k", "", 0), BK_ERR_COMM);
    unit_expect("the job was aborted: enough");
    bk_store_close(stores[r]);
  }
}
END_TEST

/* ---- deaths ---- */

START_TEST(killed_rank) {
  child one = start_child(1, 3, 20), two = start_child(2, 3, 20);
  bk_store *server = serve(3, "127.0.0.1:0", TOKEN, 20);
  let_join(&one, server);
  let_join(&two, server);
  double start = bk_seconds();
  ck_assert_int_eq(kill(one.pid, SIGKILL), 0);
  ck_assert_str_eq(await_abort(server, 5), "rank 1 has ended");
  ck_assert_str_eq(reason_of(&two), "rank 1 has ended");
  ck_assert_msg(since(start) < 1, "%g s", since(start));
  end_child(&one, false);
  end_child(&two, true);
  bk_store_close(server);
}
END_TEST

START_TEST(stopped_rank) {
  child one = start_child(1, 3, 1), two = start_child(2, 3, 1);
  bk_store *server = serve(3, "127.0.0.1:0", TOKEN, 1);
  let_join(&one, server);
  let_join(&two, server);
  ck_assert_int_eq(kill(one.pid, SIGSTOP), 0);
  double start = bk_seconds();
  ck_assert_str_eq(await_abort(server, 5), "nothing was heard of rank 1 for 1 s");
  ck_assert_msg(since(start) > 0.4 && since(start) < 2.5, "%g s", since(start));
  ck_assert_str_eq(reason_of(&two), "nothing was heard of rank 1 for 1 s");
  ck_assert_int_eq(kill(one.pid, SIGCONT), 0);
  ck_assert_str_eq(reason_of(&one), "nothing was heard of rank 1 for 1 s");
  end_child(&one, true);
  end_child(&two, true);
  bk_store_close(server);
}
END_TEST

START_TEST(rank_that_does_not_come) {
  bk_store *server = serve(3, "127.0.0.1:0", TOKEN, 0.5), *one = NULL;
  ck_assert_int_eq(join_as(ctx, bk_store_address(server), TOKEN, 1, 3, 0.5, &one), BK_OK);
  ck_assert_str_eq(await_abort(server, 5), "rank 2 has not come within 0.5 s");
  ck_assert_str_eq(await_abort(one, 5), "rank 2 has not come within 0.5 s");
  bk_store_close(one);
  bk_store_close(server);
}
END_TEST

/* Rank 0 in a process of its own, which is killed or stopped. */
static void check_rank_0(int signal, double timeout_s, const char *reason) {
  int pipes[2];
  char address[512] = "";
  ck_assert_int_eq(pipe(pipes), 0);
  pid_t pid = fork();
  if (pid == 0) {
    bk_store *server = serve(2, "127.0.0.1:0", TOKEN, 20);
    snprintf(address, sizeof address, "%s", bk_store_address(server));
    if (write(pipes[1], address, sizeof address) != sizeof address) _exit(1);
    for (;;) pause();
  }
  bk_store *client = NULL;
  heard told = {0};
  ck_assert_int_eq(read(pipes[0], address, sizeof address), (ssize_t)sizeof address);
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 1, 2, timeout_s, &client), BK_OK);
  bk_store_on_abort(client, hear, &told);
  ck_assert_int_eq(kill(pid, signal), 0);
  double start = bk_seconds();
  expect_heard(&told, reason);
  ck_assert_msg(since(start) < 1 + timeout_s, "%g s", since(start));
  bk_store_close(client);
  kill(pid, SIGKILL);
  ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
  close(pipes[0]);
  close(pipes[1]);
}

START_TEST(killed_rank_0) {
  check_rank_0(SIGKILL, 0.7, "rank 0, which serves the control store, has ended");
}
END_TEST

START_TEST(stopped_rank_0) { check_rank_0(SIGSTOP, 0.7, "nothing was heard of rank 0 for 0.7 s"); }
END_TEST

/* Ranks end at different times, which is no death of any of them. */
START_TEST(goodbyes) {
  child one = start_child(1, 3, 20), two = start_child(2, 3, 20);
  bk_store *server = serve(3, "127.0.0.1:0", TOKEN, 20);
  let_join(&one, server);
  let_join(&two, server);
  tell(&two, "q", 1);
  end_child(&two, true);
  usleep(50000);
  ck_assert(!bk_store_aborted(server, NULL, 0));
  tell(&one, "q", 1);
  bk_store_close(server); /* waits for rank 1 */
  end_child(&one, true);
}
END_TEST

/* ---- strangers ---- */

static int stranger(const char *address) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  a.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  ck_assert_int_ge(fd, 0);
  ck_assert_int_eq(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
  return fd;
}

/* The server ends the connection, whatever it says before. */
static void expect_sent_away(int fd) {
  char bytes[256];
  struct timeval patience = {.tv_sec = 3};
  ssize_t n;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  do n = recv(fd, bytes, sizeof bytes, 0);
  while (n > 0);
  ck_assert_msg(n == 0 || errno == ECONNRESET, "still open after 3 s");
  close(fd);
}

static size_t message(unsigned char *out, store_kind kind, const char *value, size_t bytes) {
  size_t used = 0;
  store_message m = {.kind = kind, .value = (const unsigned char *)value, .value_bytes = bytes};
  ck_assert(store_put(out, STORE_MESSAGE, &used, &m));
  return used;
}

START_TEST(garbage) {
  bk_store *server = serve(2, "127.0.0.1:0", TOKEN, 20), *client = NULL;
  const char *address = bk_store_address(server);
  unsigned char bytes[STORE_MESSAGE];
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 1, 2, 20, &client), BK_OK);
  for (int k = 0; k < 6; k++) {
    int fd = stranger(address);
    size_t n = message(bytes, k == 1 ? STORE_GET : STORE_HELLO, "12345678", k == 1 ? 0 : 8);
    if (k == 0) memcpy(bytes, "GET / HTTP/1.1\r\n", n = 16);
    if (k == 2) bytes[4] = 9;                              /* another version */
    if (k == 3) memset(bytes + 8, 255, 8);                 /* lengths */
    if (k == 4) n = message(bytes, STORE_ABORT, "now", 3); /* of nobody */
    if (k == 5) bytes[6] = 200;                            /* kind */
    ck_assert_int_eq(send(fd, bytes, n, MSG_NOSIGNAL), (ssize_t)n);
    expect_sent_away(fd);
  }
  ck_assert_int_eq(bk_store_set(client, "k", "v", 1), BK_OK);
  ck_assert(!bk_store_aborted(server, NULL, 0));
  bk_store_close(client);
  bk_store_close(server);
}
END_TEST

/* A rank whose connection turns to nonsense is lost. */
START_TEST(garbage_of_a_rank) {
  bk_store *server = serve(2, "127.0.0.1:0", TOKEN, 20);
  unsigned char bytes[STORE_MESSAGE];
  char hello[8 + sizeof TOKEN - 1] = {1, 0, 0, 0, 2, 0, 0, 0};
  memcpy(hello + 8, TOKEN, sizeof TOKEN - 1);
  size_t n = message(bytes, STORE_HELLO, hello, sizeof hello);
  int fd = stranger(bk_store_address(server));
  for (size_t i = 0; i < n; i++) { /* byte by byte, as a slow network might */
    ck_assert_int_eq(send(fd, bytes + i, 1, MSG_NOSIGNAL), 1);
    if (i % 8 == 0) usleep(1000);
  }
  ck_assert_int_eq(recv(fd, bytes, STORE_HEADER, MSG_WAITALL), STORE_HEADER);
  ck_assert_int_eq(bytes[6], STORE_WELCOME);
  ck_assert_int_eq(send(fd, "nonsense", 8, MSG_NOSIGNAL), 8);
  ck_assert_str_eq(await_abort(server, 5), "rank 1 sent what is no message to the control store");
  close(fd);
  bk_store_close(server);
}
END_TEST

START_TEST(silent_connections) {
  bk_store *server = serve(3, "127.0.0.1:0", TOKEN, 20), *clients[2] = {NULL};
  const char *address = bk_store_address(server);
  int fds[200];
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 1, 3, 20, &clients[0]), BK_OK);
  for (int i = 0; i < 200; i++) fds[i] = stranger(address);
  double start = bk_seconds();
  ck_assert_int_eq(bk_store_set(clients[0], "k", "v", 1), BK_OK);
  ck_assert_int_eq(join_as(ctx, address, TOKEN, 2, 3, 20, &clients[1]), BK_OK);
  ck_assert_int_eq(bk_store_set(clients[1], "l", "v", 1), BK_OK);
  ck_assert_msg(since(start) < 2, "%g s", since(start));
  ck_assert(!bk_store_aborted(server, NULL, 0));
  for (int i = 0; i < 200; i++) close(fds[i]);
  bk_store_close(clients[0]);
  bk_store_close(clients[1]);
  bk_store_close(server);
}
END_TEST

/* No program that a rank starts inherits a socket, by which rank 0 would seem alive when it is
 * not. */
START_TEST(descriptors) {
  enum { MOST = 64 };
  bool before[MOST];
  int found = 0;
  for (int fd = 0; fd < MOST; fd++) before[fd] = fcntl(fd, F_GETFD) >= 0;
  bk_store *server = serve(2, "127.0.0.1:0", TOKEN, 5), *client = NULL;
  ck_assert_int_eq(join_as(ctx, bk_store_address(server), TOKEN, 1, 2, 5, &client), BK_OK);
  for (int fd = 0; fd < MOST; fd++) {
    int flags = before[fd] ? -1 : fcntl(fd, F_GETFD);
    if (flags < 0) continue;
    ck_assert_int_eq(flags & FD_CLOEXEC, FD_CLOEXEC);
    found++;
  }
  ck_assert_int_eq(found, 7); /* two pipes, the listener and both ends of the connection */
  bk_store_close(client);
  bk_store_close(server);
  for (int fd = 0; fd < MOST; fd++) ck_assert(before[fd] == (fcntl(fd, F_GETFD) >= 0));
}
END_TEST

/* ---- the messages ---- */

START_TEST(messages) {
  unsigned char out[2 * STORE_MESSAGE];
  size_t used = 0, taken = 0;
  store_message m = {.kind = STORE_SET,
                     .key = (const unsigned char *)"key",
                     .key_bytes = 3,
                     .value = (const unsigned char *)"value",
                     .value_bytes = 5};
  ck_assert(store_put(out, sizeof out, &used, &m));
  static const unsigned char expected[] = {'B', 'K', 'S', 'T', 1, 0, 3, 0, 3, 0, 0, 0, 5, 0, 0, 0};
  ck_assert_mem_eq(out, expected, sizeof expected);
  ck_assert_int_eq(store_put(out, used + 10, &used, &m), false);
  ck_assert_uint_eq(used, STORE_HEADER + 8);
  for (size_t n = 0; n < used; n++)
    ck_assert_int_eq(store_parse(out, n, &m, &taken), STORE_PARTIAL);
  ck_assert_int_eq(store_parse(out, used, &m, &taken), STORE_WHOLE);
  ck_assert(taken == used && m.key_bytes == 3 && m.value_bytes == 5);
  ck_assert(memcmp(m.key, "key", 3) == 0 && memcmp(m.value, "value", 5) == 0);
  out[8] = 129; /* one byte of a key too many: seen before the bytes are there */
  ck_assert_int_eq(store_parse(out, STORE_HEADER, &m, &taken), STORE_GARBAGE);
  out[8] = 3, out[17] = 0; /* a key is a text */
  ck_assert_int_eq(store_parse(out, used, &m, &taken), STORE_GARBAGE);
  ck_assert_int_eq(store_parse((const unsigned char *)"BX", 2, &m, &taken), STORE_GARBAGE);
}
END_TEST

UNIT_MAIN("store", unit_open, unit_close, values_over_a_socket, values_of_threads, full_table,
          waiting_for_a_key, who_may_join, addresses, ways_to_rank_0, no_rank_0, rank_0_comes_later,
          abort_reaches_all, abort_and_close, one_reason, abort_of_threads, killed_rank,
          stopped_rank, rank_that_does_not_come, killed_rank_0, stopped_rank_0, goodbyes, garbage,
          garbage_of_a_rank, silent_connections, descriptors, messages)
