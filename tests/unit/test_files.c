/* Files: the helpers over the real file system, and over one that fails at a chosen call. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static void write_file(const char *name, const char *text) {
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path(name), text, strlen(text)), BK_OK);
}

static void expect_file(const char *name, const char *text) {
  char *data = NULL;
  size_t bytes = 0;
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path(name), 1 << 20, &data, &bytes), BK_OK);
  ck_assert_uint_eq(bytes, strlen(text));
  ck_assert_str_eq(data, text); /* a NUL is appended */
  bk_free(ctx, data);
}

START_TEST(write_and_read) {
  write_file("a", "first");
  expect_file("a", "first");
  write_file("a", "second, longer");
  expect_file("a", "second, longer");
  write_file("a", "");
  expect_file("a", "");
  ck_assert(!bk_path_exists(ctx, unit_path("a.tmp")));
}
END_TEST

START_TEST(relative_path) {
  char before[512];
  ck_assert_ptr_nonnull(getcwd(before, sizeof before));
  ck_assert_int_eq(chdir(unit_folder), 0);
  ck_assert_int_eq(bk_file_write_atomic(ctx, "plain", "x", 1), BK_OK);
  ck_assert_int_eq(bk_mkdirs(ctx, "p/q"), BK_OK);
  ck_assert_int_eq(chdir(before), 0);
  expect_file("plain", "x");
  ck_assert(bk_path_is_dir(ctx, unit_path("p/q")));
}
END_TEST

START_TEST(read_errors) {
  char *data = NULL;
  size_t bytes = 7;
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("nothing"), 100, &data, &bytes), BK_ERR_IO);
  unit_expect("nothing: No such file");
  write_file("big", "0123456789");
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("big"), 9, &data, &bytes), BK_ERR_DATA);
  unit_expect("10 bytes, at most 9");
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("big"), 10, &data, &bytes), BK_OK);
  bk_free(ctx, data);
  data = NULL, bytes = 7;
  ck_assert_int_eq(bk_file_read_all(ctx, unit_folder, 1 << 20, &data, &bytes), BK_ERR_IO);
  unit_expect("error");
  ck_assert(data == NULL && bytes == 7);
}
END_TEST

START_TEST(mkdirs) {
  ck_assert_int_eq(bk_mkdirs(ctx, unit_path("x/y//z/")), BK_OK);
  ck_assert(bk_path_is_dir(ctx, unit_path("x/y/z")));
  ck_assert_int_eq(bk_mkdirs(ctx, unit_path("x/y/z")), BK_OK);
  write_file("x/file", "f");
  ck_assert_int_eq(bk_mkdirs(ctx, unit_path("x/file/below")), BK_ERR_IO);
  unit_expect("x/file: Not a directory");
  ck_assert_int_eq(bk_mkdirs(ctx, unit_path("x/file")), BK_ERR_IO);
  unit_expect("x/file: Not a directory");
  ck_assert_int_eq(bk_mkdirs(ctx, ""), BK_ERR_ARGUMENT);
  unit_expect("empty name");
  ck_assert(bk_path_exists(ctx, unit_path("x/file")) && !bk_path_is_dir(ctx, unit_path("x/file")));
}
END_TEST

START_TEST(remove_tree) {
  ck_assert_int_eq(bk_remove_tree(ctx, unit_path("nothing")), BK_OK);
  ck_assert_int_eq(bk_mkdirs(ctx, unit_path("t/a/b")), BK_OK);
  ck_assert_int_eq(bk_mkdirs(ctx, unit_path("kept")), BK_OK);
  write_file("t/a/b/one", "1");
  write_file("t/two", "2");
  write_file("kept/three", "3");
  ck_assert_int_eq(symlink(unit_path("kept"), unit_path("t/link")), 0);
  ck_assert_int_eq(bk_remove_tree(ctx, unit_path("t")), BK_OK);
  ck_assert(!bk_path_exists(ctx, unit_path("t")));
  expect_file("kept/three", "3"); /* a link is removed, not what it points to */
  ck_assert_int_eq(bk_remove_tree(ctx, "/"), BK_ERR_ARGUMENT);
  unit_expect("will not remove");
  ck_assert_int_eq(bk_remove_tree(ctx, ""), BK_ERR_ARGUMENT);
  unit_expect("will not remove");
}
END_TEST

START_TEST(path_join) {
  static const char *const cases[][3] = {
      {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"}, {"/", "b", "/b"}};
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    char *joined = bk_path_join(ctx, cases[i][0], cases[i][1]);
    ck_assert_str_eq(joined, cases[i][2]);
    bk_free(ctx, joined);
  }
}
END_TEST

/* The members of bk_fs that the helpers do not reach. */
START_TEST(posix_members) {
  const bk_fs *fs = &ctx->fs;
  bk_file *file = NULL;
  char text[16] = "";
  uint64_t size = 0;
  const char *path = unit_path("log");
  for (int i = 0; i < 3; i++) {
    ck_assert_int_eq(fs->open_write(fs->user, path, true, &file), 0);
    ck_assert_int_eq(fs->write(fs->user, file, "abcd", 4), 4);
    ck_assert_int_eq(fs->close(fs->user, file), 0);
  }
  ck_assert_int_eq(fs->truncate(fs->user, path, 10), 0);
  ck_assert_int_eq(fs->open_read(fs->user, path, &file), 0);
  ck_assert_int_eq(fs->size(fs->user, file, &size), 0);
  ck_assert_uint_eq(size, 10);
  /* short at the end only */
  ck_assert_int_eq(fs->read_at(fs->user, file, 8, text, sizeof text), 2);
  ck_assert_int_eq(memcmp(text, "ab", 2), 0);
  ck_assert_int_eq(fs->read_at(fs->user, file, 100, text, sizeof text), 0);
  ck_assert_int_lt(fs->write(fs->user, file, "x", 1), 0);
  ck_assert_int_eq(fs->close(fs->user, file), 0);
  ck_assert_int_eq(fs->kind(fs->user, path), 0);
  ck_assert_int_eq(fs->kind(fs->user, unit_folder), 1);
  ck_assert_int_eq(fs->kind(fs->user, "/dev/null"), 2);
  ck_assert_int_eq(fs->kind(fs->user, unit_path("nothing")), -ENOENT);
  ck_assert_int_eq(fs->mkdir(fs->user, unit_folder), -EEXIST);
  ck_assert_int_eq(fs->sync_dir(fs->user, path), -ENOTDIR);
  ck_assert_int_eq(fs->list(fs->user, unit_path("nothing"), NULL, NULL), -ENOENT);
}
END_TEST

/* ---- a file system whose n-th writing call fails: the file under its final name must stay
 * whole ---- */
static int calls_left;

static int limited(int rc) { return calls_left-- <= 0 ? -ENOSPC : rc; }

static int bad_open_write(void *user, const char *path, bool append, bk_file **file) {
  return limited(0) ? -ENOSPC : bk_fs_posix.open_write(user, path, append, file);
}

static int64_t bad_write(void *user, bk_file *file, const void *src, size_t bytes) {
  return limited(0) ? -ENOSPC : bk_fs_posix.write(user, file, src, bytes);
}

static int bad_sync(void *user, bk_file *file) { return limited(bk_fs_posix.sync(user, file)); }

static int bad_close(void *user, bk_file *file) { return limited(bk_fs_posix.close(user, file)); }

static int bad_rename(void *user, const char *from, const char *to) {
  return limited(0) ? -ENOSPC : bk_fs_posix.rename(user, from, to);
}

START_TEST(atomic_under_failures) {
  write_file("state", "old");
  for (int n = 0; n < 5; n++) {
    ctx->fs.open_write = bad_open_write, ctx->fs.write = bad_write, ctx->fs.sync = bad_sync,
    ctx->fs.close = bad_close;
    ctx->fs.rename = bad_rename;
    calls_left = n;
    ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("state"), "new", 3), BK_ERR_IO);
    unit_expect("No space left");
    ctx->fs = bk_fs_posix;
    expect_file("state", "old");
    ck_assert(!bk_path_exists(ctx, unit_path("state.tmp")));
  }
}
END_TEST

START_TEST(unwritable_folder) {
  if (geteuid() == 0) { /* root may write anywhere: a missing parent must do */
    ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("no/such/file"), "x", 1), BK_ERR_IO);
    unit_expect("cannot create");
    return;
  }
  ck_assert_int_eq(bk_mkdirs(ctx, unit_path("closed")), BK_OK);
  ck_assert_int_eq(chmod(unit_path("closed"), 0500), 0);
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path("closed/file"), "x", 1), BK_ERR_IO);
  unit_expect("Permission denied");
  ck_assert_int_eq(chmod(unit_path("closed"), 0700), 0);
}
END_TEST

/* ---- what the operating system itself can be made to do ---- */

/* A file may grow to 4096 bytes: the kernel takes part of a write, then refuses the rest. */
START_TEST(size_limit) {
  struct rlimit before, small;
  static char bytes[10000];
  ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
  small = before;
  small.rlim_cur = 4096;
  write_file("state", "old");
  void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
  bk_status status = bk_file_write_atomic(ctx, unit_path("state"), bytes, sizeof bytes);
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  ck_assert_int_eq(status, BK_ERR_IO);
  unit_expect("state.tmp: File too large");
  expect_file("state", "old");
  ck_assert(!bk_path_exists(ctx, unit_path("state.tmp")));
}
END_TEST

START_TEST(full_device) {
  const bk_fs *fs = &ctx->fs;
  bk_file *file = NULL;
  if (fs->open_write(fs->user, "/dev/full", true, &file) != 0) return; /* not there */
  ck_assert_int_eq(fs->write(fs->user, file, "x", 1), -ENOSPC);
  ck_assert_int_eq(fs->close(fs->user, file), 0);
}
END_TEST

typedef struct slow_reader {
  int fd;
  size_t bytes;
  bool wrong;
} slow_reader;

static unsigned char pattern(size_t i) { return (unsigned char)(i * 7 + i / 251); }

/* Takes a little at a time, so that the writer waits inside its call, where signals find it. */
static void *read_slowly(void *arg) {
  slow_reader *r = arg;
  unsigned char piece[5000];
  for (ssize_t n; (n = read(r->fd, piece, sizeof piece)) != 0;) {
    for (ssize_t i = 0; i < n; i++) r->wrong |= piece[i] != pattern(r->bytes++);
    usleep(200);
  }
  return NULL;
}

static volatile sig_atomic_t interruptions;

/* Where a signal takes longer to deliver than the next one takes to come (under valgrind, on a busy
 * machine), the program would do nothing else: after so many they end. */
static void count_signal(int number) {
  (void)number;
  if (++interruptions == 2000) setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);
}

/* A large write into a pipe under a hail of signals, none of which restarts a call: calls end
 * early with part of the bytes or with EINTR, and every byte arrives once. */
START_TEST(interrupted_write) {
  enum { BYTES = 1 << 20 };
  const bk_fs *fs = &ctx->fs;
  bk_file *file = NULL;
  pthread_t thread;
  slow_reader reader = {.fd = -1};
  struct sigaction action = {.sa_handler = count_signal}, before;
  struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
  sigset_t alarm_only;
  unsigned char *bytes = bk_alloc(ctx, BYTES);
  for (size_t i = 0; i < BYTES; i++) bytes[i] = pattern(i);
  ck_assert_int_eq(mkfifo(unit_path("pipe"), 0600), 0);
  /* does not wait for a writer */
  ck_assert_int_ge(reader.fd = open(unit_path("pipe"), O_RDONLY | O_NONBLOCK), 0);
  ck_assert_int_eq(fs->open_write(fs->user, unit_path("pipe"), true, &file), 0);
  ck_assert_int_eq(fcntl(reader.fd, F_SETFL, 0), 0);
  sigemptyset(&alarm_only);
  sigaddset(&alarm_only, SIGALRM);
  ck_assert_int_eq(pthread_sigmask(SIG_BLOCK, &alarm_only, NULL), 0); /* the reader is left alone */
  ck_assert_int_eq(pthread_create(&thread, NULL, read_slowly, &reader), 0);
  ck_assert_int_eq(pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL), 0);
  sigaction(SIGALRM, &action, &before);
  ck_assert_int_eq(setitimer(ITIMER_REAL, &often, NULL), 0);
  int64_t done = fs->write(fs->user, file, bytes, BYTES);
  ck_assert_int_eq(setitimer(ITIMER_REAL, &never, NULL), 0);
  ck_assert_int_eq(done, BYTES);
  ck_assert_int_eq(fs->close(fs->user, file), 0);
  ck_assert_int_eq(pthread_join(thread, NULL), 0);
  sigaction(SIGALRM, &before, NULL);
  close(reader.fd);
  ck_assert_uint_eq(reader.bytes, BYTES);
  ck_assert(!reader.wrong);
  ck_assert_int_gt(interruptions, 0);
  bk_free(ctx, bytes);
}
END_TEST

UNIT_MAIN("files", unit_folder_open, unit_folder_close, write_and_read, relative_path, read_errors,
          mkdirs, remove_tree, path_join, posix_members, atomic_under_failures, unwritable_folder,
          size_limit, full_device, interrupted_write)
