/* Libraries of others set handlers of which the program knows nothing: for stack traces (Open MPI),
 * when they are loaded (UCX), for SIGINT, SIGTERM and SIGUSR1 too (what MPICH loads). */
#include "base/signals.h"

#include <pthread.h>

/* The mask is left to the thread: a fault in it must end the process. */
static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};

void bk_signals_keep(bk_signals *kept) {
  sigset_t all;
  *kept = (bk_signals){.actions = {{.sa_flags = 0}}};
  for (int s = 1; s < BK_SIGNALS; s++) (void)sigaction(s, NULL, &kept->actions[s]);
  sigfillset(&all);
  for (size_t i = 0; i < BK_COUNT(faults); i++) sigdelset(&all, faults[i]);
  (void)pthread_sigmask(SIG_SETMASK, &all, &kept->mask);
}

/* The C library has signals of its own, which it does not show. */
void bk_signals_restore(bk_context *ctx, const bk_signals *kept) {
  struct sigaction now;
  for (int s = 1; s < BK_SIGNALS; s++) {
    const struct sigaction *before = &kept->actions[s];
    if (sigaction(s, NULL, &now) != 0) continue;
    if (now.sa_handler == before->sa_handler && now.sa_flags == before->sa_flags) continue;
    bk_debug(ctx, "the handler of signal %d was replaced, and is put back", s);
    (void)sigaction(s, before, NULL);
  }
  (void)pthread_sigmask(SIG_SETMASK, &kept->mask, NULL);
}
