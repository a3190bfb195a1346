/* Libraries of CUDA that are found at run time. tests/cuda-on-host has a file of its own in this
 * one's place. */
#include <dlfcn.h>

#include "backends/cuda/cuda.h"

void *bk_cuda_library_open(const char *const *names, const char **opened) {
  for (; *names; names++) {
    void *library = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
    if (!library) continue;
    *opened = *names;
    return library;
  }
  return NULL;
}

void *bk_cuda_library_symbol(void *library, const char *name) { return dlsym(library, name); }
