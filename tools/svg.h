/* Drawings of `birkhoff gain` as self-contained SVG 1.1: no script, no external font or style. */
#ifndef BK_SVG_H
#define BK_SVG_H

#include <birkhoff/train.h>

/* Two panels as in the mHC paper (arXiv 2512.24880, figures 3, 7 and 8): gain against depth on a
 * log scale, of single sublayers and of composites, forward and backward; and a heat map of the
 * composite H_L ... H_1 averaged over tokens (row: destination, column: source) with its row
 * sums and column sums. Written atomically. `title` and `subtitle` are any bytes; they are
 * escaped. */
bk_status cli_svg_gain(bk_context *ctx, const char *path, const bk_gain *gain, const char *title,
                       const char *subtitle);

#endif
