/* Buffers on a device, and whole tensors to and from host memory. The transfers here wait for the
 * stream; they are for loading, saving, tests and diagnostics. A training step uses the stream's
 * own calls, which do not wait. */
#include "runtime/buffer_priv.h"

#include <string.h>

bk_status bk_buffer_create(bk_device *device, bk_memory_class c, bk_buffer **buffer) {
  bk_buffer *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->device = device;
  made->mem_class = c;
  *buffer = made;
  return BK_OK;
}

/* A buffer of 0 bytes still gets one byte of memory, because drivers refuse an allocation of
 * nothing, and NULL as a handle means that no memory is bound. */
bk_status bk_buffer_bind(bk_buffer *buffer, size_t bytes) {
  bk_device *device = buffer->device;
  size_t limit = device->props.max_alloc;
  if (limit && bytes > limit)
    return bk_fail(device->ctx, BK_ERR_MEMORY,
                   "%s: a buffer of %zu bytes is above the device's limit of %zu",
                   device->backend->name, bytes, limit);
  void *handle = NULL;
  BK_TRY(device->ops->buffer_alloc(device, bytes ? bytes : 1, &handle));
  device->buffer_allocs++;
  buffer->handle = handle;
  buffer->size = bytes;
  return BK_OK;
}

void bk_buffer_unbind(bk_buffer *buffer) {
  if (!buffer->handle) return;
  bk_device *device = buffer->device;
  device->ops->buffer_free(device, buffer->handle, buffer->size ? buffer->size : 1);
  buffer->handle = NULL;
  buffer->size = 0;
}

bk_status bk_buffer_alloc(bk_device *device, size_t bytes, bk_memory_class c, bk_buffer **buffer) {
  bk_buffer *made;
  BK_TRY(bk_buffer_create(device, c, &made));
  bk_status status = bk_buffer_bind(made, bytes);
  if (status != BK_OK) {
    bk_free(device->ctx, made);
    return status;
  }
  *buffer = made;
  return BK_OK;
}

void bk_buffer_free(bk_buffer *buffer) {
  if (!buffer) return;
  bk_buffer_unbind(buffer);
  bk_free(buffer->device->ctx, buffer);
}

/* Strided tensors are checked by their span, gaps included. */
static bk_status check_place(bk_stream *stream, const bk_tensor *t, const char *what) {
  bk_context *ctx = stream->device->ctx;
  if (!bk_tensor_present(t)) return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: the tensor is absent", what);
  if (!t->buffer || !t->buffer->handle)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: the tensor has no memory yet", what);
  size_t span = bk_tensor_span(t);
  if (t->offset <= t->buffer->size && span <= t->buffer->size - t->offset) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: the tensor's bytes %zu to %zu leave its buffer of %zu",
                 what, t->offset, t->offset + span, t->buffer->size);
}

static bk_status check_contiguous(bk_stream *stream, const bk_tensor *t, const char *what) {
  BK_TRY(check_place(stream, t, what));
  if (bk_tensor_contiguous(t)) return BK_OK;
  char text[128];
  return bk_fail(stream->device->ctx, BK_ERR_ARGUMENT, "%s: the tensor %s is not contiguous", what,
                 bk_tensor_describe(t, text, sizeof text));
}

static bk_place place_of(const bk_tensor *t) { return (bk_place){t->buffer, t->offset}; }

bk_status bk_tensor_upload(bk_stream *stream, const bk_tensor *t, const void *src) {
  BK_TRY(check_contiguous(stream, t, "upload"));
  if (bk_tensor_bytes(t)) BK_TRY(stream->ops->upload(stream, place_of(t), src, bk_tensor_bytes(t)));
  return stream->ops->sync(stream);
}

bk_status bk_tensor_download(bk_stream *stream, const bk_tensor *t, void *dst) {
  BK_TRY(check_contiguous(stream, t, "download"));
  if (bk_tensor_bytes(t))
    BK_TRY(stream->ops->download(stream, dst, place_of(t), bk_tensor_bytes(t)));
  return stream->ops->sync(stream);
}

bk_status bk_tensor_zero(bk_stream *stream, const bk_tensor *t) {
  BK_TRY(check_contiguous(stream, t, "zero"));
  return bk_tensor_bytes(t) ? stream->ops->fill(stream, place_of(t), 0, bk_tensor_bytes(t)) : BK_OK;
}

/* ---- any layout, as doubles ---- */

static size_t element_offset(const bk_tensor *t, const int64_t at[BK_MAX_DIMS]) {
  int64_t offset = 0;
  for (int i = 0; i < t->ndim; i++) offset += at[i] * t->stride[i];
  return (size_t)offset * bk_dtype_size(t->dtype);
}

/* The next index in row-major order. */
static void advance(const bk_tensor *t, int64_t at[BK_MAX_DIMS]) {
  for (int i = t->ndim - 1; i >= 0; i--) {
    if (++at[i] < t->shape[i]) return;
    at[i] = 0;
  }
}

static void gather(const bk_tensor *t, const char *base, double *dst) {
  int64_t at[BK_MAX_DIMS] = {0}, count = bk_tensor_count(t);
  for (int64_t i = 0; i < count; i++, advance(t, at))
    dst[i] = bk_dtype_load(t->dtype, base + element_offset(t, at));
}

static void scatter(const bk_tensor *t, char *base, const double *src) {
  int64_t at[BK_MAX_DIMS] = {0}, count = bk_tensor_count(t);
  for (int64_t i = 0; i < count; i++, advance(t, at))
    bk_dtype_store(t->dtype, base + element_offset(t, at), src[i]);
}

/* On host memory the elements are read where they lie, without a copy, once the stream has
 * finished. */
bk_status bk_tensor_read_f64(bk_stream *stream, const bk_tensor *t, double *dst) {
  BK_TRY(check_place(stream, t, "read"));
  size_t span = bk_tensor_span(t);
  if (span == 0) return BK_OK;
  if (stream->device->props.host_memory) {
    BK_TRY(stream->ops->sync(stream));
    gather(t, bk_tensor_data(t), dst);
    return BK_OK;
  }
  char *copy = bk_alloc(stream->device->ctx, span);
  if (!copy) return BK_ERR_MEMORY;
  bk_status status = stream->ops->download(stream, copy, place_of(t), span);
  if (status == BK_OK) status = stream->ops->sync(stream);
  if (status == BK_OK) gather(t, copy, dst);
  bk_free(stream->device->ctx, copy);
  return status;
}

/* Writes through a host copy of the tensor's span. The gaps of a strided tensor may hold other
 * data: they are fetched first and go back as they were. */
static bk_status write_through_copy(bk_stream *stream, const bk_tensor *t, const double *src,
                                    char *copy, size_t span) {
  if (!bk_tensor_contiguous(t)) {
    BK_TRY(stream->ops->download(stream, copy, place_of(t), span));
    BK_TRY(stream->ops->sync(stream));
  }
  scatter(t, copy, src);
  BK_TRY(stream->ops->upload(stream, place_of(t), copy, span));
  return stream->ops->sync(stream);
}

bk_status bk_tensor_write_f64(bk_stream *stream, const bk_tensor *t, const double *src) {
  BK_TRY(check_place(stream, t, "write"));
  size_t span = bk_tensor_span(t);
  if (span == 0) return BK_OK;
  if (stream->device->props.host_memory) {
    BK_TRY(stream->ops->sync(stream));
    scatter(t, bk_tensor_data(t), src);
    return BK_OK;
  }
  char *copy = bk_alloc(stream->device->ctx, span);
  if (!copy) return BK_ERR_MEMORY;
  bk_status status = write_through_copy(stream, t, src, copy, span);
  bk_free(stream->device->ctx, copy);
  return status;
}
