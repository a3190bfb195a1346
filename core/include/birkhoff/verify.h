/* Verification: one training step on two models with the same weights, as a rule on two devices.
 * The results are compared tensor by tensor (bk_verify) or call by call (bk_bisect).
 *
 * The second model is the reference: its device is the one to trust. Both must be trainable and
 * have all of their sublayers, the same configuration and the same dtype. That they hold the same
 * weights, masters and moments is the caller's business and is not looked at. They stay the
 * caller's. Afterwards their weights, gradients and moments are those of some step of training or,
 * after an error, anything.
 *
 * nmse is the normalised mean squared error of a result a against the reference's b,
 * sum (a - b)^2 / sum b^2. birkhoff-verify(1) states the bounds and what else is compared;
 * doc/numerics.md, "Comparing", says why it is compared so. */
#ifndef BIRKHOFF_VERIFY_H
#define BIRKHOFF_VERIFY_H

#include <birkhoff/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_verify_options {
  int64_t batch;   /* sequences; at least 1 */
  int64_t seq_len; /* tokens of each, at least 2; 0: 48, or fewer where the model takes fewer */
  int64_t seed;    /* of the tokens; at least 0 */
  double bounds;   /* multiplies all bounds but that of the choices; at least 0 */
} bk_verify_options;
/* Sets batch 2, seq_len 0, seed 1 and bounds 1. */
BK_API void bk_verify_options_default(bk_verify_options *options);

/* What both functions compared. The names are those of the backends and outlive the models. */
typedef struct bk_verify_setting {
  const char *device, *reference;
  bk_dtype dtype;         /* of the reference */
  int64_t batch, seq_len; /* that were used */
} bk_verify_setting;

/* ---- tensor by tensor ---- */

typedef struct bk_verify_row {
  /* "choices" (of experts), "logits", "loss", "grad.NAME", or "step.NAME", which is the change of a
   * weight; valid during the call */
  const char *tensor;
  /* For "choices" these are the share that differs, and the widest margin of one that does. */
  double nmse, max_abs;
  double bound;
  double judged; /* the share of the elements that was compared */
  bool pass;     /* nmse is at most bound; for "choices", none differs that may not */
} bk_verify_row;
/* Receives one row. A return value other than BK_OK ends the comparison, and bk_verify returns
 * it. */
typedef bk_status (*bk_verify_row_fn)(void *user, const bk_verify_row *row);

typedef struct bk_verify_result {
  bk_verify_setting setting;
  int64_t rows, failed; /* how many results were compared, and how many of them do not pass */
  /* How many experts were chosen, how many choices differ, and how many differ by more than
   * rounding explains. One of the last ends the comparison after the logits. */
  int64_t choices, flips, forbidden;
  double worst_margin; /* the widest margin, between the scores that decided, of one that differs */
} bk_verify_result;

/* options may be NULL for the defaults. `each` is called for every result, and may be NULL. Returns
 * BK_OK whether all results pass or not: `failed` says how many do not. BK_ERR_ARGUMENT for options
 * out of range or models that are not alike, BK_ERR_NOT_FINITE for a loss or gradients that are not
 * finite, BK_ERR_BOUNDS where expert choices differ so early in every batch that nothing is left to
 * compare. */
BK_API bk_status bk_verify(bk_model *model, bk_model *reference, const bk_verify_options *options,
                           bk_verify_row_fn each, void *user, bk_verify_result *result);

/* ---- call by call: the way to the first wrong number ---- */

/* Both models do the same step call by call; a call is one launch of an op. They do forward and
 * backward twice, so that the second micro-batch's gradients add to the first one's, and then the
 * optimiser. Before a call the device has the same bits as the reference. Its outputs are compared
 * with the exact result, which `ref` computes in fp64 from the same inputs, by the bounds of the op
 * harness (doc/testing.md). Then the device is given the reference's outputs, so that no error
 * travels on. The comparison ends at the first call that differs, and so that call is wrong by
 * itself. Choices of experts whose scores are within 1e-6 may differ. */
typedef struct bk_bisect_options {
  bk_verify_options verify;
  const char *case_file; /* where to write the call that differs; NULL: nowhere */
} bk_bisect_options;

typedef enum bk_bisect_cause {
  BK_BISECT_NONE,  /* no call differs */
  BK_BISECT_VALUE, /* an output of the call is past its bound */
  BK_BISECT_WROTE, /* the call has written into an input */
  /* An input is no longer what the call that made it left there. Another call, a copy or the
   * zeroing of a tensor has written where it must not, or has not done what it should. */
  BK_BISECT_CHANGED
} bk_bisect_cause;

typedef struct bk_bisect_result {
  bk_verify_setting setting;
  int64_t calls; /* how many were compared, with the one that differs */
  bk_bisect_cause cause;
  /* The rest describes the call that differs, and is zero if there is none. */
  int micro_batch;    /* 1 or 2; 0: the optimiser */
  char stage[64];     /* "layers.1 feed-forward, experts, W"; the passes are as in bk_step_call */
  char op[32];        /* "grouped_wgrad" */
  char kernel[32];    /* its name in the device's kernel table, or "composed" or "fallback" */
  char operand[16];   /* "c" */
  int ndim;           /* of the operand */
  int64_t element[4]; /* the worst one, or the first that has to be exact and is not */
  double got, expected;
  /* The error of the operand. nmse is infinite where an element that has to be exact is not, or
   * where one is finite on one side alone. A bound of 0 means that all have to be exact. */
  double nmse, max_abs, bound;
  bool wrote_case;
} bk_bisect_result;

/* options may be NULL for the defaults and no file. Returns BK_OK whether a call differs or not.
 * BK_ERR_ARGUMENT as for bk_verify, and for models in several chunks, or whose steps are not made
 * of the same calls. The file is a safetensors file with the call's op, parameters, inputs and the
 * reference's outputs, and tests/ops/test_ops --case FILE runs it again; doc/testing.md has the
 * format. With BK_BISECT_CHANGED there is nothing to run again, and no file is written. */
BK_API bk_status bk_bisect(bk_model *model, bk_model *reference, const bk_bisect_options *options,
                           bk_bisect_result *result);

#ifdef __cplusplus
}
#endif
#endif
