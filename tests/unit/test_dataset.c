/* Token data: splits, windows, training order, and every file that is refused. */
#include "tests/unit/unit.h"

#include <sys/stat.h>
#include <unistd.h>

#include "io/dataset.h"

static void put(const char *name, const void *data, size_t bytes) {
  ck_assert_int_eq(bk_file_write_atomic(ctx, unit_path(name), data, bytes), BK_OK);
}

static void expect_once(const char *part) {
  const char *newline = strchr(unit_messages, '\n');
  ck_assert_msg(newline && newline[1] == '\0', "exactly one message was expected:\n%s",
                unit_messages);
  unit_expect(part);
}

static bk_dataset *open_one(const char *name, bk_split split, int64_t vocab) {
  bk_dataset *ds = NULL;
  bk_dataset_options options = {.vocab_size = vocab, .split = split};
  ck_assert_int_eq(bk_dataset_open(ctx, (const char *const[]){unit_path(name)}, 1, &options, &ds),
                   BK_OK);
  return ds;
}

static void refused(const char *name, bk_split split, int64_t vocab, int data_dtype,
                    bk_status status, const char *part) {
  bk_dataset *ds = NULL;
  bk_dataset_options options = {.vocab_size = vocab, .data_dtype = data_dtype, .split = split};
  ck_assert_int_eq(bk_dataset_open(ctx, (const char *const[]){unit_path(name)}, 1, &options, &ds),
                   status);
  ck_assert_ptr_null(ds);
  expect_once(part);
}

static int64_t eval_window(const bk_dataset *ds, int64_t len, int64_t w, int32_t *ids,
                           int32_t *targets) {
  int64_t kept = -1;
  ck_assert_int_eq(bk_dataset_eval_window(ds, len, w, ids, targets, &kept), BK_OK);
  return kept;
}

/* Tokens wanted: `bytes` from `text`, then the end token if `ends`. */
static void holds(const bk_dataset *ds, const char *text, int64_t bytes, bool ends) {
  ck_assert_int_eq(bk_dataset_tokens(ds), bytes + ends);
  ck_assert_int_eq(bk_dataset_bytes(ds), bytes);
  for (int64_t i = 0; i < bytes; i++)
    ck_assert_int_eq(bk_dataset_at(ds, i), (unsigned char)text[i]);
  if (ends) ck_assert_int_eq(bk_dataset_at(ds, bytes), BK_TOKEN_END);
}

static void split_is(const char *text, int64_t train, int64_t val) {
  int64_t all = (int64_t)strlen(text);
  put("t.txt", text, strlen(text));
  bk_dataset *ds = open_one("t.txt", BK_SPLIT_TRAIN, 257);
  holds(ds, text, train, train == all);
  bk_dataset_close(ds);
  ds = open_one("t.txt", BK_SPLIT_ALL, 257);
  holds(ds, text, all, true);
  bk_dataset_close(ds);
  if (val == 0) return;
  ds = open_one("t.txt", BK_SPLIT_VAL, 257);
  holds(ds, text + train, val, true);
  bk_dataset_close(ds);
}

START_TEST(text_splits) {
  split_is("0123456789", 9, 1);
  split_is("0123456789abcdefghi", 18, 1); /* floor(19 / 10) */
  split_is("0123456789abcdefghij", 18, 2);
  split_is("012345678", 9, 0);
  split_is("x", 1, 0);
  put("short.txt", "012345678", 9);
  refused("short.txt", BK_SPLIT_VAL, 257, 0, BK_ERR_DATA, "no tokens in the validation part");
}
END_TEST

/* 10 % of each file, not of the whole; one file after the other. */
START_TEST(several_files) {
  put("a.txt", "aaaaaaaaaA", 10);
  put("b.txt", "bbb", 3);
  put("c.txt", "ccccccccccccccccccCC", 20);
  const char *const paths[] = {unit_path("a.txt"), unit_path("b.txt"), unit_path("c.txt")};
  bk_dataset_options options = {.vocab_size = 257, .split = BK_SPLIT_VAL};
  bk_dataset *ds;
  ck_assert_int_eq(bk_dataset_open(ctx, paths, 3, &options, &ds), BK_OK);
  static const int64_t val[] = {'A', 256, 'C', 'C', 256};
  ck_assert_int_eq(bk_dataset_tokens(ds), (int64_t)BK_COUNT(val));
  for (size_t i = 0; i < BK_COUNT(val); i++)
    ck_assert_int_eq(bk_dataset_at(ds, (int64_t)i), val[i]);
  ck_assert_int_eq(bk_dataset_bytes(ds), 3);
  bk_dataset_close(ds);
  options.split = BK_SPLIT_ALL;
  ck_assert_int_eq(bk_dataset_open(ctx, paths, 3, &options, &ds), BK_OK);
  ck_assert_int_eq(bk_dataset_tokens(ds), 36);
  ck_assert_int_eq(bk_dataset_at(ds, 10), 256);
  ck_assert_int_eq(bk_dataset_at(ds, 11), 'b');
  ck_assert_int_eq(bk_dataset_at(ds, 14), 256);
  ck_assert_int_eq(bk_dataset_at(ds, 15), 'c');
  ck_assert_int_eq(bk_dataset_at(ds, 35), 256);
  int32_t ids[40], targets[40];
  ck_assert_int_eq(eval_window(ds, 40, 0, ids, targets), 35);
  for (int i = 0; i < 35; i++) {
    ck_assert_int_eq(ids[i], bk_dataset_at(ds, i));
    ck_assert_int_eq(targets[i], bk_dataset_at(ds, i + 1));
  }
  bk_dataset_close(ds);
}
END_TEST

START_TEST(bytes_are_bytes) {
  unsigned char raw[256];
  /* NUL and invalid UTF-8 among them */
  for (int i = 0; i < 256; i++) raw[i] = (unsigned char)(255 - i);
  put("raw.txt", raw, sizeof raw);
  bk_dataset *ds = open_one("raw.txt", BK_SPLIT_ALL, 257);
  holds(ds, (const char *)raw, 256, true);
  bk_dataset_close(ds);
}
END_TEST

START_TEST(bin_files) {
  static const uint16_t small[] = {0, 300, 65535, 7};
  static const uint32_t large[] = {0, 70000, 2147483646, 7, 1};
  bk_dataset *ds;
  put("s.bin", small, sizeof small);
  put("l.bin", large, sizeof large);
  ds = open_one("s.bin", BK_SPLIT_TRAIN, 65536);
  ck_assert_int_eq(bk_dataset_tokens(ds), 4);
  for (size_t i = 0; i < 4; i++) ck_assert_int_eq(bk_dataset_at(ds, (int64_t)i), small[i]);
  ck_assert_int_eq(bk_dataset_bytes(ds), -1);
  bk_dataset_close(ds);
  ds = open_one("l.bin", BK_SPLIT_ALL, INT32_MAX);
  ck_assert_int_eq(bk_dataset_tokens(ds), 5);
  for (size_t i = 0; i < 5; i++) ck_assert_int_eq(bk_dataset_at(ds, (int64_t)i), large[i]);
  bk_dataset_close(ds);
  bk_dataset_options options = {.vocab_size = INT32_MAX, .data_dtype = 1, .split = BK_SPLIT_ALL};
  ck_assert_int_eq(
      bk_dataset_open(ctx, (const char *const[]){unit_path("l.bin")}, 1, &options, &ds), BK_OK);
  ck_assert_int_eq(bk_dataset_tokens(ds), 10);
  bk_dataset_close(ds);
  put("t.txt", "some text here", 14); /* one .bin among texts: the bytes are not known */
  options.data_dtype = 0;
  ck_assert_int_eq(
      bk_dataset_open(ctx, (const char *const[]){unit_path("l.bin"), unit_path("t.txt")}, 2,
                      &options, &ds),
      BK_OK);
  ck_assert_int_eq(bk_dataset_bytes(ds), -1);
  ck_assert_int_eq(bk_dataset_tokens(ds), 20);
  bk_dataset_close(ds);
  options.split = BK_SPLIT_VAL;
  ck_assert_int_eq(
      bk_dataset_open(ctx, (const char *const[]){unit_path("l.bin"), unit_path("t.txt")}, 2,
                      &options, &ds),
      BK_OK);
  ck_assert_int_eq(bk_dataset_bytes(ds), 1); /* the .bin is too short to have a validation part */
  bk_dataset_close(ds);
  refused("l.bin", BK_SPLIT_VAL, INT32_MAX, 0, BK_ERR_DATA,
          "l.bin: no tokens in the validation part: a text needs at least 10 bytes to have one, "
          "and a .bin file 20 tokens");
}
END_TEST

/* The last tenth, whole tokens, if that are two. */
static void bin_split_is(int64_t tokens, int64_t val, int width) {
  int64_t bytes = tokens * width;
  char *data = bk_alloc(ctx, (size_t)bytes);
  for (int64_t i = 0; i < tokens; i++)
    data[i * width] = (char)(i % 100 + 1), data[i * width + 1] = (char)(i % 7 + 1);
  put("v.bin", data, (size_t)bytes);
  for (int whole = 0; whole < 2; whole++) {
    const char *paths[] = {unit_path("v.bin")};
    bk_dataset_options options = {
        .vocab_size = 65536, .data_dtype = width / 2, .split = BK_SPLIT_TRAIN, .whole_bin = whole};
    int64_t kept_back = whole ? 0 : val;
    bk_dataset *ds = NULL, *all = NULL;
    ck_assert_int_eq(bk_dataset_open(ctx, paths, 1, &options, &ds), BK_OK);
    ck_assert_int_eq(bk_dataset_tokens(ds), tokens - kept_back);
    ck_assert_int_eq(bk_dataset_kept_back(ds), kept_back);
    options.split = BK_SPLIT_ALL;
    ck_assert_int_eq(bk_dataset_open(ctx, paths, 1, &options, &all), BK_OK);
    ck_assert_int_eq(bk_dataset_tokens(all), tokens);
    ck_assert((bk_dataset_hash(ds) == bk_dataset_hash(all)) == (kept_back == 0));
    bk_dataset_close(ds);
    options.split = BK_SPLIT_VAL;
    ds = NULL;
    if (kept_back) {
      ck_assert_int_eq(bk_dataset_open(ctx, paths, 1, &options, &ds), BK_OK);
      ck_assert_int_eq(bk_dataset_tokens(ds), val);
      for (int64_t i = 0; i < val; i++)
        ck_assert_int_eq(bk_dataset_at(ds, i), bk_dataset_at(all, tokens - val + i));
    } else {
      ck_assert_int_eq(bk_dataset_open(ctx, paths, 1, &options, &ds), BK_ERR_DATA);
      ck_assert_ptr_null(ds);
      expect_once(whole ? "with bin_validation=false a .bin file has none"
                        : "a .bin file 20 tokens");
    }
    bk_dataset_close(ds);
    bk_dataset_close(all);
  }
  bk_free(ctx, data);
}

START_TEST(bin_splits) {
  static const int64_t sizes[][2] = {{2, 0},  {10, 0}, {19, 0},     {20, 2},
                                     {29, 2}, {30, 3}, {1000, 100}, {1009, 100}};
  for (size_t i = 0; i < BK_COUNT(sizes); i++) {
    bin_split_is(sizes[i][0], sizes[i][1], 2);
    bin_split_is(sizes[i][0], sizes[i][1], 4);
  }
}
END_TEST

/* The hash that trainer states of runs from before the split hold: of this very stream, all of
 * it. */
START_TEST(bin_hash_stays) {
  uint16_t ids[300];
  for (size_t i = 0; i < BK_COUNT(ids); i++) ids[i] = (uint16_t)(i * 7 % 251);
  put("h.bin", ids, sizeof ids);
  bk_dataset *ds = NULL;
  bk_dataset_options options = {.vocab_size = 257, .split = BK_SPLIT_TRAIN, .whole_bin = true};
  ck_assert_int_eq(
      bk_dataset_open(ctx, (const char *const[]){unit_path("h.bin")}, 1, &options, &ds), BK_OK);
  const uint64_t parts[4] = {0, BK_COUNT(ids), 2, bk_hash64(ids, sizeof ids)};
  ck_assert(bk_dataset_hash(ds) == bk_hash64(parts, sizeof parts));
  ck_assert_int_eq(bk_dataset_tokens(ds), 300);
  bk_dataset_close(ds);
}
END_TEST

START_TEST(bin_by_name) {
  static const char *const streams[] = {"a.bin", "a.BIN", "dir/x.Bin", ".bin", "a.b.bIN"},
                           *const texts[] = {"a.bin.txt", "bin", "abin",   "a.bi",
                                             "a.bin ",    "",    "a.binx", "a.bÄ±n"};
  for (size_t i = 0; i < BK_COUNT(streams); i++)
    ck_assert_msg(bk_path_is_bin(streams[i]), "%s", streams[i]);
  for (size_t i = 0; i < BK_COUNT(texts); i++)
    ck_assert_msg(!bk_path_is_bin(texts[i]), "%s", texts[i]);
  static const uint16_t ids[] = {5, 300, 7};
  put("UP.BIN", ids, sizeof ids);
  bk_dataset *ds = open_one("UP.BIN", BK_SPLIT_ALL, 400);
  ck_assert_int_eq(bk_dataset_tokens(ds), 3);
  ck_assert_int_eq(bk_dataset_at(ds, 1), 300);
  bk_dataset_close(ds);
}
END_TEST

/* What is looked for: recognise.h. Here: that it is looked for, whatever the name, the split and
 * data_dtype. */
START_TEST(wrong_kinds) {
  static const char npy[] = "\x93NUMPY\1\0\x76\0{'descr': '<u2', }\n";
  static const char prose[] =
      "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals, "
      "when it was checked by a violent gust of wind.";
  uint32_t wide[100];
  uint64_t wider[100];
  uint16_t narrow[100], swapped[20], late[400] = {0};
  for (uint32_t i = 0; i < 100; i++)
    wide[i] = i * 37 % 1000 + 1, wider[i] = wide[i], narrow[i] = (uint16_t)wide[i];
  for (int i = 0; i < 20; i++) swapped[i] = (uint16_t)((i + 3) << 8);
  for (int i = 0; i < 400; i++) late[i] = (uint16_t)(i + 1);
  put("a.txt", npy, sizeof npy - 1);
  put("a.bin", npy, sizeof npy - 1);
  put("prose.bin", prose, sizeof prose - 1);
  put("wide.bin", wide, sizeof wide);
  put("wide.dat", wide, sizeof wide);
  put("wider.bin", wider, sizeof wider);
  put("narrow.bin", narrow, sizeof narrow);
  put("swapped.bin", swapped, sizeof swapped);
  put("late.bin", late, sizeof late);
  for (int split = 0; split < 3; split++) {
    refused("a.txt", (bk_split)split, 257, 0, BK_ERR_DATA, "a.txt is a NumPy array (.npy)");
    refused("a.bin", (bk_split)split, 257, 0, BK_ERR_DATA, "a.bin is a NumPy array (.npy)");
    refused("prose.bin", (bk_split)split, 65536, 0, BK_ERR_DATA,
            "prose.bin is text; under a name that does not end in .bin");
    refused("wide.dat", (bk_split)split, 257, 0, BK_ERR_DATA,
            "wide.dat is not text: of its first 400 bytes");
    for (int dtype = 0; dtype < 2; dtype++)
      refused("wide.bin", (bk_split)split, 1001, dtype, BK_ERR_DATA,
              "wide.bin is a stream of uint32 tokens, not of uint16");
    for (int dtype = 0; dtype < 3; dtype++)
      refused("wider.bin", (bk_split)split, 1001, dtype, BK_ERR_DATA,
              "wider.bin is a stream of 64-bit integers");
  }
  refused("narrow.bin", BK_SPLIT_TRAIN, 70000, 0, BK_ERR_DATA,
          "token 2490369 at token 0 is not below vocab_size (70000); read as uint16 every token "
          "is: set data_dtype=uint16");
  refused("narrow.bin", BK_SPLIT_ALL, 1001, 2, BK_ERR_DATA, "read as uint16 every token is");
  refused("swapped.bin", BK_SPLIT_ALL, 257, 0, BK_ERR_DATA,
          "token 768 at token 0 is not below vocab_size (257); read as big-endian uint16 every "
          "token is: convert");
  refused("late.bin", BK_SPLIT_VAL, 380, 0, BK_ERR_DATA,
          "late.bin: token 380 at token 379 is not below vocab_size (380)");
}
END_TEST

/* None of these may wait for somebody to write into it. */
START_TEST(not_regular) {
  ck_assert_int_eq(mkfifo(unit_path("fifo"), 0600), 0);
  ck_assert_int_eq(mkfifo(unit_path("fifo.bin"), 0600), 0);
  refused("fifo", BK_SPLIT_ALL, 257, 0, BK_ERR_DATA, "fifo is not a regular file");
  refused("fifo.bin", BK_SPLIT_VAL, 257, 0, BK_ERR_DATA, "fifo.bin is not a regular file");
  ck_assert_int_eq(symlink("/dev/null", unit_path("null")), 0);
  refused("null", BK_SPLIT_TRAIN, 257, 0, BK_ERR_DATA,
          "null is not a regular file but a pipe, a terminal or a device");
}
END_TEST

START_TEST(bad_files) {
  static const uint16_t ids[] = {1, 2, 3, 300, 4};
  put("empty.txt", "", 0);
  put("empty.bin", "", 0);
  put("odd.bin", "abc", 3);
  put("six.bin", "abcdef", 6);
  put("ids.bin", ids, sizeof ids);
  put("text.txt",
      "ab\xff"
      "defghijklmnopqrstuvwx",
      24);
  refused("empty.txt", BK_SPLIT_TRAIN, 257, 0, BK_ERR_DATA, "empty.txt: the file is empty");
  refused("empty.bin", BK_SPLIT_ALL, 257, 0, BK_ERR_DATA, "empty.bin: the file is empty");
  refused("odd.bin", BK_SPLIT_ALL, 257, 0, BK_ERR_DATA,
          "odd.bin: 3 bytes are not a whole number of uint16 tokens");
  refused("six.bin", BK_SPLIT_ALL, 257, 2, BK_ERR_DATA,
          "six.bin: 6 bytes are not a whole number of uint32 tokens");
  refused("ids.bin", BK_SPLIT_ALL, 300, 0, BK_ERR_DATA,
          "ids.bin: token 300 at token 3 is not below vocab_size (300)");
  refused("text.txt", BK_SPLIT_ALL, 200, 0, BK_ERR_DATA,
          "text.txt: token 255 at byte 2 is not below vocab_size (200)");
  refused("text.txt", BK_SPLIT_ALL, 256, 0, BK_ERR_DATA,
          "text.txt: the token that ends a text, 256, is not below vocab_size (256)");
  refused("text.txt", BK_SPLIT_VAL, 119, 0, BK_ERR_DATA,
          "text.txt: token 119 at byte 22 is not below vocab_size (119)");
  refused("absent.txt", BK_SPLIT_ALL, 257, 0, BK_ERR_IO, "absent.txt");
  refused("", BK_SPLIT_ALL, 257, 0, BK_ERR_IO, "Is a directory");
  refused("ids.bin", BK_SPLIT_ALL, 0, 0, BK_ERR_ARGUMENT, "vocab_size");
  bk_dataset *ds;
  bk_dataset_options options = {.vocab_size = 257};
  ck_assert_int_eq(bk_dataset_open(ctx, NULL, 0, &options, &ds), BK_ERR_DATA);
  expect_once("no data files");
  bk_dataset_close(NULL);
}
END_TEST

START_TEST(too_short) {
  put("nine.txt", "012345678", 9);
  bk_dataset *ds = open_one("nine.txt", BK_SPLIT_ALL, 257);
  ck_assert_int_eq(bk_dataset_check_seq_len(ctx, ds, 9), BK_OK);
  ck_assert_int_eq(bk_dataset_check_seq_len(ctx, ds, 10), BK_ERR_DATA);
  expect_once("the data has 10 tokens, a sequence of seq_len 10 needs 11");
  put("twenty.txt", "01234567890123456789", 20);
  bk_dataset *part = open_one("twenty.txt", BK_SPLIT_TRAIN, 257);
  ck_assert_int_eq(bk_dataset_check_seq_len(ctx, part, 18), BK_ERR_DATA);
  expect_once(
      "the data has 18 tokens beside its validation part, a sequence of seq_len 18 needs 19");
  bk_dataset_close(part);
  ck_assert_int_eq(bk_dataset_check_seq_len(ctx, ds, 0), BK_ERR_ARGUMENT);
  expect_once("seq_len");
  bk_dataset_close(ds);
}
END_TEST

static uint64_t hash_of(const char *name, bk_split split) {
  bk_dataset *ds = open_one(name, split, 257);
  uint64_t hash = bk_dataset_hash(ds);
  bk_dataset_close(ds);
  return hash;
}

START_TEST(hash_is_of_contents) {
  put("a.txt", "the same contents", 17);
  put("b.txt", "the same contents", 17);
  put("c.txt", "the same contentz", 17);
  put("d.txt", "the same contents ", 18);
  ck_assert(hash_of("a.txt", BK_SPLIT_ALL) == hash_of("b.txt", BK_SPLIT_ALL));
  ck_assert(hash_of("a.txt", BK_SPLIT_ALL) != hash_of("c.txt", BK_SPLIT_ALL));
  ck_assert(hash_of("a.txt", BK_SPLIT_ALL) != hash_of("d.txt", BK_SPLIT_ALL));
  ck_assert(hash_of("a.txt", BK_SPLIT_TRAIN) != hash_of("a.txt", BK_SPLIT_ALL));
  /* they differ in the last tenth */
  ck_assert(hash_of("a.txt", BK_SPLIT_TRAIN) == hash_of("c.txt", BK_SPLIT_TRAIN));
}
END_TEST

START_TEST(eval_windows) {
  char text[25];
  memset(text, 'e', sizeof text);
  for (int64_t bytes = 1; bytes <= (int64_t)sizeof text; bytes++) {
    for (int i = 0; i < bytes; i++) text[i] = (char)('a' + i);
    put("e.txt", text, (size_t)bytes);
    bk_dataset *ds = open_one("e.txt", BK_SPLIT_ALL, 257);
    for (int64_t len = 1; len < 30; len++) {
      int64_t windows = bk_dataset_eval_windows(ds, len), predicted = 0;
      int32_t ids[30], targets[30];
      ck_assert_int_eq(windows, (bytes + len - 1) / len); /* tokens - 1 = bytes are predicted */
      for (int64_t w = 0; w < windows; w++) {
        int64_t kept = eval_window(ds, len, w, ids, targets);
        ck_assert_int_eq(kept, w + 1 < windows ? len : bytes - w * len);
        for (int64_t i = 0; i < len; i++) {
          ck_assert_int_eq(ids[i], i < kept ? bk_dataset_at(ds, w * len + i) : 0);
          ck_assert_int_eq(targets[i], i < kept ? bk_dataset_at(ds, w * len + i + 1) : -100);
        }
        predicted += kept;
      }
      ck_assert_int_eq(predicted, bytes);
      ck_assert_int_eq(eval_window(ds, len, windows, ids, targets), 0);
    }
    bk_dataset_close(ds);
  }
}
END_TEST

/* Token i of "order.bin" is i, so that a window tells where it was cut. */
static bk_dataset *counting(int64_t tokens) {
  uint16_t *data = bk_alloc_array(ctx, (size_t)tokens, sizeof *data);
  for (int64_t i = 0; i < tokens; i++) data[i] = (uint16_t)i;
  put("order.bin", data, (size_t)tokens * sizeof *data);
  bk_free(ctx, data);
  return open_one("order.bin", BK_SPLIT_ALL, 65536);
}

static int64_t window_start(const bk_dataset *ds, uint64_t seed, int64_t len, int64_t s) {
  static int32_t ids[4096], targets[4096];
  ck_assert_int_le(len, 4096);
  ck_assert_int_eq(bk_dataset_train_sequence(ds, seed, len, s, ids, targets), BK_OK);
  for (int64_t i = 0; i < len; i++) {
    ck_assert_int_eq(ids[i], ids[0] + i);
    ck_assert_int_eq(targets[i], ids[i] + 1);
  }
  ck_assert_int_lt(targets[len - 1], bk_dataset_tokens(ds));
  return ids[0];
}

/* Each epoch visits every window of its cut once; the number of windows is that of the contract. */
static void epochs_are_whole(int64_t tokens, int64_t len) {
  bk_dataset *ds = counting(tokens);
  int64_t all = (tokens - 1) / len, windows = all > 8 ? all - 1 : all;
  bool *seen = bk_alloc_array(ctx, (size_t)windows, sizeof *seen);
  for (int64_t epoch = 0; epoch < 4; epoch++) {
    int64_t offset = tokens;
    memset(seen, 0, (size_t)windows * sizeof *seen);
    for (int64_t i = 0; i < windows; i++) {
      int64_t start = window_start(ds, 5, len, epoch * windows + i);
      if (start < offset) offset = start;
    }
    for (int64_t i = 0; i < windows; i++) {
      int64_t start = window_start(ds, 5, len, epoch * windows + i) - offset;
      ck_assert_int_eq(start % len, 0);
      ck_assert_int_lt(start / len, windows);
      ck_assert_msg(!seen[start / len], "epoch %lld visits window %lld twice", (long long)epoch,
                    (long long)(start / len));
      seen[start / len] = true;
    }
  }
  bk_free(ctx, seen);
  bk_dataset_close(ds);
}

START_TEST(every_window_once) {
  static const int64_t sizes[][2] = {{2, 1},    {5, 4},     {6, 4},     {9, 4},  {100, 7},
                                     {1000, 1}, {1000, 31}, {4097, 64}, {33, 4}, {37, 4}};
  for (size_t i = 0; i < BK_COUNT(sizes); i++) epochs_are_whole(sizes[i][0], sizes[i][1]);
}
END_TEST

/* A pure function of (seed, number); other seeds and epochs have other orders and cuts. */
START_TEST(order) {
  bk_dataset *ds = counting(10000);
  int64_t windows = (10000 - 1) / 50 - 1, first[2] = {0, 0}, same_seed = 0, same_epoch = 0,
          in_order = 0;
  for (int64_t i = 0; i < windows; i++) {
    int64_t start = window_start(ds, 1, 50, i);
    ck_assert_int_eq(start, window_start(ds, 1, 50, i));
    same_seed += start == window_start(ds, 2, 50, i);
    same_epoch += start == window_start(ds, 1, 50, windows + i);
    in_order += i > 0 && start == window_start(ds, 1, 50, i - 1) + 50;
    if (i == 0) first[0] = start % 50, first[1] = window_start(ds, 1, 50, windows) % 50;
  }
  ck_assert_int_lt(same_seed, windows / 10);
  ck_assert_int_lt(same_epoch, windows / 10);
  ck_assert_int_lt(in_order, windows / 10);
  ck_assert_int_ne(first[0], first[1]);
  window_start(ds, 1, 50, INT64_MAX / 2); /* far positions work */
  bk_dataset_close(ds);
}
END_TEST

/* ---- files that are not read whole ---- */

#define LARGE ((int64_t)20 << 20) /* bytes; parts of more than 16 MiB are not read whole */
#define LARGE_TOKENS (LARGE / 2)

static uint16_t large_token(int64_t i) { return (uint16_t)(i * 31 % 4001 + i / 4001 % 7); }

static void put_large(const char *name) {
  uint16_t *data = bk_alloc_array(ctx, LARGE_TOKENS, sizeof *data);
  for (int64_t i = 0; i < LARGE_TOKENS; i++) data[i] = large_token(i);
  put(name, data, LARGE);
  bk_free(ctx, data);
}

/* Writes over a token where it lies. */
static void set_token(const char *name, int64_t i, uint16_t token) {
  FILE *f = fopen(unit_path(name), "r+b");
  ck_assert_ptr_nonnull(f);
  ck_assert_int_eq(fseek(f, 2 * i, SEEK_SET), 0);
  ck_assert_int_eq(fwrite(&token, 2, 1, f), 1);
  ck_assert_int_eq(fclose(f), 0);
}

/* Tokens between the first block and the second, of which none is looked at on opening. */
#define UNSEEN 100000

static uint64_t large_hash(const char *name, uint64_t *whole) {
  bk_dataset *ds = open_one(name, BK_SPLIT_ALL, 5000);
  uint64_t hash = bk_dataset_hash(ds);
  ck_assert(bk_dataset_sampled(ds));
  ck_assert_int_eq(bk_dataset_hash_whole(ds, whole), BK_OK);
  bk_dataset_close(ds);
  return hash;
}

START_TEST(large_files) {
  uint64_t hash[6], whole[6];
  bk_memory_stats before, after;
  put_large("large.bin");
  bk_context_memory_stats(ctx, &before);
  bk_dataset *ds = open_one("large.bin", BK_SPLIT_ALL, 5000);
  bk_context_memory_stats(ctx, &after);
  ck_assert_uint_lt(after.current_bytes - before.current_bytes, 4096);
  ck_assert_int_eq(bk_dataset_tokens(ds), LARGE_TOKENS);
  for (int64_t i = 0; i < LARGE_TOKENS; i += 99991)
    ck_assert_int_eq(bk_dataset_at(ds, i), large_token(i));
  static int32_t ids[1000], targets[1000];
  for (int64_t w = 0; w < LARGE_TOKENS / 1000; w += 1237) {
    ck_assert_int_eq(eval_window(ds, 1000, w, ids, targets), 1000);
    for (int64_t t = 0; t < 1000; t++) {
      ck_assert_int_eq(ids[t], large_token(1000 * w + t));
      ck_assert_int_eq(targets[t], large_token(1000 * w + t + 1));
    }
  }
  bk_dataset_close(ds);
  hash[0] = large_hash("large.bin", &whole[0]);
  /* contents that are not looked at make no other hash; all others do */
  static const int64_t places[] = {UNSEEN, 0, 32767, LARGE_TOKENS - 32768, LARGE_TOKENS - 1};
  for (int i = 1; i < 6; i++) {
    int64_t at = places[i - 1];
    set_token("large.bin", at, (uint16_t)(large_token(at) + 1));
    hash[i] = large_hash("large.bin", &whole[i]);
    set_token("large.bin", at, large_token(at));
    ck_assert_msg((hash[i] == hash[0]) == (i == 1), "place %lld", (long long)at);
    ck_assert(whole[i] != whole[0]);
  }
  ck_assert(large_hash("large.bin", &whole[1]) == hash[0] && whole[1] == whole[0]);
}
END_TEST

/* The hash that older versions made of the whole file, and its samples: not by chance the same. */
START_TEST(large_hash_of_old) {
  uint64_t whole;
  put_large("large.bin");
  uint64_t sampled = large_hash("large.bin", &whole);
  uint16_t *data = bk_alloc_array(ctx, LARGE_TOKENS, sizeof *data);
  for (int64_t i = 0; i < LARGE_TOKENS; i++) data[i] = large_token(i);
  const uint64_t parts[4] = {0, LARGE_TOKENS, 2, bk_hash64(data, LARGE)};
  ck_assert(whole == bk_hash64(parts, sizeof parts));
  ck_assert(whole != sampled);
  bk_free(ctx, data);
  /* small files as ever */
  put("t.txt", "0123456789", 10);
  bk_dataset *ds = open_one("t.txt", BK_SPLIT_ALL, 257);
  ck_assert(!bk_dataset_sampled(ds));
  ck_assert_int_eq(bk_dataset_hash_whole(ds, &whole), BK_OK);
  ck_assert(whole == bk_dataset_hash(ds));
  bk_dataset_close(ds);
}
END_TEST

/* A token that is no id: found on opening where blocks are looked at, else when it is read. */
START_TEST(large_wrong_tokens) {
  int32_t ids[100], targets[100];
  int64_t kept = -7;
  put_large("large.bin");
  set_token("large.bin", LARGE_TOKENS - 5, 5000);
  refused("large.bin", BK_SPLIT_ALL, 5000, 0, BK_ERR_DATA,
          "large.bin: token 5000 at token 10485755 is not below vocab_size (5000)");
  set_token("large.bin", LARGE_TOKENS - 5, 0);
  set_token("large.bin", UNSEEN, 5001);
  bk_dataset *ds = open_one("large.bin", BK_SPLIT_ALL, 5000);
  ck_assert_int_eq(eval_window(ds, 100, UNSEEN / 100 - 2, ids, targets), 100);
  ck_assert_int_eq(bk_dataset_eval_window(ds, 100, UNSEEN / 100, ids, targets, &kept), BK_ERR_DATA);
  expect_once("large.bin: token 5001 at token 100000 is not below vocab_size (5000)");
  ck_assert_int_eq(kept, -7);
  ck_assert_int_eq(bk_dataset_at(ds, UNSEEN), -1);
  expect_once("token 5001");
  bk_dataset_close(ds);
  /* the advice about another width is of a sample */
  refused("large.bin", BK_SPLIT_ALL, 70000, 0, BK_ERR_DATA,
          "; of a sample, read as uint16 every token is: set data_dtype=uint16");
}
END_TEST

/* ---- files that change ---- */

static bk_status read_all(const bk_dataset *ds) {
  int32_t ids[16], targets[16];
  int64_t kept;
  for (int64_t w = 0; w < bk_dataset_eval_windows(ds, 16); w++)
    BK_TRY(bk_dataset_eval_window(ds, 16, w, ids, targets, &kept));
  return BK_OK;
}

/* File 20 of 24 is opened anew for each reading, file 3 stays open. */
START_TEST(changed_files) {
  static const int numbers[] = {3, 20};
  static char names[24][16];
  const char *paths[24];
  char *copies[24];
  for (int i = 0; i < 24; i++) {
    snprintf(names[i], sizeof names[i], "f%02d.txt", i % 100);
    put(names[i], "abcdefghijklmnopqrstuvwxyz", 26);
    paths[i] = copies[i] = bk_strdup(ctx, unit_path(names[i]));
  }
  bk_dataset_options options = {.vocab_size = 257, .split = BK_SPLIT_ALL};
  const bk_data_file *files;
  bk_dataset *ds = NULL;
  for (int k = 0; k < 2; k++) {
    const char *name = names[numbers[k]];
    ck_assert_int_eq(bk_dataset_open(ctx, paths, 24, &options, &ds), BK_OK);
    ck_assert_int_eq(bk_dataset_files(ds, &files), 24);
    for (int i = 0; i < 24; i++) ck_assert(files[i].bytes == 26 && files[i].hash == files[0].hash);
    ck_assert_int_eq(read_all(ds), BK_OK);
    ck_assert_int_eq(truncate(unit_path(name), 25), 0);
    ck_assert_int_eq(read_all(ds), BK_ERR_DATA);
    expect_once(k ? "f20.txt has 25 bytes now and had 26" : "f03.txt has 25 bytes now and had 26");
    ck_assert_int_eq(truncate(unit_path(name), 1000), 0);
    ck_assert_int_eq(read_all(ds), BK_ERR_DATA);
    expect_once("has 1000 bytes now");
    ck_assert_int_eq(truncate(unit_path(name), 26), 0); /* a byte 0 at its end: an id */
    ck_assert_int_eq(read_all(ds), BK_OK);
    ck_assert_int_eq(remove(unit_path(name)), 0);
    if (k == 0) ck_assert_int_eq(read_all(ds), BK_OK); /* it is still open */
    if (k == 1) {
      ck_assert_int_eq(read_all(ds), BK_ERR_IO);
      expect_once("cannot open");
      ck_assert_int_eq(mkfifo(unit_path(name), 0600), 0);
      ck_assert_int_eq(read_all(ds), BK_ERR_DATA);
      expect_once("f20.txt is a regular file no longer");
      ck_assert_int_eq(remove(unit_path(name)), 0);
    }
    bk_dataset_close(ds);
    put(name, "abcdefghijklmnopqrstuvwxyz", 26);
  }
  for (int i = 0; i < 24; i++) bk_free(ctx, copies[i]);
}
END_TEST

UNIT_MAIN("dataset", unit_folder_open, unit_folder_close, text_splits, several_files,
          bytes_are_bytes, bin_files, bin_splits, bin_hash_stays, bin_by_name, wrong_kinds,
          not_regular, bad_files, too_short, hash_is_of_contents, eval_windows, every_window_once,
          order, large_files, large_hash_of_old, large_wrong_tokens, changed_files)
