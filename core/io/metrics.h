/* metrics.jsonl: one JSON object per training step, appended and flushed; numbers that are not finite are null. */
#ifndef BK_METRICS_H
#define BK_METRICS_H

#include <birkhoff/data.h> /* bk_metrics_row */

#include "base/base.h"


typedef struct bk_metrics bk_metrics;
bk_status bk_metrics_open(bk_context *ctx, const char *path, bk_metrics **metrics); /* appends */
bk_status bk_metrics_write(bk_metrics *metrics, const bk_metrics_row *row);          /* no allocation per row after the first; a row that fails leaves the file as it was */
void bk_metrics_close(bk_metrics *metrics);
/* Keeps the rows with "step" <= last_step (for resume); a torn last line is dropped. Missing file: BK_OK. */
bk_status bk_metrics_cut(bk_context *ctx, const char *path, int64_t last_step);
/* Reads column values: rows of (step, value of `key` or NaN); arrays to bk_free. */
bk_status bk_metrics_read(bk_context *ctx, const char *path, const char *key, int64_t **steps, double **values, int64_t *count);

#endif
