/* kromhc (arXiv 2601.21579): n = 2^K streams. comb is the Kronecker product of K matrices [[p,
 * 1-p], [1-p, p]], p = softmax over a pair of logits (identity, swap), with the first factor
 * outermost. It is exactly doubly stochastic, with 2K logits where mhc has n*n, but of all such
 * matrices it reaches only those with K degrees of freedom. pre and post are as in mhc. */
#include "models/connections/streams.h"

/* log2(n) */
static int factors(int n) {
  int count = 0;
  while (1 << count < n) count++;
  return count;
}
static int rows(int n) { return 2 * n + 2 * factors(n); }

/* In every pair nearly the identity alone. */
static void identity(double *values, int n) {
  for (int i = 0; i < 2 * factors(n); i++) values[i] = i % 2 == 0 ? 0.0 : -8.0;
}

/* Beside the gates each entry of comb takes K products and K differences. */
static double flops(double logits, double maps, double comb, int n, int iters) {
  return bk_streams_gates_flops(logits, maps, comb, n, iters) + 2 * comb * factors(n);
}

/* The gates come from the first 2n columns, comb from the K pairs behind them. */
static void compose_maps(const bk_hc_maps_args *a, bk_composition *c) {
  bk_tensor logits = bk_streams_compose_gates(a, c);
  BK_COMPOSE(c, HC_KRON, hc_kron, .logits = bk_streams_comb_columns(logits, a->n), .comb = a->comb);
}

/* dlogits gets the gates' part, then that of comb, and then goes through the logits as a whole. */
static void compose_maps_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c) {
  bk_streams_logits l = bk_streams_compose_gates_bwd(a, c);
  BK_COMPOSE(c, HC_KRON_BWD, hc_kron_bwd, .logits = bk_streams_comb_columns(l.logits, a->n),
             .dcomb = a->dcomb, .dlogits = bk_streams_comb_columns(l.dlogits, a->n));
  bk_streams_compose_logits_bwd(a, c, &l);
}

const bk_connection_kind bk_connection_kromhc = {
    .kind = BK_HC_KROMHC,
    .name = "kromhc",
    .summary = "mixing as a Kronecker product of log2(n) mixtures of two",
    .max_streams = BK_HC_MAX_N,
    .powers_of_two = true,
    BK_STREAMS_MIXED_KIND,
};
