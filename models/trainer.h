/* Training and evaluation: all that callers need is installed, in birkhoff/train.h; this adds the
 * headers that its implementation and the command-line tools share. */
#ifndef BK_TRAINER_H
#define BK_TRAINER_H

#include <birkhoff/train.h>

#include "io/dataset.h"
#include "io/metrics.h"
#include "models/gain.h"
#include "models/runner.h"

/* listing.c: what bk_trainer_program tells, of a step with several micro-batches or of one. */
bk_status bk_list_step(const bk_runner *runner, const bk_optimizer *optimizer, bool several,
                       bk_step_call_fn each, void *user);

#endif
