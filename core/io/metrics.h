/* metrics.jsonl: one JSON object per training step, appended and flushed; numbers that are not finite are null. */
#ifndef BK_METRICS_H
#define BK_METRICS_H

#include <birkhoff/data.h> /* bk_metrics_row */

#include "base/base.h"


typedef struct bk_metrics bk_metrics;
bk_status bk_metrics_open(bk_context *ctx, const char *path, bk_metrics **metrics); /* appends */
/* BK_ERR_IO (logged): the row, and those before it that wait, could not be written now (a full disk, ...). They are kept in memory, up to
 * 64 MiB, and written by a later call, after 1, 2, 4, ... more rows; calls in between are BK_OK. No allocation per row after the
 * first while the file can be written. */
bk_status bk_metrics_write(bk_metrics *metrics, const bk_metrics_row *row);
bk_status bk_metrics_flush(bk_metrics *metrics); /* tries once more to write what waits */
/* Number of rows that wait; where there are any, the first and last of their steps. */
int64_t bk_metrics_pending(const bk_metrics *metrics, int64_t *first_step, int64_t *last_step);
/* Rows that still wait are gone. NULL is allowed. */
void bk_metrics_close(bk_metrics *metrics);
/* Keeps the rows with "step" <= last_step (for resume); a torn last line is dropped. Missing file: BK_OK. */
bk_status bk_metrics_cut(bk_context *ctx, const char *path, int64_t last_step);
/* Reads column values: rows of (step, value of `key` or NaN); arrays to bk_free. */
bk_status bk_metrics_read(bk_context *ctx, const char *path, const char *key, int64_t **steps, double **values, int64_t *count);

#endif
