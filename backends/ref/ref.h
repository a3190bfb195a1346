/* ref: the reference backend, the executable specification of runtime/op.h and the oracle of the
 * tests.
 *
 * Every kernel computes in double, whatever the storage dtype, and rounds once, on store, to
 * nearest even. The code follows the formulas of op.h literally; where speed and clarity
 * disagree, clarity wins. There are no threads, and sums run in ascending order of the index
 * that is summed over.
 *
 * Kernels read and write elements through the accessors below, which take (tensor, indices); the
 * strides are the tensor's, so any layout works. Private to backends/ref and to the tests that
 * call its kernels directly. */
#ifndef BK_REF_H
#define BK_REF_H

#include "runtime/backend.h"
#include <math.h>
#include <string.h>

/* ---- bf16 <-> double ---- */
/* Rounds a double to bf16, nearest even, in one rounding. A detour through float's nearest would
 * round twice; rounding the float to odd instead (of its two neighbours, the one whose last bit
 * is set) keeps what the second rounding has to know. */
static inline uint16_t bk_ref_bf16(double v) {
  union {
    float f;
    uint32_t u;
  } r = {.f = (float)v};
  if (isnan(v)) return bk_f32_to_bf16(r.f);
  if ((double)r.f != v && (r.u & 1u) == 0) r.u += fabs((double)r.f) > fabs(v) ? UINT32_MAX : 1u;
  return bk_f32_to_bf16(r.f);
}

/* ---- single elements; `at` is in elements from the tensor's first ---- */
static inline double bk_ref_get(const bk_tensor *t, int64_t at) {
  const void *p = bk_tensor_data(t);
  switch (t->dtype) {
    case BK_F32: return (double)((const float *)p)[at];
    case BK_BF16: return (double)bk_bf16_to_f32(((const uint16_t *)p)[at]);
    case BK_F64: return ((const double *)p)[at];
    case BK_I32: return (double)((const int32_t *)p)[at];
    case BK_I64: return (double)((const int64_t *)p)[at];
    case BK_U8: return (double)((const uint8_t *)p)[at];
    default: return NAN;
  }
}

/* Float dtypes only. */
static inline void bk_ref_set(const bk_tensor *t, int64_t at, double v) {
  void *p = bk_tensor_data(t);
  switch (t->dtype) {
    case BK_F32: ((float *)p)[at] = (float)v; break;
    case BK_BF16: ((uint16_t *)p)[at] = bk_ref_bf16(v); break;
    case BK_F64: ((double *)p)[at] = v; break;
    default: break;
  }
}

static inline int64_t at1(const bk_tensor *t, int64_t i) { return i * t->stride[0]; }
static inline int64_t at2(const bk_tensor *t, int64_t i, int64_t j) {
  return at1(t, i) + j * t->stride[1];
}
static inline int64_t at3(const bk_tensor *t, int64_t i, int64_t j, int64_t k) {
  return at2(t, i, j) + k * t->stride[2];
}
static inline int64_t at4(const bk_tensor *t, int64_t i, int64_t j, int64_t k, int64_t l) {
  return at3(t, i, j, k) + l * t->stride[3];
}

static inline double get1(const bk_tensor *t, int64_t i) { return bk_ref_get(t, at1(t, i)); }
static inline double get2(const bk_tensor *t, int64_t i, int64_t j) {
  return bk_ref_get(t, at2(t, i, j));
}
static inline double get3(const bk_tensor *t, int64_t i, int64_t j, int64_t k) {
  return bk_ref_get(t, at3(t, i, j, k));
}
static inline void set1(const bk_tensor *t, int64_t i, double v) { bk_ref_set(t, at1(t, i), v); }
static inline void set2(const bk_tensor *t, int64_t i, int64_t j, double v) {
  bk_ref_set(t, at2(t, i, j), v);
}
static inline void set3(const bk_tensor *t, int64_t i, int64_t j, int64_t k, double v) {
  bk_ref_set(t, at3(t, i, j, k), v);
}
/* t = v, or t += v where `accumulate`. */
static inline void put1(const bk_tensor *t, int64_t i, double v, bool accumulate) {
  set1(t, i, accumulate ? get1(t, i) + v : v);
}
static inline void put2(const bk_tensor *t, int64_t i, int64_t j, double v, bool accumulate) {
  set2(t, i, j, accumulate ? get2(t, i, j) + v : v);
}
static inline void put3(const bk_tensor *t, int64_t i, int64_t j, int64_t k, double v,
                        bool accumulate) {
  set3(t, i, j, k, accumulate ? get3(t, i, j, k) + v : v);
}

/* i32 tensors: ids, offsets, choices. */
static inline int32_t *bk_ref_int(const bk_tensor *t, int64_t at) {
  return (int32_t *)bk_tensor_data(t) + at;
}
static inline int32_t geti1(const bk_tensor *t, int64_t i) { return *bk_ref_int(t, at1(t, i)); }
static inline int32_t geti2(const bk_tensor *t, int64_t i, int64_t j) {
  return *bk_ref_int(t, at2(t, i, j));
}
/* An optional i32 [1] operand: 0 where absent. */
static inline int64_t bk_ref_past(const bk_tensor *t) {
  return bk_tensor_present(t) ? geti1(t, 0) : 0;
}

/* ---- rows (convert.c): count elements from `at`, `stride` apart, to and from dense doubles;
 * one dtype switch a row ---- */
void bk_ref_load(const bk_tensor *t, int64_t at, int64_t stride, int64_t count, double *dst);
void bk_ref_store(const bk_tensor *t, int64_t at, int64_t stride, int64_t count, const double *src);

/* ---- shared arithmetic ---- */
/* c = alpha a b (+ c) on two-dimensional views; gemm.c. */
void bk_ref_matmul(const bk_tensor *a, const bk_tensor *b, const bk_tensor *c, double alpha,
                   bool accumulate);
static inline double bk_ref_sigmoid(double x) {
  return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}
static inline double bk_ref_dot(const double *a, const double *b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
  return sum;
}

/* ---- kernels: bk_ref_<op>, one launch function per op, and prepare functions where an op needs
 * a workspace ---- */
#define BK_REF_LAUNCH(name)                                                           \
  bk_status bk_ref_##name(bk_stream *stream BK_UNUSED, const bk_plan *plan BK_UNUSED, \
                          const void *args, bk_place workspace BK_UNUSED)
#define BK_REF_PREPARE(name)                                                       \
  bk_status bk_ref_##name##_prepare(bk_device *device BK_UNUSED, const void *args, \
                                    void **state BK_UNUSED, size_t *workspace_bytes)
#define BK_REF_ACCEPTS(name) \
  bool bk_ref_##name##_accepts(const bk_device *device BK_UNUSED, const void *args)

BK_REF_LAUNCH(copy);
BK_REF_ACCEPTS(copy);
BK_REF_LAUNCH(add);
BK_REF_LAUNCH(sum);
BK_REF_LAUNCH(gemm);
BK_REF_LAUNCH(grouped_gemm);
BK_REF_LAUNCH(grouped_wgrad);
BK_REF_LAUNCH(rmsnorm);
BK_REF_LAUNCH(rmsnorm_bwd);
BK_REF_LAUNCH(rope);
BK_REF_LAUNCH(cache_write);
BK_REF_LAUNCH(attention);
BK_REF_PREPARE(attention);
BK_REF_LAUNCH(attention_bwd);
BK_REF_PREPARE(attention_bwd);
BK_REF_LAUNCH(swiglu);
BK_REF_LAUNCH(swiglu_bwd);
BK_REF_LAUNCH(embed);
BK_REF_LAUNCH(embed_bwd);
BK_REF_PREPARE(embed_bwd);
BK_REF_LAUNCH(cross_entropy);
BK_REF_LAUNCH(router);
BK_REF_PREPARE(router);
BK_REF_LAUNCH(router_bwd);
BK_REF_LAUNCH(moe_index);
BK_REF_LAUNCH(permute);
BK_REF_LAUNCH(unpermute);
BK_REF_LAUNCH(unpermute_bwd);
BK_REF_LAUNCH(balance);
BK_REF_LAUNCH(sumsq);
BK_REF_LAUNCH(clip);
BK_REF_LAUNCH(adamw);
BK_REF_LAUNCH(hc_expand);
BK_REF_LAUNCH(hc_collapse);
BK_REF_LAUNCH(hc_rms);
BK_REF_LAUNCH(hc_rms_bwd);
BK_REF_LAUNCH(hc_logits);
BK_REF_LAUNCH(hc_logits_bwd);
BK_REF_LAUNCH(hc_gates);
BK_REF_LAUNCH(hc_gates_bwd);
BK_REF_LAUNCH(sinkhorn);
BK_REF_ACCEPTS(sinkhorn);
BK_REF_LAUNCH(sinkhorn_bwd);
BK_REF_ACCEPTS(sinkhorn_bwd);
BK_REF_PREPARE(sinkhorn_bwd);
BK_REF_LAUNCH(hc_perm);
BK_REF_ACCEPTS(hc_perm);
BK_REF_LAUNCH(hc_perm_bwd);
BK_REF_ACCEPTS(hc_perm_bwd);
BK_REF_LAUNCH(hc_tanh);
BK_REF_LAUNCH(hc_tanh_bwd);
BK_REF_LAUNCH(hc_pre);
BK_REF_LAUNCH(hc_pre_bwd);
BK_REF_LAUNCH(hc_res);
BK_REF_LAUNCH(hc_res_bwd);
BK_REF_ACCEPTS(hc_res_bwd);
BK_REF_LAUNCH(hc_post);
BK_REF_LAUNCH(hc_post_bwd);

#endif
