/* Judging what a device makes of one op by the exact result, which `ref` computes in fp64 from the
 * same inputs and which is not rounded: the harness (tests/ops) and bk_bisect share the bounds and
 * the comparison. */
#ifndef BK_JUDGE_H
#define BK_JUDGE_H

#include "ops/ops.h"

/* ---- bounds.c ---- */
/* Bound on the normalised mean squared error of an output; 0: it must be exact. args: as the device
 * has them. `device` matters because a composed op rounds more often than a fused kernel, and
 * because it may have been opened with TF32 products. */
double bk_op_bound(const bk_device *device, bk_op op, const bk_op_field *field, const void *args);
/* The size of the roundings that the op may make on its way, relative to what is rounded: of bf16
 * where the device stores in it and goes on from what it stored, else of fp32. */
double bk_op_rounding(const bk_device *device, bk_op op, const void *args);

/* ---- judge.c ---- */
/* To the nearest number of the dtype, once. */
double bk_round_to(bk_dtype dtype, double x);

/* What bk_judge found, over the whole output; errors are in the units of its elements. */
typedef struct bk_judgement {
  bool within;
  /* the element that decided: where not, one that must be exact or is not a finite number on both
   * sides, else the one with the largest error */
  int64_t element;
  bool special; /* the former */
  double nmse, bound;
  double error, most; /* the largest error, and the largest that is allowed */
  double largest;     /* of the exact results */
} bk_judgement;
/* got: what the device stored in `dtype`. The bound is raised to what storing the exact results
 * takes, and to 16 times the sensitivity: how far the output moves, as an nmse, when all inputs
 * move by about one rounding; a sum that nearly cancels cannot be had more exactly. Where all exact
 * results are zero, there is nothing to divide by: error and sensitivity are then plain sums of
 * squares, and without a sensitivity all must be zero. Integers are exact. */
void bk_judge(bk_dtype dtype, const double *got, const double *want, int64_t count, double bound,
              double sensitivity, bk_judgement *j);
/* For measuring that: x moved at random by about `rounding` of itself, and the nmse between two
 * results, or the sum of squares where those wanted are all zero. `stream` and `index` number the
 * input and its element, so that the same call moves the same way. */
double bk_judge_move(double x, double rounding, uint64_t stream, uint64_t index);
double bk_judge_distance(const double *moved, const double *want, int64_t count);
#define BK_JUDGE_TRIES 4 /* of which the largest counts */

#endif
