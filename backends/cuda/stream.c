/* Streams, events and what a launch reports. An asynchronous error (a kernel that faulted) comes
 * to light at the next sync: it is logged with the names of the ops that were under way, the
 * stream is poisoned, and every later call on it returns the same status. */
#include <stdio.h>
#include <string.h>

#include "backends/cuda/cuda.h"

static bk_cuda_stream *of(bk_stream *stream) { return (bk_cuda_stream *)stream; }
static const bk_cuda_device *device_of(bk_stream *stream) { return bk_cuda_of(stream->device); }

/* ---- errors ---- */

static bk_status status_of(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return BK_OK;
    case cudaErrorMemoryAllocation: return BK_ERR_MEMORY;
    case cudaErrorNotReady: return BK_ERR_BUSY;
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice: return BK_ERR_ABSENT;
    default: return BK_ERR_DEVICE;
  }
}

bk_status bk_cuda_fail(bk_context *ctx, cudaError_t error, const char *what) {
  (void)cudaGetLastError();
  return bk_fail(ctx, status_of(error), "cuda: %s: %s (%s)", what, cudaGetErrorString(error),
                 cudaGetErrorName(error));
}

/* "cuda_rope, cuda_attention": what was launched since the last sync, oldest first. */
static void name_launches(const bk_cuda_stream *s, char *text, size_t size) {
  int64_t kept = s->launches < BK_CUDA_TRACE ? s->launches : BK_CUDA_TRACE;
  size_t used = 0;
  text[0] = '\0';
  for (int64_t i = s->launches - kept; i < s->launches && used < size; i++) {
    int n =
        snprintf(text + used, size - used, "%s%s", used ? ", " : "", s->trace[i % BK_CUDA_TRACE]);
    used += n > 0 ? (size_t)n : 0;
  }
}

static bk_status poison(bk_stream *stream, cudaError_t error, const char *what) {
  bk_cuda_stream *s = of(stream);
  bk_context *ctx = stream->device->ctx;
  const char *text = cudaGetErrorString(error), *code = cudaGetErrorName(error);
  char names[BK_CUDA_TRACE * 32];
  s->poison = BK_ERR_DEVICE;
  name_launches(s, names, sizeof names);
  if (s->launches == 0)
    return bk_fail(ctx, BK_ERR_DEVICE, "cuda: %s: %s (%s); the stream cannot go on", what, text,
                   code);
  if (s->launches == 1)
    return bk_fail(ctx, BK_ERR_DEVICE,
                   "cuda: %s failed on the device: %s (%s); the stream cannot go on", names, text,
                   code);
  return bk_fail(ctx, BK_ERR_DEVICE,
                 "cuda: one of %lld ops failed on the device: %s (%s); under way were %s%s; the "
                 "stream cannot go on; with BIRKHOFF_CUDA_SYNC=1 "
                 "the error names the op",
                 (long long)s->launches, text, code, s->launches > BK_CUDA_TRACE ? "..., " : "",
                 names);
}

/* Errors of the call itself, after which the stream is what it was; all others are of work that
 * was launched before. */
static bool harmless(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorIllegalState:
    case cudaErrorNotPermitted:
    case cudaErrorNotSupported: return true;
    default:
      return error >= cudaErrorStreamCaptureUnsupported &&
             error <= cudaErrorStreamCaptureWrongThread;
  }
}

/* What a call on the stream returned; `what` is a phrase. Errors of launched work poison the
 * stream. */
static bk_status check(bk_stream *stream, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return BK_OK;
  (void)cudaGetLastError(); /* it is ours now */
  return harmless(error) ? bk_cuda_fail(stream->device->ctx, error, what)
                         : poison(stream, error, what);
}

static bk_status enter(bk_stream *stream) {
  if (of(stream)->poison != BK_OK) return of(stream)->poison;
  return check(stream, cudaSetDevice(device_of(stream)->ordinal), "making the device current");
}

/* ---- launches ---- */

static bool is_captured(const bk_cuda_stream *s) { return s->capturing || s->captured; }

bk_status bk_cuda_begin(bk_stream *stream, const bk_plan *plan) {
  bk_cuda_stream *s = of(stream);
  BK_TRY(enter(stream));
  s->current = plan->kernel->name;
  if (!is_captured(s)) s->trace[s->launches++ % BK_CUDA_TRACE] = s->current;
  return BK_OK;
}

static bk_status stream_sync(bk_stream *stream);

bk_status bk_cuda_end(bk_stream *stream) {
  bk_cuda_stream *s = of(stream);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return check(stream, error, s->current);
  return device_of(stream)->synchronous && !is_captured(s) ? stream_sync(stream) : BK_OK;
}

/* ---- streams ---- */

static void drop_capture(bk_cuda_stream *s) {
  cudaGraph_t captured = NULL;
  s->capturing = false;
  if (cudaStreamEndCapture(s->stream, &captured) == cudaSuccess && captured)
    (void)cudaGraphDestroy(captured);
  (void)cudaGetLastError();
}

static void stream_destroy(bk_stream *stream) {
  bk_cuda_stream *s = of(stream);
  (void)cudaSetDevice(device_of(stream)->ordinal);
  if (s->capturing) drop_capture(s);
  (void)cudaStreamDestroy(s->stream); /* does not wait: work that is under way goes on */
  bk_free(stream->device->ctx, s);
}

static bk_status stream_upload(bk_stream *stream, bk_place dst, const void *src, size_t bytes) {
  BK_TRY(enter(stream));
  return check(
      stream,
      cudaMemcpyAsync(bk_cuda_place(dst), src, bytes, cudaMemcpyHostToDevice, of(stream)->stream),
      "uploading");
}

static bk_status stream_download(bk_stream *stream, void *dst, bk_place src, size_t bytes) {
  BK_TRY(enter(stream));
  return check(
      stream,
      cudaMemcpyAsync(dst, bk_cuda_place(src), bytes, cudaMemcpyDeviceToHost, of(stream)->stream),
      "downloading");
}

static bk_status stream_copy(bk_stream *stream, bk_place dst, bk_place src, size_t bytes) {
  BK_TRY(enter(stream));
  return check(stream,
               cudaMemcpyAsync(bk_cuda_place(dst), bk_cuda_place(src), bytes,
                               cudaMemcpyDeviceToDevice, of(stream)->stream),
               "copying");
}

static bk_status stream_fill(bk_stream *stream, bk_place dst, uint8_t value, size_t bytes) {
  BK_TRY(enter(stream));
  return check(stream, cudaMemsetAsync(bk_cuda_place(dst), value, bytes, of(stream)->stream),
               "filling");
}

static bk_status stream_event_record(bk_stream *stream, bk_event *event) {
  bk_cuda_event *e = (bk_cuda_event *)event;
  BK_TRY(enter(stream));
  BK_TRY(check(stream, cudaEventRecord(e->event, of(stream)->stream), "recording an event"));
  if (!is_captured(of(stream))) e->recorded = true; /* an event of a graph has no time */
  return BK_OK;
}

/* A stream that waits for an event of a capture takes part in it, until its next wait. */
static bk_status stream_event_wait(bk_stream *stream, bk_event *event) {
  bk_cuda_stream *s = of(stream);
  enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  BK_TRY(enter(stream));
  BK_TRY(check(stream, cudaStreamWaitEvent(s->stream, ((bk_cuda_event *)event)->event, 0),
               "waiting for an event"));
  if (!s->capturing)
    BK_TRY(check(stream, cudaStreamIsCapturing(s->stream, &status), "asking about a capture"));
  s->captured = status == cudaStreamCaptureStatusActive;
  return BK_OK;
}

static bk_status stream_sync(bk_stream *stream) {
  BK_TRY(enter(stream));
  BK_TRY(check(stream, cudaStreamSynchronize(of(stream)->stream), "waiting for the stream"));
  of(stream)->launches = 0;
  return BK_OK;
}

static bk_status stream_query(bk_stream *stream, bool *done) {
  BK_TRY(enter(stream));
  cudaError_t error = cudaStreamQuery(of(stream)->stream);
  if (error != cudaErrorNotReady) BK_TRY(check(stream, error, "querying the stream"));
  else (void)cudaGetLastError();
  *done = error == cudaSuccess;
  if (*done) of(stream)->launches = 0;
  return BK_OK;
}

/* ---- capture ---- */

static bk_status stream_capture_begin(bk_stream *stream) {
  BK_TRY(enter(stream));
  if (of(stream)->capturing)
    return bk_fail(stream->device->ctx, BK_ERR_ARGUMENT,
                   "cuda: a capture is under way on this stream already");
  BK_TRY(check(stream, cudaStreamBeginCapture(of(stream)->stream, cudaStreamCaptureModeThreadLocal),
               "beginning a capture"));
  of(stream)->capturing = true;
  return BK_OK;
}

/* Nodes keep the priorities of the streams they were captured from only where that is asked for;
 * drivers before CUDA 11.7 refuse it. */
static cudaError_t instantiate(cudaGraphExec_t *exec, cudaGraph_t graph) {
  if (cudaGraphInstantiate(exec, graph, cudaGraphInstantiateFlagUseNodePriority) == cudaSuccess)
    return cudaSuccess;
  (void)cudaGetLastError();
  return cudaGraphInstantiate(exec, graph, 0);
}

/* Whatever comes out, the capture has ended: while one is under way the thread may not wait or
 * allocate. */
static bk_status stream_capture_end(bk_stream *stream, void **graph) {
  bk_cuda_stream *s = of(stream);
  cudaGraph_t captured = NULL;
  cudaGraphExec_t exec = NULL;
  if (!s->capturing)
    return bk_fail(stream->device->ctx, BK_ERR_ARGUMENT,
                   "cuda: no capture is under way on this stream");
  if (s->poison != BK_OK) {
    drop_capture(s);
    return s->poison;
  }
  s->capturing = false;
  BK_TRY(enter(stream));
  BK_TRY(check(stream, cudaStreamEndCapture(s->stream, &captured), "ending a capture"));
  cudaError_t error = instantiate(&exec, captured);
  (void)cudaGraphDestroy(captured);
  BK_TRY(check(stream, error, "making a graph of what was captured"));
  *graph = exec;
  return BK_OK;
}

static bk_status stream_graph_launch(bk_stream *stream, void *graph) {
  bk_cuda_stream *s = of(stream);
  BK_TRY(enter(stream));
  s->trace[s->launches++ % BK_CUDA_TRACE] = "a captured graph";
  BK_TRY(check(stream, cudaGraphLaunch((cudaGraphExec_t)graph, s->stream), "launching a graph"));
  return device_of(stream)->synchronous ? stream_sync(stream) : BK_OK;
}

static void stream_graph_destroy(bk_stream *stream, void *graph) {
  (void)cudaSetDevice(device_of(stream)->ordinal);
  if (graph) (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

static const bk_stream_ops cuda_stream_ops = {BK_STREAM_OPS(stream), BK_STREAM_CAPTURES(stream)};

/* CUDA counts priorities the other way round, smaller is more urgent, and has few of them. */
static int clamp_priority(int priority) {
  int least = 0, greatest = 0;
  if (cudaDeviceGetStreamPriorityRange(&least, &greatest) != cudaSuccess) return 0;
  int wanted = -priority;
  return wanted < greatest ? greatest : wanted > least ? least : wanted;
}

bk_status bk_cuda_stream_create(bk_device *device, int priority, bk_stream **stream) {
  bk_cuda_stream *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  s->base = (bk_stream){.ops = &cuda_stream_ops, .device = device};
  cudaError_t error = cudaSetDevice(bk_cuda_of(device)->ordinal);
  if (error == cudaSuccess)
    error =
        cudaStreamCreateWithPriority(&s->stream, cudaStreamNonBlocking, clamp_priority(priority));
  if (error != cudaSuccess) {
    bk_free(device->ctx, s);
    return bk_cuda_fail(device->ctx, error, "making a stream");
  }
  *stream = &s->base;
  return BK_OK;
}

/* ---- events ---- */

static void event_destroy(bk_event *event) {
  (void)cudaEventDestroy(((bk_cuda_event *)event)->event);
  bk_free(event->device->ctx, event);
}

static bk_status event_sync(bk_event *event) {
  cudaError_t error = cudaEventSynchronize(((bk_cuda_event *)event)->event);
  return error == cudaSuccess ? BK_OK
                              : bk_cuda_fail(event->device->ctx, error, "waiting for an event");
}

static bk_status event_elapsed(bk_event *begin, bk_event *end, double *seconds) {
  const bk_cuda_event *from = (bk_cuda_event *)begin, *to = (bk_cuda_event *)end;
  float milliseconds = 0;
  if (!from->recorded || !to->recorded) return bk_event_never_recorded(begin);
  cudaError_t error = cudaEventElapsedTime(&milliseconds, from->event, to->event);
  if (error != cudaSuccess) return bk_cuda_fail(begin->device->ctx, error, "reading events");
  *seconds = milliseconds * 1e-3;
  return BK_OK;
}

static const bk_event_ops cuda_event_ops = {event_destroy, event_sync, event_elapsed};

bk_status bk_cuda_event_create(bk_device *device, bk_event **event) {
  bk_cuda_event *e = bk_alloc(device->ctx, sizeof *e);
  if (!e) return BK_ERR_MEMORY;
  e->base = (bk_event){.ops = &cuda_event_ops, .device = device};
  cudaError_t error = cudaSetDevice(bk_cuda_of(device)->ordinal);
  if (error == cudaSuccess) error = cudaEventCreate(&e->event);
  if (error != cudaSuccess) {
    bk_free(device->ctx, e);
    return bk_cuda_fail(device->ctx, error, "making an event");
  }
  *event = &e->base;
  return BK_OK;
}
