/* How products are cut into tiles, and the workspaces of GEMM, GROUPED_GEMM and GROUPED_WGRAD. */
#include "backends/cpu/gemm.h"
#include "backends/cpu/kernels.h"

#define ENOUGH_TILES 16

static int64_t even(int64_t size, int64_t most, int64_t unit) {
  int64_t parts = (size + most - 1) / most;
  if (parts == 0) return unit;
  return BK_ALIGN_UP((size + parts - 1) / parts, unit);
}

/* Tiles as even as possible; smaller ones, down to 48 x 64, while there are too few to keep a machine busy. */
bk_gemm_cut bk_cpu_gemm_cut(int64_t m, int64_t n, int64_t k) {
  int64_t most_m = BK_GEMM_TM, most_n = BK_GEMM_TN;
  bk_gemm_cut cut;
  for (;;) {
    cut.tm = even(m, most_m, 48), cut.tn = even(n, most_n, 64);
    cut.rows = (m + cut.tm - 1) / cut.tm, cut.columns = (n + cut.tn - 1) / cut.tn;
    if (cut.rows * cut.columns >= ENOUGH_TILES || cut.tm * cut.tn * k < (int64_t)1 << 20) break;
    if (cut.tn > 128 && (cut.tn >= cut.tm || cut.tm <= 96)) most_n = cut.tn - 64;
    else if (cut.tm > 96) most_m = cut.tm - 48;
    else break;
  }
  return cut;
}

size_t bk_cpu_gemm_scratch(int64_t m, int64_t n) {
  size_t rows = (size_t)BK_ALIGN_UP(m, 48), columns = (size_t)BK_ALIGN_UP(n, 64);
  return (rows * BK_GEMM_KC + columns * BK_GEMM_KC + rows * columns) * sizeof(float);
}

/* c may be transposed inside, so both orientations are provided for. */
bk_status bk_cpu_gemm_prepare(bk_device *device, const void *args, void **state, size_t *workspace_bytes) {
  const bk_gemm_args *a = args;
  int d = a->c.ndim - 2;
  int64_t m = a->c.shape[d], n = a->c.shape[d + 1], k = a->a.shape[d + 1];
  bk_gemm_cut cut = bk_cpu_gemm_cut(m, n, k), turned = bk_cpu_gemm_cut(n, m, k);
  size_t bytes = bk_cpu_gemm_scratch(cut.tm, cut.tn), other = bk_cpu_gemm_scratch(turned.tm, turned.tn);
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * (bytes > other ? bytes : other);
  return BK_OK;
}

bk_status bk_cpu_grouped_gemm_prepare(bk_device *device, const void *args, void **state, size_t *workspace_bytes) {
  const bk_grouped_gemm_args *a = args;
  bk_gemm_cut cut = bk_cpu_gemm_cut(a->a.shape[0], a->c.shape[1], a->a.shape[1]);
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * bk_cpu_gemm_scratch(cut.tm, cut.tn);
  return BK_OK;
}

bk_status bk_cpu_grouped_wgrad_prepare(bk_device *device, const void *args, void **state, size_t *workspace_bytes) {
  const bk_grouped_wgrad_args *a = args;
  bk_gemm_cut cut = bk_cpu_gemm_cut(a->c.shape[1], a->c.shape[2], a->a.shape[0]);
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * bk_cpu_gemm_scratch(cut.tm, cut.tn);
  return BK_OK;
}
