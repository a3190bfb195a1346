/* The cuda backend: what its files share. Read by the C host files and by the kernels' files
 * (*.cu), so it is C and C++.
 *
 * Host side. cuda.c: the backend (probe, devices) and its devices; stream.c: streams, events,
 * capture; blaslt.c: dense products through cuBLASLt, cudnn.c, cudnn_graph.c and cudnn_pieces.c:
 * attention through cuDNN, both found at run time; table.c: the kernel table. kernels/: one .cu
 * file per op family; each holds the kernels, and beside them the launch functions of the kernel
 * table, so that a kernel and what it is called with are read together.
 *
 * The CUDA runtime is linked statically and finds the driver (libcuda) by itself at run time:
 * the module loads on a machine without a driver, and `probe` says why the backend is refused.
 * cuBLASLt and cuDNN are found by dlopen (library.c); without them our own kernels serve. */
#ifndef BK_CUDA_H
#define BK_CUDA_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "runtime/backend.h"

/* launches that a stream remembers, to name an error that comes to light later */
#define BK_CUDA_TRACE 32

typedef struct bk_cublaslt bk_cublaslt;
typedef struct bk_cudnn bk_cudnn;

typedef struct bk_cuda_device {
  bk_device base;
  int ordinal;    /* as the CUDA runtime counts */
  int capability; /* 90 for 9.0 */
  int sm_count;
  int smem_optin; /* bytes of shared memory that one block can have when it asks */
  /* BIRKHOFF_CUDA_SYNC=1: every launch is waited for, so that an error names its op */
  bool synchronous;
  bk_cublaslt *blaslt; /* NULL: not here, our own products serve */
  bk_cudnn *cudnn;     /* NULL: not asked for or not compiled in, our own attention serves */
} bk_cuda_device;

typedef struct bk_cuda_stream {
  bk_stream base;
  cudaStream_t stream;
  bk_status poison;    /* an asynchronous error: every later call returns it */
  const char *current; /* the op that is being launched */
  /* ring of what was launched since the last sync, captured launches aside */
  const char *trace[BK_CUDA_TRACE];
  int64_t launches; /* since the last sync */
  bool capturing;
  bool captured; /* takes part in the capture of another stream */
} bk_cuda_stream;

typedef struct bk_cuda_event {
  bk_event base;
  cudaEvent_t event;
  bool recorded;
} bk_cuda_event;

static inline const bk_cuda_device *bk_cuda_of(const bk_device *device) {
  return (const bk_cuda_device *)device;
}

/* ---- launches (stream.c) ---- Every launch function is: begin (makes the device current, notes
 * the name; its status is to be passed on), kernels on bk_cuda_raw(stream), return bk_cuda_end
 * (reports what the launch itself says; never waits). */
bk_status bk_cuda_begin(bk_stream *stream, const bk_plan *plan);
bk_status bk_cuda_end(bk_stream *stream);
static inline cudaStream_t bk_cuda_raw(bk_stream *stream) {
  return ((bk_cuda_stream *)stream)->stream;
}
/* Status for a CUDA error, logged with what was being done and what CUDA calls it. `what` is a
 * phrase: "allocating 12 bytes". CUDA forgets the error, if it can: the next launch is not
 * blamed for it. */
bk_status bk_cuda_fail(bk_context *ctx, cudaError_t error, const char *what);

/* Device addresses. */
static inline char *bk_cuda_data(const bk_tensor *t) {
  return t->buffer ? (char *)t->buffer->handle + t->offset : NULL;
}
static inline char *bk_cuda_place(bk_place p) {
  return p.buffer ? (char *)p.buffer->handle + p.offset : NULL;
}

/* ---- cuda.c ---- */
/* The switch of that name in the environment: 1 or 0, true or false; `otherwise` where it is not
 * set. */
bool bk_cuda_switch(bk_context *ctx, const char *name, bool otherwise);
extern const bk_device_ops bk_cuda_device_ops;

/* ---- library.c: shared libraries found at run time ---- */
/* The first of `names` (NULL ends) that opens, or NULL; *opened gets its name. Never closed:
 * CUDA's libraries leave threads behind. */
void *bk_cuda_library_open(const char *const *names, const char **opened);
void *bk_cuda_library_symbol(void *library, const char *name);

/* ---- stream.c ---- */
bk_status bk_cuda_stream_create(bk_device *device, int priority, bk_stream **stream);
bk_status bk_cuda_event_create(bk_device *device, bk_event **event);

extern const bk_kernel bk_cuda_kernels[];

/* ---- declaring kernels: kernels/FAMILY.h ---- */
#define BK_CUDA_LAUNCH(name) BK_LAUNCH_FN(bk_cuda_##name)
#define BK_CUDA_PREPARE(name) BK_PREPARE(bk_cuda_##name##_prepare)
#define BK_CUDA_ACCEPTS(name) BK_ACCEPTS(bk_cuda_##name##_accepts)
#define BK_CUDA_RELEASE(name) void bk_cuda_##name##_release(bk_device *device, void *state)

#define BK_CUDA_FLOATS (BK_DT(BK_F32) | BK_DT(BK_BF16))
#define BK_CUDA_F32 BK_DT(BK_F32)
#define BK_CUDA_BF16 BK_DT(BK_BF16)
#define BK_CUDA_I32 BK_DT(BK_I32)
/* Kinds of residual connection whose maps come from logits, and all that kernels/maps.cuh makes. */
#define BK_CUDA_LOGITS_KINDS \
  (BK_KIND(BK_HC_MHC) | BK_KIND(BK_HC_MHC_LITE) | BK_KIND(BK_HC_IHC) | BK_KIND(BK_HC_HEAD))
#define BK_CUDA_MAPS_KINDS (BK_CUDA_LOGITS_KINDS | BK_KIND(BK_HC_HC))

/* Rows of the kernel table: plain; with a limit on what it takes; with a workspace; with both;
 * with a state of its own besides; and of ops with a kind. `dtypes` is about the leading tensor. */
#define BK_CUDA_ROW(ID, name, dtypes) BK_KERNEL(BK_OP_##ID, dtypes, "cuda_" #name, bk_cuda_##name),
#define BK_CUDA_ROW_IF(ID, name, dtypes) \
  BK_KERNEL_IF(BK_OP_##ID, dtypes, "cuda_" #name, bk_cuda_##name##_accepts, bk_cuda_##name),
#define BK_CUDA_ROW_WORK(ID, name, dtypes) \
  BK_KERNEL_WORK(BK_OP_##ID, dtypes, "cuda_" #name, bk_cuda_##name##_prepare, bk_cuda_##name),
#define BK_CUDA_ROW_KINDS(ID, name, dtypes, kinds, accepts, prepare)                        \
  BK_KERNEL_ROW(BK_OP_##ID, dtypes, kinds, "cuda_" #name, accepts, prepare, bk_cuda_##name, \
                bk_kernel_release_none),
#define BK_CUDA_ROW_IF_WORK(ID, name, dtypes) \
  BK_CUDA_ROW_KINDS(ID, name, dtypes, 0, bk_cuda_##name##_accepts, bk_cuda_##name##_prepare)
#define BK_CUDA_ROW_STATE(ID, name, dtypes)                                     \
  BK_KERNEL_ROW(BK_OP_##ID, dtypes, 0, "cuda_" #name, bk_cuda_##name##_accepts, \
                bk_cuda_##name##_prepare, bk_cuda_##name, bk_cuda_##name##_release),

#ifdef __cplusplus
}
#endif

#endif
