/* metrics.jsonl: one JSON object per training step, appended and flushed; numbers that are not
 * finite are null. doc/files.md lists the keys. */
#ifndef BIRKHOFF_METRICS_H
#define BIRKHOFF_METRICS_H

#include <birkhoff/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One training step's numbers, as in metrics.jsonl. */
typedef struct bk_metrics_row {
  int64_t step, tokens; /* tokens seen so far */
  double loss, lr, grad_norm, tokens_per_s;
  bool has_val, has_gain;                       /* absent keys are not written */
  double val_loss, gain_forward, gain_backward; /* composite H_L ... H_1, mean over tokens */
  int n_layers, n_experts;                      /* MoE layers; 0: no expert_load */
  /* [n_layers][n_experts] share of the step's choices, sums to 1 per layer */
  const double *expert_load;
} bk_metrics_row;

typedef struct bk_metrics bk_metrics;
BK_API bk_status bk_metrics_open(bk_context *ctx, const char *path,
                                 bk_metrics **metrics); /* appends */
/* BK_ERR_IO (logged): the row, and those before it that wait, could not be written now (a full
 * disk, ...). They are kept in memory, up to 64 MiB, and written by a later call, after 1, 2, 4,
 * ... more rows; calls in between are BK_OK. No allocation per row after the first while the
 * file can be written. */
BK_API bk_status bk_metrics_write(bk_metrics *metrics, const bk_metrics_row *row);
BK_API bk_status bk_metrics_flush(bk_metrics *metrics); /* tries once more to write what waits */
/* Number of rows that wait; where there are any, the first and last of their steps. */
BK_API int64_t bk_metrics_pending(const bk_metrics *metrics, int64_t *first_step,
                                  int64_t *last_step);
/* Rows that still wait are gone. NULL is allowed. */
BK_API void bk_metrics_close(bk_metrics *metrics);

/* ---- metrics_rows.c: reading. A row is an object with an integer "step"; steps ascend. Lines
 * that are no rows, and rows out of order (as many stay as can), are damaged: another program
 * wrote there, a disk lost a block. They cost themselves and one warning, never the rest. A last
 * line without its newline was torn by a crash and is not looked at. ---- */

/* For a resume: keeps the rows with "step" <= last_step and drops those after. Damaged lines
 * among them, and a torn last line where the row of last_step is missing, are moved to
 * PATH.damaged. Missing file: BK_OK. */
BK_API bk_status bk_metrics_cut(bk_context *ctx, const char *path, int64_t last_step);
/* Gives the rows in turn, as JSON text of `bytes` bytes that is valid for the call only, until one
 * call does not return BK_OK, which is returned. Damaged lines are passed over, with one warning.
 */
typedef bk_status (*bk_metrics_row_fn)(void *user, int64_t step, const char *json, size_t bytes);
BK_API bk_status bk_metrics_rows(bk_context *ctx, const char *path, bk_metrics_row_fn each,
                                 void *user);

#ifdef __cplusplus
}
#endif
#endif
