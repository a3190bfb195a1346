/* Streams, events, captures and memory of the vulkan backend, through the tables that everybody
 * uses. Every test runs in each way of binding; the ops are the harness's concern
 * (tests/vulkan/ops_vulkan.sh). */
#include "ops/plan.h"
#include "tests/unit/unit.h"

#include "runtime/backend.h"

#define MODES 3
static const char *const modes[MODES][2] = {{"address", "yes"}, {"split", "yes"}, {"split", "no"}};

static bk_device *device;
static bk_stream *stream;

static void open_in(int mode) {
  setenv("BIRKHOFF_VULKAN_BINDINGS", modes[mode][0], 1);
  setenv("BIRKHOFF_VULKAN_16BIT", modes[mode][1], 1);
  unit_open();
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_device_open(ctx, "vulkan", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
}

static void close_all(void) {
  bk_stream_destroy(stream);
  bk_device_close(device);
  unit_close();
}

static bk_place new_place(size_t bytes) {
  bk_buffer *buffer;
  ck_assert_int_eq(bk_buffer_alloc(device, bytes, BK_MEM_WORKSPACE, &buffer), BK_OK);
  return (bk_place){buffer, 0};
}

static bk_place at(bk_place p, size_t offset) { return (bk_place){p.buffer, p.offset + offset}; }
static void ok(bk_status status) { ck_assert_int_eq(status, BK_OK); }

static void read_back(bk_place p, void *data, size_t bytes) {
  ok(stream->ops->download(stream, data, p, bytes));
  ok(stream->ops->sync(stream));
}

/* y = y + y on `n` floats from `offset` on */
static bk_add_args doubling(bk_place p, int64_t n) {
  bk_tensor t = {0};
  t.dtype = BK_F32;
  t.ndim = 1;
  t.shape[0] = n;
  t.stride[0] = 1;
  t.buffer = p.buffer;
  t.offset = p.offset;
  return (bk_add_args){.a = t, .b = t, .y = t};
}

/* ---- memory ---- */

START_TEST(memory_is_zero_and_apart) {
  enum { N = 40 };
  bk_place p[N];
  open_in(_i);
  for (int i = 0; i < N; i++) { /* some share a block, some do not */
    size_t bytes = (size_t)1 << (i % 24);
    p[i] = new_place(bytes);
    ok(stream->ops->fill(stream, p[i], (uint8_t)(i + 1), bytes));
  }
  for (int i = 0; i < N; i++) {
    unsigned char first, last;
    size_t bytes = (size_t)1 << (i % 24);
    read_back(p[i], &first, 1);
    read_back(at(p[i], bytes - 1), &last, 1);
    ck_assert_int_eq(first, i + 1);
    ck_assert_int_eq(last, i + 1);
  }
  for (int i = 0; i < N; i += 2) bk_buffer_free(p[i].buffer);
  for (int i = 0; i < N; i += 2) { /* memory that was in use is zero again */
    unsigned char all[4096];
    p[i] = new_place(sizeof all);
    read_back(p[i], all, sizeof all);
    for (size_t k = 0; k < sizeof all; k++) ck_assert_int_eq(all[k], 0);
  }
  for (int i = 0; i < N; i++) bk_buffer_free(p[i].buffer);
  close_all();
}
END_TEST

/* Too large for the heap: an error with words, and the device goes on. */
START_TEST(memory_can_end) {
  enum { MOST = 4096 };
  bk_buffer *held[MOST];
  size_t free_bytes, total_bytes, each;
  int n = 0;
  bk_status status = BK_OK;
  open_in(_i);
  ok(device->ops->memory_info(device, &free_bytes, &total_bytes));
  ck_assert_uint_le(free_bytes, total_bytes);
  /* elsewhere this would take the machine's memory away from others */
  if (strstr(device->props.name, "llvmpipe")) {
    each = device->props.max_alloc / 2;
    while (n < MOST &&
           (status = bk_buffer_alloc(device, each, BK_MEM_WORKSPACE, &held[n])) == BK_OK)
      n++;
    ck_assert_int_eq(status, BK_ERR_MEMORY);
    unit_expect("bytes of device memory");
    while (n) bk_buffer_free(held[--n]);
  }
  ck_assert_int_eq(bk_buffer_alloc(device, SIZE_MAX / 4, BK_MEM_WORKSPACE, &held[0]),
                   BK_ERR_MEMORY);
  unit_expect("limit");
  bk_buffer_free(new_place(1 << 20).buffer);
  close_all();
}
END_TEST

/* ---- transfers ---- */

START_TEST(transfers_of_all_sizes) {
  static const size_t sizes[] = {
      1, 3, 4, 1000, ((size_t)1 << 20) - 1, ((size_t)1 << 20) + 5, (size_t)9 << 20};
  open_in(_i);
  for (size_t k = 0; k < BK_COUNT(sizes); k++) {
    size_t bytes = sizes[k];
    unsigned char *data = malloc(bytes), *back = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)(i * 7 + k);
    bk_place a = new_place(bytes + 3), b = new_place(bytes + 2);
    ok(stream->ops->upload(stream, at(a, 3), data, bytes));
    ok(stream->ops->copy(stream, at(b, 1), at(a, 3), bytes));
    read_back(at(b, 1), back, bytes);
    ck_assert_int_eq(memcmp(data, back, bytes), 0);
    read_back(b, back, 1);
    ck_assert_int_eq(back[0], 0);
    bk_buffer_free(a.buffer);
    bk_buffer_free(b.buffer);
    free(data);
    free(back);
  }
  close_all();
}
END_TEST

/* Many small ones at once: all arrive, in order. */
START_TEST(many_small_transfers) {
  enum { N = 700 };
  int32_t in[N], out[N];
  bool done = false;
  open_in(_i);
  bk_place a = new_place(sizeof in);
  for (int i = 0; i < N; i++) in[i] = i * i;
  for (int i = 0; i < N; i++) ok(stream->ops->upload(stream, at(a, 4 * (size_t)i), &in[i], 4));
  for (int i = 0; i < N; i++) ok(stream->ops->download(stream, &out[i], at(a, 4 * (size_t)i), 4));
  while (!done) ok(stream->ops->query(stream, &done));
  ck_assert_int_eq(memcmp(in, out, sizeof in), 0);
  bk_buffer_free(a.buffer);
  close_all();
}
END_TEST

START_TEST(fills_begin_and_end_anywhere) {
  unsigned char all[64];
  open_in(_i);
  bk_place a = new_place(sizeof all);
  for (size_t from = 0; from < 6; from++) {
    for (size_t n = 0; n < 14; n++) {
      ok(stream->ops->fill(stream, a, 0x11, sizeof all));
      ok(stream->ops->fill(stream, at(a, from), 0xee, n));
      read_back(a, all, sizeof all);
      for (size_t i = 0; i < sizeof all; i++)
        ck_assert_int_eq(all[i], i >= from && i < from + n ? 0xee : 0x11);
    }
  }
  bk_buffer_free(a.buffer);
  close_all();
}
END_TEST

/* ---- order, streams, events ---- */

/* More commands than the ring holds, each needs the one before. */
START_TEST(commands_keep_their_order) {
  enum { N = 100, TURNS = 20, ROUNDS = 60 };
  float data[N];
  bk_plan plan = {0};
  open_in(_i);
  bk_place a = new_place(sizeof data);
  bk_add_args args = doubling(a, N);
  ok(bk_plan_prepare(device, BK_OP_ADD, &args, &plan));
  for (int i = 0; i < N; i++) data[i] = (float)(i + 1);
  for (int r = 0; r < ROUNDS; r++) {
    ok(stream->ops->upload(stream, a, data, sizeof data));
    for (int i = 0; i < TURNS; i++) ok(bk_plan_launch(stream, &plan, &args, (bk_place){0}));
  }
  float back[N];
  read_back(a, back, sizeof back);
  for (int i = 0; i < N; i++) ck_assert(back[i] == data[i] * (float)(1 << TURNS));
  bk_plan_release(&plan);
  bk_buffer_free(a.buffer);
  close_all();
}
END_TEST

START_TEST(streams_wait_for_events) {
  enum { N = 100, ROUNDS = 30 };
  float data[N], back[N];
  bk_plan plan = {0};
  bk_stream *other;
  bk_event *there, *here;
  double seconds = -1;
  open_in(_i);
  ok(bk_stream_create(device, 1, &other));
  ok(device->ops->event_create(device, &there));
  ok(device->ops->event_create(device, &here));
  ck_assert_int_eq(here->ops->elapsed(here, there, &seconds), BK_ERR_ARGUMENT);
  unit_expect("never recorded");
  ok(stream->ops->event_wait(stream, here)); /* never recorded: nothing to wait for */
  bk_place a = new_place(sizeof data);
  bk_add_args args = doubling(a, N);
  ok(bk_plan_prepare(device, BK_OP_ADD, &args, &plan));
  for (int i = 0; i < N; i++) data[i] = (float)(i + 1) * 0x1p-40f;
  ok(stream->ops->upload(stream, a, data, sizeof data));
  for (int r = 0; r < ROUNDS; r++) {
    ok(bk_plan_launch(stream, &plan, &args, (bk_place){0}));
    ok(stream->ops->event_record(stream, here));
    ok(other->ops->event_wait(other, here));
    ok(bk_plan_launch(other, &plan, &args, (bk_place){0}));
    ok(other->ops->event_record(other, there));
    ok(stream->ops->event_wait(stream, there));
  }
  ok(stream->ops->download(stream, back, a, sizeof back));
  ok(stream->ops->event_record(stream, there));
  ok(there->ops->sync(there)); /* what came before is delivered */
  for (int i = 0; i < N; i++) ck_assert(back[i] == data[i] * 0x1p60f);
  ok(here->ops->elapsed(here, there, &seconds));
  ck_assert(seconds >= 0 && seconds < 60);
  bk_stream_destroy(other);
  ok(stream->ops->event_wait(stream, here)); /* the stream is gone, the event is not */
  bk_plan_release(&plan);
  here->ops->destroy(here);
  there->ops->destroy(there);
  bk_buffer_free(a.buffer);
  close_all();
}
END_TEST

/* ---- captures ---- */

START_TEST(captures_run_again) {
  enum { N = 64, TURNS = 300 };
  float data[N], back[N];
  bk_plan plan = {0};
  void *graph = NULL;
  open_in(_i);
  bk_place a = new_place(sizeof data), b = new_place(sizeof data);
  bk_add_args args = doubling(a, N);
  ok(bk_plan_prepare(device, BK_OP_ADD, &args, &plan));
  for (int i = 0; i < N; i++) data[i] = (float)(i + 1) * 0x1p-100f;
  ck_assert(device->props.captures);
  ok(stream->ops->capture_begin(stream));
  for (int i = 0; i < TURNS / 100; i++) ok(bk_plan_launch(stream, &plan, &args, (bk_place){0}));
  ok(stream->ops->copy(stream, b, a, sizeof data));
  ok(stream->ops->fill(stream, at(b, 4), 0, 4));
  ok(stream->ops->capture_end(stream, &graph));
  ok(stream->ops->upload(stream, a, data, sizeof data)); /* nothing of the above was done */
  for (int r = 0; r < 10; r++) ok(stream->ops->graph_launch(stream, graph));
  ok(bk_plan_launch(stream, &plan, &args, (bk_place){0}));
  read_back(a, back, sizeof back);
  for (int i = 0; i < N; i++) ck_assert(back[i] == data[i] * 0x1p31f);
  read_back(b, back, sizeof back);
  for (int i = 0; i < N; i++) ck_assert(back[i] == (i == 1 ? 0.0f : data[i] * 0x1p30f));
  stream->ops->graph_destroy(stream, graph);
  bk_plan_release(&plan);
  bk_buffer_free(a.buffer);
  bk_buffer_free(b.buffer);
  close_all();
}
END_TEST

/* A second stream takes part by an event; more launches than a pool of descriptors has. */
START_TEST(captures_span_streams) {
  enum { N = 8 };
  float data[N], back[N];
  bk_plan plan = {0};
  bk_stream *other;
  bk_event *fork, *join;
  void *graph = NULL;
  open_in(_i);
  ok(bk_stream_create(device, 1, &other));
  ok(device->ops->event_create(device, &fork));
  ok(device->ops->event_create(device, &join));
  bk_place a = new_place(sizeof data);
  bk_add_args args = doubling(a, N);
  ok(bk_plan_prepare(device, BK_OP_ADD, &args, &plan));
  for (int i = 0; i < N; i++) data[i] = i == 0 ? 0.0f : 1.0f;
  data[1] = 0x1p-126f;
  data[1] *= 0x1p20f;
  for (int i = 2; i < N; i++) data[i] = 0.0f;
  ok(stream->ops->capture_begin(stream));
  for (int r = 0; r < 4; r++) {
    ok(bk_plan_launch(stream, &plan, &args, (bk_place){0}));
    ok(stream->ops->event_record(stream, fork));
    ok(other->ops->event_wait(other, fork));
    for (int i = 0; i < 20; i++) ok(bk_plan_launch(other, &plan, &args, (bk_place){0}));
    ok(other->ops->event_record(other, join));
    ok(stream->ops->event_wait(stream, join));
  }
  ok(stream->ops->capture_end(stream, &graph));
  ok(stream->ops->upload(stream, a, data, sizeof data));
  ok(stream->ops->graph_launch(stream, graph));
  read_back(a, back, sizeof back);
  ck_assert(back[1] == data[1] * 0x1p84f);
  bool done;
  ok(other->ops->query(other, &done)); /* a stream of its own again */
  ck_assert(done);
  stream->ops->graph_destroy(stream, graph);
  /* 1000 launches */
  ok(stream->ops->capture_begin(stream));
  for (int i = 0; i < 1000; i++) ok(bk_plan_launch(stream, &plan, &args, (bk_place){0}));
  ok(stream->ops->capture_end(stream, &graph));
  ok(stream->ops->fill(stream, a, 0, sizeof data));
  ok(stream->ops->graph_launch(stream, graph));
  read_back(a, back, sizeof back);
  for (int i = 0; i < N; i++) ck_assert(back[i] == 0.0f);
  stream->ops->graph_destroy(stream, graph);
  bk_stream_destroy(other);
  fork->ops->destroy(fork);
  join->ops->destroy(join);
  bk_plan_release(&plan);
  bk_buffer_free(a.buffer);
  close_all();
}
END_TEST

START_TEST(captures_refuse_the_host) {
  void *graph = NULL;
  float x = 1;
  open_in(_i);
  bk_place a = new_place(4);
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_ERR_ARGUMENT);
  unit_expect("no capture is under way");
  ok(stream->ops->capture_begin(stream));
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_ERR_ARGUMENT);
  unit_expect("already");
  ck_assert_int_eq(stream->ops->upload(stream, a, &x, 4), BK_ERR_UNSUPPORTED);
  unit_expect("an upload cannot be captured");
  ck_assert_int_ne(stream->ops->capture_end(stream, &graph), BK_OK);
  ck_assert_ptr_null(graph);
  ok(stream->ops->upload(stream, a, &x, 4)); /* it has ended */
  ok(stream->ops->sync(stream));
  ok(stream->ops->capture_begin(stream)); /* and one that nobody ends */
  bk_buffer_free(a.buffer);
  close_all();
}
END_TEST

/* ---- what the environment may say ---- */

START_TEST(wrong_settings_are_refused) {
  static const struct {
    const char *name, *value, *message;
  } wrong[] = {{"BIRKHOFF_VULKAN_BINDINGS", "both", "not split or address"},
               {"BIRKHOFF_VULKAN_MAX_GROUP", "32", "not a number from 64 on"},
               {"BIRKHOFF_VULKAN_MAX_GROUP", "x", "not a number from 64 on"}};
  unit_open();
  ok(bk_registry_init(ctx));
  unsetenv("BIRKHOFF_VULKAN_BINDINGS");
  unsetenv("BIRKHOFF_VULKAN_16BIT");
  for (size_t i = 0; i < BK_COUNT(wrong); i++) {
    setenv(wrong[i].name, wrong[i].value, 1);
    ck_assert_int_eq(bk_device_open(ctx, "vulkan", NULL, &device), BK_ERR_ARGUMENT);
    unit_expect(wrong[i].message);
    unsetenv(wrong[i].name);
  }
  setenv("BIRKHOFF_VULKAN_16BIT", "no", 1);
  setenv("BIRKHOFF_VULKAN_BINDINGS", "address", 1);
  ck_assert_int_eq(bk_device_open(ctx, "vulkan", NULL, &device), BK_ERR_UNSUPPORTED);
  unit_expect("16-bit storage");
  ck_assert_int_eq(bk_device_open(ctx, "vulkan:99", NULL, &device), BK_ERR_ABSENT);
  unit_expect("vulkan:99 is not here");
  unit_close();
}
END_TEST

/* ---- */

static bool is_here(void) {
  char reason[1024] = "there is no module";
  bk_context_options options = {0};
  const bk_backend *b = NULL;
  if (bk_context_create(&options, &ctx) != BK_OK) return false;
  if (bk_registry_init(ctx) == BK_OK) b = bk_backend_find("vulkan");
  bool here = b && b->probe(ctx, reason, sizeof reason) == BK_OK;
  bk_context_destroy(ctx);
  if (!here) printf("SKIP: vulkan: %s\n", reason);
  return here;
}

int main(void) {
  Suite *suite = suite_create("vulkan");
  TCase *cases = tcase_create("vulkan");
  if (!is_here()) return 77;
  tcase_set_timeout(cases, 120);
  tcase_add_loop_test(cases, memory_is_zero_and_apart, 0, MODES);
  tcase_add_loop_test(cases, memory_can_end, 0, MODES);
  tcase_add_loop_test(cases, transfers_of_all_sizes, 0, MODES);
  tcase_add_loop_test(cases, many_small_transfers, 0, MODES);
  tcase_add_loop_test(cases, fills_begin_and_end_anywhere, 0, MODES);
  tcase_add_loop_test(cases, commands_keep_their_order, 0, MODES);
  tcase_add_loop_test(cases, streams_wait_for_events, 0, MODES);
  tcase_add_loop_test(cases, captures_run_again, 0, MODES);
  tcase_add_loop_test(cases, captures_span_streams, 0, MODES);
  tcase_add_loop_test(cases, captures_refuse_the_host, 0, MODES);
  tcase_add_test(cases, wrong_settings_are_refused);
  suite_add_tcase(suite, cases);
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed != 0;
}
