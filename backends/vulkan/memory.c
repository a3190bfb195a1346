/* Buffers. A driver allows few allocations of memory (maxMemoryAllocationCount, 4096 as a rule),
 * so small buffers share blocks; a large one has a block of its own. All of a block is of the
 * device's own memory; there is no silent move to the host's. */
#include <stdio.h>
#include <string.h>

#include "backends/vulkan/vulkan.h"

#define SHARED_BLOCK ((VkDeviceSize)32 << 20)
#define SHARED_LIMIT ((VkDeviceSize)4 << 20) /* buffers above have their own */
#define ALIGNMENT ((VkDeviceSize)256)

/* ---- blocks ---- */

/* A type of device memory that the buffer may have; UINT32_MAX: there is none. */
static uint32_t pick_type(const bk_vk_device *d, uint32_t allowed, VkMemoryPropertyFlags wanted,
                          bool own_heap) {
  const VkPhysicalDeviceMemoryProperties *m = &d->traits.memory;
  for (uint32_t i = 0; i < m->memoryTypeCount; i++) {
    if (!(allowed >> i & 1) || (m->memoryTypes[i].propertyFlags & wanted) != wanted) continue;
    if (!own_heap || m->memoryTypes[i].heapIndex == d->traits.heap) return i;
  }
  return UINT32_MAX;
}

static VkResult allocate(bk_vk_device *d, VkDeviceSize size, uint32_t type,
                         VkDeviceMemory *memory) {
  const VkMemoryAllocateFlagsInfo flags = {
      .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
      .flags = d->addresses ? VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT : 0};
  const VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                     .pNext = &flags,
                                     .allocationSize = size,
                                     .memoryTypeIndex = type};
  return d->vk.AllocateMemory(d->handle, &info, NULL, memory);
}

/* Drivers on a CPU promise more memory than there is; more than the heap has is not asked for. */
static VkResult make_block(bk_vk_device *d, VkDeviceSize size, uint32_t type, bk_vk_block **out) {
  VkDeviceSize heap =
      d->traits.memory.memoryHeaps[d->traits.memory.memoryTypes[type].heapIndex].size;
  if (size > heap || d->allocated > heap - size) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  /* 64: streams' staging */
  if ((uint32_t)d->n_blocks + 64 >= d->traits.props.limits.maxMemoryAllocationCount)
    return VK_ERROR_TOO_MANY_OBJECTS;
  bk_vk_block *made = bk_alloc(d->gpu.base.ctx, sizeof *made);
  if (!made) return VK_ERROR_OUT_OF_HOST_MEMORY;
  VkResult result = allocate(d, size, type, &made->memory);
  if (result != VK_SUCCESS) {
    bk_free(d->gpu.base.ctx, made);
    return result;
  }
  made->size = size;
  made->type = type;
  made->next = d->blocks;
  d->blocks = made;
  d->n_blocks++;
  d->allocated += size;
  *out = made;
  return VK_SUCCESS;
}

static void free_block(bk_vk_device *d, bk_vk_block *b) {
  bk_vk_block **at = &d->blocks;
  while (*at != b) at = &(*at)->next;
  *at = b->next;
  d->vk.FreeMemory(d->handle, b->memory, NULL);
  d->allocated -= b->size;
  d->n_blocks--;
  bk_free(d->gpu.base.ctx, b);
}

/* Puts b into the first gap of the block that is large enough. */
static bool place_in(bk_vk_block *block, bk_vk_buffer *b, VkDeviceSize alignment) {
  VkDeviceSize begin = 0;
  bk_vk_buffer **at = &block->first;
  for (; *at; at = &(*at)->next) {
    if (begin + b->bytes <= (*at)->offset) break;
    begin = BK_ALIGN_UP((*at)->offset + (*at)->bytes, alignment);
  }
  if (begin + b->bytes > block->size) return false;
  b->offset = begin;
  b->block = block;
  b->next = *at;
  *at = b;
  return true;
}

static bool is_shared(const bk_vk_block *block) { return block->size == SHARED_BLOCK; }

static void leave_block(bk_vk_device *d, bk_vk_buffer *b) {
  bk_vk_block *block = b->block;
  bk_vk_buffer **at = &block->first;
  int spare = 0;
  while (*at != b) at = &(*at)->next;
  *at = b->next;
  if (block->first) return;
  for (const bk_vk_block *other = d->blocks; other; other = other->next)
    spare += is_shared(other) && !other->first;
  if (!is_shared(block) || spare > 1) free_block(d, block); /* one empty block is kept */
}

static VkResult find_place(bk_vk_device *d, bk_vk_buffer *b, const VkMemoryRequirements *needs) {
  VkDeviceSize alignment = needs->alignment > ALIGNMENT ? needs->alignment : ALIGNMENT;
  uint32_t type = pick_type(d, needs->memoryTypeBits, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, true);
  if (type == UINT32_MAX) type = pick_type(d, needs->memoryTypeBits, 0, true);
  if (type == UINT32_MAX) return VK_ERROR_FEATURE_NOT_PRESENT;
  bool shared = needs->size <= SHARED_LIMIT;
  bk_vk_block *made;
  b->bytes = BK_ALIGN_UP(needs->size, alignment);
  if (!shared) b->bytes = needs->size;
  for (bk_vk_block *block = d->blocks; block && shared; block = block->next)
    if (is_shared(block) && block->type == type && place_in(block, b, alignment)) return VK_SUCCESS;
  VkResult result = make_block(d, shared ? SHARED_BLOCK : b->bytes, type, &made);
  /* the last bit of memory */
  if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY && shared)
    result = make_block(d, b->bytes, type, &made);
  if (result == VK_SUCCESS) (void)place_in(made, b, alignment);
  return result;
}

/* ---- zeroing: a command of the device's own, waited for ---- */

static VkResult setup_begin(bk_vk_device *d) {
  const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                          .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
  VkResult result = d->vk.ResetCommandPool(d->handle, d->setup_pool, 0);
  return result == VK_SUCCESS ? d->vk.BeginCommandBuffer(d->setup, &begin) : result;
}

static VkResult setup_end(bk_vk_device *d) {
  bk_vk_timeline *t = d->setup_timeline;
  const uint64_t value = t->value + 1;
  const VkTimelineSemaphoreSubmitInfo values = {
      .sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
      .signalSemaphoreValueCount = 1,
      .pSignalSemaphoreValues = &value};
  const VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                               .pNext = &values,
                               .commandBufferCount = 1,
                               .pCommandBuffers = &d->setup,
                               .signalSemaphoreCount = 1,
                               .pSignalSemaphores = &t->semaphore};
  const VkSemaphoreWaitInfo wait = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                    .semaphoreCount = 1,
                                    .pSemaphores = &t->semaphore,
                                    .pValues = &value};
  VkResult result = d->vk.EndCommandBuffer(d->setup);
  if (result == VK_SUCCESS) result = d->vk.QueueSubmit(d->queue[0], 1, &submit, VK_NULL_HANDLE);
  if (result != VK_SUCCESS) return result;
  t->value = value;
  return d->vk.WaitSemaphores(d->handle, &wait, UINT64_MAX);
}

static VkResult zero(bk_vk_device *d, const bk_vk_buffer *b) {
  VkResult result = setup_begin(d);
  if (result != VK_SUCCESS) return result;
  d->vk.CmdFillBuffer(d->setup, b->buffer, 0, VK_WHOLE_SIZE, 0);
  return setup_end(d);
}

/* ---- buffers ---- */

static VkResult make_buffer(bk_vk_device *d, VkDeviceSize size, bk_vk_buffer *b) {
  const VkBufferCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
      .size = size,
      .sharingMode = VK_SHARING_MODE_EXCLUSIVE,
      .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
               VK_BUFFER_USAGE_TRANSFER_DST_BIT |
               (d->addresses ? VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT : 0)};
  VkMemoryRequirements needs;
  *b = (bk_vk_buffer){.size = size};
  VkResult result = d->vk.CreateBuffer(d->handle, &info, NULL, &b->buffer);
  if (result != VK_SUCCESS) return result;
  d->vk.GetBufferMemoryRequirements(d->handle, b->buffer, &needs);
  result = find_place(d, b, &needs);
  if (result == VK_SUCCESS)
    result = d->vk.BindBufferMemory(d->handle, b->buffer, b->block->memory, b->offset);
  if (result == VK_SUCCESS && d->addresses) {
    const VkBufferDeviceAddressInfo ask = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
                                           .buffer = b->buffer};
    b->address = d->vk.GetBufferDeviceAddress(d->handle, &ask);
  }
  return result;
}

static void drop_buffer(bk_vk_device *d, bk_vk_buffer *b) {
  if (b->buffer) d->vk.DestroyBuffer(d->handle, b->buffer, NULL);
  if (b->block) leave_block(d, b);
}

bk_status bk_vk_buffer_alloc(bk_device *device, size_t bytes, void **handle) {
  bk_vk_device *d = bk_vk_of(device);
  bk_vk_buffer *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  VkResult result =
      d->lost ? VK_ERROR_DEVICE_LOST : make_buffer(d, BK_ALIGN_UP((VkDeviceSize)bytes, 16), made);
  if (result == VK_SUCCESS) result = zero(d, made);
  if (result == VK_SUCCESS) {
    *handle = made;
    return BK_OK;
  }
  if (result == VK_ERROR_DEVICE_LOST) d->lost = true;
  drop_buffer(d, made);
  bk_free(device->ctx, made);
  bool device_failed = result == VK_ERROR_DEVICE_LOST || result == VK_ERROR_FEATURE_NOT_PRESENT;
  return bk_fail(device->ctx, device_failed ? BK_ERR_DEVICE : BK_ERR_MEMORY,
                 "vulkan:%d: cannot allocate %zu bytes of device memory: %s (%d)", device->index,
                 bytes, bk_vk_result_name(result), (int)result);
}

void bk_vk_buffer_free(bk_device *device, void *handle, size_t bytes) {
  bk_vk_device *d = bk_vk_of(device);
  (void)bytes;
  bk_vk_settle(d); /* a buffer must not go while a command uses it */
  drop_buffer(d, handle);
  bk_free(device->ctx, handle);
}

bk_status bk_vk_memory_info(bk_device *device, size_t *free_bytes, size_t *total_bytes) {
  bk_vk_device *d = bk_vk_of(device);
  VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
  VkPhysicalDeviceMemoryProperties2 all = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
      .pNext = d->traits.budget ? &budget : NULL};
  const uint32_t heap = d->traits.heap;
  d->in.GetPhysicalDeviceMemoryProperties2(d->traits.handle, &all);
  VkDeviceSize total = all.memoryProperties.memoryHeaps[heap].size,
               left = total - (d->allocated < total ? d->allocated : total);
  if (d->traits.budget && budget.heapBudget[heap] < total) {
    VkDeviceSize allowed = budget.heapBudget[heap], used = budget.heapUsage[heap],
                 rest = allowed > used ? allowed - used : 0;
    if (rest < left) left = rest;
  }
  *total_bytes = (size_t)total;
  *free_bytes = (size_t)left;
  return BK_OK;
}

/* ---- memory that the host sees ---- */

/* Cached where that exists: the host reads downloads from it. */
static uint32_t pick_staging(const bk_vk_device *d, uint32_t allowed) {
  const VkMemoryPropertyFlags seen =
      VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  uint32_t type = pick_type(d, allowed, seen | VK_MEMORY_PROPERTY_HOST_CACHED_BIT, false);
  return type == UINT32_MAX ? pick_type(d, allowed, seen, false) : type;
}

bk_status bk_vk_staging_alloc(bk_vk_device *d, size_t bytes, VkBuffer *buffer,
                              VkDeviceMemory *memory, char **data) {
  const VkBufferCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
      .size = bytes,
      .sharingMode = VK_SHARING_MODE_EXCLUSIVE,
      .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
  VkMemoryRequirements needs;
  void *mapped = NULL;
  VkResult result = d->vk.CreateBuffer(d->handle, &info, NULL, buffer);
  if (result == VK_SUCCESS) {
    d->vk.GetBufferMemoryRequirements(d->handle, *buffer, &needs);
    uint32_t type = pick_staging(d, needs.memoryTypeBits);
    const VkMemoryAllocateInfo ask = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                      .allocationSize = needs.size,
                                      .memoryTypeIndex = type};
    result = type == UINT32_MAX ? VK_ERROR_FEATURE_NOT_PRESENT
                                : d->vk.AllocateMemory(d->handle, &ask, NULL, memory);
  }
  if (result == VK_SUCCESS) result = d->vk.BindBufferMemory(d->handle, *buffer, *memory, 0);
  if (result == VK_SUCCESS)
    result = d->vk.MapMemory(d->handle, *memory, 0, VK_WHOLE_SIZE, 0, &mapped);
  if (result == VK_SUCCESS) *data = mapped;
  if (result == VK_SUCCESS) return BK_OK;
  return bk_fail(d->gpu.base.ctx, bk_vk_status(result),
                 "vulkan:%d: cannot allocate %zu bytes of memory for transfers: %s (%d)",
                 d->gpu.base.index, bytes, bk_vk_result_name(result), (int)result);
}

void bk_vk_staging_free(bk_vk_device *d, VkBuffer buffer, VkDeviceMemory memory) {
  if (buffer) d->vk.DestroyBuffer(d->handle, buffer, NULL);
  if (memory) d->vk.FreeMemory(d->handle, memory, NULL);
}

/* ---- the device's own ---- */

static VkResult fill_bytes(bk_vk_device *d) {
  uint32_t words[256];
  for (uint32_t i = 0; i < 256; i++) words[i] = i * 0x01010101u;
  VkResult result = make_buffer(d, sizeof words, &d->bytes);
  if (result == VK_SUCCESS) result = setup_begin(d);
  if (result != VK_SUCCESS) return result;
  d->vk.CmdUpdateBuffer(d->setup, d->bytes.buffer, 0, sizeof words, words);
  return setup_end(d);
}

bk_status bk_vk_memory_init(bk_vk_device *d) {
  BK_TRY(bk_vk_timeline_take(d, &d->setup_timeline));
  VkResult result = bk_vk_commands_make(d, 0, &d->setup_pool, &d->setup);
  if (result == VK_SUCCESS) result = fill_bytes(d);
  return result == VK_SUCCESS
             ? BK_OK
             : bk_vk_fail(d->gpu.base.ctx, result, "preparing the device's memory");
}

void bk_vk_memory_fini(bk_vk_device *d) {
  drop_buffer(d, &d->bytes);
  if (d->setup_pool) d->vk.DestroyCommandPool(d->handle, d->setup_pool, NULL);
  while (d->blocks) free_block(d, d->blocks);
}
