/* Initial values, made on the host from (seed, hash of the tensor's name, element): the same bits on every machine and backend
 * (design.md section 3). Stored weights are the rounded fp32 master values. */
#include "models/model_priv.h"

#include <string.h>

enum { PIECE = 1 << 14 }; /* elements made at a time */

static double initial_value(const bk_param *p, uint64_t seed, uint64_t stream, int64_t i) {
  if (p->init == BK_INIT_NORMAL) return p->init_std * bk_normal(seed, stream, (uint64_t)i);
  return p->init == BK_INIT_CONST ? p->init_value : p->init_values[i];
}

static bk_tensor piece(bk_tensor t, int64_t first, int64_t count) {
  bk_tensor flat = bk_tensor_reshape(t, 1, (int64_t[]){bk_tensor_count(&t)});
  return bk_tensor_slice(flat, 0, first, count);
}

static bk_status init_param(bk_model *m, const bk_param *p, uint64_t seed, double *values) {
  bk_tensor weight = bk_param_weight(m, p), master = bk_param_master(m, p);
  uint64_t stream = bk_hash64(p->name, strlen(p->name));
  int64_t count = bk_tensor_count(&weight);
  for (int64_t first = 0; first < count; first += PIECE) {
    int64_t n = count - first < PIECE ? count - first : PIECE;
    for (int64_t i = 0; i < n; i++) {
      double v = initial_value(p, seed, stream, first + i);
      values[i] = m->ct == BK_F64 ? v : (float)v;
    }
    bk_tensor w = piece(weight, first, n);
    BK_TRY(bk_tensor_write_f64(m->stream, &w, values));
    if (!bk_tensor_present(&master)) continue;
    w = piece(master, first, n);
    BK_TRY(bk_tensor_write_f64(m->stream, &w, values));
  }
  return BK_OK;
}

static bk_status zero_moments(bk_model *m) {
  for (int i = 0; i < m->n_blocks; i++) {
    const bk_param_block *b = &m->blocks[i];
    if (!bk_tensor_present(&b->m)) continue;
    BK_TRY(bk_tensor_zero(m->stream, &b->m));
    BK_TRY(bk_tensor_zero(m->stream, &b->v));
  }
  return bk_model_zero_grads(m);
}

bk_status bk_model_init(bk_model *m, uint64_t seed) {
  if (m->options.plan_only) return bk_fail(m->ctx, BK_ERR_ARGUMENT, "a model that was only planned has no values");
  double *values = bk_alloc_array(m->ctx, PIECE, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  bk_status status = BK_OK;
  for (int i = 0; i < m->n_params && status == BK_OK; i++) status = init_param(m, &m->params[i], seed, values);
  bk_free(m->ctx, values);
  return status != BK_OK ? status : zero_moments(m);
}
