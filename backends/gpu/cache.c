/* See cache.h. */
#include "backends/gpu/cache.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define KEY_MAX_BYTES ((size_t)64 << 10)

typedef struct header {
  char magic[8];
  uint64_t key_bytes, data_bytes, hash; /* hash: of key and data as they follow */
} header;
static const char magic[8] = "BKCACHE1"; /* the last character is the version */

/* ---- messages of base/ are held back: what fails here is no error ---- */

typedef struct held {
  bk_log_fn log;
  void *user;
  char first[300];
} held;

static void hold_message(void *user, bk_log_level level, const char *message) {
  held *h = user;
  if (level == BK_LOG_ERROR && !h->first[0])
    snprintf(h->first, sizeof h->first, "%.*s", (int)sizeof h->first - 1, message);
}

static void hold(bk_context *ctx, held *h) {
  *h = (held){.log = ctx->log, .user = ctx->log_user};
  ctx->log = hold_message;
  ctx->log_user = h;
}

static void let_go(bk_context *ctx, const held *h) {
  ctx->log = h->log;
  ctx->log_user = h->user;
}

/* ---- the folder ---- */

static char *find_folder(bk_context *ctx) {
  const char *off = bk_context_environment(ctx, "BIRKHOFF_CACHE"),
             *xdg = bk_context_environment(ctx, "XDG_CACHE_HOME");
  const char *home = bk_context_environment(ctx, "HOME");
  if (off && strcmp(off, "off") == 0) return NULL;
  /* relative ones are invalid: XDG base directories */
  if (xdg && xdg[0] == '/') return bk_path_join(ctx, xdg, "birkhoff");
  if (home && home[0] == '/') return bk_path_join(ctx, home, ".cache/birkhoff");
  return NULL;
}

void bk_gpu_kept_init(bk_gpu_cache *cache, bk_context *ctx, const char *owner, int index) {
  *cache = (bk_gpu_cache){.ctx = ctx, .owner = owner, .index = index, .folder = find_folder(ctx)};
}

static void switch_off(bk_gpu_cache *cache) {
  bk_free(cache->ctx, cache->folder);
  cache->folder = NULL;
}

void bk_gpu_kept_fini(bk_gpu_cache *cache) {
  if (cache->folder) switch_off(cache);
}

static char *entry_path(const bk_gpu_cache *cache, const char *name, const char *key) {
  return bk_format(cache->ctx, "%s/%s-%016llx.bin", cache->folder, name,
                   (unsigned long long)bk_hash64(key, strlen(key)));
}

static bk_status remove_entries(bk_gpu_cache *cache, char **names, size_t count) {
  for (size_t i = 0; i < count; i++) {
    size_t length = strlen(names[i]);
    if (length > 4 && strcmp(names[i] + length - 4, ".bin") == 0)
      BK_TRY(bk_remove_member(cache->ctx, cache->folder, names[i]));
  }
  return BK_OK;
}

static bk_status make_folder(bk_gpu_cache *cache) {
  char **names;
  size_t count;
  BK_TRY(bk_mkdirs(cache->ctx, cache->folder));
  BK_TRY(bk_folder_names(cache->ctx, cache->folder, &names, &count));
  bk_status status = count > BK_GPU_CACHE_MAX_FILES ? remove_entries(cache, names, count) : BK_OK;
  bk_names_free(cache->ctx, names, count);
  cache->writable = status == BK_OK;
  return status;
}

/* ---- entries ---- */

/* Where the data begins in the whole file, or 0. */
static size_t data_of(const char *file, size_t bytes, const char *key) {
  header h;
  const size_t key_bytes = strlen(key);
  if (bytes < sizeof h + key_bytes) return 0;
  memcpy(&h, file, sizeof h);
  if (memcmp(h.magic, magic, sizeof magic) != 0 || h.key_bytes != key_bytes ||
      h.data_bytes != bytes - sizeof h - key_bytes)
    return 0;
  if (memcmp(file + sizeof h, key, key_bytes) != 0 ||
      h.hash != bk_hash64(file + sizeof h, bytes - sizeof h))
    return 0;
  return sizeof h + key_bytes;
}

bool bk_gpu_kept_read(bk_gpu_cache *cache, const char *name, const char *key, char **data,
                      size_t *bytes) {
  char *file = NULL;
  size_t size = 0, at = 0;
  held h;
  if (!cache->folder) return false;
  hold(cache->ctx, &h);
  char *path = entry_path(cache, name, key);
  bool read =
      path && bk_path_exists(cache->ctx, path) &&
      bk_file_read_all(cache->ctx, path, BK_GPU_CACHE_MAX_BYTES + KEY_MAX_BYTES + sizeof(header),
                       &file, &size) == BK_OK;
  let_go(cache->ctx, &h);
  if (read) at = data_of(file, size, key);
  if (read && !at)
    bk_debug(cache->ctx, "%s:%d: %s is not what was written there: made anew", cache->owner,
             cache->index, path);
  bk_free(cache->ctx, path);
  if (!at) {
    bk_free(cache->ctx, file);
    return false;
  }
  memmove(file, file + at, size - at);
  *data = file;
  *bytes = size - at;
  return true;
}

static char *make_entry(bk_context *ctx, const char *key, const void *data, size_t bytes,
                        size_t *size) {
  header h = {.key_bytes = strlen(key), .data_bytes = bytes};
  char *file = bk_alloc(ctx, sizeof h + h.key_bytes + bytes);
  if (!file) return NULL;
  memcpy(h.magic, magic, sizeof magic);
  memcpy(file + sizeof h, key, h.key_bytes);
  memcpy(file + sizeof h + h.key_bytes, data, bytes);
  h.hash = bk_hash64(file + sizeof h, h.key_bytes + bytes);
  memcpy(file, &h, sizeof h);
  *size = sizeof h + h.key_bytes + bytes;
  return file;
}

/* Not synced: what a crash leaves behind is seen by its hash. */
static bk_status write_file(bk_context *ctx, const char *path, const char *beside, const char *file,
                            size_t size) {
  bk_file *f;
  int rc = ctx->fs.open_write(ctx->fs.user, beside, false, &f);
  if (rc < 0) return bk_fail(ctx, BK_ERR_IO, "cannot create %s: %s", beside, strerror(-rc));
  int64_t done = ctx->fs.write(ctx->fs.user, f, file, size);
  rc = ctx->fs.close(ctx->fs.user, f);
  if (rc >= 0 && done == (int64_t)size) rc = ctx->fs.rename(ctx->fs.user, beside, path);
  else rc = done < 0 ? (int)done : rc < 0 ? rc : -EIO;
  if (rc >= 0) return BK_OK;
  (void)ctx->fs.remove(ctx->fs.user, beside);
  return bk_fail(ctx, BK_ERR_IO, "cannot write %s: %s", path, strerror(-rc));
}

static bk_status write_entry(bk_gpu_cache *cache, const char *name, const char *key,
                             const void *data, size_t bytes) {
  bk_context *ctx = cache->ctx;
  size_t size = 0;
  if (!cache->writable) BK_TRY(make_folder(cache));
  char *path = entry_path(cache, name, key);
  char *beside = path ? bk_format(ctx, "%s.%ld", path, (long)getpid()) : NULL;
  char *file = beside ? make_entry(ctx, key, data, bytes, &size) : NULL;
  bk_status status = file ? write_file(ctx, path, beside, file, size) : BK_ERR_MEMORY;
  bk_free(ctx, file);
  bk_free(ctx, beside);
  bk_free(ctx, path);
  return status;
}

void bk_gpu_kept_write(bk_gpu_cache *cache, const char *name, const char *key, const void *data,
                       size_t bytes) {
  held h;
  if (!cache->folder || bytes > BK_GPU_CACHE_MAX_BYTES || strlen(key) > KEY_MAX_BYTES) return;
  hold(cache->ctx, &h);
  bk_status status = write_entry(cache, name, key, data, bytes);
  let_go(cache->ctx, &h);
  if (status == BK_OK) return;
  bk_warn(
      cache->ctx,
      "%s:%d: compiled kernels are not kept for the next run: %s (BIRKHOFF_CACHE=off: not tried)",
      cache->owner, cache->index, h.first);
  switch_off(cache);
}
