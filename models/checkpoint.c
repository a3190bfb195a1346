/* Checkpoint folders (birkhoff/model.h): which of them there are, which are whole, and which are
 * removed. A run's folder holds checkpoints "step-NNNNNN"; names that end in ".tmp" are what an
 * interrupted save or removal has left.
 *
 * A checkpoint is whole when each of its files is there, the small JSON files can be parsed, and
 * the others are as long as they say themselves. Tensors are not read for that: the aim is to find
 * what a crash or an unfinished copy leaves, quickly, so that a run can go on from the newest
 * checkpoint that will load. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/config_priv.h"
#include "models/checkpoint_priv.h"

#define STEP_PREFIX "step-"
#define JSON_BYTES_MAX BK_ST_INDEX_MAX

/* "step-000123" gives 123, any other name -1. Another spelling of a number ("step-123") is none of
 * ours: no path is ever made for it. */
static int64_t step_of_name(const char *name) {
  int64_t step;
  char spelling[32];
  if (strncmp(name, STEP_PREFIX, strlen(STEP_PREFIX)) != 0) return -1;
  if (!bk_parse_int64(name + strlen(STEP_PREFIX), &step) || step < 0) return -1;
  snprintf(spelling, sizeof spelling, STEP_PREFIX "%06lld", (long long)step);
  return strcmp(name, spelling) == 0 ? step : -1;
}

char *bk_checkpoint_step_path(bk_context *ctx, const char *folder, int64_t step) {
  return bk_format(ctx, "%s/" STEP_PREFIX "%06lld", folder, (long long)step);
}

static int descending(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x < y) - (x > y);
}

/* The steps among the names of a folder, the newest first; bk_free. */
static bk_status steps_of_names(bk_context *ctx, char *const *names, size_t count, int64_t **steps,
                                size_t *n_steps) {
  *n_steps = 0;
  if (!(*steps = bk_alloc_array(ctx, count, sizeof **steps))) return BK_ERR_MEMORY;
  for (size_t i = 0; i < count; i++)
    if (step_of_name(names[i]) >= 0) (*steps)[(*n_steps)++] = step_of_name(names[i]);
  if (*n_steps) qsort(*steps, *n_steps, sizeof **steps, descending);
  return BK_OK;
}

/* Nobody looks at what is in the checkpoints. *steps is to be freed. */
static bk_status list_steps(bk_context *ctx, const char *folder, int64_t **steps, size_t *n_steps) {
  char **names;
  size_t count;
  BK_TRY(bk_folder_names(ctx, folder, &names, &count));
  bk_status status = steps_of_names(ctx, names, count, steps, n_steps);
  bk_names_free(ctx, names, count);
  return status;
}

/* ---- whole or not ---- */

/* Appends `more` to the text of what is lacking so far, and frees it. */
static bk_status add_lack(bk_context *ctx, char **lack, char *more) {
  if (!more || !*lack) {
    if (more) *lack = more;
    return BK_OK;
  }
  char *both = bk_format(ctx, "%s, %s", *lack, more);
  bk_free(ctx, more);
  bk_free(ctx, *lack);
  *lack = both;
  return both ? BK_OK : BK_ERR_MEMORY;
}

/* What is wrong with a small JSON file, or NULL. Only what a crash or an unfinished copy leaves is
 * looked for. */
static bk_status json_lack(bk_context *ctx, const char *file, const char **lack) {
  int kind = -1;
  uint64_t bytes = 0;
  char *text = NULL;
  size_t length;
  bool whole = true;
  BK_TRY(bk_path_kind(ctx, file, &kind));
  *lack = kind < 0 ? "missing" : kind > 0 ? "not a regular file" : NULL;
  if (*lack) return BK_OK;
  BK_TRY(bk_file_size(ctx, file, &bytes));
  if (bytes == 0 || bytes > JSON_BYTES_MAX) {
    *lack = bytes == 0 ? "empty" : NULL; /* a file that is too long is refused when it is read */
    return BK_OK;
  }
  BK_TRY(bk_file_read_all(ctx, file, JSON_BYTES_MAX, &text, &length));
  bk_status status = bk_json_whole(ctx, file, text, length, &whole);
  bk_free(ctx, text);
  if (!whole) *lack = "cut short or damaged";
  return status;
}

/* Appends "NAME is WHAT" if something is wrong. */
static bk_status add_file_lack(bk_context *ctx, const char *path, const char *name, char **lack) {
  const char *what = NULL;
  char *file = bk_path_join(ctx, path, name);
  bk_status status = file ? json_lack(ctx, file, &what) : BK_ERR_MEMORY;
  bk_free(ctx, file);
  BK_TRY(status);
  if (!what) return BK_OK;
  char *more = bk_format(ctx, "%s is %s", name, what);
  return more ? add_lack(ctx, lack, more) : BK_ERR_MEMORY;
}

static bk_status is_there(bk_context *ctx, const char *folder, const char *name, bool *there) {
  int kind = -1;
  char *path = bk_path_join(ctx, folder, name);
  bk_status status = path ? bk_path_kind(ctx, path, &kind) : BK_ERR_MEMORY;
  bk_free(ctx, path);
  *there = kind >= 0;
  return status;
}

/* Of tensors in several files the index comes first: what it does not say cannot be looked for. */
static bk_status add_index_lack(bk_context *ctx, const char *path, const char *file,
                                const char *index, char **lack, bool *readable) {
  bool single, indexed = false;
  char *before = *lack;
  *readable = true;
  BK_TRY(is_there(ctx, path, file, &single));
  if (!single) BK_TRY(is_there(ctx, path, index, &indexed));
  if (indexed) BK_TRY(add_file_lack(ctx, path, index, lack));
  *readable = *lack == before;
  return BK_OK;
}

static bk_status add_weights_lack(bk_context *ctx, const char *path, char **lack) {
  char *more;
  bool readable;
  BK_TRY(add_index_lack(ctx, path, BK_WEIGHTS_FILE, BK_WEIGHTS_INDEX, lack, &readable));
  if (!readable) return BK_OK;
  BK_TRY(bk_st_folder_lacks(ctx, path, &more));
  return add_lack(ctx, lack, more);
}

static bk_status add_optimizer_lack(bk_context *ctx, const char *path, char **lack) {
  char *more;
  bool readable;
  BK_TRY(add_index_lack(ctx, path, BK_OPTIMIZER_FILE, BK_OPTIMIZER_INDEX, lack, &readable));
  if (!readable) return BK_OK;
  BK_TRY(bk_st_slices_lack(ctx, path, BK_OPTIMIZER_FILE, BK_OPTIMIZER_INDEX, &more));
  return add_lack(ctx, lack, more);
}

/* What has to be there depends on the use: a model to be read needs its configuration and weights,
 * a run to be resumed also the optimiser's and the trainer's state. */
static bk_status collect_lacks(bk_context *ctx, const char *path, bk_checkpoint_use use,
                               char **lack) {
  if (use == BK_CHECKPOINT_ANY) return BK_OK;
  BK_TRY(add_file_lack(ctx, path, "config.json", lack));
  BK_TRY(add_weights_lack(ctx, path, lack));
  if (use == BK_CHECKPOINT_READ) return BK_OK;
  BK_TRY(add_optimizer_lack(ctx, path, lack));
  return add_file_lack(ctx, path, "trainer_state.json", lack);
}

/* What the checkpoint of a step lacks, as "model.safetensors is missing, trainer_state.json is
 * empty"; NULL where it is whole; bk_free. */
static bk_status step_lacks(bk_context *ctx, const char *folder, int64_t step,
                            bk_checkpoint_use use, char **lack) {
  *lack = NULL;
  char *path = bk_checkpoint_step_path(ctx, folder, step);
  bk_status status = path ? collect_lacks(ctx, path, use, lack) : BK_ERR_MEMORY;
  bk_free(ctx, path);
  if (status == BK_OK) return BK_OK;
  bk_free(ctx, *lack);
  *lack = NULL;
  return status;
}

/* This is for callers that need not know what is lacking. */
static bk_status step_whole(bk_context *ctx, const char *folder, int64_t step,
                            bk_checkpoint_use use, bool *whole) {
  char *lack;
  BK_TRY(step_lacks(ctx, folder, step, use, &lack));
  *whole = !lack;
  bk_free(ctx, lack);
  return BK_OK;
}

/* Looks again for the reason, which costs little in a case that is rare. */
static bk_status warn_passed_over(bk_context *ctx, const char *folder, int64_t step,
                                  bk_checkpoint_use use) {
  char *lack;
  BK_TRY(step_lacks(ctx, folder, step, use, &lack));
  bk_warn(ctx, "%s/" STEP_PREFIX "%06lld is not a whole checkpoint and is passed over: %s", folder,
          (long long)step, lack ? lack : "it has just changed");
  bk_free(ctx, lack);
  return BK_OK;
}

/* Only the newest is described: the older ones were given up before it. */
static bk_status none_whole(bk_context *ctx, const char *folder, int64_t newest,
                            bk_checkpoint_use use) {
  char *lack;
  BK_TRY(step_lacks(ctx, folder, newest, use, &lack));
  bk_status status =
      bk_fail(ctx, BK_ERR_DATA,
              "%s: no checkpoint there is whole; of the newest, " STEP_PREFIX "%06lld: %s", folder,
              (long long)newest, lack ? lack : "it has just changed");
  bk_free(ctx, lack);
  return status;
}

/* Newer ones that are not whole are warned about, because the run then starts earlier than its
 * user expects. If none is whole, the newest one's faults are the error. */
static bk_status newest_whole(bk_context *ctx, const char *folder, bk_checkpoint_use use,
                              const int64_t *steps, size_t n_steps, int64_t *step) {
  bool whole = false;
  size_t at = 0;
  for (; at < n_steps; at++) {
    BK_TRY(step_whole(ctx, folder, steps[at], use, &whole));
    if (whole) break;
  }
  if (!whole && n_steps) return none_whole(ctx, folder, steps[0], use);
  for (size_t i = 0; i < at; i++) BK_TRY(warn_passed_over(ctx, folder, steps[i], use));
  *step = n_steps ? steps[at] : -1;
  return BK_OK;
}

/* A folder that is not there has no checkpoint, which is no error: a run may just begin. */
bk_status bk_checkpoint_newest(bk_context *ctx, const char *folder, bk_checkpoint_use use,
                               int64_t *step) {
  int64_t *steps = NULL;
  size_t n_steps = 0;
  int kind;
  BK_TRY(bk_path_kind(ctx, folder, &kind));
  if (kind == 1) BK_TRY(list_steps(ctx, folder, &steps, &n_steps));
  bk_status status = newest_whole(ctx, folder, use, steps, n_steps, step);
  bk_free(ctx, steps);
  return status;
}

/* ---- what a path means ---- */

char *bk_checkpoint_moved_aside(bk_context *ctx, const char *path) {
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') length--;
  return bk_format(ctx, "%.*s.old.tmp", (int)length, path);
}

/* A crash between the two renames of a save leaves only the older checkpoint, under the name to
 * which it was moved aside. It is then taken, with a warning. */
static bk_status resolve_moved_aside(bk_context *ctx, const char *given, char **path) {
  char *old = bk_checkpoint_moved_aside(ctx, given);
  bool there = false;
  bk_status status = old ? bk_st_folder_has(ctx, old, &there) : BK_ERR_MEMORY;
  if (there) {
    bk_warn(ctx, "%s is not there: its replacement was interrupted; taking the older one, %s",
            given, old);
    *path = old;
    return BK_OK;
  }
  bk_free(ctx, old);
  return status == BK_OK ? bk_fail(ctx, BK_ERR_IO, "%s: no such checkpoint folder", given) : status;
}

/* Says that a folder has no weights. A file in PyTorch's own format is named, because its user has
 * weights, only in a form that is not read. */
static bk_status fail_no_weights(bk_context *ctx, const char *folder) {
  static const char *const pickled[] = {"pytorch_model.bin", "pytorch_model.bin.index.json"};
  for (size_t i = 0; i < BK_COUNT(pickled); i++) {
    int kind = -1;
    char *path = bk_path_join(ctx, folder, pickled[i]);
    bk_status status = path ? bk_path_kind(ctx, path, &kind) : BK_ERR_MEMORY;
    bk_free(ctx, path);
    BK_TRY(status);
    if (kind >= 0)
      return bk_fail(ctx, BK_ERR_DATA,
                     "%s: model.safetensors is missing; %s is PyTorch's own format, which is not "
                     "read: the weights have to be "
                     "converted to safetensors first",
                     folder, pickled[i]);
  }
  return bk_fail(ctx, BK_ERR_DATA,
                 "%s: neither a checkpoint (model.safetensors is missing, and there is no "
                 "model.safetensors.index.json) nor a folder "
                 "of step-NNNNNN checkpoints",
                 folder);
}

/* A path may be a checkpoint itself or a run's folder, whose newest whole checkpoint is then
 * meant. */
bk_status bk_checkpoint_resolve(bk_context *ctx, const char *given, char **path) {
  int kind;
  int64_t step = -1;
  bool there;
  BK_TRY(bk_path_kind(ctx, given, &kind));
  if (kind < 0) return resolve_moved_aside(ctx, given, path);
  if (kind != 1)
    return bk_fail(ctx, BK_ERR_DATA, "%s: a checkpoint is a folder, this is a file", given);
  BK_TRY(bk_st_folder_has(ctx, given, &there));
  if (!there) BK_TRY(bk_checkpoint_newest(ctx, given, BK_CHECKPOINT_READ, &step));
  if (!there && step < 0) return fail_no_weights(ctx, given);
  char *found = there ? bk_strdup(ctx, given) : bk_checkpoint_step_path(ctx, given, step);
  if (!found) return BK_ERR_MEMORY;
  *path = found;
  return BK_OK;
}

/* ---- what goes ---- */

/* Names that an interrupted save left: "step-000123.tmp", "step-000123.old.tmp". */
static bool is_partial(const char *name) {
  size_t length = strlen(name);
  return strncmp(name, STEP_PREFIX, strlen(STEP_PREFIX)) == 0 && length > 4 &&
         strcmp(name + length - 4, ".tmp") == 0;
}

/* The oldest step that stays: the keep-th newest of those that are whole. Checkpoints that are not
 * whole do not count, so that damage never removes the last good one. */
static bk_status find_keep_from(bk_context *ctx, const char *folder, const int64_t *steps,
                                size_t n_steps, int64_t keep, int64_t *keep_from) {
  *keep_from = INT64_MIN;
  for (size_t i = 0; i < n_steps && keep > 0; i++) {
    bool whole;
    BK_TRY(step_whole(ctx, folder, steps[i], BK_CHECKPOINT_RESUME, &whole));
    if (whole && --keep == 0) *keep_from = steps[i];
  }
  return BK_OK;
}

/* A checkpoint is renamed before it is emptied: a crash in between leaves nothing that looks like
 * a checkpoint and is not one. */
static bk_status remove_step(bk_context *ctx, const char *folder, const char *name) {
  char *path = bk_path_join(ctx, folder, name),
       *partial = path ? bk_format(ctx, "%s.tmp", path) : NULL;
  bk_status status = partial ? bk_remove_tree(ctx, partial) : BK_ERR_MEMORY;
  if (status == BK_OK) {
    int rc = ctx->fs.rename(ctx->fs.user, path, partial);
    status = rc < 0 ? bk_fail(ctx, BK_ERR_IO, "cannot remove %s: %s", path, strerror(-rc))
                    : bk_remove_tree(ctx, partial);
  }
  bk_free(ctx, partial);
  bk_free(ctx, path);
  return status;
}

/* Whole or not, a step before keep_from goes. */
static bk_status remove_older(bk_context *ctx, const char *folder, char *const *names, size_t count,
                              int64_t keep_from) {
  for (size_t i = 0; i < count; i++) {
    int64_t step = step_of_name(names[i]);
    if (is_partial(names[i])) BK_TRY(bk_remove_member(ctx, folder, names[i]));
    else if (step >= 0 && step < keep_from) BK_TRY(remove_step(ctx, folder, names[i]));
  }
  return BK_OK;
}

/* Partial folders, which an interrupted save or removal has left, are removed whatever their
 * step. */
bk_status bk_checkpoint_prune(bk_context *ctx, const char *folder, int64_t keep) {
  char **names;
  int64_t *steps = NULL, keep_from;
  size_t count, n_steps;
  BK_TRY(bk_folder_names(ctx, folder, &names, &count));
  bk_status status = steps_of_names(ctx, names, count, &steps, &n_steps);
  if (status == BK_OK) status = find_keep_from(ctx, folder, steps, n_steps, keep, &keep_from);
  if (status == BK_OK) status = remove_older(ctx, folder, names, count, keep_from);
  bk_free(ctx, steps);
  bk_names_free(ctx, names, count);
  return status;
}
