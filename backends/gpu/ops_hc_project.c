/* Launches of hc_project.k and hc_project_bwd.k, or of their counterparts in cpu_project.k */
#include "backends/gpu/fused.h"

#define TOKENS 32  /* of a work group */
#define COLUMNS 64 /* of a step */
#define WANTED_GROUPS 512
#define CPU_TOKENS 16 /* of a work item of cpu_project.k */

/* Rows of fn that a group has sums of: what a tile of local memory (16 KiB) and the registers of
 * a lane hold. */
static int32_t row_block(int64_t rows) { return rows <= 8 ? 8 : rows <= 16 ? 16 : 24; }

/* ---- forward ---- */

static bk_status build_project(bk_device *device, const bk_hc_project_args *a, bk_gpu_state *s) {
  const int64_t blocks = bk_gpu_ceil_div(a->fn.shape[0], row_block(a->fn.shape[0])),
                steps = bk_gpu_ceil_div(a->x.shape[1], COLUMNS);
  const int64_t groups = bk_gpu_ceil_div(a->x.shape[0], TOKENS) * blocks,
                wanted = groups ? bk_gpu_ceil_div(WANTED_GROUPS, groups) : 1;
  const int most = bk_gpu_of(device)->max_group;
  bk_gpu_hc_project_consts consts = {.GROUP = most < 256 ? most : 256,
                                     .BF16 = bk_gpu_half(&a->x),
                                     .RB = row_block(a->fn.shape[0])};
  s->chunk = (int32_t)(steps ? bk_gpu_ceil_div(steps, wanted < steps ? wanted : steps) * COLUMNS
                             : COLUMNS);
  s->chunks = bk_gpu_ceil_div(a->x.shape[1], s->chunk);
  return bk_gpu_build(device, BK_GPU_hc_project, &consts, &s->kernel[0]);
}

static bk_status build_project_cpu(bk_device *device, const bk_hc_project_args *a,
                                   bk_gpu_state *s) {
  bk_gpu_hc_project_cpu_consts consts = {.GROUP = 1, .BF16 = bk_gpu_half(&a->x)};
  s->chunks = 1;
  return bk_gpu_build(device, BK_GPU_hc_project_cpu, &consts, &s->kernel[0]);
}

BK_GPU_PREPARE(bk_gpu_hc_project_prepare) {
  const bk_hc_project_args *a = args;
  bk_gpu_hc_project_end_consts end = {.GROUP = 64};
  BK_TRY(bk_gpu_build(device, BK_GPU_hc_project_end, &end, &s->kernel[1]));
  BK_TRY(bk_gpu_on_cpu(device) ? build_project_cpu(device, a, s) : build_project(device, a, s));
  *workspace_bytes = (size_t)(s->chunks * a->x.shape[0] * (a->fn.shape[0] + 1)) * sizeof(float);
  return BK_OK;
}

static bk_status run_project(bk_stream *stream, const bk_plan *plan, const bk_hc_project_args *a,
                             bk_place partial) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->x.shape[0], rows = a->fn.shape[0],
                tiles = bk_gpu_ceil_div(tokens, TOKENS);
  const int64_t blocks = bk_gpu_ceil_div(rows, row_block(rows));
  bk_gpu_hc_project_call call = {.x = bk_gpu_at(&a->x),
                                 .fn = bk_gpu_at(&a->fn),
                                 .partial = partial,
                                 .tokens = (int32_t)tokens,
                                 .rows = (int32_t)rows,
                                 .width = (int32_t)a->x.shape[1],
                                 .tiles = (int32_t)tiles,
                                 .blocks = (int32_t)blocks,
                                 .slice = s->chunk,
                                 .x0 = (int32_t)a->x.stride[0],
                                 .f0 = (int32_t)a->fn.stride[0]};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, tiles * blocks * s->chunks);
}

static bk_status run_project_cpu(bk_stream *stream, const bk_plan *plan,
                                 const bk_hc_project_args *a, bk_place partial) {
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const int64_t tokens = a->x.shape[0], rows = a->fn.shape[0];
  bk_gpu_hc_project_cpu_call call = {.x = bk_gpu_at(&a->x),
                                     .fn = bk_gpu_at(&a->fn),
                                     .partial = partial,
                                     .tokens = (int32_t)tokens,
                                     .rows = (int32_t)rows,
                                     .width = (int32_t)a->x.shape[1],
                                     .x0 = (int32_t)a->x.stride[0],
                                     .f0 = (int32_t)a->fn.stride[0]};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(tokens, CPU_TOKENS));
}

BK_LAUNCH_FN(bk_gpu_hc_project) {
  const bk_hc_project_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->x.shape[0], rows = a->fn.shape[0], width = a->x.shape[1];
  bk_gpu_hc_project_end_call end = {.partial = workspace,
                                    .proj = bk_gpu_at(&a->proj),
                                    .rinv = bk_gpu_at(&a->rinv),
                                    .tokens = (int32_t)tokens,
                                    .rows = (int32_t)rows,
                                    .slices = (int32_t)s->chunks,
                                    .p0 = (int32_t)a->proj.stride[0],
                                    .inv_width = 1.0f / (float)width,
                                    .eps = (float)a->eps};
  BK_TRY(bk_gpu_on_cpu(stream->device) ? run_project_cpu(stream, plan, a, workspace)
                                       : run_project(stream, plan, a, workspace));
  return bk_gpu_run(stream, plan, s->kernel[1], &end,
                    bk_gpu_ceil_div(tokens * (rows + 1), s->kernel[1]->consts[0]));
}

/* ---- backward ---- */

enum { BWD, DX_ALONE, ADD_CHUNKS }; /* kernels of the plan */

/* Whether one kernel can make dx and dfn in one pass. */
static bool in_one_pass(const bk_device *device, const bk_hc_project_bwd_args *a) {
  return bk_gpu_on_cpu(device) ||
         (a->fn.shape[0] <= row_block(a->fn.shape[0]) && bk_tensor_present(&a->dfn));
}
static bool dx_alone(const bk_device *device, const bk_hc_project_bwd_args *a) {
  return bk_tensor_present(&a->dx) && !in_one_pass(device, a);
}

/* s: group = work groups of a chunk. */
static void set_chunks(const bk_device *device, const bk_hc_project_bwd_args *a, int64_t groups,
                       bk_gpu_state *s) {
  s->group = (int32_t)groups;
  s->chunk = bk_gpu_chunk(
      a->x.shape[0], TOKENS,
      bk_gpu_ceil_div(bk_gpu_on_cpu(device) ? 32 : WANTED_GROUPS, groups ? groups : 1));
  s->chunks = bk_gpu_ceil_div(a->x.shape[0], s->chunk);
}

static bk_status build_bwd_cpu(bk_device *device, const bk_hc_project_bwd_args *a,
                               bk_gpu_state *s) {
  const int64_t rows = a->fn.shape[0];
  bk_gpu_hc_project_bwd_cpu_consts consts = {.GROUP = 1,
                                             .BF16 = bk_gpu_half(&a->x),
                                             .ROWS = (int32_t)bk_gpu_ceil_div(rows, 4) * 4,
                                             .PANEL = 128,
                                             .DX = bk_tensor_present(&a->dx),
                                             .DFN = bk_tensor_present(&a->dfn),
                                             .ADD = a->accumulate};
  set_chunks(device, a, bk_gpu_ceil_div(a->x.shape[1], consts.PANEL), s);
  return bk_gpu_build(device, BK_GPU_hc_project_bwd_cpu, &consts, &s->kernel[BWD]);
}

static bk_status build_bwd(bk_device *device, const bk_hc_project_bwd_args *a, bk_gpu_state *s) {
  const int64_t rows = a->fn.shape[0], width = a->x.shape[1];
  bk_gpu_hc_project_bwd_consts consts = {.GROUP = bk_gpu_group(device, width / 2),
                                         .BF16 = bk_gpu_half(&a->x),
                                         .RB = row_block(rows),
                                         .COLS = 2,
                                         .DX = bk_tensor_present(&a->dx) && in_one_pass(device, a),
                                         .DFN = 1,
                                         .ADD = a->accumulate};
  set_chunks(device, a,
             bk_gpu_ceil_div(width, consts.GROUP * consts.COLS) * bk_gpu_ceil_div(rows, consts.RB),
             s);
  return bk_gpu_build(device, BK_GPU_hc_project_bwd, &consts, &s->kernel[BWD]);
}

BK_GPU_PREPARE(bk_gpu_hc_project_bwd_prepare) {
  const bk_hc_project_bwd_args *a = args;
  const bool wants_dfn = bk_tensor_present(&a->dfn);
  bk_gpu_hc_project_dx_consts dx = {.GROUP = bk_gpu_group(device, a->x.shape[1]),
                                    .BF16 = bk_gpu_half(&a->x),
                                    .ADD = a->accumulate};
  if (dx_alone(device, a))
    BK_TRY(bk_gpu_build(device, BK_GPU_hc_project_dx, &dx, &s->kernel[DX_ALONE]));
  if (bk_gpu_on_cpu(device)) BK_TRY(build_bwd_cpu(device, a, s));
  else if (wants_dfn) BK_TRY(build_bwd(device, a, s));
  if (!wants_dfn) return BK_OK;
  *workspace_bytes = (size_t)(s->chunks * a->fn.shape[0] * a->x.shape[1]) * sizeof(float);
  return bk_gpu_add_chunks_build(device, &s->kernel[ADD_CHUNKS]);
}

static bk_status run_dx(bk_stream *stream, const bk_plan *plan, const bk_hc_project_bwd_args *a) {
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[DX_ALONE];
  const int64_t tokens = a->x.shape[0], width = a->x.shape[1];
  bk_gpu_hc_project_dx_call call = {.x = bk_gpu_at(&a->x),
                                    .fn = bk_gpu_at(&a->fn),
                                    .rinv = bk_gpu_at(&a->rinv),
                                    .dproj = bk_gpu_at(&a->dproj),
                                    .drinv = bk_gpu_at(&a->drinv),
                                    .dx = bk_gpu_at(&a->dx),
                                    .tokens = (int32_t)tokens,
                                    .rows = (int32_t)a->fn.shape[0],
                                    .width = (int32_t)width,
                                    .x0 = (int32_t)a->x.stride[0],
                                    .f0 = (int32_t)a->fn.stride[0],
                                    .p0 = (int32_t)a->dproj.stride[0],
                                    .d0 = (int32_t)a->dx.stride[0],
                                    .inv_width = 1.0f / (float)width};
  return bk_gpu_run(stream, plan, p, &call,
                    bk_gpu_ceil_div(tokens, 8) * bk_gpu_ceil_div(width, p->consts[0]));
}

_Static_assert(sizeof(bk_gpu_hc_project_bwd_call) == sizeof(bk_gpu_hc_project_bwd_cpu_call),
               "both are launched alike");

static bk_status run_bwd(bk_stream *stream, const bk_plan *plan, const bk_hc_project_bwd_args *a,
                         bk_place partial) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t tokens = a->x.shape[0], width = a->x.shape[1], rows = a->fn.shape[0];
  bk_gpu_hc_project_bwd_call call = {.x = bk_gpu_at(&a->x),
                                     .fn = bk_gpu_at(&a->fn),
                                     .rinv = bk_gpu_at(&a->rinv),
                                     .dproj = bk_gpu_at(&a->dproj),
                                     .drinv = bk_gpu_at(&a->drinv),
                                     .dx = bk_gpu_at(&a->dx),
                                     .partial = partial,
                                     .tokens = (int32_t)tokens,
                                     .rows = (int32_t)rows,
                                     .width = (int32_t)width,
                                     .blocks = (int32_t)bk_gpu_ceil_div(rows, row_block(rows)),
                                     .chunk = s->chunk,
                                     .x0 = (int32_t)a->x.stride[0],
                                     .f0 = (int32_t)a->fn.stride[0],
                                     .p0 = (int32_t)a->dproj.stride[0],
                                     .d0 = (int32_t)a->dx.stride[0],
                                     .inv_width = 1.0f / (float)width};
  return bk_gpu_run(stream, plan, s->kernel[BWD], &call, s->group * s->chunks);
}

BK_LAUNCH_FN(bk_gpu_hc_project_bwd) {
  const bk_hc_project_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  if (s->kernel[BWD]) BK_TRY(run_bwd(stream, plan, a, workspace));
  if (s->kernel[DX_ALONE]) BK_TRY(run_dx(stream, plan, a));
  return s->kernel[ADD_CHUNKS] ? bk_gpu_add_chunks_run(stream, plan, s->kernel[ADD_CHUNKS],
                                                       workspace, s->chunks, &a->dfn)
                               : BK_OK;
}
