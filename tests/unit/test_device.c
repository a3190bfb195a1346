/* The registry, opening devices by name, streams, events, buffers, and tensors to and from the
 * host. */
#include "tests/unit/fake_device.h"
#include "tests/unit/unit.h"

#include <math.h>

static bk_device *device;
static bk_stream *stream;

static void open_registry(void) {
  unit_open();
  fake_reset();
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_backend_register(ctx, &fake_backend), BK_OK);
}

static void open_device(void) {
  open_registry();
  ck_assert_int_eq(bk_device_open(ctx, "fake", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
}

static void open_host_device(void) {
  open_registry();
  ck_assert_int_eq(bk_device_open(ctx, "ref", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
}

static void close_device(void) {
  bk_stream_destroy(stream);
  bk_device_close(device);
  ck_assert_int_eq(fake.buffers, 0);
  unit_close();
}

/* ---- registry ---- */

START_TEST(registry_lists) {
  ck_assert_int_ge(bk_backend_count(), 3);
  ck_assert_ptr_eq(bk_backend_find("fake"), &fake_backend);
  ck_assert_ptr_nonnull(bk_backend_find("ref"));
  ck_assert_ptr_nonnull(bk_backend_find("cpu"));
  ck_assert_ptr_null(bk_backend_find("abacus"));
  ck_assert_ptr_null(bk_backend_find(NULL));
  ck_assert_ptr_null(bk_backend_get(-1));
  ck_assert_ptr_null(bk_backend_get(bk_backend_count()));
  int n = bk_backend_count();
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_backend_register(ctx, &fake_backend), BK_OK); /* again: the same */
  ck_assert_int_eq(bk_backend_count(), n);
}
END_TEST

static const bk_kernel holed_kernels[] = {BK_KERNEL(BK_OP_COPY, BK_DT(BK_F32), "holed", NULL),
                                          BK_KERNEL_END};
static const bk_kernel unknown_op_kernels[] = {
    BK_KERNEL(BK_OP_COUNT, BK_DT(BK_F32), "unknown", bk_kernel_launch_none), BK_KERNEL_END};

/* An op whose args name a kind of connection: a row that takes none would never serve. */
static const bk_kernel no_kind_kernels[] = {
    BK_KERNEL(BK_OP_HC_MAPS, BK_DT(BK_F32), "no_kind", bk_kernel_launch_none), BK_KERNEL_END};

static void expect_refused(bk_backend bad, bk_status status, const char *why) {
  int n = bk_backend_count();
  ck_assert_int_eq(bk_backend_register(ctx, &bad), status);
  unit_expect(why);
  ck_assert_int_eq(bk_backend_count(), n);
}

START_TEST(registry_refuses) {
  bk_backend bad = fake_backend;
  bad.abi++;
  expect_refused(bad, BK_ERR_ABI, "ABI");
  bad = fake_backend, bad.name = "Bad Name";
  expect_refused(bad, BK_ERR_ABI, "name");
  bad = fake_backend, bad.name = NULL;
  expect_refused(bad, BK_ERR_ABI, "name");
  bad = fake_backend, bad.name = "other", bad.open = NULL;
  expect_refused(bad, BK_ERR_ABI, "hole");
  bad = fake_backend, bad.name = "other", bad.kernels = NULL;
  expect_refused(bad, BK_ERR_ABI, "hole");
  bad = fake_backend, bad.name = "other", bad.kernels = holed_kernels;
  expect_refused(bad, BK_ERR_ABI, "row 0 (holed)");
  bad = fake_backend, bad.name = "other", bad.kernels = no_kind_kernels;
  expect_refused(bad, BK_ERR_ABI, "row 0 (no_kind) of its kernel table takes no kind");
  bad = fake_backend, bad.name = "other", bad.kernels = unknown_op_kernels;
  expect_refused(bad, BK_ERR_ABI, "row 0 (unknown)");
  bad = fake_backend;
  expect_refused(bad, BK_ERR_ARGUMENT, "another backend has the name fake");
  ck_assert_int_eq(bk_backend_register(ctx, NULL), BK_ERR_ABI);
  unit_expect("NULL");
}
END_TEST

START_TEST(registry_is_bounded) {
  static bk_backend many[32];
  static char names[32][16];
  bk_status status = BK_OK;
  int i = 0;
  for (; i < 32 && status == BK_OK; i++) {
    snprintf(names[i], sizeof names[i], "b%d", i);
    many[i] = fake_backend;
    many[i].name = names[i];
    status = bk_backend_register(ctx, &many[i]);
  }
  ck_assert_int_eq(status, BK_ERR_MEMORY);
  unit_expect("no room");
  ck_assert_int_eq(bk_backend_count(), 16);
}
END_TEST

/* ---- devices ---- */

static void expect_no_device(const char *name, bk_status status, const char *why) {
  bk_device *d = NULL;
  ck_assert_int_eq(bk_device_open(ctx, name, NULL, &d), status);
  ck_assert_ptr_null(d);
  unit_expect(why);
}

START_TEST(device_names) {
  expect_no_device("abacus", BK_ERR_NOT_FOUND, "ref, ");
  expect_no_device("abacus:1", BK_ERR_NOT_FOUND, "there is no such backend");
  expect_no_device("", BK_ERR_NOT_FOUND, "BACKEND:NUMBER");
  expect_no_device(":0", BK_ERR_NOT_FOUND, "BACKEND:NUMBER");
  expect_no_device("fake:", BK_ERR_NOT_FOUND, "BACKEND:NUMBER");
  expect_no_device("fake:x", BK_ERR_NOT_FOUND, "BACKEND:NUMBER");
  expect_no_device("fake:-1", BK_ERR_NOT_FOUND, "BACKEND:NUMBER");
  expect_no_device("fake:+1", BK_ERR_NOT_FOUND, "BACKEND:NUMBER");
  expect_no_device("fake:99999999999", BK_ERR_NOT_FOUND, "BACKEND:NUMBER");
  expect_no_device("fake:1", BK_ERR_ABSENT, "fake has 1 device, the last is fake:0");
  fake.n_devices = 3;
  expect_no_device("abacus", BK_ERR_NOT_FOUND, "fake:0, fake:1, fake:2");
  bk_device *d = NULL;
  ck_assert_int_eq(bk_device_open(ctx, "fake:2", NULL, &d), BK_OK);
  ck_assert_int_eq(d->index, 2);
  bk_device_close(d);
  bk_device_close(NULL);
}
END_TEST

START_TEST(device_absent) {
  fake.probe_status = BK_ERR_ABSENT;
  expect_no_device("fake", BK_ERR_ABSENT, "fake is not here: the fake is switched off");
  fake.probe_status = BK_OK, fake.n_devices = 0;
  expect_no_device("fake:0", BK_ERR_ABSENT, "finds no device");
}
END_TEST

/* The default is the highest priority that probes. */
START_TEST(device_default) {
  static bk_backend urgent;
  urgent = fake_backend;
  urgent.name = "urgent";
  urgent.priority = 1000000;
  bk_device *d = NULL;
  ck_assert_int_eq(bk_backend_register(ctx, &urgent), BK_OK);
  fake.probe_status = BK_ERR_ABSENT;
  ck_assert_int_eq(bk_device_open(ctx, NULL, NULL, &d), BK_OK);
  ck_assert_str_ne(d->backend->name, "fake");
  bk_device_close(d);
  fake.probe_status = BK_OK;
  ck_assert_int_eq(bk_device_open(ctx, NULL, NULL, &d), BK_OK);
  ck_assert_str_eq(d->backend->name, "fake"); /* the copy opens devices of the original */
  bk_device_close(d);
}
END_TEST

START_TEST(device_holes) {
  bk_device *d = NULL;
  bk_stream *s = NULL;
  bk_memory_stats before, after;
  bk_context_memory_stats(ctx, &before);
  fake.holed_device = true;
  expect_no_device("fake", BK_ERR_ABI, "hole");
  fake.holed_device = false;
  fake.holed_stream = true;
  ck_assert_int_eq(bk_device_open(ctx, "fake", NULL, &d), BK_OK);
  ck_assert_int_eq(bk_stream_create(d, 0, &s), BK_ERR_ABI);
  unit_expect("hole");
  ck_assert_ptr_null(s);
  bk_device_close(d);
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_eq(after.current_bytes, before.current_bytes);
}
END_TEST

/* ---- buffers and tensors ---- */

START_TEST(buffer_life) {
  bk_buffer *b = NULL;
  uint64_t made = device->buffer_allocs;
  ck_assert_int_eq(bk_buffer_alloc(device, 100, BK_MEM_STAGING, &b), BK_OK);
  ck_assert(b->device == device && b->size == 100 && b->mem_class == BK_MEM_STAGING && b->handle);
  ck_assert_uint_eq(device->buffer_allocs, made + 1);
  bk_buffer_free(b);
  ck_assert_int_eq(bk_buffer_alloc(device, 0, BK_MEM_STAGING, &b), BK_OK);
  bk_buffer_free(b);
  bk_buffer_free(NULL);
}
END_TEST

START_TEST(buffer_limits) {
  bk_buffer *b = NULL;
  device->props.max_alloc = 1000;
  ck_assert_int_eq(bk_buffer_alloc(device, 1001, BK_MEM_WEIGHTS, &b), BK_ERR_MEMORY);
  unit_expect("limit of 1000");
  fake.allocs_left = 0;
  ck_assert_int_eq(bk_buffer_alloc(device, 10, BK_MEM_WEIGHTS, &b), BK_ERR_MEMORY);
  unit_expect("no memory left");
  ck_assert_ptr_null(b);
}
END_TEST

static bk_tensor tensor_of(bk_dtype dtype, int64_t a, int64_t b, int64_t c, bk_buffer **buffer) {
  bk_tensor t = bk_tensor_3d(dtype, a, b, c);
  ck_assert_int_eq(bk_buffer_alloc(device, bk_tensor_bytes(&t) + 64, BK_MEM_STAGING, buffer),
                   BK_OK);
  t.buffer = *buffer;
  t.offset = 64;
  return t;
}

START_TEST(upload_download_zero) {
  bk_buffer *b;
  bk_tensor t = tensor_of(BK_I32, 2, 3, 4, &b);
  int32_t in[24], out[24];
  for (int i = 0; i < 24; i++) in[i] = 3 * i - 7;
  ck_assert_int_eq(bk_tensor_upload(stream, &t, in), BK_OK);
  ck_assert_int_eq(bk_tensor_download(stream, &t, out), BK_OK);
  ck_assert_int_eq(memcmp(in, out, sizeof in), 0);
  bk_tensor part = bk_tensor_slice(t, 0, 1, 1);
  ck_assert_int_eq(bk_tensor_zero(stream, &part), BK_OK);
  ck_assert_int_eq(bk_tensor_download(stream, &t, out), BK_OK);
  for (int i = 0; i < 24; i++) ck_assert_int_eq(out[i], i < 12 ? in[i] : 0);
  bk_tensor gaps = bk_tensor_slice(t, 1, 0, 2);
  ck_assert_int_eq(bk_tensor_download(stream, &gaps, out), BK_ERR_ARGUMENT);
  unit_expect("not contiguous");
  bk_tensor none = {0}, outside = t, nowhere = bk_tensor_1d(BK_F32, 3);
  outside.offset += 4;
  ck_assert_int_eq(bk_tensor_upload(stream, &none, in), BK_ERR_ARGUMENT);
  unit_expect("absent");
  ck_assert_int_eq(bk_tensor_upload(stream, &outside, in), BK_ERR_ARGUMENT);
  unit_expect("leave its buffer");
  ck_assert_int_eq(bk_tensor_zero(stream, &nowhere), BK_ERR_ARGUMENT);
  unit_expect("no memory");
  bk_buffer_free(b);
}
END_TEST

/* Doubles through every dtype, dense, transposed and with gaps; what is in the gaps stays. */
START_TEST(doubles_any_layout) {
  static const bk_dtype dtypes[] = {BK_F32, BK_BF16, BK_F64, BK_I32, BK_I64, BK_U8};
  for (size_t d = 0; d < BK_COUNT(dtypes); d++) {
    bk_buffer *b;
    bk_tensor t = tensor_of(dtypes[d], 3, 4, 5, &b);
    double values[60], got[60];
    for (int i = 0; i < 60; i++) values[i] = i + 1;
    ck_assert_int_eq(bk_tensor_write_f64(stream, &t, values), BK_OK);
    bk_tensor view = bk_tensor_transpose(bk_tensor_slice(t, 1, 1, 2), 0, 2); /* [5,2,3] */
    ck_assert_int_eq(bk_tensor_read_f64(stream, &view, got), BK_OK);
    for (int i = 0; i < 30; i++)
      ck_assert_double_eq(got[i], values[(i % 3) * 20 + (1 + i / 3 % 2) * 5 + i / 6]);
    double fresh[30];
    for (int i = 0; i < 30; i++) fresh[i] = 100 + i;
    ck_assert_int_eq(bk_tensor_write_f64(stream, &view, fresh), BK_OK);
    ck_assert_int_eq(bk_tensor_read_f64(stream, &t, got), BK_OK);
    for (int i = 0; i < 60; i++) {
      int a = i / 20, r = i / 5 % 4, c = i % 5;
      bool in_view = r == 1 || r == 2;
      ck_assert_double_eq(got[i], in_view ? fresh[c * 6 + (r - 1) * 3 + a] : values[i]);
    }
    bk_buffer_free(b);
  }
}
END_TEST

static double through(bk_dtype dtype, double x) {
  bk_buffer *b;
  bk_tensor t = tensor_of(dtype, 1, 1, 1, &b);
  double got = -1;
  ck_assert_int_eq(bk_tensor_write_f64(stream, &t, &x), BK_OK);
  ck_assert_int_eq(bk_tensor_read_f64(stream, &t, &got), BK_OK);
  bk_buffer_free(b);
  return got;
}

START_TEST(doubles_rounding) {
  ck_assert_double_eq(through(BK_BF16, 0x1.01p0), 1);
  ck_assert_double_eq(through(BK_BF16, 0x1.03p0), 0x1.04p0);
  ck_assert_double_eq(through(BK_F32, 1 + 0x1p-24), 1);
  ck_assert_double_eq(through(BK_F64, 0.1), 0.1);
  ck_assert(isnan(through(BK_F32, NAN)) && isinf(through(BK_BF16, -INFINITY)));
  ck_assert_double_eq(through(BK_I32, -2.5), -2);
  ck_assert_double_eq(through(BK_I32, 1e30), INT32_MAX);
  ck_assert_double_eq(through(BK_I32, -1e30), INT32_MIN);
  ck_assert_double_eq(through(BK_I64, 1e30), 0x1p63);
  ck_assert_double_eq(through(BK_I64, -1e30), -0x1p63);
  ck_assert_double_eq(through(BK_U8, 300), 255);
  ck_assert_double_eq(through(BK_U8, NAN), 0);
}
END_TEST

START_TEST(doubles_empty) {
  bk_buffer *b;
  bk_tensor t = tensor_of(BK_F32, 2, 0, 3, &b);
  ck_assert_int_eq(bk_tensor_read_f64(stream, &t, NULL), BK_OK);
  ck_assert_int_eq(bk_tensor_write_f64(stream, &t, NULL), BK_OK);
  ck_assert_int_eq(bk_tensor_zero(stream, &t), BK_OK);
  bk_buffer_free(b);
}
END_TEST

START_TEST(no_host_addresses_are_followed) {
  bk_buffer *b;
  bk_tensor t = tensor_of(BK_F32, 1, 2, 2, &b);
  double x[4] = {1, 2, 3, 4};
  ck_assert_int_eq(bk_tensor_write_f64(stream, &t, x), BK_OK);
  ck_assert(fake.uploads == 1 && fake.downloads == 0); /* no gaps: nothing to fetch first */
  ck_assert_int_eq(bk_tensor_read_f64(stream, &t, x), BK_OK);
  ck_assert(fake.downloads == 1 && fake.syncs >= 2);
  bk_buffer_free(b);
}
END_TEST

/* ---- host streams, events, stubs ---- */

START_TEST(host_stream) {
  bk_buffer *a, *b;
  bk_tensor t = tensor_of(BK_U8, 1, 1, 100, &a), u = tensor_of(BK_U8, 1, 1, 100, &b);
  bk_place p = {a, t.offset}, q = {b, u.offset};
  bool done = false;
  char out[100];
  ck_assert_int_eq(stream->ops->fill(stream, p, 7, 100), BK_OK);
  ck_assert_int_eq(stream->ops->copy(stream, q, p, 100), BK_OK);
  ck_assert_int_eq(stream->ops->download(stream, out, q, 100), BK_OK);
  for (int i = 0; i < 100; i++) ck_assert_int_eq(out[i], 7);
  ck_assert_int_eq(stream->ops->query(stream, &done), BK_OK);
  ck_assert(done);
  ck_assert_int_eq(stream->ops->copy(stream, q, p, 101), BK_ERR_ARGUMENT);
  unit_expect("leave a buffer");
  ck_assert_int_eq(stream->ops->fill(stream, (bk_place){a, SIZE_MAX}, 0, 2), BK_ERR_ARGUMENT);
  unit_expect("leave a buffer");
  ck_assert_int_eq(stream->ops->upload(stream, (bk_place){NULL, 0}, out, 1), BK_ERR_ARGUMENT);
  unit_expect("leave a buffer");
  bk_buffer_free(a);
  bk_buffer_free(b);
}
END_TEST

START_TEST(host_events) {
  bk_event *begin, *end;
  double seconds = -1;
  ck_assert_int_eq(device->ops->event_create(device, &begin), BK_OK);
  ck_assert_int_eq(device->ops->event_create(device, &end), BK_OK);
  ck_assert_int_eq(begin->ops->elapsed(begin, end, &seconds), BK_ERR_ARGUMENT);
  unit_expect("never recorded");
  ck_assert_int_eq(stream->ops->event_record(stream, begin), BK_OK);
  ck_assert_int_eq(stream->ops->event_record(stream, end), BK_OK);
  ck_assert_int_eq(stream->ops->event_wait(stream, end), BK_OK);
  ck_assert_int_eq(end->ops->sync(end), BK_OK);
  ck_assert_int_eq(begin->ops->elapsed(begin, end, &seconds), BK_OK);
  ck_assert(seconds >= 0 && seconds < 60);
  begin->ops->destroy(begin);
  end->ops->destroy(end);
}
END_TEST

START_TEST(stubs_refuse) {
  void *graph = NULL, *state = &graph;
  size_t workspace = 1;
  bk_plan plan = {.device = device};
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_ERR_UNSUPPORTED);
  unit_expect("captured");
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_ERR_UNSUPPORTED);
  unit_expect("captured");
  ck_assert_int_eq(stream->ops->graph_launch(stream, NULL), BK_ERR_UNSUPPORTED);
  unit_expect("captured");
  stream->ops->graph_destroy(stream, NULL);
  ck_assert(bk_kernel_accepts_all(NULL, device, NULL));
  ck_assert_int_eq(bk_kernel_prepare_none(NULL, device, NULL, &state, &workspace), BK_OK);
  ck_assert(state == NULL && workspace == 0);
  ck_assert_int_eq(bk_kernel_launch_none(stream, &plan, NULL, (bk_place){0}), BK_ERR_UNSUPPORTED);
  unit_expect("does not exist");
  bk_kernel_release_none(device, NULL);
}
END_TEST

START_TEST(host_memory) {
  size_t free_bytes = 0, total_bytes = 0;
  void *p = NULL;
  ck_assert(device->props.host_memory);
  ck_assert_int_eq(device->ops->memory_info(device, &free_bytes, &total_bytes), BK_OK);
  ck_assert_uint_gt(total_bytes, free_bytes);
  ck_assert_int_eq(device->ops->host_alloc(device, 100, &p), BK_OK);
  device->ops->host_free(device, p, 100);
}
END_TEST

int main(void) {
  static const char *const name = "device";
  /* registry_is_bounded fills the registry for good: last, for runs without forks */
  const TTest *const registry_tests[] = {registry_lists, registry_refuses, device_names,
                                         device_absent, device_holes};
  const TTest *const fake_tests[] = {
      buffer_life,      buffer_limits, upload_download_zero,          doubles_any_layout,
      doubles_rounding, doubles_empty, no_host_addresses_are_followed};
  const TTest *const host_tests[] = {buffer_life,      upload_download_zero, doubles_any_layout,
                                     doubles_rounding, doubles_empty,        host_stream,
                                     host_events,      stubs_refuse,         host_memory};
  const TTest *const last_tests[] = {device_default, registry_is_bounded};
  Suite *suite = suite_create(name);
  unit_case(suite, "registry", open_registry, unit_close, registry_tests, BK_COUNT(registry_tests));
  unit_case(suite, "fake device", open_device, close_device, fake_tests, BK_COUNT(fake_tests));
  unit_case(suite, "host device", open_host_device, close_device, host_tests, BK_COUNT(host_tests));
  unit_case(suite, "filled registry", open_registry, unit_close, last_tests, BK_COUNT(last_tests));
  return unit_run(suite);
}
