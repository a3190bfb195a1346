/* How products are cut into tiles, and the workspaces of GEMM, GROUPED_GEMM and GROUPED_WGRAD. */
#include "backends/cpu/gemm.h"
#include "backends/cpu/kernels.h"

/* CBLAS: tiles of at most 192 x 256, as even as possible; smaller ones while there are too few
 * to keep a machine busy. */
#define BLAS_TM 192
#define BLAS_TN 256
#define ENOUGH_TILES 16

static int64_t even(int64_t size, int64_t parts, int64_t unit) {
  return parts == 0 ? unit : BK_ALIGN_UP((size + parts - 1) / parts, unit);
}
static int64_t parts_of(int64_t size, int64_t most) { return (size + most - 1) / most; }

static bk_gemm_cut cut_in(int64_t m, int64_t n, int64_t rows, int64_t columns) {
  bk_gemm_cut cut = {.tm = even(m, rows, 24), .tn = even(n, columns, 64)};
  cut.rows = parts_of(m, cut.tm), cut.columns = parts_of(n, cut.tn);
  return cut;
}

static bk_gemm_cut blas_cut(int64_t m, int64_t n, int64_t k) {
  int64_t most_m = BLAS_TM, most_n = BLAS_TN;
  bk_gemm_cut cut;
  for (;;) {
    cut = cut_in(m, n, parts_of(m, most_m), parts_of(n, most_n));
    if (cut.rows * cut.columns >= ENOUGH_TILES || cut.tm * cut.tn * k < (int64_t)1 << 20) break;
    if (cut.tn > 128 && (cut.tn >= cut.tm || cut.tm <= 96)) most_n = cut.tn - 64;
    else if (cut.tm > 96) most_m = cut.tm - 48;
    else break;
  }
  return cut;
}

/* Packed engine: the cut with the least work of the busiest worker, in multiply-adds. Packing an
 * element costs as much as about 6 of them, a tile as much as 30000 whatever its size. */
#define MOST_PARTS 256
static int64_t cut_cost(const bk_gemm_cut *cut, int64_t k, int64_t batches, int workers) {
  int64_t tiles = batches * cut->rows * cut->columns, rounds = (tiles + workers - 1) / workers;
  return rounds * (k * (cut->tm * cut->tn + 6 * (cut->tm + cut->tn)) + 30000);
}
static bk_gemm_cut packed_cut(int64_t m, int64_t n, int64_t k, int64_t batches, int workers) {
  int64_t rows = parts_of(m, BK_GEMM_TM), columns = parts_of(n, BK_GEMM_TN), least = INT64_MAX;
  bk_gemm_cut best = cut_in(m, n, rows, columns);
  if (rows * columns > MOST_PARTS * (int64_t)workers) return best; /* even enough already */
  for (int64_t r = rows; r <= parts_of(m, 24) && r <= rows + 2 * workers; r++)
    for (int64_t c = columns; c <= parts_of(n, 64) && c <= columns + 2 * workers; c++) {
      bk_gemm_cut cut = cut_in(m, n, r, c);
      int64_t cost = cut_cost(&cut, k, batches, workers);
      if (cost >= least) continue;
      least = cost;
      best = cut;
    }
  return best;
}

bk_gemm_cut bk_cpu_gemm_grouped_cut(const bk_device *device, int64_t groups, int64_t rows,
                                    int64_t columns) {
  if (bk_cpu_of(device)->blas)
    return cut_in(rows, columns, parts_of(rows, BLAS_TM), parts_of(columns, BLAS_TN));
  int64_t wanted = 8 * bk_cpu_workers(device) / (groups > 0 ? groups : 1),
          parts = parts_of(columns, BK_GEMM_TN);
  int64_t most = parts_of(columns, 64);
  if (parts < wanted) parts = wanted < most ? wanted : most;
  return cut_in(rows, columns, parts_of(rows, BK_GEMM_TM), parts);
}

size_t bk_cpu_gemm_scratch(int64_t m, int64_t n) {
  size_t rows = (size_t)BK_ALIGN_UP(m, 48), columns = (size_t)BK_ALIGN_UP(n, 64);
  return (rows * BK_GEMM_KC + columns * BK_GEMM_KC + rows * columns) * sizeof(float);
}

static bool is_turned(const bk_tensor *c, int d) {
  return !(c->shape[d + 1] > 1 && (c->stride[d + 1] == 1 || c->stride[d] != 1 || c->shape[d] == 1));
}

BK_PREPARE(bk_cpu_gemm_prepare) {
  const bk_gemm_args *a = args;
  int d = a->c.ndim - 2, workers = bk_cpu_workers(device);
  bk_gemm_state *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->turned = is_turned(&a->c, d);
  int64_t m = a->c.shape[d + made->turned], n = a->c.shape[d + !made->turned],
          k = a->a.shape[d + 1];
  bool blas = bk_cpu_of(device)->blas;
  made->cut = blas ? blas_cut(m, n, k) : packed_cut(m, n, k, d ? a->c.shape[0] : 1, workers);
  made->scratch = bk_cpu_gemm_scratch(made->cut.tm, made->cut.tn);
  *state = made;
  *workspace_bytes = (size_t)workers * made->scratch;
  return BK_OK;
}

static bk_status prepare_grouped(bk_device *device, int64_t groups, int64_t rows, int64_t columns,
                                 void **state, size_t *workspace_bytes) {
  bk_gemm_cut cut = bk_cpu_gemm_grouped_cut(device, groups, rows, columns);
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * bk_cpu_gemm_scratch(cut.tm, cut.tn);
  return BK_OK;
}

BK_PREPARE(bk_cpu_grouped_gemm_prepare) {
  const bk_grouped_gemm_args *a = args;
  return prepare_grouped(device, a->b.shape[0], a->a.shape[0], a->c.shape[1], state,
                         workspace_bytes);
}

BK_PREPARE(bk_cpu_grouped_wgrad_prepare) {
  const bk_grouped_wgrad_args *a = args;
  return prepare_grouped(device, a->c.shape[0], a->c.shape[1], a->c.shape[2], state,
                         workspace_bytes);
}
