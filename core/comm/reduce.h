/* The one order in which values of several ranks are reduced. */
#ifndef BK_REDUCE_H
#define BK_REDUCE_H

#include "comm/comm.h"

/* dst[i] = the reduction of sources[r][i] over r in [0, n), by the balanced tree of comm.h. dst may
 * be one of the sources; n is at most 2^BK_REDUCE_DEPTH. Allocates nothing. */
#define BK_REDUCE_DEPTH 10
void bk_reduce_tree(bk_dtype dtype, bk_reduce op, const void *const *sources, int n, int64_t count,
                    void *dst);

#endif
