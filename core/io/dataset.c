/* Token data in memory: one segment per file, kept in the width it has on disk (bytes, uint16 or uint32), or one of the caller's.
 *
 * The end token belongs to the split that holds its file's last byte: `all` and `val`, or `train` where the file is too short
 * (fewer than 10 bytes) to have a validation part. */
#include "io/dataset.h"

#include <string.h>

typedef struct segment {
  int64_t first; /* number of its first token in the whole */
  int64_t count; /* tokens, the end token included */
  int width;     /* bytes per stored token: 1 text, 2, 4 */
  bool ends;     /* text: BK_TOKEN_END after the stored bytes */
  const void *data;
  void *owned;   /* data, or NULL where it is the caller's */
} segment;

struct bk_dataset {
  bk_context *ctx;
  segment *segments; /* none is empty */
  size_t n_segments;
  int64_t tokens, bytes;
  uint64_t hash;
};

/* ---- reading files ---- */

typedef struct source {
  bk_context *ctx;
  const char *path;
  const bk_dataset_options *options;
  int width;
  uint64_t begin, end; /* bytes of the file that the split takes */
  bool ends;
} source;

static bool is_bin(const char *path) {
  size_t length = strlen(path);
  return length >= 4 && strcmp(path + length - 4, ".bin") == 0;
}

static int token_width(const char *path, const bk_dataset_options *o) {
  if (!is_bin(path)) return 1;
  if (o->data_dtype == 0) return o->vocab_size <= 65536 ? 2 : 4;
  return o->data_dtype == 1 ? 2 : 4;
}

/* The part of a file of `size` bytes that the split takes. */
static bk_status choose_part(source *s, uint64_t size) {
  uint64_t val = s->width == 1 ? size / 10 : 0;
  if (size == 0) return bk_fail(s->ctx, BK_ERR_DATA, "%s: the file is empty", s->path);
  if (size % (uint64_t)s->width != 0)
    return bk_fail(s->ctx, BK_ERR_DATA, "%s: %llu bytes are not a whole number of uint%d tokens (data_dtype)", s->path,
                   (unsigned long long)size, 8 * s->width);
  bool takes_end = s->options->split != BK_SPLIT_VAL || val > 0;
  s->begin = s->options->split == BK_SPLIT_VAL ? size - val : 0;
  s->end = s->options->split == BK_SPLIT_TRAIN ? size - val : size;
  s->ends = s->width == 1 && s->end == size && takes_end;
  return BK_OK;
}

static bk_status read_part(const source *s, bk_file *file, void *dst) {
  size_t bytes = (size_t)(s->end - s->begin);
  int64_t got = s->ctx->fs.read_at(s->ctx->fs.user, file, s->begin, dst, bytes);
  if (got < 0) return bk_fail(s->ctx, BK_ERR_IO, "cannot read %s: %s", s->path, strerror((int)-got));
  if ((uint64_t)got != bytes) return bk_fail(s->ctx, BK_ERR_IO, "cannot read %s: it became shorter while it was read",
                                             s->path);
  return BK_OK;
}

static int64_t stored_token(const segment *g, int64_t i) {
  switch (g->width) {
    case 1: return ((const uint8_t *)g->data)[i];
    case 2: return ((const uint16_t *)g->data)[i];
    default: return ((const uint32_t *)g->data)[i];
  }
}

static bk_status check_tokens(const source *s, const segment *g) {
  int64_t vocab = s->options->vocab_size;
  const char *unit = g->width == 1 ? "byte" : "token";
  for (int64_t i = 0; i < g->count - g->ends; i++) {
    int64_t token = stored_token(g, i);
    if (token < vocab) continue;
    return bk_fail(s->ctx, BK_ERR_DATA, "%s: token %lld at %s %lld is not below vocab_size (%lld)",
                   s->path, (long long)token, unit,
                   (long long)(s->begin / (uint64_t)g->width) + (long long)i, (long long)vocab);
  }
  if (g->ends && vocab <= BK_TOKEN_END)
    return bk_fail(s->ctx, BK_ERR_DATA, "%s: the token that ends a text, %d, is not below vocab_size (%lld)",
                   s->path, BK_TOKEN_END, (long long)vocab);
  return BK_OK;
}

/* Chained over the segments, so that no second copy of the data is needed. The order of files counts. */
static uint64_t mix_hash(uint64_t hash, const segment *g) {
  int64_t stored = g->count - g->ends;
  uint64_t parts[4] = {hash, (uint64_t)g->count, (uint64_t)g->width, bk_hash64(g->data, (size_t)stored * (size_t)g->width)};
  return bk_hash64(parts, sizeof parts);
}

/* bk_alloc zeroes, which costs one more pass; the data is read once per run. */
static bk_status load_part(bk_dataset *ds, const source *s, bk_file *file) {
  uint64_t bytes = s->end - s->begin;
  if (bytes > (uint64_t)INT64_MAX / 2 || bytes >= SIZE_MAX)
    return bk_fail(s->ctx, BK_ERR_MEMORY, "%s: %llu bytes are more than can be addressed",
                   s->path, (unsigned long long)bytes);
  if (bytes == 0) return BK_OK;
  segment g = {.first = ds->tokens, .width = s->width, .ends = s->ends};
  g.count = (int64_t)(bytes / (uint64_t)s->width) + s->ends;
  g.data = g.owned = bk_alloc(s->ctx, (size_t)bytes);
  if (!g.owned) return BK_ERR_MEMORY;
  ds->segments[ds->n_segments++] = g;
  BK_TRY(read_part(s, file, g.owned));
  BK_TRY(check_tokens(s, &g));
  ds->tokens += g.count;
  ds->bytes = s->width > 1 || ds->bytes < 0 ? -1 : ds->bytes + (int64_t)bytes;
  ds->hash = mix_hash(ds->hash, &g);
  return BK_OK;
}

static bk_status load_file(bk_dataset *ds, const char *path, const bk_dataset_options *options) {
  source s = {.ctx = ds->ctx, .path = path, .options = options, .width = token_width(path, options)};
  if (s.width > 1 && options->split == BK_SPLIT_VAL) return BK_OK; /* has no validation part */
  bk_file *file;
  uint64_t size = 0;
  if (bk_path_is_dir(ds->ctx, path)) return bk_fail(ds->ctx, BK_ERR_IO, "cannot read %s: it is a folder", path);
  int rc = ds->ctx->fs.open_read(ds->ctx->fs.user, path, &file);
  if (rc < 0) return bk_fail(ds->ctx, BK_ERR_IO, "cannot open %s: %s", path, strerror(-rc));
  rc = ds->ctx->fs.size(ds->ctx->fs.user, file, &size);
  bk_status status = rc < 0 ? bk_fail(ds->ctx, BK_ERR_IO, "cannot look at %s: %s",
                                      path, strerror(-rc)) : choose_part(&s, size);
  if (status == BK_OK) status = load_part(ds, &s, file);
  ds->ctx->fs.close(ds->ctx->fs.user, file);
  return status;
}

static bk_status load_files(bk_dataset *ds, const char *const *paths, int n_paths, const bk_dataset_options *options) {
  if (n_paths < 1) return bk_fail(ds->ctx, BK_ERR_DATA, "no data files were given");
  ds->segments = bk_alloc_array(ds->ctx, (size_t)n_paths, sizeof *ds->segments);
  if (!ds->segments) return BK_ERR_MEMORY;
  for (int i = 0; i < n_paths; i++) BK_TRY(load_file(ds, paths[i], options));
  if (ds->tokens > 0) return BK_OK;
  return bk_fail(ds->ctx, BK_ERR_DATA, "%s%s: no tokens in the %s part; a .bin file has none, a text needs at "
                 "least 10 bytes",
                 paths[0], n_paths > 1 ? " and the other files" : "", options->split == BK_SPLIT_VAL ? "validation" : "chosen");
}

static bk_status check_vocab_size(bk_context *ctx, int64_t vocab_size) {
  if (vocab_size >= 1 && vocab_size <= INT32_MAX) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "vocab_size must be from 1 to 2147483647, not %lld", (long long)vocab_size);
}

bk_status bk_dataset_open(bk_context *ctx, const char *const *paths, int n_paths, const bk_dataset_options *options, bk_dataset **ds) {
  BK_TRY(check_vocab_size(ctx, options->vocab_size));
  bk_dataset *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->ctx = ctx;
  bk_status status = load_files(made, paths, n_paths, options);
  if (status == BK_OK) *ds = made;
  else bk_dataset_close(made);
  return status;
}

static bk_status take_tokens(bk_dataset *ds, const void *tokens, int64_t count, int width, const bk_dataset_options *options) {
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

bk_status bk_dataset_from_tokens(bk_context *ctx, const void *tokens, int64_t count, int token_bytes, int64_t vocab_size, bk_dataset **ds) {
  const bk_dataset_options options = {.vocab_size = vocab_size, .split = BK_SPLIT_ALL};
  BK_TRY(check_vocab_size(ctx, vocab_size));
  if (token_bytes != 1 && token_bytes != 2 && token_bytes != 4)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "tokens in memory: token_bytes must be 1, 2 or 4, not %d", token_bytes);
  if (!tokens || count < 1 || count > INT64_MAX / 8 || (uintptr_t)tokens % (size_t)token_bytes != 0)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "tokens in memory: %lld tokens of %d bytes at %p; at least one is needed, aligned to its size",
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

static size_t segment_of(const bk_dataset *ds, int64_t i) {
  size_t low = 0, high = ds->n_segments;
  while (high - low > 1) {
    size_t middle = low + (high - low) / 2;
    if (ds->segments[middle].first <= i) low = middle;
    else high = middle;
  }
  return low;
}

static int64_t segment_token(const segment *g, int64_t i) {
  return g->ends && i == g->count - 1 ? BK_TOKEN_END : stored_token(g, i);
}

int64_t bk_dataset_at(const bk_dataset *ds, int64_t i) {
  const segment *g = &ds->segments[segment_of(ds, i)];
  return segment_token(g, i - g->first);
}

static void copy_tokens(const bk_dataset *ds, int64_t first, int64_t count, int32_t *out) {
  size_t s = segment_of(ds, first);
  for (int64_t i = 0; i < count; i++) {
    while (first + i >= ds->segments[s].first + ds->segments[s].count) s++;
    out[i] = (int32_t)segment_token(&ds->segments[s], first + i - ds->segments[s].first);
  }
}

/* ---- training order ---- */

/* A bijection of [0, count): four Feistel rounds on 2k bits, 4^k >= count, repeated until the value is in range ("cycle
 * walking", Black and Rogaway 2002); under four repetitions on average. Round functions are Philox. */
static uint64_t permute(uint64_t seed, uint64_t stream, uint64_t epoch, uint64_t count, uint64_t x) {
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

bk_status bk_dataset_check_seq_len(bk_context *ctx, const bk_dataset *ds, int64_t seq_len) {
  if (seq_len < 1) return bk_fail(ctx, BK_ERR_ARGUMENT, "seq_len must be at least 1, not %lld", (long long)seq_len);
  if (ds->tokens - 1 >= seq_len) return BK_OK;
  return bk_fail(ctx, BK_ERR_DATA, "the data has %lld tokens, a sequence of seq_len %lld needs %lld",
                 (long long)ds->tokens,
                 (long long)seq_len, (long long)seq_len + 1);
}

/* Windows per epoch. From nine on one is left out, so that an epoch's offset has room for a whole window. */
static int64_t train_windows(const bk_dataset *ds, int64_t seq_len) {
  int64_t all = (ds->tokens - 1) / seq_len;
  return all > 8 ? all - 1 : all;
}

void bk_dataset_train_sequence(const bk_dataset *ds, uint64_t seed, int64_t seq_len, int64_t s, int32_t *ids, int32_t *targets) {
  static const char order_name[] = "data order", offset_name[] = "data offset";
  int64_t windows = train_windows(ds, seq_len);
  uint64_t epoch = (uint64_t)(s / windows);
  int64_t room = ds->tokens - 1 - windows * seq_len;
  double u = bk_uniform(seed, bk_hash64(offset_name, sizeof offset_name - 1), epoch);
  int64_t offset = (int64_t)(u * (double)(room + 1));
  if (offset > room) offset = room;
  uint64_t window = permute(seed, bk_hash64(order_name, sizeof order_name - 1), epoch, (uint64_t)windows, (uint64_t)(s % windows));
  int64_t first = offset + (int64_t)window * seq_len;
  copy_tokens(ds, first, seq_len, ids);
  copy_tokens(ds, first + 1, seq_len, targets);
}

/* ---- evaluation ---- */

int64_t bk_dataset_eval_windows(const bk_dataset *ds, int64_t seq_len) {
  return (ds->tokens - 1) / seq_len + ((ds->tokens - 1) % seq_len != 0);
}

int64_t bk_dataset_eval_window(const bk_dataset *ds, int64_t seq_len, int64_t i, int32_t *ids, int32_t *targets) {
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
