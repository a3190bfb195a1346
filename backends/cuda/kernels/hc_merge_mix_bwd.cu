/* The fused op HC_MERGE_MIX_BWD for bf16 streams, at most four, at most 32 rows of fn: the
 * passes over the streams that its four parts share.
 *   1. y, dh and x give dpre, dw and a number a token, the mean in the norm's backward
 *   (pre_norm.cu); dx is not written here 2. the maps' backward (maps_bwd.cu) needs dpre and
 *   gives dproj 3. x, D, y and dh: D gets what comes through the projection and through pre and
 *   norm in one pass (hc_project_bwd_mma.cu, PRE) 4. the merge before: D becomes the gradient of
 *   its streams (streams_bwd.cu)
 * Moves, in rows of C elements a token: (n + 2) + (3n + 2) + (3n + 2), 34 for n = 4, where the
 * parts one by one take (3n + 2) + 3n + (3n + 2), 40. One pass for 3 and 4 would take 26, but
 * with the sums of dfn for all streams it has not the registers (reckoned). */
#include "backends/cuda/kernels/maps.h"
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc.cuh"

namespace {

/* The means come first in the workspace, then what the launches need, one after the other. */
size_t means_bytes(const bk_hc_merge_mix_bwd_args *a) {
  return BK_ALIGN_UP((size_t)a->pre_norm.x.shape[0] * sizeof(float), (size_t)256);
}

/* One pass writes what both parts add, at the strides of one of them. */
bool widths_fit(const bk_hc_merge_mix_bwd_args *a) {
  const bk_tensor *x = &a->pre_norm.x, *dx = &a->pre_norm.dx;
  if (x->shape[1] > 1 && dx->stride[1] != x->shape[2]) return false;
  if (x->shape[0] > 1 && dx->stride[0] != a->project.dx.stride[0]) return false;
  return x->shape[1] <= 4 && a->project.x.shape[0] == x->shape[0] &&
         a->project.x.shape[1] == x->shape[1] * x->shape[2] && a->project.x.shape[1] < INT32_MAX;
}

} // namespace

/* Not the kind hc, where every stream is a row of the projection. */
extern "C" BK_CUDA_ACCEPTS(hc_merge_mix_bwd) {
  const bk_hc_merge_mix_bwd_args *a = (const bk_hc_merge_mix_bwd_args *)args;
  const bk_hc_pre_norm_bwd_args *p = &a->pre_norm;
  if (!widths_fit(a) || !a->project.accumulate || !bk_tensor_present(&a->project.dx)) return false;
  if (!bk_packs_fit(&p->x) || !bk_packs_fit(&p->y) || !bk_packs_fit(&p->dh) || p->w.offset % 16)
    return false;
  return bk_cuda_hc_project_bwd_mma_accepts(self, device, &a->project);
}

extern "C" BK_CUDA_PREPARE(hc_merge_mix_bwd) {
  const bk_hc_merge_mix_bwd_args *a = (const bk_hc_merge_mix_bwd_args *)args;
  size_t pre = 0, maps = 0, project = 0;
  BK_TRY(bk_cuda_hc_pre_norm_bwd_prepare(self, device, &a->pre_norm, state, &pre));
  BK_TRY(bk_cuda_hc_maps_bwd_prepare(self, device, &a->maps, state, &maps));
  BK_TRY(bk_cuda_hc_project_bwd_mma_prepare(self, device, &a->project, state, &project));
  const size_t most = pre > maps ? pre : maps;
  *workspace_bytes = means_bytes(a) + (most > project ? most : project);
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_merge_mix_bwd) {
  const bk_hc_merge_mix_bwd_args *a = (const bk_hc_merge_mix_bwd_args *)args;
  float *mean = (float *)bk_cuda_place(workspace);
  const bk_place rest = {workspace.buffer, workspace.offset + means_bytes(a)};
  BK_TRY(bk_cuda_begin(stream, plan));
  bk_cuda_pre_norm_sums_start(stream, &a->pre_norm, mean, rest);
  bk_cuda_maps_bwd_start(stream, &a->maps, rest);
  bk_cuda_project_bwd_mma_start(stream, &a->project, &a->pre_norm, mean, rest);
  bk_cuda_post_res_bwd_start(stream, &a->merge);
  return bk_cuda_end(stream);
}
