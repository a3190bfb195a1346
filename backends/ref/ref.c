/* The backend itself: one device, its kernel table. The device is host memory with inline
 * streams (runtime/host.c). The fused ops of op.h are left to their composed defaults, so that
 * the specification of each is its composition. */
#include "backends/ref/ref.h"

#define K(ID, name, dtypes) BK_KERNEL(BK_OP_##ID, dtypes, "ref_" #name, bk_ref_##name),
#define A(ID, name, dtypes) \
  BK_KERNEL_IF(BK_OP_##ID, dtypes, "ref_" #name, bk_ref_##name##_accepts, bk_ref_##name),
#define P(ID, name, dtypes) \
  BK_KERNEL_WORK(BK_OP_##ID, dtypes, "ref_" #name, bk_ref_##name##_prepare, bk_ref_##name),
#define AP(ID, name, dtypes)                                                  \
  BK_KERNEL_ROW(BK_OP_##ID, dtypes, 0, "ref_" #name, bk_ref_##name##_accepts, \
                bk_ref_##name##_prepare, bk_ref_##name, bk_kernel_release_none),
static const bk_kernel ref_kernels[] = {BK_REF_KERNELS(K, A, P, AP) BK_KERNEL_END};

static void ref_close(bk_device *device) { bk_free(device->ctx, device); }

static const bk_device_ops ref_device_ops = {.close = ref_close, BK_HOST_DEVICE_OPS};

static void ref_init(bk_device *device, bk_context *ctx, int index,
                     const bk_device_options *options) {
  bk_host_device_init(device, ctx, &bk_backend_ref, index, options, &ref_device_ops);
  strcpy(device->props.name, "reference, in double");
  device->props.host_memory = true;
  device->props.threads = 1;
  device->props.storage_dtypes = BK_REF_FLOATS;
  device->props.isa[0] = '\0';
}

static bk_status ref_probe(bk_context *ctx BK_UNUSED, char *reason, size_t reason_size) {
  if (reason_size > 0) reason[0] = '\0';
  return BK_OK;
}

static int ref_device_count(bk_context *ctx BK_UNUSED) { return 1; }

static bk_status ref_describe(bk_context *ctx, int index, bk_device_props *props,
                              size_t *memory_bytes) {
  bk_device device = {0};
  ref_init(&device, ctx, index, NULL);
  *props = device.props;
  *memory_bytes = bk_host_memory_total(ctx);
  return BK_OK;
}

static bk_status ref_open(bk_context *ctx, int index, const bk_device_options *options,
                          bk_device **device) {
  bk_device *d = bk_alloc(ctx, sizeof *d);
  if (!d) return BK_ERR_MEMORY;
  ref_init(d, ctx, index, options);
  *device = d;
  return BK_OK;
}

const bk_backend bk_backend_ref = BK_BACKEND(ref, 0, ref_kernels);
