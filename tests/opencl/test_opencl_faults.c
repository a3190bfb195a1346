/* What can go wrong between the opencl backend and OpenCL, made to happen by a stand-in for
 * libOpenCL (fake_opencl.c): libraries, platforms and devices that are missing or refused, no
 * memory, a device that is lost, kernels that do not compile, kept programs. Without a real
 * device only the first part runs. */
static const char gpu_name[] = "opencl", faults[] = "BK_FAKE_OPENCL",
                  library_is[] = "BIRKHOFF_OPENCL_LIBRARY";
#include "ops/plan.h"
#include "tests/gpu/gpu_faults.h"

static int *builds, *sets; /* counted by the stand-in */

static void faults_open(void) {
  fault("");
  set("BIRKHOFF_CACHE", NULL);
  set("BIRKHOFF_OPENCL_AS_GPU", NULL);
  set(library_is, library);
  gpu_open(gpu_name);
}

static void registry_open(void) {
  fault("");
  set(library_is, library);
  gpu_registry();
}

/* ---- no device ---- */

START_TEST(no_library) { expect_no_library("/nowhere/libOpenCL.so.1"); }
END_TEST

START_TEST(library_is_another) {
  expect_library_is_another("the OpenCL loader is older than 1.2: it has no cl");
}
END_TEST

START_TEST(no_platform) {
  fault("no_platform");
  gpu_expect_absent("opencl", "no OpenCL platform is installed");
}
END_TEST

START_TEST(no_device) {
  fault("no_device");
  gpu_expect_absent("opencl", "no OpenCL platform has a device");
}
END_TEST

START_TEST(only_an_old_device) {
  fault("no_device,beside");
  gpu_expect_absent("opencl", "an old device: it has less than OpenCL 1.2");
}
END_TEST

/* ---- devices that are refused ---- */

START_TEST(refused_devices) {
  static const char *const refused[][2] = {
      {"old", "it has less than OpenCL 1.2"},
      {"no_compiler", "its driver has no compiler"},
      {"big_endian", "it is big-endian"},
      {"unavailable", "its driver says that it is not available"},
      {"little_local", "it has less than 16 KiB of local memory"},
      {"small_group", "its work groups have fewer than 64 items"}};
  expect_each_absent(refused, BK_COUNT(refused));
}
END_TEST

/* The good one is there, and what is wrong with the other is said. */
START_TEST(refused_beside_a_good_one) {
  const bk_backend *opencl = bk_backend_find("opencl");
  char reason[256] = "";
  int n = opencl->device_count(ctx);
  ck_assert_int_eq(opencl->probe(ctx, reason, sizeof reason), BK_OK);
  ck_assert_str_eq(reason, "");
  fault("beside");
  ck_assert_int_eq(opencl->probe(ctx, reason, sizeof reason), BK_OK);
  ck_assert_ptr_nonnull(strstr(reason, "an old device: it has less than OpenCL 1.2"));
  ck_assert_int_eq(opencl->device_count(ctx), n);
}
END_TEST

/* ---- memory ---- */

static void run_short_of_memory(const char *how, const char *message) {
  fault(how);
  expect_short_of_memory(3000000, message);
  gpu_expect_little_fits();
}

START_TEST(out_of_memory) {
  run_short_of_memory("oom=1000000",
                      "opencl:0: cannot allocate 3000000 bytes of device memory: "
                      "CL_MEM_OBJECT_ALLOCATION_FAILURE (-4)");
}
END_TEST
START_TEST(out_of_memory_at_first_use) {
  run_short_of_memory(
      "oom_late=1000000",
      "opencl:0: cannot allocate 3000000 bytes of device memory: CL_OUT_OF_RESOURCES (-5)");
}
END_TEST

/* ---- a lost device ---- */

START_TEST(lost_at_a_launch) {
  bk_buffer *b = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  fault("lost=0");
  ck_assert_int_eq(add(&w, stream), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect("opencl:0: gpu_add: CL_DEVICE_NOT_AVAILABLE (-2); the stream cannot go on");
  expect_poisoned(&w, stream, BK_ERR_DEVICE);
  /* that is no lack of memory */
  ck_assert_int_eq(bk_buffer_alloc(device, 100, BK_MEM_STAGING, &b), BK_ERR_DEVICE);
  unit_expect("cannot allocate 100 bytes of device memory: CL_DEVICE_NOT_AVAILABLE");
  work_close(&w);
}
END_TEST

/* The loss comes to light where the host waits. */
START_TEST(lost_while_waiting) {
  bk_stream *other = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(bk_stream_create(device, 0, &other), BK_OK);
  fault("lost_late=0");
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect(
      "opencl:0: waiting for the stream: CL_OUT_OF_RESOURCES (-5); the latest launch was gpu_copy; "
      "the stream cannot go on");
  expect_poisoned(&w, stream, BK_ERR_DEVICE);
  ck_assert_int_eq(other->ops->sync(other), BK_ERR_DEVICE); /* each stream says it once */
  unit_expect("waiting for the stream: CL_OUT_OF_RESOURCES (-5); the stream cannot go on");
  expect_poisoned(&w, other, BK_ERR_DEVICE);
  bk_stream_destroy(other);
  work_close(&w);
}
END_TEST

START_TEST(lost_met_by_a_download) {
  float y[count];
  work w;
  work_open(&w);
  fault("lost_late=0");
  ck_assert_int_eq(bk_tensor_download(stream, &w.y, y), BK_ERR_DEVICE);
  unit_expect("downloading: CL_OUT_OF_RESOURCES");
  expect_poisoned(&w, stream, BK_ERR_DEVICE);
  work_close(&w);
}
END_TEST

START_TEST(lost_met_by_a_query) {
  bool done = false;
  work w;
  work_open(&w);
  fault("lost_late=0");
  ck_assert_int_eq(stream->ops->query(stream, &done), BK_ERR_DEVICE);
  unit_expect("querying the stream: CL_OUT_OF_RESOURCES");
  expect_poisoned(&w, stream, BK_ERR_DEVICE);
  work_close(&w);
}
END_TEST

START_TEST(lost_met_by_an_event) {
  bk_event *e = NULL;
  ck_assert_int_eq(device->ops->event_create(device, &e), BK_OK);
  ck_assert_int_eq(stream->ops->event_record(stream, e), BK_OK);
  fault("lost_late=0");
  ck_assert_int_eq(e->ops->sync(e), BK_ERR_DEVICE);
  unit_expect("waiting for an event: CL_OUT_OF_RESOURCES");
  e->ops->destroy(e);
}
END_TEST

/* ---- kernels ---- */

static int builds_of_add(void) {
  bk_plan plan = {0};
  int before = *builds;
  ck_assert_int_eq(prepare_add(&plan), BK_OK);
  bk_plan_release(&plan);
  return *builds - before;
}

START_TEST(does_not_compile) {
  bk_plan plan = {0};
  fault("no_build");
  ck_assert_int_eq(prepare_add(&plan), BK_ERR_DEVICE);
  ck_assert_msg(
      strstr(unit_messages, "opencl:0: kernel add (basic.k, -DKERNEL_add -DGROUP=") != NULL, "%s",
      unit_messages);
  ck_assert_msg(strstr(unit_messages, "does not compile: CL_BUILD_PROGRAM_FAILURE (-11)") != NULL,
                "%s", unit_messages);
  unit_expect("basic.k:12:"); /* the driver's own words: which line of which file */
  fault("");
  ck_assert_int_eq(builds_of_add(), 1); /* nothing is spoilt */
}
END_TEST

START_TEST(groups_too_large_for_a_kernel) {
  bk_plan plan = {0};
  fault("group=4");
  set("BIRKHOFF_OPENCL_AS_GPU", "1"); /* processors have small groups */
  open_again();
  ck_assert_int_eq(prepare_add(&plan), BK_ERR_UNSUPPORTED);
  unit_expect("opencl:0: the device runs kernel add in groups of at most 4, not ");
}
END_TEST

/* ---- kept programs ---- */

START_TEST(kept_and_found) {
  ck_assert_int_eq(builds_of_add(), 1);
  ck_assert_int_eq(builds_of_add(), 0); /* in the device's memory */
  open_again();
  ck_assert_int_eq(builds_of_add(), 0); /* on disk */
  works();
  set("BIRKHOFF_CACHE", "off");
  open_again();
  ck_assert_int_eq(builds_of_add(), 1);
}
END_TEST

START_TEST(kept_by_another_driver) {
  ck_assert_int_eq(builds_of_add(), 1);
  fault("driver");
  open_again();
  ck_assert_int_eq(builds_of_add(), 1);
  fault("");
  open_again();
  ck_assert_int_eq(builds_of_add(), 0); /* the first one's is still there */
}
END_TEST

START_TEST(kept_and_refused) {
  ck_assert_int_eq(builds_of_add(), 1);
  fault("no_binary");
  open_again();
  ck_assert_int_eq(builds_of_add(), 1);
  works();
}
END_TEST

START_TEST(kept_and_spoilt) {
  ck_assert_int_eq(builds_of_add(), 1);
  for (int halve = 0; halve < 2; halve++) {
    gpu_spoil_kept(halve);
    open_again();
    ck_assert_int_eq(builds_of_add(), 1);
    open_again();
    ck_assert_int_eq(builds_of_add(), 0);
  }
  works();
}
END_TEST

START_TEST(cannot_be_kept) {
  no_folder_to_keep_in();
  ck_assert_int_eq(builds_of_add(), 1);
  expect_not_kept();
  works(); /* builds another, and says nothing more */
}
END_TEST

/* What is the same as at the last launch is not handed over again. */
START_TEST(arguments_are_remembered) {
  work w;
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  int before = *sets;
  for (int i = 0; i < 5; i++) ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(*sets, before);
  expect_result(&w, stream, 6);
  work_close(&w);
}
END_TEST

int main(void) {
  const TTest *const first[] = {no_library, library_is_another, no_platform, no_device,
                                only_an_old_device};
  const TTest *const refused[] = {refused_devices, refused_beside_a_good_one};
  const TTest *const tests[] = {out_of_memory,
                                out_of_memory_at_first_use,
                                lost_at_a_launch,
                                lost_while_waiting,
                                lost_met_by_a_download,
                                lost_met_by_a_query,
                                lost_met_by_an_event,
                                does_not_compile,
                                groups_too_large_for_a_kernel,
                                kept_and_found,
                                kept_by_another_driver,
                                kept_and_refused,
                                kept_and_spoilt,
                                cannot_be_kept,
                                arguments_are_remembered};
  builds = find_fake("builds");
  sets = find_fake("sets");
  if (!builds || !sets) {
    printf("SKIP: there is no %s\n", library);
    return SKIPPED;
  }
  const bool here = gpu_is_here(gpu_name);
  Suite *suite = suite_create("opencl_faults");
  unit_case(suite, "absent", registry_open, gpu_close, first, BK_COUNT(first));
  if (here) {
    unit_case(suite, "refused", registry_open, gpu_close, refused, BK_COUNT(refused));
    unit_case(suite, "faults", faults_open, gpu_close, tests, BK_COUNT(tests));
  }
  return unit_run(suite);
}
