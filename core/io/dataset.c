/* Token data in memory: one segment per file, kept in the width it has on disk (bytes, uint16 or
 * uint32), or a single segment that is the caller's own. Every token is checked against the
 * vocabulary once, on loading, so that no kernel has to.
 *
 * The end token belongs to the split that holds its file's last byte: `all` and `val`, or `train`
 * where the file is too short (fewer than 10 bytes) to have a validation part.
 *
 * The order of training is a pure function of seed and position: nothing is shuffled in memory,
 * and a resumed run finds its place by the number of the sequence alone.
 *
 * All ranks and all ways to cut a batch see the same order: sequence s of a run is the same tokens
 * whoever asks for it. Training on several ranks is a matter of which rank asks for which s.
 *
 * There is no tokenizer here. Text is read as bytes, whose values are the ids 0 to 255; ids of any
 * other vocabulary come as a .bin stream or from memory. */
#include "io/dataset.h"

#include <string.h>

#include "io/recognise.h"

#define BIN_VAL_MIN 2 /* tokens of a validation part; fewer predict nothing */

/* A segment holds the tokens of one file, or those of the caller. */
typedef struct segment {
  int64_t first; /* number of its first token in the whole data */
  int64_t count; /* tokens, the end token included */
  int width;     /* bytes per stored token: 1 text, 2, 4 */
  bool ends;     /* text: BK_TOKEN_END after the stored bytes */
  const void *data;
  void *owned; /* data, or NULL where it is the caller's */
} segment;

/* Segments one after the other make one long sequence of tokens; a training sequence may cross from
 * one to the next. */
struct bk_dataset {
  bk_context *ctx;
  segment *segments; /* none is empty */
  size_t n_segments;
  int64_t tokens, bytes;
  int64_t kept_back; /* tokens of .bin files that BK_SPLIT_TRAIN leaves for validation */
  bool parted;       /* BK_SPLIT_TRAIN has left a part of some file for validation */
  uint64_t hash;
};

/* ---- reading files ---- */

/* This describes a file while it is read, and which part of it the split takes. */
typedef struct source {
  bk_context *ctx;
  const char *path;
  const bk_dataset_options *options;
  int width;
  uint64_t begin, end; /* bytes of the file that the split takes */
  uint64_t kept_back;  /* bytes behind them */
  bool ends;
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
static uint64_t validation_bytes(const source *s, uint64_t size) {
  if (s->width == 1) return size / 10;
  uint64_t tokens = s->options->whole_bin ? 0 : size / (uint64_t)s->width / 10;
  return tokens < BIN_VAL_MIN ? 0 : tokens * (uint64_t)s->width;
}

/* The part of a file of `size` bytes that the split takes. begin, end and kept_back count bytes of
 * the file; both ends are whole tokens. */
static bk_status choose_part(source *s, uint64_t size) {
  if (size % (uint64_t)s->width != 0)
    return bk_fail(s->ctx, BK_ERR_DATA,
                   "%s: %llu bytes are not a whole number of uint%d tokens (data_dtype)", s->path,
                   (unsigned long long)size, 8 * s->width);
  uint64_t val = validation_bytes(s, size);
  bool takes_end = s->options->split != BK_SPLIT_VAL || val > 0;
  s->begin = s->options->split == BK_SPLIT_VAL ? size - val : 0;
  s->end = s->options->split == BK_SPLIT_TRAIN ? size - val : size;
  s->kept_back = size - s->end;
  s->ends = s->width == 1 && s->end == size && takes_end;
  return BK_OK;
}

/* Fails where the file has fewer bytes than were seen before. */
static bk_status read_at(const source *s, bk_file *file, uint64_t begin, void *dst, size_t bytes) {
  int64_t got = s->ctx->fs.read_at(s->ctx->fs.user, file, begin, dst, bytes);
  if (got < 0)
    return bk_fail(s->ctx, BK_ERR_IO, "cannot read %s: %s", s->path, strerror((int)-got));
  if ((uint64_t)got != bytes)
    return bk_fail(s->ctx, BK_ERR_IO, "cannot read %s: it became shorter while it was read",
                   s->path);
  return BK_OK;
}

/* The name of a file says what is in it, text or a stream; a sample of its beginning must not say
 * otherwise. */
static bk_status check_kind(const source *s, bk_file *file, uint64_t size) {
  static const bk_wanted wanted[] = {
      [1] = BK_WANTED_TEXT, [2] = BK_WANTED_UINT16, [4] = BK_WANTED_UINT32};
  bk_wanted kind = wanted[s->width];
  char words[BK_RECOGNISE_TEXT];
  if (kind == BK_WANTED_UINT16 && s->options->data_dtype != 0) kind = BK_WANTED_UINT16_SAID;
  size_t count = size < BK_RECOGNISE_SAMPLE ? (size_t)size : BK_RECOGNISE_SAMPLE;
  if (size == 0) return bk_fail(s->ctx, BK_ERR_DATA, "%s: the file is empty", s->path);
  unsigned char *sample = bk_alloc(s->ctx, count);
  if (!sample) return BK_ERR_MEMORY;
  bk_status status = read_at(s, file, 0, sample, count);
  if (status == BK_OK && bk_recognise(sample, count, size, kind, words, sizeof words))
    status = bk_fail(s->ctx, BK_ERR_DATA, "%s is %s", s->path, words);
  bk_free(s->ctx, sample);
  return status;
}

/* The end token of a text is not stored, so that i must be below the number of stored tokens. */
static int64_t stored_token(const segment *g, int64_t i) {
  switch (g->width) {
    case 1: return ((const uint8_t *)g->data)[i];
    case 2: return ((const uint16_t *)g->data)[i];
    default: return ((const uint32_t *)g->data)[i];
  }
}

/* The message about a wrong token. If the whole stream fits the vocabulary in another width or
 * byte order, it says so. */
static bk_status fail_token(const source *s, const segment *g, int64_t i) {
  char words[BK_RECOGNISE_TEXT] = "";
  int64_t vocab = s->options->vocab_size;
  bool known = g->owned && g->width > 1 && s->begin == 0 &&
               bk_recognise_width(g->data, (size_t)g->count * (size_t)g->width, g->width, vocab,
                                  words, sizeof words);
  return bk_fail(s->ctx, BK_ERR_DATA,
                 "%s: token %lld at %s %lld is not below vocab_size (%lld)%s%s", s->path,
                 (long long)stored_token(g, i), g->width == 1 ? "byte" : "token",
                 (long long)(s->begin / (uint64_t)g->width) + (long long)i, (long long)vocab,
                 known ? "; " : "", words);
}

/* The end token is not stored with a text, so that it is checked by itself. */
static bk_status check_tokens(const source *s, const segment *g) {
  int64_t vocab = s->options->vocab_size;
  for (int64_t i = 0; i < g->count - g->ends; i++)
    if (stored_token(g, i) >= vocab) return fail_token(s, g, i);
  if (g->ends && vocab <= BK_TOKEN_END)
    return bk_fail(s->ctx, BK_ERR_DATA,
                   "%s: the token that ends a text, %d, is not below vocab_size (%lld)", s->path,
                   BK_TOKEN_END, (long long)vocab);
  return BK_OK;
}

/* The hash is chained over the segments, so that no second copy of the data is needed. The order
 * of the files counts. */
static uint64_t mix_hash(uint64_t hash, const segment *g) {
  int64_t stored = g->count - g->ends;
  uint64_t parts[4] = {hash, (uint64_t)g->count, (uint64_t)g->width,
                       bk_hash64(g->data, (size_t)stored * (size_t)g->width)};
  return bk_hash64(parts, sizeof parts);
}

/* bk_alloc zeroes the memory, which costs one more pass over it; the data is read once per run.
 * Only text has a size in bytes, from which losses per byte are computed: a single stream among
 * the files makes that of the whole data unknown (-1). */
static bk_status load_part(bk_dataset *ds, const source *s, bk_file *file) {
  uint64_t bytes = s->end - s->begin;
  if (bytes > (uint64_t)INT64_MAX / 2 || bytes >= SIZE_MAX)
    return bk_fail(s->ctx, BK_ERR_MEMORY, "%s: %llu bytes are more than can be addressed", s->path,
                   (unsigned long long)bytes);
  if (bytes == 0) return BK_OK;
  segment g = {.first = ds->tokens, .width = s->width, .ends = s->ends};
  g.count = (int64_t)(bytes / (uint64_t)s->width) + s->ends;
  g.data = g.owned = bk_alloc(s->ctx, (size_t)bytes);
  if (!g.owned) return BK_ERR_MEMORY;
  ds->segments[ds->n_segments++] = g;
  BK_TRY(read_at(s, file, s->begin, g.owned, (size_t)bytes));
  BK_TRY(check_tokens(s, &g));
  ds->tokens += g.count;
  ds->bytes = s->width > 1 || ds->bytes < 0 ? -1 : ds->bytes + (int64_t)bytes;
  ds->hash = mix_hash(ds->hash, &g);
  ds->parted |= s->kept_back > 0;
  ds->kept_back += s->width > 1 ? (int64_t)(s->kept_back / (uint64_t)s->width) : 0;
  return BK_OK;
}

/* The contents are looked at before the split is cut: a compressed text must not be cut into
 * tenths. */
static bk_status load_file(bk_dataset *ds, const char *path, const bk_dataset_options *options) {
  source s = {
      .ctx = ds->ctx, .path = path, .options = options, .width = token_width(path, options)};
  bk_file *file;
  uint64_t size = 0;
  BK_TRY(bk_file_open(ds->ctx, path, &file));
  int rc = ds->ctx->fs.size(ds->ctx->fs.user, file, &size);
  bk_status status = rc < 0
                         ? bk_fail(ds->ctx, BK_ERR_IO, "cannot look at %s: %s", path, strerror(-rc))
                         : check_kind(&s, file, size);
  if (status == BK_OK) status = choose_part(&s, size);
  if (status == BK_OK) status = load_part(ds, &s, file);
  ds->ctx->fs.close(ds->ctx->fs.user, file);
  return status;
}

/* Only the validation part can be empty where no file is. */
static bk_status fail_empty(bk_dataset *ds, const char *const *paths, int n_paths,
                            const bk_dataset_options *options) {
  return bk_fail(
      ds->ctx, BK_ERR_DATA,
      "%s%s: no tokens in the validation part: a text needs at least 10 bytes to have one, and %s",
      paths[0], n_paths > 1 ? " and the other files" : "",
      options->whole_bin ? "with bin_validation=false a .bin file has none"
                         : "a .bin file 20 tokens");
}

/* All files are read at once, because training visits the data in random order. */
static bk_status load_files(bk_dataset *ds, const char *const *paths, int n_paths,
                            const bk_dataset_options *options) {
  if (n_paths < 1) return bk_fail(ds->ctx, BK_ERR_DATA, "no data files were given");
  ds->segments = bk_alloc_array(ds->ctx, (size_t)n_paths, sizeof *ds->segments);
  if (!ds->segments) return BK_ERR_MEMORY;
  for (int i = 0; i < n_paths; i++) BK_TRY(load_file(ds, paths[i], options));
  if (ds->tokens > 0) return BK_OK;
  return fail_empty(ds, paths, n_paths, options);
}

/* Tokens are handed out as int32. */
static bk_status check_vocab_size(bk_context *ctx, int64_t vocab_size) {
  if (vocab_size >= 1 && vocab_size <= INT32_MAX) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "vocab_size must be from 1 to 2147483647, not %lld",
                 (long long)vocab_size);
}

/* Everything is read here; the files are closed again. */
bk_status bk_dataset_open(bk_context *ctx, const char *const *paths, int n_paths,
                          const bk_dataset_options *options, bk_dataset **ds) {
  BK_TRY(check_vocab_size(ctx, options->vocab_size));
  bk_dataset *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->ctx = ctx;
  bk_status status = load_files(made, paths, n_paths, options);
  if (status == BK_OK) *ds = made;
  else bk_dataset_close(made);
  return status;
}

/* Tokens in memory stay the caller's and must outlive the data set. */
static bk_status take_tokens(bk_dataset *ds, const void *tokens, int64_t count, int width,
                             const bk_dataset_options *options) {
  const source s = {.ctx = ds->ctx, .path = "tokens in memory", .options = options, .width = width};
  ds->segments = bk_alloc(ds->ctx, sizeof *ds->segments);
  if (!ds->segments) return BK_ERR_MEMORY;
  *ds->segments = (segment){.count = count, .width = width, .data = tokens};
  ds->n_segments = 1;
  ds->tokens = count;
  ds->bytes = -1;
  ds->hash = mix_hash(0, ds->segments);
  return check_tokens(&s, ds->segments);
}

/* The tokens are read where they lie, and must therefore be aligned to their size. */
bk_status bk_dataset_from_tokens(bk_context *ctx, const void *tokens, int64_t count,
                                 int token_bytes, int64_t vocab_size, bk_dataset **ds) {
  const bk_dataset_options options = {.vocab_size = vocab_size, .split = BK_SPLIT_ALL};
  BK_TRY(check_vocab_size(ctx, vocab_size));
  if (token_bytes != 1 && token_bytes != 2 && token_bytes != 4)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "tokens in memory: token_bytes must be 1, 2 or 4, not %d",
                   token_bytes);
  if (!tokens || count < 1 || count > INT64_MAX / 8 || (uintptr_t)tokens % (size_t)token_bytes != 0)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "tokens in memory: %lld tokens of %d bytes at %p; at least one is needed, "
                   "aligned to its size",
                   (long long)count, token_bytes, tokens);
  bk_dataset *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->ctx = ctx;
  bk_status status = take_tokens(made, tokens, count, token_bytes, &options);
  if (status == BK_OK) *ds = made;
  else bk_dataset_close(made);
  return status;
}

void bk_dataset_close(bk_dataset *ds) {
  if (!ds) return;
  for (size_t i = 0; i < ds->n_segments; i++) bk_free(ds->ctx, ds->segments[i].owned);
  bk_free(ds->ctx, ds->segments);
  bk_free(ds->ctx, ds);
}

/* ---- looking ---- */

int64_t bk_dataset_tokens(const bk_dataset *ds) { return ds->tokens; }
int64_t bk_dataset_bytes(const bk_dataset *ds) { return ds->bytes; }
uint64_t bk_dataset_hash(const bk_dataset *ds) { return ds->hash; }
int64_t bk_dataset_kept_back(const bk_dataset *ds) { return ds->kept_back; }

/* The segment that holds token i, by bisection. */
static size_t segment_of(const bk_dataset *ds, int64_t i) {
  size_t low = 0, high = ds->n_segments;
  while (high - low > 1) {
    size_t middle = low + (high - low) / 2;
    if (ds->segments[middle].first <= i) low = middle;
    else high = middle;
  }
  return low;
}

/* Token i of the segment may be its end token, which is not stored. */
static int64_t segment_token(const segment *g, int64_t i) {
  return g->ends && i == g->count - 1 ? BK_TOKEN_END : stored_token(g, i);
}

/* Every call searches for the segment; whole sequences are copied by copy_tokens. */
int64_t bk_dataset_at(const bk_dataset *ds, int64_t i) {
  const segment *g = &ds->segments[segment_of(ds, i)];
  return segment_token(g, i - g->first);
}

/* Copies the tokens [first, first + count) of the whole data. */
static void copy_tokens(const bk_dataset *ds, int64_t first, int64_t count, int32_t *out) {
  size_t s = segment_of(ds, first);
  for (int64_t i = 0; i < count; i++) {
    while (first + i >= ds->segments[s].first + ds->segments[s].count) s++;
    out[i] = (int32_t)segment_token(&ds->segments[s], first + i - ds->segments[s].first);
  }
}

/* ---- training order ---- */

/* A random order of [0, count) without memory: a bijection made of four Feistel rounds on 2k bits
 * with 4^k >= count, repeated until the value is in range ("cycle walking", Black and Rogaway
 * 2002), which takes under four repetitions on average. The round functions are Philox. The same
 * (seed, stream, epoch, count) gives every x of [0, count) another result, so that an epoch visits
 * each window once without a list of them. `half` is k: the two halves of a Feistel round. */
static uint64_t permute(uint64_t seed, uint64_t stream, uint64_t epoch, uint64_t count,
                        uint64_t x) {
  unsigned half = 1;
  while (half < 31 && (uint64_t)1 << 2 * half < count) half++;
  uint64_t mask = ((uint64_t)1 << half) - 1;
  do {
    uint64_t left = x >> half, right = x & mask;
    for (uint64_t round = 0; round < 4; round++) {
      uint32_t r[4];
      bk_philox(seed ^ stream, epoch, round << 32 | right, r);
      uint64_t swapped = left ^ (r[0] & mask);
      left = right;
      right = swapped;
    }
    x = left << half | right;
  } while (x >= count);
  return x;
}

/* A sequence needs one token more than its length, for the last target. */
bk_status bk_dataset_check_seq_len(bk_context *ctx, const bk_dataset *ds, int64_t seq_len) {
  if (seq_len < 1)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "seq_len must be at least 1, not %lld",
                   (long long)seq_len);
  if (ds->tokens - 1 >= seq_len) return BK_OK;
  return bk_fail(ctx, BK_ERR_DATA,
                 "the data has %lld tokens%s, a sequence of seq_len %lld needs %lld",
                 (long long)ds->tokens, ds->parted ? " beside its validation part" : "",
                 (long long)seq_len, (long long)seq_len + 1);
}

/* Windows per epoch. From nine on one is left out, so that the offset at which an epoch begins has
 * room for a whole window. */
static int64_t train_windows(const bk_dataset *ds, int64_t seq_len) {
  int64_t all = (ds->tokens - 1) / seq_len;
  return all > 8 ? all - 1 : all;
}

/* Sequence s of a run. An epoch cuts the data into windows that do not overlap, from an offset that
 * differs from epoch to epoch, so that a token is not always in the same place of its window, and
 * visits each window once in a random order. ids are tokens [first, first + seq_len), targets the
 * same shifted by one. `room` is how far an epoch may be shifted so that its last window, with its
 * last target, still lies in the data. */
void bk_dataset_train_sequence(const bk_dataset *ds, uint64_t seed, int64_t seq_len, int64_t s,
                               int32_t *ids, int32_t *targets) {
  static const char order_name[] = "data order", offset_name[] = "data offset";
  int64_t windows = train_windows(ds, seq_len);
  uint64_t epoch = (uint64_t)(s / windows);
  int64_t room = ds->tokens - 1 - windows * seq_len;
  double u = bk_uniform(seed, bk_hash64(offset_name, sizeof offset_name - 1), epoch);
  int64_t offset = (int64_t)(u * (double)(room + 1));
  if (offset > room) offset = room;
  uint64_t window = permute(seed, bk_hash64(order_name, sizeof order_name - 1), epoch,
                            (uint64_t)windows, (uint64_t)(s % windows));
  int64_t first = offset + (int64_t)window * seq_len;
  copy_tokens(ds, first, seq_len, ids);
  copy_tokens(ds, first + 1, seq_len, targets);
}

/* ---- evaluation ---- */

/* Every token but the first is a target once; a last window that is short counts as well. */
int64_t bk_dataset_eval_windows(const bk_dataset *ds, int64_t seq_len) {
  return (ds->tokens - 1) / seq_len + ((ds->tokens - 1) % seq_len != 0);
}

/* Windows of evaluation cover the data in order, each token once. The last one is filled up with
 * id 0, whose targets are ignored. */
int64_t bk_dataset_eval_window(const bk_dataset *ds, int64_t seq_len, int64_t i, int32_t *ids,
                               int32_t *targets) {
  int64_t first = i * seq_len, left = ds->tokens - 1 - first;
  int64_t kept = left < 0 ? 0 : left < seq_len ? left : seq_len;
  if (kept > 0) {
    copy_tokens(ds, first, kept, ids);
    copy_tokens(ds, first + 1, kept, targets);
  }
  for (int64_t j = kept; j < seq_len; j++) {
    ids[j] = 0;
    targets[j] = -100;
  }
  return kept;
}
