/* libOpenCL, found at run time: the module loads on a machine without it, and `devices` says why there is none. */
#include "backends/opencl/opencl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static bk_cl_api api;
static bool loaded;

const bk_cl_api *bk_cl_api_of(void) { return loaded ? &api : NULL; }

static bool take(void *library, const char *name, void *slot) {
  void *symbol = dlsym(library, name);
  memcpy(slot, &symbol, sizeof symbol); /* ISO C has no conversion to a function pointer */
  return symbol != NULL;
}

bk_status bk_cl_load(const bk_cl_api **out, char *reason, size_t size) {
  if (!loaded) {
    void *library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL); /* never closed: drivers leave threads behind */
    if (!library) {
      snprintf(reason, size, "there is no OpenCL loader (libOpenCL.so.1; Debian: ocl-icd-libopencl1)");
      return BK_ERR_ABSENT;
    }
    const char *missing = NULL;
#define BK_CL_TAKE(name) if (!take(library, "cl" #name, &api.name)) missing = "cl" #name;
    BK_CL_FUNCTIONS(BK_CL_TAKE)
#undef BK_CL_TAKE
    if (missing) {
      snprintf(reason, size, "the OpenCL loader is older than 1.2: it has no %s", missing);
      dlclose(library);
      return BK_ERR_ABSENT;
    }
    loaded = true;
  }
  *out = &api;
  return BK_OK;
}
