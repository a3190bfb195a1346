/* What the ranks of a group do together in a training step (shards.h says how gradients are cut):
 *
 *   while the last micro-batch goes back   the gradients of a bucket are summed over the ranks as
 *                                          soon as the last piece that writes one of them is done
 *   after it                               sums of squares, losses and the loads of experts
 *   after the update                       each rank gets the weights that the others have updated
 *
 * No operation depends on anything that only one rank knows: each rank posts all of them in every
 * step, in the same order, also one that has no sequences. A rank that fails by itself aborts the
 * group, so that no other waits for it. */
#ifndef BK_PARALLEL_H
#define BK_PARALLEL_H

#include "models/runner.h"

typedef struct bk_parallel bk_parallel;

/* A program that writes gradients, and the position in a step at which it runs. */
typedef struct bk_pass_run {
  const bk_program *program;
  int position;
} bk_pass_run;

/* For a model with several ranks. `sums` is how many numbers bk_parallel_sum will be given. */
bk_status bk_parallel_create(bk_model *model, int64_t sums, bk_parallel **parallel);
void bk_parallel_destroy(bk_parallel *parallel); /* NULL is allowed */
/* Says which programs write gradients in every step, in the order in which they run: finds the
 * piece after which each bucket is whole. */
void bk_parallel_follow(bk_parallel *parallel, const bk_pass_run *runs, int n);
/* The same of a runner that goes through its chunks with `micro`, all at position 0. */
void bk_parallel_follow_runner(bk_parallel *parallel, const bk_runner *runner, bk_micro micro);
/* Collective, after all ranks have followed something: the order in which buckets are posted, which
 * is one for all replicas: that in which the slowest of them has each bucket whole. */
bk_status bk_parallel_agree(bk_parallel *parallel);

/* A step begins: nothing is posted yet. */
void bk_parallel_begin(bk_parallel *parallel);
/* The programs that run from now on are at this position. False: no bucket becomes whole there. */
bool bk_parallel_at(bk_parallel *parallel, int position);
/* Zeroes all gradients, for a rank that has no sequences in a step. */
bk_status bk_parallel_zero(bk_parallel *parallel);
/* A bk_look_fn for bk_runner_after: posts the buckets that are whole after this piece. */
bk_status bk_parallel_after(void *parallel, const bk_piece *piece);
/* Posts what was not posted yet and waits: own_grad of all shards is the sum over the ranks. */
bk_status bk_parallel_gradients(bk_parallel *parallel);
/* all = the sum of all ranks' own; the loads of the experts become the sum of all ranks' too. */
bk_status bk_parallel_sum(bk_parallel *parallel, const bk_tensor *own, const bk_tensor *all);
/* After a failure: aborts the group and gets back what is under way. */
void bk_parallel_give_up(bk_parallel *parallel);

#endif
