/* Verification: one training step on two models with the same weights, as a rule on two devices,
 * compared tensor by tensor (bk_verify) or call by call (bk_bisect). The second model is the
 * reference: its device is the one to trust. Both are of the same configuration, trainable, whole
 * and in the same dtype; that they hold the same weights, masters and moments is the caller's
 * business, and is not looked at. They stay the caller's; afterwards weights, gradients and moments
 * are those of some step of training, or, after an error, anything.
 *
 * nmse, of a result a and the reference's b: sum (a - b)^2 / sum b^2. The bounds and what else is
 * compared: birkhoff-verify(1); the comparison itself is doc/numerics.md, "Comparing". */
#ifndef BIRKHOFF_VERIFY_H
#define BIRKHOFF_VERIFY_H

#include <birkhoff/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_verify_options {
  int64_t batch;   /* sequences, at least 1 */
  int64_t seq_len; /* tokens of each, at least 2; 0: 48, or fewer where the model takes fewer */
  int64_t seed;    /* of the tokens, at least 0 */
  double bounds;   /* all bounds but that of the choices are multiplied by it, at least 0 */
} bk_verify_options;
/* 2 sequences, seq_len 0, seed 1, bounds 1. */
BK_API void bk_verify_options_default(bk_verify_options *options);

/* What was compared; of both functions. Names are those of backends, which outlive the models. */
typedef struct bk_verify_setting {
  const char *device, *reference;
  bk_dtype dtype;         /* the reference's */
  int64_t batch, seq_len; /* as they were */
} bk_verify_setting;

/* ---- tensor by tensor ---- */

typedef struct bk_verify_row {
  /* "choices" (of experts), "logits", "loss", "grad.NAME", and "step.NAME", the change of a
   * weight; lives as long as the call */
  const char *tensor;
  /* of "choices": the share that differs, and the widest margin of one that does */
  double nmse, max_abs;
  double bound;
  double judged; /* share of the elements that was compared */
  bool pass;     /* nmse is at most bound; of "choices": none differs that may not */
} bk_verify_row;
/* Anything but BK_OK ends the comparison and is returned. */
typedef bk_status (*bk_verify_row_fn)(void *user, const bk_verify_row *row);

typedef struct bk_verify_result {
  bk_verify_setting setting;
  int64_t rows, failed; /* results that were compared; those that do not pass */
  /* of experts; that differ; that differ by more than rounding explains, which ends the
   * comparison after the logits */
  int64_t choices, flips, forbidden;
  double worst_margin; /* of the scores that decided, over all flips */
} bk_verify_result;

/* options NULL: the defaults. each is called for every result; NULL: nobody looks at them. BK_OK,
 * whether all pass or not. BK_ERR_ARGUMENT: options out of range, or models that are not alike;
 * BK_ERR_NOT_FINITE: loss or gradients; BK_ERR_BOUNDS: expert choices differ so early in every
 * batch that nothing is left to compare. */
BK_API bk_status bk_verify(bk_model *model, bk_model *reference, const bk_verify_options *options,
                           bk_verify_row_fn each, void *user, bk_verify_result *result);

/* ---- call by call: the way to the first wrong number ---- */

/* Both models do the same step call by call (every launch of an op): forward and backward twice, so
 * that the second micro-batch's gradients add to the first one's, then the optimiser. Before a call
 * the device has what the reference has, bit by bit; its outputs are judged by the exact result,
 * which `ref` computes in fp64 from the same inputs, as the op harness (doc/testing.md) judges
 * them; then it is given the reference's outputs, so that no error travels on. The first call that
 * differs ends it: no earlier rounding can have made it differ. Choices of experts whose scores are
 * within 1e-6 may differ. */
typedef struct bk_bisect_options {
  bk_verify_options verify;
  const char *case_file; /* where the call that differs is written; NULL: nowhere */
} bk_bisect_options;

typedef enum bk_bisect_cause {
  BK_BISECT_NONE,  /* no call differs */
  BK_BISECT_VALUE, /* an output of the call is past its bound */
  BK_BISECT_WROTE, /* the call has written into an input */
  /* an input is no longer what the call that made it has left there: another call, a copy or the
   * zeroing of a tensor has written where it must not, or has not done what it should */
  BK_BISECT_CHANGED
} bk_bisect_cause;

typedef struct bk_bisect_result {
  bk_verify_setting setting;
  int64_t calls; /* compared, that which differs included */
  bk_bisect_cause cause;
  /* of the call that differs, else zero */
  int micro_batch;    /* 1 or 2; 0: the optimiser */
  char stage[64];     /* "layers.1 feed-forward, experts, W"; F forward, D and W backward */
  char op[32];        /* "grouped_wgrad" */
  char kernel[32];    /* its name in the device's kernel table; "composed", "fallback" */
  char operand[16];   /* "c" */
  int ndim;           /* of the operand */
  int64_t element[4]; /* the worst one, or the first that must be exact and is not */
  double got, expected;
  /* of the operand's elements; nmse is infinite where an element must be exact, or is not finite on
   * one side alone; bound 0: all must be exact */
  double nmse, max_abs, bound;
  bool wrote_case;
} bk_bisect_result;

/* options NULL: the defaults, and no file. BK_OK, whether a call differs or not. BK_ERR_ARGUMENT:
 * as bk_verify, and models in several chunks, or whose steps are not made of the same calls. The
 * file is a safetensors file with the call's op, parameters, inputs and the reference's outputs;
 * tests/ops/test_ops --case FILE runs it again (doc/testing.md has the format). With
 * BK_BISECT_CHANGED there is nothing to run again and none is written. */
BK_API bk_status bk_bisect(bk_model *model, bk_model *reference, const bk_bisect_options *options,
                           bk_bisect_result *result);

#ifdef __cplusplus
}
#endif
#endif
