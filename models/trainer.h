/* The training loop's one step, and evaluation: all of it is installed, in birkhoff/train.h. */
#ifndef BK_TRAINER_H
#define BK_TRAINER_H

#include <birkhoff/train.h>

#include "io/dataset.h"
#include "io/metrics.h"
#include "models/gain.h"

#endif
