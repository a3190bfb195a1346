/* In the place of backends/cuda/library.c: the libraries are stand-ins that are linked in. */
#include <cstring>

#include "backends/cuda/cuda.h"

extern "C" void *bk_cuda_library_open(const char *const *names, const char **opened) {
  (void)names, (void)opened;
  return nullptr;
}

extern "C" void *bk_cuda_library_symbol(void *library, const char *name) {
  (void)library, (void)name;
  return nullptr;
}
