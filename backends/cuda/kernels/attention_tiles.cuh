/* Tiles of bf16 in shared memory for the attention kernels on tensor cores: a tile of rows of D
 * elements (D a multiple of 16, wider than the tensor's rows where those are no such width,
 * zeros beyond) with 16 bytes between rows, so that the eight rows that one ldmatrix reads stand
 * in different banks. Fragments: ptx.cuh. */
#ifndef BK_CUDA_ATTENTION_TILES_CUH
#define BK_CUDA_ATTENTION_TILES_CUH

#include "backends/cuda/kernels/attention.cuh"

template <int D>
constexpr int bk_att_pitch = D + 8; /* elements from row to row */

/* Asynchronous: ROWS rows of x from `first`, those past `count` and columns past the width zero.
 * The caller commits. Eight threads (four for narrow rows) read neighbouring packs of a row, so
 * that a thread's addresses differ by constants and by rows; FRESH saves registers (ptx.cuh). */
template <int ROWS, int D, int THREADS, bool FRESH = true>
BK_DEVICE void bk_att_fetch(bk_bf16 *tile, bk_att_rows<const bk_bf16> x, int first, int count) {
  constexpr int packs = D / 8, lanes = packs % 8 ? 4 : 8, step = THREADS / lanes;
  const int id = FRESH ? bk_fresh((int)threadIdx.x) : (int)threadIdx.x, row = id / lanes,
            column = id % lanes * 8;
  const int stride = (int)x.stride; /* accepts() saw to it */
  const bk_bf16 *from = x.at + (int64_t)(first + row) * stride + column;
  bk_bf16 *to = tile + row * bk_att_pitch<D> + column;
#pragma unroll
  for (int r = 0; r < ROWS; r += step, from += step * stride)
#pragma unroll
    for (int c = 0; c < D; c += lanes * 8) {
      const bool inside = first + row + r < count && column + c < x.width;
      if (ROWS % step == 0 || row + r < ROWS)
        bk_cp_async_16_zfill(to + r * bk_att_pitch<D> + c, inside ? from + c : x.at,
                             inside ? 16 : 0);
    }
}

/* a: 16 x 16 of the tile at (row, column), for the left side of a product. */
template <int D>
BK_DEVICE void bk_att_left(uint32_t (&a)[4], const bk_bf16 *tile, int row, int column) {
  const int lane = (int)threadIdx.x % BK_WARP;
  bk_ldmatrix_x4(a, tile + (row + lane % 16) * bk_att_pitch<D> + column + lane / 16 * 8);
}
/* b, two column tiles of 8: rows row .. row + 15 of the tile are the columns of the right side,
 * depth from `column`. */
template <int D>
BK_DEVICE void bk_att_right_turned(uint32_t (&b)[4], const bk_bf16 *tile, int row, int column) {
  const int lane = (int)threadIdx.x % BK_WARP;
  bk_ldmatrix_x4(
      b, tile + (row + lane / 16 * 8 + lane % 8) * bk_att_pitch<D> + column + lane / 8 % 2 * 8);
}
/* b, two column tiles of 8: depth is the tile's rows row .. row + 15, columns from `column`. */
template <int D>
BK_DEVICE void bk_att_right(uint32_t (&b)[4], const bk_bf16 *tile, int row, int column) {
  const int lane = (int)threadIdx.x % BK_WARP;
  bk_ldmatrix_x4_trans(b, tile + (row + lane % 16) * bk_att_pitch<D> + column + lane / 16 * 8);
}
/* d0, d1 += a b for the two column tiles. */
BK_DEVICE void bk_att_mma(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4],
                          const uint32_t (&b)[4]) {
  const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
  bk_mma_m16n8k16_bf16(d0, a, b0);
  bk_mma_m16n8k16_bf16(d1, a, b1);
}
/* Results of two neighbouring column tiles, rounded to bf16, as the left side of the next
 * product. */
BK_DEVICE void bk_att_relay(uint32_t (&a)[4], const float (&d0)[4], const float (&d1)[4]) {
  a[0] = bk_bf16x2(d0[0], d0[1]);
  a[1] = bk_bf16x2(d0[2], d0[3]);
  a[2] = bk_bf16x2(d1[0], d1[1]);
  a[3] = bk_bf16x2(d1[2], d1[3]);
}

/* s[n] = A B^T, A rows `a_row`.. (16) of tile a, B rows b_row .. b_row + 8 N of tile b, depth D. */
template <int N, int D>
BK_DEVICE void bk_att_scores(float (&s)[N][4], const bk_bf16 *a, int a_row, const bk_bf16 *b,
                             int b_row) {
#pragma unroll
  for (int n = 0; n < N; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    uint32_t left[4];
    bk_att_left<D>(left, a, a_row, d);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t right[4];
      bk_att_right_turned<D>(right, b, b_row + 8 * n, d);
      bk_att_mma(s[n], s[n + 1], left, right);
    }
  }
}
/* acc += P B, P 16 x 8 N rounded to bf16, B the first 8 N rows of tile b, D columns. */
template <int N, int D>
BK_DEVICE void bk_att_combine(float (&acc)[D / 8][4], const float (&p)[N][4], const bk_bf16 *b) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    uint32_t left[4];
    bk_att_relay(left, p[n], p[n + 1]);
#pragma unroll
    for (int c = 0; c < D / 8; c += 2) {
      uint32_t right[4];
      bk_att_right<D>(right, b, 8 * n, 8 * c);
      bk_att_mma(acc[c], acc[c + 1], left, right);
    }
  }
}

/* A warp's 16 rows of results, times a factor for rows g and g + 8, to y by packs; `own` is
 * shared memory of 16 rows of pitch PITCH that only this warp uses. Rows of y past `rows` are
 * not written. */
template <int D, int PITCH>
BK_DEVICE void bk_att_store(bk_att_rows<bk_bf16> y, int first, int rows, bk_bf16 *own,
                            const float (&acc)[D / 8][4], float low, float high) {
  const int lane = (int)threadIdx.x % BK_WARP, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int c = 0; c < D / 8; c++) {
    *reinterpret_cast<uint32_t *>(own + g * PITCH + 8 * c + 2 * t) =
        bk_bf16x2(acc[c][0] * low, acc[c][1] * low);
    *reinterpret_cast<uint32_t *>(own + (g + 8) * PITCH + 8 * c + 2 * t) =
        bk_bf16x2(acc[c][2] * high, acc[c][3] * high);
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < D / 16; n++) {
    const int i = n * BK_WARP + lane, row = i / (D / 8), column = i % (D / 8) * 8;
    if (row < rows && column < y.width)
      *reinterpret_cast<uint4 *>(y.at + (first + row) * y.stride + column) =
          *reinterpret_cast<const uint4 *>(own + row * PITCH + column);
  }
}

/* Host: whether these kernels take a tensor. */
static inline bool bk_att_tile_fits(const bk_tensor *t) {
  return bk_packs_fit(t) && t->stride[1] >= 0 && t->stride[1] < (1 << 23);
}

#endif
