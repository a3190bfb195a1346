/* Launches of rebuild.k: HC_REBUILD is HC_PRE_NORM of the first layer, then for each further
 * layer HC_POST_RES and HC_PRE_NORM in one pass. */
#include "backends/gpu/fused.h"

/* kernels of the plan; MERGE where the streams of two layers are laid out differently */
enum { FIRST, NEXT, MERGE };

static bk_hc_pre_norm_args mix_of(const bk_hc_rebuild_args *a, int i) {
  const bk_hc_rebuild_layer *l = &a->layer[i];
  return (bk_hc_pre_norm_args){l->x, l->pre, l->w, l->y, l->h, l->rstd, a->eps};
}
static bk_hc_post_res_args merge_of(const bk_hc_rebuild_args *a, int i) {
  const bk_hc_rebuild_layer *l = &a->layer[i];
  return (bk_hc_post_res_args){l->x, l->f, l->post, l->comb, l[1].x};
}
static bool same_strides(const bk_hc_rebuild_args *a, int i) {
  const bk_tensor *x = &a->layer[i].x, *next = &a->layer[i + 1].x;
  return x->stride[0] == next->stride[0] && x->stride[1] == next->stride[1];
}

static bk_status build_next(bk_device *device, const bk_hc_rebuild_args *a,
                            bk_gpu_pipeline **pipeline) {
  const bk_tensor *x = &a->layer[0].x;
  const int group = bk_gpu_keeping_group(device, x->shape[2]);
  bk_gpu_hc_post_res_pre_norm_consts consts = {.GROUP = group,
                                               .BF16 = bk_gpu_half(x),
                                               .N = (int32_t)x->shape[1],
                                               .COMB = bk_tensor_present(&a->layer[0].comb),
                                               .KEPT = bk_gpu_kept(x->shape[2], group)};
  bk_gpu_hc_post_res_pre_norm_cpu_consts cpu = {
      .GROUP = 1, .BF16 = consts.BF16, .N = consts.N, .COMB = consts.COMB};
  if (bk_gpu_on_cpu(device))
    return bk_gpu_build(device, BK_GPU_hc_post_res_pre_norm_cpu, &cpu, pipeline);
  return bk_gpu_build(device, BK_GPU_hc_post_res_pre_norm, &consts, pipeline);
}

BK_GPU_PREPARE(bk_gpu_hc_rebuild_prepare) {
  const bk_hc_rebuild_args *a = args;
  bool alike = true;
  BK_TRY(bk_gpu_pre_norm_build(device, &a->layer[0].x, &s->kernel[FIRST]));
  if (a->layers == 1) return BK_OK;
  for (int i = 0; i + 1 < a->layers; i++) alike = alike && same_strides(a, i);
  BK_TRY(build_next(device, a, &s->kernel[NEXT]));
  const bk_hc_post_res_args merge = merge_of(a, 0);
  return alike ? BK_OK : bk_gpu_post_res_build(device, &merge, s, &s->kernel[MERGE]);
}

static bk_status run_next(bk_stream *stream, const bk_plan *plan, const bk_hc_rebuild_args *a,
                          int i) {
  const bk_hc_rebuild_layer *l = &a->layer[i], *to = l + 1;
  bk_gpu_hc_post_res_pre_norm_call call = {.x = bk_gpu_at(&l->x),
                                           .f = bk_gpu_at(&l->f),
                                           .post = bk_gpu_at(&l->post),
                                           .comb = bk_gpu_at(&l->comb),
                                           .merged = bk_gpu_at(&to->x),
                                           .pre = bk_gpu_at(&to->pre),
                                           .w = bk_gpu_at(&to->w),
                                           .y = bk_gpu_at(&to->y),
                                           .h = bk_gpu_at(&to->h),
                                           .rstd = bk_gpu_at(&to->rstd),
                                           .width = (int32_t)l->x.shape[2],
                                           .x0 = (int32_t)l->x.stride[0],
                                           .x1 = (int32_t)l->x.stride[1],
                                           .fs = (int32_t)l->f.stride[0],
                                           .ps = (int32_t)l->post.stride[0],
                                           .cs = (int32_t)l->comb.stride[0],
                                           .qs = (int32_t)to->pre.stride[0],
                                           .ys = (int32_t)to->y.stride[0],
                                           .hs = (int32_t)to->h.stride[0],
                                           .eps = (float)a->eps};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[NEXT], &call, l->x.shape[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_rebuild) {
  const bk_hc_rebuild_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  for (int i = 0; i < a->layers; i++) {
    const bk_hc_pre_norm_args mix = mix_of(a, i);
    if (i > 0 && same_strides(a, i - 1)) {
      BK_TRY(run_next(stream, plan, a, i - 1));
      continue;
    }
    if (i > 0) {
      const bk_hc_post_res_args merge = merge_of(a, i - 1);
      BK_TRY(bk_gpu_post_res_run(stream, plan, s->kernel[MERGE], &merge));
    }
    BK_TRY(bk_gpu_pre_norm_run(stream, plan, s->kernel[FIRST], &mix));
  }
  return BK_OK;
}
