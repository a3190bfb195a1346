/* What the parts of the checkpoint code share: checkpoint.c (folders), checkpoint_save.c,
 * checkpoint_load.c, checkpoint_names.c, checkpoint_convert.c. */
#ifndef BK_CHECKPOINT_PRIV_H
#define BK_CHECKPOINT_PRIV_H

#include "io/safetensors.h"
#include "models/checkpoint.h"

#define BK_CHECKPOINT_CHUNK ((int64_t)1 << 17) /* most elements moved at a time: 1 MiB of doubles */

/* The host copy through which tensors pass; bk_free. */
static inline double *bk_checkpoint_chunk(bk_context *ctx) {
  return bk_alloc_array(ctx, (size_t)BK_CHECKPOINT_CHUNK, sizeof(double));
}
static inline int64_t bk_checkpoint_piece(int64_t count, int64_t at) {
  return count - at < BK_CHECKPOINT_CHUNK ? count - at : BK_CHECKPOINT_CHUNK;
}

/* "X" -> "X.old.tmp", where saving moves an older X; trailing slashes of X do not count;
 * bk_free. */
char *bk_checkpoint_moved_aside(bk_context *ctx, const char *path);

/* The tensors of one file: prefix + parameter name. */
typedef bk_tensor (*bk_param_view)(const bk_model *model, const bk_param *p);
typedef struct bk_column {
  const char *prefix;
  bk_param_view view;
} bk_column;

/* Fills the views of all parameters, and with `second` a second tensor of each, from the weights
 * in a folder. */
bk_status bk_checkpoint_load_columns(bk_model *model, const char *folder, const bk_column *columns,
                                     int n_columns, bk_param_view second);

/* ---- checkpoint_names.c: our names for what is in a file ---- */

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

/* All entries of a file under our names; with `prefixes`, what wrappers put before them
 * ("module.", "_orig_mod.") is taken off and a "model." that is absent put there. Two spellings
 * of one name: BK_ERR_DATA. On failure nothing is left to free. */
bk_status bk_weights_list(bk_context *ctx, const bk_st_reader *reader, bool prefixes,
                          bk_weights *weights);
void bk_weights_free(bk_weights *weights);
bk_weight *bk_weights_find(const bk_weights *weights, const char *name); /* NULL if absent */

/* The tensor of all experts that a matrix of one expert is part of: [experts, parts * rows,
 * columns]. */
typedef struct bk_fused {
  /* "model.layers.3.mlp.experts.gate_up_proj"; NULL: the matrix is none of an expert; bk_free */
  char *name;
  int64_t expert, part, parts;
} bk_fused;
bk_status bk_fused_name(bk_context *ctx, const char *name, bk_fused *fused);

/* "model.layers.L." -> L; -1 for other names. */
int64_t bk_layer_of_name(const char *name);

#endif
