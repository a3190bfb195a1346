/* What bisect.c and bisect_case.c share: one call with its operands' values. */
#ifndef BK_BISECT_H
#define BK_BISECT_H

#include "models/program.h"
#include "ops/ops.h"

/* One operand of the call that is compared. The four arrays have `count` doubles each, row-major,
 * and belong to the comparison. */
typedef struct bk_bisect_operand {
  const bk_op_field *field;
  const bk_tensor *here,
      *there;      /* in the arguments of the two calls: the device's, the reference's */
  bk_tensor exact; /* fp64 or i32, dense, on ref */
  int same;        /* the first operand in the same memory; its own number: it is that */
  int64_t count;
  double *before;     /* the reference's values */
  double *got;        /* what the device has: before its call, then of outputs after it */
  double *after;      /* outputs: the reference's values */
  double *want;       /* outputs: the exact ones */
  double sensitivity; /* judge.h; 0 until measured */
} bk_bisect_operand;

/* Writes the case of a call to `path`: doc/testing.md has the format. args: the device's. The file
 * is removed again after a failure. */
bk_status bk_case_write(bk_context *ctx, const char *path, const char *stage, bk_op op,
                        const void *args, const bk_bisect_operand *operands, int count);

#endif
