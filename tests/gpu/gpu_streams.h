/* Streams, events and memory: what holds for every GPU backend. The program that includes this
 * defines `gpu_name`. */
#ifndef BK_TESTS_GPU_STREAMS_H
#define BK_TESTS_GPU_STREAMS_H

#include "ops/plan.h"
#include "tests/gpu/gpu_unit.h"

/* Nothing is kept: making what is kept takes some drivers a second compilation. */
static void streams_open(void) {
  set("BIRKHOFF_CACHE", "off");
  gpu_open(gpu_name);
}

START_TEST(buffers_start_as_zeros) {
  for (int turn = 0; turn < 3; turn++) { /* memory that comes again too */
    bk_tensor t = gpu_tensor(bk_tensor_1d(BK_F32, 1000));
    float values[1000];
    ck_assert_int_eq(bk_tensor_download(stream, &t, values), BK_OK);
    for (int i = 0; i < 1000; i++) ck_assert_float_eq(values[i], 0);
    memset(values, 7, sizeof values);
    ck_assert_int_eq(bk_tensor_upload(stream, &t, values), BK_OK);
    bk_buffer_free(t.buffer);
  }
}
END_TEST

/* Any offset and length of bytes. */
START_TEST(transfers_of_bytes) {
  enum { bytes = 301 };
  unsigned char in[bytes], out[bytes], want[bytes] = {0};
  bk_buffer *a = NULL, *b = NULL;
  for (int i = 0; i < bytes; i++) in[i] = (unsigned char)(i * 7 + 1);
  ck_assert_int_eq(bk_buffer_alloc(device, bytes, BK_MEM_STAGING, &a), BK_OK);
  ck_assert_int_eq(bk_buffer_alloc(device, bytes, BK_MEM_STAGING, &b), BK_OK);
  ck_assert_int_eq(stream->ops->upload(stream, (bk_place){a, 0}, in, bytes), BK_OK);
  ck_assert_int_eq(stream->ops->copy(stream, (bk_place){b, 8}, (bk_place){a, 20}, 256), BK_OK);
  ck_assert_int_eq(stream->ops->fill(stream, (bk_place){b, 100}, 0xa5, 32), BK_OK);
  ck_assert_int_eq(stream->ops->upload(stream, (bk_place){b, 200}, in, 4), BK_OK);
  for (size_t zero = 0; zero < 1; zero++) { /* nothing to do */
    ck_assert_int_eq(stream->ops->upload(stream, (bk_place){b, 0}, in, zero), BK_OK);
    ck_assert_int_eq(stream->ops->copy(stream, (bk_place){b, 0}, (bk_place){a, 0}, zero), BK_OK);
    ck_assert_int_eq(stream->ops->fill(stream, (bk_place){b, 0}, 1, zero), BK_OK);
    ck_assert_int_eq(stream->ops->download(stream, out, (bk_place){b, 0}, zero), BK_OK);
  }
  ck_assert_int_eq(stream->ops->download(stream, out, (bk_place){b, 0}, bytes), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_OK);
  memcpy(want + 8, in + 20, 256);
  memset(want + 100, 0xa5, 32);
  memcpy(want + 200, in, 4);
  ck_assert_mem_eq(out, want, bytes);
  bk_buffer_free(a);
  bk_buffer_free(b);
}
END_TEST

START_TEST(host_memory) {
  void *p = NULL;
  for (size_t bytes = 0; bytes < 5000; bytes += 4096) {
    ck_assert_int_eq(device->ops->host_alloc(device, bytes, &p), BK_OK);
    for (size_t i = 0; i < bytes; i++) ck_assert_int_eq(((char *)p)[i], 0);
    device->ops->host_free(device, p, bytes);
  }
}
END_TEST

START_TEST(launches_in_order) {
  work w;
  work_open(&w);
  for (int turn = 0; turn < 2; turn++) { /* the same arguments, then others, then the same */
    ck_assert_int_eq(copy(&w, stream), BK_OK);
    for (int i = 0; i < 50; i++) ck_assert_int_eq(add(&w, stream), BK_OK);
    expect_result(&w, stream, 50);
  }
  work_close(&w);
}
END_TEST

/* A buffer goes and another comes, perhaps with the same handle; plans of equal shape share
 * their kernels. */
START_TEST(other_buffers) {
  work w[2];
  work_open(&w[0]);
  for (int turn = 0; turn < 4; turn++) {
    work_open(&w[1]);
    for (int i = 0; i < 2; i++) ck_assert_int_eq(copy(&w[i], stream), BK_OK);
    for (int i = 0; i < 4; i++) ck_assert_int_eq(add(&w[i % 2], stream), BK_OK);
    for (int i = 0; i < 2; i++) expect_result(&w[i], stream, 2);
    work_close(&w[1]);
  }
  work_close(&w[0]);
}
END_TEST

START_TEST(events_tell_time) {
  bk_event *begin = NULL, *end = NULL;
  double seconds = -1;
  work w;
  work_open(&w);
  ck_assert_int_eq(device->ops->event_create(device, &begin), BK_OK);
  ck_assert_int_eq(device->ops->event_create(device, &end), BK_OK);
  ck_assert_int_eq(end->ops->sync(end), BK_OK); /* never recorded: nothing to wait for */
  ck_assert_int_eq(stream->ops->event_wait(stream, end), BK_OK);
  ck_assert_int_eq(begin->ops->elapsed(begin, end, &seconds), BK_ERR_ARGUMENT);
  unit_expect("an event was never recorded");
  for (int turn = 0; turn < 2; turn++) { /* recorded again */
    ck_assert_int_eq(stream->ops->event_record(stream, begin), BK_OK);
    ck_assert_int_eq(copy(&w, stream), BK_OK);
    for (int i = 0; i < 100; i++) ck_assert_int_eq(add(&w, stream), BK_OK);
    ck_assert_int_eq(stream->ops->event_record(stream, end), BK_OK);
    ck_assert_int_eq(end->ops->sync(end), BK_OK);
    ck_assert_int_eq(begin->ops->elapsed(begin, end, &seconds), BK_OK);
    ck_assert_msg(seconds > 0 && seconds < 60, "%g s", seconds);
    ck_assert_int_eq(end->ops->elapsed(end, begin, &seconds), BK_OK);
    ck_assert_msg(seconds < 0, "%g s", seconds);
  }
  expect_result(&w, stream, 100);
  begin->ops->destroy(begin);
  end->ops->destroy(end);
  work_close(&w);
}
END_TEST

START_TEST(query_tells) {
  bool done = false;
  work w;
  work_open(&w);
  ck_assert_int_eq(stream->ops->query(stream, &done), BK_OK); /* idle */
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  done = false;
  for (int i = 0; i < 1000000 && !done; i++)
    ck_assert_int_eq(stream->ops->query(stream, &done), BK_OK);
  ck_assert(done); /* it comes about without a sync */
  expect_result(&w, stream, 0);
  work_close(&w);
}
END_TEST

/* Work goes back and forth between streams; events alone keep it in order. */
START_TEST(across_streams) {
  enum { n_streams = 4, rounds = 40 };
  bk_stream *s[n_streams] = {0};
  bk_event *e[n_streams] = {0};
  work w;
  work_open(&w);
  for (int i = 0; i < n_streams; i++) {
    ck_assert_int_eq(bk_stream_create(device, i - 1, &s[i]), BK_OK);
    ck_assert_int_eq(device->ops->event_create(device, &e[i]), BK_OK);
  }
  ck_assert_int_eq(copy(&w, s[0]), BK_OK);
  for (int i = 0; i < rounds; i++) {
    int now = i % n_streams, next = (i + 1) % n_streams;
    ck_assert_int_eq(add(&w, s[now]), BK_OK);
    ck_assert_int_eq(s[now]->ops->event_record(s[now], e[now]), BK_OK);
    ck_assert_int_eq(s[next]->ops->event_wait(s[next], e[now]), BK_OK);
  }
  expect_result(&w, s[rounds % n_streams], rounds);
  for (int i = 0; i < n_streams; i++) {
    e[i]->ops->destroy(e[i]);
    bk_stream_destroy(s[i]);
  }
  work_close(&w);
}
END_TEST

/* An event that goes away after somebody was told to wait for it, and a stream that goes away
 * with work under way. */
START_TEST(gone_early) {
  bk_stream *other = NULL;
  bk_event *e = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(bk_stream_create(device, 0, &other), BK_OK);
  ck_assert_int_eq(device->ops->event_create(device, &e), BK_OK);
  ck_assert_int_eq(copy(&w, other), BK_OK);
  for (int i = 0; i < 20; i++) ck_assert_int_eq(add(&w, other), BK_OK);
  ck_assert_int_eq(other->ops->event_record(other, e), BK_OK);
  ck_assert_int_eq(stream->ops->event_wait(stream, e), BK_OK);
  e->ops->destroy(e);
  bk_stream_destroy(other);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  expect_result(&w, stream, 21);
  work_close(&w);
}
END_TEST

/* What is not here is refused, and the stream goes on. */
START_TEST(no_captures) {
  void *graph = NULL;
  work w;
  work_open(&w);
  if (!device->props.captures) {
    ck_assert_int_eq(stream->ops->capture_begin(stream), BK_ERR_UNSUPPORTED);
    ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_ERR_UNSUPPORTED);
    unit_messages[0] = '\0';
    ck_assert_int_eq(copy(&w, stream), BK_OK);
    expect_result(&w, stream, 0);
  }
  work_close(&w);
}
END_TEST

/* Tensors that begin beyond 2 and 4 GiB of one buffer, where the device gives such buffers. */
START_TEST(beyond_two_gib) {
  const size_t gib = (size_t)1 << 30;
  size_t free_bytes = 0, total = 0,
         limit = device->props.max_alloc ? device->props.max_alloc : SIZE_MAX;
  bk_buffer *big = NULL;
  float got[count], values[count];
  ck_assert_int_eq(device->ops->memory_info(device, &free_bytes, &total), BK_OK);
  size_t want = limit > 4 * gib + 4096 && free_bytes > 6 * gib ? 4 * gib + 4096 : 2 * gib + 4096;
  if (limit < want || free_bytes < want + gib / 2) {
    printf("left out: a buffer of %zu bytes (the device's limit: %zu, free: %zu)\n", want, limit,
           free_bytes);
    return;
  }
  if (bk_buffer_alloc(device, want, BK_MEM_STAGING, &big) != BK_OK) {
    printf("left out: no buffer of %zu bytes can be had now\n", want);
    unit_messages[0] = '\0';
    return;
  }
  bk_tensor a = bk_tensor_1d(BK_F32, count), y = a;
  a.buffer = y.buffer = big;
  a.offset = want - 4096;
  y.offset = want - 2048;
  for (int i = 0; i < count; i++) values[i] = (float)(i + 1);
  ck_assert_int_eq(bk_tensor_upload(stream, &a, values), BK_OK);
  bk_add_args args = {a, a, y};
  ck_assert_int_eq(bk_op_run(stream, BK_OP_ADD, &args), BK_OK);
  ck_assert_int_eq(bk_tensor_download(stream, &y, got), BK_OK);
  for (int i = 0; i < count; i++) ck_assert_float_eq(got[i], 2 * values[i]);
  y.offset -= 2 * gib; /* where 32 bits would have put it */
  ck_assert_int_eq(bk_tensor_download(stream, &y, got), BK_OK);
  for (int i = 0; i < count; i++) ck_assert_float_eq(got[i], 0);
  bk_buffer_free(big);
}
END_TEST

#define STREAM_TESTS                                                                         \
  buffers_start_as_zeros, transfers_of_bytes, host_memory, launches_in_order, other_buffers, \
      events_tell_time, query_tells, across_streams, gone_early, no_captures, beyond_two_gib

#endif
