/* comm: the checks of the entry points, and `self`, over a device whose memory the host cannot
 * look at. */
#include "tests/unit/fake_device.h"
#include "tests/unit/unit.h"

#include "comm/comm.h"

static bk_device *device;
static bk_stream *stream;
static bk_comm *comm;
static bk_buffer *memory;
static bk_event *done;

static void open_comm(void) {
  unit_open();
  fake_reset();
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_backend_register(ctx, &fake_backend), BK_OK);
  ck_assert_int_eq(bk_device_open(ctx, "fake", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
  ck_assert_int_eq(device->ops->event_create(device, &done), BK_OK);
  ck_assert_int_eq(bk_buffer_alloc(device, 4096, BK_MEM_COMM, &memory), BK_OK);
  ck_assert_int_eq(bk_comm_open_with(&bk_comm_backend_self, device, &comm), BK_OK);
}

static void close_comm(void) {
  bk_comm_destroy(comm);
  bk_buffer_free(memory);
  done->ops->destroy(done);
  bk_stream_destroy(stream);
  bk_device_close(device);
  unit_close();
}

/* Rows of four floats at `offset`, filled with value, value + 1, ... */
static bk_tensor rows_at(size_t offset, int64_t rows, double value) {
  bk_tensor t = bk_tensor_2d(BK_F32, rows, 4);
  double x[64];
  t.buffer = memory;
  t.offset = offset;
  for (int i = 0; i < rows * 4; i++) x[i] = value + i;
  ck_assert_int_eq(bk_tensor_write_f64(stream, &t, x), BK_OK);
  return t;
}

static void expect_rows(const bk_tensor *t, int64_t rows, double value) {
  double x[64];
  bk_tensor part = bk_tensor_slice(*t, 0, 0, rows);
  ck_assert_int_eq(bk_tensor_read_f64(stream, &part, x), BK_OK);
  for (int i = 0; i < rows * 4; i++) ck_assert_double_eq(x[i], value + i);
}

START_TEST(self_is_one) {
  ck_assert(comm->rank == 0 && comm->size == 1 && !comm->needs_host_counts &&
            comm->device == device);
  bk_comm *group = comm;
  ck_assert_int_eq(bk_comm_split(comm, -1, 0, &group), BK_OK);
  ck_assert_ptr_null(group);
  ck_assert_int_eq(bk_comm_split(comm, 5, 7, &group), BK_OK);
  ck_assert(group && group != comm && group->size == 1 && group->rank == 0);
  bk_comm_destroy(group);
  bk_comm_destroy(NULL);
}
END_TEST

START_TEST(collectives_copy) {
  bk_tensor a = rows_at(0, 3, 1), b = rows_at(1024, 3, 100);
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &b, done), BK_OK);
  expect_rows(&b, 3, 1);
  b = rows_at(1024, 3, 100);
  ck_assert_int_eq(bk_comm_reduce_scatter(comm, stream, BK_REDUCE_MAX, &a, &b, NULL), BK_OK);
  expect_rows(&b, 3, 1);
  b = rows_at(1024, 3, 100);
  ck_assert_int_eq(bk_comm_all_gather(comm, stream, &a, &b, done), BK_OK);
  expect_rows(&b, 3, 1);
  b = rows_at(1024, 3, 100);
  ck_assert_int_eq(bk_comm_all_to_all(comm, stream, &a, &b, done), BK_OK);
  expect_rows(&b, 3, 1);
  int copies = fake.copies;
  /* in place */
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &a, done), BK_OK);
  ck_assert_int_eq(bk_comm_broadcast(comm, stream, 0, &a, done), BK_OK);
  ck_assert_int_eq(bk_comm_barrier(comm, stream, done), BK_OK);
  ck_assert_int_eq(fake.copies, copies);
  expect_rows(&a, 3, 1);
}
END_TEST

START_TEST(exchange_matches_in_order) {
  bk_tensor s1 = rows_at(0, 2, 1), s2 = rows_at(256, 1, 50), r1 = rows_at(512, 2, 0),
            r2 = rows_at(768, 1, 0);
  /* receives first: no order within a batch can deadlock */
  bk_transfer batch[] = {
      {false, 0, 11, r1}, {false, 0, 12, r2}, {true, 0, 11, s1}, {true, 0, 12, s2}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, batch, 4, done), BK_OK);
  expect_rows(&r1, 2, 1);
  expect_rows(&r2, 1, 50);
  ck_assert_int_eq(bk_comm_exchange(comm, stream, NULL, 0, done), BK_OK);
}
END_TEST

START_TEST(exchange_disagreements) {
  bk_tensor s = rows_at(0, 2, 1), s1 = rows_at(256, 1, 50), r = rows_at(512, 2, 7);
  bk_transfer tags[] = {{true, 0, 1, s}, {false, 0, 2, r}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, tags, 2, done), BK_ERR_COMM);
  unit_expect("tag 1 meets a receive with tag 2");
  bk_transfer sizes[] = {{true, 0, 1, s1}, {false, 0, 1, r}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, sizes, 2, done), BK_ERR_COMM);
  unit_expect("sends 4 of fp32 and receives 8");
  bk_transfer alone[] = {{true, 0, 1, s}, {false, 0, 1, r}, {true, 0, 9, s1}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, alone, 3, done), BK_ERR_COMM);
  unit_expect("a send of tag 9");
  ck_assert_int_eq(bk_comm_exchange(comm, stream, &alone[1], 1, done), BK_ERR_COMM);
  unit_expect("a receive of tag 1");
  expect_rows(&r, 2, 7); /* nothing was copied */
  bk_transfer peer[] = {{true, 1, 1, s}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, peer, 1, done), BK_ERR_ARGUMENT);
  unit_expect("rank 1 is not in 0..0");
}
END_TEST

START_TEST(counted_all_to_all) {
  bk_tensor a = rows_at(0, 4, 1), b = rows_at(1024, 5, 100);
  int64_t three = 3, two = 2, five = 5, negative = -1;
  bk_comm_counts c3 = {.host = &three}, c2 = {.host = &two}, c5 = {.host = &five},
                 bad = {.host = &negative};
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &c3, &b, &c3, done), BK_OK);
  expect_rows(&b, 3, 1);
  bk_tensor untouched = bk_tensor_slice(b, 0, 3, 2);
  expect_rows(&untouched, 2, 112);
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &c3, &b, &c2, done), BK_ERR_COMM);
  unit_expect("3 rows are sent and 2 received");
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &c5, &b, &c5, done), BK_ERR_ARGUMENT);
  unit_expect("4 of 4 rows are left");
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &bad, &b, &bad, done), BK_ERR_ARGUMENT);
  unit_expect("count -1");
  bk_comm_counts on_device = {.device = bk_tensor_1d(BK_I32, 1)};
  on_device.device.buffer = memory;
  on_device.device.offset = 2048;
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &on_device, &b, &on_device, done), BK_OK);
  expect_rows(&b, 4, 1);
  comm->needs_host_counts = true;
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &on_device, &b, &on_device, done),
                   BK_ERR_ARGUMENT);
  unit_expect("on the host");
}
END_TEST

START_TEST(bad_arguments) {
  bk_tensor a = rows_at(0, 4, 1), b = rows_at(1024, 3, 100), none = {0};
  bk_tensor gaps = bk_tensor_slice(a, 1, 0, 2), ints = bk_tensor_2d(BK_I32, 4, 4);
  ints.buffer = memory;
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &b, done), BK_ERR_ARGUMENT);
  unit_expect("1/1 of the elements");
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &none, done),
                   BK_ERR_ARGUMENT);
  unit_expect("dst must be contiguous");
  ck_assert_int_eq(bk_comm_all_gather(comm, stream, &gaps, &b, done), BK_ERR_ARGUMENT);
  unit_expect("src must be contiguous");
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &ints, &ints, done),
                   BK_ERR_ARGUMENT);
  unit_expect("dtype i32");
  ck_assert_int_eq(bk_comm_reduce_scatter(comm, stream, (bk_reduce)9, &a, &a, done),
                   BK_ERR_ARGUMENT);
  unit_expect("reduction 9");
  ck_assert_int_eq(bk_comm_broadcast(comm, stream, 1, &a, done), BK_ERR_ARGUMENT);
  unit_expect("rank 1");
}
END_TEST

START_TEST(aborted_groups_refuse) {
  bk_tensor a = rows_at(0, 4, 1);
  bk_comm *group = NULL;
  bk_comm_abort(comm);
  ck_assert_int_eq(bk_comm_barrier(comm, stream, done), BK_ERR_COMM);
  unit_expect("barrier: the group was aborted");
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &a, done), BK_ERR_COMM);
  unit_expect("aborted");
  ck_assert_int_eq(bk_comm_exchange(comm, stream, NULL, 0, done), BK_ERR_COMM);
  unit_expect("aborted");
  ck_assert_int_eq(bk_comm_split(comm, 0, 0, &group), BK_ERR_COMM);
  unit_expect("aborted");
}
END_TEST

static bk_status probe_absent(bk_context *c, char *reason, size_t reason_size) {
  (void)c;
  snprintf(reason, reason_size, "no network here");
  return BK_ERR_ABSENT;
}

static void destroy_comm(bk_comm *c) { bk_free(c->ctx, c); }

static bk_status open_holed(bk_device *d, bk_comm **world) {
  static const bk_comm_ops ops = {.destroy = destroy_comm};
  bk_comm *made = bk_alloc(d->ctx, sizeof *made);
  ck_assert_ptr_nonnull(made);
  *made = (bk_comm){.ops = &ops, .ctx = d->ctx, .device = d, .size = 1};
  *world = made;
  return BK_OK;
}

START_TEST(transports_are_checked) {
  bk_comm_backend bad = bk_comm_backend_self;
  bk_comm *world = NULL;
  bad.abi++;
  ck_assert_int_eq(bk_comm_open_with(&bad, device, &world), BK_ERR_ABI);
  unit_expect("ABI");
  bad = bk_comm_backend_self;
  bad.probe = probe_absent;
  ck_assert_int_eq(bk_comm_open_with(&bad, device, &world), BK_ERR_ABSENT);
  unit_expect("no network here");
  bad = bk_comm_backend_self;
  bad.open = open_holed;
  ck_assert_int_eq(bk_comm_open_with(&bad, device, &world), BK_ERR_ABI);
  unit_expect("the table has a hole");
  ck_assert_ptr_null(world);
}
END_TEST

UNIT_MAIN("comm", open_comm, close_comm, self_is_one, collectives_copy, exchange_matches_in_order,
          exchange_disagreements, counted_all_to_all, bad_arguments, aborted_groups_refuse,
          transports_are_checked)
