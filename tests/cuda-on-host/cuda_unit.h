/* What the unit tests of the cuda backend on the host share: the module's folder is set before
 * the registry is initialised. */
#ifndef BK_TESTS_CUDA_UNIT_H
#define BK_TESTS_CUDA_UNIT_H

#include "tests/gpu/gpu_device.h"

#include <unistd.h>

/* False with a message where the module has not been built. */
static BK_UNUSED bool cuda_find_module(void) {
  const char *build = getenv("TOP_BUILDDIR");
  char folder[512], module[600];
  snprintf(folder, sizeof folder, "%s/tests/cuda-on-host/.libs", build ? build : ".");
  snprintf(module, sizeof module, "%s/birkhoff_cuda.so", folder);
  if (access(module, R_OK) == 0) return setenv("BIRKHOFF_BACKEND_DIR", folder, 1) == 0;
  printf("skipped: there is no %s\n", module);
  return false;
}

/* Faults of other tests that ran in this process are switched off. */
static BK_UNUSED void cuda_registry(void) {
  static const char *const names[] = {"BK_CUDA_DRIVER",    "BK_CUDA_DEVICES", "BK_CUDA_MEMORY",
                                      "BK_CUDA_FAULT",     "BK_CUDA_CAPTURE", "BK_CUDA_GRAPH",
                                      "BIRKHOFF_CUDA_SYNC"};
  for (size_t i = 0; i < BK_COUNT(names); i++) ck_assert_int_eq(unsetenv(names[i]), 0);
  unit_open();
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
}

static BK_UNUSED void cuda_open(void) {
  cuda_registry();
  gpu_device_open("cuda");
}

static BK_UNUSED void cuda_close(void) {
  gpu_device_close();
  unit_close();
}

#endif
