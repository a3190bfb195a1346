/* The mHC mixture-of-experts transformer (DeepSeek-V3 shape, doc/model.md): parameters on
 * a device. A bk_model holds weights (and, if trainable, gradients, masters, moments) of one or
 * more chunks, ranges of sublayers, with one set of lanes, one step block and one optimiser between
 * them. A bk_chunk (chunk.h) holds what one shape of batch needs to run one of them, a bk_runner
 * (runner.h) runs all that follow each other. Several runners may share a model. */
#ifndef BK_MODEL_H
#define BK_MODEL_H

#include <birkhoff/model.h>

#include "io/config.h"
#include "models/lanes.h"

typedef enum bk_init_kind { BK_INIT_NORMAL, BK_INIT_CONST, BK_INIT_VALUES } bk_init_kind;

/* One contiguous piece of storage that the optimiser and the products see: a matrix, or the stacked
 * matrices of all experts of a layer ([E, 2I, C] gate rows then up rows; [E, C, I] down), or gate
 * and up of a dense MLP ([2I, C]). The optimiser changes weight (and master), m and v; only the
 * programs of a runner write grad. */
typedef struct bk_param_block {
  bk_tensor weight; /* st, or ct for hc_*, router gate, correction bias and norm weights */
  bk_tensor grad;   /* ct; absent unless trainable */
  /* ct, shaped as the weight: the master, only where weight is not ct, and AdamW's moments. Absent
   * where grad is, and where several ranks train the model: each then keeps parts of them
   * (shards.h). */
  bk_tensor master, m, v;
  /* e_score_correction_bias is not trainable: the balancing rule writes it */
  bool decay, trainable;
  int sublayer; /* in the whole model; -1: the embedding; as many as there are: the head */
} bk_param_block;

/* One tensor of the checkpoint: a named, contiguous view of a block. */
typedef struct bk_param {
  char *name; /* Hugging Face's: "model.layers.3.mlp.experts.7.up_proj.weight" */
  /* index in bk_model.blocks */
  int block;
  /* in elements, not bytes */
  size_t element_offset; /* of the view in its block */
  int ndim;
  int64_t shape[BK_MAX_DIMS];
  bk_init_kind init;
  double init_std;           /* NORMAL */
  double init_value;         /* CONST */
  const double *init_values; /* VALUES; owned by the model */
  /* For a parameter of a residual connection: which one it is, of which kind, and the number of its
   * sublayer. NULL for every other parameter. */
  const struct bk_connection_param *connection;
  const struct bk_connection_kind *kind;
  int sublayer;
} bk_param;

/* The structs of a model are its own: other code reads them, and only models/ writes them. */
struct bk_model {
  bk_context *ctx;
  bk_device *device;
  bk_lanes lanes;
  /* Everything that touches the model's memory from the host goes through this stream. */
  bk_stream *stream; /* that of the compute lane */
  bk_model_config config;
  bk_dtype dtype;           /* st */
  bk_dtype ct;              /* BK_F64 if dtype is BK_F64, else BK_F32 */
  bk_model_options options; /* its chunks are filled in: n_chunks is at least 1 */
  /* weights, gradients, masters, moments, the step block and the expert loads; with plan_only it is
   * planned and never committed */
  bk_memory *memory;
  /* [n_blocks]. The array never moves: sublayers and parts keep pointers into it. */
  bk_param_block *blocks;
  int n_blocks;
  struct bk_shard *shards; /* shards.h: [n_shards], what of the trained blocks this rank updates */
  int n_shards;
  bk_param *params; /* in checkpoint order: embedding, layers, norm, head */
  int n_params;
  bk_tensor step; /* the step block, ct [BK_STEP_FIELDS], in class workspace */
  /* layers/sublayer.h: [n_sublayers], those of all chunks, by their index in the whole model */
  struct bk_sublayer *sublayers;
  int n_sublayers;
  struct bk_model_parts *parts; /* embedding, head and the like; private to models/ */
  /* profile.h; normally NULL. While there is one, a step launches its ops one by one, since a
   * captured graph cannot be timed inside. */
  struct bk_profile *profile;
};

/* bk_model_create, _destroy, _init, _count and bk_model_options: birkhoff/model.h */
/* The number of residual streams that the model carries; 1 for plain. */
static inline int64_t bk_model_streams(const bk_model *m) {
  return m->config.residual == BK_HC_PLAIN ? 1 : m->config.hc_mult;
}
/* The ranks that train the model together, 1 without a comm, and which of them this one is. */
int bk_model_ranks(const bk_model *model);
int bk_model_rank(const bk_model *model);
/* Those among them that hold the same sublayers, without a pipeline all, and which of these this
 * one is. They sum gradients, and each keeps a share of masters and moments. */
int bk_model_replicas(const bk_model *model);
int bk_model_replica(const bk_model *model);
struct bk_comm *bk_model_replica_comm(const bk_model *model);
/* The search is linear, for tests and tools. The parameter belongs to the model. */
const bk_param *bk_model_find(const bk_model *model, const char *name); /* NULL if absent */
/* For what runs a model from end to end: BK_ERR_ARGUMENT, in the name of `who`, where the model
 * lacks sublayers, or takes no sequences of seq_len tokens. */
bk_status bk_model_check_pass(const bk_model *model, const char *who, int64_t seq_len);
/* Views of a parameter. grad, m, v, master are absent tensors where they do not exist; m, v and
 * master in pieces, as each of several ranks has them: bk_param_next_slice (shards.h). */
bk_tensor bk_param_weight(const bk_model *model, const bk_param *p);
bk_tensor bk_param_grad(const bk_model *model, const bk_param *p);
bk_tensor bk_param_master(const bk_model *model, const bk_param *p);
bk_tensor bk_param_m(const bk_model *model, const bk_param *p);
bk_tensor bk_param_v(const bk_model *model, const bk_param *p);
bool bk_param_trainable(const bk_model *model, const bk_param *p);
/* Groups of blocks that the optimiser treats alike, in the order in which they lie in memory:
 * decaying in the storage type, decaying in ct, not decaying, not trained. */
enum { BK_UPDATE_GROUPS = 4 };
int bk_param_block_group(const bk_model *model, const bk_param_block *block);

#endif
