/* Launches of hc_kron.k: a token in a lane. One stream has no factors, and its logits no columns:
 * such a view may lie past the end of its buffer, so the kernels are not given it. */
#include "backends/gpu/maps.h"

#define STRIDE(t, d) ((int32_t)(t).stride[d])

/* What fills the vectors of a CPU, the waves of a GPU. */
static int lane_group(const bk_device *device) { return bk_gpu_on_cpu(device) ? 16 : 64; }

static bk_place place_of(const bk_tensor *logits) {
  return logits->shape[1] ? bk_gpu_at(logits) : (bk_place){NULL, 0};
}

bk_status bk_gpu_hc_kron_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                 size_t *workspace_bytes) {
  const bk_hc_kron_args *a = args;
  (void)workspace_bytes;
  bk_gpu_hc_kron_consts consts = {.GROUP = s->group = lane_group(device),
                                  .N = (int32_t)a->comb.shape[1],
                                  .FACTORS = (int32_t)a->logits.shape[1] / 2};
  return bk_gpu_build(device, BK_GPU_hc_kron, &consts, &s->kernel[0]);
}

bk_status bk_gpu_hc_kron(bk_stream *stream, const bk_plan *plan, const void *args,
                         bk_place workspace) {
  const bk_hc_kron_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->comb.shape[0];
  (void)workspace;
  bk_gpu_hc_kron_call call = {.logits = place_of(&a->logits),
                              .comb = bk_gpu_at(&a->comb),
                              .tokens = (int32_t)tokens,
                              .l0 = STRIDE(a->logits, 0),
                              .h0 = STRIDE(a->comb, 0)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(tokens, s->group));
}

bk_status bk_gpu_hc_kron_bwd_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                     size_t *workspace_bytes) {
  const bk_hc_kron_bwd_args *a = args;
  (void)workspace_bytes;
  bk_gpu_hc_kron_bwd_consts consts = {.GROUP = s->group = lane_group(device),
                                      .N = (int32_t)a->dcomb.shape[1],
                                      .FACTORS = (int32_t)a->logits.shape[1] / 2};
  return bk_gpu_build(device, BK_GPU_hc_kron_bwd, &consts, &s->kernel[0]);
}

bk_status bk_gpu_hc_kron_bwd(bk_stream *stream, const bk_plan *plan, const void *args,
                             bk_place workspace) {
  const bk_hc_kron_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->dcomb.shape[0];
  (void)workspace;
  if (a->logits.shape[1] == 0) return BK_OK; /* nothing to write */
  bk_gpu_hc_kron_bwd_call call = {.logits = bk_gpu_at(&a->logits),
                                  .dcomb = bk_gpu_at(&a->dcomb),
                                  .dlogits = bk_gpu_at(&a->dlogits),
                                  .tokens = (int32_t)tokens,
                                  .l0 = STRIDE(a->logits, 0),
                                  .dh0 = STRIDE(a->dcomb, 0),
                                  .dl0 = STRIDE(a->dlogits, 0)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(tokens, s->group));
}
