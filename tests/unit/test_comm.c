/* comm: the checks of the entry points, and `self`, over a device whose memory the host cannot
 * look at. */
#include "tests/unit/fake_device.h"
#include "tests/unit/unit.h"

#include "comm/comm.h"

static bk_device *device;
static bk_stream *stream;
static bk_comm *comm;
static bk_buffer *memory;

static void open_comm(void) {
  unit_open();
  fake_reset();
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_backend_register(ctx, &fake_backend), BK_OK);
  ck_assert_int_eq(bk_device_open(ctx, "fake", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
  ck_assert_int_eq(bk_buffer_alloc(device, 4096, BK_MEM_COMM, &memory), BK_OK);
  ck_assert_int_eq(bk_comm_self(device, &comm), BK_OK);
}

static void close_comm(void) {
  bk_comm_destroy(comm);
  bk_buffer_free(memory);
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
  bk_request *request = NULL;
  bk_tensor a = rows_at(0, 3, 1), b = rows_at(1024, 3, 100);
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &b, &request), BK_OK);
  expect_rows(&b, 3, 1);
  b = rows_at(1024, 3, 100);
  ck_assert_int_eq(bk_comm_reduce_scatter(comm, stream, BK_REDUCE_MAX, &a, &b, &request), BK_OK);
  expect_rows(&b, 3, 1);
  b = rows_at(1024, 3, 100);
  ck_assert_int_eq(bk_comm_all_gather(comm, stream, &a, &b, &request), BK_OK);
  expect_rows(&b, 3, 1);
  b = rows_at(1024, 3, 100);
  ck_assert_int_eq(bk_comm_all_to_all(comm, stream, &a, &b, &request), BK_OK);
  expect_rows(&b, 3, 1);
  int copies = fake.copies;
  /* in place */
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &a, &request), BK_OK);
  ck_assert_int_eq(bk_comm_broadcast(comm, stream, 0, &a, &request), BK_OK);
  ck_assert_int_eq(bk_comm_barrier(comm, stream, &request), BK_OK);
  ck_assert_int_eq(fake.copies, copies);
  expect_rows(&a, 3, 1);
}
END_TEST

START_TEST(exchange_matches_in_order) {
  bk_request *request = NULL;
  bk_tensor s1 = rows_at(0, 2, 1), s2 = rows_at(256, 1, 50), r1 = rows_at(512, 2, 0),
            r2 = rows_at(768, 1, 0);
  /* receives first: no order within a batch can deadlock */
  bk_transfer batch[] = {
      {false, 0, 11, r1}, {false, 0, 12, r2}, {true, 0, 11, s1}, {true, 0, 12, s2}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, batch, 4, &request), BK_OK);
  expect_rows(&r1, 2, 1);
  expect_rows(&r2, 1, 50);
  ck_assert_int_eq(bk_comm_exchange(comm, stream, NULL, 0, &request), BK_OK);
}
END_TEST

START_TEST(exchange_disagreements) {
  bk_request *request = NULL;
  bk_tensor s = rows_at(0, 2, 1), s1 = rows_at(256, 1, 50), r = rows_at(512, 2, 7);
  bk_transfer tags[] = {{true, 0, 1, s}, {false, 0, 2, r}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, tags, 2, &request), BK_ERR_COMM);
  unit_expect("tag 1 meets a receive with tag 2");
  bk_transfer sizes[] = {{true, 0, 1, s1}, {false, 0, 1, r}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, sizes, 2, &request), BK_ERR_COMM);
  unit_expect("sends 4 of fp32 and receives 8");
  bk_transfer alone[] = {{true, 0, 1, s}, {false, 0, 1, r}, {true, 0, 9, s1}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, alone, 3, &request), BK_ERR_COMM);
  unit_expect("a send of tag 9");
  ck_assert_int_eq(bk_comm_exchange(comm, stream, &alone[1], 1, &request), BK_ERR_COMM);
  unit_expect("a receive of tag 1");
  expect_rows(&r, 2, 7); /* nothing was copied */
  bk_transfer peer[] = {{true, 1, 1, s}};
  ck_assert_int_eq(bk_comm_exchange(comm, stream, peer, 1, &request), BK_ERR_ARGUMENT);
  unit_expect("rank 1 is not in 0..0");
}
END_TEST

START_TEST(counted_all_to_all) {
  bk_request *request = NULL;
  bk_tensor a = rows_at(0, 4, 1), b = rows_at(1024, 5, 100);
  int64_t three = 3, two = 2, five = 5, negative = -1;
  bk_comm_counts c3 = {.host = &three}, c2 = {.host = &two}, c5 = {.host = &five},
                 bad = {.host = &negative};
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &c3, &b, &c3, &request), BK_OK);
  expect_rows(&b, 3, 1);
  bk_tensor untouched = bk_tensor_slice(b, 0, 3, 2);
  expect_rows(&untouched, 2, 112);
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &c3, &b, &c2, &request), BK_ERR_COMM);
  unit_expect("3 rows are sent and 2 received");
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &c5, &b, &c5, &request), BK_ERR_ARGUMENT);
  unit_expect("4 of 4 rows are left");
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &bad, &b, &bad, &request),
                   BK_ERR_ARGUMENT);
  unit_expect("count -1");
  bk_comm_counts on_device = {.device = bk_tensor_1d(BK_I32, 1)};
  on_device.device.buffer = memory;
  on_device.device.offset = 2048;
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &on_device, &b, &on_device, &request),
                   BK_OK);
  expect_rows(&b, 4, 1);
  comm->needs_host_counts = true;
  ck_assert_int_eq(bk_comm_all_to_allv(comm, stream, &a, &on_device, &b, &on_device, &request),
                   BK_ERR_ARGUMENT);
  unit_expect("on the host");
}
END_TEST

START_TEST(bad_arguments) {
  bk_request *request = NULL;
  bk_tensor a = rows_at(0, 4, 1), b = rows_at(1024, 3, 100), none = {0};
  bk_tensor gaps = bk_tensor_slice(a, 1, 0, 2), ints = bk_tensor_2d(BK_U8, 4, 4);
  ints.buffer = memory;
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &b, &request),
                   BK_ERR_ARGUMENT);
  unit_expect("the elements of src");
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &none, &request),
                   BK_ERR_ARGUMENT);
  unit_expect("dst must be contiguous");
  ck_assert_int_eq(bk_comm_all_gather(comm, stream, &gaps, &b, &request), BK_ERR_ARGUMENT);
  unit_expect("src must be contiguous");
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &ints, &ints, &request),
                   BK_ERR_ARGUMENT);
  unit_expect("dtype u8");
  ck_assert_int_eq(bk_comm_reduce_scatter(comm, stream, (bk_reduce)9, &a, &a, &request),
                   BK_ERR_ARGUMENT);
  unit_expect("reduction 9");
  ck_assert_int_eq(bk_comm_broadcast(comm, stream, 1, &a, &request), BK_ERR_ARGUMENT);
  unit_expect("rank 1");
}
END_TEST

START_TEST(aborted_groups_refuse) {
  bk_request *request = NULL;
  bk_tensor a = rows_at(0, 4, 1);
  bk_comm *group = NULL;
  bk_comm_abort(comm);
  ck_assert_int_eq(bk_comm_barrier(comm, stream, &request), BK_ERR_COMM);
  unit_expect("barrier: the group was aborted");
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &a, &request), BK_ERR_COMM);
  unit_expect("aborted");
  ck_assert_int_eq(bk_comm_exchange(comm, stream, NULL, 0, &request), BK_ERR_COMM);
  unit_expect("aborted");
  ck_assert_int_eq(bk_comm_split(comm, 0, 0, &group), BK_ERR_COMM);
  unit_expect("aborted");
}
END_TEST

START_TEST(requests_are_waited_for_once) {
  bk_tensor a = rows_at(0, 3, 1), b = rows_at(1024, 3, 100);
  bk_comm *group = NULL;
  bk_request *first = NULL, *second = NULL;
  ck_assert_int_eq(bk_comm_all_reduce(comm, stream, BK_REDUCE_SUM, &a, &b, &first), BK_OK);
  ck_assert_int_eq(bk_comm_barrier(comm, stream, &second), BK_OK);
  ck_assert_int_eq(bk_comm_split(comm, 0, 0, &group), BK_OK);
  ck_assert_int_eq(bk_comm_wait(group, first, stream), BK_ERR_ARGUMENT);
  unit_expect("none of this group's");
  ck_assert_int_eq(bk_comm_wait(comm, NULL, stream), BK_ERR_ARGUMENT);
  unit_expect("none of this group's");
  bk_comm_destroy(group);
  ck_assert_int_eq(bk_comm_wait(comm, second, stream), BK_OK);
  ck_assert_int_eq(bk_comm_wait(comm, first, stream), BK_OK);
  ck_assert_int_eq(bk_comm_wait(comm, first, stream), BK_ERR_ARGUMENT);
  unit_expect("waited for already");
}
END_TEST

START_TEST(alone) {
  int32_t flag = 7, got = 0;
  bk_comm_stats stats = {1, 1, 1};
  ck_assert(bk_comm_rank(NULL) == 0 && bk_comm_size(NULL) == 1);
  ck_assert(bk_comm_rank(comm) == 0 && bk_comm_size(comm) == 1);
  ck_assert_int_eq(bk_comm_gather(NULL, &flag, sizeof flag, &got), BK_OK);
  ck_assert_int_eq(got, 7);
  flag = 8;
  ck_assert_int_eq(bk_comm_gather(comm, &flag, sizeof flag, &got), BK_OK);
  ck_assert_int_eq(got, 8);
  ck_assert_int_eq(bk_comm_gather(comm, NULL, 0, NULL), BK_OK);
  bk_comm_statistics(comm, &stats);
  ck_assert(stats.bytes_sent == 0 && stats.busy_s == 0 && stats.wait_s == 0);
  stats.wait_s = 1;
  bk_comm_statistics(NULL, &stats);
  ck_assert(stats.wait_s == 0);
  ck_assert_int_eq(bk_comm_reserve(comm, 3, 1 << 20), BK_OK);
  ck_assert_int_eq(bk_comm_reserve(comm, 0, 1 << 20), BK_ERR_ARGUMENT);
  unit_expect("0 requests");
}
END_TEST

/* Pieces cover all elements in their order, begin at multiples of 128, and differ by no more than
 * that; nothing overflows. */
START_TEST(pieces) {
  static const int64_t counts[] = {0, 1, 127, 128, 129, 1000, 1024, 100000, INT64_MAX - 256};
  for (size_t i = 0; i < BK_COUNT(counts); i++)
    for (int size = 1; size <= 9; size++) {
      int64_t count = counts[i], fair = count / size;
      ck_assert_int_eq(bk_comm_cut(count, size, 0), 0);
      ck_assert_int_eq(bk_comm_cut(count, size, size), count);
      for (int r = 0; r < size; r++) {
        int64_t begin = bk_comm_cut(count, size, r), end = bk_comm_cut(count, size, r + 1);
        ck_assert(begin <= end && begin % 128 == 0);
        ck_assert(end - begin >= fair - 128 && end - begin <= fair + 256);
      }
    }
  ck_assert_int_eq(bk_comm_cut(1000, 3, 1), 256);
  ck_assert_int_eq(bk_comm_cut(1000, 3, 2), 640);
}
END_TEST

UNIT_MAIN("comm", open_comm, close_comm, self_is_one, collectives_copy, exchange_matches_in_order,
          exchange_disagreements, counted_all_to_all, bad_arguments, aborted_groups_refuse,
          requests_are_waited_for_once, alone, pieces)
