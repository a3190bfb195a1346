/* Files of token data. They are not held in memory: what is wanted is read from where it lies, so
 * that a file may be larger than the memory, and training begins at once. A mapping would do the
 * same; but where a mapped file becomes shorter, a signal ends the program, and a context may have
 * files that are not the operating system's.
 *
 * On opening, the files are looked at. Parts of up to WHOLE_PART bytes are read whole, as long as
 * they are WHOLE_TOTAL together: every token is checked against the vocabulary, and all contents
 * go into the hash. Of the others blocks are read, at fixed places. Whatever was checked is checked
 * again when it is read, because a file may have changed meanwhile and no kernel looks at ids.
 *
 * The first KEPT_OPEN files stay open. Others are opened for each reading, because corpora have
 * more files than a process may have open. */
#include <string.h>

#include "io/dataset_priv.h"
#include "io/recognise.h"

#define BIN_VAL_MIN 2 /* tokens of a validation part; fewer predict nothing */
#define KEPT_OPEN 16
#define WHOLE_PART ((uint64_t)16 << 20)
#define WHOLE_TOTAL ((uint64_t)256 << 20)
#define BLOCK ((size_t)64 << 10) /* bytes read at a time, a multiple of every width */
/* Blocks that are looked at: of one file, and of all (but two of each in any case). */
#define FILE_BLOCKS 64
#define TOTAL_BLOCKS 4096
/* Bytes of all files' beginnings that tell what they are (but BLOCK of each in any case). */
#define TOTAL_BEGINNINGS ((size_t)16 << 20)

/* This describes a file while it is opened, and which part of it the split takes. */
typedef struct source {
  bk_context *ctx;
  const char *path;
  const bk_dataset_options *options;
  bk_file *file;
  unsigned char *block; /* [BLOCK] */
  uint64_t size;
  int width;
  uint64_t begin, end; /* bytes of the file that the split takes */
  uint64_t kept_back;  /* bytes behind them */
  bool ends;
  size_t beginning;    /* bytes that tell what it is */
  int blocks;          /* to look at where the part is not read whole */
  uint64_t read_whole; /* bytes of the files before that were */
} source;

/* The name alone decides: .bin files are streams of tokens, all others are text. */
bool bk_path_is_bin(const char *path) {
  size_t length = strlen(path);
  if (length < 4) return false;
  const char *end = path + length - 4;
  return end[0] == '.' && (end[1] == 'b' || end[1] == 'B') && (end[2] == 'i' || end[2] == 'I') &&
         (end[3] == 'n' || end[3] == 'N');
}

/* Bytes of a stored token. data_dtype: 0 auto, 1 uint16, 2 uint32, as the key's choices are
 * numbered. */
static int token_width(const char *path, const bk_dataset_options *o) {
  if (!bk_path_is_bin(path)) return 1;
  if (o->data_dtype == 0) return o->vocab_size <= 65536 ? 2 : 4;
  return o->data_dtype == 1 ? 2 : 4;
}

/* Bytes at the end of a file of `size` bytes that are its validation part. It is the last tenth,
 * rounded down to whole tokens. Of a text a tenth of its bytes is taken, wherever that cuts a word
 * or a character. */
static uint64_t validation_bytes(const source *s) {
  if (s->width == 1) return s->size / 10;
  uint64_t tokens = s->options->whole_bin ? 0 : s->size / (uint64_t)s->width / 10;
  return tokens < BIN_VAL_MIN ? 0 : tokens * (uint64_t)s->width;
}

/* The part of the file that the split takes. begin, end and kept_back count bytes of the file; both
 * ends are whole tokens. */
static bk_status choose_part(source *s) {
  if (s->size % (uint64_t)s->width != 0)
    return bk_fail(s->ctx, BK_ERR_DATA,
                   "%s: %llu bytes are not a whole number of uint%d tokens (data_dtype)", s->path,
                   (unsigned long long)s->size, 8 * s->width);
  uint64_t val = validation_bytes(s);
  bool takes_end = s->options->split != BK_SPLIT_VAL || val > 0;
  s->begin = s->options->split == BK_SPLIT_VAL ? s->size - val : 0;
  s->end = s->options->split == BK_SPLIT_TRAIN ? s->size - val : s->size;
  s->kept_back = s->size - s->end;
  s->ends = s->width == 1 && s->end == s->size && takes_end;
  return BK_OK;
}

/* ---- looking at a file when it is opened ---- */

/* Fails where the file has fewer bytes than were seen before. */
static bk_status read_at(const source *s, uint64_t begin, void *dst, size_t bytes) {
  bk_context *ctx = s->ctx;
  int64_t got = ctx->fs.read_at(ctx->fs.user, s->file, begin, dst, bytes);
  if (got < 0) return bk_fail(ctx, BK_ERR_IO, "cannot read %s: %s", s->path, strerror((int)-got));
  if ((uint64_t)got != bytes)
    return bk_fail(ctx, BK_ERR_IO, "cannot read %s: it became shorter while it was read", s->path);
  return BK_OK;
}

/* The name of a file says what is in it, text or a stream; a sample of its beginning must not say
 * otherwise. */
static bk_status check_kind(const source *s) {
  static const bk_wanted wanted[] = {
      [1] = BK_WANTED_TEXT, [2] = BK_WANTED_UINT16, [4] = BK_WANTED_UINT32};
  bk_context *ctx = s->ctx;
  bk_wanted kind = wanted[s->width];
  char words[BK_RECOGNISE_TEXT];
  if (kind == BK_WANTED_UINT16 && s->options->data_dtype != 0) kind = BK_WANTED_UINT16_SAID;
  size_t count = s->size < s->beginning ? (size_t)s->size : s->beginning;
  if (s->size == 0) return bk_fail(ctx, BK_ERR_DATA, "%s: the file is empty", s->path);
  unsigned char *sample = bk_alloc(ctx, count);
  if (!sample) return BK_ERR_MEMORY;
  bk_status status = read_at(s, 0, sample, count);
  if (status == BK_OK && bk_recognise(sample, count, s->size, kind, words, sizeof words))
    status = bk_fail(ctx, BK_ERR_DATA, "%s is %s", s->path, words);
  bk_free(ctx, sample);
  return status;
}

/* .bin files are little-endian, whatever the machine. */
static int64_t token_at(const unsigned char *bytes, int width, size_t i) {
  const unsigned char *p = bytes + i * (size_t)width;
  if (width == 1) return p[0];
  if (width == 2) return p[0] | p[1] << 8;
  return (int64_t)((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                   (uint32_t)p[3] << 24);
}

/* If the whole stream fits the vocabulary in another width or byte order, the words say so; of a
 * part that is not read whole the block with the wrong token stands for it. */
static bk_status judge_width(const source *s, bool sampled, size_t block_bytes, char *words,
                             size_t room) {
  bk_context *ctx = s->ctx;
  int64_t vocab = s->options->vocab_size;
  if (s->width == 1 || s->begin != 0) return BK_OK;
  if (sampled) {
    static const char of_sample[] = "; of a sample, ";
    memcpy(words, of_sample, sizeof of_sample);
    if (!bk_recognise_width(s->block, block_bytes, s->width, vocab, words + sizeof of_sample - 1,
                            room - sizeof of_sample + 1))
      words[0] = '\0';
    return BK_OK;
  }
  size_t bytes = (size_t)s->end;
  unsigned char *all = bk_alloc(ctx, bytes);
  if (!all) return BK_ERR_MEMORY;
  bk_status status = read_at(s, 0, all, bytes);
  memcpy(words, "; ", 3);
  if (status != BK_OK || !bk_recognise_width(all, bytes, s->width, vocab, words + 2, room - 2))
    words[0] = '\0';
  bk_free(ctx, all);
  return status;
}

/* Fails for a token of the block, which holds `bytes` bytes from byte `at` of the file on, that is
 * not below vocab_size. */
static bk_status check_block(const source *s, bool sampled, uint64_t at, size_t bytes) {
  size_t width = (size_t)s->width, count = bytes / width;
  int64_t vocab = s->options->vocab_size;
  char words[BK_RECOGNISE_TEXT + 16] = "";
  for (size_t i = 0; i < count; i++) {
    int64_t token = token_at(s->block, s->width, i);
    if (token < vocab) continue;
    BK_TRY(judge_width(s, sampled, bytes, words, sizeof words));
    return bk_fail(s->ctx, BK_ERR_DATA,
                   "%s: token %lld at %s %llu is not below vocab_size (%lld)%s", s->path,
                   (long long)token, width == 1 ? "byte" : "token",
                   (unsigned long long)(at / width + i), (long long)vocab, words);
  }
  return BK_OK;
}

/* Block k of `blocks`: the first begins the part, the last ends it, the others lie between at equal
 * distances. */
static uint64_t block_place(const source *s, int k, int blocks) {
  uint64_t room = s->end - s->begin - BLOCK, gaps = (uint64_t)blocks - 1, n = (uint64_t)k;
  uint64_t at = room / gaps * n + room % gaps * n / gaps;
  return s->begin + at - at % (uint64_t)s->width;
}

/* Reads the part, or the blocks that stand for it, and hashes what it reads. */
static bk_status scan(const source *s, bool sampled, bool check, uint64_t *hash) {
  uint64_t h = BK_HASH64_BEGIN, bytes = s->end - s->begin;
  uint64_t blocks = sampled ? (uint64_t)s->blocks : bytes / BLOCK + (bytes % BLOCK != 0);
  for (uint64_t k = 0; k < blocks; k++) {
    uint64_t at = sampled ? block_place(s, (int)k, s->blocks) : s->begin + k * BLOCK;
    size_t n = s->end - at < BLOCK ? (size_t)(s->end - at) : BLOCK;
    BK_TRY(read_at(s, at, s->block, n));
    if (check) BK_TRY(check_block(s, sampled, at, n));
    h = bk_hash64_add(h, s->block, n);
  }
  *hash = bk_hash64_end(h);
  return BK_OK;
}

/* The end token is not stored with a text, so that it is checked by itself. */
static bk_status check_end(const source *s) {
  if (!s->ends || s->options->vocab_size > BK_TOKEN_END) return BK_OK;
  return bk_fail(s->ctx, BK_ERR_DATA,
                 "%s: the token that ends a text, %d, is not below vocab_size (%lld)", s->path,
                 BK_TOKEN_END, (long long)s->options->vocab_size);
}

/* What is smaller than its sample would be is read whole in any case. */
static bool too_large(const source *s, uint64_t bytes) {
  bool room = s->read_whole + bytes <= WHOLE_TOTAL;
  return bytes > WHOLE_PART || (!room && bytes > (uint64_t)s->blocks * BLOCK);
}

/* Only text has a size in bytes, from which losses per byte are computed: a single stream among
 * the files makes that of the whole data unknown (-1). A file of which the split takes nothing has
 * no segment, but its place in the list of files. */
static bk_status add_part(bk_dataset *ds, source *s, int number) {
  uint64_t bytes = s->end - s->begin, contents = bk_hash64_end(BK_HASH64_BEGIN);
  if (bytes > (uint64_t)INT64_MAX / 2)
    return bk_fail(ds->ctx, BK_ERR_MEMORY, "%s: %llu bytes are more than can be addressed", s->path,
                   (unsigned long long)bytes);
  bk_segment g = {.first = ds->tokens,
                  .width = s->width,
                  .ends = s->ends,
                  .file = number,
                  .begin = s->begin,
                  .count = (int64_t)(bytes / (uint64_t)s->width) + s->ends,
                  .sampled = too_large(s, bytes)};
  BK_TRY(scan(s, g.sampled, true, &contents));
  ds->files[number] = (bk_data_file){s->size, bk_segment_hash(0, &g, contents, s->size)};
  if (bytes == 0) return BK_OK;
  BK_TRY(check_end(s));
  if (!g.sampled) s->read_whole += bytes;
  ds->segments[ds->n_segments++] = g;
  ds->tokens += g.count;
  ds->bytes = s->width > 1 || ds->bytes < 0 ? -1 : ds->bytes + (int64_t)bytes;
  ds->hash = bk_segment_hash(ds->hash, &g, contents, s->size);
  ds->parted |= s->kept_back > 0;
  ds->kept_back += s->width > 1 ? (int64_t)(s->kept_back / (uint64_t)s->width) : 0;
  return BK_OK;
}

/* The contents are looked at before the split is cut: a compressed text must not be cut into
 * tenths. */
static bk_status look_at(bk_dataset *ds, source *s, int number) {
  bk_context *ctx = s->ctx;
  int rc = ctx->fs.size(ctx->fs.user, s->file, &s->size);
  if (rc < 0) return bk_fail(ctx, BK_ERR_IO, "cannot look at %s: %s", s->path, strerror(-rc));
  BK_TRY(check_kind(s));
  BK_TRY(choose_part(s));
  return add_part(ds, s, number);
}

static bk_status add_file(bk_dataset *ds, source *s, const char *path, int number) {
  s->path = path;
  s->width = token_width(path, s->options);
  if (!(ds->sources[number].path = bk_strdup(ds->ctx, path))) return BK_ERR_MEMORY;
  BK_TRY(bk_file_open(ds->ctx, path, &s->file));
  bk_status status = look_at(ds, s, number);
  if (status == BK_OK && number < KEPT_OPEN) ds->sources[number].file = s->file;
  else ds->ctx->fs.close(ds->ctx->fs.user, s->file);
  return status;
}

/* Of many files less of each is looked at, so that training begins soon. */
static void share_out(source *s, int n_files) {
  int blocks = TOTAL_BLOCKS / n_files;
  size_t beginning = TOTAL_BEGINNINGS / (size_t)n_files;
  s->blocks = blocks < 2 ? 2 : blocks > FILE_BLOCKS ? FILE_BLOCKS : blocks;
  s->beginning = beginning > BK_RECOGNISE_SAMPLE ? BK_RECOGNISE_SAMPLE
                 : beginning < BLOCK             ? BLOCK
                                                 : beginning - beginning % 8;
}

bk_status bk_dataset_add_files(bk_dataset *ds, const char *const *paths, int n_paths,
                               const bk_dataset_options *options) {
  bk_context *ctx = ds->ctx;
  size_t n = (size_t)n_paths;
  ds->sources = bk_alloc_array(ctx, n, sizeof *ds->sources);
  if (!ds->sources) return BK_ERR_MEMORY;
  ds->n_files = n_paths;
  ds->files = bk_alloc_array(ctx, n, sizeof *ds->files);
  ds->segments = bk_alloc_array(ctx, n, sizeof *ds->segments);
  source s = {.ctx = ctx, .options = options};
  share_out(&s, n_paths);
  s.block = bk_alloc(ctx, BLOCK);
  bk_status status = ds->files && ds->segments && s.block ? BK_OK : BK_ERR_MEMORY;
  for (int i = 0; i < n_paths && status == BK_OK; i++) status = add_file(ds, &s, paths[i], i);
  bk_free(ctx, s.block);
  return status;
}

void bk_dataset_free_files(bk_dataset *ds) {
  for (int i = 0; i < ds->n_files; i++) {
    if (ds->sources[i].file) ds->ctx->fs.close(ds->ctx->fs.user, ds->sources[i].file);
    bk_free(ds->ctx, ds->sources[i].path);
  }
  bk_free(ds->ctx, ds->sources);
  bk_free(ds->ctx, ds->files);
}

/* ---- reading ---- */

/* The calls are those that a thread of the library's own may make: nothing is allocated from the
 * context, and there are no messages. */
static bool open_again(const bk_dataset *ds, bk_data_fault *fault, bk_file **file) {
  const bk_fs *fs = &ds->ctx->fs;
  const char *path = ds->sources[fault->file].path;
  int kind = fs->kind(fs->user, path);
  if (kind > 0) fault->kind = BK_DATA_NOT_REGULAR;
  else if ((fault->error = kind < 0 ? kind : fs->open_read(fs->user, path, file)) < 0)
    fault->kind = BK_DATA_CANNOT_OPEN;
  return fault->kind == BK_DATA_FINE;
}

/* The size comes first: a file that grew has another split, and its old part may have changed as
 * well. */
static bool read_same(const bk_dataset *ds, bk_file *file, uint64_t at, void *dst, size_t bytes,
                      bk_data_fault *fault) {
  const bk_fs *fs = &ds->ctx->fs;
  int rc = fs->size(fs->user, file, &fault->now);
  if (rc < 0) {
    fault->kind = BK_DATA_CANNOT_LOOK;
    fault->error = rc;
  } else if (fault->now != ds->files[fault->file].bytes) {
    fault->kind = BK_DATA_OTHER_SIZE;
  } else {
    int64_t got = fs->read_at(fs->user, file, at, dst, bytes);
    if (got < 0) fault->error = (int)got;
    if (got < 0) fault->kind = BK_DATA_CANNOT_READ;
    else if ((uint64_t)got != bytes) fault->kind = BK_DATA_SHORT;
  }
  return fault->kind == BK_DATA_FINE;
}

/* The stored tokens are read into the end of `out` and widened from its beginning on: what is
 * written never overtakes what is still to be read. */
bool bk_segment_read(const bk_dataset *ds, const bk_segment *g, int64_t i, int64_t count,
                     int32_t *out, bk_data_fault *fault) {
  size_t width = (size_t)g->width, bytes = (size_t)count * width;
  unsigned char *stored = (unsigned char *)out + (size_t)count * sizeof *out - bytes;
  bk_file *file = ds->sources[g->file].file;
  bool kept = file != NULL;
  *fault = (bk_data_fault){.file = g->file, .width = g->width};
  if (!kept && !open_again(ds, fault, &file)) return false;
  bool read = read_same(ds, file, g->begin + (uint64_t)i * width, stored, bytes, fault);
  if (!kept) ds->ctx->fs.close(ds->ctx->fs.user, file);
  for (int64_t k = 0; k < count && read; k++) {
    int64_t token = token_at(stored, g->width, (size_t)k);
    if (token >= ds->vocab) {
      fault->kind = BK_DATA_BAD_TOKEN;
      fault->token = token;
      fault->place = (int64_t)(g->begin / width) + i + k;
      return false;
    }
    out[k] = (int32_t)token;
  }
  return read;
}

/* The words of each kind of fault; a file that changed is wrong data, one that cannot be read is
 * not. */
bk_status bk_dataset_fail(const bk_dataset *ds, const bk_data_fault *f) {
  bk_context *ctx = ds->ctx;
  const char *path = ds->sources[f->file].path;
  switch (f->kind) {
    case BK_DATA_CANNOT_OPEN:
      return bk_fail(ctx, BK_ERR_IO, "cannot open %s: %s", path, strerror(-f->error));
    case BK_DATA_CANNOT_LOOK:
      return bk_fail(ctx, BK_ERR_IO, "cannot look at %s: %s", path, strerror(-f->error));
    case BK_DATA_CANNOT_READ:
      return bk_fail(ctx, BK_ERR_IO, "cannot read %s: %s", path, strerror(-f->error));
    case BK_DATA_NOT_REGULAR:
      return bk_fail(ctx, BK_ERR_DATA, "%s is a regular file no longer", path);
    case BK_DATA_OTHER_SIZE:
      return bk_fail(ctx, BK_ERR_DATA,
                     "%s has %llu bytes now and had %llu when it was opened: data must not change "
                     "while it is in use",
                     path, (unsigned long long)f->now,
                     (unsigned long long)ds->files[f->file].bytes);
    case BK_DATA_BAD_TOKEN:
      return bk_fail(ctx, BK_ERR_DATA, "%s: token %lld at %s %lld is not below vocab_size (%lld)",
                     path, (long long)f->token, f->width == 1 ? "byte" : "token",
                     (long long)f->place, (long long)ds->vocab);
    default:
      return bk_fail(ctx, BK_ERR_IO, "cannot read %s: it became shorter while it was read", path);
  }
}

/* ---- the hash of older versions ---- */

/* Contents of a segment that was not read whole when the data was opened. */
static bk_status hash_segment(const bk_dataset *ds, const bk_segment *g, unsigned char *block,
                              uint64_t *contents) {
  const bk_source *from = &ds->sources[g->file];
  source s = {
      .ctx = ds->ctx, .path = from->path, .file = from->file, .block = block, .begin = g->begin};
  s.end = g->begin + (uint64_t)(g->count - g->ends) * (uint64_t)g->width;
  if (!s.file) BK_TRY(bk_file_open(ds->ctx, s.path, &s.file));
  bk_status status = scan(&s, false, false, contents);
  if (!from->file) ds->ctx->fs.close(ds->ctx->fs.user, s.file);
  return status;
}

bk_status bk_dataset_hash_whole(const bk_dataset *ds, uint64_t *hash) {
  uint64_t chain = 0;
  unsigned char *block = bk_alloc(ds->ctx, BLOCK);
  bk_status status = block ? BK_OK : BK_ERR_MEMORY;
  for (size_t i = 0; i < ds->n_segments && status == BK_OK; i++) {
    bk_segment g = ds->segments[i];
    uint64_t contents = 0;
    g.sampled = false;
    if (g.data) contents = bk_hash64(g.data, (size_t)g.count * (size_t)g.width);
    else status = hash_segment(ds, &g, block, &contents);
    chain = bk_segment_hash(chain, &g, contents, 0);
  }
  bk_free(ds->ctx, block);
  if (status == BK_OK) *hash = chain;
  return status;
}
