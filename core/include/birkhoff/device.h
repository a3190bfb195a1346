/* Devices: "cpu" and "ref" always; "cuda:0", "opencl:0", "vulkan:0" where their modules are
 * installed and probe. */
#ifndef BIRKHOFF_DEVICE_H
#define BIRKHOFF_DEVICE_H

#include <birkhoff/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_device bk_device;
typedef struct bk_backend bk_backend;

typedef struct bk_device_options {
  int threads; /* host workers; 0 = one per processor */
  /* strips faster kernels: "portable" "avx2" "avx512" "neon"; NULL = best (also
   * BIRKHOFF_CPU_ISA) */
  const char *isa;
  bool composed_only;  /* fused slots run as their composed default (for tests) */
  bool allow_fallback; /* ops without a kernel run on `cpu`, logged once per op */
  /* steps are given call by call, not as captured graphs; only matters where streams can be
   * captured */
  bool no_graph;
  bool allow_tf32; /* GPU backends: fp32 products may round their operands to TF32 */
} bk_device_options;

/* One arena per class; `plan` and the metrics report bytes by class. */
typedef enum bk_memory_class {
  BK_MEM_WEIGHTS,
  BK_MEM_MASTERS,
  BK_MEM_GRADIENTS,
  BK_MEM_OPTIMIZER,
  BK_MEM_ACTIVATIONS,
  BK_MEM_WORKSPACE,
  BK_MEM_COMM,
  BK_MEM_STAGING,
  BK_MEM_CLASS_COUNT
} bk_memory_class;
/* "weights" "masters" "gradients" "optimizer" ... */
const char *bk_memory_class_name(bk_memory_class c);

/* name: "cpu", "ref", "cuda:1"; NULL: the best that probes. An unknown backend: BK_ERR_NOT_FOUND
 * with a list of those that are there; a known one that is absent: BK_ERR_ABSENT with its
 * reason. */
bk_status bk_device_open(bk_context *ctx, const char *name, const bk_device_options *options,
                         bk_device **device);
/* The first device of a backend that is linked in, by its address: no list of backends and no
 * loadable modules come with it, so that a static link holds this backend alone. allow_fallback
 * then finds no other device. */
extern const bk_backend bk_backend_cpu, bk_backend_ref;
bk_status bk_device_open_backend(bk_context *ctx, const bk_backend *backend,
                                 const bk_device_options *options, bk_device **device);
void bk_device_close(bk_device *device); /* NULL is allowed */
/* The name of its backend, "cpu"; as long as the device. */
BK_API const char *bk_device_name(const bk_device *device);
/* Bytes in use at this moment: of the device's memory, whoever holds them; of a device whose
 * memory is the host's, those of the context. */
BK_API bk_status bk_device_memory_used(bk_device *device, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
