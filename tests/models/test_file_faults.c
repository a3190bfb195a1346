/* Failing files under saves and loads: every call of every kind in turn fails, is cut short, or
 * is the last one before the power goes. After each: an error that names path and cause, once;
 * the previous checkpoint whole; nothing half-written taken for one. */
#include "tests/models/models.h"
#include "tests/unit/fault_fs.h"

#include "io/metrics.h"
#include "io/safetensors.h"
#include "models/checkpoint.h"
#include "models/trainer.h"

#include <errno.h>

#define FILES 4
static const char *const file_names[FILES] = {"config.json", "model.safetensors",
                                              "optimizer.safetensors", "trainer_state.json"};

static fault_fs files;
static bk_device *device;
static bk_model *older, *newer;
static bk_trainer_state state;

/* ---- what is saved ---- */

static bk_model *make_model(uint64_t seed) {
  bk_model *m = NULL;
  bk_model_config c = small_config(BK_HC_MHC);
  c.num_hidden_layers = 1;
  OK(bk_model_create(device, &c, BK_BF16, &(bk_model_options){.trainable = true}, &m));
  OK(bk_model_init(m, seed));
  enliven(m, seed);
  return m;
}

static void fresh_files(void) {
  fault_fs_close(&files);
  fault_fs_open(&files);
}

static void open_rig(void) {
  unsetenv("BIRKHOFF_BACKEND_DIR"); /* a folder of the disk */
  unit_open();
  fault_fs_open(&files);
  ctx->fs = fault_fs_table(&files);
  device = open_device("cpu", 1);
  older = make_model(3);
  newer = make_model(4);
  state = (bk_trainer_state){.step = 12, .tokens = 345, .data_hash = 6789, .dtype = BK_BF16};
  bk_train_config_default(&state.recipe);
}

static void close_rig(void) {
  bk_model_destroy(newer);
  bk_model_destroy(older);
  bk_device_close(device);
  unit_close();
  fault_fs_close(&files);
}

/* ---- whole or not ---- */

typedef struct contents {
  char *data[FILES];
  size_t bytes[FILES];
} contents;

static contents read_folder(const char *path) {
  contents c = {{0}, {0}};
  for (int i = 0; i < FILES; i++) {
    char file[256];
    snprintf(file, sizeof file, "%s/%s", path, file_names[i]);
    OK(bk_file_read_all(ctx, file, 1 << 24, &c.data[i], &c.bytes[i]));
  }
  return c;
}

static void drop(contents *c) {
  for (int i = 0; i < FILES; i++) bk_free(ctx, c->data[i]);
}

static bool same(const contents *a, const contents *b) {
  for (int i = 0; i < FILES; i++)
    if (a->bytes[i] != b->bytes[i] || memcmp(a->data[i], b->data[i], a->bytes[i]) != 0)
      return false;
  return true;
}

static contents saved_contents(bk_model *m) {
  fresh_files();
  OK(bk_checkpoint_save(m, &state, "run/step-000001"));
  return read_folder("run/step-000001");
}

static contents whole_older, whole_newer;

static bk_status load_all(const char *given) {
  char *path = NULL, *file = NULL;
  bk_model *m = NULL;
  bk_trainer_state read;
  bk_status status = bk_checkpoint_resolve(ctx, given, &path);
  if (status == BK_OK)
    status = bk_checkpoint_load(device, path, BK_NONE, &(bk_model_options){.trainable = true}, &m);
  if (status == BK_OK) status = bk_checkpoint_load_optimizer(m, path);
  if (status == BK_OK) {
    file = bk_path_join(ctx, path, "trainer_state.json");
    status = bk_trainer_state_read(ctx, file, &read);
  }
  bk_free(ctx, file);
  bk_free(ctx, path);
  bk_model_destroy(m);
  return status;
}

/* What `given` leads to loads, and is one of the two; true: the newer one. */
static bool check_whole(const char *given, const char *what, int k) {
  char *path = NULL;
  ck_assert_msg(load_all(given) == BK_OK, "%s, call %d: %s does not load:\n%s", what, k, given,
                unit_messages);
  OK(bk_checkpoint_resolve(ctx, given, &path));
  contents c = read_folder(path);
  bool is_newer = same(&c, &whole_newer);
  ck_assert_msg(is_newer || same(&c, &whole_older),
                "%s, call %d: %s is neither the older nor the newer checkpoint", what, k, path);
  drop(&c);
  bk_free(ctx, path);
  return is_newer;
}

static void step_each(void *arg, const char *name) {
  if (strlen(name) == 11 && strncmp(name, "step-", 5) == 0) strcat(arg, name), strcat(arg, " ");
}

/* Every folder with a checkpoint's name is one. */
static void check_all_steps(const char *what, int k) {
  char names[512] = "", path[64];
  OK(ctx->fs.list(ctx->fs.user, "run", step_each, names));
  for (char *name = strtok(names, " "); name; name = strtok(NULL, " ")) {
    snprintf(path, sizeof path, "run/%s", name);
    check_whole(path, what, k);
  }
}

static void record_contents(void) {
  whole_older = saved_contents(older);
  whole_newer = saved_contents(newer);
  ck_assert(!same(&whole_older, &whole_newer));
}

static void drop_contents(void) {
  drop(&whole_older);
  drop(&whole_newer);
}

/* ---- one failure ---- */

/* One error, with the path of the call that failed and the cause. */
static void check_message(const char *what, int k) {
  char path[512];
  snprintf(path, sizeof path, "%s", files.failed_path);
  size_t length = strlen(path);
  /* X.tmp -> X: either will do */
  if (files.failed_kind == FAULT_RENAME && length > 4) path[length - 4] = '\0';
  ck_assert_msg(unit_errors() == 1, "%s, call %d on %s: not one error:\n%s", what, k,
                files.failed_path, unit_messages);
  ck_assert_msg(strstr(unit_messages, path) != NULL, "%s, call %d: %s is not named:\n%s", what, k,
                path, unit_messages);
  const char *cause = files.is_short ? "" : strerror(files.error);
  ck_assert_msg(strstr(unit_messages, cause) != NULL,
                "%s, call %d on %s: the cause is not named:\n%s", what, k, path, unit_messages);
  unit_messages[0] = '\0';
}

typedef struct flavour {
  const char *name;
  unsigned which;
  int error;
  bool is_short;
} flavour;

static const flavour save_flavours[] = {
    {"input/output error", FAULT_CHANGES, EIO, false},
    {"disk full", FAULT_CHANGES, ENOSPC, false},
    {"short write", FAULT_WRITE, EIO, true},
    {"unreadable", FAULT_LOOKS, EIO, false},
};

static void arm(const flavour *f, int k) {
  fault_fs_arm(&files, f->which, k, f->error);
  files.is_short = f->is_short;
}

static int stride(int k) { return quick() && k > 12 ? 7 : 1; }

static void check_saves(const flavour *f, const char *path, const char *given) {
  bk_memory_stats before, after;
  int failures = 0;
  for (int k = 1;; k += stride(k)) {
    fresh_files();
    OK(bk_checkpoint_save(older, &state, "run/step-000001"));
    bk_context_memory_stats(ctx, &before);
    arm(f, k);
    bk_status status = bk_checkpoint_save(newer, &state, path);
    unsigned failed = files.failed_kind;
    fault_fs_disarm(&files);
    bk_context_memory_stats(ctx, &after);
    ck_assert_uint_eq(before.current_bytes, after.current_bytes);
    ck_assert_msg(status == BK_OK || status == BK_ERR_IO, "%s, call %d: status %s", f->name, k,
                  bk_status_name(status));
    if (!failed) OK(status);
    else if (status == BK_OK)
      ck_assert_msg(failed == FAULT_MKDIR || failed == FAULT_KIND,
                    "%s, call %d (kind %x) on %s: passed over", f->name, k, failed,
                    files.failed_path);
    else check_message(f->name, k);
    failures += status != BK_OK;
    bool is_newer = check_whole(given, f->name, k);
    if (status == BK_OK) ck_assert(is_newer);
    check_all_steps(f->name, k);
    ck_assert(!bk_path_exists(ctx, "run/step-000001.tmp") &&
              !bk_path_exists(ctx, "run/step-000002.tmp"));
    unit_expect(NULL);
    fault_fs_crash(&files, true); /* the power goes right after */
    is_newer = check_whole(given, f->name, k);
    if (status == BK_OK) ck_assert(is_newer);
    OK(bk_checkpoint_save(newer, &state, path)); /* and the next attempt succeeds */
    ck_assert(check_whole(given, f->name, k));
    unit_expect(NULL);
    if (!failed) break;
  }
  ck_assert_int_gt(failures, 2);
}

START_TEST(test_save) {
  record_contents();
  for (size_t i = 0; i < BK_COUNT(save_flavours); i++) {
    check_saves(&save_flavours[i], "run/step-000002", "run");
    /* in the older one's place */
    check_saves(&save_flavours[i], "run/step-000001", "run/step-000001");
  }
  drop_contents();
}
END_TEST

/* ---- the power goes in the middle ---- */

static bk_status save_and_prune(const char *path) {
  BK_TRY(bk_checkpoint_save(newer, &state, path));
  return bk_checkpoint_prune(ctx, "run", 1);
}

static void check_power_loss(const char *path, const char *given, bool names) {
  const char *what = names ? "power loss, names too" : "power loss";
  int kept_older = 0;
  for (int k = 1;; k += stride(k)) {
    fresh_files();
    OK(bk_checkpoint_save(older, &state, "run/step-000001"));
    fault_fs_arm(&files, FAULT_CHANGES, k, EIO);
    files.dead = true;
    bk_status status = save_and_prune(path);
    fault_fs_disarm(&files);
    fault_fs_crash(&files, names);
    unit_messages[0] = '\0';
    bool is_newer = check_whole(given, what, k);
    check_all_steps(what, k);
    unit_messages[0] = '\0'; /* where it had been moved aside: a warning */
    if (status == BK_OK) ck_assert(is_newer);
    kept_older += !is_newer;
    OK(save_and_prune(path));
    ck_assert(check_whole(given, what, k));
    unit_expect(NULL);
    if (!files.failed_kind) break;
  }
  ck_assert_int_gt(kept_older, 10);
}

START_TEST(test_power_loss) {
  record_contents();
  for (int names = 0; names < 2; names++) {
    check_power_loss("run/step-000002", "run", names);
    check_power_loss("run/step-000001", "run/step-000001", names);
  }
  drop_contents();
}
END_TEST

/* ---- loads ---- */

static const flavour load_flavours[] = {{"unreadable", FAULT_LOOKS, EIO, false},
                                        {"short read", FAULT_READ, EIO, true}};

/* The weights of `run` in two shards, and no longer in one file. */
static void split(const char *folder) {
  static const char index[] = "{\"weight_map\": {";
  char path[64], map[8192];
  bk_st_reader *r = NULL;
  bk_st_writer *w[2];
  size_t length = (size_t)snprintf(map, sizeof map, "%s", index);
  OK(bk_st_open_folder(ctx, folder, &r));
  for (int s = 0; s < 2; s++) {
    snprintf(path, sizeof path, "%s/part-%d.safetensors", folder, s);
    OK(bk_st_create(ctx, path, &w[s]));
  }
  for (int i = 0; i < bk_st_count(r); i++) {
    const bk_st_entry *e = bk_st_get(r, i);
    OK(bk_st_add(w[i % 2], e->name, e->dtype, e->ndim, e->shape));
    length += (size_t)snprintf(map + length, sizeof map - length,
                               "%s\"%s\": \"part-%d.safetensors\"", i ? ", " : "", e->name, i % 2);
  }
  for (int i = 0; i < bk_st_count(r); i++) {
    const bk_st_entry *e = bk_st_get(r, i);
    size_t bytes = (size_t)(e->end - e->begin);
    void *data = bk_alloc(ctx, bytes);
    OK(bk_st_read(r, e, data, bytes));
    OK(bk_st_write(w[i % 2], data, bytes));
    bk_free(ctx, data);
  }
  for (int s = 0; s < 2; s++) OK(bk_st_finish(w[s]));
  bk_st_close(r);
  length += (size_t)snprintf(map + length, sizeof map - length, "}}");
  ck_assert_uint_lt(length, sizeof map);
  snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
  OK(bk_file_write_atomic(ctx, path, map, length));
  snprintf(path, sizeof path, "%s/model.safetensors", folder);
  ck_assert_int_eq(ctx->fs.remove(ctx->fs.user, path), 0);
}

static void check_loads(const flavour *f) {
  for (int k = 1;; k += stride(k)) {
    arm(f, k);
    bk_status status = load_all("run");
    fault_fs_disarm(&files);
    if (!files.failed_kind) {
      OK(status);
      ck_assert_int_gt(k, 10);
      break;
    }
    ck_assert_msg(status == BK_ERR_IO, "%s, call %d on %s: status %s\n%s", f->name, k,
                  files.failed_path, bk_status_name(status), unit_messages);
    check_message(f->name, k);
  }
}

START_TEST(test_load) {
  OK(bk_checkpoint_save(older, &state, "run/step-000001"));
  for (int shards = 0; shards < 2; shards++) {
    if (shards) split("run/step-000001");
    for (size_t i = 0; i < BK_COUNT(load_flavours); i++) check_loads(&load_flavours[i]);
  }
}
END_TEST

static bk_status check_finite(void) {
  char *what = NULL;
  bk_status status = bk_checkpoint_check_finite(ctx, "run/step-000001", &what);
  ck_assert_ptr_null(what);
  return status;
}

/* What cannot be read is not called finite. */
START_TEST(test_check_finite) {
  OK(bk_checkpoint_save(older, &state, "run/step-000001"));
  for (size_t i = 0; i < BK_COUNT(load_flavours); i++)
    for (int k = 1;; k++) {
      arm(&load_flavours[i], k);
      bk_status status = check_finite();
      fault_fs_disarm(&files);
      if (!files.failed_kind) {
        OK(status);
        break;
      }
      ck_assert_int_eq(status, BK_ERR_IO);
      check_message(load_flavours[i].name, k);
    }
}
END_TEST

/* Whatever looks for the newest checkpoint must not take an unreadable folder for an empty one:
 * the run would begin anew. Nor a checkpoint that cannot be looked at for one that is not whole. */
START_TEST(test_newest) {
  OK(bk_checkpoint_save(older, &state, "run/step-000001"));
  for (int use = BK_CHECKPOINT_ANY; use <= BK_CHECKPOINT_RESUME; use++)
    for (int k = 1;; k++) {
      int64_t step = 7;
      fault_fs_arm(&files, FAULT_LOOKS, k, EACCES);
      bk_status status = bk_checkpoint_newest(ctx, "run", (bk_checkpoint_use)use, &step);
      fault_fs_disarm(&files);
      if (!files.failed_kind) {
        OK(status);
        ck_assert_int_eq(step, 1);
        ck_assert_int_gt(k, use == BK_CHECKPOINT_ANY ? 2 : 10);
        break;
      }
      ck_assert_int_eq(status, BK_ERR_IO);
      check_message("newest", k);
      ck_assert_int_eq(step, 7);
    }
}
END_TEST

/* ---- data and metrics ---- */

static bk_status open_data(void) {
  const char *paths[] = {"a", "b"};
  bk_dataset *ds = NULL;
  bk_status status = bk_dataset_open(
      ctx, paths, 2, &(bk_dataset_options){.vocab_size = 257, .split = BK_SPLIT_ALL}, &ds);
  ck_assert((status == BK_OK) == (ds != NULL));
  bk_dataset_close(ds);
  return status;
}

START_TEST(test_data) {
  OK(bk_file_write_atomic(ctx, "a", "some text", 9));
  OK(bk_file_write_atomic(ctx, "b", "some more text", 14));
  for (size_t i = 0; i < BK_COUNT(load_flavours); i++)
    for (int k = 1;; k++) {
      arm(&load_flavours[i], k);
      bk_status status = open_data();
      fault_fs_disarm(&files);
      if (!files.failed_kind) break;
      ck_assert_int_eq(status, BK_ERR_IO);
      check_message(load_flavours[i].name, k);
    }
}
END_TEST

/* Windows of files that stay open and of one that is opened anew: whatever call fails while they
 * are read, the file is named, and the next reading is as if nothing had been. */
static bk_status read_windows(const bk_dataset *ds, int32_t *sum) {
  int32_t ids[8], targets[8];
  int64_t kept;
  *sum = 0;
  for (int64_t w = 0; w < bk_dataset_eval_windows(ds, 8); w++) {
    BK_TRY(bk_dataset_eval_window(ds, 8, w, ids, targets, &kept));
    for (int t = 0; t < kept; t++) *sum += (int32_t)(w + 1) * targets[t];
  }
  BK_TRY(bk_dataset_train_sequence(ds, 1, 8, 3, ids, targets));
  return BK_OK;
}

START_TEST(test_data_reading) {
  const char *paths[17];
  for (int i = 0; i < 17; i++) paths[i] = i == 16 ? "b" : "a";
  OK(bk_file_write_atomic(ctx, "a", "some", 4));
  OK(bk_file_write_atomic(ctx, "b", "some more text", 14));
  bk_dataset *ds = NULL;
  int32_t right, sum;
  OK(bk_dataset_open(ctx, paths, 17,
                     &(bk_dataset_options){.vocab_size = 257, .split = BK_SPLIT_ALL}, &ds));
  OK(read_windows(ds, &right));
  for (size_t i = 0; i < BK_COUNT(load_flavours); i++)
    for (int k = 1;; k++) {
      arm(&load_flavours[i], k);
      bk_status status = read_windows(ds, &sum);
      fault_fs_disarm(&files);
      if (!files.failed_kind) break;
      ck_assert_int_eq(status, BK_ERR_IO);
      check_message(load_flavours[i].name, k);
      OK(read_windows(ds, &sum));
      ck_assert_int_eq(sum, right);
    }
  ck_assert_int_eq(bk_context_fs(ctx)->truncate(&files, "b", 9), 0);
  ck_assert_int_eq(read_windows(ds, &sum), BK_ERR_DATA);
  unit_expect("b has 9 bytes now and had 14");
  bk_dataset_close(ds);
}
END_TEST

static const flavour row_flavours[] = {
    {"disk full", FAULT_WRITE, ENOSPC, false},
    {"short write", FAULT_WRITE, ENOSPC, true},
    {"disk full, and it cannot be cut", FAULT_WRITE | FAULT_TRUNCATE, ENOSPC, false}};

/* A row that does not fit waits and is written with the next one; every row is whole and there
 * once, whatever part of it was written. */
static void check_rows(const flavour *f, bool dead) {
  bk_metrics *metrics = NULL;
  int64_t *steps = NULL, count = 0;
  double *values = NULL;
  fresh_files();
  OK(bk_metrics_open(ctx, "metrics.jsonl", &metrics));
  for (int64_t i = 1; i <= 5; i++) {
    bk_metrics_row row = {.step = i, .loss = 0.5 * (double)i};
    arm(f, i == 3);
    files.dead = dead;
    bk_status status = bk_metrics_write(metrics, &row);
    fault_fs_disarm(&files);
    ck_assert_int_eq(status, i == 3 ? BK_ERR_IO : BK_OK);
    if (i == 3) check_message(f->name, 3);
  }
  bk_metrics_close(metrics);
  OK(bk_metrics_read(ctx, "metrics.jsonl", "loss", &steps, &values, &count));
  ck_assert_int_eq(count, 5);
  for (int64_t i = 0; i < count; i++)
    ck_assert(steps[i] == i + 1 && values[i] == 0.5 * (double)(i + 1));
  bk_free(ctx, steps);
  bk_free(ctx, values);
  OK(bk_metrics_cut(ctx, "metrics.jsonl", 2));
}

START_TEST(test_rows) {
  for (size_t i = 0; i < BK_COUNT(row_flavours); i++) check_rows(&row_flavours[i], i == 2);
}
END_TEST

START_TEST(test_small_file) {
  for (int k = 1; k < 20; k++) {
    for (size_t i = 0; i < 3; i++) {
      fresh_files();
      OK(bk_file_write_atomic(ctx, "state", "old", 3));
      arm(&save_flavours[i], k);
      bk_status status = bk_file_write_atomic(ctx, "state", "new, longer", 11);
      fault_fs_disarm(&files);
      ck_assert((status == BK_OK) == !files.failed_kind);
      if (status != BK_OK) check_message(save_flavours[i].name, k);
      char *text = NULL;
      size_t bytes;
      OK(bk_file_read_all(ctx, "state", 100, &text, &bytes));
      ck_assert(strcmp(text, "old") == 0 ||
                (strcmp(text, "new, longer") == 0 &&
                 (status == BK_OK || files.failed_kind == FAULT_SYNC_DIR)));
      ck_assert(!bk_path_exists(ctx, "state.tmp"));
      bk_free(ctx, text);
    }
  }
}
END_TEST

UNIT_MAIN("file faults", open_rig, close_rig, test_save, test_power_loss, test_load,
          test_check_finite, test_newest, test_data, test_data_reading, test_rows, test_small_file)
