/* How the backward of attention is cut into pieces, each of which keeps within a limit the
 * matrix ds, [B,H,T,T] in bf16, that cuDNN's deterministic backward has in its workspace. Needs
 * neither cuDNN nor a device.
 *
 * A piece is a range of sequences with all heads where one sequence stays within the limit, else
 * a range of heads of one sequence: so the lse of a piece, which cuDNN reads packed, lies packed
 * in that of the whole. Ranges are as even as can be, hence all pieces have the shape of the
 * first or of the last. They depend on shapes alone, and no piece reads what another writes. */
#ifndef BK_CUDA_CUDNN_PIECES_H
#define BK_CUDA_CUDNN_PIECES_H

#include "runtime/op.h"

/* cuDNN keeps ds for whole tiles of at most so many queries and keys (T = 4000: 4096 x 4032) */
#define BK_CUDNN_TILE 128

/* Ranges along each; none where not even one head stays within the limit. Pieces: sequences
 * times heads. */
typedef struct bk_cudnn_cut {
  int64_t sequences, heads;
} bk_cudnn_cut;

bk_cudnn_cut bk_cudnn_cut_of(const bk_attention_bwd_args *a, size_t limit);
static inline int64_t bk_cudnn_count(bk_cudnn_cut cut) { return cut.sequences * cut.heads; }
/* The i-th piece: the same memory, narrowed. */
bk_attention_bwd_args bk_cudnn_piece(const bk_attention_bwd_args *a, bk_cudnn_cut cut, int64_t i);

#endif
