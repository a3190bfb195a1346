/* Measuring a device: what it can do at most, its roof, and what each op takes beside that.
 *
 * Everything is measured on the device itself, by launches on operands in its memory, which are
 * freed before the function returns. Nothing of a result is the caller's to free. Seconds are
 * of one launch, over at least 3 launches and for as long as the options say, after one to warm
 * up; rates are per second. Bytes and flops are those of the op itself: each operand is moved
 * once, a multiply-add is 2 flops.
 *
 * Values out of range, and a dtype that the device does not store: BK_ERR_ARGUMENT. A context
 * without a clock (bk_context_create_embedded): BK_ERR_UNSUPPORTED. Operands that do not fit
 * into the device: BK_ERR_MEMORY. */
#ifndef BIRKHOFF_BENCH_H
#define BIRKHOFF_BENCH_H

#include <birkhoff/device.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the device reaches: flops of a large square matrix product in the dtype, and bytes (read
 * and written) of a copy by its size, 2^BK_ROOF_COPY_MIN bytes and up in powers of two, because
 * what fits a cache moves faster. */
#define BK_ROOF_COPY_MIN 14
#define BK_ROOF_COPY_SIZES 15
typedef struct bk_roof {
  double flops_per_s;
  double bytes_per_s[BK_ROOF_COPY_SIZES];
  int copies; /* sizes that were measured; the larger ones have the rate of the last */
} bk_roof;
BK_API bk_status bk_bench_roof(bk_device *device, bk_dtype dtype, double seconds, bk_roof *roof);
/* The product alone. */
BK_API bk_status bk_bench_product(bk_device *device, bk_dtype dtype, double seconds,
                                  double *flops_per_s);

/* Names of the ops: of number i, from 0; NULL past the last. */
BK_API const char *bk_bench_op_name(int i);

/* Sizes of the operands; every one has to be given. */
typedef struct bk_bench_options {
  bk_dtype dtype;
  double seconds;     /* for each row */
  int64_t tokens;     /* 1 to 2^22 */
  int64_t width;      /* of the model: a multiple of 64, at most 2^16 */
  int64_t streams;    /* residual streams, 1 to 8 */
  int64_t vocabulary; /* 2 to 2^24 */
  /* These ops alone, each in the order of the numbers above. NULL: all. A name that is none of an
   * op: BK_ERR_NOT_FOUND. */
  const char *const *ops;
  int n_ops;
} bk_bench_options;

/* One case of an op. The names live as long as the library, the kernel's as long as the device. */
typedef struct bk_bench_row {
  const char *op;
  const char *name;   /* the op's; where an op has several cases, theirs: "attention_192" */
  const char *kernel; /* that served it */
  double seconds;     /* the median */
  double best;        /* the shortest */
  double bytes, flops;
  /* of the roof: the least time that its rates allow for bytes and flops, over `seconds` */
  double share;
} bk_bench_row;
/* Takes one row, which is valid for the call; anything but BK_OK ends the measurement and is what
 * bk_bench_ops returns. */
typedef bk_status (*bk_bench_row_fn)(void *user, const bk_bench_row *row);

/* Times the ops, one after the other, in the order of their numbers. `roof` comes from
 * bk_bench_roof. Ops that the streams do not allow are left out without a word: permutations of
 * more than 5, a Kronecker product of a number that is no power of two. */
BK_API bk_status bk_bench_ops(bk_device *device, const bk_bench_options *options,
                              const bk_roof *roof, bk_bench_row_fn each, void *user);

#ifdef __cplusplus
}
#endif
#endif
