#include "tests/unit/fake_device.h"

#include <stdio.h>
#include <string.h>

fake_state fake;

void fake_reset(void) {
  fake = (fake_state){.probe_status = BK_OK, .n_devices = 1, .allocs_left = -1};
}

typedef struct fake_memory {
  char *bytes;
} fake_memory;

static char *bytes_at(bk_place p) {
  return p.buffer->device->props.host_memory ? bk_place_data(p)
                                             : ((fake_memory *)p.buffer->handle)->bytes + p.offset;
}

static void fake_close(bk_device *device) { bk_free(device->ctx, device); }

static bk_status fake_buffer_alloc(bk_device *device, size_t bytes, void **handle) {
  if (fake.allocs_left == 0) return bk_fail(device->ctx, BK_ERR_MEMORY, "fake: no memory left");
  if (fake.allocs_left > 0) fake.allocs_left--;
  fake_memory *m = bk_alloc(device->ctx, sizeof *m);
  m->bytes = bk_alloc(device->ctx, bytes);
  fake.buffers++;
  *handle = m;
  if (!device->props.host_memory) return BK_OK;
  *handle = m->bytes;
  bk_free(device->ctx, m);
  return BK_OK;
}

static void fake_buffer_free(bk_device *device, void *handle, size_t bytes) {
  (void)bytes;
  fake.buffers--;
  if (!device->props.host_memory) bk_free(device->ctx, ((fake_memory *)handle)->bytes);
  bk_free(device->ctx, handle);
}

static void stream_destroy(bk_stream *stream) { bk_free(stream->device->ctx, stream); }

static bk_status stream_upload(bk_stream *stream, bk_place dst, const void *src, size_t bytes) {
  (void)stream;
  fake.uploads++;
  memcpy(bytes_at(dst), src, bytes);
  return BK_OK;
}

static bk_status stream_download(bk_stream *stream, void *dst, bk_place src, size_t bytes) {
  (void)stream;
  fake.downloads++;
  memcpy(dst, bytes_at(src), bytes);
  return BK_OK;
}

static bk_status stream_copy(bk_stream *stream, bk_place dst, bk_place src, size_t bytes) {
  (void)stream;
  fake.copies++;
  memcpy(bytes_at(dst), bytes_at(src), bytes);
  return BK_OK;
}

static bk_status stream_fill(bk_stream *stream, bk_place dst, uint8_t value, size_t bytes) {
  (void)stream;
  fake.fills++;
  memset(bytes_at(dst), value, bytes);
  return BK_OK;
}

static bk_status stream_event_record(bk_stream *stream, bk_event *event) {
  (void)stream, (void)event;
  return BK_OK;
}

static bk_status stream_event_wait(bk_stream *stream, bk_event *event) {
  return stream_event_record(stream, event);
}

static bk_status stream_sync(bk_stream *stream) {
  (void)stream;
  fake.syncs++;
  return BK_OK;
}

static bk_status stream_query(bk_stream *stream, bool *done) {
  (void)stream;
  *done = true;
  return BK_OK;
}

static const bk_stream_ops stream_ops = {BK_STREAM_OPS(stream), BK_STREAM_NO_CAPTURES};
static const bk_stream_ops stream_ops_holed = {.destroy = stream_destroy, .sync = stream_sync};

static bk_status fake_stream_create(bk_device *device, int priority, bk_stream **stream) {
  (void)priority;
  *stream = bk_alloc(device->ctx, sizeof **stream);
  **stream =
      (bk_stream){.ops = fake.holed_stream ? &stream_ops_holed : &stream_ops, .device = device};
  return BK_OK;
}

static const bk_device_ops device_ops = {
    .close = fake_close,
    .memory_info = bk_host_memory_info,
    .buffer_alloc = fake_buffer_alloc,
    .buffer_free = fake_buffer_free,
    .host_alloc = bk_host_buffer_alloc,
    .host_free = bk_host_buffer_free,
    .stream_create = fake_stream_create,
    .event_create = bk_host_event_create,
};
static const bk_device_ops device_ops_holed = {.close = fake_close};

static bk_status fake_probe(bk_context *ctx, char *reason, size_t reason_size) {
  (void)ctx;
  if (fake.probe_status != BK_OK) snprintf(reason, reason_size, "the fake is switched off");
  return fake.probe_status;
}

static int fake_device_count(bk_context *ctx) {
  (void)ctx;
  return fake.n_devices;
}

static bk_status fake_describe(bk_context *ctx, int index, bk_device_props *props,
                               size_t *memory_bytes) {
  (void)ctx, (void)index;
  *props = (bk_device_props){.max_alloc = fake.max_alloc};
  *memory_bytes = 0;
  return BK_OK;
}

static bk_status fake_open(bk_context *ctx, int index, const bk_device_options *options,
                           bk_device **device) {
  bk_device *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  bk_host_device_init(made, ctx, &fake_backend, index, options,
                      fake.holed_device ? &device_ops_holed : &device_ops);
  made->props.host_memory = fake.host_memory;
  made->props.max_alloc = fake.max_alloc;
  *device = made;
  return BK_OK;
}

static const bk_kernel kernels[] = {BK_KERNEL_END};

/* Never the default. */
const bk_backend fake_backend = BK_BACKEND(fake, -1, kernels);
