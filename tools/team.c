/* What the ranks of a job agree on, and how a rank ends that has lost the others. See team.h. */
#include "tools/team.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- the end of a job that has failed ----
 * The library says from a thread of its own that the job was aborted, and this rank's thread may
 * hang in a driver or a file system: a third thread, which is made beforehand and does nothing
 * else, then ends the process. */

#define LAST_WORDS 2.0 /* seconds that this rank's thread has to end by itself */
#define LINGER 1.0     /* seconds that rank 0 stays, so that the others learn the reason from it */

typedef struct team_watch {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool lost, over;
  bool own;                 /* this rank has given up by itself, and has said why */
  bool opening;             /* the job is not open yet: until then there is nothing that */
  struct timespec deadline; /* the library could say, and an end of patience, */
  double timeout;           /* which is so many seconds */
  int rank;
  char reason[512], doing[64], kept[512];
  cli_log *log;
} team_watch;

/* Of ranks that are threads of one process one speaks and one ends it. */
static pthread_mutex_t last_words = PTHREAD_MUTEX_INITIALIZER;
static bool last_words_said;
static int last_code; /* 0: not known */

static void pause_for(double seconds) {
  struct timespec left = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
}

static void say_lost(team_watch *w) {
  pthread_mutex_lock(&last_words);
  pthread_mutex_lock(&w->lock);
  if (!last_words_said) {
    const char *reason = w->own ? "" : w->reason, *kept = w->kept;
    char rank[32] = "";
    if (w->rank > 0) snprintf(rank, sizeof rank, "[rank %d] ", w->rank);
    cli_log_release_all(w->log, w->own ? NULL : w->reason);
    if (*reason || *kept)
      fprintf(stderr, "birkhoff: %sends %s: %s%s%s\n", rank, w->doing, reason,
              *reason && *kept ? "; " : "", kept);
    last_words_said = true;
  }
  pthread_mutex_unlock(&w->lock);
  pthread_mutex_unlock(&last_words);
}

static int lost_code(void) {
  pthread_mutex_lock(&last_words);
  int code = last_code ? last_code : 1;
  pthread_mutex_unlock(&last_words);
  return code;
}

/* A rank that dies before the job is open leaves the others in the transport's own beginning. */
static void await_opening(team_watch *w) {
  int error = 0;
  while (w->opening && !w->over && error != ETIMEDOUT)
    error = pthread_cond_timedwait(&w->changed, &w->lock, &w->deadline);
  if (!w->opening || w->over) return;
  snprintf(w->reason, sizeof w->reason,
           "the ranks have not all come together in %g s (--comm-timeout)", w->timeout);
  w->lost = true;
}

static void *watch(void *arg) {
  team_watch *w = arg;
  pthread_mutex_lock(&w->lock);
  await_opening(w);
  while (!w->lost && !w->over) pthread_cond_wait(&w->changed, &w->lock);
  bool lost = w->lost, at_once = w->opening;
  pthread_mutex_unlock(&w->lock);
  if (!lost) return NULL;
  if (at_once) {
    say_lost(w);
    _exit(lost_code());
  }
  say_lost(w);
  pause_for(LAST_WORDS);
  _exit(lost_code());
}

/* From a thread of the library. */
static void on_abort(void *user, const char *reason) {
  team_watch *w = user;
  pthread_mutex_lock(&w->lock);
  if (!w->lost && !w->over) {
    snprintf(w->reason, sizeof w->reason, "%s", reason);
    w->lost = true;
    pthread_cond_signal(&w->changed);
  }
  pthread_mutex_unlock(&w->lock);
}

static void set_deadline(team_watch *w, double seconds) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&w->changed, &attributes);
  pthread_condattr_destroy(&attributes);
  clock_gettime(CLOCK_MONOTONIC, &w->deadline);
  w->timeout = seconds;
  w->deadline.tv_sec += (time_t)seconds + 1;
}

static bk_status open_watch(cli_team *team, const bk_job_options *options) {
  team_watch *w = bk_alloc(team->s->ctx, sizeof *w);
  if (!w) return BK_ERR_MEMORY;
  w->rank = options->rank;
  w->log = team->s->log;
  w->opening = true;
  snprintf(w->doing, sizeof w->doing, "before the first step");
  pthread_mutex_init(&w->lock, NULL);
  set_deadline(w, options->timeout_s > 0 ? options->timeout_s : BK_JOB_TIMEOUT);
  if (!cli_thread_start(&w->thread, watch, w)) {
    bk_free(team->s->ctx, w);
    return bk_fail(team->s->ctx, BK_ERR_MEMORY, "a thread cannot be started");
  }
  team->watch = w;
  return BK_OK;
}

/* From now on the library says what befalls the job. */
static void end_opening(cli_team *team) {
  pthread_mutex_lock(&team->watch->lock);
  team->watch->opening = false;
  team->watch->rank = team->rank;
  pthread_cond_signal(&team->watch->changed);
  pthread_mutex_unlock(&team->watch->lock);
  bk_job_on_abort(team->job, on_abort, team->watch);
}

/* After this a job that is aborted changes nothing any more. */
static void close_watch(cli_team *team) {
  team_watch *w = team->watch;
  if (!w) return;
  pthread_mutex_lock(&w->lock);
  w->over = true;
  pthread_cond_signal(&w->changed);
  pthread_mutex_unlock(&w->lock);
  pthread_join(w->thread, NULL); /* a watch that has seen the job fail ends the process */
}

/* No call that others would have to answer is made any more, and none that frees what a thread may
 * still use. */
static _Noreturn void end_lost(cli_team *team, bk_status status) {
  char reason[512] = "";
  cli_catch_signals(NULL); /* a launcher that ends all is no surprise now */
  cli_log_last_error(team->s->log, reason, sizeof reason);
  bk_job_abort(team->job, *reason ? reason : bk_status_name(status));
  if (team->watch) {
    bk_job_aborted(team->job, reason, sizeof reason);
    on_abort(team->watch, reason);
    say_lost(team->watch);
  }
  fflush(stdout);
  if (team->rank == 0) pause_for(LINGER);
  _exit(lost_code());
}

bk_status cli_team_give_up(cli_team *team, bk_status status) {
  char error[384], reason[448];
  if (!team->job || status == BK_ERR_COMM) return status;
  cli_log_release_all(team->s->log, NULL);
  pthread_mutex_lock(&last_words);
  if (!last_code) last_code = cli_exit_code(status);
  pthread_mutex_unlock(&last_words);
  cli_log_last_error(team->s->log, error, sizeof error);
  snprintf(reason, sizeof reason, "rank %d has failed: %s", team->rank,
           *error ? error : bk_status_name(status));
  if (team->watch) {
    pthread_mutex_lock(&team->watch->lock);
    team->watch->own = !team->watch->lost;
    pthread_mutex_unlock(&team->watch->lock);
  }
  bk_job_abort(team->job, reason);
  return status;
}

bool cli_team_lost(const cli_team *team, bk_status status) {
  char reason[8];
  return team->job && (status == BK_ERR_COMM || bk_job_aborted(team->job, reason, sizeof reason));
}

static void note(cli_team *team, char *text, size_t size, const char *value) {
  pthread_mutex_lock(&team->watch->lock);
  snprintf(text, size, "%s", value);
  pthread_mutex_unlock(&team->watch->lock);
}

void cli_team_doing(cli_team *team, const char *doing) {
  if (team->watch) note(team, team->watch->doing, sizeof team->watch->doing, doing);
}

void cli_team_kept(cli_team *team, const char *kept) {
  if (team->watch) note(team, team->watch->kept, sizeof team->watch->kept, kept);
}

/* ---- opening and closing ---- */

static bk_status open_talk(cli_team *team) {
  bk_device_options options = {.threads = 1};
  BK_TRY(bk_device_open(team->s->ctx, "cpu", &options, &team->host));
  return bk_comm_open(team->job, team->host, &team->talk);
}

bk_status cli_team_open(cli_team *team, cli_session *s, const bk_job_options *options) {
  BK_TRY(open_watch(team, options));
  bk_status status = bk_job_open(s->ctx, options, &team->job);
  if (status != BK_OK) return status;
  team->rank = bk_job_rank(team->job);
  team->size = bk_job_size(team->job);
  team->local_rank = bk_job_local_rank(team->job);
  team->local_size = bk_job_local_size(team->job);
  if (team->local_size < 1) team->local_rank = 0, team->local_size = 1;
  cli_log_rank(s->log, team->rank, true);
  end_opening(team);
  status = open_talk(team);
  return status == BK_OK ? status : cli_team_give_up(team, status);
}

bk_status cli_team_open_comm(cli_team *team) {
  return team->job ? bk_comm_open(team->job, team->s->device, &team->comm) : BK_OK;
}

void cli_team_close(cli_team *team, bk_status status) {
  if (cli_team_lost(team, status)) end_lost(team, status);
  cli_log_release_all(team->s->log, NULL);
  close_watch(team);
  bk_comm_destroy(team->comm);
  bk_comm_destroy(team->talk);
  bk_job_close(team->job);
  bk_device_close(team->host);
  bk_free(team->s->ctx, team->watch);
}

/* ---- agreements ---- */

typedef struct word {
  int32_t status, signal, save, held;
  uint64_t marks[CLI_HELD];
} word;

bk_status cli_team_gather(cli_team *team, const void *src, size_t bytes, void *dst) {
  if (!team->talk) {
    memcpy(dst, src, bytes);
    return BK_OK;
  }
  return bk_comm_gather(team->talk, src, bytes, dst);
}

bk_status cli_team_follow(cli_team *team, void *value, size_t bytes) {
  if (!team->job) return BK_OK;
  char *all = bk_alloc_array(team->s->ctx, (size_t)team->size, bytes);
  if (!all) return cli_team_give_up(team, BK_ERR_MEMORY);
  bk_status status = bk_comm_gather(team->talk, value, bytes, all);
  if (status == BK_OK) memcpy(value, all, bytes);
  bk_free(team->s->ctx, all);
  return status;
}

/* Whether a rank below this one holds the message too. */
static bool is_known(const word *words, int rank, uint64_t mark) {
  for (int r = 0; r < rank; r++)
    for (int i = 0; i < words[r].held; i++)
      if (words[r].marks[i] == mark) return true;
  return false;
}

static void release(cli_team *team, const word *words) {
  const word *own = &words[team->rank];
  bool say[CLI_HELD];
  for (int i = 0; i < own->held; i++) say[i] = !is_known(words, team->rank, own->marks[i]);
  cli_log_release(team->s->log, own->held, say);
}

/* The first signal in the order of ranks; what was there before stays. */
static void take_words(cli_team *team, const word *words) {
  for (int r = 0; r < team->size; r++) {
    if (!team->signal) team->signal = words[r].signal;
    team->save |= words[r].save != 0;
  }
  if (team->hears_signals && team->signal) cli_signal = team->signal;
}

static bk_status exchange(cli_team *team, word *own, word *words) {
  own->held = cli_log_marks(team->s->log, own->marks);
  BK_TRY(bk_comm_gather(team->talk, own, sizeof *own, words));
  release(team, words);
  for (int r = 0; r < team->size; r++)
    if (words[r].status != BK_OK) return (bk_status)words[r].status;
  return BK_OK;
}

static bk_status meet(cli_team *team, word *own, bool step) {
  if (own->status == BK_ERR_COMM) return BK_ERR_COMM;
  word *words = bk_alloc_array(team->s->ctx, (size_t)team->size, sizeof *words);
  if (!words) return cli_team_give_up(team, BK_ERR_MEMORY);
  for (int r = 0; r < team->size; r++) words[r] = (word){0};
  bk_status status = exchange(team, own, words);
  if (step && status != BK_ERR_COMM) take_words(team, words);
  bk_free(team->s->ctx, words);
  return status;
}

bk_status cli_team_agree(cli_team *team, bk_status status) {
  word own = {.status = status};
  return team->job ? meet(team, &own, false) : status;
}

bk_status cli_team_step(cli_team *team, bk_status status) {
  if (!team->job) {
    team->signal = cli_signal;
    team->save |= cli_take_save();
    return status;
  }
  word own = {.status = status};
  if (team->hears_signals) own.signal = cli_signal, own.save = cli_take_save();
  return meet(team, &own, true);
}

bool cli_team_take_save(cli_team *team) {
  bool save = team->save;
  team->save = false;
  return save;
}

/* ---- the same on all ranks ---- */

/* Names the first line that is not the same. */
static bk_status compare(cli_team *team, const char *what, const char *own, const char *first) {
  size_t n = strcspn(own, "\n"), m = strcspn(first, "\n");
  while (n == m && *own && memcmp(own, first, n) == 0) {
    own += n + (own[n] == '\n');
    first += m + (first[m] == '\n');
    n = strcspn(own, "\n");
    m = strcspn(first, "\n");
  }
  if (!*own && !*first) return BK_OK;
  return bk_fail(team->s->ctx, BK_ERR_CONFIG,
                 "%s differs from that of rank 0: %.*s here, %.*s there", what, (int)n, own, (int)m,
                 first);
}

/* Every rank's text in `room` bytes of `all`. */
static bk_status compare_all(cli_team *team, const char *what, const char *text, size_t room,
                             char *all) {
  char *own = bk_alloc(team->s->ctx, room);
  if (!own) return cli_team_give_up(team, BK_ERR_MEMORY);
  snprintf(own, room, "%s", text);
  bk_status status = bk_comm_gather(team->talk, own, room, all);
  bk_free(team->s->ctx, own);
  BK_TRY(status);
  return cli_team_agree(team, compare(team, what, text, all));
}

bk_status cli_team_same(cli_team *team, const char *what, const char *text) {
  if (!team->job) return BK_OK;
  int64_t length = (int64_t)strlen(text), room = 0;
  int64_t *lengths = bk_alloc_array(team->s->ctx, (size_t)team->size, sizeof *lengths);
  if (!lengths) return cli_team_give_up(team, BK_ERR_MEMORY);
  bk_status status = bk_comm_gather(team->talk, &length, sizeof length, lengths);
  for (int r = 0; r < team->size; r++)
    if (lengths[r] >= room) room = lengths[r] + 1;
  bk_free(team->s->ctx, lengths);
  BK_TRY(status);
  char *all = bk_alloc_array(team->s->ctx, (size_t)team->size, (size_t)room);
  if (!all) return cli_team_give_up(team, BK_ERR_MEMORY);
  status = compare_all(team, what, text, (size_t)room, all);
  bk_free(team->s->ctx, all);
  return status;
}
