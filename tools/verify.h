/* One device's part in `birkhoff verify`: a training step whose results are kept in host memory,
 * and the comparison of two of them. */
#ifndef BK_VERIFY_H
#define BK_VERIFY_H

#include "models/runner.h"

/* Everything about the step that both devices share. Adam's eps is 1e-8: with the paper's 1e-20,
 * rounding noise in a gradient that is zero in theory becomes a full step. */
#define VERIFY_LR 1e-3
#define VERIFY_MAX_NORM 1.0
#define VERIFY_ADAM_EPS 1e-8
#define VERIFY_BETA1 0.9
#define VERIFY_BETA2 0.95
#define VERIFY_WEIGHT_DECAY 0.1
#define VERIFY_BALANCE_RATE 1e-3

typedef struct verify_batch {
  int64_t batch, seq_len, kept; /* kept: targets that count */
  int32_t *ids, *targets;       /* [B,T] */
} verify_batch;

typedef struct verify_side {
  bk_model *model; /* owned */
  bk_runner *runner;
  bk_optimizer *optimizer;
  double loss, *logits; /* mean over kept targets; [N,V] */
  /* [n_params]: gradient; weights (masters, where there are) before and after the step */
  double **grad, **before, **after;
  double *scores; /* [n_moe][N][E] */
  int32_t *index; /* [n_moe][N][k] */
} verify_side;

/* Takes the model over, also on failure. The sides are to be zeroed first; verify_side_free
 * works on any state. */
bk_status verify_side_init(verify_side *side, bk_model *model, const verify_batch *batch);
void verify_side_free(verify_side *side);
/* logits, scores, index; again for another batch */
bk_status verify_side_forward(verify_side *side, const verify_batch *batch);
bk_status verify_side_backward(verify_side *side); /* grad */
/* after, loss. grad NULL: from its own gradients; else from these, so that two optimisers can be
 * compared on the same input. */
bk_status verify_side_step(verify_side *side, const verify_batch *batch, double *const *grad);

/* Expert choices. A choice that differs is a flip; it is allowed where the scores that decided
 * (of experts, or of groups) differ by less than `tolerance`. Flips at or after an earlier
 * layer's flip in the same sequence are its consequence and not judged. clean [B]: positions of
 * each sequence before its first flip. */
typedef struct verify_flips {
  int64_t choices, flips, forbidden;
  double worst_margin;
} verify_flips;
bk_status verify_compare_choices(const verify_side *a, const verify_side *ref,
                                 const verify_batch *batch, double tolerance, int64_t *clean,
                                 verify_flips *flips);

#endif
