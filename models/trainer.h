/* The training loop's one step, and evaluation: all of it is installed, in birkhoff/train.h. */
#ifndef BK_TRAINER_H
#define BK_TRAINER_H

/* Training and evaluation: all that callers need is installed, in birkhoff/train.h; this adds the
 * headers that its implementation and the command-line tools share. */

#include <birkhoff/train.h>

#include "io/dataset.h"
#include "io/metrics.h"
#include "models/gain.h"

#endif
