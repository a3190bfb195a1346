/* first: a whole backend in one file, on host memory, with one kernel. Explained in doc/porting-a-backend.md.
 * It is written as a loadable module: installed as birkhoff_first.so it is found by every program. */
#include "runtime/backend.h"

#include <math.h>
#include <stdio.h>

static const bk_backend first_backend;

static bool rows_are_dense(const bk_device *device, const void *args) {
  const bk_swiglu_args *a = args;
  (void)device;
  return a->gate.dtype == BK_F32 && bk_tensor_contiguous(&a->gate) && bk_tensor_contiguous(&a->up) &&
         bk_tensor_contiguous(&a->y);
}

static bk_status swiglu(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_swiglu_args *a = args;
  const float *gate = bk_tensor_data(&a->gate), *up = bk_tensor_data(&a->up);
  float *y = bk_tensor_data(&a->y);
  (void)stream, (void)plan, (void)workspace;
  for (int64_t i = 0; i < bk_tensor_count(&a->y); i++) y[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
  return BK_OK;
}

static const bk_kernel first_kernels[] = {
  BK_KERNEL_IF(BK_OP_SWIGLU, BK_DT(BK_F32), "first_swiglu", rows_are_dense, swiglu),
  BK_KERNEL_END,
};

static void first_close(bk_device *device) { bk_free(device->ctx, device); }

static const bk_device_ops first_device_ops = {
  .close = first_close,
  .memory_info = bk_host_memory_info,
  .buffer_alloc = bk_host_buffer_alloc,
  .buffer_free = bk_host_buffer_free,
  .host_alloc = bk_host_buffer_alloc,
  .host_free = bk_host_buffer_free,
  .stream_create = bk_host_stream_create,
  .event_create = bk_host_event_create,
};

static bk_status first_probe(bk_context *ctx, char *reason, size_t reason_size) {
  (void)ctx, (void)reason, (void)reason_size; /* absent: snprintf the reason, return BK_ERR_ABSENT */
  return BK_OK;
}

static int first_device_count(bk_context *ctx) {
  (void)ctx;
  return 1;
}

static void first_init(bk_device *d, bk_context *ctx, int index, const bk_device_options *options) {
  bk_host_device_init(d, ctx, &first_backend, index, options, &first_device_ops);
  snprintf(d->props.name, sizeof d->props.name, "a first device");
  d->props.threads = 1;
  d->props.storage_dtypes = BK_DT(BK_F32);
}

static bk_status first_describe(bk_context *ctx, int index, bk_device_props *props, size_t *memory_bytes) {
  bk_device d = {0};
  size_t unused;
  first_init(&d, ctx, index, NULL);
  *props = d.props;
  return bk_host_memory_info(&d, &unused, memory_bytes);
}

static bk_status first_open(bk_context *ctx, int index, const bk_device_options *options, bk_device **device) {
  bk_device *d = bk_alloc(ctx, sizeof *d);
  if (!d) return BK_ERR_MEMORY;
  first_init(d, ctx, index, options);
  *device = d;
  return BK_OK;
}

static const bk_backend first_backend = {
  .abi = BK_BACKEND_ABI,
  .name = "first",
  .priority = 0,
  .probe = first_probe,
  .device_count = first_device_count,
  .describe = first_describe,
  .open = first_open,
  .kernels = first_kernels,
};

const bk_backend *bk_backend_module(void);
const bk_backend *bk_backend_module(void) { return &first_backend; }
