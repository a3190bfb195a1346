/* The first tensor that is not finite (watch.h). A step that has failed is run again, and after
 * each piece the tensors that it read and wrote are brought to the host, in pieces, and searched.
 * The order of the search is that of the step, so that the first find is the cause and not a
 * consequence: first the weights that a piece reads, then what it made. Nothing here runs in a
 * normal step. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm/comm.h"
#include "models/chunk_priv.h"
#include "models/shards.h"
#include "models/watch.h"

#define PIECE_BYTES ((size_t)1 << 16)

/* A search in progress; the first find ends it with BK_ERR_NOT_FINITE. */
typedef struct search {
  const bk_runner *runner; /* whose passes are looked at, in slot 0 */
  bk_suspect *suspect;
  void *piece; /* [PIECE_BYTES] */
} search;

/* ---- one tensor ---- */

static double element(const void *piece, bk_dtype dtype, int64_t i) {
  switch (dtype) {
    case BK_F32: return ((const float *)piece)[i];
    case BK_BF16: return bk_bf16_to_f32(((const uint16_t *)piece)[i]);
    case BK_F64: return ((const double *)piece)[i];
    default: return 0;
  }
}

/* The index of the first element that is not finite, or -1, and the sum of the squares of those
 * before it. Integers are always finite. */
static bk_status scan(const search *s, bk_stream *stream, const bk_tensor *t, int64_t *index,
                      double *value, double *squares) {
  *index = -1;
  *squares = 0;
  if (!bk_tensor_present(t) || !bk_dtype_is_float(t->dtype)) return BK_OK;
  int64_t count = bk_tensor_count(t), most = (int64_t)(PIECE_BYTES / bk_dtype_size(t->dtype));
  bk_tensor flat = bk_tensor_reshape(*t, 1, &count);
  for (int64_t first = 0; first < count; first += most) {
    int64_t n = count - first < most ? count - first : most;
    bk_tensor part = bk_tensor_slice(flat, 0, first, n);
    BK_TRY(bk_tensor_download(stream, &part, s->piece));
    for (int64_t i = 0; i < n; i++) {
      *value = element(s->piece, t->dtype, i);
      if (!isfinite(*value)) {
        *index = first + i;
        return BK_OK;
      }
      *squares += *value * *value;
    }
  }
  return BK_OK;
}

/* The message says which element it is: its place may show that one token or one column is to
 * blame. `t` is `count` elements from `begin` on. */
static bk_status check_slice(const search *s, bk_stream *stream, const bk_tensor *t,
                             const char *what, int64_t begin, int64_t count) {
  int64_t index;
  double value, squares;
  BK_TRY(scan(s, stream, t, &index, &value, &squares));
  if (index < 0) return BK_OK;
  s->suspect->found = true;
  snprintf(s->suspect->what, sizeof s->suspect->what, "%s (%g at element %lld of %lld)", what,
           bk_unsigned_nan(value), (long long)(begin + index), (long long)count);
  return BK_ERR_NOT_FINITE;
}

static bk_status check(const search *s, bk_stream *stream, const bk_tensor *t, const char *what) {
  return check_slice(s, stream, t, what, 0, bk_tensor_count(t));
}

/* ---- parameters ---- */

typedef bk_tensor (*param_view)(const bk_model *model, const bk_param *p);

/* `kind` is what the view is called in a message: "the gradient of ". */
static bk_status check_param(const search *s, const bk_model *m, const bk_param *p, param_view view,
                             const char *kind) {
  char what[128];
  bk_tensor t = view(m, p);
  snprintf(what, sizeof what, "%s%s", kind, p->name);
  return check(s, m->stream, &t, what);
}

/* Checks all named views of a block, so that a message names the parameter; NULL is allowed. */
static bk_status check_block(const search *s, const bk_model *m, const bk_param_block *b,
                             param_view view, const char *kind) {
  for (int i = 0; b && i < m->n_params; i++)
    if (&m->blocks[m->params[i].block] == b) BK_TRY(check_param(s, m, &m->params[i], view, kind));
  return BK_OK;
}

/* The blocks are looked at in their order; NULLs among them are passed over. */
static bk_status check_weights(const search *s, const bk_model *m, bk_param_block *const *blocks,
                               size_t count) {
  for (size_t i = 0; i < count; i++)
    BK_TRY(check_block(s, m, blocks[i], bk_param_weight, "weight "));
  return BK_OK;
}

static bk_status check_gradients(const search *s, const bk_model *m, bk_param_block *const *blocks,
                                 size_t count) {
  for (size_t i = 0; i < count; i++)
    BK_TRY(check_block(s, m, blocks[i], bk_param_grad, "the gradient of "));
  return BK_OK;
}

enum { F_BLOCKS = 8, CONNECTION_BLOCKS = BK_CONNECTION_MAX_PARAMS + 1 };

/* The blocks that F of a sublayer owns, in the order in which the forward pass reads them. */
static size_t f_blocks(const bk_sublayer *l, bk_param_block *out[F_BLOCKS]) {
  const bk_mla_params *a = &l->mla;
  size_t n = 0;
  if (l->ops == &bk_mla_ops) {
    bk_param_block *const all[] = {a->q_a,  a->q_norm,  a->q_b,  a->q,
                                   a->kv_a, a->kv_norm, a->kv_b, a->o};
    for (size_t i = 0; i < BK_COUNT(all); i++) out[n++] = all[i];
    return n;
  }
  if (l->ops == &bk_mlp_ops) {
    out[n++] = l->mlp.gate_up;
    out[n++] = l->mlp.down;
    return n;
  }
  bk_param_block *const all[] = {l->moe.gate,        l->moe.bias,    l->moe.shared.gate_up,
                                 l->moe.shared.down, l->moe.gate_up, l->moe.down};
  for (size_t i = 0; i < BK_COUNT(all); i++) out[n++] = all[i];
  return n;
}

/* Parameters that the kind lacks are NULL. */
static void connection_blocks(const bk_connection *c, bk_param_block *out[CONNECTION_BLOCKS]) {
  for (int i = 0; i < BK_CONNECTION_MAX_PARAMS; i++) out[i] = c->param[i];
  out[BK_CONNECTION_MAX_PARAMS] = c->norm;
}

/* ---- pieces ---- */

/* Where a piece of a program is: its chunk, the slot, and the sublayer if it has one. */
typedef struct spot {
  const bk_model *m;
  const bk_chunk *c;
  const bk_slot *slot;
  const bk_sublayer *l; /* NULL: at the ends */
  int s;
} spot;

/* "model.layers.3's attention" */
static const char *sublayer_text(const bk_sublayer *l, char *text, size_t size) {
  snprintf(text, size, "model.layers.%d's %s", l->index / 2,
           l->index % 2 == 0   ? "attention"
           : l->moe_layer >= 0 ? "experts"
                               : "feed-forward layer");
  return text;
}

/* The message has `what` and `where` one after the other: "the output of", "model.layers.3's
 * attention". */
static bk_status check_named(const search *s, const bk_model *m, const bk_tensor *t,
                             const char *what, const char *where) {
  char text[128];
  snprintf(text, sizeof text, "%s %s", what, where);
  return check(s, m->stream, t, text);
}

/* This comes after the forward piece of the embedding. */
static bk_status look_embed(const search *s, const spot *at) {
  BK_TRY(check_block(s, at->m, at->m->parts->embed, bk_param_weight, "weight "));
  return check_named(s, at->m, &at->slot->mix[0].x, "the streams after", "the embedding");
}

/* Only maps that are kept are looked at; others may have been overwritten. */
static bk_status look_maps(const search *s, const spot *at, const bk_mix_acts *a,
                           const char *where) {
  const bk_connection_map *maps = at->l->connection.kind->calls->maps;
  char what[64];
  for (int i = 0; maps[i].name; i++) {
    if (!maps[i].shown) continue;
    snprintf(what, sizeof what, "the %s of", maps[i].name);
    BK_TRY(check_named(s, at->m, &a->map[i], what, where));
  }
  return BK_OK;
}

/* The mix has read and made, in this order, streams, parameters, maps and h. */
static bk_status look_mix(const search *s, const spot *at) {
  const bk_mix_acts *a = &at->slot->mix[at->s];
  char text[64];
  bk_param_block *blocks[CONNECTION_BLOCKS];
  const char *where = sublayer_text(at->l, text, sizeof text);
  BK_TRY(check_named(s, at->m, &a->x, "the streams in front of", where));
  connection_blocks(&at->l->connection, blocks);
  BK_TRY(check_weights(s, at->m, blocks, CONNECTION_BLOCKS));
  BK_TRY(look_maps(s, at, a, where));
  return check_named(s, at->m, &a->h, "the normed input of", where);
}

/* The mix of the next sublayer is one op with the merge, so that it is looked at here. */
static bk_status look_merge(const search *s, const spot *at) {
  if (at->s + 1 < at->c->n) {
    spot next = *at;
    next.l++, next.s++;
    return look_mix(s, &next);
  }
  return check_named(s, at->m, &at->slot->last, "the streams after", "the last sublayer");
}

/* After the last forward piece of F its weights are looked at, then its output. */
static bk_status look_f(const search *s, const spot *at) {
  bk_param_block *blocks[F_BLOCKS];
  char text[64];
  BK_TRY(check_weights(s, at->m, blocks, f_blocks(at->l, blocks)));
  return check_named(s, at->m, &at->slot->mix[at->s].f, "the output of",
                     sublayer_text(at->l, text, sizeof text));
}

/* After the sum of the losses the head's weights are looked at, its input, and the losses of single
 * tokens. */
static bk_status look_loss(const search *s, const spot *at) {
  bk_param_block *blocks[CONNECTION_BLOCKS];
  connection_blocks(&at->m->parts->head, blocks);
  BK_TRY(check_weights(s, at->m, blocks, CONNECTION_BLOCKS));
  BK_TRY(check_named(s, at->m, &at->slot->head.mix.h, "the normed input of", "lm_head"));
  BK_TRY(check_block(s, at->m, at->m->parts->lm_head, bk_param_weight, "weight "));
  return check_named(s, at->m, &at->c->row_losses, "the loss", "of a token");
}

/* The gradient of lm_head was written in the forward pass, so that it comes first. */
static bk_status look_head_bwd(const search *s, const spot *at) {
  bk_param_block *blocks[CONNECTION_BLOCKS];
  connection_blocks(&at->m->parts->head, blocks);
  BK_TRY(check_block(s, at->m, at->m->parts->lm_head, bk_param_grad, "the gradient of "));
  BK_TRY(
      check_named(s, at->m, &at->slot->head.dh, "the gradient of the normed input of", "lm_head"));
  BK_TRY(check_gradients(s, at->m, blocks, CONNECTION_BLOCKS));
  return check_named(s, at->m, &at->slot->D, "the gradient of the streams after",
                     "the last sublayer");
}

/* In the order of the backward pass, which goes through the blocks from the last to the first. */
static bk_status look_f_bwd(const search *s, const spot *at) {
  bk_param_block *blocks[F_BLOCKS], *reversed[F_BLOCKS];
  size_t count = f_blocks(at->l, blocks);
  char text[64];
  const char *where = sublayer_text(at->l, text, sizeof text);
  for (size_t i = 0; i < count; i++) reversed[i] = blocks[count - 1 - i];
  BK_TRY(check_named(s, at->m, &at->slot->df[at->s], "the gradient of the output of", where));
  BK_TRY(check_gradients(s, at->m, reversed, count));
  return check_named(s, at->m, &at->slot->dh, "the gradient of the normed input of", where);
}

/* D is the gradient in front of this sublayer here, or already that of the one before it, where the
 * two are one op. */
static bk_status look_mix_bwd(const search *s, const spot *at) {
  bk_param_block *blocks[CONNECTION_BLOCKS];
  char text[64];
  connection_blocks(&at->l->connection, blocks);
  BK_TRY(check_gradients(s, at->m, blocks, CONNECTION_BLOCKS));
  return check_named(s, at->m, &at->slot->D, "the gradient of the streams in front of",
                     sublayer_text(at->l, text, sizeof text));
}

/* This is the last of a step's gradients. */
static bk_status look_embed_bwd(const search *s, const spot *at) {
  return check_block(s, at->m, at->m->parts->embed, bk_param_grad, "the gradient of ");
}

/* Which look is due after a piece. F may have several pieces in a pass, and is looked at after the
 * last of them; its gradients after its W pieces. */
typedef bk_status (*look_fn)(const search *s, const spot *at);
/* Pieces whose results a later piece of the same pass completes are passed over. */
static look_fn look_of(const bk_piece *piece, const spot *at) {
  bool shared = at->l && at->l->ops == &bk_moe_ops && at->l->moe.shared.gate_up;
  switch (piece->part) {
    case BK_PART_EMBED: return piece->pass == BK_PASS_F ? look_embed : look_embed_bwd;
    case BK_PART_MIX: return piece->pass == BK_PASS_F ? look_mix : look_mix_bwd;
    case BK_PART_MERGE: return piece->pass == BK_PASS_F ? look_merge : NULL;
    case BK_PART_LOSS_SUM: return look_loss;
    case BK_PART_HEAD: return piece->pass == BK_PASS_D ? look_head_bwd : NULL;
    case BK_PART_COMBINE: return piece->pass == BK_PASS_F ? look_f : NULL;
    case BK_PART_EXPERTS: return piece->pass == BK_PASS_W && !shared ? look_f_bwd : NULL;
    case BK_PART_SHARED: return piece->pass == BK_PASS_W ? look_f_bwd : NULL;
    case BK_PART_ATTENTION:
    case BK_PART_MLP:
      return piece->pass == BK_PASS_F ? look_f : piece->pass == BK_PASS_W ? look_f_bwd : NULL;
    default: return NULL;
  }
}

/* A program belongs to one chunk, so that a piece without a sublayer lies in the first chunk (the
 * embedding) or the last (the head). */
static const bk_chunk *chunk_of(const bk_runner *r, const bk_piece *piece) {
  int n = bk_runner_n_chunks(r), i = piece->part == BK_PART_EMBED ? 0 : n - 1;
  const bk_chunk *c = bk_runner_chunk(r, i);
  while (piece->sublayer >= 0 && c->sublayers[0].index > piece->sublayer)
    c = bk_runner_chunk(r, --i);
  return c;
}

static spot spot_of(const bk_chunk *c, int slot, const bk_piece *piece) {
  spot at = {.m = c->model, .c = c, .slot = &c->slots[slot], .l = NULL, .s = 0};
  if (piece->sublayer < 0) return at;
  at.s = piece->sublayer - c->sublayers[0].index;
  at.l = &c->sublayers[at.s];
  return at;
}

static bk_status look_at(const search *s, const bk_chunk *c, int slot, const bk_piece *piece) {
  spot at = spot_of(c, slot, piece);
  look_fn fn = look_of(piece, &at);
  s->suspect->in_forward = piece->pass == BK_PASS_F;
  return fn ? fn(s, &at) : BK_OK;
}

/* Called by the program after each of its pieces. */
static bk_status look(void *arg, const bk_piece *piece) {
  const search *s = arg;
  return look_at(s, chunk_of(s->runner, piece), 0, piece);
}

/* On success the caller frees s->piece. */
static bk_status search_begin(bk_context *ctx, bk_suspect *suspect, search *s) {
  *suspect = (bk_suspect){.found = false};
  *s = (search){.suspect = suspect, .piece = bk_alloc(ctx, PIECE_BYTES)};
  return s->piece ? BK_OK : BK_ERR_MEMORY;
}

/* Deferred wgrads are done at once: their gradients belong to the pass too. */
bk_status bk_watch_pass(bk_runner *r, const int32_t *ids, const int32_t *targets,
                        bk_suspect *suspect) {
  bk_context *ctx = bk_runner_stream(r)->device->ctx;
  search s;
  BK_TRY(search_begin(ctx, suspect, &s));
  s.runner = r;
  bk_runner_look(r, look, &s);
  bk_status status = bk_runner_forward(r, 0, ids, targets);
  if (status == BK_OK) status = bk_runner_backward(r, 0);
  while (status == BK_OK && bk_runner_waiting(r) > 0) status = bk_runner_wgrad(r);
  bk_runner_look(r, NULL, NULL);
  bk_free(ctx, s.piece);
  return status;
}

struct bk_watch_search {
  bk_context *ctx;
  search s;
};

bk_status bk_watch_search_begin(bk_context *ctx, bk_suspect *suspect, bk_watch_search **made) {
  bk_watch_search *w = bk_alloc(ctx, sizeof *w);
  if (!w) return BK_ERR_MEMORY;
  w->ctx = ctx;
  bk_status status = search_begin(ctx, suspect, &w->s);
  if (status == BK_OK) *made = w;
  else bk_free(ctx, w);
  return status;
}

bk_status bk_watch_search_look(const bk_watch_search *w, const bk_chunk *chunk, int slot,
                               const bk_piece *piece) {
  return look_at(&w->s, chunk, slot, piece);
}

void bk_watch_search_end(bk_watch_search *w) {
  bk_free(w->ctx, w->s.piece);
  bk_free(w->ctx, w);
}

/* Used when every gradient is finite but the sum of their squares is not. */
bk_status bk_watch_largest_gradient(bk_model *m, bk_suspect *suspect, double *largest) {
  search s;
  double squares, value;
  int64_t index;
  *largest = -1;
  BK_TRY(search_begin(m->ctx, suspect, &s));
  bk_status status = BK_OK;
  for (int i = 0; i < m->n_params && status == BK_OK; i++) {
    bk_tensor grad = bk_param_grad(m, &m->params[i]);
    if (!bk_tensor_present(&grad)) continue;
    status = scan(&s, m->stream, &grad, &index, &value, &squares);
    if (status != BK_OK || squares <= *largest) continue;
    *largest = squares;
    suspect->found = true;
    snprintf(suspect->what, sizeof suspect->what,
             "the sum of the squares of all gradients, the largest (norm %.4g) that of %s",
             sqrt(squares), m->params[i].name);
  }
  bk_free(m->ctx, s.piece);
  return status;
}

/* What this rank has of a parameter. */
static bk_status check_stored(const search *s, bk_model *m, const bk_param *p) {
  bk_tensor weight = bk_param_weight(m, p);
  int64_t count = bk_tensor_count(&weight);
  BK_TRY(check_param(s, m, p, bk_param_weight, "weight "));
  for (bk_slice k = {0}; bk_param_next_slice(m, p, &k);) {
    const struct {
      const bk_tensor *t;
      const char *kind;
    } parts[] = {{&k.master, "the master of "},
                 {&k.m, "the first moment of "},
                 {&k.v, "the second moment of "}};
    for (size_t i = 0; i < BK_COUNT(parts); i++) {
      char what[128];
      snprintf(what, sizeof what, "%s%s", parts[i].kind, p->name);
      BK_TRY(check_slice(s, m->stream, parts[i].t, what, k.begin, count));
    }
  }
  return BK_OK;
}

static bk_status search_stored(bk_model *m, bk_suspect *suspect) {
  search s;
  BK_TRY(search_begin(m->ctx, suspect, &s));
  bk_status status = BK_OK;
  for (int i = 0; i < m->n_params && status == BK_OK; i++)
    status = check_stored(&s, m, &m->params[i]);
  suspect->in_forward = suspect->found;
  bk_free(m->ctx, s.piece);
  return status;
}

/* What a rank has found. */
typedef struct finding {
  bk_suspect suspect;
  int32_t status;
} finding;

/* All are told what the lowest rank has found that found something. */
static bk_status tell_all(bk_model *m, finding *own, finding *all, bk_suspect *suspect) {
  BK_TRY(bk_comm_gather(m->options.comm, own, sizeof *own, all));
  for (int r = 0; r < bk_model_ranks(m); r++) {
    if (all[r].status == BK_OK) continue;
    *suspect = all[r].suspect;
    if (all[r].status == BK_ERR_NOT_FINITE || r == bk_model_rank(m))
      return (bk_status)all[r].status;
    return bk_fail(m->ctx, BK_ERR_COMM, "rank %d has failed to look at its state: %s", r,
                   bk_status_name((bk_status)all[r].status));
  }
  return BK_OK;
}

/* Looks at the state between two steps; whatever is bad there was bad before the next step. */
bk_status bk_watch_stored(bk_model *m, bk_suspect *suspect) {
  if (bk_model_ranks(m) == 1) return search_stored(m, suspect);
  finding own, *all = bk_alloc_array(m->ctx, (size_t)bk_model_ranks(m), sizeof *all);
  if (!all) {
    bk_comm_abort(m->options.comm);
    return BK_ERR_MEMORY;
  }
  memset(&own, 0, sizeof own);
  own.status = search_stored(m, &own.suspect);
  bk_status status = tell_all(m, &own, all, suspect);
  bk_free(m->ctx, all);
  return status;
}

bk_status bk_model_check_finite(bk_model *m, char *what, size_t size) {
  bk_suspect suspect;
  bk_status status = bk_watch_stored(m, &suspect);
  snprintf(what, size, "%s", status == BK_ERR_NOT_FINITE ? suspect.what : "");
  return status;
}
