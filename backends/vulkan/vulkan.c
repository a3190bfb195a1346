/* The backend and its devices. vulkan:N counts the physical devices that are good enough; the
 * others are not counted. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "backends/vulkan/vulkan.h"

#define MAX_DEVICES 16
#define REASON_BYTES 1024

extern const bk_backend bk_backend_vulkan;

/* ---- errors ---- */

const char *bk_vk_result_name(VkResult result) {
  switch (result) {
#define NAME(name) \
  case VK_##name: return "VK_" #name;
    NAME(SUCCESS)
    NAME(NOT_READY)
    NAME(TIMEOUT)
    NAME(INCOMPLETE)
    NAME(ERROR_OUT_OF_HOST_MEMORY)
    NAME(ERROR_OUT_OF_DEVICE_MEMORY)
    NAME(ERROR_INITIALIZATION_FAILED)
    NAME(ERROR_DEVICE_LOST)
    NAME(ERROR_MEMORY_MAP_FAILED)
    NAME(ERROR_LAYER_NOT_PRESENT)
    NAME(ERROR_EXTENSION_NOT_PRESENT)
    NAME(ERROR_FEATURE_NOT_PRESENT)
    NAME(ERROR_INCOMPATIBLE_DRIVER)
    NAME(ERROR_TOO_MANY_OBJECTS)
    NAME(ERROR_FRAGMENTED_POOL)
    NAME(ERROR_UNKNOWN)
    NAME(ERROR_OUT_OF_POOL_MEMORY)
    NAME(ERROR_FRAGMENTATION)
    NAME(ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS)
#undef NAME
    default: return "an error without a name";
  }
}

bk_status bk_vk_status(VkResult result) {
  switch (result) {
    case VK_SUCCESS: return BK_OK;
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
    case VK_ERROR_TOO_MANY_OBJECTS:
    case VK_ERROR_OUT_OF_POOL_MEMORY:
    case VK_ERROR_FRAGMENTED_POOL:
    case VK_ERROR_FRAGMENTATION: return BK_ERR_MEMORY;
    default: return BK_ERR_DEVICE;
  }
}

bk_status bk_vk_fail(bk_context *ctx, VkResult result, const char *what) {
  return bk_fail(ctx, bk_vk_status(result), "vulkan: %s: %s (%d)", what, bk_vk_result_name(result),
                 (int)result);
}

/* ---- physical devices ---- */

static void read_extensions(const bk_vk_instance *in, bk_context *ctx, bk_vk_traits *t) {
  uint32_t n = 0;
  if (in->EnumerateDeviceExtensionProperties(t->handle, NULL, &n, NULL) != VK_SUCCESS) return;
  VkExtensionProperties *list = bk_alloc_array(ctx, n, sizeof *list);
  VkResult result =
      list ? in->EnumerateDeviceExtensionProperties(t->handle, NULL, &n, list) : VK_INCOMPLETE;
  for (uint32_t i = 0; i < n && result == VK_SUCCESS; i++) {
    if (strcmp(list[i].extensionName, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME) == 0) t->budget = true;
    if (strcmp(list[i].extensionName, "VK_KHR_portability_subset") == 0) t->portability = true;
  }
  bk_free(ctx, list);
}

static size_t to_size(VkDeviceSize bytes) {
  return bytes > SIZE_MAX / 2 ? SIZE_MAX / 2 : (size_t)bytes;
}

static void read_properties(const bk_vk_instance *in, bk_vk_traits *t) {
  VkPhysicalDeviceDriverProperties driver = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
  VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES,
                                     .pNext = &driver};
  VkPhysicalDeviceSubgroupProperties subgroup = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES, .pNext = &id};
  VkPhysicalDeviceMaintenance3Properties limits = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES, .pNext = &subgroup};
  VkPhysicalDeviceProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                     .pNext = &limits};
#ifdef VK_API_VERSION_1_3
  VkPhysicalDeviceMaintenance4Properties sizes = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES};
  if (t->props.apiVersion >= VK_API_VERSION_1_3) driver.pNext = &sizes;
#endif
  in->GetPhysicalDeviceProperties2(t->handle, &all);
  t->max_alloc = to_size(limits.maxMemoryAllocationSize);
#ifdef VK_API_VERSION_1_3
  if (sizes.maxBufferSize && to_size(sizes.maxBufferSize) < t->max_alloc)
    t->max_alloc = to_size(sizes.maxBufferSize);
#endif
  t->max_alloc -= t->max_alloc % 256;
  t->subgroup = subgroup.subgroupSize;
  memcpy(t->driver_name, driver.driverName, sizeof t->driver_name);
  memcpy(t->driver_info, driver.driverInfo, sizeof t->driver_info);
  memcpy(t->device_uuid, id.deviceUUID, VK_UUID_SIZE);
  memcpy(t->driver_uuid, id.driverUUID, VK_UUID_SIZE);
}

static void read_features(const bk_vk_instance *in, bk_vk_traits *t) {
  VkPhysicalDeviceVulkan12Features v12 = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
  VkPhysicalDeviceVulkan11Features v11 = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES, .pNext = &v12};
  VkPhysicalDeviceFeatures2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                   .pNext = &v11};
  in->GetPhysicalDeviceFeatures2(t->handle, &all);
  t->addresses = v12.bufferDeviceAddress;
  t->halves = v11.storageBuffer16BitAccess;
  t->timeline = v12.timelineSemaphore;
  t->fp16 = v12.shaderFloat16;
  t->fp64 = all.features.shaderFloat64;
  t->int64 = all.features.shaderInt64;
}

/* Queues of a family without graphics, if there is one: they wait for no window. */
static bool read_queues(const bk_vk_instance *in, bk_vk_traits *t) {
  VkQueueFamilyProperties list[32];
  uint32_t n = BK_COUNT(list);
  bool found = false, apart = false;
  in->GetPhysicalDeviceQueueFamilyProperties(t->handle, &n, list);
  for (uint32_t i = 0; i < n; i++) {
    bool compute = (list[i].queueFlags & VK_QUEUE_COMPUTE_BIT) != 0,
         alone = !(list[i].queueFlags & VK_QUEUE_GRAPHICS_BIT);
    if (!compute || !list[i].queueCount || (found && (apart || !alone))) continue;
    t->family = i;
    t->queues = list[i].queueCount;
    t->timestamp_bits = list[i].timestampValidBits;
    found = true;
    apart = alone;
  }
  return found;
}

/* The largest heap of the device's own. */
static void read_memory(const bk_vk_instance *in, bk_vk_traits *t) {
  VkPhysicalDeviceMemoryProperties2 all = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
  in->GetPhysicalDeviceMemoryProperties2(t->handle, &all);
  t->memory = all.memoryProperties;
  for (uint32_t i = 0; i < t->memory.memoryHeapCount; i++) {
    const VkMemoryHeap *heap = &t->memory.memoryHeaps[i], *best = &t->memory.memoryHeaps[t->heap];
    bool own = heap->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT,
         best_own = best->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT;
    if ((own && !best_own) || (own == best_own && heap->size > best->size)) t->heap = i;
  }
}

static const char *fault_of(const bk_vk_traits *t, bool queue) {
  const VkPhysicalDeviceLimits *l = &t->props.limits;
  if (!queue) return "it has no compute queue";
  if (!t->timeline) return "it has no timeline semaphores";
  if (l->maxComputeWorkGroupInvocations < 64 || l->maxComputeWorkGroupSize[0] < 64)
    return "its work groups have fewer than 64 items";
  if (!(t->addresses && t->halves) && l->maxPerStageDescriptorStorageBuffers < BK_GPU_MAX_OPERANDS)
    return "its kernels can have too few buffers, and it has no buffer addresses (or no 16-bit "
           "storage with them)";
  return NULL;
}

static void read_traits(const bk_vk_instance *in, bk_context *ctx, VkPhysicalDevice handle,
                        bk_vk_traits *t) {
  *t = (bk_vk_traits){.handle = handle};
  in->GetPhysicalDeviceProperties(handle, &t->props);
  if (t->props.apiVersion < VK_API_VERSION_1_2) {
    snprintf(t->refused, sizeof t->refused, "it has Vulkan %u.%u, 1.2 is needed",
             VK_API_VERSION_MAJOR(t->props.apiVersion), VK_API_VERSION_MINOR(t->props.apiVersion));
    return;
  }
  read_extensions(in, ctx, t);
  read_properties(in, t);
  read_features(in, t);
  read_memory(in, t);
  const char *fault = fault_of(t, read_queues(in, t));
  if (fault) snprintf(t->refused, sizeof t->refused, "%s", fault);
}

/* Good devices; *out is the one of number `index`, if there is. reason: a line for each that was
 * refused, or that there is none. */
static int find(const bk_vk_instance *in, bk_context *ctx, int index, bk_vk_traits *out,
                char *reason, size_t size) {
  VkPhysicalDevice list[MAX_DEVICES];
  uint32_t n = MAX_DEVICES;
  int count = 0;
  VkResult result = in->EnumeratePhysicalDevices(in->handle, &n, list);
  size_t used = 0;
  if (result != VK_SUCCESS && result != VK_INCOMPLETE) n = 0;
  snprintf(reason, size, "%s",
           n ? ""
             : "the Vulkan drivers that are installed find no device (Debian: mesa-vulkan-drivers "
               "has one for every processor)");
  for (uint32_t i = 0; i < n; i++) {
    bk_vk_traits t;
    read_traits(in, ctx, list[i], &t);
    if (t.refused[0])
      used += used < size ? (size_t)snprintf(reason + used, size - used, "%s%s: %s",
                                             used ? "\n" : "", t.props.deviceName, t.refused)
                          : 0;
    else if (count++ == index) *out = t;
  }
  return count;
}

static int count_devices(bk_context *ctx, char *reason, size_t size) {
  bk_vk_instance in;
  bk_vk_traits unused;
  if (bk_vk_instance_open(&in, ctx, reason, size) != BK_OK) return 0;
  int n = find(&in, ctx, -1, &unused, reason, size);
  bk_vk_instance_close(&in);
  return n;
}

static bk_status vulkan_probe(bk_context *ctx, char *reason, size_t size) {
  return count_devices(ctx, reason, size) ? BK_OK : BK_ERR_ABSENT;
}

static int vulkan_device_count(bk_context *ctx) {
  char reason[REASON_BYTES];
  return count_devices(ctx, reason, sizeof reason);
}

/* An instance, to be closed by the caller, and the device of that number. */
static bk_status locate(bk_context *ctx, int index, bk_vk_instance *in, bk_vk_traits *t) {
  char reason[REASON_BYTES];
  bk_status status = bk_vk_instance_open(in, ctx, reason, sizeof reason);
  int n = status == BK_OK ? find(in, ctx, index, t, reason, sizeof reason) : 0;
  if (index < n) return BK_OK;
  bk_vk_instance_close(in);
  return bk_fail(ctx, BK_ERR_ABSENT, "vulkan:%d is not here: %s", index,
                 n ? "there are fewer devices" : reason);
}

/* ---- what the environment forces ---- */

static bk_status choose_bindings(bk_context *ctx, const bk_vk_traits *t, bool *addresses,
                                 bool *halves) {
  const char *bindings = bk_context_environment(ctx, "BIRKHOFF_VULKAN_BINDINGS"),
             *bits = bk_context_environment(ctx, "BIRKHOFF_VULKAN_16BIT");
  *halves = t->halves && !(bits && strcmp(bits, "no") == 0);
  /* there are no kernels with addresses for devices without 16-bit storage */
  *addresses = t->addresses && *halves;
  if (bits && bits[0] && strcmp(bits, "no") != 0 && strcmp(bits, "yes") != 0)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "BIRKHOFF_VULKAN_16BIT is \"%s\", not yes or no", bits);
  if (!bindings || !bindings[0]) bindings = *addresses ? "address" : "split";
  if (strcmp(bindings, "split") != 0 && strcmp(bindings, "address") != 0)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "BIRKHOFF_VULKAN_BINDINGS is \"%s\", not split or address",
                   bindings);
  if (strcmp(bindings, "address") == 0 && !*addresses)
    return bk_fail(ctx, BK_ERR_UNSUPPORTED,
                   "BIRKHOFF_VULKAN_BINDINGS=address: %s lacks buffer addresses or 16-bit storage",
                   t->props.deviceName);
  *addresses = strcmp(bindings, "address") == 0;
  if (!*addresses && t->props.limits.maxPerStageDescriptorStorageBuffers < BK_GPU_MAX_OPERANDS)
    return bk_fail(ctx, BK_ERR_UNSUPPORTED,
                   "vulkan: operands by bindings: %s allows %u buffers to a kernel, %d are needed",
                   t->props.deviceName, t->props.limits.maxPerStageDescriptorStorageBuffers,
                   BK_GPU_MAX_OPERANDS);
  return BK_OK;
}

static bool is_cpu(const bk_vk_traits *t) {
  return t->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

static uint32_t group_limit(const bk_vk_traits *t) {
  const VkPhysicalDeviceLimits *l = &t->props.limits;
  return l->maxComputeWorkGroupSize[0] < l->maxComputeWorkGroupInvocations
             ? l->maxComputeWorkGroupSize[0]
             : l->maxComputeWorkGroupInvocations;
}

/* Lavapipe runs eight items in the lanes of a vector, and ends all loops of an item after 65535
 * turns in all (its guard against endless ones): many items with short loops, as on a GPU, are
 * right for it, not one item with long loops. Barriers cost: groups are small. */
static bk_status choose_group(bk_context *ctx, const bk_vk_traits *t, int *group, int *most_group) {
  const char *text = bk_context_environment(ctx, "BIRKHOFF_VULKAN_MAX_GROUP");
  int64_t most = group_limit(t), wanted = 0;
  if (text && text[0] && (!bk_parse_int64(text, &wanted) || wanted < 64))
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "BIRKHOFF_VULKAN_MAX_GROUP is \"%s\", not a number from 64 on", text);
  if (wanted && wanted < most) most = wanted;
  *most_group = 64;
  while (*most_group < 1024 && *most_group * 2 <= most) *most_group *= 2;
  *group = is_cpu(t) && !wanted ? 64 : *most_group;
  return BK_OK;
}

/* A binding begins at an aligned offset, so that a tensor may find it up to an alignment away. */
static size_t binding_range(const bk_vk_traits *t, bool addresses) {
  const VkPhysicalDeviceLimits *l = &t->props.limits;
  return addresses ? 0 : l->maxStorageBufferRange - (size_t)l->minStorageBufferOffsetAlignment;
}

static const char *kind_of(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return "gpu of its own";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return "gpu beside the processor";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return "virtual gpu";
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return "cpu";
    default: return "of another kind";
  }
}

static void fill_features(const bk_vk_traits *t, bool addresses, char *text, size_t size) {
  snprintf(text, size, "%s, subgroups of %u%s%s%s%s, operands by %s", kind_of(t->props.deviceType),
           t->subgroup, t->fp16 ? ", fp16" : "", t->fp64 ? ", fp64" : "", t->int64 ? ", int64" : "",
           t->halves ? ", 16-bit storage" : "", addresses ? "address" : "bindings");
}

static void fill_props(const bk_vk_traits *t, bool addresses, bool halves, bk_device_props *props) {
  const uint32_t group = group_limit(t);
  *props = (bk_device_props){.storage_dtypes = halves ? BK_GPU_FLOATS : BK_GPU_F32,
                             .offset_alignment = 256,
                             .captures = true};
  snprintf(props->name, sizeof props->name, "%.*s", (int)sizeof props->name - 1,
           t->props.deviceName);
  snprintf(props->driver, sizeof props->driver, "Vulkan %u.%u, %.50s %.50s",
           VK_API_VERSION_MAJOR(t->props.apiVersion), VK_API_VERSION_MINOR(t->props.apiVersion),
           t->driver_name, t->driver_info);
  props->max_alloc = t->max_alloc;
  props->max_binding_range = binding_range(t, addresses);
  props->max_group = group < INT_MAX ? (int)group : INT_MAX;
  props->local_bytes = t->props.limits.maxComputeSharedMemorySize;
  fill_features(t, addresses, props->features, sizeof props->features);
}

static bk_status vulkan_describe(bk_context *ctx, int index, bk_device_props *props,
                                 size_t *memory_bytes) {
  bk_vk_instance in;
  bk_vk_traits t;
  bool addresses, halves;
  BK_TRY(locate(ctx, index, &in, &t));
  bk_vk_instance_close(&in);
  BK_TRY(choose_bindings(ctx, &t, &addresses, &halves));
  fill_props(&t, addresses, halves, props);
  *memory_bytes = to_size(t.memory.memoryHeaps[t.heap].size);
  return BK_OK;
}

/* ---- the device ---- */

static void device_close(bk_device *device) {
  bk_vk_device *d = bk_vk_of(device);
  if (d->complete) {
    (void)d->vk.DeviceWaitIdle(d->handle);
    bk_vk_pipelines_fini(d); /* keeps the cache */
    bk_vk_memory_fini(d);
  }
  bk_gpu_device_fini(device);
  while (d->timelines) {
    bk_vk_timeline *t = d->timelines;
    d->timelines = t->next;
    d->vk.DestroySemaphore(d->handle, t->semaphore, NULL);
    bk_free(device->ctx, t);
  }
  if (d->handle && d->vk.DestroyDevice) d->vk.DestroyDevice(d->handle, NULL);
  bk_vk_instance_close(&d->in);
  bk_free(device->ctx, d);
}

static const bk_device_ops vulkan_device_ops = {
    .close = device_close,
    .memory_info = bk_vk_memory_info,
    .buffer_alloc = bk_vk_buffer_alloc,
    .buffer_free = bk_vk_buffer_free,
    .host_alloc = bk_host_buffer_alloc, /* transfers go through the stream's mapped memory */
    .host_free = bk_host_buffer_free,
    .stream_create = bk_vk_stream_create,
    .event_create = bk_vk_event_create,
};

static const bk_gpu_device_ops vulkan_gpu_ops = {bk_vk_build, bk_vk_pipeline_free, bk_vk_dispatch};

/* Two queues where the family has them, the second for urgent streams. Only what is used is
 * switched on. */
static bk_status make_device(bk_vk_device *d) {
  const bk_vk_traits *t = &d->traits;
  const float priorities[] = {0.5f, 1.0f};
  const char *extensions[] = {"VK_KHR_portability_subset"};
  VkDeviceQueueCreateInfo queues = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                    .queueFamilyIndex = t->family,
                                    .queueCount = t->queues > 1 ? 2 : 1,
                                    .pQueuePriorities = priorities};
  VkPhysicalDeviceVulkan12Features v12 = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
      .timelineSemaphore = VK_TRUE,
      .bufferDeviceAddress = d->addresses};
  VkPhysicalDeviceVulkan11Features v11 = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
      .pNext = &v12,
      .storageBuffer16BitAccess = d->halves};
  VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                             .pNext = &v11,
                             .queueCreateInfoCount = 1,
                             .pQueueCreateInfos = &queues,
                             .enabledExtensionCount = t->portability ? 1 : 0,
                             .ppEnabledExtensionNames = extensions};
  VkResult result = d->in.CreateDevice(t->handle, &info, NULL, &d->handle);
  if (result != VK_SUCCESS) return bk_vk_fail(d->gpu.base.ctx, result, "opening a device");
  d->complete = bk_vk_device_functions(&d->in, d->handle, &d->vk);
  if (!d->complete)
    return bk_fail(d->gpu.base.ctx, BK_ERR_DEVICE,
                   "vulkan: the driver lacks functions of Vulkan 1.2");
  d->vk.GetDeviceQueue(d->handle, t->family, 0, &d->queue[0]);
  d->vk.GetDeviceQueue(d->handle, t->family, queues.queueCount - 1, &d->queue[1]);
  return BK_OK;
}

static bk_status device_fill(bk_vk_device *d, bk_context *ctx, int index,
                             const bk_device_options *options) {
  bk_device_init(&d->gpu.base, ctx, &bk_backend_vulkan, index, options, &vulkan_device_ops);
  BK_TRY(locate(ctx, index, &d->in, &d->traits));
  const bk_vk_traits *t = &d->traits;
  BK_TRY(choose_bindings(ctx, t, &d->addresses, &d->halves));
  BK_TRY(choose_group(ctx, t, &d->gpu.max_group, &d->most_group));
  fill_props(t, d->addresses, d->halves, &d->gpu.base.props);
  d->gpu.gpu = &vulkan_gpu_ops;
  d->gpu.local_bytes = t->props.limits.maxComputeSharedMemorySize;
  d->gpu.binding_range = binding_range(t, d->addresses);
  d->gpu.on_cpu = false; /* lavapipe takes the kernels for GPUs: see choose_group */
  BK_TRY(make_device(d));
  bk_gpu_kept_init(&d->gpu.cache, ctx, "vulkan", index);
  BK_TRY(bk_vk_pipelines_init(d));
  return bk_vk_memory_init(d);
}

static bk_status vulkan_open(bk_context *ctx, int index, const bk_device_options *options,
                             bk_device **device) {
  bk_vk_device *d = bk_alloc(ctx, sizeof *d);
  if (!d) return BK_ERR_MEMORY;
  bk_status status = device_fill(d, ctx, index, options);
  if (status != BK_OK) {
    device_close(&d->gpu.base);
    return status;
  }
  *device = &d->gpu.base;
  return BK_OK;
}

/* Below opencl, and cpu where it is the same processor; asked for by name. */
const bk_backend bk_backend_vulkan = BK_BACKEND(vulkan, 4, bk_vulkan_kernels);

/* What the loader of modules asks for. */
const bk_backend *bk_backend_module(void) { return &bk_backend_vulkan; }
