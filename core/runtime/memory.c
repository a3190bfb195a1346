/* The memory planner. A model first reserves all its tensors, class by class (weights, gradients,
 * activations and so on), and then gets their memory in one commit. Between the two the need of
 * each class is known exactly, without any of it being allocated.
 *
 * Each class has one arena of offsets. Each chunk of an arena has one buffer object, which exists
 * from the moment something is planned in it, so that tensors can point to it before it has
 * memory. A chunk is no larger than the device's largest allocation, so that large classes may
 * have several. */
#include "runtime/buffer_priv.h"

typedef struct class_memory {
  bk_arena arena;
  bk_buffer **buffers; /* by chunk; the objects stay where they are when this array grows */
  size_t n_buffers, capacity;
} class_memory;

struct bk_memory {
  bk_device *device;
  bool committed;
  class_memory classes[BK_MEM_CLASS_COUNT];
};

const char *bk_memory_class_name(bk_memory_class c) {
  static const char *const names[BK_MEM_CLASS_COUNT] = {"weights",   "masters",     "gradients",
                                                        "optimizer", "activations", "workspace",
                                                        "comm",      "staging"};
  return (unsigned)c < BK_MEM_CLASS_COUNT ? names[c] : "invalid";
}

bk_status bk_memory_create(bk_device *device, bk_memory **memory) {
  bk_memory *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->device = device;
  size_t limit = device->props.max_alloc ? device->props.max_alloc : SIZE_MAX;
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++)
    bk_arena_init(&made->classes[c].arena, device->ctx, bk_memory_class_name((bk_memory_class)c),
                  limit);
  *memory = made;
  return BK_OK;
}

void bk_memory_destroy(bk_memory *memory) {
  if (!memory) return;
  bk_context *ctx = memory->device->ctx;
  for (int c = BK_MEM_CLASS_COUNT - 1; c >= 0; c--) {
    class_memory *m = &memory->classes[c];
    for (size_t i = m->n_buffers; i-- > 0;) bk_buffer_free(m->buffers[i]);
    bk_free(ctx, m->buffers);
    bk_arena_fini(&m->arena);
  }
  bk_free(ctx, memory);
}

/* A tensor that is empty needs 0 bytes, whatever the product of its other dimensions is. Sizes
 * stay below INT64_MAX, because shapes and strides are signed. */
static bk_status shape_bytes(bk_context *ctx, bk_dtype dtype, int ndim, const int64_t *shape,
                             size_t *bytes) {
  size_t sum = bk_dtype_size(dtype);
  if (sum == 0 || ndim < 0 || ndim > BK_MAX_DIMS)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "memory: a tensor needs a dtype and 0 to %d dimensions, not %s and %d",
                   BK_MAX_DIMS, bk_dtype_name(dtype), ndim);
  bool empty = false;
  for (int i = 0; i < ndim; i++) {
    if (shape[i] < 0)
      return bk_fail(ctx, BK_ERR_ARGUMENT, "memory: dimension %d has size %lld", i,
                     (long long)shape[i]);
    empty |= shape[i] == 0;
    if (shape[i] > 0 && !bk_mul_size(sum, (size_t)shape[i], &sum)) sum = SIZE_MAX;
  }
  if (!empty && sum > (size_t)INT64_MAX)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "memory: a tensor of %d dimensions is larger than can be addressed", ndim);
  *bytes = empty ? 0 : sum;
  return BK_OK;
}

static bk_status add_buffer(bk_memory *memory, bk_memory_class c) {
  class_memory *m = &memory->classes[c];
  BK_TRY(bk_grow(memory->device->ctx, (void **)&m->buffers, &m->capacity, m->n_buffers + 1,
                 sizeof *m->buffers));
  BK_TRY(bk_buffer_create(memory->device, c, &m->buffers[m->n_buffers]));
  m->n_buffers++;
  return BK_OK;
}

/* The output is written only on success, and nothing can be planned after commit: the buffers have
 * their final sizes then. */
bk_status bk_memory_tensor(bk_memory *memory, bk_memory_class c, bk_dtype dtype, int ndim,
                           const int64_t *shape, bk_tensor *t) {
  bk_context *ctx = memory->device->ctx;
  class_memory *m = &memory->classes[c];
  size_t bytes = 0;
  bk_arena_place place = {0};
  if (memory->committed)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "memory: a tensor of class %s was asked for after commit",
                   bk_memory_class_name(c));
  BK_TRY(shape_bytes(ctx, dtype, ndim, shape, &bytes));
  BK_TRY(bk_arena_reserve(&m->arena, bytes, &place));
  while (m->n_buffers <= (size_t)place.chunk) BK_TRY(add_buffer(memory, c));
  bk_tensor made = bk_tensor_make(dtype, ndim, shape);
  made.buffer = m->buffers[place.chunk];
  made.offset = place.offset;
  *t = made;
  return BK_OK;
}

bk_arena_mark bk_memory_mark(bk_memory *memory, bk_memory_class c) {
  return bk_arena_get_mark(&memory->classes[c].arena);
}

void bk_memory_rewind(bk_memory *memory, bk_memory_class c, bk_arena_mark mark) {
  bk_arena_rewind(&memory->classes[c].arena, mark);
}

size_t bk_memory_bytes(const bk_memory *memory, bk_memory_class c) {
  return bk_arena_bytes(&memory->classes[c].arena);
}

static void unbind_all(bk_memory *memory) {
  for (int c = BK_MEM_CLASS_COUNT - 1; c >= 0; c--)
    for (size_t i = memory->classes[c].n_buffers; i-- > 0;)
      bk_buffer_unbind(memory->classes[c].buffers[i]);
}

static bk_status bind_all(bk_memory *memory) {
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++) {
    class_memory *m = &memory->classes[c];
    for (size_t i = 0; i < m->n_buffers; i++) {
      bk_status status = bk_buffer_bind(m->buffers[i], m->arena.chunk_bytes[i]);
      if (status == BK_OK) continue;
      /* The device has said why it failed; this says what the memory was for. */
      bk_warn(memory->device->ctx,
              "memory: %s needs %zu bytes, %zu of them in one buffer that %s could not give",
              bk_memory_class_name((bk_memory_class)c), bk_arena_bytes(&m->arena),
              m->arena.chunk_bytes[i], memory->device->backend->name);
      return status;
    }
  }
  return BK_OK;
}

/* All or nothing: after a failure no buffer has memory, and the caller may plan something
 * smaller. */
bk_status bk_memory_commit(bk_memory *memory) {
  if (memory->committed)
    return bk_fail(memory->device->ctx, BK_ERR_ARGUMENT, "memory: committed already");
  bk_status status = bind_all(memory);
  if (status != BK_OK) {
    unbind_all(memory);
    return status;
  }
  memory->committed = true;
  return BK_OK;
}
