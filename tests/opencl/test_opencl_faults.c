/* What can go wrong between the opencl backend and OpenCL, made to happen by a stand-in for
 * libOpenCL (fake_opencl.c): libraries, platforms and devices that are missing or refused, no
 * memory, a device that is lost, kernels that do not compile, kept programs. Without a real
 * device only the first part runs. */
#include "tests/gpu/gpu_unit.h"

#include <dlfcn.h>

static char library[600];
static int *builds, *sets; /* counted by the stand-in */

static void fault(const char *text) { set("BK_FAKE_OPENCL", text); }

static void find_fake(void) {
  const char *build = getenv("TOP_BUILDDIR");
  snprintf(library, sizeof library, "%s/tests/opencl/.libs/fake_opencl.so", build ? build : ".");
  (void)setenv("BIRKHOFF_OPENCL_LIBRARY", library, 1); /* before there is a test that could fail */
  (void)unsetenv("BK_FAKE_OPENCL");
  void *fake = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  builds = fake ? dlsym(fake, "bk_fake_opencl_builds") : NULL;
  sets = fake ? dlsym(fake, "bk_fake_opencl_sets") : NULL;
}

static void faults_open(void) {
  fault("");
  set("BIRKHOFF_CACHE", NULL);
  set("BIRKHOFF_OPENCL_AS_GPU", NULL);
  set("BIRKHOFF_OPENCL_LIBRARY", library);
  gpu_open("opencl");
}

static void registry_open(void) {
  fault("");
  set("BIRKHOFF_OPENCL_LIBRARY", library);
  gpu_registry();
}

/* ---- no device ---- */

/* First: what is loaded stays. */
START_TEST(no_library) {
  set("BIRKHOFF_OPENCL_LIBRARY", "/nowhere/libOpenCL.so.1");
  gpu_expect_absent("opencl", "there is no /nowhere/libOpenCL.so.1 (BIRKHOFF_OPENCL_LIBRARY)");
}
END_TEST

START_TEST(library_is_another) {
  char other[600];
  snprintf(other, sizeof other, "%s/birkhoff_opencl.so", getenv("BIRKHOFF_BACKEND_DIR"));
  set("BIRKHOFF_OPENCL_LIBRARY", other);
  gpu_expect_absent("opencl", "the OpenCL loader is older than 1.2: it has no cl");
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
  static const char *const faults[][2] = {
      {"old", "it has less than OpenCL 1.2"},
      {"no_compiler", "its driver has no compiler"},
      {"big_endian", "it is big-endian"},
      {"unavailable", "its driver says that it is not available"},
      {"little_local", "it has less than 16 KiB of local memory"},
      {"small_group", "its work groups have fewer than 64 items"}};
  for (size_t i = 0; i < BK_COUNT(faults); i++) {
    fault(faults[i][0]);
    gpu_expect_absent("opencl", faults[i][1]);
  }
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
  bk_memory *memory = NULL;
  work w;
  fault(how);
  ck_assert_int_eq(gpu_commit_weights(3000000, &memory), BK_ERR_MEMORY);
  ck_assert_int_eq(unit_errors(), 1);
  ck_assert_msg(strstr(unit_messages, message) != NULL, "%s", unit_messages);
  unit_expect("memory: weights needs 3000000 bytes");
  bk_memory_destroy(memory);
  /* less of it goes on in the same process */
  ck_assert_int_eq(gpu_commit_weights(300000, &memory), BK_OK);
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  expect_result(&w, stream, 0);
  work_close(&w);
  bk_memory_destroy(memory);
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

static void reopen(void) {
  bk_stream_destroy(stream);
  bk_device_close(device);
  ck_assert_int_eq(bk_device_open(ctx, "opencl", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
}

static bk_status prepare_add(bk_plan *plan) {
  bk_tensor t = bk_tensor_2d(BK_F32, side, side);
  bk_add_args args = {t, t, t};
  return bk_plan_prepare(device, BK_OP_ADD, &args, plan);
}

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
  reopen();
  ck_assert_int_eq(prepare_add(&plan), BK_ERR_UNSUPPORTED);
  unit_expect("opencl:0: the device runs kernel add in groups of at most 4, not ");
}
END_TEST

/* ---- kept programs ---- */

static void works(void) {
  work w;
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  expect_result(&w, stream, 1);
  work_close(&w);
}

START_TEST(kept_and_found) {
  ck_assert_int_eq(builds_of_add(), 1);
  ck_assert_int_eq(builds_of_add(), 0); /* in the device's memory */
  reopen();
  ck_assert_int_eq(builds_of_add(), 0); /* on disk */
  works();
  set("BIRKHOFF_CACHE", "off");
  reopen();
  ck_assert_int_eq(builds_of_add(), 1);
}
END_TEST

START_TEST(kept_by_another_driver) {
  ck_assert_int_eq(builds_of_add(), 1);
  fault("driver");
  reopen();
  ck_assert_int_eq(builds_of_add(), 1);
  fault("");
  reopen();
  ck_assert_int_eq(builds_of_add(), 0); /* the first one's is still there */
}
END_TEST

START_TEST(kept_and_refused) {
  ck_assert_int_eq(builds_of_add(), 1);
  fault("no_binary");
  reopen();
  ck_assert_int_eq(builds_of_add(), 1);
  works();
}
END_TEST

START_TEST(kept_and_spoilt) {
  ck_assert_int_eq(builds_of_add(), 1);
  for (int halve = 0; halve < 2; halve++) {
    gpu_spoil_kept(halve);
    reopen();
    ck_assert_int_eq(builds_of_add(), 1);
    reopen();
    ck_assert_int_eq(builds_of_add(), 0);
  }
  works();
}
END_TEST

START_TEST(cannot_be_kept) {
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("file"), "x", 1), BK_OK);
  set("XDG_CACHE_HOME", unit_path("file"));
  reopen();
  ck_assert_int_eq(builds_of_add(), 1);
  ck_assert_int_eq(unit_errors(), 0);
  unit_expect(
      "warning: opencl:0: compiled kernels are not kept for the next run: cannot make folder ");
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
  find_fake();
  if (!builds || !sets) {
    printf("SKIP: there is no %s\n", library);
    return SKIPPED;
  }
  const bool here = gpu_is_here("opencl");
  Suite *suite = suite_create("opencl_faults");
  unit_case(suite, "absent", registry_open, gpu_close, first, BK_COUNT(first));
  if (here) {
    unit_case(suite, "refused", registry_open, gpu_close, refused, BK_COUNT(refused));
    unit_case(suite, "faults", faults_open, gpu_close, tests, BK_COUNT(tests));
  }
  return unit_run(suite);
}
