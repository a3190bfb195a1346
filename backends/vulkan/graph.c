/* Captures: the commands of a stream are recorded into a command buffer of its own, which is
 * submitted as often as wanted. A device has one capture in progress at most. A stream that waits
 * for an event of the capture takes part in it: its commands go into the same command buffer, one
 * after the other. */
#include "backends/vulkan/vulkan.h"

#define SETS 256 /* descriptor sets made at a time */

typedef struct set_pool set_pool;
struct set_pool {
  set_pool *next;
  VkDescriptorPool pool;
  bk_vk_set sets[SETS];
};

struct bk_vk_graph {
  uint64_t id;
  bk_stream *owner;
  VkCommandPool pool;
  VkCommandBuffer commands;
  set_pool *sets; /* the newest first */
  int used;       /* sets in use of the newest pool */
  bk_status failed;
};

static bk_vk_device *device_of(bk_stream *stream) { return bk_vk_of(stream->device); }

bk_vk_graph *bk_vk_capture_of(bk_stream *stream) {
  bk_vk_graph *g = device_of(stream)->capture;
  return g && (g->owner == stream || ((bk_vk_stream *)stream)->joined == g->id) ? g : NULL;
}

uint64_t bk_vk_capture_id(const bk_vk_graph *graph) { return graph->id; }

bk_status bk_vk_refuse_capture(bk_stream *stream, const char *what) {
  bk_vk_graph *g = bk_vk_capture_of(stream);
  if (!g) return BK_OK;
  g->failed =
      bk_fail(stream->device->ctx, BK_ERR_UNSUPPORTED, "vulkan: %s cannot be captured", what);
  return g->failed;
}

static void graph_free(bk_vk_device *d, bk_vk_graph *g) {
  if (g->pool) d->vk.DestroyCommandPool(d->handle, g->pool, NULL);
  while (g->sets) {
    set_pool *p = g->sets;
    g->sets = p->next;
    if (p->pool) d->vk.DestroyDescriptorPool(d->handle, p->pool, NULL);
    bk_free(d->gpu.base.ctx, p);
  }
  bk_free(d->gpu.base.ctx, g);
}

static bk_status take_set(bk_vk_device *d, bk_vk_graph *g, bk_vk_set **set) {
  if (!g->sets || g->used == SETS) {
    set_pool *made = bk_alloc(d->gpu.base.ctx, sizeof *made);
    if (!made) return BK_ERR_MEMORY;
    made->next = g->sets;
    g->sets = made;
    g->used = 0;
    BK_TRY(bk_vk_sets_alloc(d, SETS, &made->pool, made->sets));
  }
  *set = &g->sets->sets[g->used++];
  return BK_OK;
}

bk_status bk_vk_graph_command(bk_stream *stream, bk_vk_graph *graph, VkCommandBuffer *commands,
                              bk_vk_set **set) {
  if (graph->failed == BK_OK && set) graph->failed = take_set(device_of(stream), graph, set);
  *commands = graph->commands;
  return graph->failed;
}

static bk_status make_commands(bk_stream *stream, bk_vk_graph *g) {
  bk_vk_device *d = device_of(stream);
  VkResult result = bk_vk_commands_make(d, 0, &g->pool, &g->commands);
  if (result == VK_SUCCESS) { /* the host may be ahead, with the same graph twice in the queue */
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                            .flags = VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT};
    result = d->vk.BeginCommandBuffer(g->commands, &begin);
  }
  return bk_vk_check(stream, result, "beginning a capture");
}

bk_status bk_vk_capture_begin(bk_stream *stream) {
  bk_vk_device *d = device_of(stream);
  BK_TRY(bk_vk_enter(stream));
  if (d->capture)
    return bk_fail(stream->device->ctx, BK_ERR_ARGUMENT,
                   "vulkan: a capture is under way on this device already");
  bk_vk_graph *g = bk_alloc(stream->device->ctx, sizeof *g);
  if (!g) return BK_ERR_MEMORY;
  g->id = ++d->captures;
  g->owner = stream;
  bk_status status = make_commands(stream, g);
  if (status != BK_OK) {
    graph_free(d, g);
    return status;
  }
  d->capture = g;
  return BK_OK;
}

/* The capture has ended in any case, whether or not there is a graph. */
bk_status bk_vk_capture_end(bk_stream *stream, void **graph) {
  bk_vk_device *d = device_of(stream);
  bk_vk_graph *g = d->capture;
  if (!g || g->owner != stream)
    return bk_fail(stream->device->ctx, BK_ERR_ARGUMENT,
                   "vulkan: no capture is under way on this stream");
  d->capture = NULL;
  bk_status status = bk_vk_check(stream, d->vk.EndCommandBuffer(g->commands), "ending a capture");
  if (status == BK_OK) status = g->failed;
  if (status == BK_OK) status = bk_vk_enter(stream);
  if (status == BK_OK && graph) *graph = g;
  else graph_free(d, g);
  return status;
}

bk_status bk_vk_graph_launch(bk_stream *stream, void *graph) {
  bk_vk_stream *s = (bk_vk_stream *)stream;
  BK_TRY(bk_vk_enter(stream));
  BK_TRY(bk_vk_refuse_capture(stream, "a graph"));
  BK_TRY(bk_vk_flush(stream));
  s->trace[s->launches++ % BK_VK_TRACE] = "a captured graph";
  return bk_vk_submit(stream, ((const bk_vk_graph *)graph)->commands);
}

void bk_vk_graph_destroy(bk_stream *stream, void *graph) {
  if (!graph) return;
  bk_vk_settle(device_of(stream));
  graph_free(device_of(stream), graph);
}
