/* Large pages, which the library asks for and never needs. The weights and activations of a model
 * are large blocks read end to end; with pages of 2 MiB in place of 4 KiB the processor looks up
 * far fewer addresses on the way. Only Linux can be asked in this manner (madvise). */
#include "base/base.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

void bk_pages_prefer_large(void *block, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  /* Only the pages that lie wholly inside the block may be advised. */
  size_t begin = BK_ALIGN_UP((size_t)block, BK_LARGE_PAGE),
         end = ((size_t)block + bytes) / BK_LARGE_PAGE * BK_LARGE_PAGE;
  /* a refusal changes nothing */
  if (end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)block, (void)bytes;
#endif
}
