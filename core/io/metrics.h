/* metrics.jsonl: one JSON object per training step, appended and flushed; numbers that are not
 * finite are null. */
#ifndef BK_METRICS_H
#define BK_METRICS_H

#include <birkhoff/data.h> /* bk_metrics_row */

#include "base/base.h"

typedef struct bk_metrics bk_metrics;
bk_status bk_metrics_open(bk_context *ctx, const char *path, bk_metrics **metrics); /* appends */
/* BK_ERR_IO (logged): the row, and those before it that wait, could not be written now (a full
 * disk, ...). They are kept in memory, up to 64 MiB, and written by a later call, after 1, 2, 4,
 * ... more rows; calls in between are BK_OK. No allocation per row after the first while the
 * file can be written. */
bk_status bk_metrics_write(bk_metrics *metrics, const bk_metrics_row *row);
bk_status bk_metrics_flush(bk_metrics *metrics); /* tries once more to write what waits */
/* Number of rows that wait; where there are any, the first and last of their steps. */
int64_t bk_metrics_pending(const bk_metrics *metrics, int64_t *first_step, int64_t *last_step);
/* Rows that still wait are gone. NULL is allowed. */
void bk_metrics_close(bk_metrics *metrics);

/* ---- metrics_rows.c: reading. A row is an object with an integer "step"; steps ascend. Lines
 * that are no rows, and rows out of order (as many stay as can), are damaged: another program
 * wrote there, a disk lost a block. They cost themselves and one warning, never the rest. A last
 * line without its newline was torn by a crash and is not looked at. ---- */

/* For a resume: keeps the rows with "step" <= last_step and drops those after. Damaged lines
 * among them, and a torn last line where the row of last_step is missing, are moved to
 * PATH.damaged. Missing file: BK_OK. */
bk_status bk_metrics_cut(bk_context *ctx, const char *path, int64_t last_step);
/* Gives each row in turn until one call does not return BK_OK, which is returned. The row is the
 * reader's. */
struct json_t;
typedef bk_status (*bk_metrics_each)(void *arg, struct json_t *row, int64_t step);
bk_status bk_metrics_rows(bk_context *ctx, const char *path, bk_metrics_each each, void *arg);
/* Reads column values: rows of (step, value of `key` or NaN); arrays to bk_free. */
bk_status bk_metrics_read(bk_context *ctx, const char *path, const char *key, int64_t **steps,
                          double **values, int64_t *count);

#endif
