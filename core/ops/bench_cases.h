/* The cases that bench.c times: arguments for every op at working sizes. Internal header. */
#ifndef BK_BENCH_CASES_H
#define BK_BENCH_CASES_H

#include "ops/ops.h"

/* E, and k choices of each token */
#define BK_BENCH_EXPERTS 16
#define BK_BENCH_CHOICES 2

/* The letters of the ops' shapes: N tokens of width C, n streams, V entries of the vocabulary; and
 * what follows from them: B sequences of T tokens, H heads of 64. st and ct are the dtypes. */
typedef struct bk_bench_sizes {
  bk_dtype st, ct;
  int64_t N, C, n, V, B, T, H;
} bk_bench_sizes;

/* Room and alignment for the arguments of any op: a member of each. */
#define OP(ID, name, ...) bk_##name##_args ID;
typedef union bk_any_args {
#include "runtime/ops.def"
} bk_any_args;

/* The name of case i of an op, from 0: the first is the op's own; NULL past the last. */
const char *bk_bench_case_name(bk_op op, int i);
/* Fills in shapes and parameters; the operands have no place yet. What the table of cases lacks:
 * BK_ERR_NOT_FOUND. */
bk_status bk_bench_case_make(bk_context *ctx, const bk_bench_sizes *sizes, bk_op op,
                             const char *name, bk_any_args *args);
/* Whether the case has the field lie where another one does, whose name goes to `place`. */
#define BK_BENCH_WORD 32
bool bk_bench_case_place(const char *name, const char *field, char place[BK_BENCH_WORD]);

#endif
