/* What the kinds with n streams share: maps pre, post and comb of every token, made from a
 * projection of its streams (fn, base, scale).
 *   y = sum_m pre[m] x[m];  h = rmsnorm(y);  x'[k] = post[k] f + sum_m comb[m][k] x[m]
 * A kind says how large the projection is and how the maps come from it; the calls are the same. */
#ifndef BK_STREAMS_H
#define BK_STREAMS_H

#include "models/connections/connection.h"
#include "ops/ops.h"

#include <math.h>

enum { BK_STREAMS_PROJ, BK_STREAMS_RINV, BK_STREAMS_PRE, BK_STREAMS_POST, BK_STREAMS_COMB };
enum { BK_STREAMS_FN, BK_STREAMS_BASE, BK_STREAMS_SCALE };

extern const bk_connection_calls bk_streams_calls;

/* ---- parameters: fn [R, nC] (hc: [R, C]), base [Q], scale [G] ---- */
#define BK_STREAMS_PARAMS(first_base, base_from_plain, first_scale, scale_from_plain) \
  {                                                                                   \
    {"fn", 2, bk_streams_fn_shape, true, NULL, NULL},                                 \
        {"base", 1, bk_streams_base_shape, false, first_base, base_from_plain},       \
        {"scale", 1, bk_streams_scale_shape, false, first_scale, scale_from_plain},   \
  }
/* Of the kinds with sigmoid gates. */
#define BK_STREAMS_GATED_PARAMS                                                                \
  BK_STREAMS_PARAMS(bk_streams_first_base, bk_streams_base_from_plain, bk_streams_first_scale, \
                    bk_streams_scale_from_plain)
/* The members of a kind with sigmoid gates and a comb from the logits behind theirs; its file has
 * the functions of these names. */
#define BK_STREAMS_MIXED_KIND                                                                \
  .rows = rows, .base = rows, .scales = 3, .post = true, .comb = true, .identity = identity, \
  .flops = flops, .compose_maps = compose_maps, .compose_maps_bwd = compose_maps_bwd,        \
  .params = BK_STREAMS_GATED_PARAMS, .calls = &bk_streams_calls
void bk_streams_fn_shape(const bk_connection_kind *kind, int n, int64_t width, int64_t *shape);
void bk_streams_base_shape(const bk_connection_kind *kind, int n, int64_t width, int64_t *shape);
void bk_streams_scale_shape(const bk_connection_kind *kind, int n, int64_t width, int64_t *shape);
/* Scale starts at 0.01: the maps hardly depend on the token. */
void bk_streams_first_scale(const bk_connection_kind *kind, double *values, int64_t count, int n,
                            int sublayer);
void bk_streams_scale_from_plain(const bk_connection_kind *kind, double *values, int64_t count,
                                 int n, int sublayer, double hc_eps);
/* The 2n entries of base for sigmoid gates, then kind->identity. The streams must differ, or
 * symmetric values never separate them, so stream (sublayer mod n) is read and written most. */
void bk_streams_first_base(const bk_connection_kind *kind, double *values, int64_t count, int n,
                           int sublayer);
/* The same for a model made from a plain one: reads of 1/n each, writes that sum to n with more on
 * stream (sublayer mod n), so that the mean of the streams follows the plain residual stream. */
void bk_streams_base_from_plain(const bk_connection_kind *kind, double *values, int64_t count,
                                int n, int sublayer, double hc_eps);
/* Of that: the logit of a read of 1/n, and what a stream that is not written most is written. */
double bk_streams_read_logit(int n, double hc_eps);
double bk_streams_write_rest(int n);
#define BK_STREAMS_WRITE_MOST (2 / (1 + exp(-1.0))) /* 2 sigmoid(1) */

/* ---- maps from logits: composed defaults (ops/ops.h) ---- */
/* Logits of all rows, and the gates pre and post from the first 2n; returns the logits. */
bk_tensor bk_streams_compose_gates(const bk_hc_maps_args *a, bk_composition *c);
/* The logits and the place of their gradients, of which the gates' columns are done. */
typedef struct bk_streams_logits {
  bk_tensor logits, dlogits;
} bk_streams_logits;
bk_streams_logits bk_streams_compose_gates_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c);
/* From the gradients of the logits to those of proj, rinv, scale and base. */
void bk_streams_compose_logits_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c,
                                   const bk_streams_logits *l);
/* All maps of a kind that has gates alone. */
void bk_streams_compose_gates_alone(const bk_hc_maps_args *a, bk_composition *c);
void bk_streams_compose_gates_alone_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c);
/* The columns behind the gates'. */
bk_tensor bk_streams_comb_columns(bk_tensor logits, int n);
/* flops of logits and sigmoid gates */
double bk_streams_gates_flops(double logits, double maps, double comb, int n, int iters);

#endif
