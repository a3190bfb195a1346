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

/* What is being loaded: the parameters and where each lies. */
typedef struct loader {
  bk_model *model;
  bk_st_reader *reader;
  bk_weights weights;
  bk_read_job *jobs;
  int64_t n_jobs;
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

/* Finds and checks every parameter of every column. Nothing is read yet. */
static bk_status make_jobs(loader *l, const bk_column *columns, int n_columns,
                           bk_param_view second) {
  bk_model *model = l->model;
  for (int c = 0; c < n_columns; c++)
    for (int i = 0; i < model->n_params; i++) {
      const bk_param *p = &model->params[i];
      bk_read_job job = {.a = flat(columns[c].view(model, p)),
                         .b = second ? flat(second(model, p)) : (bk_tensor){0}};
      if (!bk_tensor_present(&job.a)) continue;
      job.count = bk_tensor_count(&job.a);
      char *name = bk_format(model->ctx, "%s%s", columns[c].prefix, p->name);
      if (!name) return BK_ERR_MEMORY;
      bk_status status = find_param(l, name, p, &job);
      bk_free(model->ctx, name);
      BK_TRY(status);
      l->jobs[l->n_jobs++] = job;
    }
  qsort(l->jobs, (size_t)l->n_jobs, sizeof *l->jobs, by_place);
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
static bk_status load_file(bk_model *model, bk_st_reader *reader, bool prefixes,
                           const bk_column *columns, int n_columns, bk_param_view second) {
  bk_context *ctx = model->ctx;
  loader l = {.model = model, .reader = reader};
  BK_TRY(bk_weights_list(ctx, reader, prefixes, &l.weights));
  l.jobs = bk_alloc_array(ctx, (size_t)model->n_params * (size_t)n_columns, sizeof *l.jobs);
  bk_status status = l.jobs ? make_jobs(&l, columns, n_columns, second) : BK_ERR_MEMORY;
  if (status == BK_OK)
    status = bk_checkpoint_read(ctx, model->stream, reader, l.jobs, l.n_jobs,
                                model->device->options.threads, &l.bad);
  if (status == BK_OK) status = report_finding(&l);
  bk_free(ctx, l.jobs);
  bk_weights_free(&l.weights);
  return status;
}

/* The reader is to be closed with bk_st_close. */
static bk_status open_optimizer(bk_context *ctx, const char *folder, bk_st_reader **reader) {
  char *path = bk_path_join(ctx, folder, "optimizer.safetensors");
  if (!path) return BK_ERR_MEMORY;
  bk_status status = bk_st_open(ctx, path, reader);
  bk_free(ctx, path);
  return status;
}

/* Weights have wrappers' prefixes taken off their names; what this library wrote has none. */
bk_status bk_checkpoint_load_columns(bk_model *model, const char *folder, const bk_column *columns,
                                     int n_columns, bk_param_view second) {
  bk_st_reader *reader = NULL;
  BK_TRY(bk_st_open_folder(model->ctx, folder, &reader));
  bk_status status = load_file(model, reader, true, columns, n_columns, second);
  bk_st_close(reader);
  return status;
}

/* Masters get the file's values too, not those rounded to the weight's dtype. */
bk_status bk_checkpoint_load_weights(bk_model *model, const char *path) {
  static const bk_column weights[] = {{"", bk_param_weight}};
  return bk_checkpoint_load_columns(model, path, weights, BK_COUNT(weights), bk_param_master);
}

/* Only this library writes such a file, so that names must be exactly ours. */
bk_status bk_checkpoint_load_optimizer(bk_model *model, const char *path) {
  static const bk_column optimizer[] = {
      {"master.", bk_param_master}, {"m.", bk_param_m}, {"v.", bk_param_v}};
  bk_st_reader *reader = NULL;
  BK_TRY(open_optimizer(model->ctx, path, &reader));
  bk_status status = load_file(model, reader, false, optimizer, BK_COUNT(optimizer), NULL);
  bk_st_close(reader);
  return status;
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
bk_status bk_checkpoint_load(bk_device *device, const char *path, bk_dtype dtype,
                             const bk_model_options *options, bk_model **model) {
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
  int kind = -1;
  *what = NULL;
  BK_TRY(bk_st_open_folder(ctx, path, &reader));
  BK_TRY(search_file(ctx, reader, what));
  char *optimizer = bk_path_join(ctx, path, "optimizer.safetensors");
  bk_status status = optimizer ? bk_path_kind(ctx, optimizer, &kind) : BK_ERR_MEMORY;
  bk_free(ctx, optimizer);
  BK_TRY(status);
  if (kind < 0) return BK_OK;
  BK_TRY(open_optimizer(ctx, path, &reader));
  return search_file(ctx, reader, what);
}
