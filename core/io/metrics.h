/* metrics.jsonl: what programs use is installed, in birkhoff/metrics.h. */
#ifndef BK_METRICS_H
#define BK_METRICS_H

#include <birkhoff/metrics.h>

#include "base/base.h"

/* Reads column values: rows of (step, value of `key` or NaN); arrays to bk_free. */
bk_status bk_metrics_read(bk_context *ctx, const char *path, const char *key, int64_t **steps,
                          double **values, int64_t *count);

#endif
