/* What the files of models/ share about a model beyond model.h. */
#ifndef BK_MODEL_PRIV_H
#define BK_MODEL_PRIV_H

#include "models/program.h"
#include "models/layers/sublayer.h"

/* What a model has beside blocks and sublayers. embed and lm_head are two matrices: no weights are
 * tied. */
struct bk_model_parts {
  bk_param_block *embed;   /* [V,C]; NULL where no chunk has it */
  bk_param_block *lm_head; /* [V,C]; NULL where no chunk has it */
  /* The final norm, as a connection of the kind bk_model_head_kind. */
  bk_connection head;
  /* sublayers with experts among those that the model holds */
  int n_moe;
  bk_tensor load;  /* [n_moe, E] i32, choices counted since bk_step_begin */
  double **values; /* initial values of the base tensors, owned */
  size_t n_values, values_capacity;
  /* of bk_model.params, while it is built */
  size_t params_capacity;
  union {
    float f32[BK_STEP_FIELDS];
    double f64[BK_STEP_FIELDS];
  } step_host;                   /* staging of the step block, in ct */
  uint32_t begun[BK_CHUNKS_MAX]; /* a bit for each kind of program that has run in this step */
  int waiting_wgrads;            /* wgrads deferred in this step and not done yet */
  /* by which a runner sees that its deferred wgrads are of an earlier step */
  uint64_t steps_begun;
  size_t comm_room;  /* bytes of a request that the comm has room for; 0: none was made */
  bool graph_warned; /* a capture has failed and was warned about */
  /* with several ranks, [n_shards]: bk_model_gather_weights */
  struct bk_request **requests;
};

/* One field of the step block as a tensor [1]. */
static inline bk_tensor bk_step_field(const bk_model *m, int field) {
  return bk_tensor_slice(m->step, 0, field, 1);
}

/* Where the sublayers of a chunk begin in model->sublayers, and how many there are. */
int bk_model_chunk_first(const bk_model *model, int chunk);
static inline int bk_model_chunk_count(const bk_model *m, int chunk) {
  return (int)(m->options.chunks[chunk].end - m->options.chunks[chunk].begin);
}

/* The connection at the end: the learned head, or plain (on the summed streams, or on x itself). */
const bk_connection_kind *bk_model_head_kind(const bk_model_config *config);

/* parallel.c: room in the model's comm for all that a step posts, with sums of so many numbers. */
bk_status bk_model_reserve_comm(bk_model *model, size_t sums);
/* The memory that this takes without sums, which are small; 0 where there is nothing to post. */
size_t bk_model_comm_bytes(const bk_model *model);
/* Collective: every rank gets the weights of the others' pieces. With one rank it does nothing. */
bk_status bk_model_gather_weights(bk_model *model);

/* params.c: makes blocks, names and sublayers; reserves memory, commits nothing. */
bk_status bk_model_build(bk_model *model);

#endif
