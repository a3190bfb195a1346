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

/* For a model with several ranks. `sums` is how many numbers bk_parallel_sum will be given. */
bk_status bk_parallel_create(bk_model *model, int64_t sums, bk_parallel **parallel);
void bk_parallel_destroy(bk_parallel *parallel); /* NULL is allowed */
/* Says that in every step the last programs to write gradients are those of this runner for
 * `micro`: finds in them the piece after which each bucket is whole. */
bk_status bk_parallel_follow(bk_parallel *parallel, const bk_runner *runner, bk_micro micro);
/* The order in which the buckets are posted, as a number that all ranks must have in common. */
uint64_t bk_parallel_order(const bk_parallel *parallel);

/* A step begins: nothing is posted yet. */
void bk_parallel_begin(bk_parallel *parallel);
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
