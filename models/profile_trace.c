/* A profile as a Chrome trace, for chrome://tracing, Perfetto and the like. See profile.h; the
 * format is "Trace Event Format" (Google, 2016). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/json_out.h"
#include "models/profile.h"

/* One process, or one for each rank; the steps on one line, the ops under them on another, and what
 * goes to other ranks on a third. */
enum { ALONE = 1, STEPS = 1, OPS = 2, COMM = 3 };

/* The key always comes behind another member of the same object. */
static void put_key(bk_json_out *out, const char *key) {
  bk_json_out_text(out, ",\"");
  bk_json_out_text(out, key);
  bk_json_out_text(out, "\":");
}

static void put_string(bk_json_out *out, const char *key, const char *value) {
  put_key(out, key);
  bk_json_out_string(out, value);
}

static void put_int(bk_json_out *out, const char *key, int64_t value) {
  put_key(out, key);
  bk_json_out_int(out, value);
}

/* Microseconds with three digits after the point: no clock here is finer than a nanosecond. */
static void put_micros(bk_json_out *out, const char *key, double seconds) {
  put_key(out, key);
  bk_json_out_double(out, floor(seconds * 1e9 + 0.5) / 1e3);
}

/* A metadata event says what a process or a line of the display is called. */
static void put_name(bk_json_out *out, const char *what, int process, int thread,
                     const char *name) {
  bk_json_out_text(out, "{\"ph\":\"M\"");
  put_string(out, "name", what);
  put_int(out, "pid", process);
  put_int(out, "tid", thread);
  bk_json_out_text(out, ",\"args\":{\"name\":");
  bk_json_out_string(out, name);
  bk_json_out_text(out, "}}");
}

/* Everything of a complete event but its args. */
static void put_span(bk_json_out *out, const char *name, const char *category, int process,
                     int thread, double at, double seconds) {
  bk_json_out_text(out, ",\n{\"ph\":\"X\"");
  put_string(out, "name", name);
  put_string(out, "cat", category);
  put_int(out, "pid", process);
  put_int(out, "tid", thread);
  put_micros(out, "ts", at);
  put_micros(out, "dur", seconds);
}

/* Times in the trace count from the creation of the profile. */
static void put_record(bk_json_out *out, int process, const bk_profile_step *step,
                       const bk_profile_record *r) {
  put_span(out, bk_op_name((bk_op)r->op), bk_phase_name((bk_phase)r->phase), process, OPS,
           step->at + r->begin, r->seconds);
  bk_json_out_text(out, ",\"args\":{\"kernel\":");
  bk_json_out_string(out, r->kernel);
  if (r->sublayer >= 0) put_int(out, "sublayer", r->sublayer);
  else bk_json_out_text(out, ",\"sublayer\":null");
  put_int(out, "bytes", (int64_t)r->bytes);
  put_int(out, "flops", (int64_t)r->flops);
  bk_json_out_text(out, "}}");
}

static void put_share(bk_json_out *out, const char *key, double share) {
  put_key(out, key);
  if (isnan(share)) bk_json_out_text(out, "null");
  else bk_json_out_double(out, share);
}

/* Times in args are those of the operation, which may begin before its span: spans on one line must
 * not overlap. */
static void put_talk(bk_json_out *out, int process, const bk_profile_talk_record *t) {
  const bk_comm_times *times = &t->times;
  put_span(out, bk_profile_talk_name(t->kind), "comm", process, COMM, t->at, t->seconds);
  bk_json_out_text(out, ",\"args\":{\"bytes\":");
  bk_json_out_int(out, (int64_t)times->sent);
  if (t->bucket >= 0) put_int(out, "bucket", t->bucket);
  else bk_json_out_text(out, ",\"bucket\":null");
  put_micros(out, "under_way", times->ended - times->begun);
  put_micros(out, "until_all_came", times->met - times->begun);
  put_micros(out, "waited", times->waited);
  bk_json_out_text(out, "}}");
}

/* The span of the step comes first, then those of its launches. */
static void put_step(bk_json_out *out, int process, const bk_profile_step *step) {
  char name[40];
  snprintf(name, sizeof name, "step %lld", (long long)step->number);
  put_span(out, name, "step", process, STEPS, step->at, step->seconds);
  bk_json_out_text(out, ",\"args\":{\"ops\":");
  bk_json_out_int(out, step->count);
  put_int(out, "ops_left_out", step->lost);
  if (step->n_talks) put_share(out, "hidden_share", bk_profile_hidden(&step->scatter));
  bk_json_out_text(out, "}}");
  for (int i = 0; i < step->count; i++) put_record(out, process, step, &step->records[i]);
  for (int i = 0; i < step->n_talks; i++) put_talk(out, process, &step->talks[i]);
}

/* The oldest step that is kept comes first; steps lie in a ring. */
static void put_events(bk_json_out *out, const bk_profile *p, int process, const char *name) {
  put_name(out, "process_name", process, STEPS, name);
  bk_json_out_text(out, ",\n");
  put_name(out, "thread_name", process, STEPS, "steps");
  bk_json_out_text(out, ",\n");
  put_name(out, "thread_name", process, OPS, "ops");
  if (p->talks_capacity) {
    bk_json_out_text(out, ",\n");
    put_name(out, "thread_name", process, COMM, "comm");
  }
  for (int64_t n = p->done > BK_PROFILE_STEPS ? p->done - BK_PROFILE_STEPS + 1 : 1; n <= p->done;
       n++) {
    const bk_profile_step *step = &p->steps[(n - 1) % BK_PROFILE_STEPS];
    /* a step that was never ended has taken the place of the oldest */
    if (step->number == n) put_step(out, process, step);
  }
}

bk_status bk_profile_write_trace(const bk_profile *p, const char *path) {
  bk_json_out out;
  bk_json_out_init(&out, p->model->ctx);
  bk_json_out_text(&out, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
  put_events(&out, p, ALONE, p->model->device->backend->name);
  bk_json_out_text(&out, "\n]}\n");
  bk_status status = out.status == BK_OK
                         ? bk_file_write_atomic(p->model->ctx, path, out.data, out.length)
                         : out.status;
  bk_json_out_fini(&out);
  return status;
}

bk_status bk_profile_trace_events(const bk_profile *p, int rank, char **text, size_t *bytes) {
  char name[80];
  bk_json_out out;
  bk_json_out_init(&out, p->model->ctx);
  snprintf(name, sizeof name, "rank %d, %s", rank, p->model->device->backend->name);
  put_events(&out, p, rank, name);
  bk_status status = out.status;
  char *copy = status == BK_OK ? bk_alloc(p->model->ctx, out.length + 1) : NULL;
  if (status == BK_OK && !copy) status = BK_ERR_MEMORY;
  if (status == BK_OK) {
    memcpy(copy, out.data, out.length);
    *text = copy;
    *bytes = out.length;
  }
  bk_json_out_fini(&out);
  return status;
}
