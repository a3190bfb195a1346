/* Writing safetensors files. All tensors are declared first, because the header, which comes first
 * in the file, has to know the place of each; it is written when the first data arrives. The data
 * is then appended in the order of the declarations, in pieces of any size, so that a model is
 * never in memory twice. Small pieces are collected, large ones are written from where they lie.
 *
 * A file counts only after bk_st_finish has synced it. Until then it may be torn, and
 * bk_st_abandon removes it.
 *
 * The calls in their order: bk_st_create, bk_st_add_metadata and bk_st_add for everything that the
 * file will have, bk_st_write until all declared bytes are there, bk_st_finish; bk_st_abandon after
 * a failure of any of them. */
#include <stdlib.h>
#include <string.h>

#include "io/json_out.h"
#include "io/safetensors_priv.h"

/* A file that is being written; bk_st_finish or bk_st_abandon ends it. */
struct bk_st_writer {
  bk_context *ctx;
  char *path;
  bk_file *file;
  bk_json_out tensors, metadata; /* members of the two objects, comma separated */
  char **names;
  size_t count, capacity;
  char **keys;
  size_t n_keys, key_capacity;
  uint64_t declared, written; /* bytes of data */
  bool begun, synced;
  char *buffer; /* [room]: small pieces wait here, so that files are written by large ones */
  size_t room, held;
  const char *failed; /* "write": the call of the file access that failed; NULL: none did */
  int error;          /* its errno value, negated; 0: it took fewer bytes than it was given */
};

/* The least bytes of a write, but for the last of a file. */
#define WRITE_BYTES ((size_t)4 << 20)

static void free_names(bk_context *ctx, char **names, size_t count) {
  for (size_t i = 0; i < count; i++) bk_free(ctx, names[i]);
  bk_free(ctx, names);
}

/* The caller has closed the file before. */
static void writer_free(bk_st_writer *w) {
  bk_json_out_fini(&w->tensors);
  bk_json_out_fini(&w->metadata);
  free_names(w->ctx, w->names, w->count);
  free_names(w->ctx, w->keys, w->n_keys);
  bk_free(w->ctx, w->buffer);
  bk_free(w->ctx, w->path);
  bk_free(w->ctx, w);
}

/* An older file of that name is overwritten. */
bk_status bk_st_create(bk_context *ctx, const char *path, bk_st_writer **writer) {
  bk_st_writer *w = bk_alloc(ctx, sizeof *w);
  if (!w) return BK_ERR_MEMORY;
  w->ctx = ctx;
  bk_json_out_init(&w->tensors, ctx);
  bk_json_out_init(&w->metadata, ctx);
  w->path = bk_strdup(ctx, path);
  int rc = w->path ? ctx->fs.open_write(ctx->fs.user, path, false, &w->file) : 0;
  if (w->path && rc == 0) {
    *writer = w;
    return BK_OK;
  }
  bk_status status = w->path ? bk_fail(ctx, BK_ERR_IO, "cannot create %s: %s", path, strerror(-rc))
                             : BK_ERR_MEMORY;
  writer_free(w);
  return status;
}

/* Copies a name to the end of a list. */
static bk_status add_name(bk_context *ctx, char ***names, size_t *count, size_t *capacity,
                          const char *name) {
  BK_TRY(bk_grow(ctx, (void **)names, capacity, *count + 1, sizeof **names));
  char *copy = bk_strdup(ctx, name);
  if (!copy) return BK_ERR_MEMORY;
  (*names)[(*count)++] = copy;
  return BK_OK;
}

/* Declarations end with the first data. */
static bk_status check_open(bk_st_writer *w, const char *name) {
  if (!w->begun) return BK_OK;
  return bk_fail(w->ctx, BK_ERR_ARGUMENT, "%s: %s comes too late: data was already written",
                 w->path, name);
}

/* Members keep the order of the calls. A key that comes twice is found when the header is made. */
bk_status bk_st_add_metadata(bk_st_writer *w, const char *key, const char *value) {
  BK_TRY(check_open(w, key));
  BK_TRY(add_name(w->ctx, &w->keys, &w->n_keys, &w->key_capacity, key));
  if (w->n_keys > 1) bk_json_out_text(&w->metadata, ",");
  bk_json_out_string(&w->metadata, key);
  bk_json_out_text(&w->metadata, ":");
  bk_json_out_string(&w->metadata, value);
  return w->metadata.status;
}

/* The JSON of one tensor, without white space; offsets count from the beginning of the data. */
static void write_entry(bk_json_out *out, const bk_st_entry *e) {
  if (out->length) bk_json_out_text(out, ",");
  bk_json_out_string(out, e->name);
  bk_json_out_text(out, ":{\"dtype\":");
  bk_json_out_string(out, e->dtype_name);
  bk_json_out_text(out, ",\"shape\":[");
  for (int i = 0; i < e->ndim; i++) {
    if (i) bk_json_out_text(out, ",");
    bk_json_out_int(out, e->shape[i]);
  }
  bk_json_out_text(out, "],\"data_offsets\":[");
  bk_json_out_int(out, (int64_t)e->begin);
  bk_json_out_text(out, ",");
  bk_json_out_int(out, (int64_t)e->end);
  bk_json_out_text(out, "]}");
}

/* The end of a tensor that begins at `before`; false if a size is negative or the end leaves 63
 * bits. */
static bool tensor_end(uint64_t before, bk_dtype dtype, int ndim, const int64_t *shape,
                       uint64_t *end) {
  uint64_t bytes = bk_dtype_size(dtype);
  for (int i = 0; i < ndim; i++) {
    if (shape[i] < 0 || (shape[i] > 0 && bytes > (uint64_t)INT64_MAX / (uint64_t)shape[i]))
      return false;
    bytes *= (uint64_t)shape[i];
  }
  *end = before + bytes;
  return bytes <= (uint64_t)INT64_MAX - before;
}

/* The entry's text is made at once, and only the name is remembered, to find one that comes
 * twice. */
bk_status bk_st_add(bk_st_writer *w, const char *name, bk_dtype dtype, int ndim,
                    const int64_t *shape) {
  bk_st_entry e = {
      .name = (char *)(uintptr_t)name, .dtype = dtype, .ndim = ndim, .begin = w->declared};
  const char *type = bk_st_dtype_name(dtype);
  BK_TRY(check_open(w, name));
  if (!type || ndim < 0 || ndim > BK_ST_MAX_DIMS || strcmp(name, "__metadata__") == 0)
    return bk_fail(w->ctx, BK_ERR_ARGUMENT,
                   "%s: tensor %s of %d dimensions and dtype %s cannot be written", w->path, name,
                   ndim, bk_dtype_name(dtype));
  if (!tensor_end(w->declared, dtype, ndim, shape, &e.end))
    return bk_fail(w->ctx, BK_ERR_ARGUMENT, "%s: tensor %s: its shape is negative or overflows",
                   w->path, name);
  memcpy(e.dtype_name, type, strlen(type) + 1);
  if (ndim > 0) memcpy(e.shape, shape, (size_t)ndim * sizeof *shape);
  BK_TRY(add_name(w->ctx, &w->names, &w->count, &w->capacity, name));
  write_entry(&w->tensors, &e);
  w->declared = e.end;
  return w->tensors.status;
}

/* ---- data ---- */

/* Failures are remembered and not logged, for callers in other threads; the first one counts. */
static bool note_failure(bk_st_writer *w, const char *what, int error) {
  if (!w->failed) w->failed = what, w->error = error;
  return false;
}

/* For the thread of the context: what was remembered, in words. */
static bk_status report(const bk_st_writer *w) {
  if (!w->failed) return BK_OK;
  return bk_fail(w->ctx, BK_ERR_IO, "cannot %s %s: %s", w->failed, w->path,
                 w->error ? strerror(-w->error) : "fewer bytes were taken than given");
}

/* A full disk may take a part of the bytes. */
static bool write_bytes(bk_st_writer *w, const void *data, size_t bytes) {
  if (w->failed) return false;
  int64_t rc = w->ctx->fs.write(w->ctx->fs.user, w->file, data, bytes);
  if (rc >= 0 && (uint64_t)rc == bytes) return true;
  return note_failure(w, "write", rc < 0 ? (int)rc : 0);
}

static bool write_held(bk_st_writer *w) {
  size_t held = w->held;
  w->held = 0;
  return held == 0 || write_bytes(w, w->buffer, held);
}

/* What is large goes to the file from where it lies; the beginning of it may fill the buffer. */
static bool append(bk_st_writer *w, const char *data, size_t bytes) {
  while (bytes > 0) {
    if (w->held == 0 && bytes >= w->room) return write_bytes(w, data, bytes);
    size_t part = bytes < w->room - w->held ? bytes : w->room - w->held;
    memcpy(w->buffer + w->held, data, part);
    w->held += part;
    data += part;
    bytes -= part;
    if (w->held == w->room && !write_held(w)) return false;
  }
  return !w->failed;
}

static int compare_texts(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorts the names, which are needed for nothing else any more. */
static bk_status check_unique(bk_st_writer *w, char **names, size_t count) {
  if (count) qsort(names, count, sizeof *names, compare_texts);
  for (size_t i = 1; i < count; i++)
    if (strcmp(names[i - 1], names[i]) == 0)
      return bk_fail(w->ctx, BK_ERR_ARGUMENT, "%s: %s was declared twice", w->path, names[i]);
  return BK_OK;
}

/* 8 bytes of length, then the header padded with spaces so that data begins at a multiple of 8. */
static void make_header(bk_st_writer *w, bk_json_out *out) {
  bk_json_out_bytes(out, "\0\0\0\0\0\0\0\0", 8);
  bk_json_out_text(out, "{");
  if (w->n_keys) {
    bk_json_out_text(out, "\"__metadata__\":{");
    bk_json_out_bytes(out, w->metadata.data, w->metadata.length);
    bk_json_out_text(out, w->count ? "}," : "}");
  }
  if (w->count) bk_json_out_bytes(out, w->tensors.data, w->tensors.length);
  bk_json_out_text(out, "}");
  while (out->status == BK_OK && out->length % 8 != 0) bk_json_out_text(out, " ");
  if (out->status != BK_OK) return;
  uint64_t length = out->length - 8;
  for (int i = 0; i < 8; i++) out->data[i] = (char)(length >> 8 * i & 0xff);
}

/* The header goes into the buffer, whose size is that of the file where this is small. */
static bk_status hold_header(bk_st_writer *w, const bk_json_out *header) {
  if (header->length - 8 > BK_ST_HEADER_MAX)
    return bk_fail(w->ctx, BK_ERR_ARGUMENT, "%s: too many tensors: the header has %zu bytes",
                   w->path, header->length - 8);
  w->room = w->declared < WRITE_BYTES ? header->length + (size_t)w->declared : WRITE_BYTES;
  if (w->room > WRITE_BYTES) w->room = WRITE_BYTES;
  if (!(w->buffer = bk_alloc(w->ctx, w->room))) return BK_ERR_MEMORY;
  return append(w, header->data, header->length) ? BK_OK : report(w);
}

/* Nothing that follows takes memory. */
bk_status bk_st_begin(bk_st_writer *w) {
  if (w->begun) return BK_OK;
  BK_TRY(check_unique(w, w->names, w->count));
  BK_TRY(check_unique(w, w->keys, w->n_keys));
  bk_json_out header;
  bk_json_out_init(&header, w->ctx);
  make_header(w, &header);
  bk_status status = header.status;
  if (status == BK_OK) status = hold_header(w, &header);
  bk_json_out_fini(&header);
  w->begun = status == BK_OK;
  return status;
}

bool bk_st_put(bk_st_writer *w, const void *data, size_t bytes) {
  w->written += bytes;
  return append(w, data, bytes);
}

bool bk_st_sync(bk_st_writer *w) {
  if (w->failed || !write_held(w)) return false;
  int rc = w->ctx->fs.sync(w->ctx->fs.user, w->file);
  w->synced = rc >= 0;
  return w->synced || note_failure(w, "sync", rc);
}

/* Data is counted, so that a file never has more of it than its header says. Pieces need not end
 * where tensors do. */
bk_status bk_st_write(bk_st_writer *w, const void *data, size_t bytes) {
  BK_TRY(bk_st_begin(w));
  if (bytes > w->declared - w->written)
    return bk_fail(w->ctx, BK_ERR_ARGUMENT, "%s: more data than the %llu bytes that were declared",
                   w->path, (unsigned long long)w->declared);
  return bk_st_put(w, data, bytes) ? BK_OK : report(w);
}

/* Frees the writer on success only: after a failure the caller still has to call bk_st_abandon. */
bk_status bk_st_finish(bk_st_writer *w) {
  BK_TRY(bk_st_begin(w));
  BK_TRY(report(w));
  if (w->written != w->declared)
    return bk_fail(w->ctx, BK_ERR_ARGUMENT, "%s: %llu of %llu declared bytes were written", w->path,
                   (unsigned long long)w->written, (unsigned long long)w->declared);
  if (!w->synced && !bk_st_sync(w)) return report(w);
  int rc = w->ctx->fs.close(w->ctx->fs.user, w->file);
  w->file = NULL;
  if (rc < 0) return bk_fail(w->ctx, BK_ERR_IO, "cannot close %s: %s", w->path, strerror(-rc));
  writer_free(w);
  return BK_OK;
}

/* Removes the file. NULL is allowed. */
void bk_st_abandon(bk_st_writer *w) {
  if (!w) return;
  if (w->file) w->ctx->fs.close(w->ctx->fs.user, w->file);
  w->ctx->fs.remove(w->ctx->fs.user, w->path);
  writer_free(w);
}
