/* The step block and the optimiser: one of each for a model, whatever its chunks. */
#ifndef BK_STEP_H
#define BK_STEP_H

#include "models/program.h"

/* The host decides these for a step; each is a field of the block (runtime/op.h). */
typedef struct bk_step_values {
  double lr, bc1, bc2, max_norm, loss_scale, balance_rate;
} bk_step_values;
/* Writes the block with one copy (results zeroed), zeroes expert loads. */
bk_status bk_step_begin(bk_model *model, const bk_step_values *values);
/* loss_sum is in nats, summed over the kept targets of all micro-batches, not divided by their
 * number; grad_norm is the norm before clipping. Without an optimiser's step grad_norm and clip are
 * 0. */
typedef struct bk_step_results {
  double loss_sum, grad_norm, clip;
  bool finite;
} bk_step_results;
/* The first program of a kind that writes gradients of a chunk in a step overwrites them, the next
 * ones add: which of the two this one is, from now on no longer the first. `kind`: one of the
 * program ids that there are two of (chunk.h). */
typedef enum bk_micro { BK_MICRO_FIRST, BK_MICRO_NEXT, BK_MICROS } bk_micro;
bk_micro bk_step_micro(bk_model *model, int chunk, int kind);
/* Reads the block once; synchronises. */
bk_status bk_step_end(bk_model *model, bk_step_results *results);

/* Gradient norm, then clip, AdamW over all blocks and balancing update: two programs. */
typedef struct bk_optimizer bk_optimizer;
typedef enum bk_optimizer_program_id {
  BK_OPTIMIZER_NORM,
  BK_OPTIMIZER_UPDATE,
  BK_OPTIMIZER_PROGRAMS
} bk_optimizer_program_id;
typedef struct bk_optimizer_options {
  double beta1, beta2, eps, weight_decay;
  /* How many micro-batches' losses are kept apart (bk_optimizer_keep_loss) and added up in the
   * order of their numbers; 0: the loss is what is in the step block. */
  int64_t micro_batches;
} bk_optimizer_options;
bk_status bk_optimizer_create(bk_model *model, const bk_optimizer_options *options,
                              bk_optimizer **optimizer);
void bk_optimizer_destroy(bk_optimizer *optimizer);
/* norm -> clip -> AdamW -> balance; then the results are read with bk_step_end. Non-finite:
 * weights unchanged. Collective where there are several ranks: gradients, losses and loads are
 * those of all. The gradients are what the passes of this step have written; of what none has,
 * those of the step before. Deferred wgrads that still wait: BK_ERR_ARGUMENT. */
bk_status bk_optimizer_step(bk_optimizer *optimizer);
const bk_program *bk_optimizer_program(const bk_optimizer *optimizer, int program);
/* What it does with other ranks (parallel.h); NULL with one rank, and where the model was only
 * planned. */
struct bk_parallel *bk_optimizer_parallel(const bk_optimizer *optimizer);
/* After the forward pass of a micro-batch: takes its loss out of the step block, which is then 0
 * again. bk_optimizer_step puts the sum of all there. */
bk_status bk_optimizer_keep_loss(bk_optimizer *optimizer, int64_t micro);
/* Planned bytes by class, without the model, which has the kernels' workspaces. */
size_t bk_optimizer_bytes(const bk_optimizer *optimizer, bk_memory_class c);

#endif
