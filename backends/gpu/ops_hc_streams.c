/* Launches of hc_streams.k */
#include "backends/gpu/ops_hc.h"
#include "backends/gpu/streams.h"

#define STRIDE(t, d) ((int32_t)(t).stride[d])

/* ---- norm of a row ---- */

BK_GPU_PREPARE(bk_gpu_hc_rms_prepare) {
  const bk_hc_rms_args *a = args;
  bk_gpu_hc_rms_consts consts = {.GROUP = bk_gpu_group(device, a->x.shape[1]),
                                 .BF16 = bk_gpu_half(&a->x)};
  return bk_gpu_build(device, BK_GPU_hc_rms, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_rms) {
  const bk_hc_rms_args *a = args;
  const int64_t width = a->x.shape[1];
  bk_gpu_hc_rms_call call = {.x = bk_gpu_at(&a->x),
                             .rinv = bk_gpu_at(&a->rinv),
                             .width = (int32_t)width,
                             .x0 = STRIDE(a->x, 0),
                             .inv_width = 1.0f / (float)width,
                             .eps = (float)a->eps};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->x.shape[0]);
}

/* For element-wise kernels. */
static int group_of(bk_device *device, bk_gpu_state *s, int64_t width) {
  s->group = bk_gpu_group(device, width);
  s->chunk = bk_gpu_hc_slice(device, s->group, width);
  s->chunks = bk_gpu_ceil_div(width, s->chunk);
  return s->group;
}

BK_GPU_PREPARE(bk_gpu_hc_rms_bwd_prepare) {
  const bk_hc_rms_bwd_args *a = args;
  bk_gpu_hc_rms_bwd_consts consts = {.GROUP = group_of(device, s, a->x.shape[1]),
                                     .BF16 = bk_gpu_half(&a->x)};
  return bk_gpu_build(device, BK_GPU_hc_rms_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_rms_bwd) {
  const bk_hc_rms_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t width = a->x.shape[1];
  bk_gpu_hc_rms_bwd_call call = {.x = bk_gpu_at(&a->x),
                                 .rinv = bk_gpu_at(&a->rinv),
                                 .drinv = bk_gpu_at(&a->drinv),
                                 .dx = bk_gpu_at(&a->dx),
                                 .width = (int32_t)width,
                                 .slice = s->chunk,
                                 .slices = (int32_t)s->chunks,
                                 .x0 = STRIDE(a->x, 0),
                                 .dx0 = STRIDE(a->dx, 0),
                                 .accumulate = a->accumulate,
                                 .inv_width = 1.0f / (float)width};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, a->x.shape[0] * s->chunks);
}

/* ---- pre ---- */

BK_GPU_PREPARE(bk_gpu_hc_pre_prepare) {
  const bk_hc_pre_args *a = args;
  bk_gpu_hc_pre_consts consts = {.GROUP = group_of(device, s, a->x.shape[2]),
                                 .BF16 = bk_gpu_half(&a->x),
                                 .N = (int32_t)a->x.shape[1]};
  return bk_gpu_build(device, BK_GPU_hc_pre, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_pre) {
  const bk_hc_pre_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_pre_call call = {.x = bk_gpu_at(&a->x),
                             .pre = bk_gpu_at(&a->pre),
                             .y = bk_gpu_at(&a->y),
                             .width = (int32_t)a->x.shape[2],
                             .slice = s->chunk,
                             .slices = (int32_t)s->chunks,
                             .x0 = STRIDE(a->x, 0),
                             .x1 = STRIDE(a->x, 1),
                             .p0 = STRIDE(a->pre, 0),
                             .y0 = STRIDE(a->y, 0)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, a->x.shape[0] * s->chunks);
}

BK_GPU_PREPARE(bk_gpu_hc_pre_bwd_prepare) {
  const bk_hc_pre_bwd_args *a = args;
  const int group = bk_gpu_group(device, a->x.shape[2]), n = (int)a->x.shape[1];
  bk_gpu_hc_pre_bwd_consts consts = {
      .GROUP = group, .BF16 = bk_gpu_half(&a->x), .N = n, .SUMS = bk_gpu_sums(group, n)};
  return bk_gpu_build(device, BK_GPU_hc_pre_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_pre_bwd) {
  const bk_hc_pre_bwd_args *a = args;
  bk_gpu_hc_pre_bwd_call call = {.x = bk_gpu_at(&a->x),
                                 .pre = bk_gpu_at(&a->pre),
                                 .dy = bk_gpu_at(&a->dy),
                                 .dx = bk_gpu_at(&a->dx),
                                 .dpre = bk_gpu_at(&a->dpre),
                                 .width = (int32_t)a->x.shape[2],
                                 .x0 = STRIDE(a->x, 0),
                                 .x1 = STRIDE(a->x, 1),
                                 .p0 = STRIDE(a->pre, 0),
                                 .dy0 = STRIDE(a->dy, 0),
                                 .dx0 = STRIDE(a->dx, 0),
                                 .dx1 = STRIDE(a->dx, 1),
                                 .dp0 = STRIDE(a->dpre, 0),
                                 .accumulate = a->accumulate};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->x.shape[0]);
}

/* ---- res ---- */

BK_GPU_PREPARE(bk_gpu_hc_res_prepare) {
  const bk_hc_res_args *a = args;
  bk_gpu_hc_res_consts consts = {.GROUP = group_of(device, s, a->x.shape[2]),
                                 .BF16 = bk_gpu_half(&a->x),
                                 .N = (int32_t)a->x.shape[1]};
  return bk_gpu_build(device, BK_GPU_hc_res, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_res) {
  const bk_hc_res_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_res_call call = {.x = bk_gpu_at(&a->x),
                             .comb = bk_gpu_at(&a->comb),
                             .y = bk_gpu_at(&a->y),
                             .width = (int32_t)a->x.shape[2],
                             .slice = s->chunk,
                             .slices = (int32_t)s->chunks,
                             .x0 = STRIDE(a->x, 0),
                             .x1 = STRIDE(a->x, 1),
                             .h0 = STRIDE(a->comb, 0),
                             .y0 = STRIDE(a->y, 0),
                             .y1 = STRIDE(a->y, 1)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, a->x.shape[0] * s->chunks);
}

BK_GPU_PREPARE(bk_gpu_hc_res_bwd_prepare) {
  const bk_hc_res_bwd_args *a = args;
  const int group = bk_gpu_group(device, a->x.shape[2]), n = (int)a->x.shape[1];
  bk_gpu_hc_res_bwd_consts consts = {
      .GROUP = group, .BF16 = bk_gpu_half(&a->x), .N = n, .SUMS = bk_gpu_sums(group, n * n)};
  return bk_gpu_build(device, BK_GPU_hc_res_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_res_bwd) {
  const bk_hc_res_bwd_args *a = args;
  bk_gpu_hc_res_bwd_call call = {.x = bk_gpu_at(&a->x),
                                 .comb = bk_gpu_at(&a->comb),
                                 .dy = bk_gpu_at(&a->dy),
                                 .dx = bk_gpu_at(&a->dx),
                                 .dcomb = bk_gpu_at(&a->dcomb),
                                 .width = (int32_t)a->x.shape[2],
                                 .x0 = STRIDE(a->x, 0),
                                 .x1 = STRIDE(a->x, 1),
                                 .h0 = STRIDE(a->comb, 0),
                                 .dy0 = STRIDE(a->dy, 0),
                                 .dy1 = STRIDE(a->dy, 1),
                                 .dx0 = STRIDE(a->dx, 0),
                                 .dx1 = STRIDE(a->dx, 1),
                                 .dh0 = STRIDE(a->dcomb, 0)};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->x.shape[0]);
}

/* ---- post ---- */

BK_GPU_PREPARE(bk_gpu_hc_post_prepare) {
  const bk_hc_post_args *a = args;
  bk_gpu_hc_post_consts consts = {.GROUP = group_of(device, s, a->y.shape[2]),
                                  .BF16 = bk_gpu_half(&a->f),
                                  .N = (int32_t)a->y.shape[1]};
  return bk_gpu_build(device, BK_GPU_hc_post, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_post) {
  const bk_hc_post_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_post_call call = {.f = bk_gpu_at(&a->f),
                              .post = bk_gpu_at(&a->post),
                              .y = bk_gpu_at(&a->y),
                              .width = (int32_t)a->y.shape[2],
                              .slice = s->chunk,
                              .slices = (int32_t)s->chunks,
                              .f0 = STRIDE(a->f, 0),
                              .p0 = STRIDE(a->post, 0),
                              .y0 = STRIDE(a->y, 0),
                              .y1 = STRIDE(a->y, 1)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, a->y.shape[0] * s->chunks);
}

BK_GPU_PREPARE(bk_gpu_hc_post_bwd_prepare) {
  const bk_hc_post_bwd_args *a = args;
  const int group = bk_gpu_group(device, a->dy.shape[2]), n = (int)a->dy.shape[1];
  bk_gpu_hc_post_bwd_consts consts = {
      .GROUP = group, .BF16 = bk_gpu_half(&a->f), .N = n, .SUMS = bk_gpu_sums(group, n)};
  return bk_gpu_build(device, BK_GPU_hc_post_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_post_bwd) {
  const bk_hc_post_bwd_args *a = args;
  bk_gpu_hc_post_bwd_call call = {.f = bk_gpu_at(&a->f),
                                  .post = bk_gpu_at(&a->post),
                                  .dy = bk_gpu_at(&a->dy),
                                  .df = bk_gpu_at(&a->df),
                                  .dpost = bk_gpu_at(&a->dpost),
                                  .width = (int32_t)a->dy.shape[2],
                                  .f0 = STRIDE(a->f, 0),
                                  .p0 = STRIDE(a->post, 0),
                                  .dy0 = STRIDE(a->dy, 0),
                                  .dy1 = STRIDE(a->dy, 1),
                                  .df0 = STRIDE(a->df, 0),
                                  .dp0 = STRIDE(a->dpost, 0)};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->dy.shape[0]);
}
