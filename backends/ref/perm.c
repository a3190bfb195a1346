/* comb made of permutations. HC_PERM (mHC-lite, arXiv 2601.05732): a mixture of all n! of them, in
 * lexicographic order. HC_KRON: for each bit of the stream's number a mixture of the identity and
 * the swap, [[p, 1-p], [1-p, p]], and of these the Kronecker product; factor 0 has the most
 * significant bit. */
#include "backends/ref/ref.h"

enum { MAX_N = BK_HC_MAX_N };

static void first_permutation(int *sigma, int n) {
  for (int m = 0; m < n; m++) sigma[m] = m;
}

static void swap(int *a, int *b) {
  int c = *a;
  *a = *b;
  *b = c;
}

/* The next one in lexicographic order; after the last one anything. */
static void next_permutation(int *sigma, int n) {
  int i = n - 2, j = n - 1;
  while (i >= 0 && sigma[i] > sigma[i + 1]) i--;
  if (i < 0) return;
  while (sigma[j] < sigma[i]) j--;
  swap(&sigma[i], &sigma[j]);
  for (i++, j = n - 1; i < j; i++, j--) swap(&sigma[i], &sigma[j]);
}

/* log sum exp of one token's logits. */
static double token_lse(const bk_tensor *logits, int64_t i) {
  double max = -INFINITY, sum = 0;
  for (int64_t p = 0; p < logits->shape[1]; p++) max = fmax(max, get2(logits, i, p));
  for (int64_t p = 0; p < logits->shape[1]; p++) sum += exp(get2(logits, i, p) - max);
  return max + log(sum);
}

BK_REF_ACCEPTS(hc_perm) { return ((const bk_hc_perm_args *)args)->n <= MAX_N; }
BK_REF_ACCEPTS(hc_perm_bwd) { return ((const bk_hc_perm_bwd_args *)args)->n <= MAX_N; }

BK_REF_LAUNCH(hc_perm) {
  const bk_hc_perm_args *a = args;
  for (int64_t i = 0; i < a->logits.shape[0]; i++) {
    double comb[MAX_N][MAX_N] = {{0}}, lse = token_lse(&a->logits, i);
    int sigma[MAX_N];
    first_permutation(sigma, a->n);
    for (int64_t p = 0; p < a->logits.shape[1]; p++, next_permutation(sigma, a->n))
      for (int m = 0; m < a->n; m++) comb[m][sigma[m]] += exp(get2(&a->logits, i, p) - lse);
    for (int m = 0; m < a->n; m++)
      for (int k = 0; k < a->n; k++) set3(&a->comb, i, m, k, comb[m][k]);
  }
  return BK_OK;
}

/* The gradient of a permutation's weight. */
static double weight_gradient(const bk_tensor *dcomb, int64_t i, const int *sigma, int n) {
  double sum = 0;
  for (int m = 0; m < n; m++) sum += get3(dcomb, i, m, sigma[m]);
  return sum;
}

/* dlogit_p = w_p (dw_p - sum_q w_q dw_q). */
BK_REF_LAUNCH(hc_perm_bwd) {
  const bk_hc_perm_bwd_args *a = args;
  for (int64_t i = 0; i < a->logits.shape[0]; i++) {
    double lse = token_lse(&a->logits, i), mean = 0;
    int sigma[MAX_N];
    first_permutation(sigma, a->n);
    for (int64_t p = 0; p < a->logits.shape[1]; p++, next_permutation(sigma, a->n))
      mean += exp(get2(&a->logits, i, p) - lse) * weight_gradient(&a->dcomb, i, sigma, a->n);
    first_permutation(sigma, a->n);
    for (int64_t p = 0; p < a->logits.shape[1]; p++, next_permutation(sigma, a->n)) {
      double dw = weight_gradient(&a->dcomb, i, sigma, a->n);
      set2(&a->dlogits, i, p, exp(get2(&a->logits, i, p) - lse) * (dw - mean));
    }
  }
  return BK_OK;
}

/* ---- Kronecker products ---- */

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
