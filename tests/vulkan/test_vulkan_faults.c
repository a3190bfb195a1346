/* What can go wrong between the vulkan backend and Vulkan, made to happen by a stand-in for
 * libvulkan (fake_vulkan.c): a library, drivers and devices that are missing or refused, no
 * memory, a device that is lost, kernels that do not compile, kept pipelines. */
static const char gpu_name[] = "vulkan", faults[] = "BK_FAKE_VULKAN",
                  library_is[] = "BIRKHOFF_VULKAN_LIBRARY";
#include "ops/plan.h"
#include "tests/gpu/gpu_faults.h"

static int *alive, *given; /* counted by the stand-in */

static void defaults(void) {
  fault("");
  set("BIRKHOFF_CACHE", NULL);
  set("BIRKHOFF_VULKAN_BINDINGS", NULL);
  set(library_is, library);
}

static void registry_open(void) {
  defaults();
  gpu_registry();
}
static void faults_open(void) {
  defaults();
  gpu_open(gpu_name);
}

/* Nothing of Vulkan's is left either. */
static void faults_close(void) {
  gpu_close();
  ck_assert_int_eq(*alive, 0);
}

/* Bytes that the new device's pipeline cache was made from: what was kept. */
static int reopen(void) {
  open_again();
  return *given;
}

/* ---- no device ---- */

START_TEST(no_library) { expect_no_library("/nowhere/libvulkan.so.1"); }
END_TEST

START_TEST(library_is_another) {
  expect_library_is_another("the Vulkan loader has no vkGetInstanceProcAddr");
}
END_TEST

START_TEST(absent_devices) {
  static const char *const absent[][2] = {
      {"old_loader", "the Vulkan loader is older than 1.2"},
      {"no_driver", "no Vulkan driver is installed"},
      {"no_device", "the Vulkan drivers that are installed find no device"},
      {"old", "it has Vulkan 1.1, 1.2 is needed"},
      {"no_timeline", "it has no timeline semaphores"}};
  expect_each_absent(absent, BK_COUNT(absent));
}
END_TEST

/* ---- memory ---- */

/* A large buffer has memory of its own; a smaller one goes on in the same process. */
START_TEST(out_of_memory) {
  bk_memory *memory = NULL;
  fault("oom=1");
  expect_short_of_memory(30000000,
                         "vulkan:0: cannot allocate 30000000 bytes of device memory: "
                         "VK_ERROR_OUT_OF_DEVICE_MEMORY (-2)");
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
    snprintf(text, sizeof text, "create=%d", n);
    fault(text);
    bk_status status = bk_device_open(ctx, "vulkan", NULL, &device);
    if (status == BK_OK) status = bk_stream_create(device, 0, &stream);
    if (status == BK_OK) status = device->ops->event_create(device, &e);
    if (status == BK_OK) status = prepare_add(&plan);
    bk_plan_release(&plan);
    if (e) e->ops->destroy(e);
    fault("");
    bool whole = status == BK_OK;
    if (whole) works();
    else
      ck_assert_msg(status == BK_ERR_MEMORY && unit_errors() == 1, "%d: status %d\n%s", n,
                    (int)status, unit_messages);
    unit_expect(whole ? NULL : "VK_ERROR_OUT_OF_");
    gpu_device_close();
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
  gpu_device_close();
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
  fault("no_build");
  ck_assert_int_eq(prepare_add(&plan), BK_ERR_DEVICE);
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
  static const char *const refusals[] = {"driver", "foreign", "refused"};
  fault(_i == 1 ? refusals[_i] : ""); /* while it is written */
  works();
  if (_i == 1) gpu_device_close();
  fault(_i == 1 ? "" : refusals[_i]); /* when it is read */
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
  no_folder_to_keep_in();
  works();
  ck_assert_int_eq(reopen(), 0);
  expect_not_kept();
}
END_TEST

int main(void) {
  const TTest *const first[] = {no_library, library_is_another, absent_devices,
                                cannot_make_an_object};
  const TTest *const tests[] = {out_of_memory,       the_last_bit_of_memory, no_memory_for_a_stream,
                                no_memory_to_submit, lost_at_a_submission,   lost_at_a_graph,
                                does_not_compile,    kept_and_found,         kept_and_spoilt,
                                cannot_be_kept};
  alive = find_fake("alive");
  given = find_fake("given");
  const char *missing = !alive || !given                                  ? library
                        : dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL) ? NULL
                                                                          : "libvulkan.so.1";
  if (missing) printf("SKIP: there is no %s\n", missing);
  if (missing || !gpu_is_here(gpu_name)) return SKIPPED;
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
