/* Launches of gemm_cpu.k: products on processors. The workspace holds b packed, then a in fp32
 * where it is bf16. */
#include "backends/gpu/gemm.h"

enum { MULTIPLY, PACK, CONVERT }; /* kernels of a plan */
enum {
  KC = 512,
  BLOCK_TILES = 32,        /* most tiles of MR x NR of a work item */
  MAX_PANELS = 5,          /* most tiles of a work item across */
  MAX_TILES = 8,           /* most tiles of a work item down */
  GROUPS_PER_UNIT = 8,     /* work groups for each unit, so that all units end at the same time */
  LEAST_WORK = 1 << 19,    /* multiplications below which a work group is not made smaller */
  PACK_ELEMENTS = 1 << 13, /* elements of a work item that packs or converts */
};

/* Tiles down and across of a work item's block, blocks down and across of one product. */
typedef struct cut {
  int32_t tiles, panels;
  int64_t down, across;
} cut;

static int vector_of(const bk_device *device) {
  int v = ((const bk_gpu_device *)device)->vector;
  return v >= 16 ? 16 : v >= 8 ? 8 : 4;
}
static int64_t width_of(const bk_device *device) { return 2 * vector_of(device); }

/* Rows of a tile. Processors with vectors of 16 floats have 32 registers, others 16. */
static int32_t rows_of(const bk_device *device, int64_t m) {
  int most = vector_of(device) == 16 ? 12 : 6;
  return (int32_t)(m < 1 ? 1 : m < most ? m : most);
}

/* Panels across: the number that leaves the last block least empty. */
static int32_t panels_of(int64_t all) {
  int32_t best = 1;
  for (int32_t p = 2; p <= MAX_PANELS; p++)
    if (bk_gpu_ceil_div(all, p) * p - all <= bk_gpu_ceil_div(all, best) * best - all ||
        (best < 3 && p <= all))
      best = p;
  return best;
}

/* `parts` products of m rows each. */
static cut cut_of(const bk_device *device, int64_t parts, int64_t m, int64_t n, int64_t k) {
  const int64_t rows = rows_of(device, m), all = bk_gpu_ceil_div(n, width_of(device)),
                tiles = bk_gpu_ceil_div(m, rows);
  const int64_t wanted = (int64_t)GROUPS_PER_UNIT * ((const bk_gpu_device *)device)->units;
  cut c = {.panels = panels_of(all)};
  c.tiles = BLOCK_TILES / c.panels < MAX_TILES ? BLOCK_TILES / c.panels : MAX_TILES;
  for (;;) {
    c.down = bk_gpu_ceil_div(tiles, c.tiles), c.across = bk_gpu_ceil_div(all, c.panels);
    if (parts * c.down * c.across >= wanted ||
        c.tiles * c.panels * rows * width_of(device) * k <= LEAST_WORK)
      return c;
    if (c.tiles > 1) c.tiles--;
    else if (c.panels > 1) c.panels--;
    else return c;
  }
}

/* ---- b: panels ---- */

static size_t packed_bytes(const bk_device *device, const bk_gpu_matrix *b) {
  int64_t panels = bk_gpu_ceil_div(b->columns, width_of(device));
  return BK_ALIGN_UP((size_t)(b->batches * panels * b->rows * width_of(device)) * sizeof(float),
                     256);
}

static bk_status pack_prepare(bk_device *device, const bk_tensor *b, bk_gpu_state *s) {
  bk_gpu_gemm_cpu_pack_consts consts = {
      .GROUP = 1, .V = vector_of(device), .A_BF16 = bk_gpu_half(b)};
  return bk_gpu_build(device, BK_GPU_gemm_cpu_pack, &consts, &s->kernel[PACK]);
}

static bk_status pack(bk_stream *stream, const bk_plan *plan, const bk_tensor *t,
                      const bk_gpu_matrix *b, bk_place packed) {
  const int64_t panels = bk_gpu_ceil_div(b->columns, width_of(stream->device)),
                chunk = PACK_ELEMENTS / width_of(stream->device);
  const int64_t chunks = bk_gpu_ceil_div(b->rows, chunk);
  bk_gpu_gemm_cpu_pack_call call = {.b = bk_gpu_at(t),
                                    .packed = packed,
                                    .k = (int32_t)b->rows,
                                    .n = (int32_t)b->columns,
                                    .b_batch = b->batch,
                                    .b_row = b->row,
                                    .b_column = b->column,
                                    .panels = (int32_t)panels,
                                    .chunks = (int32_t)chunks,
                                    .chunk = (int32_t)chunk};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[PACK], &call,
                    b->batches * panels * chunks);
}

/* ---- a: as it is, or in fp32 ---- */

static size_t converted_bytes(const bk_tensor *t) {
  return bk_gpu_half(t) ? BK_ALIGN_UP((size_t)bk_tensor_count(t) * sizeof(float), 256) : 0;
}

/* Kernels count what is packed and converted in 32 bits. */
static bk_status fit(bk_device *device, const bk_gpu_matrix *b, const bk_tensor *a) {
  const size_t most = (size_t)INT32_MAX * sizeof(float), packed = packed_bytes(device, b),
               converted = converted_bytes(a);
  if (packed <= most && converted <= most) return BK_OK;
  return bk_fail(device->ctx, BK_ERR_UNSUPPORTED,
                 "%s: a product's operands take %zu and %zu bytes where they are packed, at most "
                 "%zu each are possible",
                 device->backend->name, packed, converted, most);
}

static bk_status convert_prepare(bk_device *device, const bk_tensor *t, bk_gpu_state *s) {
  if (!bk_gpu_half(t)) return BK_OK;
  bk_gpu_gemm_cpu_convert_consts consts = {.GROUP = 1, .V = vector_of(device), .A_BF16 = 1};
  return bk_gpu_build(device, BK_GPU_gemm_cpu_convert, &consts, &s->kernel[CONVERT]);
}

/* Where to find a's elements; `a` gets their strides. */
static bk_status convert(bk_stream *stream, const bk_plan *plan, const bk_tensor *t,
                         bk_gpu_matrix *a, bk_place room, bk_place *out) {
  *out = bk_gpu_at(t);
  if (!bk_gpu_half(t)) return BK_OK;
  const bool turned = a->row == 1 && a->column != 1;
  const int64_t rows = turned ? a->columns : a->rows, width = turned ? a->rows : a->columns;
  const int64_t chunk = width > PACK_ELEMENTS ? 1 : PACK_ELEMENTS / (width ? width : 1);
  bk_gpu_gemm_cpu_convert_call call = {.x = *out,
                                       .y = room,
                                       .all = (int32_t)(a->batches * rows),
                                       .rows = (int32_t)rows,
                                       .width = (int32_t)width,
                                       .x_batch = a->batch,
                                       .x_row = turned ? a->column : a->row,
                                       .x_column = turned ? a->row : a->column,
                                       .chunk = (int32_t)chunk};
  *out = room;
  a->batch = (int32_t)(rows * width);
  a->row = turned ? 1 : (int32_t)width;
  a->column = turned ? (int32_t)width : 1;
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[CONVERT], &call,
                    width ? bk_gpu_ceil_div(a->batches * rows, chunk) : 0);
}

/* ---- both, as all three ops have them ---- */

static bk_status operands_prepare(bk_device *device, const bk_tensor *a, const bk_tensor *b,
                                  bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_gpu_matrix b_matrix = bk_gpu_matrix_of(b);
  *workspace_bytes = packed_bytes(device, &b_matrix) + converted_bytes(a);
  BK_TRY(fit(device, &b_matrix, a));
  BK_TRY(pack_prepare(device, b, s));
  return convert_prepare(device, a, s);
}

/* b goes to the beginning of the workspace, a behind it where it is converted. */
static bk_status operands(bk_stream *stream, const bk_plan *plan, const bk_tensor *a,
                          const bk_tensor *b, bk_gpu_matrix *a_matrix,
                          const bk_gpu_matrix *b_matrix, bk_place workspace, bk_place *a_at) {
  const bk_place behind = bk_gpu_work(workspace, packed_bytes(stream->device, b_matrix));
  BK_TRY(pack(stream, plan, b, b_matrix, workspace));
  return convert(stream, plan, a, a_matrix, behind, a_at);
}

/* ---- GEMM ---- */

bk_status bk_gpu_gemm_cpu_prepare(bk_device *device, const bk_gemm_args *g, bk_gpu_state *s,
                                  size_t *workspace_bytes) {
  const bk_gpu_matrix c = bk_gpu_matrix_of(&g->c);
  bk_gpu_gemm_cpu_consts consts = {.GROUP = 1,
                                   .V = vector_of(device),
                                   .MR = rows_of(device, c.rows),
                                   .KC = KC,
                                   .BLOCK_TILES = BLOCK_TILES,
                                   .C_BF16 = bk_gpu_half(&g->c)};
  BK_TRY(operands_prepare(device, &g->a, &g->b, s, workspace_bytes));
  return bk_gpu_build(device, BK_GPU_gemm_cpu, &consts, &s->kernel[MULTIPLY]);
}

bk_status bk_gpu_gemm_cpu(bk_stream *stream, const bk_plan *plan, const bk_gemm_args *g,
                          bk_place workspace) {
  bk_gpu_matrix a = bk_gpu_matrix_of(&g->a);
  const bk_gpu_matrix b = bk_gpu_matrix_of(&g->b), c = bk_gpu_matrix_of(&g->c);
  const cut cut = cut_of(stream->device, c.batches, c.rows, c.columns, a.columns);
  bk_place a_at;
  if (!c.batches || !c.rows || !c.columns) return BK_OK;
  BK_TRY(operands(stream, plan, &g->a, &g->b, &a, &b, workspace, &a_at));
  bk_gpu_gemm_cpu_call call = {.a = a_at,
                               .packed = workspace,
                               .c = bk_gpu_at(&g->c),
                               .m = (int32_t)c.rows,
                               .n = (int32_t)c.columns,
                               .k = (int32_t)a.columns,
                               .a_batch = a.batch,
                               .a_row = a.row,
                               .a_column = a.column,
                               .c_batch = c.batch,
                               .c_row = c.row,
                               .c_column = c.column,
                               .tiles = cut.tiles,
                               .panels = cut.panels,
                               .accumulate = g->accumulate,
                               .alpha = (float)g->alpha};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[MULTIPLY], &call,
                    c.batches * cut.down * cut.across);
}

/* ---- GROUPED_GEMM: an expert's rows begin a block ---- */

bk_status bk_gpu_grouped_gemm_cpu_prepare(bk_device *device, const bk_grouped_gemm_args *g,
                                          bk_gpu_state *s, size_t *workspace_bytes) {
  bk_gpu_grouped_gemm_cpu_consts consts = {.GROUP = 1,
                                           .V = vector_of(device),
                                           .MR = rows_of(device, g->a.shape[0]),
                                           .KC = KC,
                                           .BLOCK_TILES = BLOCK_TILES,
                                           .C_BF16 = bk_gpu_half(&g->c)};
  BK_TRY(operands_prepare(device, &g->a, &g->b, s, workspace_bytes));
  return bk_gpu_build(device, BK_GPU_grouped_gemm_cpu, &consts, &s->kernel[MULTIPLY]);
}

bk_status bk_gpu_grouped_gemm_cpu(bk_stream *stream, const bk_plan *plan,
                                  const bk_grouped_gemm_args *g, bk_place workspace) {
  bk_gpu_matrix a = bk_gpu_matrix_of(&g->a);
  const bk_gpu_matrix b = bk_gpu_matrix_of(&g->b);
  const bk_gpu_pipeline *multiply = bk_gpu_state_of(plan)->kernel[MULTIPLY];
  const cut cut = cut_of(stream->device, 1, a.rows, b.columns, a.columns);
  const int64_t size = (int64_t)cut.tiles * rows_of(stream->device, a.rows);
  /* each expert with rows can have one block that is not full */
  const int64_t down = a.rows / size + (b.batches < a.rows ? b.batches : a.rows);
  bk_place a_at;
  if (!a.rows || !b.columns) return BK_OK;
  BK_TRY(operands(stream, plan, &g->a, &g->b, &a, &b, workspace, &a_at));
  bk_gpu_grouped_gemm_cpu_call call = {.a = a_at,
                                       .packed = workspace,
                                       .offsets = bk_gpu_at(&g->offsets),
                                       .c = bk_gpu_at(&g->c),
                                       .experts = (int32_t)b.batches,
                                       .m = (int32_t)a.rows,
                                       .n = (int32_t)b.columns,
                                       .k = (int32_t)a.columns,
                                       .a_row = a.row,
                                       .a_column = a.column,
                                       .c_row = (int32_t)g->c.stride[0],
                                       .tiles = cut.tiles,
                                       .panels = cut.panels};
  return bk_gpu_run(stream, plan, multiply, &call, down * cut.across);
}

/* ---- GROUPED_WGRAD: an expert's rows are its k; all of b is packed at once ---- */

bk_status bk_gpu_grouped_wgrad_cpu_prepare(bk_device *device, const bk_grouped_wgrad_args *g,
                                           bk_gpu_state *s, size_t *workspace_bytes) {
  bk_gpu_grouped_wgrad_cpu_consts consts = {.GROUP = 1,
                                            .V = vector_of(device),
                                            .MR = rows_of(device, g->c.shape[1]),
                                            .KC = KC,
                                            .BLOCK_TILES = BLOCK_TILES,
                                            .C_BF16 = bk_gpu_half(&g->c)};
  BK_TRY(operands_prepare(device, &g->a, &g->b, s, workspace_bytes));
  return bk_gpu_build(device, BK_GPU_grouped_wgrad_cpu, &consts, &s->kernel[MULTIPLY]);
}

bk_status bk_gpu_grouped_wgrad_cpu(bk_stream *stream, const bk_plan *plan,
                                   const bk_grouped_wgrad_args *g, bk_place workspace) {
  bk_gpu_matrix a = bk_gpu_matrix_of(&g->a);
  const bk_gpu_matrix b = bk_gpu_matrix_of(&g->b), c = bk_gpu_matrix_of(&g->c);
  const cut cut =
      cut_of(stream->device, c.batches, c.rows, c.columns, a.rows / (c.batches ? c.batches : 1));
  bk_place a_at;
  if (!c.batches || !c.rows || !c.columns) return BK_OK;
  a.column = 1; /* rows are dense, also where a stride of 1 says nothing */
  BK_TRY(operands(stream, plan, &g->a, &g->b, &a, &b, workspace, &a_at));
  bk_gpu_grouped_wgrad_cpu_call call = {.a = a_at,
                                        .packed = workspace,
                                        .offsets = bk_gpu_at(&g->offsets),
                                        .c = bk_gpu_at(&g->c),
                                        .rows = (int32_t)a.rows,
                                        .p = (int32_t)c.rows,
                                        .q = (int32_t)c.columns,
                                        .a_row = a.row,
                                        .c_batch = c.batch,
                                        .c_row = c.row,
                                        .tiles = cut.tiles,
                                        .panels = cut.panels,
                                        .overwrite = g->overwrite};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[MULTIPLY], &call,
                    c.batches * cut.down * cut.across);
}
