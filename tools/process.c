/* What the command sets up before anything else: open descriptors, ignored signals, a stack that
 * is large enough. See cli.h. */
#include "tools/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- descriptors 0 to 2 ---- */

/* A closed one would be given to the next file that is opened, and what is printed would go into
 * it. Opened for reading alone, the empty device gives end of file as standard input, and as
 * standard output or error makes every write fail, so that no result is lost in silence. */
static bool open_standard(void) {
  for (int fd = 0; fd <= 2; fd++) {
    if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    if (open("/dev/null", O_RDONLY) == fd) continue; /* the lowest that is free */
    fprintf(stderr,
            "birkhoff: error: file descriptor %d is closed and /dev/null cannot be opened in its "
            "place: %s\n",
            fd, strerror(errno));
    return false;
  }
  return true;
}

bool cli_process_begin(void) {
  if (!open_standard()) return false;
  /* as with a full disk: the write fails, and whoever writes says so, or goes on without */
  signal(SIGPIPE, SIG_IGN);
  /* a file that may not grow further is an error of the write, not the end of the program */
  signal(SIGXFSZ, SIG_IGN);
  return true;
}

/* ---- the stack ---- */

/* what systems give by default; libraries of drivers count on it */
#define STACK_BYTES ((size_t)8 << 20)

typedef struct program {
  int (*run)(int argc, char **argv);
  int argc, code;
  char **argv;
} program;

static void *run_program(void *arg) {
  program *p = arg;
  p->code = p->run(p->argc, p->argv);
  return NULL;
}

static bool stack_is_small(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_STACK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
      limit.rlim_cur >= STACK_BYTES)
    return false;
  limit.rlim_cur = limit.rlim_max == RLIM_INFINITY || limit.rlim_max > STACK_BYTES
                       ? (rlim_t)STACK_BYTES
                       : limit.rlim_max;
  /* for the first thread and for programs that a driver starts; where it is refused, the rest
   * does */
  setrlimit(RLIMIT_STACK, &limit);
  return true;
}

/* With STACK_BYTES of stack. */
static bool start(pthread_t *thread, void *(*run_thread)(void *arg), void *arg) {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  bool done = pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0;
#ifdef HAVE_PTHREAD_SETATTR_DEFAULT_NP
  if (done) pthread_setattr_default_np(&attributes); /* for threads that drivers start */
#endif
  done = done && pthread_create(thread, &attributes, run_thread, arg) == 0;
  pthread_attr_destroy(&attributes);
  return done;
}

bool cli_thread_start(pthread_t *thread, void *(*run_thread)(void *arg), void *arg) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  bool done = start(thread, run_thread, arg);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return done;
}

/* Signals go to the thread that runs the program, as they would without it. */
static bool run_on_thread(program *p) {
  pthread_t thread;
  sigset_t all;
  if (!start(&thread, run_program, p)) return false;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  pthread_join(thread, NULL);
  return true;
}

int cli_process_run(int (*run)(int argc, char **argv), int argc, char **argv) {
  program p = {run, argc, 1, argv};
  return stack_is_small() && run_on_thread(&p) ? p.code : run(argc, argv);
}
