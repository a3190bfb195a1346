/* Drawings of `birkhoff gain` and `birkhoff plan` as self-contained SVG 1.1: no script, no external
 * font or style. */
#ifndef BK_SVG_H
#define BK_SVG_H

#include <birkhoff/schedule.h>
#include <birkhoff/train.h>

/* Two panels as in the mHC paper (arXiv 2512.24880, figures 3, 7 and 8): gain against depth on a
 * log scale, of single sublayers and of composites, forward and backward; and a heat map of the
 * composite H_L ... H_1 averaged over tokens (row: destination, column: source) with its row
 * sums and column sums. Written atomically. `title` and `subtitle` are any bytes; they are
 * escaped. */
bk_status cli_svg_gain(bk_context *ctx, const char *path, const bk_gain *gain, const char *title,
                       const char *subtitle);

typedef struct cli_svg_run {
  const char *name, *residual; /* any bytes */
  const bk_gain *gain;
} cli_svg_run;
#define CLI_SVG_MOST_RUNS 8 /* as many colours as can be told apart */

/* One panel: the composites of every run against depth on a log scale, forward as a line and
 * backward as a dashed one of the same colour, and a legend of the residual connections and runs
 * with the gains of H_L ... H_1. Runs of different depths have one axis: the shorter ends earlier.
 * From 1 to CLI_SVG_MOST_RUNS runs; written atomically. */
bk_status cli_svg_composites(bk_context *ctx, const char *path, const cli_svg_run *runs, int count);

typedef struct cli_svg_times {
  const bk_schedule *schedule;
  const bk_timeline *timeline;
  bool transfers;    /* messages take time: there is a lane of them */
  const char *title; /* any bytes */
  bool seconds;      /* times are seconds, else units */
} cli_svg_times;

/* A row for each rank: what it computes, each record in the colour of its kind and of its stream
 * or chunk, with the number of the micro-batch where there is room; and below it, thin, what it
 * sends. Follows the light or dark scheme of whatever shows it. Written atomically. */
bk_status cli_svg_timeline(bk_context *ctx, const char *path, const cli_svg_times *times);

#endif
