/* Cross entropy with its gradient in the same pass. */
#include "backends/ref/ref.h"

static double row_lse(const bk_tensor *logits, int64_t i) {
  double max = -INFINITY, sum = 0;
  for (int64_t j = 0; j < logits->shape[1]; j++) max = fmax(max, get2(logits, i, j));
  for (int64_t j = 0; j < logits->shape[1]; j++) sum += exp(get2(logits, i, j) - max);
  return max + log(sum);
}

/* Element by element, so that dlogits may be the logits themselves. */
static void row_gradient(const bk_cross_entropy_args *a, int64_t i, int32_t target, double lse) {
  double scale = get1(&a->step, BK_STEP_LOSS_SCALE);
  for (int64_t j = 0; j < a->logits.shape[1]; j++) {
    double p = exp(get2(&a->logits, i, j) - lse);
    set2(&a->dlogits, i, j, target < 0 ? 0 : (p - (j == target ? 1 : 0)) * scale);
  }
}

BK_REF_LAUNCH(cross_entropy) {
  const bk_cross_entropy_args *a = args;
  for (int64_t i = 0; i < a->logits.shape[0]; i++) {
    int32_t target = geti1(&a->targets, i);
    double lse = target < 0 ? 0 : row_lse(&a->logits, i);
    set1(&a->loss, i, target < 0 ? 0 : lse - get2(&a->logits, i, target));
    if (bk_tensor_present(&a->dlogits)) row_gradient(a, i, target, lse);
  }
  return BK_OK;
}
