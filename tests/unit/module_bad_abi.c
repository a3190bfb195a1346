/* A module of another ABI for test_loader: behind the number nothing is as this library expects. */
#include "runtime/backend.h"

static const struct {
  uint32_t abi;
  char other[sizeof(bk_backend)];
} backend = {BK_BACKEND_ABI + 1, "the fields of another version"};

const bk_backend *bk_backend_module(void) { return (const bk_backend *)(const void *)&backend; }
