/* Checkpoints: all of it is installed, in birkhoff/model.h. */
#ifndef BK_CHECKPOINT_H
#define BK_CHECKPOINT_H

#include "models/model.h"

#endif
