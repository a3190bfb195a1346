/* What verify.c and bisect.c share: one model's part in a comparison, a training step whose results
 * are kept in host memory; the batch; choices of experts. */
#ifndef BK_VERIFY_PRIV_H
#define BK_VERIFY_PRIV_H

#include <birkhoff/verify.h>

#include "models/runner.h"

/* Everything about the step that both models share. Adam's eps is 1e-8: with the paper's 1e-20,
 * rounding noise in a gradient that is zero in theory becomes a full step. */
#define VERIFY_LR 1e-3
#define VERIFY_MAX_NORM 1.0
#define VERIFY_ADAM_EPS 1e-8
#define VERIFY_BETA1 0.9
#define VERIFY_BETA2 0.95
#define VERIFY_WEIGHT_DECAY 0.1
#define VERIFY_BALANCE_RATE 1e-3

typedef struct bk_verify_batch {
  int64_t batch, seq_len, kept; /* kept: targets that count */
  int32_t *ids, *targets;       /* [B,T] */
} bk_verify_batch;

/* Checks the options and that the two models are alike; fills in the setting and makes room for the
 * batch it tells of. The batch is to be zeroed first; batch_free works on any. */
bk_status bk_verify_begin(bk_model *model, bk_model *reference, const bk_verify_options *options,
                          bk_verify_setting *setting, bk_verify_batch *batch);
/* Tokens by seed and number of the attempt; every token but the last of a sequence has a target. */
void bk_verify_batch_fill(bk_verify_batch *batch, uint64_t seed, uint64_t attempt, int64_t vocab);
void bk_verify_batch_free(bk_context *ctx, bk_verify_batch *batch);
/* The step block and zeroed loads; each of `micros` passes adds to loss and gradients. */
bk_status bk_verify_step_begin(bk_model *model, const bk_verify_batch *batch, int micros);

typedef struct bk_verify_side {
  bk_model *model;
  bk_runner *runner;
  bk_optimizer *optimizer;
  double loss, *logits; /* mean over kept targets; [N,V] */
  /* [n_params]: gradient; weights (masters, where there are) before and after the step */
  double **grad, **before, **after;
  double *scores; /* [n_moe][N][E] */
  int32_t *index; /* [n_moe][N][k] */
} bk_verify_side;

/* Runner and optimiser. The sides are to be zeroed first; side_fini works on any state. */
bk_status bk_verify_side_init(bk_verify_side *side, bk_model *model, const bk_verify_batch *batch);
/* Room for what the functions below leave, and the weights as they are before the step. */
bk_status bk_verify_side_keep(bk_verify_side *side, const bk_verify_batch *batch);
void bk_verify_side_fini(bk_verify_side *side);
/* logits, scores, index; again for another batch */
bk_status bk_verify_side_forward(bk_verify_side *side, const bk_verify_batch *batch);
bk_status bk_verify_side_backward(bk_verify_side *side); /* grad */
/* after, loss. grad NULL: from its own gradients; else from these, so that two optimisers can be
 * compared on the same input. */
bk_status bk_verify_side_step(bk_verify_side *side, const bk_verify_batch *batch,
                              double *const *grad);

/* One token's view of a router: its scores, and the bias that choices see beside them. */
typedef struct bk_router_view {
  int64_t n_experts, k, n_group, topk_group;
  const double *scores, *bias; /* [E] */
} bk_router_view;
/* How far apart, in the reference's scores, what was taken and what was left are; -1: the same
 * experts; infinite: what was chosen is no expert, or one of them twice. */
double bk_router_margin(const bk_router_view *a, const bk_router_view *ref, const int32_t *chosen,
                        const int32_t *wanted);

/* Expert choices. A choice that differs is a flip; it is allowed where the scores that decided (of
 * experts, or of groups) differ by less than `tolerance`. Flips at or after an earlier layer's flip
 * in the same sequence are its consequence and not judged. clean [B]: positions of each sequence
 * before its first flip. choices counts
 * tokens times layers with experts, flips those of them whose experts differ, forbidden those past
 * the tolerance. */
typedef struct bk_verify_flips {
  int64_t choices, flips, forbidden;
  double worst_margin;
} bk_verify_flips;
bk_status bk_verify_choices(const bk_verify_side *a, const bk_verify_side *ref,
                            const bk_verify_batch *batch, double tolerance, int64_t *clean,
                            bk_verify_flips *flips);

#endif
