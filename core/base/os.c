/* bk_context_create, and everything that a context has of the operating system: memory, files,
 * clock, processors, environment and threads. No other file of the library refers to this one, so
 * that a static link of a program that makes embedded contexts only leaves it out, and with it all
 * of these. */
#include "base/base.h"
#include "base/pool_priv.h"
#include "base/worker.h"

#include <stdlib.h>

/* Bytes from which on a block begins at a large page. Rounding its size up to whole pages then
 * wastes less than a third of what it takes. */
#define LARGE_BLOCK (2 * BK_LARGE_PAGE)

/* aligned_alloc wants a size that is a multiple of the alignment. */
static void *libc_alloc(void *user, size_t bytes, size_t align) {
  (void)user;
  bool large = bytes >= LARGE_BLOCK;
  if (large && align < BK_LARGE_PAGE) align = BK_LARGE_PAGE;
  if (bytes > SIZE_MAX - align) return NULL;
  void *block = aligned_alloc(align, BK_ALIGN_UP(bytes, align));
  if (block && large) bk_pages_prefer_large(block, bytes);
  return block;
}

static void libc_free(void *user, void *ptr, size_t bytes) {
  (void)user, (void)bytes;
  free(ptr);
}

const bk_allocator bk_allocator_libc = {libc_alloc, libc_free, NULL};

static const char *environment(const char *name) { return getenv(name); }

static const bk_os os = {
    .seconds = bk_seconds,
    .cpu_count = bk_cpu_count,
    .system_memory = bk_system_memory,
    .environment = environment,
    .threads_create = bk_threads_create,
    .worker = &bk_worker_posix,
    .fs = &bk_fs_posix,
};

bk_status bk_context_create(const bk_context_options *options, bk_context **context) {
  const bk_context defaults = {.allocator = bk_allocator_libc, .fs = bk_fs_posix, .os = &os};
  return bk_context_make(options, &defaults, context);
}
