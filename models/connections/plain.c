/* plain: the ordinary residual connection with its norm in front, x' = x + F(rmsnorm(x)); x is
 * [N,C]. It has no maps and no streams; the gradient of f is the gradient of the streams. */
#include "models/connections/connection.h"

/* There is no y, since the mix of one stream is the stream itself. */
static bk_status mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a) {
  return bk_record(rec, BK_OP_RMSNORM,
                   &(bk_rmsnorm_args){a->x, c->norm->weight, a->h, a->rstd, c->norm_eps});
}

/* `out` is x of the next sublayer, or the streams after the last. */
static bk_status merge(bk_recorder *rec, const bk_connection *c BK_UNUSED, const bk_mix_acts *a,
                       bk_tensor out) {
  return bk_record(rec, BK_OP_ADD, &(bk_add_args){a->x, a->f, out});
}

/* With plain connections h and rstd are made again, and x of all sublayers but the first. The last
 * sublayer's merge is left out, because its result belongs to the next block. */
static bk_status rebuild(bk_recorder *rec, const bk_connection *const *c, const bk_mix_acts *a,
                         int count) {
  for (int i = 0; i < count; i++) {
    BK_TRY(mix(rec, c[i], &a[i]));
    if (i + 1 < count) BK_TRY(merge(rec, c[i], &a[i], a[i + 1].x));
  }
  return BK_OK;
}

/* Tensors of one shape that begin at one place are the same memory. */
static bool same(bk_tensor a, bk_tensor b) { return a.buffer == b.buffer && a.offset == b.offset; }

/* The gradient of a sum goes to both terms unchanged. In a model dx and df are dout's memory, and
 * nothing is done; a df that a deferred wgrad reads later is a copy, because D changes by then. */
static bk_status merge_bwd(bk_recorder *rec, const bk_connection *c BK_UNUSED,
                           const bk_mix_acts *a BK_UNUSED, const bk_mix_grads *g BK_UNUSED,
                           bk_tensor dout, bk_tensor dx, bk_tensor df) {
  if (!same(dout, dx)) BK_TRY(bk_record(rec, BK_OP_COPY, &(bk_copy_args){dout, dx}));
  return same(dout, df) ? BK_OK : bk_record(rec, BK_OP_COPY, &(bk_copy_args){dout, df});
}

/* D holds the gradient that went past F already, and the one through the norm is added to it. */
static bk_status mix_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                         const bk_mix_grads *g BK_UNUSED, bk_tensor dh, bk_tensor D,
                         bool accumulate) {
  BK_TRY(bk_connection_adds(rec, c));
  return bk_record(rec, BK_OP_RMSNORM_BWD,
                   &(bk_rmsnorm_bwd_args){.x = a->x,
                                          .w = c->norm->weight,
                                          .rstd = a->rstd,
                                          .dy = dh,
                                          .dx = D,
                                          .dw = c->norm->grad,
                                          .accumulate = accumulate});
}

/* There are no maps, no carry and no fused forms. reads_f is false, so that no f is kept without
 * recompute. */
static const bk_connection_calls calls = {
    .mix = mix, .merge = merge, .rebuild = rebuild, .merge_bwd = merge_bwd, .mix_bwd = mix_bwd};

const bk_connection_kind bk_connection_plain = {.kind = BK_HC_PLAIN,
                                                .name = "plain",
                                                .summary = "the ordinary residual stream",
                                                .max_streams = 1,
                                                .calls = &calls};
