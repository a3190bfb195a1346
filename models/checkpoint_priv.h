/* What the parts of the checkpoint code share: checkpoint.c (folders), checkpoint_save.c,
 * checkpoint_load.c, checkpoint_read.c, checkpoint_names.c, checkpoint_convert.c. */
#ifndef BK_CHECKPOINT_PRIV_H
#define BK_CHECKPOINT_PRIV_H

#include "io/safetensors.h"
#include "models/checkpoint.h"

/* The most bytes of a tensor that are moved at a time, and of host memory for such pieces. */
#define BK_CHECKPOINT_PIECE ((size_t)4 << 20)
#define BK_CHECKPOINT_STAGING ((size_t)16 << 20)

/* The name under which saving moves an older checkpoint "X" aside: "X.old.tmp". Trailing slashes
 * of X do not count; bk_free. */
char *bk_checkpoint_moved_aside(bk_context *ctx, const char *path);

/* A part of the tensors in a file: one of each parameter, named prefix + the parameter's name. */
typedef bk_tensor (*bk_param_view)(const bk_model *model, const bk_param *p);
typedef struct bk_column {
  const char *prefix;
  bk_param_view view;
} bk_column;

/* Fills the views of all parameters from the weights in a folder; with `second` also a second
 * tensor of each, its master. */
bk_status bk_checkpoint_load_columns(bk_model *model, const char *folder, const bk_column *columns,
                                     int n_columns, bk_param_view second);

/* ---- checkpoint_read.c: data of tensors, by large pieces and on several threads ---- */

/* Elements [first, first + count) of an entry, to be read into one or two flat tensors [count], or
 * into none: then they are only searched for what is not finite. */
typedef struct bk_read_job {
  const bk_st_entry *entry; /* a float */
  int64_t first, count;
  bk_tensor a, b; /* b only beside a */
} bk_read_job;

/* The elements that are not finite: how many tensors have some, and the first such element. */
typedef struct bk_finding {
  const bk_st_entry *first, *last; /* the first and the last such tensor, in file order */
  int64_t tensors, index;          /* how many tensors; the index in the first of them */
  double value;
  bk_dtype dtype; /* the dtype that cannot hold the value; BK_NONE: it is not finite in the file */
} bk_finding;

/* Does all jobs, which are in file order, and adds to *found. The stream is that of the tensors;
 * NULL where there are none. threads: 0 is one per processor. */
bk_status bk_checkpoint_read(bk_context *ctx, bk_stream *stream, const bk_st_reader *reader,
                             const bk_read_job *jobs, int64_t n_jobs, int threads,
                             bk_finding *found);
/* The first bad element of each tensor in file order; later calls for the same tensor count
 * nothing. */
void bk_finding_note(bk_finding *f, const bk_st_entry *e, int64_t index, double value,
                     bk_dtype dtype);
/* The finding in words, to bk_free: "FILE: tensor T is not finite: element 3 is nan, and 2 further
 * tensors are not finite". */
char *bk_finding_text(bk_context *ctx, const bk_st_reader *reader, const bk_finding *f);

/* ---- checkpoint_names.c: our names for what is in a file ---- */

/* A tensor of a file under our name for it; `used` once a parameter has taken it. */
typedef struct bk_weight {
  char *name; /* Hugging Face's, as bk_param has it */
  const bk_st_entry *entry;
  bool used;
} bk_weight;

typedef struct bk_weights {
  bk_context *ctx;
  bk_weight *list; /* by name */
  size_t count;
} bk_weights;

/* All entries of a file under our names. With `prefixes` the words that wrappers put before them
 * ("module.", "_orig_mod.") are taken off, and a "model." that is absent is put there. Two
 * spellings of one name in a file: BK_ERR_DATA. On failure nothing is left to free. */
bk_status bk_weights_list(bk_context *ctx, const bk_st_reader *reader, bool prefixes,
                          bk_weights *weights);
void bk_weights_free(bk_weights *weights);
bk_weight *bk_weights_find(const bk_weights *weights, const char *name); /* NULL if absent */

/* Newer files have one tensor for all experts of a layer, [experts, parts * rows, columns]. This
 * says where in it the matrix of one expert lies. */
typedef struct bk_fused {
  /* "model.layers.3.mlp.experts.gate_up_proj"; NULL: no matrix of an expert; bk_free */
  char *name;
  int64_t expert, part, parts;
} bk_fused;
bk_status bk_fused_name(bk_context *ctx, const char *name, bk_fused *fused);

/* "model.layers.L." -> L; -1 for other names. */
int64_t bk_layer_of_name(const char *name);

#endif
