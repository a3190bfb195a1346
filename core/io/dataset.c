/* Token data: one segment per file, kept in the width it has on disk (bytes, uint16 or uint32) and
 * read from there when it is wanted (dataset_files.c), or a single segment that is the caller's own
 * memory.
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

#include "io/dataset_priv.h"

uint64_t bk_segment_hash(uint64_t before, const bk_segment *g, uint64_t contents,
                         uint64_t file_bytes) {
  uint64_t parts[5] = {before, (uint64_t)g->count, (uint64_t)g->width, contents, file_bytes};
  return bk_hash64(parts, (g->sampled ? 5 : 4) * sizeof *parts);
}

/* ---- opening ---- */

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

/* The file access of the context decides where the files lie. */
static bk_status load_files(bk_dataset *ds, const char *const *paths, int n_paths,
                            const bk_dataset_options *options) {
  if (n_paths < 1) return bk_fail(ds->ctx, BK_ERR_DATA, "no data files were given");
  BK_TRY(bk_dataset_add_files(ds, paths, n_paths, options));
  return ds->tokens > 0 ? BK_OK : fail_empty(ds, paths, n_paths, options);
}

/* Tokens are handed out as int32. */
static bk_status check_vocab_size(bk_context *ctx, int64_t vocab_size) {
  if (vocab_size >= 1 && vocab_size <= INT32_MAX) return BK_OK;
  return bk_fail(ctx, BK_ERR_ARGUMENT, "vocab_size must be from 1 to 2147483647, not %lld",
                 (long long)vocab_size);
}

/* The files are looked at here, and read when their tokens are wanted. */
bk_status bk_dataset_open(bk_context *ctx, const char *const *paths, int n_paths,
                          const bk_dataset_options *options, bk_dataset **ds) {
  BK_TRY(check_vocab_size(ctx, options->vocab_size));
  bk_dataset *made = bk_alloc(ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  made->ctx = ctx;
  made->vocab = options->vocab_size;
  bk_status status = load_files(made, paths, n_paths, options);
  if (status == BK_OK) *ds = made;
  else bk_dataset_close(made);
  return status;
}

/* ---- tokens in memory ---- */

static int64_t stored_token(const bk_segment *g, int64_t i) {
  switch (g->width) {
    case 1: return ((const uint8_t *)g->data)[i];
    case 2: return ((const uint16_t *)g->data)[i];
    default: return ((const uint32_t *)g->data)[i];
  }
}

/* They are checked once: they stay as they are. */
static bk_status check_tokens(const bk_dataset *ds, const bk_segment *g) {
  for (int64_t i = 0; i < g->count; i++)
    if (stored_token(g, i) >= ds->vocab)
      return bk_fail(ds->ctx, BK_ERR_DATA,
                     "tokens in memory: token %lld at %s %lld is not below vocab_size (%lld)",
                     (long long)stored_token(g, i), g->width == 1 ? "byte" : "token", (long long)i,
                     (long long)ds->vocab);
  return BK_OK;
}

/* Tokens in memory stay the caller's and must outlive the data set. */
static bk_status take_tokens(bk_dataset *ds, const void *tokens, int64_t count, int width) {
  ds->segments = bk_alloc(ds->ctx, sizeof *ds->segments);
  if (!ds->segments) return BK_ERR_MEMORY;
  *ds->segments = (bk_segment){.count = count, .width = width, .data = tokens};
  ds->n_segments = 1;
  ds->tokens = count;
  ds->bytes = -1;
  uint64_t contents = bk_hash64(tokens, (size_t)count * (size_t)width);
  ds->hash = bk_segment_hash(0, ds->segments, contents, 0);
  return check_tokens(ds, ds->segments);
}

/* The tokens are read where they lie, and must therefore be aligned to their size. */
bk_status bk_dataset_from_tokens(bk_context *ctx, const void *tokens, int64_t count,
                                 int token_bytes, int64_t vocab_size, bk_dataset **ds) {
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
  made->vocab = vocab_size;
  bk_status status = take_tokens(made, tokens, count, token_bytes);
  if (status == BK_OK) *ds = made;
  else bk_dataset_close(made);
  return status;
}

void bk_dataset_close(bk_dataset *ds) {
  if (!ds) return;
  bk_dataset_free_files(ds);
  bk_free(ds->ctx, ds->segments);
  bk_free(ds->ctx, ds);
}

/* ---- looking ---- */

int64_t bk_dataset_tokens(const bk_dataset *ds) { return ds->tokens; }
int64_t bk_dataset_bytes(const bk_dataset *ds) { return ds->bytes; }
uint64_t bk_dataset_hash(const bk_dataset *ds) { return ds->hash; }
int64_t bk_dataset_kept_back(const bk_dataset *ds) { return ds->kept_back; }
bk_context *bk_dataset_context(const bk_dataset *ds) { return ds->ctx; }

int bk_dataset_files(const bk_dataset *ds, const bk_data_file **files) {
  *files = ds->files;
  return ds->n_files;
}

bool bk_dataset_sampled(const bk_dataset *ds) {
  for (size_t i = 0; i < ds->n_segments; i++)
    if (ds->segments[i].sampled) return true;
  return false;
}

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

/* Tokens [i, i + count) of a segment. The end token of a text is not stored. */
static bool read_segment(const bk_dataset *ds, const bk_segment *g, int64_t i, int64_t count,
                         int32_t *out, bk_data_fault *fault) {
  bool end = g->ends && i + count == g->count;
  if (end) out[--count] = BK_TOKEN_END;
  if (!g->data) return count == 0 || bk_segment_read(ds, g, i, count, out, fault);
  for (int64_t k = 0; k < count; k++) out[k] = (int32_t)stored_token(g, i + k);
  return true;
}

/* Reads the tokens [first, first + count) of the whole data. */
static bool read_tokens(const bk_dataset *ds, int64_t first, int64_t count, int32_t *out,
                        bk_data_fault *fault) {
  size_t s = segment_of(ds, first);
  for (int64_t done = 0, n; done < count; done += n, s++) {
    const bk_segment *g = &ds->segments[s];
    int64_t i = first + done - g->first;
    n = g->count - i < count - done ? g->count - i : count - done;
    if (!read_segment(ds, g, i, n, out + done, fault)) return false;
  }
  return true;
}

/* ids are the tokens [first, first + count), targets the same shifted by one. */
static bool read_window(const bk_dataset *ds, int64_t first, int64_t count, int32_t *ids,
                        int32_t *targets, bk_data_fault *fault) {
  if (!read_tokens(ds, first, 1, ids, fault) || !read_tokens(ds, first + 1, count, targets, fault))
    return false;
  memcpy(ids + 1, targets, (size_t)(count - 1) * sizeof *ids);
  return true;
}

/* Every call is a reading by itself; whole sequences are read at once. */
int64_t bk_dataset_at(const bk_dataset *ds, int64_t i) {
  int32_t token;
  bk_data_fault fault;
  if (read_tokens(ds, i, 1, &token, &fault)) return token;
  bk_dataset_fail(ds, &fault);
  return -1;
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
bool bk_dataset_fetch(const bk_dataset *ds, uint64_t seed, int64_t seq_len, int64_t s, int32_t *ids,
                      int32_t *targets, bk_data_fault *fault) {
  static const char order_name[] = "data order", offset_name[] = "data offset";
  int64_t windows = train_windows(ds, seq_len);
  uint64_t epoch = (uint64_t)(s / windows);
  int64_t room = ds->tokens - 1 - windows * seq_len;
  double u = bk_uniform(seed, bk_hash64(offset_name, sizeof offset_name - 1), epoch);
  int64_t offset = (int64_t)(u * (double)(room + 1));
  if (offset > room) offset = room;
  uint64_t window = permute(seed, bk_hash64(order_name, sizeof order_name - 1), epoch,
                            (uint64_t)windows, (uint64_t)(s % windows));
  return read_window(ds, offset + (int64_t)window * seq_len, seq_len, ids, targets, fault);
}

bk_status bk_dataset_train_sequence(const bk_dataset *ds, uint64_t seed, int64_t seq_len, int64_t s,
                                    int32_t *ids, int32_t *targets) {
  bk_data_fault fault;
  return bk_dataset_fetch(ds, seed, seq_len, s, ids, targets, &fault) ? BK_OK
                                                                      : bk_dataset_fail(ds, &fault);
}

/* ---- evaluation ---- */

/* Every token but the first is a target once; a last window that is short counts as well. */
int64_t bk_dataset_eval_windows(const bk_dataset *ds, int64_t seq_len) {
  return (ds->tokens - 1) / seq_len + ((ds->tokens - 1) % seq_len != 0);
}

/* Windows of evaluation cover the data in order, each token once. The last one is filled up with
 * id 0, whose targets are ignored. */
bk_status bk_dataset_eval_window(const bk_dataset *ds, int64_t seq_len, int64_t i, int32_t *ids,
                                 int32_t *targets, int64_t *kept) {
  int64_t first = i * seq_len, left = ds->tokens - 1 - first;
  int64_t n = left < 0 ? 0 : left < seq_len ? left : seq_len;
  bk_data_fault fault;
  if (n > 0 && !read_window(ds, first, n, ids, targets, &fault)) return bk_dataset_fail(ds, &fault);
  for (int64_t j = n; j < seq_len; j++) {
    ids[j] = 0;
    targets[j] = -100;
  }
  *kept = n;
  return BK_OK;
}
