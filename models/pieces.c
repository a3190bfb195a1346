/* What a step does, as pieces: the sublayers of a chunk forward and backward. This is where the
 * residual connection and F meet: mix, F, merge, with the merge and the mix of the next sublayer
 * as one op; backward is the mirror.
 *
 *   forward    embed, mix 0, then for every sublayer F's pieces and merge
 *   backward   head, merge of the last sublayer, then for every sublayer from the last: F's D
 *              pieces and W pieces, and mix (with the merge of the sublayer before); embed
 *   deferred   the same without W pieces; these, in the same order, are a program of their own
 *
 * With hc_recompute, a block of sublayers is rebuilt before the first of its pieces that needs it
 * (arXiv 2512.24880 section 4.3.2): kept are the streams at the start of each block, every f, and
 * the maps; made again are x, y, h and rstd. With recompute, the inside of F is made again from h
 * just before F's D pieces, and where wgrad is deferred once more before its W pieces: between the
 * two lie other sublayers, which use the same place.
 *
 * What the last sublayers need of both stands in front of everything that reads the gradient of
 * the chunk's output, so that a schedule may run it while that gradient is on its way: the backward
 * pass of a chunk without the head begins with these pieces, all of the part REBUILD. */
#include "models/chunk_priv.h"

/* The merge of a feed-forward sublayer, together with whatever is one op with it, is what the
 * exchange between ranks waits for (section 4.3.3), and therefore urgent. Odd sublayers are
 * feed-forward. */
static bk_lane lane_of_merge(const bk_chunk *c, const bk_sublayer *s) {
  return c->options.merge_stream && s->index % 2 == 1 ? BK_LANE_URGENT : BK_LANE_COMPUTE;
}

/* ---- forward ---- */
static bk_status first_mix(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  const bk_sublayer *l = &c->sublayers[0];
  BK_TRY(bk_record_piece(rec, BK_PART_MIX, BK_PASS_F, l->index, BK_LANE_COMPUTE));
  return bk_connection_mix(rec, &l->connection, &slot->mix[0]);
}

/* The merge of sublayer s and the mix of the next. */
static bk_status merge(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int s) {
  const bk_sublayer *l = &c->sublayers[s];
  const bk_mix_acts *a = &slot->mix[s];
  BK_TRY(bk_record_piece(rec, BK_PART_MERGE, BK_PASS_F, l->index, lane_of_merge(c, l)));
  if (s + 1 == c->n) return bk_connection_merge(rec, &l->connection, a, slot->last);
  return bk_connection_merge_mix(rec, &l->connection, a, &l[1].connection, &a[1]);
}

/* Without the embedding the streams come in through the chunk's port, into mix[0].x. */
static bk_status forward(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  if (c->has_embed) BK_TRY(bk_record_embed(c, rec, slot));
  BK_TRY(first_mix(c, rec, slot));
  for (int s = 0; s < c->n; s++) {
    const bk_sublayer *l = &c->sublayers[s];
    const bk_mix_acts *a = &slot->mix[s];
    BK_TRY(l->ops->forward(rec, l, &slot->f[s], &c->forward[s], a->h, a->f));
    BK_TRY(merge(c, rec, slot, s));
  }
  return BK_OK;
}

/* ---- recompute ---- */
static bk_status rebuild_some(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int first,
                              int count) {
  const bk_connection *connections[BK_HC_REBUILD_MAX];
  for (int i = 0; i < count; i++) connections[i] = &c->sublayers[first + i].connection;
  BK_TRY(
      bk_record_piece(rec, BK_PART_REBUILD, BK_PASS_D, c->sublayers[first].index, BK_LANE_COMPUTE));
  return bk_connection_rebuild(rec, connections, &slot->mix[first], count);
}

/* Rebuilds x, y, h and rstd of the block that ends with sublayer s, from its kept x, the f and the
 * maps. A block may have more sublayers than one call takes: the next call then begins with the
 * last sublayer of the call before, whose x is there by then. */
static bk_status rebuild(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int s) {
  int first = s - s % (int)c->block;
  for (; s - first >= BK_HC_REBUILD_MAX; first += BK_HC_REBUILD_MAX - 1)
    BK_TRY(rebuild_some(c, rec, slot, first, BK_HC_REBUILD_MAX));
  return rebuild_some(c, rec, slot, first, s - first + 1);
}

/* F of a sublayer again, where nothing of it was kept. */
static bk_status rebuild_f(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int s,
                           bk_pass pass) {
  const bk_sublayer *l = &c->sublayers[s];
  if (!bk_chunk_recomputes(c, s)) return BK_OK;
  return l->ops->rebuild(rec, l, &slot->f[s], &c->forward[s], slot->mix[s].h, pass);
}

/* ---- backward ---- */
/* D is rewritten in place, from the gradient after the merge to the one before it. */
static bk_status last_merge_bwd(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  int s = c->n - 1;
  const bk_sublayer *l = &c->sublayers[s];
  BK_TRY(bk_record_piece(rec, BK_PART_MERGE, BK_PASS_D, l->index, lane_of_merge(c, l)));
  return bk_connection_merge_bwd(rec, &l->connection, &slot->mix[s], &slot->grads[s], slot->D,
                                 slot->D, slot->df[s]);
}

/* The backward pass through the mix of sublayer s and the merge of the one before it. The first
 * sublayer has none before it, or its merge lies in another chunk. */
static bk_status mix_bwd(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int s) {
  const bk_sublayer *l = &c->sublayers[s];
  const bk_mix_acts *a = &slot->mix[s];
  const bk_mix_grads *g = &slot->grads[s];
  bk_lane lane = s > 0 ? lane_of_merge(c, l - 1) : BK_LANE_COMPUTE;
  BK_TRY(bk_record_piece(rec, BK_PART_MIX, BK_PASS_D, l->index, lane));
  if (s == 0) return bk_connection_mix_bwd(rec, &l->connection, a, g, slot->dh, slot->D, true);
  return bk_connection_merge_mix_bwd(rec, &l->connection, &l[-1].connection, a, g, a - 1, g - 1,
                                     slot->dh, slot->D, slot->df[s - 1]);
}

static bk_status wgrad(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int s) {
  const bk_sublayer *l = &c->sublayers[s];
  return l->ops->wgrad(rec, l, &slot->f[s], &slot->backward[s], slot->mix[s].h, slot->df[s]);
}

/* A block is rebuilt as late as can be: just before the pass enters it with mix_bwd, whose part
 * for the merge reads the x of the block's last sublayer. F of the last sublayer is there
 * already. */
static bk_status sublayer_bwd(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int s) {
  const bk_sublayer *l = &c->sublayers[s];
  if (s + 1 < c->n) BK_TRY(rebuild_f(c, rec, slot, s, BK_PASS_D));
  BK_TRY(l->ops->dgrad(rec, l, &slot->f[s], &slot->backward[s], slot->df[s], slot->dh));
  if (!c->options.defer_wgrad) BK_TRY(wgrad(c, rec, slot, s));
  if (c->block && s > 0 && s % c->block == 0) BK_TRY(rebuild(c, rec, slot, s - 1));
  return mix_bwd(c, rec, slot, s);
}

static bk_status backward(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  if (c->has_head) BK_TRY(bk_record_head_bwd(c, rec, slot));
  if (c->block) BK_TRY(rebuild(c, rec, slot, c->n - 1));
  BK_TRY(rebuild_f(c, rec, slot, c->n - 1, BK_PASS_D));
  BK_TRY(last_merge_bwd(c, rec, slot));
  for (int s = c->n - 1; s >= 0; s--) BK_TRY(sublayer_bwd(c, rec, slot, s));
  return c->has_embed ? bk_record_embed_bwd(c, rec, slot) : BK_OK;
}

static bk_status deferred_wgrad(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  for (int s = c->n - 1; s >= 0; s--) {
    BK_TRY(rebuild_f(c, rec, slot, s, BK_PASS_W));
    BK_TRY(wgrad(c, rec, slot, s));
  }
  return BK_OK;
}

/* ---- programs ---- */
static bk_status head_logits(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  return bk_record_head(c, rec, slot, BK_HEAD_LOGITS);
}
static bk_status head_evaluate(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  return bk_record_head(c, rec, slot, BK_HEAD_EVALUATE);
}
static bk_status head_train(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  return bk_record_head(c, rec, slot, BK_HEAD_TRAIN);
}

typedef bk_status (*record_fn)(bk_chunk *c, bk_recorder *rec, const bk_slot *slot);

/* Records one program. `first` is the first of the two programs that write gradients, and NULL
 * where there are not two: the second shares its arguments. Decoding is never captured as a
 * graph. */
static bk_status record(bk_chunk *c, bk_recorder *rec, bk_slot *slot, int program, record_fn fn,
                        const char *name, const bk_program *first) {
  bk_program *p = &slot->programs[program];
  bk_record_begin(rec, p, p == first, p == first ? NULL : first);
  BK_TRY(fn(c, rec, slot));
  return bk_record_end(rec, c->options.cache_len ? NULL : name, &c->model->parts->graph_warned);
}

static bk_status record_both(bk_chunk *c, bk_recorder *rec, bk_slot *slot, int program,
                             record_fn fn, const char *name) {
  const bk_program *first = &slot->programs[program + BK_MICRO_FIRST];
  BK_TRY(record(c, rec, slot, program + BK_MICRO_FIRST, fn, name, first));
  return record(c, rec, slot, program + BK_MICRO_NEXT, fn, name, first);
}

/* Which programs of the head there are depends on the use: a decoder has logits only. */
static bk_status record_heads(bk_chunk *c, bk_recorder *rec, bk_slot *slot) {
  static const char name[] = "the forward pass";
  if (c->options.keep_logits)
    BK_TRY(record(c, rec, slot, BK_PROGRAM_LOGITS, head_logits, name, NULL));
  if (c->options.cache_len) return BK_OK;
  BK_TRY(record(c, rec, slot, BK_PROGRAM_EVALUATE, head_evaluate, name, NULL));
  return c->options.backward ? record_both(c, rec, slot, BK_PROGRAM_LOSS, head_train, name) : BK_OK;
}

/* A chunk without the head ends with the streams; a chunk with it has a program for each use of
 * it. */
bk_status bk_chunk_record(bk_chunk *c, bk_recorder *rec, bk_slot *slot) {
  static const char name[] = "the backward pass";
  BK_TRY(record(c, rec, slot, BK_PROGRAM_FORWARD, forward, "the forward pass", NULL));
  if (c->has_head) BK_TRY(record_heads(c, rec, slot));
  if (!c->options.backward) return BK_OK;
  BK_TRY(record_both(c, rec, slot, BK_PROGRAM_BACKWARD, backward, name));
  if (!c->options.defer_wgrad) return BK_OK;
  return record_both(c, rec, slot, BK_PROGRAM_WGRAD, deferred_wgrad, name);
}
