/* The walker: runs a model's flat list of sublayers forward and backward, and the two ends. It
 * owns the residual connections: mix -> F -> merge, merge_mix between neighbours; backward is
 * the mirror. */
#include "models/profile.h"
#include "models/runner_priv.h"

static bk_sublayer *sublayer(const bk_runner *r, int s) { return &r->model->sublayers[s]; }

/* Nobody looks in a normal step: one comparison a stage. */
static bk_status seen(const bk_runner *r, const bk_slot *slot, bk_stage stage, int s) {
  return r->look && !r->exec.preparing ? r->look(r->look_arg, r, slot, stage, s) : BK_OK;
}

/* ---- ends, forward ---- */
static bk_status walk_embed(bk_runner *r, bk_slot *slot) {
  bk_exec *ex = &r->exec;
  bk_tensor x = slot->mix[0].x, y = bk_runner_plain(r) ? x : r->embedding;
  bk_exec_begin(ex, &r->embed, BK_PHASE_EMBED, -1);
  BK_TRY(bk_exec_call(ex, BK_OP_EMBED,
                      &(bk_embed_args){slot->ids, r->model->parts->embed->weight, y}));
  if (!bk_runner_plain(r)) BK_TRY(bk_exec_call(ex, BK_OP_HC_EXPAND, &(bk_hc_expand_args){y, x}));
  return seen(r, slot, BK_STAGE_EMBED, -1);
}

static bk_status walk_head_norm(bk_runner *r, bk_slot *slot) {
  bk_exec *ex = &r->exec;
  bk_exec_begin(ex, &r->head_norm, BK_PHASE_HEAD, -1);
  if (bk_runner_sums(r)) {
    BK_TRY(
        bk_exec_call(ex, BK_OP_HC_COLLAPSE, &(bk_hc_collapse_args){slot->last, slot->head.mix.x}));
  }
  return bk_connection_mix(ex, &r->model->parts->head, &slot->head.mix);
}

/* Loss of one piece of rows, and with backward the head's dgrad and wgrad of it. */
static bk_status walk_piece_loss(bk_runner *r, bk_slot *slot, int64_t first, bk_tensor logits) {
  bk_exec *ex = &r->exec;
  bk_param_block *w = r->model->parts->lm_head;
  int64_t rows = logits.shape[0];
  /* of the prepared calls; a pass that wants the loss alone stops short of the products */
  bool backward = r->options.backward;
  bk_tensor dlogits = backward ? bk_tensor_slice(r->dpiece, 0, 0, rows) : (bk_tensor){0};
  bk_exec_begin(ex, &r->piece_loss[rows == r->piece_rows ? BK_PIECE_FULL : BK_PIECE_REST],
                BK_PHASE_LOSS, -1);
  BK_TRY(bk_exec_call(ex, BK_OP_CROSS_ENTROPY,
                      &(bk_cross_entropy_args){
                          logits, bk_tensor_slice(slot->targets, 0, first, rows), r->model->step,
                          bk_tensor_slice(r->row_losses, 0, first, rows), dlogits}));
  if (!backward || r->loss_only) return BK_OK;
  BK_TRY(bk_linear_dgrad(ex, dlogits, w, bk_tensor_slice(slot->head.dh, 0, first, rows), false));
  return bk_linear_wgrad(ex, dlogits, bk_tensor_slice(slot->head.mix.h, 0, first, rows), w);
}

static bk_status walk_piece(bk_runner *r, bk_slot *slot, int64_t first, int64_t rows,
                            bool with_loss) {
  bk_tensor h = bk_tensor_slice(slot->head.mix.h, 0, first, rows);
  bk_tensor logits = r->options.keep_logits ? bk_tensor_slice(r->logits, 0, first, rows)
                                            : bk_tensor_slice(r->piece, 0, 0, rows);
  bk_exec_begin(&r->exec, &r->piece_logits[rows == r->piece_rows ? BK_PIECE_FULL : BK_PIECE_REST],
                BK_PHASE_HEAD, -1);
  BK_TRY(bk_linear(&r->exec, h, r->model->parts->lm_head, logits));
  return with_loss ? walk_piece_loss(r, slot, first, logits) : BK_OK;
}

static bk_status walk_head(bk_runner *r, bk_slot *slot, bool with_loss) {
  int64_t N = r->tokens, P = r->piece_rows;
  BK_TRY(walk_head_norm(r, slot));
  for (int64_t first = 0; first < N; first += P) {
    /* one piece of each size is enough */
    if (r->exec.preparing && first > 0 && N - first >= P) continue;
    BK_TRY(walk_piece(r, slot, first, N - first < P ? N - first : P, with_loss));
  }
  if (!with_loss) return BK_OK;
  BK_TRY(seen(r, slot, BK_STAGE_HEAD, -1));
  bk_exec_begin(&r->exec, &r->loss_sum, BK_PHASE_LOSS, -1);
  return bk_exec_call(&r->exec, BK_OP_SUM,
                      &(bk_sum_args){r->row_losses, bk_step_slot(r->model, BK_STEP_LOSS), true});
}

/* ---- sublayers, forward ---- */
/* The merge of sublayer s and the mix of the next. */
static bk_status walk_merge(bk_runner *r, bk_slot *slot, int s) {
  bk_exec *ex = &r->exec;
  const bk_connection *c = &sublayer(r, s)->connection;
  const bk_mix_acts *a = &slot->mix[s];
  bk_exec_begin(ex, &r->calls[s].merge, BK_PHASE_MERGE, s);
  BK_TRY(bk_runner_fork(r, s));
  bk_status status =
      s + 1 == r->n
          ? bk_connection_merge(ex, c, a, slot->last)
          : bk_connection_merge_mix(ex, c, a, &sublayer(r, s + 1)->connection, &slot->mix[s + 1]);
  return bk_runner_join(r, s, status);
}

static bk_status walk_sublayer(bk_runner *r, bk_slot *slot, int s) {
  bk_exec *ex = &r->exec;
  bk_sublayer *l = sublayer(r, s);
  const bk_mix_acts *a = &slot->mix[s];
  bk_exec_begin(ex, &r->calls[s].forward, BK_PHASE_FORWARD, s);
  BK_TRY(l->ops->forward(ex, l, &slot->f[s], &r->forward_scratch[s], a->h, a->f));
  BK_TRY(seen(r, slot, BK_STAGE_F, s));
  BK_TRY(walk_merge(r, slot, s));
  return seen(r, slot, BK_STAGE_MIX, s + 1);
}

bk_status bk_walk_forward(bk_runner *r, bk_slot *slot, bool with_head, bool with_loss) {
  r->exec.profile = bk_profile_of(r->model);
  if (bk_runner_has_embed(r)) BK_TRY(walk_embed(r, slot));
  bk_exec_begin(&r->exec, &r->calls[0].mix, BK_PHASE_MIX, 0);
  BK_TRY(bk_connection_mix(&r->exec, &sublayer(r, 0)->connection, &slot->mix[0]));
  BK_TRY(seen(r, slot, BK_STAGE_MIX, 0));
  for (int s = 0; s < r->n; s++) BK_TRY(walk_sublayer(r, slot, s));
  return with_head && bk_runner_has_head(r) ? walk_head(r, slot, with_loss) : BK_OK;
}

/* ---- backward ---- */
static bk_status walk_head_bwd(bk_runner *r, bk_slot *slot) {
  bk_exec *ex = &r->exec;
  bool sums = bk_runner_sums(r);
  bk_exec_begin(ex, &r->head_bwd, BK_PHASE_HEAD_BWD, -1);
  BK_TRY(bk_connection_mix_bwd(ex, &r->model->parts->head, &slot->head.mix, &r->head_grads,
                               slot->head.dh, sums ? r->head_row : r->D, false));
  if (sums) BK_TRY(bk_exec_call(ex, BK_OP_HC_EXPAND, &(bk_hc_expand_args){r->head_row, r->D}));
  return seen(r, slot, BK_STAGE_HEAD_BWD, -1);
}

static bk_status walk_embed_bwd(bk_runner *r, bk_slot *slot) {
  bk_exec *ex = &r->exec;
  bk_tensor dy = bk_runner_plain(r) ? r->D : r->embedding;
  bk_exec_begin(ex, &r->embed_bwd, BK_PHASE_EMBED_BWD, -1);
  if (!bk_runner_plain(r))
    BK_TRY(bk_exec_call(ex, BK_OP_HC_COLLAPSE, &(bk_hc_collapse_args){r->D, dy}));
  BK_TRY(bk_exec_call(ex, BK_OP_EMBED_BWD,
                      &(bk_embed_bwd_args){slot->ids, dy, r->model->parts->embed->grad}));
  return seen(r, slot, BK_STAGE_EMBED_BWD, -1);
}

static bk_status walk_rebuild_some(bk_runner *r, bk_slot *slot, int first, int count) {
  const bk_connection *c[BK_HC_REBUILD_MAX];
  for (int i = 0; i < count; i++) c[i] = &sublayer(r, first + i)->connection;
  bk_exec_begin(&r->exec, &r->calls[first].rebuild, BK_PHASE_REBUILD, first);
  return bk_connection_rebuild(&r->exec, c, &slot->mix[first], count);
}

/* Rebuilds x, y, h and rstd of the block that ends with sublayer s, from its kept x, the f and
 * the maps. A block of more sublayers than one call takes: the next call begins with the last of
 * the call before, whose x is there by then. */
static bk_status walk_rebuild(bk_runner *r, bk_slot *slot, int s) {
  int first = s - s % (int)r->block;
  for (; s - first >= BK_HC_REBUILD_MAX; first += BK_HC_REBUILD_MAX - 1)
    BK_TRY(walk_rebuild_some(r, slot, first, BK_HC_REBUILD_MAX));
  return walk_rebuild_some(r, slot, first, s - first + 1);
}

static bool block_begins(const bk_runner *r, int s) { return r->block && s % r->block == 0; }

static bk_status walk_merge_bwd(bk_runner *r, bk_slot *slot, int s) {
  bk_exec_begin(&r->exec, &r->calls[s].merge_bwd, BK_PHASE_MERGE_BWD, s);
  BK_TRY(bk_runner_fork(r, s));
  bk_status status = bk_connection_merge_bwd(&r->exec, &sublayer(r, s)->connection, &slot->mix[s],
                                             &r->grads[s & 1], r->D, r->df);
  return bk_runner_join(r, s, status);
}

/* Through the mix of sublayer s and the merge of the one before it. */
static bk_status walk_mix_bwd(bk_runner *r, bk_slot *slot, int s) {
  bk_exec *ex = &r->exec;
  const bk_connection *c = &sublayer(r, s)->connection;
  bk_exec_begin(ex, &r->calls[s].mix_bwd, BK_PHASE_MIX_BWD, s);
  if (s == 0)
    return bk_connection_mix_bwd(ex, c, &slot->mix[s], &r->grads[s & 1], r->dh, r->D, true);
  BK_TRY(bk_runner_fork(r, s - 1));
  bk_status status =
      bk_connection_merge_mix_bwd(ex, c, &slot->mix[s], &r->grads[s & 1], &slot->mix[s - 1],
                                  &r->grads[(s - 1) & 1], r->dh, r->D, r->df);
  return bk_runner_join(r, s - 1, status);
}

static bk_status walk_sublayer_bwd(bk_runner *r, bk_slot *slot, int s) {
  bk_exec *ex = &r->exec;
  bk_sublayer *l = sublayer(r, s);
  bk_exec_begin(ex, &r->calls[s].dgrad, BK_PHASE_DGRAD, s);
  BK_TRY(l->ops->dgrad(ex, l, &slot->f[s], &r->backward_scratch[s], r->df, r->dh));
  bk_exec_begin(ex, &r->calls[s].wgrad, BK_PHASE_WGRAD, s);
  BK_TRY(l->ops->wgrad(ex, l, &slot->f[s], &r->backward_scratch[s], slot->mix[s].h, r->df));
  BK_TRY(seen(r, slot, BK_STAGE_F_BWD, s));
  if (s > 0 && block_begins(r, s)) BK_TRY(walk_rebuild(r, slot, s - 1));
  BK_TRY(walk_mix_bwd(r, slot, s));
  return seen(r, slot, BK_STAGE_MIX_BWD, s);
}

bk_status bk_walk_backward(bk_runner *r, bk_slot *slot) {
  r->exec.profile = bk_profile_of(r->model);
  if (bk_runner_has_head(r)) BK_TRY(walk_head_bwd(r, slot));
  if (r->block) BK_TRY(walk_rebuild(r, slot, r->n - 1));
  BK_TRY(walk_merge_bwd(r, slot, r->n - 1));
  for (int s = r->n - 1; s >= 0; s--) BK_TRY(walk_sublayer_bwd(r, slot, s));
  return bk_runner_has_embed(r) ? walk_embed_bwd(r, slot) : BK_OK;
}
