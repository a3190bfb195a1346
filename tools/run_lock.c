/* See run_lock.h. */
#include "tools/run_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sys/sysmacros.h>
#endif
#include <unistd.h>

/* ---- the table of mounts ---- */

/* What a file system is called and mounted with where its locks are known to this host alone;
 * option NULL: however it is mounted. */
typedef struct local_kind {
  const char *type, *option;
} local_kind;

static const local_kind local_kinds[] = {
    {"nfs", "nolock"},
    {"nfs", "local_lock=flock"},
    {"nfs", "local_lock=all"},
    {"nfs4", "nolock"},
    {"nfs4", "local_lock=flock"},
    {"nfs4", "local_lock=all"},
    {"cifs", "nobrl"},
    {"smb3", "nobrl"},
    {"lustre", "localflock"},
    /* FUSE answers a lock on this host where the program behind it does not ask for them, which
     * these never do */
    {"fuse.sshfs", NULL},
    {"fuse.s3fs", NULL},
    {"fuse.gcsfuse", NULL},
    {"fuse.rclone", NULL},
    {"fuse.goofys", NULL},
    {"fuse.geesefs", NULL},
    {"fuse.blobfuse", NULL},
    {"fuse.blobfuse2", NULL},
    {"fuse.mountpoint-s3", NULL},
    {"fuse.curlftpfs", NULL},
    {"fuse.davfs", NULL},
    {"fuse.gvfsd-fuse", NULL},
    {"fuse.hdfs", NULL}};

/* The fields of a line that are of use here; pointers into the text, which is not ended where
 * they end. */
typedef struct mount_fields {
  const char *options, *type, *source, *super; /* each ends at a blank or at the end of the line */
  long mount;
  unsigned major, minor;
} mount_fields;

static size_t length_of(const char *field) { return strcspn(field, " \n"); }

/* The field behind this one; at the end of the line, an empty one. */
static const char *next_field(const char *field) {
  const char *end = field + length_of(field);
  return *end == ' ' ? end + 1 : end;
}

/* "36 35 98:0 ROOT POINT OPTIONS [FIELDS...] - TYPE SOURCE OPTIONS" */
static bool parse_line(const char *line, mount_fields *m) {
  if (sscanf(line, "%ld %*d %u:%u ", &m->mount, &m->major, &m->minor) != 3) return false;
  const char *at = line;
  for (int i = 0; i < 5; i++) at = next_field(at);
  m->options = at;
  while (length_of(at) > 0 && strncmp(at, "- ", 2) != 0) at = next_field(at);
  if (length_of(at) == 0) return false;
  m->type = next_field(at);
  m->source = next_field(m->type);
  m->super = next_field(m->source);
  return length_of(m->type) > 0;
}

static bool is_word(const char *field, const char *word, char end) {
  size_t n = strlen(word);
  return strncmp(field, word, n) == 0 &&
         (field[n] == end || field[n] == ' ' || field[n] == '\n' || field[n] == '\0');
}

static bool has_option(const char *field, const char *option) {
  for (const char *p = field, *end = field + length_of(field); p < end; p += strcspn(p, ", \n") + 1)
    if (is_word(p, option, ',')) return true;
  return false;
}

/* Some programs leave the name of their kind to the source: "fuse ... gcsfuse". */
static bool is_type(const mount_fields *m, const char *type) {
  bool by_source = strncmp(type, "fuse.", 5) == 0 && is_word(m->type, "fuse", ' ');
  return by_source ? is_word(m->source, type + 5, ' ') : is_word(m->type, type, ' ');
}

static bool is_local(const mount_fields *m, char *why, size_t size) {
  for (size_t i = 0; i < BK_COUNT(local_kinds); i++) {
    const local_kind *k = &local_kinds[i];
    if (!is_type(m, k->type)) continue;
    if (k->option && !has_option(m->options, k->option) && !has_option(m->super, k->option))
      continue;
    snprintf(why, size, "%s%s%s", k->type, k->option ? " mounted with " : "",
             k->option ? k->option : "");
    return true;
  }
  return false;
}

bool run_lock_is_local(const char *mountinfo, const run_lock_place *place, char *why, size_t size) {
  mount_fields m, found = {0};
  for (const char *line = mountinfo; *line; line += strcspn(line, "\n"), line += *line == '\n') {
    if (!parse_line(line, &m)) continue;
    if (place->mount >= 0 ? m.mount == place->mount
                          : m.major == place->major && m.minor == place->minor)
      found = m;
  }
  return found.type && is_local(&found, why, size);
}

/* ---- the mount of a descriptor ---- */

#define TEXT_MAX_BYTES ((size_t)16 << 20)

/* Files of /proc say no size; bk_free. NULL: it cannot be read. */
static char *read_text(bk_context *ctx, const char *path) {
  char *text = NULL;
  size_t used = 0, capacity = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : 1;
  while (n > 0 && used < TEXT_MAX_BYTES) {
    if (bk_grow(ctx, (void **)&text, &capacity, used + 4096, 1) != BK_OK) break;
    do n = read(fd, text + used, capacity - used - 1);
    while (n < 0 && errno == EINTR);
    if (n > 0) used += (size_t)n;
    text[used] = '\0';
  }
  if (fd >= 0) close(fd);
  if (n == 0) return text;
  bk_free(ctx, text);
  return NULL;
}

static run_lock_place place_of(bk_context *ctx, int fd) {
  run_lock_place place = {.mount = -1};
  struct stat st;
  char path[64];
#ifdef __linux__
  if (fstat(fd, &st) == 0) place.major = major(st.st_dev), place.minor = minor(st.st_dev);
#else
  (void)st;
#endif
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  char *text = read_text(ctx, path);
  const char *at = text ? strstr(text, "mnt_id:") : NULL;
  if (at && sscanf(at, "mnt_id: %ld", &place.mount) != 1) place.mount = -1;
  bk_free(ctx, text);
  return place;
}

static bk_status check_mount(bk_context *ctx, const char *folder, int fd) {
  char why[64];
  run_lock_place place = place_of(ctx, fd);
  char *mountinfo = read_text(ctx, "/proc/self/mountinfo");
  bool local = mountinfo && run_lock_is_local(mountinfo, &place, why, sizeof why);
  bk_free(ctx, mountinfo);
  if (!local) return BK_OK;
  return bk_fail(ctx, BK_ERR_IO,
                 "%s lies on %s, a file system whose locks are known to this host alone: a run on "
                 "another host could write there at the "
                 "same time; choose an --out on another file system",
                 folder, why);
}

/* "a/b/c" -> "a/b" -> "a" -> "."; false past the last. */
static bool cut_last(char *path) {
  size_t n = strlen(path);
  if (strcmp(path, "/") == 0 || strcmp(path, ".") == 0) return false;
  while (n > 0 && path[n - 1] == '/') n--;
  while (n > 0 && path[n - 1] != '/') n--;
  while (n > 1 && path[n - 1] == '/') n--;
  if (n == 0) path[n++] = '.';
  path[n] = '\0';
  return true;
}

bk_status run_lock_check(bk_context *ctx, const char *folder) {
  char *path = bk_format(ctx, "%s%s", folder, *folder ? "" : ".");
  if (!path) return BK_ERR_MEMORY;
  int fd;
  do fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  while (fd < 0 && errno == ENOENT && cut_last(path));
  bk_free(ctx, path);
  if (fd < 0) return BK_OK; /* what is wrong there is said by whoever makes the folder */
  bk_status status = check_mount(ctx, folder, fd);
  close(fd);
  return status;
}

/* ---- the lock ---- */

static bk_status open_file(bk_context *ctx, const char *path, int *fd) {
  struct stat st;
  do *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  while (*fd < 0 && errno == EINTR);
  if (*fd < 0 && errno == ELOOP)
    return bk_fail(ctx, BK_ERR_IO,
                   "%s is a symbolic link, where the lock of a run would be; remove it", path);
  if (*fd < 0)
    return bk_fail(ctx, BK_ERR_IO, "cannot open the lock of the run, %s: %s", path,
                   strerror(errno));
  if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode)) return BK_OK;
  close(*fd);
  return bk_fail(ctx, BK_ERR_IO,
                 "%s is not a regular file, and the lock of a run would be there; remove it", path);
}

/* 0: it is held now; else an errno value, EWOULDBLOCK where somebody else has it. */
static int try_lock(int fd) {
  int rc;
  do rc = flock(fd, LOCK_EX | LOCK_NB);
  while (rc != 0 && errno == EINTR);
  return rc == 0 ? 0 : errno == EAGAIN ? EWOULDBLOCK : errno;
}

static bool is_name(const char *text) {
  return *text &&
         text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] ==
             '\0';
}

static bk_status fail_busy(bk_context *ctx, const char *folder, int fd) {
  char text[512], host[256], process[24];
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  text[n > 0 ? n : 0] = '\0';
  if (sscanf(text, "host %255s process %23s", host, process) == 2 && is_name(host) &&
      is_name(process))
    return bk_fail(ctx, BK_ERR_BUSY, "%s is in use by another run (host %s, process %s)", folder,
                   host, process);
  return bk_fail(ctx, BK_ERR_BUSY, "%s is in use by another run", folder);
}

static bk_status fail_unlockable(bk_context *ctx, const char *folder, const char *cause) {
  return bk_fail(ctx, BK_ERR_IO,
                 "%s lies on a file system whose locks do not hold (%s): two runs could write "
                 "there at the same time; "
                 "choose an --out on another file system",
                 folder, cause);
}

/* While the lock is held nobody else may get it: asked for once more, through a descriptor of
 * its own. */
static bk_status prove(bk_context *ctx, const char *folder, const char *path) {
  int fd;
  BK_TRY(open_file(ctx, path, &fd));
  int error = try_lock(fd);
  close(fd);
  if (error == EWOULDBLOCK) return BK_OK;
  return fail_unlockable(ctx, folder, error ? strerror(error) : "the same lock was given twice");
}

/* For the message alone: that it cannot be written (a full disk) hinders nobody. */
static void sign(int fd) {
  char host[256] = "", text[512];
  if (gethostname(host, sizeof host - 1) != 0 || !is_name(host)) strcpy(host, "unknown");
  int n = snprintf(text, sizeof text, "host %s\nprocess %ld\n", host, (long)getpid());
  if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n) return;
}

static bk_status lock_file(bk_context *ctx, const char *folder, const char *path, int fd) {
  BK_TRY(check_mount(ctx, folder, fd));
  int error = try_lock(fd);
  if (error == EWOULDBLOCK) return fail_busy(ctx, folder, fd);
  if (error) return fail_unlockable(ctx, folder, strerror(error));
  BK_TRY(prove(ctx, folder, path));
  sign(fd);
  return BK_OK;
}

bk_status run_lock_take(bk_context *ctx, const char *folder, int *fd) {
  int made;
  char *path = bk_path_join(ctx, folder, ".lock");
  if (!path) return BK_ERR_MEMORY;
  bk_status status = open_file(ctx, path, &made);
  if (status == BK_OK && (status = lock_file(ctx, folder, path, made)) != BK_OK) close(made);
  bk_free(ctx, path);
  if (status == BK_OK) *fd = made;
  return status;
}
