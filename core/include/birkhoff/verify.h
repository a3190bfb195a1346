/* Verification: one training step on two models with the same weights, as a rule on two devices,
 * compared tensor by tensor (bk_verify) or call by call (bk_bisect). The second model is the
 * reference: its device is the one to trust. Both are of the same configuration, trainable, whole
 * and in the same dtype, and hold the same weights. They stay the caller's; afterwards their
 * weights and moments are those of some step of training, or, after an error, anything.
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

#ifdef __cplusplus
}
#endif
#endif
