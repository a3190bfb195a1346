/* See svg.h. A growing text; the first error sticks and is reported at the end. */
#include "base/files.h"
#include "base/text.h"
#include "tools/svg.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define WIDTH 1080
#define HEIGHT 470
#define INK "#222222"
#define FAINT "#dddddd"
#define PANEL_TOP 86
#define PANEL_HEIGHT 300
#define DASHED " stroke-dasharray=\"6 4\""

typedef struct svg {
  bk_context *ctx;
  char *text;
  size_t length, capacity;
  bk_status status;
} svg;

static void add(svg *d, const char *format, ...) BK_PRINTF(2, 3);
static void add(svg *d, const char *format, ...) {
  char piece[512];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(piece, sizeof piece, format, args);
  va_end(args);
  if (n < 0 || (size_t)n >= sizeof piece) n = n < 0 ? 0 : (int)sizeof piece - 1;
  if (d->status == BK_OK)
    d->status = bk_grow(d->ctx, (void **)&d->text, &d->capacity, d->length + (size_t)n + 1, 1);
  if (d->status != BK_OK) return;
  memcpy(d->text + d->length, piece, (size_t)n);
  d->length += (size_t)n;
}

/* Character data: markup characters as entities, control characters and what is not ASCII as a
 * question mark. */
static void add_escaped(svg *d, const char *text) {
  for (; *text; text++) {
    unsigned char c = (unsigned char)*text;
    if (c == '<') add(d, "&lt;");
    else if (c == '&') add(d, "&amp;");
    else if (c == '>') add(d, "&gt;");
    else add(d, "%c", c >= 0x20 && c < 0x7f ? c : '?');
  }
}

/* anchor: start, middle, end */
static void label(svg *d, double x, double y, const char *anchor, int size, const char *fill,
                  const char *text) {
  add(d, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\" fill=\"%s\">", x, y,
      anchor, size, fill);
  add_escaped(d, text);
  add(d, "</text>\n");
}

static void line(svg *d, double x1, double y1, double x2, double y2, const char *stroke,
                 double width) {
  add(d,
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
      "stroke-width=\"%.1f\"/>\n",
      x1, y1, x2, y2, stroke, width);
}

/* ---- gain against depth ---- */

typedef struct axes {
  double left, width;
  double low, high; /* gains at the bottom and the top, log scale */
  int count;        /* sublayers of the deepest model */
} axes;

typedef struct series {
  const char *name, *color, *dash;
  const bk_gain_row *rows;
  int count;    /* rows */
  size_t field; /* offset in bk_gain_row */
} series;

static double value_of(const series *s, int i) {
  double v = *(const double *)((const char *)&s->rows[i] + s->field);
  return isfinite(v) ? (v > 1e-12 ? v : 1e-12) : 1e12;
}

static double x_of(const axes *a, int i) {
  return a->left + (a->count > 1 ? a->width * i / (a->count - 1) : a->width / 2);
}

static double y_of(const axes *a, double v) {
  return PANEL_TOP +
         PANEL_HEIGHT * (1 - (log10(v) - log10(a->low)) / (log10(a->high) - log10(a->low)));
}

/* At least from 1/1.25 to 1.25, so that rounding does not fill the panel. */
static void find_range(axes *a, const series *all, int n_series) {
  double low = 1 / 1.2, high = 1.2;
  for (int s = 0; s < n_series; s++)
    for (int i = 0; i < all[s].count; i++) {
      double v = value_of(&all[s], i);
      if (v < low) low = v;
      if (v > high) high = v;
    }
  double margin = pow(high / low, 0.05);
  a->low = low / margin;
  a->high = high * margin;
}

/* Steps within a decade, so that there are a few ticks whatever the range. */
static void draw_gain_ticks(svg *d, const axes *a) {
  static const double coarse[] = {1}, middle[] = {1, 2, 5},
                      fine[] = {1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9};
  double decades = log10(a->high / a->low);
  const double *steps = decades > 2.5 ? coarse : decades > 0.8 ? middle : fine;
  int n_steps = decades > 2.5   ? 1
                : decades > 0.8 ? 3
                                : (int)BK_COUNT(fine),
      every = decades > 12 ? 3 : 1;
  for (int k = (int)floor(log10(a->low)) - 1; k <= (int)ceil(log10(a->high)); k++)
    for (int i = 0; i < n_steps; i++) {
      double v = steps[i] * pow(10, k);
      char text[32];
      if (v < a->low || v > a->high || k % every) continue;
      line(d, a->left, y_of(a, v), a->left + a->width, y_of(a, v),
           fabs(v - 1) < 1e-9 ? "#999999" : FAINT, 1);
      snprintf(text, sizeof text, "%.7g", v);
      label(d, a->left - 8, y_of(a, v) + 4, "end", 12, INK, text);
    }
}

static void draw_depth_ticks(svg *d, const axes *a) {
  int step = 1;
  /* 1 2 5 10 20 50 ... */
  for (int i = 0; a->count / step > 12; i++) step = i % 3 == 1 ? step / 2 * 5 : step * 2;
  for (int i = 0; i < a->count; i++) {
    char text[16];
    if ((i + 1) % step && i) continue;
    snprintf(text, sizeof text, "%d", i + 1);
    line(d, x_of(a, i), PANEL_TOP + PANEL_HEIGHT, x_of(a, i), PANEL_TOP + PANEL_HEIGHT + 5, INK, 1);
    label(d, x_of(a, i), PANEL_TOP + PANEL_HEIGHT + 20, "middle", 12, INK, text);
  }
}

static void draw_series(svg *d, const axes *a, const series *s) {
  add(d, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s points=\"", s->color, s->dash);
  for (int i = 0; i < s->count; i++) add(d, "%.1f,%.1f ", x_of(a, i), y_of(a, value_of(s, i)));
  add(d, "\"/>\n");
  for (int i = 0; i < s->count && a->count <= 64; i++)
    add(d, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"%s\"/>\n", x_of(a, i),
        y_of(a, value_of(s, i)), s->color);
}

/* The panel that the curves lie in: ticks of both axes, a frame and what the axes are. */
static void draw_panel(svg *d, const axes *a, const char *heading) {
  label(d, a->left, PANEL_TOP - 34, "start", 14, INK, heading);
  draw_gain_ticks(d, a);
  draw_depth_ticks(d, a);
  add(d, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"none\" stroke=\"%s\"/>\n",
      a->left, PANEL_TOP, a->width, PANEL_HEIGHT, INK);
  label(d, a->left + a->width / 2, PANEL_TOP + PANEL_HEIGHT + 42, "middle", 13, INK,
        "sublayer (attention, FFN, attention, ...)");
}

/* A piece of the curve, for a legend; y: of the text beside it. */
static void draw_sample(svg *d, double x, double y, const char *color, const char *dash) {
  add(d,
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
      "stroke-width=\"2\"%s/>\n",
      x, y - 4, x + 24, y - 4, color, dash);
}

static void draw_gains(svg *d, const bk_gain *gain, double left, double width) {
  int n = gain->n_sublayers;
  const series all[] = {
      {"single, forward", "#1f77b4", "", gain->sublayers, n, offsetof(bk_gain_row, forward)},
      {"single, backward", "#ff7f0e", "", gain->sublayers, n, offsetof(bk_gain_row, backward)},
      {"composite, forward", "#1f77b4", DASHED, gain->composite, n, offsetof(bk_gain_row, forward)},
      {"composite, backward", "#ff7f0e", DASHED, gain->composite, n,
       offsetof(bk_gain_row, backward)},
  };
  axes a = {.left = left, .width = width, .count = n};
  find_range(&a, all, BK_COUNT(all));
  draw_panel(d, &a, "Amax gain magnitude (mean over tokens, log scale)");
  for (size_t s = 0; s < BK_COUNT(all); s++) {
    double x = left + (const double[]){0, 130, 268, 425}[s], y = PANEL_TOP - 14;
    draw_series(d, &a, &all[s]);
    draw_sample(d, x, y, all[s].color, all[s].dash);
    label(d, x + 30, y, "start", 12, INK, all[s].name);
  }
}

/* ---- heat map ---- */

/* White at 0, blue for positive and red for negative values; full colour at `most`. */
static void cell_color(double v, double most, char *text, size_t size) {
  double t = most > 0 ? fabs(v) / most : 0;
  int far = (int)(200 * fmin(t, 1)), middle = (int)(130 * fmin(t, 1)),
      near = (int)(20 * fmin(t, 1));
  snprintf(text, size, "#%02x%02x%02x", 255 - (v < 0 ? near : far), 255 - middle,
           255 - (v < 0 ? far : near));
}

static void number_label(svg *d, double x, double y, int size, const char *fill, double v) {
  char text[32];
  snprintf(text, sizeof text, fabs(v) < 9.995 ? "%.2f" : fabs(v) < 1e4 ? "%.0f" : "%.1e", v);
  label(d, x, y, "middle", size, fill, text);
}

static void draw_heat_map(svg *d, const bk_gain *gain, double left, double size) {
  int n = gain->n;
  double cell = size / n, most = 0;
  int font = cell > 56 ? 16 : cell > 40 ? 13 : 10;
  for (int i = 0; i < n * n; i++) most = fmax(most, fabs(gain->mean_composite[i]));
  label(d, left, PANEL_TOP - 34, "start", 14, INK, "Composite H_L ... H_1, mean over tokens");
  label(d, left, PANEL_TOP - 14, "start", 12, INK, "rows: destination, columns: source");
  for (int k = 0; k < n; k++) {
    double row = 0, column = 0;
    for (int m = 0; m < n; m++) {
      char fill[16];
      double v = gain->mean_composite[k * n + m], x = left + m * cell, y = PANEL_TOP + k * cell;
      row += v;
      column += gain->mean_composite[m * n + k];
      cell_color(v, most, fill, sizeof fill);
      add(d,
          "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\" "
          "stroke=\"#eeeeee\"/>\n",
          x, y, cell, cell, fill);
      number_label(d, x + cell / 2, y + cell / 2 + font / 3.0, font,
                   fabs(v) > 0.75 * most ? "#ffffff" : INK, v);
    }
    number_label(d, left + size + 26, PANEL_TOP + (k + 0.5) * cell + 4, 12, INK, row);
    number_label(d, left + (k + 0.5) * cell, PANEL_TOP + size + 20, 12, INK, column);
  }
  label(d, left + size + 26, PANEL_TOP - 8, "middle", 11, "#666666", "row sum");
  label(d, left + size + 26, PANEL_TOP + size + 20, "middle", 11, "#666666", "col. sum");
}

/* ---- composites of several runs ---- */

#define RUNS_WIDTH 860 /* as wide as a page of text shows it */
#define LEGEND_TOP (PANEL_TOP + PANEL_HEIGHT + 76)
#define LEGEND_ROW 22
#define LONGEST_NAME 40

static void draw_legend(svg *d, const cli_svg_run *run, const char *color, double left, double y) {
  size_t length = strlen(run->name);
  const char *tail = length > LONGEST_NAME ? run->name + length - LONGEST_NAME : run->name;
  char gains[128], name[LONGEST_NAME + 4];
  snprintf(gains, sizeof gains, "%d sublayers, forward %.4g, backward %.4g", run->gain->n_sublayers,
           bk_unsigned_nan(run->gain->total_forward), bk_unsigned_nan(run->gain->total_backward));
  snprintf(name, sizeof name, "%s%s", tail == run->name ? "" : "...", tail);
  draw_sample(d, left, y, color, "");
  draw_sample(d, left + 32, y, color, DASHED);
  label(d, left + 66, y, "start", 13, INK, run->residual);
  label(d, left + 140, y, "start", 13, INK, gains);
  label(d, RUNS_WIDTH - 20, y, "end", 12, "#666666", name);
}

static void draw_line_kinds(svg *d, double left, double y) {
  draw_sample(d, left, y, INK, "");
  label(d, left + 30, y, "start", 12, INK, "forward, of H_l ... H_1");
  draw_sample(d, left + 200, y, INK, DASHED);
  label(d, left + 230, y, "start", 12, INK, "backward, of H_L ... H_l");
}

static void draw_composites(svg *d, const cli_svg_run *runs, int count) {
  static const char *const colors[CLI_SVG_MOST_RUNS] = {"#d62728", "#1f77b4", "#2ca02c", "#9467bd",
                                                        "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"};
  series all[2 * CLI_SVG_MOST_RUNS] = {{0}};
  axes a = {.left = 70, .width = RUNS_WIDTH - 90};
  for (int i = 0; i < count; i++) {
    const bk_gain *g = runs[i].gain;
    series s = {runs[i].name, colors[i],      "",
                g->composite, g->n_sublayers, offsetof(bk_gain_row, forward)};
    all[2 * i] = s;
    s.dash = DASHED;
    s.field = offsetof(bk_gain_row, backward);
    all[2 * i + 1] = s;
    if (g->n_sublayers > a.count) a.count = g->n_sublayers;
  }
  find_range(&a, all, 2 * count);
  draw_panel(d, &a, "Amax gain magnitude of composites (mean over tokens, log scale)");
  draw_line_kinds(d, a.left, PANEL_TOP - 14);
  for (int s = 0; s < 2 * count; s++) draw_series(d, &a, &all[s]);
  for (int i = 0; i < count; i++)
    draw_legend(d, &runs[i], colors[i], a.left, LEGEND_TOP + i * LEGEND_ROW);
}

/* ---- files ---- */

static void begin(svg *d, int width, int height, const char *title, const char *subtitle) {
  add(d, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
  add(d,
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
      "font-family=\"sans-serif\">\n",
      width, height, width, height);
  /* its own page, so that it can be read on a dark one, too */
  add(d, "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height);
  label(d, 70, 26, "start", 17, INK, title);
  label(d, width - 20, 26, "end", 12, "#666666", subtitle);
}

static bk_status end(svg *d, const char *path) {
  add(d, "</svg>\n");
  if (d->status == BK_OK) d->status = bk_file_write_atomic(d->ctx, path, d->text, d->length);
  bk_free(d->ctx, d->text);
  return d->status;
}

/* ---- timelines ---- */

#define TIMES_LEFT 64
#define TIMES_TOP 52
#define TIMES_RIGHT 24
#define COMPUTE_LANE 24
#define SEND_LANE 4 /* forward and backward: two of them */
#define TIMES_LEAST 760
#define TIMES_MOST 6000
#define TIMES_CHUNK 15 /* width of the shortest forward pass, where there is room for it */

static const struct {
  const char *name, *fill[2];
} work_colors[BK_WORKS] = {
    [BK_WORK_F] = {"F", {"#5b9bd5", "#b3d4f2"}}, [BK_WORK_B] = {"B", {"#e8894a", "#f6c9a2"}},
    [BK_WORK_I] = {"I", {"#d9b32c", "#f0dd8c"}}, [BK_WORK_W] = {"W", {"#62b179", "#b4dcbf"}},
    [BK_WORK_FB] = {"F and B", {NULL, NULL}},
};

typedef struct times_drawing {
  svg *d;
  const cli_svg_times *t;
  double scale, row; /* pixels of a unit of time, of a rank */
  bool sends;
} times_drawing;

/* Which of two colours: a rank's streams, or its chunks where there is one stream. */
static int shade(const cli_svg_times *t, int rank, int chunk) {
  const bk_schedule *s = t->schedule;
  return (s->streams > 1 ? s->rank[rank].chunks[chunk].stream : chunk) & 1;
}

/* A box, and the number where it has room. */
static void draw_box(const times_drawing *g, double x, double y, double width, double height,
                     const char *fill, int number) {
  char text[16];
  int length = snprintf(text, sizeof text, "%d", number);
  int size = width >= 6.2 * length && height >= 10 ? 10 : width >= 4.6 * length ? 7 : 0;
  add(g->d,
      "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\" fill=\"%s\" "
      "stroke=\"#00000055\" stroke-width=\"0.5\"/>\n",
      x, y, width, height, fill);
  if (size)
    label(g->d, x + width / 2, y + height / 2 + size * 0.36, "middle", size, "#1a1a1a", text);
}

/* The forward half of an FB stands above the backward one. */
static void draw_record(const times_drawing *g, int rank, int at) {
  const bk_schedule_record *r = &g->t->schedule->rank[rank].records[at];
  const bk_schedule_span *span = &g->t->timeline->spans[rank][at];
  double x = TIMES_LEFT + span->begin * g->scale, y = TIMES_TOP + rank * g->row;
  double width = (span->end - span->begin) * g->scale;
  int chunk = shade(g->t, rank, r->chunk);
  if (r->kind != BK_WORK_FB) {
    draw_box(g, x, y, width, COMPUTE_LANE, work_colors[r->kind].fill[chunk], r->micro);
    return;
  }
  int back = shade(g->t, rank, r->back_chunk);
  draw_box(g, x, y, width, COMPUTE_LANE / 2.0, work_colors[BK_WORK_F].fill[chunk], r->micro);
  draw_box(g, x, y + COMPUTE_LANE / 2.0, width, COMPUTE_LANE / 2.0,
           work_colors[BK_WORK_B].fill[back], r->back_micro);
}

static void draw_sends(const times_drawing *g, int rank) {
  const cli_svg_times *t = g->t;
  const bk_schedule_rank *list = &t->schedule->rank[rank];
  for (int i = 0; i < list->n_records; i++)
    for (int k = 0; k < 2; k++) {
      const bk_schedule_span *on = &t->timeline->messages[rank][2 * i + k];
      if (!(on->end > 0)) continue;
      add(g->d, "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" fill=\"%s\"/>\n",
          TIMES_LEFT + on->begin * g->scale,
          TIMES_TOP + rank * g->row + COMPUTE_LANE + 1 + k * SEND_LANE,
          fmax(0.5, (on->end - on->begin) * g->scale), SEND_LANE - 1,
          work_colors[k ? BK_WORK_B : BK_WORK_F].fill[0]);
    }
}

static bool has_kind(const bk_schedule *s, bk_work kind) {
  for (int r = 0; r < s->ranks; r++)
    for (int i = 0; i < s->rank[r].n_records; i++)
      if (s->rank[r].records[i].kind == kind) return true;
  return false;
}

static double draw_sample_box(svg *d, double x, double y, const char *fill, const char *text) {
  add(d, "<rect x=\"%.1f\" y=\"%.1f\" width=\"14\" height=\"12\" fill=\"%s\"/>\n", x, y - 10, fill);
  label(d, x + 19, y, "start", 12, "currentColor", text);
  return x + 19 + 6.6 * (double)strlen(text) + 14;
}

static void draw_times_legend(const times_drawing *g, double y) {
  const bk_schedule *s = g->t->schedule;
  bool two = s->streams > 1 || s->chunks > 1;
  double x = TIMES_LEFT;
  char text[64];
  for (int k = BK_WORK_F; k < BK_WORK_FB; k++) {
    bool whole = has_kind(s, (bk_work)k), part = has_kind(s, BK_WORK_FB) && k <= BK_WORK_B;
    for (int c = 0; c < (two ? 2 : 1) && (whole || part); c++) {
      snprintf(text, sizeof text, two ? "%s, %s %d" : "%s", work_colors[k].name,
               s->streams > 1 ? "stream" : "chunk", c);
      x = draw_sample_box(g->d, x, y, work_colors[k].fill[c], text);
    }
  }
  label(g->d, TIMES_LEFT, y + 20, "start", 12, "currentColor",
        g->sends ? "F forward, B backward, I gradients of activations alone, W those of weights. "
                   "Thin: what a rank sends, streams above gradients."
                 : "F forward, B backward, I gradients of activations alone, W those of weights.");
}

/* At 1, 2 or 5 times a power of ten, some 80 pixels apart. */
static void draw_time_ticks(const times_drawing *g, double y) {
  double unit = g->t->seconds ? 1e-3 : 1, step = pow(10, floor(log10(80 / (g->scale * unit))));
  for (int i = 0; step * unit * g->scale < 80 && i < 3; i++) step *= i == 1 ? 2.5 : 2;
  for (double at = 0; at * unit <= g->t->timeline->time * (1 + 1e-9); at += step) {
    char text[32];
    double x = TIMES_LEFT + at * unit * g->scale;
    snprintf(text, sizeof text, "%.6g", at);
    add(g->d,
        "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"currentColor\" "
        "stroke-opacity=\"0.25\"/>\n",
        x, TIMES_TOP - 4, x, y + 4);
    label(g->d, x, y + 18, "middle", 11, "currentColor", text);
  }
}

/* The shortest forward pass has room for the number of its micro-batch, unless the picture would be
 * too wide. */
static double find_scale(const cli_svg_times *t) {
  double least = t->timeline->time;
  for (int r = 0; r < t->schedule->ranks; r++)
    for (int i = 0; i < t->schedule->rank[r].n_records; i++) {
      const bk_schedule_span *s = &t->timeline->spans[r][i];
      double length = s->end - s->begin;
      if (t->schedule->rank[r].records[i].kind == BK_WORK_F && length > 0)
        least = fmin(least, length);
    }
  double width = least > 0 ? TIMES_CHUNK * t->timeline->time / least : TIMES_LEAST;
  width = fmin(TIMES_MOST, fmax(TIMES_LEAST, width));
  return t->timeline->time > 0 ? width / t->timeline->time : 1;
}

static void begin_times(svg *d, int width, int height, const char *title, const char *subtitle) {
  add(d, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
  add(d,
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
      "font-family=\"sans-serif\">\n",
      width, height, width, height);
  add(d,
      "<style>svg{color:#222222}.page{fill:#ffffff}@media (prefers-color-scheme: dark)"
      "{svg{color:#dddddd}.page{fill:#1b1b1b}}</style>\n");
  add(d, "<rect class=\"page\" width=\"%d\" height=\"%d\"/>\n", width, height);
  label(d, TIMES_LEFT, 22, "start", 16, "currentColor", title);
  label(d, TIMES_LEFT, 40, "start", 12, "currentColor", subtitle);
}

static void draw_times(times_drawing *g) {
  const bk_schedule *s = g->t->schedule;
  double bottom = TIMES_TOP + s->ranks * g->row;
  char text[32];
  draw_time_ticks(g, bottom);
  for (int r = 0; r < s->ranks; r++) {
    snprintf(text, sizeof text, "rank %d", r);
    label(g->d, TIMES_LEFT - 8, TIMES_TOP + r * g->row + 16, "end", 12, "currentColor", text);
    for (int i = 0; i < s->rank[r].n_records; i++) draw_record(g, r, i);
    if (g->sends) draw_sends(g, r);
  }
  draw_times_legend(g, bottom + 44);
}

bk_status cli_svg_gain(bk_context *ctx, const char *path, const bk_gain *gain, const char *title,
                       const char *subtitle) {
  svg d = {.ctx = ctx};
  begin(&d, WIDTH, HEIGHT, title, subtitle);
  draw_gains(&d, gain, 70, 580);
  draw_heat_map(&d, gain, 715, PANEL_HEIGHT);
  return end(&d, path);
}

bk_status cli_svg_composites(bk_context *ctx, const char *path, const cli_svg_run *runs,
                             int count) {
  svg d = {.ctx = ctx};
  begin(&d, RUNS_WIDTH, LEGEND_TOP + count * LEGEND_ROW, "Composite gain over depth", "");
  draw_composites(&d, runs, count);
  return end(&d, path);
}

bk_status cli_svg_timeline(bk_context *ctx, const char *path, const cli_svg_times *t) {
  svg d = {.ctx = ctx};
  times_drawing g = {.d = &d, .t = t, .scale = find_scale(t)};
  int ranks = t->schedule->ranks;
  char subtitle[160];
  g.sends = t->transfers;
  g.row = COMPUTE_LANE + 5 + (g.sends ? 2 * SEND_LANE : 0);
  snprintf(subtitle, sizeof subtitle, "%s, %d ranks, %d micro-batches: %.6g %s, bubble %.1f %%",
           t->schedule->name, ranks, t->schedule->micro_batches,
           t->timeline->time * (t->seconds ? 1e3 : 1), t->seconds ? "ms" : "units",
           t->timeline->time > 0 ? 100 * t->timeline->bubble / t->timeline->time : 0);
  begin_times(&d, TIMES_LEFT + TIMES_RIGHT + (int)ceil(t->timeline->time * g.scale),
              TIMES_TOP + (int)ceil(ranks * g.row) + 78, t->title, subtitle);
  draw_times(&g);
  return end(&d, path);
}
