/* Loading checkpoints (birkhoff/model.h). The names, dtypes and shapes of everything are checked
 * before anything is read, so that a file that does not fit changes nothing; whether the numbers
 * are finite is seen on their way to the device. Files and configuration must agree both ways: a
 * tensor that is missing is an error, and so is one that nothing takes.
 *
 * checkpoint_read.c moves the data. The weight and its master are both made from the file's
 * values. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/checkpoint_priv.h"

/* What is being loaded: the parameters and where each lies. A rank of a pipeline reads those that
 * it holds, and passes over the others of the whole model. */
typedef struct loader {
  bk_model *model;
  bk_whole whole;
  bk_st_reader *reader;
  bk_weights weights;
  bk_read_job *jobs;
  size_t n_jobs, capacity;
  bk_finding bad;
} loader;

/* ---- which tensor ---- */

/* FP8 weights are refused by name, because they are what the published DeepSeek-V3 has. */
static bk_status check_dtype(bk_context *ctx, const bk_st_reader *reader, const bk_st_entry *e) {
  if (bk_st_is_float(e)) return BK_OK;
  if (strncmp(e->dtype_name, "F8_", 3) == 0)
    return bk_fail(ctx, BK_ERR_DATA,
                   "%s: tensor %s has dtype %s: FP8 weights with block scales are not read; "
                   "convert them to bf16 first",
                   bk_st_entry_path(reader, e), e->name, e->dtype_name);
  return bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s has dtype %s, expected F32, BF16, F64 or F16",
                 bk_st_entry_path(reader, e), e->name, e->dtype_name);
}

/* The shape [3,4] gives the text "3,4", which is returned. */
static char *shape_text(int ndim, const int64_t *shape, char *text, size_t size) {
  *text = '\0';
  for (int d = 0; d < ndim; d++)
    snprintf(text + strlen(text), size - strlen(text), "%s%lld", d ? "," : "", (long long)shape[d]);
  return text;
}

static bk_status check_entry(bk_context *ctx, const bk_st_reader *reader, const bk_st_entry *e,
                             int ndim, const int64_t *shape) {
  char found[192], wanted[128];
  BK_TRY(check_dtype(ctx, reader, e));
  bool same = e->ndim == ndim;
  for (int d = 0; same && d < ndim; d++) same = e->shape[d] == shape[d];
  if (same) return BK_OK;
  return bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s has shape [%s], the configuration wants [%s]",
                 bk_st_entry_path(reader, e), e->name,
                 shape_text(e->ndim, e->shape, found, sizeof found),
                 shape_text(ndim, shape, wanted, sizeof wanted));
}

/* For a parameter that is one matrix of a tensor of all experts. */
static bk_status take_fused(const loader *l, bk_weight *w, const bk_fused *f, const bk_param *p,
                            bk_read_job *job) {
  int64_t shape[3] = {l->model->config.n_routed_experts, f->parts * p->shape[0], p->shape[1]};
  w->used = true;
  job->entry = w->entry;
  job->first = (f->expert * f->parts + f->part) * p->shape[0] * p->shape[1];
  return check_entry(l->model->ctx, l->reader, w->entry, 3, shape);
}

static bk_status take_own(const loader *l, bk_weight *w, const bk_param *p, bk_read_job *job) {
  w->used = true;
  job->entry = w->entry;
  return check_entry(l->model->ctx, l->reader, w->entry, p->ndim, p->shape);
}

/* Looks for a parameter under its own name, or as a part of a tensor of all experts. A file with
 * both is refused, since nobody could say which is right. */
static bk_status find_param(const loader *l, const char *name, const bk_param *p,
                            bk_read_job *job) {
  bk_context *ctx = l->model->ctx;
  bk_fused f;
  bk_weight *own = bk_weights_find(&l->weights, name);
  BK_TRY(bk_fused_name(ctx, name, &f));
  bk_weight *fused = f.name ? bk_weights_find(&l->weights, f.name) : NULL;
  bk_status status;
  if (own && fused)
    status = bk_fail(ctx, BK_ERR_DATA,
                     "%s: tensor %s does not belong beside tensor %s, which has the same expert: "
                     "only one form of a weight can be right",
                     bk_st_entry_path(l->reader, own->entry), own->entry->name, fused->entry->name);
  else if (fused) status = take_fused(l, fused, &f, p, job);
  else if (own) status = take_own(l, own, p, job);
  else status = bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s is missing", bk_st_path(l->reader), name);
  bk_free(ctx, f.name);
  return status;
}

static bool ends_in(const char *name, const char *end) {
  size_t length = strlen(name), n = strlen(end);
  return length >= n && strcmp(name + length - n, end) == 0;
}

/* Tensors that may be left over: RoPE frequencies, which are computed here, and the layers of
 * multi-token prediction, which are not built. */
static bool harmless_extra(const bk_model_config *c, const char *name) {
  int64_t layer = bk_layer_of_name(name) - c->num_hidden_layers;
  return strstr(name, "rotary_emb.inv_freq") != NULL ||
         (layer >= 0 && layer < c->num_nextn_predict_layers);
}

static bool held(const loader *l, int number, int *at) {
  bool is = *at < l->model->n_params && l->whole.number[*at] == number;
  *at += is;
  return is;
}

/* What other ranks hold is theirs to check. */
static bk_status pass_over(const loader *l, const char *name) {
  bk_fused f;
  BK_TRY(bk_fused_name(l->model->ctx, name, &f));
  bk_weight *own = bk_weights_find(&l->weights, name),
            *fused = f.name ? bk_weights_find(&l->weights, f.name) : NULL;
  if (own) own->used = true;
  if (fused) fused->used = true;
  bk_free(l->model->ctx, f.name);
  return BK_OK;
}

/* The parameters of the whole model that this rank does not hold. */
static bk_status pass_over_others(const loader *l, bk_param_view view) {
  const bk_model *whole = l->whole.model;
  for (int i = 0, at = 0; i < whole->n_params; i++) {
    bk_tensor t = view(whole, &whole->params[i]);
    if (!held(l, i, &at) && bk_tensor_present(&t)) BK_TRY(pass_over(l, whole->params[i].name));
  }
  return BK_OK;
}

/* The first tensor in the file that no parameter has taken. */
static const bk_weight *find_extra(const loader *l) {
  const bk_weight *extra = NULL;
  for (size_t i = 0; i < l->weights.count; i++) {
    const bk_weight *w = &l->weights.list[i];
    if (!w->used && !harmless_extra(&l->model->config, w->name) &&
        (!extra || w->entry < extra->entry))
      extra = w;
  }
  return extra;
}

/* Scales of FP8 weights are left over where a user has converted the config and not the weights. */
static bk_status check_no_extra(const loader *l) {
  const bk_weight *w = find_extra(l);
  if (!w) return BK_OK;
  return bk_fail(l->model->ctx, BK_ERR_DATA,
                 "%s: tensor %s does not belong to this configuration%s",
                 bk_st_entry_path(l->reader, w->entry), w->entry->name,
                 ends_in(w->name, "_scale_inv")
                     ? ": FP8 weights with block scales are not read; convert them to bf16 first"
                     : "");
}

/* ---- one file ---- */

/* In file order, so that the file is read from its beginning to its end. */
static int by_place(const void *a, const void *b) {
  const bk_read_job *x = a, *y = b;
  if (x->entry != y->entry) return x->entry < y->entry ? -1 : 1;
  return (x->first > y->first) - (x->first < y->first);
}

static bk_tensor flat(bk_tensor t) {
  int64_t count = bk_tensor_count(&t);
  return bk_tensor_present(&t) ? bk_tensor_reshape(t, 1, &count) : t;
}

static bk_status add_job(loader *l, const bk_read_job *job) {
  BK_TRY(bk_grow(l->model->ctx, (void **)&l->jobs, &l->capacity, l->n_jobs + 1, sizeof *l->jobs));
  l->jobs[l->n_jobs++] = *job;
  return BK_OK;
}

/* A weight goes to every rank, its master to the ranks that keep parts of it. A rank that keeps all
 * of it reads both at once. */
static bk_status add_weight(loader *l, const bk_param *p, bk_read_job *job) {
  const bk_read_job whole = *job;
  for (bk_slice s = {0}; bk_param_next_slice(l->model, p, &s);) {
    if (!bk_tensor_present(&s.master)) continue;
    if (s.count == whole.count) {
      job->b = s.master;
      continue;
    }
    BK_TRY(add_job(l, &(bk_read_job){.entry = whole.entry,
                                     .first = whole.first + s.begin,
                                     .count = s.count,
                                     .a = s.master}));
  }
  return add_job(l, job);
}

static void sort_jobs(loader *l) {
  if (l->n_jobs) qsort(l->jobs, l->n_jobs, sizeof *l->jobs, by_place);
}

/* Finds and checks every parameter. Nothing is read yet. */
static bk_status make_jobs(loader *l, bk_param_view view) {
  bk_model *model = l->model;
  for (int i = 0; i < model->n_params; i++) {
    const bk_param *p = &model->params[i];
    bk_read_job job = {.a = flat(view(model, p))};
    if (!bk_tensor_present(&job.a)) continue;
    job.count = bk_tensor_count(&job.a);
    BK_TRY(find_param(l, p->name, p, &job));
    BK_TRY(add_weight(l, p, &job));
  }
  sort_jobs(l);
  BK_TRY(pass_over_others(l, view));
  return check_no_extra(l);
}

/* Refuses weights that are not finite, or warns with the same words where the user allows them. */
static bk_status report_finding(const loader *l) {
  bk_context *ctx = l->model->ctx;
  if (!l->bad.tensors) return BK_OK;
  char *text = bk_finding_text(ctx, l->reader, &l->bad);
  if (!text) return BK_ERR_MEMORY;
  bk_status status = BK_OK;
  if (l->model->options.allow_nonfinite)
    bk_warn(ctx, "%s; it is loaded all the same, as --allow-nonfinite says", text);
  else status = bk_fail(ctx, BK_ERR_DATA, "%s; --allow-nonfinite loads it all the same", text);
  bk_free(ctx, text);
  return status;
}

/* Values that are not finite are noted while everything is read, and reported once at the end with
 * their number: a user learns whether one tensor or all are bad. */
static bk_status run_jobs(loader *l) {
  bk_model *model = l->model;
  BK_TRY(bk_checkpoint_read(model->ctx, model->stream, l->reader, l->jobs, (int64_t)l->n_jobs,
                            model->device->options.threads, &l->bad));
  return report_finding(l);
}

/* Weights have wrappers' prefixes taken off their names; what this library wrote has none. */
static bk_status load_reader(loader *l, bk_param_view view) {
  BK_TRY(bk_weights_list(l->model->ctx, l->reader, true, &l->weights));
  bk_status status = bk_whole_open(&l->whole, l->model);
  if (status == BK_OK) status = make_jobs(l, view);
  if (status == BK_OK) status = run_jobs(l);
  bk_whole_close(&l->whole);
  bk_weights_free(&l->weights);
  bk_free(l->model->ctx, l->jobs);
  return status;
}

static bk_status load_view(bk_model *model, const char *folder, bk_param_view view) {
  loader l = {.model = model};
  BK_TRY(bk_st_open_folder(model->ctx, folder, &l.reader));
  bk_status status = load_reader(&l, view);
  bk_st_close(l.reader);
  return status;
}

bk_status bk_checkpoint_load_view(bk_model *model, const char *folder, bk_param_view view) {
  return bk_checkpoint_agree(model->ctx, model->options.comm, load_view(model, folder, view),
                             folder, "load the weights");
}

/* Masters get the file's values too, not those rounded to the weight's dtype. */
bk_status bk_checkpoint_load_weights(bk_model *model, const char *path) {
  return bk_checkpoint_load_view(model, path, bk_param_weight);
}

/* ---- the optimiser's state ---- */

const char *const bk_state_prefixes[BK_STATE_PARTS] = {"master.", "m.", "v."};

/* A weight in ct has no master of its own. */
bool bk_state_has(const bk_model *model, const bk_param *p, int part) {
  const bk_param_block *b = &model->blocks[p->block];
  return model->options.trainable && b->trainable && (part > 0 || b->weight.dtype != model->ct);
}

bk_tensor bk_state_tensor(const bk_slice *slice, int part) {
  return part == 0 ? slice->master : part == 1 ? slice->m : slice->v;
}

static bk_status check_sliced(const loader *l, const bk_st_sliced *t, const bk_param *p) {
  char found[192], wanted[128];
  bool same = t->ndim == p->ndim;
  for (int d = 0; same && d < p->ndim; d++) same = t->shape[d] == p->shape[d];
  if (!same)
    return bk_fail(
        l->model->ctx, BK_ERR_DATA, "%s: tensor %s has shape [%s], the configuration wants [%s]",
        bk_st_path(l->reader), t->name, shape_text(t->ndim, t->shape, found, sizeof found),
        shape_text(p->ndim, p->shape, wanted, sizeof wanted));
  for (size_t i = 0; i < t->n_slices; i++)
    BK_TRY(check_dtype(l->model->ctx, l->reader, t->slices[i].entry));
  return BK_OK;
}

/* Where what this rank keeps and what a file has overlap. */
static bk_status add_overlaps(loader *l, const bk_st_sliced *t, const bk_slice *own, int part) {
  bk_tensor to = bk_state_tensor(own, part);
  for (size_t i = 0; i < t->n_slices; i++) {
    const bk_st_slice *s = &t->slices[i];
    int64_t begin = s->begin > own->begin ? s->begin : own->begin;
    int64_t s_end = s->begin + s->count, own_end = own->begin + own->count;
    int64_t end = s_end < own_end ? s_end : own_end;
    if (begin >= end) continue;
    BK_TRY(
        add_job(l, &(bk_read_job){.entry = s->entry,
                                  .first = begin - s->begin,
                                  .count = end - begin,
                                  .a = bk_tensor_slice(to, 0, begin - own->begin, end - begin)}));
  }
  return BK_OK;
}

static bk_status add_state(loader *l, bk_st_slices *file, const bk_param *p, int part) {
  bk_context *ctx = l->model->ctx;
  char *name = bk_format(ctx, "%s%s", bk_state_prefixes[part], p->name);
  if (!name) return BK_ERR_MEMORY;
  bk_st_sliced *t = bk_st_slices_find(file, name);
  bk_status status =
      t ? check_sliced(l, t, p)
        : bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s is missing", bk_st_path(l->reader), name);
  bk_free(ctx, name);
  BK_TRY(status);
  t->used = true;
  for (bk_slice s = {0}; bk_param_next_slice(l->model, p, &s);)
    BK_TRY(add_overlaps(l, t, &s, part));
  return BK_OK;
}

/* Only this library writes such files, so that names must be exactly ours. */
static bk_status check_all_used(const loader *l, const bk_st_slices *file) {
  const bk_st_sliced *extra = NULL;
  for (size_t i = 0; i < file->n_tensors; i++) {
    const bk_st_sliced *t = &file->tensors[i];
    bool first =
        !extra || (t->n_slices && extra->n_slices && t->slices[0].entry < extra->slices[0].entry);
    if (!t->used && first) extra = t;
  }
  if (!extra) return BK_OK;
  return bk_fail(l->model->ctx, BK_ERR_DATA, "%s: tensor %s does not belong to this configuration",
                 bk_st_path(l->reader), extra->name);
}

static bk_status pass_over_state(loader *l, bk_st_slices *file, const bk_param *p, int part) {
  char *name = bk_format(l->model->ctx, "%s%s", bk_state_prefixes[part], p->name);
  if (!name) return BK_ERR_MEMORY;
  bk_st_sliced *t = bk_st_slices_find(file, name);
  if (t) t->used = true;
  bk_free(l->model->ctx, name);
  return BK_OK;
}

/* In the order of the whole model, of which a rank reads what it holds. */
static bk_status state_jobs(loader *l, bk_st_slices *file) {
  const bk_model *whole = l->whole.model;
  for (int part = 0; part < BK_STATE_PARTS; part++)
    for (int i = 0, at = 0; i < whole->n_params; i++) {
      const bk_param *p = &whole->params[i];
      bool own = held(l, i, &at);
      if (!bk_state_has(whole, p, part)) continue;
      if (own) BK_TRY(add_state(l, file, &l->model->params[at - 1], part));
      else BK_TRY(pass_over_state(l, file, p, part));
    }
  sort_jobs(l);
  return check_all_used(l, file);
}

static bk_status load_optimizer(bk_model *model, const char *path) {
  loader l = {.model = model};
  bk_st_slices file;
  BK_TRY(
      bk_st_open_slices(model->ctx, path, BK_OPTIMIZER_FILE, BK_OPTIMIZER_INDEX, &l.reader, &file));
  bk_status status = bk_whole_open(&l.whole, model);
  if (status == BK_OK) status = state_jobs(&l, &file);
  if (status == BK_OK) status = run_jobs(&l);
  bk_whole_close(&l.whole);
  bk_free(model->ctx, l.jobs);
  bk_st_slices_free(&file);
  bk_st_close(l.reader);
  return status;
}

bk_status bk_checkpoint_load_optimizer(bk_model *model, const char *path) {
  return bk_checkpoint_agree(model->ctx, model->options.comm, load_optimizer(model, path), path,
                             "load the optimiser's state");
}

/* ---- the whole ---- */

/* The embedding's dtype stands for the model's: every checkpoint has it, and norms and gates may
 * be stored in a wider type. */
static bk_status dtype_of(bk_context *ctx, const bk_st_reader *reader, bk_dtype *dtype) {
  static const char name[] = "model.embed_tokens.weight";
  bk_weights weights;
  BK_TRY(bk_weights_list(ctx, reader, true, &weights));
  const bk_weight *w = bk_weights_find(&weights, name);
  bk_status status =
      w ? check_dtype(ctx, reader, w->entry)
        : bk_fail(ctx, BK_ERR_DATA, "%s: tensor %s is missing", bk_st_path(reader), name);
  /* half precision (F16, which has no bk_dtype) fits into fp32 */
  if (status == BK_OK) *dtype = w->entry->dtype == BK_NONE ? BK_F32 : w->entry->dtype;
  bk_weights_free(&weights);
  return status;
}

bk_status bk_checkpoint_dtype(bk_context *ctx, const char *path, bk_dtype *dtype) {
  bk_st_reader *reader = NULL;
  BK_TRY(bk_st_open_folder(ctx, path, &reader));
  bk_status status = dtype_of(ctx, reader, dtype);
  bk_st_close(reader);
  return status;
}

/* The dtype of the file is the model's, unless the caller wants another. */
static bk_status make_model(bk_device *device, const char *path, bk_dtype dtype,
                            const bk_model_options *options, bk_model **model) {
  bk_context *ctx = device->ctx;
  bk_model_config config;
  char *file = bk_path_join(ctx, path, "config.json");
  if (!file) return BK_ERR_MEMORY;
  bk_status status = bk_model_config_read(ctx, file, &config);
  bk_free(ctx, file);
  BK_TRY(status);
  if (dtype == BK_NONE) BK_TRY(bk_checkpoint_dtype(ctx, path, &dtype));
  return bk_model_create(device, &config, dtype, options, model);
}

bk_status bk_checkpoint_load(bk_device *device, const char *path, bk_dtype dtype,
                             const bk_model_options *options, bk_model **model) {
  bk_model *made = NULL;
  bk_status status = make_model(device, path, dtype, options, &made);
  status = bk_checkpoint_agree(device->ctx, options ? options->comm : NULL, status, path,
                               "make a model");
  if (status == BK_OK) status = bk_checkpoint_load_weights(made, path);
  if (status == BK_OK) *model = made;
  else bk_model_destroy(made);
  return status;
}

/* ---- finite or not, without a model ---- */

/* What is no float has no numbers to search. */
static int64_t search_jobs(const bk_st_reader *reader, bk_read_job *jobs) {
  int64_t n = 0;
  for (int i = 0; i < bk_st_count(reader); i++) {
    const bk_st_entry *e = bk_st_get(reader, i);
    if (!bk_st_is_float(e)) continue;
    int64_t count = (int64_t)((e->end - e->begin) / bk_st_element_size(e));
    jobs[n++] = (bk_read_job){.entry = e, .count = count};
  }
  return n;
}

/* Searches all tensors of a file, and closes its reader. */
static bk_status search_file(bk_context *ctx, bk_st_reader *reader, char **what) {
  bk_finding f = {0};
  bk_read_job *jobs = bk_alloc_array(ctx, (size_t)bk_st_count(reader), sizeof *jobs);
  bk_status status =
      jobs ? bk_checkpoint_read(ctx, NULL, reader, jobs, search_jobs(reader, jobs), 0, &f)
           : BK_ERR_MEMORY;
  if (status == BK_OK && f.tensors) {
    *what = bk_finding_text(ctx, reader, &f);
    status = *what ? BK_ERR_NOT_FINITE : BK_ERR_MEMORY;
  }
  bk_free(ctx, jobs);
  bk_st_close(reader);
  return status;
}

/* Looks at the weights first, then at the optimiser's state if there is any. */
bk_status bk_checkpoint_check_finite(bk_context *ctx, const char *path, char **what) {
  bk_st_reader *reader = NULL;
  bk_st_slices slices;
  bool there;
  *what = NULL;
  BK_TRY(bk_st_open_folder(ctx, path, &reader));
  BK_TRY(search_file(ctx, reader, what));
  BK_TRY(bk_st_slices_there(ctx, path, BK_OPTIMIZER_FILE, BK_OPTIMIZER_INDEX, &there));
  if (!there) return BK_OK;
  BK_TRY(bk_st_open_slices(ctx, path, BK_OPTIMIZER_FILE, BK_OPTIMIZER_INDEX, &reader, &slices));
  bk_st_slices_free(&slices);
  return search_file(ctx, reader, what);
}
