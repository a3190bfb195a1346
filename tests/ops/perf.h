/* --perf: times launches at working sizes on the harness's device, beside what that device can
 * do at best. `birkhoff bench ops` has every op; this has the ops of cases_*.c that have a
 * working size, with the layouts and values of the cases. */
#ifndef BK_TEST_PERF_H
#define BK_TEST_PERF_H

#include "tests/ops/harness.h"

/* Measured in the same run: bytes per second (read and written) of a large copy, flops per
 * second of a large product. */
typedef struct perf_roof {
  double bandwidth, rate;
} perf_roof;
bk_status perf_measure_roof(harness *h, perf_roof *roof);

/* Times the op on args with memory and prints a line: time, GB/s, GFLOP/s and the share of the
 * op's own roof, max(bytes / bandwidth, flops / rate) over the time taken. */
bk_status perf_case(harness *h, const char *name, bk_op op, const void *args);

#endif
