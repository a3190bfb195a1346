/* hc: what the templates of the residual connections and their prepares share.
 *
 * Gradients of parameters are summed per piece of tokens into the workspace, then over the pieces in ascending order. Pieces
 * depend on shapes only and there are at most BK_HC_PIECES of them, so the workspace stays small and bits do not depend
 * on the number of threads. */
#ifndef BK_CPU_HC_H
#define BK_CPU_HC_H

#include "backends/cpu/kernels.h"

#define BK_HC_PIECES 64
/* Rows of logits of one token: n(n+2) = 80 for mhc at n = 8, 2n + n! = 130 for mhc_lite at n = 5. */
#define BK_HC_MAX_ROWS 136
#define BK_HC_MAX_ITERS 64
#define BK_HC_LITE_MAX_N 5
#define BK_HC_MAX_LANES 16 /* of any instruction set: sizes of workspaces do not depend on the set */

/* Tokens of a piece: a multiple of 16, so that the groups of tokens that share a vector are the same in every piece. */
static inline int64_t bk_hc_grain(int64_t tokens) {
  return BK_ALIGN_UP((tokens + BK_HC_PIECES - 1) / BK_HC_PIECES, 16) + (tokens == 0 ? 16 : 0);
}
static inline int64_t bk_hc_pieces(int64_t tokens) { return bk_cpu_pieces(tokens, bk_hc_grain(tokens)); }

/* HC_PROJECT: tokens of a piece, columns of a panel; scratch of one worker in floats. */
#define BK_HC_PROJECT_TOKENS 96
#define BK_HC_PROJECT_COLUMNS 256
static inline int64_t bk_hc_project_rows(int64_t rows) { return BK_ALIGN_UP(rows, 4); }
static inline size_t bk_hc_project_scratch(int64_t rows) {
  size_t padded = (size_t)bk_hc_project_rows(rows);
  return (padded + 3) * BK_HC_PROJECT_COLUMNS + (padded + 1) * BK_HC_PROJECT_TOKENS * BK_HC_MAX_LANES;
}

/* HC_PROJECT_BWD: a task is a panel of columns times a split of the tokens; more than one split only where the panels alone
 * would be few. Each split has its own dfn, [splits][R][K], when there are several. */
#define BK_HC_PANEL 240
#define BK_HC_PANEL_TOKENS 48
static inline int64_t bk_hc_panels(int64_t columns) { return (columns + BK_HC_PANEL - 1) / BK_HC_PANEL; }
static inline int64_t bk_hc_splits(int64_t tokens, int64_t columns) {
  int64_t wanted = 24 / (columns > 0 ? bk_hc_panels(columns) : 1), most = tokens / 128;
  int64_t splits = wanted < most ? wanted : most;
  return splits > 1 ? splits : 1;
}
static inline size_t bk_hc_panel_scratch(int64_t rows) {
  size_t padded = (size_t)bk_hc_project_rows(rows);
  return (2 * padded + 2 * BK_HC_PANEL_TOKENS) * BK_HC_PANEL + (padded + 1) * BK_HC_PANEL_TOKENS;
}

/* One gradient in dscale and dbase per group of rows and row: the doubles of one piece. */
static inline int64_t bk_hc_partial_count(bk_hc_kind kind, int n) {
  return bk_hc_base_count(kind, n) + bk_hc_scale_count(kind);
}

/* The permutations of n in lexicographic order, [n!][n]: entry m is the destination of source m. */
void bk_hc_permutations(int n, uint8_t *table);

#endif
