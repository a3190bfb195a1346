/* hc_kron: comb as a Kronecker product of 2 by 2 factors, forward and backward. Template, see
 * cpu.h. As in hc_maps.h, BK_VW tokens are a block, one token in each lane.
 *
 * An entry depends only on which bits of m and k differ: comb[m][k] = row[m ^ k], where row is
 * comb's first row. So the forward makes n numbers and copies them, and the backward first adds up
 * the n entries that were copies of each. */
#include "backends/cpu/hc_maps.h"

enum { MAX_FACTORS = 3 };
_Static_assert(BK_HC_MAX_N <= 1 << MAX_FACTORS, "MAX_FACTORS");
typedef float factor_block[MAX_FACTORS * BK_VW];

/* p (entries of equal bits), 1 - p, and p (1 - p), all from e = exp(-|difference|), so that
 * nothing cancels where p is close to 0 or 1. */
typedef struct factors {
  factor_block same, other, slope;
  int count;
} factors;

static void factors_of(const float *logits, int count, factors *t) {
  t->count = count;
  for (int f = 0; f < count; f++) {
    bk_vf apart = ROW(logits, 2 * f) - ROW(logits, 2 * f + 1);
    bk_vf e = bk_v_exp(-bk_v_abs(apart)), large = 1.f / (1.f + e), small = e * large;
    SET_ROW(t->same, f, bk_v_select(apart >= 0.f, large, small));
    SET_ROW(t->other, f, bk_v_select(apart >= 0.f, small, large));
    SET_ROW(t->slope, f, small * large);
  }
}

/* comb's first row: each factor, from the last one with the lowest bit on, doubles its length. */
static void row_block(const factors *t, float *row) {
  SET_ROW(row, 0, bk_v_zero() + 1.f);
  for (int f = t->count - 1, width = 1; f >= 0; f--, width *= 2)
    for (int d = 0; d < width; d++) {
      SET_ROW(row, width + d, ROW(row, d) * ROW(t->other, f));
      SET_ROW(row, d, ROW(row, d) * ROW(t->same, f));
    }
}

/* The gradient of factor f's p from that of the row: entries that differ in f's bit alone have the
 * same product of the other factors, and opposite signs. */
static bk_vf share_gradient(const factors *t, int f, const float *drow, int n) {
  int bit = 1 << (t->count - 1 - f);
  bk_vf sum = bk_v_zero();
  for (int d = 0; d < n; d++) {
    if (d & bit) continue;
    bk_vf value = ROW(drow, d) - ROW(drow, d | bit);
    for (int o = 0; o < t->count; o++)
      if (o != f)
        value = value * (d >> (t->count - 1 - o) & 1 ? ROW(t->other, o) : ROW(t->same, o));
    sum = sum + value;
  }
  return sum;
}

static void kron_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_kron_args *a = arg;
  int n = (int)a->comb.shape[1], columns = (int)a->logits.shape[1];
  map_block logits, row, comb;
  factors t;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather(&a->logits, i, lanes, 0, columns, logits);
    factors_of(logits, columns / 2, &t);
    row_block(&t, row);
    for (int m = 0; m < n; m++)
      for (int k = 0; k < n; k++) SET_ROW(comb, m * n + k, ROW(row, m ^ k));
    scatter_nn(&a->comb, i, lanes, comb);
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_kron)(bk_stream *stream, const bk_plan *plan, const void *args,
                                      bk_place workspace) {
  const bk_hc_kron_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->comb.shape[0], bk_hc_grain(a->comb.shape[0]), kron_piece, a);
  return BK_OK;
}

static void kron_bwd_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_hc_kron_bwd_args *a = arg;
  int n = (int)a->dcomb.shape[1], columns = (int)a->logits.shape[1];
  map_block logits, dcomb, drow, dlogits;
  factors t;
  (void)worker;
  for (int64_t i = begin; i < end; i += BK_VW) {
    int64_t lanes = end - i < BK_VW ? end - i : BK_VW;
    gather(&a->logits, i, lanes, 0, columns, logits);
    gather_nn(&a->dcomb, i, lanes, dcomb);
    factors_of(logits, columns / 2, &t);
    for (int d = 0; d < n; d++) {
      bk_vf sum = bk_v_zero();
      for (int m = 0; m < n; m++) sum = sum + ROW(dcomb, m * n + (m ^ d));
      SET_ROW(drow, d, sum);
    }
    for (int f = 0; f < t.count; f++) {
      bk_vf back = share_gradient(&t, f, drow, n) * ROW(t.slope, f);
      SET_ROW(dlogits, 2 * f, back);
      SET_ROW(dlogits, 2 * f + 1, -back);
    }
    scatter(&a->dlogits, i, lanes, 0, columns, dlogits);
  }
}

bk_status BK_ISA_NAME(bk_cpu_hc_kron_bwd)(bk_stream *stream, const bk_plan *plan, const void *args,
                                          bk_place workspace) {
  const bk_hc_kron_bwd_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->dcomb.shape[0], bk_hc_grain(a->dcomb.shape[0]), kron_bwd_piece, a);
  return BK_OK;
}
