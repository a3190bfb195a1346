/* Launches of loss.k */
#include "backends/gpu/layers.h"

_Static_assert(BK_STEP_LOSS_SCALE == 4, "loss.k has the number of the field");

BK_GPU_PREPARE(bk_gpu_cross_entropy_prepare) {
  const bk_cross_entropy_args *a = args;
  const bk_gpu_shape shape = bk_gpu_shape_of(device, a->logits.shape[1]);
  bk_gpu_cross_entropy_consts consts = {shape.group, shape.items, bk_gpu_half(&a->logits),
                                        bk_gpu_half(&a->dlogits), bk_tensor_present(&a->dlogits)};
  return bk_gpu_build(device, BK_GPU_cross_entropy, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_cross_entropy) {
  const bk_cross_entropy_args *a = args;
  bk_gpu_cross_entropy_call call = {.logits = bk_gpu_at(&a->logits),
                                    .targets = bk_gpu_at(&a->targets),
                                    .step = bk_gpu_at(&a->step),
                                    .loss = bk_gpu_at(&a->loss),
                                    .dlogits = bk_gpu_at(&a->dlogits),
                                    .width = (int32_t)a->logits.shape[1],
                                    .ls = (int32_t)a->logits.stride[0],
                                    .ds = (int32_t)a->dlogits.stride[0]};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->logits.shape[0]);
}
