/* A bk_fs of read-only files that lie in memory, in one folder at most: for programs that feed
 * bytes to a reader. */
#ifndef BK_TESTS_MEMORY_FS_H
#define BK_TESTS_MEMORY_FS_H

#include "base/base.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* larger blocks are refused: a few bytes of input may ask for any size */
#define MEMORY_BLOCK_MAX ((size_t)64 << 20)

typedef struct memory_file {
  const char *name; /* "input", "folder/input" */
  const unsigned char *data;
  size_t bytes;
  const struct memory_file *next; /* NULL: the last */
} memory_file;

static const memory_file *memory_find(const void *first, const char *path) {
  const memory_file *f = first;
  while (f && strcmp(f->name, path) != 0) f = f->next;
  return f;
}

static int memory_open_read(void *user, const char *path, bk_file **file) {
  const memory_file *f = memory_find(user, path);
  *file = (bk_file *)(uintptr_t)f;
  return f ? 0 : -ENOENT;
}

static int64_t memory_read_at(void *user, bk_file *file, uint64_t offset, void *dst, size_t bytes) {
  const memory_file *f = (const memory_file *)(const void *)file;
  (void)user;
  if (offset >= f->bytes) return 0;
  size_t left = f->bytes - (size_t)offset, n = bytes < left ? bytes : left;
  if (n) memcpy(dst, f->data + offset, n);
  return (int64_t)n;
}

static int memory_size(void *user, bk_file *file, uint64_t *bytes) {
  (void)user;
  *bytes = ((const memory_file *)(const void *)file)->bytes;
  return 0;
}

static int memory_close(void *user, bk_file *file) {
  (void)user, (void)file;
  return 0;
}

static int memory_kind(void *user, const char *path) {
  size_t length = strlen(path);
  if (memory_find(user, path)) return 0;
  for (const memory_file *f = user; f; f = f->next)
    if (strncmp(f->name, path, length) == 0 && f->name[length] == '/') return 1;
  return -ENOENT;
}

/* Everything that would change something is refused. */
static int memory_open_write(void *user, const char *path, bool append, bk_file **file) {
  (void)user, (void)path, (void)append, (void)file;
  return -EROFS;
}

static int64_t memory_write(void *user, bk_file *file, const void *src, size_t bytes) {
  (void)user, (void)file, (void)src, (void)bytes;
  return -EROFS;
}

static int memory_truncate(void *user, const char *path, uint64_t bytes) {
  (void)user, (void)path, (void)bytes;
  return -EROFS;
}

static int memory_sync(void *user, bk_file *file) {
  (void)user, (void)file;
  return -EROFS;
}

static int memory_change(void *user, const char *path) {
  (void)user, (void)path;
  return -EROFS;
}

static int memory_rename(void *user, const char *from, const char *to) {
  (void)user, (void)from, (void)to;
  return -EROFS;
}

static int memory_list(void *user, const char *path, void (*each)(void *arg, const char *name),
                       void *arg) {
  (void)user, (void)path, (void)each, (void)arg;
  return -ENOTDIR;
}

static inline bk_fs memory_fs(memory_file *file) {
  return (bk_fs){
      .open_read = memory_open_read,
      .open_write = memory_open_write,
      .read_at = memory_read_at,
      .write = memory_write,
      .size = memory_size,
      .truncate = memory_truncate,
      .sync = memory_sync,
      .close = memory_close,
      .mkdir = memory_change,
      .rename = memory_rename,
      .remove = memory_change,
      .sync_dir = memory_change,
      .list = memory_list,
      .kind = memory_kind,
      .user = file,
  };
}

static void *memory_alloc(void *user, size_t bytes, size_t align) {
  return bytes <= MEMORY_BLOCK_MAX ? bk_allocator_libc.alloc(user, bytes, align) : NULL;
}

static void memory_free(void *user, void *ptr, size_t bytes) {
  bk_allocator_libc.free(user, ptr, bytes);
}

/* A context over the files; the log sink counts the bytes that it is given. */
static void memory_log(void *user, bk_log_level level, const char *message) {
  (void)level;
  *(size_t *)user += strlen(message);
}

static inline bk_context *memory_context(const bk_fs *fs, size_t *logged) {
  bk_context *made = NULL;
  static const bk_allocator allocator = {memory_alloc, memory_free, NULL};
  bk_context_options options = {.allocator = &allocator,
                                .fs = fs,
                                .log = memory_log,
                                .log_user = logged,
                                .log_level = BK_LOG_TRACE};
  if (bk_context_create(&options, &made) != BK_OK) abort();
  return made;
}

/* A leak is logged by the context's end, and ends the run. */
static inline void memory_context_close(bk_context *ctx, size_t *logged) {
  *logged = 0;
  bk_context_destroy(ctx);
  if (*logged) abort();
}

#endif
