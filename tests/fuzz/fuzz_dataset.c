/* libFuzzer target: any bytes as a text or a token stream. The first two say what is asked for:
 * split, width and kind of file, and the size of the vocabulary. What opens gives only tokens of
 * the vocabulary, in every order in which it is read; what is recognised has a name. */
#include "io/dataset.h"
#include "io/recognise.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_target fuzz = {"dataset", 20000};

#define SEQ_MAX 7
#define TOKENS_MAX 4096 /* looked at one by one */

static void check_token(int64_t token, int64_t vocab) {
  if (token < 0 || token >= vocab) abort();
}

static void check_windows(const bk_dataset *ds, int64_t seq_len, int64_t vocab) {
  int32_t ids[SEQ_MAX], targets[SEQ_MAX];
  int64_t windows = bk_dataset_eval_windows(ds, seq_len), kept = 0, n;
  for (int64_t w = 0; w < windows && w < TOKENS_MAX; w++) {
    if (bk_dataset_eval_window(ds, seq_len, w, ids, targets, &n) != BK_OK) abort();
    kept += n;
    for (int64_t t = 0; t < seq_len; t++) {
      check_token(ids[t], vocab);
      if (targets[t] != -100) check_token(targets[t], vocab);
    }
  }
  if (windows <= TOKENS_MAX && kept != bk_dataset_tokens(ds) - 1) abort();
}

static void check_sequences(const bk_dataset *ds, int64_t seq_len, int64_t vocab) {
  int32_t ids[SEQ_MAX], targets[SEQ_MAX];
  for (int64_t s = 0; s < 20; s++) {
    if (bk_dataset_train_sequence(ds, 5, seq_len, s * s * s, ids, targets) != BK_OK) abort();
    for (int64_t t = 0; t < seq_len; t++) {
      check_token(ids[t], vocab);
      check_token(targets[t], vocab);
      if (t > 0 && ids[t] != targets[t - 1]) abort();
    }
  }
}

static void check_data(bk_context *ctx, const bk_dataset *ds, int64_t vocab) {
  int64_t tokens = bk_dataset_tokens(ds);
  if (tokens < 1) abort();
  for (int64_t i = 0; i < tokens && i < TOKENS_MAX; i++) check_token(bk_dataset_at(ds, i), vocab);
  check_token(bk_dataset_at(ds, tokens - 1), vocab);
  for (int64_t seq_len = 1; seq_len <= SEQ_MAX; seq_len += 3) {
    check_windows(ds, seq_len, vocab);
    if (bk_dataset_check_seq_len(ctx, ds, seq_len) == BK_OK) check_sequences(ds, seq_len, vocab);
  }
}

static void check_kinds(const uint8_t *data, size_t size, int64_t vocab) {
  for (int wanted = BK_WANTED_TEXT; wanted <= BK_WANTED_JSON; wanted++) {
    char words[BK_RECOGNISE_TEXT] = "";
    bool known = bk_recognise(data, size, size, (bk_wanted)wanted, words, sizeof words);
    if (known != (words[0] != '\0') || strlen(words) + 1 >= sizeof words) abort();
  }
  for (int width = 2; width <= 4; width += 2) {
    char words[BK_RECOGNISE_TEXT] = "";
    if (bk_recognise_width(data, size, width, vocab, words, sizeof words) != (words[0] != '\0'))
      abort();
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const int64_t vocabularies[] = {257, 65537, 1, 200};
  if (size < 2) return 0;
  unsigned how = data[0] - (unsigned)'0';
  int64_t vocab = vocabularies[(data[1] - (unsigned)'A') % 4];
  const char *path = how / 9 % 2 ? "input.bin" : "input";
  memory_file file = {.name = path, .data = data + 2, .bytes = size - 2};
  bk_fs fs = memory_fs(&file);
  size_t logged = 0;
  bk_dataset *ds = NULL;
  bk_context *ctx = memory_context(&fs, &logged);
  bk_dataset_options options = {.vocab_size = vocab,
                                .split = (bk_split)(how % 3),
                                .data_dtype = (int)(how / 3 % 3),
                                .whole_bin = how / 18 % 2};
  check_kinds(data + 2, size - 2, vocab);
  bk_status status = bk_dataset_open(ctx, &path, 1, &options, &ds);
  if (status == BK_OK) check_data(ctx, ds, vocab);
  else if (logged == 0 || ds) abort();
  bk_dataset_close(ds);
  memory_context_close(ctx, &logged);
  return 0;
}
