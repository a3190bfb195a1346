/* What the unit tests of the opencl and vulkan backends share: whether there is a device, opening
 * and closing it. Programs are kept in a folder of the tests' own (the driver's cache is
 * where it is). */
#ifndef BK_TESTS_GPU_UNIT_H
#define BK_TESTS_GPU_UNIT_H

#include "tests/gpu/gpu_work.h"

#include <sys/wait.h>
#include <unistd.h>

static BK_UNUSED int gpu_look(const char *name) {
  char reason[1024] = "its module was not built";
  bk_context *probing;
  if (bk_context_create(NULL, &probing) != BK_OK || bk_registry_init(probing) != BK_OK) return 1;
  const bk_backend *backend = bk_backend_find(name);
  bool here = backend && backend->probe(probing, reason, sizeof reason) == BK_OK;
  if (!here) printf("SKIP: no %s device: %s\n", name, reason);
  fflush(stdout);
  bk_context_destroy(probing);
  return here ? 0 : 1;
}

/* Whether a backend has a device here; if not, says why on standard output. Asked in a process
 * of its own: drivers begin threads, which the children that run the tests would not have. */
static BK_UNUSED bool gpu_is_here(const char *name) {
  int status = 1;
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) _exit(gpu_look(name));
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

static BK_UNUSED void gpu_registry(void) {
  unit_folder_open();
  set("XDG_CACHE_HOME", unit_folder);
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
}

static BK_UNUSED void gpu_open(const char *name) {
  device = NULL;
  stream = NULL;
  gpu_registry();
  gpu_device_open(name);
}

static BK_UNUSED void gpu_close(void) {
  gpu_device_close();
  unit_folder_close();
}

/* ---- what the tests of faults share ---- */

/* The backend has no device, for this reason, and makes none. */
static BK_UNUSED void gpu_expect_absent(const char *name, const char *why) {
  const bk_backend *backend = bk_backend_find(name);
  char reason[1024] = "";
  bk_device *d = NULL;
  gpu_expect_refused(name, name, why, reason, sizeof reason);
  ck_assert_int_eq(backend->device_count(ctx), 0);
  ck_assert_int_eq(backend->open(ctx, 0, &(bk_device_options){0}, &d), BK_ERR_ABSENT);
  unit_expect(reason);
}

/* The one file that is kept gets a wrong bit, or loses its second half. */
static BK_UNUSED void gpu_spoil_kept(bool halve) {
  char **names, *file;
  size_t n, bytes;
  ck_assert_int_eq(bk_folder_names(ctx, unit_path("birkhoff"), &names, &n), BK_OK);
  ck_assert_uint_eq(n, 1);
  char *path = bk_path_join(ctx, unit_path("birkhoff"), names[0]);
  ck_assert_int_eq(bk_file_read_all(ctx, path, 1 << 26, &file, &bytes), BK_OK);
  file[bytes / 2] ^= !halve;
  ck_assert_int_eq(bk_file_write_atomic(ctx, path, file, halve ? bytes / 2 : bytes), BK_OK);
  bk_free(ctx, file);
  bk_free(ctx, path);
  bk_names_free(ctx, names, n);
}

#endif
