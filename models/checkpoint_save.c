/* Saving checkpoints (birkhoff/model.h): a folder is written beside the final name, synced, and
 * renamed into place. After a crash at any moment the older checkpoint or the new one is whole;
 * only between two renames is the older one under another name, which bk_checkpoint_resolve
 * knows. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/worker.h"
#include "models/checkpoint_priv.h"

/* Tensors pass to a file by way of two host copies, so that the device fills one while the other is
 * written; where its memory is the host's, without a copy. Tensors of models are contiguous, so
 * that a piece of their flat form is a range of memory. */
typedef struct mover {
  bk_model *model;
  bk_st_writer *writer;
  char *copies;   /* two of BK_CHECKPOINT_PIECE; NULL on the host */
  int filled;     /* the copy that the next download goes to */
  size_t waiting; /* bytes of the other one, which are still to be written */
} mover;

/* Writes what the last download brought, once the next one is under way. */
static bk_status mover_write(mover *v) {
  const char *copy = v->copies + (size_t)(1 - v->filled) * BK_CHECKPOINT_PIECE;
  size_t bytes = v->waiting;
  v->waiting = 0;
  return bytes ? bk_st_write(v->writer, copy, bytes) : BK_OK;
}

static bk_status move_tensor(mover *v, const bk_tensor *t) {
  bk_stream *stream = v->model->stream;
  size_t bytes = bk_tensor_bytes(t);
  if (!v->copies) return bk_st_write(v->writer, bk_tensor_data(t), bytes);
  for (size_t at = 0; at < bytes; at += BK_CHECKPOINT_PIECE) {
    size_t part = bytes - at < BK_CHECKPOINT_PIECE ? bytes - at : BK_CHECKPOINT_PIECE;
    char *copy = v->copies + (size_t)v->filled * BK_CHECKPOINT_PIECE;
    BK_TRY(stream->ops->download(stream, copy, (bk_place){t->buffer, t->offset + at}, part));
    bk_status status = mover_write(v);
    BK_TRY(stream->ops->sync(stream)); /* in any case: the copy is freed after a failure */
    BK_TRY(status);
    v->waiting = part;
    v->filled = 1 - v->filled;
  }
  return BK_OK;
}

static bk_status move_file(mover *v, const bk_save_file *f) {
  v->writer = f->writer;
  for (size_t i = 0; i < f->n && f->writer; i++) BK_TRY(move_tensor(v, &f->tensors[i]));
  return f->writer && v->copies ? mover_write(v) : BK_OK;
}

/* From the device into this rank's files. */
static bk_status write_files(bk_save *s) {
  bk_model *model = s->model;
  mover v = {.model = model};
  BK_TRY(model->stream->ops->sync(model->stream));
  if (!model->device->props.host_memory &&
      !(v.copies = bk_alloc_array(s->ctx, 2, BK_CHECKPOINT_PIECE)))
    return BK_ERR_MEMORY;
  bk_status status = BK_OK;
  for (int i = 0; i < s->n_files && status == BK_OK; i++) status = move_file(&v, &s->files[i]);
  bk_free(s->ctx, v.copies);
  return status;
}

/* ---- small files ---- */

static bk_status write_config(const bk_save *s) {
  char *path = bk_path_join(s->ctx, s->partial, "config.json");
  bk_status status = path ? bk_model_config_write(s->ctx, path, &s->model->config, s->model->dtype)
                          : BK_ERR_MEMORY;
  bk_free(s->ctx, path);
  return status;
}

static bk_status write_state(const bk_save *s, const bk_trainer_state *state) {
  char *path = bk_path_join(s->ctx, s->partial, "trainer_state.json");
  bk_status status = path ? bk_trainer_state_write(s->ctx, path, state) : BK_ERR_MEMORY;
  bk_free(s->ctx, path);
  return status;
}

/* What rank 0 writes for all. */
static bk_status write_small(const bk_save *s, const bk_trainer_state *state) {
  if (s->rank != 0) return BK_OK;
  BK_TRY(write_config(s));
  if (state) BK_TRY(write_state(s, state));
  return bk_save_indices(s, s->partial);
}

/* ---- the folder ---- */

/* This folder has the entry of the checkpoint's name, and must be synced for a rename to last. */
static char *parent_of(bk_context *ctx, const char *path) {
  const char *slash = strrchr(path, '/');
  if (!slash) return bk_strdup(ctx, ".");
  return bk_format(ctx, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

/* "model-00002-of-00004.safetensors", of which each number has five digits or more. */
static bool is_part(const char *name, const char *stem) {
  int number, total, length = 0;
  char spelling[96];
  size_t n = strlen(stem);
  if (strncmp(name, stem, n) != 0 || strlen(name) >= sizeof spelling) return false;
  if (sscanf(name + n, "-%9d-of-%9d.safetensors%n", &number, &total, &length) != 2 || !length)
    return false;
  snprintf(spelling, sizeof spelling, "%s-%05d-of-%05d.safetensors", stem, number, total);
  return strcmp(name, spelling) == 0 && number >= 1 && number <= total;
}

/* This is called for every name in a folder, and sets *arg if it is none of a checkpoint's. */
static void foreign_each(void *arg, const char *name) {
  static const char *const ours[] = {BK_WEIGHTS_FILE,   BK_WEIGHTS_INDEX,   "config.json",
                                     BK_OPTIMIZER_FILE, BK_OPTIMIZER_INDEX, "trainer_state.json"};
  for (size_t i = 0; i < BK_COUNT(ours); i++)
    if (strcmp(name, ours[i]) == 0) return;
  if (!is_part(name, "model") && !is_part(name, "optimizer")) *(bool *)arg = true;
}

/* What is replaced gets deleted in the end: only a folder that holds nothing but a checkpoint may
 * be. */
static bk_status check_replaceable(bk_context *ctx, const char *path) {
  int kind;
  BK_TRY(bk_path_kind(ctx, path, &kind));
  if (kind < 0) return BK_OK;
  bool foreign = kind != 1;
  int rc = foreign ? 0 : ctx->fs.list(ctx->fs.user, path, foreign_each, &foreign);
  if (rc < 0) return bk_fail(ctx, BK_ERR_IO, "%s: cannot list the folder: %s", path, strerror(-rc));
  return foreign
             ? bk_fail(ctx, BK_ERR_ARGUMENT,
                       "%s is there and holds other things than a checkpoint; it is not replaced",
                       path)
             : BK_OK;
}

/* An older one of that name, left by an interrupted save, goes first. */
static bk_status move_aside(bk_context *ctx, const char *path, const char *old) {
  BK_TRY(bk_remove_tree(ctx, old));
  int rc = ctx->fs.rename(ctx->fs.user, path, old);
  return rc < 0 ? bk_fail(ctx, BK_ERR_IO, "%s: cannot move the older checkpoint aside: %s", path,
                          strerror(-rc))
                : BK_OK;
}

/* Makes `partial` the folder `path`. An older folder of that name is moved aside to `old` first,
 * and is deleted last, when the new one is safe. */
static bk_status put_in_place(bk_context *ctx, const char *partial, const char *path,
                              const char *old, const char *parent) {
  int kind;
  BK_TRY(bk_path_kind(ctx, path, &kind));
  bool moved = kind >= 0;
  if (moved) BK_TRY(move_aside(ctx, path, old));
  int rc = ctx->fs.rename(ctx->fs.user, partial, path);
  if (rc < 0) {
    bk_status status =
        bk_fail(ctx, BK_ERR_IO, "%s: cannot rename to %s: %s", partial, path, strerror(-rc));
    if (moved && ctx->fs.rename(ctx->fs.user, old, path) < 0)
      bk_warn(ctx, "%s: the older checkpoint is now %s", path, old);
    return status;
  }
  if ((rc = ctx->fs.sync_dir(ctx->fs.user, parent)) < 0)
    return bk_fail(ctx, BK_ERR_IO, "%s: cannot sync the folder: %s", parent, strerror(-rc));
  return bk_remove_tree(ctx, old); /* which an earlier, interrupted save may have left, too */
}

/* A partial folder that an earlier attempt left is removed first. */
static bk_status make_partial(const bk_save *s) {
  bk_context *ctx = s->ctx;
  BK_TRY(check_replaceable(ctx, s->path));
  BK_TRY(bk_mkdirs(ctx, s->parent));
  BK_TRY(bk_remove_tree(ctx, s->partial));
  int rc = ctx->fs.mkdir(ctx->fs.user, s->partial);
  return rc < 0 ? bk_fail(ctx, BK_ERR_IO, "cannot make folder %s: %s", s->partial, strerror(-rc))
                : BK_OK;
}

static bk_status rename_partial(const bk_save *s) {
  int rc = s->ctx->fs.sync_dir(s->ctx->fs.user, s->partial);
  if (rc < 0)
    return bk_fail(s->ctx, BK_ERR_IO, "%s: cannot sync the folder: %s", s->partial, strerror(-rc));
  return put_in_place(s->ctx, s->partial, s->path, s->old, s->parent);
}

/* ---- one save ---- */

/* Trailing slashes are dropped, because names beside the folder are made from its own. */
static bk_status make_paths(bk_save *s, const char *given) {
  s->path = bk_strdup(s->ctx, given);
  for (size_t n = s->path ? strlen(s->path) : 0; n > 1 && s->path[n - 1] == '/'; n--)
    s->path[n - 1] = '\0';
  s->partial = s->path ? bk_format(s->ctx, "%s.tmp", s->path) : NULL;
  s->old = s->path ? bk_checkpoint_moved_aside(s->ctx, s->path) : NULL;
  s->parent = s->path ? parent_of(s->ctx, s->path) : NULL;
  return s->partial && s->old && s->parent ? BK_OK : BK_ERR_MEMORY;
}

static bk_status start_by_itself(bk_save *s, const char *given, bool *made) {
  BK_TRY(make_paths(s, given));
  BK_TRY(bk_save_list(s));
  if (s->rank != 0) return BK_OK;
  BK_TRY(make_partial(s));
  *made = true;
  return BK_OK;
}

/* Rank 0 alone removes the folder, when no rank writes into it any more. */
static void save_drop(bk_save *s, bool made) {
  bk_save_abandon(s);
  if (made && s->rank == 0) bk_remove_tree(s->ctx, s->partial);
  bk_save_free(s);
}

/* Collective. The folder is there, all ranks know who writes what, and each has opened its files.
 * After a failure nothing is left. */
static bk_status save_start(bk_save *s, bk_model *model, const bk_trainer_state *state,
                            const char *given) {
  bk_comm *comm = model->options.comm;
  bool made = false;
  *s = (bk_save){.ctx = model->ctx,
                 .model = model,
                 .comm = comm,
                 .rank = bk_model_rank(model),
                 .ranks = bk_model_ranks(model),
                 .n_files = state ? BK_SAVE_FILES : BK_SAVE_STATE};
  bk_status status = start_by_itself(s, given, &made);
  int64_t most = (int64_t)s->n_own;
  status = bk_checkpoint_agree_most(s->ctx, comm, status, given, "begin to save", &most);
  if (status == BK_OK) status = bk_save_share(s, most);
  if (status == BK_OK) {
    status = bk_save_check(s);
    if (status == BK_OK) status = bk_save_open(s, s->partial);
    if (status == BK_OK) status = write_small(s, state);
    if (status != BK_OK) bk_save_abandon(s); /* before rank 0 learns of it and removes the folder */
    status = bk_checkpoint_agree(s->ctx, comm, status, given, "make its files");
  }
  bk_save_forget_lists(s);
  if (status != BK_OK) save_drop(s, made);
  return status;
}

/* Collective. `status` is what came of writing this rank's files. All have succeeded, and the
 * folder is renamed, or it is removed. */
static bk_status save_finish(bk_save *s, bk_status status) {
  if (status == BK_OK) status = bk_save_close(s);
  if (status != BK_OK) bk_save_abandon(s);
  status = bk_checkpoint_agree(s->ctx, s->comm, status, s->path, "save its part");
  if (status == BK_OK) {
    if (s->rank == 0) status = rename_partial(s);
    status = bk_checkpoint_agree(s->ctx, s->comm, status, s->path, "rename the folder");
  }
  if (status != BK_OK) save_drop(s, true);
  else bk_save_free(s);
  return status;
}

static bk_status check_state(const bk_model *model, const bk_trainer_state *state,
                             const char *path) {
  if (!state || model->options.trainable) return BK_OK;
  return bk_fail(model->ctx, BK_ERR_ARGUMENT,
                 "%s: a trainer's state goes with a trainable model, this one has no moments",
                 path);
}

bk_status bk_checkpoint_save(bk_model *model, const bk_trainer_state *state, const char *path) {
  bk_save s;
  BK_TRY(check_state(model, state, path));
  BK_TRY(save_start(&s, model, state, path));
  return save_finish(&s, write_files(&s));
}

/* ---- while training goes on ---- */

struct bk_checkpoint_saving {
  bk_model *model;
  bk_save save;
  char *copy; /* this rank's tensors, file after file */
  size_t room;
  bk_worker *worker; /* NULL: there are no threads, and everything is written at once */
  bool under_way;
  atomic_bool written;
};

/* The worker's job. What fails is found by bk_save_close. */
static void write_copy(void *arg) {
  bk_checkpoint_saving *v = arg;
  const char *at = v->copy;
  for (int i = 0; i < v->save.n_files; i++) {
    bk_save_file *f = &v->save.files[i];
    if (f->writer && bk_st_put(f->writer, at, (size_t)f->bytes)) bk_st_sync(f->writer);
    at += f->bytes;
  }
  atomic_store(&v->written, true);
}

static bk_status make_room(bk_checkpoint_saving *v) {
  size_t bytes = bk_checkpoint_save_bytes(v->model);
  if (v->copy && bytes <= v->room) return BK_OK;
  bk_free(v->model->ctx, v->copy);
  v->copy = bk_alloc(v->model->ctx, bytes);
  v->room = v->copy ? bytes : 0;
  return v->copy ? BK_OK : BK_ERR_MEMORY;
}

static bk_status make_saving(bk_model *model, bk_checkpoint_saving **saving) {
  bk_context *ctx = model->ctx;
  if (*saving) return BK_OK;
  bk_checkpoint_saving *v = bk_alloc(ctx, sizeof *v);
  if (!v) return BK_ERR_MEMORY;
  v->model = model;
  atomic_init(&v->written, false);
  if (bk_context_writes_in_threads(ctx)) {
    bk_status status = ctx->os->worker->create(ctx, "checkpoint", &v->worker);
    if (status != BK_OK) {
      bk_free(ctx, v);
      return status;
    }
  }
  *saving = v;
  return BK_OK;
}

static bk_status copy_tensors(bk_checkpoint_saving *v) {
  bk_stream *stream = v->model->stream;
  BK_TRY(make_room(v));
  char *at = v->copy;
  for (int i = 0; i < v->save.n_files; i++)
    for (size_t k = 0; k < v->save.files[i].n; k++) {
      const bk_tensor *t = &v->save.files[i].tensors[k];
      size_t bytes = bk_tensor_bytes(t);
      BK_TRY(stream->ops->download(stream, at, (bk_place){t->buffer, t->offset}, bytes));
      at += bytes;
    }
  return stream->ops->sync(stream);
}

static void start_writing(bk_checkpoint_saving *v) {
  v->under_way = true;
  atomic_store(&v->written, false);
  if (v->worker) v->model->ctx->os->worker->start(v->worker, write_copy, v);
  else write_copy(v);
}

/* Collective. */
static bk_status complete(bk_checkpoint_saving *v) {
  if (!v->under_way) return BK_OK;
  if (v->worker) v->model->ctx->os->worker->wait(v->worker);
  v->under_way = false;
  return save_finish(&v->save, BK_OK);
}

bk_status bk_checkpoint_save_begin(bk_model *model, const bk_trainer_state *state, const char *path,
                                   bk_checkpoint_saving **saving) {
  bk_context *ctx = model->ctx;
  BK_TRY(check_state(model, state, path));
  if (*saving) BK_TRY(complete(*saving));
  BK_TRY(bk_checkpoint_agree(ctx, model->options.comm, make_saving(model, saving), path,
                             "prepare a save"));
  bk_checkpoint_saving *v = *saving;
  BK_TRY(save_start(&v->save, model, state, path));
  bk_status status = copy_tensors(v);
  if (status != BK_OK) bk_save_abandon(&v->save);
  status = bk_checkpoint_agree(ctx, v->save.comm, status, path, "copy its part");
  if (status != BK_OK) save_drop(&v->save, true);
  else start_writing(v);
  return status;
}

bk_status bk_checkpoint_save_done(bk_checkpoint_saving *v, bool *done) {
  *done = true;
  if (!v || !v->under_way) return BK_OK;
  int64_t writing = !atomic_load(&v->written);
  BK_TRY(
      bk_checkpoint_agree_most(v->model->ctx, v->save.comm, BK_OK, v->save.path, "save", &writing));
  *done = !writing;
  return writing ? BK_OK : complete(v);
}

bk_status bk_checkpoint_save_end(bk_checkpoint_saving *v) {
  if (!v) return BK_OK;
  bk_context *ctx = v->model->ctx;
  bk_status status = complete(v);
  if (v->worker) ctx->os->worker->destroy(v->worker);
  bk_free(ctx, v->copy);
  bk_free(ctx, v);
  return status;
}
