/* Kernels: SPIR-V that was compiled at build, made into pipelines with their constants. All
 * share one layout: parameters of 128 bytes, and in split mode as many bindings as an operand
 * list can have; a kernel uses the first of them. */
#include <stdio.h>
#include <string.h>

#include "backends/vulkan/vulkan.h"

#define PARAMETER_BYTES 128 /* what every device has */
#define CACHE_KEY_BYTES 256

bk_status bk_vk_build(bk_device *device, const bk_gpu_kernel *kernel, const int32_t *consts,
                      bk_gpu_pipeline **pipeline) {
  bk_vk_device *d = bk_vk_of(device);
  const bk_vk_spirv *spirv = bk_vk_spirv_find(kernel->name);
  const bk_vk_variant variant = d->addresses ? BK_VK_ADDRESS
                                : d->halves  ? BK_VK_SPLIT
                                             : BK_VK_SPLIT_32;
  if (!spirv)
    return bk_fail(device->ctx, BK_ERR_UNSUPPORTED, "vulkan: there is no kernel %s (%s)",
                   kernel->name, kernel->file);
  if (consts[0] > d->most_group)
    return bk_fail(device->ctx, BK_ERR_UNSUPPORTED,
                   "vulkan: kernel %s wants groups of %d work items, the device has %d",
                   kernel->name, (int)consts[0], d->most_group);
  VkSpecializationMapEntry entries[BK_GPU_MAX_CONSTS];
  for (int i = 0; i < kernel->n_consts; i++)
    entries[i] =
        (VkSpecializationMapEntry){.constantID = (uint32_t)i, .offset = (uint32_t)i * 4, .size = 4};
  const VkSpecializationInfo constants = {.mapEntryCount = (uint32_t)kernel->n_consts,
                                          .pMapEntries = entries,
                                          .dataSize = (size_t)kernel->n_consts * 4,
                                          .pData = consts};
  const VkShaderModuleCreateInfo code = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                         .codeSize = spirv->code[variant].bytes,
                                         .pCode = spirv->code[variant].words};
  bk_vk_pipeline *made = bk_alloc(device->ctx, sizeof *made);
  VkShaderModule module = VK_NULL_HANDLE;
  if (!made) return BK_ERR_MEMORY;
  VkResult result = d->vk.CreateShaderModule(d->handle, &code, NULL, &module);
  if (result == VK_SUCCESS) {
    const VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .layout = d->layout,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module,
                  .pName = "main",
                  .pSpecializationInfo = &constants}};
    result = d->vk.CreateComputePipelines(d->handle, d->cache, 1, &info, NULL, &made->handle);
  }
  if (module) d->vk.DestroyShaderModule(d->handle, module, NULL);
  if (result == VK_SUCCESS) {
    *pipeline = &made->base;
    return BK_OK;
  }
  bk_free(device->ctx, made);
  return bk_fail(device->ctx, bk_vk_status(result),
                 "vulkan:%d: kernel %s (%s) does not compile: %s (%d)", device->index, kernel->name,
                 kernel->file, bk_vk_result_name(result), (int)result);
}

void bk_vk_pipeline_free(bk_device *device, bk_gpu_pipeline *pipeline) {
  bk_vk_device *d = bk_vk_of(device);
  bk_vk_pipeline *p = (bk_vk_pipeline *)pipeline;
  if (p->handle) d->vk.DestroyPipeline(d->handle, p->handle, NULL);
  bk_free(device->ctx, p);
}

/* ---- the cache: one entry for a device, of all pipelines ---- */

/* All that the data depends on. */
static void cache_key(const bk_vk_device *d, char *key, size_t size) {
  const VkPhysicalDeviceProperties *p = &d->traits.props;
  const uint8_t *const ids[] = {d->traits.device_uuid, d->traits.driver_uuid, p->pipelineCacheUUID};
  size_t used =
      (size_t)snprintf(key, size, "vulkan %08x %08x %08x spirv %016llx uuids", p->vendorID,
                       p->deviceID, p->driverVersion, (unsigned long long)bk_vk_spirv_hash());
  for (size_t i = 0; i < BK_COUNT(ids); i++) {
    for (size_t k = 0; k < VK_UUID_SIZE; k++)
      used += (size_t)snprintf(key + used, size - used, "%s%02x", k ? "" : " ", ids[i][k]);
  }
}

/* As Vulkan lays down: length of the header, version 1, vendor, device, UUID. Drivers check it
 * as well, or should. */
static bool header_fits(const bk_vk_device *d, const char *data, size_t bytes) {
  const VkPhysicalDeviceProperties *p = &d->traits.props;
  uint32_t head[4];
  if (bytes < sizeof head + VK_UUID_SIZE) return false;
  memcpy(head, data, sizeof head);
  return head[0] >= sizeof head + VK_UUID_SIZE && head[0] <= bytes && head[1] == 1 &&
         head[2] == p->vendorID && head[3] == p->deviceID &&
         memcmp(data + sizeof head, p->pipelineCacheUUID, VK_UUID_SIZE) == 0;
}

static VkResult cache_open(bk_vk_device *d) {
  char key[CACHE_KEY_BYTES], *data = NULL;
  size_t bytes = 0;
  cache_key(d, key, sizeof key);
  if (bk_gpu_kept_read(&d->gpu.cache, "vulkan", key, &data, &bytes) && !header_fits(d, data, bytes))
    bytes = 0;
  const VkPipelineCacheCreateInfo empty = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
  VkPipelineCacheCreateInfo info = empty;
  info.initialDataSize = bytes;
  info.pInitialData = data;
  VkResult result = d->vk.CreatePipelineCache(d->handle, bytes ? &info : &empty, NULL, &d->cache);
  if (result != VK_SUCCESS && bytes)
    result = d->vk.CreatePipelineCache(d->handle, &empty, NULL, &d->cache);
  bk_free(d->gpu.base.ctx, data);
  if (result == VK_SUCCESS)
    (void)d->vk.GetPipelineCacheData(d->handle, d->cache, &d->cache_bytes, NULL);
  return result;
}

/* Kept if it grew. */
static void cache_keep(bk_vk_device *d) {
  char key[CACHE_KEY_BYTES];
  size_t bytes = 0;
  if (d->lost || d->vk.GetPipelineCacheData(d->handle, d->cache, &bytes, NULL) != VK_SUCCESS ||
      bytes <= d->cache_bytes)
    return;
  char *data = bk_alloc(d->gpu.base.ctx, bytes);
  if (!data) return;
  cache_key(d, key, sizeof key);
  if (d->vk.GetPipelineCacheData(d->handle, d->cache, &bytes, data) == VK_SUCCESS)
    bk_gpu_kept_write(&d->gpu.cache, "vulkan", key, data, bytes);
  bk_free(d->gpu.base.ctx, data);
}

/* ---- layouts ---- */

static VkResult make_set_layout(bk_vk_device *d) {
  VkDescriptorSetLayoutBinding bindings[BK_GPU_MAX_OPERANDS];
  for (uint32_t i = 0; i < BK_GPU_MAX_OPERANDS; i++)
    bindings[i] =
        (VkDescriptorSetLayoutBinding){.binding = i,
                                       .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                       .descriptorCount = 1,
                                       .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
  const VkDescriptorSetLayoutCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
      .bindingCount = BK_GPU_MAX_OPERANDS,
      .pBindings = bindings};
  return d->vk.CreateDescriptorSetLayout(d->handle, &info, NULL, &d->set_layout);
}

bk_status bk_vk_pipelines_init(bk_vk_device *d) {
  const VkPushConstantRange parameters = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT,
                                          .size = PARAMETER_BYTES};
  VkResult result = d->addresses ? VK_SUCCESS : make_set_layout(d);
  if (result == VK_SUCCESS) {
    const VkPipelineLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                             .setLayoutCount = d->addresses ? 0 : 1,
                                             .pSetLayouts = &d->set_layout,
                                             .pushConstantRangeCount = 1,
                                             .pPushConstantRanges = &parameters};
    result = d->vk.CreatePipelineLayout(d->handle, &info, NULL, &d->layout);
  }
  if (result == VK_SUCCESS) result = cache_open(d);
  return result == VK_SUCCESS ? BK_OK : bk_vk_fail(d->gpu.base.ctx, result, "preparing pipelines");
}

void bk_vk_pipelines_fini(bk_vk_device *d) {
  if (d->cache) cache_keep(d);
  if (d->cache) d->vk.DestroyPipelineCache(d->handle, d->cache, NULL);
  if (d->layout) d->vk.DestroyPipelineLayout(d->handle, d->layout, NULL);
  if (d->set_layout) d->vk.DestroyDescriptorSetLayout(d->handle, d->set_layout, NULL);
}

bk_status bk_vk_sets_alloc(bk_vk_device *d, int count, VkDescriptorPool *pool, bk_vk_set *sets) {
  const VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                     .descriptorCount = (uint32_t)count * BK_GPU_MAX_OPERANDS};
  const VkDescriptorPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                           .maxSets = (uint32_t)count,
                                           .poolSizeCount = 1,
                                           .pPoolSizes = &size};
  VkResult result = d->vk.CreateDescriptorPool(d->handle, &info, NULL, pool);
  for (int i = 0; i < count && result == VK_SUCCESS; i++) {
    const VkDescriptorSetAllocateInfo ask = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
        .descriptorPool = *pool,
        .descriptorSetCount = 1,
        .pSetLayouts = &d->set_layout};
    result = d->vk.AllocateDescriptorSets(d->handle, &ask, &sets[i].handle);
    sets[i].written = 0;
  }
  return result == VK_SUCCESS ? BK_OK
                              : bk_vk_fail(d->gpu.base.ctx, result, "making descriptor sets");
}
