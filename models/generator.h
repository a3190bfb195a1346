/* Text generation: all that callers need is installed, in birkhoff/train.h. */
#ifndef BK_GENERATOR_H
#define BK_GENERATOR_H

#include <birkhoff/train.h>

#include "models/runner.h"

#endif
