/* A loadable backend for test_loader: right ABI, no device. Complete on its own: it asks the
 * program for no symbol. */
#include "tests/unit/module.h"

static bk_status testmodule_probe(bk_context *ctx, char *reason, size_t reason_size) {
  static const char why[] = "a module for tests has no device";
  (void)ctx;
  for (size_t i = 0; i < reason_size && i < sizeof why; i++) reason[i] = why[i];
  if (reason_size > 0) reason[reason_size - 1] = '\0';
  return BK_ERR_ABSENT;
}

static int testmodule_device_count(bk_context *ctx) {
  (void)ctx;
  return 0;
}

static bk_status testmodule_describe(bk_context *ctx, int index, bk_device_props *props,
                                     size_t *memory_bytes) {
  (void)ctx, (void)index, (void)props, (void)memory_bytes;
  return BK_ERR_ABSENT;
}

static bk_status testmodule_open(bk_context *ctx, int index, const bk_device_options *options,
                                 bk_device **device) {
  (void)ctx, (void)index, (void)options, (void)device;
  return BK_ERR_ABSENT;
}

static const bk_backend backend = BK_BACKEND(testmodule, -2, kernels);

const bk_backend *bk_backend_module(void) { return &backend; }
