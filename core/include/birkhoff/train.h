/* Training, evaluation, gains and generation. Files other than data (checkpoints, metrics) are
 * the caller's business. */
#ifndef BIRKHOFF_TRAIN_H
#define BIRKHOFF_TRAIN_H

#include <birkhoff/data.h>
#include <birkhoff/metrics.h>
#include <birkhoff/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Amax gain magnitude of residual maps (mHC paper section 3.1; doc/numerics.md), per token
 * in double: forward(H) = max_k |sum_m H[k][m]|, backward(H) = max_m |sum_k H[k][m]|, H[k][m] =
 * comb[m][k]. Single sublayer, and composites forward at depth l: H_l ... H_1; backward at depth
 * l: H_L ... H_l. Mean and maximum over tokens. */
typedef struct bk_gain_row {
  double forward, forward_max, backward, backward_max,
      abs_forward /* max_k sum_m |H[k][m]|, mean over tokens */;
} bk_gain_row;
typedef struct bk_gain {
  int n_sublayers, n;
  int64_t tokens;         /* added so far */
  bk_gain_row *sublayers; /* [n_sublayers] single maps */
  bk_gain_row *composite; /* [n_sublayers]: forward of H_l ... H_1, backward of H_L ... H_l */
  double total_forward, total_backward; /* of H_L ... H_1: means over tokens */
  double *mean_composite; /* [n][n] destination, source: H_L ... H_1 averaged over tokens */
} bk_gain;
/* The gains of a whole model on data: whole windows of seq_len tokens from the beginning,
 * max_tokens of them at most, and at least one. BK_ERR_DATA where the data has no whole window.
 * plain and ihc count as identity maps: exactly 1. A seq_len above max_position_embeddings is
 * refused. */
BK_API bk_status bk_gain_measure(bk_model *model, const bk_dataset *data, int64_t seq_len,
                                 int64_t max_tokens, bk_gain **gain);
BK_API void bk_gain_destroy(bk_gain *gain); /* NULL is allowed */

typedef struct bk_trainer bk_trainer;

/* model must be trainable and whole, recipe validated, train longer than seq_len (else
 * BK_ERR_ARGUMENT or BK_ERR_DATA; NULL is allowed where the model was only planned). train and
 * val stay the caller's; val may be NULL. Everything that a step needs is allocated here. */
BK_API bk_status bk_trainer_create(bk_model *model, const bk_train_config *recipe,
                                   const bk_dataset *train, const bk_dataset *val,
                                   bk_trainer **trainer);
BK_API void bk_trainer_destroy(bk_trainer *trainer); /* NULL is allowed */
/* Bytes of activations, workspace, staging, ... beside the model's own. */
BK_API size_t bk_trainer_bytes(const bk_trainer *trainer, bk_memory_class c);
/* The step that comes next is last_step + 1, after `tokens` training tokens in all, which say
 * where the data goes on and what the metrics count from; both 0 at creation; set them when
 * resuming. */
BK_API void bk_trainer_set_step(bk_trainer *trainer, int64_t last_step, int64_t tokens);
BK_API int64_t bk_trainer_step_done(const bk_trainer *trainer);
BK_API int64_t bk_trainer_tokens_done(const bk_trainer *trainer);

/* One optimiser step: micro-batches forward and backward, clip, AdamW, balancing; every
 * gain_every steps the gains; every eval_every steps the validation loss. The row's expert_load
 * points into the trainer until the next step. Warns once in a run of a gradient norm above
 * spike_factor x its median over the last 32 steps, once of a composite gain above gain_limit.
 * BK_ERR_NOT_FINITE: loss or gradient norm not finite; weights and step are as before. The step
 * was then done again with a look at every tensor, and the message names the first that is not
 * finite; bk_trainer_refusal has the details. */
BK_API bk_status bk_trainer_step(bk_trainer *trainer, bk_metrics_row *row);
/* The same step with the times of its parts, in seconds, summed over its micro-batches; the
 * device is waited for after each part, which a plain step does once, at its end. *times is
 * written on success; in a context without a clock they are not numbers. */
typedef struct bk_step_times {
  double forward;  /* the head's gradients are part of it, and reading the tokens */
  double backward; /* down to the embedding */
  double optimizer;
} bk_step_times;
BK_API bk_status bk_trainer_step_timed(bk_trainer *trainer, bk_metrics_row *row,
                                       bk_step_times *times);
/* The first steps that take longer than those after them: 1, where steps are captured as graphs
 * 2. */
BK_API int bk_trainer_warm_steps(const bk_trainer *trainer);

/* One call of a step: an op, the zeroing of a gradient or, where there are two lanes, what orders
 * them. The texts live as long as the trainer. */
typedef struct bk_step_call {
  /* what it is part of: "forward"; "loss, first" and "backward, first" of the first micro-batch,
   * which overwrites gradients, "loss, next" and "backward, next" of those after it, which add;
   * "optimizer" */
  const char *program;
  const char *lane;  /* "compute", "urgent" */
  const char *part;  /* of the model: "mix", "attention", "experts", ... */
  const char *pass;  /* "F" forward, "D" gradients of activations, "W" of parameters alone */
  const char *phase; /* as profiles count it */
  int sublayer;      /* -1: none */
  const char *op;    /* "(zero)", "(signal)" and "(wait)" are none */
  /* that serves the op; of a wait the lane that it waits for; else "" */
  const char *kernel;
} bk_step_call;
/* Takes one call, which is valid while it runs; anything but BK_OK ends the listing and is what
 * bk_trainer_program returns. */
typedef bk_status (*bk_step_call_fn)(void *user, const bk_step_call *call);
/* What a step does, in order, without doing it: of its micro-batches the first and, where there
 * are more, the second. The model may be one that was only planned. */
BK_API bk_status bk_trainer_program(const bk_trainer *trainer, bk_step_call_fn each, void *user);

/* Of the last step if it was refused (BK_ERR_NOT_FINITE), else NULL; valid until the next step. */
typedef struct bk_refusal {
  bk_metrics_row row; /* of the step; without loads, validation and gain */
  /* what is not finite is a weight or an activation: the same state gives the same again,
   * whatever the recipe */
  bool in_forward;
  bool again;      /* it came again when the step was done again */
  char first[192]; /* the first tensor that is not finite, in words */
} bk_refusal;
BK_API const bk_refusal *bk_trainer_refusal(const bk_trainer *trainer);
/* Gains of the last step's last micro-batch, if that step computed them; else NULL. */
BK_API const bk_gain *bk_trainer_gain(const bk_trainer *trainer);

typedef struct bk_eval_result {
  double loss_sum; /* nats over all predicted tokens */
  int64_t tokens;  /* predicted */
} bk_eval_result;
/* Mean loss of dataset windows on a model; max_tokens 0 = all (else the first windows up to
 * about that many). */
typedef struct bk_evaluator bk_evaluator;
BK_API bk_status bk_evaluator_create(bk_model *model, int64_t batch, int64_t seq_len,
                                     bk_evaluator **evaluator);
BK_API void bk_evaluator_destroy(bk_evaluator *evaluator);
BK_API bk_status bk_evaluator_run(bk_evaluator *evaluator, const bk_dataset *data,
                                  int64_t max_tokens, bk_eval_result *result);
BK_API size_t bk_evaluator_bytes(const bk_evaluator *evaluator, bk_memory_class c);

/* ---- generation with a KV cache: one sequence ---- */
typedef struct bk_generator bk_generator;
/* Room for max_tokens of prompt and continuation together. */
BK_API bk_status bk_generator_create(bk_model *model, int64_t max_tokens, bk_generator **generator);
BK_API void bk_generator_destroy(bk_generator *generator); /* NULL is allowed */
/* Appends tokens to the sequence; afterwards the logits are those of the last one.
 * BK_ERR_ARGUMENT past max_tokens. */
BK_API bk_status bk_generator_feed(bk_generator *generator, const int32_t *ids, int64_t count);
/* Next token: temperature 0 is the arg max (ties: lowest index); else softmax(logits /
 * temperature) cut to the smallest set of most likely tokens whose mass reaches top_p; the draw
 * is a pure function of (seed, position). BK_ERR_ARGUMENT before the first token was fed,
 * BK_ERR_NOT_FINITE if any logit is not finite. */
BK_API bk_status bk_generator_sample(bk_generator *generator, double temperature, double top_p,
                                     uint64_t seed, int32_t *token);
BK_API int64_t bk_generator_length(const bk_generator *generator);
/* the model's own excluded */
BK_API size_t bk_generator_bytes(const bk_generator *generator, bk_memory_class c);

#ifdef __cplusplus
}
#endif
#endif
