/* RMSNorm (arXiv 1910.07467) over the last dimension. */
#include "backends/ref/ref.h"

BK_REF_LAUNCH(rmsnorm) {
  const bk_rmsnorm_args *a = args;
  int64_t n = a->x.shape[0], d = a->x.shape[1];
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;
    for (int64_t c = 0; c < d; c++) sum += get2(&a->x, i, c) * get2(&a->x, i, c);
    double rstd = 1 / sqrt(sum / (double)d + a->eps);
    for (int64_t c = 0; c < d; c++) set2(&a->y, i, c, get2(&a->x, i, c) * rstd * get1(&a->w, c));
    if (bk_tensor_present(&a->rstd)) set1(&a->rstd, i, rstd);
  }
  return BK_OK;
}

/* With xh = x rstd: dw = sum_i dy xh, dx = rstd (dy w - xh mean(dy w xh)). */
static void rmsnorm_dw(const bk_rmsnorm_bwd_args *a) {
  for (int64_t c = 0; c < a->x.shape[1]; c++) {
    double sum = 0;
    for (int64_t i = 0; i < a->x.shape[0]; i++)
      sum += get2(&a->dy, i, c) * get2(&a->x, i, c) * get1(&a->rstd, i);
    put1(&a->dw, c, sum, true);
  }
}

static void rmsnorm_dx(const bk_rmsnorm_bwd_args *a) {
  int64_t n = a->x.shape[0], d = a->x.shape[1];
  for (int64_t i = 0; i < n; i++) {
    double rstd = get1(&a->rstd, i), sum = 0;
    for (int64_t c = 0; c < d; c++)
      sum += get2(&a->dy, i, c) * get1(&a->w, c) * get2(&a->x, i, c) * rstd;
    double mean = sum / (double)d;
    for (int64_t c = 0; c < d; c++) {
      double dx = rstd * (get2(&a->dy, i, c) * get1(&a->w, c) - get2(&a->x, i, c) * rstd * mean);
      put2(&a->dx, i, c, dx, a->accumulate);
    }
  }
}

BK_REF_LAUNCH(rmsnorm_bwd) {
  const bk_rmsnorm_bwd_args *a = args;
  if (bk_tensor_present(&a->dw)) rmsnorm_dw(a);
  if (bk_tensor_present(&a->dx)) rmsnorm_dx(a);
  return BK_OK;
}
