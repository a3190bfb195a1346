/* The backend itself: one device, its kernel table. The device is host memory with inline
 * streams (runtime/host.c). The fused slots of op.h are left to their composed defaults, so that
 * the specification of each is its composition. */
#include "backends/ref/ref.h"

#define FLOATS (BK_DT(BK_F32) | BK_DT(BK_BF16) | BK_DT(BK_F64))
#define INTS BK_DT(BK_I32)
/* Plain row; row with a workspace; row with a limit on shapes; row with both. `dtypes` is about
 * the first tensor of the op's arguments. */
#define ROW(ID, name, dtypes) BK_KERNEL(BK_OP_##ID, dtypes, "ref_" #name, bk_ref_##name)
#define ROW_WORK(ID, name, dtypes)                                                    \
  {                                                                                   \
    BK_OP_##ID, dtypes, "ref_" #name, bk_kernel_accepts_all, bk_ref_##name##_prepare, \
        bk_ref_##name, bk_kernel_release_none                                         \
  }
#define ROW_IF_WORK(ID, name, dtypes)                                                   \
  {                                                                                     \
    BK_OP_##ID, dtypes, "ref_" #name, bk_ref_##name##_accepts, bk_ref_##name##_prepare, \
        bk_ref_##name, bk_kernel_release_none                                           \
  }
#define ROW_IF(ID, name, dtypes) \
  BK_KERNEL_IF(BK_OP_##ID, dtypes, "ref_" #name, bk_ref_##name##_accepts, bk_ref_##name)

static const bk_kernel ref_kernels[] = {
    ROW_IF(COPY, copy, FLOATS | INTS | BK_DT(BK_I64) | BK_DT(BK_U8)),
    ROW(ADD, add, FLOATS),
    ROW(SUM, sum, FLOATS),
    ROW(GEMM, gemm, FLOATS),
    ROW(GROUPED_GEMM, grouped_gemm, FLOATS),
    ROW(GROUPED_WGRAD, grouped_wgrad, FLOATS),
    ROW(RMSNORM, rmsnorm, FLOATS),
    ROW(RMSNORM_BWD, rmsnorm_bwd, FLOATS),
    ROW(ROPE, rope, FLOATS),
    ROW(CACHE_WRITE, cache_write, FLOATS),
    ROW_WORK(ATTENTION, attention, FLOATS),
    ROW_WORK(ATTENTION_BWD, attention_bwd, FLOATS),
    ROW(SWIGLU, swiglu, FLOATS),
    ROW(SWIGLU_BWD, swiglu_bwd, FLOATS),
    ROW(EMBED, embed, INTS),
    ROW_WORK(EMBED_BWD, embed_bwd, INTS),
    ROW(CROSS_ENTROPY, cross_entropy, FLOATS),
    ROW_WORK(ROUTER, router, FLOATS),
    ROW(ROUTER_BWD, router_bwd, FLOATS),
    ROW(MOE_INDEX, moe_index, INTS),
    ROW(PERMUTE, permute, FLOATS),
    ROW(UNPERMUTE, unpermute, FLOATS),
    ROW(UNPERMUTE_BWD, unpermute_bwd, FLOATS),
    ROW(BALANCE, balance, INTS),
    ROW(SUMSQ, sumsq, FLOATS),
    ROW(CLIP, clip, FLOATS),
    ROW(ADAMW, adamw, FLOATS),
    ROW(HC_EXPAND, hc_expand, FLOATS),
    ROW(HC_COLLAPSE, hc_collapse, FLOATS),
    ROW(HC_RMS, hc_rms, FLOATS),
    ROW(HC_RMS_BWD, hc_rms_bwd, FLOATS),
    ROW(HC_LOGITS, hc_logits, FLOATS),
    ROW(HC_LOGITS_BWD, hc_logits_bwd, FLOATS),
    ROW(HC_GATES, hc_gates, FLOATS),
    ROW(HC_GATES_BWD, hc_gates_bwd, FLOATS),
    ROW_IF(SINKHORN, sinkhorn, FLOATS),
    ROW_IF_WORK(SINKHORN_BWD, sinkhorn_bwd, FLOATS),
    ROW_IF(HC_PERM, hc_perm, FLOATS),
    ROW_IF(HC_PERM_BWD, hc_perm_bwd, FLOATS),
    ROW(HC_TANH, hc_tanh, FLOATS),
    ROW(HC_TANH_BWD, hc_tanh_bwd, FLOATS),
    ROW(HC_PRE, hc_pre, FLOATS),
    ROW(HC_PRE_BWD, hc_pre_bwd, FLOATS),
    ROW(HC_RES, hc_res, FLOATS),
    ROW_IF(HC_RES_BWD, hc_res_bwd, FLOATS),
    ROW(HC_POST, hc_post, FLOATS),
    ROW(HC_POST_BWD, hc_post_bwd, FLOATS),
    BK_KERNEL_END,
};

static void ref_close(bk_device *device) { bk_free(device->ctx, device); }

static const bk_device_ops ref_device_ops = {
    .close = ref_close,
    .memory_info = bk_host_memory_info,
    .buffer_alloc = bk_host_buffer_alloc,
    .buffer_free = bk_host_buffer_free,
    .host_alloc = bk_host_buffer_alloc,
    .host_free = bk_host_buffer_free,
    .stream_create = bk_host_stream_create,
    .event_create = bk_host_event_create,
};

static void ref_init(bk_device *device, bk_context *ctx, int index,
                     const bk_device_options *options) {
  bk_host_device_init(device, ctx, &bk_backend_ref, index, options, &ref_device_ops);
  strcpy(device->props.name, "reference, in double");
  device->props.host_memory = true;
  device->props.threads = 1;
  device->props.storage_dtypes = FLOATS;
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
  size_t free_bytes, total_bytes;
  ref_init(&device, ctx, index, NULL);
  BK_TRY(bk_host_memory_info(&device, &free_bytes, &total_bytes));
  *props = device.props;
  *memory_bytes = total_bytes;
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

const bk_backend bk_backend_ref = {
    .abi = BK_BACKEND_ABI,
    .name = "ref",
    .priority = 0,
    .probe = ref_probe,
    .device_count = ref_device_count,
    .describe = ref_describe,
    .open = ref_open,
    .kernels = ref_kernels,
};
