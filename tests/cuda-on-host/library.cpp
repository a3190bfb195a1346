/* In the place of backends/cuda/library.c: the libraries are stand-ins that are linked in (blaslt.cpp). */
#include <cublasLt.h>

#include <cstdlib>
#include <cstring>

#include "backends/cuda/cuda.h"

namespace {

struct entry { const char *name; void *function; };
#define ENTRY(name) {#name, reinterpret_cast<void *>(name)}
const entry blaslt[] = {
  ENTRY(cublasLtCreate), ENTRY(cublasLtDestroy), ENTRY(cublasLtGetVersion), ENTRY(cublasLtGetStatusString),
  ENTRY(cublasLtMatmul), ENTRY(cublasLtMatmulAlgoGetHeuristic),
  ENTRY(cublasLtMatmulDescCreate), ENTRY(cublasLtMatmulDescDestroy), ENTRY(cublasLtMatmulDescSetAttribute),
  ENTRY(cublasLtMatrixLayoutCreate), ENTRY(cublasLtMatrixLayoutDestroy), ENTRY(cublasLtMatrixLayoutSetAttribute),
  ENTRY(cublasLtMatmulPreferenceCreate), ENTRY(cublasLtMatmulPreferenceDestroy), ENTRY(cublasLtMatmulPreferenceSetAttribute),
  {nullptr, nullptr}};

bool hidden(const char *variable) {
  const char *text = getenv(variable);
  return text && strcmp(text, "no") == 0;
}

} // namespace

/* The library is its list of functions. */
extern "C" void *bk_cuda_library_open(const char *const *names, const char **opened) {
  for (; *names; names++)
    if (strcmp(*names, "libcublasLt.so.12") == 0 && !hidden("BK_CUDA_BLASLT")) {
      *opened = *names;
      return const_cast<entry *>(blaslt);
    }
  return nullptr;
}

extern "C" void *bk_cuda_library_symbol(void *library, const char *name) {
  for (const entry *e = static_cast<const entry *>(library); e->name; e++)
    if (strcmp(e->name, name) == 0) return e->function;
  return nullptr;
}
