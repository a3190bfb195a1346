/* SwiGLU (arXiv 2002.05202): y = silu(gate) up, silu(g) = g sigmoid(g). */
#include "backends/ref/ref.h"

BK_REF_LAUNCH(swiglu) {
  const bk_swiglu_args *a = args;
  for (int64_t i = 0; i < a->y.shape[0]; i++)
    for (int64_t c = 0; c < a->y.shape[1]; c++) {
      double gate = get2(&a->gate, i, c);
      set2(&a->y, i, c, gate * bk_ref_sigmoid(gate) * get2(&a->up, i, c));
    }
  return BK_OK;
}

/* silu'(g) = s (1 + g (1 - s)), s = sigmoid(g). Each element is read before its gradients are
 * written: they may alias. */
BK_REF_LAUNCH(swiglu_bwd) {
  const bk_swiglu_bwd_args *a = args;
  for (int64_t i = 0; i < a->dy.shape[0]; i++)
    for (int64_t c = 0; c < a->dy.shape[1]; c++) {
      double gate = get2(&a->gate, i, c), up = get2(&a->up, i, c), dy = get2(&a->dy, i, c);
      double s = bk_ref_sigmoid(gate);
      set2(&a->dgate, i, c, dy * up * s * (1 + gate * (1 - s)));
      set2(&a->dup, i, c, dy * gate * s);
    }
  return BK_OK;
}
