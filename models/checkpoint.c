/* Checkpoint folders: save, find, load. See checkpoint.h. */
#include "models/checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"

#define STEP_PREFIX "step-"
#define IO_CHUNK ((int64_t)1 << 17) /* most elements moved at a time: 1 MiB of doubles */

/* ---- folders ---- */

/* "step-000123" -> 123; -1 for any other name, other spellings of a number ("step-123") included: no path is made for them. */
static int64_t step_of_name(const char *name) {
  int64_t step;
  char spelling[32];
  if (strncmp(name, STEP_PREFIX, strlen(STEP_PREFIX)) != 0) return -1;
  if (!bk_parse_int64(name + strlen(STEP_PREFIX), &step) || step < 0) return -1;
  snprintf(spelling, sizeof spelling, STEP_PREFIX "%06lld", (long long)step);
  return strcmp(name, spelling) == 0 ? step : -1;
}

static void newest_each(void *arg, const char *name) {
  int64_t *newest = arg, step = step_of_name(name);
  if (step > *newest) *newest = step;
}

bk_status bk_checkpoint_newest(bk_context *ctx, const char *folder, int64_t *step) {
  int64_t newest = -1;
  int kind;
  BK_TRY(bk_path_kind(ctx, folder, &kind));
  int rc = kind == 1 ? ctx->fs.list(ctx->fs.user, folder, newest_each, &newest) : 0;
  if (rc < 0) return bk_fail(ctx, BK_ERR_IO, "%s: cannot list the folder: %s", folder, strerror(-rc));
  *step = newest;
  return BK_OK;
}

char *bk_checkpoint_step_path(bk_context *ctx, const char *folder, int64_t step) {
  return bk_format(ctx, "%s/" STEP_PREFIX "%06lld", folder, (long long)step);
}

static bk_status has_model(bk_context *ctx, const char *folder, bool *there) {
  int kind = -1;
  char *file = bk_path_join(ctx, folder, "model.safetensors");
  bk_status status = file ? bk_path_kind(ctx, file, &kind) : BK_ERR_MEMORY;
  bk_free(ctx, file);
  *there = kind >= 0;
  return status;
}

/* "X" -> "X.old.tmp", where put_in_place moves an older X; trailing slashes of X do not count. */
static char *moved_aside(bk_context *ctx, const char *path) {
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') length--;
  return bk_format(ctx, "%.*s.old.tmp", (int)length, path);
}

/* A crash between the two renames of put_in_place leaves only the older checkpoint, moved aside. */
static bk_status resolve_moved_aside(bk_context *ctx, const char *given, char **path) {
  char *old = moved_aside(ctx, given);
  bool there = false;
  bk_status status = old ? has_model(ctx, old, &there) : BK_ERR_MEMORY;
  if (there) {
    bk_warn(ctx, "%s is not there: its replacement was interrupted; taking the older one, %s", given, old);
    *path = old;
    return BK_OK;
  }
  bk_free(ctx, old);
  return status == BK_OK ? bk_fail(ctx, BK_ERR_IO, "%s: no such checkpoint folder", given) : status;
}

bk_status bk_checkpoint_resolve(bk_context *ctx, const char *given, char **path) {
  int kind;
  int64_t step = -1;
  bool there;
  BK_TRY(bk_path_kind(ctx, given, &kind));
  if (kind < 0) return resolve_moved_aside(ctx, given, path);
  if (kind != 1) return bk_fail(ctx, BK_ERR_DATA, "%s: a checkpoint is a folder, this is a file", given);
  BK_TRY(has_model(ctx, given, &there));
  if (!there) BK_TRY(bk_checkpoint_newest(ctx, given, &step));
  char *found = step >= 0 ? bk_checkpoint_step_path(ctx, given, step) : bk_strdup(ctx, given);
  if (!found) return BK_ERR_MEMORY;
  bk_status status = has_model(ctx, found, &there);
  if (status == BK_OK && !there)
    status = bk_fail(ctx, BK_ERR_DATA, "%s: neither a checkpoint (model.safetensors is missing) nor a folder of step-NNNNNN checkpoints", found);
  if (status == BK_OK) *path = found;
  else bk_free(ctx, found);
  return status;
}

/* What an interrupted save left: "step-000123.tmp", "step-000123.old.tmp". */
static bool is_partial(const char *name) {
  size_t length = strlen(name);
  return strncmp(name, STEP_PREFIX, strlen(STEP_PREFIX)) == 0 && length > 4 && strcmp(name + length - 4, ".tmp") == 0;
}

static int descending(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x < y) - (x > y);
}

/* The oldest step that stays. */
static bk_status find_keep_from(bk_context *ctx, char *const *names, size_t count, int64_t keep, int64_t *keep_from) {
  size_t n_steps = 0;
  int64_t *steps = bk_alloc_array(ctx, count, sizeof *steps);
  if (!steps) return BK_ERR_MEMORY;
  for (size_t i = 0; i < count; i++)
    if (step_of_name(names[i]) >= 0) steps[n_steps++] = step_of_name(names[i]);
  qsort(steps, n_steps, sizeof *steps, descending);
  *keep_from = keep > 0 && (size_t)keep <= n_steps ? steps[keep - 1] : INT64_MIN;
  bk_free(ctx, steps);
  return BK_OK;
}

/* Renamed before it is emptied: a crash in between leaves nothing that looks like a checkpoint and is none. */
static bk_status remove_step(bk_context *ctx, const char *folder, const char *name) {
  char *path = bk_path_join(ctx, folder, name), *partial = path ? bk_format(ctx, "%s.tmp", path) : NULL;
  bk_status status = partial ? bk_remove_tree(ctx, partial) : BK_ERR_MEMORY;
  if (status == BK_OK) {
    int rc = ctx->fs.rename(ctx->fs.user, path, partial);
    status = rc < 0 ? bk_fail(ctx, BK_ERR_IO, "cannot remove %s: %s", path, strerror(-rc)) : bk_remove_tree(ctx, partial);
  }
  bk_free(ctx, partial);
  bk_free(ctx, path);
  return status;
}

bk_status bk_checkpoint_prune(bk_context *ctx, const char *folder, int64_t keep) {
  char **names;
  size_t count;
  int64_t keep_from = INT64_MIN;
  BK_TRY(bk_folder_names(ctx, folder, &names, &count));
  bk_status status = find_keep_from(ctx, names, count, keep, &keep_from);
  for (size_t i = 0; i < count && status == BK_OK; i++) {
    int64_t step = step_of_name(names[i]);
    if (is_partial(names[i])) status = bk_remove_member(ctx, folder, names[i]);
    else if (step >= 0 && step < keep_from) status = remove_step(ctx, folder, names[i]);
  }
  bk_names_free(ctx, names, count);
  return status;
}

/* The host copy through which tensors pass. */
static double *make_chunk(const bk_model *model) { return bk_alloc_array(model->ctx, (size_t)IO_CHUNK, sizeof(double)); }

size_t bk_checkpoint_staging(void) { return (size_t)IO_CHUNK * sizeof(double); }

static int64_t piece_count(int64_t count, int64_t at) { return count - at < IO_CHUNK ? count - at : IO_CHUNK; }

/* ---- save ---- */

static bk_status write_tensor(bk_model *model, bk_st_writer *writer, const bk_tensor *t, void *chunk) {
  int64_t count = bk_tensor_count(t);
  bk_tensor flat = bk_tensor_reshape(*t, 1, &count);
  for (int64_t at = 0; at < count; at += IO_CHUNK) {
    bk_tensor piece = bk_tensor_slice(flat, 0, at, piece_count(count, at));
    BK_TRY(bk_tensor_download(model->stream, &piece, chunk));
    BK_TRY(bk_st_write(writer, chunk, bk_tensor_bytes(&piece)));
  }
  return BK_OK;
}

/* The tensors of one file: prefix + parameter name. */
typedef bk_tensor (*param_view)(const bk_model *model, const bk_param *p);
typedef struct column {
  const char *prefix;
  param_view view;
} column;

static bk_status write_columns(bk_model *model, bk_st_writer *writer, const column *columns, int n_columns) {
  bk_context *ctx = model->ctx;
  for (int c = 0; c < n_columns; c++)
    for (int i = 0; i < model->n_params; i++) {
      const bk_param *p = &model->params[i];
      bk_tensor t = columns[c].view(model, p);
      if (!bk_tensor_present(&t)) continue;
      char *name = bk_format(ctx, "%s%s", columns[c].prefix, p->name);
      if (!name) return BK_ERR_MEMORY;
      bk_status status = bk_st_add(writer, name, t.dtype, p->ndim, p->shape);
      bk_free(ctx, name);
      BK_TRY(status);
    }
  void *chunk = make_chunk(model);
  if (!chunk) return BK_ERR_MEMORY;
  bk_status status = BK_OK;
  for (int c = 0; c < n_columns && status == BK_OK; c++)
    for (int i = 0; i < model->n_params && status == BK_OK; i++) {
      bk_tensor t = columns[c].view(model, &model->params[i]);
      if (bk_tensor_present(&t)) status = write_tensor(model, writer, &t, chunk);
    }
  bk_free(ctx, chunk);
  return status;
}

static bk_status save_file(bk_model *model, const char *folder, const char *name, const column *columns, int n_columns) {
  char *path = bk_path_join(model->ctx, folder, name);
  if (!path) return BK_ERR_MEMORY;
  bk_st_writer *writer = NULL;
  bk_status status = bk_st_create(model->ctx, path, &writer);
  bk_free(model->ctx, path);
  BK_TRY(status);
  status = bk_st_add_metadata(writer, "format", "pt");
  if (status == BK_OK) status = write_columns(model, writer, columns, n_columns);
  if (status == BK_OK) status = bk_st_finish(writer);
  if (status != BK_OK) bk_st_abandon(writer);
  return status;
}

static bk_tensor separate_master(const bk_model *model, const bk_param *p) { return bk_param_master(model, p); }

static bk_status save_into(bk_model *model, const bk_trainer_state *state, const char *folder) {
  static const column weights[] = {{"", bk_param_weight}};
  static const column optimizer[] = {{"master.", separate_master}, {"m.", bk_param_m}, {"v.", bk_param_v}};
  bk_context *ctx = model->ctx;
  BK_TRY(save_file(model, folder, "model.safetensors", weights, BK_COUNT(weights)));
  char *path = bk_path_join(ctx, folder, "config.json");
  if (!path) return BK_ERR_MEMORY;
  bk_status status = bk_model_config_write(ctx, path, &model->config, model->dtype);
  bk_free(ctx, path);
  BK_TRY(status);
  if (!state) return BK_OK;
  BK_TRY(save_file(model, folder, "optimizer.safetensors", optimizer, BK_COUNT(optimizer)));
  if (!(path = bk_path_join(ctx, folder, "trainer_state.json"))) return BK_ERR_MEMORY;
  status = bk_trainer_state_write(ctx, path, state);
  bk_free(ctx, path);
  return status;
}

static char *parent_of(bk_context *ctx, const char *path) {
  const char *slash = strrchr(path, '/');
  if (!slash) return bk_strdup(ctx, ".");
  return bk_format(ctx, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

static void foreign_each(void *arg, const char *name) {
  static const char *const ours[] = {"model.safetensors", "config.json", "optimizer.safetensors", "trainer_state.json"};
  for (size_t i = 0; i < BK_COUNT(ours); i++)
    if (strcmp(name, ours[i]) == 0) return;
  *(bool *)arg = true;
}

/* What is replaced is deleted: only a folder that holds nothing but a checkpoint may be. */
static bk_status check_replaceable(bk_context *ctx, const char *path) {
  int kind;
  BK_TRY(bk_path_kind(ctx, path, &kind));
  if (kind < 0) return BK_OK;
  bool foreign = kind != 1;
  int rc = foreign ? 0 : ctx->fs.list(ctx->fs.user, path, foreign_each, &foreign);
  if (rc < 0) return bk_fail(ctx, BK_ERR_IO, "%s: cannot list the folder: %s", path, strerror(-rc));
  return foreign ? bk_fail(ctx, BK_ERR_ARGUMENT, "%s is there and holds other things than a checkpoint; it is not replaced", path) : BK_OK;
}

static bk_status move_aside(bk_context *ctx, const char *path, const char *old) {
  BK_TRY(bk_remove_tree(ctx, old));
  int rc = ctx->fs.rename(ctx->fs.user, path, old);
  return rc < 0 ? bk_fail(ctx, BK_ERR_IO, "%s: cannot move the older checkpoint aside: %s", path, strerror(-rc)) : BK_OK;
}

/* Makes `partial` the folder `path`; an older folder of that name moves aside to `old` first and goes last. */
static bk_status put_in_place(bk_context *ctx, const char *partial, const char *path, const char *old, const char *parent) {
  int kind;
  BK_TRY(bk_path_kind(ctx, path, &kind));
  bool moved = kind >= 0;
  if (moved) BK_TRY(move_aside(ctx, path, old));
  int rc = ctx->fs.rename(ctx->fs.user, partial, path);
  if (rc < 0) {
    bk_status status = bk_fail(ctx, BK_ERR_IO, "%s: cannot rename to %s: %s", partial, path, strerror(-rc));
    if (moved && ctx->fs.rename(ctx->fs.user, old, path) < 0) bk_warn(ctx, "%s: the older checkpoint is now %s", path, old);
    return status;
  }
  if ((rc = ctx->fs.sync_dir(ctx->fs.user, parent)) < 0)
    return bk_fail(ctx, BK_ERR_IO, "%s: cannot sync the folder: %s", parent, strerror(-rc));
  return bk_remove_tree(ctx, old); /* also one that an interrupted save left */
}

static bk_status save_beside(bk_model *model, const bk_trainer_state *state, const char *path, const char *partial, const char *old, const char *parent) {
  bk_context *ctx = model->ctx;
  BK_TRY(bk_mkdirs(ctx, parent));
  BK_TRY(bk_remove_tree(ctx, partial));
  int rc = ctx->fs.mkdir(ctx->fs.user, partial);
  if (rc < 0) return bk_fail(ctx, BK_ERR_IO, "cannot make folder %s: %s", partial, strerror(-rc));
  bk_status status = save_into(model, state, partial);
  rc = status == BK_OK ? ctx->fs.sync_dir(ctx->fs.user, partial) : 0;
  if (rc < 0) status = bk_fail(ctx, BK_ERR_IO, "%s: cannot sync the folder: %s", partial, strerror(-rc));
  if (status == BK_OK) status = put_in_place(ctx, partial, path, old, parent);
  if (status != BK_OK) bk_remove_tree(ctx, partial);
  return status;
}

bk_status bk_checkpoint_save(bk_model *model, const bk_trainer_state *state, const char *given) {
  bk_context *ctx = model->ctx;
  if (state && !model->options.trainable)
    return bk_fail(ctx, BK_ERR_ARGUMENT, "%s: a trainer's state goes with a trainable model, this one has no moments", given);
  char *path = bk_strdup(ctx, given);
  for (size_t n = path ? strlen(path) : 0; n > 1 && path[n - 1] == '/'; n--) path[n - 1] = '\0';
  char *partial = path ? bk_format(ctx, "%s.tmp", path) : NULL;
  char *old = path ? moved_aside(ctx, path) : NULL;
  char *parent = path ? parent_of(ctx, path) : NULL;
  bk_status status = partial && old && parent ? check_replaceable(ctx, path) : BK_ERR_MEMORY;
  if (status == BK_OK) status = save_beside(model, state, path, partial, old, parent);
  bk_free(ctx, parent);
  bk_free(ctx, old);
  bk_free(ctx, partial);
  bk_free(ctx, path);
  return status;
}

/* ---- load ---- */

/* transformers' module names for our leaf names, and names without "model.". */
static const struct { const char *leaf, *other; } other_names[] = {
    {"hc_attn_fn", "attn_hc.fn"}, {"hc_attn_base", "attn_hc.base"}, {"hc_attn_scale", "attn_hc.scale"},
    {"hc_ffn_fn", "ffn_hc.fn"},   {"hc_ffn_base", "ffn_hc.base"},   {"hc_ffn_scale", "ffn_hc.scale"},
    {"hc_head_fn", "hc_head.hc_fn"}, {"hc_head_base", "hc_head.hc_base"}, {"hc_head_scale", "hc_head.hc_scale"},
};

static const bk_st_entry *find_spelling(const bk_st_reader *reader, const char *name) {
  const bk_st_entry *e = bk_st_find(reader, name);
  if (!e && strncmp(name, "model.", 6) == 0) e = bk_st_find(reader, name + 6);
  return e;
}

/* *entry is NULL where no spelling of the name is there. */
static bk_status find_tensor(bk_context *ctx, const bk_st_reader *reader, const char *name, const bk_st_entry **entry) {
  const bk_st_entry *e = find_spelling(reader, name);
  size_t length = strlen(name);
  for (size_t i = 0; !e && i < BK_COUNT(other_names); i++) {
    size_t leaf = strlen(other_names[i].leaf);
    if (length < leaf || strcmp(name + length - leaf, other_names[i].leaf) != 0) continue;
    char *other = bk_format(ctx, "%.*s%s", (int)(length - leaf), name, other_names[i].other);
    if (!other) return BK_ERR_MEMORY;
    e = find_spelling(reader, other);
    bk_free(ctx, other);
  }
  *entry = e;
  return BK_OK;
}

static bk_status check_entry(bk_context *ctx, const bk_st_reader *reader, const bk_st_entry *e, const char *name, const bk_param *p) {
  if (!e) return bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s is missing", bk_st_path(reader), name);
  if (!bk_dtype_is_float(e->dtype))
    return bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s has dtype %s, expected F32, BF16 or F64", bk_st_path(reader), e->name, e->dtype_name);
  bool same = e->ndim == p->ndim;
  for (int d = 0; same && d < p->ndim; d++) same = e->shape[d] == p->shape[d];
  if (same) return BK_OK;
  char found[128] = "", wanted[128] = "";
  for (int d = 0; d < e->ndim; d++) snprintf(found + strlen(found), sizeof found - strlen(found), "%s%lld", d ? "," : "", (long long)e->shape[d]);
  for (int d = 0; d < p->ndim; d++) snprintf(wanted + strlen(wanted), sizeof wanted - strlen(wanted), "%s%lld", d ? "," : "", (long long)p->shape[d]);
  return bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s has shape [%s], the configuration wants [%s]", bk_st_path(reader), e->name, found, wanted);
}

/* Elements from `at` on: as they are where the file has the tensor's dtype, else by way of doubles. */
static bk_status read_piece(bk_model *model, bk_st_reader *reader, const bk_st_entry *e, int64_t at, const bk_tensor *piece, double *chunk) {
  int64_t n = bk_tensor_count(piece);
  if (piece->dtype == e->dtype) {
    BK_TRY(bk_st_read_range(reader, e, at, n, chunk));
    return bk_tensor_upload(model->stream, piece, chunk);
  }
  BK_TRY(bk_st_read_f64(reader, e, at, n, chunk));
  return bk_tensor_write_f64(model->stream, piece, chunk);
}

/* One entry into up to two tensors (weight and master). */
static bk_status read_tensor(bk_model *model, bk_st_reader *reader, const bk_st_entry *e, const bk_tensor *a, const bk_tensor *b, double *chunk) {
  int64_t count = bk_tensor_count(a);
  for (int k = 0; k < 2; k++) {
    const bk_tensor *t = k ? b : a;
    if (!bk_tensor_present(t)) continue;
    bk_tensor flat = bk_tensor_reshape(*t, 1, &count);
    for (int64_t at = 0; at < count; at += IO_CHUNK) {
      bk_tensor piece = bk_tensor_slice(flat, 0, at, piece_count(count, at));
      BK_TRY(read_piece(model, reader, e, at, &piece, chunk));
    }
  }
  return BK_OK;
}

typedef struct load_job {
  const bk_st_entry *entry;
  bk_tensor a, b;
} load_job;

static bool harmless_extra(const char *name) { return strstr(name, "rotary_emb.inv_freq") != NULL; }

static int by_entry(const void *a, const void *b) {
  const load_job *x = a, *y = b;
  return (x->entry > y->entry) - (x->entry < y->entry);
}

static bk_status check_no_extra(bk_context *ctx, const bk_st_reader *reader, load_job *jobs, int n_jobs) {
  qsort(jobs, (size_t)n_jobs, sizeof *jobs, by_entry);
  for (int i = 1; i < n_jobs; i++)
    if (jobs[i].entry == jobs[i - 1].entry)
      return bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s stands for two parameters", bk_st_path(reader), jobs[i].entry->name);
  for (int i = 0; i < bk_st_count(reader); i++) {
    load_job key = {.entry = bk_st_get(reader, i)};
    if (!bsearch(&key, jobs, (size_t)n_jobs, sizeof *jobs, by_entry) && !harmless_extra(key.entry->name))
      return bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s does not belong to this configuration", bk_st_path(reader), key.entry->name);
  }
  return BK_OK;
}

/* Every parameter of every column is found and checked; nothing is read. */
static bk_status make_jobs(bk_model *model, bk_st_reader *reader, const column *columns, int n_columns, param_view second,
                           load_job *jobs, int *n_jobs) {
  bk_context *ctx = model->ctx;
  for (int c = 0; c < n_columns; c++)
    for (int i = 0; i < model->n_params; i++) {
      const bk_param *p = &model->params[i];
      load_job job = {.a = columns[c].view(model, p), .b = second ? second(model, p) : (bk_tensor){0}};
      if (!bk_tensor_present(&job.a)) continue;
      char *name = bk_format(ctx, "%s%s", columns[c].prefix, p->name);
      if (!name) return BK_ERR_MEMORY;
      bk_status status = find_tensor(ctx, reader, name, &job.entry);
      if (status == BK_OK) status = check_entry(ctx, reader, job.entry, name, p);
      bk_free(ctx, name);
      BK_TRY(status);
      jobs[(*n_jobs)++] = job;
    }
  return check_no_extra(ctx, reader, jobs, *n_jobs);
}

static bk_status load_columns(bk_model *model, bk_st_reader *reader, const column *columns, int n_columns, param_view second) {
  bk_context *ctx = model->ctx;
  int n_jobs = 0;
  double *chunk = make_chunk(model);
  load_job *jobs = bk_alloc_array(ctx, (size_t)model->n_params * (size_t)n_columns, sizeof *jobs);
  bk_status status = chunk && jobs ? make_jobs(model, reader, columns, n_columns, second, jobs, &n_jobs) : BK_ERR_MEMORY;
  for (int i = 0; i < n_jobs && status == BK_OK; i++)
    status = read_tensor(model, reader, jobs[i].entry, &jobs[i].a, &jobs[i].b, chunk);
  bk_free(ctx, jobs);
  bk_free(ctx, chunk);
  return status;
}

static bk_status open_file(bk_context *ctx, const char *folder, const char *name, bk_st_reader **reader) {
  char *path = bk_path_join(ctx, folder, name);
  if (!path) return BK_ERR_MEMORY;
  bk_status status = bk_st_open(ctx, path, reader);
  bk_free(ctx, path);
  return status;
}

bk_status bk_checkpoint_load_weights(bk_model *model, const char *path) {
  static const column weights[] = {{"", bk_param_weight}};
  bk_st_reader *reader = NULL;
  BK_TRY(open_file(model->ctx, path, "model.safetensors", &reader));
  bk_status status = load_columns(model, reader, weights, BK_COUNT(weights), bk_param_master);
  bk_st_close(reader);
  return status;
}

bk_status bk_checkpoint_load_optimizer(bk_model *model, const char *path) {
  static const column optimizer[] = {{"master.", bk_param_master}, {"m.", bk_param_m}, {"v.", bk_param_v}};
  bk_st_reader *reader = NULL;
  BK_TRY(open_file(model->ctx, path, "optimizer.safetensors", &reader));
  bk_status status = load_columns(model, reader, optimizer, BK_COUNT(optimizer), NULL);
  bk_st_close(reader);
  return status;
}

bk_status bk_checkpoint_dtype(bk_context *ctx, const char *path, bk_dtype *dtype) {
  bk_st_reader *reader = NULL;
  BK_TRY(open_file(ctx, path, "model.safetensors", &reader));
  const bk_st_entry *e = NULL;
  bk_status status = find_tensor(ctx, reader, "model.embed_tokens.weight", &e);
  if (status == BK_OK && !e) status = bk_fail(ctx, BK_ERR_DATA, "%s: tensor model.embed_tokens.weight is missing", bk_st_path(reader));
  else if (e && !bk_dtype_is_float(e->dtype)) status = bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s has dtype %s, expected F32, BF16 or F64", bk_st_path(reader), e->name, e->dtype_name);
  else if (e) *dtype = e->dtype;
  bk_st_close(reader);
  return status;
}

bk_status bk_checkpoint_load(bk_device *device, const char *path, bk_dtype dtype, const bk_model_options *options, bk_model **model) {
  bk_context *ctx = device->ctx;
  bk_model_config config;
  char *file = bk_path_join(ctx, path, "config.json");
  if (!file) return BK_ERR_MEMORY;
  bk_status status = bk_model_config_read(ctx, file, &config);
  bk_free(ctx, file);
  BK_TRY(status);
  if (dtype == BK_NONE) BK_TRY(bk_checkpoint_dtype(ctx, path, &dtype));
  bk_model *made = NULL;
  BK_TRY(bk_model_create(device, &config, dtype, options, &made));
  status = bk_checkpoint_load_weights(made, path);
  if (status == BK_OK) *model = made;
  else bk_model_destroy(made);
  return status;
}

/* ---- a plain checkpoint into any residual kind ---- */

static bool is_connection(const bk_param *p) { return strstr(p->name, ".hc_") != NULL; }

static bk_tensor weight_but_connections(const bk_model *model, const bk_param *p) {
  return is_connection(p) ? (bk_tensor){0} : bk_param_weight(model, p);
}

/* Values of base that make the mean of the streams follow the plain residual (checkpoint.h): reads of 1/n each, writes that
 * sum to n with more on stream (sublayer mod n), so that the streams separate. */
static double base_value(const bk_model_config *c, int64_t sublayer, int64_t row) {
  int64_t n = c->hc_mult, stream = row % n;
  bool hc = c->residual == BK_HC_HC;
  if (row < n) {
    if (hc) return 1.0 / (double)n;
    double read = 1.0 / (double)n - c->hc_eps;
    return read < 1 ? log(read / (1 - read)) : 40; /* sigmoid(40) is 1 to the last bit */
  }
  if (row < 2 * n) {
    if (n == 1) return hc ? 1 : 0;
    double one = 2 / (1 + exp(-1.0)), rest = (((double)n - one) / ((double)n - 1));
    if (hc) return stream == sublayer % n ? one : rest;
    return stream == sublayer % n ? 1 : log(rest / 2 / (1 - rest / 2));
  }
  int64_t k = row - 2 * n;
  if (c->residual == BK_HC_MHC_LITE) return k == 0 ? 0 : -8;
  bool diagonal = k / n == k % n;
  return hc ? (diagonal ? 1 : 0) : (diagonal ? 0 : -8);
}

/* "model.layers.3.hc_ffn_base" -> 7; -1 for the head. */
static int64_t sublayer_of(const bk_param *p) {
  static const char prefix[] = "model.layers.";
  if (strncmp(p->name, prefix, sizeof prefix - 1) != 0) return -1;
  return 2 * strtoll(p->name + sizeof prefix - 1, NULL, 10) + (strstr(p->name, ".hc_ffn_") != NULL);
}

static bk_status fill_connection(bk_model *model, const bk_param *p) {
  bk_tensor views[2] = {bk_param_weight(model, p), bk_param_master(model, p)};
  int64_t count = bk_tensor_count(&views[0]), sublayer = sublayer_of(p);
  size_t length = strlen(p->name);
  bool fn = strcmp(p->name + length - 3, "_fn") == 0, base = strcmp(p->name + length - 5, "_base") == 0;
  double *values = bk_alloc_array(model->ctx, (size_t)count, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  bk_model_config head = model->config;
  head.residual = BK_HC_MHC; /* the head's gate is a sigmoid whatever the kind */
  const bk_model_config *c = sublayer < 0 ? &head : &model->config;
  for (int64_t i = 0; i < count; i++) values[i] = fn ? 0 : base ? base_value(c, sublayer < 0 ? 0 : sublayer, i) : sublayer < 0 ? 1 : 0.01;
  bk_status status = BK_OK;
  for (int k = 0; k < 2 && status == BK_OK; k++)
    if (bk_tensor_present(&views[k])) status = bk_tensor_write_f64(model->stream, &views[k], values);
  bk_free(model->ctx, values);
  return status;
}

bk_status bk_checkpoint_convert_plain(bk_model *model, const char *path) {
  static const column weights[] = {{"", weight_but_connections}};
  const bk_model_config *c = &model->config;
  bk_st_reader *reader = NULL;
  if (c->residual != BK_HC_PLAIN && c->hc_eps * (double)c->hc_mult >= 1)
    return bk_fail(model->ctx, BK_ERR_CONFIG, "hc_eps %g with %lld streams: a stream cannot be read with the weight 1/%lld that keeps the logits; hc_eps must be below it",
                   c->hc_eps, (long long)c->hc_mult, (long long)c->hc_mult);
  BK_TRY(open_file(model->ctx, path, "model.safetensors", &reader));
  bk_status status = load_columns(model, reader, weights, BK_COUNT(weights), bk_param_master);
  bk_st_close(reader);
  for (int i = 0; i < model->n_params && status == BK_OK; i++)
    if (is_connection(&model->params[i])) status = fill_connection(model, &model->params[i]);
  return status;
}
