/* Training, evaluation, gains and generation. Nothing here writes a file: checkpoints are saved and
 * metrics written by the caller. */
#ifndef BIRKHOFF_TRAIN_H
#define BIRKHOFF_TRAIN_H

#include <birkhoff/data.h>
#include <birkhoff/metrics.h>
#include <birkhoff/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The Amax gain magnitude says how much a mixing matrix H can amplify (mHC paper, section 3.1;
 * doc/numerics.md). With H[k][m] = comb[m][k] it is, for each token and in double,
 *   forward(H)  = max over k of |sum over m of H[k][m]|
 *   backward(H) = max over m of |sum over k of H[k][m]|
 * It is taken of the matrix of each sublayer, and of composites: at depth l forward of H_l ... H_1
 * and backward of H_L ... H_l. Members are means over tokens; those named _max are maxima. */
typedef struct bk_gain_row {
  double forward, forward_max, backward, backward_max,
      abs_forward /* of max over k of the sum over m of |H[k][m]| */;
} bk_gain_row;
typedef struct bk_gain {
  int n_sublayers, n;
  int64_t tokens;         /* how many were measured */
  bk_gain_row *sublayers; /* [n_sublayers]: of each sublayer's own matrix */
  bk_gain_row *composite; /* [n_sublayers]: forward of H_l ... H_1, backward of H_L ... H_l */
  double total_forward, total_backward; /* of H_L ... H_1 */
  double *mean_composite; /* [n][n] by destination and source: H_L ... H_1, mean over tokens */
} bk_gain;
/* Measures the gains of a whole model on data, in windows of seq_len tokens from the beginning,
 * as many as max_tokens allows. BK_ERR_ARGUMENT where max_tokens is below seq_len or seq_len above
 * max_position_embeddings, BK_ERR_DATA where the data has fewer than seq_len + 1 tokens. The
 * matrices of plain and ihc are the identity, so their gains are exactly 1. */
BK_API bk_status bk_gain_measure(bk_model *model, const bk_dataset *data, int64_t seq_len,
                                 int64_t max_tokens, bk_gain **gain);
BK_API void bk_gain_destroy(bk_gain *gain); /* NULL is allowed */

typedef struct bk_trainer bk_trainer;

/* Makes a trainer, and allocates everything that a step needs. BK_ERR_ARGUMENT unless the model is
 * trainable and has all of its sublayers; BK_ERR_DATA unless train has more than seq_len tokens.
 * The recipe must be valid (bk_train_config_validate). train and val stay the caller's and must
 * outlive the trainer; val may be NULL, and so may train where the model was only planned.
 * Where the model has a comm with several ranks, this call and bk_trainer_step are collective. The
 * ranks must have the same configuration, recipe and data, or all get BK_ERR_COMM. */
BK_API bk_status bk_trainer_create(bk_model *model, const bk_train_config *recipe,
                                   const bk_dataset *train, const bk_dataset *val,
                                   bk_trainer **trainer);
BK_API void bk_trainer_destroy(bk_trainer *trainer); /* NULL is allowed */
/* The bytes that the trainer takes in one class, activations, workspace or staging, beside the
 * model's own. */
BK_API size_t bk_trainer_bytes(const bk_trainer *trainer, bk_memory_class c);
/* For a resume: the next step will be last_step + 1, after `tokens` training tokens in all. They
 * decide where the data goes on and what the metrics count from. Both are 0 at creation. */
BK_API void bk_trainer_set_step(bk_trainer *trainer, int64_t last_step, int64_t tokens);
BK_API int64_t bk_trainer_step_done(const bk_trainer *trainer);
BK_API int64_t bk_trainer_tokens_done(const bk_trainer *trainer);

/* Does one optimiser step: forward and backward of the micro-batches, clipping, AdamW, and
 * balancing of the experts. Every gain_every steps it measures the gains, and every eval_every
 * steps the validation loss. The row's expert_load points into the trainer and is valid until the
 * next step. A gradient norm above spike_factor times its median over the last 32 steps is warned
 * about once in a run, and so is a composite gain above gain_limit.
 * BK_ERR_NOT_FINITE means that the loss or the gradient norm was not finite. Weights and step are
 * as they were before. The step was done again with a look at every tensor, and the message names
 * the first that is not finite; bk_trainer_refusal has the details.
 * Of several ranks each runs its share of the batch, and the row's loss, norm, loads, validation
 * and gains are those of the whole batch, the same on all. All refuse a step alike; rank 0 logs it,
 * and the message names the rank. After any other failure the comm is aborted. */
BK_API bk_status bk_trainer_step(bk_trainer *trainer, bk_metrics_row *row);
/* The same step with the times of its parts, in seconds, summed over its micro-batches. It waits
 * for the device after each part, where bk_trainer_step waits once, at the end. In a context
 * without a clock the times are not numbers. */
typedef struct bk_step_times {
  double forward;  /* with the reading of tokens, and with the gradients of the head */
  double backward; /* from the last sublayer to the embedding */
  double optimizer;
} bk_step_times;
BK_API bk_status bk_trainer_step_timed(bk_trainer *trainer, bk_metrics_row *row,
                                       bk_step_times *times);
/* How many steps at the beginning take longer than those after them: 1, or 2 where steps are
 * captured as graphs. */
BK_API int bk_trainer_warm_steps(const bk_trainer *trainer);

/* One call of a step: an op, the zeroing of a gradient, or, where there are two lanes, a signal or
 * a wait that orders them. The texts are valid as long as the trainer. doc/architecture.md, "A step
 * is data", explains the words. */
typedef struct bk_step_call {
  /* The program that the call is part of: "forward", "optimizer", "loss, first" and "backward,
   * first" for the first micro-batch, which overwrites gradients, and "loss, next" and "backward,
   * next" for those after it, which add. */
  const char *program;
  const char *lane;  /* "compute", "urgent" */
  const char *part;  /* of the model: "mix", "attention", "experts", ... */
  const char *pass;  /* "F" forward, "D" gradients of activations, "W" of parameters alone */
  const char *phase; /* what a profile counts it under */
  int sublayer;      /* -1: it belongs to none */
  const char *op;    /* or "(zero)", "(signal)", "(wait)" for what is not an op */
  /* the kernel that serves the op; for a wait, the lane that it waits for; else "" */
  const char *kernel;
} bk_step_call;
/* Receives one call of a step, which is valid until it returns. A return value other than BK_OK
 * ends the listing, and bk_trainer_program returns it. */
typedef bk_status (*bk_step_call_fn)(void *user, const bk_step_call *call);
/* Lists what a step does, in order, without doing it. Of the micro-batches it lists the first and,
 * where there are more, the second, since the others are like that. The model may be one that was
 * only planned. */
BK_API bk_status bk_trainer_program(const bk_trainer *trainer, bk_step_call_fn each, void *user);

/* Why a step was refused with BK_ERR_NOT_FINITE. */
typedef struct bk_refusal {
  bk_metrics_row row; /* of the step, without loads, validation and gain */
  /* What is not finite is a weight or an activation. The same weights on the same data give it
   * again, whatever the recipe. */
  bool in_forward;
  bool again;      /* it was not finite either when the step was done again */
  char first[192]; /* the first tensor that is not finite, in words */
} bk_refusal;
/* The refusal of the last step, or NULL if that was not refused; valid until the next step. */
BK_API const bk_refusal *bk_trainer_refusal(const bk_trainer *trainer);
/* The gains of the last step's last micro-batch, or NULL if that step did not measure them; valid
 * until the next step. */
BK_API const bk_gain *bk_trainer_gain(const bk_trainer *trainer);

typedef struct bk_eval_result {
  double loss_sum; /* in nats, over all predicted tokens */
  int64_t tokens;  /* how many were predicted */
} bk_eval_result;
/* An evaluator predicts the tokens of a dataset, window by window (bk_dataset_eval_window), and
 * sums the losses. It runs `batch` windows of seq_len tokens at a time. The model must outlive
 * it. */
typedef struct bk_evaluator bk_evaluator;
BK_API bk_status bk_evaluator_create(bk_model *model, int64_t batch, int64_t seq_len,
                                     bk_evaluator **evaluator);
BK_API void bk_evaluator_destroy(bk_evaluator *evaluator); /* NULL is allowed */
/* max_tokens 0 means all of the data; otherwise it runs the first windows, up to about so many
 * tokens. */
BK_API bk_status bk_evaluator_run(bk_evaluator *evaluator, const bk_dataset *data,
                                  int64_t max_tokens, bk_eval_result *result);
BK_API size_t bk_evaluator_bytes(const bk_evaluator *evaluator, bk_memory_class c);

/* ---- generation of one sequence, with a cache of keys and values ---- */
typedef struct bk_generator bk_generator;
/* Makes room for max_tokens of prompt and continuation together. The model must outlive it. */
BK_API bk_status bk_generator_create(bk_model *model, int64_t max_tokens, bk_generator **generator);
BK_API void bk_generator_destroy(bk_generator *generator); /* NULL is allowed */
/* Appends tokens to the sequence; the logits are then those of the last one. BK_ERR_ARGUMENT where
 * that would make more than max_tokens. */
BK_API bk_status bk_generator_feed(bk_generator *generator, const int32_t *ids, int64_t count);
/* Chooses the next token, without appending it. Temperature 0 takes the most likely one, of several
 * the one of lowest index. Otherwise one is drawn from softmax(logits / temperature), cut to the
 * smallest set of most likely tokens whose mass reaches top_p. The draw is a pure function of the
 * seed and the position. BK_ERR_ARGUMENT before the first token was fed, BK_ERR_NOT_FINITE if a
 * logit is not finite. */
BK_API bk_status bk_generator_sample(bk_generator *generator, double temperature, double top_p,
                                     uint64_t seed, int32_t *token);
/* How many tokens the sequence has. */
BK_API int64_t bk_generator_length(const bk_generator *generator);
/* The bytes that the generator takes in one class, beside the model's own. */
BK_API size_t bk_generator_bytes(const bk_generator *generator, bk_memory_class c);

#ifdef __cplusplus
}
#endif
#endif
