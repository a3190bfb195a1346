/* A loadable backend for the tests of the command: opening its device fails with a message that
 * says with which options. Complete on its own, as module_good.c. */
#include "tests/unit/module.h"

#include <stdio.h>

#include "base/base.h"

static bk_status options_probe(bk_context *ctx, char *reason, size_t reason_size) {
  (void)ctx, (void)reason, (void)reason_size;
  return BK_OK;
}

static int options_device_count(bk_context *ctx) {
  (void)ctx;
  return 1;
}

static bk_status options_describe(bk_context *ctx, int index, bk_device_props *props,
                                  size_t *memory_bytes) {
  (void)ctx, (void)index;
  *props = (bk_device_props){.name = "options"};
  *memory_bytes = 0;
  return BK_OK;
}

static bk_status options_open(bk_context *ctx, int index, const bk_device_options *options,
                              bk_device **device) {
  char text[128];
  (void)index, (void)device;
  snprintf(text, sizeof text, "opened with no_graph %d allow_tf32 %d threads %d", options->no_graph,
           options->allow_tf32, options->threads);
  ctx->log(ctx->log_user, BK_LOG_ERROR, text);
  return BK_ERR_DEVICE;
}

static const bk_backend backend = BK_BACKEND(options, -2, kernels);

const bk_backend *bk_backend_module(void) { return &backend; }
