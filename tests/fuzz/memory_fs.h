/* A bk_fs with one read-only file, "input", that lies in memory: for programs that feed bytes to a reader. */
#ifndef BK_TESTS_MEMORY_FS_H
#define BK_TESTS_MEMORY_FS_H

#include "base/base.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct memory_file {
  const unsigned char *data;
  size_t bytes;
} memory_file;

static int memory_open_read(void *user, const char *path, bk_file **file) {
  if (strcmp(path, "input") != 0) return -ENOENT;
  *file = user;
  return 0;
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
  (void)user;
  return strcmp(path, "input") == 0 ? 0 : -ENOENT;
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

static int memory_list(void *user, const char *path, void (*each)(void *arg, const char *name), void *arg) {
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

/* A context over the file; the log sink counts the bytes that it is given. */
static void memory_log(void *user, bk_log_level level, const char *message) {
  (void)level;
  *(size_t *)user += strlen(message);
}

static inline bk_context *memory_context(const bk_fs *fs, size_t *logged) {
  bk_context *made = NULL;
  bk_context_options options = {.fs = fs, .log = memory_log, .log_user = logged, .log_level = BK_LOG_TRACE};
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
