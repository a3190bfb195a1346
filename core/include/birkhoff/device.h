/* Devices. "cpu" and "ref" are always there; "cuda:0", "opencl:0" and "vulkan:0" are there where
 * the module of the backend is installed and finds hardware and driver. */
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
  /* the fastest instruction set that `cpu` may use: "portable", "avx2", "avx512", "neon"; NULL =
   * the best that there is. BIRKHOFF_CPU_ISA is a limit beside it. */
  const char *isa;
  bool composed_only;  /* fused ops run as the ops that they are made of; for tests */
  bool allow_fallback; /* ops without a kernel run on `cpu`; each is logged once */
  /* Steps are launched call by call and not as captured graphs. This matters only where streams can
   * be captured. */
  bool no_graph;
  bool allow_tf32; /* GPU backends: fp32 products may round their operands to TF32 */
} bk_device_options;

/* What memory of a device is for. `birkhoff plan` reports bytes by these classes. */
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
/* "weights", "masters", "gradients", "optimizer", ... */
BK_API const char *bk_memory_class_name(bk_memory_class c);

/* Opens "cpu", "ref", "cuda:1" and so on, or with NULL the best device that works here. Returns
 * BK_ERR_NOT_FOUND for a backend that is not known, with a list of the devices that are there, and
 * BK_ERR_ABSENT for a known one that has no such device, with the reason. */
BK_API bk_status bk_device_open(bk_context *ctx, const char *name, const bk_device_options *options,
                                bk_device **device);
/* Opens the first device of a backend that is linked in, given by its address. The list of backends
 * and the loader of modules are not referred to, so a static link holds this backend alone.
 * allow_fallback then finds no other device. */
extern BK_API const bk_backend bk_backend_cpu, bk_backend_ref;
BK_API bk_status bk_device_open_backend(bk_context *ctx, const bk_backend *backend,
                                        const bk_device_options *options, bk_device **device);
BK_API void bk_device_close(bk_device *device); /* NULL is allowed */

/* What a device is and what it can do. */
typedef struct bk_device_props {
  char name[128]; /* what the driver calls it */
  char driver[128];
  /* its memory is the host's: buffers can be looked at without a copy */
  bool host_memory;
  size_t max_alloc;         /* bytes of one buffer; 0 = no limit */
  size_t max_binding_range; /* bytes that a kernel can address through one binding; 0 = no limit */
  size_t offset_alignment;  /* a tensor's offset in its buffer is a multiple of it */
  int threads;              /* host workers, or 0 */
  /* streams can record launches as a graph and run it again */
  bool captures;
  uint32_t storage_dtypes; /* set of 1u << bk_dtype that models may be stored in */
  /* the instruction set in use: "portable", "avx2", "avx512", "neon" or "" */
  char isa[32];
  /* most work items that a group may have; 0: it has no groups, or the driver does not say */
  int max_group;
  size_t local_bytes; /* memory that a group shares; 0: none, or the driver does not say */
  /* what else the driver tells, for reports: "gpu, 60 units, subgroups of 64, fp16" */
  char features[128];
} bk_device_props;
/* What an open device is. The result is valid as long as the device is open. */
BK_API const bk_device_props *bk_device_properties(const bk_device *device);
/* The backend that a device belongs to: "cpu", "cuda", ... */
BK_API const char *bk_device_backend_name(const bk_device *device);
/* The bytes that are in use at this moment: of the device's memory, whoever holds them, or, where
 * the device's memory is the host's, those held through the context. */
BK_API bk_status bk_device_memory_used(bk_device *device, size_t *bytes);

/* ---- all devices that are known ---- */
typedef enum bk_device_state {
  BK_DEVICE_OK,
  BK_DEVICE_ABSENT, /* the backend is here, but its hardware or driver is not */
  BK_DEVICE_REFUSED /* a device, or a module of a backend, that cannot be used */
} bk_device_state;
typedef struct bk_device_report {
  /* as bk_device_open takes it: "cuda:1"; of a module that is refused, the name of its file */
  char name[128];
  bk_device_state state;
  char reason[256];      /* why it cannot be used; empty where it can */
  bk_device_props props; /* filled in where it can be used, and so is what follows */
  size_t memory_bytes;   /* 0: not known, as in a context without an operating system */
  bool is_default;       /* bk_device_open takes it if no name is given */
} bk_device_report;
typedef bk_status (*bk_device_fn)(void *user, const bk_device_report *report);
/* Calls `each` for one device after the other. If a call does not return BK_OK, no other follows
 * and its status is returned. The first such call in a process loads the modules, unless the
 * context is an embedded one. */
BK_API bk_status bk_devices(bk_context *ctx, bk_device_fn each, void *user);
/* The name of backend i, counted from 0, of those that are here, with devices or without; NULL past
 * the last. */
BK_API const char *bk_backend_name(bk_context *ctx, int i);

#ifdef __cplusplus
}
#endif
#endif
