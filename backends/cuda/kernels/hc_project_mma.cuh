/* The products of projections on tensor cores: rows of fn in fp32 times bf16 rows of x, sums in
 * fp32 (BK_PROJECT_RUN).
 *
 * A value of fn is the exact sum of three bf16 numbers (8 of its 24 bits each, cut off, so that
 * no operand is rounded): products are made three times. Where x or fn is not finite the result
 * is not a number (fp32 may have an infinity there).
 *
 * mma.m16n8k16 with 16 rows of fn and 8 tokens. Its k may stand for any channel, if both sides
 * agree: in a block of 32 channels lane (g, t) has channels 8t .. 8t+7 of token g, 16 bytes as
 * they lie in memory, and words 2s and 2s+1 are its operand of step s: no register moves. Eight
 * rows of fn that are left over lie in a tile twice, high term above and middle term below, then
 * the low term above: two products where 16 rows take three; the halves are added up at the end.
 *
 * The block loads two blocks of 32 columns of fn at a time ("a pair": two neighbours, or the
 * same channels of two streams) into registers, and later puts their terms into shared memory in
 * fragment order, 16 bytes a lane. */
#ifndef BK_CUDA_HC_PROJECT_MMA_CUH
#define BK_CUDA_HC_PROJECT_MMA_CUH

#include "backends/cuda/kernels/hc_project.cuh"
#include "backends/cuda/kernels/ptx.cuh"

/* of a block: 8 rows of fn x 2 x 32 columns by accesses of 16 bytes */
#define BK_PROJECT_THREADS 128
#define BK_PROJECT_COLUMNS 32

/* of a step */
template <int ROWS>
constexpr int bk_project_tiles = ROWS / 16 * 3 + ROWS / 8 % 2 * 2;
/* tiles of sums */
template <int ROWS>
constexpr int bk_project_results = (ROWS + 15) / 16;

template <int ROWS>
struct bk_project_pair {
  uint4 at[2][2][bk_project_tiles<ROWS>][BK_WARP]; /* [block of 32 columns][step] */
};

/* A thread's share of a pair: of each 8 rows row g, of block `half` the four columns from
 * `column` = 8t + 4 step on. */
struct bk_project_share {
  int g, half, step, column, lane;
};
BK_DEVICE bk_project_share bk_project_share_of(int thread) {
  /* eight lanes, eight places */
  const int t = thread % 4, step = thread / 8 % 2, g = thread / BK_WARP * 2 + thread / 4 % 2;
  return {g, thread / 16 % 2, step, 8 * t + 4 * step, 4 * g + t};
}

/* Rows first .. of fn, which has fewer than 2^31 elements. */
struct bk_project_rows {
  const float *at;
  int stride, first, rows;
};

/* The thread's four columns. Rows past the last are the last: what comes of them is not stored. */
template <int ROWS>
BK_DEVICE void bk_project_load(const bk_project_rows &fn, const bk_project_share &mine, int column,
                               float4 (&w)[ROWS / 8]) {
#pragma unroll
  for (int j = 0; j < ROWS / 8; j++) {
    const int row = fn.first + 8 * j + mine.g;
    w[j] = __ldg(reinterpret_cast<const float4 *>(
        fn.at + ((row < fn.rows ? row : fn.rows - 1) * fn.stride + column)));
  }
}

/* w = terms[0] + terms[1] + terms[2] */
BK_DEVICE void bk_project_split(const float4 &w, uint2 (&terms)[3]) {
  float rest[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int t = 0; t < 3; t++) {
    uint32_t top[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      top[i] = __float_as_uint(rest[i]) & 0xffff0000u, rest[i] -= __uint_as_float(top[i]);
    terms[t] = make_uint2(top[0] >> 16 | top[1], top[2] >> 16 | top[3]);
  }
}

template <int ROWS>
BK_DEVICE void bk_project_store(const float4 (&w)[ROWS / 8], const bk_project_share &mine,
                                bk_project_pair<ROWS> *pair) {
  uint4(&to)[bk_project_tiles<ROWS>][BK_WARP] = pair->at[mine.half][mine.step];
  uint2 high[3], low[3];
#pragma unroll
  for (int j = 0; j + 1 < ROWS / 8; j += 2) {
    bk_project_split(w[j], high);
    bk_project_split(w[j + 1], low);
#pragma unroll
    for (int t = 0; t < 3; t++)
      to[j / 2 * 3 + t][mine.lane] = make_uint4(high[t].x, low[t].x, high[t].y, low[t].y);
  }
  if constexpr (ROWS / 8 % 2) {
    bk_project_split(w[ROWS / 8 - 1], high);
    to[ROWS / 16 * 3][mine.lane] = make_uint4(high[0].x, high[1].x, high[0].y, high[1].y);
    to[ROWS / 16 * 3 + 1][mine.lane] = make_uint4(high[2].x, 0, high[2].y, 0);
  }
}

/* sums[.][n] += a block of fn times x[n], the lane's channels of tokens 8n .. 8n+7. */
template <int ROWS, int N>
BK_DEVICE void bk_project_multiply(const uint4 (&x)[N], const bk_project_pair<ROWS> *pair, int half,
                                   float (&sums)[bk_project_results<ROWS>][N][4]) {
  const int lane = (int)threadIdx.x % BK_WARP;
#pragma unroll
  for (int step = 0; step < 2; step++)
#pragma unroll
    for (int t = 0; t < 3; t++)
#pragma unroll
      for (int i = 0; i < bk_project_results<ROWS>; i++) {
        if (3 * i + t >= bk_project_tiles<ROWS>) continue;
        const uint4 a = pair->at[half][step][3 * i + t][lane];
#pragma unroll
        for (int n = 0; n < N; n++)
          bk_mma_m16n8k16_bf16(sums[i][n], {a.x, a.y, a.z, a.w},
                               {step ? x[n].z : x[n].x, step ? x[n].w : x[n].y});
      }
}

/* Tensor cores cut off what they add to a sum instead of rounding it, and over thousands of
 * additions that shows. So after every BK_PROJECT_RUN columns the sums are added, rounded to
 * nearest, to the thread's own places in shared memory, and begin anew. (The host's products
 * round: it cannot show the difference.) */
#define BK_PROJECT_RUN 256
template <int ROWS, int N>
struct bk_project_totals {
  float at[bk_project_results<ROWS>][N][4][BK_PROJECT_THREADS];
};
template <int ROWS, int N>
BK_DEVICE void bk_project_bank(float (&sums)[bk_project_results<ROWS>][N][4],
                               bk_project_totals<ROWS, N> &totals, bool first) {
#pragma unroll
  for (int i = 0; i < bk_project_results<ROWS>; i++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float &total = totals.at[i][n][j][threadIdx.x];
        total = first ? sums[i][n][j] : total + sums[i][n][j];
        sums[i][n][j] = 0;
      }
}
/* The sums with all that was banked. */
template <int ROWS, int N>
BK_DEVICE void bk_project_fetch(float (&sums)[bk_project_results<ROWS>][N][4],
                                const bk_project_totals<ROWS, N> &totals) {
#pragma unroll
  for (int i = 0; i < bk_project_results<ROWS>; i++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) sums[i][n][j] += totals.at[i][n][j][threadIdx.x];
}

BK_DEVICE float bk_project_squares(uint4 x, float sum) {
  float v[8];
  bk_unpack(x, v);
#pragma unroll
  for (int i = 0; i < 8; i++) sum += v[i] * v[i];
  return sum;
}

/* A warp's sums -> the partial sums of a slice, the tokens from `first` on. squares[n]: of the
 * lane's channels of token 8n + g; stored where the first rows of fn are. */
template <int ROWS, int N>
BK_DEVICE void bk_project_keep(const bk_project_end &end, int64_t slice, int64_t first,
                               int first_row, const float (&sums)[bk_project_results<ROWS>][N][4],
                               const float (&squares)[N]) {
  const int lane = (int)threadIdx.x % BK_WARP, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N; n++) {
    float all = squares[n] + __shfl_xor_sync(BK_FULL_MASK, squares[n], 1);
    all += __shfl_xor_sync(BK_FULL_MASK, all, 2);
    if (first_row == 0 && t == 0 && first + 8 * n + g < end.tokens)
      end.sums(slice, first + 8 * n + g)[end.rows] = all;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int64_t token = first + 8 * n + 2 * t + i;
      if (token >= end.tokens) continue;
      float *to = end.sums(slice, token);
#pragma unroll
      for (int j = 0; j < ROWS / 8; j++) {
        const bool halves = j + 1 == ROWS / 8 && j % 2 == 0;
        const float sum =
            halves ? sums[j / 2][n][i] + sums[j / 2][n][2 + i] : sums[j / 2][n][j % 2 * 2 + i];
        if (first_row + 8 * j + g < end.rows) to[first_row + 8 * j + g] = sum;
      }
    }
  }
}

/* ---- host ---- */

/* of an H100 and an H200: what slices are cut for, wherever they run */
#define BK_PROJECT_MULTIPROCESSORS 132
#define BK_PROJECT_MAX_SLICES 32
/* Steps of a slice. `steps` are shared by slices of `tiles` blocks each: the fewest slices whose
 * blocks fill nine tenths of the rounds that `at_once` blocks at a time take, else those that fill
 * most. From shapes alone; few, for their sums are written and read. */
static inline int64_t bk_project_slice(int64_t tiles, int64_t steps, int64_t at_once) {
  int64_t best = 1, best_fill = 0; /* per mille */
  for (int64_t s = 1; s <= BK_PROJECT_MAX_SLICES && s <= steps && best_fill < 900; s++) {
    const int64_t blocks = (tiles < 1 ? 1 : tiles) * s,
                  fill = 1000 * blocks / (bk_ceil_div(blocks, at_once) * at_once);
    if (fill > best_fill) best = s, best_fill = fill;
  }
  return bk_ceil_div(steps, best);
}

#endif
