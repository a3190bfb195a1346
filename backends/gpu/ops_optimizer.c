/* Launches of optimizer.k */
#include "backends/gpu/basic.h"

_Static_assert(BK_STEP_BALANCE_RATE == 5 && BK_STEP_LOSS == 16 && BK_STEP_FINITE == 20,
               "optimizer.k has the numbers of the fields");

BK_GPU_PREPARE(bk_gpu_clip_prepare) {
  bk_gpu_clip_consts consts = {1};
  (void)args, (void)workspace_bytes;
  return bk_gpu_build(device, BK_GPU_clip, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_clip) {
  const bk_clip_args *a = args;
  bk_gpu_clip_call call = {.step = bk_gpu_at(&a->step)};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, 1);
}

BK_GPU_PREPARE(bk_gpu_adamw_prepare) {
  const bk_adamw_args *a = args;
  const bk_gpu_shape shape = bk_gpu_shape_of(device, a->grad.shape[0]);
  bk_gpu_adamw_consts consts = {shape.group, shape.items, shape.batches, bk_gpu_half(&a->p),
                                bk_tensor_present(&a->master)};
  return bk_gpu_build(device, BK_GPU_adamw, &consts, &s->kernel[0]);
}

static bk_status run_adamw(bk_stream *stream, const bk_plan *plan, const bk_adamw_args *a,
                           int64_t first, int64_t count) {
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  bk_gpu_adamw_call call = {.grad = bk_gpu_at_element(&a->grad, first),
                            .step = bk_gpu_at(&a->step),
                            .p = bk_gpu_at_element(&a->p, first),
                            .master = bk_gpu_at_element(&a->master, first),
                            .m = bk_gpu_at_element(&a->m, first),
                            .v = bk_gpu_at_element(&a->v, first),
                            .count = (int32_t)count,
                            .beta1 = (float)a->beta1,
                            .rest1 = (float)(1 - a->beta1),
                            .beta2 = (float)a->beta2,
                            .rest2 = (float)(1 - a->beta2),
                            .eps = (float)a->eps,
                            .decay = (float)a->weight_decay};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_blocks(p, count));
}

BK_LAUNCH_FN(bk_gpu_adamw) {
  const bk_adamw_args *a = args;
  const int64_t count = a->grad.shape[0], reach = bk_gpu_piece(stream->device),
                piece = reach > 0 && reach < count ? reach : count;
  for (int64_t first = 0; first < count; first += piece)
    BK_TRY(run_adamw(stream, plan, a, first, count - first < piece ? count - first : piece));
  return BK_OK;
}

BK_GPU_PREPARE(bk_gpu_balance_prepare) {
  bk_gpu_balance_consts consts = {64};
  (void)args, (void)workspace_bytes;
  return bk_gpu_build(device, BK_GPU_balance, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_balance) {
  const bk_balance_args *a = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  bk_gpu_balance_call call = {.load = bk_gpu_at(&a->load),
                              .step = bk_gpu_at(&a->step),
                              .bias = bk_gpu_at(&a->bias),
                              .experts = (int32_t)a->load.shape[0]};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(a->load.shape[0], p->consts[0]));
}
