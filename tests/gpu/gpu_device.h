/* What the unit tests of every GPU backend share: a device, a stream, and tensors on the device. */
#ifndef BK_TESTS_GPU_DEVICE_H
#define BK_TESTS_GPU_DEVICE_H

#include "tests/unit/unit.h"

#include "runtime/backend.h"

#define SKIPPED 77

static bk_device *device;
static bk_stream *stream;

static BK_UNUSED void gpu_device_open(const char *name) {
  ck_assert_int_eq(bk_device_open(ctx, name, NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
}

static BK_UNUSED void gpu_device_close(void) {
  bk_stream_destroy(stream);
  bk_device_close(device);
  stream = NULL;
  device = NULL;
}

/* Gives a dense tensor memory of its own. */
static BK_UNUSED bk_tensor gpu_tensor_on(bk_device *on, bk_tensor t) {
  ck_assert_int_eq(bk_buffer_alloc(on, bk_tensor_bytes(&t), BK_MEM_STAGING, &t.buffer), BK_OK);
  return t;
}
static BK_UNUSED bk_tensor gpu_tensor(bk_tensor t) { return gpu_tensor_on(device, t); }

#endif
