/* gpu: what the portable GPU backends (opencl, vulkan) share. Kernels are written once, in a
 * small dialect (the kernel files, grammar in README.md), and translated to OpenCL C 1.2 and to
 * GLSL at build; what calls them (ops_*.c) is the same for both. A backend adds devices, memory,
 * streams, and two functions: build a kernel, dispatch it.
 *
 * Data flow of an op: prepare builds the kernels that it needs, with constants (work-group size,
 * dtypes, number of streams), into the plan's state; launch fills the kernel's call struct
 * (operands and parameters by name) and dispatches it.
 *
 * Indices within an operand are 32-bit and count elements; where an operand begins is a 64-bit
 * byte offset, added by the backend. So a buffer may have any size, a tensor nearly 2^31
 * elements (bk_gpu_accepts). */
#ifndef BK_GPU_H
#define BK_GPU_H

#include "runtime/backend.h"

#include "backends/gpu/cache.h"

/* made from the kernel files: BK_GPU_name, bk_gpu_name_consts, bk_gpu_name_call */
#include "gpu_kernels.h"

#define BK_GPU_MAX_CONSTS 12
#define BK_GPU_MAX_OPERANDS 12
#define BK_GPU_MAX_PARAMS 24

enum { BK_GPU_IN_OPENCL = 1, BK_GPU_IN_VULKAN = 2 };

/* A kernel as its file declares it. consts[0] is GROUP, the work-group size. The call struct is
 * `operands` bk_places, then `params` words. */
typedef struct bk_gpu_kernel {
  const char *name, *file;
  int n_consts;
  const char *consts[BK_GPU_MAX_CONSTS];
  int operands, params;
  int languages; /* BK_GPU_IN_* */
  /* which constant says that an operand's elements have 16 bits (bf16); 0: they never have */
  int half[BK_GPU_MAX_OPERANDS];
} bk_gpu_kernel;
extern const bk_gpu_kernel bk_gpu_kernel_table[];

/* A kernel built with certain constants for a device. The device owns it: equal ones are shared,
 * all go when the device closes. */
typedef struct bk_gpu_pipeline bk_gpu_pipeline;
struct bk_gpu_pipeline {
  const bk_gpu_kernel *kernel;
  int32_t consts[BK_GPU_MAX_CONSTS];
  bk_gpu_pipeline *next;
};

/* What a backend supplies. */
typedef struct bk_gpu_device_ops {
  /* Makes a pipeline (the backend's own struct begins with bk_gpu_pipeline, which the caller
   * fills in). May compile. */
  bk_status (*build)(bk_device *device, const bk_gpu_kernel *kernel, const int32_t *consts,
                     bk_gpu_pipeline **pipeline);
  void (*pipeline_free)(bk_device *device, bk_gpu_pipeline *pipeline);
  /* Posts `groups` (>= 1) work groups. Absent operands have buffer NULL. `name`: of the row of
   * the kernel table, for messages. */
  bk_status (*dispatch)(bk_stream *stream, const char *name, const bk_gpu_pipeline *pipeline,
                        const bk_place *operands, const int32_t *params, int groups);
} bk_gpu_device_ops;

/* The beginning of a backend's device struct. */
typedef struct bk_gpu_device {
  bk_device base;
  const bk_gpu_device_ops *gpu;
  int max_group;        /* work items of a group: a power of two, >= 64 */
  size_t local_bytes;   /* of local memory a group can have */
  size_t binding_range; /* bytes of an operand that a kernel can reach; 0 = no limit */
  /* OpenCL on a processor: small groups, mostly of one work item, whose loops become vectors */
  bool on_cpu;
  int units; /* on_cpu: compute units */
  /* on_cpu: floats of a register, for kernels `only opencl` with explicit vectors */
  int vector;
  bk_gpu_pipeline *pipelines;
  bk_gpu_cache cache; /* zeroed: off */
} bk_gpu_device;

static inline bk_gpu_device *bk_gpu_of(bk_device *device) { return (bk_gpu_device *)device; }

/* ---- for the launch code (gpu.c) ---- */
#define BK_GPU_MAX_KERNELS 8 /* of one plan */
/* The state of a plan: its kernels, in an order that the op's file knows, and numbers that
 * prepare worked out. */
typedef struct bk_gpu_state {
  bk_gpu_pipeline *kernel[BK_GPU_MAX_KERNELS];
  int32_t group, chunk; /* for the op's own use: work-group size, rows of a chunk */
  int64_t chunks;
  /* what prepare made and put on the device (bk_gpu_table), or NULL; release frees it */
  bk_buffer *table;
} bk_gpu_state;
/* Builds kernel `id` (BK_GPU_name), or finds it already built. consts is its bk_gpu_name_consts. */
bk_status bk_gpu_build(bk_device *device, int id, const void *consts, bk_gpu_pipeline **pipeline);
/* call is the kernel's bk_gpu_name_call. With groups == 0 nothing is launched. */
bk_status bk_gpu_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *pipeline,
                     const void *call, int64_t groups);
static inline const bk_gpu_state *bk_gpu_state_of(const bk_plan *plan) { return plan->state; }

/* Whether the device takes the kernels for processors. (Vulkan on a processor does not: its
 * compiler makes vectors of work items.) */
static inline bool bk_gpu_on_cpu(const bk_device *device) {
  return ((const bk_gpu_device *)device)->on_cpu;
}
/* Work-group size for rows of `width` elements: a power of two, at most what the device has; on
 * a CPU small. */
int bk_gpu_group(const bk_device *device, int64_t width);
/* For kernels that use rows.kh, whose first constants are GROUP, ITEMS and, without barriers,
 * BATCHES. */
typedef struct bk_gpu_shape {
  int32_t group, items, batches;
} bk_gpu_shape;
bk_gpu_shape bk_gpu_shape_of(const bk_device *device, int64_t width);
/* Work groups for a row of `width` elements of such a kernel. */
static inline int64_t bk_gpu_blocks(const bk_gpu_pipeline *p, int64_t width) {
  return (width + (int64_t)p->consts[0] * p->consts[1] * p->consts[2] - 1) /
         ((int64_t)p->consts[0] * p->consts[1] * p->consts[2]);
}
/* In prepare: a buffer of the state with `bytes` bytes of `data`. */
bk_status bk_gpu_table(bk_device *device, bk_gpu_state *s, const void *data, size_t bytes);
static inline int64_t bk_gpu_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline bk_place bk_gpu_at(const bk_tensor *t) {
  return bk_tensor_present(t) ? (bk_place){t->buffer, t->offset} : (bk_place){NULL, 0};
}
static inline bk_place bk_gpu_work(bk_place workspace, size_t bytes) {
  return (bk_place){workspace.buffer, workspace.offset + bytes};
}
/* the constants BF16, A_BF16, ... */
static inline int32_t bk_gpu_half(const bk_tensor *t) { return t->dtype == BK_BF16; }

/* ---- sums over rows in two stages (ops_chunks.c): each chunk of rows makes its own, then the
 * chunks are added up in order ---- */
/* Rows of a chunk, a multiple of `unit`, so that there are at most `most` chunks of `rows`. */
int32_t bk_gpu_chunk(int64_t rows, int64_t unit, int64_t most);
bk_status bk_gpu_add_chunks_build(bk_device *device, bk_gpu_pipeline **pipeline);
/* y += the chunks' sums, each laid out as y without gaps. y [C] or [R,C] fp32 */
bk_status bk_gpu_add_chunks_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *p,
                                bk_place partial, int64_t chunks, const bk_tensor *y);

/* ---- rows: a family's header lists ROW(OP_ID, name, dtypes of the leading tensor), and MAPS with
 * the kinds of connection besides; it has bk_gpu_name_prepare and bk_gpu_name. All rows accept what
 * lies within nearly 2^31 elements and the device's binding range, and have a state around what the
 * op prepares. ---- */
#define BK_GPU_FLOATS (BK_DT(BK_F32) | BK_DT(BK_BF16))
#define BK_GPU_F32 BK_DT(BK_F32)
#define BK_GPU_I32 BK_DT(BK_I32)
#define BK_GPU_PREPARE(function)                                                     \
  bk_status function(bk_device *device, const void *args, bk_gpu_state *s BK_UNUSED, \
                     size_t *workspace_bytes BK_UNUSED)
typedef BK_GPU_PREPARE((*bk_gpu_prepare_fn));
#define BK_GPU_DECLARE(ID, name, dtypes)   \
  BK_GPU_PREPARE(bk_gpu_##name##_prepare); \
  BK_LAUNCH_FN(bk_gpu_##name);
#define BK_GPU_DECLARE_MAPS(ID, name, dtypes, kinds) BK_GPU_DECLARE(ID, name, dtypes)
#define BK_GPU_ROW_MAPS(ID, name_, dtypes_, kinds_)             \
  {.op = BK_OP_##ID,                                            \
   .dtypes = dtypes_,                                           \
   .kinds = kinds_,                                             \
   .name = "gpu_" #name_,                                       \
   .own = &(const bk_gpu_prepare_fn){bk_gpu_##name_##_prepare}, \
   .accepts = bk_gpu_accepts,                                   \
   .prepare = bk_gpu_prepare,                                   \
   .launch = bk_gpu_##name_,                                    \
   .release = bk_gpu_release},
#define BK_GPU_ROW(ID, name, dtypes) BK_GPU_ROW_MAPS(ID, name, dtypes, 0)
BK_ACCEPTS(bk_gpu_accepts);
BK_PREPARE(bk_gpu_prepare);
/* COPY, ADD, SUM, SUMSQ and ADAMW on tensors without gaps are launched in pieces, so that they
 * may be larger than a kernel can reach. A piece is a multiple of BK_GPU_PIECE elements. */
#define BK_GPU_PIECE 16384
bool bk_gpu_takes_pieces(bk_op op, const void *args);
int64_t bk_gpu_piece(const bk_device *device); /* elements, of 4 bytes at most */
/* The same place `elements` of t's dtype on; an absent tensor has none. */
static inline bk_place bk_gpu_at_element(const bk_tensor *t, int64_t elements) {
  return bk_tensor_present(t)
             ? (bk_place){t->buffer, t->offset + (size_t)elements * bk_dtype_size(t->dtype)}
             : (bk_place){NULL, 0};
}
void bk_gpu_release(bk_device *device, void *state);

/* ---- for the backends ---- */
/* Frees all pipelines and what the cache holds; in a device's close. */
void bk_gpu_device_fini(bk_device *device);

#endif
