/* Token data: all of it is installed, in birkhoff/data.h. */
#ifndef BK_DATASET_H
#define BK_DATASET_H

#include <birkhoff/data.h>

#include "io/config.h"

#endif
