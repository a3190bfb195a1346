/* The residual connection alone, around a sublayer F of the caller's: for training code that is
 * not this library's.
 *
 * Streams x [N,n,C] take the place of the residual stream [N,C]; N tokens, n streams, width C,
 * dense float arrays of the host.
 *   mix:    pre [N,n], post [N,n], comb [N,n,n] = maps(x);  h = sum_m pre[m] x[m]          h
 *           [N,C] is F's input
 *   F:      f = F(h)                                                                        the
 *           caller's, norm included
 *   merge:  x'[k] = post[k] f + sum_m comb[m][k] x[m]                                       x'
 *           [N,n,C] are the next streams
 * maps, with r = sqrt(mean(v^2) + norm_eps) of a token's flattened streams v: logits = scale (fn
 * v) / r + base; pre = sigmoid, post = 2 sigmoid, comb = Sinkhorn (mHC, arXiv 2512.24880 eq.
 * 7-9; the kinds: bk_hc_kind). Before the first sublayer every stream is a copy of the
 * embedding; after the last one the streams are summed.
 *
 * One object is one connection with its parameters and their gradients, and what the backward
 * needs of one forward. The calls come in this order, all with the N the object was made for:
 *   bk_residual_mix, the caller's F, bk_residual_merge, ..., bk_residual_merge_bwd, the caller's
 *   F backwards, bk_residual_mix_bwd
 * mix may come again without a backward. x and f are read again in the backward: they stay the
 * caller's and unchanged until then. On ref and cpu the arrays are used where they lie; other
 * devices get copies. Nothing is allocated after creation. A call out of order is
 * BK_ERR_ARGUMENT. */
#ifndef BIRKHOFF_RESIDUAL_H
#define BIRKHOFF_RESIDUAL_H

#include <birkhoff/device.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_residual bk_residual;

typedef struct bk_residual_options {
  bk_hc_kind kind;    /* any but BK_HC_PLAIN and BK_HC_HEAD */
  int streams;        /* n: 1 to 8, some kinds fewer: an error says which */
  int64_t width;      /* C */
  int64_t tokens;     /* N */
  int sinkhorn_iters; /* mhc: 1 to 64; 0 means 20 */
  double hc_eps;      /* of the maps: 0 is the paper's form, 1e-6 DeepSeek-V4's; not for hc */
  double norm_eps;    /* > 0; 0 means 1e-6 */
  /* number of this sublayer, from 0: the stream sublayer mod n starts as the one that is read
   * and written most */
  int sublayer;
  /* fn starts as normal(0, 0.02), different from sublayer to sublayer; scale at 0.01; base such
   * that the streams differ: equal ones would never separate */
  uint64_t seed;
} bk_residual_options;

/* The device must outlive the connection. Options out of range, or too large for the device:
 * BK_ERR_ARGUMENT. */
BK_API bk_status bk_residual_create(bk_device *device, const bk_residual_options *options,
                                    bk_residual **residual);
BK_API void bk_residual_destroy(bk_residual *residual); /* NULL is allowed */

/* x [N,n,C] -> h [N,C] */
BK_API bk_status bk_residual_mix(bk_residual *residual, const float *x, float *h);
/* f [N,C] -> out [N,n,C], which must not overlap x */
BK_API bk_status bk_residual_merge(bk_residual *residual, const float *f, float *out);
/* dout [N,n,C], the gradient of out -> df [N,C], and dx [N,n,C], the part of the streams'
 * gradient that bypasses F. dx may be dout. */
BK_API bk_status bk_residual_merge_bwd(bk_residual *residual, const float *dout, float *dx,
                                       float *df);
/* dh [N,C], the gradient of h: adds to dx [N,n,C] what comes through the mix (dx as merge_bwd
 * left it), and to the gradients of fn, base and scale. */
BK_API bk_status bk_residual_mix_bwd(bk_residual *residual, const float *dh, float *dx);

/* Maps of the last mix: pre [N,n], post [N,n], comb [N,n,n] (source, destination; for ihc the
 * identity); each may be NULL. */
BK_API bk_status bk_residual_maps(bk_residual *residual, float *pre, float *post, float *comb);

/* Parameters, for an optimiser of the caller's; no weight decay on base and scale.
 * fn is [R, nC] (hc: [R, C]), base [Q], scale [G]; doc/connections.md has R, Q and G of every
 * kind. */
typedef enum bk_residual_param {
  BK_RESIDUAL_FN,
  BK_RESIDUAL_BASE,
  BK_RESIDUAL_SCALE,
  BK_RESIDUAL_PARAMS
} bk_residual_param;
BK_API int64_t bk_residual_count(const bk_residual *residual,
                                 bk_residual_param param); /* elements */
BK_API bk_status bk_residual_get(bk_residual *residual, bk_residual_param param, float *values);
BK_API bk_status bk_residual_set(bk_residual *residual, bk_residual_param param,
                                 const float *values);
/* Gradients add up from mix_bwd to mix_bwd until they are zeroed; zero at creation. */
BK_API bk_status bk_residual_get_grad(bk_residual *residual, bk_residual_param param,
                                      float *values);
BK_API bk_status bk_residual_zero_grads(bk_residual *residual);

#ifdef __cplusplus
}
#endif
#endif
