/* The micro kernel of the packed engine: an m x n block of c kept in registers while a sliver of
 * a and one of b stream by.
 *
 *   c[i][j] = alpha sum_l a[l * MR + i] b[l * NR + j]  (+ c[i][j])      i < m <= MR, j < n <= NR,
 *     sums in order of l
 *
 * Every element has the same sequence of operations whatever the size of the block it falls in,
 * so that the cut of a product into tiles does not show in the bits. Included by templates, see
 * cpu.h. Slivers are MR and NR wide, padded with zeros. */
#ifndef BK_CPU_GEMM_MICRO_H
#define BK_CPU_GEMM_MICRO_H

#include "backends/cpu/cpu.h"
#include "backends/cpu/simd.h"

/* MR x NR sums beside two vectors of b and one of a fill the registers: 16 with AVX2 and SSE2,
 * 32 with AVX-512 and NEON. */
#if BK_VW == 16
#define MR 12
#elif defined(__aarch64__)
#define MR 8
#else
#define MR 6
#endif
#define NR (2 * BK_VW)

#if BK_VW == 16
#define MICRO_ROWS(X) \
  X(0)                \
  X(1)                \
  X(2)                \
  X(3)                \
  X(4)                \
  X(5)                \
  X(6)                \
  X(7)                \
  X(8)                \
  X(9)                \
  X(10)               \
  X(11)
#elif defined(__aarch64__)
#define MICRO_ROWS(X) \
  X(0)                \
  X(1)                \
  X(2)                \
  X(3)                \
  X(4)                \
  X(5)                \
  X(6)                \
  X(7)
#else
#define MICRO_ROWS(X) \
  X(0)                \
  X(1)                \
  X(2)                \
  X(3)                \
  X(4)                \
  X(5)
#endif
#define MICRO_ZERO(i) bk_vf c##i##_0 = bk_v_zero(), c##i##_1 = bk_v_zero();
#define MICRO_FETCH(i) \
  if (i < m)           \
    __builtin_prefetch(c + i * ldc, 1), __builtin_prefetch(c + i * ldc + (wide ? NR - 1 : 0), 1);
#define MICRO_STEP(i)                               \
  if (i < m) {                                      \
    bk_vf x = bk_v_set(a[i]);                       \
    c##i##_0 = bk_v_fma(x, b0, c##i##_0);           \
    if (wide) c##i##_1 = bk_v_fma(x, b1, c##i##_1); \
  }
#define MICRO_STORE(i)                                                                           \
  if (i < m) {                                                                                   \
    float *row = c + i * ldc;                                                                    \
    bk_v_st(row, 0, false, add ? bk_v_fma(c##i##_0, va, bk_v_ld(row, 0, false)) : c##i##_0 *va); \
    if (wide)                                                                                    \
      bk_v_st(row, BK_VW, false,                                                                 \
              add ? bk_v_fma(c##i##_1, va, bk_v_ld(row, BK_VW, false)) : c##i##_1 *va);          \
  }
BK_INLINE void micro_body(const int m, const bool wide, int64_t depth, const float *restrict a,
                          const float *restrict b, float *restrict c, int64_t ldc, float alpha,
                          const bool add) {
  bk_vf va = bk_v_set(alpha);
  MICRO_ROWS(MICRO_FETCH)
  MICRO_ROWS(MICRO_ZERO)
  for (int64_t l = 0; l < depth; l++, a += MR, b += NR) {
    bk_vf b0 = bk_v_ld(b, 0, false), b1 = wide ? bk_v_ld(b, BK_VW, false) : b0;
    MICRO_ROWS(MICRO_STEP)
  }
  MICRO_ROWS(MICRO_STORE)
}

/* Blocks of fewer rows have kernels of their own: MR in quarters, or in halves where it is
 * small; `n` ones have one vector of columns. */
#define MICRO_PARTS (MR > 8 ? 4 : 2)
#define MICRO_KERNEL(name, rows, wide)                                                           \
  static void micro_##name(int64_t depth, const float *a, const float *b, float *c, int64_t ldc, \
                           float alpha, bool add) {                                              \
    if (add) micro_body(rows, wide, depth, a, b, c, ldc, alpha, true);                           \
    else micro_body(rows, wide, depth, a, b, c, ldc, alpha, false);                              \
  }
#define MICRO_PART(part)                             \
  MICRO_KERNEL(part, part *(MR / MICRO_PARTS), true) \
  MICRO_KERNEL(part##n, part *(MR / MICRO_PARTS), false)
MICRO_PART(1)
MICRO_PART(2)
#if MR > 8
MICRO_PART(3)
MICRO_PART(4)
#endif

typedef void (*micro_fn)(int64_t depth, const float *a, const float *b, float *c, int64_t ldc,
                         float alpha, bool add);

/* The smallest kernel that holds m x n; it writes *rows x *columns. */
static micro_fn micro_pick(int64_t m, int64_t n, int64_t *rows, int64_t *columns) {
#if MR > 8
  static const micro_fn by_part[][2] = {
      {micro_1n, micro_1}, {micro_2n, micro_2}, {micro_3n, micro_3}, {micro_4n, micro_4}};
#else
  static const micro_fn by_part[][2] = {{micro_1n, micro_1}, {micro_2n, micro_2}};
#endif
  int64_t part = (m * MICRO_PARTS + MR - 1) / MR;
  *rows = part * (MR / MICRO_PARTS);
  *columns = n > BK_VW ? NR : BK_VW;
  return by_part[part - 1][n > BK_VW];
}

/* A block that no kernel fills exactly: through a block of its own, with the same operations. */
static void micro_edge(micro_fn fn, int64_t depth, const float *a, const float *b, float *c,
                       int64_t ldc, int64_t m, int64_t n, float alpha, bool add) {
  float block[MR * NR] = {0};
  for (int64_t i = 0; add && i < m; i++) memcpy(block + i * NR, c + i * ldc, (size_t)n * sizeof *c);
  fn(depth, a, b, block, NR, alpha, add);
  for (int64_t i = 0; i < m; i++) memcpy(c + i * ldc, block + i * NR, (size_t)n * sizeof *c);
}
/* Memory that a panel will be packed from later: `rows` of `lines` cache lines, fetched a few at
 * a time between blocks. */
typedef struct micro_fetch {
  const char *base;
  /* bytes between rows; lines of a row, of all, the next one; lines at a time */
  int64_t pitch, lines, count, next, share;
} micro_fetch;
BK_INLINE void fetch_share(micro_fetch *f) {
  int64_t end = f->next + f->share < f->count ? f->next + f->share : f->count;
  for (; f->next < end; f->next++)
    __builtin_prefetch(f->base + f->next / f->lines * f->pitch + f->next % f->lines * 64, 0, 2);
}
/* Whole panels: slivers of a `step` floats apart, of b depth * NR; the sliver of b stays in the
 * first cache. */
BK_UNUSED static void micro_panels(const float *a, int64_t step, int64_t m, const float *b,
                                   int64_t n, int64_t depth, float *c, int64_t ldc, float alpha,
                                   bool add, micro_fetch *fetch) {
  for (int64_t j = 0; j < n; j += NR, b += depth * NR)
    for (int64_t i = 0; i < m; i += MR) {
      if (fetch) fetch_share(fetch);
      const float *sliver = a + i / MR * step;
      float *at = c + i * ldc + j;
      int64_t rest_m = m - i < MR ? m - i : MR, rest_n = n - j < NR ? n - j : NR, rows, columns;
      micro_fn fn = micro_pick(rest_m, rest_n, &rows, &columns);
      if (rest_m == rows && rest_n == columns) fn(depth, sliver, b, at, ldc, alpha, add);
      else micro_edge(fn, depth, sliver, b, at, ldc, rest_m, rest_n, alpha, add);
    }
}

#endif
