/* bk_fs over POSIX. Descriptors are closed on exec, calls that a signal interrupts are repeated,
 * and transfers that the system cuts short are continued: a read is short at the end of the file
 * only, and a write is whole or an error. The host program may handle signals as it likes.
 *
 * The bk_file objects come from malloc, not from the context: bk_fs knows no context. */
#include "base/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes moved by one system call. Linux moves at most just under 2 GiB in one. */
#define TRANSFER_MAX ((size_t)1 << 30)

/* A large write is handed to the disk by parts of so many bytes, see begin_writeback. */
#define WRITEBACK_PART ((size_t)16 << 20)
#define WRITEBACK_MIN ((size_t)4 << 20)

struct bk_file {
  int fd;
};

static int open_fd(const char *path, int flags) {
  int fd;
  do fd = open(path, flags | O_CLOEXEC, 0666);
  while (fd < 0 && errno == EINTR);
  return fd < 0 ? -errno : fd;
}

static int open_file(const char *path, int flags, bk_file **file) {
  int fd = open_fd(path, flags);
  if (fd < 0) return fd;
  bk_file *made = malloc(sizeof *made);
  if (!made) {
    close(fd);
    return -ENOMEM;
  }
  made->fd = fd;
  *file = made;
  return 0;
}

static int posix_open_read(void *user, const char *path, bk_file **file) {
  (void)user;
  return open_file(path, O_RDONLY, file);
}

static int posix_open_write(void *user, const char *path, bool append, bk_file **file) {
  (void)user;
  return open_file(path, O_WRONLY | O_CREAT | (append ? O_APPEND : O_TRUNC), file);
}

static int64_t posix_read_at(void *user, bk_file *file, uint64_t offset, void *dst, size_t bytes) {
  (void)user;
  size_t done = 0;
  while (done < bytes) {
    size_t part = bytes - done < TRANSFER_MAX ? bytes - done : TRANSFER_MAX;
    ssize_t n = pread(file->fd, (char *)dst + done, part, (off_t)(offset + done));
    if (n == 0) break;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    done += (size_t)n;
  }
  return (int64_t)done;
}

/* The disk begins to write while the next part is copied into the page cache, instead of waiting
 * for the sync: a third less time for large files. This is a hint, whose failure means nothing. */
static void begin_writeback(int fd, size_t bytes) {
#ifdef SYNC_FILE_RANGE_WRITE
  off_t end = lseek(fd, 0, SEEK_CUR);
  if (bytes >= WRITEBACK_MIN && end >= (off_t)bytes)
    (void)sync_file_range(fd, end - (off_t)bytes, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
#else
  (void)fd, (void)bytes;
#endif
}

static int64_t posix_write(void *user, bk_file *file, const void *src, size_t bytes) {
  (void)user;
  size_t done = 0;
  while (done < bytes) {
    size_t part = bytes - done < WRITEBACK_PART ? bytes - done : WRITEBACK_PART;
    ssize_t n = write(file->fd, (const char *)src + done, part);
    if (n < 0 && errno == EINTR) continue;
    /* The system took nothing and gave no reason: an error, since a retry could go on for ever. */
    if (n <= 0) return n < 0 ? -errno : -EIO;
    begin_writeback(file->fd, (size_t)n);
    done += (size_t)n;
  }
  return (int64_t)done;
}

static int posix_size(void *user, bk_file *file, uint64_t *bytes) {
  (void)user;
  struct stat st;
  if (fstat(file->fd, &st) != 0) return -errno;
  *bytes = (uint64_t)st.st_size;
  return 0;
}

static int posix_truncate(void *user, const char *path, uint64_t bytes) {
  (void)user;
  int rc;
  do rc = truncate(path, (off_t)bytes);
  while (rc != 0 && errno == EINTR);
  return rc == 0 ? 0 : -errno;
}

static int sync_fd(int fd) {
  int rc;
  do rc = fsync(fd);
  while (rc != 0 && errno == EINTR);
  return rc == 0 ? 0 : -errno;
}

static int posix_sync(void *user, bk_file *file) {
  (void)user;
  return sync_fd(file->fd);
}

static int posix_close(void *user, bk_file *file) {
  (void)user;
  /* On Linux the descriptor is closed even if close says EINTR; a second close could hit
   * another's. */
  int rc = close(file->fd) == 0 || errno == EINTR ? 0 : -errno;
  free(file);
  return rc;
}

static int posix_mkdir(void *user, const char *path) {
  (void)user;
  return mkdir(path, 0777) == 0 ? 0 : -errno;
}

static int posix_rename(void *user, const char *from, const char *to) {
  (void)user;
  return rename(from, to) == 0 ? 0 : -errno;
}

static int posix_remove(void *user, const char *path) {
  (void)user;
  return remove(path) == 0 ? 0 : -errno;
}

/* Syncing the folder is what makes a new name in it survive a crash. */
static int posix_sync_dir(void *user, const char *path) {
  (void)user;
  int fd = open_fd(path, O_RDONLY | O_DIRECTORY);
  if (fd < 0) return fd;
  int rc = sync_fd(fd);
  close(fd);
  return rc == -EINVAL || rc == -ENOTSUP ? 0 : rc; /* some file systems cannot sync a folder */
}

/* readdir returns NULL at the end and after an error; errno, cleared before each call, tells
 * which. */
static int posix_list(void *user, const char *path, void (*each)(void *arg, const char *name),
                      void *arg) {
  (void)user;
  DIR *dir = opendir(path);
  if (!dir) return -errno;
  const struct dirent *entry;
  errno = 0;
  while ((entry = readdir(dir))) {
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
      each(arg, entry->d_name);
    errno = 0;
  }
  int rc = -errno;
  closedir(dir);
  return rc;
}

/* Follows links, so that a link to a file counts as a file. */
static int posix_kind(void *user, const char *path) {
  (void)user;
  struct stat st;
  if (stat(path, &st) != 0) return -errno;
  return S_ISREG(st.st_mode) ? 0 : S_ISDIR(st.st_mode) ? 1 : 2;
}

const bk_fs bk_fs_posix = {
    .open_read = posix_open_read,
    .open_write = posix_open_write,
    .read_at = posix_read_at,
    .write = posix_write,
    .size = posix_size,
    .truncate = posix_truncate,
    .sync = posix_sync,
    .close = posix_close,
    .mkdir = posix_mkdir,
    .rename = posix_rename,
    .remove = posix_remove,
    .sync_dir = posix_sync_dir,
    .list = posix_list,
    .kind = posix_kind,
};
