/* Launches of pre_norm.k and post_res.k, or of their counterparts in cpu_streams.k */
#include "backends/gpu/fused.h"

#include <string.h>

#define MOST_KEPT 16    /* channels that a lane keeps in registers */
#define MOST_CHUNKS 512 /* of a sum over tokens */

#define BK_SAME_CALL(a, b)                                               \
  _Static_assert(sizeof(bk_gpu_##a##_call) == sizeof(bk_gpu_##b##_call), \
                 #a " and " #b " are launched alike")
BK_SAME_CALL(hc_pre_norm, hc_pre_norm_cpu);
BK_SAME_CALL(hc_pre_norm_bwd, hc_pre_norm_bwd_cpu);
BK_SAME_CALL(hc_post_res, hc_post_res_cpu);
BK_SAME_CALL(hc_post_res_bwd, hc_post_res_bwd_cpu);
BK_SAME_CALL(hc_post_res_pre_norm, hc_post_res_pre_norm_cpu);

/* ---- pre + norm ---- */

int bk_gpu_keeping_group(const bk_device *device, int64_t width) {
  const bk_gpu_device *d = (const bk_gpu_device *)device;
  int group = 64;
  while (group < 512 && group * 2 <= d->max_group && width > group * MOST_KEPT) group *= 2;
  return group;
}

int32_t bk_gpu_kept(int64_t width, int group) {
  int64_t each = bk_gpu_ceil_div(width, group);
  if (each < 1) return 1;
  return (int32_t)(each < MOST_KEPT ? each : MOST_KEPT);
}

bk_status bk_gpu_pre_norm_build(bk_device *device, const bk_tensor *x, bk_gpu_pipeline **pipeline) {
  const int64_t width = x->shape[2];
  const int group = bk_gpu_keeping_group(device, width);
  bk_gpu_hc_pre_norm_cpu_consts cpu = {
      .GROUP = 1, .BF16 = bk_gpu_half(x), .N = (int32_t)x->shape[1]};
  if (bk_gpu_on_cpu(device)) return bk_gpu_build(device, BK_GPU_hc_pre_norm_cpu, &cpu, pipeline);
  bk_gpu_hc_pre_norm_consts consts = {.GROUP = group,
                                      .BF16 = bk_gpu_half(x),
                                      .N = (int32_t)x->shape[1],
                                      .KEPT = bk_gpu_kept(width, group)};
  return bk_gpu_build(device, BK_GPU_hc_pre_norm, &consts, pipeline);
}

bk_status bk_gpu_pre_norm_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *p,
                              const bk_hc_pre_norm_args *a) {
  bk_gpu_hc_pre_norm_call call = {.x = bk_gpu_at(&a->x),
                                  .pre = bk_gpu_at(&a->pre),
                                  .w = bk_gpu_at(&a->w),
                                  .y = bk_gpu_at(&a->y),
                                  .h = bk_gpu_at(&a->h),
                                  .rstd = bk_gpu_at(&a->rstd),
                                  .width = (int32_t)a->x.shape[2],
                                  .x0 = (int32_t)a->x.stride[0],
                                  .x1 = (int32_t)a->x.stride[1],
                                  .ps = (int32_t)a->pre.stride[0],
                                  .ys = (int32_t)a->y.stride[0],
                                  .hs = (int32_t)a->h.stride[0],
                                  .eps = (float)a->eps};
  return bk_gpu_run(stream, plan, p, &call, a->x.shape[0]);
}

BK_GPU_PREPARE(bk_gpu_hc_pre_norm_prepare) {
  return bk_gpu_pre_norm_build(device, &((const bk_hc_pre_norm_args *)args)->x, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_pre_norm) {
  return bk_gpu_pre_norm_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], args);
}

BK_GPU_PREPARE(bk_gpu_hc_pre_norm_bwd_prepare) {
  const bk_hc_pre_norm_bwd_args *a = args;
  const int64_t width = a->x.shape[2];
  const int group = bk_gpu_keeping_group(device, width);
  bk_gpu_hc_pre_norm_bwd_consts consts = {.GROUP = group,
                                          .BF16 = bk_gpu_half(&a->x),
                                          .N = (int32_t)a->x.shape[1],
                                          .KEPT = bk_gpu_kept(width, group),
                                          .ADD = a->accumulate};
  s->chunk = bk_gpu_chunk(a->x.shape[0], 1, bk_gpu_on_cpu(device) ? 32 : MOST_CHUNKS);
  s->chunks = bk_gpu_ceil_div(a->x.shape[0], s->chunk);
  *workspace_bytes = (size_t)(s->chunks * width) * sizeof(float);
  BK_TRY(bk_gpu_add_chunks_build(device, &s->kernel[1]));
  bk_gpu_hc_pre_norm_bwd_cpu_consts cpu = {
      .GROUP = 1, .BF16 = consts.BF16, .N = consts.N, .ADD = consts.ADD};
  if (bk_gpu_on_cpu(device))
    return bk_gpu_build(device, BK_GPU_hc_pre_norm_bwd_cpu, &cpu, &s->kernel[0]);
  return bk_gpu_build(device, BK_GPU_hc_pre_norm_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_pre_norm_bwd) {
  const bk_hc_pre_norm_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->x.shape[0], width = a->x.shape[2];
  bk_gpu_hc_pre_norm_bwd_call call = {.x = bk_gpu_at(&a->x),
                                      .pre = bk_gpu_at(&a->pre),
                                      .w = bk_gpu_at(&a->w),
                                      .y = bk_gpu_at(&a->y),
                                      .dh = bk_gpu_at(&a->dh),
                                      .rstd = bk_gpu_at(&a->rstd),
                                      .dx = bk_gpu_at(&a->dx),
                                      .dpre = bk_gpu_at(&a->dpre),
                                      .partial = workspace,
                                      .width = (int32_t)width,
                                      .tokens = (int32_t)tokens,
                                      .chunk = s->chunk,
                                      .x0 = (int32_t)a->x.stride[0],
                                      .x1 = (int32_t)a->x.stride[1],
                                      .ps = (int32_t)a->pre.stride[0],
                                      .ys = (int32_t)a->y.stride[0],
                                      .hs = (int32_t)a->dh.stride[0],
                                      .d0 = (int32_t)a->dx.stride[0],
                                      .d1 = (int32_t)a->dx.stride[1],
                                      .dps = (int32_t)a->dpre.stride[0],
                                      .inv_width = 1.0f / (float)width};
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[0], &call, s->chunks));
  return bk_gpu_add_chunks_run(stream, plan, s->kernel[1], workspace, s->chunks, &a->dw);
}

/* ---- post + res ---- */

bk_status bk_gpu_post_res_build(bk_device *device, const bk_hc_post_res_args *a, bk_gpu_state *s,
                                bk_gpu_pipeline **pipeline) {
  const int64_t tokens = a->x.shape[0], width = a->x.shape[2];
  bk_gpu_hc_post_res_consts consts = {.GROUP = bk_gpu_group(device, width),
                                      .BF16 = bk_gpu_half(&a->x),
                                      .N = (int32_t)a->x.shape[1],
                                      .COMB = bk_tensor_present(&a->comb)};
  /* few tokens: several groups a token */
  const int64_t most = bk_gpu_ceil_div(width, consts.GROUP),
                wanted = tokens ? bk_gpu_ceil_div(bk_gpu_on_cpu(device) ? 8 : 1024, tokens) : 1;
  const int64_t parts = wanted < most ? wanted : most;
  s->chunk = (int32_t)(parts ? bk_gpu_ceil_div(most, parts) * consts.GROUP : 1);
  s->chunks = bk_gpu_ceil_div(width, s->chunk);
  bk_gpu_hc_post_res_cpu_consts cpu = {
      .GROUP = 1, .BF16 = consts.BF16, .N = consts.N, .COMB = consts.COMB};
  if (bk_gpu_on_cpu(device)) return bk_gpu_build(device, BK_GPU_hc_post_res_cpu, &cpu, pipeline);
  return bk_gpu_build(device, BK_GPU_hc_post_res, &consts, pipeline);
}

bk_status bk_gpu_post_res_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *p,
                              const bk_hc_post_res_args *a) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_post_res_call call = {.x = bk_gpu_at(&a->x),
                                  .f = bk_gpu_at(&a->f),
                                  .post = bk_gpu_at(&a->post),
                                  .comb = bk_gpu_at(&a->comb),
                                  .merged = bk_gpu_at(&a->out),
                                  .width = (int32_t)a->x.shape[2],
                                  .parts = (int32_t)s->chunks,
                                  .span = s->chunk,
                                  .x0 = (int32_t)a->x.stride[0],
                                  .x1 = (int32_t)a->x.stride[1],
                                  .fs = (int32_t)a->f.stride[0],
                                  .ps = (int32_t)a->post.stride[0],
                                  .cs = (int32_t)a->comb.stride[0],
                                  .o0 = (int32_t)a->out.stride[0],
                                  .o1 = (int32_t)a->out.stride[1]};
  return bk_gpu_run(stream, plan, p, &call, a->x.shape[0] * s->chunks);
}

BK_GPU_PREPARE(bk_gpu_hc_post_res_prepare) {
  return bk_gpu_post_res_build(device, args, s, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_post_res) {
  return bk_gpu_post_res_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], args);
}

BK_GPU_PREPARE(bk_gpu_hc_post_res_bwd_prepare) {
  const bk_hc_post_res_bwd_args *a = args;
  int group = bk_gpu_group(device, a->x.shape[2]);
  /* the sums take many registers: small groups fill a multiprocessor better */
  if (group > 128) group = 128;
  bk_gpu_hc_post_res_bwd_consts consts = {.GROUP = group,
                                          .BF16 = bk_gpu_half(&a->x),
                                          .N = (int32_t)a->x.shape[1],
                                          .COMB = bk_tensor_present(&a->comb)};
  bk_gpu_hc_post_res_bwd_cpu_consts cpu = {
      .GROUP = 1, .BF16 = consts.BF16, .N = consts.N, .COMB = consts.COMB};
  if (bk_gpu_on_cpu(device))
    return bk_gpu_build(device, BK_GPU_hc_post_res_bwd_cpu, &cpu, &s->kernel[0]);
  return bk_gpu_build(device, BK_GPU_hc_post_res_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_post_res_bwd) {
  const bk_hc_post_res_bwd_args *a = args;
  bk_gpu_hc_post_res_bwd_call call = {.x = bk_gpu_at(&a->x),
                                      .f = bk_gpu_at(&a->f),
                                      .post = bk_gpu_at(&a->post),
                                      .comb = bk_gpu_at(&a->comb),
                                      .dout = bk_gpu_at(&a->dout),
                                      .dx = bk_gpu_at(&a->dx),
                                      .df = bk_gpu_at(&a->df),
                                      .dpost = bk_gpu_at(&a->dpost),
                                      .dcomb = bk_gpu_at(&a->dcomb),
                                      .width = (int32_t)a->x.shape[2],
                                      .x0 = (int32_t)a->x.stride[0],
                                      .x1 = (int32_t)a->x.stride[1],
                                      .fs = (int32_t)a->f.stride[0],
                                      .ps = (int32_t)a->post.stride[0],
                                      .cs = (int32_t)a->comb.stride[0],
                                      .g0 = (int32_t)a->dout.stride[0],
                                      .g1 = (int32_t)a->dout.stride[1],
                                      .d0 = (int32_t)a->dx.stride[0],
                                      .d1 = (int32_t)a->dx.stride[1],
                                      .dfs = (int32_t)a->df.stride[0],
                                      .dps = (int32_t)a->dpost.stride[0],
                                      .dcs = (int32_t)a->dcomb.stride[0]};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, a->x.shape[0]);
}
