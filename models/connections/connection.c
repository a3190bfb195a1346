/* From a connection to the calls of its kind (connection.h). A kind without a fused form of two
 * neighbouring calls gets them one after the other. No function here knows a kind; a new one needs
 * no change in this file. */
#include "models/connections/connection.h"

/* Both neighbours have the same kind: a model has one kind for all its sublayers. */
static const bk_connection_calls *calls_of(const bk_connection *c) { return c->kind->calls; }

bk_status bk_connection_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a) {
  return calls_of(c)->mix(rec, c, a);
}

bk_status bk_connection_merge(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                              bk_tensor out) {
  return calls_of(c)->merge(rec, c, a, out);
}

bk_status bk_connection_merge_mix(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                  const bk_connection *c_next, const bk_mix_acts *next) {
  if (calls_of(c)->merge_mix) return calls_of(c)->merge_mix(rec, c, a, c_next, next);
  BK_TRY(bk_connection_merge(rec, c, a, next->x));
  return bk_connection_mix(rec, c_next, next);
}

bk_status bk_connection_rebuild(bk_recorder *rec, const bk_connection *const *c,
                                const bk_mix_acts *a, int count) {
  return calls_of(c[0])->rebuild(rec, c, a, count);
}

bk_status bk_connection_merge_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                  const bk_mix_grads *g, bk_tensor dout, bk_tensor dx,
                                  bk_tensor df) {
  return calls_of(c)->merge_bwd(rec, c, a, g, dout, dx, df);
}

bk_status bk_connection_mix_bwd(bk_recorder *rec, const bk_connection *c, const bk_mix_acts *a,
                                const bk_mix_grads *g, bk_tensor dh, bk_tensor D, bool accumulate) {
  return calls_of(c)->mix_bwd(rec, c, a, g, dh, D, accumulate);
}

/* Without a fused form mix_bwd completes D, the gradient of the streams between the two sublayers,
 * and merge_bwd of the sublayer before rewrites it in place. */
bk_status bk_connection_merge_mix_bwd(bk_recorder *rec, const bk_connection *c,
                                      const bk_connection *c_prev, const bk_mix_acts *a,
                                      const bk_mix_grads *g, const bk_mix_acts *prev,
                                      const bk_mix_grads *g_prev, bk_tensor dh, bk_tensor D,
                                      bk_tensor df) {
  if (calls_of(c)->merge_mix_bwd)
    return calls_of(c)->merge_mix_bwd(rec, c, a, g, prev, g_prev, dh, D, df);
  BK_TRY(bk_connection_mix_bwd(rec, c, a, g, dh, D, true));
  return bk_connection_merge_bwd(rec, c_prev, prev, g_prev, D, D, df);
}

void bk_connection_show(const bk_connection *c, const bk_mix_acts *a, bk_tensor *pre,
                        bk_tensor *post, bk_tensor *comb) {
  *pre = *post = *comb = (bk_tensor){0};
  if (calls_of(c)->show) calls_of(c)->show(a, pre, post, comb);
}

int64_t bk_connection_carry(const bk_connection_kind *kind, int n) {
  return kind->calls->carry ? kind->calls->carry(n) : 0;
}

bk_status bk_connection_adds(bk_recorder *rec, const bk_connection *c) {
  if (c->norm) BK_TRY(bk_record_adds_to(rec, c->norm));
  for (int i = 0; i < BK_CONNECTION_MAX_PARAMS && c->param[i]; i++)
    BK_TRY(bk_record_adds_to(rec, c->param[i]));
  return BK_OK;
}
