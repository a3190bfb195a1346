/* Reading metrics.jsonl, and cutting it back for a resume. See metrics.h. */
#include "io/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/json_in.h"
#include "io/json_out.h"

#define LINE_MAX_BYTES ((size_t)1 << 28) /* what is longer is damaged, and read in pieces */
#define READ_BYTES ((size_t)1 << 16)
#define CAUSE_MAX 256

/* ---- line by line ---- */

typedef struct lines {
  bk_context *ctx;
  const char *path;
  bk_file *file;
  char *data;
  size_t capacity, fill, at; /* bytes held; the next line begins at `at` */
  uint64_t base;             /* file offset of data[0] */
  int64_t number;            /* of the line given last, from 1 */
} lines;

/* Makes room and reads on; *more = false at the end of the file. */
static bk_status lines_fill(lines *l, bool *more) {
  memmove(l->data, l->data + l->at, l->fill - l->at);
  l->base += l->at;
  l->fill -= l->at;
  l->at = 0;
  BK_TRY(bk_grow(l->ctx, (void **)&l->data, &l->capacity, l->fill + READ_BYTES, 1));
  int64_t got = l->ctx->fs.read_at(l->ctx->fs.user, l->file, l->base + l->fill, l->data + l->fill, READ_BYTES);
  if (got < 0) return bk_fail(l->ctx, BK_ERR_IO, "cannot read %s: %s", l->path, strerror((int)-got));
  l->fill += (size_t)got;
  *more = got > 0;
  return BK_OK;
}

/* The next whole line without its newline (or LINE_MAX_BYTES of one that is longer), or *line = NULL after the last. What follows the last
 * newline is torn and not given. */
static bk_status lines_next(lines *l, const char **line, size_t *bytes) {
  bool more = true;
  size_t seen = 0;
  *line = NULL;
  for (;;) {
    const char *begin = l->fill > l->at ? l->data + l->at : "";
    const char *newline = memchr(begin + seen, '\n', l->fill - l->at - seen);
    seen = l->fill - l->at;
    if (newline || seen >= LINE_MAX_BYTES) {
      *line = begin;
      *bytes = newline ? (size_t)(newline - begin) : seen;
      l->at += *bytes + (newline != NULL);
      l->number++;
      return BK_OK;
    }
    if (!more) return BK_OK;
    BK_TRY(lines_fill(l, &more));
  }
}

/* Where the next line begins in the file. */
static uint64_t lines_offset(const lines *l) { return l->base + l->at; }

static bk_status lines_open(lines *l, bk_context *ctx, const char *path) {
  *l = (lines){.ctx = ctx, .path = path};
  BK_TRY(bk_file_open(ctx, path, &l->file));
  bk_status status = bk_grow(ctx, (void **)&l->data, &l->capacity, READ_BYTES, 1);
  if (status != BK_OK) ctx->fs.close(ctx->fs.user, l->file);
  return status;
}

static void lines_close(lines *l) {
  l->ctx->fs.close(l->ctx->fs.user, l->file);
  bk_free(l->ctx, l->data);
}

/* ---- row by row ---- */

typedef struct rows {
  lines lines;
  int64_t last;     /* step of the last row that counted; INT64_MIN before the first */
  int64_t damaged;  /* lines so far */
  int64_t first;    /* number of the first of them */
  char cause[CAUSE_MAX]; /* what is wrong with it */
} rows;

typedef enum line_kind { ROW, EMPTY, DAMAGED, END } line_kind;
typedef struct row_line {
  line_kind kind;
  const char *text;
  size_t bytes;
  json_t *row; /* of a ROW: to json_decref */
  int64_t step;
} row_line;

static void BK_PRINTF(2, 3) note_damage(rows *r, const char *format, ...) {
  if (r->damaged++) return;
  va_list args;
  va_start(args, format);
  vsnprintf(r->cause, sizeof r->cause, format, args);
  va_end(args);
  r->first = r->lines.number;
}

/* One line's JSON: a row, or what is wrong with it. */
static bk_status read_line(rows *r, row_line *line) {
  json_error_t error;
  bk_status status = bk_json_parse(r->lines.ctx, r->lines.path, line->text, line->bytes, &line->row, &error);
  line->kind = DAMAGED;
  if (status == BK_ERR_DATA) {
    note_damage(r, "%s", error.text);
    return BK_OK;
  }
  BK_TRY(status);
  const json_t *step = json_object_get(line->row, "step");
  if (!json_is_integer(step)) note_damage(r, "it has no integer \"step\"");
  else if ((int64_t)json_integer_value(step) <= r->last) note_damage(r, "step %" JSON_INTEGER_FORMAT " comes after step %" PRId64, json_integer_value(step), r->last);
  else line->kind = ROW, line->step = (int64_t)json_integer_value(step);
  if (line->kind == ROW) return BK_OK;
  json_decref(line->row);
  line->row = NULL;
  return BK_OK;
}

/* `row->last` is the caller's to move: a row that is dropped does not count. */
static bk_status rows_next(rows *r, row_line *line) {
  *line = (row_line){.kind = END};
  BK_TRY(lines_next(&r->lines, &line->text, &line->bytes));
  if (!line->text) return BK_OK;
  line->kind = EMPTY;
  return line->bytes ? read_line(r, line) : BK_OK;
}

static bk_status rows_open(rows *r, bk_context *ctx, const char *path) {
  *r = (rows){.last = INT64_MIN};
  return lines_open(&r->lines, ctx, path);
}

/* ---- cutting ---- */

typedef struct cut {
  int64_t last_step;
  uint64_t end;  /* of the rows that stay, where they are all of what comes before */
  bool prefix;   /* they are, so far */
  bool dropped;  /* something before here does not stay */
  bk_json_out *kept; /* NULL while only looking */
  bk_file *aside;    /* where damaged lines go; NULL before the first */
  const char *aside_path;
} cut;

static bk_status set_aside(rows *r, cut *c, const char *text, size_t bytes) {
  bk_context *ctx = r->lines.ctx;
  const bk_fs *fs = &ctx->fs;
  int rc = c->aside ? 0 : fs->open_write(fs->user, c->aside_path, true, &c->aside);
  if (rc < 0) c->aside = NULL;
  int64_t done = rc < 0 ? rc : fs->write(fs->user, c->aside, text, bytes);
  if (done >= 0 && (size_t)done < bytes) done = -EIO;
  if (done >= 0) done = fs->write(fs->user, c->aside, "\n", 1);
  return done < 0 ? bk_fail(ctx, BK_ERR_IO, "cannot write %s: %s", c->aside_path, strerror((int)-done)) : BK_OK;
}

static void keep(rows *r, cut *c, const row_line *line) {
  if (c->dropped) c->prefix = false;
  else c->end = lines_offset(&r->lines);
  if (line->kind == ROW) r->last = line->step;
  if (!c->kept) return;
  bk_json_out_bytes(c->kept, line->text, line->bytes);
  bk_json_out_text(c->kept, "\n");
}

static bk_status cut_line(rows *r, cut *c, const row_line *line) {
  if (line->kind == EMPTY || (line->kind == ROW && line->step <= c->last_step)) keep(r, c, line);
  else c->dropped = true;
  return line->kind == DAMAGED && c->kept ? set_aside(r, c, line->text, line->bytes) : BK_OK;
}

/* A torn last line is what a crash leaves of a step that is done again, unless the last row that should be there is missing. */
static bk_status cut_torn(rows *r, cut *c) {
  const lines *l = &r->lines;
  size_t bytes = l->fill - l->at;
  int64_t last = r->last < 0 ? 0 : r->last; /* steps count from 1 */
  if (!bytes || last >= c->last_step) return BK_OK;
  r->lines.number++;
  note_damage(r, "it has no end");
  return c->kept ? set_aside(r, c, l->data + l->at, bytes) : BK_OK;
}

static bk_status cut_lines(rows *r, cut *c) {
  row_line line;
  for (;;) {
    BK_TRY(rows_next(r, &line));
    if (line.kind == END) return cut_torn(r, c);
    bk_status status = cut_line(r, c, &line);
    json_decref(line.row);
    BK_TRY(status);
  }
}

/* The file anew, without what is damaged: beside it first, so that a crash leaves one or the other. */
static bk_status rewrite(bk_context *ctx, const char *path, int64_t last_step, const char *aside_path) {
  rows r;
  bk_json_out kept;
  cut c = {.last_step = last_step, .kept = &kept, .aside_path = aside_path};
  BK_TRY(rows_open(&r, ctx, path));
  bk_json_out_init(&kept, ctx);
  bk_status status = cut_lines(&r, &c);
  lines_close(&r.lines);
  int rc = c.aside && status == BK_OK ? ctx->fs.sync(ctx->fs.user, c.aside) : 0;
  if (c.aside && ctx->fs.close(ctx->fs.user, c.aside) < 0 && rc == 0) rc = -EIO;
  if (status == BK_OK && rc < 0) status = bk_fail(ctx, BK_ERR_IO, "cannot write %s: %s", aside_path, strerror(-rc));
  if (status == BK_OK) status = kept.status;
  if (status == BK_OK) status = bk_file_write_atomic(ctx, path, kept.data ? kept.data : "", kept.length);
  bk_json_out_fini(&kept);
  if (status == BK_OK && r.damaged)
    bk_warn(ctx, "%s: %lld damaged line%s (the first is line %lld: %s) moved to %s", path, (long long)r.damaged, r.damaged == 1 ? " is" : "s are",
            (long long)r.first, r.cause, aside_path);
  return status;
}

static bk_status truncate_at(bk_context *ctx, const char *path, uint64_t end) {
  int rc = ctx->fs.truncate(ctx->fs.user, path, end);
  return rc < 0 ? bk_fail(ctx, BK_ERR_IO, "cannot cut %s to %llu bytes: %s", path, (unsigned long long)end, strerror(-rc)) : BK_OK;
}

bk_status bk_metrics_cut(bk_context *ctx, const char *path, int64_t last_step) {
  rows r;
  cut c = {.last_step = last_step, .prefix = true};
  if (ctx->fs.kind(ctx->fs.user, path) == -ENOENT) return BK_OK;
  BK_TRY(rows_open(&r, ctx, path));
  bk_status status = cut_lines(&r, &c);
  lines_close(&r.lines);
  BK_TRY(status);
  if (c.prefix && !r.damaged) return truncate_at(ctx, path, c.end);
  char *aside = bk_format(ctx, "%s.damaged", path);
  if (!aside) return BK_ERR_MEMORY;
  status = rewrite(ctx, path, last_step, aside);
  bk_free(ctx, aside);
  return status;
}

/* ---- rows, columns ---- */

static bk_status give_rows(rows *r, bk_metrics_each each, void *arg) {
  row_line line;
  for (;;) {
    BK_TRY(rows_next(r, &line));
    if (line.kind == END) return BK_OK;
    if (line.kind != ROW) continue;
    r->last = line.step;
    bk_status status = each(arg, line.row, line.step);
    json_decref(line.row);
    BK_TRY(status);
  }
}

bk_status bk_metrics_rows(bk_context *ctx, const char *path, bk_metrics_each each, void *arg) {
  rows r;
  BK_TRY(rows_open(&r, ctx, path));
  bk_status status = give_rows(&r, each, arg);
  lines_close(&r.lines);
  if (status == BK_OK && r.damaged)
    bk_warn(ctx, "%s: %lld damaged line%s passed over (the first is line %lld: %s)", path, (long long)r.damaged, r.damaged == 1 ? " is" : "s are",
            (long long)r.first, r.cause);
  return status;
}

typedef struct column {
  bk_context *ctx;
  const char *key;
  int64_t *steps;
  double *values;
  size_t count, step_capacity, value_capacity;
} column;

static bk_status column_add(void *arg, json_t *row, int64_t step) {
  column *c = arg;
  const json_t *value = json_object_get(row, c->key);
  BK_TRY(bk_grow(c->ctx, (void **)&c->steps, &c->step_capacity, c->count + 1, sizeof *c->steps));
  BK_TRY(bk_grow(c->ctx, (void **)&c->values, &c->value_capacity, c->count + 1, sizeof *c->values));
  c->steps[c->count] = step;
  c->values[c->count++] = json_is_number(value) ? json_number_value(value) : (double)NAN;
  return BK_OK;
}

bk_status bk_metrics_read(bk_context *ctx, const char *path, const char *key, int64_t **steps, double **values, int64_t *count) {
  column c = {.ctx = ctx, .key = key};
  bk_status status = bk_metrics_rows(ctx, path, column_add, &c);
  if (status != BK_OK) {
    bk_free(ctx, c.steps);
    bk_free(ctx, c.values);
    return status;
  }
  *steps = c.steps;
  *values = c.values;
  *count = (int64_t)c.count;
  return BK_OK;
}
