/* A stand-in for libvulkan: hands every call to the real one, but for the faults that
 * BK_FAKE_VULKAN names, separated by commas:
 *   old_loader, no_driver, no_device       what a probe meets
 *   old, no_timeline                       every device is so
 *   driver                                 the drivers have another version
 *   create=N                               the Nth of the calls that make an object fails, once
 *                                          (N counts from when the fault is on)
 *   oom=N                                  the Nth allocation of memory fails, once
 *   lost=N                                 from the Nth submission on the device is lost;
 *                                          lost_late: submissions go on, waiting fails
 *   submit_oom                             no memory to submit
 *   no_build                               no pipeline can be made
 *   foreign                                the data of a pipeline cache is another device's
 *   refused                                no pipeline cache is made from data
 * The data of a pipeline cache grows by CACHE_GROWTH bytes a pipeline. The tests count:
 * bk_fake_vulkan_alive, objects that were made and not destroyed; bk_fake_vulkan_given, bytes
 * that the last pipeline cache was made from. */
#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include "tests/gpu/fake_fault.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_HEADER 32
#define CACHE_GROWTH 100

extern int bk_fake_vulkan_alive, bk_fake_vulkan_given;
int bk_fake_vulkan_alive, bk_fake_vulkan_given;
static size_t cache_bytes, cache_pipelines; /* of the data as it was given; pipelines made since */

/* ---- faults ---- */

static bool fault(const char *name, size_t *value) {
  return fault_is_on("BK_FAKE_VULKAN", name, value);
}

typedef struct counter {
  size_t calls, wanted;
} counter;

/* How many calls there were since the fault is on with this number, this one included; 0: it is
 * off. */
static size_t turn(const char *name, counter *c) {
  const size_t before = c->wanted;
  if (!fault(name, &c->wanted)) c->wanted = 0;
  if (c->wanted != before) c->calls = 0;
  return c->wanted ? ++c->calls : 0;
}

static bool spoilt(const char *name, counter *c) { return turn(name, c) && c->calls == c->wanted; }

static bool cannot_create(void) {
  static counter c;
  return spoilt("create", &c);
}

/* ---- what is intercepted: real_name is the real function, fake_name stands for it ---- */

#define OBJECTS(X)       \
  X(Buffer)              \
  X(CommandPool)         \
  X(QueryPool)           \
  X(Semaphore)           \
  X(DescriptorSetLayout) \
  X(DescriptorPool)      \
  X(PipelineLayout)      \
  X(ShaderModule)

#define MAKES(type)                                                                                \
  static PFN_vkCreate##type real_Create##type;                                                     \
  static VKAPI_ATTR VkResult VKAPI_CALL fake_Create##type(                                         \
      VkDevice d, const Vk##type##CreateInfo *i, const VkAllocationCallbacks *a, Vk##type *made) { \
    if (cannot_create()) return VK_ERROR_OUT_OF_HOST_MEMORY;                                       \
    VkResult result = real_Create##type(d, i, a, made);                                            \
    bk_fake_vulkan_alive += result == VK_SUCCESS;                                                  \
    return result;                                                                                 \
  }
#define DROPS(function, type)                                                         \
  static PFN_vk##function real_##function;                                            \
  static VKAPI_ATTR void VKAPI_CALL fake_##function(VkDevice d, Vk##type gone,        \
                                                    const VkAllocationCallbacks *a) { \
    bk_fake_vulkan_alive -= gone != VK_NULL_HANDLE;                                   \
    real_##function(d, gone, a);                                                      \
  }
#define OBJECT(type) MAKES(type) DROPS(Destroy##type, type)
OBJECTS(OBJECT)
DROPS(DestroyPipeline, Pipeline)
DROPS(DestroyPipelineCache, PipelineCache)
DROPS(FreeMemory, DeviceMemory)

#define REAL(name) static PFN_vk##name real_##name

/* ---- instances and devices ---- */

REAL(EnumerateInstanceVersion);
static VKAPI_ATTR VkResult VKAPI_CALL fake_EnumerateInstanceVersion(uint32_t *version) {
  VkResult result = real_EnumerateInstanceVersion(version);
  if (fault("old_loader", NULL)) *version = VK_API_VERSION_1_1;
  return result;
}

REAL(CreateInstance);
static VKAPI_ATTR VkResult VKAPI_CALL fake_CreateInstance(const VkInstanceCreateInfo *i,
                                                          const VkAllocationCallbacks *a,
                                                          VkInstance *made) {
  VkResult result =
      fault("no_driver", NULL) ? VK_ERROR_INCOMPATIBLE_DRIVER : real_CreateInstance(i, a, made);
  bk_fake_vulkan_alive += result == VK_SUCCESS;
  return result;
}

REAL(DestroyInstance);
static VKAPI_ATTR void VKAPI_CALL fake_DestroyInstance(VkInstance gone,
                                                       const VkAllocationCallbacks *a) {
  bk_fake_vulkan_alive -= gone != VK_NULL_HANDLE;
  real_DestroyInstance(gone, a);
}

REAL(EnumeratePhysicalDevices);
static VKAPI_ATTR VkResult VKAPI_CALL fake_EnumeratePhysicalDevices(VkInstance in, uint32_t *n,
                                                                    VkPhysicalDevice *list) {
  if (!fault("no_device", NULL)) return real_EnumeratePhysicalDevices(in, n, list);
  *n = 0;
  return VK_SUCCESS;
}

REAL(GetPhysicalDeviceProperties);
static VKAPI_ATTR void VKAPI_CALL
fake_GetPhysicalDeviceProperties(VkPhysicalDevice p, VkPhysicalDeviceProperties *properties) {
  real_GetPhysicalDeviceProperties(p, properties);
  if (fault("old", NULL)) properties->apiVersion = VK_API_VERSION_1_1;
  if (fault("driver", NULL)) properties->driverVersion ^= 1;
}

REAL(GetPhysicalDeviceFeatures2);
static VKAPI_ATTR void VKAPI_CALL
fake_GetPhysicalDeviceFeatures2(VkPhysicalDevice p, VkPhysicalDeviceFeatures2 *features) {
  real_GetPhysicalDeviceFeatures2(p, features);
  for (VkBaseOutStructure *at = features->pNext; at; at = at->pNext)
    if (at->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES &&
        fault("no_timeline", NULL))
      ((VkPhysicalDeviceVulkan12Features *)at)->timelineSemaphore = VK_FALSE;
}

REAL(CreateDevice);
static VKAPI_ATTR VkResult VKAPI_CALL fake_CreateDevice(VkPhysicalDevice p,
                                                        const VkDeviceCreateInfo *i,
                                                        const VkAllocationCallbacks *a,
                                                        VkDevice *made) {
  if (cannot_create()) return VK_ERROR_OUT_OF_HOST_MEMORY;
  VkResult result = real_CreateDevice(p, i, a, made);
  bk_fake_vulkan_alive += result == VK_SUCCESS;
  return result;
}

REAL(DestroyDevice);
static VKAPI_ATTR void VKAPI_CALL fake_DestroyDevice(VkDevice gone,
                                                     const VkAllocationCallbacks *a) {
  bk_fake_vulkan_alive -= gone != VK_NULL_HANDLE;
  real_DestroyDevice(gone, a);
}

/* ---- memory, commands, descriptors ---- */

REAL(AllocateMemory);
static VKAPI_ATTR VkResult VKAPI_CALL fake_AllocateMemory(VkDevice d, const VkMemoryAllocateInfo *i,
                                                          const VkAllocationCallbacks *a,
                                                          VkDeviceMemory *made) {
  static counter c;
  if (spoilt("oom", &c)) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  if (cannot_create()) return VK_ERROR_OUT_OF_HOST_MEMORY;
  VkResult result = real_AllocateMemory(d, i, a, made);
  bk_fake_vulkan_alive += result == VK_SUCCESS;
  return result;
}

REAL(AllocateCommandBuffers);
static VKAPI_ATTR VkResult VKAPI_CALL fake_AllocateCommandBuffers(
    VkDevice d, const VkCommandBufferAllocateInfo *i, VkCommandBuffer *made) {
  return cannot_create() ? VK_ERROR_OUT_OF_HOST_MEMORY : real_AllocateCommandBuffers(d, i, made);
}

REAL(AllocateDescriptorSets);
static VKAPI_ATTR VkResult VKAPI_CALL fake_AllocateDescriptorSets(
    VkDevice d, const VkDescriptorSetAllocateInfo *i, VkDescriptorSet *made) {
  return cannot_create() ? VK_ERROR_OUT_OF_POOL_MEMORY : real_AllocateDescriptorSets(d, i, made);
}

/* ---- a lost device: what was submitted before is done all the same ---- */

REAL(QueueSubmit);
static VKAPI_ATTR VkResult VKAPI_CALL fake_QueueSubmit(VkQueue q, uint32_t n,
                                                       const VkSubmitInfo *submits, VkFence fence) {
  static counter c;
  if (turn("lost", &c) >= c.wanted && c.wanted) return VK_ERROR_DEVICE_LOST;
  if (fault("submit_oom", NULL)) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  return real_QueueSubmit(q, n, submits, fence);
}

REAL(WaitSemaphores);
static VKAPI_ATTR VkResult VKAPI_CALL fake_WaitSemaphores(VkDevice d, const VkSemaphoreWaitInfo *i,
                                                          uint64_t timeout) {
  VkResult result = real_WaitSemaphores(d, i, timeout);
  return fault("lost_late", NULL) ? VK_ERROR_DEVICE_LOST : result;
}

REAL(GetSemaphoreCounterValue);
static VKAPI_ATTR VkResult VKAPI_CALL fake_GetSemaphoreCounterValue(VkDevice d, VkSemaphore s,
                                                                    uint64_t *value) {
  return fault("lost_late", NULL) ? VK_ERROR_DEVICE_LOST
                                  : real_GetSemaphoreCounterValue(d, s, value);
}

/* ---- pipelines ---- */

REAL(CreateComputePipelines);
static VKAPI_ATTR VkResult VKAPI_CALL fake_CreateComputePipelines(
    VkDevice d, VkPipelineCache c, uint32_t n, const VkComputePipelineCreateInfo *i,
    const VkAllocationCallbacks *a, VkPipeline *made) {
  if (fault("no_build", NULL)) return VK_ERROR_UNKNOWN;
  if (cannot_create()) return VK_ERROR_OUT_OF_HOST_MEMORY;
  VkResult result = real_CreateComputePipelines(d, c, n, i, a, made);
  bk_fake_vulkan_alive += result == VK_SUCCESS;
  cache_pipelines += result == VK_SUCCESS;
  return result;
}

REAL(CreatePipelineCache);
static VKAPI_ATTR VkResult VKAPI_CALL fake_CreatePipelineCache(VkDevice d,
                                                               const VkPipelineCacheCreateInfo *i,
                                                               const VkAllocationCallbacks *a,
                                                               VkPipelineCache *made) {
  VkPipelineCacheCreateInfo empty = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
  if (cannot_create()) return VK_ERROR_OUT_OF_HOST_MEMORY;
  if (i->initialDataSize && fault("refused", NULL)) return VK_ERROR_INITIALIZATION_FAILED;
  VkResult result = real_CreatePipelineCache(d, &empty, a, made);
  bk_fake_vulkan_alive += result == VK_SUCCESS;
  bk_fake_vulkan_given = (int)i->initialDataSize;
  cache_bytes = i->initialDataSize;
  cache_pipelines = 0;
  return result;
}

/* The real header, then bytes without a meaning. A pipeline that came from disk is not counted
 * again. */
REAL(GetPipelineCacheData);
static VKAPI_ATTR VkResult VKAPI_CALL fake_GetPipelineCacheData(VkDevice d, VkPipelineCache c,
                                                                size_t *bytes, void *data) {
  const size_t made = CACHE_HEADER + CACHE_GROWTH * cache_pipelines,
               all = made > cache_bytes ? made : cache_bytes;
  size_t real_bytes = CACHE_HEADER;
  if (data) {
    if (*bytes < all) return VK_INCOMPLETE;
    memset(data, 'p', all);
    VkResult result = real_GetPipelineCacheData(d, c, &real_bytes, data);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE) return result;
    if (fault("foreign", NULL)) ((uint32_t *)data)[3] ^= 1;
  }
  *bytes = all;
  return VK_SUCCESS;
}

/* ---- looking up ---- */

static PFN_vkVoidFunction stand_in(const char *name, PFN_vkVoidFunction real);

REAL(GetDeviceProcAddr);
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL fake_GetDeviceProcAddr(VkDevice d,
                                                                       const char *name) {
  return stand_in(name, real_GetDeviceProcAddr(d, name));
}

static PFN_vkVoidFunction stand_in(const char *name, PFN_vkVoidFunction real) {
#define STAND_IN(function)                         \
  if (real && strcmp(name, "vk" #function) == 0) { \
    real_##function = (PFN_vk##function)real;      \
    return (PFN_vkVoidFunction)fake_##function;    \
  }
#define STAND_IN_OBJECT(type) \
  STAND_IN(Create##type)      \
  STAND_IN(Destroy##type)
  OBJECTS(STAND_IN_OBJECT)
  STAND_IN(DestroyPipeline)
  STAND_IN(DestroyPipelineCache)
  STAND_IN(FreeMemory)
  STAND_IN(EnumerateInstanceVersion)
  STAND_IN(CreateInstance)
  STAND_IN(DestroyInstance)
  STAND_IN(EnumeratePhysicalDevices)
  STAND_IN(GetPhysicalDeviceProperties)
  STAND_IN(GetPhysicalDeviceFeatures2)
  STAND_IN(CreateDevice)
  STAND_IN(DestroyDevice)
  STAND_IN(AllocateMemory)
  STAND_IN(AllocateCommandBuffers)
  STAND_IN(AllocateDescriptorSets)
  STAND_IN(QueueSubmit)
  STAND_IN(WaitSemaphores)
  STAND_IN(GetSemaphoreCounterValue)
  STAND_IN(CreateComputePipelines)
  STAND_IN(CreatePipelineCache)
  STAND_IN(GetPipelineCacheData)
  STAND_IN(GetDeviceProcAddr)
  return real;
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance in, const char *name);
VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance in, const char *name) {
  static PFN_vkGetInstanceProcAddr real;
  if (!real) {
    void *library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
    memcpy(&real, &symbol, sizeof symbol); /* ISO C has no conversion to a function pointer */
  }
  return real ? stand_in(name, real(in, name)) : NULL;
}
