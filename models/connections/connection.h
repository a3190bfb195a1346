/* The residual connection of one sublayer (design.md section 3): mix makes the normed input h of
 * F from the streams x, merge puts F's output f back.
 *   plain:                    h = rmsnorm(x);                                        x' = x + f
 *                             x [N,C]
 *   hc, mhc, mhc_lite, ihc:   maps from x; y = sum_m pre[m] x[m]; h = rmsnorm(y);    x'[k] =
 *                             post[k] f + sum_m comb[m][k] x[m]
 *        x [N,n,C]
 * The learned head is a connection of kind BK_HC_HEAD that only mixes. Backwards: D, the
 * gradient of the streams, is one buffer that is rewritten in place from sublayer to sublayer.
 * Fused neighbours (merge_mix) give the same bits as merge, then mix, on ref and cpu; a backend
 * may add up a projection in another order there, so a model cut into stages may differ from the
 * whole in the last bits. */
#ifndef BK_CONNECTION_H
#define BK_CONNECTION_H

#include "models/program.h"

typedef struct bk_connection {
  bk_hc_kind kind;
  int n, iters;
  int64_t width; /* C */
  double hc_eps, norm_eps;
  bk_param_block *norm;              /* the norm in front of F: [C] */
  bk_param_block *fn, *base, *scale; /* NULL for plain */
} bk_connection;

/* What one sublayer's connection keeps for one micro-batch; tensors that a kind does not have
 * are absent. */
typedef struct bk_mix_acts {
  bk_tensor x;               /* [N,n,C] streams in, or [N,C] */
  bk_tensor proj, rinv;      /* see op.h */
  bk_tensor pre, post, comb; /* [N,n] [N,n] [N,n,n] ct */
  bk_tensor y, h;            /* [N,C] st; plain has no y */
  bk_tensor rstd;            /* [N] ct */
  bk_tensor f;               /* [N,C] F's output */
  bk_tensor carry;           /* [N,carry] ct, from the sublayer before; absent without such */
} bk_mix_acts;

/* Gradients of the maps. dpost and dcomb go from merge_bwd to mix_bwd of the same sublayer. */
typedef struct bk_mix_grads {
  bk_tensor dpre, dpost, dcomb, dproj, drinv;
} bk_mix_grads;

bk_status bk_connection_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a);
bk_status bk_connection_merge(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                              bk_tensor out);
/* Merge of c into next->x, then the mix of the next. */
bk_status bk_connection_merge_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                  const bk_connection *c_next, const bk_mix_acts *next);
/* Recompute: y, h and rstd of `count` neighbouring sublayers (1 to BK_HC_REBUILD_MAX) and the x
 * of all but the first, from the first x, the kept f and maps. */
bk_status bk_connection_rebuild(bk_recorder *rec, const bk_connection *const *c,
                                const bk_mix_acts *a, int count);

/* D is the gradient of the output; becomes the part of the input's gradient that bypasses F; df
 * (plain: D itself, untouched, or where wgrad is deferred a copy of it). */
bk_status bk_connection_merge_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                  const bk_mix_grads *g, bk_tensor D, bk_tensor df);
/* Adds to D (or overwrites it) what comes through the mix; adds parameter gradients. */
bk_status bk_connection_mix_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                const bk_mix_grads *g, bk_tensor dh, bk_tensor D, bool accumulate);
/* mix_bwd of c, then merge_bwd of the sublayer before it. */
bk_status bk_connection_merge_mix_bwd(bk_recorder *rec, const bk_connection *c,
                                      const bk_mix_acts *a, const bk_mix_grads *g,
                                      const bk_mix_acts *prev, const bk_mix_grads *g_prev,
                                      bk_tensor dh, bk_tensor D, bk_tensor df);

/* What a sublayer hands to the next beside the streams, in columns of ct for each token: 0, so
 * there is no such tensor, for all kinds that there are. A connection whose mix is predicted by the
 * sublayer before has some; they are kept and cross ports as the streams do. */
int64_t bk_connection_carry(bk_hc_kind kind, int n);

/* Initial values of base (design.md section 3): v [bk_hc_base_count(kind, n)]. */
void bk_connection_first_base(double *v, bk_hc_kind kind, int n, int sublayer);

#endif
