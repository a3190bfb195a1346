/* What the library and its tests know of ranks that are threads. */
#ifndef BK_THREADS_H
#define BK_THREADS_H

#include <birkhoff/parallel.h>

#include <stdint.h>

/* Before any rank opens the world: messages then begin late, by up to some hundred microseconds,
 * and are seen to be done late and out of order, at random by the seed. 0: they do not. */
void bk_thread_world_disturb(bk_thread_world *world, uint64_t seed);

/* From rank 0: something that the ranks share, and that lives as long as the world. `release` is
 * called with it at the end. */
void bk_thread_world_keep(bk_thread_world *world, void *kept, void (*release)(void *kept));

#endif
