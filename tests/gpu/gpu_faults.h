/* What the tests of faults of the opencl and vulkan backends share: the stand-in for the driver's
 * library, devices that are opened again, and what makes sure that nothing is spoilt. The program
 * that includes this defines `gpu_name`, `faults` (the variable that the stand-in reads) and
 * `library_is` (the variable that says which library to load). */
#ifndef BK_TESTS_GPU_FAULTS_H
#define BK_TESTS_GPU_FAULTS_H

#include "ops/plan.h"
#include "tests/gpu/gpu_unit.h"

#include <dlfcn.h>

static char library[600];

static void fault(const char *text) { set(faults, text); }

/* A number that the stand-in counts, bk_fake_NAME_WHAT; NULL where it was not built. */
static int *find_fake(const char *what) {
  const char *build = getenv("TOP_BUILDDIR");
  char symbol[64];
  snprintf(library, sizeof library, "%s/tests/%s/.libs/fake_%s.so", build ? build : ".", gpu_name,
           gpu_name);
  snprintf(symbol, sizeof symbol, "bk_fake_%s_%s", gpu_name, what);
  (void)setenv(library_is, library, 1); /* before there is a test that could fail */
  (void)unsetenv(faults);
  void *fake = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  return fake ? dlsym(fake, symbol) : NULL;
}

static void open_again(void) {
  gpu_device_close();
  gpu_device_open(gpu_name);
}

static bk_status prepare_add(bk_plan *plan) {
  bk_tensor t = bk_tensor_2d(BK_F32, side, side);
  bk_add_args args = {t, t, t};
  return bk_plan_prepare(device, BK_OP_ADD, &args, plan);
}

static void works(void) {
  work w;
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  ck_assert_int_eq(add(&w, stream), BK_OK);
  expect_result(&w, stream, 1);
  work_close(&w);
}

/* First of all tests: what is loaded stays. */
static void expect_no_library(const char *missing) {
  char why[200];
  set(library_is, missing);
  snprintf(why, sizeof why, "there is no %s (%s)", missing, library_is);
  gpu_expect_absent(gpu_name, why);
}

static void expect_library_is_another(const char *why) {
  char other[600];
  snprintf(other, sizeof other, "%s/birkhoff_%s.so", getenv("BIRKHOFF_BACKEND_DIR"), gpu_name);
  set(library_is, other);
  gpu_expect_absent(gpu_name, why);
}

/* With each fault of a list there is no device, for the reason beside it. */
static void expect_each_absent(const char *const (*list)[2], size_t n) {
  for (size_t i = 0; i < n; i++) {
    fault(list[i][0]);
    gpu_expect_absent(gpu_name, list[i][1]);
  }
}

/* No memory of `bytes` can be had: the message says so, and which class needs them. */
static void expect_short_of_memory(int64_t bytes, const char *message) {
  bk_memory *memory = NULL;
  char needs[64];
  ck_assert_int_eq(gpu_commit_weights(bytes, &memory), BK_ERR_MEMORY);
  ck_assert_int_eq(unit_errors(), 1);
  ck_assert_msg(strstr(unit_messages, message) != NULL, "%s", unit_messages);
  snprintf(needs, sizeof needs, "memory: weights needs %lld bytes", (long long)bytes);
  unit_expect(needs);
  bk_memory_destroy(memory);
}

/* Where nothing can be kept, it is said once, and kernels are built all the same. */
static void no_folder_to_keep_in(void) {
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("file"), "x", 1), BK_OK);
  set("XDG_CACHE_HOME", unit_path("file"));
  open_again();
}

static void expect_not_kept(void) {
  char warning[128];
  snprintf(warning, sizeof warning,
           "warning: %s:0: compiled kernels are not kept for the next run: cannot make folder ",
           gpu_name);
  ck_assert_int_eq(unit_errors(), 0);
  unit_expect(warning);
}

#endif
