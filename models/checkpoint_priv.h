/* What the parts of the checkpoint code share: checkpoint.c (folders), checkpoint_save.c,
 * checkpoint_parts.c, checkpoint_load.c, checkpoint_read.c, checkpoint_names.c,
 * checkpoint_whole.c and checkpoint_convert.c. */
#ifndef BK_CHECKPOINT_PRIV_H
#define BK_CHECKPOINT_PRIV_H

#include "comm/comm.h"
#include "io/safetensors.h"
#include "models/checkpoint.h"
#include "models/shards.h"

/* The most bytes of a tensor that are written and read at a time, and of host memory for such
 * pieces. */
#define BK_CHECKPOINT_PIECE ((size_t)4 << 20)
#define BK_CHECKPOINT_READ_PIECE ((size_t)1 << 20) /* which stays in a processor's cache */
#define BK_CHECKPOINT_STAGING ((size_t)16 << 20)

/* The name under which saving moves an older checkpoint "X" aside: "X.old.tmp". Trailing slashes
 * of X do not count; bk_free. */
char *bk_checkpoint_moved_aside(bk_context *ctx, const char *path);

#define BK_WEIGHTS_FILE "model.safetensors"
#define BK_WEIGHTS_INDEX "model.safetensors.index.json"
#define BK_OPTIMIZER_FILE "optimizer.safetensors"
#define BK_OPTIMIZER_INDEX "optimizer.safetensors.index.json"

typedef bk_tensor (*bk_param_view)(const bk_model *model, const bk_param *p);

/* Fills the views of all parameters, and their masters, from the weights in a folder. */
bk_status bk_checkpoint_load_view(bk_model *model, const char *folder, bk_param_view view);

/* The parts of the optimiser's state, in the order of its file: "master.", "m.", "v.". */
enum { BK_STATE_PARTS = 3 };
extern const char *const bk_state_prefixes[BK_STATE_PARTS];
/* Whether the model as a whole, of however many ranks, has that part of a parameter. */
bool bk_state_has(const bk_model *model, const bk_param *p, int part);
/* What this rank keeps of it: flat [slice->count]. */
bk_tensor bk_state_tensor(const bk_slice *slice, int part);

/* Collective. All ranks get the status of the first rank that has not succeeded. Who noticed a
 * failure has logged it; rank 0 says of another rank's which it was: "PATH: rank 2 could not save
 * its part: ...". comm may be NULL. */
bk_status bk_checkpoint_agree(bk_context *ctx, bk_comm *comm, bk_status mine, const char *path,
                              const char *what);

/* The same, and *value becomes the largest of all ranks. */
bk_status bk_checkpoint_agree_most(bk_context *ctx, bk_comm *comm, bk_status mine, const char *path,
                                   const char *what, int64_t *value);

/* ---- checkpoint_whole.c: the whole model, of which a rank may hold a part ---- */

/* What a checkpoint has, while a rank of a pipeline has some of it: a plan of the whole model. */
typedef struct bk_whole {
  bk_context *ctx;
  const bk_model *model; /* the plan, or the rank's own model where that is whole */
  bk_model *planned;     /* NULL: there is no need of a plan */
  int *number;           /* [n_params of the part]: which parameter of the whole each one is */
} bk_whole;

/* On failure nothing is left to close. `part` must outlive it. */
bk_status bk_whole_open(bk_whole *whole, const bk_model *part);
void bk_whole_close(bk_whole *whole); /* one that was never opened, too */

/* ---- checkpoint_parts.c: what each rank writes ---- */

enum { BK_SAVE_WEIGHTS, BK_SAVE_STATE, BK_SAVE_FILES };

/* This rank's part of the weights, or of the optimiser's state. */
typedef struct bk_save_file {
  const char *stem; /* "model" */
  int *numbers;     /* of each rank's file, from 1; 0: it has none */
  int total;
  bk_st_writer *writer; /* NULL: this rank has no part */
  bk_tensor *tensors;   /* on the device, in the order of the file */
  size_t n, capacity;
  uint64_t bytes; /* of the tensors */
} bk_save_file;

/* Elements [begin, begin + count) of a parameter, by its number in the whole model, that a rank has
 * in one of its files. Weights are written whole. */
typedef struct bk_kept {
  int64_t param, begin, count; /* count 0: this is none */
  int32_t file, rank;
} bk_kept;

/* One save; bk_save_free. */
typedef struct bk_save {
  bk_context *ctx;
  bk_model *model;
  bk_comm *comm;
  int rank, ranks;
  char *path, *partial, *old, *parent; /* the folder, what it is until it is whole, ... */
  bk_save_file files[BK_SAVE_FILES];
  int n_files; /* 1: weights alone */
  bk_whole whole;
  bool *writes; /* [n_params of this rank's model]: whether it writes the weight */
  bk_kept *own; /* of this rank */
  size_t n_own, own_capacity;
  bk_kept *kept; /* of all ranks, by file, parameter and place */
  size_t n_kept;
} bk_save;

/* Lists what this rank writes. */
bk_status bk_save_list(bk_save *save);
/* Collective: what the others write. `most`: the largest n_own. */
bk_status bk_save_share(bk_save *save, int64_t most);
/* BK_ERR_COMM unless all of them together write each element of the whole model once. */
bk_status bk_save_check(const bk_save *save);
/* Opens this rank's files and declares their tensors; what is then put into them takes no memory.
 * bk_save_close finishes them, bk_save_abandon removes them. */
bk_status bk_save_open(bk_save *save, const char *folder);
bk_status bk_save_close(bk_save *save);
void bk_save_abandon(bk_save *save);
/* Rank 0: the indices of several ranks' files. */
bk_status bk_save_indices(const bk_save *save, const char *folder);
/* Frees what is needed only until the files are open and the indices written. */
void bk_save_forget_lists(bk_save *save);
void bk_save_free(bk_save *save);

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
