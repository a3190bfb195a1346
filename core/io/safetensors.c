/* Reading safetensors files; the parser of the header's text is in safetensors_header.c. Data is
 * read on demand, at its place, and never mapped: reading goes through the context's file access,
 * which may not be a file system at all.
 *
 * A reader holds its files open until bk_st_close. Entries and the strings that are handed out
 * belong to the reader.
 *
 * A file is 8 bytes with the length of the header, the header, and the data of all tensors end to
 * end. Offsets in a header count from the beginning of the data (bk_st_file.data_start). Nothing of
 * a file is trusted: every length is compared with the file's own before it is used. */
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "io/recognise.h"
#include "io/safetensors_priv.h"

/* ---- opening ---- */

/* A file may have become shorter since its length was read. */
static bk_status read_failed(const bk_st_file *r, const char *what, int64_t got, size_t bytes) {
  if (got < 0)
    return bk_fail(r->ctx, BK_ERR_IO, "%s: %s cannot be read: %s", r->path, what,
                   strerror((int)-got));
  return bk_fail(r->ctx, BK_ERR_IO, "%s: %s cannot be read: the file ended %llu bytes early",
                 r->path, what, (unsigned long long)(bytes - (uint64_t)got));
}

static bk_status read_bytes(const bk_st_file *r, uint64_t offset, void *dst, size_t bytes,
                            const char *what) {
  int64_t got = r->ctx->fs.read_at(r->ctx->fs.user, r->file, offset, dst, bytes);
  return got >= 0 && (uint64_t)got == bytes ? BK_OK : read_failed(r, what, got, bytes);
}

/* Looks at the first bytes before they are taken for the length of a header, so that a user who
 * names the wrong file learns what it is. */
static bk_status check_kind(const bk_st_file *r, uint64_t file_bytes) {
  unsigned char head[BK_RECOGNISE_HEAD];
  char words[BK_RECOGNISE_TEXT];
  size_t count = file_bytes < sizeof head ? (size_t)file_bytes : sizeof head;
  BK_TRY(read_bytes(r, 0, head, count, "the beginning"));
  if (!bk_recognise(head, count, file_bytes, BK_WANTED_TENSORS, words, sizeof words)) return BK_OK;
  return bk_fail(r->ctx, BK_ERR_DATA, "%s: not a safetensors file: it is %s", r->path, words);
}

/* 8 bytes, the lowest first. The limit of 100 MB is the format's own. */
static bk_status read_header_length(bk_st_file *r, uint64_t file_bytes, uint64_t *length) {
  unsigned char raw[8];
  if (file_bytes < sizeof raw)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: not a safetensors file: it has %llu bytes, fewer than the 8 of a "
                   "header length",
                   r->path, (unsigned long long)file_bytes);
  BK_TRY(check_kind(r, file_bytes));
  BK_TRY(read_bytes(r, 0, raw, sizeof raw, "the header length"));
  uint64_t n = 0;
  for (int i = 7; i >= 0; i--) n = n << 8 | raw[i];
  if (n > BK_ST_HEADER_MAX)
    return bk_fail(r->ctx, BK_ERR_DATA,
                   "%s: not a safetensors file: a header of %llu bytes, at most %llu are allowed",
                   r->path, (unsigned long long)n, (unsigned long long)BK_ST_HEADER_MAX);
  if (n > file_bytes - sizeof raw)
    return bk_fail(
        r->ctx, BK_ERR_DATA,
        "%s: the header has %llu bytes, the file only %llu after its length (truncated?)", r->path,
        (unsigned long long)n, (unsigned long long)(file_bytes - sizeof raw));
  *length = n;
  return BK_OK;
}

static bk_status file_size(const bk_st_file *r, uint64_t *bytes) {
  int rc = r->ctx->fs.size(r->ctx->fs.user, r->file, bytes);
  return rc < 0
             ? bk_fail(r->ctx, BK_ERR_IO, "%s: its size cannot be had: %s", r->path, strerror(-rc))
             : BK_OK;
}

/* The whole header is read into memory and parsed there; its length was checked against the
 * file's. */
static bk_status read_header(bk_st_file *r, bk_st_table *table) {
  uint64_t file_bytes = 0, length = 0;
  BK_TRY(file_size(r, &file_bytes));
  BK_TRY(read_header_length(r, file_bytes, &length));
  char *text = bk_alloc(r->ctx, (size_t)length + 1);
  if (!text) return BK_ERR_MEMORY;
  r->data_start = 8 + length;
  bk_status status = read_bytes(r, 8, text, (size_t)length, "the header");
  if (status == BK_OK)
    status = bk_st_table_parse(table, r->path, text, (size_t)length, file_bytes - r->data_start);
  bk_free(r->ctx, text);
  return status;
}

/* On failure close_file frees what there is. */
static bk_status open_file(bk_st_file *r, bk_context *ctx, const char *path) {
  r->ctx = ctx;
  r->path = bk_strdup(ctx, path);
  return r->path ? bk_file_open(ctx, path, &r->file) : BK_ERR_MEMORY;
}

static void close_file(bk_st_file *r) {
  if (r->file) r->ctx->fs.close(r->ctx->fs.user, r->file);
  bk_free(r->ctx, r->path);
}

/* `path` is what messages about the whole begin with. */
bk_status bk_st_reader_create(bk_context *ctx, const char *path, bk_st_reader **reader) {
  bk_st_reader *r = bk_alloc(ctx, sizeof *r);
  if (!r) return BK_ERR_MEMORY;
  r->ctx = r->table.ctx = ctx;
  r->path = bk_strdup(ctx, path);
  if (r->path) *reader = r;
  else bk_st_close(r);
  return r->path ? BK_OK : BK_ERR_MEMORY;
}

/* The file is counted at once, so that bk_st_close closes it even if reading it fails. */
bk_status bk_st_reader_add(bk_st_reader *r, const char *path, bk_st_table *table) {
  BK_TRY(bk_grow(r->ctx, (void **)&r->files, &r->file_capacity, r->n_files + 1, sizeof *r->files));
  bk_st_file *file = &r->files[r->n_files];
  *file = (bk_st_file){0};
  int index = (int)r->n_files++;
  BK_TRY(open_file(file, r->ctx, path));
  BK_TRY(read_header(file, table));
  for (size_t i = 0; i < table->count; i++) table->entries[i].file = index;
  return BK_OK;
}

/* The tensors go straight into the reader's table, since there are no others. */
bk_status bk_st_open(bk_context *ctx, const char *path, bk_st_reader **reader) {
  bk_st_reader *r = NULL;
  BK_TRY(bk_st_reader_create(ctx, path, &r));
  bk_status status = bk_st_reader_add(r, path, &r->table);
  if (status == BK_OK) *reader = r;
  else bk_st_close(r);
  return status;
}

/* Entries and names that were handed out end with it. */
void bk_st_close(bk_st_reader *reader) {
  if (!reader) return;
  bk_context *ctx = reader->ctx;
  if (reader->parts) bk_st_slices_free(&reader->whole);
  bk_st_close(reader->parts);
  for (size_t i = 0; i < reader->n_files; i++) close_file(&reader->files[i]);
  bk_free(ctx, reader->files);
  bk_st_table_fini(&reader->table);
  bk_free(ctx, reader->path);
  bk_free(ctx, reader);
}

/* Whether the file is as long as its own header says. A length beyond the format's limit does not
 * mean that something is missing; the code that reads the file will refuse it. */
static bk_status look_at_length(bk_st_file *r, bool *whole) {
  unsigned char raw[8];
  uint64_t file_bytes = 0, n = 0;
  BK_TRY(file_size(r, &file_bytes));
  *whole = file_bytes >= sizeof raw;
  if (!*whole) return BK_OK;
  BK_TRY(read_bytes(r, 0, raw, sizeof raw, "the header length"));
  for (int i = 7; i >= 0; i--) n = n << 8 | raw[i];
  if (n > BK_ST_HEADER_MAX) return BK_OK;
  /* Zeros are what a crash leaves of a file whose length was written and whose data was not. */
  *whole = n > 0 && n <= file_bytes - sizeof raw;
  if (!*whole) return BK_OK;
  char *text = bk_alloc(r->ctx, (size_t)n + 1);
  if (!text) return BK_ERR_MEMORY;
  bk_status status = read_bytes(r, 8, text, (size_t)n, "the header");
  *whole = text[0] == '{' && bk_st_header_extent(text, (size_t)n) <= file_bytes - sizeof raw - n;
  bk_free(r->ctx, text);
  return status;
}

/* *whole means something on success only. */
bk_status bk_st_file_whole(bk_context *ctx, const char *path, bool *whole) {
  bk_st_file file = {0};
  bk_status status = open_file(&file, ctx, path);
  if (status == BK_OK) status = look_at_length(&file, whole);
  close_file(&file);
  return status;
}

/* ---- looking ---- */

int bk_st_count(const bk_st_reader *reader) { return (int)reader->table.count; }

const bk_st_entry *bk_st_get(const bk_st_reader *reader, int i) {
  return i >= 0 && (size_t)i < reader->table.count ? &reader->table.entries[i] : NULL;
}

static int compare_key(const void *key, const void *element) {
  return strcmp(key, (*(const bk_st_entry *const *)element)->name);
}

/* The name is found by bisection, since a checkpoint may have tens of thousands of tensors. */
const bk_st_entry *bk_st_find(const bk_st_reader *reader, const char *name) {
  const bk_st_table *t = &reader->table;
  if (t->count == 0) return NULL;
  const bk_st_entry **found =
      bsearch(name, (const void *)t->by_name, t->count, sizeof *t->by_name, compare_key);
  return found ? *found : NULL;
}

/* The pairs are few, so that they are searched one by one. */
const char *bk_st_metadata(const bk_st_reader *reader, const char *key) {
  for (size_t i = 0; i < reader->table.n_metadata; i++)
    if (strcmp(reader->table.metadata[i].key, key) == 0) return reader->table.metadata[i].value;
  return NULL;
}

const char *bk_st_path(const bk_st_reader *reader) { return reader->path; }

/* A reader of shards has several files. */
static const bk_st_file *file_of(const bk_st_reader *reader, const bk_st_entry *entry) {
  return &reader->files[entry->file];
}

const char *bk_st_entry_path(const bk_st_reader *reader, const bk_st_entry *entry) {
  return reader->parts ? reader->path : file_of(reader, entry)->path;
}

/* F16 is known by its name alone, since it has no bk_dtype. */
static bool is_f16(const bk_st_entry *entry) { return strcmp(entry->dtype_name, "F16") == 0; }

size_t bk_st_element_size(const bk_st_entry *entry) {
  return is_f16(entry) ? 2 : bk_dtype_size(entry->dtype);
}

bool bk_st_is_float(const bk_st_entry *entry) {
  return is_f16(entry) || bk_dtype_is_float(entry->dtype);
}

/* ---- data ---- */

/* `offset` counts bytes from the beginning of the tensor. */
static bk_status read_data(const bk_st_reader *reader, const bk_st_entry *entry, uint64_t offset,
                           void *dst, size_t bytes) {
  if (bytes == 0) return BK_OK;
  if (reader->parts) return bk_st_read_parts(reader, entry, offset, dst, bytes);
  const bk_st_file *file = file_of(reader, entry);
  return read_bytes(file, file->data_start + entry->begin + offset, dst, bytes, entry->name);
}

/* The whole tensor is read, whose size the caller must know: a wrong one is a fault of the
 * caller's. */
bk_status bk_st_read(bk_st_reader *reader, const bk_st_entry *entry, void *dst, size_t bytes) {
  uint64_t size = entry->end - entry->begin;
  if (bytes != size)
    return bk_fail(reader->ctx, BK_ERR_ARGUMENT, "%s: tensor %s has %llu bytes, %zu were asked for",
                   bk_st_entry_path(reader, entry), entry->name, (unsigned long long)size, bytes);
  return read_data(reader, entry, 0, dst, bytes);
}

/* A dtype that cannot be loaded has no element size, and its tensors can be listed only. */
static bk_status check_range(const bk_st_reader *reader, const bk_st_entry *entry, int64_t first,
                             int64_t count) {
  size_t width = bk_st_element_size(entry);
  if (width == 0)
    return bk_fail(reader->ctx, BK_ERR_DATA, "%s: tensor %s: dtype %s cannot be loaded",
                   bk_st_entry_path(reader, entry), entry->name, entry->dtype_name);
  int64_t elements = (int64_t)((entry->end - entry->begin) / width);
  if (first < 0 || count < 0 || first > elements || count > elements - first)
    return bk_fail(reader->ctx, BK_ERR_ARGUMENT,
                   "%s: tensor %s has %lld elements, %lld from %lld were asked for",
                   bk_st_entry_path(reader, entry), entry->name, (long long)elements,
                   (long long)count, (long long)first);
  return BK_OK;
}

bk_status bk_st_read_range(bk_st_reader *reader, const bk_st_entry *entry, int64_t first,
                           int64_t count, void *dst) {
  size_t width = bk_st_element_size(entry);
  BK_TRY(check_range(reader, entry, first, count));
  return read_data(reader, entry, (uint64_t)first * width, dst, (size_t)count * width);
}

/* The range was checked by whoever knows it: nothing can be logged here. */
int64_t bk_st_read_stored(const bk_st_reader *reader, const bk_st_entry *entry, int64_t first,
                          int64_t count, void *dst) {
  const bk_st_file *f = file_of(reader, entry);
  size_t width = bk_st_element_size(entry);
  uint64_t offset = f->data_start + entry->begin + (uint64_t)first * width;
  return f->ctx->fs.read_at(f->ctx->fs.user, f->file, offset, dst, (size_t)count * width);
}

bk_status bk_st_read_failed(const bk_st_reader *reader, const bk_st_entry *entry, int64_t got,
                            size_t bytes) {
  return read_failed(file_of(reader, entry), entry->name, got, bytes);
}

/* F16 has no bk_dtype, since no tensor of the library has it, and is yet read from files. */
static double element_value(const char *p, bk_dtype dtype) {
  uint16_t half;
  if (dtype != BK_NONE) return bk_dtype_load(dtype, p);
  memcpy(&half, p, sizeof half);
  return bk_f16_to_f32(half);
}

/* The stored elements, which are no wider than a double, are read to the end of dst and widened in
 * place from the front: element i is written to bytes 8 i to 8 i + 8, and what is still to be read
 * lies at or behind them. */
bk_status bk_st_read_f64(bk_st_reader *reader, const bk_st_entry *entry, int64_t first,
                         int64_t count, double *dst) {
  size_t width = bk_st_element_size(entry);
  BK_TRY(check_range(reader, entry, first, count));
  const char *stored = (const char *)dst + (size_t)count * (sizeof *dst - width);
  BK_TRY(bk_st_read_range(reader, entry, first, count,
                          (char *)dst + (size_t)count * (sizeof *dst - width)));
  for (int64_t i = 0; i < count; i++) {
    double value = element_value(stored + (size_t)i * width, entry->dtype);
    memcpy(dst + i, &value, sizeof value);
  }
  return BK_OK;
}
