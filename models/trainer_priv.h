/* What the files of the trainer share.
 *
 * trainer.c         a step: the recipe, the share of this rank, refusals, validation
 * trainer_stages.c  what is done otherwise where the model is in a pipeline
 * evaluator.c       the mean loss on data */
#ifndef BK_TRAINER_PRIV_H
#define BK_TRAINER_PRIV_H

#include "io/readahead.h"
#include "models/executor.h"
#include "models/parallel.h"
#include "models/trainer.h"
#include "models/watch.h"

/* The data sets and the model are the caller's and outlive it; the rest is its own. */
struct bk_trainer {
  bk_model *model;
  bk_train_config recipe;
  const bk_dataset *train, *val;
  bk_readahead *ahead; /* of `train` */
  /* The sequences of a step are dealt out to `shares` parts, each of a rank or, in pipelines, of
   * the ranks of one. This rank's is number `share`: sequences [begin, begin + count) of the batch,
   * in n_micro micro-batches of `micro` sequences, the last of them perhaps of fewer; it may be
   * empty. Of all shares' micro-batches, counted one share after the other, its own are those from
   * first_micro on. */
  int rank, ranks, share, shares;
  int64_t begin, count, micro, n_micro, first_micro, all_micro;
  bk_runner *runner;     /* NULL: in a pipeline */
  bk_runner *tail;       /* for a last micro-batch of fewer sequences; NULL: there is none */
  bk_executor *executor; /* in a pipeline; else NULL */
  bk_optimizer *optimizer;
  bk_parallel *parallel; /* the optimiser's; NULL: one rank */
  void *gathered;        /* [ranks + 1]: room for what bk_comm_gather brings; NULL: one rank */
  bk_comm_stats before;  /* of the step in progress */
  /* gain_fresh: the last step has measured it */
  bk_gain *gain; /* only with gain_every */
  bool gain_fresh;
  double *products; /* in a pipeline: of maps, [ranks of it + 1][tokens][n][n] */
  bk_watch watch;
  bk_refusal refusal;     /* row.step is 0 where the last step was taken */
  bool timed;             /* the step in progress */
  bk_step_times times;    /* of its parts so far */
  double lap;             /* when the part in progress began */
  int64_t step, tokens;   /* done */
  int32_t *ids, *targets; /* one micro-batch */
  int32_t *load;          /* [experts] */
  int n_moe;              /* layers with experts in the whole model */
  double *load_share;     /* [n_moe][experts] */
};

/* What a rank has found out about a step that is not finite. */
typedef struct bk_finding {
  bk_suspect suspect;
  double largest; /* of the gradients, where none is to blame alone; else -1 */
  int64_t order;  /* of two findings that with the smaller order came first */
  int32_t status;
} bk_finding;

/* ---- trainer.c ---- */
/* Fills ids and targets with this rank's micro-batch k of the step. */
bk_status bk_trainer_read(const bk_trainer *trainer, int64_t k, int64_t sequences);
/* A gain as numbers, [bk_trainer_gain_numbers]. */
size_t bk_trainer_gain_numbers(const bk_trainer *trainer);
void bk_trainer_pack_gain(bk_gain *gain, double *numbers, bool pack);

/* ---- trainer_stages.c ---- */
bk_status bk_trainer_make_executor(bk_trainer *trainer);
/* Room for what goes between stages when the gain is measured, and its bytes. */
bk_status bk_trainer_reserve_gain(bk_trainer *trainer);
size_t bk_trainer_gain_bytes(const bk_trainer *trainer);
bk_status bk_trainer_run_stages(bk_trainer *trainer);
/* load_share of all layers, on all ranks. */
bk_status bk_trainer_gather_loads(bk_trainer *trainer);
bk_status bk_trainer_gain_stages(bk_trainer *trainer);
/* The step again with a look at every tensor; what the caller does with gradients comes after. */
bk_status bk_trainer_search_stages(bk_trainer *trainer, bk_finding *finding);
/* The losses of windows [first, end) of the validation data, on the rank that has the head. */
bk_status bk_trainer_evaluate_stages(bk_trainer *trainer, int64_t first, int64_t end,
                                     bk_eval_result *result);

/* ---- evaluator.c ---- */
/* How many windows, in whole batches, are as many as max_tokens allows; all but the last of the
 * data have `row` tokens. */
int64_t bk_eval_windows(const bk_dataset *data, int64_t batch, int64_t row, int64_t max_tokens);
/* A batch of windows from `first` on; rows from window `end` on are filled with ignored targets.
 * Adds the targets that are kept to *tokens. */
bk_status bk_eval_batch(const bk_dataset *data, int64_t batch, int64_t row, int64_t first,
                        int64_t end, int32_t *ids, int32_t *targets, int64_t *tokens);
/* Sums the losses of windows [first, end) of a data set on any runner of the model: an evaluator's
 * own, or the one that trains, whose activations are free between two steps. ids and targets have
 * room for one batch. */
bk_status bk_eval_run(bk_model *model, bk_runner *runner, int64_t batch, int64_t row, int32_t *ids,
                      int32_t *targets, const bk_dataset *data, int64_t first, int64_t end,
                      bk_eval_result *result);

#endif
