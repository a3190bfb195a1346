/* The model's configuration and the training recipe: all of it is installed. */
#ifndef BK_CONFIG_H
#define BK_CONFIG_H

#include <birkhoff/config.h>

#include "runtime/op.h"

#endif
