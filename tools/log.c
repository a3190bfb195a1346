/* Messages of a context on standard error, and of many ranks as of one. See cli.h. */
#include "tools/cli.h"

#include <stdlib.h>
#include <string.h>

static const char *const level_names[] = {"error", "warning", "info", "debug", "trace"};

/* Messages quote files and arguments, which are untrusted: no terminal codes. Standard error has no
 * buffer, and several processes write there: a line goes out in one piece, if it is not very long,
 * so that those of other ranks do not come in between. */
static void print(int rank, bk_log_level level, const char *message) {
  char line[4096], number[32] = "";
  if (rank > 0) snprintf(number, sizeof number, "[rank %d] ", rank);
  size_t n = (size_t)snprintf(line, sizeof line, "birkhoff: %s: %s", level_names[level], number);
  flockfile(stderr);
  for (const char *c = message; *c; c++) {
    line[n++] = (unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c;
    if (n < sizeof line - 1) continue;
    fwrite(line, 1, n, stderr);
    n = 0;
  }
  line[n++] = '\n';
  fwrite(line, 1, n, stderr);
  funlockfile(stderr);
}

/* FNV-1a */
static uint64_t mark_of(bk_log_level level, const char *message) {
  uint64_t hash = 14695981039346656037u ^ (uint64_t)level;
  for (const char *c = message; *c; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211u;
  return hash;
}

void cli_log_init(cli_log *log) {
  memset(log, 0, sizeof *log);
  pthread_mutex_init(&log->lock, NULL);
}

void cli_log_fini(cli_log *log) {
  cli_log_release_all(log, NULL);
  pthread_mutex_destroy(&log->lock);
}

bk_status cli_log_context(cli_log *log, bk_context **ctx) {
  bk_context_options options = {.log = cli_log_message, .log_user = log, .log_level = BK_LOG_WARN};
  const char *level = getenv("BIRKHOFF_LOG");
  if (level && *level) bk_log_level_parse(level, &options.log_level);
  return bk_context_create(&options, ctx);
}

void cli_log_rank(cli_log *log, int rank, bool hold) {
  pthread_mutex_lock(&log->lock);
  log->rank = rank;
  log->hold = hold;
  pthread_mutex_unlock(&log->lock);
}

/* False: there is no room, or no memory. */
static bool hold(cli_log *log, bk_log_level level, const char *message) {
  char *text = log->held < CLI_HELD ? strdup(message) : NULL;
  if (!text) return false;
  log->messages[log->held].level = level;
  log->messages[log->held++].text = text;
  return true;
}

void cli_log_message(void *user, bk_log_level level, const char *message) {
  cli_log *log = user;
  pthread_mutex_lock(&log->lock);
  if (level == BK_LOG_ERROR) snprintf(log->last_error, sizeof log->last_error, "%s", message);
  if (level > BK_LOG_WARN) {
    if (log->rank == 0) print(0, level, message);
  } else if (*log->known && strstr(message, log->known)) {
    /* was said */
  } else if (!log->hold || !hold(log, level, message)) {
    print(log->rank, level, message);
  }
  pthread_mutex_unlock(&log->lock);
}

int cli_log_marks(cli_log *log, uint64_t *marks) {
  pthread_mutex_lock(&log->lock);
  int n = log->held;
  for (int i = 0; i < n; i++) marks[i] = mark_of(log->messages[i].level, log->messages[i].text);
  pthread_mutex_unlock(&log->lock);
  return n;
}

/* Under the lock: the first n are said, or dropped, and forgotten. */
static void drop_first(cli_log *log, int n, const bool *say) {
  for (int i = 0; i < n; i++) {
    if (say[i]) print(log->rank, log->messages[i].level, log->messages[i].text);
    free(log->messages[i].text);
  }
  log->held -= n;
  memmove(log->messages, log->messages + n, (size_t)log->held * sizeof log->messages[0]);
}

void cli_log_release(cli_log *log, int n, const bool *say) {
  pthread_mutex_lock(&log->lock);
  drop_first(log, n < log->held ? n : log->held, say);
  pthread_mutex_unlock(&log->lock);
}

void cli_log_release_all(cli_log *log, const char *known) {
  bool say[CLI_HELD];
  pthread_mutex_lock(&log->lock);
  for (int i = 0; i < log->held; i++)
    say[i] = !known || !*known || !strstr(log->messages[i].text, known);
  if (known) snprintf(log->known, sizeof log->known, "%s", known);
  drop_first(log, log->held, say);
  log->hold = false;
  pthread_mutex_unlock(&log->lock);
}

void cli_log_last_error(cli_log *log, char *text, size_t size) {
  pthread_mutex_lock(&log->lock);
  snprintf(text, size, "%s", log->last_error);
  pthread_mutex_unlock(&log->lock);
}
