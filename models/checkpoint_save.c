/* Saving checkpoints (birkhoff/model.h): a folder is written beside the final name, synced, and
 * renamed into place. After a crash at any moment the older checkpoint or the new one is whole;
 * only between two renames is the older one under another name, which bk_checkpoint_resolve knows. */
#include <stdio.h>
#include <string.h>

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

static bk_status mover_open(mover *v, bk_model *model, bk_st_writer *writer) {
  *v = (mover){.model = model, .writer = writer};
  BK_TRY(model->stream->ops->sync(model->stream));
  if (model->device->props.host_memory) return BK_OK;
  v->copies = bk_alloc_array(model->ctx, 2, BK_CHECKPOINT_PIECE);
  return v->copies ? BK_OK : BK_ERR_MEMORY;
}

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

/* The header needs all names and shapes first, so that the parameters are walked twice. */
static bk_status write_columns(bk_model *model, bk_st_writer *writer, const bk_column *columns,
                               int n_columns) {
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
  mover v;
  bk_status status = mover_open(&v, model, writer);
  for (int c = 0; c < n_columns && status == BK_OK; c++)
    for (int i = 0; i < model->n_params && status == BK_OK; i++) {
      bk_tensor t = columns[c].view(model, &model->params[i]);
      if (bk_tensor_present(&t)) status = move_tensor(&v, &t);
    }
  if (status == BK_OK) status = mover_write(&v);
  bk_free(ctx, v.copies);
  return status;
}

/* Metadata {"format": "pt"} is what transformers asks of a file. A failure removes what was
 * written. */
static bk_status save_file(bk_model *model, const char *folder, const char *name,
                           const bk_column *columns, int n_columns) {
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

/* Where there is no master the tensor is absent and is not written. */
static bk_tensor separate_master(const bk_model *model, const bk_param *p) {
  return bk_param_master(model, p);
}

/* optimizer.safetensors has the masters, which are the true weights of a bf16 model, beside both
 * moments. A weight in ct has no master of its own; it lies in model.safetensors already. */
static bk_status save_into(bk_model *model, const bk_trainer_state *state, const char *folder) {
  static const bk_column weights[] = {{"", bk_param_weight}};
  static const bk_column optimizer[] = {
      {"master.", separate_master}, {"m.", bk_param_m}, {"v.", bk_param_v}};
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

/* This folder has the entry of the checkpoint's name, and must be synced for a rename to last. */
static char *parent_of(bk_context *ctx, const char *path) {
  const char *slash = strrchr(path, '/');
  if (!slash) return bk_strdup(ctx, ".");
  return bk_format(ctx, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

/* This is called for every name in a folder, and sets *arg if it is none of a checkpoint's. */
static void foreign_each(void *arg, const char *name) {
  static const char *const ours[] = {"model.safetensors", "config.json", "optimizer.safetensors",
                                     "trainer_state.json"};
  for (size_t i = 0; i < BK_COUNT(ours); i++)
    if (strcmp(name, ours[i]) == 0) return;
  *(bool *)arg = true;
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

/* A partial folder that an earlier attempt left is removed first, and this one's after a
 * failure. */
static bk_status save_beside(bk_model *model, const bk_trainer_state *state, const char *path,
                             const char *partial, const char *old, const char *parent) {
  bk_context *ctx = model->ctx;
  BK_TRY(bk_mkdirs(ctx, parent));
  BK_TRY(bk_remove_tree(ctx, partial));
  int rc = ctx->fs.mkdir(ctx->fs.user, partial);
  if (rc < 0) return bk_fail(ctx, BK_ERR_IO, "cannot make folder %s: %s", partial, strerror(-rc));
  bk_status status = save_into(model, state, partial);
  rc = status == BK_OK ? ctx->fs.sync_dir(ctx->fs.user, partial) : 0;
  if (rc < 0)
    status = bk_fail(ctx, BK_ERR_IO, "%s: cannot sync the folder: %s", partial, strerror(-rc));
  if (status == BK_OK) status = put_in_place(ctx, partial, path, old, parent);
  if (status != BK_OK) bk_remove_tree(ctx, partial);
  return status;
}

/* Trailing slashes are dropped, because names beside the folder are made from its own. */
bk_status bk_checkpoint_save(bk_model *model, const bk_trainer_state *state, const char *given) {
  bk_context *ctx = model->ctx;
  if (state && !model->options.trainable)
    return bk_fail(ctx, BK_ERR_ARGUMENT,
                   "%s: a trainer's state goes with a trainable model, this one has no moments",
                   given);
  char *path = bk_strdup(ctx, given);
  for (size_t n = path ? strlen(path) : 0; n > 1 && path[n - 1] == '/'; n--) path[n - 1] = '\0';
  char *partial = path ? bk_format(ctx, "%s.tmp", path) : NULL;
  char *old = path ? bk_checkpoint_moved_aside(ctx, path) : NULL;
  char *parent = path ? parent_of(ctx, path) : NULL;
  bk_status status = partial && old && parent ? check_replaceable(ctx, path) : BK_ERR_MEMORY;
  if (status == BK_OK) status = save_beside(model, state, path, partial, old, parent);
  bk_free(ctx, parent);
  bk_free(ctx, old);
  bk_free(ctx, partial);
  bk_free(ctx, path);
  return status;
}
