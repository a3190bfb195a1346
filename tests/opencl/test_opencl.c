/* The opencl backend on the first device that is here: streams and events
 * (tests/gpu/gpu_streams.h), limits, the numbering of devices. */
static const char gpu_name[] = "opencl";
#include "tests/gpu/gpu_streams.h"

#include "backends/gpu/gpu.h"

START_TEST(describes_itself) {
  bk_device_props props = {0};
  size_t memory = 0;
  const bk_backend *backend = bk_backend_find("opencl");
  ck_assert_int_eq(backend->describe(ctx, 0, &props, &memory), BK_OK);
  ck_assert_str_eq(props.name, device->props.name);
  ck_assert(props.name[0] && strncmp(props.driver, "OpenCL ", 7) == 0);
  ck_assert_uint_gt(memory, 0);
  ck_assert_uint_gt(props.max_alloc, 0);
  ck_assert_uint_le(props.max_alloc, memory);
  int n = backend->device_count(ctx);
  ck_assert_int_eq(backend->describe(ctx, n, &props, &memory), BK_ERR_ABSENT);
  unit_expect("is not here: there are fewer devices");
}
END_TEST

START_TEST(above_the_largest_buffer) {
  bk_buffer *b = NULL;
  ck_assert_int_eq(bk_buffer_alloc(device, device->props.max_alloc + 1, BK_MEM_WEIGHTS, &b),
                   BK_ERR_MEMORY);
  unit_expect("is above the device's limit of ");
}
END_TEST

static int max_group(const char *limit, bk_status expected) {
  bk_device *d = NULL;
  int group = 0;
  set("BIRKHOFF_OPENCL_MAX_GROUP", limit);
  ck_assert_int_eq(bk_device_open(ctx, "opencl", NULL, &d), expected);
  if (d) group = bk_gpu_of(d)->max_group;
  bk_device_close(d);
  set("BIRKHOFF_OPENCL_MAX_GROUP", NULL);
  return group;
}

START_TEST(smaller_groups) {
  int all = max_group(NULL, BK_OK);
  ck_assert_int_ge(all, 64);
  ck_assert_int_eq(max_group("", BK_OK), all);
  ck_assert_int_eq(max_group("64", BK_OK), 64);
  ck_assert_int_le(max_group("200", BK_OK), 128); /* a power of two */
  ck_assert_int_eq(max_group("100000", BK_OK), all);
  ck_assert_int_eq(max_group("63", BK_ERR_ARGUMENT), 0);
  unit_expect("BIRKHOFF_OPENCL_MAX_GROUP is a number, at least 64, not \"63\"");
  ck_assert_int_eq(max_group("many", BK_ERR_ARGUMENT), 0);
  unit_expect("not \"many\"");
}
END_TEST

int main(void) {
  const TTest *const tests[] = {STREAM_TESTS, describes_itself, above_the_largest_buffer,
                                smaller_groups};
  if (!gpu_is_here("opencl")) return SKIPPED;
  Suite *suite = suite_create("opencl");
  unit_case(suite, "opencl", streams_open, gpu_close, tests, BK_COUNT(tests));
  return unit_run(suite);
}
