/* What record.cpp writes down of a launch, and that it finds out what a proof must not overlook:
 * memory that a kernel reads through one pointer and writes through another. */
#include "ops/plan.h"
#include "tests/cuda-on-host/cuda_unit.h"

#include <stdio.h>
#include <string.h>

enum { count = 100 };

static char path[64], text[65536];
static uint32_t values[count + 1]; /* no byte of them is that of untouched memory */

static void setup(void) {
  strcpy(path, "/tmp/birkhoff-record.XXXXXX");
  const int file = mkstemp(path);
  ck_assert_int_ge(file, 0);
  ck_assert_int_eq(close(file), 0);
  cuda_open();
  for (int i = 0; i <= count; i++) values[i] = 0x41424344u + 0x01010101u * (uint32_t)i;
}

static void teardown(void) {
  cuda_close();
  unlink(path);
}

/* Copies `count` numbers of one buffer from the number `from` to the number `to`; `text` is what
 * was recorded. */
static void recorded_copy(int64_t from, int64_t to, int64_t room) {
  bk_tensor all = gpu_tensor(bk_tensor_1d(BK_F32, room));
  bk_copy_args a = {bk_tensor_slice(all, 0, from, count), bk_tensor_slice(all, 0, to, count)};
  ck_assert_int_eq(bk_tensor_upload(stream, &a.x, values), BK_OK);
  ck_assert_int_eq(setenv("BK_CUDA_RECORD", path, 1), 0);
  ck_assert_int_eq(bk_op_run(stream, BK_OP_COPY, &a), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_OK);
  ck_assert_int_eq(unsetenv("BK_CUDA_RECORD"), 0);
  bk_buffer_free(all.buffer);
  FILE *file = fopen(path, "r");
  ck_assert_ptr_nonnull(file);
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  fclose(file);
}

static void expect(const char *part) {
  ck_assert_msg(strstr(text, part) != NULL, "no %s in: %s", part, text);
}

START_TEST(launches_are_written_down) {
  recorded_copy(0, count, 2 * count);
  expect("flat_kernel");
  expect("\"grid\":[1,1,1],\"block\":[256,1,1],\"shared\":0,");
  expect("\"6400000000000000\""); /* the number of elements, among the arguments */
  expect("\"written\":null");     /* through the pointer to what is read */
  expect("\"written\":[400,800]");
  expect("\"apart\":true}\n");
}
END_TEST

/* Written before it is read, in the order in which threads run here; and after. */
START_TEST(pointers_into_what_another_writes_are_found) {
  recorded_copy(0, 1, count + 1);
  expect("\"apart\":false}\n");
}
END_TEST

START_TEST(so_are_those_that_read_first) {
  recorded_copy(1, 0, count + 1);
  expect("\"apart\":false}\n");
}
END_TEST

int main(void) {
  const TTest *const tests[] = {launches_are_written_down,
                                pointers_into_what_another_writes_are_found,
                                so_are_those_that_read_first};
  if (!cuda_find_module()) return SKIPPED;
  Suite *suite = suite_create("cuda record");
  unit_case(suite, "cuda record", setup, teardown, tests, BK_COUNT(tests));
  return unit_run(suite);
}
