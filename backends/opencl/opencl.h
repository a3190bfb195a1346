/* The opencl backend: any OpenCL 1.2 device. platform.c: which devices there are; opencl.c:
 * devices, memory; program.c: kernels, built from source (backends/gpu) and kept on disk;
 * stream.c: queues, events, dispatch; library.c: libOpenCL, found at run time; table.c: the
 * kernel table; clblast.c: products by CLBlast. OpenCL C has no bfloat16: bf16 is stored as
 * 16-bit integers. */
#ifndef BK_OPENCL_H
#define BK_OPENCL_H

#define CL_TARGET_OPENCL_VERSION 120
#define CL_USE_DEPRECATED_OPENCL_1_2_APIS
#include <CL/cl.h>

#include "backends/gpu/gpu.h"

/* ---- library.c: the entry points that are used ---- */
#define BK_CL_FUNCTIONS(X)      \
  X(GetPlatformIDs)             \
  X(GetPlatformInfo)            \
  X(GetDeviceIDs)               \
  X(GetDeviceInfo)              \
  X(CreateContext)              \
  X(ReleaseContext)             \
  X(CreateCommandQueue)         \
  X(ReleaseCommandQueue)        \
  X(CreateBuffer)               \
  X(ReleaseMemObject)           \
  X(CreateProgramWithSource)    \
  X(CreateProgramWithBinary)    \
  X(BuildProgram)               \
  X(GetProgramInfo)             \
  X(GetProgramBuildInfo)        \
  X(ReleaseProgram)             \
  X(CreateKernel)               \
  X(ReleaseKernel)              \
  X(SetKernelArg)               \
  X(EnqueueNDRangeKernel)       \
  X(EnqueueReadBuffer)          \
  X(EnqueueWriteBuffer)         \
  X(EnqueueCopyBuffer)          \
  X(EnqueueFillBuffer)          \
  X(EnqueueMarkerWithWaitList)  \
  X(EnqueueBarrierWithWaitList) \
  X(Finish)                     \
  X(Flush)                      \
  X(WaitForEvents)              \
  X(GetEventInfo)               \
  X(GetEventProfilingInfo)      \
  X(ReleaseEvent)               \
  X(RetainEvent)                \
  X(GetKernelWorkGroupInfo)     \
  X(CreateSubBuffer)
typedef struct bk_cl_api {
#define BK_CL_MEMBER(name) __typeof__(&cl##name) name;
  BK_CL_FUNCTIONS(BK_CL_MEMBER)
#undef BK_CL_MEMBER
} bk_cl_api;
/* Loads libOpenCL once; BK_ERR_ABSENT with the reason. */
bk_status bk_cl_load(bk_context *ctx, const bk_cl_api **api, char *reason, size_t size);

typedef struct bk_cl_device {
  bk_gpu_device gpu;
  const bk_cl_api *cl;
  cl_platform_id platform;
  cl_device_id id;
  cl_context context;
  cl_command_queue queue; /* used where there is no stream: for zeroing new memory */
  size_t allocated;       /* bytes of device memory */
  uint64_t freed;         /* buffers freed so far; a new buffer may get the handle of a freed one */
  bool clblast_tried, clblast_fails; /* clblast.c */
} bk_cl_device;

typedef struct bk_cl_pipeline {
  bk_gpu_pipeline base;
  cl_program program;
  cl_kernel kernel;
  /* The arguments as they were set last; those that are the same again are not set again. This
   * holds for mem only while no buffer has been freed since (`freed`). */
  bool set;
  uint64_t freed;
  cl_mem mem[BK_GPU_MAX_OPERANDS];
  cl_ulong offset[BK_GPU_MAX_OPERANDS];
  int32_t param[BK_GPU_MAX_PARAMS];
  cl_int groups;
} bk_cl_pipeline;

typedef struct bk_cl_stream {
  bk_stream base;
  cl_command_queue queue;
  bk_status poison; /* a call failed: every later one returns the same */
  const char *last; /* the latest launch since the last sync, for messages; NULL: none */
} bk_cl_stream;

typedef struct bk_cl_event {
  bk_event base;
  cl_event event; /* NULL: never recorded */
} bk_cl_event;

static inline bk_cl_device *bk_cl_of(bk_device *device) { return (bk_cl_device *)device; }

/* platform.c */
#define BK_CL_MAX_DEVICES 64
typedef struct bk_cl_found {
  cl_platform_id platform;
  cl_device_id device;
} bk_cl_found;
/* The devices that can be used, up to BK_CL_MAX_DEVICES; returns their number. `reason` gets a
 * line for each device that cannot be used; where there is no device at all, it says why. */
int bk_cl_find(const bk_cl_api *cl, bk_cl_found *list, char *reason, size_t size);
/* The text is cut to `size` bytes. */
void bk_cl_device_text(const bk_cl_api *cl, cl_device_id id, cl_device_info what, char *text,
                       size_t size);
/* 0: the driver does not say */
cl_ulong bk_cl_device_number(const bk_cl_api *cl, cl_device_id id, cl_device_info what,
                             size_t size);
int bk_cl_max_group(const bk_cl_api *cl, cl_device_id id);        /* a power of two, 64 to 1024 */
cl_ulong bk_cl_group_limit(const bk_cl_api *cl, cl_device_id id); /* as the driver says it */
/* in words, for reports */
void bk_cl_features(const bk_cl_api *cl, cl_device_id id, char *text, size_t size);

/* opencl.c */
const char *bk_cl_error_name(cl_int error);
bk_status bk_cl_status_of(cl_int error);
/* The same, logged with what was being done. */
bk_status bk_cl_fail(bk_context *ctx, cl_int error, const char *what);

/* program.c */
bk_status bk_cl_build(bk_device *device, const bk_gpu_kernel *kernel, const int32_t *consts,
                      bk_gpu_pipeline **pipeline);
void bk_cl_pipeline_free(bk_device *device, bk_gpu_pipeline *pipeline);
/* stream.c. Every call on a stream begins with enter (BK_OK, or the status that it is poisoned
 * with) and ends with check. */
bk_status bk_cl_enter(bk_stream *stream);
bk_status bk_cl_check(bk_stream *stream, cl_int error, const char *what);
bk_status bk_cl_dispatch(bk_stream *stream, const char *name, const bk_gpu_pipeline *pipeline,
                         const bk_place *operands, const int32_t *params, int groups);
bk_status bk_cl_stream_create(bk_device *device, int priority, bk_stream **stream);
bk_status bk_cl_event_create(bk_device *device, bk_event **event);

extern const bk_kernel bk_opencl_kernels[];

/* clblast.c: GEMM by CLBlast */
BK_ACCEPTS(bk_cl_clblast_accepts);
BK_PREPARE(bk_cl_clblast_prepare);
bk_status bk_cl_clblast(bk_stream *stream, const bk_plan *plan, const void *args,
                        bk_place workspace);
void bk_cl_clblast_release(bk_device *device, void *state);

#endif
