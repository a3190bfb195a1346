/* Tokens for one pass: all of it is installed, in birkhoff/data.h. */
#ifndef BK_TOKENS_H
#define BK_TOKENS_H

#include <birkhoff/data.h>

#include "base/base.h"

#endif
