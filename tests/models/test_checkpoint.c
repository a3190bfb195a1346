/* Checkpoints: round trips, what a failing file system leaves, names, files that do not fit, and
 * plain models converted. */
#include "tests/models/models.h"

#include "io/safetensors.h"
#include "models/checkpoint.h"

#include <errno.h>

/* Under sanitizers and valgrind: fewer of the same. */

/* ---- models and their bytes ---- */

static bk_model *make_model(bk_device *device, const bk_model_config *c, bk_dtype dtype,
                            bool trainable, uint64_t seed) {
  bk_model *m = NULL;
  OK(bk_model_create(device, c, dtype, &(bk_model_options){.trainable = trainable}, &m));
  OK(bk_model_init(m, seed));
  enliven(m, seed + 1);
  return m;
}

typedef bk_tensor (*view_fn)(const bk_model *, const bk_param *);
static const view_fn views[] = {bk_param_weight, bk_param_master, bk_param_m, bk_param_v};

/* Moments and masters that no rounding of the weights could give back. */
static void stir_optimizer(bk_model *m, uint64_t seed) {
  for (int i = 0; i < m->n_params; i++)
    for (size_t k = 1; k < BK_COUNT(views); k++) {
      bk_tensor t = views[k](m, &m->params[i]);
      int64_t n = bk_tensor_count(&t);
      if (n == 0) continue;
      double *v = read_tensor(m, t);
      for (int64_t j = 0; j < n; j++)
        v[j] += 1e-3 * bk_normal(seed, 100 * (uint64_t)i + k, (uint64_t)j);
      OK(bk_tensor_write_f64(m->stream, &t, v));
      bk_free(ctx, v);
    }
}

/* Weights, masters and moments as stored, one after the other; bk_free. */
static char *bytes_of(const bk_model *m, size_t *bytes) {
  size_t at = 0;
  *bytes = 0;
  for (int i = 0; i < m->n_params; i++)
    for (size_t k = 0; k < BK_COUNT(views); k++) {
      bk_tensor t = views[k](m, &m->params[i]);
      *bytes += bk_tensor_bytes(&t);
    }
  char *raw = bk_alloc(ctx, *bytes);
  for (int i = 0; i < m->n_params; i++)
    for (size_t k = 0; k < BK_COUNT(views); k++) {
      bk_tensor t = views[k](m, &m->params[i]);
      if (!bk_tensor_present(&t)) continue;
      OK(bk_tensor_download(m->stream, &t, raw + at));
      at += bk_tensor_bytes(&t);
    }
  return raw;
}

static bool same_bytes(const bk_model *a, const bk_model *b) {
  size_t na, nb;
  char *x = bytes_of(a, &na), *y = bytes_of(b, &nb);
  bool same = na == nb && memcmp(x, y, na) == 0;
  bk_free(ctx, x);
  bk_free(ctx, y);
  return same;
}

static bk_trainer_state make_state(bk_dtype dtype) {
  bk_trainer_state s = {
      .step = 123, .tokens = 45678, .data_hash = 0xfedcba9876543210u, .dtype = dtype};
  bk_train_config_default(&s.recipe);
  s.recipe.lr = 1.0 / 3;
  return s;
}

static void check_same_config(const bk_model_config *a, const bk_model_config *b) {
  char x[64], y[64];
  for (const bk_option *o = bk_model_keys; o->name; o++)
    ck_assert_str_eq(bk_option_value_text(o, a, x, sizeof x),
                     bk_option_value_text(o, b, y, sizeof y));
}

/* ---- round trips ---- */

static void check_state(const char *folder, const bk_trainer_state *want) {
  char *path = bk_path_join(ctx, folder, "trainer_state.json"), x[64], y[64];
  bk_trainer_state s;
  OK(bk_trainer_state_read(ctx, path, &s));
  bk_free(ctx, path);
  ck_assert_int_eq(s.step, want->step);
  ck_assert_int_eq(s.tokens, want->tokens);
  ck_assert(s.data_hash == want->data_hash);
  ck_assert_int_eq(s.dtype, want->dtype);
  for (const bk_option *o = bk_train_keys; o->name; o++)
    ck_assert_str_eq(bk_option_value_text(o, &s.recipe, x, sizeof x),
                     bk_option_value_text(o, &want->recipe, y, sizeof y));
}

static void check_round_trip(const char *name, bk_dtype dtype, int kind, int head) {
  bk_device *device = open_device(name, 1);
  bk_model_config c = small_config(kind);
  c.hc_head = head;
  c.q_lora_rank = head == BK_HEAD_LEARNED ? 5 : 0;
  c.n_shared_experts = head == BK_HEAD_LEARNED ? 0 : 2;
  bk_model *a = make_model(device, &c, dtype, true, 3), *b = NULL;
  bk_trainer_state state = make_state(dtype);
  const char *path = unit_path("run/step-000123");
  bk_dtype found = BK_NONE;
  stir_optimizer(a, 5);
  OK(bk_checkpoint_save(a, &state, path));
  OK(bk_checkpoint_dtype(ctx, path, &found));
  ck_assert_int_eq(found, dtype);
  OK(bk_checkpoint_load(device, path, BK_NONE, &(bk_model_options){.trainable = true}, &b));
  ck_assert_int_eq(b->dtype, dtype);
  check_same_config(&c, &b->config);
  OK(bk_checkpoint_load_optimizer(b, path));
  ck_assert_msg(same_bytes(a, b), "kind %d in %s does not come back bit for bit", kind,
                bk_dtype_name(dtype));
  check_state(path, &state);
  bk_model_destroy(a);
  bk_model_destroy(b);
  bk_device_close(device);
  OK(bk_remove_tree(ctx, unit_path("run")));
}

START_TEST(test_round_trip) {
  for (size_t i = 0; i < BK_COUNT(kinds); i++) {
    check_round_trip("cpu", BK_F32, kinds[i], BK_HEAD_SUM);
    check_round_trip("cpu", BK_BF16, kinds[i], BK_HEAD_LEARNED);
    check_round_trip("ref", BK_F64, kinds[i], BK_HEAD_LEARNED);
  }
}
END_TEST

/* Weights alone; fp32 weights into a bf16 model: masters keep them, weights are rounded, moments
 * are zero. */
START_TEST(test_weights_only) {
  bk_device *device = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_MHC);
  bk_model *a = make_model(device, &c, BK_F32, false, 3), *b = NULL;
  const char *path = unit_path("w");
  OK(bk_checkpoint_save(a, NULL, unit_path("w///")));
  ck_assert(!bk_path_exists(ctx, unit_path("w/optimizer.safetensors")) &&
            !bk_path_exists(ctx, unit_path("w/trainer_state.json")));
  OK(bk_checkpoint_load(device, path, BK_BF16, &(bk_model_options){.trainable = true}, &b));
  for (int i = 0; i < a->n_params; i++) {
    bk_tensor wa = bk_param_weight(a, &a->params[i]), wb = bk_param_weight(b, &b->params[i]),
              moment = bk_param_m(b, &b->params[i]);
    bk_tensor exact = wb.dtype == BK_F32 ? wb : bk_param_master(b, &b->params[i]);
    int64_t n = bk_tensor_count(&wa);
    double *want = read_tensor(a, wa), *got = read_tensor(b, wb), *kept = read_tensor(b, exact);
    ck_assert_mem_eq(want, kept, (size_t)n * sizeof *want);
    for (int64_t j = 0; j < n && wb.dtype == BK_BF16; j++)
      ck_assert(got[j] == (double)bk_bf16_to_f32(bk_f32_to_bf16((float)want[j])));
    double *zero = bk_tensor_present(&moment) ? read_tensor(b, moment) : NULL;
    for (int64_t j = 0; zero && j < n; j++) ck_assert(zero[j] == 0);
    bk_free(ctx, zero);
    bk_free(ctx, want);
    bk_free(ctx, got);
    bk_free(ctx, kept);
  }
  ck_assert_int_eq(bk_checkpoint_load_optimizer(b, path), BK_ERR_IO);
  unit_expect("optimizer.safetensors");
  bk_trainer_state state = make_state(BK_F32);
  ck_assert_int_eq(bk_checkpoint_save(a, &state, unit_path("x")), BK_ERR_ARGUMENT);
  unit_expect("no moments");
  ck_assert(!bk_path_exists(ctx, unit_path("x")));
  bk_model_destroy(a);
  bk_model_destroy(b);
  bk_device_close(device);
}
END_TEST

/* ---- a file system that fails at the k-th change ---- */

typedef struct faults {
  int seen, fail_at; /* changes so far; the one that fails, 0 = none */
  bool dead;         /* all later ones fail too, as after a crash */
} faults;
static faults injected;
static int attempt; /* the change that failed last */

static int change(void) {
  injected.seen++;
  return injected.fail_at && (injected.seen == injected.fail_at ||
                              (injected.dead && injected.seen > injected.fail_at))
             ? -EIO
             : 0;
}

static int faulty_open_write(void *user, const char *path, bool append, bk_file **file) {
  int rc = change();
  return rc ? rc : bk_fs_posix.open_write(user, path, append, file);
}
static int64_t faulty_write(void *user, bk_file *file, const void *src, size_t bytes) {
  int rc = change();
  if (rc == 0) return bk_fs_posix.write(user, file, src, bytes);
  bk_fs_posix.write(user, file, src, bytes / 2); /* torn */
  return rc;
}
static int faulty_sync(void *user, bk_file *file) {
  (void)user, (void)file;
  return change(); /* no real sync: this is slow */
}
static int faulty_close(void *user, bk_file *file) { return bk_fs_posix.close(user, file); }
static int faulty_mkdir(void *user, const char *path) {
  int rc = change();
  return rc ? rc : bk_fs_posix.mkdir(user, path);
}
static int faulty_rename(void *user, const char *from, const char *to) {
  int rc = change();
  return rc ? rc : bk_fs_posix.rename(user, from, to);
}
static int faulty_remove(void *user, const char *path) {
  int rc = change();
  return rc ? rc : bk_fs_posix.remove(user, path);
}
static int faulty_sync_dir(void *user, const char *path) {
  (void)user, (void)path;
  return change();
}

static void faulty_open(void) {
  bk_fs fs = bk_fs_posix;
  unit_folder_open();
  fs.open_write = faulty_open_write;
  fs.write = faulty_write;
  fs.sync = faulty_sync;
  fs.close = faulty_close;
  fs.mkdir = faulty_mkdir;
  fs.rename = faulty_rename;
  fs.remove = faulty_remove;
  fs.sync_dir = faulty_sync_dir;
  ctx->fs = fs;
  injected = (faults){0};
}

/* For tests that save often: nothing waits for a disk. */
static void unsynced_open(void) {
  unit_folder_open();
  ctx->fs.sync = faulty_sync;
  ctx->fs.sync_dir = faulty_sync_dir;
  injected = (faults){0};
}

typedef struct crash_rig {
  bk_device *device;
  bk_model *older, *newer;
  bk_trainer_state state;
} crash_rig;

static crash_rig crash_open(void) {
  crash_rig r = {.device = open_device("cpu", 1), .state = make_state(BK_BF16)};
  bk_model_config c = small_config(BK_HC_IHC);
  c.num_hidden_layers = 1;
  r.older = make_model(r.device, &c, BK_BF16, true, 3);
  r.newer = make_model(r.device, &c, BK_BF16, true, 4);
  stir_optimizer(r.older, 5);
  stir_optimizer(r.newer, 6);
  return r;
}

static void crash_close(crash_rig *r) {
  bk_model_destroy(r->older);
  bk_model_destroy(r->newer);
  bk_device_close(r->device);
}

/* `given` leads to one whole checkpoint: the older one, or after a late failure the newer one.
 * True if it is the newer one. */
static bool check_whole(const crash_rig *r, const char *given, const char *what) {
  char *path = NULL;
  bk_model *m = NULL;
  OK(bk_checkpoint_resolve(ctx, given, &path));
  OK(bk_checkpoint_load(r->device, path, BK_NONE, &(bk_model_options){.trainable = true}, &m));
  OK(bk_checkpoint_load_optimizer(m, path));
  check_state(path, &r->state);
  bool old = same_bytes(m, r->older), new = same_bytes(m, r->newer);
  ck_assert_msg(old || new, "%s, change %d: %s is neither the older nor the newer checkpoint", what,
                attempt, path);
  bk_model_destroy(m);
  bk_free(ctx, path);
  return new;
}

/* Saves `newer` as `path` over and over, failing at every change in turn; `given` is what a
 * reader asks for. */
static void check_crashes(crash_rig *r, const char *path, const char *given, const char *before,
                          bool dead) {
  bk_memory_stats stats, after;
  int kept_older = 0;
  bool failed = true;
  for (int k = 1; failed; k += quick() && k > 4 ? 5 : 1) {
    ck_assert_int_lt(k, 2000);
    OK(bk_remove_tree(ctx, unit_path("run")));
    OK(bk_checkpoint_save(r->older, &r->state, before));
    unit_expect(NULL);
    bk_context_memory_stats(ctx, &stats);
    injected = (faults){.fail_at = attempt = k, .dead = dead};
    bk_status status = bk_checkpoint_save(r->newer, &r->state, path);
    failed = injected.seen >= k;
    injected.fail_at = 0;
    bk_context_memory_stats(ctx, &after);
    ck_assert_msg(stats.current_bytes == after.current_bytes, "change %d: %zu bytes leaked", k,
                  after.current_bytes - stats.current_bytes);
    if (status != BK_OK) ck_assert_int_eq(status, BK_ERR_IO);
    if (status != BK_OK) unit_expect("error");
    /* a failure may be harmless: making a folder that is there */
    if (!failed) ck_assert_int_eq(status, BK_OK);
    if (!dead) { /* cleaned up: moved back if need be, nothing half-written left */
      ck_assert(bk_path_exists(ctx, before));
      ck_assert(!bk_path_exists(ctx, unit_path("run/step-000002.tmp")) &&
                !bk_path_exists(ctx, unit_path("run/step-000001.tmp")));
    }
    bool newer = check_whole(r, given, dead ? "dead" : "one failure");
    if (status == BK_OK) ck_assert(newer);
    kept_older += !newer;
    unit_messages[0] = '\0';
    /* and the next attempt succeeds, whatever was left */
    OK(bk_checkpoint_save(r->newer, &r->state, path));
    unit_expect(NULL);
    ck_assert(check_whole(r, given, "after recovery"));
    ck_assert(!bk_path_exists(ctx, unit_path("run/step-000002.tmp")) &&
              !bk_path_exists(ctx, unit_path("run/step-000001.tmp")));
    ck_assert(!bk_path_exists(ctx, unit_path("run/step-000001.old.tmp")));
  }
  ck_assert_int_gt(kept_older, quick() ? 4 : 15);
}

START_TEST(test_crash) {
  crash_rig r = crash_open();
  char folder[512], first[512], second[512];
  snprintf(folder, sizeof folder, "%s", unit_path("run"));
  snprintf(first, sizeof first, "%s", unit_path("run/step-000001"));
  snprintf(second, sizeof second, "%s", unit_path("run/step-000002"));
  for (int dead = 0; dead < 2; dead++) {
    check_crashes(&r, second, folder, first, dead);
    check_crashes(&r, first, first, first, dead);
  }
  crash_close(&r);
}
END_TEST

/* Pruning with failing removals is an error, and the newest stays whole. */
START_TEST(test_crash_prune) {
  crash_rig r = crash_open();
  char folder[512];
  snprintf(folder, sizeof folder, "%s", unit_path("run"));
  OK(bk_checkpoint_save(r.older, &r.state, unit_path("run/step-000001")));
  OK(bk_checkpoint_save(r.newer, &r.state, unit_path("run/step-000002")));
  bk_status status = BK_ERR_IO;
  for (int k = 1; status != BK_OK && k < 100; k++) {
    injected = (faults){.fail_at = attempt = k};
    status = bk_checkpoint_prune(ctx, folder, 1);
    injected.fail_at = 0;
    if (status != BK_OK) unit_expect("cannot remove");
    ck_assert(check_whole(&r, folder, "prune"));
  }
  OK(status);
  ck_assert(!bk_path_exists(ctx, unit_path("run/step-000001")));
  crash_close(&r);
}
END_TEST

/* ---- names ---- */

static void touch(const char *path) { OK(bk_file_write_atomic(ctx, path, "x", 1)); }

/* A folder that has all files of a checkpoint, as short as they can be. */
static void make_step(const char *name) {
  static const char *const files[] = {"config.json", "model.safetensors", "optimizer.safetensors",
                                      "trainer_state.json"};
  char path[600];
  snprintf(path, sizeof path, "%s/run/%s", unit_folder, name);
  OK(bk_mkdirs(ctx, path));
  for (size_t i = 0; i < BK_COUNT(files); i++) {
    char *file = bk_path_join(ctx, path, files[i]);
    if (strstr(files[i], ".json")) OK(bk_file_write_atomic(ctx, file, "{}", 2));
    else OK(bk_file_write_atomic(ctx, file, "\2\0\0\0\0\0\0\0{}", 10));
    bk_free(ctx, file);
  }
}

static void check_there(const char *name, bool there) {
  char path[600];
  snprintf(path, sizeof path, "%s/run/%s", unit_folder, name);
  ck_assert_msg(bk_path_exists(ctx, path) == there, "%s is %s", name,
                there ? "gone" : "still there");
}

START_TEST(test_names) {
  static const char *const steps[] = {"step-000002", "step-000010", "step-999999", "step-1000000"};
  static const char *const others[] = {"step-",        "step-12",      "step-0000011",
                                       "step-x00012",  "step-000012x", "step--00001",
                                       "step-+000012", "Step-000013",  "step-99999999999999999999",
                                       "notes",        "notes.tmp",    "metrics.jsonl"};
  static const char *const partial[] = {"step-000020.tmp", "step-1000001.tmp",
                                        "step-000002.old.tmp"};
  int64_t newest = 7;
  char *path = NULL;
  OK(bk_checkpoint_newest(ctx, unit_path("run"), BK_CHECKPOINT_RESUME, &newest));
  ck_assert_int_eq(newest, -1);
  ck_assert_int_eq(bk_checkpoint_resolve(ctx, unit_path("run"), &path), BK_ERR_IO);
  unit_expect("no such checkpoint folder");
  for (size_t i = 0; i < BK_COUNT(others); i++) make_step(others[i]);
  for (size_t i = 0; i < BK_COUNT(partial); i++) make_step(partial[i]);
  OK(bk_checkpoint_newest(ctx, unit_path("run"), BK_CHECKPOINT_RESUME, &newest));
  ck_assert_int_eq(newest, -1);
  ck_assert_int_eq(bk_checkpoint_resolve(ctx, unit_path("run"), &path), BK_ERR_DATA);
  unit_expect("model.safetensors is missing");
  touch(unit_path("file"));
  ck_assert_int_eq(bk_checkpoint_resolve(ctx, unit_path("file"), &path), BK_ERR_DATA);
  unit_expect("this is a file");
  ck_assert_ptr_null(path);
  for (size_t i = 0; i < BK_COUNT(steps); i++) make_step(steps[i]);
  OK(bk_checkpoint_newest(ctx, unit_path("run"), BK_CHECKPOINT_RESUME, &newest));
  ck_assert_int_eq(newest, 1000000);
  OK(bk_checkpoint_resolve(ctx, unit_path("run"), &path));
  ck_assert_str_eq(path, unit_path("run/step-1000000"));
  bk_free(ctx, path);
  OK(bk_checkpoint_resolve(ctx, unit_path("run/step-000002"), &path));
  ck_assert_str_eq(path, unit_path("run/step-000002"));
  bk_free(ctx, path);
  OK(bk_checkpoint_prune(ctx, unit_path("run"), 100));
  for (size_t i = 0; i < BK_COUNT(steps); i++) check_there(steps[i], true);
  for (size_t i = 0; i < BK_COUNT(partial); i++) check_there(partial[i], false);
  OK(bk_checkpoint_prune(ctx, unit_path("run"), 2));
  for (size_t i = 0; i < BK_COUNT(steps); i++) check_there(steps[i], i >= 2);
  for (size_t i = 0; i < BK_COUNT(others); i++) check_there(others[i], true);
  ck_assert_int_eq(bk_checkpoint_prune(ctx, unit_path("nowhere"), 2), BK_ERR_IO);
  unit_expect("cannot list");
  path = bk_checkpoint_step_path(ctx, "a/b", 123);
  ck_assert_str_eq(path, "a/b/step-000123");
  bk_free(ctx, path);
}
END_TEST

/* Saving deletes what it replaces: only a checkpoint may be replaced. */
START_TEST(test_not_replaced) {
  bk_device *device = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_PLAIN);
  bk_model *m = make_model(device, &c, BK_F32, false, 3);
  OK(bk_mkdirs(ctx, unit_path("home")));
  touch(unit_path("home/letter"));
  touch(unit_path("file"));
  ck_assert_int_eq(bk_checkpoint_save(m, NULL, unit_path("home/")), BK_ERR_ARGUMENT);
  unit_expect("holds other things");
  ck_assert_int_eq(bk_checkpoint_save(m, NULL, unit_path("file")), BK_ERR_ARGUMENT);
  unit_expect("holds other things");
  ck_assert(bk_path_exists(ctx, unit_path("home/letter")) &&
            bk_path_exists(ctx, unit_path("file")));
  OK(bk_mkdirs(ctx, unit_path("empty")));
  OK(bk_checkpoint_save(m, NULL, unit_path("empty")));
  OK(bk_checkpoint_load_weights(m, unit_path("empty")));
  bk_model_destroy(m);
  bk_device_close(device);
}
END_TEST

/* ---- files that do not fit ---- */

typedef struct edit {
  const char *drop, *retype, *reshape, *add; /* names, or NULL */
  void (*rename)(const char *name, char *out, size_t size);
} edit;

static void add_entry(bk_st_writer *w, const bk_st_entry *e, const edit *change_) {
  char name[160];
  int64_t shape[BK_ST_MAX_DIMS];
  bk_dtype dtype = e->dtype;
  snprintf(name, sizeof name, "%s", e->name);
  if (change_->rename) change_->rename(e->name, name, sizeof name);
  memcpy(shape, e->shape, sizeof shape);
  if (change_->retype && strcmp(change_->retype, e->name) == 0) dtype = BK_I32;
  if (change_->reshape && strcmp(change_->reshape, e->name) == 0)
    shape[0] = e->shape[1], shape[1] = e->shape[0];
  OK(bk_st_add(w, name, dtype, e->ndim, shape));
}

/* FOLDER/from/file again as FOLDER/to/file, edited. Everything is fp32, so that an i32 has the
 * same bytes. */
static void rewrite(const char *from, const char *to, const edit *change_) {
  bk_st_reader *r = NULL;
  bk_st_writer *w = NULL;
  OK(bk_st_open(ctx, from, &r));
  OK(bk_st_create(ctx, to, &w));
  for (int i = 0; i < bk_st_count(r); i++) {
    const bk_st_entry *e = bk_st_get(r, i);
    if (!change_->drop || strcmp(change_->drop, e->name) != 0) add_entry(w, e, change_);
  }
  if (change_->add) OK(bk_st_add(w, change_->add, BK_F32, 1, (int64_t[]){2}));
  for (int i = 0; i < bk_st_count(r); i++) {
    const bk_st_entry *e = bk_st_get(r, i);
    size_t bytes = (size_t)(e->end - e->begin);
    if (change_->drop && strcmp(change_->drop, e->name) == 0) continue;
    void *data = bk_alloc(ctx, bytes);
    OK(bk_st_read(r, e, data, bytes));
    OK(bk_st_write(w, data, bytes));
    bk_free(ctx, data);
  }
  if (change_->add) OK(bk_st_write(w, (float[]){1, 2}, 8));
  OK(bk_st_finish(w));
  bk_st_close(r);
}

static void check_refused(bk_model *m, const edit *change_, const char *word, const char *tensor) {
  size_t n;
  rewrite(unit_path("a/model.safetensors"), unit_path("b/model.safetensors"), change_);
  char *before = bytes_of(m, &n);
  ck_assert_int_eq(bk_checkpoint_load_weights(m, unit_path("b")), BK_ERR_DATA);
  ck_assert_msg(strstr(unit_messages, tensor) != NULL, "%s is not named in: %s", tensor,
                unit_messages);
  unit_expect(word);
  char *after = bytes_of(m, &n);
  ck_assert_mem_eq(before, after, n);
  bk_free(ctx, before);
  bk_free(ctx, after);
}

START_TEST(test_refused_weights) {
  static const char q[] = "model.layers.1.self_attn.q_proj.weight",
                    base[] = "model.layers.2.hc_ffn_base", last[] = "lm_head.weight";
  bk_device *device = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_MHC);
  bk_model *a = make_model(device, &c, BK_F32, false, 3),
           *b = make_model(device, &c, BK_F32, true, 4);
  OK(bk_checkpoint_save(a, NULL, unit_path("a")));
  OK(bk_mkdirs(ctx, unit_path("b")));
  check_refused(b, &(edit){.drop = q}, "is missing", q);
  check_refused(b, &(edit){.drop = base}, "is missing", base);
  check_refused(b, &(edit){.drop = last}, "is missing", last);
  check_refused(b, &(edit){.retype = q}, "has dtype I32", q);
  check_refused(b, &(edit){.reshape = last}, "has shape [12,23], the configuration wants [23,12]",
                last);
  check_refused(b, &(edit){.add = "model.layers.9.input_layernorm.weight"}, "does not belong",
                "model.layers.9.input_layernorm.weight");
  /* a second spelling */
  check_refused(b, &(edit){.add = "norm.weight"}, "does not belong", "norm.weight");
  rewrite(unit_path("a/model.safetensors"), unit_path("b/model.safetensors"),
          &(edit){.add = "model.layers.0.self_attn.rotary_emb.inv_freq"});
  OK(bk_checkpoint_load_weights(b, unit_path("b")));
  bk_model_destroy(a);
  bk_model_destroy(b);
  bk_device_close(device);
}
END_TEST

static void check_other_shape(bk_device *device, const bk_model_config *c, const char *expected) {
  bk_model *m = make_model(device, c, BK_F32, true, 9);
  size_t n;
  char *before = bytes_of(m, &n);
  ck_assert_int_eq(bk_checkpoint_load_weights(m, unit_path("a")), BK_ERR_DATA);
  unit_expect(expected);
  char *after = bytes_of(m, &n);
  ck_assert_mem_eq(before, after, n);
  bk_free(ctx, before);
  bk_free(ctx, after);
  bk_model_destroy(m);
}

static void truncate_by(const char *path, uint64_t bytes) {
  bk_file *file;
  uint64_t size;
  ck_assert_int_eq(ctx->fs.open_read(ctx->fs.user, path, &file), 0);
  ck_assert_int_eq(ctx->fs.size(ctx->fs.user, file, &size), 0);
  ctx->fs.close(ctx->fs.user, file);
  ck_assert_int_eq(ctx->fs.truncate(ctx->fs.user, path, size - bytes), 0);
}

START_TEST(test_refused_files) {
  bk_device *device = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_MHC), other;
  bk_model *a = make_model(device, &c, BK_F32, true, 3), *none = NULL;
  bk_trainer_state state = make_state(BK_F32);
  OK(bk_checkpoint_save(a, &state, unit_path("a")));
  other = c, other.hidden_size = 16;
  check_other_shape(device, &other, "tensor model.embed_tokens.weight has shape [23,12]");
  other = c, other.num_hidden_layers = 4;
  check_other_shape(device, &other, "tensor model.layers.3.input_layernorm.weight is missing");
  other = c, other.num_hidden_layers = 2;
  check_other_shape(device, &other, "tensor model.layers.2");
  other = c, other.residual = BK_HC_PLAIN;
  check_other_shape(device, &other, "does not belong to this configuration");
  other = c, other.residual = BK_HC_IHC;
  check_other_shape(device, &other, "tensor model.layers.0.hc_attn_fn has shape");
  bk_model *bf16 = make_model(device, &c, BK_BF16, true, 4);
  ck_assert_int_eq(bk_checkpoint_load_optimizer(bf16, unit_path("a")), BK_ERR_DATA);
  unit_expect("tensor master.model.embed_tokens.weight is missing");
  bk_model_destroy(bf16);
  truncate_by(unit_path("a/model.safetensors"), 1);
  ck_assert_int_eq(bk_checkpoint_load(device, unit_path("a"), BK_NONE, NULL, &none), BK_ERR_DATA);
  unit_expect("a/model.safetensors: tensor lm_head.weight");
  truncate_by(unit_path("a/optimizer.safetensors"), 4);
  ck_assert_int_eq(bk_checkpoint_load_optimizer(a, unit_path("a")), BK_ERR_DATA);
  unit_expect("tensor v.lm_head.weight");
  ck_assert_ptr_null(none);
  bk_model_destroy(a);
  bk_device_close(device);
}
END_TEST

/* ---- other spellings ---- */

static void modules(const char *name, char *out, size_t size) {
  static const char *const leaves[][2] = {
      {"hc_attn_fn", "attn_hc.fn"},         {"hc_attn_base", "attn_hc.base"},
      {"hc_attn_scale", "attn_hc.scale"},   {"hc_ffn_fn", "ffn_hc.fn"},
      {"hc_ffn_base", "ffn_hc.base"},       {"hc_ffn_scale", "ffn_hc.scale"},
      {"hc_head_fn", "hc_head.hc_fn"},      {"hc_head_base", "hc_head.hc_base"},
      {"hc_head_scale", "hc_head.hc_scale"}};
  snprintf(out, size, "%s", name);
  for (size_t i = 0; i < BK_COUNT(leaves); i++) {
    char *at = strstr(out, leaves[i][0]);
    if (at) snprintf(at, size - (size_t)(at - out), "%s", leaves[i][1]);
  }
}
static void no_prefix(const char *name, char *out, size_t size) {
  snprintf(out, size, "%s", strncmp(name, "model.", 6) == 0 ? name + 6 : name);
}
static void both(const char *name, char *out, size_t size) {
  char whole[160];
  modules(name, whole, sizeof whole);
  no_prefix(whole, out, size);
}

START_TEST(test_spellings) {
  void (*const spellings[])(const char *, char *, size_t) = {modules, no_prefix, both};
  bk_device *device = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_MHC);
  c.hc_head = BK_HEAD_LEARNED;
  bk_model *a = make_model(device, &c, BK_F32, false, 3);
  OK(bk_checkpoint_save(a, NULL, unit_path("a")));
  OK(bk_mkdirs(ctx, unit_path("b")));
  for (size_t i = 0; i < BK_COUNT(spellings); i++) {
    bk_model *b = make_model(device, &c, BK_F32, false, 4);
    bk_dtype dtype = BK_NONE;
    ck_assert(!same_bytes(a, b));
    rewrite(unit_path("a/model.safetensors"), unit_path("b/model.safetensors"),
            &(edit){.rename = spellings[i]});
    OK(bk_checkpoint_load_weights(b, unit_path("b")));
    ck_assert_msg(same_bytes(a, b), "spelling %zu", i);
    OK(bk_checkpoint_dtype(ctx, unit_path("b"), &dtype));
    ck_assert_int_eq(dtype, BK_F32);
    bk_model_destroy(b);
  }
  bk_model_destroy(a);
  bk_device_close(device);
}
END_TEST

/* ---- a plain model with streams ---- */
enum { B = 2, T = 7 };

/* The last streams: of a plain model every token's mean square, else how far the first two
 * streams are apart. */
static void look_at_streams(bk_model *m, const bk_runner *r, double *mean_square, double *apart) {
  int64_t C = m->config.hidden_size, n = m->config.residual == BK_HC_PLAIN ? 1 : m->config.hc_mult;
  double *x = read_tensor(m, bk_runner_last_streams(r, 0));
  for (int64_t t = 0; n == 1 && mean_square && t < B * T; t++) {
    double norm = norm_of(x + t * C, C);
    mean_square[t] = norm * norm / (double)C;
  }
  if (n > 1 && apart) *apart = distance(x, x + C, C) / norm_of(x, C);
  bk_free(ctx, x);
}

/* Logits [B*T, V], and what look_at_streams sees. */
static double *logits_of(bk_model *m, double *mean_square, double *apart) {
  int32_t ids[B * T], targets[B * T];
  bk_runner *r = NULL;
  make_tokens(m->config.vocab_size, B * T, 41, ids, targets);
  OK(bk_runner_create(
      m, &(bk_runner_options){.batch = B, .seq_len = T, .slots = 1, .keep_logits = true}, &r));
  begin_step(m, 1);
  OK(bk_runner_forward(r, 0, ids, NULL));
  double *logits = read_tensor(m, bk_runner_logits(r));
  look_at_streams(m, r, mean_square, apart);
  bk_runner_destroy(r);
  return logits;
}

typedef struct conversion {
  const char *device;
  bk_dtype dtype;
  int head;
  double norm_eps, hc_eps, bound;
} conversion;

/* With the sum, the last norm sees n x: x / sqrt(ms + eps / n^2), not x / sqrt(ms + eps);
 * everything else is the same. */
static void check_converted(const conversion *v, int kind, int64_t n) {
  bk_device *device = open_device(v->device, 1);
  bk_model_config c = small_config(BK_HC_PLAIN);
  c.rms_norm_eps = v->norm_eps;
  bk_model *plain = make_model(device, &c, v->dtype, false, 3), *m = NULL;
  double ms[B * T], apart = 1;
  double *want = logits_of(plain, ms, NULL);
  OK(bk_checkpoint_save(plain, NULL, unit_path("plain")));
  c.residual = kind, c.hc_mult = n, c.hc_head = v->head, c.hc_eps = v->hc_eps;
  OK(bk_model_create(device, &c, v->dtype, &(bk_model_options){.trainable = true}, &m));
  OK(bk_model_init(m, 77));
  OK(bk_checkpoint_convert_plain(m, unit_path("plain")));
  for (int64_t i = 0; v->head == BK_HEAD_SUM && i < B * T * c.vocab_size; i++) {
    double square = ms[i / c.vocab_size];
    want[i] *= sqrt((square + v->norm_eps) / (square + v->norm_eps / (double)(n * n)));
  }
  int64_t count = B * T * c.vocab_size;
  double *got = logits_of(m, NULL, &apart),
         error = distance(want, got, count) / norm_of(want, count);
  ck_assert_msg(error < v->bound, "kind %d, n %d, head %d on %s, eps %g: logits off by %g", kind,
                (int)n, v->head, v->device, v->hc_eps, error);
  /* else they would never separate */
  ck_assert_msg(apart > 1e-2, "kind %d, n %d: the streams are equal to %g", kind, (int)n, apart);
  if (bk_tensor_present(&m->blocks[0].master)) { /* masters hold the values too */
    for (int i = 0; i < m->n_params; i++) {
      bk_tensor w = bk_param_weight(m, &m->params[i]), master = bk_param_master(m, &m->params[i]);
      if (!bk_tensor_present(&master)) continue;
      double *a = read_tensor(m, w), *b = read_tensor(m, master);
      for (int64_t j = 0; j < bk_tensor_count(&w); j++)
        ck_assert(a[j] == (double)bk_bf16_to_f32(bk_f32_to_bf16((float)b[j])));
      bk_free(ctx, a);
      bk_free(ctx, b);
    }
  }
  bk_free(ctx, want);
  bk_free(ctx, got);
  bk_model_destroy(m);
  bk_model_destroy(plain);
  bk_device_close(device);
}

START_TEST(test_convert) {
  static const conversion ways[] = {
      {"ref", BK_F64, BK_HEAD_LEARNED, 1e-6, 0, 1e-10},
      {"ref", BK_F64, BK_HEAD_SUM, 1e-6, 0, 1e-10},
      {"ref", BK_F64, BK_HEAD_SUM, 0.1, 0, 1e-10},
      {"cpu", BK_F32, BK_HEAD_LEARNED, 1e-6, 0, 2e-6},
      {"cpu", BK_F32, BK_HEAD_SUM, 1e-6, 0, 2e-6},
      {"cpu", BK_BF16, BK_HEAD_LEARNED, 1e-6, 0, 0.05},
  };
  for (size_t w = 0; w < BK_COUNT(ways); w++)
    for (size_t k = 1; k < BK_COUNT(kinds); k++)
      for (int64_t n = 1; n <= 4; n += quick() ? 3 : 1)
        if (n != 3 || kinds[k] != BK_HC_KROMHC) check_converted(&ways[w], kinds[k], n);
}
END_TEST

/* hc_eps is taken out of the reads; mhc's mixing matrices then sum to 1 - eps, which no base can
 * undo. */
START_TEST(test_convert_eps) {
  static const conversion exact = {"ref", BK_F64, BK_HEAD_LEARNED, 1e-6, 1e-3, 1e-10},
                          mixed = {"ref", BK_F64, BK_HEAD_LEARNED, 1e-6, 1e-6, 1e-5};
  for (int64_t n = 1; n <= 4; n++) {
    check_converted(&exact, BK_HC_HC, n);
    check_converted(&exact, BK_HC_IHC, n);
    check_converted(&exact, BK_HC_MHC_LITE, n);
    if (n != 3) check_converted(&exact, BK_HC_KROMHC, n);
    check_converted(&mixed, BK_HC_MHC, n);
  }
}
END_TEST

START_TEST(test_convert_refused) {
  bk_device *device = open_device("cpu", 1);
  bk_model_config c = small_config(BK_HC_IHC);
  bk_model *a = make_model(device, &c, BK_F32, false, 3), *m = NULL;
  OK(bk_checkpoint_save(a, NULL, unit_path("ihc")));
  c.residual = BK_HC_MHC;
  c.hc_eps = 0.25;
  OK(bk_model_create(device, &c, BK_F32, NULL, &m));
  ck_assert_int_eq(bk_checkpoint_convert_plain(m, unit_path("ihc")), BK_ERR_CONFIG);
  unit_expect("hc_eps 0.25 with 4 streams");
  bk_model_destroy(m);
  c.hc_eps = 0;
  OK(bk_model_create(device, &c, BK_F32, NULL, &m));
  ck_assert_int_eq(bk_checkpoint_convert_plain(m, unit_path("ihc")), BK_ERR_DATA);
  unit_expect("hc_attn_fn does not belong");
  bk_model_destroy(m);
  bk_model_destroy(a);
  bk_device_close(device);
}
END_TEST

int main(void) {
  const TTest *const crashes[] = {test_crash, test_crash_prune};
  const TTest *const tests[] = {test_round_trip,   test_weights_only,    test_names,
                                test_not_replaced, test_refused_weights, test_refused_files,
                                test_spellings};
  const TTest *const conversions[] = {test_convert, test_convert_eps, test_convert_refused};
  Suite *suite = suite_create("checkpoint");
  unit_case(suite, "files", unit_folder_open, unit_folder_close, tests, BK_COUNT(tests));
  unit_case(suite, "conversions", unsynced_open, unit_folder_close, conversions,
            BK_COUNT(conversions));
  unit_case(suite, "crash", faulty_open, unit_folder_close, crashes, BK_COUNT(crashes));
  return unit_run(suite);
}
