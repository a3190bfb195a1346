/* What can go wrong between the cuda backend and CUDA, made to happen by the stand-in for the
 * runtime (runtime.cpp): drivers that are not there or too old, devices that do not exist, no
 * memory, kernels that fault; and what must go right beside it: events, priorities, two streams,
 * captures. Strided copies run rows_kernel, dense additions flat_kernel: so a fault can be given
 * to one op. */
#include "tests/cuda-on-host/cuda_unit.h"
#include "tests/gpu/gpu_work.h"

/* ---- no device ---- */

static void expect_absent(const char *driver, const char *why) {
  char reason[256] = "";
  set("BK_CUDA_DRIVER", driver);
  gpu_expect_refused("cuda", "cuda:0", why, reason, sizeof reason);
}

START_TEST(driver_absent) { expect_absent("none", "there is no NVIDIA driver"); }
END_TEST
START_TEST(driver_too_old) {
  expect_absent(
      "old",
      "the NVIDIA driver is too old: it serves CUDA 11.4, this module was built with CUDA 13.0");
}
END_TEST
START_TEST(driver_without_devices) {
  expect_absent("nodevice", "the NVIDIA driver finds no device");
}
END_TEST
START_TEST(device_too_old) {
  bk_device *d = NULL;
  const bk_device_options options = {0};
  expect_absent("ancient",
                "no device has compute capability 8.0 or newer; CUDA kernels on the host (test "
                "equipment) has 7.0");
  /* it does not count */
  ck_assert_int_eq(bk_backend_find("cuda")->open(ctx, 0, &options, &d), BK_ERR_ABSENT);
  unit_expect("cuda:0 is not here: there are fewer devices of compute capability 8.0 or newer");
  ck_assert_ptr_null(d);
}
END_TEST

START_TEST(device_numbers) {
  bk_device *d = NULL;
  const bk_device_options options = {0};
  set("BK_CUDA_DEVICES", "2");
  ck_assert_int_eq(bk_device_open(ctx, "cuda:1", NULL, &d), BK_OK);
  ck_assert_int_eq(d->index, 1);
  bk_device_close(d);
  d = NULL;
  ck_assert_int_eq(bk_device_open(ctx, "cuda:2", NULL, &d), BK_ERR_ABSENT);
  unit_expect("device cuda:2 is not here: cuda has 2 devices, the last is cuda:1");
  /* gone since it was counted */
  ck_assert_int_eq(bk_backend_find("cuda")->open(ctx, 2, &options, &d), BK_ERR_ABSENT);
  unit_expect("cuda:2 is not here: there are fewer devices of compute capability 8.0 or newer");
  ck_assert_int_eq(bk_device_open(ctx, "cuda:0", NULL, &d), BK_OK); /* and nothing is spoilt */
  bk_device_close(d);
}
END_TEST

/* ---- memory ---- */

START_TEST(out_of_memory) {
  bk_memory *memory = NULL;
  size_t free_before = 0, free_after = 0, total = 0;
  set("BK_CUDA_MEMORY", "1000000");
  ck_assert_int_eq(device->ops->memory_info(device, &free_before, &total), BK_OK);
  ck_assert_uint_eq(total, 1000000);
  ck_assert_int_eq(gpu_commit_weights(3000000, &memory), BK_ERR_MEMORY);
  ck_assert_ptr_nonnull(
      strstr(unit_messages, "cuda:0: cannot allocate 3000000 bytes of device memory; "));
  ck_assert_ptr_nonnull(strstr(unit_messages, " of 1000000 bytes are free"));
  unit_expect("memory: weights needs 3000000 bytes");
  bk_memory_destroy(memory);
  ck_assert_int_eq(device->ops->memory_info(device, &free_after, &total), BK_OK);
  ck_assert_uint_eq(free_after, free_before);
  gpu_expect_little_fits();
}
END_TEST

/* Pinned memory: transfers are not over when the call returns. */
START_TEST(pinned_memory) {
  enum { bytes = 4096 };
  unsigned char *in = NULL, *out = NULL;
  bk_buffer *b = NULL;
  void *p = NULL;
  ck_assert_int_eq(device->ops->host_alloc(device, bytes, &p), BK_OK);
  in = p;
  ck_assert_int_eq(device->ops->host_alloc(device, bytes, &p), BK_OK);
  out = p;
  for (int i = 0; i < bytes; i++) ck_assert(in[i] == 0 && out[i] == 0); /* zero-filled */
  ck_assert_int_eq(bk_buffer_alloc(device, bytes, BK_MEM_STAGING, &b), BK_OK);
  memset(in, 7, bytes);
  ck_assert_int_eq(stream->ops->upload(stream, (bk_place){b, 0}, in, bytes), BK_OK);
  ck_assert_int_eq(stream->ops->download(stream, out, (bk_place){b, 0}, bytes), BK_OK);
  ck_assert_int_eq(out[0], 0);
  ck_assert_int_eq(stream->ops->sync(stream), BK_OK);
  for (int i = 0; i < bytes; i++) ck_assert_int_eq(out[i], 7);
  device->ops->host_free(device, in, bytes);
  device->ops->host_free(device, out, bytes);
  ck_assert_int_eq(device->ops->host_alloc(device, 0, &p), BK_OK);
  device->ops->host_free(device, p, 0);
  bk_buffer_free(b);
}
END_TEST

START_TEST(buffers_start_as_zeros) {
  bk_tensor t = gpu_tensor(bk_tensor_1d(BK_F32, 1000));
  float values[1000];
  ck_assert_int_eq(bk_tensor_download(stream, &t, values), BK_OK);
  for (int i = 0; i < 1000; i++) ck_assert_float_eq(values[i], 0);
  bk_buffer_free(t.buffer);
}
END_TEST

/* ---- events and streams ---- */

START_TEST(events) {
  bk_event *begin = NULL, *end = NULL;
  double seconds = -1;
  work w;
  work_open(&w);
  ck_assert_int_eq(device->ops->event_create(device, &begin), BK_OK);
  ck_assert_int_eq(device->ops->event_create(device, &end), BK_OK);
  ck_assert_int_eq(begin->ops->elapsed(begin, end, &seconds), BK_ERR_ARGUMENT);
  unit_expect("an event was never recorded");
  ck_assert_int_eq(stream->ops->event_record(stream, begin), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->event_record(stream, end), BK_OK);
  ck_assert_int_eq(begin->ops->elapsed(begin, end, &seconds), BK_ERR_BUSY);
  unit_expect("reading events: ");
  ck_assert_int_eq(add(&w, stream), BK_OK); /* is not blamed for what the event said */
  ck_assert_int_eq(end->ops->sync(end), BK_OK);
  ck_assert_int_eq(begin->ops->elapsed(begin, end, &seconds), BK_OK);
  ck_assert(seconds >= 0 && seconds < 60);
  begin->ops->destroy(begin);
  end->ops->destroy(end);
  expect_result(&w, stream, 1);
  work_close(&w);
}
END_TEST

START_TEST(query_tells) {
  bool done = true;
  work w;
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->query(stream, &done), BK_OK);
  ck_assert(!done); /* the stand-in says no the first time */
  ck_assert_int_eq(stream->ops->query(stream, &done), BK_OK);
  ck_assert(done);
  work_close(&w);
}
END_TEST

/* CUDA here has five levels above the lowest; what is asked for beyond is clamped, or the stream
 * could not be made. */
START_TEST(priorities_are_clamped) {
  static const int wanted[] = {-1000000, -1, 0, 1, 5, 6, 1000000};
  for (size_t i = 0; i < BK_COUNT(wanted); i++) {
    bk_stream *s = NULL;
    ck_assert_int_eq(bk_stream_create(device, wanted[i], &s), BK_OK);
    ck_assert_int_eq(s->ops->sync(s), BK_OK);
    bk_stream_destroy(s);
  }
  bk_stream_destroy(NULL);
}
END_TEST

START_TEST(two_streams) {
  bk_stream *other = NULL;
  bk_event *copied = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(bk_stream_create(device, 3, &other), BK_OK);
  ck_assert_int_eq(device->ops->event_create(device, &copied), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->event_record(stream, copied), BK_OK);
  ck_assert_int_eq(other->ops->event_wait(other, copied), BK_OK);
  ck_assert_int_eq(add(&w, other), BK_OK);
  expect_result(&w, other, 1);
  copied->ops->destroy(copied);
  bk_stream_destroy(other);
  expect_result(&w, stream, 1);
  work_close(&w);
}
END_TEST

/* ---- capture ---- */

static void expect_replays(void) {
  void *graph = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_OK);
  ck_assert_ptr_nonnull(graph);
  ck_assert_int_eq(bk_tensor_zero(stream, &w.y), BK_OK);
  float y[count];
  ck_assert_int_eq(bk_tensor_download(stream, &w.y, y), BK_OK);
  for (int i = 0; i < count; i++) ck_assert_float_eq(y[i], 0); /* what was captured has not run */
  for (int replay = 0; replay < 3; replay++) {
    ck_assert_int_eq(stream->ops->graph_launch(stream, graph), BK_OK);
    if (replay == 1) ck_assert_int_eq(stream->ops->graph_launch(stream, graph), BK_OK);
    expect_result(&w, stream, 2);
    ck_assert_int_eq(add(&w, stream), BK_OK); /* eager work in between */
    expect_result(&w, stream, 3);
  }
  stream->ops->graph_destroy(stream, graph);
  stream->ops->graph_destroy(stream, NULL);
  work_close(&w);
}

START_TEST(capture_replays) { expect_replays(); }
END_TEST

/* Graphs are asked to keep their nodes' priorities, and made without where that is refused. */
START_TEST(graphs_keep_priorities) {
  set("BK_CUDA_GRAPH", "priority");
  expect_replays();
  set("BK_CUDA_GRAPH", "plain");
  expect_replays();
}
END_TEST

START_TEST(capture_fails) {
  void *graph = NULL;
  work w;
  work_open(&w);
  set("BK_CUDA_CAPTURE", "fail");
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_ERR_DEVICE);
  unit_expect("ending a capture: ");
  ck_assert_ptr_null(graph);
  ck_assert_int_eq(copy(&w, stream), BK_OK); /* the stream goes on, eagerly */
  ck_assert_int_eq(add(&w, stream), BK_OK);
  expect_result(&w, stream, 1);
  set("BK_CUDA_CAPTURE", "");
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_OK);
  ck_assert_int_eq(stream->ops->graph_launch(stream, graph), BK_OK);
  expect_result(&w, stream, 2);
  stream->ops->graph_destroy(stream, graph);
  work_close(&w);
}
END_TEST

START_TEST(capture_misused) {
  void *graph = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_ERR_ARGUMENT);
  unit_expect("no capture is under way");
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_OK);
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_ERR_ARGUMENT);
  unit_expect("a capture is under way");
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  /* waiting is not allowed; that poisons nothing */
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_DEVICE);
  unit_expect("waiting for the stream: ");
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_OK);
  stream->ops->graph_destroy(stream, graph);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  expect_result(&w, stream, 0);
  work_close(&w);
}
END_TEST

/* A stream that goes away amid a capture takes the capture with it: others may wait again. */
START_TEST(capture_abandoned) {
  bk_stream *other = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(bk_stream_create(device, 0, &other), BK_OK);
  ck_assert_int_eq(other->ops->capture_begin(other), BK_OK);
  ck_assert_int_eq(copy(&w, other), BK_OK);
  bk_stream_destroy(other);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  expect_result(&w, stream, 0);
  work_close(&w);
}
END_TEST

/* ---- kernels that fault: CUDA forgives no such error in the life of a process ---- */

/* Nor can anything be captured or made on the device. */
static void expect_lost(work *w, bk_stream *on) {
  void *graph = NULL;
  bk_event *event = NULL;
  expect_poisoned(w, on, BK_ERR_DEVICE);
  ck_assert_int_eq(on->ops->capture_begin(on), BK_ERR_DEVICE);
  ck_assert_int_eq(on->ops->graph_launch(on, NULL), BK_ERR_DEVICE);
  unit_expect(NULL); /* it was said once */
  ck_assert_int_eq(on->ops->capture_end(on, &graph), BK_ERR_ARGUMENT);
  unit_expect("no capture is under way");
  ck_assert_int_eq(device->ops->event_create(device, &event), BK_ERR_DEVICE);
  unit_expect("making an event: an illegal memory access was encountered");
}

START_TEST(fault_of_one_op) {
  work w;
  work_open(&w);
  set("BK_CUDA_FAULT", "rows_kernel");
  ck_assert_int_eq(copy(&w, stream), BK_OK); /* nothing is known yet */
  unit_expect(NULL);
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect(
      "cuda: cuda_copy failed on the device: an illegal memory access was encountered "
      "(cudaErrorIllegalAddress); the stream cannot go on");
  expect_lost(&w, stream);
  work_close(&w);
}
END_TEST

START_TEST(fault_among_several) {
  work w;
  work_open(&w);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_OK); /* this one is over and not named again */
  set("BK_CUDA_FAULT", "rows_kernel");
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  ck_assert_ptr_nonnull(
      strstr(unit_messages, "one of 3 ops failed on the device: an illegal memory access"));
  ck_assert_ptr_nonnull(strstr(unit_messages, "BIRKHOFF_CUDA_SYNC=1"));
  unit_expect("under way were cuda_add, cuda_copy, cuda_add;");
  expect_lost(&w, stream);
  work_close(&w);
}
END_TEST

/* The latest launches are named. */
START_TEST(fault_among_many) {
  char names[1024] = "";
  work w;
  work_open(&w);
  set("BK_CUDA_FAULT", "rows_kernel");
  for (int i = 0; i < 9; i++) ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  for (int i = 0; i < 31; i++) ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_DEVICE);
  ck_assert_ptr_nonnull(strstr(unit_messages, "one of 41 ops failed"));
  snprintf(names, sizeof names, "under way were ..., cuda_copy");
  for (int i = 0; i < 31; i++) strncat(names, ", cuda_add", sizeof names - strlen(names) - 1);
  unit_expect(names);
  work_close(&w);
}
END_TEST

/* It comes to light wherever CUDA is asked next: here by the launch, a download, a query. */
START_TEST(fault_met_by_a_download) {
  float y[count];
  work w;
  work_open(&w);
  set("BK_CUDA_FAULT", "rows_kernel");
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(bk_tensor_download(stream, &w.y, y), BK_ERR_DEVICE);
  unit_expect("cuda_copy failed on the device");
  expect_lost(&w, stream);
  work_close(&w);
}
END_TEST

START_TEST(fault_met_by_a_query) {
  bool done = false;
  work w;
  work_open(&w);
  set("BK_CUDA_FAULT", "rows_kernel");
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->query(stream, &done), BK_ERR_DEVICE);
  unit_expect("cuda_copy failed on the device");
  expect_lost(&w, stream);
  work_close(&w);
}
END_TEST

/* Another stream of the device is lost with it; memory can no longer be had, and that is no lack
 * of memory. */
START_TEST(fault_on_another_stream) {
  bk_stream *other = NULL;
  bk_buffer *b = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(bk_stream_create(device, 0, &other), BK_OK);
  set("BK_CUDA_FAULT", "rows_kernel");
  ck_assert_int_eq(copy(&w, other), BK_OK);
  ck_assert_int_eq(other->ops->sync(other), BK_ERR_DEVICE);
  unit_expect("cuda_copy failed on the device");
  ck_assert_int_eq(add(&w, stream), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect("illegal memory access");
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_DEVICE);
  unit_expect(NULL);
  ck_assert_int_eq(bk_buffer_alloc(device, 100, BK_MEM_STAGING, &b), BK_ERR_DEVICE);
  unit_expect("allocating memory: an illegal memory access");
  bk_stream_destroy(other);
  work_close(&w);
}
END_TEST

/* The capture is over all the same. */
START_TEST(fault_amid_a_capture) {
  bk_stream *other = NULL;
  void *graph = NULL;
  bool done = false;
  work w;
  work_open(&w);
  ck_assert_int_eq(bk_stream_create(device, 0, &other), BK_OK);
  set("BK_CUDA_FAULT", "rows_kernel");
  ck_assert_int_eq(copy(&w, other), BK_OK);
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(other->ops->query(other, &done), BK_ERR_DEVICE);
  unit_expect("cuda_copy failed on the device");
  ck_assert_int_eq(add(&w, stream), BK_ERR_DEVICE);
  unit_expect("illegal memory access");
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_ERR_DEVICE);
  unit_expect(NULL);
  ck_assert_ptr_null(graph);
  expect_lost(&w, stream);
  ck_assert_int_eq(other->ops->capture_begin(other), BK_ERR_DEVICE);
  unit_expect(NULL);
  bk_stream_destroy(other);
  work_close(&w);
}
END_TEST

START_TEST(fault_in_a_graph) {
  void *graph = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_OK);
  set("BK_CUDA_FAULT", "rows_kernel");
  ck_assert_int_eq(stream->ops->graph_launch(stream, graph), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_DEVICE);
  unit_expect("cuda: a captured graph failed on the device: an illegal memory access");
  expect_lost(&w, stream);
  stream->ops->graph_destroy(stream, graph);
  work_close(&w);
}
END_TEST

static void open_synchronous(void) {
  cuda_registry();
  set("BIRKHOFF_CUDA_SYNC", "1");
  gpu_device_open("cuda");
}

START_TEST(synchronous_fault_names_the_op) {
  work w;
  work_open(&w);
  set("BK_CUDA_FAULT", "rows_kernel");
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect("cuda: cuda_copy failed on the device: ");
  ck_assert_int_eq(add(&w, stream), BK_ERR_DEVICE);
  expect_lost(&w, stream);
  work_close(&w);
}
END_TEST

int main(void) {
  const TTest *const absent_tests[] = {driver_absent, driver_too_old, driver_without_devices,
                                       device_too_old, device_numbers};
  const TTest *const device_tests[] = {out_of_memory,   pinned_memory,     buffers_start_as_zeros,
                                       events,          query_tells,       priorities_are_clamped,
                                       two_streams,     capture_replays,   capture_fails,
                                       capture_misused, capture_abandoned, graphs_keep_priorities};
  const TTest *const fault_tests[] = {
      fault_of_one_op,      fault_among_several,     fault_among_many,     fault_met_by_a_download,
      fault_met_by_a_query, fault_on_another_stream, fault_amid_a_capture, fault_in_a_graph};
  const TTest *const synchronous_tests[] = {capture_replays, synchronous_fault_names_the_op};
  const char *fork_text = getenv("CK_FORK");
  const bool forks = !fork_text || strcmp(fork_text, "no") != 0;
  if (!cuda_find_module()) return SKIPPED;
  Suite *suite = suite_create("cuda faults");
  unit_case(suite, "no device", cuda_registry, unit_close, absent_tests, BK_COUNT(absent_tests));
  unit_case(suite, "device", cuda_open, cuda_close, device_tests, BK_COUNT(device_tests));
  if (forks)
    unit_case(suite, "synchronous", open_synchronous, cuda_close, synchronous_tests,
              BK_COUNT(synchronous_tests));
  else printf("CK_FORK=no: one fault only, a process does not outlive it\n");
  unit_case(suite, "faults", cuda_open, cuda_close, fault_tests, forks ? BK_COUNT(fault_tests) : 1);
  return unit_run(suite);
}
