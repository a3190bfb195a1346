/* Kernels: SPIR-V that was compiled at build, made into pipelines with their constants. All share one layout: parameters of 128 bytes,
 * and in split mode as many bindings as an operand list can have; a kernel uses the first of them. */
#include <string.h>

#include "backends/vulkan/vulkan.h"

#define PARAMETER_BYTES 128 /* what every device has */

bk_status bk_vk_build(bk_device *device, const bk_gpu_kernel *kernel, const int32_t *consts, bk_gpu_pipeline **pipeline) {
  bk_vk_device *d = bk_vk_of(device);
  const bk_vk_spirv *spirv = bk_vk_spirv_find(kernel->name);
  const bk_vk_variant variant = d->addresses ? BK_VK_ADDRESS : d->halves ? BK_VK_SPLIT : BK_VK_SPLIT_32;
  if (!spirv) return bk_fail(device->ctx, BK_ERR_UNSUPPORTED, "vulkan: there is no kernel %s (%s)", kernel->name, kernel->file);
  VkSpecializationMapEntry entries[BK_GPU_MAX_CONSTS];
  for (int i = 0; i < kernel->n_consts; i++)
    entries[i] = (VkSpecializationMapEntry){.constantID = (uint32_t)i, .offset = (uint32_t)i * 4, .size = 4};
  const VkSpecializationInfo constants = {.mapEntryCount = (uint32_t)kernel->n_consts, .pMapEntries = entries,
                                          .dataSize = (size_t)kernel->n_consts * 4, .pData = consts};
  const VkShaderModuleCreateInfo code = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = spirv->code[variant].bytes,
                                         .pCode = spirv->code[variant].words};
  bk_vk_pipeline *made = bk_alloc(device->ctx, sizeof *made);
  VkShaderModule module = VK_NULL_HANDLE;
  if (!made) return BK_ERR_MEMORY;
  VkResult result = d->vk.CreateShaderModule(d->handle, &code, NULL, &module);
  if (result == VK_SUCCESS) {
    const VkComputePipelineCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO, .layout = d->layout,
      .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO, .stage = VK_SHADER_STAGE_COMPUTE_BIT, .module = module, .pName = "main",
                .pSpecializationInfo = &constants}};
    result = d->vk.CreateComputePipelines(d->handle, d->cache, 1, &info, NULL, &made->handle);
  }
  if (module) d->vk.DestroyShaderModule(d->handle, module, NULL);
  if (result == VK_SUCCESS) {
    *pipeline = &made->base;
    return BK_OK;
  }
  bk_free(device->ctx, made);
  return bk_fail(device->ctx, BK_ERR_DEVICE, "vulkan: kernel %s (%s) does not compile: %s (%d)", kernel->name, kernel->file, bk_vk_result_name(result),
                 (int)result);
}

void bk_vk_pipeline_free(bk_device *device, bk_gpu_pipeline *pipeline) {
  bk_vk_device *d = bk_vk_of(device);
  bk_vk_pipeline *p = (bk_vk_pipeline *)pipeline;
  if (p->handle) d->vk.DestroyPipeline(d->handle, p->handle, NULL);
  bk_free(device->ctx, p);
}

/* ---- layouts ---- */

static VkResult make_set_layout(bk_vk_device *d) {
  VkDescriptorSetLayoutBinding bindings[BK_GPU_MAX_OPERANDS];
  for (uint32_t i = 0; i < BK_GPU_MAX_OPERANDS; i++)
    bindings[i] = (VkDescriptorSetLayoutBinding){.binding = i, .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, .descriptorCount = 1,
                                                 .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
  const VkDescriptorSetLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = BK_GPU_MAX_OPERANDS,
                                                .pBindings = bindings};
  return d->vk.CreateDescriptorSetLayout(d->handle, &info, NULL, &d->set_layout);
}

bk_status bk_vk_pipelines_init(bk_vk_device *d) {
  const VkPushConstantRange parameters = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = PARAMETER_BYTES};
  const VkPipelineCacheCreateInfo cache = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
  VkResult result = d->addresses ? VK_SUCCESS : make_set_layout(d);
  if (result == VK_SUCCESS) {
    const VkPipelineLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .setLayoutCount = d->addresses ? 0 : 1,
                                             .pSetLayouts = &d->set_layout, .pushConstantRangeCount = 1, .pPushConstantRanges = &parameters};
    result = d->vk.CreatePipelineLayout(d->handle, &info, NULL, &d->layout);
  }
  if (result == VK_SUCCESS) result = d->vk.CreatePipelineCache(d->handle, &cache, NULL, &d->cache);
  return result == VK_SUCCESS ? BK_OK : bk_vk_fail(d->gpu.base.ctx, result, "preparing pipelines");
}

void bk_vk_pipelines_fini(bk_vk_device *d) {
  if (d->cache) d->vk.DestroyPipelineCache(d->handle, d->cache, NULL);
  if (d->layout) d->vk.DestroyPipelineLayout(d->handle, d->layout, NULL);
  if (d->set_layout) d->vk.DestroyDescriptorSetLayout(d->handle, d->set_layout, NULL);
}

bk_status bk_vk_sets_alloc(bk_vk_device *d, int count, VkDescriptorPool *pool, VkDescriptorSet *sets) {
  const VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, .descriptorCount = (uint32_t)count * BK_GPU_MAX_OPERANDS};
  const VkDescriptorPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO, .maxSets = (uint32_t)count, .poolSizeCount = 1,
                                           .pPoolSizes = &size};
  VkResult result = d->vk.CreateDescriptorPool(d->handle, &info, NULL, pool);
  for (int i = 0; i < count && result == VK_SUCCESS; i++) {
    const VkDescriptorSetAllocateInfo ask = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO, .descriptorPool = *pool, .descriptorSetCount = 1,
                                             .pSetLayouts = &d->set_layout};
    result = d->vk.AllocateDescriptorSets(d->handle, &ask, &sets[i]);
  }
  return result == VK_SUCCESS ? BK_OK : bk_vk_fail(d->gpu.base.ctx, result, "making descriptor sets");
}
