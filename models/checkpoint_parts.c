/* What each rank writes of a checkpoint, and what rank 0 writes about it (checkpoint_priv.h).
 *
 * One process has model.safetensors and optimizer.safetensors. Of several ranks each writes its
 * part of both. The ranks that hold the same weights, without a pipeline all of them, deal these
 * out among themselves in runs of whole tensors, in the order of the checkpoint, so that each run
 * has about the same number of bytes. Of the optimiser's state a rank writes the slices that it
 * keeps. Files are numbered by the ranks that have something to write, so that a rank without a
 * part leaves no gap. All of this follows from the model, the pipeline and the number of ranks
 * alone.
 *
 * A rank of a pipeline knows what it writes itself. All learn from each other what the others
 * write, in numbers of the whole model's parameters, and make sure that it is the whole model. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json_out.h"
#include "models/checkpoint_priv.h"

/* Ranks whose notes fit on the stack: without memory they can still agree on having none. */
enum { RANKS_ON_STACK = 256 };

typedef struct note {
  int64_t status, value;
} note;

/* ---- agreement ---- */

static bk_status judge(bk_context *ctx, const note *notes, int ranks, bk_status mine, bool is_first,
                       const char *path, const char *what, int64_t *most) {
  int64_t largest = notes[0].value;
  for (int r = 0; r < ranks; r++) {
    if (notes[r].value > largest) largest = notes[r].value;
    if (notes[r].status == BK_OK) continue;
    bk_status status = (bk_status)notes[r].status;
    if (mine != BK_OK || !is_first) return status;
    return bk_fail(ctx, status, "%s: rank %d could not %s (%s); its own message says why", path, r,
                   what, bk_status_name(status));
  }
  if (most) *most = largest;
  return BK_OK;
}

bk_status bk_checkpoint_agree_most(bk_context *ctx, bk_comm *comm, bk_status mine, const char *path,
                                   const char *what, int64_t *value) {
  int ranks = bk_comm_size(comm);
  note own = {mine, value ? *value : 0}, few[RANKS_ON_STACK], *notes = few;
  if (ranks > RANKS_ON_STACK && !(notes = bk_alloc_array(ctx, (size_t)ranks, sizeof *notes))) {
    bk_comm_abort(comm); /* the others wait */
    return BK_ERR_MEMORY;
  }
  bk_status status = bk_comm_gather(comm, &own, sizeof own, notes);
  if (status == BK_OK)
    status = judge(ctx, notes, ranks, mine, bk_comm_rank(comm) == 0, path, what, value);
  if (notes != few) bk_free(ctx, notes);
  return status;
}

bk_status bk_checkpoint_agree(bk_context *ctx, bk_comm *comm, bk_status mine, const char *path,
                              const char *what) {
  return comm ? bk_checkpoint_agree_most(ctx, comm, mine, path, what, NULL) : mine;
}

/* ---- who writes what ---- */

static uint64_t weight_bytes(const bk_model *m, int param) {
  bk_tensor t = bk_param_weight(m, &m->params[param]);
  return bk_tensor_bytes(&t);
}

static uint64_t all_weight_bytes(const bk_model *m) {
  uint64_t total = 0;
  for (int i = 0; i < m->n_params; i++) total += weight_bytes(m, i);
  return total;
}

/* The rank in whose share of the bytes the middle of a tensor lies. */
static int rank_of_weight(uint64_t before, uint64_t bytes, uint64_t total, int ranks) {
  uint64_t middle = before + bytes / 2;
  int rank = total ? (int)((double)middle / (double)total * ranks) : 0;
  return rank < ranks ? rank : ranks - 1;
}

static uint64_t state_bytes(const bk_slice *s) {
  return bk_tensor_bytes(&s->master) + bk_tensor_bytes(&s->m) + bk_tensor_bytes(&s->v);
}

/* The bytes of this rank's two files. */
static void own_bytes(const bk_model *m, uint64_t bytes[BK_SAVE_FILES]) {
  uint64_t total = all_weight_bytes(m), before = 0;
  bytes[BK_SAVE_WEIGHTS] = bytes[BK_SAVE_STATE] = 0;
  for (int i = 0; i < m->n_params; i++) {
    uint64_t weight = weight_bytes(m, i);
    if (rank_of_weight(before, weight, total, bk_model_replicas(m)) == bk_model_replica(m))
      bytes[BK_SAVE_WEIGHTS] += weight;
    before += weight;
    for (bk_slice s = {0}; m->options.trainable && bk_param_next_slice(m, &m->params[i], &s);)
      bytes[BK_SAVE_STATE] += state_bytes(&s);
  }
}

size_t bk_checkpoint_save_bytes(const bk_model *m) {
  uint64_t bytes[BK_SAVE_FILES];
  own_bytes(m, bytes);
  return (size_t)(bytes[BK_SAVE_WEIGHTS] + bytes[BK_SAVE_STATE]);
}

/* Each file has a buffer of at most a piece. Where the device's memory is not the host's, tensors
 * pass through two pieces more, and are loaded by way of BK_CHECKPOINT_STAGING; else they are read
 * straight into it, unless a file has other dtypes, which a plan does not know. */
size_t bk_checkpoint_staging(const bk_model *m) {
  uint64_t bytes[BK_SAVE_FILES], buffers = 0;
  own_bytes(m, bytes);
  for (int i = 0; i < BK_SAVE_FILES; i++)
    buffers += bytes[i] < BK_CHECKPOINT_PIECE ? bytes[i] : BK_CHECKPOINT_PIECE;
  if (m->device->props.host_memory) return (size_t)buffers;
  buffers += 2 * BK_CHECKPOINT_PIECE;
  return (size_t)buffers > BK_CHECKPOINT_STAGING ? (size_t)buffers : BK_CHECKPOINT_STAGING;
}

static bk_status add_tensor(bk_save *s, bk_save_file *f, const bk_tensor *t) {
  BK_TRY(bk_grow(s->ctx, (void **)&f->tensors, &f->capacity, f->n + 1, sizeof *f->tensors));
  f->tensors[f->n++] = *t;
  f->bytes += bk_tensor_bytes(t);
  return BK_OK;
}

static bk_status add_own(bk_save *s, int file, int param, int64_t begin, int64_t count) {
  BK_TRY(bk_grow(s->ctx, (void **)&s->own, &s->own_capacity, s->n_own + 1, sizeof *s->own));
  s->own[s->n_own++] =
      (bk_kept){.param = s->whole.number[param], .begin = begin, .count = count, .file = file};
  return BK_OK;
}

static bk_status deal_weights(bk_save *s) {
  const bk_model *m = s->model;
  uint64_t total = all_weight_bytes(m), before = 0;
  for (int i = 0; i < m->n_params; i++) {
    uint64_t bytes = weight_bytes(m, i);
    int replica = rank_of_weight(before, bytes, total, bk_model_replicas(m));
    before += bytes;
    s->writes[i] = replica == bk_model_replica(m);
    if (!s->writes[i]) continue;
    bk_tensor t = bk_param_weight(m, &m->params[i]);
    BK_TRY(add_own(s, BK_SAVE_WEIGHTS, i, 0, bk_tensor_count(&t)));
    BK_TRY(add_tensor(s, &s->files[BK_SAVE_WEIGHTS], &t));
  }
  return BK_OK;
}

static bk_status list_own_state(bk_save *s) {
  const bk_model *m = s->model;
  for (int i = 0; i < m->n_params; i++)
    for (bk_slice slice = {0}; bk_param_next_slice(m, &m->params[i], &slice);)
      BK_TRY(add_own(s, BK_SAVE_STATE, i, slice.begin, slice.count));
  for (int part = 0; part < BK_STATE_PARTS; part++)
    for (int i = 0; i < m->n_params; i++)
      for (bk_slice slice = {0}; bk_param_next_slice(m, &m->params[i], &slice);) {
        bk_tensor t = bk_state_tensor(&slice, part);
        if (bk_state_has(m, &m->params[i], part))
          BK_TRY(add_tensor(s, &s->files[BK_SAVE_STATE], &t));
      }
  return BK_OK;
}

/* What this rank can find out by itself. */
bk_status bk_save_list(bk_save *s) {
  size_t ranks = (size_t)s->ranks;
  s->files[BK_SAVE_WEIGHTS].stem = "model";
  s->files[BK_SAVE_STATE].stem = "optimizer";
  for (int i = 0; i < s->n_files; i++)
    if (!(s->files[i].numbers = bk_alloc_array(s->ctx, ranks, sizeof *s->files[i].numbers)))
      return BK_ERR_MEMORY;
  BK_TRY(bk_whole_open(&s->whole, s->model));
  s->writes = bk_alloc_array(s->ctx, (size_t)s->model->n_params, sizeof *s->writes);
  if (!s->writes) return BK_ERR_MEMORY;
  BK_TRY(deal_weights(s));
  return s->n_files > BK_SAVE_STATE ? list_own_state(s) : BK_OK;
}

static int by_place(const void *a, const void *b) {
  const bk_kept *x = a, *y = b;
  if (x->file != y->file) return x->file < y->file ? -1 : 1;
  if (x->param != y->param) return x->param < y->param ? -1 : 1;
  return (x->begin > y->begin) - (x->begin < y->begin);
}

/* Each rank's list in a block of `most`, the rest of which is empty. */
static bk_status make_lists(bk_save *s, size_t most) {
  bk_kept *own = bk_alloc_array(s->ctx, most, sizeof *own);
  s->kept = bk_alloc_array(s->ctx, most * (size_t)s->ranks, sizeof *s->kept);
  if (!own || !s->kept) {
    bk_free(s->ctx, own);
    return BK_ERR_MEMORY;
  }
  if (s->n_own) memcpy(own, s->own, s->n_own * sizeof *own);
  bk_free(s->ctx, s->own);
  s->own = own;
  return BK_OK;
}

/* The ranks that write become 1, 2, 3 ... in their order. */
static void number_ranks(bk_save_file *f, int ranks) {
  f->total = 0;
  for (int r = 0; r < ranks; r++)
    if (f->numbers[r]) f->numbers[r] = ++f->total;
}

/* Collective. Who writes what, which rank 0 puts into the indices. `most` is the length of the
 * longest list. */
bk_status bk_save_share(bk_save *s, int64_t most) {
  BK_TRY(
      bk_checkpoint_agree(s->ctx, s->comm, make_lists(s, (size_t)most), s->path, "make its lists"));
  BK_TRY(bk_comm_gather(s->comm, s->own, (size_t)most * sizeof *s->own, s->kept));
  for (size_t i = 0; i < (size_t)most * (size_t)s->ranks; i++) {
    bk_kept k = s->kept[i];
    if (k.count == 0) continue;
    k.rank = (int32_t)(i / (size_t)most);
    s->kept[s->n_kept++] = k;
    if (k.file >= 0 && k.file < s->n_files) s->files[k.file].numbers[k.rank] = 1;
  }
  if (s->n_kept) qsort(s->kept, s->n_kept, sizeof *s->kept, by_place);
  for (int i = 0; i < s->n_files; i++) number_ranks(&s->files[i], s->ranks);
  return BK_OK;
}

/* ---- all of it ---- */

static bk_status fail_not_once(const bk_save *s, int file, const char *name) {
  const char *what = file == BK_SAVE_WEIGHTS ? "the weight" : "the state of";
  if (s->ranks == 1)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT,
                   "%s: the model is not whole: it lacks %s %s, and a checkpoint has all of them",
                   s->path, what, name);
  return bk_fail(s->ctx, BK_ERR_COMM,
                 "%s: the ranks together would not write %s %s once: they hold parts of different "
                 "models, or not all of one",
                 s->path, what, name);
}

/* Takes the slices of a parameter off the list, which must follow each other. */
static bk_status check_param(const bk_save *s, int file, int param, size_t *at) {
  const bk_param *p = &s->whole.model->params[param];
  bk_tensor weight = bk_param_weight(s->whole.model, p);
  int64_t end = 0, count = bk_tensor_count(&weight);
  for (; *at < s->n_kept && s->kept[*at].file == file && s->kept[*at].param == param; ++*at) {
    const bk_kept *k = &s->kept[*at];
    if (k->begin != end || k->count < 0 || k->count > count - end ||
        (file == BK_SAVE_WEIGHTS && k->count != count))
      return fail_not_once(s, file, p->name);
    end += k->count;
  }
  return end == count ? BK_OK : fail_not_once(s, file, p->name);
}

/* The lists are the other ranks', so that nothing of them is relied on before this. */
bk_status bk_save_check(const bk_save *s) {
  const bk_model *m = s->whole.model;
  size_t at = 0;
  for (int file = 0; file < s->n_files; file++)
    for (int i = 0; i < m->n_params; i++)
      if (file == BK_SAVE_WEIGHTS || bk_state_has(m, &m->params[i], BK_STATE_PARTS - 1))
        BK_TRY(check_param(s, file, i, &at));
  return at == s->n_kept
             ? BK_OK
             : bk_fail(s->ctx, BK_ERR_COMM,
                       "%s: a rank would write a tensor that this rank's model lacks", s->path);
}

/* ---- files ---- */

/* "model.safetensors" of one process, "model-00002-of-00004.safetensors" of several. */
static void file_name(const bk_save *s, const bk_save_file *f, int rank, char *name, size_t size) {
  if (s->ranks == 1) snprintf(name, size, "%s.safetensors", f->stem);
  else snprintf(name, size, "%s-%05d-of-%05d.safetensors", f->stem, f->numbers[rank], f->total);
}

static char *slice_name(bk_context *ctx, int part, const bk_param *p, int64_t begin,
                        int64_t count) {
  return bk_format(ctx, "%s%s[%lld:%lld]", bk_state_prefixes[part], p->name, (long long)begin,
                   (long long)(begin + count));
}

static bk_status declare_weights(bk_save *s, bk_st_writer *writer) {
  const bk_model *m = s->model;
  for (int i = 0; i < m->n_params; i++) {
    const bk_param *p = &m->params[i];
    if (s->writes[i])
      BK_TRY(bk_st_add(writer, p->name, bk_param_weight(m, p).dtype, p->ndim, p->shape));
  }
  return BK_OK;
}

/* Of one process tensors have their names and shapes. */
static bk_status declare_whole(bk_save *s, bk_st_writer *writer, int part, const bk_param *p) {
  char *name = bk_format(s->ctx, "%s%s", bk_state_prefixes[part], p->name);
  bk_status status =
      name ? bk_st_add(writer, name, s->model->ct, p->ndim, p->shape) : BK_ERR_MEMORY;
  bk_free(s->ctx, name);
  return status;
}

static bk_status declare_slices(bk_save *s, bk_st_writer *writer, int part, const bk_param *p) {
  for (bk_slice slice = {0}; bk_param_next_slice(s->model, p, &slice);) {
    char *name = slice_name(s->ctx, part, p, slice.begin, slice.count);
    bk_status status =
        name ? bk_st_add(writer, name, s->model->ct, 1, &slice.count) : BK_ERR_MEMORY;
    bk_free(s->ctx, name);
    BK_TRY(status);
  }
  return BK_OK;
}

static bk_status declare_state(bk_save *s, bk_st_writer *writer) {
  for (int part = 0; part < BK_STATE_PARTS; part++)
    for (int i = 0; i < s->model->n_params; i++) {
      const bk_param *p = &s->model->params[i];
      if (bk_state_has(s->model, p, part))
        BK_TRY((s->ranks == 1 ? declare_whole : declare_slices)(s, writer, part, p));
    }
  return BK_OK;
}

/* Metadata {"format": "pt"} is what transformers asks of a file. */
static bk_status open_part(bk_save *s, bk_save_file *f, const char *folder) {
  char name[64];
  file_name(s, f, s->rank, name, sizeof name);
  char *path = bk_path_join(s->ctx, folder, name);
  bk_status status = path ? bk_st_create(s->ctx, path, &f->writer) : BK_ERR_MEMORY;
  bk_free(s->ctx, path);
  BK_TRY(status);
  BK_TRY(bk_st_add_metadata(f->writer, "format", "pt"));
  BK_TRY(f == &s->files[BK_SAVE_WEIGHTS] ? declare_weights(s, f->writer)
                                         : declare_state(s, f->writer));
  return bk_st_begin(f->writer);
}

bk_status bk_save_open(bk_save *s, const char *folder) {
  for (int i = 0; i < s->n_files; i++)
    if (s->ranks == 1 || s->files[i].numbers[s->rank]) BK_TRY(open_part(s, &s->files[i], folder));
  return BK_OK;
}

/* ---- indices ---- */

static void write_total(bk_json_out *out, uint64_t bytes, const char *map) {
  bk_json_out_text(out, "{\n  \"metadata\": {\n    \"total_size\": ");
  bk_json_out_int(out, (int64_t)bytes);
  bk_json_out_text(out, "\n  },\n  \"");
  bk_json_out_text(out, map);
  bk_json_out_text(out, "\": {");
}

static void write_weight_map(const bk_save *s, bk_json_out *out) {
  const bk_model *m = s->whole.model;
  char name[64];
  write_total(out, all_weight_bytes(m), "weight_map");
  for (size_t i = 0; i < s->n_kept && s->kept[i].file == BK_SAVE_WEIGHTS; i++) {
    file_name(s, &s->files[BK_SAVE_WEIGHTS], s->kept[i].rank, name, sizeof name);
    bk_json_out_text(out, i ? ",\n    " : "\n    ");
    bk_json_out_string(out, m->params[s->kept[i].param].name);
    bk_json_out_text(out, ": ");
    bk_json_out_string(out, name);
  }
  bk_json_out_text(out, "\n  }\n}\n");
}

static void write_slice(const bk_save *s, bk_json_out *out, int part, const bk_kept *k) {
  const bk_param *p = &s->whole.model->params[k->param];
  char name[64];
  char *slice = slice_name(s->ctx, part, p, k->begin, k->count);
  if (!slice) {
    out->status = BK_ERR_MEMORY;
    return;
  }
  file_name(s, &s->files[BK_SAVE_STATE], k->rank, name, sizeof name);
  bk_json_out_text(out, "\n        {\"file\": ");
  bk_json_out_string(out, name);
  bk_json_out_text(out, ", \"name\": ");
  bk_json_out_string(out, slice);
  bk_json_out_text(out, ", \"begin\": ");
  bk_json_out_int(out, k->begin);
  bk_json_out_text(out, ", \"count\": ");
  bk_json_out_int(out, k->count);
  bk_json_out_text(out, "}");
  bk_free(s->ctx, slice);
}

/* A tensor and its slices, which are kept[first] to kept[last - 1]. */
static void write_sliced(const bk_save *s, bk_json_out *out, int part, size_t first, size_t last) {
  const bk_param *p = &s->whole.model->params[s->kept[first].param];
  bk_json_out_text(out, "\n    \"");
  bk_json_out_text(out, bk_state_prefixes[part]);
  bk_json_out_text(out, p->name);
  bk_json_out_text(out, s->model->ct == BK_F64 ? "\": {\"dtype\": \"F64\", \"shape\": ["
                                               : "\": {\"dtype\": \"F32\", \"shape\": [");
  for (int d = 0; d < p->ndim; d++) {
    if (d) bk_json_out_text(out, ", ");
    bk_json_out_int(out, p->shape[d]);
  }
  bk_json_out_text(out, "],\n      \"slices\": [");
  for (size_t i = first; i < last; i++) {
    if (i > first) bk_json_out_text(out, ",");
    write_slice(s, out, part, &s->kept[i]);
  }
  bk_json_out_text(out, "]}");
}

static bool kept_has(const bk_save *s, const bk_kept *k, int part) {
  return bk_state_has(s->whole.model, &s->whole.model->params[k->param], part);
}

static void write_slice_map(const bk_save *s, bk_json_out *out) {
  uint64_t elements = 0;
  bool any = false;
  size_t from = 0;
  while (from < s->n_kept && s->kept[from].file != BK_SAVE_STATE) from++;
  for (size_t i = from; i < s->n_kept; i++)
    for (int part = 0; part < BK_STATE_PARTS; part++)
      if (kept_has(s, &s->kept[i], part)) elements += (uint64_t)s->kept[i].count;
  write_total(out, elements * bk_dtype_size(s->model->ct), "slices");
  for (int part = 0; part < BK_STATE_PARTS; part++)
    for (size_t i = from, next; i < s->n_kept; i = next) {
      for (next = i; next < s->n_kept && s->kept[next].param == s->kept[i].param;) next++;
      if (!kept_has(s, &s->kept[i], part)) continue;
      if (any) bk_json_out_text(out, ",");
      any = true;
      write_sliced(s, out, part, i, next);
    }
  bk_json_out_text(out, "\n  }\n}\n");
}

static bk_status write_index(const bk_save *s, const char *folder, const char *name,
                             void (*write)(const bk_save *s, bk_json_out *out)) {
  bk_json_out out;
  bk_json_out_init(&out, s->ctx);
  write(s, &out);
  char *path = bk_path_join(s->ctx, folder, name);
  bk_status status = path ? out.status : BK_ERR_MEMORY;
  if (status == BK_OK && out.length > BK_ST_INDEX_MAX)
    status = bk_fail(s->ctx, BK_ERR_UNSUPPORTED,
                     "%s: an index of %zu bytes, with which it could not be read again", path,
                     out.length);
  if (status == BK_OK) status = bk_file_write_atomic(s->ctx, path, out.data, out.length);
  bk_free(s->ctx, path);
  bk_json_out_fini(&out);
  return status;
}

bk_status bk_save_indices(const bk_save *s, const char *folder) {
  if (s->ranks == 1) return BK_OK;
  BK_TRY(write_index(s, folder, BK_WEIGHTS_INDEX, write_weight_map));
  if (s->n_files <= BK_SAVE_STATE) return BK_OK;
  return write_index(s, folder, BK_OPTIMIZER_INDEX, write_slice_map);
}

/* ---- the end ---- */

bk_status bk_save_close(bk_save *s) {
  for (int i = 0; i < s->n_files; i++) {
    bk_st_writer *writer = s->files[i].writer;
    if (!writer) continue;
    BK_TRY(bk_st_finish(writer));
    s->files[i].writer = NULL;
  }
  return BK_OK;
}

void bk_save_abandon(bk_save *s) {
  for (int i = 0; i < s->n_files; i++) {
    bk_st_abandon(s->files[i].writer);
    s->files[i].writer = NULL;
  }
}

void bk_save_forget_lists(bk_save *s) {
  bk_whole_close(&s->whole);
  bk_free(s->ctx, s->writes);
  bk_free(s->ctx, s->own);
  bk_free(s->ctx, s->kept);
  s->writes = NULL;
  s->own = s->kept = NULL;
  s->n_own = s->own_capacity = s->n_kept = 0;
}

void bk_save_free(bk_save *s) {
  bk_save_abandon(s);
  bk_save_forget_lists(s);
  for (int i = 0; i < s->n_files; i++) {
    bk_free(s->ctx, s->files[i].tensors);
    bk_free(s->ctx, s->files[i].numbers);
  }
  bk_free(s->ctx, s->parent);
  bk_free(s->ctx, s->old);
  bk_free(s->ctx, s->partial);
  bk_free(s->ctx, s->path);
  *s = (bk_save){0};
}
