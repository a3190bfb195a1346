/* Linear layers over GEMM (y = x W^T, weights stored [out, in] as in checkpoints), and the
 * planner's helper (sublayer.h). Transposition is a view: no weight is ever copied for it. */
#include "models/layers/sublayer.h"

/* Returns an absent tensor after an error, which the caller may store: the plan is given up as a
 * whole once bk_chunk_plan reads the status. */
bk_tensor bk_planner_tensor(bk_planner *p, bk_memory_class c, bk_dtype dtype, int ndim,
                            const int64_t *shape) {
  bk_tensor t = {0};
  if (p->status == BK_OK) p->status = bk_memory_tensor(p->memory, c, dtype, ndim, shape, &t);
  return t;
}

/* W is stored [out, in]; its transposed view [in, out] is what the product takes. */
bk_status bk_linear(bk_recorder *rec, bk_tensor x, const bk_param_block *w, bk_tensor y) {
  return bk_record(rec, BK_OP_GEMM,
                   &(bk_gemm_args){x, bk_tensor_transpose(w->weight, 0, 1), y, 1.0, false});
}

/* The product dx = dy W takes the weight as it is stored. */
bk_status bk_linear_dgrad(bk_recorder *rec, bk_tensor dy, const bk_param_block *w, bk_tensor dx,
                          bool accumulate) {
  return bk_record(rec, BK_OP_GEMM, &(bk_gemm_args){dy, w->weight, dx, 1.0, accumulate});
}

/* dW = dy^T x over all tokens, into ct. The gradient has the weight's shape [out, in]. Whether it
 * adds is asked at the time of recording, in the order in which the program runs: the first product
 * into a block overwrites it in a *first* program. */
bk_status bk_linear_wgrad(bk_recorder *rec, bk_tensor dy, bk_tensor x, bk_param_block *w) {
  bool adds = bk_record_accumulates(rec, w);
  return bk_record(rec, BK_OP_GEMM,
                   &(bk_gemm_args){bk_tensor_transpose(dy, 0, 1), x, w->grad, 1.0, adds});
}
