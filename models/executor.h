/* bk_executor: runs a schedule (birkhoff/schedule.h) over the chunks that this rank holds of a
 * model in a pipeline. Every schedule is run by the same code: what a record names is done, what it
 * receives is waited for before, what it sends is posted after.
 *
 * Receives are posted ahead, in the order in which the sender sends: each chunk has
 * BK_SCHEDULE_AHEAD buffers for what comes in at either side, from which a message is copied to the
 * port of its slot when its record begins. Sends go straight from the ports. The comm compares
 * shape, dtype and a tag of stream, edge, micro-batch and direction at both ends.
 *
 * In an FB the pieces of the two passes are run in turn, each pass in its own order. Where a list
 * puts weight gradients off, they come last in every B and FB, after what was made for other ranks
 * has left. A backward pass whose streams are recomputed runs the pieces that rebuild them before
 * it waits for the gradient (mHC paper, section 4.3.3). No allocation after creation. */
#ifndef BK_EXECUTOR_H
#define BK_EXECUTOR_H

#include "models/chunk.h"
#include "models/parallel.h"
#include "models/pipeline.h"

typedef struct bk_executor bk_executor;

/* The model is in a pipeline. Of the chunk's options batch, seq_len and the ways to recompute are
 * used, and merge_stream. The executor is the caller's, and must end before the model. With
 * plan_only sizes are planned. */
bk_status bk_executor_create(bk_model *model, const bk_chunk_options *options,
                             bk_executor **executor);
void bk_executor_destroy(bk_executor *executor); /* NULL is allowed */
/* Planned bytes by class, without the model, which has the kernels' workspaces. */
size_t bk_executor_bytes(const bk_executor *executor, bk_memory_class c);

/* What a run needs of its caller. `micro` counts the micro-batches of this pipeline from 0. */
typedef struct bk_executor_calls {
  /* Before a pass of a chunk that has the embedding or the head: ids and targets [batch * seq_len],
   * to be read until the next call. */
  bk_status (*feed)(void *user, int64_t micro, const int32_t **ids, const int32_t **targets);
  /* After the loss of a micro-batch was added to the step block; NULL: nothing is done. */
  bk_status (*loss)(void *user, int64_t micro);
  /* After every piece, as in bk_run; NULL: nothing is looked at. */
  bk_status (*look)(void *user, const bk_piece *piece);
  void *user;
  bk_parallel *parallel; /* whose bk_parallel_after is called after pieces; NULL: none */
} bk_executor_calls;

/* All micro-batches of a step, forward and backward, between bk_step_begin and the optimiser. After
 * a failure the job's comm is to be aborted: others wait for this rank. */
bk_status bk_executor_step(bk_executor *executor, const bk_executor_calls *calls);
/* One micro-batch of stream 0 forward, with its loss and without gradients, between bk_step_begin
 * and bk_step_end. `n` counts the calls since the last step: ranks of a pipeline make them in the
 * same order, and their passes overlap. */
bk_status bk_executor_evaluate(bk_executor *executor, int64_t n, const bk_executor_calls *calls);
/* Waits for all sends; to be called after the last bk_executor_evaluate. */
bk_status bk_executor_finish(bk_executor *executor);

/* The programs that a step runs and that write gradients, in their order; [*n], the executor's. */
const bk_pass_run *bk_executor_runs(const bk_executor *executor, int *n);
/* Where the executor is, while `look` is called. */
const bk_chunk *bk_executor_chunk(const bk_executor *executor, const bk_piece *piece, int *slot);
/* The micro-batch of the piece, counted as above. */
int64_t bk_executor_micro(const bk_executor *executor, const bk_piece *piece);
/* Chunk i, and the slot that holds the last micro-batch of its stream after a step. */
bk_chunk *bk_executor_nth_chunk(const bk_executor *executor, int i, int *slot);

#endif
