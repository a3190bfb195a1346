/* The residual connection alone, around a sublayer F of the caller's, for training code that is not
 * this library's. doc/embedding.md has an example.
 *
 * Streams x [N,n,C] take the place of the residual stream [N,C], for N tokens, n streams and width
 * C. All arrays are dense floats in host memory.
 *   mix:    pre [N,n], post [N,n], comb [N,n,n] = maps(x)
 *           h = sum_m pre[m] x[m]                       h [N,C] is the input of F
 *   F:      f = F(h)                                    the caller's, with the norm in front of it
 *   merge:  x'[k] = post[k] f + sum_m comb[m][k] x[m]   x' [N,n,C] are the next streams
 * For mhc the maps are, with r = sqrt(mean(v^2) + norm_eps) and v a token's n streams one after the
 * other: logits = scale (fn v) / r + base; pre = sigmoid, post = 2 sigmoid, comb = Sinkhorn's
 * iteration of the logits (arXiv 2512.24880, equations 7 to 9). doc/numerics.md has the formulas of
 * all kinds. Before the first sublayer every stream is a copy of the embedding, and after the last
 * one the streams are summed.
 *
 * One object is one connection, with its parameters, their gradients, and what the backward pass
 * needs of one forward pass. The calls come in this order, all with the N that the object was made
 * for; a call out of order is BK_ERR_ARGUMENT:
 *   bk_residual_mix, F, bk_residual_merge, ..., bk_residual_merge_bwd, F's backward,
 *   bk_residual_mix_bwd
 * bk_residual_mix may be called again without a backward pass. x and f are read again in the
 * backward pass: they stay the caller's, who leaves them unchanged until then. On ref and cpu the
 * arrays are used where they lie; other devices get copies. Nothing is allocated after creation. */
#ifndef BIRKHOFF_RESIDUAL_H
#define BIRKHOFF_RESIDUAL_H

#include <birkhoff/device.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_residual bk_residual;

typedef struct bk_residual_options {
  bk_hc_kind kind;    /* any but BK_HC_PLAIN and BK_HC_HEAD */
  int streams;        /* n: 1 to 8; some kinds take fewer, and the error says which */
  int64_t width;      /* C */
  int64_t tokens;     /* N */
  int sinkhorn_iters; /* mhc: 1 to 64; 0 means 20 */
  double hc_eps;   /* in the maps of all kinds but hc: 0 is the paper's form, 1e-6 DeepSeek-V4's */
  double norm_eps; /* > 0; 0 means 1e-6 */
  /* The number of this sublayer, from 0. Stream (sublayer mod n) starts as the one that is read and
   * written most. */
  int sublayer;
  /* fn starts as normal(0, 0.02), with other values in each sublayer, and scale at 0.01. base
   * starts such that the streams differ, because equal streams would never separate. */
  uint64_t seed;
} bk_residual_options;

/* The device must outlive the connection. BK_ERR_ARGUMENT for options that are out of range or too
 * large for the device. */
BK_API bk_status bk_residual_create(bk_device *device, const bk_residual_options *options,
                                    bk_residual **residual);
BK_API void bk_residual_destroy(bk_residual *residual); /* NULL is allowed */

/* Reads the streams: x [N,n,C] gives h [N,C]. */
BK_API bk_status bk_residual_mix(bk_residual *residual, const float *x, float *h);
/* Writes the streams: f [N,C] gives out [N,n,C], which must not overlap x. */
BK_API bk_status bk_residual_merge(bk_residual *residual, const float *f, float *out);
/* From dout [N,n,C], the gradient of out: df [N,C], and dx [N,n,C], the part of the gradient of x
 * that bypasses F. dx may be dout. */
BK_API bk_status bk_residual_merge_bwd(bk_residual *residual, const float *dout, float *dx,
                                       float *df);
/* From dh [N,C], the gradient of h: adds what comes through the mix to dx [N,n,C], which is as
 * bk_residual_merge_bwd left it, and to the gradients of fn, base and scale. */
BK_API bk_status bk_residual_mix_bwd(bk_residual *residual, const float *dh, float *dx);

/* Writes the maps of the last mix: pre [N,n], post [N,n], and comb [N,n,n] by source and
 * destination, for ihc the identity. Each may be NULL. */
BK_API bk_status bk_residual_maps(bk_residual *residual, float *pre, float *post, float *comb);

/* The parameters, for an optimiser of the caller's. base and scale should not decay. fn is [R, nC]
 * (hc: [R, C]), base [Q] and scale [G]; doc/connections.md has R, Q and G of every kind. */
typedef enum bk_residual_param {
  BK_RESIDUAL_FN,
  BK_RESIDUAL_BASE,
  BK_RESIDUAL_SCALE,
  BK_RESIDUAL_PARAMS
} bk_residual_param;
/* The number of elements of a parameter. */
BK_API int64_t bk_residual_count(const bk_residual *residual, bk_residual_param param);
BK_API bk_status bk_residual_get(bk_residual *residual, bk_residual_param param, float *values);
BK_API bk_status bk_residual_set(bk_residual *residual, bk_residual_param param,
                                 const float *values);
/* Gradients are zero at creation. They add up from one bk_residual_mix_bwd to the next until they
 * are zeroed. */
BK_API bk_status bk_residual_get_grad(bk_residual *residual, bk_residual_param param,
                                      float *values);
BK_API bk_status bk_residual_zero_grads(bk_residual *residual);

#ifdef __cplusplus
}
#endif
#endif
