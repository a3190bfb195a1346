/* Reading metrics.jsonl, and cutting it back for a resume (metrics.h). A run that crashed may have
 * written rows past its last checkpoint, and a disk may have damaged any line. Damage never stops
 * a run or a report: damaged lines are warned about, and a cut moves them into a file beside.
 *
 * An example. Of a file with the steps 1, 2, 3, 1, 4, 5 and a torn last line the first, second,
 * third, fifth and sixth line count as rows: the second 1 stands where no ascending order can have
 * it, although it is a good row by itself. A cut to step 4 keeps 1, 2, 3, 4, moves the line of the
 * second 1 to PATH.damaged, and drops 5 and the torn line, since those steps will be done again.
 *
 * A cut reads the file up to three times: to find out which rows stay (order_read), to see whether
 * making it shorter is enough (cut_to), and otherwise to copy what stays (rewrite). The file itself
 * is changed only then. */
#include "io/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/json_in.h"
#include "io/json_out.h"

#define LINE_MAX_BYTES ((size_t)1 << 28) /* a longer line is damaged, and is read in pieces */
#define READ_BYTES ((size_t)1 << 16)
#define CAUSE_MAX 256

/* ---- line by line ---- */

/* A file that is read line by line through a window of its bytes. */
typedef struct lines {
  bk_context *ctx;
  const char *path;
  bk_file *file;
  char *data;
  size_t capacity, fill, at; /* bytes held; the next line begins at `at` */
  uint64_t base;             /* file offset of data[0] */
  int64_t number;            /* number of the line given last, from 1 */
} lines;

/* Makes room and reads on; *more = false at the end of the file. */
static bk_status lines_fill(lines *l, bool *more) {
  memmove(l->data, l->data + l->at, l->fill - l->at);
  l->base += l->at;
  l->fill -= l->at;
  l->at = 0;
  BK_TRY(bk_grow(l->ctx, (void **)&l->data, &l->capacity, l->fill + READ_BYTES, 1));
  int64_t got = l->ctx->fs.read_at(l->ctx->fs.user, l->file, l->base + l->fill, l->data + l->fill,
                                   READ_BYTES);
  if (got < 0)
    return bk_fail(l->ctx, BK_ERR_IO, "cannot read %s: %s", l->path, strerror((int)-got));
  l->fill += (size_t)got;
  *more = got > 0;
  return BK_OK;
}

/* The next whole line without its newline (or LINE_MAX_BYTES of one that is longer), or *line =
 * NULL after the last. What follows the last newline is torn, and is not given. *line points into
 * the window and holds until the next call. `seen` are the bytes of this line that have been
 * searched for a newline already. */
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

/* On failure the file is closed again. */
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

/* This is what a line has turned out to be. END means that there is no further line. */
typedef enum line_kind {
  ROW,
  PAST /* a row after the last step that is asked for */,
  EMPTY,
  DAMAGED,
  END
} line_kind;
/* text and bytes lie in the window of `lines` and hold until the next line is asked for. */
typedef struct row_line {
  line_kind kind;
  const char *text;
  size_t bytes;
  json_t *row; /* set for a ROW, to be json_decref'd */
  int64_t step;
} row_line;

/* This walks over the lines and says of each what it is. */
typedef struct rows {
  lines lines;
  int64_t last_step; /* that is asked for */
  /* Numbers of the lines that are rows, ascending, [n_keep]. NULL while they are being looked for:
   * then every object with a step counts as one. */
  const int64_t *keep;
  size_t n_keep, at;
  int64_t damaged;       /* damaged lines so far */
  int64_t first;         /* number of the first of them */
  char cause[CAUSE_MAX]; /* what is wrong with that one */
} rows;

static void BK_PRINTF(2, 3) note_damage(rows *r, const char *format, ...) {
  if (r->damaged++) return;
  va_list args;
  va_start(args, format);
  vsnprintf(r->cause, sizeof r->cause, format, args);
  va_end(args);
  r->first = r->lines.number;
}

/* Whether the current line is among those that count; the numbers are walked along with the
 * lines. */
static bool stays(rows *r) {
  if (!r->keep) return true;
  while (r->at < r->n_keep && r->keep[r->at] < r->lines.number) r->at++;
  return r->at < r->n_keep && r->keep[r->at] == r->lines.number;
}

/* Reads one line's JSON: it is a row, or damage is noted. The result is BK_OK either way, since
 * only want of memory is a failure. */
static bk_status read_line(rows *r, row_line *line) {
  json_error_t error;
  bk_status status =
      bk_json_parse(r->lines.ctx, r->lines.path, line->text, line->bytes, &line->row, &error);
  line->kind = DAMAGED;
  if (status == BK_ERR_DATA) {
    note_damage(r, "%s", error.text);
    return BK_OK;
  }
  BK_TRY(status);
  const json_t *step = json_object_get(line->row, "step");
  if (!json_is_integer(step)) note_damage(r, "it has no integer \"step\"");
  else if ((int64_t)json_integer_value(step) > r->last_step) line->kind = PAST;
  else if (!stays(r))
    note_damage(r, "step %" JSON_INTEGER_FORMAT " is out of order", json_integer_value(step));
  else line->kind = ROW, line->step = (int64_t)json_integer_value(step);
  if (line->kind == ROW) return BK_OK;
  json_decref(line->row);
  line->row = NULL;
  return BK_OK;
}

/* An empty line is no damage and no row. */
static bk_status rows_next(rows *r, row_line *line) {
  *line = (row_line){.kind = END};
  BK_TRY(lines_next(&r->lines, &line->text, &line->bytes));
  if (!line->text) return BK_OK;
  line->kind = EMPTY;
  return line->bytes ? read_line(r, line) : BK_OK;
}

/* ---- which rows: steps ascend in what one run writes. Where they do not, as many rows stay as
 * can (a longest ascending subsequence), so that a wrong one costs itself and not those behind
 * it; of equal ones the first. ---- */

/* This is what the first pass has found out. */
typedef struct order {
  bk_context *ctx;
  int64_t *step, *line; /* [count]: step and line number of each object with a step */
  size_t count, step_capacity, line_capacity;
  bool ascends;
} order;

/* Notes as well whether steps have ascended so far, as they do in every undamaged file. */
static bk_status order_add(order *o, int64_t step, int64_t line) {
  BK_TRY(bk_grow(o->ctx, (void **)&o->step, &o->step_capacity, o->count + 1, sizeof *o->step));
  BK_TRY(bk_grow(o->ctx, (void **)&o->line, &o->line_capacity, o->count + 1, sizeof *o->line));
  o->ascends = o->ascends && (o->count == 0 || o->step[o->count - 1] < step);
  o->step[o->count] = step;
  o->line[o->count++] = line;
  return BK_OK;
}

/* The first of the `count` ends whose step is not below `step`, by bisection. */
static size_t lower_bound(const order *o, const int64_t *ends, size_t count, int64_t step) {
  size_t low = 0;
  while (count > 0) {
    size_t half = count / 2;
    if (o->step[ends[low + half]] < step) low += half + 1, count -= half + 1;
    else count = half;
  }
  return low;
}

/* The usual method for a longest ascending subsequence. ends[k] is the row with the least step that
 * ends an ascending run of k + 1 rows, and before[i] the row before row i in its run. Returns the
 * length of the longest run, whose last row is ends[length - 1]. */
static size_t find_runs(const order *o, int64_t *ends, int64_t *before) {
  size_t longest = 0;
  for (size_t i = 0; i < o->count; i++) {
    size_t k = lower_bound(o, ends, longest, o->step[i]);
    before[i] = k ? ends[k - 1] : -1;
    if (k == longest) longest++;
    else if (o->step[ends[k]] == o->step[i]) continue;
    ends[k] = (int64_t)i;
  }
  return longest;
}

/* Leaves in o->line the lines of the rows that stay. */
static bk_status keep_longest(order *o) {
  if (o->ascends) return BK_OK;
  int64_t *ends = bk_alloc_array(o->ctx, o->count, sizeof *ends),
          *before = bk_alloc_array(o->ctx, o->count, sizeof *before);
  bk_status status = ends && before ? BK_OK : BK_ERR_MEMORY;
  if (status == BK_OK) {
    size_t longest = find_runs(o, ends, before);
    int64_t at = ends[longest - 1];
    for (size_t k = longest; k-- > 0; at = before[at]) ends[k] = o->line[at];
    memcpy(o->line, ends, longest * sizeof *ends);
    o->count = longest;
  }
  bk_free(o->ctx, before);
  bk_free(o->ctx, ends);
  return status;
}

static void order_fini(order *o) {
  bk_free(o->ctx, o->step);
  bk_free(o->ctx, o->line);
}

/* The first pass: the step and the line of every row, without its values. */
static bk_status collect(rows *r, order *o) {
  row_line line;
  for (;;) {
    BK_TRY(rows_next(r, &line));
    if (line.kind == END) return BK_OK;
    json_decref(line.row);
    if (line.kind == ROW) BK_TRY(order_add(o, line.step, r->lines.number));
  }
}

/* The rows up to last_step that stay. */
static bk_status order_read(order *o, bk_context *ctx, const char *path, int64_t last_step) {
  rows r = {.last_step = last_step};
  *o = (order){.ctx = ctx, .ascends = true};
  BK_TRY(lines_open(&r.lines, ctx, path));
  bk_status status = collect(&r, o);
  lines_close(&r.lines);
  if (status == BK_OK) status = keep_longest(o);
  if (status != BK_OK) order_fini(o);
  return status;
}

/* This begins the second pass. `none` stands for a list without rows, because NULL means a first
 * pass. */
static bk_status rows_open(rows *r, bk_context *ctx, const char *path, const order *o,
                           int64_t last_step) {
  static const int64_t none = 0;
  *r = (rows){.last_step = last_step, .keep = o->count ? o->line : &none, .n_keep = o->count};
  return lines_open(&r->lines, ctx, path);
}

/* ---- cutting ---- */

/* Two walks use this: the one that finds out what a cut has to do, and the one that does it. */
typedef struct cut {
  /* The last step that is asked for, and the step of the last row that stays: 0 before the first,
   * since steps count from 1. */
  int64_t last_step, last;
  uint64_t end;      /* where the rows that stay end, while they are all that comes before */
  bool prefix;       /* they have been so far: cutting the file off at `end` is enough */
  bool dropped;      /* something before here does not stay */
  bk_json_out *kept; /* NULL while only looking */
  bk_file *aside;    /* where damaged lines go; NULL before the first */
  const char *aside_path;
} cut;

/* The file for damaged lines is appended to, so that a second resume does not lose those of the
 * first. */
static bk_status set_aside(rows *r, cut *c, const char *text, size_t bytes) {
  bk_context *ctx = r->lines.ctx;
  const bk_fs *fs = &ctx->fs;
  int rc = c->aside ? 0 : fs->open_write(fs->user, c->aside_path, true, &c->aside);
  if (rc < 0) c->aside = NULL;
  int64_t done = rc < 0 ? rc : fs->write(fs->user, c->aside, text, bytes);
  if (done >= 0 && (size_t)done < bytes) done = -EIO;
  if (done >= 0) done = fs->write(fs->user, c->aside, "\n", 1);
  return done < 0
             ? bk_fail(ctx, BK_ERR_IO, "cannot write %s: %s", c->aside_path, strerror((int)-done))
             : BK_OK;
}

/* While everything so far stays, the end of the file's good part is enough to know. From the first
 * line that does not stay, the rows behind it have to be written anew. */
static void keep(rows *r, cut *c, const row_line *line) {
  if (c->dropped) c->prefix = false;
  else c->end = lines_offset(&r->lines);
  if (line->kind == ROW) c->last = line->step;
  if (!c->kept) return;
  bk_json_out_bytes(c->kept, line->text, line->bytes);
  bk_json_out_text(c->kept, "\n");
}

/* Rows past last_step are dropped without a word: they will be done again. */
static bk_status cut_line(rows *r, cut *c, const row_line *line) {
  if (line->kind == EMPTY || line->kind == ROW) keep(r, c, line);
  else c->dropped = true;
  return line->kind == DAMAGED && c->kept ? set_aside(r, c, line->text, line->bytes) : BK_OK;
}

/* A torn last line is what a crash leaves of a step that will be done again. It is damage only if
 * the last row that should be there is missing. */
static bk_status cut_torn(rows *r, cut *c) {
  const lines *l = &r->lines;
  size_t bytes = l->fill - l->at;
  if (!bytes || c->last >= c->last_step) return BK_OK;
  r->lines.number++;
  note_damage(r, "it has no end");
  return c->kept ? set_aside(r, c, l->data + l->at, bytes) : BK_OK;
}

/* The torn end, if there is one, is looked at last, when it is known whether it matters. */
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

/* Writes the file anew, without what is damaged: beside its place first, so that a crash leaves
 * the old one or the new one. */
static bk_status rewrite(bk_context *ctx, const char *path, const order *o, int64_t last_step,
                         const char *aside_path) {
  rows r;
  bk_json_out kept;
  cut c = {.last_step = last_step, .kept = &kept, .aside_path = aside_path};
  BK_TRY(rows_open(&r, ctx, path, o, last_step));
  bk_json_out_init(&kept, ctx);
  bk_status status = cut_lines(&r, &c);
  lines_close(&r.lines);
  int rc = c.aside && status == BK_OK ? ctx->fs.sync(ctx->fs.user, c.aside) : 0;
  if (c.aside && ctx->fs.close(ctx->fs.user, c.aside) < 0 && rc == 0) rc = -EIO;
  if (status == BK_OK && rc < 0)
    status = bk_fail(ctx, BK_ERR_IO, "cannot write %s: %s", aside_path, strerror(-rc));
  if (status == BK_OK) status = kept.status;
  if (status == BK_OK)
    status = bk_file_write_atomic(ctx, path, kept.data ? kept.data : "", kept.length);
  bk_json_out_fini(&kept);
  if (status == BK_OK && r.damaged)
    bk_warn(ctx, "%s: %lld damaged line%s (the first is line %lld: %s) moved to %s", path,
            (long long)r.damaged, r.damaged == 1 ? " is" : "s are", (long long)r.first, r.cause,
            aside_path);
  return status;
}

/* The file must be closed. */
static bk_status truncate_at(bk_context *ctx, const char *path, uint64_t end) {
  int rc = ctx->fs.truncate(ctx->fs.user, path, end);
  return rc < 0 ? bk_fail(ctx, BK_ERR_IO, "cannot cut %s to %llu bytes: %s", path,
                          (unsigned long long)end, strerror(-rc))
                : BK_OK;
}

/* Looks first. In the usual case the file is good and only has rows at its end that are to be done
 * again: then it is just made shorter. Where anything but the end has to go, the file is written
 * anew, in a third pass. */
static bk_status cut_to(bk_context *ctx, const char *path, const order *o, int64_t last_step) {
  rows r;
  cut c = {.last_step = last_step, .prefix = true};
  BK_TRY(rows_open(&r, ctx, path, o, last_step));
  bk_status status = cut_lines(&r, &c);
  lines_close(&r.lines);
  BK_TRY(status);
  if (c.prefix && !r.damaged) return truncate_at(ctx, path, c.end);
  char *aside = bk_format(ctx, "%s.damaged", path);
  if (!aside) return BK_ERR_MEMORY;
  status = rewrite(ctx, path, o, last_step, aside);
  bk_free(ctx, aside);
  return status;
}

/* A file that is not there needs no cut. */
bk_status bk_metrics_cut(bk_context *ctx, const char *path, int64_t last_step) {
  order o;
  if (ctx->fs.kind(ctx->fs.user, path) == -ENOENT) return BK_OK;
  BK_TRY(order_read(&o, ctx, path, last_step));
  bk_status status = cut_to(ctx, path, &o, last_step);
  order_fini(&o);
  return status;
}

/* ---- rows, columns ---- */

/* A line_fn is called for each row that counts. */
typedef bk_status (*line_fn)(void *arg, const row_line *line);

/* The second pass: the rows that count, one by one; the callback may end it with a failure. */
static bk_status give_rows(rows *r, line_fn each, void *arg) {
  row_line line;
  for (;;) {
    BK_TRY(rows_next(r, &line));
    if (line.kind == END) return BK_OK;
    if (line.kind != ROW) continue;
    bk_status status = each(arg, &line);
    json_decref(line.row);
    BK_TRY(status);
  }
}

/* Two passes over the file: the first finds which rows count, the second gives them. */
static bk_status for_lines(bk_context *ctx, const char *path, line_fn each, void *arg) {
  rows r;
  order o;
  BK_TRY(order_read(&o, ctx, path, INT64_MAX));
  bk_status status = rows_open(&r, ctx, path, &o, INT64_MAX);
  if (status == BK_OK) {
    status = give_rows(&r, each, arg);
    lines_close(&r.lines);
    if (status == BK_OK && r.damaged)
      bk_warn(ctx, "%s: %lld damaged line%s passed over (the first is line %lld: %s)", path,
              (long long)r.damaged, r.damaged == 1 ? " is" : "s are", (long long)r.first, r.cause);
  }
  order_fini(&o);
  return status;
}

/* This carries the caller's function through a line_fn. */
typedef struct receiver {
  bk_metrics_row_fn each;
  void *user;
} receiver;

static bk_status give_text(void *arg, const row_line *line) {
  const receiver *to = arg;
  return to->each(to->user, line->step, line->text, line->bytes);
}

/* Text and bytes of a row hold during the call only. */
bk_status bk_metrics_rows(bk_context *ctx, const char *path, bk_metrics_row_fn each, void *user) {
  return for_lines(ctx, path, give_text, &(receiver){each, user});
}

/* The steps and the values of one key are two arrays that grow together. */
typedef struct column {
  bk_context *ctx;
  const char *key;
  int64_t *steps;
  double *values;
  size_t count, step_capacity, value_capacity;
} column;

/* A row without the key gives NaN, so that steps and values stay side by side. */
static bk_status column_add(void *arg, const row_line *line) {
  column *c = arg;
  const json_t *value = json_object_get(line->row, c->key);
  BK_TRY(bk_grow(c->ctx, (void **)&c->steps, &c->step_capacity, c->count + 1, sizeof *c->steps));
  BK_TRY(bk_grow(c->ctx, (void **)&c->values, &c->value_capacity, c->count + 1, sizeof *c->values));
  c->steps[c->count] = line->step;
  c->values[c->count++] = json_is_number(value) ? json_number_value(value) : (double)NAN;
  return BK_OK;
}

/* Nothing is left to free on failure. */
bk_status bk_metrics_read(bk_context *ctx, const char *path, const char *key, int64_t **steps,
                          double **values, int64_t *count) {
  column c = {.ctx = ctx, .key = key};
  bk_status status = for_lines(ctx, path, column_add, &c);
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
