/* The operator harness: runs every op of runtime/ops.def on a device and compares it with the
 * unrounded double result of `ref`.
 *
 * A case is an op, its args filled with tensors that have dtype, shape and strides but no
 * memory, and fills that say what goes into the operands. From the op's descriptor the harness
 *   - makes the values (rounded to the storage dtype first) and runs `ref` on them with every
 *     float operand in fp64;
 *   - lays the operands out in one buffer, with guard bytes between them, outputs poisoned with
 *     NaN, and runs the
 * device;
 *   - compares: no byte outside of the outputs' elements may have changed (guards, row gaps,
 *     inputs); not-a-number and
 *     infinities must agree; the normalised mean squared error of each output stays within the
 *     bound for op and dtype, and no element is off by more than 8 sqrt(bound) times the
 *     largest. Where storing the exact result would already
 * take more (a few elements in bf16), that is the bound; and where an output that went past it
 * turns out to move by more when its inputs move by four roundings (a sum that nearly cancels),
 * that is. Exact ops (copies, gathers, masks, index work) must have the very value. Integer
 * outputs always are exact. A case's values depend on the seed and the case's name alone, so the
 * name is the filter that re-runs a failure. */
#ifndef BK_TEST_HARNESS_H
#define BK_TEST_HARNESS_H

#include "ops/judge.h"

/* Distance of the guards, and the gap behind each row of a strided case, in elements (odd: it
 * breaks alignment). */
#define HARNESS_GUARD 256
#define HARNESS_PAD 3

typedef enum fill_kind {
  FILL_NORMAL,  /* mean a, standard deviation b */
  FILL_UNIFORM, /* in (a, b) */
  FILL_CONST,   /* a */
  FILL_POISON,  /* not a number: for an INOUT that must not be read */
  /* normal with some infinities, NaN, zeros of both signs, the largest and the smallest numbers */
  FILL_SPECIAL,
  FILL_TIES,        /* numbers half-way between two bf16 numbers, of both parities */
  FILL_INDEX,       /* integers in [a, b) */
  FILL_PERMUTATION, /* of 0 .. count-1 */
  FILL_DISTINCT,    /* [N,k]: each row k different integers of [0, a) */
  FILL_OFFSETS,     /* [E+1]: from 0, non-decreasing, the last is a; some groups empty */
  /* the same memory as field `other`, which a part of the op writes before this is read */
  FILL_ALIAS,
  FILL_INPLACE, /* an output in the memory of input `other`; ref runs with memory of its own */
  FILL_CALL     /* fn */
} fill_kind;

typedef struct fill fill;
struct fill {
  const char *field;
  fill_kind kind;
  double a, b;
  const char *other;
  void (*fn)(const fill *f, const bk_tensor *t, uint64_t seed, uint64_t stream, double *values);
};
#define FILL_END \
  { NULL, FILL_NORMAL, 0, 0, NULL, NULL }

struct perf_roof;
typedef struct harness {
  bk_context *ctx;
  /* second: the other thread count of --bits, or the composed ops of --like-composed */
  bk_device *device, *second, *ref;
  bk_stream *stream, *second_stream, *ref_stream;
  const char *op_filter, *case_filter;
  uint64_t seed;
  /* BK_TEST_TINY: smaller ones still, for an interpreter of kernels */
  bool tiny;
  bool list, verbose, like_composed, report;
  bool large; /* BK_TEST_LARGE: cases_large alone */
  /* BK_TEST_QUICK: small shapes only, for runs under valgrind and the like */
  bool quick;
  const struct perf_roof *roof; /* --perf: time the cases' working sizes instead of judging them */
  bk_dtype st, ct;              /* of the cases being made */
  int ran, failed, left_out;
  int log_lines; /* warnings and errors that came */
  bool seen[BK_OP_COUNT];
  bool fields[BK_OP_COUNT][BK_OP_MAX_FIELDS]; /* present in a case */
  double worst[BK_OP_COUNT][2];               /* worst error / bound by storage dtype: fp32, bf16 */
  double nmse[BK_OP_COUNT][2];                /* worst normalised mean squared error */
} harness;

/* Runs once `ref` holds the values (all in fp64): completes inputs with the results of other
 * ops. args: ref's tensors. */
typedef bk_status (*derive_fn)(harness *h, void *args);

/* One case. What a tensor's offset is modulo HARNESS_GUARD, it is on the device. Fields without a
 * fill: inputs and INOUT are normal(0,1), outputs are poisoned. `name` is a printf format. */
void harness_case(harness *h, bk_op op, const void *args, const fill *fills, derive_fn derive,
                  const char *name, ...) BK_PRINTF(6, 7);

/* Tensors of cases: rows dense, each outer stride lengthened by `pad` elements. */
bk_tensor h1(bk_dtype dtype, int64_t a);
bk_tensor h2(bk_dtype dtype, int pad, int64_t a, int64_t b);
bk_tensor h3(bk_dtype dtype, int pad, int64_t a, int64_t b, int64_t c);
bk_tensor h4(bk_dtype dtype, int pad, int64_t a, int64_t b, int64_t c, int64_t d);
/* [a,n,n] with dense n*n blocks, `pad` elements apart. */
bk_tensor h_blocks(bk_dtype dtype, int pad, int64_t a, int64_t n);

/* Calls each() with level[i] in [0, levels[i]) such that every pair of levels of two factors
 * comes up at least once. */
#define PAIRWISE_MAX 8
void harness_pairwise(harness *h, const int *levels, int n_factors,
                      void (*each)(harness *h, const int *level));

/* Shared level tables. */
extern const int64_t harness_tokens[6]; /* 1 3 13 127 257, and 1024 as the working size */
#define HARNESS_WORKING 5
extern const int64_t harness_widths[3]; /* 31 128 2560 */
/* The largest of the token counts up to `tokens` for which tokens * per_token stays within the
 * element budget. */
int64_t harness_clip_tokens(const harness *h, int64_t tokens, int64_t per_token);

/* The output and the log sums that a backward of attention is given: what the forward makes of
 * q, k and v. */
bk_status derive_attention(harness *h, void *args);

/* The families of cases, each for the current h->st. */
void cases_basic(harness *h);
void cases_layers(harness *h);
void cases_experts(harness *h);
void cases_streams(harness *h);
void cases_maps(harness *h);
void cases_fused(harness *h);
void cases_large(harness *h);

/* The case that a file holds (case_file.h): false, said, where it is none. */
bool harness_case_file(harness *h, const char *path);

/* Makes the values of a field. */
void harness_fill(const fill *f, const bk_tensor *t, uint64_t seed, uint64_t stream,
                  double *values);

#endif
