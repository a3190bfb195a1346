/* Errors, devices, memory. */
#include <limits.h>
#include <stdio.h>

#include "backends/opencl/opencl.h"

#define REASON_BYTES 1024

extern const bk_backend bk_backend_opencl;

/* ---- errors ---- */

#define BK_CL_ERRORS(X)            \
  X(DEVICE_NOT_FOUND)              \
  X(DEVICE_NOT_AVAILABLE)          \
  X(COMPILER_NOT_AVAILABLE)        \
  X(MEM_OBJECT_ALLOCATION_FAILURE) \
  X(OUT_OF_RESOURCES)              \
  X(OUT_OF_HOST_MEMORY)            \
  X(BUILD_PROGRAM_FAILURE)         \
  X(INVALID_VALUE)                 \
  X(INVALID_DEVICE)                \
  X(INVALID_CONTEXT)               \
  X(INVALID_COMMAND_QUEUE)         \
  X(INVALID_MEM_OBJECT)            \
  X(INVALID_BINARY)                \
  X(INVALID_BUILD_OPTIONS)         \
  X(INVALID_PROGRAM)               \
  X(INVALID_PROGRAM_EXECUTABLE)    \
  X(INVALID_KERNEL_NAME)           \
  X(INVALID_KERNEL)                \
  X(INVALID_ARG_INDEX)             \
  X(INVALID_ARG_VALUE)             \
  X(INVALID_ARG_SIZE)              \
  X(INVALID_KERNEL_ARGS)           \
  X(INVALID_WORK_GROUP_SIZE)       \
  X(INVALID_WORK_ITEM_SIZE)        \
  X(INVALID_EVENT)                 \
  X(INVALID_OPERATION)             \
  X(INVALID_BUFFER_SIZE)           \
  X(PROFILING_INFO_NOT_AVAILABLE)  \
  X(EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST)

const char *bk_cl_error_name(cl_int error) {
  switch (error) {
#define BK_CL_NAME(name) \
  case CL_##name: return "CL_" #name;
    BK_CL_ERRORS(BK_CL_NAME)
#undef BK_CL_NAME
    case -1001: return "CL_PLATFORM_NOT_FOUND_KHR";
    default: return "an error without a name";
  }
}

bk_status bk_cl_status_of(cl_int error) {
  switch (error) {
    case CL_SUCCESS: return BK_OK;
    case CL_MEM_OBJECT_ALLOCATION_FAILURE:
    case CL_OUT_OF_HOST_MEMORY:
    case CL_INVALID_BUFFER_SIZE: return BK_ERR_MEMORY;
    case CL_PROFILING_INFO_NOT_AVAILABLE: return BK_ERR_BUSY;
    default: return BK_ERR_DEVICE;
  }
}

bk_status bk_cl_fail(bk_context *ctx, cl_int error, const char *what) {
  return bk_fail(ctx, bk_cl_status_of(error), "opencl: %s: %s (%d)", what, bk_cl_error_name(error),
                 (int)error);
}

/* ---- probing ---- */

static bk_status opencl_probe(bk_context *ctx, char *reason, size_t size) {
  const bk_cl_api *cl;
  bk_cl_found list[BK_CL_MAX_DEVICES];
  BK_TRY(bk_cl_load(ctx, &cl, reason, size));
  return bk_cl_find(cl, list, reason, size) ? BK_OK : BK_ERR_ABSENT;
}

static int opencl_device_count(bk_context *ctx) {
  char reason[REASON_BYTES];
  const bk_cl_api *cl;
  bk_cl_found list[BK_CL_MAX_DEVICES];
  return bk_cl_load(ctx, &cl, reason, sizeof reason) == BK_OK
             ? bk_cl_find(cl, list, reason, sizeof reason)
             : 0;
}

static void fill_props(const bk_cl_api *cl, cl_device_id id, bk_device_props *props) {
  char version[64], driver[64];
  const cl_ulong group = bk_cl_group_limit(cl, id);
  *props = (bk_device_props){.storage_dtypes = BK_GPU_FLOATS, .offset_alignment = 256};
  bk_cl_device_text(cl, id, CL_DEVICE_NAME, props->name, sizeof props->name);
  bk_cl_device_text(cl, id, CL_DEVICE_VERSION, version, sizeof version);
  bk_cl_device_text(cl, id, CL_DRIVER_VERSION, driver, sizeof driver);
  snprintf(props->driver, sizeof props->driver, "%.60s, driver %.40s", version, driver);
  props->max_group = group < INT_MAX ? (int)group : INT_MAX;
  props->local_bytes =
      (size_t)bk_cl_device_number(cl, id, CL_DEVICE_LOCAL_MEM_SIZE, sizeof(cl_ulong));
  bk_cl_features(cl, id, props->features, sizeof props->features);
  props->max_alloc =
      (size_t)bk_cl_device_number(cl, id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof(cl_ulong));
}

static bk_status locate(bk_context *ctx, int index, const bk_cl_api **cl, bk_cl_found *out) {
  char reason[REASON_BYTES];
  bk_cl_found list[BK_CL_MAX_DEVICES];
  bk_status status = bk_cl_load(ctx, cl, reason, sizeof reason);
  int n = status == BK_OK ? bk_cl_find(*cl, list, reason, sizeof reason) : 0;
  if (index >= n)
    return bk_fail(ctx, BK_ERR_ABSENT, "opencl:%d is not here: %s", index,
                   n ? "there are fewer devices" : reason);
  *out = list[index];
  return BK_OK;
}

static bk_status opencl_describe(bk_context *ctx, int index, bk_device_props *props,
                                 size_t *memory_bytes) {
  const bk_cl_api *cl;
  bk_cl_found at;
  BK_TRY(locate(ctx, index, &cl, &at));
  fill_props(cl, at.device, props);
  *memory_bytes =
      (size_t)bk_cl_device_number(cl, at.device, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(cl_ulong));
  return BK_OK;
}

/* ---- the device ---- */

static void device_close(bk_device *device) {
  bk_cl_device *d = bk_cl_of(device);
  bk_gpu_device_fini(device);
  if (d->queue) (void)d->cl->ReleaseCommandQueue(d->queue);
  if (d->context) (void)d->cl->ReleaseContext(d->context);
  bk_free(device->ctx, d);
}

/* OpenCL does not tell how much memory is free; what this device object has allocated is
 * counted. */
static bk_status device_memory_info(bk_device *device, size_t *free_bytes, size_t *total_bytes) {
  bk_cl_device *d = bk_cl_of(device);
  *total_bytes =
      (size_t)bk_cl_device_number(d->cl, d->id, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(cl_ulong));
  *free_bytes = *total_bytes - (d->allocated < *total_bytes ? d->allocated : *total_bytes);
  return BK_OK;
}

static bk_status device_buffer_alloc(bk_device *device, size_t bytes, void **handle) {
  bk_cl_device *d = bk_cl_of(device);
  const cl_uchar zero = 0;
  cl_int error;
  cl_mem made = d->cl->CreateBuffer(d->context, CL_MEM_READ_WRITE, bytes, NULL, &error);
  if (error == CL_SUCCESS)
    error = d->cl->EnqueueFillBuffer(d->queue, made, &zero, 1, 0, bytes, 0, NULL, NULL);
  if (error == CL_SUCCESS) error = d->cl->Finish(d->queue);
  if (error == CL_SUCCESS) {
    d->allocated += bytes;
    *handle = made;
    return BK_OK;
  }
  if (made) (void)d->cl->ReleaseMemObject(made);
  /* some drivers find out at the first use */
  bk_status status = error == CL_OUT_OF_RESOURCES ? BK_ERR_MEMORY : bk_cl_status_of(error);
  return bk_fail(device->ctx, status,
                 "opencl:%d: cannot allocate %zu bytes of device memory: %s (%d)", device->index,
                 bytes, bk_cl_error_name(error), (int)error);
}

static void device_buffer_free(bk_device *device, void *handle, size_t bytes) {
  bk_cl_of(device)->allocated -= bytes;
  bk_cl_of(device)->freed++;
  (void)bk_cl_of(device)->cl->ReleaseMemObject(handle);
}

static const bk_device_ops opencl_device_ops = {
    .close = device_close,
    .memory_info = device_memory_info,
    .buffer_alloc = device_buffer_alloc,
    .buffer_free = device_buffer_free,
    .host_alloc = bk_host_buffer_alloc,
    .host_free = bk_host_buffer_free,
    .stream_create = bk_cl_stream_create,
    .event_create = bk_cl_event_create,
};

static const bk_gpu_device_ops opencl_gpu_ops = {bk_cl_build, bk_cl_pipeline_free, bk_cl_dispatch};

/* BIRKHOFF_OPENCL_MAX_GROUP: smaller groups than the device allows, for tests and for drivers
 * that promise too much. */
static bk_status limit_group(bk_context *ctx, int *max_group) {
  const char *text = bk_context_environment(ctx, "BIRKHOFF_OPENCL_MAX_GROUP");
  int64_t value = 0;
  if (!text || !*text) return BK_OK;
  if (!bk_parse_int64(text, &value) || value < 64)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "BIRKHOFF_OPENCL_MAX_GROUP is a number, at least 64, not \"%s\"", text);
  while (*max_group > value) *max_group /= 2;
  return BK_OK;
}

/* BIRKHOFF_OPENCL_AS_GPU=1 makes the choices for GPUs on a processor too; for tests. */
static bool as_gpu(const bk_context *ctx) {
  const char *text = bk_context_environment(ctx, "BIRKHOFF_OPENCL_AS_GPU");
  return text && text[0] == '1';
}

static bk_status device_fill(bk_cl_device *d, bk_context *ctx, int index,
                             const bk_device_options *options) {
  bk_cl_found at;
  cl_int error;
  BK_TRY(locate(ctx, index, &d->cl, &at));
  const bk_cl_api *cl = d->cl;
  bk_device_init(&d->gpu.base, ctx, &bk_backend_opencl, index, options, &opencl_device_ops);
  fill_props(cl, at.device, &d->gpu.base.props);
  d->gpu.gpu = &opencl_gpu_ops;
  d->gpu.max_group = bk_cl_max_group(cl, at.device);
  d->gpu.local_bytes =
      (size_t)bk_cl_device_number(cl, at.device, CL_DEVICE_LOCAL_MEM_SIZE, sizeof(cl_ulong));
  d->gpu.on_cpu = (bk_cl_device_number(cl, at.device, CL_DEVICE_TYPE, sizeof(cl_ulong)) &
                   CL_DEVICE_TYPE_CPU) != 0 &&
                  !as_gpu(ctx);
  d->gpu.units =
      (int)bk_cl_device_number(cl, at.device, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(cl_uint));
  if (d->gpu.on_cpu)
    d->gpu.vector = (int)bk_cl_device_number(cl, at.device, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT,
                                             sizeof(cl_uint));
  d->platform = at.platform;
  d->id = at.device;
  BK_TRY(limit_group(ctx, &d->gpu.max_group));
  bk_gpu_kept_init(&d->gpu.cache, ctx, "opencl", index);
  const cl_context_properties properties[] = {CL_CONTEXT_PLATFORM,
                                              (cl_context_properties)at.platform, 0};
  d->context = cl->CreateContext(properties, 1, &at.device, NULL, NULL, &error);
  if (error != CL_SUCCESS) return bk_cl_fail(ctx, error, "opening a device");
  d->queue = cl->CreateCommandQueue(d->context, d->id, 0, &error);
  return error == CL_SUCCESS ? BK_OK : bk_cl_fail(ctx, error, "making a queue");
}

static bk_status opencl_open(bk_context *ctx, int index, const bk_device_options *options,
                             bk_device **device) {
  bk_cl_device *d = bk_alloc(ctx, sizeof *d);
  if (!d) return BK_ERR_MEMORY;
  bk_status status = device_fill(d, ctx, index, options);
  if (status != BK_OK) {
    d->gpu.base.ctx = ctx;
    device_close(&d->gpu.base);
    return status;
  }
  *device = &d->gpu.base;
  return BK_OK;
}

/* Below cpu where it is the same processor; asked for by name. */
const bk_backend bk_backend_opencl = BK_BACKEND(opencl, 5, bk_opencl_kernels);

/* What the loader of modules asks for. */
const bk_backend *bk_backend_module(void) { return &bk_backend_opencl; }
