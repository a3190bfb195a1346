/* libOpenCL, found at run time: the module loads on a machine without it, and `devices` says why
 * there is none. A process that has OpenCL already (linked, or preloaded as Oclgrind's is) goes
 * on with that. BIRKHOFF_OPENCL_LIBRARY names another library: one that is not where the system
 * looks, a tool's, or the stand-in of the tests. */
#include "backends/opencl/opencl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static bk_cl_api api;
static bool loaded;

static bool take(void *library, const char *name, void *into) {
  void *symbol = dlsym(library, name);
  memcpy(into, &symbol, sizeof symbol); /* ISO C has no conversion to a function pointer */
  return symbol != NULL;
}

/* Never closed: drivers leave threads behind. */
static void *open_library(const char *named) {
  if (named && *named) return dlopen(named, RTLD_NOW | RTLD_LOCAL);
  void *process = dlopen(NULL, RTLD_NOW);
  if (process && dlsym(process, "clGetPlatformIDs")) return process;
  return dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
}

bk_status bk_cl_load(bk_context *ctx, const bk_cl_api **out, char *reason, size_t size) {
  if (!loaded) {
    const char *named = bk_context_environment(ctx, "BIRKHOFF_OPENCL_LIBRARY"), *missing = NULL;
    void *library = open_library(named);
    if (!library) {
      if (named && *named)
        snprintf(reason, size, "there is no %s (BIRKHOFF_OPENCL_LIBRARY)", named);
      else
        snprintf(reason, size,
                 "there is no OpenCL loader (libOpenCL.so.1; Debian: ocl-icd-libopencl1)");
      return BK_ERR_ABSENT;
    }
#define BK_CL_TAKE(name) \
  if (!take(library, "cl" #name, &api.name)) missing = "cl" #name;
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
