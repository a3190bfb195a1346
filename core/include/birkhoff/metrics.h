/* metrics.jsonl has one JSON object for each training step. Each is appended and flushed, and
 * numbers that are not finite are null. doc/files.md lists the keys. */
#ifndef BIRKHOFF_METRICS_H
#define BIRKHOFF_METRICS_H

#include <birkhoff/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The numbers of one training step. */
typedef struct bk_metrics_row {
  int64_t step, tokens; /* tokens seen so far */
  double loss, lr, grad_norm, tokens_per_s;
  bool has_val, has_gain;                       /* false: these keys are not written */
  double val_loss, gain_forward, gain_backward; /* of the composite H_L ... H_1, mean over tokens */
  /* Of several ranks (birkhoff/parallel.h): what this step took of communication, the seconds in
   * which this rank waited for it, those in which it was under way, and the bytes that all ranks
   * have sent together. false: one rank, and the keys are not written. */
  bool has_comm;
  double comm_wait_s, comm_busy_s, comm_bytes;
  int n_layers, n_experts; /* layers with experts; 0: no expert_load */
  /* [n_layers][n_experts]: each expert's share of the step's choices; a layer's shares sum to 1 */
  const double *expert_load;
} bk_metrics_row;

typedef struct bk_metrics bk_metrics;
/* Opens the file to append to it, and makes it where there is none. */
BK_API bk_status bk_metrics_open(bk_context *ctx, const char *path, bk_metrics **metrics);
/* Appends a row. BK_ERR_IO, which is logged, means that this row and those that wait before it
 * could not be written now, for example because the disk is full. They are kept in memory, up to 64
 * MiB, and tried again 1, 2, 4, ... rows later; calls in between return BK_OK. While the file can
 * be written, no row after the first allocates memory. */
BK_API bk_status bk_metrics_write(bk_metrics *metrics, const bk_metrics_row *row);
/* Tries once more to write the rows that wait. */
BK_API bk_status bk_metrics_flush(bk_metrics *metrics);
/* The number of rows that wait and, where there are any, the first and the last of their steps. */
BK_API int64_t bk_metrics_pending(const bk_metrics *metrics, int64_t *first_step,
                                  int64_t *last_step);
/* Closes the file. Rows that still wait are lost. NULL is allowed. */
BK_API void bk_metrics_close(bk_metrics *metrics);

/* ---- reading: core/io/metrics_rows.c ----
 * A row is an object with an integer "step", and steps ascend. A line that is no row, or a row out
 * of order, is damaged: another program has written there, or a disk has lost a block. Of rows out
 * of order as many as possible are kept. Damaged lines cause one warning and do no harm to the
 * others. A last line without a newline was torn by a crash and is not looked at. */

/* For a resume: keeps the rows up to last_step and drops those after it. Damaged lines among them,
 * and a torn last line where the row of last_step is missing, are moved to PATH.damaged. A file
 * that is missing is BK_OK. */
BK_API bk_status bk_metrics_cut(bk_context *ctx, const char *path, int64_t last_step);
/* Calls `each` for one row after the other, with JSON text of `bytes` bytes that is valid during
 * the call. If a call does not return BK_OK, no other follows and its status is returned. Damaged
 * lines are passed over, with one warning. */
typedef bk_status (*bk_metrics_row_fn)(void *user, int64_t step, const char *json, size_t bytes);
BK_API bk_status bk_metrics_rows(bk_context *ctx, const char *path, bk_metrics_row_fn each,
                                 void *user);

#ifdef __cplusplus
}
#endif
#endif
