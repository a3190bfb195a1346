/* minimal: the smallest backend, a loadable module in one file. doc/porting-a-backend.md goes
 * through it part by part.
 *
 * It has what a GPU's backend has, and nothing else: a device with memory of its own, of which
 * the host sees objects and no addresses, an in-order stream, events, and kernels for three ops
 * (ADD, RMSNORM, GEMM) in fp32 and bf16. The "device" is this processor: where a driver would be
 * called, here are a memcpy or a loop. */
#include "runtime/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const bk_backend minimal_backend;

/* ---- 1. memory: a handle is an object of the "driver" (a cl_mem, a VkBuffer); nobody outside
 * of this file looks into it ---- */

typedef struct memory {
  unsigned char *bytes;
} memory;

static bk_status buffer_alloc(bk_device *device, size_t bytes, void **handle) {
  memory *made = bk_alloc(device->ctx, sizeof *made); /* zero-filled, as the buffer has to be */
  if (made) made->bytes = bk_alloc(device->ctx, bytes);
  if (made && made->bytes) {
    *handle = made;
    return BK_OK;
  }
  bk_free(device->ctx, made);
  /* bk_alloc has said it; a driver's own refusal: return bk_fail(device->ctx, BK_ERR_MEMORY,
   * "...", bytes) */
  return BK_ERR_MEMORY;
}

static void buffer_free(bk_device *device, void *handle, size_t bytes) {
  (void)bytes;
  bk_free(device->ctx, ((memory *)handle)->bytes);
  bk_free(device->ctx, handle);
}

/* ---- 2. the stream: everything posted on it is done in order. This one is inline, done when
 * the call returns ---- */

static unsigned char *address(bk_place p) { return ((memory *)p.buffer->handle)->bytes + p.offset; }

static bk_status upload(bk_stream *stream, bk_place dst, const void *src, size_t bytes) {
  (void)stream;
  memcpy(address(dst), src, bytes);
  return BK_OK;
}

static bk_status download(bk_stream *stream, void *dst, bk_place src, size_t bytes) {
  (void)stream;
  memcpy(dst, address(src), bytes);
  return BK_OK;
}

static bk_status copy(bk_stream *stream, bk_place dst, bk_place src, size_t bytes) {
  (void)stream;
  memcpy(address(dst), address(src), bytes);
  return BK_OK;
}

static bk_status fill(bk_stream *stream, bk_place dst, uint8_t value, size_t bytes) {
  (void)stream;
  memset(address(dst), value, bytes);
  return BK_OK;
}

typedef struct event {
  bk_event base;
  double seconds; /* when it was recorded; 0 = never */
} event;

static bk_status event_record(bk_stream *stream, bk_event *e) {
  ((event *)e)->seconds = bk_context_seconds(stream->device->ctx);
  return BK_OK;
}

static bk_status event_wait(bk_stream *stream, bk_event *e) {
  (void)stream, (void)e; /* inline: what was recorded is done */
  return BK_OK;
}

/* A queue's late errors come out here: a kernel that faulted, a device that was lost. */
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

static const bk_stream_ops stream_ops = {
    .destroy = stream_destroy,
    .upload = upload,
    .download = download,
    .copy = copy,
    .fill = fill,
    .event_record = event_record,
    .event_wait = event_wait,
    .sync = stream_sync,
    .query = stream_query,
    /* no member is NULL: what is not there has a stub */
    .capture_begin = bk_stream_capture_begin_none,
    .capture_end = bk_stream_capture_end_none,
    .graph_launch = bk_stream_graph_launch_none,
    .graph_destroy = bk_stream_graph_destroy_none,
};

static bk_status stream_create(bk_device *device, int priority, bk_stream **stream) {
  (void)priority;
  return bk_stream_make(device, &stream_ops, sizeof(bk_stream), stream);
}

static void event_destroy(bk_event *e) { bk_free(e->device->ctx, e); }

static bk_status event_sync(bk_event *e) {
  (void)e;
  return BK_OK;
}

static bk_status event_elapsed(bk_event *begin, bk_event *end, double *seconds) {
  double from = ((event *)begin)->seconds, to = ((event *)end)->seconds;
  if (from == 0 || to == 0) return bk_event_never_recorded(begin);
  *seconds = to - from;
  return BK_OK;
}

static const bk_event_ops event_ops = {event_destroy, event_sync, event_elapsed};

static bk_status event_create(bk_device *device, bk_event **e) {
  return bk_event_make(device, &event_ops, sizeof(event), e);
}

/* ---- 3. kernels: bf16 is a 16-bit integer in memory, arithmetic is fp32, a result is rounded
 * once, on store ---- */

static float load(const bk_tensor *t, int64_t at) { /* at: elements from the tensor's first */
  const unsigned char *p = address((bk_place){t->buffer, t->offset});
  return t->dtype == BK_BF16 ? bk_bf16_to_f32(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}

static void store(const bk_tensor *t, int64_t at, float v) {
  unsigned char *p = address((bk_place){t->buffer, t->offset});
  if (t->dtype == BK_BF16) ((uint16_t *)p)[at] = bk_f32_to_bf16(v);
  else ((float *)p)[at] = v;
}

/* Where element i of t, in row-major order, lies: shapes and strides past ndim are 1 and 0. */
static int64_t place_of(const bk_tensor *t, int64_t i) {
  int64_t at = 0;
  for (int d = BK_MAX_DIMS - 1; d >= 0; i /= t->shape[d--]) at += i % t->shape[d] * t->stride[d];
  return at;
}

/* ADD: nothing to prepare. */
static bk_status add(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_add_args *a = args;
  (void)stream, (void)plan, (void)workspace;
  for (int64_t i = 0; i < bk_tensor_count(&a->y); i++)
    store(&a->y, place_of(&a->y, i),
          load(&a->a, place_of(&a->a, i)) + load(&a->b, place_of(&a->b, i)));
  return BK_OK;
}

/* RMSNORM in two passes, as a GPU might do it: one leaves 1 / rms of each row in the workspace,
 * the other scales. What is known when the model is built is worked out there and kept in the
 * plan's state (on a GPU: compiled pipelines); launch allocates nothing. */
typedef struct rmsnorm_state {
  int64_t rows, width;
} rmsnorm_state;

static BK_PREPARE(rmsnorm_prepare) {
  const bk_rmsnorm_args *a = args; /* shapes and dtypes only: buffers may be NULL here */
  rmsnorm_state *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  *s = (rmsnorm_state){a->x.shape[0], a->x.shape[1]};
  *state = s;
  *workspace_bytes = (size_t)s->rows * sizeof(float);
  return BK_OK;
}

static void rmsnorm_release(bk_device *device, void *state) { bk_free(device->ctx, state); }

static bk_status rmsnorm(bk_stream *stream, const bk_plan *plan, const void *args,
                         bk_place workspace) {
  const bk_rmsnorm_args *a = args;
  const rmsnorm_state *s = plan->state;
  float *rstd = s->rows ? (float *)address(workspace) : NULL;
  (void)stream;
  for (int64_t i = 0; i < s->rows; i++) {
    float sum = 0;
    for (int64_t c = 0; c < s->width; c++)
      sum += load(&a->x, i * a->x.stride[0] + c) * load(&a->x, i * a->x.stride[0] + c);
    rstd[i] = 1 / sqrtf(sum / (float)s->width + (float)a->eps);
    /* an operand that may be absent */
    if (bk_tensor_present(&a->rstd)) store(&a->rstd, i * a->rstd.stride[0], rstd[i]);
  }
  for (int64_t i = 0; i < s->rows; i++)
    for (int64_t c = 0; c < s->width; c++)
      store(&a->y, i * a->y.stride[0] + c,
            load(&a->x, i * a->x.stride[0] + c) * rstd[i] * load(&a->w, c * a->w.stride[0]));
  return BK_OK;
}

/* GEMM: transposition is in the strides; with a batch, its dimension comes before rows and
 * columns. */
static int64_t element(const bk_tensor *t, int64_t batch, int64_t row, int64_t column) {
  const int d = t->ndim - 2;
  return (d ? batch * t->stride[0] : 0) + row * t->stride[d] + column * t->stride[d + 1];
}

static bk_status gemm(bk_stream *stream, const bk_plan *plan, const void *args,
                      bk_place workspace) {
  const bk_gemm_args *g = args;
  const int d = g->c.ndim - 2;
  const int64_t m = g->c.shape[d], n = g->c.shape[d + 1], k = g->a.shape[d + 1];
  (void)stream, (void)plan, (void)workspace;
  for (int64_t at = 0; at < bk_tensor_count(&g->c); at++) {
    const int64_t b = at / (m * n), i = at / n % m, j = at % n, c = element(&g->c, b, i, j);
    float sum = 0;
    for (int64_t l = 0; l < k; l++)
      sum += load(&g->a, element(&g->a, b, i, l)) * load(&g->b, element(&g->b, b, l, j));
    store(&g->c, c, (float)g->alpha * sum + (g->accumulate ? load(&g->c, c) : 0));
  }
  return BK_OK;
}

#define FLOATS (BK_DT(BK_F32) | BK_DT(BK_BF16)) /* of the leading tensor */
static const bk_kernel kernels[] = {
    BK_KERNEL(BK_OP_ADD, FLOATS, "minimal_add", add),
    BK_KERNEL_ROW(BK_OP_RMSNORM, FLOATS, 0, "minimal_rmsnorm", bk_kernel_accepts_all,
                  rmsnorm_prepare, rmsnorm, rmsnorm_release),
    BK_KERNEL(BK_OP_GEMM, FLOATS, "minimal_gemm", gemm),
    BK_KERNEL_END,
};

/* ---- 4. the device and the backend: what is here, and how it is opened ---- */

static void device_close(bk_device *device) { bk_free(device->ctx, device); }

static const bk_device_ops device_ops = {
    .close = device_close,
    .memory_info = bk_host_memory_info, /* a GPU: what its driver says */
    .buffer_alloc = buffer_alloc,
    .buffer_free = buffer_free,
    /* memory of the host that is fast to copy from (pinned), where there is such a thing */
    .host_alloc = bk_host_buffer_alloc,
    .host_free = bk_host_buffer_free,
    .stream_create = stream_create,
    .event_create = event_create,
};

/* Absent is no failure: the reason in words is what `birkhoff devices` shows. A GPU: no driver
 * library, too old a driver, no device. */
static bk_status probe(bk_context *ctx, char *reason, size_t reason_size) {
  (void)ctx;
  const char *wanted = getenv("BIRKHOFF_MINIMAL");
  if (!wanted || strcmp(wanted, "off") != 0) return BK_OK;
  snprintf(reason, reason_size, "the environment variable BIRKHOFF_MINIMAL says off");
  return BK_ERR_ABSENT;
}

static int device_count(bk_context *ctx) {
  (void)ctx;
  return 1;
}

static bk_status describe(bk_context *ctx, int index, bk_device_props *props,
                          size_t *memory_bytes) {
  size_t unused;
  (void)index;
  *props = (bk_device_props){.host_memory = false, .offset_alignment = 4, .storage_dtypes = FLOATS};
  snprintf(props->name, sizeof props->name, "the example of a port");
  return bk_host_memory_info(&(bk_device){.ctx = ctx, .backend = &minimal_backend}, &unused,
                             memory_bytes);
}

static bk_status open_device(bk_context *ctx, int index, const bk_device_options *options,
                             bk_device **device) {
  size_t bytes;
  /* a GPU's struct begins with bk_device and has the driver's objects behind it */
  bk_device *d = bk_alloc(ctx, sizeof *d);
  if (!d) return BK_ERR_MEMORY;
  bk_device_init(d, ctx, &minimal_backend, index, options, &device_ops);
  bk_status status = describe(ctx, index, &d->props, &bytes);
  if (status == BK_OK) *device = d;
  else bk_free(ctx, d);
  return status;
}

static const bk_backend minimal_backend = {
    .abi = BK_BACKEND_ABI,
    .name = "minimal",
    .priority = -1, /* never the default */
    .probe = probe,
    .device_count = device_count,
    .describe = describe,
    .open = open_device,
    .kernels = kernels,
};

const bk_backend *bk_backend_module(void) { return &minimal_backend; }
