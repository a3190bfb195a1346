/* hc_fused: merge of one sublayer with the mix of the next, forward and backward. Template, see
 * cpu.h.
 *
 * A piece of tokens goes through all parts block by block, so that a block's streams stay in
 * cache from the one part to the next: forward BK_HC_BLOCK tokens (post + res, projection, maps,
 * pre + norm), backward BK_HC_GROUP tokens (pre + norm, maps, projection, post + res). The parts
 * are the functions that the kernels of each part alone call, on the same pieces of tokens where
 * sums over tokens are made: every output has the same bits as from the parts one by one, which
 * recompute relies on. The hc kind, whose projection has rows of its own, stays composed
 * (table.c). */
#include "backends/cpu/hc_maps.h"
#include "backends/cpu/hc_merge.h"
#include "backends/cpu/hc_mix.h"
#include "backends/cpu/hc_project.h"

typedef struct merge_mix_job {
  const bk_hc_merge_mix_args *args;
  const float *packed;
  maps_job maps;
} merge_mix_job;

BK_INLINE void merge_mix_blocks(const merge_mix_job *job, int64_t begin, int64_t end, const bool bf,
                                const int n) {
  const bk_hc_merge_mix_args *a = job->args;
  (void)n;
  for (int64_t i = begin; i < end; i += BK_HC_BLOCK) {
    int64_t stop = end - i < BK_HC_BLOCK ? end : i + BK_HC_BLOCK;
    merge_piece((void *)&a->merge, i, stop, 0);
    ahead next = {0};
    ahead_add(&next, &a->merge.x, stop, BK_HC_BLOCK, end);
    ahead_add(&next, &a->merge.f, stop, BK_HC_BLOCK, end);
    ahead_add(&next, &a->merge.out, stop, BK_HC_BLOCK, end);
    project_block(&a->project, job->packed, i, stop - i, &next, bf);
    for (int64_t t = i; t < stop; t += BK_VW)
      maps_tokens(&job->maps, t, stop - t < BK_VW ? stop - t : BK_VW);
    pre_norm_piece((void *)&a->pre_norm, i, stop, 0);
  }
}

static void merge_mix_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const merge_mix_job *job = arg;
  (void)worker;
  BK_HC_CALL(merge_mix_blocks, bk_cpu_is_bf16(&job->args->merge.x), 1, job, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_merge_mix)(bk_stream *stream, const bk_plan *plan, const void *args,
                                           bk_place workspace) {
  const bk_hc_merge_mix_args *a = args;
  merge_mix_job job = {
      a, bk_place_data(workspace), {a->maps, plan->state, (int)a->maps.proj.shape[1]}};
  project_pack(stream, &a->project.fn, bk_place_data(workspace));
  bk_cpu_run(stream, a->merge.x.shape[0], bk_hc_block_grain(a->merge.x.shape[0]), merge_mix_piece,
             &job);
  return BK_OK;
}

/* ---- backward ---- */
typedef struct merge_mix_bwd_job {
  const bk_hc_merge_mix_bwd_args *args;
  pre_norm_bwd_job pre_norm;
  maps_bwd_job maps;
  project_bwd project;
} merge_mix_bwd_job;

BK_INLINE void merge_mix_bwd_groups(merge_mix_bwd_job *job, int64_t begin, int64_t end,
                                    const bool bf, const int n) {
  const bk_hc_merge_mix_bwd_args *a = job->args;
  float *dfn =
      job->project.partials + begin / job->pre_norm.grain * project_bwd_partial(&job->project);
  map_block sums = {0};
  (void)n;
  for (int64_t i = begin; i < end; i += BK_HC_GROUP) {
    int64_t stop = end - i < BK_HC_GROUP ? end : i + BK_HC_GROUP;
    pre_norm_bwd_piece(&job->pre_norm, i, stop, 0);
    for (int64_t t = i; t < stop; t += BK_VW)
      maps_bwd_tokens(&job->maps, t, stop - t < BK_VW ? stop - t : BK_VW, sums);
    ahead next = {0};
    ahead_add(&next, &a->merge.x, i, stop - i, stop);
    ahead_add(&next, &a->merge.f, i, stop - i, stop);
    ahead_add(&next, &a->pre_norm.y, stop, BK_HC_GROUP, end);
    ahead_add(&next, &a->pre_norm.dh, stop, BK_HC_GROUP, end);
    ahead_add(&next, &a->pre_norm.x, stop, BK_HC_GROUP, end);
    ahead_add(&next, &a->pre_norm.dx, stop, BK_HC_GROUP, end);
    project_bwd_group(&job->project, i, stop - i, i == begin, dfn, &next, bf);
    merge_bwd_piece((void *)&a->merge, i, stop, 0);
  }
  partials_store(&job->maps.p, begin, sums);
}

static void merge_mix_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  merge_mix_bwd_job *job = arg;
  (void)worker;
  BK_HC_CALL(merge_mix_bwd_groups, bk_cpu_is_bf16(&job->args->merge.x), 1, job, begin, end);
}

bk_status BK_ISA_NAME(bk_cpu_hc_merge_mix_bwd)(bk_stream *stream, const bk_plan *plan,
                                               const void *args, bk_place workspace) {
  const bk_hc_merge_mix_bwd_args *a = args;
  bk_hc_merge_mix_bwd_places at = bk_hc_merge_mix_bwd_split(a, workspace);
  merge_mix_bwd_job job = {a, pre_norm_bwd_of(&a->pre_norm, bk_place_data(at.pre_norm)),
                           maps_bwd_of(&a->maps, plan, at.maps),
                           project_bwd_of(&a->project, bk_place_data(at.project))};
  project_bwd_pack(stream, &a->project.fn, bk_place_data(at.project));
  bk_cpu_run(stream, a->merge.x.shape[0], job.pre_norm.grain, merge_mix_bwd_piece, &job);
  pre_norm_bwd_finish(stream, &job.pre_norm);
  partials_add(&job.maps.p, &a->maps.dscale, &a->maps.dbase);
  project_bwd_finish(stream, &job.project);
  return BK_OK;
}
