/* hc: what the templates of the residual connections and their prepares share.
 *
 * Gradients of parameters are summed per piece of tokens into the workspace, then over the
 * pieces in ascending order. Pieces depend on shapes only and there are at most BK_HC_PIECES of
 * them, so the workspace stays small and bits do not depend on the number of threads. */
#ifndef BK_CPU_HC_H
#define BK_CPU_HC_H

#include "backends/cpu/kernels.h"

#define BK_HC_PIECES 16
#define BK_HC_MIN_PIECE 128 /* tokens */
/* Rows of logits of one token: n(n+2) = 80 for mhc at n = 8, 2n + n! = 130 for mhc_lite at n =
 * 5. */
#define BK_HC_MAX_ROWS 136
#define BK_HC_MAX_ITERS BK_SINKHORN_MAX_ITERS
/* of any instruction set: sizes of workspaces do not depend on the set */
#define BK_HC_MAX_LANES 16

/* Tokens of a piece: a multiple of BK_HC_GROUP, so that the tokens that share a vector are the
 * same in every kernel. */
static inline int64_t bk_hc_grain(int64_t tokens) {
  int64_t grain = BK_ALIGN_UP((tokens + BK_HC_PIECES - 1) / BK_HC_PIECES, 32);
  return grain > BK_HC_MIN_PIECE ? grain : BK_HC_MIN_PIECE;
}
static inline int64_t bk_hc_pieces(int64_t tokens) {
  return bk_cpu_pieces(tokens, bk_hc_grain(tokens));
}

/* Tokens whose streams a fused kernel keeps in cache: forward, backward. Multiples of 16,
 * factors of a piece. */
#define BK_HC_BLOCK 16
#define BK_HC_GROUP 16

/* Tokens of a piece where nothing is summed over tokens: a few blocks, so that each can ask for
 * the next one's streams. */
static inline int64_t bk_hc_block_grain(int64_t tokens) {
  int64_t grain = BK_ALIGN_UP((tokens + 31) / 32, BK_HC_BLOCK);
  return grain < 128 ? (grain > 0 ? grain : BK_HC_BLOCK) : 128;
}

/* HC_PROJECT: rows of fn as they are packed: groups of 24, the last one shorter, a multiple of
 * 8. */
#define BK_HC_ROW_GROUP 24
static inline int64_t bk_hc_project_rows(int64_t rows) { return BK_ALIGN_UP(rows, 8); }
static inline size_t bk_hc_project_floats(int64_t rows, int64_t columns) {
  return (size_t)(bk_hc_project_rows(rows) * columns);
}

/* HC_PROJECT_BWD: fn in panels of at most 48 columns; then dfn of each piece. */
static inline size_t bk_hc_panel_floats(int64_t rows, int64_t columns) {
  return (size_t)(bk_hc_project_rows(rows) * (columns + 3 * BK_HC_MAX_LANES));
}
static inline size_t bk_hc_project_bwd_floats(int64_t tokens, int64_t rows, int64_t columns) {
  return (size_t)(1 + bk_hc_pieces(tokens)) * bk_hc_panel_floats(rows, columns);
}

/* One gradient in dscale and dbase per group of rows and row: the doubles of all pieces. */
static inline size_t bk_hc_partials_bytes(int64_t tokens, const bk_tensor *dbase,
                                          const bk_tensor *dscale) {
  return (size_t)(bk_hc_pieces(tokens) * (dbase->shape[0] + dscale->shape[0])) * sizeof(double);
}

/* HC_MERGE_MIX_BWD: the workspaces of its parts. */
typedef struct bk_hc_merge_mix_bwd_places {
  bk_place maps, pre_norm, project;
  size_t bytes;
} bk_hc_merge_mix_bwd_places;
bk_hc_merge_mix_bwd_places bk_hc_merge_mix_bwd_split(const bk_hc_merge_mix_bwd_args *a,
                                                     bk_place workspace);

/* The permutations of n in lexicographic order, [n!][n]: entry m is the destination of source m. */
void bk_hc_permutations(int n, uint8_t *table);

#endif
