/* Streams: commands are recorded into a ring of command buffers, each submitted as a whole; a
 * barrier before every command keeps the order. A timeline semaphore counts a stream's submissions
 * up. All that recording needs is made with the stream.
 *
 * Streams share a queue, or there are two (plain and urgent). Work of one queue runs in the order
 * of its submission: a wait for an event of the same queue needs no command. Transfers go through
 * a mapped buffer, of which every command buffer of the ring has a part. */
#include <stdio.h>
#include <string.h>

#include "backends/vulkan/vulkan.h"

static bk_vk_stream *of(bk_stream *stream) { return (bk_vk_stream *)stream; }
static bk_vk_device *device_of(bk_stream *stream) { return bk_vk_of(stream->device); }
static const bk_vk_api *vk_of(bk_stream *stream) { return &device_of(stream)->vk; }

/* ---- errors ---- */

static bk_status lose(bk_stream *stream, const char *what) {
  bk_vk_stream *s = of(stream);
  uint64_t first = s->launches > BK_VK_TRACE ? s->launches - BK_VK_TRACE : 0;
  char names[BK_VK_TRACE * 40];
  size_t used = 0;
  names[0] = '\0';
  for (uint64_t i = first; i < s->launches && used < sizeof names; i++)
    used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                             s->trace[i % BK_VK_TRACE]);
  device_of(stream)->lost = true;
  s->poison = BK_ERR_DEVICE;
  return bk_fail(stream->device->ctx, BK_ERR_DEVICE,
                 "vulkan:%d: %s: the device was lost (a kernel faulted or ran too long, or the "
                 "driver was reset): VK_ERROR_DEVICE_LOST; the last "
                 "launches were %s; the stream cannot go on",
                 stream->device->index, what, names[0] ? names : "none");
}

bk_status bk_vk_check(bk_stream *stream, VkResult result, const char *what) {
  if (result == VK_SUCCESS) return BK_OK;
  return result == VK_ERROR_DEVICE_LOST ? lose(stream, what)
                                        : bk_vk_fail(stream->device->ctx, result, what);
}

bk_status bk_vk_enter(bk_stream *stream) {
  if (of(stream)->poison == BK_OK && device_of(stream)->lost) {
    of(stream)->poison = BK_ERR_DEVICE;
    return bk_fail(stream->device->ctx, BK_ERR_DEVICE,
                   "vulkan:%d: the device was lost before; the stream cannot go on",
                   stream->device->index);
  }
  return of(stream)->poison;
}

/* ---- the ring ---- */

static bk_status wait_value(bk_stream *stream, uint64_t value, const char *what) {
  const VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                    .semaphoreCount = 1,
                                    .pSemaphores = &of(stream)->timeline->semaphore,
                                    .pValues = &value};
  return bk_vk_check(
      stream, vk_of(stream)->WaitSemaphores(device_of(stream)->handle, &info, UINT64_MAX), what);
}

/* Copies what was downloaded by the submissions up to `value`, which have ended, to where the
 * callers wanted it. */
static void deliver(bk_vk_stream *s, uint64_t value) {
  for (int i = 0; i < BK_VK_BATCHES; i++) {
    bk_vk_batch *batch = &s->batches[i];
    if ((s->open && i == s->at) || batch->value > value) continue;
    const char *data = s->staging_data + (size_t)i * BK_VK_BATCH_STAGING;
    for (int k = 0; k < batch->n_downloads; k++)
      memcpy(batch->downloads[k].dst, data + batch->downloads[k].offset, batch->downloads[k].bytes);
    batch->n_downloads = 0;
  }
}

/* Opens the command buffer of the ring that comes next; if the ring is full, this waits for the
 * oldest. */
static bk_status open_batch(bk_stream *stream) {
  const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                          .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
  bk_vk_stream *s = of(stream);
  bk_vk_batch *batch = &s->batches[s->at];
  if (batch->value) BK_TRY(wait_value(stream, batch->value, "waiting for commands"));
  deliver(s, batch->value);
  VkResult result = vk_of(stream)->ResetCommandPool(device_of(stream)->handle, batch->pool, 0);
  if (result == VK_SUCCESS) result = vk_of(stream)->BeginCommandBuffer(batch->commands, &begin);
  BK_TRY(bk_vk_check(stream, result, "beginning commands"));
  batch->n_commands = 0;
  batch->staged = 0;
  s->open = true;
  return BK_OK;
}

bk_status bk_vk_submit(bk_stream *stream, VkCommandBuffer commands) {
  bk_vk_stream *s = of(stream);
  const uint64_t value = s->timeline->value + 1;
  VkPipelineStageFlags stages[BK_VK_WAITS];
  for (int i = 0; i < s->n_waits; i++) stages[i] = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
  const VkTimelineSemaphoreSubmitInfo values = {
      .sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
      .waitSemaphoreValueCount = (uint32_t)s->n_waits,
      .pWaitSemaphoreValues = s->wait_value,
      .signalSemaphoreValueCount = 1,
      .pSignalSemaphoreValues = &value};
  const VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                             .pNext = &values,
                             .waitSemaphoreCount = (uint32_t)s->n_waits,
                             .pWaitSemaphores = s->wait,
                             .pWaitDstStageMask = stages,
                             .commandBufferCount = commands ? 1 : 0,
                             .pCommandBuffers = &commands,
                             .signalSemaphoreCount = 1,
                             .pSignalSemaphores = &s->timeline->semaphore};
  BK_TRY(bk_vk_check(stream, vk_of(stream)->QueueSubmit(s->queue, 1, &info, VK_NULL_HANDLE),
                     "submitting commands"));
  s->timeline->value = value;
  s->n_waits = 0;
  return BK_OK;
}

static void barrier(bk_stream *stream, VkCommandBuffer commands) {
  const VkPipelineStageFlags stages =
      VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
  const VkMemoryBarrier all = {
      .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
      .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
      .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                       VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT};
  vk_of(stream)->CmdPipelineBarrier(commands, stages, stages, 0, 1, &all, 0, NULL, 0, NULL);
}

static void barrier_for_host(bk_stream *stream, VkCommandBuffer commands) {
  const VkMemoryBarrier host = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                                .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  vk_of(stream)->CmdPipelineBarrier(commands, VK_PIPELINE_STAGE_TRANSFER_BIT,
                                    VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &host, 0, NULL, 0, NULL);
}

bk_status bk_vk_flush(bk_stream *stream) {
  bk_vk_stream *s = of(stream);
  if (!s->open) return s->n_waits ? bk_vk_submit(stream, VK_NULL_HANDLE) : BK_OK;
  bk_vk_batch *batch = &s->batches[s->at];
  if (batch->n_downloads) barrier_for_host(stream, batch->commands);
  s->open = false;
  bk_status status =
      bk_vk_check(stream, vk_of(stream)->EndCommandBuffer(batch->commands), "ending commands");
  if (status == BK_OK) status = bk_vk_submit(stream, batch->commands);
  if (status != BK_OK) { /* its commands are lost, and later ones must not run without them */
    batch->n_downloads = 0;
    if (s->poison == BK_OK) s->poison = status;
    return status;
  }
  batch->value = s->timeline->value;
  s->at = (s->at + 1) % BK_VK_BATCHES;
  return BK_OK;
}

/* Gives the command buffer for the next command, behind a barrier. *set gets descriptors for it,
 * in split mode. */
static bk_status next_command(bk_stream *stream, VkCommandBuffer *commands, bk_vk_set **set) {
  bk_vk_stream *s = of(stream);
  bk_vk_graph *graph = bk_vk_capture_of(stream);
  BK_TRY(bk_vk_enter(stream));
  if (graph) BK_TRY(bk_vk_graph_command(stream, graph, commands, set));
  else {
    if (s->open && s->batches[s->at].n_commands == BK_VK_BATCH_COMMANDS)
      BK_TRY(bk_vk_flush(stream));
    if (!s->open) BK_TRY(open_batch(stream));
    bk_vk_batch *batch = &s->batches[s->at];
    *commands = batch->commands;
    if (set) *set = &batch->sets[batch->n_commands];
    batch->n_commands++;
  }
  barrier(stream, *commands);
  return BK_OK;
}

void bk_vk_settle(bk_vk_device *d) {
  for (bk_vk_timeline *t = d->timelines; t && !d->lost; t = t->next) {
    uint64_t done = 0;
    /* nothing more is submitted; what was submitted before runs on */
    if (!t->stream || t->stream->poison != BK_OK) {
      const VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                        .semaphoreCount = 1,
                                        .pSemaphores = &t->semaphore,
                                        .pValues = &t->value};
      (void)d->vk.WaitSemaphores(d->handle, &info, UINT64_MAX);
      continue;
    }
    if (d->vk.GetSemaphoreCounterValue(d->handle, t->semaphore, &done) == VK_SUCCESS &&
        done >= t->value && !t->stream->open)
      continue;
    if (bk_vk_flush(&t->stream->base) == BK_OK)
      (void)wait_value(&t->stream->base, t->value, "waiting for a stream");
  }
}

/* ---- dispatch ---- */

/* In split mode a parameter tells how many elements behind its binding's beginning an operand
 * begins. */
static uint32_t bind_operand(const bk_vk_device *d, const bk_gpu_pipeline *p, int i,
                             const bk_place *at, VkDescriptorBufferInfo *info) {
  const VkPhysicalDeviceLimits *l = &d->traits.props.limits;
  /* absent, or empty at the end of its buffer */
  if (!at->buffer || at->offset >= ((const bk_vk_buffer *)at->buffer->handle)->size) {
    *info = (VkDescriptorBufferInfo){d->bytes.buffer, 0, VK_WHOLE_SIZE};
    return 0;
  }
  const bk_vk_buffer *b = at->buffer->handle;
  const int half = p->kernel->half[i];
  const VkDeviceSize offset = at->offset - at->offset % l->minStorageBufferOffsetAlignment,
                     left = b->size - offset;
  *info = (VkDescriptorBufferInfo){
      b->buffer, offset, left < l->maxStorageBufferRange ? left : l->maxStorageBufferRange};
  return (uint32_t)(at->offset - offset) / (half && p->consts[half] ? 2 : 4);
}

/* The words behind the last operand that an earlier launch has left are overwritten: no kernel
 * reads them, but lavapipe follows them to buffers that are gone. */
static void write_set(bk_stream *stream, bk_vk_set *set, const bk_gpu_pipeline *p,
                      const bk_place *operands, uint32_t *words) {
  const bk_vk_device *d = device_of(stream);
  VkDescriptorBufferInfo infos[BK_GPU_MAX_OPERANDS];
  VkWriteDescriptorSet writes[BK_GPU_MAX_OPERANDS];
  const int used = p->kernel->operands, n = set->written > used ? set->written : used;
  for (int i = 0; i < n; i++) {
    if (i < used) words[i] = bind_operand(d, p, i, &operands[i], &infos[i]);
    else infos[i] = (VkDescriptorBufferInfo){d->bytes.buffer, 0, VK_WHOLE_SIZE};
    writes[i] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                       .dstSet = set->handle,
                                       .dstBinding = (uint32_t)i,
                                       .descriptorCount = 1,
                                       .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                       .pBufferInfo = &infos[i]};
  }
  d->vk.UpdateDescriptorSets(d->handle, (uint32_t)n, writes, 0, NULL);
  set->written = used;
}

static void write_addresses(const bk_gpu_pipeline *p, const bk_place *operands, uint32_t *words) {
  for (int i = 0; i < p->kernel->operands; i++) {
    const bk_vk_buffer *b = operands[i].buffer ? operands[i].buffer->handle : NULL;
    const VkDeviceAddress address = b ? b->address + operands[i].offset : 0;
    words[2 * i] = (uint32_t)address;
    words[2 * i + 1] = (uint32_t)(address >> 32);
  }
}

bk_status bk_vk_dispatch(bk_stream *stream, const char *name, const bk_gpu_pipeline *pipeline,
                         const bk_place *operands, const int32_t *params, int groups) {
  const bk_vk_device *d = device_of(stream);
  const bk_vk_api *vk = &d->vk;
  const uint32_t most = d->traits.props.limits.maxComputeWorkGroupCount[0];
  const uint32_t nx = (uint32_t)groups < most ? (uint32_t)groups : most,
                 ny = ((uint32_t)groups - 1) / nx + 1;
  uint32_t words[2 * BK_GPU_MAX_OPERANDS + BK_GPU_MAX_PARAMS + 1];
  int n = pipeline->kernel->operands * (d->addresses ? 2 : 1);
  VkCommandBuffer commands;
  bk_vk_set *set = NULL;
  BK_TRY(next_command(stream, &commands, d->addresses ? NULL : &set));
  if (d->addresses) write_addresses(pipeline, operands, words);
  else {
    write_set(stream, set, pipeline, operands, words);
    vk->CmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, d->layout, 0, 1,
                              &set->handle, 0, NULL);
  }
  if (pipeline->kernel->params) memcpy(words + n, params, (size_t)pipeline->kernel->params * 4);
  n += pipeline->kernel->params;
  words[n++] = (uint32_t)groups;
  vk->CmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE,
                      ((const bk_vk_pipeline *)pipeline)->handle);
  vk->CmdPushConstants(commands, d->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, (uint32_t)n * 4, words);
  vk->CmdDispatch(commands, nx, ny, 1);
  of(stream)->trace[of(stream)->launches++ % BK_VK_TRACE] = name;
  return BK_OK;
}

/* ---- transfers ---- */

/* Room in the staging of the open command buffer for up to `bytes`: at least one byte, in a
 * command buffer that can take another download. */
static bk_status stage(bk_stream *stream, size_t bytes, VkCommandBuffer *commands, size_t *offset,
                       size_t *room) {
  bk_vk_stream *s = of(stream);
  const size_t least = bytes < BK_VK_BATCH_STAGING / 4 ? bytes : BK_VK_BATCH_STAGING / 4;
  bk_vk_batch *batch = &s->batches[s->at];
  if (s->open &&
      (BK_VK_BATCH_STAGING - batch->staged < least || batch->n_downloads == BK_VK_BATCH_DOWNLOADS))
    BK_TRY(bk_vk_flush(stream));
  BK_TRY(next_command(stream, commands, NULL));
  batch = &s->batches[s->at];
  *offset = batch->staged;
  *room = BK_VK_BATCH_STAGING - batch->staged < bytes ? BK_VK_BATCH_STAGING - batch->staged : bytes;
  batch->staged = BK_ALIGN_UP(batch->staged + *room, 64);
  return BK_OK;
}

static VkBuffer buffer_of(bk_place place) {
  return ((const bk_vk_buffer *)place.buffer->handle)->buffer;
}

static bk_status stream_upload(bk_stream *stream, bk_place dst, const void *src, size_t bytes) {
  bk_vk_stream *s = of(stream);
  BK_TRY(bk_vk_enter(stream));
  BK_TRY(bk_vk_refuse_capture(stream, "an upload"));
  for (size_t done = 0, room, offset; done < bytes; done += room) {
    VkCommandBuffer commands;
    BK_TRY(stage(stream, bytes - done, &commands, &offset, &room));
    offset += (size_t)s->at * BK_VK_BATCH_STAGING;
    memcpy(s->staging_data + offset, (const char *)src + done, room);
    const VkBufferCopy region = {offset, dst.offset + done, room};
    vk_of(stream)->CmdCopyBuffer(commands, s->staging, buffer_of(dst), 1, &region);
  }
  return BK_OK;
}

static bk_status stream_download(bk_stream *stream, void *dst, bk_place src, size_t bytes) {
  bk_vk_stream *s = of(stream);
  BK_TRY(bk_vk_enter(stream));
  BK_TRY(bk_vk_refuse_capture(stream, "a download"));
  for (size_t done = 0, room, offset; done < bytes; done += room) {
    VkCommandBuffer commands;
    BK_TRY(stage(stream, bytes - done, &commands, &offset, &room));
    bk_vk_batch *batch = &s->batches[s->at];
    batch->downloads[batch->n_downloads++] = (bk_vk_download){(char *)dst + done, offset, room};
    const VkBufferCopy region = {src.offset + done, offset + (size_t)s->at * BK_VK_BATCH_STAGING,
                                 room};
    vk_of(stream)->CmdCopyBuffer(commands, buffer_of(src), s->staging, 1, &region);
  }
  return BK_OK;
}

static bk_status stream_copy(bk_stream *stream, bk_place dst, bk_place src, size_t bytes) {
  const VkBufferCopy region = {src.offset, dst.offset, bytes};
  VkCommandBuffer commands;
  BK_TRY(bk_vk_enter(stream));
  if (!bytes) return BK_OK;
  BK_TRY(next_command(stream, &commands, NULL));
  vk_of(stream)->CmdCopyBuffer(commands, buffer_of(src), buffer_of(dst), 1, &region);
  return BK_OK;
}

/* Vulkan fills whole words; odd ends are copies. */
static bk_status stream_fill(bk_stream *stream, bk_place dst, uint8_t value, size_t bytes) {
  const bk_vk_device *d = device_of(stream);
  const size_t up = BK_ALIGN_UP(dst.offset, 4) - dst.offset, head = up < bytes ? up : bytes,
               words = (bytes - head) / 4 * 4, tail = bytes - head - words;
  const VkBufferCopy ends[2] = {{4 * (VkDeviceSize)value, dst.offset, head},
                                {4 * (VkDeviceSize)value, dst.offset + head + words, tail}};
  VkCommandBuffer commands;
  BK_TRY(bk_vk_enter(stream));
  if (!bytes) return BK_OK;
  BK_TRY(next_command(stream, &commands, NULL));
  if (words)
    d->vk.CmdFillBuffer(commands, buffer_of(dst), dst.offset + head, words, value * 0x01010101u);
  for (int i = 0; i < 2; i++)
    if (ends[i].size) d->vk.CmdCopyBuffer(commands, d->bytes.buffer, buffer_of(dst), 1, &ends[i]);
  return BK_OK;
}

/* ---- waiting ---- */

static bk_status stream_sync(bk_stream *stream) {
  bk_vk_stream *s = of(stream);
  BK_TRY(bk_vk_enter(stream));
  BK_TRY(bk_vk_refuse_capture(stream, "a sync"));
  BK_TRY(bk_vk_flush(stream));
  BK_TRY(wait_value(stream, s->timeline->value, "waiting for the stream"));
  deliver(s, s->timeline->value);
  s->launches = 0;
  return BK_OK;
}

static bk_status stream_query(bk_stream *stream, bool *done) {
  bk_vk_stream *s = of(stream);
  uint64_t value = 0;
  BK_TRY(bk_vk_enter(stream));
  BK_TRY(bk_vk_refuse_capture(stream, "a query"));
  BK_TRY(bk_vk_flush(stream));
  BK_TRY(bk_vk_check(stream,
                     vk_of(stream)->GetSemaphoreCounterValue(device_of(stream)->handle,
                                                             s->timeline->semaphore, &value),
                     "querying the stream"));
  deliver(s, value);
  *done = value >= s->timeline->value;
  if (*done) s->launches = 0;
  return BK_OK;
}

/* ---- events on streams ---- */

static bool is_done(const bk_vk_device *d, const bk_vk_event *e) {
  uint64_t value = 0;
  return !e->timeline ||
         (d->vk.GetSemaphoreCounterValue(d->handle, e->timeline->semaphore, &value) == VK_SUCCESS &&
          value >= e->value);
}

static bk_status event_sync(bk_event *event);

/* Submits the commands before the event, so that another stream may wait for it. */
static bk_status stream_event_record(bk_stream *stream, bk_event *event) {
  bk_vk_event *e = (bk_vk_event *)event;
  bk_vk_stream *s = of(stream);
  const bk_vk_graph *graph = bk_vk_capture_of(stream);
  VkCommandBuffer commands;
  BK_TRY(bk_vk_enter(stream));
  e->capture = graph ? bk_vk_capture_id(graph) : 0;
  /* The event marks the stream as a part of the capture; its order follows from the command
   * buffer. */
  if (graph) return BK_OK;
  /* Its timestamp query is in use on another stream. */
  if (e->timeline != s->timeline && !is_done(device_of(stream), e)) BK_TRY(event_sync(event));
  BK_TRY(next_command(stream, &commands, NULL));
  if (e->query) {
    vk_of(stream)->CmdResetQueryPool(commands, e->query, 0, 1);
    vk_of(stream)->CmdWriteTimestamp(commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, e->query, 0);
  }
  BK_TRY(bk_vk_flush(stream));
  e->timeline = s->timeline;
  e->queue = s->queue;
  e->value = s->timeline->value;
  return BK_OK;
}

static bk_status add_wait(bk_stream *stream, const bk_vk_event *e) {
  bk_vk_stream *s = of(stream);
  int i = 0;
  while (i < s->n_waits && s->wait[i] != e->timeline->semaphore) i++;
  if (i == BK_VK_WAITS) {
    BK_TRY(bk_vk_flush(stream));
    i = 0;
  }
  uint64_t value = i < s->n_waits && s->wait_value[i] > e->value ? s->wait_value[i] : e->value;
  s->wait[i] = e->timeline->semaphore;
  s->wait_value[i] = value;
  if (i == s->n_waits) s->n_waits++;
  return BK_OK;
}

/* A stream that waits for an event of a capture takes part in it, until its next wait. */
static bk_status stream_event_wait(bk_stream *stream, bk_event *event) {
  bk_vk_event *e = (bk_vk_event *)event;
  bk_vk_stream *s = of(stream);
  const bk_vk_graph *graph = device_of(stream)->capture;
  BK_TRY(bk_vk_enter(stream));
  if (graph && e->capture == bk_vk_capture_id(graph)) {
    if (!bk_vk_capture_of(stream)) BK_TRY(bk_vk_flush(stream));
    s->joined = e->capture;
    return BK_OK;
  }
  s->joined = 0;
  BK_TRY(bk_vk_refuse_capture(stream, "a wait for an event of before"));
  /* The event was submitted to this queue before what follows, whose barrier comes after it. */
  if (!e->timeline || e->queue == s->queue) return BK_OK;
  if (s->open) BK_TRY(bk_vk_flush(stream)); /* commands recorded before need not wait */
  return add_wait(stream, e);
}

/* ---- streams ---- */

static void stream_destroy(bk_stream *stream) {
  bk_vk_stream *s = of(stream);
  bk_vk_device *d = device_of(stream);
  if (s->timeline && bk_vk_capture_of(stream)) (void)bk_vk_capture_end(stream, NULL);
  if (s->timeline && s->poison == BK_OK && !d->lost && bk_vk_flush(stream) == BK_OK)
    (void)wait_value(stream, s->timeline->value, "closing a stream");
  else if (s->timeline) (void)d->vk.DeviceWaitIdle(d->handle);
  if (s->timeline) {
    s->timeline->stream = NULL;
    s->timeline->taken = false;
  }
  for (int i = 0; i < BK_VK_BATCHES; i++)
    if (s->batches[i].pool) d->vk.DestroyCommandPool(d->handle, s->batches[i].pool, NULL);
  if (s->sets) d->vk.DestroyDescriptorPool(d->handle, s->sets, NULL);
  bk_vk_staging_free(d, s->staging, s->staging_memory);
  bk_free(stream->device->ctx, s);
}

static const bk_stream_ops vulkan_stream_ops = {BK_STREAM_OPS(stream), BK_STREAM_CAPTURES(bk_vk)};

bk_status bk_vk_timeline_take(bk_vk_device *d, bk_vk_timeline **timeline) {
  const VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                          .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
  const VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO,
                                      .pNext = &type};
  bk_vk_timeline *t = d->timelines;
  while (t && t->taken) t = t->next;
  if (!t) {
    t = bk_alloc(d->gpu.base.ctx, sizeof *t);
    if (!t) return BK_ERR_MEMORY;
    VkResult result = d->vk.CreateSemaphore(d->handle, &info, NULL, &t->semaphore);
    if (result != VK_SUCCESS) {
      bk_free(d->gpu.base.ctx, t);
      return bk_vk_fail(d->gpu.base.ctx, result, "making a timeline semaphore");
    }
    t->next = d->timelines;
    d->timelines = t;
  }
  t->taken = true;
  *timeline = t;
  return BK_OK;
}

VkResult bk_vk_commands_make(bk_vk_device *d, VkCommandPoolCreateFlags flags, VkCommandPool *pool,
                             VkCommandBuffer *commands) {
  const VkCommandPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                        .flags = flags,
                                        .queueFamilyIndex = d->traits.family};
  VkResult result = d->vk.CreateCommandPool(d->handle, &info, NULL, pool);
  if (result != VK_SUCCESS) return result;
  const VkCommandBufferAllocateInfo buffer = {
      .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
      .commandPool = *pool,
      .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
      .commandBufferCount = 1};
  return d->vk.AllocateCommandBuffers(d->handle, &buffer, commands);
}

static bk_status make_batch(bk_vk_device *d, bk_vk_batch *batch) {
  VkResult result =
      bk_vk_commands_make(d, VK_COMMAND_POOL_CREATE_TRANSIENT_BIT, &batch->pool, &batch->commands);
  return result == VK_SUCCESS ? BK_OK
                              : bk_vk_fail(d->gpu.base.ctx, result, "making command buffers");
}

static bk_status stream_fill_in(bk_vk_device *d, bk_vk_stream *s) {
  bk_vk_set sets[BK_VK_BATCHES * BK_VK_BATCH_COMMANDS];
  BK_TRY(bk_vk_timeline_take(d, &s->timeline));
  s->timeline->stream = s;
  for (int i = 0; i < BK_VK_BATCHES; i++) BK_TRY(make_batch(d, &s->batches[i]));
  if (!d->addresses) {
    BK_TRY(bk_vk_sets_alloc(d, BK_COUNT(sets), &s->sets, sets));
    for (int i = 0; i < BK_VK_BATCHES; i++)
      memcpy(s->batches[i].sets, sets + i * BK_VK_BATCH_COMMANDS, sizeof s->batches[i].sets);
  }
  return bk_vk_staging_alloc(d, BK_VK_BATCHES * BK_VK_BATCH_STAGING, &s->staging,
                             &s->staging_memory, &s->staging_data);
}

bk_status bk_vk_stream_create(bk_device *device, int priority, bk_stream **stream) {
  bk_vk_device *d = bk_vk_of(device);
  bk_vk_stream *s = bk_alloc(device->ctx, sizeof *s);
  if (!s) return BK_ERR_MEMORY;
  s->base = (bk_stream){.ops = &vulkan_stream_ops, .device = device};
  s->queue = d->queue[priority > 0];
  bk_status status = stream_fill_in(d, s);
  if (status != BK_OK) {
    stream_destroy(&s->base);
    return status;
  }
  *stream = &s->base;
  return BK_OK;
}

/* ---- events ---- */

static void event_destroy(bk_event *event) {
  bk_vk_event *e = (bk_vk_event *)event;
  bk_vk_device *d = bk_vk_of(event->device);
  if (!d->lost && !is_done(d, e)) (void)event_sync(event);
  if (e->query) d->vk.DestroyQueryPool(d->handle, e->query, NULL);
  bk_free(event->device->ctx, e);
}

static bk_status event_sync(bk_event *event) {
  bk_vk_event *e = (bk_vk_event *)event;
  bk_vk_device *d = bk_vk_of(event->device);
  if (!e->timeline) return BK_OK;
  bk_vk_stream *s = e->timeline->stream;
  if (d->lost && s) return bk_vk_enter(&s->base); /* each stream reports the loss once */
  const VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                    .semaphoreCount = 1,
                                    .pSemaphores = &e->timeline->semaphore,
                                    .pValues = &e->value};
  VkResult result = d->vk.WaitSemaphores(d->handle, &info, UINT64_MAX);
  if (result == VK_ERROR_DEVICE_LOST && s) return lose(&s->base, "waiting for an event");
  if (result == VK_ERROR_DEVICE_LOST) d->lost = true;
  if (result != VK_SUCCESS) return bk_vk_fail(event->device->ctx, result, "waiting for an event");
  if (s) deliver(s, e->value);
  return BK_OK;
}

static bk_status read_clock(bk_vk_device *d, const bk_vk_event *e, uint64_t *ticks) {
  VkResult result =
      d->vk.GetQueryPoolResults(d->handle, e->query, 0, 1, sizeof *ticks, ticks, sizeof *ticks,
                                VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT);
  return result == VK_SUCCESS ? BK_OK : bk_vk_fail(d->gpu.base.ctx, result, "reading events");
}

static bk_status event_elapsed(bk_event *begin, bk_event *end, double *seconds) {
  bk_vk_device *d = bk_vk_of(begin->device);
  const bk_vk_event *from = (bk_vk_event *)begin, *to = (bk_vk_event *)end;
  const uint32_t bits = d->traits.timestamp_bits;
  uint64_t a = 0, b = 0;
  if (!from->timeline || !to->timeline) return bk_event_never_recorded(begin);
  if (!bits)
    return bk_fail(begin->device->ctx, BK_ERR_UNSUPPORTED,
                   "vulkan:%d: the device has no clock for events", begin->device->index);
  BK_TRY(event_sync(begin));
  BK_TRY(event_sync(end));
  BK_TRY(read_clock(d, from, &a));
  BK_TRY(read_clock(d, to, &b));
  uint64_t ticks = (b - a) & (bits < 64 ? ((uint64_t)1 << bits) - 1 : UINT64_MAX);
  *seconds = (double)ticks * (double)d->traits.props.limits.timestampPeriod * 1e-9;
  return BK_OK;
}

static const bk_event_ops vulkan_event_ops = {event_destroy, event_sync, event_elapsed};

bk_status bk_vk_event_create(bk_device *device, bk_event **event) {
  bk_vk_device *d = bk_vk_of(device);
  const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                      .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                      .queryCount = 1};
  bk_vk_event *e = bk_alloc(device->ctx, sizeof *e);
  if (!e) return BK_ERR_MEMORY;
  e->base = (bk_event){.ops = &vulkan_event_ops, .device = device};
  VkResult result = d->traits.timestamp_bits
                        ? d->vk.CreateQueryPool(d->handle, &info, NULL, &e->query)
                        : VK_SUCCESS;
  if (result != VK_SUCCESS) {
    bk_free(device->ctx, e);
    return bk_vk_fail(device->ctx, result, "making an event");
  }
  *event = &e->base;
  return BK_OK;
}
