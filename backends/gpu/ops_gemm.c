/* Launches of gemm.k */
#include "backends/gpu/gemm.h"

enum { MULTIPLY, ADD_PARTS }; /* kernels of a plan */
enum {
  TILES_WANTED = 128, /* fewer leave a GPU idle: then k is cut into parts */
  PARTS_LEAST = 256,  /* of k in a part */
  PARTS_MOST = 32,
  LARGE_TILES_LEAST = 64 /* large tiles below which small ones are chosen */
};

bk_gpu_matrix bk_gpu_matrix_of(const bk_tensor *t) {
  const int outer = t->ndim - 2;
  return (bk_gpu_matrix){.batches = outer ? t->shape[0] : 1,
                         .rows = t->shape[outer],
                         .columns = t->shape[outer + 1],
                         .batch = outer ? (int32_t)t->stride[0] : 0,
                         .row = (int32_t)t->stride[outer],
                         .column = (int32_t)t->stride[outer + 1]};
}

/* ---- tiles: 64 x 64, 128 x 128 where there are many of them; halved while a half would do ---- */

typedef struct tile {
  int32_t group, ix, tm, tn, ks;
} tile;

static int64_t tile_rows(const tile *t) { return t->group / t->ix * t->tm; }
static int64_t tile_columns(const tile *t) { return t->ix * t->tn; }
static int64_t tiles_of(const tile *t, int64_t parts, int64_t m, int64_t n) {
  return parts * bk_gpu_ceil_div(m, tile_rows(t)) * bk_gpu_ceil_div(n, tile_columns(t));
}

static tile tile_of(const bk_device *device, int64_t parts, int64_t m, int64_t n) {
  const int most = ((const bk_gpu_device *)device)->max_group;
  const tile large = {256, 16, 8, 8, 8};
  if (most >= 256 && m > 64 && n > 64 && tiles_of(&large, parts, m, n) >= LARGE_TILES_LEAST)
    return large;
  tile t = most >= 256   ? (tile){256, 16, 4, 4, 16}
           : most >= 128 ? (tile){128, 16, 8, 4, 16}
                         : (tile){64, 8, 8, 8, 16};
  while (t.tm > 1 && m * 2 <= tile_rows(&t)) t.tm /= 2;
  while (t.tn > 1 && n * 2 <= tile_columns(&t)) t.tn /= 2;
  return t;
}

/* The constants of the kernels *_tile have the same names. */
#define TILE_CONSTS(g, t, a_inner, b_inner)                                     \
  {                                                                             \
    .GROUP = (t).group, .IX = (t).ix, .TM = (t).tm, .TN = (t).tn, .KS = (t).ks, \
    .A_BF16 = bk_gpu_half(&(g)->a), .B_BF16 = bk_gpu_half(&(g)->b),             \
    .C_BF16 = bk_gpu_half(&(g)->c), .A_INNER = (a_inner), .B_INNER = (b_inner)  \
  }

/* ---- GEMM ---- */

/* k in parts of `depth`, in chunks of the state. The shape alone decides. */
static void cut_k(const tile *t, const bk_gpu_matrix *c, int64_t k, bk_gpu_state *s) {
  const int64_t tiles = tiles_of(t, c->batches, c->rows, c->columns);
  int64_t parts = tiles && tiles < TILES_WANTED ? bk_gpu_ceil_div(2 * TILES_WANTED, tiles) : 1;
  if (parts > k / PARTS_LEAST) parts = k / PARTS_LEAST;
  if (parts > PARTS_MOST) parts = PARTS_MOST;
  if (parts < 1) parts = 1;
  s->chunk = (int32_t)(bk_gpu_ceil_div(bk_gpu_ceil_div(k, parts), t->ks) * t->ks);
  s->chunks = s->chunk ? bk_gpu_ceil_div(k, s->chunk) : 1;
}

BK_GPU_PREPARE(bk_gpu_gemm_prepare) {
  const bk_gemm_args *g = args;
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), b = bk_gpu_matrix_of(&g->b),
                      c = bk_gpu_matrix_of(&g->c);
  if (bk_gpu_on_cpu(device)) return bk_gpu_gemm_cpu_prepare(device, g, s, workspace_bytes);
  const tile t = tile_of(device, c.batches, c.rows, c.columns);
  cut_k(&t, &c, a.columns, s);
  bk_gpu_gemm_tile_consts consts = TILE_CONSTS(g, t, a.column == 1, b.row == 1 && b.column != 1);
  if (s->chunks > 1) {
    bk_gpu_gemm_parts_consts add = {.GROUP = bk_gpu_group(device, bk_tensor_count(&g->c)),
                                    .C_BF16 = consts.C_BF16};
    BK_TRY(bk_gpu_build(device, BK_GPU_gemm_parts, &add, &s->kernel[ADD_PARTS]));
    *workspace_bytes = (size_t)(s->chunks * bk_tensor_count(&g->c)) * sizeof(float);
    consts.C_BF16 = 0;
  }
  return bk_gpu_build(device, BK_GPU_gemm_tile, &consts, &s->kernel[MULTIPLY]);
}

static bk_status add_parts(bk_stream *stream, const bk_plan *plan, const bk_gemm_args *g,
                           const bk_gpu_matrix *c, bk_place partial) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const bk_gpu_pipeline *p = s->kernel[ADD_PARTS];
  const int64_t count = bk_tensor_count(&g->c);
  bk_gpu_gemm_parts_call call = {.partial = partial,
                                 .c = bk_gpu_at(&g->c),
                                 .m = (int32_t)c->rows,
                                 .n = (int32_t)c->columns,
                                 .c_batch = c->batch,
                                 .c_row = c->row,
                                 .c_column = c->column,
                                 .count = (int32_t)count,
                                 .parts = (int32_t)s->chunks,
                                 .accumulate = g->accumulate,
                                 .alpha = (float)g->alpha};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(count, p->consts[0]));
}

BK_LAUNCH_FN(bk_gpu_gemm) {
  const bk_gemm_args *g = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), b = bk_gpu_matrix_of(&g->b),
                      c = bk_gpu_matrix_of(&g->c);
  if (bk_gpu_on_cpu(stream->device)) return bk_gpu_gemm_cpu(stream, plan, g, workspace);
  const tile t = tile_of(stream->device, c.batches, c.rows, c.columns);
  bk_gpu_gemm_tile_call call = {.a = bk_gpu_at(&g->a),
                                .b = bk_gpu_at(&g->b),
                                .c = bk_gpu_at(&g->c),
                                .m = (int32_t)c.rows,
                                .n = (int32_t)c.columns,
                                .k = (int32_t)a.columns,
                                .a_batch = a.batch,
                                .a_row = a.row,
                                .a_column = a.column,
                                .b_batch = b.batch,
                                .b_row = b.row,
                                .b_column = b.column,
                                .c_batch = c.batch,
                                .c_row = c.row,
                                .c_column = c.column,
                                .parts = (int32_t)s->chunks,
                                .depth = s->chunk,
                                .accumulate = g->accumulate,
                                .alpha = (float)g->alpha};
  if (s->chunks > 1) {
    call.c = workspace, call.c_batch = (int32_t)(c.rows * c.columns),
    call.c_row = (int32_t)c.columns, call.c_column = 1;
    call.c_part = (int32_t)bk_tensor_count(&g->c), call.accumulate = 0, call.alpha = 1;
  }
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[MULTIPLY], &call,
                    s->chunks * tiles_of(&t, c.batches, c.rows, c.columns)));
  return s->chunks > 1 ? add_parts(stream, plan, g, &c, workspace) : BK_OK;
}

/* ---- GROUPED_GEMM ---- */

BK_GPU_PREPARE(bk_gpu_grouped_gemm_prepare) {
  const bk_grouped_gemm_args *g = args;
  const bk_gpu_matrix b = bk_gpu_matrix_of(&g->b);
  if (bk_gpu_on_cpu(device)) return bk_gpu_grouped_gemm_cpu_prepare(device, g, s, workspace_bytes);
  const tile t = tile_of(device, 1, g->a.shape[0], b.columns);
  bk_gpu_grouped_gemm_tile_consts consts = TILE_CONSTS(g, t, 1, b.row == 1 && b.column != 1);
  return bk_gpu_build(device, BK_GPU_grouped_gemm_tile, &consts, &s->kernel[MULTIPLY]);
}

BK_LAUNCH_FN(bk_gpu_grouped_gemm) {
  const bk_grouped_gemm_args *g = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[MULTIPLY];
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), b = bk_gpu_matrix_of(&g->b);
  if (bk_gpu_on_cpu(stream->device)) return bk_gpu_grouped_gemm_cpu(stream, plan, g, workspace);
  const tile t = tile_of(stream->device, 1, a.rows, b.columns);
  /* each expert with rows can have one tile that is not full */
  const int64_t down = a.rows / tile_rows(&t) + (b.batches < a.rows ? b.batches : a.rows);
  bk_gpu_grouped_gemm_tile_call call = {.a = bk_gpu_at(&g->a),
                                        .b = bk_gpu_at(&g->b),
                                        .offsets = bk_gpu_at(&g->offsets),
                                        .c = bk_gpu_at(&g->c),
                                        .experts = (int32_t)b.batches,
                                        .n = (int32_t)b.columns,
                                        .k = (int32_t)a.columns,
                                        .a_row = a.row,
                                        .a_column = 1,
                                        .b_batch = b.batch,
                                        .b_row = b.row,
                                        .b_column = b.column,
                                        .c_row = (int32_t)g->c.stride[0]};
  return bk_gpu_run(stream, plan, p, &call, down * bk_gpu_ceil_div(b.columns, tile_columns(&t)));
}

/* ---- GROUPED_WGRAD ---- */

BK_GPU_PREPARE(bk_gpu_grouped_wgrad_prepare) {
  const bk_grouped_wgrad_args *g = args;
  const bk_gpu_matrix c = bk_gpu_matrix_of(&g->c);
  if (bk_gpu_on_cpu(device)) return bk_gpu_grouped_wgrad_cpu_prepare(device, g, s, workspace_bytes);
  const tile t = tile_of(device, c.batches, c.rows, c.columns);
  bk_gpu_grouped_wgrad_tile_consts consts = TILE_CONSTS(g, t, 0, 0);
  return bk_gpu_build(device, BK_GPU_grouped_wgrad_tile, &consts, &s->kernel[MULTIPLY]);
}

BK_LAUNCH_FN(bk_gpu_grouped_wgrad) {
  const bk_grouped_wgrad_args *g = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[MULTIPLY];
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), b = bk_gpu_matrix_of(&g->b),
                      c = bk_gpu_matrix_of(&g->c);
  if (bk_gpu_on_cpu(stream->device)) return bk_gpu_grouped_wgrad_cpu(stream, plan, g, workspace);
  const tile t = tile_of(stream->device, c.batches, c.rows, c.columns);
  bk_gpu_grouped_wgrad_tile_call call = {.a = bk_gpu_at(&g->a),
                                         .b = bk_gpu_at(&g->b),
                                         .offsets = bk_gpu_at(&g->offsets),
                                         .c = bk_gpu_at(&g->c),
                                         .m = (int32_t)c.rows,
                                         .n = (int32_t)c.columns,
                                         .a_row = 1,
                                         .a_column = a.row,
                                         .b_row = b.row,
                                         .b_column = 1,
                                         .c_batch = c.batch,
                                         .c_row = c.row,
                                         .overwrite = g->overwrite};
  return bk_gpu_run(stream, plan, p, &call, tiles_of(&t, c.batches, c.rows, c.columns));
}
