/* In the place of backends/cuda/library.c: the libraries are stand-ins that are linked in
 * (blaslt.cpp). */
#include <cublasLt.h>

#include <cstdlib>
#include <cstring>

#include "backends/cuda/cuda.h"

namespace {

struct entry {
  const char *name;
  void *function;
};
#define ENTRY(name) \
  { #name, reinterpret_cast < void *>(name) }
const entry blaslt[] = {ENTRY(cublasLtCreate),
                        ENTRY(cublasLtDestroy),
                        ENTRY(cublasLtGetVersion),
                        ENTRY(cublasLtGetStatusString),
                        ENTRY(cublasLtMatmul),
                        ENTRY(cublasLtMatmulAlgoGetHeuristic),
                        ENTRY(cublasLtMatmulDescCreate),
                        ENTRY(cublasLtMatmulDescDestroy),
                        ENTRY(cublasLtMatmulDescSetAttribute),
                        ENTRY(cublasLtMatrixLayoutCreate),
                        ENTRY(cublasLtMatrixLayoutDestroy),
                        ENTRY(cublasLtMatrixLayoutSetAttribute),
                        ENTRY(cublasLtMatmulPreferenceCreate),
                        ENTRY(cublasLtMatmulPreferenceDestroy),
                        ENTRY(cublasLtMatmulPreferenceSetAttribute),
                        {nullptr, nullptr}};

cublasStatus_t no_handle(cublasLtHandle_t *) { return CUBLAS_STATUS_NOT_INITIALIZED; }
/* what it has not, the other one has */
const entry stale[] = {{"cublasLtCreate", reinterpret_cast<void *>(no_handle)}};

bool blaslt_is(const char *kind) {
  const char *text = getenv("BK_CUDA_BLASLT");
  return text && strcmp(text, kind) == 0;
}
const void *blaslt_named(const char *name) {
  if (strcmp(name, "libcublasLt.so.13") == 0 && blaslt_is("stale")) return stale;
  return strcmp(name, "libcublasLt.so.12") == 0 && !blaslt_is("no") ? blaslt : nullptr;
}

} // namespace

/* The library is its list of functions. */
extern "C" void *bk_cuda_library_open(const char *const *names, const char **opened) {
  for (; *names; names++)
    if (const void *library = blaslt_named(*names)) {
      *opened = *names;
      return const_cast<void *>(library);
    }
  return nullptr;
}

extern "C" void *bk_cuda_library_symbol(void *library, const char *name) {
  if (library == stale && strcmp(name, stale->name) == 0) return stale->function;
  if (library == stale) library = const_cast<entry *>(blaslt);
  for (const entry *e = static_cast<const entry *>(library); e->name; e++)
    if (strcmp(e->name, name) == 0) return e->function;
  return nullptr;
}
