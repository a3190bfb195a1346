/* Loadable modules: a good one is registered, one of another ABI and files that are no modules
 * are refused with a warning that says why, remembered for `devices`, and stop nobody. The
 * modules are module_good.so and module_bad_abi.so in the folder MODULE_DIR, or in
 * tests/unit/.libs of the build folder. */
#include "tests/unit/unit.h"

#include "runtime/backend.h"

#include <unistd.h>

#define SKIPPED 77

static char module_dir[512];

static void copy_file(const char *from_name, const char *to) {
  char from[1024], *data = NULL;
  size_t bytes = 0;
  snprintf(from, sizeof from, "%s/%s", module_dir, from_name);
  ck_assert_int_eq(bk_file_read_all(ctx, from, 16 << 20, &data, &bytes), BK_OK);
  ck_assert_int_eq(bk_file_write_atomic(ctx, to, data, bytes), BK_OK);
  bk_free(ctx, data);
}

static bool refused(const char *part_of_path, const char *part_of_reason) {
  for (int i = 0; i < bk_loader_refused_count(); i++) {
    const bk_refused_module *r = bk_loader_refused_get(i);
    if (strstr(r->path, part_of_path) && strstr(r->reason, part_of_reason)) return true;
  }
  return false;
}

/* One test: the registry is the process's, and what was loaded stays. */
START_TEST(folder_of_modules) {
  copy_file("module_good.so", unit_path("birkhoff_good.so"));
  copy_file("module_bad_abi.so", unit_path("birkhoff_old.so"));
  copy_file("module_good.so", unit_path("other_name.so"));
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("birkhoff_text.so"), "not a module", 12),
                   BK_OK);
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("birkhoff_readme.txt"), "x", 1), BK_OK);
  ck_assert_int_eq(setenv("BIRKHOFF_BACKEND_DIR", unit_folder, 1), 0);
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_ptr_nonnull(bk_backend_find("testmodule"));
  char old[80];
  snprintf(old, sizeof old, "birkhoff_old.so is refused: it was built for ABI %u",
           BK_BACKEND_ABI + 1);
  ck_assert_ptr_nonnull(strstr(unit_messages, old));
  unit_expect("birkhoff_text.so is refused");
  ck_assert_int_eq(bk_loader_refused_count(), 2);
  ck_assert(refused("birkhoff_old.so", "this library has ABI"));
  ck_assert(refused("birkhoff_text.so", ""));
  ck_assert_ptr_null(bk_loader_refused_get(-1));
  ck_assert_ptr_null(bk_loader_refused_get(2));
  bk_device *device = NULL;
  ck_assert_int_eq(bk_device_open(ctx, "testmodule", NULL, &device), BK_ERR_ABSENT);
  unit_expect("a module for tests has no device");
  /* the same backend under another file name is another module with a name that is taken */
  ck_assert_int_eq(bk_loader_load(ctx, unit_path("other_name.so")), BK_ERR_ARGUMENT);
  unit_expect("another backend has the name testmodule");
  ck_assert_int_eq(bk_loader_load(ctx, unit_path("nothing.so")), BK_ERR_IO);
  unit_expect("nothing.so is refused");
  ck_assert_int_eq(setenv("BIRKHOFF_BACKEND_DIR", unit_path("no_folder"), 1), 0);
  ck_assert_int_eq(bk_loader_load_all(ctx), BK_OK);
  unit_expect("cannot list");
}
END_TEST

static bool find_modules(void) {
  const char *set = getenv("MODULE_DIR"), *build = getenv("TOP_BUILDDIR");
  if (set) snprintf(module_dir, sizeof module_dir, "%s", set);
  else snprintf(module_dir, sizeof module_dir, "%s/tests/unit/.libs", build ? build : ".");
  char path[1024];
  snprintf(path, sizeof path, "%s/module_good.so", module_dir);
  return access(path, R_OK) == 0;
}

int main(void) {
  const TTest *const tests[] = {folder_of_modules};
  if (!find_modules()) {
    printf("skipped: no loadable modules in %s\n", module_dir);
    return SKIPPED;
  }
  Suite *suite = suite_create("loader");
  unit_case(suite, "loader", unit_folder_open, unit_folder_close, tests, BK_COUNT(tests));
  return unit_run(suite);
}
