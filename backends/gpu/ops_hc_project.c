/* Launches of hc_project.k */
#include "backends/gpu/fused.h"

#define TOKENS 32       /* of a work group */
#define COLUMNS 64      /* of a step */
#define WANTED_GROUPS 512

static bool on_cpu(const bk_device *device) { return ((const bk_gpu_device *)device)->on_cpu; }

/* Rows of fn that a group has sums of: the fewest reads of x, then the fewest sums of rows that are not there. */
static int32_t row_block(int64_t rows) {
  return rows <= 8 ? 8 : rows <= 16 ? 16 : 24;
}

/* ---- forward ---- */

static bk_status build_project(bk_device *device, const bk_hc_project_args *a, bk_gpu_state *s) {
  const int64_t blocks = bk_gpu_ceil_div(a->fn.shape[0], row_block(a->fn.shape[0])), steps = bk_gpu_ceil_div(a->x.shape[1], COLUMNS);
  const int64_t groups = bk_gpu_ceil_div(a->x.shape[0], TOKENS) * blocks, wanted = groups ? bk_gpu_ceil_div(WANTED_GROUPS, groups) : 1;
  const int most = bk_gpu_of(device)->max_group;
  bk_gpu_hc_project_consts consts = {.GROUP = most < 256 ? most : 256, .BF16 = bk_gpu_half(&a->x), .RB = row_block(a->fn.shape[0])};
  s->chunk = (int32_t)(steps ? bk_gpu_ceil_div(steps, wanted < steps ? wanted : steps) * COLUMNS : COLUMNS);
  s->chunks = bk_gpu_ceil_div(a->x.shape[1], s->chunk);
  return bk_gpu_build(device, BK_GPU_hc_project, &consts, &s->kernel[0]);
}

static bk_status build_project_plain(bk_device *device, const bk_hc_project_args *a, bk_gpu_state *s) {
  bk_gpu_hc_project_plain_consts consts = {.GROUP = 16, .BF16 = bk_gpu_half(&a->x)};
  s->chunks = 1;
  return bk_gpu_build(device, BK_GPU_hc_project_plain, &consts, &s->kernel[0]);
}

bk_status bk_gpu_hc_project_prepare(bk_device *device, const void *args, bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_hc_project_args *a = args;
  bk_gpu_hc_project_end_consts end = {.GROUP = 64};
  BK_TRY(bk_gpu_build(device, BK_GPU_hc_project_end, &end, &s->kernel[1]));
  BK_TRY(on_cpu(device) ? build_project_plain(device, a, s) : build_project(device, a, s));
  *workspace_bytes = (size_t)(s->chunks * a->x.shape[0] * (a->fn.shape[0] + 1)) * sizeof(float);
  return BK_OK;
}

static bk_status run_project(bk_stream *stream, const bk_plan *plan, const bk_hc_project_args *a, bk_place partial) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->x.shape[0], rows = a->fn.shape[0], tiles = bk_gpu_ceil_div(tokens, TOKENS);
  const int64_t blocks = bk_gpu_ceil_div(rows, row_block(rows));
  bk_gpu_hc_project_call call = {
    .x = bk_gpu_at(&a->x), .fn = bk_gpu_at(&a->fn), .partial = partial, .tokens = (int32_t)tokens, .rows = (int32_t)rows,
    .width = (int32_t)a->x.shape[1], .tiles = (int32_t)tiles, .blocks = (int32_t)blocks, .slice = s->chunk, .x0 = (int32_t)a->x.stride[0],
    .f0 = (int32_t)a->fn.stride[0]};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, tiles * blocks * s->chunks);
}

static bk_status run_project_plain(bk_stream *stream, const bk_plan *plan, const bk_hc_project_args *a, bk_place partial) {
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const int64_t tokens = a->x.shape[0], rows = a->fn.shape[0];
  bk_gpu_hc_project_plain_call call = {
    .x = bk_gpu_at(&a->x), .fn = bk_gpu_at(&a->fn), .partial = partial, .tokens = (int32_t)tokens, .rows = (int32_t)rows,
    .width = (int32_t)a->x.shape[1], .x0 = (int32_t)a->x.stride[0], .f0 = (int32_t)a->fn.stride[0]};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(tokens * bk_gpu_ceil_div(rows, 8), p->consts[0]));
}

bk_status bk_gpu_hc_project(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_hc_project_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->x.shape[0], rows = a->fn.shape[0], width = a->x.shape[1];
  bk_gpu_hc_project_end_call end = {
    .partial = workspace, .proj = bk_gpu_at(&a->proj), .rinv = bk_gpu_at(&a->rinv), .tokens = (int32_t)tokens, .rows = (int32_t)rows,
    .slices = (int32_t)s->chunks, .p0 = (int32_t)a->proj.stride[0], .inv_width = 1.0f / (float)width, .eps = (float)a->eps};
  BK_TRY(on_cpu(stream->device) ? run_project_plain(stream, plan, a, workspace) : run_project(stream, plan, a, workspace));
  return bk_gpu_run(stream, plan, s->kernel[1], &end, bk_gpu_ceil_div(tokens * (rows + 1), s->kernel[1]->consts[0]));
}
