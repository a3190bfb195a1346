/* Shared stand-ins for vtable members that a backend does not have. With them no call site has to
 * test for NULL. A stub either does the harmless thing (accepts, prepares nothing) or fails with
 * BK_ERR_UNSUPPORTED. */
#include "runtime/backend.h"

BK_ACCEPTS(bk_kernel_accepts_all) { return true; }

BK_PREPARE(bk_kernel_prepare_none) {
  *state = NULL;
  *workspace_bytes = 0;
  return BK_OK;
}

BK_LAUNCH_FN(bk_kernel_launch_none) {
  return bk_fail(stream->device->ctx, BK_ERR_UNSUPPORTED,
                 "%s: launch of a kernel that does not exist", stream->device->backend->name);
}

void bk_kernel_release_none(bk_device *device, void *state) { (void)device, (void)state; }

static bk_status no_capture(bk_stream *stream) {
  return bk_fail(stream->device->ctx, BK_ERR_UNSUPPORTED, "%s: streams cannot be captured",
                 stream->device->backend->name);
}

bk_status bk_stream_capture_begin_none(bk_stream *stream) { return no_capture(stream); }

bk_status bk_stream_capture_end_none(bk_stream *stream, void **graph) {
  (void)graph;
  return no_capture(stream);
}

bk_status bk_stream_graph_launch_none(bk_stream *stream, void *graph) {
  (void)graph;
  return no_capture(stream);
}

void bk_stream_graph_destroy_none(bk_stream *stream, void *graph) { (void)stream, (void)graph; }
