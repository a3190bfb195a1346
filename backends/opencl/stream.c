/* Streams are in-order queues: copies, events, launches. */
#include "backends/opencl/opencl.h"

static bk_cl_stream *of(bk_stream *stream) { return (bk_cl_stream *)stream; }
static const bk_cl_api *cl_of(bk_stream *stream) { return bk_cl_of(stream->device)->cl; }

/* Checks what a call on the stream returned. A failure on the device may come to light at any
 * later call. Transfers under way use the host's memory and are waited for, because a caller that
 * is told of an error, by this call or by a later sync, frees that memory. */
bk_status bk_cl_check(bk_stream *stream, cl_int error, const char *what) {
  bk_cl_stream *s = of(stream);
  const bool other = s->last && s->last != what;
  if (error == CL_SUCCESS) return BK_OK;
  (void)cl_of(stream)->Finish(s->queue);
  s->poison = bk_cl_status_of(error);
  return bk_fail(stream->device->ctx, s->poison,
                 "opencl:%d: %s: %s (%d)%s%s; the stream cannot go on", stream->device->index, what,
                 bk_cl_error_name(error), (int)error, other ? "; the latest launch was " : "",
                 other ? s->last : "");
}

bk_status bk_cl_enter(bk_stream *stream) { return of(stream)->poison; }

/* ---- dispatch ---- */

#define MAX_GROUPS_X 32768

/* An operand is a buffer and a byte offset. */
static cl_int set_operand(const bk_cl_api *cl, bk_cl_pipeline *p, int i, bk_place place) {
  cl_mem mem = place.buffer ? place.buffer->handle : NULL;
  cl_ulong offset = place.buffer ? place.offset : 0;
  cl_int error = CL_SUCCESS;
  if (!p->set || mem != p->mem[i])
    error = cl->SetKernelArg(p->kernel, (cl_uint)(2 * i), sizeof mem, &mem);
  if (error == CL_SUCCESS && (!p->set || offset != p->offset[i]))
    error = cl->SetKernelArg(p->kernel, (cl_uint)(2 * i + 1), sizeof offset, &offset);
  p->mem[i] = mem;
  p->offset[i] = offset;
  return error;
}

static cl_int set_int(const bk_cl_api *cl, bk_cl_pipeline *p, int at, int32_t value,
                      int32_t *last) {
  if (p->set && value == *last) return CL_SUCCESS;
  *last = value;
  return cl->SetKernelArg(p->kernel, (cl_uint)at, sizeof value, &value);
}

static cl_int set_args(const bk_cl_device *d, bk_cl_pipeline *p, const bk_gpu_kernel *k,
                       const bk_place *operands, const int32_t *params, cl_int groups) {
  cl_int error = CL_SUCCESS;
  if (p->freed != d->freed) p->set = false;
  for (int i = 0; i < k->operands && error == CL_SUCCESS; i++)
    error = set_operand(d->cl, p, i, operands[i]);
  for (int i = 0; i < k->params && error == CL_SUCCESS; i++)
    error = set_int(d->cl, p, 2 * k->operands + i, params[i], &p->param[i]);
  if (error == CL_SUCCESS)
    error = set_int(d->cl, p, 2 * k->operands + k->params, groups, &p->groups);
  p->set = error == CL_SUCCESS;
  p->freed = d->freed;
  return error;
}

bk_status bk_cl_dispatch(bk_stream *stream, const char *name, const bk_gpu_pipeline *pipeline,
                         const bk_place *operands, const int32_t *params, int groups) {
  const bk_cl_device *d = bk_cl_of(stream->device);
  /* what changes is its memory of the arguments */
  bk_cl_pipeline *p = (bk_cl_pipeline *)(uintptr_t)pipeline;
  const size_t local = (size_t)pipeline->consts[0],
               nx = groups < MAX_GROUPS_X ? (size_t)groups : MAX_GROUPS_X;
  const size_t sizes[2] = {nx * local, ((size_t)groups + nx - 1) / nx}, locals[2] = {local, 1};
  BK_TRY(bk_cl_enter(stream));
  of(stream)->last = name;
  cl_int error = set_args(d, p, pipeline->kernel, operands, params, groups);
  if (error == CL_SUCCESS)
    error = d->cl->EnqueueNDRangeKernel(of(stream)->queue, p->kernel, 2, NULL, sizes, locals, 0,
                                        NULL, NULL);
  return bk_cl_check(stream, error, name);
}

/* ---- streams ---- */

static void stream_destroy(bk_stream *stream) {
  (void)cl_of(stream)->Finish(of(stream)->queue);
  (void)cl_of(stream)->ReleaseCommandQueue(of(stream)->queue);
  bk_free(stream->device->ctx, stream);
}

static bk_status stream_upload(bk_stream *stream, bk_place dst, const void *src, size_t bytes) {
  BK_TRY(bk_cl_enter(stream));
  if (!bytes) return BK_OK;
  return bk_cl_check(
      stream,
      cl_of(stream)->EnqueueWriteBuffer(of(stream)->queue, dst.buffer->handle, CL_FALSE, dst.offset,
                                        bytes, src, 0, NULL, NULL),
      "uploading");
}

static bk_status stream_download(bk_stream *stream, void *dst, bk_place src, size_t bytes) {
  BK_TRY(bk_cl_enter(stream));
  if (!bytes) return BK_OK;
  return bk_cl_check(
      stream,
      cl_of(stream)->EnqueueReadBuffer(of(stream)->queue, src.buffer->handle, CL_FALSE, src.offset,
                                       bytes, dst, 0, NULL, NULL),
      "downloading");
}

static bk_status stream_copy(bk_stream *stream, bk_place dst, bk_place src, size_t bytes) {
  BK_TRY(bk_cl_enter(stream));
  if (!bytes) return BK_OK;
  return bk_cl_check(
      stream,
      cl_of(stream)->EnqueueCopyBuffer(of(stream)->queue, src.buffer->handle, dst.buffer->handle,
                                       src.offset, dst.offset, bytes, 0, NULL, NULL),
      "copying");
}

static bk_status stream_fill(bk_stream *stream, bk_place dst, uint8_t value, size_t bytes) {
  BK_TRY(bk_cl_enter(stream));
  if (!bytes) return BK_OK;
  return bk_cl_check(stream,
                     cl_of(stream)->EnqueueFillBuffer(of(stream)->queue, dst.buffer->handle, &value,
                                                      1, dst.offset, bytes, 0, NULL, NULL),
                     "filling");
}

static bk_status stream_event_record(bk_stream *stream, bk_event *event) {
  bk_cl_event *e = (bk_cl_event *)event;
  BK_TRY(bk_cl_enter(stream));
  if (e->event) (void)cl_of(stream)->ReleaseEvent(e->event);
  e->event = NULL;
  BK_TRY(bk_cl_check(
      stream, cl_of(stream)->EnqueueMarkerWithWaitList(of(stream)->queue, 0, NULL, &e->event),
      "recording an event"));
  /* another stream may wait for it */
  return bk_cl_check(stream, cl_of(stream)->Flush(of(stream)->queue), "recording an event");
}

static bk_status stream_event_wait(bk_stream *stream, bk_event *event) {
  bk_cl_event *e = (bk_cl_event *)event;
  BK_TRY(bk_cl_enter(stream));
  if (!e->event) return BK_OK;
  return bk_cl_check(
      stream, cl_of(stream)->EnqueueBarrierWithWaitList(of(stream)->queue, 1, &e->event, NULL),
      "waiting for an event");
}

static bk_status stream_sync(bk_stream *stream) {
  BK_TRY(bk_cl_enter(stream));
  BK_TRY(bk_cl_check(stream, cl_of(stream)->Finish(of(stream)->queue), "waiting for the stream"));
  of(stream)->last = NULL;
  return BK_OK;
}

static bk_status stream_query(bk_stream *stream, bool *done) {
  const bk_cl_api *cl = cl_of(stream);
  cl_event marker = NULL;
  cl_int state = CL_COMPLETE;
  BK_TRY(bk_cl_enter(stream));
  cl_int error = cl->EnqueueMarkerWithWaitList(of(stream)->queue, 0, NULL, &marker);
  if (error == CL_SUCCESS) error = cl->Flush(of(stream)->queue);
  if (error == CL_SUCCESS)
    error = cl->GetEventInfo(marker, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL);
  if (marker) (void)cl->ReleaseEvent(marker);
  BK_TRY(bk_cl_check(stream,
                     error != CL_SUCCESS ? error
                     : state < 0         ? state
                                         : CL_SUCCESS,
                     "querying the stream"));
  *done = state == CL_COMPLETE;
  return BK_OK;
}

static const bk_stream_ops opencl_stream_ops = {BK_STREAM_OPS(stream), BK_STREAM_NO_CAPTURES};

bk_status bk_cl_stream_create(bk_device *device, int priority, bk_stream **stream) {
  bk_cl_device *d = bk_cl_of(device);
  cl_int error;
  (void)priority; /* OpenCL 1.2 has none */
  bk_cl_stream *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  s->base = (bk_stream){.ops = &opencl_stream_ops, .device = device};
  s->queue = d->cl->CreateCommandQueue(d->context, d->id, CL_QUEUE_PROFILING_ENABLE, &error);
  if (error != CL_SUCCESS) {
    bk_free(device->ctx, s);
    return bk_cl_fail(device->ctx, error, "making a queue");
  }
  *stream = &s->base;
  return BK_OK;
}

/* ---- events ---- */

static void event_destroy(bk_event *event) {
  bk_cl_event *e = (bk_cl_event *)event;
  if (e->event) (void)bk_cl_of(event->device)->cl->ReleaseEvent(e->event);
  bk_free(event->device->ctx, e);
}

static bk_status event_sync(bk_event *event) {
  bk_cl_event *e = (bk_cl_event *)event;
  if (!e->event) return BK_OK;
  cl_int error = bk_cl_of(event->device)->cl->WaitForEvents(1, &e->event);
  return error == CL_SUCCESS ? BK_OK
                             : bk_cl_fail(event->device->ctx, error, "waiting for an event");
}

static bk_status event_elapsed(bk_event *begin, bk_event *end, double *seconds) {
  const bk_cl_api *cl = bk_cl_of(begin->device)->cl;
  const bk_cl_event *from = (bk_cl_event *)begin, *to = (bk_cl_event *)end;
  cl_ulong a = 0, b = 0;
  if (!from->event || !to->event) return bk_event_never_recorded(begin);
  cl_int error =
      cl->GetEventProfilingInfo(from->event, CL_PROFILING_COMMAND_END, sizeof a, &a, NULL);
  if (error == CL_SUCCESS)
    error = cl->GetEventProfilingInfo(to->event, CL_PROFILING_COMMAND_END, sizeof b, &b, NULL);
  if (error != CL_SUCCESS) return bk_cl_fail(begin->device->ctx, error, "reading events");
  *seconds = (double)(cl_long)(b - a) * 1e-9;
  return BK_OK;
}

static const bk_event_ops opencl_event_ops = {event_destroy, event_sync, event_elapsed};

bk_status bk_cl_event_create(bk_device *device, bk_event **event) {
  return bk_event_make(device, &opencl_event_ops, sizeof(bk_cl_event), event);
}
