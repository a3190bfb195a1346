/* What the tests of several ranks' checkpoints share: models whose every element is known by the
 * name of its parameter, and a disk and memory that fail when they are told to. */
#ifndef BK_TESTS_SAVED_H
#define BK_TESTS_SAVED_H

#include "tests/models/models.h"
#include "tests/unit/ranks.h"

#include "models/checkpoint.h"
#include "models/shards.h"

#include <errno.h>

/* ---- a model whose every element is known ---- */

enum { WEIGHT, MASTER, M, V };

static double known_element(const bk_param *p, uint64_t seed, int part, int64_t i) {
  return bk_normal(4 * seed + (uint64_t)part, bk_hash64(p->name, strlen(p->name)), (uint64_t)i);
}

static double known_rounded(bk_dtype dtype, double x) {
  char raw[8];
  bk_dtype_store(dtype, raw, x);
  return bk_dtype_load(dtype, raw);
}

static bk_status known_fill(bk_model *m, const bk_param *p, uint64_t seed, bk_tensor t, int part,
                            int64_t begin) {
  int64_t n = bk_tensor_count(&t);
  if (n == 0) return BK_OK;
  double *v = bk_alloc_array(m->ctx, (size_t)n, sizeof *v);
  for (int64_t i = 0; i < n; i++) v[i] = known_element(p, seed, part, begin + i);
  bk_status status = bk_tensor_write_f64(m->stream, &t, v);
  bk_free(m->ctx, v);
  return status;
}

static bool known_holds(bk_model *m, const bk_param *p, uint64_t seed, bk_tensor t, int part,
                        int64_t begin) {
  int64_t n = bk_tensor_count(&t);
  if (n == 0) return true;
  double *v = bk_alloc_array(m->ctx, (size_t)n, sizeof *v);
  bool same = bk_tensor_read_f64(m->stream, &t, v) == BK_OK;
  for (int64_t i = 0; i < n && same; i++)
    same = v[i] == known_rounded(t.dtype, known_element(p, seed, part, begin + i));
  bk_free(m->ctx, v);
  return same;
}

/* Fills what this rank holds; the same seed gives the same elements whoever holds them. */
static BK_UNUSED bk_status known_fill_all(bk_model *m, uint64_t seed) {
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    BK_TRY(known_fill(m, p, seed, bk_param_weight(m, p), WEIGHT, 0));
    for (bk_slice s = {0}; bk_param_next_slice(m, p, &s);) {
      BK_TRY(known_fill(m, p, seed, s.master, MASTER, s.begin));
      BK_TRY(known_fill(m, p, seed, s.m, M, s.begin));
      BK_TRY(known_fill(m, p, seed, s.v, V, s.begin));
    }
  }
  return BK_OK;
}

static BK_UNUSED bool known_holds_all(bk_model *m, uint64_t seed) {
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    if (!known_holds(m, p, seed, bk_param_weight(m, p), WEIGHT, 0)) return false;
    for (bk_slice s = {0}; bk_param_next_slice(m, p, &s);)
      if (!known_holds(m, p, seed, s.master, MASTER, s.begin) ||
          !known_holds(m, p, seed, s.m, M, s.begin) || !known_holds(m, p, seed, s.v, V, s.begin))
        return false;
  }
  return true;
}

static BK_UNUSED bk_trainer_state known_state(bk_dtype dtype) {
  bk_trainer_state s = {.step = 1, .tokens = 2, .data_hash = 3, .dtype = dtype};
  bk_train_config_default(&s.recipe);
  return s;
}

/* The late device has no kernels, and stores what it is given. */
static BK_UNUSED void open_rank(rank *r) {
  r->device->props.storage_dtypes = BK_DT(BK_F32) | BK_DT(BK_BF16);
  if (!r->device->props.offset_alignment) r->device->props.offset_alignment = 1;
}

/* ---- files ---- */

static BK_UNUSED void read_file(const char *folder, const char *name, char **data, size_t *bytes) {
  char *path = bk_path_join(ctx, folder, name);
  OK(bk_file_read_all(ctx, path, 1 << 24, data, bytes));
  bk_free(ctx, path);
}

static BK_UNUSED void check_same_files(const char *a, const char *b) {
  char **names, *x, *y;
  size_t count, nx, ny;
  OK(bk_folder_names(ctx, a, &names, &count));
  ck_assert_uint_gt(count, 3);
  for (size_t i = 0; i < count; i++) {
    read_file(a, names[i], &x, &nx);
    read_file(b, names[i], &y, &ny);
    ck_assert_msg(nx == ny && memcmp(x, y, nx) == 0, "%s differs", names[i]);
    bk_free(ctx, x);
    bk_free(ctx, y);
  }
  bk_names_free(ctx, names, count);
}

/* ---- a rank whose disk fails, or its memory ---- */

static _Thread_local int changes; /* of this rank's disk, or allocations */
static _Thread_local int change_to_fail;
static int change(void) { return ++changes == change_to_fail ? -EIO : 0; }
static int bad_open_write(void *user, const char *path, bool append, bk_file **file) {
  int rc = change();
  return rc ? rc : bk_fs_posix.open_write(user, path, append, file);
}
static int64_t bad_write(void *user, bk_file *file, const void *src, size_t bytes) {
  int rc = change();
  return rc ? rc : bk_fs_posix.write(user, file, src, bytes);
}
static int bad_sync(void *user, bk_file *file) {
  (void)user, (void)file;
  return change();
}
static int bad_close(void *user, bk_file *file) {
  int rc = change(), done = bk_fs_posix.close(user, file);
  return rc ? rc : done;
}
/* at 0: nothing fails */
static BK_UNUSED void spoil_disk(rank *r, int at) {
  r->ctx->fs.open_write = bad_open_write;
  r->ctx->fs.write = bad_write;
  r->ctx->fs.sync = bad_sync;
  r->ctx->fs.close = bad_close;
  changes = 0;
  change_to_fail = at;
}

static void *bad_alloc(void *user, size_t bytes, size_t align) {
  return change() ? NULL : bk_allocator_libc.alloc(user, bytes, align);
}
static BK_UNUSED void spoil_memory(rank *r, int at) {
  changes = 0;
  change_to_fail = at;
  r->ctx->allocator.alloc = bad_alloc;
}
static BK_UNUSED void mend_memory(rank *r) { r->ctx->allocator.alloc = bk_allocator_libc.alloc; }

#endif
