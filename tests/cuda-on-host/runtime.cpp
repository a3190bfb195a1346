/* Stand-in for the CUDA runtime. What is enqueued runs at the next wait, in the order of issue, not before: whoever reads a result
 * too early, or lets go of memory too early, is found out. Faults are made on request, by environment variables that are read when a
 * call needs them:
 *   BK_CUDA_DRIVER   none: no driver; old: one that is too old; nodevice: a driver without devices; ancient: a device of 7.0
 *   BK_CUDA_DEVICES  number of devices (1)
 *   BK_CUDA_MEMORY   bytes of device memory (16 GiB)
 *   BK_CUDA_FAULT    TEXT: a kernel whose name contains TEXT faults on the device
 *   BK_CUDA_CAPTURE  fail: captures are invalidated at their end
 *   BK_CUDA_CAPABILITY  compute capability of the device, 80 or 90 (80)
 *   BK_CUDA_SEED     order of the threads of a block (fibre.cpp) */
#include <sys/mman.h>
#include <time.h>

#include <cstdio>
#include <deque>
#include <map>
#include <vector>

#include "tests/cuda-on-host/emu.h"

typedef std::function<void()> work_fn;
struct CUstream_st { int device; bool capturing; std::vector<work_fn> captured; };
struct CUevent_st { double seconds; bool pending, ever; };
struct CUgraph_st { std::vector<work_fn> work; };
struct CUgraphExec_st { std::vector<work_fn> work; };

namespace {

std::deque<work_fn> queue;
cudaError_t last_error, sticky;
thread_local int current_device;
std::map<void *, size_t> device_memory, pinned_memory;
size_t device_used;

const char *setting(const char *name, const char *otherwise) {
  const char *text = getenv(name);
  return text && *text ? text : otherwise;
}
bool driver_is(const char *kind) { return strcmp(setting("BK_CUDA_DRIVER", "good"), kind) == 0; }
size_t memory_total() { return strtoull(setting("BK_CUDA_MEMORY", "17179869184"), nullptr, 10); }
double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

cudaError_t give(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

/* The state of the driver, then errors that stay. */
cudaError_t ready() {
  if (driver_is("none") || driver_is("old")) return cudaErrorInsufficientDriver;
  if (driver_is("nodevice")) return cudaErrorNoDevice;
  return sticky;
}

void run_all() {
  while (!queue.empty()) {
    work_fn work = std::move(queue.front());
    queue.pop_front();
    if (sticky == cudaSuccess) work();
  }
}

cudaError_t submit(cudaStream_t stream, work_fn work) {
  cudaError_t error = ready();
  if (error != cudaSuccess) return error;
  if (stream && stream->capturing) stream->captured.push_back(std::move(work));
  else queue.push_back(std::move(work));
  return cudaSuccess;
}

/* Waiting is not allowed while a stream of the thread is captured. */
std::vector<cudaStream_t> capturing;
cudaError_t wait_all() {
  if (!capturing.empty()) return cudaErrorStreamCaptureUnsupported;
  cudaError_t error = ready();
  if (error != cudaSuccess) return error;
  run_all();
  return sticky;
}

}  // namespace

uint64_t bk_emu_seed() { return strtoull(setting("BK_CUDA_SEED", "0"), nullptr, 10); }

void bk_emu_enqueue(cudaStream_t stream, work_fn work) { give(submit(stream, std::move(work))); }

void bk_emu_launch(const char *kernel, dim3 grid, dim3 block, size_t shared, cudaStream_t stream, work_fn body) {
  size_t threads = (size_t)block.x * block.y * block.z;
  if (!threads || threads > 1024 || !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || block.z > 64) {
    fprintf(stderr, "cuda-on-host: kernel %s: grid %u,%u,%u of blocks %u,%u,%u\n", kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z);
    give(cudaErrorInvalidConfiguration);
    return;
  }
  if (shared > 232448) {
    give(cudaErrorInvalidValue);
    return;
  }
  give(submit(stream, [=] {
    const char *fault = getenv("BK_CUDA_FAULT");
    if (fault && *fault && strstr(kernel, fault)) sticky = cudaErrorIllegalAddress;
    else bk_emu_run_grid(kernel, grid, block, shared, body);
  }));
}

extern "C" {

const char *cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidDeviceFunction: return "cudaErrorInvalidDeviceFunction";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorIllegalState: return "cudaErrorIllegalState";
    case cudaErrorNotPermitted: return "cudaErrorNotPermitted";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureWrongThread: return "cudaErrorStreamCaptureWrongThread";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
  }
  return "an unknown error";
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return cudaGetErrorName(error);
  }
}

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error != cudaSuccess ? last_error : sticky;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error != cudaSuccess ? last_error : sticky; }

cudaError_t cudaDriverGetVersion(int *version) {
  *version = driver_is("none") ? 0 : driver_is("old") ? 11040 : 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
  cudaError_t error = ready();
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) return give(error);
  *count = atoi(setting("BK_CUDA_DEVICES", "1"));
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return give(error);
  if (device < 0 || device >= count) return give(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *props, int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return give(error);
  if (device < 0 || device >= count) return give(cudaErrorInvalidDevice);
  *props = cudaDeviceProp{};
  snprintf(props->name, sizeof props->name, "CUDA kernels on the host (test equipment)");
  props->totalGlobalMem = memory_total();
  props->multiProcessorCount = 4;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  (void)device;
  const int capability = driver_is("ancient") ? 70 : atoi(setting("BK_CUDA_CAPABILITY", "80"));
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = capability >= 90 ? 232448 : 166912; break;
    default: return give(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return give(wait_all()); }

/* ---- memory ---- */

/* An allocation of its own, so that address sanitizer sees where it ends; large ones are the system's untouched pages. */
cudaError_t cudaMalloc(void **ptr, size_t bytes) {
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  if (bytes > memory_total() || device_used > memory_total() - bytes) return give(cudaErrorMemoryAllocation);
  void *made = aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!made) return give(cudaErrorMemoryAllocation);
  if (bytes < (64u << 20)) memset(made, 0xff, bytes);
  device_memory[made] = bytes;
  device_used += bytes;
  *ptr = made;
  return cudaSuccess;
}
cudaError_t cudaFree(void *ptr) {
  if (!ptr) return cudaSuccess;
  run_all(); /* as CUDA does: it waits */
  auto it = device_memory.find(ptr);
  if (it == device_memory.end()) return give(cudaErrorInvalidValue);
  device_used -= it->second;
  device_memory.erase(it);
  free(ptr);
  return sticky;
}
cudaError_t cudaHostAlloc(void **ptr, size_t bytes, unsigned flags) {
  (void)flags;
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  void *made = aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!made) return give(cudaErrorMemoryAllocation);
  memset(made, 0xff, bytes);
  pinned_memory[made] = bytes;
  *ptr = made;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void *ptr) {
  if (!ptr) return cudaSuccess;
  run_all();
  if (!pinned_memory.erase(ptr)) return give(cudaErrorInvalidValue);
  free(ptr);
  return sticky;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  *total_bytes = memory_total();
  *free_bytes = memory_total() > device_used ? memory_total() - device_used : 0;
  return cudaSuccess;
}

cudaError_t cudaMemset(void *at, int value, size_t bytes) { return cudaMemsetAsync(at, value, bytes, nullptr); }
cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream) {
  return give(submit(stream, [=] { memset(at, value, bytes); }));
}

static bool is_pinned(const void *p) {
  auto it = pinned_memory.upper_bound(const_cast<void *>(p));
  if (it == pinned_memory.begin()) return false;
  --it;
  return p < static_cast<const char *>(it->first) + it->second;
}

/* Pageable memory: an upload has taken its bytes when the call returns, a download has happened. Pinned memory: both happen later. */
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
  bool pageable = (kind == cudaMemcpyHostToDevice && !is_pinned(src)) || (kind == cudaMemcpyDeviceToHost && !is_pinned(dst));
  if (!pageable) return give(submit(stream, [=] { memcpy(dst, src, bytes); }));
  if (stream && stream->capturing) return give(cudaErrorStreamCaptureUnsupported);
  if (kind == cudaMemcpyDeviceToHost) {
    cudaError_t error = wait_all();
    if (error == cudaSuccess) memcpy(dst, src, bytes);
    return give(error);
  }
  std::vector<char> taken(static_cast<const char *>(src), static_cast<const char *>(src) + bytes);
  return give(submit(stream, [dst, taken] { memcpy(dst, taken.data(), taken.size()); }));
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  (void)flags;
  if (priority > 0 || priority < -5) return give(cudaErrorInvalidValue);
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  *stream = new CUstream_st{current_device, false, {}};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  run_all();
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  (void)stream;
  return give(wait_all());
}
/* The first question about work that is under way is answered no, so that both answers are met. */
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  (void)stream;
  if (queue.empty()) return give(ready());
  run_all();
  return sticky != cudaSuccess ? give(sticky) : give(cudaErrorNotReady);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  (void)event, (void)flags; /* the order of issue has it already */
  return give(submit(stream, [] {}));
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  (void)mode;
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  stream->capturing = true;
  stream->captured.clear();
  capturing.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  if (!stream->capturing) return give(cudaErrorInvalidValue);
  stream->capturing = false;
  capturing.clear();
  if (strcmp(setting("BK_CUDA_CAPTURE", ""), "fail") == 0) return give(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{std::move(stream->captured)};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
  (void)flags;
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const work_fn &work : exec->work) {
    cudaError_t error = submit(stream, work);
    if (error != cudaSuccess) return give(error);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  run_all();
  delete exec;
  return cudaSuccess;
}

/* ---- events ---- */

cudaError_t cudaEventCreate(cudaEvent_t *event) {
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  *event = new CUevent_st{0, false, false};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  run_all();
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->pending = !(stream && stream->capturing);
  event->ever = true;
  return give(submit(stream, [event] {
    event->seconds = now();
    event->pending = false;
  }));
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  (void)event;
  return give(wait_all());
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->ever || !end->ever) return give(cudaErrorInvalidValue);
  if (begin->pending || end->pending) return give(cudaErrorNotReady);
  *milliseconds = (float)((end->seconds - begin->seconds) * 1e3);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) {
  (void)function;
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > 232448) return give(cudaErrorInvalidValue);
  return cudaSuccess;
}

}  // extern "C"
