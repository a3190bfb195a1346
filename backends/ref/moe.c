/* Sorting tokens by expert and back, and the balancing bias (arXiv 2408.15664). */
#include "backends/ref/ref.h"

/* Counts become starts, starts become next free rows while the choices are placed in order (that
 * makes the sort stable), and what is left in offsets[e] is the end of e: one place on, it is
 * the start of e+1. */
BK_REF_LAUNCH(moe_index) {
  const bk_moe_index_args *a = args;
  int64_t n = a->index.shape[0], k = a->index.shape[1], n_experts = a->offsets.shape[0] - 1;
  for (int64_t e = 0; e <= n_experts; e++) *bk_ref_int(&a->offsets, at1(&a->offsets, e)) = 0;
  for (int64_t c = 0; c < n * k; c++)
    ++*bk_ref_int(&a->offsets, at1(&a->offsets, geti2(&a->index, c / k, c % k) + 1));
  for (int64_t e = 0; e < n_experts; e++) {
    int32_t count = geti1(&a->offsets, e + 1);
    if (bk_tensor_present(&a->load)) *bk_ref_int(&a->load, at1(&a->load, e)) += count;
    *bk_ref_int(&a->offsets, at1(&a->offsets, e + 1)) = geti1(&a->offsets, e) + count;
  }
  for (int64_t c = 0; c < n * k; c++) {
    int32_t row = (*bk_ref_int(&a->offsets, at1(&a->offsets, geti2(&a->index, c / k, c % k))))++;
    *bk_ref_int(&a->order, at1(&a->order, row)) = (int32_t)c;
    *bk_ref_int(&a->row_of, at2(&a->row_of, c / k, c % k)) = row;
  }
  for (int64_t e = n_experts; e > 0; e--)
    *bk_ref_int(&a->offsets, at1(&a->offsets, e)) = geti1(&a->offsets, e - 1);
  *bk_ref_int(&a->offsets, 0) = 0;
  return BK_OK;
}

BK_REF_LAUNCH(permute) {
  const bk_permute_args *a = args;
  for (int64_t r = 0; r < a->y.shape[0]; r++)
    for (int64_t c = 0; c < a->y.shape[1]; c++)
      set2(&a->y, r, c, get2(&a->x, geti1(&a->order, r) / a->k, c));
  return BK_OK;
}

static double weight_of(const bk_tensor *weights, int64_t i, int64_t j) {
  return bk_tensor_present(weights) ? get2(weights, i, j) : 1;
}

BK_REF_LAUNCH(unpermute) {
  const bk_unpermute_args *a = args;
  for (int64_t i = 0; i < a->y.shape[0]; i++)
    for (int64_t c = 0; c < a->y.shape[1]; c++) {
      double sum = 0;
      for (int64_t j = 0; j < a->row_of.shape[1]; j++)
        sum += weight_of(&a->weights, i, j) * get2(&a->x, geti2(&a->row_of, i, j), c);
      put2(&a->y, i, c, sum, a->accumulate);
    }
  return BK_OK;
}

/* A row of x belongs to one (i, j) only: its dot product is taken before dx, which may be x,
 * overwrites it. */
BK_REF_LAUNCH(unpermute_bwd) {
  const bk_unpermute_bwd_args *a = args;
  int64_t width = a->dy.shape[1];
  for (int64_t i = 0; i < a->row_of.shape[0]; i++)
    for (int64_t j = 0; j < a->row_of.shape[1]; j++) {
      int32_t row = geti2(&a->row_of, i, j);
      if (bk_tensor_present(&a->dweights)) {
        double dot = 0;
        for (int64_t c = 0; c < width; c++) dot += get2(&a->x, row, c) * get2(&a->dy, i, c);
        set2(&a->dweights, i, j, dot);
      }
      for (int64_t c = 0; c < width; c++)
        set2(&a->dx, row, c, weight_of(&a->weights, i, j) * get2(&a->dy, i, c));
    }
  return BK_OK;
}

BK_REF_LAUNCH(balance) {
  const bk_balance_args *a = args;
  if (get1(&a->step, BK_STEP_FINITE) == 0) return BK_OK;
  int64_t n_experts = a->load.shape[0], total = 0;
  for (int64_t e = 0; e < n_experts; e++) total += geti1(&a->load, e);
  for (int64_t e = 0; e < n_experts; e++) {
    int64_t missing = total - n_experts * geti1(&a->load, e);
    int sign = (missing > 0) - (missing < 0);
    put1(&a->bias, e, get1(&a->step, BK_STEP_BALANCE_RATE) * sign, true);
  }
  return BK_OK;
}
