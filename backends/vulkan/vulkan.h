/* The vulkan backend: any Vulkan 1.2 device with a compute queue. library.c: libvulkan, found at
 * run time, and an instance; vulkan.c: the backend and its devices; memory.c: buffers in shared
 * blocks of memory; pipeline.c: kernels, compiled at build (spirv.c), and the cache of
 * pipelines; stream.c: commands in a ring of command buffers, events, transfers; graph.c:
 * captures; table.c: the kernel table.
 *
 * A kernel finds its operands in one of two ways. `address`: it gets 64-bit addresses
 * (bufferDeviceAddress), no limit on their range. `split`: each operand is a binding of its own,
 * which begins at an aligned offset; what is left of the offset comes as a parameter, in
 * elements. BIRKHOFF_VULKAN_BINDINGS=split|address forces one, BIRKHOFF_VULKAN_16BIT=no the
 * kernels for devices without 16-bit storage, BIRKHOFF_VULKAN_MAX_GROUP=N smaller work groups:
 * for tests. */
#ifndef BK_VULKAN_H
#define BK_VULKAN_H

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include "backends/gpu/gpu.h"

/* ---- library.c ---- */
#define BK_VK_INSTANCE_FUNCTIONS(X)         \
  X(DestroyInstance)                        \
  X(EnumeratePhysicalDevices)               \
  X(GetPhysicalDeviceProperties)            \
  X(GetPhysicalDeviceProperties2)           \
  X(GetPhysicalDeviceFeatures2)             \
  X(GetPhysicalDeviceMemoryProperties2)     \
  X(GetPhysicalDeviceQueueFamilyProperties) \
  X(EnumerateDeviceExtensionProperties)     \
  X(CreateDevice)                           \
  X(GetDeviceProcAddr)
#define BK_VK_DEVICE_FUNCTIONS(X) \
  X(DestroyDevice)                \
  X(GetDeviceQueue)               \
  X(DeviceWaitIdle)               \
  X(QueueSubmit)                  \
  X(AllocateMemory)               \
  X(FreeMemory)                   \
  X(MapMemory)                    \
  X(CreateBuffer)                 \
  X(DestroyBuffer)                \
  X(GetBufferMemoryRequirements)  \
  X(BindBufferMemory)             \
  X(GetBufferDeviceAddress)       \
  X(CreateCommandPool)            \
  X(DestroyCommandPool)           \
  X(ResetCommandPool)             \
  X(AllocateCommandBuffers)       \
  X(BeginCommandBuffer)           \
  X(EndCommandBuffer)             \
  X(CmdPipelineBarrier)           \
  X(CmdCopyBuffer)                \
  X(CmdFillBuffer)                \
  X(CmdUpdateBuffer)              \
  X(CmdBindPipeline)              \
  X(CmdBindDescriptorSets)        \
  X(CmdPushConstants)             \
  X(CmdDispatch)                  \
  X(CmdResetQueryPool)            \
  X(CmdWriteTimestamp)            \
  X(CreateQueryPool)              \
  X(DestroyQueryPool)             \
  X(GetQueryPoolResults)          \
  X(CreateSemaphore)              \
  X(DestroySemaphore)             \
  X(WaitSemaphores)               \
  X(GetSemaphoreCounterValue)     \
  X(CreateDescriptorSetLayout)    \
  X(DestroyDescriptorSetLayout)   \
  X(CreateDescriptorPool)         \
  X(DestroyDescriptorPool)        \
  X(AllocateDescriptorSets)       \
  X(UpdateDescriptorSets)         \
  X(CreatePipelineLayout)         \
  X(DestroyPipelineLayout)        \
  X(CreatePipelineCache)          \
  X(DestroyPipelineCache)         \
  X(GetPipelineCacheData)         \
  X(CreateShaderModule)           \
  X(DestroyShaderModule)          \
  X(CreateComputePipelines)       \
  X(DestroyPipeline)
#define BK_VK_MEMBER(name) PFN_vk##name name;

typedef struct bk_vk_instance {
  VkInstance handle;
  BK_VK_INSTANCE_FUNCTIONS(BK_VK_MEMBER)
} bk_vk_instance;
typedef struct bk_vk_api {
  BK_VK_DEVICE_FUNCTIONS(BK_VK_MEMBER)
} bk_vk_api;

/* BK_ERR_ABSENT with the reason in words. */
bk_status bk_vk_instance_open(bk_vk_instance *in, bk_context *ctx, char *reason, size_t size);
void bk_vk_instance_close(bk_vk_instance *in); /* safe on a zeroed one; zeroes it */
/* False: the driver lacks one of them. */
bool bk_vk_device_functions(const bk_vk_instance *in, VkDevice device, bk_vk_api *vk);

/* ---- objects ---- */

/* What is known of a physical device without opening it. */
typedef struct bk_vk_traits {
  VkPhysicalDevice handle;
  VkPhysicalDeviceProperties props;
  VkPhysicalDeviceMemoryProperties memory;
  char driver_name[VK_MAX_DRIVER_NAME_SIZE], driver_info[VK_MAX_DRIVER_INFO_SIZE];
  uint8_t device_uuid[VK_UUID_SIZE], driver_uuid[VK_UUID_SIZE];
  uint32_t family, queues; /* of the queues that are used */
  uint32_t timestamp_bits;
  uint32_t heap; /* of device memory */
  size_t max_alloc;
  /* features: buffer addresses, 16-bit storage, timeline semaphores */
  bool addresses, halves, timeline;
  bool budget, portability; /* extensions */
  bool fp16, fp64, int64;   /* what shaders can compute with; told, not used */
  uint32_t subgroup;        /* work items that run side by side */
  char refused[128];        /* why it cannot be used, or "" */
} bk_vk_traits;

/* Memory that several buffers share, or that a large one has alone. */
typedef struct bk_vk_buffer bk_vk_buffer;
typedef struct bk_vk_block bk_vk_block;
struct bk_vk_block {
  bk_vk_block *next;
  VkDeviceMemory memory;
  VkDeviceSize size;
  uint32_t type;
  bk_vk_buffer *first; /* in the order of their offsets */
};
/* What bk_buffer.handle points to. */
struct bk_vk_buffer {
  VkBuffer buffer;
  VkDeviceAddress address; /* 0 in split mode */
  /* of the buffer; where its memory is in the block, and how much */
  VkDeviceSize size, offset, bytes;
  bk_vk_block *block;
  bk_vk_buffer *next; /* in the block */
};

/* A timeline that a stream's submissions count up. It outlives the stream, because events refer
 * to it; another stream takes it over. */
typedef struct bk_vk_stream bk_vk_stream;
typedef struct bk_vk_timeline bk_vk_timeline;
struct bk_vk_timeline {
  bk_vk_timeline *next;
  VkSemaphore semaphore;
  uint64_t value; /* of the last submission */
  bool taken;
  bk_vk_stream *stream; /* the stream that counts on it; NULL: the device itself, or none */
};

typedef struct bk_vk_graph bk_vk_graph;

typedef struct bk_vk_device {
  bk_gpu_device gpu;
  bk_vk_instance in;
  bk_vk_traits traits;
  bk_vk_api vk;
  VkDevice handle;
  VkQueue queue[2]; /* plain, urgent; the same one if there is one */
  bool complete;    /* all functions of vk were found */
  int most_group;   /* work items that a group can have; gpu.max_group is what it should have */
  bool addresses, halves, lost;
  /* memory.c */
  bk_vk_block *blocks;
  int n_blocks;
  VkDeviceSize allocated;
  /* Each byte value four times, from which the odd ends of a fill are copied. It also stands for
   * absent operands. */
  bk_vk_buffer bytes;
  VkCommandPool setup_pool;
  VkCommandBuffer setup;
  bk_vk_timeline *setup_timeline;
  /* pipeline.c */
  VkDescriptorSetLayout set_layout;
  VkPipelineLayout layout;
  VkPipelineCache cache;
  size_t cache_bytes; /* size of the cache read from disk, as the driver reports it */
  /* stream.c, graph.c */
  bk_vk_timeline *timelines;
  bk_vk_graph *capture; /* the one in progress, or NULL */
  uint64_t captures;    /* captures ever begun; the last number is the last one's id */
} bk_vk_device;

typedef struct bk_vk_pipeline {
  bk_gpu_pipeline base;
  VkPipeline handle;
} bk_vk_pipeline;

/* A command buffer of a stream's ring. One of the ring is open (being recorded) at most; it is
 * submitted at sync, query, an event, or when it is full. */
#define BK_VK_BATCHES 6
#define BK_VK_BATCH_COMMANDS 96
#define BK_VK_BATCH_DOWNLOADS 16
#define BK_VK_BATCH_STAGING ((size_t)1 << 20)
typedef struct bk_vk_download {
  void *dst;
  size_t offset, bytes; /* in this command buffer's part of the staging */
} bk_vk_download;
/* Descriptors, and how many of them point to a buffer. */
typedef struct bk_vk_set {
  VkDescriptorSet handle;
  int written;
} bk_vk_set;
typedef struct bk_vk_batch {
  VkCommandPool pool;
  VkCommandBuffer commands;
  bk_vk_set sets[BK_VK_BATCH_COMMANDS]; /* split mode */
  uint64_t value;                       /* of its submission */
  int n_commands, n_downloads;
  size_t staged;
  bk_vk_download downloads[BK_VK_BATCH_DOWNLOADS];
} bk_vk_batch;

#define BK_VK_WAITS 8
#define BK_VK_TRACE 8
struct bk_vk_stream {
  bk_stream base;
  VkQueue queue;
  bk_vk_timeline *timeline;
  bk_vk_batch batches[BK_VK_BATCHES];
  int at; /* the one that is open, or that will be next */
  bool open;
  VkDescriptorPool sets;
  VkBuffer staging;
  VkDeviceMemory staging_memory;
  char *staging_data;
  VkSemaphore wait[BK_VK_WAITS]; /* what the next submission waits for */
  uint64_t wait_value[BK_VK_WAITS];
  int n_waits;
  bk_status poison;
  uint64_t joined; /* id of the capture that the stream takes part in */
  /* ring of the last launches, for the message when the device is lost */
  const char *trace[BK_VK_TRACE];
  uint64_t launches;
};

typedef struct bk_vk_event {
  bk_event base;
  bk_vk_timeline *timeline; /* NULL: never recorded */
  VkQueue queue;
  uint64_t value;
  uint64_t capture; /* id of the capture in which it was recorded */
  VkQueryPool query;
} bk_vk_event;

static inline bk_vk_device *bk_vk_of(bk_device *device) { return (bk_vk_device *)device; }

/* ---- vulkan.c ---- */
const char *bk_vk_result_name(VkResult result);
bk_status bk_vk_status(VkResult result); /* BK_ERR_MEMORY or BK_ERR_DEVICE for an error */
/* Status for a Vulkan error, logged with what was being done: a phrase, "making a queue". */
bk_status bk_vk_fail(bk_context *ctx, VkResult result, const char *what);

/* ---- memory.c ---- */
bk_status bk_vk_memory_init(bk_vk_device *d);
void bk_vk_memory_fini(bk_vk_device *d);
bk_status bk_vk_memory_info(bk_device *device, size_t *free_bytes, size_t *total_bytes);
bk_status bk_vk_buffer_alloc(bk_device *device, size_t bytes, void **handle);
void bk_vk_buffer_free(bk_device *device, void *handle, size_t bytes);
/* Memory that the host sees, mapped for good: not counted among the blocks. */
bk_status bk_vk_staging_alloc(bk_vk_device *d, size_t bytes, VkBuffer *buffer,
                              VkDeviceMemory *memory, char **data);
void bk_vk_staging_free(bk_vk_device *d, VkBuffer buffer, VkDeviceMemory memory);

/* ---- spirv.c ---- */
typedef enum bk_vk_variant {
  BK_VK_SPLIT,
  BK_VK_ADDRESS,
  BK_VK_SPLIT_32,
  BK_VK_VARIANTS
} bk_vk_variant;
typedef struct bk_vk_spirv {
  const char *kernel;
  struct {
    const uint32_t *words;
    size_t bytes;
  } code[BK_VK_VARIANTS];
} bk_vk_spirv;
const bk_vk_spirv *bk_vk_spirv_find(const char *kernel); /* NULL: there is none */
uint64_t bk_vk_spirv_hash(void);                         /* of all of it */

/* ---- pipeline.c ---- */
bk_status bk_vk_pipelines_init(bk_vk_device *d);
void bk_vk_pipelines_fini(bk_vk_device *d);
bk_status bk_vk_build(bk_device *device, const bk_gpu_kernel *kernel, const int32_t *consts,
                      bk_gpu_pipeline **pipeline);
void bk_vk_pipeline_free(bk_device *device, bk_gpu_pipeline *pipeline);

/* ---- stream.c ---- */
bk_status bk_vk_dispatch(bk_stream *stream, const char *name, const bk_gpu_pipeline *pipeline,
                         const bk_place *operands, const int32_t *params, int groups);
bk_status bk_vk_stream_create(bk_device *device, int priority, bk_stream **stream);
bk_status bk_vk_event_create(bk_device *device, bk_event **event);
/* All streams of the device have done what they were given. */
void bk_vk_settle(bk_vk_device *d);
bk_status bk_vk_timeline_take(bk_vk_device *d, bk_vk_timeline **timeline);
/* A pool of one command buffer. Where that fails, the caller destroys what was made of it. */
VkResult bk_vk_commands_make(bk_vk_device *d, VkCommandPoolCreateFlags flags, VkCommandPool *pool,
                             VkCommandBuffer *commands);
/* Posts a command buffer (or none), after what the stream waits for. Adds 1 to the timeline. */
bk_status bk_vk_submit(bk_stream *stream, VkCommandBuffer commands);
/* What is recorded is submitted. */
bk_status bk_vk_flush(bk_stream *stream);
/* OK, or the status that the stream was poisoned with. */
bk_status bk_vk_enter(bk_stream *stream);
bk_status bk_vk_check(bk_stream *stream, VkResult result, const char *what);

/* ---- graph.c ---- */
/* The capture that commands of the stream go to, or NULL. */
bk_vk_graph *bk_vk_capture_of(bk_stream *stream);
uint64_t bk_vk_capture_id(const bk_vk_graph *graph);
/* What cannot be captured: the capture fails with the reason. OK outside of captures. */
bk_status bk_vk_refuse_capture(bk_stream *stream, const char *what);
/* Where the next command of a capture goes; set NULL: it needs no descriptors. */
bk_status bk_vk_graph_command(bk_stream *stream, bk_vk_graph *graph, VkCommandBuffer *commands,
                              bk_vk_set **set);
bk_status bk_vk_capture_begin(bk_stream *stream);
bk_status bk_vk_capture_end(bk_stream *stream, void **graph);
bk_status bk_vk_graph_launch(bk_stream *stream, void *graph);
void bk_vk_graph_destroy(bk_stream *stream, void *graph);

/* A pool of `count` sets of the device's layout, and the sets. */
bk_status bk_vk_sets_alloc(bk_vk_device *d, int count, VkDescriptorPool *pool, bk_vk_set *sets);

extern const bk_kernel bk_vulkan_kernels[];

#endif
