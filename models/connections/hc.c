/* hc: hyper-connections without a constraint (arXiv 2409.19606 eq. 10-13). fn sees every stream by
 * itself; pre, post and comb are base + scale tanh(.), so that they may be negative and products of
 * many combs may grow. mhc was made against that growth (arXiv 2512.24880). In the paper's symbols
 * pre is A_m, post is B, comb is A_r, whose transpose is applied there as here, and norm is a
 * LayerNorm of each stream, which is an RMSNorm here as in the mHC paper's account. */
#include "models/connections/streams.h"

/* Each stream has one column for pre, one for post, and n for its row of comb. */
static int rows(int n) { return n + 2; }
/* The static parts are n entries of pre, n of post and n*n of comb. */
static int base(int n) { return n * (n + 2); }

/* comb is exactly the identity, since base is the map itself here and not a logit of it. */
static void identity(double *values, int n) {
  for (int i = 0; i < n * n; i++) values[i] = i % (n + 1) == 0 ? 1.0 : 0.0;
}
/* The paper's first values: but for the small part that depends on the token, the new model equals
 * a plain one with its norm in front. Sublayer k reads stream k mod n and writes to all streams,
 * which are not mixed. */
static void first_base(const bk_connection_kind *kind BK_UNUSED, double *values,
                       int64_t count BK_UNUSED, int n, int sublayer) {
  for (int i = 0; i < n; i++) {
    values[i] = i == sublayer % n ? 1.0 : 0.0;
    values[n + i] = 1.0;
  }
  identity(values + 2 * n, n);
}
/* Here base holds the gates themselves, where bk_streams_base_from_plain holds logits of them. */
static void base_from_plain(const bk_connection_kind *kind BK_UNUSED, double *values,
                            int64_t count BK_UNUSED, int n, int sublayer, double hc_eps BK_UNUSED) {
  double rest = bk_streams_write_rest(n);
  for (int i = 0; i < n; i++) {
    values[i] = 1.0 / (double)n;
    values[n + i] = n > 1 && i == sublayer % n ? BK_STREAMS_WRITE_MOST : rest;
  }
  identity(values + 2 * n, n);
}

/* Each entry of a map takes the norm's factor, a tanh, the scale and the base. */
static double flops(double logits BK_UNUSED, double maps, double comb BK_UNUSED, int n BK_UNUSED,
                    int iters BK_UNUSED) {
  return 4 * maps;
}

/* One op makes all three maps, for they differ in nothing but the columns that they take. */
static void compose_maps(const bk_hc_maps_args *a, bk_composition *c) {
  BK_COMPOSE(c, HC_TANH, hc_tanh, .proj = a->proj, .rinv = a->rinv, .scale = a->scale,
             .base = a->base, .pre = a->pre, .post = a->post, .comb = a->comb, .n = a->n);
}

static void compose_maps_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c) {
  BK_COMPOSE(c, HC_TANH_BWD, hc_tanh_bwd, .proj = a->proj, .rinv = a->rinv, .scale = a->scale,
             .dpre = a->dpre, .dpost = a->dpost, .dcomb = a->dcomb, .dproj = a->dproj,
             .drinv = a->drinv, .dscale = a->dscale, .dbase = a->dbase, .n = a->n);
}

const bk_connection_kind bk_connection_hc = {
    .kind = BK_HC_HC,
    .name = "hc",
    .summary = "mixing without a constraint, by tanh",
    .max_streams = BK_HC_MAX_N,
    .signed_maps = true,
    .rows = rows,
    .base = base,
    .scales = 3,
    .per_stream = true,
    .post = true,
    .comb = true,
    .identity = identity,
    .flops = flops,
    .compose_maps = compose_maps,
    .compose_maps_bwd = compose_maps_bwd,
    .params = BK_STREAMS_PARAMS(first_base, base_from_plain, bk_streams_first_scale,
                                bk_streams_scale_from_plain),
    .calls = &bk_streams_calls,
};
