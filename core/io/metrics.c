/* Writing metrics.jsonl, one JSON object a line and a line a step. A row is written in one piece,
 * so that a crash tears the last line at most. A run does not die of a full disk: rows that cannot
 * be written wait in memory, and new attempts are made after 1, 2, 4, ... further rows. Reading is
 * in metrics_rows.c.
 *
 * A row, whose optional members come in this order behind the others:
 *   {"step": 100, "tokens": 204800, "loss": 3.2, "lr": 0.0003, "grad_norm": 0.9,
 *    "tokens_per_s": 51234.5, "val_loss": 3.3, "gain_forward": 1.0, "gain_backward": 1.1,
 *    "expert_load": [[0.12, 0.13, ...], ...]}
 * Losses are means in nats for each token; doc/files.md says what the others are. */
#include "io/metrics.h"

#include <string.h>

#include "io/json_out.h"

/* The most bytes of rows that wait, enough for a hundred thousand steps at least. */
#define PENDING_MAX_BYTES ((size_t)1 << 26)
#define FIXED_BYTES 1024 /* room for all keys, and for all numbers that are not expert loads */

/* ---- writing ---- */

/* A file that is appended to, and the rows that could not be written to it yet. */
struct bk_metrics {
  bk_context *ctx;
  char *path;
  bk_file *file;
  uint64_t length;                        /* bytes of whole rows in the file */
  bk_json_out rows;                       /* rows that are not in the file, the newest last */
  int64_t pending, first_step, last_step; /* number of those rows; their steps */
  int64_t failures, wait; /* failed attempts in a row; rows to come before the next attempt */
};

/* The file is opened for appending, so that the rows of the run so far stay. What a crash has torn
 * is cut off before (bk_metrics_cut). */
static bk_status open_end(bk_metrics *m) {
  const bk_fs *fs = &m->ctx->fs;
  int rc = fs->open_write(fs->user, m->path, true, &m->file);
  if (rc < 0) m->file = NULL;
  else rc = fs->size(fs->user, m->file, &m->length);
  return rc < 0 ? bk_fail(m->ctx, BK_ERR_IO, "cannot open %s: %s", m->path, strerror(-rc)) : BK_OK;
}

/* On failure nothing is left open. */
bk_status bk_metrics_open(bk_context *ctx, const char *path, bk_metrics **metrics) {
  bk_metrics *m = bk_alloc(ctx, sizeof *m);
  if (!m) return BK_ERR_MEMORY;
  m->ctx = ctx;
  bk_json_out_init(&m->rows, ctx);
  m->path = bk_strdup(ctx, path);
  bk_status status = m->path ? open_end(m) : BK_ERR_MEMORY;
  if (status == BK_OK) *metrics = m;
  else bk_metrics_close(m);
  return status;
}

/* Whatever was not written by now is lost; bk_metrics_flush says so while it can still be
 * helped. */
void bk_metrics_close(bk_metrics *m) {
  if (!m) return;
  int rc = m->file ? m->ctx->fs.close(m->ctx->fs.user, m->file) : 0;
  if (rc < 0)
    bk_warn(m->ctx, "cannot close %s: %s; its last rows may be missing", m->path, strerror(-rc));
  bk_json_out_fini(&m->rows);
  bk_free(m->ctx, m->path);
  bk_free(m->ctx, m);
}

/* The first key of an object has no comma in front of it. */
static void put_key(bk_json_out *out, const char *key) {
  bk_json_out_text(out, out->data[out->length - 1] == '{' ? "\"" : ", \"");
  bk_json_out_text(out, key);
  bk_json_out_text(out, "\": ");
}

static void put_int(bk_json_out *out, const char *key, int64_t value) {
  put_key(out, key);
  bk_json_out_int(out, value);
}

static void put_double(bk_json_out *out, const char *key, double value) {
  put_key(out, key);
  bk_json_out_double(out, value);
}

/* The loads are a list for each layer with experts, of one number for each expert. */
static void put_loads(bk_json_out *out, const bk_metrics_row *row) {
  put_key(out, "expert_load");
  for (int l = 0; l < row->n_layers; l++) {
    bk_json_out_text(out, l ? ", [" : "[[");
    for (int e = 0; e < row->n_experts; e++) {
      if (e) bk_json_out_text(out, ", ");
      bk_json_out_double(out, row->expert_load[(size_t)l * (size_t)row->n_experts + (size_t)e]);
    }
    bk_json_out_text(out, "]");
  }
  bk_json_out_text(out, "]");
}

/* Reserves the whole row first, so that want of memory cannot leave half of one behind. */
static void put_row(bk_json_out *out, const bk_metrics_row *row) {
  bool loads = row->n_layers > 0 && row->n_experts > 0 && row->expert_load;
  bk_json_out_reserve(
      out, FIXED_BYTES + (loads ? (size_t)row->n_layers * ((size_t)row->n_experts * 28 + 8) : 0));
  bk_json_out_text(out, "{");
  if (out->status != BK_OK) return;
  put_int(out, "step", row->step);
  put_int(out, "tokens", row->tokens);
  put_double(out, "loss", row->loss);
  put_double(out, "lr", row->lr);
  put_double(out, "grad_norm", row->grad_norm);
  put_double(out, "tokens_per_s", row->tokens_per_s);
  if (row->has_val) put_double(out, "val_loss", row->val_loss);
  if (row->has_gain) {
    put_double(out, "gain_forward", row->gain_forward);
    put_double(out, "gain_backward", row->gain_backward);
  }
  if (row->has_comm) {
    put_double(out, "comm_wait", row->comm_wait_s);
    put_double(out, "comm_busy", row->comm_busy_s);
    put_double(out, "comm_bytes", row->comm_bytes);
  }
  if (loads) put_loads(out, row);
  bk_json_out_text(out, "}\n");
}

/* A write that failed half-way leaves a torn row. It is cut off at once and again before the next
 * attempt, in case that failed too, so that a whole row always follows a whole one. After a failure
 * the next attempt waits for 1, 2, 4, ... up to 1024 further rows. */
static bk_status write_rows(bk_metrics *m) {
  const bk_fs *fs = &m->ctx->fs;
  int rc = m->failures ? fs->truncate(fs->user, m->path, m->length) : 0;
  int64_t done = rc < 0 ? rc : fs->write(fs->user, m->file, m->rows.data, m->rows.length);
  if (done >= 0 && (size_t)done == m->rows.length) {
    m->length += m->rows.length;
    m->failures = m->wait = m->pending = 0;
    bk_json_out_clear(&m->rows);
    return BK_OK;
  }
  fs->truncate(fs->user, m->path, m->length);
  m->wait = m->failures < 10 ? (int64_t)1 << m->failures : 1 << 10;
  m->failures++;
  return bk_fail(m->ctx, BK_ERR_IO, "cannot write %s: %s", m->path,
                 done < 0 ? strerror((int)-done) : "fewer bytes were taken than given");
}

/* The new row joins those that wait, and all are written in one piece when an attempt is due. The
 * limit on what waits makes a run on a full disk lose rows and not its memory. */
bk_status bk_metrics_write(bk_metrics *m, const bk_metrics_row *row) {
  size_t before = m->rows.length;
  if (before > PENDING_MAX_BYTES)
    return bk_fail(m->ctx, BK_ERR_IO,
                   "%s: the row of step %lld is lost: %zu bytes of rows wait to be written",
                   m->path, (long long)row->step, before);
  put_row(&m->rows, row);
  if (m->rows.status != BK_OK) { /* out of memory: this row is lost, those before it are not */
    bk_status status = m->rows.status;
    m->rows.length = before;
    m->rows.status = BK_OK;
    return status;
  }
  if (m->pending++ == 0) m->first_step = row->step;
  m->last_step = row->step;
  return m->wait > 0 && --m->wait > 0 ? BK_OK : write_rows(m);
}

/* Here an attempt is made at once, even if none is due. */
bk_status bk_metrics_flush(bk_metrics *m) { return m->pending ? write_rows(m) : BK_OK; }

/* The steps mean something only where the result is not 0. */
int64_t bk_metrics_pending(const bk_metrics *m, int64_t *first_step, int64_t *last_step) {
  *first_step = m->first_step;
  *last_step = m->last_step;
  return m->pending;
}
