/* Launches of hc_maps.k */
#include "backends/gpu/maps.h"
#include "backends/gpu/ops_hc.h"

#define STRIDE(t, d) ((int32_t)(t).stride[d])

/* Work-group size of kernels with a token in a lane: what fills the vectors of a CPU, the waves
 * of a GPU. */
static int lane_group(const bk_device *device) {
  return ((const bk_gpu_device *)device)->on_cpu ? 16 : 64;
}

/* Groups of a kernel with a token in a lane where each keeps `per_group` floats in the
 * workspace. */
static void lane_groups(bk_gpu_state *s, int group, int64_t tokens, int64_t per_group,
                        size_t *workspace_bytes) {
  s->group = group;
  s->chunk = 1;
  s->chunks = bk_gpu_ceil_div(tokens, group);
  *workspace_bytes = (size_t)(s->chunks * per_group) * sizeof(float);
}

/* The same where that is much: not more groups than 64 MiB hold, so that one may have several
 * turns (s->chunk). */
static void few_lane_groups(bk_gpu_state *s, int group, int64_t tokens, int64_t per_group,
                            size_t *workspace_bytes) {
  int64_t whole = bk_gpu_ceil_div(tokens, group), most = (INT64_C(1) << 24) / per_group;
  s->group = group;
  s->chunk = whole > most ? (int32_t)bk_gpu_ceil_div(whole, most) : 1;
  s->chunks = bk_gpu_ceil_div(whole, s->chunk);
  *workspace_bytes = (size_t)(s->chunks * per_group) * sizeof(float);
}

/* ---- Sinkhorn ---- */

bk_status bk_gpu_sinkhorn_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                  size_t *workspace_bytes) {
  const bk_sinkhorn_args *a = args;
  (void)workspace_bytes;
  bk_gpu_sinkhorn_consts consts = {.GROUP = s->group = lane_group(device),
                                   .N = (int32_t)a->logits.shape[1],
                                   .EPS = a->hc_eps > 0};
  return bk_gpu_build(device, BK_GPU_sinkhorn, &consts, &s->kernel[0]);
}

bk_status bk_gpu_sinkhorn(bk_stream *stream, const bk_plan *plan, const void *args,
                          bk_place workspace) {
  const bk_sinkhorn_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->logits.shape[0];
  (void)workspace;
  bk_gpu_sinkhorn_call call = {.logits = bk_gpu_at(&a->logits),
                               .comb = bk_gpu_at(&a->comb),
                               .tokens = (int32_t)tokens,
                               .l0 = STRIDE(a->logits, 0),
                               .h0 = STRIDE(a->comb, 0),
                               .iters = a->iters,
                               .eps = (float)a->hc_eps};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(tokens, s->group));
}

bk_status bk_gpu_sinkhorn_bwd_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                      size_t *workspace_bytes) {
  const bk_sinkhorn_bwd_args *a = args;
  const int n = (int)a->logits.shape[1], group = lane_group(device);
  few_lane_groups(s, group, a->logits.shape[0], (int64_t)2 * a->iters * n * group, workspace_bytes);
  bk_gpu_sinkhorn_bwd_consts consts = {.GROUP = group, .N = n, .EPS = a->hc_eps > 0};
  return bk_gpu_build(device, BK_GPU_sinkhorn_bwd, &consts, &s->kernel[0]);
}

bk_status bk_gpu_sinkhorn_bwd(bk_stream *stream, const bk_plan *plan, const void *args,
                              bk_place workspace) {
  const bk_sinkhorn_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_sinkhorn_bwd_call call = {.logits = bk_gpu_at(&a->logits),
                                   .dcomb = bk_gpu_at(&a->dcomb),
                                   .dlogits = bk_gpu_at(&a->dlogits),
                                   .work = workspace,
                                   .tokens = (int32_t)a->logits.shape[0],
                                   .passes = s->chunk,
                                   .l0 = STRIDE(a->logits, 0),
                                   .dh0 = STRIDE(a->dcomb, 0),
                                   .dl0 = STRIDE(a->dlogits, 0),
                                   .iters = a->iters,
                                   .eps = (float)a->hc_eps};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, s->chunks);
}

/* ---- sums of dbase and dscale: each group of a backward leaves its own, hc_sums adds them up
 * ---- */

static bk_status build_sums(bk_device *device, const bk_gpu_state *s, bk_gpu_pipeline **pipeline) {
  bk_gpu_hc_sums_consts consts = {.GROUP = bk_gpu_group(device, s->chunks)};
  return bk_gpu_build(device, BK_GPU_hc_sums, &consts, pipeline);
}

/* stride: floats from a group's sums to the next one's. */
static bk_status add_sums(bk_stream *stream, const bk_plan *plan, const bk_tensor *dbase,
                          const bk_tensor *dscale, int64_t stride, bk_place workspace) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t rows = dbase->shape[0];
  bk_gpu_hc_sums_call call = {.work = workspace,
                              .dbase = bk_gpu_at(dbase),
                              .dscale = bk_gpu_at(dscale),
                              .parts = (int32_t)s->chunks,
                              .stride = (int32_t)stride,
                              .rows = (int32_t)rows};
  return bk_gpu_run(stream, plan, s->kernel[1], &call, rows + dscale->shape[0]);
}

/* ---- logits ---- */

bk_status bk_gpu_hc_logits_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                   size_t *workspace_bytes) {
  const bk_hc_logits_args *a = args;
  (void)workspace_bytes;
  s->group = bk_gpu_group(device, bk_tensor_count(&a->logits));
  bk_gpu_hc_logits_consts consts = {.GROUP = s->group};
  return bk_gpu_build(device, BK_GPU_hc_logits, &consts, &s->kernel[0]);
}

bk_status bk_gpu_hc_logits(bk_stream *stream, const bk_plan *plan, const void *args,
                           bk_place workspace) {
  const bk_hc_logits_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t count = bk_tensor_count(&a->logits);
  (void)workspace;
  bk_gpu_hc_logits_call call = {.proj = bk_gpu_at(&a->proj),
                                .rinv = bk_gpu_at(&a->rinv),
                                .scale = bk_gpu_at(&a->scale),
                                .base = bk_gpu_at(&a->base),
                                .logits = bk_gpu_at(&a->logits),
                                .count = (int32_t)count,
                                .columns = (int32_t)a->proj.shape[1],
                                .n = a->n,
                                .q0 = STRIDE(a->proj, 0),
                                .l0 = STRIDE(a->logits, 0)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(count, s->group));
}

bk_status bk_gpu_hc_logits_bwd_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                       size_t *workspace_bytes) {
  const bk_hc_logits_bwd_args *a = args;
  const int group = lane_group(device), rows = (int)a->proj.shape[1],
            scales = (int)a->dscale.shape[0];
  lane_groups(s, group, a->proj.shape[0], rows + scales, workspace_bytes);
  bk_gpu_hc_logits_bwd_consts consts = {.GROUP = group,
                                        .N = a->n,
                                        .ROWS = rows,
                                        .SCALES = scales,
                                        .SUMS = bk_gpu_sums(group, rows + scales)};
  BK_TRY(bk_gpu_build(device, BK_GPU_hc_logits_bwd, &consts, &s->kernel[0]));
  return build_sums(device, s, &s->kernel[1]);
}

bk_status bk_gpu_hc_logits_bwd(bk_stream *stream, const bk_plan *plan, const void *args,
                               bk_place workspace) {
  const bk_hc_logits_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_logits_bwd_call call = {.proj = bk_gpu_at(&a->proj),
                                    .rinv = bk_gpu_at(&a->rinv),
                                    .scale = bk_gpu_at(&a->scale),
                                    .dlogits = bk_gpu_at(&a->dlogits),
                                    .dproj = bk_gpu_at(&a->dproj),
                                    .drinv = bk_gpu_at(&a->drinv),
                                    .work = workspace,
                                    .tokens = (int32_t)a->proj.shape[0],
                                    .q0 = STRIDE(a->proj, 0),
                                    .l0 = STRIDE(a->dlogits, 0),
                                    .dq0 = STRIDE(a->dproj, 0)};
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[0], &call, s->chunks));
  return add_sums(stream, plan, &a->dbase, &a->dscale, a->dbase.shape[0] + a->dscale.shape[0],
                  workspace);
}

/* ---- gates ---- */

bk_status bk_gpu_hc_gates_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                  size_t *workspace_bytes) {
  const bk_hc_gates_args *a = args;
  (void)workspace_bytes;
  bk_gpu_hc_gates_consts consts = {.GROUP = s->group =
                                       bk_gpu_group(device, bk_tensor_count(&a->pre))};
  return bk_gpu_build(device, BK_GPU_hc_gates, &consts, &s->kernel[0]);
}

bk_status bk_gpu_hc_gates(bk_stream *stream, const bk_plan *plan, const void *args,
                          bk_place workspace) {
  const bk_hc_gates_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const bool has_post = bk_tensor_present(&a->post);
  (void)workspace;
  bk_gpu_hc_gates_call call = {.logits = bk_gpu_at(&a->logits),
                               .pre = bk_gpu_at(&a->pre),
                               .post = bk_gpu_at(&a->post),
                               .count = (int32_t)bk_tensor_count(&a->pre),
                               .n = (int32_t)a->pre.shape[1],
                               .l0 = STRIDE(a->logits, 0),
                               .p0 = STRIDE(a->pre, 0),
                               .q0 = has_post ? STRIDE(a->post, 0) : 0,
                               .has_post = has_post,
                               .eps = (float)a->hc_eps};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(call.count, s->group));
}

bk_status bk_gpu_hc_gates_bwd_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                      size_t *workspace_bytes) {
  const bk_hc_gates_bwd_args *a = args;
  (void)workspace_bytes;
  bk_gpu_hc_gates_bwd_consts consts = {.GROUP = s->group =
                                           bk_gpu_group(device, bk_tensor_count(&a->dpre))};
  return bk_gpu_build(device, BK_GPU_hc_gates_bwd, &consts, &s->kernel[0]);
}

bk_status bk_gpu_hc_gates_bwd(bk_stream *stream, const bk_plan *plan, const void *args,
                              bk_place workspace) {
  const bk_hc_gates_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const bool has_post = bk_tensor_present(&a->dpost);
  (void)workspace;
  bk_gpu_hc_gates_bwd_call call = {.logits = bk_gpu_at(&a->logits),
                                   .dpre = bk_gpu_at(&a->dpre),
                                   .dpost = bk_gpu_at(&a->dpost),
                                   .dlogits = bk_gpu_at(&a->dlogits),
                                   .count = (int32_t)bk_tensor_count(&a->dpre),
                                   .n = (int32_t)a->dpre.shape[1],
                                   .l0 = STRIDE(a->logits, 0),
                                   .p0 = STRIDE(a->dpre, 0),
                                   .q0 = has_post ? STRIDE(a->dpost, 0) : 0,
                                   .dl0 = STRIDE(a->dlogits, 0),
                                   .has_post = has_post};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(call.count, s->group));
}

/* ---- permutations ---- */

bk_status bk_gpu_hc_perm_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                 size_t *workspace_bytes) {
  const bk_hc_perm_args *a = args;
  (void)workspace_bytes;
  bk_gpu_hc_perm_consts consts = {
      .GROUP = s->group = lane_group(device), .N = a->n, .PERMS = bk_factorial(a->n)};
  return bk_gpu_build(device, BK_GPU_hc_perm, &consts, &s->kernel[0]);
}

bk_status bk_gpu_hc_perm(bk_stream *stream, const bk_plan *plan, const void *args,
                         bk_place workspace) {
  const bk_hc_perm_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->logits.shape[0];
  (void)workspace;
  bk_gpu_hc_perm_call call = {.logits = bk_gpu_at(&a->logits),
                              .comb = bk_gpu_at(&a->comb),
                              .tokens = (int32_t)tokens,
                              .l0 = STRIDE(a->logits, 0),
                              .h0 = STRIDE(a->comb, 0)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(tokens, s->group));
}

bk_status bk_gpu_hc_perm_bwd_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                     size_t *workspace_bytes) {
  const bk_hc_perm_bwd_args *a = args;
  (void)workspace_bytes;
  bk_gpu_hc_perm_bwd_consts consts = {
      .GROUP = s->group = lane_group(device), .N = a->n, .PERMS = bk_factorial(a->n)};
  return bk_gpu_build(device, BK_GPU_hc_perm_bwd, &consts, &s->kernel[0]);
}

bk_status bk_gpu_hc_perm_bwd(bk_stream *stream, const bk_plan *plan, const void *args,
                             bk_place workspace) {
  const bk_hc_perm_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->logits.shape[0];
  (void)workspace;
  bk_gpu_hc_perm_bwd_call call = {.logits = bk_gpu_at(&a->logits),
                                  .dcomb = bk_gpu_at(&a->dcomb),
                                  .dlogits = bk_gpu_at(&a->dlogits),
                                  .tokens = (int32_t)tokens,
                                  .l0 = STRIDE(a->logits, 0),
                                  .dh0 = STRIDE(a->dcomb, 0),
                                  .dl0 = STRIDE(a->dlogits, 0)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(tokens, s->group));
}

/* ---- hc: by tanh; also all maps of this kind ---- */

static bk_status tanh_prepare(bk_device *device, bk_gpu_state *s, int n) {
  bk_gpu_hc_tanh_consts consts = {.GROUP = s->group = lane_group(device), .N = n};
  return bk_gpu_build(device, BK_GPU_hc_tanh, &consts, &s->kernel[0]);
}

static bk_status tanh_launch(bk_stream *stream, const bk_plan *plan, const bk_hc_tanh_args *a) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_tanh_call call = {.proj = bk_gpu_at(&a->proj),
                              .rinv = bk_gpu_at(&a->rinv),
                              .scale = bk_gpu_at(&a->scale),
                              .base = bk_gpu_at(&a->base),
                              .pre = bk_gpu_at(&a->pre),
                              .post = bk_gpu_at(&a->post),
                              .comb = bk_gpu_at(&a->comb),
                              .count = (int32_t)bk_tensor_count(&a->proj),
                              .q0 = STRIDE(a->proj, 0),
                              .p0 = STRIDE(a->pre, 0),
                              .r0 = STRIDE(a->post, 0),
                              .h0 = STRIDE(a->comb, 0)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(call.count, s->group));
}

static bk_status tanh_bwd_prepare(bk_device *device, bk_gpu_state *s, int64_t tokens, int n,
                                  size_t *workspace_bytes) {
  const int group = lane_group(device), sums = n * (n + 2) + 3;
  lane_groups(s, group, tokens, sums, workspace_bytes);
  bk_gpu_hc_tanh_bwd_consts consts = {.GROUP = group, .N = n, .SUMS = bk_gpu_sums(group, sums)};
  BK_TRY(bk_gpu_build(device, BK_GPU_hc_tanh_bwd, &consts, &s->kernel[0]));
  return build_sums(device, s, &s->kernel[1]);
}

static bk_status tanh_bwd_launch(bk_stream *stream, const bk_plan *plan,
                                 const bk_hc_tanh_bwd_args *a, bk_place workspace) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_tanh_bwd_call call = {.proj = bk_gpu_at(&a->proj),
                                  .rinv = bk_gpu_at(&a->rinv),
                                  .scale = bk_gpu_at(&a->scale),
                                  .dpre = bk_gpu_at(&a->dpre),
                                  .dpost = bk_gpu_at(&a->dpost),
                                  .dcomb = bk_gpu_at(&a->dcomb),
                                  .dproj = bk_gpu_at(&a->dproj),
                                  .drinv = bk_gpu_at(&a->drinv),
                                  .work = workspace,
                                  .tokens = (int32_t)a->dpre.shape[0],
                                  .q0 = STRIDE(a->proj, 0),
                                  .p0 = STRIDE(a->dpre, 0),
                                  .r0 = STRIDE(a->dpost, 0),
                                  .h0 = STRIDE(a->dcomb, 0),
                                  .dq0 = STRIDE(a->dproj, 0)};
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[0], &call, s->chunks));
  return add_sums(stream, plan, &a->dbase, &a->dscale, a->dbase.shape[0] + 3, workspace);
}

bk_status bk_gpu_hc_tanh_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                 size_t *workspace_bytes) {
  (void)workspace_bytes;
  return tanh_prepare(device, s, ((const bk_hc_tanh_args *)args)->n);
}

bk_status bk_gpu_hc_tanh(bk_stream *stream, const bk_plan *plan, const void *args,
                         bk_place workspace) {
  (void)workspace;
  return tanh_launch(stream, plan, args);
}

bk_status bk_gpu_hc_tanh_bwd_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                     size_t *workspace_bytes) {
  const bk_hc_tanh_bwd_args *a = args;
  return tanh_bwd_prepare(device, s, a->dpre.shape[0], a->n, workspace_bytes);
}

bk_status bk_gpu_hc_tanh_bwd(bk_stream *stream, const bk_plan *plan, const void *args,
                             bk_place workspace) {
  return tanh_bwd_launch(stream, plan, args, workspace);
}

/* ---- all maps ---- */

static bool mixes(bk_hc_kind kind) {
  return kind == BK_HC_MHC || kind == BK_HC_MHC_LITE || kind == BK_HC_HC;
}

bk_status bk_gpu_hc_maps_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                 size_t *workspace_bytes) {
  const bk_hc_maps_args *a = args;
  (void)workspace_bytes;
  if (a->kind == BK_HC_HC) return tanh_prepare(device, s, a->n);
  s->group = lane_group(device);
  if (a->kind == BK_HC_MHC_LITE) {
    bk_gpu_hc_maps_lite_consts lite = {.GROUP = s->group, .N = a->n, .PERMS = bk_factorial(a->n)};
    return bk_gpu_build(device, BK_GPU_hc_maps_lite, &lite, &s->kernel[0]);
  }
  bk_gpu_hc_maps_consts consts = {.GROUP = s->group,
                                  .N = a->n,
                                  .POST = a->kind != BK_HC_HEAD,
                                  .MIX = mixes(a->kind),
                                  .EPS = a->hc_eps > 0};
  return bk_gpu_build(device, BK_GPU_hc_maps, &consts, &s->kernel[0]);
}

static int32_t stride_or_none(const bk_tensor *t) {
  return bk_tensor_present(t) ? (int32_t)t->stride[0] : 0;
}

static bk_status maps_lite(bk_stream *stream, const bk_plan *plan, const bk_hc_maps_args *a) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_maps_lite_call call = {.proj = bk_gpu_at(&a->proj),
                                   .rinv = bk_gpu_at(&a->rinv),
                                   .scale = bk_gpu_at(&a->scale),
                                   .base = bk_gpu_at(&a->base),
                                   .pre = bk_gpu_at(&a->pre),
                                   .post = bk_gpu_at(&a->post),
                                   .comb = bk_gpu_at(&a->comb),
                                   .tokens = (int32_t)a->pre.shape[0],
                                   .q0 = STRIDE(a->proj, 0),
                                   .p0 = STRIDE(a->pre, 0),
                                   .r0 = STRIDE(a->post, 0),
                                   .h0 = STRIDE(a->comb, 0),
                                   .eps = (float)a->hc_eps};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(call.tokens, s->group));
}

bk_status bk_gpu_hc_maps(bk_stream *stream, const bk_plan *plan, const void *args,
                         bk_place workspace) {
  const bk_hc_maps_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  (void)workspace;
  if (a->kind == BK_HC_HC)
    return tanh_launch(
        stream, plan,
        &(bk_hc_tanh_args){a->proj, a->rinv, a->scale, a->base, a->pre, a->post, a->comb, a->n});
  if (a->kind == BK_HC_MHC_LITE) return maps_lite(stream, plan, a);
  bk_gpu_hc_maps_call call = {.proj = bk_gpu_at(&a->proj),
                              .rinv = bk_gpu_at(&a->rinv),
                              .scale = bk_gpu_at(&a->scale),
                              .base = bk_gpu_at(&a->base),
                              .pre = bk_gpu_at(&a->pre),
                              .post = bk_gpu_at(&a->post),
                              .comb = bk_gpu_at(&a->comb),
                              .tokens = (int32_t)a->pre.shape[0],
                              .q0 = STRIDE(a->proj, 0),
                              .p0 = STRIDE(a->pre, 0),
                              .r0 = stride_or_none(&a->post),
                              .h0 = stride_or_none(&a->comb),
                              .iters = a->iters,
                              .eps = (float)a->hc_eps};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, bk_gpu_ceil_div(call.tokens, s->group));
}

/* Floats that a group of hc_maps_bwd keeps: sums, and what Sinkhorn's backward comes back to. */
static int64_t maps_bwd_room(const bk_hc_maps_bwd_args *a, int group) {
  int64_t sums = a->dbase.shape[0] + a->dscale.shape[0];
  return a->kind == BK_HC_MHC ? sums + (int64_t)2 * a->iters * a->n * group : sums;
}

bk_status bk_gpu_hc_maps_bwd_prepare(bk_device *device, const void *args, bk_gpu_state *s,
                                     size_t *workspace_bytes) {
  const bk_hc_maps_bwd_args *a = args;
  const int group = lane_group(device), rows = (int)a->dbase.shape[0],
            scales = (int)a->dscale.shape[0];
  if (a->kind == BK_HC_HC)
    return tanh_bwd_prepare(device, s, a->dpre.shape[0], a->n, workspace_bytes);
  if (a->kind == BK_HC_MHC_LITE) {
    lane_groups(s, group, a->dpre.shape[0], maps_bwd_room(a, group), workspace_bytes);
    bk_gpu_hc_maps_lite_bwd_consts lite = {.GROUP = group,
                                           .N = a->n,
                                           .PERMS = bk_factorial(a->n),
                                           .ROWS = rows,
                                           .SUMS = bk_gpu_sums(group, rows + scales)};
    BK_TRY(bk_gpu_build(device, BK_GPU_hc_maps_lite_bwd, &lite, &s->kernel[0]));
  } else {
    few_lane_groups(s, group, a->dpre.shape[0], maps_bwd_room(a, group), workspace_bytes);
    bk_gpu_hc_maps_bwd_consts consts = {.GROUP = group,
                                        .N = a->n,
                                        .POST = a->kind != BK_HC_HEAD,
                                        .MIX = mixes(a->kind),
                                        .EPS = a->hc_eps > 0,
                                        .ROWS = rows,
                                        .SCALES = scales,
                                        .SUMS = bk_gpu_sums(group, rows + scales)};
    BK_TRY(bk_gpu_build(device, BK_GPU_hc_maps_bwd, &consts, &s->kernel[0]));
  }
  return build_sums(device, s, &s->kernel[1]);
}

static bk_status maps_lite_bwd(bk_stream *stream, const bk_plan *plan, const bk_hc_maps_bwd_args *a,
                               bk_place workspace) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_maps_lite_bwd_call call = {.proj = bk_gpu_at(&a->proj),
                                       .rinv = bk_gpu_at(&a->rinv),
                                       .scale = bk_gpu_at(&a->scale),
                                       .base = bk_gpu_at(&a->base),
                                       .dpre = bk_gpu_at(&a->dpre),
                                       .dpost = bk_gpu_at(&a->dpost),
                                       .dcomb = bk_gpu_at(&a->dcomb),
                                       .dproj = bk_gpu_at(&a->dproj),
                                       .drinv = bk_gpu_at(&a->drinv),
                                       .work = workspace,
                                       .tokens = (int32_t)a->dpre.shape[0],
                                       .q0 = STRIDE(a->proj, 0),
                                       .p0 = STRIDE(a->dpre, 0),
                                       .r0 = STRIDE(a->dpost, 0),
                                       .h0 = STRIDE(a->dcomb, 0),
                                       .dq0 = STRIDE(a->dproj, 0)};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, s->chunks);
}

static bk_status maps_mhc_bwd(bk_stream *stream, const bk_plan *plan, const bk_hc_maps_bwd_args *a,
                              bk_place workspace) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  bk_gpu_hc_maps_bwd_call call = {.proj = bk_gpu_at(&a->proj),
                                  .rinv = bk_gpu_at(&a->rinv),
                                  .scale = bk_gpu_at(&a->scale),
                                  .base = bk_gpu_at(&a->base),
                                  .dpre = bk_gpu_at(&a->dpre),
                                  .dpost = bk_gpu_at(&a->dpost),
                                  .dcomb = bk_gpu_at(&a->dcomb),
                                  .dproj = bk_gpu_at(&a->dproj),
                                  .drinv = bk_gpu_at(&a->drinv),
                                  .work = workspace,
                                  .tokens = (int32_t)a->dpre.shape[0],
                                  .passes = s->chunk,
                                  .q0 = STRIDE(a->proj, 0),
                                  .p0 = STRIDE(a->dpre, 0),
                                  .r0 = stride_or_none(&a->dpost),
                                  .h0 = stride_or_none(&a->dcomb),
                                  .dq0 = STRIDE(a->dproj, 0),
                                  .iters = a->iters,
                                  .eps = (float)a->hc_eps};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, s->chunks);
}

bk_status bk_gpu_hc_maps_bwd(bk_stream *stream, const bk_plan *plan, const void *args,
                             bk_place workspace) {
  const bk_hc_maps_bwd_args *a = args;
  if (a->kind == BK_HC_HC)
    return tanh_bwd_launch(
        stream, plan,
        &(bk_hc_tanh_bwd_args){a->proj, a->rinv, a->scale, a->dpre, a->dpost, a->dcomb, a->dproj,
                               a->drinv, a->dscale, a->dbase, a->n},
        workspace);
  BK_TRY(a->kind == BK_HC_MHC_LITE ? maps_lite_bwd(stream, plan, a, workspace)
                                   : maps_mhc_bwd(stream, plan, a, workspace));
  return add_sums(stream, plan, &a->dbase, &a->dscale,
                  maps_bwd_room(a, bk_gpu_state_of(plan)->group), workspace);
}

/* ---- Kronecker products ---- */

/* One stream has no factors, and its logits no columns: such a view may lie past the end of its
 * buffer, so the kernels are not given it. */
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
