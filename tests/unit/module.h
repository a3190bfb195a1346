/* The kernel table of a module for tests: a row that serves nothing, of functions that ask the
 * program for no symbol. */
#ifndef BK_TESTS_MODULE_H
#define BK_TESTS_MODULE_H

#include "runtime/backend.h"

static BK_ACCEPTS(accepts) { return false; }

static BK_PREPARE(prepare) { return BK_ERR_ABSENT; }

static BK_LAUNCH_FN(launch) { return BK_ERR_ABSENT; }

static void release(bk_device *device, void *state) { (void)device, (void)state; }

static const bk_kernel kernels[] = {
    BK_KERNEL_ROW(BK_OP_NONE, 0, 0, "", accepts, prepare, launch, release)};

#endif
