/* The vtables that a backend fills in, and the objects they act on.
 *
 * A backend is one `static const bk_backend`; from it devices are opened, from a device buffers,
 * streams and events are made. A backend embeds these structs as the first member of its own. No
 * member of a vtable is ever NULL: the shared stubs at the end of this file stand for what a
 * backend does not have, and registration refuses a table with holes. An address is always
 * (buffer, byte offset): a handle need not be a pointer that the host can follow. */
#ifndef BK_BACKEND_H
#define BK_BACKEND_H

#include <birkhoff/device.h>

#include "runtime/op.h"
#include "tensor/tensor.h"

#define BK_BACKEND_ABI 8u /* raise on any change of this header, op.h or ops.def */

typedef struct bk_backend bk_backend;
typedef struct bk_stream bk_stream;
typedef struct bk_event bk_event;
typedef struct bk_plan bk_plan;

struct bk_buffer {
  bk_device *device;
  /* The address on a host backend, an object of its own on another. NULL until memory is bound. */
  void *handle;
  size_t size; /* bytes */
  bk_memory_class mem_class;
};

typedef struct bk_place {
  bk_buffer *buffer;
  size_t offset;
} bk_place;

/* Host address of an element of a tensor of a host backend (ref, cpu). */
static inline void *bk_tensor_data(const bk_tensor *t) {
  return (char *)t->buffer->handle + t->offset;
}
static inline void *bk_place_data(bk_place p) {
  return p.buffer ? (char *)p.buffer->handle + p.offset : NULL;
}

typedef struct bk_device_ops {
  void (*close)(bk_device *device);
  bk_status (*memory_info)(bk_device *device, size_t *free_bytes, size_t *total_bytes);
  bk_status (*buffer_alloc)(bk_device *device, size_t bytes, void **handle); /* zero-filled */
  void (*buffer_free)(bk_device *device, void *handle, size_t bytes);
  /* pinned where that exists */
  bk_status (*host_alloc)(bk_device *device, size_t bytes, void **ptr);
  void (*host_free)(bk_device *device, void *ptr, size_t bytes);
  /* larger = more urgent */
  bk_status (*stream_create)(bk_device *device, int priority, bk_stream **stream);
  bk_status (*event_create)(bk_device *device, bk_event **event);
} bk_device_ops;

struct bk_device {
  const bk_device_ops *ops;
  const bk_backend *backend;
  bk_context *ctx;
  int index;
  bk_device_options options;
  bk_device_props props;
  /* Buffers ever made on the device; tests check that a training step makes none. */
  uint64_t buffer_allocs;
  /* ops/fallback.c: the device that serves ops this one lacks. It is opened at the first need and
   * closed by bk_device_close, its stream first. fell_back: the ops that were warned about. */
  bk_device *fallback;
  bk_stream *fallback_stream;
  bool fell_back[BK_OP_COUNT];
  /* Opens the device to fall back on, or leaves *fallback NULL if there is none. Set by
   * bk_device_open, which knows the registry; NULL in a device opened from a backend at hand. */
  bk_status (*open_fallback)(const bk_device *device, bk_device **fallback);
};

/* Streams are in order. A stream may run inline (the call returns when the work is done); no
 * caller may rely on two streams making progress at once. */
typedef struct bk_stream_ops {
  void (*destroy)(bk_stream *stream);
  /* The caller keeps src valid until the next sync. */
  bk_status (*upload)(bk_stream *stream, bk_place dst, const void *src, size_t bytes);
  bk_status (*download)(bk_stream *stream, void *dst, bk_place src, size_t bytes);
  /* Both places are on the stream's device and do not overlap. */
  bk_status (*copy)(bk_stream *stream, bk_place dst, bk_place src, size_t bytes);
  bk_status (*fill)(bk_stream *stream, bk_place dst, uint8_t value, size_t bytes);
  bk_status (*event_record)(bk_stream *stream, bk_event *event);
  bk_status (*event_wait)(bk_stream *stream, bk_event *event);
  bk_status (*sync)(bk_stream *stream);
  bk_status (*query)(bk_stream *stream, bool *done);
  /* Between capture_begin and capture_end launches, fills and copies are noted, not done; what
   * involves the host (upload, download, events, sync, query) is an error then. capture_end
   * always ends the capture: BK_OK with the graph, or why there is none. graph_launch does what
   * was noted, at the same addresses, in order with the rest of the stream. graph_destroy: the
   * stream has been synchronised. Stubs: BK_ERR_UNSUPPORTED. */
  bk_status (*capture_begin)(bk_stream *stream);
  bk_status (*capture_end)(bk_stream *stream, void **graph);
  bk_status (*graph_launch)(bk_stream *stream, void *graph);
  void (*graph_destroy)(bk_stream *stream, void *graph);
} bk_stream_ops;

/* A stream's table is made of two of these lists. They name the functions of one backend, which are
 * called like the members behind a prefix: BK_STREAM_OPS(stream) means stream_upload, stream_copy
 * and so on. A stream that cannot be captured takes the stubs as its second list. */
#define BK_STREAM_OPS(prefix)                                                            \
  .destroy = prefix##_destroy, .upload = prefix##_upload, .download = prefix##_download, \
  .copy = prefix##_copy, .fill = prefix##_fill, .event_record = prefix##_event_record,   \
  .event_wait = prefix##_event_wait, .sync = prefix##_sync, .query = prefix##_query
#define BK_STREAM_CAPTURES(prefix)                                              \
  .capture_begin = prefix##_capture_begin, .capture_end = prefix##_capture_end, \
  .graph_launch = prefix##_graph_launch, .graph_destroy = prefix##_graph_destroy
#define BK_STREAM_NO_CAPTURES                                                               \
  .capture_begin = bk_stream_capture_begin_none, .capture_end = bk_stream_capture_end_none, \
  .graph_launch = bk_stream_graph_launch_none, .graph_destroy = bk_stream_graph_destroy_none

struct bk_stream {
  const bk_stream_ops *ops;
  bk_device *device;
};

typedef struct bk_event_ops {
  void (*destroy)(bk_event *event);
  bk_status (*sync)(bk_event *event);
  bk_status (*elapsed)(bk_event *begin, bk_event *end, double *seconds);
} bk_event_ops;
struct bk_event {
  const bk_event_ops *ops;
  bk_device *device;
};

/* ---- kernels ---- */

/* One row of the kernel table, best first. Lookup takes the first row with the op, the leading
 * tensor's dtype in `dtypes`, the connection's kind in `kinds` where the op's args name one, and
 * accepts() true: `supports` and dispatch are this one lookup. The leading tensor is the first
 * field of the args struct (EMBED: ids, so i32). Registration refuses a row of an op with a kind
 * that takes none.
 *
 * accepts: what dtype and kind do not say. `self` is the row, so that one function can serve many.
 * prepare: once, when a model is built; args carry dtypes, shapes, strides and parameters, buffers
 *   may be NULL. It may allocate and leaves its state in *state. The plan then serves all calls on
 *   one stream whose args have the same dtypes, shapes, strides and parameters, whose operands lie
 *   at the same offsets modulo 256 and are the same places where they were.
 * launch: gets workspace_bytes of device memory at `workspace` (256-byte aligned), and such args
 *   with buffers; it never allocates, compiles or synchronises. The row is plan->kernel. */
typedef struct bk_kernel bk_kernel;
#define BK_ACCEPTS(function)                                                        \
  bool function(const bk_kernel *self BK_UNUSED, const bk_device *device BK_UNUSED, \
                const void *args BK_UNUSED)
#define BK_PREPARE(function)                                                       \
  bk_status function(const bk_kernel *self BK_UNUSED, bk_device *device BK_UNUSED, \
                     const void *args BK_UNUSED, void **state BK_UNUSED,           \
                     size_t *workspace_bytes BK_UNUSED)
#define BK_LAUNCH_FN(function)                                                   \
  bk_status function(bk_stream *stream BK_UNUSED, const bk_plan *plan BK_UNUSED, \
                     const void *args BK_UNUSED, bk_place workspace BK_UNUSED)
struct bk_kernel {
  bk_op op;        /* BK_OP_NONE ends the table */
  uint32_t dtypes; /* set of 1u << bk_dtype */
  uint32_t kinds;  /* set of BK_KIND(bk_hc_kind); 0 where the op has no kind */
  int variant;     /* for the backend's use: an instruction set, for example */
  const void *own; /* for the backend's use */
  char name[32];   /* in place: a pointer would be one more to relocate in every row */
  BK_ACCEPTS((*accepts));
  BK_PREPARE((*prepare));
  BK_LAUNCH_FN((*launch));
  void (*release)(bk_device *device, void *state);
};

#define BK_KIND(kind) (1u << (kind))
#define BK_KINDS_ALL UINT32_MAX
/* Four ways to write a row: with every member (kinds is 0 where the op has no kind), with a
 * function that limits what it accepts, with a workspace, and with neither. */
#define BK_KERNEL_ROW(op_, dtypes_, kinds_, name_, accepts_, prepare_, launch_, release_) \
  {                                                                                       \
    .op = op_, .dtypes = dtypes_, .kinds = kinds_, .name = name_, .accepts = accepts_,    \
    .prepare = prepare_, .launch = launch_, .release = release_                           \
  }
#define BK_KERNEL_IF(op, dtypes, name, accepts, launch)                       \
  BK_KERNEL_ROW(op, dtypes, 0, name, accepts, bk_kernel_prepare_none, launch, \
                bk_kernel_release_none)
#define BK_KERNEL_WORK(op, dtypes, name, prepare, launch) \
  BK_KERNEL_ROW(op, dtypes, 0, name, bk_kernel_accepts_all, prepare, launch, bk_kernel_release_none)
#define BK_KERNEL(op, dtypes, name, launch) \
  BK_KERNEL_IF(op, dtypes, name, bk_kernel_accepts_all, launch)
#define BK_KERNEL_END BK_KERNEL(BK_OP_NONE, 0, "", bk_kernel_launch_none)

struct bk_plan {
  const bk_kernel *kernel;
  bk_device *device;
  void *state;
  size_t workspace_bytes;
};

struct bk_backend {
  uint32_t abi;     /* BK_BACKEND_ABI */
  const char *name; /* "ref", "cpu", "cuda", ... */
  int priority;     /* the default device is the first device of the highest priority that probes */
  /* BK_OK, with a line in `reason` for each device that cannot be used ("NAME: why"; empty:
   * none); or BK_ERR_ABSENT with the reason in words, such lines where devices are there and
   * none can be used. */
  bk_status (*probe)(bk_context *ctx, char *reason, size_t reason_size);
  int (*device_count)(bk_context *ctx);
  /* Fills props of device `index` without opening it. Bytes of its memory: 0 where they are not
   * known. */
  bk_status (*describe)(bk_context *ctx, int index, bk_device_props *props, size_t *memory_bytes);
  bk_status (*open)(bk_context *ctx, int index, const bk_device_options *options,
                    bk_device **device);
  const bk_kernel *kernels;
};

/* A backend's table. BK_BACKEND(cpu, ...) expects the functions cpu_probe, cpu_device_count,
 * cpu_describe and cpu_open. */
#define BK_BACKEND(name_, priority_, kernels_)                                                \
  {                                                                                           \
    .abi = BK_BACKEND_ABI, .name = #name_, .priority = priority_, .probe = name_##_probe,     \
    .device_count = name_##_device_count, .describe = name_##_describe, .open = name_##_open, \
    .kernels = kernels_                                                                       \
  }

/* A loadable module defines this function; the symbol is all that it exports. */
#define BK_BACKEND_MODULE_SYMBOL "bk_backend_module"
BK_API const bk_backend *bk_backend_module(void);
typedef const bk_backend *(*bk_backend_module_fn)(void);

/* ---- registry (runtime/registry.c): the only mutable global of the library ---- */
/* Compiled-in backends are registered by one explicit list (registry.c); BK_ERR_ABI for another
 * ABI or a hole in a table. */
bk_status bk_backend_register(bk_context *ctx, const bk_backend *backend);
int bk_backend_count(void);
const bk_backend *bk_backend_get(int i);
const bk_backend *bk_backend_find(const char *name);
/* Registers the compiled-in backends, then the modules. Later calls do nothing and return BK_OK. */
bk_status bk_registry_init(bk_context *ctx);
/* loader.c: dlopens birkhoff_*.so of BIRKHOFF_BACKEND_DIR (or the installed folder); a bad
 * module is a warning. */
bk_status bk_loader_load_all(bk_context *ctx);
/* Loads one module. A fault of it is logged as a warning, remembered for the command `devices`, and
 * returned as a status. */
bk_status bk_loader_load(bk_context *ctx, const char *path);
typedef struct bk_refused_module {
  char path[256], reason[256];
} bk_refused_module;
int bk_loader_refused_count(void);
const bk_refused_module *bk_loader_refused_get(int i);

/* ---- device (runtime/device.c, by name: runtime/open.c) ---- */
/* bk_device_open, bk_device_open_backend, bk_device_close, bk_device_options: birkhoff/device.h */
BK_MODULE_API bk_status bk_stream_create(bk_device *device, int priority, bk_stream **stream);
BK_MODULE_API void bk_stream_destroy(bk_stream *stream); /* NULL is allowed */
/* For a backend's open: fills in what every device begins with. `options` may be NULL. */
BK_MODULE_API void bk_device_init(bk_device *device, bk_context *ctx, const bk_backend *backend,
                                  int index, const bk_device_options *options,
                                  const bk_device_ops *ops);
/* For a backend: a struct of `bytes` that begins with bk_stream or bk_event, zero-filled, with its
 * base filled in. The table's destroy frees it. */
BK_MODULE_API bk_status bk_stream_make(bk_device *device, const bk_stream_ops *ops, size_t bytes,
                                       bk_stream **stream);
BK_MODULE_API bk_status bk_event_make(bk_device *device, const bk_event_ops *ops, size_t bytes,
                                      bk_event **event);
/* What elapsed returns for an event that was never recorded. */
BK_MODULE_API bk_status bk_event_never_recorded(const bk_event *event);

/* ---- buffer (runtime/buffer.c) ---- */
/* zero-filled */
BK_MODULE_API bk_status bk_buffer_alloc(bk_device *device, size_t bytes, bk_memory_class c,
                                        bk_buffer **buffer);
BK_MODULE_API void bk_buffer_free(bk_buffer *buffer); /* NULL is allowed */
/* Whole contiguous tensors to and from host memory; synchronous. */
bk_status bk_tensor_upload(bk_stream *stream, const bk_tensor *t, const void *src);
bk_status bk_tensor_download(bk_stream *stream, const bk_tensor *t, void *dst);
/* Tensors of any layout to and from dense doubles, row-major. Reading and writing convert any
 * dtype. Synchronous; may allocate. */
bk_status bk_tensor_read_f64(bk_stream *stream, const bk_tensor *t, double *dst);
bk_status bk_tensor_write_f64(bk_stream *stream, const bk_tensor *t, const double *src);
bk_status bk_tensor_zero(bk_stream *stream, const bk_tensor *t); /* contiguous */

/* ---- memory (runtime/memory.c): the planner. One bk_memory per model or runner and device.
 * ---- Plan: bk_memory_tensor reserves space in the arena of a class and returns a tensor whose
 * buffer object exists but has no memory. Commit: the buffers get their memory; every tensor
 * made before is then usable. */
typedef struct bk_memory bk_memory;
bk_status bk_memory_create(bk_device *device, bk_memory **memory);
void bk_memory_destroy(bk_memory *memory); /* frees the buffers; NULL is allowed */
bk_status bk_memory_tensor(bk_memory *memory, bk_memory_class c, bk_dtype dtype, int ndim,
                           const int64_t *shape, bk_tensor *t);
/* stack discipline within a class */
bk_arena_mark bk_memory_mark(bk_memory *memory, bk_memory_class c);
void bk_memory_rewind(bk_memory *memory, bk_memory_class c, bk_arena_mark mark);
size_t bk_memory_bytes(const bk_memory *memory, bk_memory_class c); /* planned, high-water */
bk_status bk_memory_commit(bk_memory *memory); /* BK_ERR_MEMORY names class and size */

/* ---- shared stubs (runtime/stubs.c) ---- */
BK_MODULE_API BK_ACCEPTS(bk_kernel_accepts_all);
BK_MODULE_API BK_PREPARE(bk_kernel_prepare_none);
BK_MODULE_API BK_LAUNCH_FN(bk_kernel_launch_none);
BK_MODULE_API void bk_kernel_release_none(bk_device *device, void *state);
BK_MODULE_API bk_status bk_stream_capture_begin_none(bk_stream *stream);
BK_MODULE_API bk_status bk_stream_capture_end_none(bk_stream *stream, void **graph);
BK_MODULE_API bk_status bk_stream_graph_launch_none(bk_stream *stream, void *graph);
BK_MODULE_API void bk_stream_graph_destroy_none(bk_stream *stream, void *graph);

/* ---- host.c: what ref and cpu share: host memory, inline streams and events. A host backend's
 * open() makes its device struct, calls this to fill ops and host props, then adds its own.
 * `close` frees the struct itself. ---- */
BK_MODULE_API void bk_host_device_init(bk_device *device, bk_context *ctx,
                                       const bk_backend *backend, int index,
                                       const bk_device_options *options, const bk_device_ops *ops);
BK_MODULE_API bk_status bk_host_memory_info(bk_device *device, size_t *free_bytes,
                                            size_t *total_bytes);
size_t bk_host_memory_total(bk_context *ctx); /* of the machine; 0: not known */
BK_MODULE_API bk_status bk_host_buffer_alloc(bk_device *device, size_t bytes, void **handle);
BK_MODULE_API void bk_host_buffer_free(bk_device *device, void *handle, size_t bytes);
BK_MODULE_API bk_status bk_host_stream_create(bk_device *device, int priority, bk_stream **stream);
BK_MODULE_API bk_status bk_host_event_create(bk_device *device, bk_event **event);
/* The table of such a device, but for `close`. */
#define BK_HOST_DEVICE_OPS                                                  \
  .memory_info = bk_host_memory_info, .buffer_alloc = bk_host_buffer_alloc, \
  .buffer_free = bk_host_buffer_free, .host_alloc = bk_host_buffer_alloc,   \
  .host_free = bk_host_buffer_free, .stream_create = bk_host_stream_create, \
  .event_create = bk_host_event_create

#endif
