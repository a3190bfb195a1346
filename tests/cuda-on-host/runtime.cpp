/* Stand-in for the CUDA runtime. What is enqueued runs at the next wait, not before: whoever
 * reads a result too early, or lets go of memory too early, is found out. Streams run in turns
 * that a seeded generator decides, held back by the events they wait for alone: a missing wait
 * shows. (A captured graph runs in the order of issue; what is captured has run call by call
 * before.) Faults are made on request, by environment variables that are read when a call needs
 * them:
 *   BK_CUDA_DRIVER   none: no driver; old: one that is too old; nodevice: a driver without
 *                    devices; ancient: a device of 7.0
 *   BK_CUDA_DEVICES  number of devices (1)
 *   BK_CUDA_MEMORY   bytes of device memory (16 GiB)
 *   BK_CUDA_FAULT    TEXT: a kernel whose name contains TEXT faults on the device
 *   BK_CUDA_CAPTURE  fail: captures are invalidated at their end
 *   BK_CUDA_CAPABILITY  compute capability of the device, 80, 90 or 100 (80): its limits of
 *                       shared memory, and what it can do
 *   BK_CUDA_GRAPH    plain: graphs are made without flags only, as before CUDA 11.7; priority:
 *                    only with priorities of their nodes
 *   BK_CUDA_RECORD   FILE: every launch is written there (record.cpp)
 *   BK_CUDA_SMS      multiprocessors of the device (4)
 *   BK_CUDA_LARGE_TILES  attention goes by tiles of 128 rows however few there are (attention.cuh)
 *   BK_CUDA_SEED     order of the threads of a block (fibre.cpp) and of streams */
#include <sys/mman.h>
#include <time.h>

#include <cstdio>
#include <deque>
#include <map>
#include <vector>

#include "tests/cuda-on-host/emu.h"

typedef std::function<void()> work_fn;
/* Work, or a wait (no work) until the event has been recorded `ticket` times. */
struct item {
  work_fn work;
  cudaEvent_t event;
  uint64_t ticket;
};
/* A stream that waits for an event of a capture takes part in it: origin is the stream whose
 * capture that is. */
struct CUstream_st {
  int device;
  CUstream_st *origin;
  std::vector<work_fn> captured;
  std::deque<item> queue;
};
struct CUevent_st {
  double seconds;
  bool ever;
  uint64_t issued, done;
  cudaStream_t captured_in;
};
struct CUgraph_st {
  std::vector<work_fn> work;
};
struct CUgraphExec_st {
  std::vector<work_fn> work;
};

namespace {

std::vector<cudaStream_t> streams; /* all that there are; the first is the default one */
CUstream_st default_stream;
cudaError_t last_error, sticky;
thread_local int current_device;
std::map<void *, size_t> device_memory, pinned_memory;
size_t device_used;
/* dynamic shared memory that a kernel was allowed by cudaFuncSetAttribute */
std::map<const void *, size_t> allowed;

const char *setting(const char *name, const char *otherwise) {
  const char *text = getenv(name);
  return text && *text ? text : otherwise;
}
bool driver_is(const char *kind) { return strcmp(setting("BK_CUDA_DRIVER", "good"), kind) == 0; }
size_t memory_total() { return strtoull(setting("BK_CUDA_MEMORY", "17179869184"), nullptr, 10); }
int capability() { return driver_is("ancient") ? 70 : atoi(setting("BK_CUDA_CAPABILITY", "80")); }
/* Shared memory that a block may have, static and dynamic together: without asking, and on this
 * device when it asks. */
constexpr size_t shared_plain = 48 << 10;
size_t shared_most() { return capability() >= 90 ? 227 << 10 : 163 << 10; }
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

bool empty(cudaStream_t s) { return s->queue.empty(); }
bool runnable(cudaStream_t s) {
  if (s->queue.empty()) return false;
  const item &i = s->queue.front();
  return i.work || i.event->done >= i.ticket;
}

/* One item of some stream; false: none can run. */
bool run_one() {
  static uint64_t turn = 1;
  cudaStream_t ready_ones[64];
  size_t count = 0;
  for (cudaStream_t s : streams)
    if (runnable(s) && count < 64) ready_ones[count++] = s;
  if (!count) return false;
  turn = turn * 6364136223846793005u + 2 * bk_emu_seed() + 1;
  cudaStream_t s = ready_ones[(turn >> 33) % count];
  item next = std::move(s->queue.front());
  s->queue.pop_front();
  if (next.work && sticky == cudaSuccess) next.work();
  return true;
}
void run_all() {
  while (run_one()) {}
}

cudaStream_t stream_of(cudaStream_t stream) {
  if (streams.empty()) streams.push_back(&default_stream);
  return stream ? stream : &default_stream;
}

cudaError_t submit(cudaStream_t stream, work_fn work) {
  cudaError_t error = ready();
  if (error != cudaSuccess) return error;
  cudaStream_t s = stream_of(stream);
  if (s->origin) s->origin->captured.push_back(std::move(work));
  else s->queue.push_back({std::move(work), nullptr, 0});
  return cudaSuccess;
}

/* Waiting is not allowed while a stream of the thread is captured. */
cudaStream_t capturing;
/* streams that take part; of them those whose end the captured one does not wait for yet */
std::vector<cudaStream_t> joined, apart;
cudaError_t may_wait() { return capturing ? cudaErrorStreamCaptureUnsupported : ready(); }
cudaError_t wait_all() {
  cudaError_t error = may_wait();
  if (error != cudaSuccess) return error;
  run_all();
  return sticky;
}
void forget(std::vector<cudaStream_t> &list, cudaStream_t s) {
  for (size_t i = list.size(); i-- > 0;)
    if (list[i] == s) list.erase(list.begin() + (long)i);
}

} // namespace

uint64_t bk_emu_seed() { return strtoull(setting("BK_CUDA_SEED", "0"), nullptr, 10); }

void bk_emu_enqueue(cudaStream_t stream, work_fn work) { give(submit(stream, std::move(work))); }

/* The allocation that the address lies in, or an empty one. */
bk_emu_memory bk_emu_allocation(const void *address) {
  auto it = device_memory.upper_bound(const_cast<void *>(address));
  if (it == device_memory.begin()) return {};
  --it;
  unsigned char *at = static_cast<unsigned char *>(it->first);
  return static_cast<const unsigned char *>(address) < at + it->second
             ? bk_emu_memory{at, it->second}
             : bk_emu_memory{};
}

void bk_emu_launch(const char *kernel, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   const bk_emu_call &call) {
  const void *function = call.function;
  size_t threads = (size_t)block.x * block.y * block.z;
  if (!threads || threads > 1024 || !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535 || block.z > 64) {
    fprintf(stderr, "cuda-on-host: kernel %s: grid %u,%u,%u of blocks %u,%u,%u\n", kernel, grid.x,
            grid.y, grid.z, block.x, block.y, block.z);
    give(cudaErrorInvalidConfiguration);
    return;
  }
  const size_t fixed = bk_emu_static_shared(function),
               asked = allowed.count(function) ? allowed[function] : 0;
  if (asked ? shared > asked : shared + fixed > shared_plain) {
    fprintf(stderr,
            "cuda-on-host: kernel %s: %zu bytes of dynamic shared memory and %zu of static; it was "
            "allowed %zu %s\n",
            kernel, shared, fixed, asked ? asked : shared_plain, asked ? "of dynamic" : "of both");
    give(cudaErrorInvalidValue);
    return;
  }
  give(submit(stream, [=] {
    const char *fault = getenv("BK_CUDA_FAULT");
    if (fault && *fault && strstr(kernel, fault)) sticky = cudaErrorIllegalAddress;
    else if (getenv("BK_CUDA_RECORD")) bk_emu_record(kernel, grid, block, shared, call);
    else bk_emu_run_grid(kernel, grid, block, shared, call.run);
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
    case cudaErrorStreamCaptureUnjoined: return "cudaErrorStreamCaptureUnjoined";
  }
  return "an unknown error";
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
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
  props->multiProcessorCount = atoi(setting("BK_CUDA_SMS", "4"));
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  (void)device;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)shared_most(); break;
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

/* An allocation of its own, so that address sanitizer sees where it ends; large ones are the
 * system's untouched pages. */
cudaError_t cudaMalloc(void **ptr, size_t bytes) {
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  if (bytes > memory_total() || device_used > memory_total() - bytes)
    return give(cudaErrorMemoryAllocation);
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

cudaError_t cudaMemset(void *at, int value, size_t bytes) {
  return cudaMemsetAsync(at, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream) {
  return give(submit(stream, [=] { memset(at, value, bytes); }));
}

static bool is_pinned(const void *p) {
  auto it = pinned_memory.upper_bound(const_cast<void *>(p));
  if (it == pinned_memory.begin()) return false;
  --it;
  return p < static_cast<const char *>(it->first) + it->second;
}

/* Pageable memory: an upload has taken its bytes when the call returns, a download has happened.
 * Pinned memory: both happen later. */
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  bool pageable = (kind == cudaMemcpyHostToDevice && !is_pinned(src)) ||
                  (kind == cudaMemcpyDeviceToHost && !is_pinned(dst));
  if (!pageable) return give(submit(stream, [=] { memcpy(dst, src, bytes); }));
  if (stream && stream->origin) return give(cudaErrorStreamCaptureUnsupported);
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
  stream_of(nullptr);
  *stream = new CUstream_st{current_device, nullptr, {}, {}};
  streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  run_all();
  forget(streams, stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  cudaError_t error = may_wait();
  if (error != cudaSuccess) return give(error);
  while (!empty(stream_of(stream)) && run_one()) {}
  return give(sticky);
}
/* The first question about work that is under way is answered no, so that both answers are met. */
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  cudaStream_t s = stream_of(stream);
  if (empty(s)) return give(ready());
  while (!empty(s) && run_one()) {}
  return sticky != cudaSuccess ? give(sticky) : give(cudaErrorNotReady);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  (void)flags;
  cudaStream_t s = stream_of(stream);
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  if (!event->captured_in) {
    /* an event from outside the capture */
    if (s->origin) return give(cudaErrorStreamCaptureUnsupported);
    s->queue.push_back({nullptr, event, event->issued});
  } else if (s == event->captured_in->origin) {
    forget(apart, event->captured_in);
  } else if (!s->origin) {
    s->origin = event->captured_in->origin;
    joined.push_back(s);
    apart.push_back(s);
  }
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = stream->origin ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  static thread_local enum cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(current, *mode);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  (void)mode;
  cudaError_t error = ready();
  if (error != cudaSuccess) return give(error);
  stream->origin = stream;
  stream->captured.clear();
  capturing = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  if (stream->origin != stream) return give(cudaErrorInvalidValue);
  const bool whole = apart.empty();
  for (cudaStream_t s : joined) s->origin = nullptr;
  joined.clear();
  apart.clear();
  stream->origin = capturing = nullptr;
  if (strcmp(setting("BK_CUDA_CAPTURE", ""), "fail") == 0)
    return give(cudaErrorStreamCaptureInvalidated);
  if (!whole) return give(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{std::move(stream->captured)};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  const char *kind = setting("BK_CUDA_GRAPH", "");
  if (flags & ~(unsigned long long)cudaGraphInstantiateFlagUseNodePriority)
    return give(cudaErrorInvalidValue);
  if (flags ? strcmp(kind, "plain") == 0 : strcmp(kind, "priority") == 0)
    return give(cudaErrorInvalidValue);
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
  *event = new CUevent_st{0, false, 0, 0, nullptr};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  run_all();
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  cudaStream_t s = stream_of(stream);
  event->captured_in = s->origin ? s : nullptr;
  event->ever = true;
  if (s->origin) return give(ready());
  const uint64_t ticket = ++event->issued;
  return give(submit(stream, [event, ticket] {
    event->seconds = now();
    event->done = ticket;
  }));
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  cudaError_t error = may_wait();
  if (error != cudaSuccess) return give(error);
  while (event->done < event->issued && run_one()) {}
  return give(sticky);
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->ever || !end->ever) return give(cudaErrorInvalidValue);
  if (begin->done < begin->issued || end->done < end->issued) return give(cudaErrorNotReady);
  *milliseconds = (float)((end->seconds - begin->seconds) * 1e3);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute,
                                 int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || (size_t)value + bk_emu_static_shared(function) > shared_most())
    return give(cudaErrorInvalidValue);
  allowed[function] = (size_t)value;
  return cudaSuccess;
}

} // extern "C"
