#include "tests/models/graph_device.h"

#include <string.h>

graph_counts graphs;

#define ROWS_MAX 1024

static bk_kernel rows[ROWS_MAX]; /* cpu's, each with its launch replaced */
static const bk_kernel *origins[ROWS_MAX];

typedef enum note_kind { NOTE_LAUNCH, NOTE_FILL, NOTE_COPY } note_kind;

typedef struct note {
  note_kind kind;
  bk_plan plan;
  void *args;        /* a copy, owned */
  bk_place dst, src; /* of a launch: the workspace is dst */
  uint8_t value;
  size_t bytes;
} note;

typedef struct tape {
  note *notes;
  size_t count, capacity;
  bool refused; /* something that cannot be captured was tried */
} tape;

typedef struct graph_stream {
  bk_stream base;
  bk_stream *inner; /* cpu's */
  tape *taping;     /* NULL: no capture */
} graph_stream;

static graph_stream *of(bk_stream *stream) { return (graph_stream *)stream; }

static void tape_free(bk_context *ctx, tape *t) {
  if (!t) return;
  for (size_t i = 0; i < t->count; i++) bk_free(ctx, t->notes[i].args);
  bk_free(ctx, t->notes);
  bk_free(ctx, t);
}

static bk_status tape_add(bk_stream *stream, const note *n) {
  tape *t = of(stream)->taping;
  graphs.noted++;
  BK_TRY(bk_grow(stream->device->ctx, (void **)&t->notes, &t->capacity, t->count + 1,
                 sizeof *t->notes));
  t->notes[t->count++] = *n;
  return BK_OK;
}

/* ---- launches ---- */

static bk_status launch_now(bk_stream *stream, const bk_plan *plan, const void *args,
                            bk_place workspace) {
  return origins[plan->kernel - rows]->launch(stream, plan, args, workspace);
}

static bk_status launch(bk_stream *stream, const bk_plan *plan, const void *args,
                        bk_place workspace) {
  bk_context *ctx = stream->device->ctx;
  if (!of(stream)->taping) {
    graphs.calls++;
    return launch_now(stream, plan, args, workspace);
  }
  if (graphs.refuse_launch > 0 && --graphs.refuse_launch == 0) {
    of(stream)->taping->refused = true;
    return bk_fail(ctx, BK_ERR_DEVICE, "graphs: this launch cannot be captured");
  }
  size_t bytes = bk_op_describe(plan->kernel->op)->args_size;
  note n = {.kind = NOTE_LAUNCH, .plan = *plan, .args = bk_alloc(ctx, bytes), .dst = workspace};
  if (!n.args) return BK_ERR_MEMORY;
  memcpy(n.args, args, bytes);
  return tape_add(stream, &n);
}

/* ---- streams ---- */

static bk_status refuse(bk_stream *stream, const char *what) {
  if (!of(stream)->taping) return BK_OK;
  of(stream)->taping->refused = true;
  return bk_fail(stream->device->ctx, BK_ERR_DEVICE, "graphs: %s during a capture", what);
}

static bk_status stream_upload(bk_stream *stream, bk_place dst, const void *src, size_t bytes) {
  BK_TRY(refuse(stream, "an upload"));
  return of(stream)->inner->ops->upload(of(stream)->inner, dst, src, bytes);
}

static bk_status stream_download(bk_stream *stream, void *dst, bk_place src, size_t bytes) {
  BK_TRY(refuse(stream, "a download"));
  return of(stream)->inner->ops->download(of(stream)->inner, dst, src, bytes);
}

static bk_status stream_copy(bk_stream *stream, bk_place dst, bk_place src, size_t bytes) {
  if (of(stream)->taping)
    return tape_add(stream, &(note){.kind = NOTE_COPY, .dst = dst, .src = src, .bytes = bytes});
  graphs.calls++;
  return of(stream)->inner->ops->copy(of(stream)->inner, dst, src, bytes);
}

static bk_status stream_fill(bk_stream *stream, bk_place dst, uint8_t value, size_t bytes) {
  if (of(stream)->taping)
    return tape_add(stream, &(note){.kind = NOTE_FILL, .dst = dst, .value = value, .bytes = bytes});
  graphs.calls++;
  return of(stream)->inner->ops->fill(of(stream)->inner, dst, value, bytes);
}

static bk_status stream_event_record(bk_stream *stream, bk_event *event) {
  BK_TRY(refuse(stream, "an event"));
  return of(stream)->inner->ops->event_record(of(stream)->inner, event);
}

static bk_status stream_event_wait(bk_stream *stream, bk_event *event) {
  BK_TRY(refuse(stream, "a wait for an event"));
  return of(stream)->inner->ops->event_wait(of(stream)->inner, event);
}

static bk_status stream_sync(bk_stream *stream) {
  BK_TRY(refuse(stream, "a sync"));
  return of(stream)->inner->ops->sync(of(stream)->inner);
}

static bk_status stream_query(bk_stream *stream, bool *done) {
  BK_TRY(refuse(stream, "a query"));
  return of(stream)->inner->ops->query(of(stream)->inner, done);
}

static void stream_destroy(bk_stream *stream) {
  bk_context *ctx = stream->device->ctx;
  of(stream)->inner->ops->destroy(of(stream)->inner);
  tape_free(ctx, of(stream)->taping);
  bk_free(ctx, stream);
}

/* ---- captures ---- */

static bk_status stream_capture_begin(bk_stream *stream) {
  bk_context *ctx = stream->device->ctx;
  graphs.captures++;
  if (of(stream)->taping) return bk_fail(ctx, BK_ERR_DEVICE, "graphs: a capture within a capture");
  if (graphs.refuse_begin) return bk_fail(ctx, BK_ERR_DEVICE, "graphs: no capture today");
  if (!(of(stream)->taping = bk_alloc(ctx, sizeof(tape)))) return BK_ERR_MEMORY;
  graphs.begun_and_not_ended++;
  return BK_OK;
}

static bk_status stream_capture_end(bk_stream *stream, void **graph) {
  bk_context *ctx = stream->device->ctx;
  tape *t = of(stream)->taping;
  if (!t) return bk_fail(ctx, BK_ERR_DEVICE, "graphs: there is no capture to end");
  of(stream)->taping = NULL;
  graphs.begun_and_not_ended--;
  bool refused = t->refused || graphs.refuse_end;
  if (refused || graphs.lose) {
    tape_free(ctx, t);
    return refused ? bk_fail(ctx, BK_ERR_DEVICE, "graphs: the capture is not valid") : BK_OK;
  }
  graphs.held++;
  *graph = t;
  return BK_OK;
}

static bk_status replay(bk_stream *stream, const note *n) {
  bk_stream *inner = of(stream)->inner;
  graphs.replayed++;
  if (n->kind == NOTE_FILL) return inner->ops->fill(inner, n->dst, n->value, n->bytes);
  if (n->kind == NOTE_COPY) return inner->ops->copy(inner, n->dst, n->src, n->bytes);
  return launch_now(stream, &n->plan, n->args, n->dst);
}

static bk_status stream_graph_launch(bk_stream *stream, void *graph) {
  const tape *t = graph;
  BK_TRY(refuse(stream, "a graph"));
  graphs.replays++;
  for (size_t i = 0; i < t->count; i++) BK_TRY(replay(stream, &t->notes[i]));
  return BK_OK;
}

static void stream_graph_destroy(bk_stream *stream, void *graph) {
  if (graph) graphs.held--;
  tape_free(stream->device->ctx, graph);
}

static const bk_stream_ops stream_ops = {BK_STREAM_OPS(stream), BK_STREAM_CAPTURES(stream)};

static bk_status stream_create(bk_device *device, int priority, bk_stream **stream) {
  bk_stream *made = NULL;
  BK_TRY(bk_stream_make(device, &stream_ops, sizeof(graph_stream), &made));
  bk_status status = bk_host_stream_create(device, priority, &of(made)->inner);
  if (status == BK_OK) *stream = made;
  else bk_free(device->ctx, made);
  return status;
}

/* ---- the backend ---- */

static bk_device_ops device_ops;

static const bk_backend backend;

static bk_status graphs_open(bk_context *ctx, int index, const bk_device_options *options,
                             bk_device **device) {
  BK_TRY(bk_backend_cpu.open(ctx, index, options, device));
  device_ops = *(*device)->ops;
  device_ops.stream_create = stream_create;
  (*device)->ops = &device_ops;
  (*device)->backend = &backend;
  (*device)->props.captures = true;
  return BK_OK;
}

static bk_status graphs_probe(bk_context *ctx, char *reason, size_t reason_size) {
  return bk_backend_cpu.probe(ctx, reason, reason_size);
}
static int graphs_device_count(bk_context *ctx) { return bk_backend_cpu.device_count(ctx); }
static bk_status graphs_describe(bk_context *ctx, int index, bk_device_props *props,
                                 size_t *memory_bytes) {
  return bk_backend_cpu.describe(ctx, index, props, memory_bytes);
}

/* Never the default. */
static const bk_backend backend = BK_BACKEND(graphs, -1, rows);

bk_status graph_backend_register(bk_context *ctx, bk_op lacks) {
  int n = 0;
  graphs = (graph_counts){0};
  for (const bk_kernel *k = bk_backend_cpu.kernels; k->op != BK_OP_NONE; k++) {
    if (k->op == lacks) continue;
    if (n == ROWS_MAX - 1)
      return bk_fail(ctx, BK_ERR_ARGUMENT, "graphs: cpu has more than %d kernels", ROWS_MAX - 1);
    origins[n] = k;
    rows[n] = *k;
    rows[n++].launch = launch;
  }
  rows[n] = (bk_kernel)BK_KERNEL_END;
  return bk_backend_register(ctx, &backend);
}
