/* File access of a context that was given none: every call fails with -ENOSYS. The members have to
 * be there all the same, because the library calls them without looking. */
#include "base/base.h"

#include <errno.h>

static int open_read(void *user, const char *path, bk_file **file) {
  (void)user, (void)path, (void)file;
  return -ENOSYS;
}

static int open_write(void *user, const char *path, bool append, bk_file **file) {
  (void)user, (void)path, (void)append, (void)file;
  return -ENOSYS;
}

static int64_t read_at(void *user, bk_file *file, uint64_t offset, void *dst, size_t bytes) {
  (void)user, (void)file, (void)offset, (void)dst, (void)bytes;
  return -ENOSYS;
}

static int64_t write_none(void *user, bk_file *file, const void *src, size_t bytes) {
  (void)user, (void)file, (void)src, (void)bytes;
  return -ENOSYS;
}

static int size(void *user, bk_file *file, uint64_t *bytes) {
  (void)user, (void)file, (void)bytes;
  return -ENOSYS;
}

static int truncate_none(void *user, const char *path, uint64_t bytes) {
  (void)user, (void)path, (void)bytes;
  return -ENOSYS;
}

static int of_file(void *user, bk_file *file) {
  (void)user, (void)file;
  return -ENOSYS;
}

static int of_path(void *user, const char *path) {
  (void)user, (void)path;
  return -ENOSYS;
}

static int rename_none(void *user, const char *from, const char *to) {
  (void)user, (void)from, (void)to;
  return -ENOSYS;
}

static int list(void *user, const char *path, void (*each)(void *arg, const char *name),
                void *arg) {
  (void)user, (void)path, (void)each, (void)arg;
  return -ENOSYS;
}

const bk_fs bk_fs_none = {
    .open_read = open_read,
    .open_write = open_write,
    .read_at = read_at,
    .write = write_none,
    .size = size,
    .truncate = truncate_none,
    .sync = of_file,
    .close = of_file,
    .mkdir = of_path,
    .rename = rename_none,
    .remove = of_path,
    .sync_dir = of_path,
    .list = list,
    .kind = of_path,
};
