/* What can go wrong between the vulkan backend and Vulkan, made to happen by a stand-in for
 * libvulkan (fake_vulkan.c): a library, drivers and devices that are missing or refused, no
 * memory, a device that is lost, kernels that do not compile, kept pipelines. */
#include "tests/gpu/gpu_unit.h"

#include <dlfcn.h>

static char library[600];
static int *alive, *given; /* counted by the stand-in */

static void fault(const char *text) { set("BK_FAKE_VULKAN", text); }

static void find_fake(void) {
  const char *build = getenv("TOP_BUILDDIR");
  snprintf(library, sizeof library, "%s/tests/vulkan/.libs/fake_vulkan.so", build ? build : ".");
  (void)setenv("BIRKHOFF_VULKAN_LIBRARY", library, 1); /* before there is a test that could fail */
  (void)unsetenv("BK_FAKE_VULKAN");
  void *fake = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  alive = fake ? dlsym(fake, "bk_fake_vulkan_alive") : NULL;
  given = fake ? dlsym(fake, "bk_fake_vulkan_given") : NULL;
}

static void defaults(void) {
  fault("");
  set("BIRKHOFF_CACHE", NULL);
  set("BIRKHOFF_VULKAN_BINDINGS", NULL);
  set("BIRKHOFF_VULKAN_LIBRARY", library);
}

static void registry_open(void) {
  defaults();
  gpu_registry();
}
static void faults_open(void) {
  defaults();
  gpu_open("vulkan");
}

/* Nothing of Vulkan's is left either. */
static void faults_close(void) {
  gpu_close();
  ck_assert_int_eq(*alive, 0);
}

static void shut(void) {
  if (stream) bk_stream_destroy(stream);
  if (device) bk_device_close(device);
  stream = NULL;
  device = NULL;
}

/* Bytes that the new device's pipeline cache was made from: what was kept. */
static int reopen(void) {
  shut();
  ck_assert_int_eq(bk_device_open(ctx, "vulkan", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
  return *given;
}

/* ---- no device ---- */

/* First: what is loaded stays. */
START_TEST(no_library) {
  set("BIRKHOFF_VULKAN_LIBRARY", "/nowhere/libvulkan.so.1");
  gpu_expect_absent("vulkan", "there is no /nowhere/libvulkan.so.1 (BIRKHOFF_VULKAN_LIBRARY)");
}
END_TEST

START_TEST(library_is_another) {
  char other[600];
  snprintf(other, sizeof other, "%s/birkhoff_vulkan.so", getenv("BIRKHOFF_BACKEND_DIR"));
  set("BIRKHOFF_VULKAN_LIBRARY", other);
  gpu_expect_absent("vulkan", "the Vulkan loader has no vkGetInstanceProcAddr");
}
END_TEST

START_TEST(absent_devices) {
  static const char *const faults[][2] = {
      {"old_loader", "the Vulkan loader is older than 1.2"},
      {"no_driver", "no Vulkan driver is installed"},
      {"no_device", "the Vulkan drivers that are installed find no device"},
      {"old", "it has Vulkan 1.1, 1.2 is needed"},
      {"no_timeline", "it has no timeline semaphores"}};
  for (size_t i = 0; i < BK_COUNT(faults); i++) {
    fault(faults[i][0]);
    gpu_expect_absent("vulkan", faults[i][1]);
  }
}
END_TEST

/* ---- memory ---- */

static void works(void) {
  work w;
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  expect_result(&w, stream, 1);
  work_close(&w);
}

/* A large buffer has memory of its own; a smaller one goes on in the same process. */
START_TEST(out_of_memory) {
  bk_memory *memory = NULL;
  fault("oom=1");
  ck_assert_int_eq(gpu_commit_weights(30000000, &memory), BK_ERR_MEMORY);
  ck_assert_int_eq(unit_errors(), 1);
  ck_assert_msg(strstr(unit_messages,
                       "vulkan:0: cannot allocate 30000000 bytes of device memory: "
                       "VK_ERROR_OUT_OF_DEVICE_MEMORY (-2)") != NULL,
                "%s", unit_messages);
  unit_expect("memory: weights needs 30000000 bytes");
  bk_memory_destroy(memory);
  ck_assert_int_eq(gpu_commit_weights(300000, &memory), BK_OK);
  works();
  bk_memory_destroy(memory);
}
END_TEST

/* Where no block of many buffers fits, one buffer still may. */
START_TEST(the_last_bit_of_memory) {
  bk_buffer *b[8];
  for (size_t i = 0; i < BK_COUNT(b); i++) {
    if (i + 1 == BK_COUNT(b)) fault("oom=1");
    /* the eighth does not fit into the first block */
    ck_assert_int_eq(bk_buffer_alloc(device, 4 << 20, BK_MEM_WORKSPACE, &b[i]), BK_OK);
  }
  works();
  for (size_t i = 0; i < BK_COUNT(b); i++) bk_buffer_free(b[i]);
}
END_TEST

START_TEST(no_memory_for_a_stream) {
  bk_stream *other = NULL;
  fault("oom=1");
  ck_assert_int_eq(bk_stream_create(device, 0, &other), BK_ERR_MEMORY);
  ck_assert_int_eq(unit_errors(), 1);
  ck_assert_ptr_nonnull(
      strstr(unit_messages, "bytes of memory for transfers: VK_ERROR_OUT_OF_DEVICE_MEMORY (-2)"));
  unit_expect("vulkan:0: cannot allocate ");
  ck_assert_int_eq(bk_stream_create(device, 0, &other), BK_OK);
  bk_stream_destroy(other);
  works();
}
END_TEST

/* What was recorded is gone: the stream says so from then on, another one works. */
START_TEST(no_memory_to_submit) {
  work w;
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  fault("submit_oom");
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_MEMORY);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect("submitting commands: VK_ERROR_OUT_OF_DEVICE_MEMORY (-2)");
  expect_poisoned(&w, stream, BK_ERR_MEMORY);
  work_close(&w);
  fault("");
  bk_stream_destroy(stream);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
  works();
}
END_TEST

/* Each object in turn cannot be made: an error, all that was made before is given back, and the
 * next try works. */
static void cannot_make(const char *bindings) {
  int failed = 0;
  set("BIRKHOFF_CACHE", "off");
  set("BIRKHOFF_VULKAN_BINDINGS", bindings);
  for (int n = 1; n < 100000; n += n < 60 ? 1 : 300) { /* most are descriptor sets, all alike */
    char text[40];
    bk_event *e = NULL;
    bk_plan plan = {0};
    bk_tensor t = bk_tensor_2d(BK_F32, side, side);
    bk_add_args args = {t, t, t};
    snprintf(text, sizeof text, "create=%d", n);
    fault(text);
    bk_status status = bk_device_open(ctx, "vulkan", NULL, &device);
    if (status == BK_OK) status = bk_stream_create(device, 0, &stream);
    if (status == BK_OK) status = device->ops->event_create(device, &e);
    if (status == BK_OK) status = bk_plan_prepare(device, BK_OP_ADD, &args, &plan);
    bk_plan_release(&plan);
    if (e) e->ops->destroy(e);
    fault("");
    bool whole = status == BK_OK;
    if (whole) works();
    else
      ck_assert_msg(status == BK_ERR_MEMORY && unit_errors() == 1, "%d: status %d\n%s", n,
                    (int)status, unit_messages);
    unit_expect(whole ? NULL : "VK_ERROR_OUT_OF_");
    shut();
    ck_assert_int_eq(*alive, 0);
    if (whole) break;
    failed++;
  }
  ck_assert_int_gt(failed, 20);
}

START_TEST(cannot_make_an_object) {
  cannot_make(NULL);
  cannot_make("split");
}
END_TEST

/* ---- a lost device ---- */

START_TEST(lost_at_a_submission) {
  bk_buffer *b = NULL;
  bk_stream *other = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(bk_stream_create(device, 0, &other), BK_OK);
  fault("lost=2");
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  ck_assert_ptr_nonnull(
      strstr(unit_messages, "vulkan:0: submitting commands: the device was lost"));
  unit_expect("VK_ERROR_DEVICE_LOST; the last launches were gpu_add; the stream cannot go on");
  expect_poisoned(&w, stream, BK_ERR_DEVICE);
  ck_assert_int_eq(other->ops->sync(other), BK_ERR_DEVICE); /* each stream says it once */
  unit_expect("vulkan:0: the device was lost before; the stream cannot go on");
  expect_poisoned(&w, other, BK_ERR_DEVICE);
  /* that is no lack of memory */
  ck_assert_int_eq(bk_buffer_alloc(device, 100, BK_MEM_STAGING, &b), BK_ERR_DEVICE);
  unit_expect("vulkan:0: cannot allocate 100 bytes of device memory: VK_ERROR_DEVICE_LOST (-4)");
  bk_stream_destroy(other);
  work_close(&w);
}
END_TEST

/* Where the host waits it comes to light: 0 sync, 1 query, 2 download, 3 an event. Opened again,
 * the device works. */
START_TEST(lost_while_waiting) {
  float y[count];
  bool done = false;
  bk_event *e = NULL;
  work w;
  bk_status status = BK_OK;
  work_open(&w);
  ck_assert_int_eq(device->ops->event_create(device, &e), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->event_record(stream, e), BK_OK);
  fault("lost_late");
  if (_i == 0) status = stream->ops->sync(stream);
  if (_i == 1) status = stream->ops->query(stream, &done);
  if (_i == 2) status = bk_tensor_download(stream, &w.y, y);
  if (_i == 3) status = e->ops->sync(e);
  ck_assert_int_eq(status, BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect("the last launches were gpu_copy; the stream cannot go on");
  expect_poisoned(&w, stream, BK_ERR_DEVICE);
  ck_assert_int_eq(e->ops->sync(e), BK_ERR_DEVICE);
  unit_expect(NULL);
  e->ops->destroy(e);
  work_close(&w);
  shut();
  unit_expect(NULL); /* closing says nothing more */
  fault("");
  (void)reopen();
  works();
}
END_TEST

START_TEST(lost_at_a_graph) {
  void *graph = NULL;
  work w;
  work_open(&w);
  ck_assert_int_eq(stream->ops->sync(stream), BK_OK);
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_OK);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(stream->ops->capture_end(stream, &graph), BK_OK);
  fault("lost=1");
  ck_assert_int_eq(stream->ops->graph_launch(stream, graph), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect("a captured graph; the stream cannot go on");
  expect_poisoned(&w, stream, BK_ERR_DEVICE);
  ck_assert_int_eq(stream->ops->graph_launch(stream, graph), BK_ERR_DEVICE);
  ck_assert_int_eq(stream->ops->capture_begin(stream), BK_ERR_DEVICE);
  stream->ops->graph_destroy(stream, graph);
  work_close(&w);
}
END_TEST

/* ---- kernels, kept pipelines ---- */

START_TEST(does_not_compile) {
  bk_plan plan = {0};
  bk_tensor t = bk_tensor_2d(BK_F32, side, side);
  bk_add_args args = {t, t, t};
  fault("no_build");
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_ADD, &args, &plan), BK_ERR_DEVICE);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect("vulkan:0: kernel add (basic.k) does not compile: VK_ERROR_UNKNOWN (-13)");
  fault("");
  works(); /* nothing is spoilt */
}
END_TEST

enum { two_pipelines = 32 + 2 * 100 };

START_TEST(kept_and_found) {
  works();
  ck_assert_int_eq(reopen(), two_pipelines);
  works();
  set("BIRKHOFF_CACHE", "off");
  ck_assert_int_eq(reopen(), 0);
}
END_TEST

/* 0: a driver of another version; 1: a file that says it is another device's; 2: a driver that
 * refuses what it wrote itself. */
START_TEST(kept_and_not_taken) {
  static const char *const faults[] = {"driver", "foreign", "refused"};
  fault(_i == 1 ? faults[_i] : ""); /* while it is written */
  works();
  if (_i == 1) shut();
  fault(_i == 1 ? "" : faults[_i]); /* when it is read */
  ck_assert_int_eq(reopen(), 0);
  works();
  fault("");
  ck_assert_int_eq(reopen(), two_pipelines); /* of what was there before, or was made anew */
}
END_TEST

START_TEST(kept_and_spoilt) {
  works();
  for (int halve = 0; halve < 2; halve++) {
    ck_assert_int_eq(reopen(), two_pipelines);
    gpu_spoil_kept(halve);
    ck_assert_int_eq(reopen(), 0);
    works();
  }
  ck_assert_int_eq(reopen(), two_pipelines);
}
END_TEST

START_TEST(cannot_be_kept) {
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("file"), "x", 1), BK_OK);
  set("XDG_CACHE_HOME", unit_path("file"));
  (void)reopen();
  works();
  ck_assert_int_eq(reopen(), 0);
  ck_assert_int_eq(unit_errors(), 0);
  unit_expect(
      "warning: vulkan:0: compiled kernels are not kept for the next run: cannot make folder ");
}
END_TEST

int main(void) {
  const TTest *const first[] = {no_library, library_is_another, absent_devices,
                                cannot_make_an_object};
  const TTest *const tests[] = {out_of_memory,       the_last_bit_of_memory, no_memory_for_a_stream,
                                no_memory_to_submit, lost_at_a_submission,   lost_at_a_graph,
                                does_not_compile,    kept_and_found,         kept_and_spoilt,
                                cannot_be_kept};
  find_fake();
  const char *missing = !alive || !given                                  ? library
                        : dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL) ? NULL
                                                                          : "libvulkan.so.1";
  if (missing) printf("SKIP: there is no %s\n", missing);
  if (missing || !gpu_is_here("vulkan")) return SKIPPED;
  Suite *suite = suite_create("vulkan_faults");
  TCase *loops = tcase_create("loops");
  unit_case(suite, "absent", registry_open, faults_close, first, BK_COUNT(first));
  unit_case(suite, "faults", faults_open, faults_close, tests, BK_COUNT(tests));
  tcase_set_timeout(loops, 120);
  tcase_add_checked_fixture(loops, faults_open, faults_close);
  tcase_add_loop_test(loops, lost_while_waiting, 0, 4);
  tcase_add_loop_test(loops, kept_and_not_taken, 0, 3);
  suite_add_tcase(suite, loops);
  return unit_run(suite);
}
