/* Launches of attention.k and attention_cpu.k */
#include "backends/gpu/attention.h"

/* Members of a call: strides of a tensor [B,T,H,D] named as its letters. */
#define STRIDES(x, tensor)                                                  \
  .x##b = (int32_t)(tensor).stride[0], .x##t = (int32_t)(tensor).stride[1], \
  .x##h = (int32_t)(tensor).stride[2]

/* Kinds of kernels, in bk_gpu_state.chunk: tiles in local memory; 16 rows in an item's vectors,
 * for OpenCL on a CPU. */
enum { TILES, VECTORS };
enum { LANES = 16 }; /* rows of an item in attention_cpu.k */

static int32_t kind_for(const bk_device *device) { return bk_gpu_on_cpu(device) ? VECTORS : TILES; }

/* Groups of a launch whose groups have `block` rows of q each, or of k. */
static int64_t blocks_of(const bk_tensor *q, int64_t block) {
  return q->shape[0] * q->shape[2] * bk_gpu_ceil_div(q->shape[1], block);
}
static int32_t pairs_of(const bk_tensor *q) { return (int32_t)(q->shape[0] * q->shape[2]); }

/* Rows of a tile: 64 where the device has the local memory and the lanes for it, and the queries
 * are many enough. */
static int32_t tile_for(const bk_device *device, int64_t queries) {
  const bk_gpu_device *d = (const bk_gpu_device *)device;
  return d->max_group >= 256 && d->local_bytes >= (size_t)32 << 10 && queries > 32 ? 64 : 32;
}
static int32_t tile_lanes(int32_t tile) { return tile / 4 * (tile / 4); }
/* Floats of the local memory that operands come through: two pieces of 16 columns of a tile, at
 * least a row. */
static int32_t tile_area(int32_t tile, int64_t width) {
  const int64_t pieces = 2 * 16 * (tile + 1), row = BK_ALIGN_UP(width, tile / 4);
  return (int32_t)(pieces > row ? pieces : row);
}

/* ---- forward ---- */

static bk_status build_vectors(bk_device *device, const bk_attention_args *a, bk_gpu_state *s) {
  bk_gpu_attention_cpu_consts consts = {.GROUP = 1,
                                        .BF16 = bk_gpu_half(&a->q),
                                        .DK = (int32_t)a->q.shape[3],
                                        .DV = (int32_t)a->v.shape[3],
                                        .HAS_PAST = bk_tensor_present(&a->past),
                                        .HAS_LSE = bk_tensor_present(&a->lse)};
  s->group = LANES;
  return bk_gpu_build(device, BK_GPU_attention_cpu, &consts, &s->kernel[0]);
}

enum { FEW = 8 }; /* queries that attention_few serves */
static bk_status build_few(bk_device *device, const bk_attention_args *a, bk_gpu_state *s) {
  bk_gpu_attention_few_consts consts = {.GROUP = bk_gpu_group(device, 64),
                                        .BF16 = bk_gpu_half(&a->q),
                                        .DK = (int32_t)a->q.shape[3],
                                        .DV = (int32_t)a->v.shape[3],
                                        .HAS_PAST = bk_tensor_present(&a->past),
                                        .HAS_LSE = bk_tensor_present(&a->lse)};
  s->group = 1;
  return bk_gpu_build(device, BK_GPU_attention_few, &consts, &s->kernel[0]);
}

BK_GPU_PREPARE(bk_gpu_attention_prepare) {
  const bk_attention_args *a = args;
  if (kind_for(device) == VECTORS) return build_vectors(device, a, s);
  if (a->q.shape[1] <= FEW) return build_few(device, a, s);
  s->group = tile_for(device, a->q.shape[1]);
  bk_gpu_attention_consts consts = {.GROUP = tile_lanes(s->group),
                                    .BF16 = bk_gpu_half(&a->q),
                                    .TILE = s->group,
                                    .AREA = tile_area(s->group, a->v.shape[3]),
                                    .DK = (int32_t)a->q.shape[3],
                                    .DV = (int32_t)a->v.shape[3],
                                    .HAS_PAST = bk_tensor_present(&a->past),
                                    .HAS_LSE = bk_tensor_present(&a->lse)};
  return bk_gpu_build(device, BK_GPU_attention, &consts, &s->kernel[0]);
}

/* The kernels of all kinds have the same operands and parameters. */
BK_LAUNCH_FN(bk_gpu_attention) {
  const bk_attention_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const bool has_lse = bk_tensor_present(&a->lse);
  bk_gpu_attention_call call = {.q = bk_gpu_at(&a->q),
                                .k = bk_gpu_at(&a->k),
                                .v = bk_gpu_at(&a->v),
                                .past = bk_gpu_at(&a->past),
                                .o = bk_gpu_at(&a->o),
                                .lse = bk_gpu_at(&a->lse),
                                .pairs = pairs_of(&a->q),
                                .heads = (int32_t)a->q.shape[2],
                                .t = (int32_t)a->q.shape[1],
                                .s = (int32_t)a->k.shape[1],
                                STRIDES(q, a->q),
                                STRIDES(k, a->k),
                                STRIDES(v, a->v),
                                STRIDES(o, a->o),
                                .lb = has_lse ? (int32_t)a->lse.stride[0] : 0,
                                .lh = has_lse ? (int32_t)a->lse.stride[1] : 0,
                                .scale = (float)a->scale};
  return bk_gpu_run(stream, plan, s->kernel[0], &call, blocks_of(&a->q, s->group));
}

/* ---- backward ---- */

enum { STATS, DQ, DK, DV };

static bk_status build_vectors_bwd(bk_device *device, const bk_attention_bwd_args *a,
                                   bk_gpu_state *s) {
  const int32_t half = bk_gpu_half(&a->q), dk = (int32_t)a->q.shape[3], dv = (int32_t)a->v.shape[3];
  bk_gpu_attention_dq_cpu_consts dq = {.GROUP = 1, .BF16 = half, .DK = dk, .DV = dv};
  bk_gpu_attention_dkv_cpu_consts dkv = {.GROUP = 1, .BF16 = half, .DK = dk, .DV = dv};
  s->group = LANES;
  BK_TRY(bk_gpu_build(device, BK_GPU_attention_dq_cpu, &dq, &s->kernel[DQ]));
  return bk_gpu_build(device, BK_GPU_attention_dkv_cpu, &dkv, &s->kernel[DK]);
}

static bk_status build_tiles_bwd(bk_device *device, const bk_attention_bwd_args *a,
                                 bk_gpu_state *s) {
  const int32_t half = bk_gpu_half(&a->q), dk = (int32_t)a->q.shape[3], dv = (int32_t)a->v.shape[3];
  const int32_t tile = tile_for(device, a->q.shape[1]), lanes = tile_lanes(tile);
  bk_gpu_attention_dx_consts dx = {
      .GROUP = lanes, .BF16 = half, .TILE = tile, .AREA = tile_area(tile, dk), .DK = dk, .DV = dv};
  bk_gpu_attention_dv_consts dvs = {
      .GROUP = lanes, .BF16 = half, .TILE = tile, .AREA = tile_area(tile, dv), .DK = dk, .DV = dv};
  s->group = tile;
  BK_TRY(bk_gpu_build(device, BK_GPU_attention_dx, &dx, &s->kernel[DQ]));
  dx.KEYS = 1;
  BK_TRY(bk_gpu_build(device, BK_GPU_attention_dx, &dx, &s->kernel[DK]));
  return bk_gpu_build(device, BK_GPU_attention_dv, &dvs, &s->kernel[DV]);
}

BK_GPU_PREPARE(bk_gpu_attention_bwd_prepare) {
  const bk_attention_bwd_args *a = args;
  bk_gpu_attention_stats_consts stats = {
      .GROUP = bk_gpu_group(device, 1), .BF16 = bk_gpu_half(&a->q), .DV = (int32_t)a->v.shape[3]};
  *workspace_bytes = (size_t)(pairs_of(&a->q) * a->q.shape[1]) * 2 * sizeof(float);
  s->chunk = kind_for(device);
  BK_TRY(bk_gpu_build(device, BK_GPU_attention_stats, &stats, &s->kernel[STATS]));
  return s->chunk == VECTORS ? build_vectors_bwd(device, a, s) : build_tiles_bwd(device, a, s);
}

static bk_status run_stats(bk_stream *stream, const bk_plan *plan, const bk_attention_bwd_args *a,
                           bk_place stats) {
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[STATS];
  const int64_t rows = pairs_of(&a->q) * a->q.shape[1];
  bk_gpu_attention_stats_call call = {.o = bk_gpu_at(&a->o),
                                      .dout = bk_gpu_at(&a->dout),
                                      .lse = bk_gpu_at(&a->lse),
                                      .stats = stats,
                                      .rows = (int32_t)rows,
                                      .heads = (int32_t)a->q.shape[2],
                                      .t = (int32_t)a->q.shape[1],
                                      STRIDES(o, a->o),
                                      STRIDES(g, a->dout),
                                      .lb = (int32_t)a->lse.stride[0],
                                      .lh = (int32_t)a->lse.stride[1]};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(rows, p->consts[0]));
}

/* dq from (q, k, dout, v), dk from (k, q, v, dout). */
static bk_status run_dx(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *p,
                        const bk_tensor *x, const bk_tensor *y, const bk_tensor *xg,
                        const bk_tensor *yg, const bk_tensor *dx, float scale, bk_place stats) {
  bk_gpu_attention_dx_call call = {.x = bk_gpu_at(x),
                                   .y = bk_gpu_at(y),
                                   .xg = bk_gpu_at(xg),
                                   .yg = bk_gpu_at(yg),
                                   .stats = stats,
                                   .dx = bk_gpu_at(dx),
                                   .pairs = pairs_of(x),
                                   .heads = (int32_t)x->shape[2],
                                   .t = (int32_t)x->shape[1],
                                   STRIDES(x, *x),
                                   STRIDES(y, *y),
                                   STRIDES(xg, *xg),
                                   STRIDES(yg, *yg),
                                   STRIDES(d, *dx),
                                   .scale = scale};
  return bk_gpu_run(stream, plan, p, &call, blocks_of(x, bk_gpu_state_of(plan)->group));
}

static bk_status run_dv(bk_stream *stream, const bk_plan *plan, const bk_attention_bwd_args *a,
                        bk_place stats) {
  bk_gpu_attention_dv_call call = {.q = bk_gpu_at(&a->q),
                                   .k = bk_gpu_at(&a->k),
                                   .dout = bk_gpu_at(&a->dout),
                                   .stats = stats,
                                   .dv = bk_gpu_at(&a->dv),
                                   .pairs = pairs_of(&a->q),
                                   .heads = (int32_t)a->q.shape[2],
                                   .t = (int32_t)a->q.shape[1],
                                   STRIDES(q, a->q),
                                   STRIDES(k, a->k),
                                   STRIDES(g, a->dout),
                                   STRIDES(d, a->dv),
                                   .scale = (float)a->scale};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[DV], &call,
                    blocks_of(&a->q, bk_gpu_state_of(plan)->group));
}

static bk_status run_vectors_bwd(bk_stream *stream, const bk_plan *plan,
                                 const bk_attention_bwd_args *a, bk_place stats) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int32_t pairs = pairs_of(&a->q), heads = (int32_t)a->q.shape[2], t = (int32_t)a->q.shape[1];
  bk_gpu_attention_dq_cpu_call dq = {.q = bk_gpu_at(&a->q),
                                     .k = bk_gpu_at(&a->k),
                                     .v = bk_gpu_at(&a->v),
                                     .dout = bk_gpu_at(&a->dout),
                                     .stats = stats,
                                     .dq = bk_gpu_at(&a->dq),
                                     .pairs = pairs,
                                     .heads = heads,
                                     .t = t,
                                     STRIDES(q, a->q),
                                     STRIDES(k, a->k),
                                     STRIDES(v, a->v),
                                     STRIDES(g, a->dout),
                                     STRIDES(d, a->dq),
                                     .scale = (float)a->scale};
  bk_gpu_attention_dkv_cpu_call dkv = {.q = bk_gpu_at(&a->q),
                                       .k = bk_gpu_at(&a->k),
                                       .v = bk_gpu_at(&a->v),
                                       .dout = bk_gpu_at(&a->dout),
                                       .stats = stats,
                                       .dk = bk_gpu_at(&a->dk),
                                       .dv = bk_gpu_at(&a->dv),
                                       .pairs = pairs,
                                       .heads = heads,
                                       .t = t,
                                       STRIDES(q, a->q),
                                       STRIDES(k, a->k),
                                       STRIDES(v, a->v),
                                       STRIDES(g, a->dout),
                                       STRIDES(d, a->dk),
                                       STRIDES(e, a->dv),
                                       .scale = (float)a->scale};
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[DQ], &dq, blocks_of(&a->q, LANES)));
  return bk_gpu_run(stream, plan, s->kernel[DK], &dkv, blocks_of(&a->q, LANES));
}

BK_LAUNCH_FN(bk_gpu_attention_bwd) {
  const bk_attention_bwd_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const float scale = (float)a->scale;
  BK_TRY(run_stats(stream, plan, a, workspace));
  if (s->chunk == VECTORS) return run_vectors_bwd(stream, plan, a, workspace);
  BK_TRY(
      run_dx(stream, plan, s->kernel[DQ], &a->q, &a->k, &a->dout, &a->v, &a->dq, scale, workspace));
  BK_TRY(
      run_dx(stream, plan, s->kernel[DK], &a->k, &a->q, &a->v, &a->dout, &a->dk, scale, workspace));
  return run_dv(stream, plan, a, workspace);
}
