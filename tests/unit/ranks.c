#include "tests/unit/ranks.h"

static void rank_log(void *user, bk_log_level level, const char *message) {
  rank *r = user;
  if (level > BK_LOG_WARN) return;
  size_t used = strlen(r->messages);
  snprintf(r->messages + used, sizeof r->messages - used, "%s\n", message);
}

static bk_status rank_open(rank *r) {
  bk_context_options options = {.log = rank_log, .log_user = r, .log_level = BK_LOG_TRACE};
  bk_job_options job = {.rank = r->rank, .timeout_s = r->all->timeout_s, .world = r->all->world};
  bk_device_options device = {.threads = r->all->threads};
  BK_TRY(bk_context_create(&options, &r->ctx));
  BK_TRY(bk_device_open_backend(r->ctx, r->all->backend, &device, &r->device));
  BK_TRY(bk_stream_create(r->device, 0, &r->stream));
  BK_TRY(bk_engine_open(r->ctx, &bk_transport_threads, &job, &r->engine));
  EXPECT(r, job.size == r->size && job.local_size == r->size && job.local_rank == r->rank);
  return bk_engine_comm(r->engine, r->device, &r->comm);
}

static void *rank_main(void *arg) {
  rank *r = arg;
  EXPECT_OK(r, rank_open(r));
  if (!r->failure[0]) r->all->body(r);
  bk_comm_destroy(r->comm);
  if (r->engine) bk_engine_close(r->engine, r->abandon || r->failure[0]);
  bk_stream_destroy(r->stream);
  bk_device_close(r->device);
  bk_context_destroy(r->ctx); /* warns of a leak */
  return NULL;
}

void ranks_run(ranks *all, bk_context *ctx) {
  ck_assert_int_eq(bk_thread_world_create(ctx, all->size, &all->world), BK_OK);
  bk_thread_world_disturb(all->world, all->seed);
  for (int i = 0; i < all->size; i++) {
    all->rank[i] = (rank){.rank = i, .size = all->size, .all = all};
    ck_assert_int_eq(pthread_create(&all->rank[i].thread, NULL, rank_main, &all->rank[i]), 0);
  }
  for (int i = 0; i < all->size; i++) pthread_join(all->rank[i].thread, NULL);
  bk_thread_world_destroy(all->world);
  for (int i = 0; i < all->size; i++)
    ck_assert_msg(!all->rank[i].failure[0], "%s\n%s", all->rank[i].failure, all->rank[i].messages);
}

void rank_expect(ranks *all, int r, const char *part) {
  ck_assert_msg(strstr(all->rank[r].messages, part) != NULL, "rank %d: expected \"%s\" in:\n%s", r,
                part, all->rank[r].messages);
}

/* ---- the device that is late ---- */

typedef struct late_memory {
  char *bytes;
} late_memory;

typedef struct late_stream late_stream;

typedef struct late_event {
  bk_event base;
  late_stream *stream;
  int position; /* what must be done */
} late_event;

typedef struct late_call {
  enum { LATE_UPLOAD, LATE_DOWNLOAD, LATE_COPY, LATE_FILL, LATE_WAIT } kind;
  bk_place to, from;
  const void *src;
  void *dst;
  size_t bytes;
  late_stream *stream;
  int position;
  uint8_t value;
} late_call;

#define LATE_CALLS 4096
struct late_stream {
  bk_stream base;
  int begun, done; /* calls ever */
  late_call calls[LATE_CALLS];
};

static char *late_at(bk_place p) { return ((late_memory *)p.buffer->handle)->bytes + p.offset; }

static void late_run(late_stream *s, int position) {
  while (s->done < position) {
    late_call *c = &s->calls[s->done++ % LATE_CALLS];
    switch (c->kind) {
      case LATE_UPLOAD: memcpy(late_at(c->to), c->src, c->bytes); break;
      case LATE_DOWNLOAD: memcpy(c->dst, late_at(c->from), c->bytes); break;
      case LATE_COPY: memcpy(late_at(c->to), late_at(c->from), c->bytes); break;
      case LATE_FILL: memset(late_at(c->to), c->value, c->bytes); break;
      case LATE_WAIT: late_run(c->stream, c->position); break;
    }
  }
}

static bk_status late_add(bk_stream *stream, late_call call) {
  late_stream *s = (late_stream *)stream;
  if (s->begun - s->done == LATE_CALLS) late_run(s, s->done + 1);
  s->calls[s->begun++ % LATE_CALLS] = call;
  return BK_OK;
}

static bk_status late_upload(bk_stream *s, bk_place dst, const void *src, size_t bytes) {
  return late_add(s, (late_call){.kind = LATE_UPLOAD, .to = dst, .src = src, .bytes = bytes});
}
static bk_status late_download(bk_stream *s, void *dst, bk_place src, size_t bytes) {
  return late_add(s, (late_call){.kind = LATE_DOWNLOAD, .dst = dst, .from = src, .bytes = bytes});
}
static bk_status late_copy(bk_stream *s, bk_place dst, bk_place src, size_t bytes) {
  return late_add(s, (late_call){.kind = LATE_COPY, .to = dst, .from = src, .bytes = bytes});
}
static bk_status late_fill(bk_stream *s, bk_place dst, uint8_t value, size_t bytes) {
  return late_add(s, (late_call){.kind = LATE_FILL, .to = dst, .value = value, .bytes = bytes});
}
static bk_status late_event_record(bk_stream *s, bk_event *event) {
  late_event *e = (late_event *)event;
  e->stream = (late_stream *)s;
  e->position = e->stream->begun;
  return BK_OK;
}
static bk_status late_event_wait(bk_stream *s, bk_event *event) {
  late_event *e = (late_event *)event;
  return late_add(s, (late_call){.kind = LATE_WAIT, .stream = e->stream, .position = e->position});
}
static bk_status late_sync(bk_stream *s) {
  late_run((late_stream *)s, ((late_stream *)s)->begun);
  return BK_OK;
}
/* Whoever asks brings it on by one call. */
static bk_status late_query(bk_stream *stream, bool *done) {
  late_stream *s = (late_stream *)stream;
  if (s->done < s->begun) late_run(s, s->done + 1);
  *done = s->done == s->begun;
  return BK_OK;
}
static void late_destroy(bk_stream *s) { bk_free(s->device->ctx, s); }
static const bk_stream_ops late_stream_ops = {BK_STREAM_OPS(late), BK_STREAM_NO_CAPTURES};

static bk_status late_stream_create(bk_device *device, int priority, bk_stream **stream) {
  (void)priority;
  return bk_stream_make(device, &late_stream_ops, sizeof(late_stream), stream);
}

static void late_event_destroy(bk_event *event) { bk_free(event->device->ctx, event); }
static bk_status late_event_sync(bk_event *event) {
  late_event *e = (late_event *)event;
  if (e->stream) late_run(e->stream, e->position);
  return BK_OK;
}
static bk_status late_event_elapsed(bk_event *begin, bk_event *end, double *seconds) {
  (void)begin, (void)end;
  *seconds = 0;
  return BK_OK;
}
static const bk_event_ops late_event_ops = {late_event_destroy, late_event_sync,
                                            late_event_elapsed};

static bk_status late_event_create(bk_device *device, bk_event **event) {
  return bk_event_make(device, &late_event_ops, sizeof(late_event), event);
}

static bk_status late_buffer_alloc(bk_device *device, size_t bytes, void **handle) {
  late_memory *m = bk_alloc(device->ctx, sizeof *m);
  if (!m) return BK_ERR_MEMORY;
  m->bytes = bk_alloc(device->ctx, bytes);
  if (!m->bytes) {
    bk_free(device->ctx, m);
    return BK_ERR_MEMORY;
  }
  *handle = m;
  return BK_OK;
}
static void late_buffer_free(bk_device *device, void *handle, size_t bytes) {
  (void)bytes;
  bk_free(device->ctx, ((late_memory *)handle)->bytes);
  bk_free(device->ctx, handle);
}
static void late_close(bk_device *device) { bk_free(device->ctx, device); }

static const bk_device_ops late_device_ops = {
    .close = late_close,
    .memory_info = bk_host_memory_info,
    .buffer_alloc = late_buffer_alloc,
    .buffer_free = late_buffer_free,
    .host_alloc = bk_host_buffer_alloc,
    .host_free = bk_host_buffer_free,
    .stream_create = late_stream_create,
    .event_create = late_event_create,
};

static bk_status late_probe(bk_context *c, char *reason, size_t reason_size) {
  (void)c, (void)reason, (void)reason_size;
  return BK_OK;
}
static int late_device_count(bk_context *c) {
  (void)c;
  return 1;
}
static bk_status late_describe(bk_context *c, int index, bk_device_props *props,
                               size_t *memory_bytes) {
  (void)c, (void)index;
  *props = (bk_device_props){0};
  *memory_bytes = 0;
  return BK_OK;
}
static bk_status late_open(bk_context *c, int index, const bk_device_options *options,
                           bk_device **device) {
  bk_device *made = bk_alloc(c, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  bk_device_init(made, c, &late_backend, index, options, &late_device_ops);
  *device = made;
  return BK_OK;
}

static const bk_kernel late_kernels[] = {BK_KERNEL_END};
const bk_backend late_backend = BK_BACKEND(late, -1, late_kernels);
