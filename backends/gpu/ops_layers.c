/* Launches of layers.k */
#include "backends/gpu/layers.h"

bk_status bk_gpu_rmsnorm_prepare(bk_device *device, const void *args, bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_rmsnorm_args *a = args;
  (void)workspace_bytes;
  bk_gpu_rmsnorm_consts consts = {.GROUP = bk_gpu_group(device, a->x.shape[1]), .BF16 = bk_gpu_half(&a->x)};
  return bk_gpu_build(device, BK_GPU_rmsnorm, &consts, &s->kernel[0]);
}

bk_status bk_gpu_rmsnorm(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_rmsnorm_args *a = args;
  const int64_t rows = a->x.shape[0], width = a->x.shape[1];
  (void)workspace;
  bk_gpu_rmsnorm_call call = {
    .x = bk_gpu_at(&a->x), .w = bk_gpu_at(&a->w), .y = bk_gpu_at(&a->y), .rstd = bk_gpu_at(&a->rstd),
    .width = (int32_t)width, .xs = (int32_t)a->x.stride[0], .ys = (int32_t)a->y.stride[0], .has_rstd = bk_tensor_present(&a->rstd),
    .inv_width = 1.0f / (float)width, .eps = (float)a->eps};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, rows);
}
