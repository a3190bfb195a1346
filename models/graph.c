/* Walks of a step as captured graphs (graph.h). A failed capture is never a failed step: the walk
 * is run call by call instead, with the same result. */
#include "models/graph.h"

#include <stdio.h>

#define REASON_MAX 256

/* A graph that may still be running is waited for. */
void bk_graph_fini(bk_graph *g) {
  if (g->graph) {
    g->stream->ops->sync(g->stream);
    g->stream->ops->graph_destroy(g->stream, g->graph);
  }
  *g = (bk_graph){0};
}

/* Errors logged during a capture become the reason of a warning, since the step itself goes on. */
static void keep_reason(void *user, bk_log_level level, const char *message) {
  char *reason = user;
  if (level == BK_LOG_ERROR && !reason[0]) snprintf(reason, REASON_MAX, "%s", message);
}

/* capture_end is called even if the walk has failed, because only that takes the stream out of its
 * capturing state. */
static bk_status capture(bk_graph *g, bk_graph_walk walk, void *arg) {
  bk_stream *stream = g->stream;
  void *made = NULL;
  BK_TRY(stream->ops->capture_begin(stream));
  bk_status status = walk(arg), ended = stream->ops->capture_end(stream, &made);
  if (status == BK_OK) status = ended;
  if (status == BK_OK && !made)
    status = bk_fail(stream->device->ctx, BK_ERR_DEVICE, "there is no graph");
  if (status == BK_OK) g->graph = made;
  else if (made) stream->ops->graph_destroy(stream, made);
  return status;
}

/* Swaps the context's log sink for the time of the capture. */
static bk_status capture_quietly(bk_graph *g, bk_graph_walk walk, void *arg, char *reason) {
  bk_context *ctx = g->stream->device->ctx;
  bk_log_fn log = ctx->log;
  void *log_user = ctx->log_user;
  ctx->log = keep_reason;
  ctx->log_user = reason;
  bk_status status = capture(g, walk, arg);
  ctx->log = log;
  ctx->log_user = log_user;
  return status;
}

/* `reason` is what the backend logged; without it the status must do. */
static void warn_once(bk_graph *g, bk_status status, const char *reason) {
  if (*g->warned) return;
  *g->warned = true;
  bk_warn(g->stream->device->ctx, "%s cannot be captured as a graph and runs call by call: %s",
          g->name, reason[0] ? reason : bk_status_name(status));
}

/* A capture only notes what is given to the stream; the launch of the graph then does it. */
static bk_status run_second(bk_graph *g, bk_graph_walk walk, void *arg) {
  char reason[REASON_MAX] = "";
  bk_status status = capture_quietly(g, walk, arg, reason);
  if (status == BK_OK) return g->stream->ops->graph_launch(g->stream, g->graph);
  g->failed = true; /* nothing of the walk was done */
  warn_once(g, status, reason);
  return walk(arg);
}

/* The four cases are: never captured (or not now), captured, the second run, the first run. */
bk_status bk_graph_run(bk_graph *g, bool may, bk_graph_walk walk, void *arg) {
  if (!g->stream || !may || g->failed) return walk(arg);
  if (g->graph) return g->stream->ops->graph_launch(g->stream, g->graph);
  if (g->warm) return run_second(g, walk, arg);
  BK_TRY(walk(arg));
  g->warm = true;
  return BK_OK;
}
