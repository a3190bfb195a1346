/* --perf: times each op at working sizes on the harness's device. */
#ifndef BK_TEST_PERF_H
#define BK_TEST_PERF_H

#include "tests/ops/harness.h"

bk_status perf_run(harness *h);

#endif
