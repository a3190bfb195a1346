/* See cudnn_pieces.h. */
#include "backends/cuda/cudnn_pieces.h"

static int64_t ranges_of(int64_t count, int64_t most) { return (count + most - 1) / most; }

bk_cudnn_cut bk_cudnn_cut_of(const bk_attention_bwd_args *a, size_t limit) {
  const int64_t b = a->q.shape[0], t = a->q.shape[1], h = a->q.shape[2];
  const double side = (double)ranges_of(t, BK_CUDNN_TILE) * BK_CUDNN_TILE,
               head = side * side * (double)bk_dtype_size(BK_BF16);
  if (b < 1 || h < 1 || t < 1 || head > (double)limit) return (bk_cudnn_cut){0, 0};
  const int64_t most = (int64_t)((double)limit / head); /* heads */
  if (most >= h) return (bk_cudnn_cut){ranges_of(b, most / h), 1};
  return (bk_cudnn_cut){b, ranges_of(h, most)};
}

typedef struct range {
  int64_t begin, length;
} range;

static range range_at(int64_t count, int64_t ranges, int64_t i) {
  const int64_t begin = i * count / ranges;
  return (range){begin, (i + 1) * count / ranges - begin};
}

static void narrow(bk_tensor *t, range sequences, int heads_at, range heads) {
  *t = bk_tensor_slice(bk_tensor_slice(*t, 0, sequences.begin, sequences.length), heads_at,
                       heads.begin, heads.length);
}

bk_attention_bwd_args bk_cudnn_piece(const bk_attention_bwd_args *a, bk_cudnn_cut cut, int64_t i) {
  const range sequences = range_at(a->q.shape[0], cut.sequences, i / cut.heads),
              heads = range_at(a->q.shape[2], cut.heads, i % cut.heads);
  bk_attention_bwd_args piece = *a;
  bk_tensor *const rows[] = {&piece.q,    &piece.k,  &piece.v,  &piece.o,
                             &piece.dout, &piece.dq, &piece.dk, &piece.dv};
  for (size_t n = 0; n < BK_COUNT(rows); n++) narrow(rows[n], sequences, 2, heads);
  narrow(&piece.lse, sequences, 1, heads);
  /* of one sequence, and packed */
  if (cut.heads > 1) piece.lse.stride[0] = piece.lse.shape[1] * piece.lse.stride[1];
  return piece;
}
