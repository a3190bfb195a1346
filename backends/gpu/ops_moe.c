/* Launches of router.k and moe.k */
#include "backends/gpu/experts.h"

/* Work-group size for a token's experts or a row; with OpenCL on a CPU an item does it all, in
 * vectors. */
static int32_t group_for(const bk_device *device, int64_t width) {
  return bk_gpu_on_cpu(device) ? 1 : bk_gpu_group(device, width);
}
/* The arrays over experts must fit the local memory. */
static bk_status fit_local(bk_device *device, const char *op, int64_t experts, int64_t bytes) {
  const size_t local = ((const bk_gpu_device *)device)->local_bytes;
  if ((size_t)bytes <= local) return BK_OK;
  return bk_fail(device->ctx, BK_ERR_UNSUPPORTED,
                 "%s: %s: %lld experts take %lld bytes of local memory, the device has %zu",
                 device->backend->name, op, (long long)experts, (long long)bytes, local);
}

/* ---- router ---- */

BK_GPU_PREPARE(bk_gpu_router_prepare) {
  const bk_router_args *a = args;
  const int64_t experts = a->logits.shape[1];
  bk_gpu_router_consts consts = {
      .GROUP = group_for(device, experts), .EXPERTS = (int32_t)experts, .GROUPS = a->n_group};
  BK_TRY(fit_local(device, "router", experts, 4 * (2 * experts + a->n_group)));
  return bk_gpu_build(device, BK_GPU_router, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_router) {
  const bk_router_args *a = args;
  bk_gpu_router_call call = {.logits = bk_gpu_at(&a->logits),
                             .bias = bk_gpu_at(&a->bias),
                             .scores = bk_gpu_at(&a->scores),
                             .index = bk_gpu_at(&a->index),
                             .weights = bk_gpu_at(&a->weights),
                             .k = (int32_t)a->index.shape[1],
                             .kept = a->topk_group,
                             .norm = a->norm_topk_prob,
                             .ls = (int32_t)a->logits.stride[0],
                             .ss = (int32_t)a->scores.stride[0],
                             .is = (int32_t)a->index.stride[0],
                             .ws = (int32_t)a->weights.stride[0],
                             .factor = (float)a->routed_scaling_factor};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->logits.shape[0]);
}

BK_GPU_PREPARE(bk_gpu_router_bwd_prepare) {
  const bk_router_bwd_args *a = args;
  bk_gpu_router_bwd_consts consts = {.GROUP = group_for(device, a->dlogits.shape[1])};
  return bk_gpu_build(device, BK_GPU_router_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_router_bwd) {
  const bk_router_bwd_args *a = args;
  bk_gpu_router_bwd_call call = {.scores = bk_gpu_at(&a->scores),
                                 .index = bk_gpu_at(&a->index),
                                 .dweights = bk_gpu_at(&a->dweights),
                                 .dlogits = bk_gpu_at(&a->dlogits),
                                 .experts = (int32_t)a->dlogits.shape[1],
                                 .k = (int32_t)a->index.shape[1],
                                 .norm = a->norm_topk_prob,
                                 .ss = (int32_t)a->scores.stride[0],
                                 .is = (int32_t)a->index.stride[0],
                                 .ws = (int32_t)a->dweights.stride[0],
                                 .ds = (int32_t)a->dlogits.stride[0],
                                 .factor = (float)a->routed_scaling_factor};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->scores.shape[0]);
}

/* ---- the sort ---- */

enum { SORT_CHUNKS = 128, SORT_CHUNK_LEAST = 256, SORT_CHUNK_MOST = 2048 };

/* Choices of a chunk, a power of two, so that few pipelines serve all shapes. One item sorts
 * 4096 as fast as it starts. */
static int64_t chunk_for(const bk_device *device, int64_t total) {
  int64_t chunk = SORT_CHUNK_LEAST;
  if (bk_gpu_on_cpu(device)) return 4096;
  while (chunk < SORT_CHUNK_MOST && chunk * SORT_CHUNKS < total) chunk *= 2;
  return chunk;
}

BK_GPU_PREPARE(bk_gpu_moe_index_prepare) {
  const bk_moe_index_args *a = args;
  const int64_t experts = a->offsets.shape[0] - 1, total = a->order.shape[0],
                chunk = chunk_for(device, total);
  const int32_t group = group_for(device, experts);
  s->chunk = (int32_t)chunk;
  s->chunks = bk_gpu_ceil_div(total, chunk);
  *workspace_bytes = (size_t)((s->chunks + 1) * experts) * sizeof(int32_t); /* totals, counts */
  const bool serial = bk_gpu_on_cpu(device);
  BK_TRY(fit_local(device, "moe_index", experts, 4 * (serial ? experts : chunk)));
  bk_gpu_moe_count_consts count = {
      .GROUP = group, .EXPERTS = (int32_t)experts, .CHUNK = (int32_t)chunk};
  bk_gpu_moe_total_consts each = {.GROUP = bk_gpu_group(device, 1)};
  BK_TRY(bk_gpu_build(device, serial ? BK_GPU_moe_count_serial : BK_GPU_moe_count, &count,
                      &s->kernel[0]));
  BK_TRY(bk_gpu_build(device, BK_GPU_moe_total, &each, &s->kernel[1]));
  BK_TRY(bk_gpu_build(device, BK_GPU_moe_start, &each, &s->kernel[2]));
  /* the same constants */
  return bk_gpu_build(device, serial ? BK_GPU_moe_place_serial : BK_GPU_moe_place, &count,
                      &s->kernel[3]);
}

/* The serial kernels have the same operands and parameters. */
BK_LAUNCH_FN(bk_gpu_moe_index) {
  const bk_moe_index_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int32_t total = (int32_t)a->order.shape[0], k = (int32_t)a->index.shape[1],
                stride = (int32_t)a->index.stride[0];
  const int32_t experts = (int32_t)a->offsets.shape[0] - 1, chunks = (int32_t)s->chunks;
  const int64_t groups = bk_gpu_ceil_div(experts, s->kernel[1]->consts[0]);
  const bk_place totals = workspace,
                 counts = bk_gpu_work(workspace, (size_t)experts * sizeof(int32_t));
  bk_gpu_moe_count_call count = {
      .index = bk_gpu_at(&a->index), .counts = counts, .total = total, .k = k, .stride = stride};
  bk_gpu_moe_total_call sum = {.counts = counts,
                               .totals = totals,
                               .load = bk_gpu_at(&a->load),
                               .experts = experts,
                               .chunks = chunks,
                               .has_load = bk_tensor_present(&a->load)};
  bk_gpu_moe_start_call start = {.totals = totals,
                                 .counts = counts,
                                 .offsets = bk_gpu_at(&a->offsets),
                                 .experts = experts,
                                 .chunks = chunks};
  bk_gpu_moe_place_call place = {.index = bk_gpu_at(&a->index),
                                 .counts = counts,
                                 .order = bk_gpu_at(&a->order),
                                 .row_of = bk_gpu_at(&a->row_of),
                                 .total = total,
                                 .k = k,
                                 .stride = stride,
                                 .row_of_stride = (int32_t)a->row_of.stride[0]};
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[0], &count, s->chunks));
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[1], &sum, groups));
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[2], &start, groups));
  return bk_gpu_run(stream, plan, s->kernel[3], &place, s->chunks);
}

/* ---- rows ---- */

static int32_t cols_for(const bk_device *device) { return bk_gpu_on_cpu(device) ? 32 : 4; }

BK_GPU_PREPARE(bk_gpu_permute_prepare) {
  const bk_permute_args *a = args;
  const int32_t cols = cols_for(device);
  bk_gpu_permute_consts consts = {
      .GROUP = group_for(device, a->y.shape[1] / cols), .BF16 = bk_gpu_half(&a->x), .COLS = cols};
  return bk_gpu_build(device, BK_GPU_permute, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_permute) {
  const bk_permute_args *a = args;
  bk_gpu_permute_call call = {.x = bk_gpu_at(&a->x),
                              .order = bk_gpu_at(&a->order),
                              .y = bk_gpu_at(&a->y),
                              .width = (int32_t)a->y.shape[1],
                              .k = a->k,
                              .xs = (int32_t)a->x.stride[0],
                              .ys = (int32_t)a->y.stride[0]};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->y.shape[0]);
}

BK_GPU_PREPARE(bk_gpu_unpermute_prepare) {
  const bk_unpermute_args *a = args;
  const int32_t cols = cols_for(device);
  bk_gpu_unpermute_consts consts = {
      .GROUP = group_for(device, a->y.shape[1] / cols), .BF16 = bk_gpu_half(&a->x), .COLS = cols};
  return bk_gpu_build(device, BK_GPU_unpermute, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_unpermute) {
  const bk_unpermute_args *a = args;
  const bool weighted = bk_tensor_present(&a->weights);
  bk_gpu_unpermute_call call = {.x = bk_gpu_at(&a->x),
                                .row_of = bk_gpu_at(&a->row_of),
                                .weights = bk_gpu_at(&a->weights),
                                .y = bk_gpu_at(&a->y),
                                .width = (int32_t)a->y.shape[1],
                                .k = (int32_t)a->row_of.shape[1],
                                .xs = (int32_t)a->x.stride[0],
                                .ss = (int32_t)a->row_of.stride[0],
                                .ws = weighted ? (int32_t)a->weights.stride[0] : 0,
                                .ys = (int32_t)a->y.stride[0],
                                .weighted = weighted,
                                .accumulate = a->accumulate};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->y.shape[0]);
}

BK_GPU_PREPARE(bk_gpu_unpermute_bwd_prepare) {
  const bk_unpermute_bwd_args *a = args;
  const int32_t cols = cols_for(device);
  bk_gpu_unpermute_bwd_consts consts = {
      .GROUP = group_for(device, a->dy.shape[1] / cols), .BF16 = bk_gpu_half(&a->x), .COLS = cols};
  bk_gpu_unpermute_bwd_serial_consts serial = {.GROUP = 1, .BF16 = bk_gpu_half(&a->x)};
  if (bk_gpu_on_cpu(device))
    return bk_gpu_build(device, BK_GPU_unpermute_bwd_serial, &serial, &s->kernel[0]);
  return bk_gpu_build(device, BK_GPU_unpermute_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_unpermute_bwd) {
  const bk_unpermute_bwd_args *a = args;
  const bool weighted = bk_tensor_present(&a->weights),
             has_dweights = bk_tensor_present(&a->dweights);
  bk_gpu_unpermute_bwd_call call = {.x = bk_gpu_at(&a->x),
                                    .row_of = bk_gpu_at(&a->row_of),
                                    .weights = bk_gpu_at(&a->weights),
                                    .dy = bk_gpu_at(&a->dy),
                                    .dx = bk_gpu_at(&a->dx),
                                    .dweights = bk_gpu_at(&a->dweights),
                                    .width = (int32_t)a->dy.shape[1],
                                    .k = (int32_t)a->row_of.shape[1],
                                    .xs = (int32_t)a->x.stride[0],
                                    .ss = (int32_t)a->row_of.stride[0],
                                    .ws = weighted ? (int32_t)a->weights.stride[0] : 0,
                                    .dys = (int32_t)a->dy.stride[0],
                                    .dxs = (int32_t)a->dx.stride[0],
                                    .dws = has_dweights ? (int32_t)a->dweights.stride[0] : 0,
                                    .weighted = weighted,
                                    .has_dweights = has_dweights};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call,
                    a->row_of.shape[0] * a->row_of.shape[1]);
}
