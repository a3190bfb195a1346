/* What the two benches share: the roofs of a device, and timing of one op. */
#ifndef BK_BENCH_H
#define BK_BENCH_H

#include "models/runner.h"
#include "tools/cli.h"

/* Measured on the device itself, with the same threads, best of the samples: flops per second of
 * a large square GEMM in the storage dtype, and bytes per second (read + written) of COPY by
 * size, 2^BENCH_COPY_MIN bytes and up in powers of two, because what fits a cache moves faster. */
#define BENCH_COPY_MIN 14
#define BENCH_COPY_SIZES 15
typedef struct bench_roof {
  double bandwidth[BENCH_COPY_SIZES], flops;
  int copies; /* sizes that were measured; the larger ones have the rate of the last */
} bench_roof;
/* flops alone */
bk_status bench_measure_roof(cli_session *s, bk_dtype dtype, double seconds, bench_roof *roof);
/* Of the measured size nearest to `bytes`. */
double bench_bandwidth(const bench_roof *roof, double bytes);

/* The share of the roof that `time` reaches: the least time that flops and bytes allow, over the
 * time taken. */
double bench_share(const bench_roof *roof, double flops, double bytes, double time);

/* Seconds of a launch (with its sync), over at least 3 launches and `seconds` in all, after one
 * to warm up. */
typedef struct bench_time {
  double median, best;
} bench_time;
bk_status bench_time_op(cli_session *s, bk_stream *stream, bk_op op, const void *args,
                        double seconds, bench_time *time, const char **kernel);

bk_status bench_ops(cli_session *s);
bk_status bench_step(cli_session *s);
/* Prints what a step of this many micro-batches does: one line for each call. */
bk_status bench_program(cli_session *s, const bk_model_config *config, bk_dtype dtype,
                        const bk_runner_options *runner_options, const bk_optimizer_options *adam,
                        int64_t micro_batches);

#endif
