/* Drives the wire of the transport mpi itself, one rank of several under a launcher, or alone:
 *
 *   wire CASE [SEED]        the module, loaded as the library does it
 *   wire_linked CASE [SEED] its source linked in, with pieces of 4 KiB; cases that call MPI, too
 *
 * The wire is opened and used by a thread of its own, as the engine does. Exit status 0: all that
 * this rank has seen was right. tests/mpi/run.sh runs the cases. */
#include "base/base.h"
#include "comm/transport.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef LINKED
#include <mpi.h>
#endif

static bk_context *ctx;
static char messages[4096]; /* errors and warnings */
static int wrong;

static void keep_message(void *user, bk_log_level level, const char *message) {
  size_t used = strlen(messages);
  (void)user;
  if (level <= BK_LOG_WARN) snprintf(messages + used, sizeof messages - used, "%s\n", message);
  else fprintf(stderr, "# %s\n", message);
}

static void expect(bool good, int line, const char *what) {
  if (good) return;
  wrong++;
  fprintf(stderr, "wire.c:%d: %s; messages: %s\n", line, what, messages);
}
#define EXPECT(condition) expect(condition, __LINE__, #condition)

/* The messages since the last call hold this. */
static void expect_message(int line, const char *part) {
  expect(strstr(messages, part) != NULL, line, part);
  messages[0] = '\0';
}
#define EXPECT_MESSAGE(part) expect_message(__LINE__, part)

static const bk_transport *find_transport(void) {
#ifdef LINKED
  return bk_transport_module();
#else
  const bk_transport *transport = NULL;
  EXPECT(bk_transport_find(ctx, "mpi", &transport) == BK_OK && transport);
  if (!transport) exit(2);
  return transport;
#endif
}

static bk_wire *open_wire(void) {
  bk_job_options options = {0};
  bk_wire *wire = NULL;
  EXPECT(find_transport()->open(ctx, &options, &wire) == BK_OK && wire);
  if (!wire) exit(2);
  EXPECT(options.size == wire->size && options.rank == wire->rank && wire->rank < wire->size);
  EXPECT(options.local_size >= 1 && options.local_rank < options.local_size);
  return wire;
}

static bk_status refused(bk_job_options options) {
  bk_wire *wire = NULL;
  bk_status status = find_transport()->open(ctx, &options, &wire);
  EXPECT(status != BK_OK && !wire);
  return status;
}

/* ---- many messages ---- */

#define CHANNELS BK_WIRE_CHANNELS
#define PAIR_MESSAGES 6 /* at most so many for an ordered pair of ranks and a channel, in a round */

typedef struct message {
  bool send, posted;
  int peer, channel, slot;
  uint64_t key;
  size_t bytes;
  unsigned char *data;
} message;

static uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t words[2] = {a, b};
  return bk_hash64(words, sizeof words);
}

/* What both ends know: how many messages a pair has in a round, and of what size. Nothing and a
 * byte, a few hundred, and more than what MPI sends without asking. */
static size_t bytes_of(uint64_t key) {
  uint64_t kind = mix(key, 1) % 8, r = mix(key, 2);
  return kind == 0 ? 0 : kind == 1 ? 1 : kind < 5 ? r % 700 : kind < 7 ? r % 20000 : r % 250000;
}

static unsigned char byte_of(uint64_t key, size_t i) {
  return (unsigned char)((key >> (i % 8 * 8)) + i / 8);
}

static message make_message(uint64_t key, bool send, int peer, int channel) {
  message m = {.send = send, .peer = peer, .channel = channel, .key = key, .bytes = bytes_of(key)};
  m.data = malloc(m.bytes + 1);
  if (!m.data) exit(2);
  for (size_t i = 0; i < m.bytes; i++) m.data[i] = send ? byte_of(key, i) : 0xee;
  m.data[m.bytes] = 0x77;
  return m;
}

/* This rank's messages of one round, those of a queue (pair, channel, direction) in order. */
static int make_round(const bk_wire *wire, uint64_t seed, message *all) {
  int n = 0;
  for (int peer = 0; peer < wire->size; peer++)
    for (int channel = 0; channel < CHANNELS; channel++)
      for (int send = 0; send < 2; send++) {
        int from = send ? wire->rank : peer, to = send ? peer : wire->rank;
        uint64_t queue = mix(seed, (uint64_t)((from * wire->size + to) * CHANNELS + channel));
        int count = (int)(queue % (PAIR_MESSAGES + 1));
        for (int i = 0; i < count; i++)
          all[n++] = make_message(mix(queue, (uint64_t)i), send, peer, channel);
      }
  return n;
}

/* Posts the first of some queue that is not posted, at random by rank. */
static void post_one(bk_wire *wire, message *all, int n, uint64_t random, int slot) {
  int at = (int)(random % (uint64_t)n);
  while (all[at].posted) at = (at + 1) % n;
  message *m = &all[at];
  for (int i = at; i >= 0; i--)
    if (!all[i].posted && all[i].send == m->send && all[i].peer == m->peer &&
        all[i].channel == m->channel)
      at = i;
  m = &all[at];
  m->posted = true, m->slot = slot;
  int code = m->send ? wire->ops->send(wire, m->peer, m->channel, m->data, m->bytes, m->slot)
                     : wire->ops->receive(wire, m->peer, m->channel, m->data, m->bytes, m->slot);
  if (code != 0) fprintf(stderr, "%s\n", wire->reason), exit(2);
}

/* Tests what is posted and not done; how many are done. */
static int test_posted(bk_wire *wire, message *all, int n, bool *done) {
  int slots[1024], at[1024], under_way = 0, n_done = 0;
  bool now[1024];
  for (int i = 0; i < n; i++)
    if (all[i].posted && !done[i]) at[under_way] = i, slots[under_way++] = all[i].slot;
  if (under_way && wire->ops->test(wire, slots, under_way, now) != 0)
    fprintf(stderr, "%s\n", wire->reason), exit(2);
  for (int i = 0; i < under_way; i++) done[at[i]] = now[i];
  for (int i = 0; i < n; i++) n_done += done[i];
  return n_done;
}

static void check_message(const message *m) {
  size_t i = 0;
  while (i < m->bytes && m->data[i] == byte_of(m->key, i)) i++;
  EXPECT(i == m->bytes && m->data[m->bytes] == 0x77);
  free(m->data);
}

static void one_round(bk_wire *wire, uint64_t seed) {
  static message all[1024];
  bool done[1024] = {false};
  uint64_t random = mix(seed, 1000 + (uint64_t)wire->rank);
  int n = make_round(wire, seed, all), posted = 0, n_done = 0;
  while (n_done < n) {
    for (int some = (int)(random % 40); some > 0 && posted < n; some--)
      post_one(wire, all, n, random = mix(random, 3), posted++);
    int before = n_done;
    n_done = test_posted(wire, all, n, done);
    if (n_done == before) wire->ops->idle(wire);
    random = mix(random, 4);
  }
  for (int i = 0; i < n; i++) check_message(&all[i]);
}

static uint64_t seed;

static void case_messages(void) {
  int rounds = getenv("BK_TEST_LONG") ? 400 : 40;
  bk_wire *wire = open_wire();
  EXPECT(wire->channels >= CHANNELS && wire->slots >= 2 * CHANNELS * PAIR_MESSAGES * wire->size);
  for (int i = 0; i < rounds && !wrong; i++) one_round(wire, mix(seed, (uint64_t)i));
  wire->ops->close(wire, false);
}

/* ---- one message after the other ---- */

/* True when the slot is done; false, with wire->reason, when the wire broke. */
static bool wait_for(bk_wire *wire, int slot) {
  bool done = false;
  while (!done) {
    if (wire->ops->test(wire, &slot, 1, &done) != 0) return false;
    if (!done) wire->ops->idle(wire);
  }
  return true;
}

/* More than int counts, from the first rank to the last; two of them, of which the second must not
 * get between the pieces of the first. */
static void case_large(void) {
  bk_wire *wire = open_wire();
  size_t bytes = ((size_t)5 << 29) + 4321; /* 2.5 GiB */
  unsigned char *data = NULL, second = 0;
  int last = wire->size - 1;
  if (wire->rank == 0 || wire->rank == last) EXPECT((data = malloc(bytes)) != NULL);
  if (data && wire->rank == 0) {
    for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)(i >> 12);
    second = 42;
    EXPECT(wire->ops->send(wire, last, 1, data, bytes, 0) == 0);
    EXPECT(wire->ops->send(wire, last, 1, &second, 1, 1) == 0);
    EXPECT(wait_for(wire, 0) && wait_for(wire, 1));
  } else if (data) {
    memset(data, 0xff, bytes);
    EXPECT(wire->ops->receive(wire, 0, 1, data, bytes, 0) == 0);
    EXPECT(wire->ops->receive(wire, 0, 1, &second, 1, 1) == 0);
    EXPECT(wait_for(wire, 0) && wait_for(wire, 1));
    size_t i = 0;
    while (i < bytes && data[i] == (unsigned char)(i >> 12)) i++;
    EXPECT(i == bytes && second == 42);
  }
  free(data);
  wire->ops->close(wire, false);
}

/* A receive of another size than the send: the wire says so. */
static void case_sizes(void) {
  static const size_t sent[] = {10, 30};
  char data[40] = "", *expected = data;
  bk_wire *wire = open_wire();
  for (size_t i = 0; i < BK_COUNT(sent) && wire->size > 1 && wire->rank < 2; i++) {
    if (wire->rank == 0) {
      EXPECT(wire->ops->send(wire, 1, 0, data, sent[i], 0) == 0 && wait_for(wire, 0));
      continue;
    }
    EXPECT(wire->ops->receive(wire, 0, 0, expected, 20, 0) == 0 && !wait_for(wire, 0));
    fprintf(stderr, "# %s\n", wire->reason);
    EXPECT(strstr(wire->reason, i ? "truncate" : "rank 0 has sent 10 bytes where 20 were") != NULL);
  }
  wire->ops->close(wire, false);
}

/* What no other rank takes part in: it must not wait. */
static void case_abandon(void) {
  static char data[1 << 20];
  bk_wire *wire = open_wire();
  int peer = (wire->rank + 1) % wire->size;
  bool done = false;
  EXPECT(wire->ops->receive(wire, peer, 2, data, sizeof data, 7) == 0);
  EXPECT(wire->ops->test(wire, &(int){7}, 1, &done) == 0 && !done);
  double begin = bk_context_seconds(ctx);
  wire->ops->close(wire, true);
  EXPECT(bk_context_seconds(ctx) - begin < 1.0);
}

/* ---- refusals ---- */

/* MPI knows the ranks: who says otherwise is refused, and so are all others with it. */
static void case_refused(void) {
  const char *rank = getenv("OMPI_COMM_WORLD_RANK");
  bool first = !rank || strcmp(rank, "0") == 0;
  bk_job_options options = {.rank = 7, .size = 9, .launcher = "srun"};
  EXPECT(refused(first ? options : (bk_job_options){0}) == BK_ERR_ARGUMENT);
  if (first) EXPECT_MESSAGE("srun says rank 7 of 9");
  else EXPECT_MESSAGE("another rank was told another size or number");
  EXPECT(refused((bk_job_options){0}) == BK_ERR_UNSUPPORTED);
  EXPECT_MESSAGE("MPI has ended in this process");
}

/* After a whole life there is no second one. */
static void case_again(void) {
  bk_wire *wire = open_wire();
  wire->ops->close(wire, false);
  EXPECT(refused((bk_job_options){0}) == BK_ERR_UNSUPPORTED);
  EXPECT_MESSAGE("cannot begin a second time");
}

/* ---- signals ---- */

static const int watched[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2,
                              SIGPIPE, SIGCHLD, SIGALRM, SIGSEGV, SIGBUS,  SIGFPE,
                              SIGILL,  SIGABRT, SIGTSTP, SIGCONT, SIGXFSZ};

static void on_signal(int signal_number) { (void)signal_number; }

/* Bits of SigBlk in /proc/self/task/ID/status; all of them where it cannot be read. */
static unsigned long long blocked_in(const char *task) {
  char path[300], line[256];
  unsigned long long bits = ~0ULL;
  snprintf(path, sizeof path, "/proc/self/task/%s/status", task);
  FILE *file = fopen(path, "r");
  if (!file) return bits;
  while (fgets(line, sizeof line, file))
    if (strncmp(line, "SigBlk:", 7) == 0) bits = strtoull(line + 7, NULL, 16);
  fclose(file);
  return bits;
}

#define THREADS 64

/* The threads of this process, of which OpenBLAS has some. */
static int list_threads(char ids[THREADS][16]) {
  DIR *folder = opendir("/proc/self/task");
  int n = 0;
  for (struct dirent *entry; folder && n < THREADS && (entry = readdir(folder));)
    if (entry->d_name[0] != '.') snprintf(ids[n++], sizeof ids[0], "%.15s", entry->d_name);
  if (folder) closedir(folder);
  return n;
}

/* Threads that are not among the n `before` must leave the process's signals to it. */
static void expect_blocked(int signal_number, char before[THREADS][16], int n) {
  static char now[THREADS][16];
  int n_now = list_threads(now), n_new = 0;
  for (int i = 0; i < n_now; i++) {
    int known = 0;
    while (known < n && strcmp(before[known], now[i]) != 0) known++;
    if (known < n) continue;
    n_new++;
    EXPECT(blocked_in(now[i]) >> (signal_number - 1) & 1);
  }
  printf("%d threads of MPI\n", n_new);
}

/* Flags, but for what the C library adds to them on its own. */
static int flags_of(const struct sigaction *action) {
  return action->sa_flags & (SA_RESTART | SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESETHAND |
                             SA_NOCLDSTOP | SA_NOCLDWAIT);
}

static void case_signals(void) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, now;
  sigset_t mask, mask_now;
  for (size_t i = 0; i < BK_COUNT(watched); i += 2) sigaction(watched[i], &action, NULL);
  signal(SIGUSR2, SIG_IGN);
  struct sigaction before[BK_COUNT(watched)];
  for (size_t i = 0; i < BK_COUNT(watched); i++) sigaction(watched[i], NULL, &before[i]);
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  (void)find_transport(); /* what is loaded with it may start threads, too */
  static char threads[THREADS][16];
  int n_threads = list_threads(threads);
  bk_wire *wire = open_wire();
  pthread_sigmask(SIG_SETMASK, NULL, &mask_now);
  for (int s = 1; s < 32; s++) EXPECT(sigismember(&mask, s) == sigismember(&mask_now, s));
  expect_blocked(SIGTERM, threads, n_threads);
  expect_blocked(SIGUSR1, threads, n_threads);
  for (size_t i = 0; i < BK_COUNT(watched); i++) {
    sigaction(watched[i], NULL, &now);
    EXPECT(now.sa_handler == before[i].sa_handler && flags_of(&now) == flags_of(&before[i]));
  }
  wire->ops->close(wire, false);
}

/* ---- what the launcher does ---- */

static volatile sig_atomic_t caught;
static void count_signal(int signal_number) { caught = signal_number; }

/* Says which signals come, and goes on for WIRE_SECONDS: what a rank that saves would see. */
static void case_report(void) {
  static const int some[] = {SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP, SIGCONT, SIGTSTP};
  const char *seconds = getenv("WIRE_SECONDS");
  for (size_t i = 0; i < BK_COUNT(some); i++)
    sigaction(some[i], &(struct sigaction){.sa_handler = count_signal}, NULL);
  bk_wire *wire = open_wire();
  double begin = bk_context_seconds(ctx), now = begin;
  fprintf(stderr, "rank %d runs as %ld\n", wire->rank, (long)getpid());
  for (; now - begin < (seconds ? atof(seconds) : 1); now = bk_context_seconds(ctx)) {
    wire->ops->idle(wire);
    if (caught) fprintf(stderr, "rank %d: signal %d at %.1f s\n", wire->rank, caught, now - begin);
    caught = 0;
  }
  fprintf(stderr, "rank %d ends\n", wire->rank);
  wire->ops->close(wire, false);
}

#ifdef LINKED
/* ---- MPI that the program has initialised itself ---- */

static int given_level;

static void open_within(void) {
  if (given_level == MPI_THREAD_MULTIPLE) {
    bk_wire *wire = open_wire();
    for (int i = 0; i < 3; i++) one_round(wire, mix(seed, (uint64_t)i));
    wire->ops->close(wire, false);
    wire = open_wire(); /* it has not ended, so that there may be a second */
    wire->ops->close(wire, false);
    return;
  }
  EXPECT(refused((bk_job_options){0}) == BK_ERR_UNSUPPORTED);
  EXPECT_MESSAGE("it must be MPI_THREAD_MULTIPLE, or left to the job");
}
#endif

typedef struct test_case {
  const char *name;
  void (*run)(void);
} test_case;

static const test_case cases[] = {
    {"messages", case_messages}, {"large", case_large},     {"sizes", case_sizes},
    {"abandon", case_abandon},   {"refused", case_refused}, {"again", case_again},
    {"signals", case_signals},   {"report", case_report},
#ifdef LINKED
    {"multiple", open_within},   {"funneled", open_within}, {"serialized", open_within},
    {"same-thread", NULL},
#endif
};

static void *run_case(void *user) {
  ((const test_case *)user)->run();
  return NULL;
}

static void in_thread(const test_case *c) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, run_case, (void *)(uintptr_t)c) != 0) exit(2);
  pthread_join(thread, NULL);
}

#ifdef LINKED
/* The program's own MPI goes on after the wire has come and gone. */
static void with_own_mpi(const test_case *c) {
  int wanted = strcmp(c->name, "multiple") == 0     ? MPI_THREAD_MULTIPLE
               : strcmp(c->name, "serialized") == 0 ? MPI_THREAD_SERIALIZED
                                                    : MPI_THREAD_FUNNELED;
  int ended = 1, sum = 0, one = 1, size = 0;
  MPI_Init_thread(NULL, NULL, wanted, &given_level);
  EXPECT(given_level >= wanted);
  if (c->run) in_thread(c);
  else {
    bk_wire *wire = open_wire();
    one_round(wire, seed);
    wire->ops->close(wire, false);
  }
  MPI_Finalized(&ended);
  EXPECT(!ended);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  EXPECT(sum == size);
  MPI_Finalize();
}
#endif

static void run_by_name(const test_case *c) {
#ifdef LINKED
  if (!c->run || c->run == open_within) {
    with_own_mpi(c);
    return;
  }
#endif
  in_thread(c);
}

int main(int argc, char **argv) {
  bk_context_options options = {.log = keep_message, .log_level = BK_LOG_DEBUG};
  if (argc < 2 || bk_context_create(&options, &ctx) != BK_OK) return 2;
  seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    if (strcmp(cases[i].name, argv[1]) != 0) continue;
    run_by_name(&cases[i]);
    bk_context_destroy(ctx); /* warns of a leak */
    EXPECT(messages[0] == '\0');
    return wrong ? 1 : 0;
  }
  fprintf(stderr, "no case %s\n", argv[1]);
  return 2;
}
