/* The backend and its devices. A device is one GPU of compute capability 8.0 or newer; buffers
 * are plain device memory. */
#include <stdio.h>
#include <string.h>

#include "backends/cuda/blaslt.h"
#include "backends/cuda/cuda.h"
#include "backends/cuda/cudnn.h"

#define MIN_CAPABILITY 80

/* ---- probing ---- */

static void say_version(char *text, size_t size, int version) {
  snprintf(text, size, "%d.%d", version / 1000, version % 1000 / 10);
}

static bk_status refuse_driver(char *reason, size_t size) {
  char driver[16], runtime[16];
  int driver_version = 0, runtime_version = 0;
  (void)cudaDriverGetVersion(&driver_version);
  (void)cudaRuntimeGetVersion(&runtime_version);
  say_version(driver, sizeof driver, driver_version);
  say_version(runtime, sizeof runtime, runtime_version);
  if (driver_version == 0)
    snprintf(reason, size, "there is no NVIDIA driver (libcuda.so.1 is not found or cannot start)");
  else
    snprintf(reason, size,
             "the NVIDIA driver is too old: it serves CUDA %s, this module was built with CUDA %s",
             driver, runtime);
  return BK_ERR_ABSENT;
}

static int capability_of(int ordinal) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal) != cudaSuccess)
    return 0;
  if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal) != cudaSuccess)
    return 0;
  return 10 * major + minor;
}

static bk_status refuse_devices(char *reason, size_t size) {
  struct cudaDeviceProp props;
  const int has = capability_of(0);
  if (cudaGetDeviceProperties(&props, 0) != cudaSuccess)
    snprintf(props.name, sizeof props.name, "device 0");
  (void)cudaGetLastError();
  snprintf(reason, size, "no device has compute capability %d.%d or newer; %.100s has %d.%d",
           MIN_CAPABILITY / 10, MIN_CAPABILITY % 10, props.name, has / 10, has % 10);
  return BK_ERR_ABSENT;
}

static bk_status cuda_probe(bk_context *ctx, char *reason, size_t size) {
  (void)ctx;
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) return refuse_driver(reason, size);
  if (error != cudaSuccess && error != cudaErrorNoDevice) {
    snprintf(reason, size, "%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
    return BK_ERR_ABSENT;
  }
  if (error == cudaErrorNoDevice || count <= 0) {
    snprintf(reason, size, "the NVIDIA driver finds no device");
    return BK_ERR_ABSENT;
  }
  for (int i = 0; i < count; i++)
    if (capability_of(i) >= MIN_CAPABILITY) return BK_OK;
  return refuse_devices(reason, size);
}

/* Devices that are too old do not count: cuda:0 is the first of the others. -1: there is no such
 * device. */
static int ordinal_of(int index) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  (void)cudaGetLastError();
  for (int i = 0; i < count; i++)
    if (capability_of(i) >= MIN_CAPABILITY && index-- == 0) return i;
  return -1;
}

static int cuda_device_count(bk_context *ctx) {
  (void)ctx;
  int count = 0;
  while (ordinal_of(count) >= 0) count++;
  return count;
}

static void fill_props(int ordinal, const struct cudaDeviceProp *from, bk_device_props *props) {
  int driver_version = 0;
  char version[16];
  (void)cudaDriverGetVersion(&driver_version);
  say_version(version, sizeof version, driver_version);
  *props = (bk_device_props){
      .offset_alignment = 256, .storage_dtypes = BK_CUDA_FLOATS, .captures = true};
  snprintf(props->name, sizeof props->name, "%.*s", (int)sizeof props->name - 1, from->name);
  snprintf(props->driver, sizeof props->driver, "CUDA %s", version);
  snprintf(props->isa, sizeof props->isa, "sm_%d", capability_of(ordinal));
}

static bk_status cuda_describe(bk_context *ctx, int index, bk_device_props *props,
                               size_t *memory_bytes) {
  struct cudaDeviceProp from;
  const int ordinal = ordinal_of(index);
  cudaError_t error = cudaGetDeviceProperties(&from, ordinal);
  if (error != cudaSuccess) return bk_cuda_fail(ctx, error, "describing a device");
  fill_props(ordinal, &from, props);
  *memory_bytes = from.totalGlobalMem;
  return BK_OK;
}

/* ---- the device ---- */

static cudaError_t enter(bk_device *device) { return cudaSetDevice(bk_cuda_of(device)->ordinal); }

static void device_close(bk_device *device) {
  bk_cuda_device *d = (bk_cuda_device *)device;
  (void)enter(device);
  bk_cudnn_close(d);
  bk_cublaslt_close(d);
  bk_free(device->ctx, d);
}

static bk_status device_memory_info(bk_device *device, size_t *free_bytes, size_t *total_bytes) {
  cudaError_t error = enter(device);
  if (error == cudaSuccess) error = cudaMemGetInfo(free_bytes, total_bytes);
  return error == cudaSuccess ? BK_OK
                              : bk_cuda_fail(device->ctx, error, "asking for the free memory");
}

static bk_status fail_alloc(bk_device *device, cudaError_t error, size_t bytes, const char *kind) {
  size_t free_bytes = 0, total = 0;
  (void)cudaGetLastError(); /* running out of memory spoils nothing: the process goes on */
  if (error != cudaErrorMemoryAllocation)
    return bk_cuda_fail(device->ctx, error, "allocating memory");
  (void)cudaMemGetInfo(&free_bytes, &total);
  return bk_fail(device->ctx, BK_ERR_MEMORY,
                 "cuda:%d: cannot allocate %zu bytes of %s memory; %zu of %zu bytes are free",
                 device->index, bytes, kind, free_bytes, total);
}

/* The fill runs on the legacy stream, which our streams do not wait for. */
static cudaError_t zero(void *at, size_t bytes) {
  cudaError_t error = cudaMemset(at, 0, bytes);
  return error == cudaSuccess ? cudaStreamSynchronize(NULL) : error;
}

static bk_status device_buffer_alloc(bk_device *device, size_t bytes, void **handle) {
  void *made = NULL;
  cudaError_t error = enter(device);
  if (error == cudaSuccess) error = cudaMalloc(&made, bytes);
  if (error == cudaSuccess) error = zero(made, bytes);
  if (error == cudaSuccess) {
    *handle = made;
    return BK_OK;
  }
  (void)cudaFree(made);
  return fail_alloc(device, error, bytes, "device");
}

static void device_buffer_free(bk_device *device, void *handle, size_t bytes) {
  (void)bytes;
  (void)enter(device);
  (void)cudaFree(handle);
}

static bk_status device_host_alloc(bk_device *device, size_t bytes, void **ptr) {
  void *made = NULL;
  cudaError_t error = enter(device);
  if (error == cudaSuccess) error = cudaHostAlloc(&made, bytes ? bytes : 1, cudaHostAllocDefault);
  if (error != cudaSuccess) return fail_alloc(device, error, bytes, "pinned host");
  memset(made, 0, bytes);
  *ptr = made;
  return BK_OK;
}

static void device_host_free(bk_device *device, void *ptr, size_t bytes) {
  (void)bytes;
  (void)enter(device);
  (void)cudaFreeHost(ptr);
}

const bk_device_ops bk_cuda_device_ops = {
    .close = device_close,
    .memory_info = device_memory_info,
    .buffer_alloc = device_buffer_alloc,
    .buffer_free = device_buffer_free,
    .host_alloc = device_host_alloc,
    .host_free = device_host_free,
    .stream_create = bk_cuda_stream_create,
    .event_create = bk_cuda_event_create,
};

bool bk_cuda_switch(bk_context *ctx, const char *name, bool otherwise) {
  const char *text = bk_context_environment(ctx, name);
  bool on = otherwise;
  return text && bk_parse_bool(text, &on) ? on : otherwise;
}

extern const bk_backend bk_backend_cuda;

static bk_status device_fill(bk_cuda_device *d, bk_context *ctx, int index,
                             const bk_device_options *options) {
  struct cudaDeviceProp props;
  const int ordinal = ordinal_of(index);
  if (ordinal < 0)
    return bk_fail(
        ctx, BK_ERR_ABSENT,
        "cuda:%d is not here: there are fewer devices of compute capability 8.0 or newer", index);
  cudaError_t error = cudaSetDevice(ordinal);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&props, ordinal);
  if (error == cudaSuccess)
    error =
        cudaDeviceGetAttribute(&d->smem_optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
  if (error != cudaSuccess) return bk_cuda_fail(ctx, error, "opening a device");
  bk_device_init(&d->base, ctx, &bk_backend_cuda, index, options, &bk_cuda_device_ops);
  fill_props(ordinal, &props, &d->base.props);
  d->ordinal = ordinal;
  d->capability = capability_of(ordinal);
  d->sm_count = props.multiProcessorCount;
  d->synchronous = bk_cuda_switch(ctx, "BIRKHOFF_CUDA_SYNC", false);
  BK_TRY(bk_cublaslt_open(d));
  return bk_cudnn_open(d);
}

static bk_status cuda_open(bk_context *ctx, int index, const bk_device_options *options,
                           bk_device **device) {
  bk_cuda_device *d = bk_alloc(ctx, sizeof *d);
  if (!d) return BK_ERR_MEMORY;
  bk_status status = device_fill(d, ctx, index, options);
  if (status != BK_OK) {
    bk_cublaslt_close(d);
    bk_free(ctx, d);
    return status;
  }
  *device = &d->base;
  return BK_OK;
}

const bk_backend bk_backend_cuda = BK_BACKEND(cuda, 100, bk_cuda_kernels);

/* What the loader of modules asks for. */
const bk_backend *bk_backend_module(void) { return &bk_backend_cuda; }
