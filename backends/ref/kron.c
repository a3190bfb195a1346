/* comb as the Kronecker product of one 2 by 2 matrix for each bit of the stream's number: the
 * factor's matrix is [[p, 1-p], [1-p, p]], a mixture of the identity and the swap. Factor 0 has
 * the most significant bit. */
#include "backends/ref/ref.h"

enum { SAME, OTHER, MAX_FACTORS = 3 };
_Static_assert(BK_HC_MAX_N <= 1 << MAX_FACTORS, "MAX_FACTORS");

/* The entries of one token's factors: of equal bits and of bits that differ. Both are sigmoids,
 * so that neither is 1 minus a number close to 1. */
typedef struct factors {
  double entry[MAX_FACTORS][2];
  int count;
} factors;

static factors factors_of(const bk_tensor *logits, int64_t i) {
  factors made = {.count = (int)logits->shape[1] / 2};
  for (int f = 0; f < made.count; f++) {
    double apart = get2(logits, i, 2 * f) - get2(logits, i, 2 * f + 1);
    made.entry[f][SAME] = bk_ref_sigmoid(apart);
    made.entry[f][OTHER] = bk_ref_sigmoid(-apart);
  }
  return made;
}

/* Whether the bits of factor f in m and k agree. */
static int bits(const factors *t, int f, int m, int k) {
  return (m ^ k) >> (t->count - 1 - f) & 1 ? OTHER : SAME;
}

/* The product of the factors' entries at (m, k), without that of factor `left_out` (-1: all). */
static double product(const factors *t, int left_out, int m, int k) {
  double value = 1;
  for (int f = 0; f < t->count; f++)
    if (f != left_out) value *= t->entry[f][bits(t, f, m, k)];
  return value;
}

BK_REF_LAUNCH(hc_kron) {
  const bk_hc_kron_args *a = args;
  int n = (int)a->comb.shape[1];
  for (int64_t i = 0; i < a->comb.shape[0]; i++) {
    factors t = factors_of(&a->logits, i);
    for (int m = 0; m < n; m++)
      for (int k = 0; k < n; k++) set3(&a->comb, i, m, k, product(&t, -1, m, k));
  }
  return BK_OK;
}

/* The gradient of factor f's p. */
static double share_gradient(const factors *t, int f, const bk_tensor *dcomb, int64_t i) {
  int n = (int)dcomb->shape[1];
  double sum = 0;
  for (int m = 0; m < n; m++)
    for (int k = 0; k < n; k++) {
      double d = get3(dcomb, i, m, k) * product(t, f, m, k);
      sum += bits(t, f, m, k) == SAME ? d : -d;
    }
  return sum;
}

/* dp/dl = p (1 - p) for the identity's logit, and minus that for the swap's. */
BK_REF_LAUNCH(hc_kron_bwd) {
  const bk_hc_kron_bwd_args *a = args;
  for (int64_t i = 0; i < a->dcomb.shape[0]; i++) {
    factors t = factors_of(&a->logits, i);
    for (int f = 0; f < t.count; f++) {
      double d = share_gradient(&t, f, &a->dcomb, i) * t.entry[f][SAME] * t.entry[f][OTHER];
      set2(&a->dlogits, i, 2 * f, d);
      set2(&a->dlogits, i, 2 * f + 1, -d);
    }
  }
  return BK_OK;
}
