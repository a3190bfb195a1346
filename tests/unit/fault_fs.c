/* See fault_fs.h. Nodes are files and folders; a folder holds names that point to nodes, as in a
 * real file system, so that a rename moves a name and nothing else. Nodes live until the whole
 * is closed. */
#include "tests/unit/fault_fs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES 64

typedef struct bytes {
  char *data;
  size_t count;
} bytes;

typedef struct entry {
  char name[NAME_BYTES];
  fault_node *node;
} entry;

typedef struct entries {
  entry *list;
  size_t count;
} entries;

struct fault_node {
  bool folder;
  bytes now, synced;   /* of a file */
  entries names, kept; /* of a folder: now, and as of the last sync_dir */
  fault_node *next;
};

/* An open file. */
typedef struct handle {
  fault_node *node;
  char path[512];
} handle;

static void *resize(void *ptr, size_t count) {
  void *grown = realloc(ptr, count ? count : 1);
  if (!grown) abort();
  return grown;
}

static void bytes_set(bytes *b, const bytes *from) {
  b->data = resize(b->data, from->count);
  b->count = from->count;
  if (b->count) memcpy(b->data, from->data, b->count);
}

static void entries_set(entries *e, const entries *from) {
  e->list = resize(e->list, from->count * sizeof(entry));
  e->count = from->count;
  if (e->count) memcpy(e->list, from->list, e->count * sizeof(entry));
}

static fault_node *node_new(fault_fs *fs, bool folder) {
  fault_node *n = calloc(1, sizeof *n);
  if (!n) abort();
  n->folder = folder;
  n->next = fs->all;
  fs->all = n;
  return n;
}

void fault_fs_open(fault_fs *fs) {
  *fs = (fault_fs){0};
  fs->root = node_new(fs, true);
}

void fault_fs_close(fault_fs *fs) {
  while (fs->all) {
    fault_node *n = fs->all;
    fs->all = n->next;
    free(n->now.data);
    free(n->synced.data);
    free(n->names.list);
    free(n->kept.list);
    free(n);
  }
}

void fault_fs_arm(fault_fs *fs, unsigned which, int fail_at, int error) {
  fs->which = which;
  fs->seen = 0;
  fs->fail_at = fail_at;
  fs->error = error;
  fs->is_short = fs->dead = false;
  fs->failed_kind = 0;
  fs->failed_path[0] = '\0';
}

void fault_fs_disarm(fault_fs *fs) { fs->fail_at = 0; }

void fault_fs_crash(fault_fs *fs, bool names) {
  for (fault_node *n = fs->all; n; n = n->next) {
    if (!n->folder) bytes_set(&n->now, &n->synced);
    else if (names) entries_set(&n->names, &n->kept);
  }
}

/* Counts the call; 0, or the negated error that it is to give. */
static int fault(fault_fs *fs, unsigned kind, const char *path) {
  if (fs->fail_at && fs->dead && fs->failed_kind) return -fs->error;
  if (!(fs->which & kind) || ++fs->seen != fs->fail_at) return 0;
  fs->failed_kind = kind;
  snprintf(fs->failed_path, sizeof fs->failed_path, "%s", path);
  return -fs->error;
}

/* ---- names ---- */

static entry *find(entries *e, const char *name, size_t length) {
  for (size_t i = 0; i < e->count; i++)
    if (strlen(e->list[i].name) == length && memcmp(e->list[i].name, name, length) == 0)
      return &e->list[i];
  return NULL;
}

/* The folder that holds the path's last part, and that part; NULL with *error set. */
static fault_node *walk(fault_fs *fs, const char *path, const char **last, size_t *length,
                        int *error) {
  fault_node *at = fs->root;
  *error = -ENOENT;
  for (const char *p = path;;) {
    p += strspn(p, "/");
    size_t n = strcspn(p, "/");
    const char *rest = p + n + strspn(p + n, "/");
    if (n >= NAME_BYTES) return NULL;
    if (!*rest) {
      *last = p;
      *length = n;
      return at;
    }
    entry *e = n == 1 && *p == '.' ? NULL : find(&at->names, p, n);
    if (n == 1 && *p == '.') p = rest;
    else if (!e) return NULL;
    else if (!e->node->folder) return *error = -ENOTDIR, NULL;
    else at = e->node, p = rest;
  }
}

static fault_node *lookup(fault_fs *fs, const char *path, int *error) {
  const char *last;
  size_t length;
  fault_node *in = walk(fs, path, &last, &length, error);
  if (!in || length == 0 || (length == 1 && *last == '.')) return in;
  entry *e = find(&in->names, last, length);
  return e ? e->node : NULL;
}

static void link_node(fault_node *folder, const char *name, size_t length, fault_node *node) {
  entries *e = &folder->names;
  e->list = resize(e->list, (e->count + 1) * sizeof(entry));
  entry *made = &e->list[e->count++];
  memset(made, 0, sizeof *made);
  memcpy(made->name, name, length);
  made->node = node;
}

static void unlink_entry(entries *e, entry *gone) {
  *gone = e->list[e->count - 1];
  e->count--;
}

/* ---- calls ---- */

static int open_node(fault_node *node, const char *path, bk_file **file) {
  handle *h = calloc(1, sizeof *h);
  if (!h) abort();
  h->node = node;
  snprintf(h->path, sizeof h->path, "%s", path);
  *file = (bk_file *)(void *)h;
  return 0;
}

static handle *handle_of(bk_file *file) { return (handle *)(void *)file; }

static int fake_open_read(void *user, const char *path, bk_file **file) {
  int error, rc = fault(user, FAULT_OPEN_READ, path);
  if (rc) return rc;
  fault_node *n = lookup(user, path, &error);
  return n ? open_node(n, path, file) : error;
}

static int fake_open_write(void *user, const char *path, bool append, bk_file **file) {
  const char *last;
  size_t length;
  int error, rc = fault(user, FAULT_OPEN_WRITE, path);
  if (rc) return rc;
  fault_node *in = walk(user, path, &last, &length, &error);
  if (!in) return error;
  entry *e = find(&in->names, last, length);
  fault_node *n = e ? e->node : node_new(user, false);
  if (n->folder) return -EISDIR;
  if (!e) link_node(in, last, length, n);
  if (!append) n->now.count = 0;
  return open_node(n, path, file);
}

static int64_t fake_read_at(void *user, bk_file *file, uint64_t offset, void *dst, size_t count) {
  const handle *h = handle_of(file);
  fault_fs *fs = user;
  int rc = fault(fs, FAULT_READ, h->path);
  if (rc && !fs->is_short) return rc;
  if (h->node->folder) return -EISDIR;
  if (offset >= h->node->now.count) return 0;
  size_t left = h->node->now.count - (size_t)offset, n = count < left ? count : left;
  if (rc) n /= 2;
  if (n) memcpy(dst, h->node->now.data + offset, n);
  return (int64_t)n;
}

static int64_t fake_write(void *user, bk_file *file, const void *src, size_t count) {
  fault_fs *fs = user;
  bytes *b = &handle_of(file)->node->now;
  int rc = fault(fs, FAULT_WRITE, handle_of(file)->path);
  size_t n = rc ? count / 2 : count; /* what fails is torn */
  b->data = resize(b->data, b->count + n);
  if (n) memcpy(b->data + b->count, src, n);
  b->count += n;
  return rc && !fs->is_short ? rc : (int64_t)n;
}

static int fake_size(void *user, bk_file *file, uint64_t *count) {
  int rc = fault(user, FAULT_SIZE, handle_of(file)->path);
  if (rc) return rc;
  *count = handle_of(file)->node->now.count;
  return 0;
}

static int fake_truncate(void *user, const char *path, uint64_t count) {
  int error, rc = fault(user, FAULT_TRUNCATE, path);
  if (rc) return rc;
  fault_node *n = lookup(user, path, &error);
  if (!n) return error;
  if (n->folder || count > n->now.count) return -EINVAL;
  n->now.count = (size_t)count;
  return 0;
}

static int fake_sync(void *user, bk_file *file) {
  int rc = fault(user, FAULT_SYNC, handle_of(file)->path);
  if (rc == 0) bytes_set(&handle_of(file)->node->synced, &handle_of(file)->node->now);
  return rc;
}

static int fake_close(void *user, bk_file *file) {
  int rc = fault(user, FAULT_CLOSE, handle_of(file)->path);
  free(handle_of(file));
  return rc;
}

static int fake_mkdir(void *user, const char *path) {
  const char *last;
  size_t length;
  int error, rc = fault(user, FAULT_MKDIR, path);
  if (rc) return rc;
  fault_node *in = walk(user, path, &last, &length, &error);
  if (!in) return error;
  if (length == 0 || find(&in->names, last, length)) return -EEXIST;
  link_node(in, last, length, node_new(user, true));
  return 0;
}

static int fake_rename(void *user, const char *from, const char *to) {
  const char *last, *new_last;
  size_t length, new_length;
  int error, rc = fault(user, FAULT_RENAME, from);
  if (rc) return rc;
  fault_node *in = walk(user, from, &last, &length, &error),
             *new_in = in ? walk(user, to, &new_last, &new_length, &error) : NULL;
  entry *e = new_in ? find(&in->names, last, length) : NULL;
  if (!e) return error;
  fault_node *moved = e->node;
  entry *there = find(&new_in->names, new_last, new_length);
  if (there && there->node->folder && (!moved->folder || there->node->names.count))
    return -ENOTEMPTY;
  if (there && there->node != moved) there->node = moved;
  else if (!there) link_node(new_in, new_last, new_length, moved);
  unlink_entry(&in->names, find(&in->names, last, length));
  return 0;
}

static int fake_remove(void *user, const char *path) {
  const char *last;
  size_t length;
  int error, rc = fault(user, FAULT_REMOVE, path);
  if (rc) return rc;
  fault_node *in = walk(user, path, &last, &length, &error);
  entry *e = in ? find(&in->names, last, length) : NULL;
  if (!e) return error;
  if (e->node->folder && e->node->names.count) return -ENOTEMPTY;
  unlink_entry(&in->names, e);
  return 0;
}

static int fake_sync_dir(void *user, const char *path) {
  int error, rc = fault(user, FAULT_SYNC_DIR, path);
  if (rc) return rc;
  fault_node *n = lookup(user, path, &error);
  if (!n) return error;
  if (!n->folder) return -ENOTDIR;
  entries_set(&n->kept, &n->names);
  return 0;
}

static int fake_list(void *user, const char *path, void (*each)(void *arg, const char *name),
                     void *arg) {
  int error, rc = fault(user, FAULT_LIST, path);
  if (rc) return rc;
  fault_node *n = lookup(user, path, &error);
  if (!n) return error;
  if (!n->folder) return -ENOTDIR;
  for (size_t i = 0; i < n->names.count; i++) each(arg, n->names.list[i].name);
  return 0;
}

static int fake_kind(void *user, const char *path) {
  int error, rc = fault(user, FAULT_KIND, path);
  if (rc) return rc;
  fault_node *n = lookup(user, path, &error);
  return n ? n->folder : error;
}

bk_fs fault_fs_table(fault_fs *fs) {
  return (bk_fs){.open_read = fake_open_read,
                 .open_write = fake_open_write,
                 .read_at = fake_read_at,
                 .write = fake_write,
                 .size = fake_size,
                 .truncate = fake_truncate,
                 .sync = fake_sync,
                 .close = fake_close,
                 .mkdir = fake_mkdir,
                 .rename = fake_rename,
                 .remove = fake_remove,
                 .sync_dir = fake_sync_dir,
                 .list = fake_list,
                 .kind = fake_kind,
                 .user = fs};
}
