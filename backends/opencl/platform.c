/* What the drivers offer: the devices of all platforms, in the order in which the loader lists
 * them, each good enough or with the reason why it is not. opencl:N counts those that are good
 * enough. */
#include <stdio.h>
#include <string.h>

#include "backends/opencl/opencl.h"

#define MAX_PLATFORMS 16
/* what the kernels use at most, rounded up: OpenCL promises 32 KiB */
#define MIN_LOCAL_BYTES ((cl_ulong)16 << 10)

void bk_cl_device_text(const bk_cl_api *cl, cl_device_id id, cl_device_info what, char *text,
                       size_t size) {
  char whole[1024] = "";
  if (cl->GetDeviceInfo(id, what, sizeof whole - 1, whole, NULL) != CL_SUCCESS) whole[0] = '\0';
  snprintf(text, size, "%.*s", (int)size - 1, whole);
}

cl_ulong bk_cl_device_number(const bk_cl_api *cl, cl_device_id id, cl_device_info what,
                             size_t size) {
  union {
    cl_ulong l;
    cl_uint i;
    size_t s;
  } v = {0};
  if (cl->GetDeviceInfo(id, what, size, &v, NULL) != CL_SUCCESS) return 0;
  return size == sizeof(cl_uint) ? v.i : v.l;
}

cl_ulong bk_cl_group_limit(const bk_cl_api *cl, cl_device_id id) {
  size_t sizes[8] = {0};
  cl_ulong limit = bk_cl_device_number(cl, id, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof(size_t));
  if (cl->GetDeviceInfo(id, CL_DEVICE_MAX_WORK_ITEM_SIZES, sizeof sizes, sizes, NULL) ==
          CL_SUCCESS &&
      sizes[0] && sizes[0] < limit)
    limit = sizes[0];
  return limit;
}

int bk_cl_max_group(const bk_cl_api *cl, cl_device_id id) {
  cl_ulong limit = bk_cl_group_limit(cl, id);
  int p = 64;
  while (p < 1024 && (cl_ulong)p * 2 <= limit) p *= 2;
  return p;
}

/* ---- what is told of a device and not asked for ---- */

static void note(char *text, size_t size, const char *format, unsigned long long value) {
  size_t used = strlen(text);
  if (used && used + 1 < size) used += (size_t)snprintf(text + used, size - used, ", ");
  if (used + 1 < size) snprintf(text + used, size - used, format, value);
}

static const char *kind_of(cl_ulong type) {
  return type & CL_DEVICE_TYPE_CPU           ? "cpu"
         : type & CL_DEVICE_TYPE_GPU         ? "gpu"
         : type & CL_DEVICE_TYPE_ACCELERATOR ? "accelerator"
                                             : "of another kind";
}

/* OpenCL 1.2 has no question for it; vendors have their own, in extensions that others answer
 * with an error. */
static cl_ulong subgroup_size(const bk_cl_api *cl, cl_device_id id) {
  static const cl_device_info of_vendors[] = {0x4003 /* CL_DEVICE_WARP_SIZE_NV */,
                                              0x4043 /* CL_DEVICE_WAVEFRONT_WIDTH_AMD */};
  size_t intel[8] = {0};
  for (size_t i = 0; i < BK_COUNT(of_vendors); i++) {
    cl_ulong found = bk_cl_device_number(cl, id, of_vendors[i], sizeof(cl_uint));
    if (found) return found;
  }
  return cl->GetDeviceInfo(id, 0x4108 /* CL_DEVICE_SUB_GROUP_SIZES_INTEL */, sizeof intel, intel,
                           NULL) == CL_SUCCESS
             ? intel[0]
             : 0;
}

void bk_cl_features(const bk_cl_api *cl, cl_device_id id, char *text, size_t size) {
  char extensions[8192] = "";
  cl_ulong subgroups = subgroup_size(cl, id);
  if (cl->GetDeviceInfo(id, CL_DEVICE_EXTENSIONS, sizeof extensions - 1, extensions, NULL) !=
      CL_SUCCESS)
    extensions[0] = '\0';
  snprintf(text, size, "%s",
           kind_of(bk_cl_device_number(cl, id, CL_DEVICE_TYPE, sizeof(cl_ulong))));
  note(text, size, "%llu units",
       bk_cl_device_number(cl, id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(cl_uint)));
  note(text, size, "%llu MHz",
       bk_cl_device_number(cl, id, CL_DEVICE_MAX_CLOCK_FREQUENCY, sizeof(cl_uint)));
  if (subgroups) note(text, size, "subgroups of %llu", subgroups);
  if (strstr(extensions, "cl_khr_fp16")) note(text, size, "fp16", 0);
  if (strstr(extensions, "cl_khr_fp64")) note(text, size, "fp64", 0);
  if (bk_cl_device_number(cl, id, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof(cl_bool)))
    note(text, size, "memory of the host", 0);
}

/* Why a device cannot be used, or NULL. */
static const char *refuse(const bk_cl_api *cl, cl_device_id id) {
  char version[64];
  int major = 0, minor = 0;
  bk_cl_device_text(cl, id, CL_DEVICE_VERSION, version, sizeof version);
  if (sscanf(version, "OpenCL %d.%d", &major, &minor) != 2 || 10 * major + minor < 12)
    return "it has less than OpenCL 1.2";
  if (!bk_cl_device_number(cl, id, CL_DEVICE_AVAILABLE, sizeof(cl_bool)))
    return "its driver says that it is not available";
  if (!bk_cl_device_number(cl, id, CL_DEVICE_COMPILER_AVAILABLE, sizeof(cl_bool)))
    return "its driver has no compiler";
  if (!bk_cl_device_number(cl, id, CL_DEVICE_ENDIAN_LITTLE, sizeof(cl_bool)))
    return "it is big-endian";
  if (bk_cl_group_limit(cl, id) < 64) return "its work groups have fewer than 64 items";
  if (bk_cl_device_number(cl, id, CL_DEVICE_LOCAL_MEM_SIZE, sizeof(cl_ulong)) < MIN_LOCAL_BYTES)
    return "it has less than 16 KiB of local memory";
  return NULL;
}

static void note_refused(char *reason, size_t size, const char *name, const char *why) {
  size_t used = strlen(reason);
  if (used + 1 < size)
    snprintf(reason + used, size - used, "%s%s: %s", used ? "\n" : "", name, why);
}

/* Adds the devices of one platform. */
static int take_devices(const bk_cl_api *cl, cl_platform_id platform, bk_cl_found *list, int count,
                        char *refused, size_t size) {
  cl_device_id ids[BK_CL_MAX_DEVICES];
  cl_uint n = 0;
  if (cl->GetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, BK_CL_MAX_DEVICES, ids, &n) != CL_SUCCESS)
    return count;
  for (cl_uint i = 0; i < n && i < BK_CL_MAX_DEVICES; i++) {
    const char *why = refuse(cl, ids[i]);
    char name[128];
    bk_cl_device_text(cl, ids[i], CL_DEVICE_NAME, name, sizeof name);
    if (why) note_refused(refused, size, name, why);
    else if (count < BK_CL_MAX_DEVICES) list[count++] = (bk_cl_found){platform, ids[i]};
  }
  return count;
}

int bk_cl_find(const bk_cl_api *cl, bk_cl_found *list, char *reason, size_t size) {
  cl_platform_id platforms[MAX_PLATFORMS];
  cl_uint n = 0;
  int count = 0;
  reason[0] = '\0';
  if (cl->GetPlatformIDs(MAX_PLATFORMS, platforms, &n) != CL_SUCCESS) n = 0;
  for (cl_uint p = 0; p < n && p < MAX_PLATFORMS; p++)
    count = take_devices(cl, platforms[p], list, count, reason, size);
  if (!reason[0] && !count)
    snprintf(reason, size,
             n ? "no OpenCL platform has a device"
               : "no OpenCL platform is installed (Debian: pocl-opencl-icd, or your GPU's driver)");
  return count;
}
