/* A stand-in for libOpenCL: hands every call to the real one, but for the faults that
 * BK_FAKE_OPENCL names, separated by commas:
 *   no_platform          no driver is installed
 *   no_device            a platform without devices
 *   old, no_compiler, big_endian, unavailable, little_local, small_group   every device is so
 *   beside               one more device on every platform, an old one
 *   driver               the drivers have another version
 *   oom=N                buffers of together more than N bytes cannot be made; oom_late=N: the
 *                        failure comes at their first use
 *   lost=N               after N launches every call that needs the device fails; lost_late=N:
 *                        launches go on, waiting fails
 *   no_build             a planted mistake in line 12 of the kernel's file
 *   no_binary            kept programs are refused
 *   group=N              no kernel runs in groups above N
 * Without a real library there is one platform without a device. The tests count builds from
 * source: bk_fake_opencl_builds. */
#define CL_TARGET_OPENCL_VERSION 120
#define CL_USE_DEPRECATED_OPENCL_1_2_APIS
#include <CL/cl.h>

#include "tests/gpu/fake_fault.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
  static void *library;
  if (!library) library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  return library ? dlsym(library, name) : NULL;
}

extern int bk_fake_opencl_builds, bk_fake_opencl_sets;
int bk_fake_opencl_builds, bk_fake_opencl_sets;
static int launches;
static size_t held; /* bytes of buffers */
static cl_platform_id const platform_alone = (cl_platform_id)&launches;
static cl_device_id const device_beside = (cl_device_id)&held;

/* ---- faults ---- */

static bool fault(const char *name, size_t *value) {
  return fault_is_on("BK_FAKE_OPENCL", name, value);
}

static bool lost(const char *name) {
  size_t after = 0;
  return fault(name, &after) && (size_t)launches >= after;
}

/* ---- platforms and devices ---- */

CL_API_ENTRY cl_int CL_API_CALL clGetPlatformIDs(cl_uint n, cl_platform_id *ids, cl_uint *count) {
  if (fault("no_platform", NULL)) return -1001;
  if (real("clGetPlatformIDs") && REAL(clGetPlatformIDs)(n, ids, count) == CL_SUCCESS)
    return CL_SUCCESS;
  if (n) ids[0] = platform_alone;
  if (count) *count = 1;
  return CL_SUCCESS;
}

CL_API_ENTRY cl_int CL_API_CALL clGetPlatformInfo(cl_platform_id id, cl_platform_info what,
                                                  size_t size, void *value, size_t *bytes) {
  return id == platform_alone ? CL_INVALID_PLATFORM
                              : REAL(clGetPlatformInfo)(id, what, size, value, bytes);
}

CL_API_ENTRY cl_int CL_API_CALL clGetDeviceIDs(cl_platform_id platform, cl_device_type type,
                                               cl_uint n, cl_device_id *ids, cl_uint *count) {
  cl_uint found = 0;
  cl_int error = CL_DEVICE_NOT_FOUND;
  if (platform != platform_alone && !fault("no_device", NULL))
    error = REAL(clGetDeviceIDs)(platform, type, n, ids, &found);
  if (error != CL_SUCCESS) found = 0;
  if (fault("beside", NULL)) {
    if (ids && found < n) ids[found] = device_beside;
    found++;
  }
  if (count) *count = found;
  return found ? CL_SUCCESS : error;
}

static cl_int answer(const void *what, size_t bytes, size_t size, void *value, size_t *needed) {
  if (needed) *needed = bytes;
  if (value && size < bytes) return CL_INVALID_VALUE;
  if (value) memcpy(value, what, bytes);
  return CL_SUCCESS;
}

#define ANSWER_TEXT(text) return answer(text, sizeof text, size, value, bytes)
#define ANSWER_NUMBER(type, number)                  \
  do {                                               \
    type v = number;                                 \
    return answer(&v, sizeof v, size, value, bytes); \
  } while (0)

CL_API_ENTRY cl_int CL_API_CALL clGetDeviceInfo(cl_device_id id, cl_device_info what, size_t size,
                                                void *value, size_t *bytes) {
  if (id == device_beside && what == CL_DEVICE_NAME) ANSWER_TEXT("an old device");
  if (what == CL_DEVICE_VERSION && (id == device_beside || fault("old", NULL)))
    ANSWER_TEXT("OpenCL 1.1 of long ago");
  if (id == device_beside) return CL_INVALID_DEVICE;
  if (what == CL_DRIVER_VERSION && fault("driver", NULL)) ANSWER_TEXT("another driver");
  if (what == CL_DEVICE_COMPILER_AVAILABLE && fault("no_compiler", NULL))
    ANSWER_NUMBER(cl_bool, CL_FALSE);
  if (what == CL_DEVICE_ENDIAN_LITTLE && fault("big_endian", NULL))
    ANSWER_NUMBER(cl_bool, CL_FALSE);
  if (what == CL_DEVICE_AVAILABLE && fault("unavailable", NULL)) ANSWER_NUMBER(cl_bool, CL_FALSE);
  if (what == CL_DEVICE_LOCAL_MEM_SIZE && fault("little_local", NULL))
    ANSWER_NUMBER(cl_ulong, 1024);
  if (what == CL_DEVICE_MAX_WORK_GROUP_SIZE && fault("small_group", NULL))
    ANSWER_NUMBER(size_t, 32);
  return REAL(clGetDeviceInfo)(id, what, size, value, bytes);
}

CL_API_ENTRY cl_context CL_API_CALL
clCreateContext(const cl_context_properties *p, cl_uint n, const cl_device_id *ids,
                void(CL_CALLBACK *notify)(const char *, const void *, size_t, void *), void *user,
                cl_int *error) {
  return REAL(clCreateContext)(p, n, ids, notify, user, error);
}
CL_API_ENTRY cl_int CL_API_CALL clReleaseContext(cl_context c) { return REAL(clReleaseContext)(c); }

/* ---- memory ---- */

CL_API_ENTRY cl_mem CL_API_CALL clCreateBuffer(cl_context c, cl_mem_flags flags, size_t bytes,
                                               void *host, cl_int *error) {
  size_t limit = 0;
  if (lost("lost") || (fault("oom", &limit) && held + bytes > limit)) {
    *error = lost("lost") ? CL_DEVICE_NOT_AVAILABLE : CL_MEM_OBJECT_ALLOCATION_FAILURE;
    return NULL;
  }
  cl_mem made = REAL(clCreateBuffer)(c, flags, bytes, host, error);
  if (made) held += bytes;
  return made;
}

CL_API_ENTRY cl_mem CL_API_CALL clCreateSubBuffer(cl_mem m, cl_mem_flags flags,
                                                  cl_buffer_create_type type, const void *region,
                                                  cl_int *error) {
  cl_mem made = REAL(clCreateSubBuffer)(m, flags, type, region, error);
  size_t bytes = 0;
  /* as its release takes off */
  if (made && REAL(clGetMemObjectInfo)(made, CL_MEM_SIZE, sizeof bytes, &bytes, NULL) == CL_SUCCESS)
    held += bytes;
  return made;
}
CL_API_ENTRY cl_int CL_API_CALL clReleaseMemObject(cl_mem m) {
  size_t bytes = 0;
  if (REAL(clGetMemObjectInfo)(m, CL_MEM_SIZE, sizeof bytes, &bytes, NULL) == CL_SUCCESS)
    held -= bytes;
  return REAL(clReleaseMemObject)(m);
}

/* ---- programs ---- */

/* `text` with a mistake in line 12 of what its first #line directive begins. */
static char *plant(const char *text) {
  char *made = malloc(strlen(text) + 100);
  if (made)
    sprintf(made, "#line 12 \"%.*s\nplanted mistake;\n%s",
            (int)strcspn(strchr(text, '"') + 1, "\n"), strchr(text, '"') + 1, text);
  return made;
}

CL_API_ENTRY cl_program CL_API_CALL clCreateProgramWithSource(cl_context c, cl_uint n,
                                                              const char **text,
                                                              const size_t *lengths,
                                                              cl_int *error) {
  const char *texts[2] = {text[0], n > 1 ? text[1] : ""};
  bk_fake_opencl_builds++;
  char *planted = fault("no_build", NULL) && n == 2 ? plant(text[1]) : NULL;
  if (planted) texts[1] = planted;
  cl_program made = REAL(clCreateProgramWithSource)(c, n, texts, lengths, error);
  free(planted);
  return made;
}

CL_API_ENTRY cl_program CL_API_CALL clCreateProgramWithBinary(cl_context c, cl_uint n,
                                                              const cl_device_id *ids,
                                                              const size_t *lengths,
                                                              const unsigned char **binaries,
                                                              cl_int *states, cl_int *error) {
  if (!fault("no_binary", NULL))
    return REAL(clCreateProgramWithBinary)(c, n, ids, lengths, binaries, states, error);
  if (states) states[0] = CL_INVALID_BINARY;
  *error = CL_INVALID_BINARY;
  return NULL;
}

CL_API_ENTRY cl_int CL_API_CALL clBuildProgram(cl_program p, cl_uint n, const cl_device_id *ids,
                                               const char *options,
                                               void(CL_CALLBACK *notify)(cl_program, void *),
                                               void *user) {
  return REAL(clBuildProgram)(p, n, ids, options, notify, user);
}
CL_API_ENTRY cl_int CL_API_CALL clGetProgramInfo(cl_program p, cl_program_info what, size_t size,
                                                 void *value, size_t *bytes) {
  return REAL(clGetProgramInfo)(p, what, size, value, bytes);
}
CL_API_ENTRY cl_int CL_API_CALL clGetProgramBuildInfo(cl_program p, cl_device_id id,
                                                      cl_program_build_info what, size_t size,
                                                      void *value, size_t *bytes) {
  return REAL(clGetProgramBuildInfo)(p, id, what, size, value, bytes);
}
CL_API_ENTRY cl_int CL_API_CALL clReleaseProgram(cl_program p) { return REAL(clReleaseProgram)(p); }
CL_API_ENTRY cl_kernel CL_API_CALL clCreateKernel(cl_program p, const char *name, cl_int *error) {
  return REAL(clCreateKernel)(p, name, error);
}
CL_API_ENTRY cl_int CL_API_CALL clReleaseKernel(cl_kernel k) { return REAL(clReleaseKernel)(k); }

CL_API_ENTRY cl_int CL_API_CALL clGetKernelWorkGroupInfo(cl_kernel k, cl_device_id id,
                                                         cl_kernel_work_group_info what,
                                                         size_t size, void *value, size_t *bytes) {
  size_t most = 0;
  if (what == CL_KERNEL_WORK_GROUP_SIZE && fault("group", &most)) ANSWER_NUMBER(size_t, most);
  return REAL(clGetKernelWorkGroupInfo)(k, id, what, size, value, bytes);
}

CL_API_ENTRY cl_int CL_API_CALL clSetKernelArg(cl_kernel k, cl_uint at, size_t size,
                                               const void *value) {
  bk_fake_opencl_sets++;
  return REAL(clSetKernelArg)(k, at, size, value);
}

/* ---- queues: all but launches fail when the device is lost ---- */

#define GONE \
  if (lost("lost")) return CL_DEVICE_NOT_AVAILABLE
#define GONE_LATE \
  if (lost("lost") || lost("lost_late")) return CL_OUT_OF_RESOURCES

CL_API_ENTRY cl_command_queue CL_API_CALL clCreateCommandQueue(cl_context c, cl_device_id id,
                                                               cl_command_queue_properties p,
                                                               cl_int *error) {
  return REAL(clCreateCommandQueue)(c, id, p, error);
}
CL_API_ENTRY cl_int CL_API_CALL clReleaseCommandQueue(cl_command_queue q) {
  return REAL(clReleaseCommandQueue)(q);
}

CL_API_ENTRY cl_int CL_API_CALL clEnqueueNDRangeKernel(cl_command_queue q, cl_kernel k,
                                                       cl_uint dims, const size_t *offset,
                                                       const size_t *sizes, const size_t *locals,
                                                       cl_uint n, const cl_event *wait,
                                                       cl_event *event) {
  GONE;
  launches++;
  return REAL(clEnqueueNDRangeKernel)(q, k, dims, offset, sizes, locals, n, wait, event);
}
CL_API_ENTRY cl_int CL_API_CALL clEnqueueReadBuffer(cl_command_queue q, cl_mem m, cl_bool blocking,
                                                    size_t offset, size_t bytes, void *to,
                                                    cl_uint n, const cl_event *wait,
                                                    cl_event *event) {
  GONE_LATE;
  return REAL(clEnqueueReadBuffer)(q, m, blocking, offset, bytes, to, n, wait, event);
}
CL_API_ENTRY cl_int CL_API_CALL clEnqueueWriteBuffer(cl_command_queue q, cl_mem m, cl_bool blocking,
                                                     size_t offset, size_t bytes, const void *from,
                                                     cl_uint n, const cl_event *wait,
                                                     cl_event *event) {
  GONE;
  return REAL(clEnqueueWriteBuffer)(q, m, blocking, offset, bytes, from, n, wait, event);
}
CL_API_ENTRY cl_int CL_API_CALL clEnqueueCopyBuffer(cl_command_queue q, cl_mem from, cl_mem to,
                                                    size_t from_at, size_t to_at, size_t bytes,
                                                    cl_uint n, const cl_event *wait,
                                                    cl_event *event) {
  GONE;
  return REAL(clEnqueueCopyBuffer)(q, from, to, from_at, to_at, bytes, n, wait, event);
}
CL_API_ENTRY cl_int CL_API_CALL clEnqueueFillBuffer(cl_command_queue q, cl_mem m,
                                                    const void *pattern, size_t pattern_bytes,
                                                    size_t offset, size_t bytes, cl_uint n,
                                                    const cl_event *wait, cl_event *event) {
  size_t limit = 0;
  GONE;
  if (fault("oom_late", &limit) && held > limit) return CL_OUT_OF_RESOURCES;
  return REAL(clEnqueueFillBuffer)(q, m, pattern, pattern_bytes, offset, bytes, n, wait, event);
}
CL_API_ENTRY cl_int CL_API_CALL clEnqueueMarkerWithWaitList(cl_command_queue q, cl_uint n,
                                                            const cl_event *wait, cl_event *event) {
  GONE;
  return REAL(clEnqueueMarkerWithWaitList)(q, n, wait, event);
}
CL_API_ENTRY cl_int CL_API_CALL clEnqueueBarrierWithWaitList(cl_command_queue q, cl_uint n,
                                                             const cl_event *wait,
                                                             cl_event *event) {
  GONE;
  return REAL(clEnqueueBarrierWithWaitList)(q, n, wait, event);
}
CL_API_ENTRY cl_int CL_API_CALL clFinish(cl_command_queue q) {
  GONE_LATE;
  return REAL(clFinish)(q);
}
CL_API_ENTRY cl_int CL_API_CALL clFlush(cl_command_queue q) { return REAL(clFlush)(q); }

/* ---- events ---- */

CL_API_ENTRY cl_int CL_API_CALL clWaitForEvents(cl_uint n, const cl_event *events) {
  GONE_LATE;
  return REAL(clWaitForEvents)(n, events);
}
CL_API_ENTRY cl_int CL_API_CALL clGetEventInfo(cl_event e, cl_event_info what, size_t size,
                                               void *value, size_t *bytes) {
  if (what == CL_EVENT_COMMAND_EXECUTION_STATUS && lost("lost_late"))
    ANSWER_NUMBER(cl_int, CL_OUT_OF_RESOURCES);
  return REAL(clGetEventInfo)(e, what, size, value, bytes);
}
CL_API_ENTRY cl_int CL_API_CALL clGetEventProfilingInfo(cl_event e, cl_profiling_info what,
                                                        size_t size, void *value, size_t *bytes) {
  return REAL(clGetEventProfilingInfo)(e, what, size, value, bytes);
}
CL_API_ENTRY cl_int CL_API_CALL clReleaseEvent(cl_event e) { return REAL(clReleaseEvent)(e); }
CL_API_ENTRY cl_int CL_API_CALL clRetainEvent(cl_event e) { return REAL(clRetainEvent)(e); }
