/* Opening and closing devices of a backend that is at hand, and their streams. This file refers to
 * no list of backends, so that a static link of an embedded program leaves the registry out;
 * opening by name is in open.c. */
#include "runtime/registry_priv.h"

/* An opened device with a NULL in its table would fail at some later call: it is refused at
 * once. */
static bk_status check_opened(bk_context *ctx, bk_device *device) {
  const bk_device_ops *ops = device ? device->ops : NULL;
  if (ops && device->backend && device->ctx && !bk_vtable_has_hole(ops, sizeof *ops)) return BK_OK;
  if (ops && ops->close) ops->close(device);
  return bk_fail(ctx, BK_ERR_ABI, "the device that the backend opened has a hole in its table");
}

bk_status bk_device_open_from(bk_context *ctx, const bk_backend *backend, int index,
                              const bk_device_options *options, bk_device **device) {
  static const bk_device_options defaults = {0};
  bk_device *opened = NULL;
  BK_TRY(backend->open(ctx, index, options ? options : &defaults, &opened));
  BK_TRY(check_opened(ctx, opened));
  *device = opened;
  return BK_OK;
}

/* Opens the backend's device 0, without the registry. Such a device has no other to fall back
 * on. */
bk_status bk_device_open_backend(bk_context *ctx, const bk_backend *backend,
                                 const bk_device_options *options, bk_device **device) {
  char reason[BK_REASON_MAX] = "";
  bk_status status = bk_backend_verify(backend, reason, sizeof reason);
  if (status != BK_OK) return bk_fail(ctx, status, "the backend is refused: %s", reason);
  status = backend->probe(ctx, reason, sizeof reason);
  if (status != BK_OK)
    return bk_fail(ctx, status, "device %s is not here: %s", backend->name,
                   reason[0] ? reason : "no reason given");
  return bk_device_open_from(ctx, backend, 0, options, device);
}

bk_status bk_device_memory_used(bk_device *device, size_t *bytes) {
  size_t free_bytes = 0, total = 0;
  if (device->props.host_memory) {
    *bytes = device->ctx->stats.current_bytes;
    return BK_OK;
  }
  BK_TRY(device->ops->memory_info(device, &free_bytes, &total));
  *bytes = total - free_bytes;
  return BK_OK;
}

void bk_device_init(bk_device *device, bk_context *ctx, const bk_backend *backend, int index,
                    const bk_device_options *options, const bk_device_ops *ops) {
  device->ops = ops;
  device->backend = backend;
  device->ctx = ctx;
  device->index = index;
  if (options) device->options = *options;
}

void bk_device_close(bk_device *device) {
  if (!device) return;
  bk_stream_destroy(device->fallback_stream);
  bk_device_close(device->fallback);
  device->ops->close(device);
}

bk_status bk_stream_create(bk_device *device, int priority, bk_stream **stream) {
  bk_stream *made = NULL;
  BK_TRY(device->ops->stream_create(device, priority, &made));
  if (!bk_vtable_has_hole(made->ops, sizeof *made->ops)) {
    *stream = made;
    return BK_OK;
  }
  if (made->ops->destroy) made->ops->destroy(made);
  return bk_fail(device->ctx, BK_ERR_ABI, "%s: the stream's table has a hole",
                 device->backend->name);
}

void bk_stream_destroy(bk_stream *stream) {
  if (stream) stream->ops->destroy(stream);
}

bk_status bk_stream_make(bk_device *device, const bk_stream_ops *ops, size_t bytes,
                         bk_stream **stream) {
  bk_stream *made = bk_alloc(device->ctx, bytes);
  if (!made) return BK_ERR_MEMORY;
  *made = (bk_stream){.ops = ops, .device = device};
  *stream = made;
  return BK_OK;
}

bk_status bk_event_make(bk_device *device, const bk_event_ops *ops, size_t bytes,
                        bk_event **event) {
  bk_event *made = bk_alloc(device->ctx, bytes);
  if (!made) return BK_ERR_MEMORY;
  *made = (bk_event){.ops = ops, .device = device};
  *event = made;
  return BK_OK;
}

bk_status bk_event_never_recorded(const bk_event *event) {
  return bk_fail(event->device->ctx, BK_ERR_ARGUMENT, "elapsed: an event was never recorded");
}

const bk_device_props *bk_device_properties(const bk_device *device) { return &device->props; }
const char *bk_device_backend_name(const bk_device *device) { return device->backend->name; }
