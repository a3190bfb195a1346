/* Helpers over the context's file access (bk_fs). Every failure is logged with the path and the
 * system's words, and returns BK_ERR_IO; a file of the wrong kind or size returns BK_ERR_DATA.
 *
 * What is written here survives a crash once the call has returned: contents are synced before a
 * name is given to them, and the folder is synced after. See fsync(2): a rename whose folder is
 * not synced can be lost, and a rename before the contents are synced can leave an empty file. */
#include "base/files.h"

#include <errno.h>
#include <string.h>

/* bk_fs returns negated errno values. */
static bk_status io_fail(bk_context *ctx, const char *what, const char *path, int error) {
  return bk_fail(ctx, BK_ERR_IO, "cannot %s %s: %s", what, path, strerror(-error));
}

/* Only regular files can be read at any place and have a size; both are needed here. A folder is
 * reported as the system itself would do it. */
bk_status bk_file_open(bk_context *ctx, const char *path, bk_file **file) {
  const bk_fs *fs = bk_context_fs(ctx);
  bk_file *made;
  int kind = fs->kind(fs->user, path);
  if (kind == 1) return io_fail(ctx, "read", path, -EISDIR);
  if (kind > 1)
    return bk_fail(ctx, BK_ERR_DATA,
                   "%s is not a regular file but a pipe, a terminal or a device, which cannot be "
                   "read here; write what comes out of it into a file first",
                   path);
  int rc = kind < 0 ? kind : fs->open_read(fs->user, path, &made);
  if (rc < 0) return io_fail(ctx, "open", path, rc);
  *file = made;
  return BK_OK;
}

/* The limit is the caller's: no configuration file is so large that reading it should exhaust
 * memory. A NUL follows the contents, so that they can be used as a string. */
static bk_status read_whole(bk_context *ctx, bk_file *file, const char *path, size_t max_bytes,
                            char **data, size_t *bytes) {
  const bk_fs *fs = bk_context_fs(ctx);
  uint64_t size;
  int rc = fs->size(fs->user, file, &size);
  if (rc < 0) return io_fail(ctx, "look at", path, rc);
  if (size > max_bytes || size >= SIZE_MAX)
    return bk_fail(ctx, BK_ERR_DATA, "%s has %llu bytes, at most %zu are allowed", path,
                   (unsigned long long)size, max_bytes);
  char *text = bk_alloc(ctx, (size_t)size + 1);
  if (!text) return BK_ERR_MEMORY;
  int64_t got = fs->read_at(fs->user, file, 0, text, (size_t)size);
  if (got < 0 || (uint64_t)got != size) {
    bk_free(ctx, text);
    if (got < 0) return io_fail(ctx, "read", path, (int)got);
    return bk_fail(ctx, BK_ERR_IO, "cannot read %s: it ended after %lld of %llu bytes", path,
                   (long long)got, (unsigned long long)size);
  }
  *data = text;
  *bytes = (size_t)size;
  return BK_OK;
}

bk_status bk_file_read_all(bk_context *ctx, const char *path, size_t max_bytes, char **data,
                           size_t *bytes) {
  const bk_fs *fs = bk_context_fs(ctx);
  bk_file *file;
  BK_TRY(bk_file_open(ctx, path, &file));
  bk_status status = read_whole(ctx, file, path, max_bytes, data, bytes);
  fs->close(fs->user, file);
  return status;
}

bk_status bk_file_size(bk_context *ctx, const char *path, uint64_t *bytes) {
  const bk_fs *fs = bk_context_fs(ctx);
  bk_file *file;
  BK_TRY(bk_file_open(ctx, path, &file));
  int rc = fs->size(fs->user, file, bytes);
  fs->close(fs->user, file);
  return rc < 0 ? io_fail(ctx, "look at", path, rc) : BK_OK;
}

/* The first failure is the one that is reported; the file is closed in any case. */
static bk_status write_synced(bk_context *ctx, const char *path, const void *data, size_t bytes) {
  const bk_fs *fs = bk_context_fs(ctx);
  bk_file *file;
  int rc = fs->open_write(fs->user, path, false, &file);
  if (rc < 0) return io_fail(ctx, "create", path, rc);
  const char *failed = NULL;
  int64_t done = fs->write(fs->user, file, data, bytes);
  if (done < 0 || (uint64_t)done < bytes) failed = "write", rc = done < 0 ? (int)done : -EIO;
  if (!failed && (rc = fs->sync(fs->user, file)) < 0) failed = "sync";
  int close_rc = fs->close(fs->user, file);
  if (!failed && close_rc < 0) failed = "close", rc = close_rc;
  return failed ? io_fail(ctx, failed, path, rc) : BK_OK;
}

/* Syncs the folder that holds `path`, so that a name made or changed in it survives a crash. The
 * negated errno value `tolerated` does not count as a failure; 0 tolerates none. */
static bk_status sync_parent(bk_context *ctx, const char *path, int tolerated) {
  const bk_fs *fs = bk_context_fs(ctx);
  const char *slash = strrchr(path, '/');
  size_t length = !slash ? 0 : slash == path ? 1 : (size_t)(slash - path);
  char *folder = slash ? bk_format(ctx, "%.*s", (int)length, path) : bk_strdup(ctx, ".");
  if (!folder) return BK_ERR_MEMORY;
  int rc = fs->sync_dir(fs->user, folder);
  bk_status status = rc < 0 && rc != tolerated ? io_fail(ctx, "sync folder", folder, rc) : BK_OK;
  bk_free(ctx, folder);
  return status;
}

/* A reader sees the old contents or the new, never a part: the file is written beside its place
 * and renamed into it. On failure PATH.tmp is removed and PATH is as it was. */
bk_status bk_file_write_atomic(bk_context *ctx, const char *path, const void *data, size_t bytes) {
  const bk_fs *fs = bk_context_fs(ctx);
  char *beside = bk_format(ctx, "%s.tmp", path);
  if (!beside) return BK_ERR_MEMORY;
  bk_status status = write_synced(ctx, beside, data, bytes);
  if (status == BK_OK) {
    int rc = fs->rename(fs->user, beside, path);
    if (rc < 0) status = io_fail(ctx, "rename to", path, rc);
  }
  if (status != BK_OK) fs->remove(fs->user, beside);
  else status = sync_parent(ctx, path, 0);
  bk_free(ctx, beside);
  return status;
}

/* A folder that one may write into but not read cannot be opened, and so not be synced. Making a
 * folder inside it has nevertheless succeeded. */
static bk_status sync_made(bk_context *ctx, const char *path) {
  return sync_parent(ctx, path, -EACCES);
}

/* Makes each folder of the path in turn. mkdir comes first and the question what is there only
 * after its failure, so that two processes may make the same folders at the same time. When
 * something is in the way the error is mkdir's own, or says that a part of the path is no
 * folder. */
bk_status bk_mkdirs(bk_context *ctx, const char *path) {
  const bk_fs *fs = bk_context_fs(ctx);
  char *partial = bk_strdup(ctx, path);
  if (!partial) return BK_ERR_MEMORY;
  bk_status status =
      *path ? BK_OK : bk_fail(ctx, BK_ERR_ARGUMENT, "cannot make a folder with an empty name");
  for (char *p = partial; *p && status == BK_OK;) {
    while (*p == '/') p++;
    while (*p && *p != '/') p++;
    char saved = *p;
    *p = '\0';
    int kind, rc = fs->mkdir(fs->user, partial);
    if (rc == 0) status = sync_made(ctx, partial);
    else if ((kind = fs->kind(fs->user, partial)) != 1)
      status = io_fail(ctx, "make folder", partial,
                       rc != -EEXIST ? rc
                       : kind < 0    ? kind
                                     : -ENOTDIR);
    *p = saved;
  }
  bk_free(ctx, partial);
  return status;
}

/* Collects the names of a folder. bk_fs.list cannot be stopped by its callback, so that after a
 * failure the rest of the names is passed over. */
typedef struct name_list {
  bk_context *ctx;
  char **names;
  size_t count, capacity;
  bk_status status;
} name_list;

/* A callback of bk_fs.list; `name` is valid during the call only. */
static void name_list_add(void *arg, const char *name) {
  name_list *list = arg;
  if (list->status != BK_OK) return;
  list->status =
      bk_grow(list->ctx, (void **)&list->names, &list->capacity, list->count + 1, sizeof(char *));
  if (list->status != BK_OK) return;
  char *copy = bk_strdup(list->ctx, name);
  if (copy) list->names[list->count++] = copy;
  else list->status = BK_ERR_MEMORY;
}

/* Two failures are told apart here: want of memory is returned, and a folder that cannot be listed
 * is handed to the caller, to whom it may matter or not. */
bk_status bk_folder_list(bk_context *ctx, const char *path, char ***names, size_t *count,
                         int *error) {
  const bk_fs *fs = bk_context_fs(ctx);
  name_list list = {.ctx = ctx, .status = BK_OK};
  *error = fs->list(fs->user, path, name_list_add, &list);
  if (list.status != BK_OK) {
    bk_names_free(ctx, list.names, list.count);
    return list.status;
  }
  *names = list.names;
  *count = list.count;
  return BK_OK;
}

bk_status bk_folder_names(bk_context *ctx, const char *path, char ***names, size_t *count) {
  char **read = NULL;
  size_t n = 0;
  int error;
  BK_TRY(bk_folder_list(ctx, path, &read, &n, &error));
  if (error < 0) {
    bk_names_free(ctx, read, n);
    return io_fail(ctx, "list", path, error);
  }
  *names = read;
  *count = n;
  return BK_OK;
}

void bk_names_free(bk_context *ctx, char **names, size_t count) {
  for (size_t i = 0; i < count; i++) bk_free(ctx, names[i]);
  bk_free(ctx, names);
}

bk_status bk_remove_member(bk_context *ctx, const char *folder, const char *name) {
  char *path = bk_path_join(ctx, folder, name);
  bk_status status = path ? bk_remove_tree(ctx, path) : BK_ERR_MEMORY;
  bk_free(ctx, path);
  return status;
}

/* The names are read to the end before anything is removed, since a listing of a folder that
 * changes meanwhile may leave names out. */
static bk_status remove_contents(bk_context *ctx, const char *path) {
  char **names;
  size_t count;
  BK_TRY(bk_folder_names(ctx, path, &names, &count));
  bk_status status = BK_OK;
  for (size_t i = 0; i < count && status == BK_OK; i++)
    status = bk_remove_member(ctx, path, names[i]);
  bk_names_free(ctx, names, count);
  return status;
}

/* Removal is tried before looking inside, so that a link to a folder is removed itself, never what
 * it points to. A path of slashes only, or an empty one, is refused: it would be the whole file
 * system. */
bk_status bk_remove_tree(bk_context *ctx, const char *path) {
  const bk_fs *fs = bk_context_fs(ctx);
  if (!path[strspn(path, "/")])
    return bk_fail(ctx, BK_ERR_ARGUMENT, "will not remove the folder \"%s\"", path);
  int rc = fs->remove(fs->user, path);
  if (rc == 0 || rc == -ENOENT) return BK_OK;
  if (rc != -ENOTEMPTY && rc != -EEXIST) return io_fail(ctx, "remove", path, rc);
  BK_TRY(remove_contents(ctx, path));
  rc = fs->remove(fs->user, path);
  return rc < 0 && rc != -ENOENT ? io_fail(ctx, "remove", path, rc) : BK_OK;
}

/* ENOENT and ENOTDIR both mean that nothing is there; any other error means that it cannot be
 * known. */
bk_status bk_path_kind(bk_context *ctx, const char *path, int *kind) {
  const bk_fs *fs = bk_context_fs(ctx);
  int rc = fs->kind(fs->user, path);
  if (rc < 0 && rc != -ENOENT && rc != -ENOTDIR) return io_fail(ctx, "look at", path, rc);
  *kind = rc < 0 ? -1 : rc;
  return BK_OK;
}

bool bk_path_exists(bk_context *ctx, const char *path) {
  const bk_fs *fs = bk_context_fs(ctx);
  return fs->kind(fs->user, path) >= 0;
}

bool bk_path_is_dir(bk_context *ctx, const char *path) {
  const bk_fs *fs = bk_context_fs(ctx);
  return fs->kind(fs->user, path) == 1;
}

char *bk_path_join(bk_context *ctx, const char *folder, const char *name) {
  size_t length = strlen(folder);
  const char *between = length == 0 || folder[length - 1] == '/' ? "" : "/";
  return bk_format(ctx, "%s%s%s", folder, between, name);
}
