/* mhc: manifold-constrained hyper-connections (arXiv 2512.24880 eq. 7-9). H_res = comb^T is doubly
 * stochastic: its rows and columns sum to 1, so that a product of any number of them keeps the
 * mean of the streams and never amplifies. Sinkhorn's iterations on n*n logits make it so
 * approximately: the row sums of H_res, which the last step makes, are exact, and the column sums
 * become so with the iterations. pre and post are sigmoids of 2n more logits. */
#include "models/connections/streams.h"

/* The rows are n logits of pre, n of post and n*n of comb, in this order. */
static int rows(int n) { return n * (n + 2); }

/* Nearly the identity: exp(-8) beside exp(0). The paper gives no values; these are those of the
 * mHC-lite authors' code. */
static void identity(double *values, int n) {
  for (int i = 0; i < n * n; i++) values[i] = i % (n + 1) == 0 ? 0.0 : -8.0;
}

/* The softmax takes exp, sum and division, and each iteration two sums and two divisions. */
static double flops(double logits, double maps, double comb, int n, int iters) {
  return bk_streams_gates_flops(logits, maps, comb, n, iters) + comb * (3 + 4 * (double)iters);
}

/* The last n*n columns as [N,n,n]. */
static bk_tensor comb_logits(bk_tensor logits, int n) {
  return bk_tensor_split(bk_streams_comb_columns(logits, n), 1, n);
}

/* The gates come first, then exp and `iters` rounds of normalisation. With hc_eps > 0 they are
 * DeepSeek-V4's, whose eps acts as a floor on entries that the iterations must scale up
 * (runtime/ops.def, SINKHORN). */
static void compose_maps(const bk_hc_maps_args *a, bk_composition *c) {
  bk_tensor logits = bk_streams_compose_gates(a, c);
  BK_COMPOSE(c, SINKHORN, sinkhorn, .logits = comb_logits(logits, a->n), .comb = a->comb,
             .iters = a->iters, .hc_eps = a->hc_eps);
}

/* SINKHORN_BWD makes the iterates again from the logits and walks them back, as section 4.3.1 has
 * it. */
static void compose_maps_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c) {
  bk_streams_logits l = bk_streams_compose_gates_bwd(a, c);
  BK_COMPOSE(c, SINKHORN_BWD, sinkhorn_bwd, .logits = comb_logits(l.logits, a->n),
             .dcomb = a->dcomb, .dlogits = comb_logits(l.dlogits, a->n), .iters = a->iters,
             .hc_eps = a->hc_eps);
  bk_streams_compose_logits_bwd(a, c, &l);
}

const bk_connection_kind bk_connection_mhc = {
    .kind = BK_HC_MHC,
    .name = "mhc",
    .summary = "mixing doubly stochastic by Sinkhorn's iterations",
    .max_streams = BK_HC_MAX_N,
    .iterates = true,
    BK_STREAMS_MIXED_KIND,
};
