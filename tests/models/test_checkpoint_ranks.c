/* Checkpoints of several ranks: what any number of them has saved comes back to any other, bit for
 * bit; what a failing rank leaves; indices that are not right; saves while training goes on. */
#include "tests/models/saved.h"

#include "io/safetensors.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
  char path[512];
  bk_dtype dtype;
  uint64_t seed;
  int fail_at; /* the change of rank 2's disk that fails */
  bool failed[RANKS_MAX];
  bk_status status[RANKS_MAX];
} now;

static bk_model *make_model(rank *r) {
  bk_model *m = NULL;
  open_rank(r);
  bk_model_config c = small_config(BK_HC_MHC);
  EXPECT_OK(r, bk_model_create(r->device, &c, now.dtype,
                               &(bk_model_options){.trainable = true, .comm = r->comm}, &m));
  EXPECT_OK(r, known_fill_all(m, now.seed));
  return m;
}

static void body_save(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  bk_model *m = make_model(r);
  EXPECT_OK(r, bk_checkpoint_save(m, &state, now.path));
  EXPECT(r, r->messages[0] == '\0');
  bk_model_destroy(m);
}

static void body_load(rank *r) {
  bk_model *m = NULL;
  open_rank(r);
  EXPECT_OK(r, bk_checkpoint_load(r->device, now.path, BK_NONE,
                                  &(bk_model_options){.trainable = true, .comm = r->comm}, &m));
  if (!m) return;
  EXPECT_OK(r, bk_checkpoint_load_optimizer(m, now.path));
  EXPECT(r, known_holds_all(m, now.seed));
  bk_model_destroy(m);
}

static ranks run(int size, const bk_backend *backend, void (*body)(rank *)) {
  static ranks all;
  all = (ranks){.size = size, .backend = backend, .timeout_s = 60, .body = body};
  ranks_run(&all, ctx);
  return all;
}

static void begin(const char *name, bk_dtype dtype, uint64_t seed) {
  memset(&now, 0, sizeof now);
  snprintf(now.path, sizeof now.path, "%s", unit_path(name));
  now.dtype = dtype;
  now.seed = seed;
}

static bool there(const char *name) {
  char *path = bk_path_join(ctx, now.path, name);
  bool is = bk_path_exists(ctx, path);
  bk_free(ctx, path);
  return is;
}

/* ---- any number to any number ---- */

static void check_names(int saved) {
  char name[64];
  ck_assert(there("config.json") && there("trainer_state.json"));
  ck_assert(there("model.safetensors") == (saved == 1));
  ck_assert(there("optimizer.safetensors") == (saved == 1));
  ck_assert(there("model.safetensors.index.json") == (saved > 1));
  ck_assert(there("optimizer.safetensors.index.json") == (saved > 1));
  for (int r = 1; r <= saved && saved > 1; r++) {
    snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", r, saved);
    ck_assert(there(name));
    snprintf(name, sizeof name, "optimizer-%05d-of-%05d.safetensors", r, saved);
    ck_assert(there(name));
  }
}

static void check_plans(bk_dtype dtype, const bk_backend *backend) {
  for (int saved = 1; saved <= 4; saved++) {
    int64_t step = -1;
    char *what = NULL;
    begin("run/step-000001", dtype, 7 + (uint64_t)saved);
    OK(bk_remove_tree(ctx, unit_path("run")));
    run(saved, backend, body_save);
    check_names(saved);
    OK(bk_checkpoint_newest(ctx, unit_path("run"), BK_CHECKPOINT_RESUME, &step));
    ck_assert_int_eq(step, 1);
    OK(bk_checkpoint_check_finite(ctx, now.path, &what));
    for (int loaded = 1; loaded <= 4; loaded += quick() ? 2 : 1) run(loaded, backend, body_load);
  }
}

START_TEST(test_plans) {
  check_plans(BK_BF16, &bk_backend_cpu);
  check_plans(BK_F32, &bk_backend_cpu);
  check_plans(BK_F32, &late_backend);
}
END_TEST

/* A group of one rank writes what a model without a group does, and the same ranks write the same
 * bytes again. */
START_TEST(test_same_bytes) {
  char first[512];
  bk_trainer_state state;
  bk_model_config c = small_config(BK_HC_MHC);
  for (int size = 1; size <= 3; size += 2) {
    begin("a", BK_BF16, 5);
    run(size, &bk_backend_cpu, body_save);
    snprintf(first, sizeof first, "%s", now.path);
    begin("b", BK_BF16, 5);
    if (size > 1) {
      run(size, &bk_backend_cpu, body_save);
    } else {
      bk_device *device = open_device("cpu", 1);
      bk_model *m = NULL;
      state = known_state(now.dtype);
      OK(bk_model_create(device, &c, BK_BF16, &(bk_model_options){.trainable = true}, &m));
      OK(known_fill_all(m, now.seed));
      OK(bk_checkpoint_save(m, &state, now.path));
      bk_model_destroy(m);
      bk_device_close(device);
    }
    check_same_files(first, now.path);
  }
}
END_TEST

/* ---- a rank whose disk fails ---- */

static void body_fail(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  bk_model *m = make_model(r);
  spoil_disk(r, r->rank == 2 ? now.fail_at : 0);
  now.status[r->rank] = bk_checkpoint_save(m, &state, now.path);
  now.failed[r->rank] = change_to_fail && changes >= change_to_fail;
  bk_model_destroy(m);
}

START_TEST(test_rank_fails) {
  int failures = 0;
  begin("run/step-000001", BK_BF16, 3);
  run(2, &bk_backend_cpu, body_save);
  for (now.fail_at = 1;; now.fail_at++) {
    now.seed = 4;
    ranks all = run(4, &bk_backend_cpu, body_fail);
    for (int r = 1; r < 4; r++) ck_assert_int_eq(now.status[r], now.status[0]);
    ck_assert(!bk_path_exists(ctx, unit_path("run/step-000001.tmp")));
    if (!now.failed[2]) break;
    failures++;
    ck_assert_int_eq(now.status[0], BK_ERR_IO);
    rank_expect(&all, 0, "rank 2 could not");
    rank_expect(&all, 2, "-of-0000");
    ck_assert_str_eq(all.rank[1].messages, "");
    ck_assert_str_eq(all.rank[3].messages, "");
    now.seed = 3; /* the older one is as it was */
    run(3, &bk_backend_cpu, body_load);
  }
  OK(now.status[0]);
  ck_assert_int_ge(failures, 8); /* two files: opened, written, synced, closed */
  run(3, &bk_backend_cpu, body_load);
}
END_TEST

/* ---- a rank without memory ---- */

/* detail 0: the save; 1: the load of what two ranks have saved. */
static void body_memory(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  bk_model *m = make_model(r);
  size_t held = r->ctx->stats.current_bytes;
  spoil_memory(r, r->rank == 2 ? now.fail_at : 0);
  if (r->all->detail == 0) now.status[r->rank] = bk_checkpoint_save(m, &state, now.path);
  else now.status[r->rank] = bk_checkpoint_load_optimizer(m, now.path);
  mend_memory(r);
  now.failed[r->rank] = change_to_fail && changes >= change_to_fail;
  EXPECT(r, r->ctx->stats.current_bytes == held);
  bk_model_destroy(m);
}

static void check_memory(int loads) {
  static ranks all;
  int failures = 0;
  for (now.fail_at = 1;; now.fail_at += quick() ? 37 : thorough() ? 1 : 11) {
    now.seed = loads ? 3 : 4;
    all = (ranks){.size = 3, .backend = &bk_backend_cpu, .timeout_s = 60, .body = body_memory};
    all.detail = loads;
    ranks_run(&all, ctx);
    for (int r = 1; r < 3; r++) ck_assert_int_eq(now.status[r], now.status[0]);
    ck_assert(!bk_path_exists(ctx, unit_path("run/step-000001.tmp")));
    if (!now.failed[2]) break;
    failures++;
    ck_assert_int_eq(now.status[0], BK_ERR_MEMORY);
    rank_expect(&all, 2, "out of memory");
    rank_expect(&all, 0, "rank 2 could not");
  }
  OK(now.status[0]);
  ck_assert_int_gt(failures, 2);
}

START_TEST(test_rank_memory) {
  begin("run/step-000001", BK_BF16, 3);
  run(2, &bk_backend_cpu, body_save);
  check_memory(1);
  check_memory(0);
}
END_TEST

/* ---- indices that are not right ---- */

#define SLICES "optimizer.safetensors.index.json"

/* The index with the first `from` replaced by `to` (behind `after`, where that is given). */
static void spoil(const char *whole, const char *after, const char *from, const char *to) {
  const char *place = after ? strstr(whole, after) : whole;
  const char *at = place ? strstr(place, from) : NULL;
  ck_assert_msg(at != NULL, "%s is not in the index", from);
  char *path = bk_path_join(ctx, now.path, SLICES);
  char *text = bk_format(ctx, "%.*s%s%s", (int)(at - whole), whole, to, at + strlen(from));
  OK(bk_file_write_atomic(ctx, path, text, strlen(text)));
  bk_free(ctx, text);
  bk_free(ctx, path);
}

static void refused(const char *why) {
  bk_st_reader *reader = NULL;
  bk_st_slices slices;
  bk_status status =
      bk_st_open_slices(ctx, now.path, "optimizer.safetensors", SLICES, &reader, &slices);
  ck_assert_msg(status == BK_ERR_DATA, "%s: status %s\n%s", why, bk_status_name(status),
                unit_messages);
  ck_assert_int_eq(unit_errors(), 1);
  unit_expect(why);
}

START_TEST(test_slices_refused) {
  static const char norm[] = "\"m.model.norm.weight\"";
  static const struct {
    const char *after, *from, *to, *why;
  } cases[] = {
      {norm, "\"F32\"", "\"F64\"", "is not"},
      {norm, "\"shape\": [12]", "\"shape\": [13]", "its slices have 12 elements, its shape 13"},
      {norm, "\"shape\": [12]", "\"shape\": [3, 4, -1]", "its shape is none"},
      {norm, "\"shape\": [12]", "\"shape\": [4611686018427387904, 12]", "its shape is none"},
      {norm, "\"begin\": 0", "\"begin\": 1", "something is missing"},
      {norm, "\"begin\": 0", "\"begin\": -1", "whole numbers"},
      {norm, "\"begin\": 0", "\"begin\": 1e3", "whole numbers"},
      {norm, "\"count\": ", "\"count\": 4611686018427387904, \"was\": ", "beyond any tensor"},
      {norm, "\"count\": ", "\"count\": 0, \"was\": ", "has no elements"},
      {norm, "optimizer-", "../optimizer-", "not the plain name"},
      {norm, "optimizer-", "other-", "is missing"},
      {norm, "optimizer-", "\\u001b", "control character"},
      {norm, "\"name\": \"m.", "\"name\": \"v.", "is not in the slices of"},
      {norm, "\"name\": \"m.", "\"name\": \"x.", "does not have the slice"},
      {norm, "\"slices\": [", "\"slices\": [1,", "whole numbers"},
      {norm, "\"slices\": [", "\"slices\": 1, \"was\": [", "a list of slices"},
      {NULL, "\"slices\": {", "\"parts\": {", "slices, an object of tensors, is missing"},
  };
  begin("run/step-000001", BK_F32, 3);
  run(3, &bk_backend_cpu, body_save);
  char *whole;
  size_t bytes;
  read_file(now.path, SLICES, &whole, &bytes);
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    spoil(whole, cases[i].after, cases[i].from, cases[i].to);
    refused(cases[i].why);
    unit_messages[0] = '\0';
  }
  spoil(whole, norm, norm, "\"m.model.norm\""); /* right in itself, but none of this model */
  bk_model *m = NULL;
  bk_device *device = open_device("cpu", 1);
  OK(bk_checkpoint_load(device, now.path, BK_NONE, &(bk_model_options){.trainable = true}, &m));
  ck_assert_int_eq(bk_checkpoint_load_optimizer(m, now.path), BK_ERR_DATA);
  unit_expect("tensor m.model.norm.weight is missing");
  bk_model_destroy(m);
  bk_device_close(device);
  bk_free(ctx, whole);
}
END_TEST

/* ---- whole or not ---- */

static void check_lacks(const char *name, bool remove, const char *why) {
  int64_t step = -1;
  char *path;
  begin("run/step-000002", BK_F32, 3);
  OK(bk_remove_tree(ctx, now.path));
  run(2, &bk_backend_cpu, body_save);
  path = bk_path_join(ctx, now.path, name);
  if (remove) ck_assert_int_eq(ctx->fs.remove(ctx->fs.user, path), 0);
  else ck_assert_int_eq(ctx->fs.truncate(ctx->fs.user, path, 100), 0);
  bk_free(ctx, path);
  OK(bk_checkpoint_newest(ctx, unit_path("run"), BK_CHECKPOINT_RESUME, &step));
  ck_assert_int_eq(step, 1);
  unit_expect(why);
}

START_TEST(test_lacks) {
  begin("run/step-000001", BK_F32, 3);
  run(2, &bk_backend_cpu, body_save);
  check_lacks("model-00002-of-00002.safetensors", true,
              "model-00002-of-00002.safetensors is missing");
  check_lacks("optimizer-00001-of-00002.safetensors", true,
              "optimizer-00001-of-00002.safetensors is missing");
  check_lacks("optimizer-00002-of-00002.safetensors", false, "ends before its data does");
  check_lacks("model.safetensors.index.json", true, "model.safetensors is missing");
  check_lacks("model.safetensors.index.json", false,
              "model.safetensors.index.json is cut short or damaged");
  check_lacks(SLICES, false, SLICES " is cut short or damaged");
  begin("run/step-000002", BK_F32, 5); /* and is replaced */
  run(1, &bk_backend_cpu, body_save);
  check_names(1);
}
END_TEST

/* ---- while training goes on ---- */

static void body_async(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  bk_model *m = make_model(r);
  bk_checkpoint_saving *saving = NULL;
  bool done = false;
  char path[600];
  uint64_t after = 0;
  for (int turn = 0; turn < 3; turn++) {
    snprintf(path, sizeof path, "%s-%d", now.path, turn);
    EXPECT_OK(r, bk_checkpoint_save_begin(m, &state, path, &saving));
    if (turn) EXPECT(r, r->ctx->stats.allocations >= after);
    after = r->ctx->stats.allocations;
    if (turn == 1) continue; /* the next one completes it */
    while (!done) EXPECT_OK(r, bk_checkpoint_save_done(saving, &done));
    EXPECT(r, bk_path_exists(r->ctx, path));
    EXPECT_OK(r, bk_checkpoint_save_done(saving, &done));
    EXPECT(r, done);
    done = false;
  }
  for (int i = 0; i < m->n_params; i++) { /* what is saved is what was there */
    bk_tensor w = bk_param_weight(m, &m->params[i]);
    if (i == 0) EXPECT_OK(r, bk_checkpoint_save_begin(m, &state, now.path, &saving));
    EXPECT_OK(r, bk_tensor_zero(m->stream, &w));
  }
  EXPECT_OK(r, bk_checkpoint_save_end(saving));
  EXPECT(r, r->messages[0] == '\0');
  bk_model_destroy(m);
}

START_TEST(test_async) {
  char base[512];
  for (int size = 1; size <= 3; size += 2)
    for (int late = 0; late < 2; late++) {
      const bk_backend *backend = late ? &late_backend : &bk_backend_cpu;
      begin("async", BK_BF16, 5);
      snprintf(base, sizeof base, "%s", now.path);
      run(size, backend, body_async);
      run(2, backend, body_load);
      for (int turn = 0; turn < 3; turn++) {
        snprintf(now.path, sizeof now.path, "%.400s-%d", base, turn);
        run(size, backend, body_load);
      }
    }
}
END_TEST

static void body_async_fail(rank *r) {
  bk_trainer_state state = known_state(now.dtype);
  bk_model *m = make_model(r);
  bk_checkpoint_saving *saving = NULL;
  bool done = false;
  r->ctx->fs.write = bad_write;
  changes = 0;
  change_to_fail = r->rank == 2 ? 2 : 0;
  bk_status status = bk_checkpoint_save_begin(m, &state, now.path, &saving);
  while (status == BK_OK && !done) status = bk_checkpoint_save_done(saving, &done);
  now.status[r->rank] = status;
  EXPECT_OK(r, bk_checkpoint_save_done(saving, &done)); /* said once */
  EXPECT_OK(r, bk_checkpoint_save_end(saving));
  bk_model_destroy(m);
}

START_TEST(test_async_fails) {
  begin("run/step-000001", BK_BF16, 3);
  run(2, &bk_backend_cpu, body_save);
  now.seed = 4;
  ranks all = run(4, &bk_backend_cpu, body_async_fail);
  for (int r = 0; r < 4; r++) ck_assert_int_eq(now.status[r], BK_ERR_IO);
  rank_expect(&all, 0, "rank 2 could not");
  ck_assert(!bk_path_exists(ctx, unit_path("run/step-000001.tmp")));
  now.seed = 3;
  run(1, &bk_backend_cpu, body_load);
}
END_TEST

/* The process is killed in the middle: what was there is whole, and the next save succeeds. */
START_TEST(test_async_crash) {
  begin("run/step-000001", BK_F32, 3);
  run(1, &bk_backend_cpu, body_save);
  for (int turn = 0; turn < 3; turn++) {
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
      bk_device *device = open_device("cpu", 1);
      bk_model *m = NULL;
      bk_checkpoint_saving *saving = NULL;
      bk_model_config c = small_config(BK_HC_MHC);
      bk_trainer_state state = known_state(now.dtype);
      now.seed = 9;
      if (bk_model_create(device, &c, BK_F32, &(bk_model_options){.trainable = true}, &m) !=
              BK_OK ||
          known_fill_all(m, now.seed) != BK_OK ||
          bk_checkpoint_save_begin(m, &state, now.path, &saving) != BK_OK)
        _exit(1);
      usleep((useconds_t)(turn * 500));
      raise(SIGKILL);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    ck_assert(bk_path_exists(ctx, unit_path("run/step-000001.tmp")));
    run(2, &bk_backend_cpu, body_load);
  }
  now.seed = 11;
  run(2, &bk_backend_cpu, body_save);
  run(1, &bk_backend_cpu, body_load);
  ck_assert(!bk_path_exists(ctx, unit_path("run/step-000001.tmp")));
}
END_TEST

UNIT_MAIN("checkpoints of ranks", unit_folder_open, unit_folder_close, test_plans, test_same_bytes,
          test_rank_fails, test_rank_memory, test_slices_refused, test_lacks, test_async,
          test_async_fails, test_async_crash)
