/* What the kinds with n streams share: maps pre, post and comb of every token, made from a
 * projection of its streams (arXiv 2512.24880 eq. 7-9; for hc arXiv 2409.19606 eq. 10-13). For one
 * token with streams x [n,C], flattened to v:
 *   r = sqrt(mean(v^2) + norm_eps);  logits = scale (fn v) / r + base, with one scale a group
 *   pre = sigmoid(logits of pre) + hc_eps;  post = 2 sigmoid(logits of post)
 *   comb from the other logits, as the kind has it
 *   y = sum_m pre[m] x[m];  h = rmsnorm(y);  x'[k] = post[k] f + sum_m comb[m][k] x[m]
 * A kind says how large the projection is and how the maps come from it; the calls are the same.
 * The paper's H_pre, H_post and H_res are pre, post and the transpose of comb.
 *
 * What is kept of a token: proj [R], the raw products fn v; rinv, 1 / r; pre [n], post [n], comb
 * [n,n]. The logits are not kept: the backward makes them again from proj and rinv. All of these
 * are in ct, whatever dtype the streams have, as in section 4.3.1 of the mHC paper. */
#ifndef BK_STREAMS_H
#define BK_STREAMS_H

#include "models/connections/connection.h"
#include "ops/ops.h"

#include <math.h>

/* The order of the kept tensors in bk_mix_acts.map and of the parameters in bk_connection.param.
 * The shapes are PROJ [N,R] (hc: [Nn,R]), RINV [N] ([Nn]), PRE and POST [N,n], COMB [N,n,n]. */
enum { BK_STREAMS_PROJ, BK_STREAMS_RINV, BK_STREAMS_PRE, BK_STREAMS_POST, BK_STREAMS_COMB };
enum { BK_STREAMS_FN, BK_STREAMS_BASE, BK_STREAMS_SCALE };

/* These are the calls of all kinds with n streams, and of the learned head (streams.c). */
extern const bk_connection_calls bk_streams_calls;

/* ---- parameters: fn [R, nC] (hc: [R, C]), base [Q], scale [G] ---- */
/* R rows and Q entries of base depend on the kind; G is 3 (pre, post, comb), 2 without comb, 1 for
 * the head. Only fn is a matrix and decays: HC (arXiv 2409.19606) leaves the static parts out of
 * weight decay. */
#define BK_STREAMS_PARAMS(first_base, base_from_plain, first_scale, scale_from_plain) \
  {                                                                                   \
    {"fn", 2, bk_streams_fn_shape, true, NULL, NULL},                                 \
        {"base", 1, bk_streams_base_shape, false, first_base, base_from_plain},       \
        {"scale", 1, bk_streams_scale_shape, false, first_scale, scale_from_plain},   \
  }
/* The parameters of a kind with sigmoid gates. */
#define BK_STREAMS_GATED_PARAMS                                                                \
  BK_STREAMS_PARAMS(bk_streams_first_base, bk_streams_base_from_plain, bk_streams_first_scale, \
                    bk_streams_scale_from_plain)
/* The members of a kind's table that has sigmoid gates and makes comb from the logits behind
 * theirs. Its file defines the functions rows, identity, flops, compose_maps and
 * compose_maps_bwd. */
#define BK_STREAMS_MIXED_KIND                                                                \
  .rows = rows, .base = rows, .scales = 3, .post = true, .comb = true, .identity = identity, \
  .flops = flops, .compose_maps = compose_maps, .compose_maps_bwd = compose_maps_bwd,        \
  .params = BK_STREAMS_GATED_PARAMS, .calls = &bk_streams_calls
/* These three write the shape of a parameter of a connection with n streams of `width`; for fn it
 * is two numbers, for base and scale one. */
void bk_streams_fn_shape(const bk_connection_kind *kind, int n, int64_t width, int64_t *shape);
void bk_streams_base_shape(const bk_connection_kind *kind, int n, int64_t width, int64_t *shape);
void bk_streams_scale_shape(const bk_connection_kind *kind, int n, int64_t width, int64_t *shape);
/* Scale starts at 0.01 (arXiv 2512.24880, appendix), so that at first the maps hardly depend on
 * the token. */
void bk_streams_first_scale(const bk_connection_kind *kind, double *values, int64_t count, int n,
                            int sublayer);
void bk_streams_scale_from_plain(const bk_connection_kind *kind, double *values, int64_t count,
                                 int n, int sublayer, double hc_eps);
/* The 2n entries of base for sigmoid gates, then kind->identity. All streams begin as copies of
 * the embedding, and equal values would never separate them: stream (sublayer mod n) is therefore
 * read and written most, by logits of 1 against -1. The paper gives no values; these are those of
 * the mHC-lite authors' public code. */
void bk_streams_first_base(const bk_connection_kind *kind, double *values, int64_t count, int n,
                           int sublayer);
/* The same for a model made from a plain one: every stream is read with 1/n, and the writes sum to
 * n with more on stream (sublayer mod n). Since comb keeps the sum of the streams, their mean then
 * follows the plain model's residual stream, and the logits stay what they were. */
void bk_streams_base_from_plain(const bk_connection_kind *kind, double *values, int64_t count,
                                int n, int sublayer, double hc_eps);
/* Two values of that: the logit of a read of 1/n, and what is written to each stream but the one
 * that is written most. The write that is most is 2 sigmoid(1) = 1.46, what a new model has at that
 * stream, and the rest is (n - 1.46) / (n - 1) each, so that all n of them sum to n. */
double bk_streams_read_logit(int n, double hc_eps);
double bk_streams_write_rest(int n);
#define BK_STREAMS_WRITE_MOST (2 / (1 + exp(-1.0))) /* 2 sigmoid(1) */

/* ---- maps from logits: composed defaults (ops/ops.h) ---- */
/* Records the logits of all rows, and the gates pre and post from the first 2n of them; returns the
 * logits. They lie in scratch memory of the composition, [N,R], and last until its end. */
bk_tensor bk_streams_compose_gates(const bk_hc_maps_args *a, bk_composition *c);
/* The logits, made again, and the gradients of the logits, whose first 2n columns are already
 * filled. A kind with comb fills the other columns and then calls bk_streams_compose_logits_bwd. */
typedef struct bk_streams_logits {
  bk_tensor logits, dlogits;
} bk_streams_logits;
bk_streams_logits bk_streams_compose_gates_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c);
/* From the gradients of the logits to those of proj, rinv, scale and base. */
void bk_streams_compose_logits_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c,
                                   const bk_streams_logits *l);
/* All maps of a kind that has only gates. */
void bk_streams_compose_gates_alone(const bk_hc_maps_args *a, bk_composition *c);
void bk_streams_compose_gates_alone_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c);
/* The columns of the logits behind those of the gates. */
bk_tensor bk_streams_comb_columns(bk_tensor logits, int n);
/* Flops of the logits and the sigmoid gates, for a kind's `flops`. */
double bk_streams_gates_flops(double logits, double maps, double comb, int n, int iters);

#endif
