/* What the host backends (ref and cpu) share. A buffer is host memory from the context, so that a
 * handle is an address. A stream runs inline: each call is done when it returns, and there is
 * never anything to wait for. An event is the time at which it was recorded.
 *
 * Ranges are checked here in every call: a copy past the end of a buffer would be a silent fault
 * of memory on the host, where a driver would report it. */
#include "runtime/backend.h"

#include <string.h>

typedef struct host_event {
  bk_event base;
  double seconds; /* when it was recorded last; 0 = never */
} host_event;

/* No limit on sizes, and any offset at which an element may lie. */
void bk_host_device_init(bk_device *device, bk_context *ctx, const bk_backend *backend, int index,
                         const bk_device_options *options, const bk_device_ops *ops) {
  bk_device_init(device, ctx, backend, index, options, ops);
  device->options.isa = NULL; /* the caller's text; props.isa says what came of it */
  device->props.host_memory = true;
  device->props.max_alloc = 0;
  device->props.max_binding_range = 0;
  device->props.offset_alignment = 1;
}

bk_status bk_host_memory_info(bk_device *device, size_t *free_bytes, size_t *total_bytes) {
  if (bk_context_system_memory(device->ctx, free_bytes, total_bytes)) return BK_OK;
  return bk_fail(device->ctx, BK_ERR_DEVICE, "%s: the system does not say how much memory it has",
                 device->backend->name);
}

size_t bk_host_memory_total(bk_context *ctx) {
  size_t unused, total;
  return bk_context_system_memory(ctx, &unused, &total) ? total : 0;
}

bk_status bk_host_buffer_alloc(bk_device *device, size_t bytes, void **handle) {
  void *block = bk_alloc(device->ctx, bytes);
  if (!block) return BK_ERR_MEMORY;
  *handle = block;
  return BK_OK;
}

void bk_host_buffer_free(bk_device *device, void *handle, size_t bytes) {
  (void)bytes;
  bk_free(device->ctx, handle);
}

/* ---- streams ---- */

static bk_status check_range(bk_stream *stream, bk_place p, size_t bytes, const char *what) {
  if (p.buffer && p.buffer->handle && p.offset <= p.buffer->size &&
      bytes <= p.buffer->size - p.offset)
    return BK_OK;
  return bk_fail(stream->device->ctx, BK_ERR_ARGUMENT,
                 "%s: %zu bytes at offset %zu leave a buffer of %zu", what, bytes, p.offset,
                 p.buffer ? p.buffer->size : 0);
}

static bk_status stream_upload(bk_stream *stream, bk_place dst, const void *src, size_t bytes) {
  BK_TRY(check_range(stream, dst, bytes, "upload"));
  if (bytes) memcpy(bk_place_data(dst), src, bytes);
  return BK_OK;
}

static bk_status stream_download(bk_stream *stream, void *dst, bk_place src, size_t bytes) {
  BK_TRY(check_range(stream, src, bytes, "download"));
  if (bytes) memcpy(dst, bk_place_data(src), bytes);
  return BK_OK;
}

static bk_status stream_copy(bk_stream *stream, bk_place dst, bk_place src, size_t bytes) {
  BK_TRY(check_range(stream, dst, bytes, "copy"));
  BK_TRY(check_range(stream, src, bytes, "copy"));
  if (bytes) memcpy(bk_place_data(dst), bk_place_data(src), bytes);
  return BK_OK;
}

static bk_status stream_fill(bk_stream *stream, bk_place dst, uint8_t value, size_t bytes) {
  BK_TRY(check_range(stream, dst, bytes, "fill"));
  if (bytes) memset(bk_place_data(dst), value, bytes);
  return BK_OK;
}

static bk_status stream_event_record(bk_stream *stream, bk_event *event) {
  ((host_event *)event)->seconds = bk_context_seconds(stream->device->ctx);
  return BK_OK;
}

static bk_status stream_event_wait(bk_stream *stream, bk_event *event) {
  (void)stream, (void)event; /* work before a recorded event is done, since streams run inline */
  return BK_OK;
}

static bk_status stream_sync(bk_stream *stream) {
  (void)stream;
  return BK_OK;
}

static bk_status stream_query(bk_stream *stream, bool *done) {
  (void)stream;
  *done = true;
  return BK_OK;
}

static void stream_destroy(bk_stream *stream) { bk_free(stream->device->ctx, stream); }

static const bk_stream_ops host_stream_ops = {BK_STREAM_OPS(stream), BK_STREAM_NO_CAPTURES};

bk_status bk_host_stream_create(bk_device *device, int priority, bk_stream **stream) {
  (void)priority;
  return bk_stream_make(device, &host_stream_ops, sizeof(bk_stream), stream);
}

/* ---- events ---- */

static void event_destroy(bk_event *event) { bk_free(event->device->ctx, event); }

static bk_status event_sync(bk_event *event) {
  (void)event;
  return BK_OK;
}

static bk_status event_elapsed(bk_event *begin, bk_event *end, double *seconds) {
  double from = ((host_event *)begin)->seconds, to = ((host_event *)end)->seconds;
  if (from == 0 || to == 0) return bk_event_never_recorded(begin);
  *seconds = to - from;
  return BK_OK;
}

static const bk_event_ops host_event_ops = {event_destroy, event_sync, event_elapsed};

bk_status bk_host_event_create(bk_device *device, bk_event **event) {
  return bk_event_make(device, &host_event_ops, sizeof(host_event), event);
}
