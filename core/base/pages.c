/* Large pages: asked for, never needed. */
#include "base/base.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

void bk_pages_prefer_large(void *block, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  size_t begin = BK_ALIGN_UP((size_t)block, BK_LARGE_PAGE),
         end = ((size_t)block + bytes) / BK_LARGE_PAGE * BK_LARGE_PAGE;
  /* a refusal changes nothing */
  if (end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)block, (void)bytes;
#endif
}
