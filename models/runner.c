/* Planning, creation and results of a runner: see runner.h; where tensors live: runner_priv.h;
 * the steps: walk.c. */
#include "models/runner_priv.h"

/* ---- planning ---- */
static bk_tensor plan_streams(const bk_runner *r, bk_planner *p, bk_memory_class c) {
  int64_t C = r->model->config.hidden_size;
  if (bk_runner_plain(r)) return bk_planner_2d(p, c, p->st, r->tokens, C);
  return bk_planner_tensor(p, c, p->st, 3, (int64_t[]){r->tokens, bk_model_streams(r->model), C});
}

static bk_tensor plan_row(const bk_runner *r, bk_planner *p, bk_memory_class c) {
  return bk_planner_2d(p, c, p->st, r->tokens, r->model->config.hidden_size);
}

static bk_tensor plan_proj(const bk_runner *r, bk_planner *p, bk_memory_class c, bk_hc_kind kind) {
  int n = (int)bk_model_streams(r->model);
  int64_t rows = kind == BK_HC_HC ? r->tokens * n : r->tokens;
  return bk_planner_2d(p, c, p->ct, rows, bk_hc_rows(kind, n));
}

static bk_tensor plan_rinv(const bk_runner *r, bk_planner *p, bk_memory_class c, bk_hc_kind kind) {
  return bk_planner_1d(p, c, p->ct,
                       kind == BK_HC_HC ? r->tokens * bk_model_streams(r->model) : r->tokens);
}

static bk_tensor plan_comb(const bk_runner *r, bk_planner *p, bk_memory_class c) {
  int64_t n = bk_model_streams(r->model);
  if (r->model->config.residual == BK_HC_IHC) return (bk_tensor){0};
  return bk_planner_tensor(p, c, p->ct, 3, (int64_t[]){r->tokens, n, n});
}

static void plan_grads(bk_runner *r, bk_planner *p) {
  bk_hc_kind kind = (bk_hc_kind)r->model->config.residual;
  int64_t n = bk_model_streams(r->model);
  if (bk_runner_plain(r)) return;
  bk_mix_grads shared = {.dpre = bk_planner_2d(p, BK_MEM_WORKSPACE, p->ct, r->tokens, n),
                         .dproj = plan_proj(r, p, BK_MEM_WORKSPACE, kind),
                         .drinv = plan_rinv(r, p, BK_MEM_WORKSPACE, kind)};
  for (int i = 0; i < 2; i++) {
    r->grads[i] = shared;
    r->grads[i].dpost = bk_planner_2d(p, BK_MEM_WORKSPACE, p->ct, r->tokens, n);
    r->grads[i].dcomb = plan_comb(r, p, BK_MEM_WORKSPACE);
  }
}

static void plan_backward_shared(bk_runner *r, bk_planner *p) {
  r->D = plan_streams(r, p, BK_MEM_WORKSPACE);
  r->df = bk_runner_plain(r) ? r->D : plan_row(r, p, BK_MEM_WORKSPACE);
  r->dh = plan_row(r, p, BK_MEM_WORKSPACE);
  plan_grads(r, p);
}

static bool keeps_all(const bk_runner *r) { return r->options.backward && !r->block; }

/* Tensors of class workspace that live from one sublayer to the next. */
static void plan_shared(bk_runner *r, bk_planner *p) {
  bk_memory_class ws = BK_MEM_WORKSPACE;
  bk_hc_kind kind = (bk_hc_kind)r->model->config.residual;
  bool backward = r->options.backward;
  if (!backward) {
    for (int i = 0; i < 2; i++) r->x[i] = plan_streams(r, p, ws);
  }
  for (int64_t i = 0; !keeps_all(r) && i < (r->block ? r->block : 1); i++) {
    if (i > 0) r->block_x[i] = plan_streams(r, p, ws);
    if (!bk_runner_plain(r)) r->y[i] = plan_row(r, p, ws);
    r->h[i] = plan_row(r, p, ws);
    r->rstd[i] = bk_planner_1d(p, ws, p->ct, r->tokens);
  }
  if (r->block && r->block < r->n) {
    r->y[r->block] = plan_row(r, p, ws);
    r->rstd[r->block] = bk_planner_1d(p, ws, p->ct, r->tokens);
  }
  if (!backward || (bk_runner_plain(r) && !r->block)) r->f = plan_row(r, p, ws);
  if (!backward && !bk_runner_plain(r)) {
    r->proj = plan_proj(r, p, ws, kind);
    r->rinv = plan_rinv(r, p, ws, kind);
  }
  if (backward) {
    if (bk_runner_has_head(r) && bk_runner_sums(r)) r->last = plan_streams(r, p, ws);
    plan_backward_shared(r, p);
  }
}

/* Backward, the block before is rebuilt while y and rstd of a block's first sublayer are still
 * needed, so these are in two places by turns. */
static int64_t place_of_y(const bk_runner *r, int s) {
  if (!r->block) return 0;
  return s % r->block == 0 && s / r->block % 2 ? r->block : s % r->block;
}

static void plan_mix(bk_runner *r, bk_planner *p, bk_slot *slot, int s) {
  bk_memory_class keep = BK_MEM_ACTIVATIONS;
  bk_hc_kind kind = (bk_hc_kind)r->model->config.residual;
  bool plain = bk_runner_plain(r), backward = r->options.backward, all = keeps_all(r);
  int64_t at = r->block ? s % r->block : 0, n = bk_model_streams(r->model);
  bk_mix_acts *a = &slot->mix[s];
  a->x = !backward ? r->x[s & 1] : all || at == 0 ? plan_streams(r, p, keep) : r->block_x[at];
  a->h = all ? plan_row(r, p, keep) : r->h[at];
  a->rstd = all ? bk_planner_1d(p, keep, p->ct, r->tokens) : r->rstd[place_of_y(r, s)];
  a->f = bk_tensor_present(&r->f) ? r->f : plan_row(r, p, keep);
  if (plain) return;
  a->y = all ? plan_row(r, p, keep) : r->y[place_of_y(r, s)];
  a->proj = backward ? plan_proj(r, p, keep, kind) : r->proj;
  a->rinv = backward ? plan_rinv(r, p, keep, kind) : r->rinv;
  a->pre = bk_planner_2d(p, keep, p->ct, r->tokens, n);
  a->post = bk_planner_2d(p, keep, p->ct, r->tokens, n);
  a->comb = plan_comb(r, p, keep);
}

static void plan_last(bk_runner *r, bk_planner *p, bk_slot *slot) {
  if (!r->options.backward) slot->last = r->x[r->n & 1];
  else slot->last = bk_tensor_present(&r->last) ? r->last : plan_streams(r, p, BK_MEM_ACTIVATIONS);
}

static void plan_head_acts(bk_runner *r, bk_planner *p, bk_slot *slot) {
  bk_mix_acts *a = &slot->head.mix;
  bk_memory_class keep = p->keep;
  bk_hc_kind kind = r->model->parts->head.kind;
  a->x = bk_runner_sums(r) ? plan_row(r, p, keep) : slot->last;
  a->h = r->head_row;
  a->rstd = bk_planner_1d(p, keep, p->ct, r->tokens);
  if (r->options.backward) slot->head.dh = plan_row(r, p, keep);
  if (kind != BK_HC_HEAD) return;
  a->y = plan_row(r, p, keep);
  a->proj = plan_proj(r, p, keep, kind);
  a->rinv = plan_rinv(r, p, keep, kind);
  a->pre = bk_planner_2d(p, keep, p->ct, r->tokens, bk_model_streams(r->model));
}

static int64_t head_piece_rows(const bk_runner *r) {
  /* without gradients fewer rows do */
  bool small = r->model->device->props.host_memory || !r->options.backward;
  int64_t rows = (small ? BK_HEAD_PIECE_HOST : BK_HEAD_PIECE_DEVICE) / r->model->config.vocab_size;
  return rows < 1 ? 1 : rows < BK_HEAD_ROWS ? rows : rows / BK_HEAD_ROWS * BK_HEAD_ROWS;
}

/* Scratch of the ends; nothing of a sublayer's F is alive beside it. */
static void plan_ends(bk_runner *r, bk_planner *p) {
  const bk_model_config *c = &r->model->config;
  bk_memory_class ws = BK_MEM_WORKSPACE;
  if (bk_runner_has_embed(r) && !bk_runner_plain(r)) r->embedding = plan_row(r, p, ws);
  if (!bk_runner_has_head(r)) return;
  bool backward = r->options.backward;
  r->piece_rows = r->options.head_rows > 0 ? r->options.head_rows : head_piece_rows(r);
  if (r->piece_rows > r->tokens) r->piece_rows = r->tokens;
  r->head_row = plan_row(r, p, ws);
  bool gradient_apart = backward && (p->st != p->ct || r->options.keep_logits);
  if (!r->options.keep_logits) r->piece = bk_planner_2d(p, ws, p->ct, r->piece_rows, c->vocab_size);
  r->dpiece = gradient_apart ? bk_planner_2d(p, ws, p->st, r->piece_rows, c->vocab_size) : r->piece;
  if (!backward || r->model->parts->head.kind != BK_HC_HEAD) return;
  r->head_grads.dpre = bk_planner_2d(p, ws, p->ct, r->tokens, bk_model_streams(r->model));
  r->head_grads.dproj = plan_proj(r, p, ws, BK_HC_HEAD);
  r->head_grads.drinv = plan_rinv(r, p, ws, BK_HC_HEAD);
}

static void plan_inputs(bk_runner *r, bk_planner *p) {
  bk_memory_class keep = BK_MEM_ACTIVATIONS;
  for (int i = 0; i < r->options.slots; i++) {
    r->slots[i].ids = bk_planner_1d(p, keep, BK_I32, r->tokens);
    if (bk_runner_has_head(r)) r->slots[i].targets = bk_planner_1d(p, keep, BK_I32, r->tokens);
  }
  if (r->options.cache_len) r->past = bk_planner_1d(p, keep, BK_I32, 1);
  if (!bk_runner_has_head(r)) return;
  r->row_losses = bk_planner_1d(p, keep, p->ct, r->tokens);
  if (r->options.keep_logits)
    r->logits = bk_planner_2d(p, keep, p->ct, r->tokens, r->model->config.vocab_size);
}

/* F's activations and scratch: scratch of all sublayers lies in one place, and without backward
 * so do the activations. */
static void plan_sublayer(bk_runner *r, bk_planner *p, int s) {
  const bk_sublayer *l = &r->model->sublayers[s];
  bk_arena_mark mark = bk_memory_mark(r->memory, BK_MEM_WORKSPACE);
  p->past = r->past;
  p->cache_of = r->options.cache_of ? &r->options.cache_of->slots[0].f[s] : NULL;
  for (int i = 0; i < r->options.slots; i++) {
    if (i == 0 || r->options.backward) l->ops->plan_acts(p, l, &r->slots[i].f[s]);
    else r->slots[i].f[s] = r->slots[0].f[s];
  }
  l->ops->plan_forward(p, l, &r->forward_scratch[s]);
  if (r->options.backward) {
    bk_memory_rewind(r->memory, BK_MEM_WORKSPACE, mark);
    l->ops->plan_backward(p, l, &r->backward_scratch[s]);
  }
  bk_memory_rewind(r->memory, BK_MEM_WORKSPACE, mark);
}

static bk_status plan_all(bk_runner *r) {
  const bk_model *m = r->model;
  bk_planner p = {.memory = r->memory,
                  .keep = r->options.backward ? BK_MEM_ACTIVATIONS : BK_MEM_WORKSPACE,
                  .config = &m->config,
                  .st = m->dtype,
                  .ct = m->ct,
                  .batch = r->options.batch,
                  .seq_len = r->options.seq_len,
                  .tokens = r->tokens,
                  .backward = r->options.backward,
                  .cache_len = r->options.cache_len};
  plan_inputs(r, &p);
  plan_shared(r, &p);
  for (int s = 0; s < r->n; s++) {
    for (int i = 0; i < r->options.slots; i++) plan_mix(r, &p, &r->slots[i], s);
  }
  for (int i = 0; i < r->options.slots; i++) plan_last(r, &p, &r->slots[i]);
  bk_arena_mark mark = bk_memory_mark(r->memory, BK_MEM_WORKSPACE);
  plan_ends(r, &p);
  for (int i = 0; bk_runner_has_head(r) && i < r->options.slots; i++)
    plan_head_acts(r, &p, &r->slots[i]);
  bk_memory_rewind(r->memory, BK_MEM_WORKSPACE, mark);
  for (int s = 0; s < r->n; s++) plan_sublayer(r, &p, s);
  return p.status;
}

/* ---- creation ---- */
static bk_status check_options(const bk_model *m, const bk_runner_options *o) {
  bk_context *ctx = m->ctx;
  int64_t widest = m->config.num_experts_per_tok > bk_model_streams(m)
                       ? m->config.num_experts_per_tok
                       : bk_model_streams(m);
  if (o->batch < 1 || o->seq_len < 1 || o->slots < 1) {
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "runner: batch %lld, seq_len %lld and slots %d must be at least 1",
                   (long long)o->batch, (long long)o->seq_len, o->slots);
  }
  if (o->seq_len > INT32_MAX / o->batch / widest) {
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "runner: %lld sequences of %lld tokens are more than row indices can count",
                   (long long)o->batch, (long long)o->seq_len);
  }
  if (o->backward && !m->options.trainable)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: backward needs a trainable model");
  if (o->cache_len < 0 ||
      (o->cache_len && (o->backward || o->cache_len < o->seq_len || o->cache_len > INT32_MAX))) {
    return bk_fail(
        ctx, BK_ERR_ARGUMENT,
        "runner: a cache of %lld positions does not go with backward or with %lld tokens at once",
        (long long)o->cache_len, (long long)o->seq_len);
  }
  const bk_runner *of = o->cache_of;
  if (of && (of->model != m || of->options.batch != o->batch ||
             of->options.cache_len != o->cache_len || !o->cache_len)) {
    return bk_fail(
        ctx, BK_ERR_ARGUMENT,
        "runner: a cache can be shared only by runners of one model, batch and cache_len");
  }
  return BK_OK;
}

static bk_status make_slots(bk_runner *r) {
  bk_context *ctx = r->model->ctx;
  r->slots = bk_alloc_array(ctx, (size_t)r->options.slots, sizeof *r->slots);
  if (!r->slots) return BK_ERR_MEMORY;
  for (int i = 0; i < r->options.slots; i++) {
    r->slots[i].mix = bk_alloc_array(ctx, (size_t)r->n, sizeof *r->slots[i].mix);
    r->slots[i].f = bk_alloc_array(ctx, (size_t)r->n, sizeof *r->slots[i].f);
    if (!r->slots[i].mix || !r->slots[i].f) return BK_ERR_MEMORY;
  }
  return BK_OK;
}

static bk_status make_arrays(bk_runner *r) {
  bk_context *ctx = r->model->ctx;
  size_t n = (size_t)r->n, positions = r->block ? (size_t)r->block : 1;
  r->calls = bk_alloc_array(ctx, n, sizeof *r->calls);
  r->forward_scratch = bk_alloc_array(ctx, n, sizeof *r->forward_scratch);
  r->backward_scratch = bk_alloc_array(ctx, n, sizeof *r->backward_scratch);
  r->block_x = bk_alloc_array(ctx, positions, sizeof *r->block_x);
  r->y = bk_alloc_array(ctx, positions + 1, sizeof *r->y);
  r->h = bk_alloc_array(ctx, positions, sizeof *r->h);
  r->rstd = bk_alloc_array(ctx, positions + 1, sizeof *r->rstd);
  bool ok = r->calls && r->forward_scratch && r->backward_scratch && r->block_x && r->y && r->h &&
            r->rstd;
  return ok ? make_slots(r) : BK_ERR_MEMORY;
}

static bk_status make_staging(bk_runner *r) {
  bk_device *device = r->model->device;
  for (int i = 0; i < r->options.slots; i++) {
    BK_TRY(device->ops->host_alloc(device, 2 * (size_t)r->tokens * sizeof(int32_t),
                                   (void **)&r->slots[i].host));
    BK_TRY(device->ops->event_create(device, &r->slots[i].uploaded));
  }
  return BK_OK;
}

/* Of the gradients only that of lm_head is made in a forward pass. */
static bk_status make_graphs(bk_runner *r) {
  bk_model *m = r->model;
  bk_param_block *head = m->parts->lm_head;
  for (int i = 0; bk_runner_may_graph(r) && i < r->options.slots; i++) {
    bk_graph *g = r->slots[i].graphs;
    BK_TRY(bk_graph_reserve(&g[BK_WALK_LOSS], m, "the forward pass", head,
                            head && r->options.backward ? 1 : 0));
    BK_TRY(bk_graph_reserve(&g[BK_WALK_EVALUATE], m, "the forward pass", NULL, 0));
    BK_TRY(bk_graph_reserve(&g[BK_WALK_FORWARD], m, "the forward pass", NULL, 0));
    BK_TRY(bk_graph_reserve(&g[BK_WALK_BACKWARD], m, "the backward pass", m->blocks,
                            r->options.backward ? m->n_blocks : 0));
  }
  return BK_OK;
}

#define MERGE_PRIORITY 5 /* as high as the device has, at most that */

static bk_status make_merge_stream(bk_runner *r) {
  bk_device *device = r->model->device;
  if (!r->options.merge_stream) return BK_OK;
  BK_TRY(bk_stream_create(device, MERGE_PRIORITY, &r->merge_stream));
  BK_TRY(device->ops->event_create(device, &r->forked));
  return device->ops->event_create(device, &r->joined);
}

/* A profile times op by op on the model's stream, so then there is but one. */
static bool forks(const bk_runner *r, int s) {
  bool feed_forward = r->model->sublayers[s].index % 2 == 1;
  return feed_forward && r->merge_stream && !r->exec.preparing && !r->exec.profile;
}

bk_status bk_runner_fork(bk_runner *r, int s) {
  bk_stream *from = r->model->stream;
  if (!forks(r, s)) return BK_OK;
  BK_TRY(from->ops->event_record(from, r->forked));
  BK_TRY(r->merge_stream->ops->event_wait(r->merge_stream, r->forked));
  r->exec.stream = r->merge_stream;
  return BK_OK;
}

bk_status bk_runner_join(bk_runner *r, int s, bk_status status) {
  bk_stream *to = r->model->stream;
  if (!forks(r, s)) return status;
  r->exec.stream = to;
  bk_status joined = r->merge_stream->ops->event_record(r->merge_stream, r->joined);
  if (joined == BK_OK) joined = to->ops->event_wait(to, r->joined);
  return status != BK_OK ? status : joined;
}

static bk_status runner_fill(bk_runner *r) {
  bk_model *m = r->model;
  bool plan_only = m->options.plan_only;
  BK_TRY(make_arrays(r));
  BK_TRY(bk_memory_create(m->device, &r->memory));
  BK_TRY(plan_all(r));
  BK_TRY(bk_exec_init(&r->exec, m->device, m->stream, plan_only));
  BK_TRY(bk_walk_forward(r, &r->slots[0], true, r->options.cache_len == 0));
  if (r->options.backward) BK_TRY(bk_walk_backward(r, &r->slots[0]));
  BK_TRY(bk_exec_commit(&r->exec));
  if (plan_only) return BK_OK;
  BK_TRY(bk_memory_commit(r->memory));
  BK_TRY(make_graphs(r));
  BK_TRY(make_merge_stream(r));
  return make_staging(r);
}

bk_status bk_runner_create(bk_model *model, const bk_runner_options *options, bk_runner **runner) {
  BK_TRY(check_options(model, options));
  bk_runner *r = bk_alloc(model->ctx, sizeof *r);
  if (!r) return BK_ERR_MEMORY;
  r->model = model;
  r->options = *options;
  r->n = bk_model_n_sublayers(model);
  r->tokens = options->batch * options->seq_len;
  r->block = options->backward ? bk_recompute_block(&model->config, options->hc_recompute) : 0;
  if (r->block > r->n) r->block = r->n;
  bk_status status = runner_fill(r);
  if (status != BK_OK) {
    bk_runner_destroy(r);
    return status;
  }
  *runner = r;
  return BK_OK;
}

static void free_calls(bk_runner *r) {
  bk_context *ctx = r->model->ctx;
  for (int s = 0; r->calls && s < r->n; s++) {
    bk_sublayer_calls *c = &r->calls[s];
    bk_calls *all[] = {&c->mix,   &c->forward, &c->merge,     &c->dgrad,
                       &c->wgrad, &c->mix_bwd, &c->merge_bwd, &c->rebuild};
    for (size_t i = 0; i < BK_COUNT(all); i++) bk_calls_fini(ctx, all[i]);
  }
  bk_calls *ends[] = {&r->embed,           &r->embed_bwd,     &r->head_norm,
                      &r->head_bwd,        &r->loss_sum,      &r->piece_logits[0],
                      &r->piece_logits[1], &r->piece_loss[0], &r->piece_loss[1]};
  for (size_t i = 0; i < BK_COUNT(ends); i++) bk_calls_fini(ctx, ends[i]);
}

static void free_slots(bk_runner *r) {
  bk_device *device = r->model->device;
  for (int i = 0; r->slots && i < r->options.slots; i++) {
    bk_slot *s = &r->slots[i];
    for (int w = 0; w < BK_WALKS; w++) bk_graph_fini(&s->graphs[w]);
    if (s->uploaded) s->uploaded->ops->destroy(s->uploaded);
    if (s->host) device->ops->host_free(device, s->host, 2 * (size_t)r->tokens * sizeof(int32_t));
    bk_free(device->ctx, s->mix);
    bk_free(device->ctx, s->f);
  }
  bk_free(device->ctx, r->slots);
}

void bk_runner_destroy(bk_runner *r) {
  if (!r) return;
  bk_context *ctx = r->model->ctx;
  if (r->model->stream) r->model->stream->ops->sync(r->model->stream);
  if (r->merge_stream) r->merge_stream->ops->sync(r->merge_stream);
  free_slots(r);
  if (r->forked) r->forked->ops->destroy(r->forked);
  if (r->joined) r->joined->ops->destroy(r->joined);
  bk_stream_destroy(r->merge_stream);
  free_calls(r);
  bk_exec_fini(&r->exec);
  bk_memory_destroy(r->memory);
  void *arrays[] = {r->calls, r->forward_scratch, r->backward_scratch, r->block_x, r->y, r->h,
                    r->rstd};
  for (size_t i = 0; i < BK_COUNT(arrays); i++) bk_free(ctx, arrays[i]);
  bk_free(ctx, r);
}

/* ---- steps ---- */
static bk_status check_tokens(const bk_runner *r, const int32_t *ids, const int32_t *targets) {
  int64_t V = r->model->config.vocab_size;
  for (int64_t i = 0; i < r->tokens; i++) {
    if (ids && (ids[i] < 0 || ids[i] >= V)) {
      return bk_fail(r->model->ctx, BK_ERR_DATA,
                     "token id %d at position %lld is not below vocab_size %lld", ids[i],
                     (long long)i, (long long)V);
    }
    if (targets && targets[i] >= V) {
      return bk_fail(r->model->ctx, BK_ERR_DATA,
                     "target %d at position %lld is not below vocab_size %lld", targets[i],
                     (long long)i, (long long)V);
    }
  }
  return BK_OK;
}

static bk_status upload_rows(bk_runner *r, const bk_tensor *t, int32_t *staging,
                             const int32_t *src) {
  bk_stream *stream = r->model->stream;
  for (int64_t i = 0; i < r->tokens; i++) staging[i] = src[i];
  return stream->ops->upload(stream, (bk_place){t->buffer, t->offset}, staging,
                             (size_t)r->tokens * sizeof *staging);
}

/* The staging of a slot is free again when its last upload has happened. */
static bk_status upload_begin(bk_slot *slot) {
  if (!slot->uploading) return BK_OK;
  slot->uploading = false;
  return slot->uploaded->ops->sync(slot->uploaded);
}

static bk_status upload_end(bk_runner *r, bk_slot *slot) {
  BK_TRY(r->model->stream->ops->event_record(r->model->stream, slot->uploaded));
  slot->uploading = true;
  return BK_OK;
}

static bk_status check_run(const bk_runner *r, int slot, bool decoding) {
  bk_context *ctx = r->model->ctx;
  if (r->model->options.plan_only)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "a runner of a model that was only planned cannot run");
  if (slot < 0 || slot >= r->options.slots) {
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: no slot %d of %d", slot, r->options.slots);
  }
  if (decoding != (r->options.cache_len > 0)) {
    return bk_fail(ctx, BK_ERR_ARGUMENT, "runner: %s",
                   decoding ? "it has no cache to decode with" : "with a cache it only decodes");
  }
  return BK_OK;
}

typedef struct pass {
  bk_runner *r;
  bk_slot *slot;
} pass;

static bk_status run_forward(void *arg) {
  const pass *p = arg;
  return bk_walk_forward(p->r, p->slot, p->slot->has_loss || p->r->options.keep_logits,
                         p->slot->has_loss);
}

/* The zeros of what no product wrote belong to it. */
static bk_status run_backward(void *arg) {
  const pass *p = arg;
  BK_TRY(bk_walk_backward(p->r, p->slot));
  return bk_model_settle_grads(p->r->model);
}

bk_status bk_runner_forward(bk_runner *r, int slot_index, const int32_t *ids,
                            const int32_t *targets) {
  BK_TRY(check_run(r, slot_index, false));
  bk_slot *slot = &r->slots[slot_index];
  if (!bk_runner_has_head(r)) targets = NULL;
  if (!ids && bk_runner_has_embed(r))
    return bk_fail(r->model->ctx, BK_ERR_ARGUMENT, "runner: forward needs token ids");
  BK_TRY(check_tokens(r, ids, targets));
  BK_TRY(upload_begin(slot));
  if (ids) BK_TRY(upload_rows(r, &slot->ids, slot->host, ids));
  if (targets) BK_TRY(upload_rows(r, &slot->targets, slot->host + r->tokens, targets));
  BK_TRY(upload_end(r, slot));
  slot->has_loss = targets != NULL;
  int walk = !targets ? BK_WALK_FORWARD : r->loss_only ? BK_WALK_EVALUATE : BK_WALK_LOSS;
  return bk_graph_run(&slot->graphs[walk], bk_runner_may_graph(r), run_forward, &(pass){r, slot});
}

bk_status bk_runner_evaluate(bk_runner *r, int slot_index, const int32_t *ids,
                             const int32_t *targets) {
  r->loss_only = true;
  bk_status status = bk_runner_forward(r, slot_index, ids, targets);
  r->loss_only = false;
  if (slot_index >= 0 && slot_index < r->options.slots) r->slots[slot_index].has_loss = false;
  return status;
}

bk_status bk_runner_backward(bk_runner *r, int slot_index) {
  BK_TRY(check_run(r, slot_index, false));
  bk_slot *slot = &r->slots[slot_index];
  if (!r->options.backward || (bk_runner_has_head(r) && !slot->has_loss)) {
    return bk_fail(r->model->ctx, BK_ERR_ARGUMENT,
                   "runner: backward needs a runner made for it and a forward with targets");
  }
  return bk_graph_run(&slot->graphs[BK_WALK_BACKWARD], bk_runner_may_graph(r), run_backward,
                      &(pass){r, slot});
}

bk_status bk_runner_decode(bk_runner *r, int64_t past, const int32_t *ids) {
  BK_TRY(check_run(r, 0, true));
  bk_slot *slot = &r->slots[0];
  bk_stream *stream = r->model->stream;
  if (past < 0 || past + r->options.seq_len > r->options.cache_len) {
    return bk_fail(r->model->ctx, BK_ERR_ARGUMENT,
                   "runner: %lld tokens after %lld do not fit a cache of %lld positions",
                   (long long)r->options.seq_len, (long long)past, (long long)r->options.cache_len);
  }
  BK_TRY(check_tokens(r, ids, NULL));
  BK_TRY(upload_begin(slot));
  BK_TRY(upload_rows(r, &slot->ids, slot->host, ids));
  r->past_host = (int32_t)past;
  BK_TRY(stream->ops->upload(stream, (bk_place){r->past.buffer, r->past.offset}, &r->past_host,
                             sizeof r->past_host));
  BK_TRY(upload_end(r, slot));
  return bk_walk_forward(r, slot, true, false);
}

/* ---- results ---- */
size_t bk_runner_bytes(const bk_runner *r, bk_memory_class c) {
  return bk_memory_bytes(r->memory, c) + bk_exec_bytes(&r->exec, c);
}

bk_tensor bk_runner_logits(const bk_runner *r) { return r->logits; }
bk_tensor bk_runner_row_losses(const bk_runner *r) { return r->row_losses; }
int bk_runner_n_sublayers(const bk_runner *r) { return r->n; }
int64_t bk_runner_tokens(const bk_runner *r) { return r->tokens; }
bk_stream *bk_runner_stream(const bk_runner *r) { return r->model->stream; }
int bk_runner_n_moe(const bk_runner *r) { return r->model->parts->n_moe; }

bk_status bk_runner_maps(const bk_runner *r, int slot, int sublayer, bk_tensor *pre,
                         bk_tensor *post, bk_tensor *comb) {
  if (slot < 0 || slot >= r->options.slots || sublayer < 0 || sublayer >= r->n) {
    return bk_fail(r->model->ctx, BK_ERR_ARGUMENT, "runner: no sublayer %d in slot %d", sublayer,
                   slot);
  }
  const bk_mix_acts *a = &r->slots[slot].mix[sublayer];
  *pre = a->pre;
  *post = a->post;
  *comb = a->comb;
  return BK_OK;
}

bk_status bk_runner_routing(const bk_runner *r, int slot, int moe_layer, bk_tensor *scores,
                            bk_tensor *index) {
  for (int s = 0; s < r->n && slot >= 0 && slot < r->options.slots; s++) {
    if (r->model->sublayers[s].ops != &bk_moe_ops || r->model->sublayers[s].moe_layer != moe_layer)
      continue;
    *scores = r->slots[slot].f[s].moe.scores;
    *index = r->slots[slot].f[s].moe.index;
    return BK_OK;
  }
  return bk_fail(r->model->ctx, BK_ERR_ARGUMENT,
                 "runner: no mixture-of-experts layer %d in slot %d", moe_layer, slot);
}

bk_tensor bk_runner_input(const bk_runner *r, int slot) { return r->slots[slot].mix[0].x; }
bk_tensor bk_runner_output(const bk_runner *r, int slot) { return r->slots[slot].last; }
bk_tensor bk_runner_stream_grad(const bk_runner *r) { return r->D; }
