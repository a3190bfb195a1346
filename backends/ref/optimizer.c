/* Gradient norm, clipping factor, AdamW (arXiv 1711.05101). */
#include "backends/ref/ref.h"

BK_REF_LAUNCH(sumsq) {
  const bk_sumsq_args *a = args;
  double sum = 0;
  for (int64_t i = 0; i < a->x.shape[0]; i++) sum += get1(&a->x, i) * get1(&a->x, i);
  put1(&a->y, 0, sum, a->accumulate);
  return BK_OK;
}

BK_REF_LAUNCH(clip) {
  const bk_clip_args *a = args;
  double sumsq = get1(&a->step, BK_STEP_SUMSQ), max_norm = get1(&a->step, BK_STEP_MAX_NORM),
         norm = sqrt(sumsq);
  set1(&a->step, BK_STEP_NORM, norm);
  set1(&a->step, BK_STEP_CLIP, max_norm > 0 && norm > max_norm ? max_norm / norm : 1);
  set1(&a->step, BK_STEP_FINITE, isfinite(sumsq) && isfinite(get1(&a->step, BK_STEP_LOSS)));
  return BK_OK;
}

/* p is rounded from the master as stored, so that p can be rebuilt from the masters of a
 * checkpoint. */
BK_REF_LAUNCH(adamw) {
  const bk_adamw_args *a = args;
  if (get1(&a->step, BK_STEP_FINITE) == 0) return BK_OK;
  double lr = get1(&a->step, BK_STEP_LR), clip = get1(&a->step, BK_STEP_CLIP);
  double bc1 = get1(&a->step, BK_STEP_BC1), bc2 = get1(&a->step, BK_STEP_BC2);
  bool has_master = bk_tensor_present(&a->master);
  const bk_tensor *weights = has_master ? &a->master : &a->p;
  for (int64_t i = 0; i < a->grad.shape[0]; i++) {
    double g = get1(&a->grad, i) * clip, w = get1(weights, i);
    double m = a->beta1 * get1(&a->m, i) + (1 - a->beta1) * g;
    double v = a->beta2 * get1(&a->v, i) + (1 - a->beta2) * g * g;
    set1(&a->m, i, m);
    set1(&a->v, i, v);
    set1(weights, i, w - lr * (m / bc1 / (sqrt(v / bc2) + a->eps) + a->weight_decay * w));
    if (has_master) set1(&a->p, i, get1(&a->master, i));
  }
  return BK_OK;
}
