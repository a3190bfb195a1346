/* Measuring a device: the most that it can do, which is called its roof, and how long each op takes
 * in comparison.
 *
 * Everything is measured on the device itself, by launches on operands in its memory, which are
 * freed before the function returns. The caller has to free nothing of a result. A time in seconds
 * is that of one launch. It is taken over at least 3 launches and for as long as the options say,
 * after one launch to warm up. Rates are per second. Bytes and flops are those of the op itself:
 * each operand is moved once, and a multiply-add counts as 2 flops.
 *
 * The functions return BK_ERR_ARGUMENT for values out of range and for a dtype that the device does
 * not store, BK_ERR_UNSUPPORTED in a context without a clock (bk_context_create_embedded), and
 * BK_ERR_MEMORY where the operands do not fit into the device. */
#ifndef BIRKHOFF_BENCH_H
#define BIRKHOFF_BENCH_H

#include <birkhoff/parallel.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the device reaches: the flops per second of a large square matrix product in the dtype, and
 * the bytes per second, read and written, of copies of several sizes, because what fits into a
 * cache moves faster. Copy number i moves 2^(BK_ROOF_COPY_MIN + i) bytes: it reads half and writes
 * half. */
#define BK_ROOF_COPY_MIN 14
#define BK_ROOF_COPY_SIZES 15
typedef struct bk_roof {
  double flops_per_s;
  double bytes_per_s[BK_ROOF_COPY_SIZES];
  int copies; /* sizes that were measured; the larger ones get the rate of the last of these */
} bk_roof;
BK_API bk_status bk_bench_roof(bk_device *device, bk_dtype dtype, double seconds, bk_roof *roof);
/* Measures the matrix product alone. */
BK_API bk_status bk_bench_product(bk_device *device, bk_dtype dtype, double seconds,
                                  double *flops_per_s);

/* The name of op number i, counted from 0; NULL past the last op. */
BK_API const char *bk_bench_op_name(int i);

/* What to time, and the sizes of the operands. Every member but `ops` has to be given. */
typedef struct bk_bench_options {
  bk_dtype dtype;
  double seconds;     /* time to spend on each row */
  int64_t tokens;     /* 1 to 2^22 */
  int64_t width;      /* of the model; a multiple of 64, at most 2^16 */
  int64_t streams;    /* residual streams, 1 to 8 */
  int64_t vocabulary; /* 2 to 2^24 */
  /* The ops to time, NULL for all of them. They are timed in the order of bk_bench_op_name,
   * whatever the order here. BK_ERR_NOT_FOUND for a name that no op has. */
  const char *const *ops;
  int n_ops;
} bk_bench_options;

/* The times of one case of an op. The kernel's name lives as long as the device, the other names as
 * long as the library. */
typedef struct bk_bench_row {
  const char *op;
  const char *name;   /* of the case: the op's name, or "attention_192" where an op has several */
  const char *kernel; /* the kernel that served it */
  double seconds;     /* the median */
  double best;        /* the shortest */
  double bytes, flops;
  /* share of the roof: the least time that the roof's rates allow for bytes and flops, divided by
   * `seconds` */
  double share;
} bk_bench_row;
/* Receives one row, which is valid during the call. A return value other than BK_OK ends the
 * measurement, and bk_bench_ops returns it. */
typedef bk_status (*bk_bench_row_fn)(void *user, const bk_bench_row *row);

/* Times the ops one after the other, in the order of their numbers. `roof` comes from
 * bk_bench_roof. Ops that the number of streams does not allow are left out without a message:
 * permutations of more than 5 streams, and a Kronecker product where the number is not a power of
 * two. */
BK_API bk_status bk_bench_ops(bk_device *device, const bk_bench_options *options,
                              const bk_roof *roof, bk_bench_row_fn each, void *user);

/* How fast the ranks of a comm exchange data. */
#define BK_BENCH_COMM_ROWS 4
typedef struct bk_bench_comm_row {
  /* "copy": the roof; then "reduce_scatter" and "all_gather" of the whole tensor of fp32, and
   * "all_reduce" of 4 bytes, whose time is that of a message there and back */
  const char *op;
  double bytes;   /* of the tensor */
  double sent;    /* by the rank that sends most, what the roof copies; NAN for 4 bytes */
  double seconds; /* the median of the slowest rank */
  double best;    /* the shortest of the slowest rank */
  double share;   /* of the roof: its time divided by `seconds`; NAN for 4 bytes */
} bk_bench_comm_row;
/* Collective. Times operations of `bytes` bytes, 4 to 2^32, spending `seconds` on each but making 3
 * at least; all ranks begin each together. The roof is a copy in the host's memory of as many bytes
 * as a rank sends, by all ranks at the same time. Writes rows [BK_BENCH_COMM_ROWS], the same on all
 * ranks. What the comm had room for is replaced. BK_ERR_ARGUMENT for a comm of one rank. */
BK_API bk_status bk_bench_comm(bk_comm *comm, int64_t bytes, double seconds,
                               bk_bench_comm_row *rows);

#ifdef __cplusplus
}
#endif
#endif
