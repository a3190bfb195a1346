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

/* ---- kernels, one line each: K(op, name, dtypes of the leading tensor) has the launch function
 * bk_ref_name; A also bk_ref_name_accepts, a limit on what it takes; P bk_ref_name_prepare, which
 * says how large a workspace is; AP both ---- */
#define BK_REF_FLOATS (BK_DT(BK_F32) | BK_DT(BK_BF16) | BK_DT(BK_F64))
#define BK_REF_INTS BK_DT(BK_I32)
#define BK_REF_KERNELS(K, A, P, AP)                                         \
  A(COPY, copy, BK_REF_FLOATS | BK_REF_INTS | BK_DT(BK_I64) | BK_DT(BK_U8)) \
  K(ADD, add, BK_REF_FLOATS)                                                \
  K(SUM, sum, BK_REF_FLOATS)                                                \
  K(GEMM, gemm, BK_REF_FLOATS)                                              \
  K(GROUPED_GEMM, grouped_gemm, BK_REF_FLOATS)                              \
  K(GROUPED_WGRAD, grouped_wgrad, BK_REF_FLOATS)                            \
  K(RMSNORM, rmsnorm, BK_REF_FLOATS)                                        \
  K(RMSNORM_BWD, rmsnorm_bwd, BK_REF_FLOATS)                                \
  K(ROPE, rope, BK_REF_FLOATS)                                              \
  K(CACHE_WRITE, cache_write, BK_REF_FLOATS)                                \
  P(ATTENTION, attention, BK_REF_FLOATS)                                    \
  P(ATTENTION_BWD, attention_bwd, BK_REF_FLOATS)                            \
  K(SWIGLU, swiglu, BK_REF_FLOATS)                                          \
  K(SWIGLU_BWD, swiglu_bwd, BK_REF_FLOATS)                                  \
  K(EMBED, embed, BK_REF_INTS)                                              \
  P(EMBED_BWD, embed_bwd, BK_REF_INTS)                                      \
  K(CROSS_ENTROPY, cross_entropy, BK_REF_FLOATS)                            \
  P(ROUTER, router, BK_REF_FLOATS)                                          \
  K(ROUTER_BWD, router_bwd, BK_REF_FLOATS)                                  \
  K(MOE_INDEX, moe_index, BK_REF_INTS)                                      \
  K(PERMUTE, permute, BK_REF_FLOATS)                                        \
  K(UNPERMUTE, unpermute, BK_REF_FLOATS)                                    \
  K(UNPERMUTE_BWD, unpermute_bwd, BK_REF_FLOATS)                            \
  K(BALANCE, balance, BK_REF_INTS)                                          \
  K(SUMSQ, sumsq, BK_REF_FLOATS)                                            \
  K(CLIP, clip, BK_REF_FLOATS)                                              \
  K(ADAMW, adamw, BK_REF_FLOATS)                                            \
  K(HC_EXPAND, hc_expand, BK_REF_FLOATS)                                    \
  K(HC_COLLAPSE, hc_collapse, BK_REF_FLOATS)                                \
  K(HC_RMS, hc_rms, BK_REF_FLOATS)                                          \
  K(HC_RMS_BWD, hc_rms_bwd, BK_REF_FLOATS)                                  \
  K(HC_LOGITS, hc_logits, BK_REF_FLOATS)                                    \
  K(HC_LOGITS_BWD, hc_logits_bwd, BK_REF_FLOATS)                            \
  K(HC_GATES, hc_gates, BK_REF_FLOATS)                                      \
  K(HC_GATES_BWD, hc_gates_bwd, BK_REF_FLOATS)                              \
  A(SINKHORN, sinkhorn, BK_REF_FLOATS)                                      \
  AP(SINKHORN_BWD, sinkhorn_bwd, BK_REF_FLOATS)                             \
  A(HC_PERM, hc_perm, BK_REF_FLOATS)                                        \
  A(HC_PERM_BWD, hc_perm_bwd, BK_REF_FLOATS)                                \
  K(HC_KRON, hc_kron, BK_REF_FLOATS)                                        \
  K(HC_KRON_BWD, hc_kron_bwd, BK_REF_FLOATS)                                \
  K(HC_TANH, hc_tanh, BK_REF_FLOATS)                                        \
  K(HC_TANH_BWD, hc_tanh_bwd, BK_REF_FLOATS)                                \
  K(HC_PRE, hc_pre, BK_REF_FLOATS)                                          \
  K(HC_PRE_BWD, hc_pre_bwd, BK_REF_FLOATS)                                  \
  K(HC_RES, hc_res, BK_REF_FLOATS)                                          \
  A(HC_RES_BWD, hc_res_bwd, BK_REF_FLOATS)                                  \
  K(HC_POST, hc_post, BK_REF_FLOATS)                                        \
  K(HC_POST_BWD, hc_post_bwd, BK_REF_FLOATS)

#define BK_REF_LAUNCH(name) BK_LAUNCH_FN(bk_ref_##name)
#define BK_REF_ACCEPTS(name) BK_ACCEPTS(bk_ref_##name##_accepts)
#define BK_REF_PREPARE(name) BK_PREPARE(bk_ref_##name##_prepare)
#define BK_REF_DECLARE_K(ID, name, dtypes) BK_REF_LAUNCH(name);
#define BK_REF_DECLARE_A(ID, name, dtypes) \
  BK_REF_LAUNCH(name);                     \
  BK_REF_ACCEPTS(name);
#define BK_REF_DECLARE_P(ID, name, dtypes) \
  BK_REF_LAUNCH(name);                     \
  BK_REF_PREPARE(name);
#define BK_REF_DECLARE_AP(ID, name, dtypes) BK_REF_DECLARE_A(ID, name, ) BK_REF_PREPARE(name);
BK_REF_KERNELS(BK_REF_DECLARE_K, BK_REF_DECLARE_A, BK_REF_DECLARE_P, BK_REF_DECLARE_AP)

#endif
