/* A wire: what a host transport offers, messages of bytes between the ranks of a job. The engine
 * (engine.h) makes everything else of it, collectives, sums, checks and deadlines, once for all
 * wires: so results depend on the plan and never on the transport.
 *
 * A wire is used by one thread alone, the engine's; what MPI calls MPI_THREAD_FUNNELED is enough.
 * Functions return 0, or a negative number with a reason in words in wire->reason; they allocate
 * nothing after open and log nothing.
 *
 * Messages between two ranks on one channel arrive in the order in which they were sent, and a
 * receive meets the sends in that order. The size of a receive is that of the send: the engine
 * knows it from the header that it sends before. A send is done when its memory may be written
 * again; it need not have arrived (the engine relies on neither). */
#ifndef BK_WIRE_H
#define BK_WIRE_H

#include "base/base.h"

typedef struct bk_wire bk_wire;

typedef struct bk_wire_ops {
  /* `abandon`: others may be gone; it waits for nobody. Messages may be under way then, and as far
   * as the transport can do that, it does not touch their memory afterwards. Without `abandon` none
   * is. */
  void (*close)(bk_wire *wire, bool abandon);
  /* Begin a message to or from a rank of the job; `slot` is from [0, slots) and free. */
  int (*send)(bk_wire *wire, int peer, int channel, const void *data, size_t bytes, int slot);
  int (*receive)(bk_wire *wire, int peer, int channel, void *data, size_t bytes, int slot);
  /* Makes progress, and says for each of the n slots whether its message is done; a slot that is
   * done is free. */
  int (*test)(bk_wire *wire, const int *slots, int n, bool *done);
  /* Waits a short while (some hundred microseconds at most) for something to happen, or returns at
   * once; called when nothing was done for some time. */
  void (*idle)(bk_wire *wire);
} bk_wire_ops;

/* Headers, the two rounds of data of collective operations, and data of exchanges. */
#define BK_WIRE_CHANNELS 4
#define BK_WIRE_SLOTS(size) (32 * (size) + 256)

struct bk_wire {
  const bk_wire_ops *ops;
  int rank, size;
  int slots;    /* how many messages can be under way: at least BK_WIRE_SLOTS(size) */
  int channels; /* how many channels there are, numbered from 0: at least BK_WIRE_CHANNELS */
  char reason[256];
};

#endif
