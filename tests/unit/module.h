/* The kernel table of a module for tests: a row that serves nothing, of functions that ask the
 * program for no symbol. */
#ifndef BK_TESTS_MODULE_H
#define BK_TESTS_MODULE_H

#include "runtime/backend.h"

const bk_backend *bk_backend_module(void);

static bool accepts(const bk_device *device, const void *args) {
  (void)device, (void)args;
  return false;
}

static bk_status prepare(bk_device *device, const void *args, void **state,
                         size_t *workspace_bytes) {
  (void)device, (void)args, (void)state, (void)workspace_bytes;
  return BK_ERR_ABSENT;
}

static bk_status launch(bk_stream *stream, const bk_plan *plan, const void *args,
                        bk_place workspace) {
  (void)stream, (void)plan, (void)args, (void)workspace;
  return BK_ERR_ABSENT;
}

static void release(bk_device *device, void *state) { (void)device, (void)state; }

static const bk_kernel kernels[] = {{BK_OP_NONE, 0, "", accepts, prepare, launch, release}};

#endif
