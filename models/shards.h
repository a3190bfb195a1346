/* Data parallel training: how gradients and the optimiser's state are cut among the ranks of a
 * group (ZeRO stage 1, arXiv 1910.02054).
 *
 * The trained blocks of a model lie side by side in memory, in spans that the optimiser treats
 * alike; of several ranks a span also ends where its sublayer ends, so that a pipeline cuts none. A
 * span is cut into *buckets* of at most BK_BUCKET_BYTES of gradients, and each bucket into
 * one *piece* for each rank (bk_comm_cut). A rank owns its pieces: it gets the sum of all ranks'
 * gradients of them, keeps masters and moments of them and of nothing else, and updates their
 * weights, which the other ranks then get from it. With one rank a span is one bucket and one
 * piece, and every block also has masters and moments of its own, views of the piece's.
 *
 * The cut depends on the configuration, the dtype and the number of ranks alone. */
#ifndef BK_SHARDS_H
#define BK_SHARDS_H

#include "models/model.h"

/* A bucket, and this rank's piece of it. All tensors are flat and contiguous; those of the piece
 * are [count] and may be empty (absent). */
typedef struct bk_shard {
  bk_tensor grad, weight; /* of the bucket: [elements], on every rank in full */
  int group;              /* bk_param_block_group: what the optimiser treats alike */
  bool decay;
  int64_t begin, count;           /* the piece: elements of the bucket */
  bk_tensor own_grad, own_weight; /* the piece of grad and of weight */
  bk_tensor master, m, v;         /* [count]; master absent where the weight is in ct */
} bk_shard;
/* model->shards [model->n_shards], in the order in which the blocks lie in memory. */

/* Gradients of a bucket, at most. */
#define BK_BUCKET_BYTES ((size_t)32 << 20)
/* How many elements the buckets of a span have, the last of them perhaps fewer. */
int64_t bk_bucket_elements(int64_t count, size_t element, int ranks);
/* For params.c, when weights and gradients have their places: makes the shards and reserves masters
 * and moments. A model that is not trained has no shards. */
bk_status bk_model_make_shards(bk_model *model);

/* The parts of a parameter's masters and moments that this rank keeps, one after the other:
 *   for (bk_slice s = {0}; bk_param_next_slice(model, p, &s);) ... */
typedef struct bk_slice {
  int64_t begin, count;   /* elements of the parameter, in the order of the checkpoint's shape */
  bk_tensor master, m, v; /* flat [count]; absent where there is none */
} bk_slice;
bool bk_param_next_slice(const bk_model *model, const bk_param *p, bk_slice *slice);

#endif
