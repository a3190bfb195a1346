/* mhc_lite (arXiv 2601.05732): comb is a mixture of the n! permutations, with weights by softmax.
 * By the theorem of Birkhoff and von Neumann every doubly stochastic matrix is one, so that comb
 * is exactly doubly stochastic without iterations, at the price of n! logits. pre and post are as
 * in mhc. */
#include "models/connections/streams.h"

/* n! grows fast: 24 for n = 4, 120 for n = 5, where max_streams ends. */
static int rows(int n) { return 2 * n + bk_factorial(n); }

/* Nearly the identity alone, which is the first of the permutations in lexicographic order. */
static void identity(double *values, int n) {
  for (int i = 0; i < bk_factorial(n); i++) values[i] = i == 0 ? 0.0 : -8.0;
}

/* There is a softmax over the permutations, each of which adds to n entries of comb. */
static double flops(double logits, double maps, double comb, int n, int iters) {
  return bk_streams_gates_flops(logits, maps, comb, n, iters) + (4 + n) * logits;
}

/* The weights of the permutations are the columns behind the gates'. */
static void compose_maps(const bk_hc_maps_args *a, bk_composition *c) {
  bk_tensor logits = bk_streams_compose_gates(a, c);
  BK_COMPOSE(c, HC_PERM, hc_perm, .logits = bk_streams_comb_columns(logits, a->n), .comb = a->comb,
             .n = a->n);
}

static void compose_maps_bwd(const bk_hc_maps_bwd_args *a, bk_composition *c) {
  bk_streams_logits l = bk_streams_compose_gates_bwd(a, c);
  BK_COMPOSE(c, HC_PERM_BWD, hc_perm_bwd, .logits = bk_streams_comb_columns(l.logits, a->n),
             .dcomb = a->dcomb, .dlogits = bk_streams_comb_columns(l.dlogits, a->n), .n = a->n);
  bk_streams_compose_logits_bwd(a, c, &l);
}

const bk_connection_kind bk_connection_mhc_lite = {
    .kind = BK_HC_MHC_LITE,
    .name = "mhc_lite",
    .summary = "mixing as a mixture of the n! permutations",
    .max_streams = BK_HC_PERM_MAX_N,
    BK_STREAMS_MIXED_KIND,
};
