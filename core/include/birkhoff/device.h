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
  bool composed_only;  /* fused ops run as their composed default (for tests) */
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
BK_API const char *bk_memory_class_name(bk_memory_class c);

/* name: "cpu", "ref", "cuda:1"; NULL: the best that probes. An unknown backend: BK_ERR_NOT_FOUND
 * with a list of those that are there; a known one that is absent: BK_ERR_ABSENT with its
 * reason. */
BK_API bk_status bk_device_open(bk_context *ctx, const char *name, const bk_device_options *options,
                                bk_device **device);
/* The first device of a backend that is linked in, by its address: no list of backends and no
 * loadable modules come with it, so that a static link holds this backend alone. allow_fallback
 * then finds no other device. */
extern BK_API const bk_backend bk_backend_cpu, bk_backend_ref;
BK_API bk_status bk_device_open_backend(bk_context *ctx, const bk_backend *backend,
                                        const bk_device_options *options, bk_device **device);
BK_API void bk_device_close(bk_device *device); /* NULL is allowed */

/* What a device is and what it can do. */
typedef struct bk_device_props {
  char name[128]; /* what the driver calls it */
  char driver[128];
  /* buffer handles are host addresses; no copies needed to look at them */
  bool host_memory;
  size_t max_alloc;         /* bytes of one buffer; 0 = no limit */
  size_t max_binding_range; /* bytes one kernel can address through one binding; 0 = no limit */
  size_t offset_alignment;  /* of a tensor's offset in its buffer */
  int threads;              /* host workers, or 0 */
  /* streams can record launches as a graph and run it again */
  bool captures;
  uint32_t storage_dtypes; /* set of 1u << bk_dtype that models may be stored in */
  /* instruction set in use: "portable", "avx2", "avx512", "neon" or "" */
  char isa[32];
  /* most work items that a group may have; 0: it has no groups, or the driver does not say */
  int max_group;
  size_t local_bytes; /* memory that a group shares; 0: none, or the driver does not say */
  /* what else the driver tells, for reports: "gpu, 60 units, subgroups of 64, fp16" */
  char features[128];
} bk_device_props;
/* Of an open device; as long as it is open. */
BK_API const bk_device_props *bk_device_properties(const bk_device *device);
/* "cpu", "cuda", ...: the backend that it belongs to. */
BK_API const char *bk_device_backend_name(const bk_device *device);
/* Bytes in use at this moment: of the device's memory, whoever holds them; of a device whose
 * memory is the host's, those of the context. */
BK_API bk_status bk_device_memory_used(bk_device *device, size_t *bytes);

/* ---- all devices that are known ---- */
typedef enum bk_device_state {
  BK_DEVICE_OK,
  BK_DEVICE_ABSENT, /* a backend is here, its hardware or driver is not */
  BK_DEVICE_REFUSED /* a device, or a module of a backend, that cannot be used */
} bk_device_state;
typedef struct bk_device_report {
  char name[128]; /* as bk_device_open takes it, "cuda:1"; of a module that is refused, its file */
  bk_device_state state;
  char reason[256];      /* why it cannot be used; empty where it can */
  bk_device_props props; /* of one that can */
  size_t memory_bytes;   /* 0: not known, as in a context without an operating system */
  bool is_default;       /* what bk_device_open takes without a name */
} bk_device_report;
typedef bk_status (*bk_device_fn)(void *user, const bk_device_report *report);
/* Gives each in turn until one call does not return BK_OK, which is returned. The first use of a
 * context that has an operating system loads the modules. */
BK_API bk_status bk_devices(bk_context *ctx, bk_device_fn each, void *user);
/* The names of the backends that are here, whether their devices are or not: i from 0, NULL past
 * the last. */
BK_API const char *bk_backend_name(bk_context *ctx, int i);

#ifdef __cplusplus
}
#endif
#endif
