/* Signals that ask for an end or for a checkpoint. See cli.h. */
#include "tools/cli.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

volatile sig_atomic_t cli_signal;

static const char *volatile signal_note;
static volatile sig_atomic_t told_to_end; /* by SIGINT or SIGTERM */
static volatile sig_atomic_t save_asked;

/* A terminal that goes away sends SIGHUP more than once, and a service manager may send it after
 * SIGTERM: it never counts as the second. */
static void on_end(int number) {
  int error = errno;
  if (number != SIGHUP && told_to_end) {
    signal(number, SIG_DFL);
    raise(number); /* ends the program when this function returns */
  }
  if (number != SIGHUP) told_to_end = 1;
  if (!cli_signal) {
    const char *note = signal_note;
    cli_signal = number;
    /* nothing can be done about it here */
    if (note && write(STDERR_FILENO, note, strlen(note)) < 0) errno = error;
  }
  errno = error;
}

static void on_save(int number) {
  (void)number;
  save_asked = 1;
}

void cli_catch_signals(const char *note) {
  signal_note = note;
  struct sigaction action = {.sa_handler = on_end}, before;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  /* nohup: it stays ignored */
  if (sigaction(SIGHUP, NULL, &before) != 0 || before.sa_handler != SIG_IGN)
    sigaction(SIGHUP, &action, NULL);
}

void cli_catch_save(void) {
  struct sigaction action = {.sa_handler = on_save, .sa_flags = SA_RESTART};
  sigemptyset(&action.sa_mask);
  sigaction(SIGUSR1, &action, NULL);
  /* which Open MPI's mpirun passes on to its processes, and SIGUSR1 not */
  sigaction(SIGUSR2, &action, NULL);
}

bool cli_take_save(void) {
  if (!save_asked) return false;
  save_asked = 0;
  return true;
}
