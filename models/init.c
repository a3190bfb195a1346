/* Initial values, made on the host from (seed, hash of the tensor's name, element): the same bits
 * on every machine and backend (doc/numerics.md). Stored weights are the rounded fp32 master
 * values. */
#include "models/model_priv.h"

#include <string.h>

enum { PIECE = 1 << 14 }; /* elements made at a time */
/* How much of a tensor is drawn for a benchmark: all of a tensor of up to 2^21 elements. A router
 * whose rows repeat would have experts that tie, and its routing would be unlike that of a real
 * one. */
enum { ROUGH_WHOLE = 1 << 21, ROUGH_DRAWN = 64 * PIECE };

/* The value depends on seed, name and element alone, and not on which other parameters there
 * are. */
static double initial_value(const bk_param *p, uint64_t seed, uint64_t stream, int64_t i) {
  if (p->init == BK_INIT_NORMAL) return p->init_std * bk_normal(seed, stream, (uint64_t)i);
  return p->init == BK_INIT_CONST ? p->init_value : p->init_values[i];
}

/* The tensor is seen as flat, and its elements [first, first + count) are meant. */
static bk_tensor piece(bk_tensor t, int64_t first, int64_t count) {
  bk_tensor flat = bk_tensor_reshape(t, 1, (int64_t[]){bk_tensor_count(&t)});
  return bk_tensor_slice(flat, 0, first, count);
}

/* Fills the elements from `done` on with copies of those before, made on the device; each copy
 * doubles what is there. */
static bk_status repeat(bk_model *m, const bk_tensor *t, int64_t done) {
  int64_t count = bk_tensor_count(t);
  while (done < count) {
    int64_t more = count - done < done ? count - done : done;
    bk_tensor from = piece(*t, 0, more), to = piece(*t, done, more);
    BK_TRY(m->stream->ops->copy(m->stream, (bk_place){to.buffer, to.offset},
                                (bk_place){from.buffer, from.offset}, bk_tensor_bytes(&to)));
    done += more;
  }
  return BK_OK;
}

/* `distinct` is how many elements of a larger tensor are drawn, a whole number of pieces; the rest
 * repeats them. */
static bk_status init_param(bk_model *m, const bk_param *p, uint64_t seed, int64_t distinct,
                            double *values) {
  bk_tensor weight = bk_param_weight(m, p), master = bk_param_master(m, p);
  uint64_t stream = bk_hash64(p->name, strlen(p->name));
  int64_t count = bk_tensor_count(&weight);
  if (count > distinct && count > ROUGH_WHOLE) count = distinct;
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
  BK_TRY(repeat(m, &weight, count));
  return bk_tensor_present(&master) ? repeat(m, &master, count) : BK_OK;
}

/* Memory comes zeroed, but a model may be initialised again after it was trained. */
static bk_status zero_moments(bk_model *m) {
  for (int i = 0; i < m->n_blocks; i++) {
    const bk_param_block *b = &m->blocks[i];
    if (!bk_tensor_present(&b->m)) continue;
    BK_TRY(bk_tensor_zero(m->stream, &b->m));
    BK_TRY(bk_tensor_zero(m->stream, &b->v));
  }
  return BK_OK;
}

/* `distinct` is that of init_param. */
static bk_status init_params(bk_model *m, uint64_t seed, int64_t distinct) {
  if (m->options.plan_only)
    return bk_fail(m->ctx, BK_ERR_ARGUMENT, "a model that was only planned has no values");
  double *values = bk_alloc_array(m->ctx, PIECE, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  bk_status status = BK_OK;
  for (int i = 0; i < m->n_params && status == BK_OK; i++)
    status = init_param(m, &m->params[i], seed, distinct, values);
  bk_free(m->ctx, values);
  return status != BK_OK ? status : zero_moments(m);
}

bk_status bk_model_init(bk_model *m, uint64_t seed) { return init_params(m, seed, INT64_MAX); }
bk_status bk_model_init_rough(bk_model *m, uint64_t seed) {
  return init_params(m, seed, ROUGH_DRAWN);
}
