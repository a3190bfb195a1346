/* Walks of a step as captured graphs: see graph.h. */
#include "models/graph.h"

#include <stdio.h>
#include <string.h>

#include "models/model_priv.h"

#define REASON_MAX 256

bool bk_model_may_graph(const bk_model *m) {
  return m->device->props.captures && !m->device->options.no_graph && !m->options.plan_only;
}

/* ---- flags ---- */

static uint8_t flags_of(const bk_param_block *b) {
  return (uint8_t)(b->fresh | b->by_product << 1);
}

static bool flags_equal(const bk_graph *g, const uint8_t *flags) {
  for (int i = 0; i < g->n_blocks; i++)
    if (flags_of(&g->blocks[i]) != flags[i]) return false;
  return true;
}

static void flags_save(const bk_graph *g, uint8_t *flags) {
  for (int i = 0; i < g->n_blocks; i++) flags[i] = flags_of(&g->blocks[i]);
}

/* by_product changes in preparation alone, never in a walk that runs. */
static void flags_restore(bk_graph *g, const uint8_t *flags) {
  for (int i = 0; i < g->n_blocks; i++) g->blocks[i].fresh = flags[i] & 1;
}

/* ---- states ---- */

bk_status bk_graph_reserve(bk_graph *g, bk_model *m, const char *name, bk_param_block *blocks,
                           int n_blocks) {
  if (!bk_model_may_graph(m)) return BK_OK;
  *g = (bk_graph){.model = m, .name = name, .blocks = blocks, .n_blocks = n_blocks};
  for (int i = 0; n_blocks && i < BK_GRAPH_STATES; i++) {
    g->states[i].before = bk_alloc_array(m->ctx, (size_t)n_blocks, 2);
    if (!g->states[i].before) return BK_ERR_MEMORY;
    g->states[i].after = g->states[i].before + n_blocks;
  }
  return BK_OK;
}

void bk_graph_fini(bk_graph *g) {
  bool waited = false;
  for (int i = 0; g->model && i < BK_GRAPH_STATES; i++) {
    bk_graph_state *s = &g->states[i];
    bk_stream *stream = g->model->stream;
    if (s->graph && !waited) waited = stream->ops->sync(stream) == BK_OK;
    if (s->graph) stream->ops->graph_destroy(stream, s->graph);
    bk_free(g->model->ctx, s->before);
  }
  *g = (bk_graph){0};
}

/* The state that the flags are in now; NULL: one too many. */
static bk_graph_state *state_now(bk_graph *g) {
  for (int i = 0; i < BK_GRAPH_STATES; i++) {
    bk_graph_state *s = &g->states[i];
    if (s->taken && flags_equal(g, s->before)) return s;
    if (s->taken) continue;
    s->taken = true;
    flags_save(g, s->before);
    return s;
  }
  return NULL;
}

/* ---- capture ---- */

/* What went wrong in a capture is the reason of a warning, not an error. */
static void keep_reason(void *user, bk_log_level level, const char *message) {
  char *reason = user;
  if (level == BK_LOG_ERROR && !reason[0]) snprintf(reason, REASON_MAX, "%s", message);
}

static bk_status capture(bk_graph *g, bk_graph_state *s, bk_graph_walk walk, void *arg) {
  bk_stream *stream = g->model->stream;
  void *made = NULL;
  BK_TRY(stream->ops->capture_begin(stream));
  bk_status status = walk(arg), ended = stream->ops->capture_end(stream, &made);
  if (status == BK_OK) status = ended;
  if (status == BK_OK && !made) status = bk_fail(g->model->ctx, BK_ERR_DEVICE, "there is no graph");
  if (status == BK_OK) s->graph = made;
  else if (made) stream->ops->graph_destroy(stream, made);
  return status;
}

static bk_status capture_quietly(bk_graph *g, bk_graph_state *s, bk_graph_walk walk, void *arg,
                                 char *reason) {
  bk_context *ctx = g->model->ctx;
  bk_log_fn log = ctx->log;
  void *log_user = ctx->log_user;
  ctx->log = keep_reason;
  ctx->log_user = reason;
  bk_status status = capture(g, s, walk, arg);
  ctx->log = log;
  ctx->log_user = log_user;
  return status;
}

static void warn_once(bk_graph *g, bk_status status, const char *reason) {
  bk_model *m = g->model;
  if (m->parts->graph_warned) return;
  m->parts->graph_warned = true;
  bk_warn(m->ctx, "%s cannot be captured as a graph and runs call by call: %s", g->name,
          reason[0] ? reason : bk_status_name(status));
}

static bk_status launch(const bk_graph *g, const bk_graph_state *s) {
  bk_stream *stream = g->model->stream;
  return stream->ops->graph_launch(stream, s->graph);
}

static bk_status run_second(bk_graph *g, bk_graph_state *s, bk_graph_walk walk, void *arg) {
  char reason[REASON_MAX] = "";
  bk_status status = capture_quietly(g, s, walk, arg, reason);
  if (status == BK_OK) {
    flags_save(g, s->after);
    return launch(g, s);
  }
  s->failed = true;
  flags_restore(g, s->before); /* nothing of the walk was done */
  warn_once(g, status, reason);
  return walk(arg);
}

bk_status bk_graph_run(bk_graph *g, bool may, bk_graph_walk walk, void *arg) {
  bk_graph_state *s = g->model && may && !g->model->profile ? state_now(g) : NULL;
  if (!s || s->failed) return walk(arg);
  if (s->graph) {
    BK_TRY(launch(g, s));
    flags_restore(g, s->after);
    return BK_OK;
  }
  if (s->warm) return run_second(g, s, walk, arg);
  BK_TRY(walk(arg));
  s->warm = true;
  return BK_OK;
}
