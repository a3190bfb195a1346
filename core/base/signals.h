/* What the program does on signals, kept while a library of others is loaded or begins. */
#ifndef BK_SIGNALS_H
#define BK_SIGNALS_H

#include "base/macros.h"

#include <signal.h>

#define BK_SIGNALS 65

typedef struct bk_signals {
  struct sigaction actions[BK_SIGNALS]; /* by number; [0] is none */
  sigset_t mask;
} bk_signals;

/* Remembers what the process does on each signal, and blocks signals in this thread but for those
 * of its own faults: threads that are made meanwhile inherit the mask, so that signals of the
 * process go on to the program's own threads. */
BK_MODULE_API void bk_signals_keep(bk_signals *kept);
/* What was changed since is put back. */
BK_MODULE_API void bk_signals_restore(bk_context *ctx, const bk_signals *kept);

#endif
