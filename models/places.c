/* Where the tensors of a chunk live. The two tables below say it for the tensors around F in each
 * sublayer; those of F itself and of the ends follow in code.
 *
 * KEPT tensors are in class activations, one for each slot and sublayer. All others are in class
 * workspace and shared by all slots: they live no longer than one program of one slot, except for
 * the streams after the last sublayer where a head follows, whose program reads them.
 *
 * A sublayer may share a place with another only if the first no longer needs it when the second
 * writes. Forward alone that is the next sublayer but one for the streams (TURN) and the next one
 * for the rest (ONE). With recompute (arXiv 2512.24880 section 4.3.2) it is the same position in
 * another block.
 *
 * An example with four sublayers and blocks of two: x of sublayers 0 and 2 is kept; x of 1 and 3
 * shares one place, since block [2,3] is done with in the backward pass before x of block [0,1] is
 * rebuilt. f of all four is kept, because F's output is never made again.
 *
 * Where to look: the tables for what lies where; shared_index for which sublayers share; plan_last,
 * plan_first and plan_gradients for what crosses the edge of a chunk; plan_ends and plan_f for
 * memory that is used by turns. */
#include "models/chunk_priv.h"

typedef enum place {
  NONE,         /* there is no such tensor */
  ONE,          /* one for all sublayers */
  TURN,         /* two, by turns from sublayer to sublayer */
  BLOCK,        /* by the sublayer's position in its recompute block */
  BLOCK_TURN,   /* the same, but first sublayers of blocks have two, by turns: a block is rebuilt
                   while the first sublayer of the one after it still needs its own */
  BLOCK_STARTS, /* first sublayers of blocks: KEPT; the others: BLOCK */
  KEPT,
} place;

typedef enum shape {
  STREAMS, /* [N,n,C] st; plain [N,C] */
  ROW,     /* [N,C] st */
  VECTOR,  /* [N] ct */
  CARRY,   /* [N,carry] ct; none without such */
} shape;

typedef enum mode { FORWARD, BACKWARD, RECOMPUTE, MODES } mode;

/* Which of a slot's arrays has the tensor of a rule. */
typedef enum home { IN_MIX, IN_DF } home;

/* One tensor of each sublayer: which it is, its shape, and its place in each mode. */
typedef struct rule {
  home home;
  size_t member;
  shape shape;
  place by_mode[MODES]; /* forward alone; with backward; with backward and recompute */
  place deferred;       /* with backward and wgrad deferred, in the place of the two before */
} rule;

#define MIX(f) IN_MIX, offsetof(bk_mix_acts, f)
/* clang-format off */
static const rule stream_rules[] = {
    /*                        forward  backward  recompute       wgrad deferred */
    {MIX(x),      STREAMS, {TURN,    KEPT,     BLOCK_STARTS},  NONE},
    {MIX(carry),  CARRY,   {TURN,    KEPT,     BLOCK_STARTS},  NONE},
    {MIX(y),      ROW,     {ONE,     KEPT,     BLOCK_TURN},    NONE},
    {MIX(h),      ROW,     {ONE,     KEPT,     BLOCK},         KEPT},
    {MIX(rstd),   VECTOR,  {ONE,     KEPT,     BLOCK_TURN},    NONE},
    {MIX(f),      ROW,     {ONE,     KEPT,     KEPT},          NONE},
    {IN_DF, 0,    ROW,     {NONE,    ONE,      ONE},           KEPT},
};
static const rule plain_rules[] = {
    {MIX(x),      STREAMS, {TURN,    KEPT,     BLOCK_STARTS},  NONE},
    {MIX(h),      ROW,     {ONE,     KEPT,     BLOCK},         KEPT},
    {MIX(rstd),   VECTOR,  {ONE,     KEPT,     BLOCK_TURN},    NONE},
    {MIX(f),      ROW,     {ONE,     ONE,      KEPT},          NONE},
    /* df is the gradient of the streams itself; a deferred wgrad reads it when that has changed */
    {IN_DF, 0,    ROW,     {NONE,    NONE,     NONE},          KEPT},
};
/* clang-format on */
enum { RULES_MAX = BK_COUNT(stream_rules), X_RULE = 0 };
enum { SHARED_MAX = RULES_MAX + 2 * BK_CONNECTION_MAX_MAPS };

/* The planning of one chunk in progress. */
typedef struct placing {
  bk_chunk *c;
  bk_planner p;
  mode mode;
  const rule *rules;
  int n_rules;
} placing;

/* ---- shapes ---- */
/* One of a kind's maps, or its gradient, which has the same shape; absent where the kind has
 * none. */
static bk_tensor plan_map(bk_chunk *c, bk_planner *p, bk_memory_class m,
                          const bk_connection_kind *kind, const bk_connection_map *map) {
  int64_t shape[BK_MAX_DIMS];
  int ndim = map->shape(kind, (int)bk_model_streams(c->model), c->model->config.hidden_size,
                        c->tokens, shape);
  return ndim ? bk_planner_tensor(p, m, p->ct, ndim, shape) : (bk_tensor){0};
}

/* All sublayers of a model have one kind. */
static const bk_connection_kind *kind_of(const bk_chunk *c) {
  return bk_connection_kind_of((bk_hc_kind)c->model->config.residual);
}

/* A plain model has one stream and no dimension for its number. */
static bk_tensor plan_streams(bk_chunk *c, bk_planner *p, bk_memory_class m) {
  int64_t C = c->model->config.hidden_size;
  if (bk_chunk_plain(c)) return bk_planner_2d(p, m, p->st, c->tokens, C);
  return bk_planner_tensor(p, m, p->st, 3, (int64_t[]){c->tokens, bk_model_streams(c->model), C});
}

/* Mix, F's input and output, and their gradients have one row of width C for each token. */
static bk_tensor plan_row(bk_chunk *c, bk_planner *p, bk_memory_class m) {
  return bk_planner_2d(p, m, p->st, c->tokens, c->model->config.hidden_size);
}

/* The result is absent for all kinds that hand nothing beside the streams to the next sublayer. */
static bk_tensor plan_carry(bk_chunk *c, bk_planner *p, bk_memory_class m) {
  int64_t columns = bk_connection_carry(kind_of(c), (int)bk_model_streams(c->model));
  return columns ? bk_planner_2d(p, m, p->ct, c->tokens, columns) : (bk_tensor){0};
}

static bk_tensor plan_shape(bk_chunk *c, bk_planner *p, bk_memory_class m, shape shape) {
  switch (shape) {
    case STREAMS: return plan_streams(c, p, m);
    case ROW: return plan_row(c, p, m);
    case VECTOR: return bk_planner_1d(p, m, p->ct, c->tokens);
    case CARRY: return plan_carry(c, p, m);
  }
  return (bk_tensor){0};
}

/* ---- places ---- */
/* The index among the shared places of a rule, or -1 where the sublayer's tensor is kept. */
static int64_t shared_index(const bk_chunk *c, place place, int s) {
  int64_t at = c->block ? s % c->block : 0;
  switch (place) {
    case TURN: return s & 1;
    case BLOCK: return at;
    case BLOCK_TURN: return at == 0 && s / c->block % 2 ? c->block : at;
    case BLOCK_STARTS: return at == 0 ? -1 : at;
    case KEPT: return -1;
    default: return 0;
  }
}

/* A deferred wgrad reads h and df later than the pass that made them. */
static place place_of(const placing *pl, const rule *r) {
  bool deferred = pl->c->options.defer_wgrad && r->deferred != NONE;
  return deferred ? r->deferred : r->by_mode[pl->mode];
}

/* Which tensor is to be planned: that of a rule, or a map of the kind. */
typedef struct what {
  int key; /* its index in chunk->shared */
  shape shape;
  const bk_connection_map *map;
} what;

static bk_tensor plan_what(placing *pl, const what *w, bk_memory_class m) {
  return w->map ? plan_map(pl->c, &pl->p, m, kind_of(pl->c), w->map)
                : plan_shape(pl->c, &pl->p, m, w->shape);
}

/* A shared place is planned when the first sublayer asks for it, and handed to the others. */
static bk_tensor plan_place(placing *pl, const what *w, place place, int s) {
  if (place == NONE) return (bk_tensor){0};
  int64_t at = shared_index(pl->c, place, s);
  if (at < 0) return plan_what(pl, w, BK_MEM_ACTIVATIONS);
  bk_tensor *shared = &pl->c->shared[w->key][at];
  if (!bk_tensor_present(shared)) *shared = plan_what(pl, w, BK_MEM_WORKSPACE);
  return *shared;
}

static bk_tensor plan_rule(placing *pl, int rule, int s) {
  const struct rule *r = &pl->rules[rule];
  return plan_place(pl, &(what){rule, r->shape, NULL}, place_of(pl, r), s);
}

/* This is where the slot keeps the descriptor of that tensor. */
static bk_tensor *member_of(bk_slot *slot, const rule *r, int s) {
  return r->home == IN_DF ? &slot->df[s] : (bk_tensor *)(void *)((char *)&slot->mix[s] + r->member);
}

/* Map i of a sublayer and its gradient. A map that is shown after a forward pass is kept in that
 * mode too. A gradient that goes from the merge to the mix of its sublayer has the merge of the
 * sublayer before in between, so that two places take turns. */
static void plan_maps(placing *pl, bk_slot *slot, int s, int i) {
  const bk_connection_map *map = &kind_of(pl->c)->calls->maps[i];
  what value = {RULES_MAX + 2 * i, 0, map}, gradient = {RULES_MAX + 2 * i + 1, 0, map};
  bool backward = pl->mode != FORWARD;
  slot->mix[s].map[i] = plan_place(pl, &value, backward || map->shown ? KEPT : ONE, s);
  if (backward)
    slot->grads[s].map[i] = plan_place(pl, &gradient, map->grad_crosses ? TURN : ONE, s);
}

/* Slots inside, sublayers outside: places that are shared by all slots are planned at the first. */
static void plan_sublayers(placing *pl) {
  const bk_connection_map *maps = kind_of(pl->c)->calls->maps;
  for (int s = 0; s < pl->c->n; s++)
    for (int i = 0; i < pl->c->options.slots; i++) {
      bk_slot *slot = &pl->c->slots[i];
      for (int k = 0; k < pl->n_rules; k++)
        *member_of(slot, &pl->rules[k], s) = plan_rule(pl, k, s);
      for (int k = 0; maps[k].name; k++) plan_maps(pl, slot, s, k);
    }
}

/* Room for the tensors of each rule that are shared; they are planned at their first use. */
static bk_status make_shared(bk_chunk *c) {
  size_t places = (size_t)(c->block > 1 ? c->block : 1) + 1;
  c->shared = bk_alloc_array(c->model->ctx, SHARED_MAX, sizeof *c->shared);
  for (int i = 0; c->shared && i < SHARED_MAX; i++)
    if (!(c->shared[i] = bk_alloc_array(c->model->ctx, places, sizeof(bk_tensor))))
      return BK_ERR_MEMORY;
  return c->shared ? BK_OK : BK_ERR_MEMORY;
}

void bk_chunk_free_places(bk_chunk *c) {
  for (int i = 0; c->shared && i < SHARED_MAX; i++) bk_free(c->model->ctx, c->shared[i]);
  bk_free(c->model->ctx, c->shared);
  c->shared = NULL;
}

/* ---- between sublayers: the streams after the last one, and gradients ---- */
/* Where the streams cross an edge of the chunk, each slot has its own. */
static void plan_last(placing *pl) {
  bk_chunk *c = pl->c;
  bool shared = c->has_head && (pl->mode == FORWARD || bk_chunk_sums(c));
  for (int i = 0; i < c->options.slots; i++) {
    bk_slot *slot = &c->slots[i];
    if (!shared) slot->last = plan_streams(c, &pl->p, BK_MEM_ACTIVATIONS);
    else if (pl->mode == FORWARD) slot->last = plan_rule(pl, X_RULE, c->n);
    else slot->last = i ? c->slots[0].last : plan_streams(c, &pl->p, BK_MEM_WORKSPACE);
    if (!c->has_head) slot->last_carry = plan_carry(c, &pl->p, BK_MEM_ACTIVATIONS);
  }
}

/* Forward alone x takes turns (TURN), but the first x comes in through the port of its slot, and
 * must not be overwritten while another slot runs. */
static void plan_first(placing *pl) {
  bk_chunk *c = pl->c;
  for (int i = 0; pl->mode == FORWARD && !c->has_embed && i < c->options.slots; i++) {
    c->slots[i].mix[0].x = plan_streams(c, &pl->p, BK_MEM_ACTIVATIONS);
    c->slots[i].mix[0].carry = plan_carry(c, &pl->p, BK_MEM_ACTIVATIONS);
  }
}

/* The gradient of the streams is rewritten in place from sublayer to sublayer; where it crosses an
 * edge of the chunk, each slot has its own. Where df has no place of its own (plain connections),
 * it is D itself. */
static void plan_gradients(placing *pl) {
  bk_chunk *c = pl->c;
  bool crosses = !c->has_embed || !c->has_head;
  bk_memory_class m = crosses ? BK_MEM_ACTIVATIONS : BK_MEM_WORKSPACE;
  bk_tensor dh = plan_row(c, &pl->p, BK_MEM_WORKSPACE);
  for (int i = 0; i < c->options.slots; i++) {
    bk_slot *slot = &c->slots[i];
    bool first = i == 0 || crosses;
    slot->dh = dh;
    slot->D = first ? plan_streams(c, &pl->p, m) : c->slots[0].D;
    slot->D_carry = first ? plan_carry(c, &pl->p, m) : c->slots[0].D_carry;
    for (int s = 0; s < c->n; s++)
      if (!bk_tensor_present(&slot->df[s])) slot->df[s] = slot->D;
  }
}

/* ---- the ends ---- */
/* The head is a connection that only mixes: x, its maps, y and rstd, kept as a sublayer's are. h is
 * scratch, because the head's wgrad reads it in the same program. */
static void plan_head_acts(bk_chunk *c, bk_planner *p, bk_slot *slot) {
  bk_mix_acts *a = &slot->head.mix;
  bk_memory_class keep = p->keep;
  const bk_connection_kind *kind = c->model->parts->head.kind;
  a->x = bk_chunk_sums(c) ? plan_row(c, p, keep) : slot->last;
  a->h = c->head_row;
  a->rstd = bk_planner_1d(p, keep, p->ct, c->tokens);
  if (c->options.backward) slot->head.dh = plan_row(c, p, keep);
  if (kind->max_streams > 1) a->y = plan_row(c, p, keep);
  for (int i = 0; kind->calls->maps[i].name; i++)
    a->map[i] = plan_map(c, p, keep, kind, &kind->calls->maps[i]);
}

/* There are as many rows as the limit on the elements of logits allows, in whole multiples of
 * BK_HEAD_ROWS. */
static int64_t head_rows_of(const bk_chunk *c) {
  /* Without gradients the weights are only read, and fewer rows do. */
  bool small = c->model->device->props.host_memory || !c->options.backward;
  int64_t V = c->model->config.vocab_size;
  int64_t rows = (small ? BK_HEAD_ELEMENTS_HOST : BK_HEAD_ELEMENTS_DEVICE) / V;
  return rows < 1 ? 1 : rows < BK_HEAD_ROWS ? rows : rows / BK_HEAD_ROWS * BK_HEAD_ROWS;
}

/* logits are in ct. Their gradient may take their memory where it has their dtype and they are not
 * kept. */
static void plan_head_scratch(bk_chunk *c, bk_planner *p) {
  bk_memory_class ws = BK_MEM_WORKSPACE;
  int64_t V = c->model->config.vocab_size;
  bool backward = c->options.backward;
  c->head_rows = c->options.head_rows > 0 ? c->options.head_rows : head_rows_of(c);
  if (c->head_rows > c->tokens) c->head_rows = c->tokens;
  c->head_row = plan_row(c, p, ws);
  bool apart = backward && (p->st != p->ct || c->options.keep_logits);
  if (!c->options.keep_logits) c->logit_rows = bk_planner_2d(p, ws, p->ct, c->head_rows, V);
  c->dlogit_rows = apart ? bk_planner_2d(p, ws, p->st, c->head_rows, V) : c->logit_rows;
  const bk_connection_kind *kind = c->model->parts->head.kind;
  for (int i = 0; backward && kind->calls->maps[i].name; i++)
    c->head_grads.map[i] = plan_map(c, p, ws, kind, &kind->calls->maps[i]);
}

/* The scratch of the ends and that of the sublayers share one place: nothing of a sublayer's F is
 * in use when the ends run. */
static void plan_ends(bk_chunk *c, bk_planner *p) {
  bk_arena_mark mark = bk_memory_mark(c->memory, BK_MEM_WORKSPACE);
  if (c->has_embed && !bk_chunk_plain(c)) c->embedding = plan_row(c, p, BK_MEM_WORKSPACE);
  if (c->has_head) plan_head_scratch(c, p);
  for (int i = 0; c->has_head && i < c->options.slots; i++) plan_head_acts(c, p, &c->slots[i]);
  bk_memory_rewind(c->memory, BK_MEM_WORKSPACE, mark);
}

/* ids and targets are kept per slot: the backward of the embedding reads the ids again. past,
 * row_losses and logits are one for all slots: a decoder has one slot, and losses are summed in the
 * program that makes them. */
static void plan_inputs(bk_chunk *c, bk_planner *p) {
  bk_memory_class keep = BK_MEM_ACTIVATIONS;
  for (int i = 0; i < c->options.slots; i++) {
    if (c->has_embed) c->slots[i].ids = bk_planner_1d(p, keep, BK_I32, c->tokens);
    if (c->has_head) c->slots[i].targets = bk_planner_1d(p, keep, BK_I32, c->tokens);
  }
  if (c->options.cache_len) c->past = bk_planner_1d(p, keep, BK_I32, 1);
  if (!c->has_head) return;
  c->row_losses = bk_planner_1d(p, keep, p->ct, c->tokens);
  if (c->options.keep_logits)
    c->logits = bk_planner_2d(p, keep, p->ct, c->tokens, c->model->config.vocab_size);
}

/* ---- F ---- */
/* F's activations: kept in each slot, or where there is no backward pass or F is run again in it,
 * in one place for all sublayers and slots. The scratch of all sublayers lies in one place beside
 * that; what a deferred wgrad reads of it is in the slots. */
static void plan_f(bk_chunk *c, bk_planner *p, int s) {
  const bk_sublayer *l = &c->sublayers[s];
  bk_arena_mark mark = bk_memory_mark(c->memory, BK_MEM_WORKSPACE), scratch;
  p->past = c->past;
  p->again = bk_chunk_recomputes(c, s) ? BK_MEM_WORKSPACE : p->keep;
  p->cache_of = c->cache_of ? &c->cache_of->slots[0].f[s] : NULL;
  for (int i = 0; i < c->options.slots; i++) {
    if (i > 0 && !c->options.backward) {
      c->slots[i].f[s] = c->slots[0].f[s];
      continue;
    }
    bk_memory_rewind(c->memory, BK_MEM_WORKSPACE, mark);
    l->ops->plan_acts(p, l, &c->slots[i].f[s]);
  }
  scratch = bk_memory_mark(c->memory, BK_MEM_WORKSPACE);
  l->ops->plan_forward(p, l, &c->forward[s]);
  for (int i = 0; c->options.backward && i < c->options.slots; i++) {
    bk_memory_rewind(c->memory, BK_MEM_WORKSPACE, scratch);
    l->ops->plan_backward(p, l, &c->slots[i].backward[s]);
  }
  bk_memory_rewind(c->memory, BK_MEM_WORKSPACE, mark);
}

/* The order decides what may overlap in the workspace: what lives across sublayers first, then the
 * ends and each F, which take turns in the rest. */
bk_status bk_chunk_plan(bk_chunk *c) {
  const bk_model *m = c->model;
  const bk_chunk_options *o = &c->options;
  bool reads_f = kind_of(c)->calls->reads_f;
  placing pl = {.c = c,
                .mode = !o->backward ? FORWARD
                        : c->block   ? RECOMPUTE
                                     : BACKWARD,
                .rules = reads_f ? stream_rules : plain_rules,
                .n_rules = (int)(reads_f ? BK_COUNT(stream_rules) : BK_COUNT(plain_rules)),
                .p = {.memory = c->memory,
                      .keep = o->backward ? BK_MEM_ACTIVATIONS : BK_MEM_WORKSPACE,
                      .left = o->defer_wgrad ? BK_MEM_ACTIVATIONS : BK_MEM_WORKSPACE,
                      .config = &m->config,
                      .st = m->dtype,
                      .ct = m->ct,
                      .batch = o->batch,
                      .seq_len = o->seq_len,
                      .tokens = c->tokens,
                      .backward = o->backward,
                      .cache_len = o->cache_len}};
  BK_TRY(make_shared(c));
  plan_inputs(c, &pl.p);
  plan_sublayers(&pl);
  plan_first(&pl);
  plan_last(&pl);
  if (o->backward) plan_gradients(&pl);
  plan_ends(c, &pl.p);
  for (int s = 0; s < c->n; s++) plan_f(c, &pl.p, s);
  return pl.p.status;
}
