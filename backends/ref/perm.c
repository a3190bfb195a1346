/* mHC-lite (arXiv 2601.05732): comb is a mixture of the n! permutation matrices, in
 * lexicographic order. */
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
