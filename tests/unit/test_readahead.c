/* Reading ahead: the same tokens as without it, whatever is asked for and was guessed, what fails
 * in the thread, files of the caller's own, and reading in both threads at once. */
#include "tests/unit/fault_fs.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <unistd.h>

#include "base/worker.h"
#include "io/readahead.h"

#define SEQ 24
#define ROOM 4
#define TOKENS 3000

static int32_t ids[ROOM * SEQ], targets[ROOM * SEQ];

static bk_dataset *open_words(const char *path) {
  bk_dataset *ds = NULL;
  bk_dataset_options options = {.vocab_size = 257, .split = BK_SPLIT_ALL};
  ck_assert_int_eq(bk_dataset_open(ctx, &path, 1, &options, &ds), BK_OK);
  return ds;
}

static void put_words(const char *path) {
  char text[TOKENS];
  for (int i = 0; i < TOKENS; i++) text[i] = (char)('a' + i * i % 26);
  ck_assert_int_eq(bk_file_write_atomic(ctx, path, text, sizeof text), BK_OK);
}

static bk_readahead *create(const bk_dataset *ds) {
  bk_readahead *r = NULL;
  ck_assert_int_eq(bk_readahead_create(ds, 9, SEQ, ROOM, &r), BK_OK);
  return r;
}

/* One reading, compared with what the dataset says. */
static void get(bk_readahead *r, const bk_dataset *ds, int64_t first, int64_t count, int64_t next) {
  int32_t want_ids[SEQ], want_targets[SEQ];
  memset(ids, 0xff, sizeof ids);
  ck_assert_int_eq(bk_readahead_get(r, first, count, next, ids, targets), BK_OK);
  for (int64_t i = 0; i < count; i++) {
    ck_assert_int_eq(bk_dataset_train_sequence(ds, 9, SEQ, first + i, want_ids, want_targets),
                     BK_OK);
    ck_assert_int_eq(memcmp(ids + i * SEQ, want_ids, sizeof want_ids), 0);
    ck_assert_int_eq(memcmp(targets + i * SEQ, want_targets, sizeof want_targets), 0);
  }
}

/* In order, in the strides of a rank, with wrong guesses, with parts of what was guessed, and none
 * at all. The comparison reads in this thread while the other one reads ahead. */
static void read_in_all_ways(const bk_dataset *ds) {
  bk_readahead *r = create(ds);
  for (int64_t s = 0; s < 200; s += ROOM) get(r, ds, s, ROOM, s + ROOM);
  for (int64_t s = 3; s < 200; s += 12) get(r, ds, s, 3, s + 12);
  for (int64_t s = 0; s < 200; s += 7) get(r, ds, s, 1 + s % ROOM, s * s % 50);
  for (int64_t s = 0; s < 20; s++) get(r, ds, s, ROOM, s + 2);
  get(r, ds, 5, 0, 6);
  get(r, ds, 6, ROOM, -1);
  get(r, ds, 6, ROOM, INT64_MAX / 2);
  bk_readahead_destroy(r);
  bk_readahead_destroy(NULL);
}

START_TEST(same_tokens) {
  put_words(unit_path("w.txt"));
  bk_dataset *ds = open_words(unit_path("w.txt"));
  ck_assert_uint_eq(bk_readahead_bytes(ctx, ds, SEQ, ROOM), 2 * sizeof ids);
  ck_assert_uint_eq(bk_readahead_bytes(ctx, NULL, SEQ, ROOM), 2 * sizeof ids);
  read_in_all_ways(ds);
  bk_dataset_close(ds);
}
END_TEST

START_TEST(from_memory) {
  unsigned char tokens[500];
  for (int i = 0; i < 500; i++) tokens[i] = (unsigned char)(i % 251);
  bk_dataset *ds = NULL;
  ck_assert_int_eq(bk_dataset_from_tokens(ctx, tokens, 500, 1, 257, &ds), BK_OK);
  ck_assert_uint_eq(bk_readahead_bytes(ctx, ds, SEQ, ROOM), 0);
  read_in_all_ways(ds);
  bk_dataset_close(ds);
}
END_TEST

/* ---- what fails ---- */

static void set_token(uint16_t token) {
  FILE *f = fopen(unit_path("t.bin"), "r+b");
  ck_assert_ptr_nonnull(f);
  ck_assert_int_eq(fseek(f, 2 * 1000, SEEK_SET), 0);
  ck_assert_int_eq(fwrite(&token, 2, 1, f), 1);
  ck_assert_int_eq(fclose(f), 0);
}

/* Token 1000 of 2000 is as large as the vocabulary now, although it was not on opening. *bad is a
 * sequence that has it. */
static bk_dataset *open_bad(int64_t *bad) {
  uint16_t tokens[2000];
  bk_dataset *ds = NULL;
  const char *path = unit_path("t.bin");
  bk_dataset_options options = {.vocab_size = 300, .split = BK_SPLIT_ALL};
  for (int i = 0; i < 2000; i++) tokens[i] = (uint16_t)(i % 299 + 1);
  ck_assert_int_eq(bk_file_write_atomic(ctx, path, tokens, sizeof tokens), BK_OK);
  ck_assert_int_eq(bk_dataset_open(ctx, &path, 1, &options, &ds), BK_OK);
  set_token(300);
  bk_data_fault fault;
  *bad = 10;
  while (bk_dataset_fetch(ds, 9, SEQ, *bad, ids, targets, &fault)) ++*bad;
  ck_assert_int_eq(fault.kind, BK_DATA_BAD_TOKEN);
  return ds;
}

static const char bad_words[] = "t.bin: token 300 at token 1000 is not below vocab_size (300)";

/* It is said when that sequence is asked for, even if the file is as it was by then. The next one
 * who asks has it read anew. */
START_TEST(fault_of_the_thread) {
  int64_t bad;
  bk_dataset *ds = open_bad(&bad);
  bk_readahead *r = create(ds);
  get(r, ds, bad - 4, 2, bad - 1);
  ck_assert_int_eq(bk_readahead_get(r, 0, 0, -1, ids, targets), BK_OK); /* waits for the thread */
  set_token(1);
  get(r, ds, bad - 1, 1, -1); /* what came before the fault is good */
  ck_assert_int_eq(bk_readahead_get(r, bad - 1, 2, -1, ids, targets), BK_ERR_DATA);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect(bad_words);
  get(r, ds, bad - 1, 2, -1);
  bk_readahead_destroy(r);
  bk_dataset_close(ds);
}
END_TEST

/* A guess that nobody asks for says nothing. */
START_TEST(fault_that_nobody_meets) {
  int64_t bad;
  bk_dataset *ds = open_bad(&bad);
  bk_readahead *r = create(ds);
  get(r, ds, 0, 2, bad);
  get(r, ds, 2, 2, bad - 1);
  bk_readahead_destroy(r);
  unit_expect(NULL);
  bk_dataset_close(ds);
}
END_TEST

/* In the calling thread, where the guess was another. */
START_TEST(fault_of_the_caller) {
  int64_t bad;
  bk_dataset *ds = open_bad(&bad);
  bk_readahead *r = create(ds);
  get(r, ds, 0, 2, 4);
  ck_assert_int_eq(bk_readahead_get(r, bad, 1, bad + 1, ids, targets), BK_ERR_DATA);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect(bad_words);
  ck_assert_int_eq(truncate(unit_path("t.bin"), 100), 0);
  ck_assert_int_eq(bk_readahead_get(r, bad, 1, bad + 1, ids, targets), BK_ERR_DATA);
  unit_expect("t.bin has 100 bytes now and had 4000 when it was opened");
  bk_readahead_destroy(r);
  bk_dataset_close(ds);
}
END_TEST

/* Files of the caller's own are read by the caller's thread alone: counted calls that fail come in
 * the order in which they are made. */
START_TEST(own_files) {
  fault_fs files;
  fault_fs_open(&files);
  ctx->fs = fault_fs_table(&files);
  put_words("w.txt");
  bk_dataset *ds = open_words("w.txt");
  ck_assert_uint_eq(bk_readahead_bytes(ctx, ds, SEQ, ROOM), 0);
  read_in_all_ways(ds);
  bk_readahead *r = create(ds);
  fault_fs_arm(&files, FAULT_READ, 2 * ROOM + 2, EIO);
  get(r, ds, 0, 1, 1); /* four calls: this one's, and the comparison's */
  ck_assert_int_eq(files.seen, 4);
  ck_assert_int_eq(bk_readahead_get(r, 1, ROOM, 1 + ROOM, ids, targets), BK_ERR_IO);
  unit_expect("cannot read w.txt: Input/output error");
  fault_fs_disarm(&files);
  get(r, ds, 1, ROOM, 1 + ROOM);
  bk_readahead_destroy(r);
  bk_dataset_close(ds);
  fault_fs_close(&files);
  ctx->fs = bk_fs_posix;
}
END_TEST

/* ---- the worker ---- */

static void add_one(void *arg) { ++*(int *)arg; }

START_TEST(jobs_one_after_the_other) {
  bk_worker *w = NULL;
  int done = 0;
  ck_assert_int_eq(bk_worker_posix.create(ctx, "counts", &w), BK_OK);
  bk_worker_posix.wait(w); /* nothing to wait for */
  for (int i = 0; i < 1000; i++) {
    bk_worker_posix.start(w, add_one, &done);
    bk_worker_posix.wait(w);
    ck_assert_int_eq(done, i + 1);
  }
  bk_worker_posix.start(w, add_one, &done);
  bk_worker_posix.destroy(w); /* waits */
  ck_assert_int_eq(done, 1001);
  bk_worker_posix.destroy(NULL);
}
END_TEST

UNIT_MAIN("reading ahead", unit_folder_open, unit_folder_close, same_tokens, from_memory,
          fault_of_the_thread, fault_that_nobody_meets, fault_of_the_caller, own_files,
          jobs_one_after_the_other)
