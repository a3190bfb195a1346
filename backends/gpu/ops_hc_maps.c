/* Launches of hc_maps.k */
#include "backends/gpu/maps.h"
#include "backends/gpu/ops_hc.h"

#define STRIDE(t, d) ((int32_t)(t).stride[d])

/* Work-group size of kernels with a token in a lane: what fills the vectors of a CPU, the waves of a GPU. */
static int lane_group(const bk_device *device) { return ((const bk_gpu_device *)device)->on_cpu ? 16 : 64; }

/* Groups of a kernel with a token in a lane where each keeps `per_group` floats in the workspace: as many as there are tokens for, but not
 * more than 64 MiB hold; so a group may have several turns (s->chunk). */
static void lane_groups(bk_gpu_state *s, int group, int64_t tokens, int64_t per_group, size_t *workspace_bytes) {
  int64_t whole = bk_gpu_ceil_div(tokens, group), most = (INT64_C(1) << 24) / per_group;
  if (most < 1) most = 1;
  s->group = group;
  s->chunk = whole ? (int32_t)bk_gpu_ceil_div(whole, most) : 1;
  s->chunks = bk_gpu_ceil_div(whole, s->chunk);
  *workspace_bytes = (size_t)(s->chunks * per_group) * sizeof(float);
}

/* ---- Sinkhorn ---- */

bk_status bk_gpu_sinkhorn_prepare(bk_device *device, const void *args, bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_sinkhorn_args *a = args;
  (void)workspace_bytes;
  bk_gpu_sinkhorn_consts consts = {.GROUP = s->group = lane_group(device), .N = (int32_t)a->logits.shape[1], .EPS = a->hc_eps > 0};
  return bk_gpu_build(device, BK_GPU_sinkhorn, &consts, &s->kernel[0]);
}

bk_status bk_gpu_sinkhorn(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_sinkhorn_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->logits.shape[0];
  (void)workspace;
  bk_gpu_sinkhorn_call call = {.logits = bk_gpu_at(&a->logits), .comb = bk_gpu_at(&a->comb), .tokens = (int32_t)tokens,
                               .l0 = STRIDE(a->logits, 0), .h0 = STRIDE(a->comb, 0), .iters = a->iters, .eps = (float)a->hc_eps};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(tokens, s->group));
}

bk_status bk_gpu_sinkhorn_bwd_prepare(bk_device *device, const void *args, bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_sinkhorn_bwd_args *a = args;
  const int n = (int)a->logits.shape[1], group = lane_group(device);
  lane_groups(s, group, a->logits.shape[0], (int64_t)2 * a->iters * n * group, workspace_bytes);
  bk_gpu_sinkhorn_bwd_consts consts = {.GROUP = group, .N = n, .EPS = a->hc_eps > 0};
  return bk_gpu_build(device, BK_GPU_sinkhorn_bwd, &consts, &s->kernel[0]);
}

bk_status bk_gpu_sinkhorn_bwd(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_sinkhorn_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_sinkhorn_bwd_call call = {
    .logits = bk_gpu_at(&a->logits), .dcomb = bk_gpu_at(&a->dcomb), .dlogits = bk_gpu_at(&a->dlogits), .work = workspace,
    .tokens = (int32_t)a->logits.shape[0], .passes = s->chunk, .l0 = STRIDE(a->logits, 0), .dh0 = STRIDE(a->dcomb, 0),
    .dl0 = STRIDE(a->dlogits, 0), .iters = a->iters, .eps = (float)a->hc_eps};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, s->chunks);
}
