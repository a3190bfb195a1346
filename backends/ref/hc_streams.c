/* The residual streams themselves: expand, collapse, and what the maps do to them (mHC, arXiv
 * 2512.24880 eq. 3): pre gathers the sublayer's input, res mixes the streams, post scatters the
 * sublayer's output. */
#include "backends/ref/ref.h"

BK_REF_LAUNCH(hc_expand) {
  const bk_hc_expand_args *a = args;
  for (int64_t i = 0; i < a->y.shape[0]; i++)
    for (int64_t m = 0; m < a->y.shape[1]; m++)
      for (int64_t c = 0; c < a->y.shape[2]; c++) set3(&a->y, i, m, c, get2(&a->x, i, c));
  return BK_OK;
}

BK_REF_LAUNCH(hc_collapse) {
  const bk_hc_collapse_args *a = args;
  for (int64_t i = 0; i < a->x.shape[0]; i++)
    for (int64_t c = 0; c < a->x.shape[2]; c++) {
      double sum = 0;
      for (int64_t m = 0; m < a->x.shape[1]; m++) sum += get3(&a->x, i, m, c);
      set2(&a->y, i, c, sum);
    }
  return BK_OK;
}

/* ---- pre ---- */

BK_REF_LAUNCH(hc_pre) {
  const bk_hc_pre_args *a = args;
  for (int64_t i = 0; i < a->x.shape[0]; i++)
    for (int64_t c = 0; c < a->x.shape[2]; c++) {
      double sum = 0;
      for (int64_t m = 0; m < a->x.shape[1]; m++) sum += get2(&a->pre, i, m) * get3(&a->x, i, m, c);
      set2(&a->y, i, c, sum);
    }
  return BK_OK;
}

BK_REF_LAUNCH(hc_pre_bwd) {
  const bk_hc_pre_bwd_args *a = args;
  for (int64_t i = 0; i < a->x.shape[0]; i++)
    for (int64_t m = 0; m < a->x.shape[1]; m++) {
      double dpre = 0, pre = get2(&a->pre, i, m);
      for (int64_t c = 0; c < a->x.shape[2]; c++) {
        double dy = get2(&a->dy, i, c);
        dpre += dy * get3(&a->x, i, m, c);
        put3(&a->dx, i, m, c, pre * dy, a->accumulate);
      }
      set2(&a->dpre, i, m, dpre);
    }
  return BK_OK;
}

/* ---- res ---- */

BK_REF_LAUNCH(hc_res) {
  const bk_hc_res_args *a = args;
  int64_t n = a->x.shape[1];
  for (int64_t i = 0; i < a->x.shape[0]; i++)
    for (int64_t k = 0; k < n; k++)
      for (int64_t c = 0; c < a->x.shape[2]; c++) {
        double sum = 0;
        for (int64_t m = 0; m < n; m++) sum += get3(&a->comb, i, m, k) * get3(&a->x, i, m, c);
        set3(&a->y, i, k, c, sum);
      }
  return BK_OK;
}

static void res_dcomb(const bk_hc_res_bwd_args *a, int64_t i) {
  int64_t n = a->x.shape[1];
  for (int64_t m = 0; m < n; m++)
    for (int64_t k = 0; k < n; k++) {
      double sum = 0;
      for (int64_t c = 0; c < a->x.shape[2]; c++)
        sum += get3(&a->x, i, m, c) * get3(&a->dy, i, k, c);
      set3(&a->dcomb, i, m, k, sum);
    }
}

BK_REF_ACCEPTS(hc_res_bwd) { return ((const bk_hc_res_bwd_args *)args)->x.shape[1] <= BK_HC_MAX_N; }

/* A channel's gradients are all read before one is written, after dcomb: dx may be x or dy. */
BK_REF_LAUNCH(hc_res_bwd) {
  const bk_hc_res_bwd_args *a = args;
  int64_t n = a->x.shape[1];
  for (int64_t i = 0; i < a->x.shape[0]; i++) {
    res_dcomb(a, i);
    for (int64_t c = 0; c < a->x.shape[2]; c++) {
      double dx[BK_HC_MAX_N] = {0};
      for (int64_t m = 0; m < n; m++)
        for (int64_t k = 0; k < n; k++) dx[m] += get3(&a->comb, i, m, k) * get3(&a->dy, i, k, c);
      for (int64_t m = 0; m < n; m++) set3(&a->dx, i, m, c, dx[m]);
    }
  }
  return BK_OK;
}

/* ---- post ---- */

BK_REF_LAUNCH(hc_post) {
  const bk_hc_post_args *a = args;
  for (int64_t i = 0; i < a->y.shape[0]; i++)
    for (int64_t k = 0; k < a->y.shape[1]; k++)
      for (int64_t c = 0; c < a->y.shape[2]; c++)
        put3(&a->y, i, k, c, get2(&a->post, i, k) * get2(&a->f, i, c), true);
  return BK_OK;
}

BK_REF_LAUNCH(hc_post_bwd) {
  const bk_hc_post_bwd_args *a = args;
  int64_t n = a->dy.shape[1];
  for (int64_t i = 0; i < a->dy.shape[0]; i++) {
    for (int64_t k = 0; k < n; k++) {
      double dpost = 0;
      for (int64_t c = 0; c < a->dy.shape[2]; c++)
        dpost += get3(&a->dy, i, k, c) * get2(&a->f, i, c);
      set2(&a->dpost, i, k, dpost);
    }
    for (int64_t c = 0; c < a->dy.shape[2]; c++) {
      double df = 0;
      for (int64_t k = 0; k < n; k++) df += get2(&a->post, i, k) * get3(&a->dy, i, k, c);
      set2(&a->df, i, c, df);
    }
  }
  return BK_OK;
}
