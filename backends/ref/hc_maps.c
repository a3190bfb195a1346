/* Coefficients of the residual connections up to the doubly stochastic maps: norm of the
 * streams, logits, gates, and the unconstrained maps of hc. Formulas: mHC, arXiv 2512.24880 eq.
 * 7-8; Hyper-Connections, arXiv 2409.19606 eq. 10-13. */
#include "backends/ref/ref.h"

BK_REF_LAUNCH(hc_rms) {
  const bk_hc_rms_args *a = args;
  int64_t width = a->x.shape[1];
  for (int64_t i = 0; i < a->x.shape[0]; i++) {
    double sum = 0;
    for (int64_t c = 0; c < width; c++) sum += get2(&a->x, i, c) * get2(&a->x, i, c);
    set1(&a->rinv, i, 1 / sqrt(sum / (double)width + a->eps));
  }
  return BK_OK;
}

/* rinv = (mean(x^2) + eps)^-1/2, so d rinv / d x_c = -rinv^3 x_c / width. */
BK_REF_LAUNCH(hc_rms_bwd) {
  const bk_hc_rms_bwd_args *a = args;
  int64_t width = a->x.shape[1];
  for (int64_t i = 0; i < a->x.shape[0]; i++) {
    double rinv = get1(&a->rinv, i),
           factor = -get1(&a->drinv, i) * rinv * rinv * rinv / (double)width;
    for (int64_t c = 0; c < width; c++)
      put2(&a->dx, i, c, factor * get2(&a->x, i, c), a->accumulate);
  }
  return BK_OK;
}

/* ---- logits ---- */

static int group_of(int64_t row, int n) { return row < n ? 0 : row < 2 * n ? 1 : 2; }

BK_REF_LAUNCH(hc_logits) {
  const bk_hc_logits_args *a = args;
  for (int64_t i = 0; i < a->proj.shape[0]; i++)
    for (int64_t j = 0; j < a->proj.shape[1]; j++) {
      double scale = get1(&a->scale, group_of(j, a->n));
      set2(&a->logits, i, j, scale * get2(&a->proj, i, j) * get1(&a->rinv, i) + get1(&a->base, j));
    }
  return BK_OK;
}

static void logits_dparameters(const bk_hc_logits_bwd_args *a) {
  double dscale[3] = {0};
  for (int64_t j = 0; j < a->proj.shape[1]; j++) {
    double dbase = 0;
    for (int64_t i = 0; i < a->proj.shape[0]; i++) {
      double g = get2(&a->dlogits, i, j);
      dbase += g;
      dscale[group_of(j, a->n)] += g * get2(&a->proj, i, j) * get1(&a->rinv, i);
    }
    put1(&a->dbase, j, dbase, true);
  }
  for (int64_t g = 0; g < a->dscale.shape[0]; g++) put1(&a->dscale, g, dscale[g], true);
}

BK_REF_LAUNCH(hc_logits_bwd) {
  const bk_hc_logits_bwd_args *a = args;
  logits_dparameters(a);
  for (int64_t i = 0; i < a->proj.shape[0]; i++) {
    double drinv = 0;
    for (int64_t j = 0; j < a->proj.shape[1]; j++) {
      double scaled = get2(&a->dlogits, i, j) * get1(&a->scale, group_of(j, a->n));
      drinv += scaled * get2(&a->proj, i, j);
      set2(&a->dproj, i, j, scaled * get1(&a->rinv, i));
    }
    set1(&a->drinv, i, drinv);
  }
  return BK_OK;
}

/* ---- gates ---- */

BK_REF_LAUNCH(hc_gates) {
  const bk_hc_gates_args *a = args;
  int64_t n = a->pre.shape[1];
  for (int64_t i = 0; i < a->pre.shape[0]; i++)
    for (int64_t m = 0; m < n; m++) {
      set2(&a->pre, i, m, bk_ref_sigmoid(get2(&a->logits, i, m)) + a->hc_eps);
      if (bk_tensor_present(&a->post))
        set2(&a->post, i, m, 2 * bk_ref_sigmoid(get2(&a->logits, i, n + m)));
    }
  return BK_OK;
}

static double sigmoid_slope(double x) { return bk_ref_sigmoid(x) * bk_ref_sigmoid(-x); }

BK_REF_LAUNCH(hc_gates_bwd) {
  const bk_hc_gates_bwd_args *a = args;
  int64_t n = a->dpre.shape[1];
  for (int64_t i = 0; i < a->dpre.shape[0]; i++)
    for (int64_t m = 0; m < n; m++) {
      set2(&a->dlogits, i, m, get2(&a->dpre, i, m) * sigmoid_slope(get2(&a->logits, i, m)));
      if (bk_tensor_present(&a->dpost))
        set2(&a->dlogits, i, n + m,
             get2(&a->dpost, i, m) * 2 * sigmoid_slope(get2(&a->logits, i, n + m)));
    }
  return BK_OK;
}

/* ---- hc: column 0 of a stream's projections makes pre, column 1 post, the others its row of
 * comb ---- */

BK_REF_LAUNCH(hc_tanh) {
  const bk_hc_tanh_args *a = args;
  int64_t n = a->n;
  for (int64_t i = 0; i < a->pre.shape[0]; i++)
    for (int64_t m = 0; m < n; m++) {
      int64_t row = i * n + m;
      double rinv = get1(&a->rinv, row);
      set2(&a->pre, i, m,
           get1(&a->scale, 0) * tanh(get2(&a->proj, row, 0) * rinv) + get1(&a->base, m));
      set2(&a->post, i, m,
           get1(&a->scale, 1) * tanh(get2(&a->proj, row, 1) * rinv) + get1(&a->base, n + m));
      for (int64_t k = 0; k < n; k++) {
        double t = tanh(get2(&a->proj, row, 2 + k) * rinv);
        set3(&a->comb, i, m, k, get1(&a->scale, 2) * t + get1(&a->base, 2 * n + m * n + k));
      }
    }
  return BK_OK;
}

/* The gradient of the map that column j of stream m makes. */
static double tanh_dmap(const bk_hc_tanh_bwd_args *a, int64_t i, int64_t m, int64_t j) {
  return j == 0   ? get2(&a->dpre, i, m)
         : j == 1 ? get2(&a->dpost, i, m)
                  : get3(&a->dcomb, i, m, j - 2);
}

static void tanh_dparameters(const bk_hc_tanh_bwd_args *a) {
  int64_t n = a->n;
  double dscale[3] = {0};
  for (int64_t m = 0; m < n; m++)
    for (int64_t j = 0; j < n + 2; j++) {
      double dbase = 0;
      for (int64_t i = 0; i < a->dpre.shape[0]; i++) {
        double g = tanh_dmap(a, i, m, j);
        dbase += g;
        dscale[j < 2 ? j : 2] += g * tanh(get2(&a->proj, i * n + m, j) * get1(&a->rinv, i * n + m));
      }
      put1(&a->dbase, j < 2 ? j * n + m : 2 * n + m * n + j - 2, dbase, true);
    }
  for (int64_t g = 0; g < 3; g++) put1(&a->dscale, g, dscale[g], true);
}

BK_REF_LAUNCH(hc_tanh_bwd) {
  const bk_hc_tanh_bwd_args *a = args;
  int64_t n = a->n;
  tanh_dparameters(a);
  for (int64_t i = 0; i < a->dpre.shape[0]; i++)
    for (int64_t m = 0; m < n; m++) {
      int64_t row = i * n + m;
      double rinv = get1(&a->rinv, row), drinv = 0;
      for (int64_t j = 0; j < n + 2; j++) {
        double proj = get2(&a->proj, row, j), t = tanh(proj * rinv);
        double du = tanh_dmap(a, i, m, j) * get1(&a->scale, j < 2 ? j : 2) * (1 - t * t);
        drinv += du * proj;
        set2(&a->dproj, row, j, du * rinv);
      }
      set1(&a->drinv, row, drinv);
    }
  return BK_OK;
}
