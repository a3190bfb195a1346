/* The two ends of a model, as pieces: the embedding, and the final collapse, norm, head and loss.
 * Logits are made some rows at a time. With gradients wanted, the head's dgrad and wgrad of these
 * rows follow at once, in the forward pass, so that the logits of all rows, [N, vocab_size], never
 * exist (except with keep_logits). The last chunk's forward is heavier for it. */
#include "models/chunk_priv.h"

/* The ends belong to no sublayer, and run on the compute lane. */
static bk_status piece(bk_recorder *rec, bk_part part, bk_pass pass) {
  return bk_record_piece(rec, part, pass, -1, BK_LANE_COMPUTE);
}

/* ---- forward ---- */
/* The ids become rows [N,C], of which n copies are the streams [N,n,C]; in a plain model the rows
 * are the stream. */
bk_status bk_record_embed(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  bool plain = bk_chunk_plain(c);
  bk_tensor x = slot->mix[0].x, y = plain ? x : c->embedding;
  BK_TRY(piece(rec, BK_PART_EMBED, BK_PASS_F));
  BK_TRY(
      bk_record(rec, BK_OP_EMBED, &(bk_embed_args){slot->ids, c->model->parts->embed->weight, y}));
  return plain ? BK_OK : bk_record(rec, BK_OP_HC_EXPAND, &(bk_hc_expand_args){y, x});
}

/* The streams after the last sublayer become one row, which gets the final norm: they are summed
 * first, or collapsed by the learned head's read gates in the mix, or are one row already
 * (plain). */
static bk_status head_norm(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  if (bk_chunk_sums(c))
    BK_TRY(bk_record(rec, BK_OP_HC_COLLAPSE, &(bk_hc_collapse_args){slot->last, slot->head.mix.x}));
  return bk_connection_mix(rec, &c->model->parts->head, &slot->head.mix);
}

/* The loss of some rows, and with `train` the head's dgrad and wgrad of them. dlogits may lie in
 * the memory of the logits, which are not needed any more. */
static bk_status rows_loss(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int64_t first,
                           bk_tensor logits, bool train) {
  bk_param_block *w = c->model->parts->lm_head;
  int64_t rows = logits.shape[0];
  bk_tensor none = {0}, dlogits = train ? bk_tensor_slice(c->dlogit_rows, 0, 0, rows) : none;
  bk_cross_entropy_args loss = {logits, bk_tensor_slice(slot->targets, 0, first, rows),
                                c->model->step, bk_tensor_slice(c->row_losses, 0, first, rows),
                                dlogits};
  BK_TRY(piece(rec, BK_PART_LOSS, BK_PASS_F));
  BK_TRY(bk_record(rec, BK_OP_CROSS_ENTROPY, &loss));
  if (!train) return BK_OK;
  BK_TRY(bk_linear_dgrad(rec, dlogits, w, bk_tensor_slice(slot->head.dh, 0, first, rows), false));
  return bk_linear_wgrad(rec, dlogits, bk_tensor_slice(slot->head.mix.h, 0, first, rows), w);
}

/* The first part of rows belongs to the piece that made the norm; each later one is a piece of its
 * own. */
static bk_status head_rows(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, int64_t first,
                           int64_t rows, bk_head_use use) {
  bk_tensor h = bk_tensor_slice(slot->head.mix.h, 0, first, rows);
  bk_tensor logits = c->options.keep_logits ? bk_tensor_slice(c->logits, 0, first, rows)
                                            : bk_tensor_slice(c->logit_rows, 0, 0, rows);
  if (first > 0) BK_TRY(piece(rec, BK_PART_HEAD, BK_PASS_F));
  BK_TRY(bk_linear(rec, h, c->model->parts->lm_head, logits));
  return use == BK_HEAD_LOGITS ? BK_OK
                               : rows_loss(c, rec, slot, first, logits, use == BK_HEAD_TRAIN);
}

/* Losses of tokens are summed once over all rows, so that the order of the sum does not depend on
 * how many rows are made at a time. The sum adds to that of earlier micro-batches. */
bk_status bk_record_head(bk_chunk *c, bk_recorder *rec, const bk_slot *slot, bk_head_use use) {
  int64_t N = c->tokens, P = c->head_rows;
  BK_TRY(piece(rec, BK_PART_HEAD, BK_PASS_F));
  BK_TRY(head_norm(c, rec, slot));
  for (int64_t first = 0; first < N; first += P)
    BK_TRY(head_rows(c, rec, slot, first, N - first < P ? N - first : P, use));
  if (use == BK_HEAD_LOGITS) return BK_OK;
  BK_TRY(piece(rec, BK_PART_LOSS_SUM, BK_PASS_F));
  return bk_record(rec, BK_OP_SUM,
                   &(bk_sum_args){c->row_losses, bk_step_field(c->model, BK_STEP_LOSS), true});
}

/* ---- backward ---- */
/* The gradient of lm_head's input is there since the forward pass. A sum of streams goes back as a
 * copy to each. */
bk_status bk_record_head_bwd(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  bool sums = bk_chunk_sums(c);
  BK_TRY(piece(rec, BK_PART_HEAD, BK_PASS_D));
  BK_TRY(bk_connection_mix_bwd(rec, &c->model->parts->head, &slot->head.mix, &c->head_grads,
                               slot->head.dh, sums ? c->head_row : slot->D, false));
  if (!sums) return BK_OK;
  return bk_record(rec, BK_OP_HC_EXPAND, &(bk_hc_expand_args){c->head_row, slot->D});
}

/* The gradient of a copy to n streams is the sum over the streams. */
bk_status bk_record_embed_bwd(bk_chunk *c, bk_recorder *rec, const bk_slot *slot) {
  bool plain = bk_chunk_plain(c);
  bk_param_block *embed = c->model->parts->embed;
  bk_tensor dy = plain ? slot->D : c->embedding;
  BK_TRY(piece(rec, BK_PART_EMBED, BK_PASS_D));
  if (!plain) BK_TRY(bk_record(rec, BK_OP_HC_COLLAPSE, &(bk_hc_collapse_args){slot->D, dy}));
  BK_TRY(bk_record_adds_to(rec, embed));
  return bk_record(rec, BK_OP_EMBED_BWD, &(bk_embed_bwd_args){slot->ids, dy, embed->grad});
}
