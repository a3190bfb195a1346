/* Packing of panels into slivers for the micro kernel (gemm_micro.h), with conversion from bf16.
 * Included by templates, see cpu.h. A sliver: dst[l * width + i] = element (i, l); lanes past
 * the panel are zero. Slivers lie one after the other. */
#ifndef BK_CPU_GEMM_PACK_H
#define BK_CPU_GEMM_PACK_H

#include "backends/cpu/gemm.h"
#include "backends/cpu/simd.h"

/* Rows of the source that are fetched before they are read; into the second cache, since rows a
 * power of two apart would push each other out of the first. */
#define PACK_AHEAD 16
#define PACK_FETCH(address) __builtin_prefetch(address, 0, 2)

/* ---- source dense along the depth: a transposition ---- */
/* Rows i, i+1 (.. i+3) of the source into columns of dst, four elements of depth at a time. The
 * rows that come next are fetched meanwhile: their beginnings are where the hardware does not
 * see a stream yet. */
BK_INLINE void pack_two(const char *src, int64_t si, int64_t depth, float *dst, const int64_t width,
                        const bool bf) {
  int64_t l = 0;
  for (; l + 4 <= depth; l += 4) {
    bk_v4 a = bk_v4_ld(src, l, bf), b = bk_v4_ld(src, l + si, bf);
    bk_v4 low = BK_V4_SHUFFLE(a, b, 0, 4, 1, 5), high = BK_V4_SHUFFLE(a, b, 2, 6, 3, 7);
    memcpy(dst + l * width, &low, 8);
    memcpy(dst + (l + 1) * width, (const char *)&low + 8, 8);
    memcpy(dst + (l + 2) * width, &high, 8);
    memcpy(dst + (l + 3) * width, (const char *)&high + 8, 8);
  }
  for (; l < depth; l++)
    for (int64_t q = 0; q < 2; q++) dst[l * width + q] = bk_cpu_get(src, l + q * si, bf);
}
BK_INLINE void pack_four(const char *src, int64_t si, int64_t depth, float *dst,
                         const int64_t width, const bool bf) {
  const int64_t size = bf ? 2 : 4;
  int64_t l = 0;
  for (; l + 4 <= depth; l += 4) {
    bk_v4 x[4];
    for (int q = 0; q < 4; q++) x[q] = bk_v4_ld(src, l + q * si, bf);
    if (l % 16 == 0)
      for (int q = 4; q < 8; q++) PACK_FETCH(src + (l + q * si) * size);
    bk_v4_transpose(x);
    for (int q = 0; q < 4; q++) memcpy(dst + (l + q) * width, x + q, sizeof x[q]);
  }
  for (; l < depth; l++)
    for (int64_t q = 0; q < 4; q++) dst[l * width + q] = bk_cpu_get(src, l + q * si, bf);
}
#if defined(__AVX2__)
/* Eight rows at once, fp32. */
BK_INLINE void pack_eight(const float *src, int64_t si, int64_t depth, float *dst,
                          const int64_t width) {
  int64_t l = 0;
  for (; l + 4 <= depth; l += 4) {
    __m256 r[4];
    for (int q = 0; q < 4; q++)
      r[q] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(src + q * si + l)),
                                  _mm_loadu_ps(src + (q + 4) * si + l), 1);
    if (l % 16 == 0)
      for (int q = 8; q < 16; q++) PACK_FETCH(src + q * si + l);
    __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
    __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
    _mm256_storeu_ps(dst + l * width, _mm256_shuffle_ps(a, c, 0x44));
    _mm256_storeu_ps(dst + (l + 1) * width, _mm256_shuffle_ps(a, c, 0xee));
    _mm256_storeu_ps(dst + (l + 2) * width, _mm256_shuffle_ps(b, d, 0x44));
    _mm256_storeu_ps(dst + (l + 3) * width, _mm256_shuffle_ps(b, d, 0xee));
  }
  for (; l < depth; l++)
    for (int64_t q = 0; q < 8; q++) dst[l * width + q] = src[q * si + l];
}
#endif
BK_INLINE void pack_turned(const char *src, int64_t si, int64_t count, int64_t depth, float *dst,
                           const int64_t width, const bool bf) {
  const int64_t bytes = si * (bf ? 2 : 4);
  int64_t i = 0;
#if defined(__AVX2__)
  for (; !bf && i + 8 <= count; i += 8)
    pack_eight((const float *)(const void *)(src + i * bytes), si, depth, dst + i, width);
#endif
  for (; i + 4 <= count; i += 4) pack_four(src + i * bytes, si, depth, dst + i, width, bf);
  for (; i + 2 <= count; i += 2) pack_two(src + i * bytes, si, depth, dst + i, width, bf);
  for (; i < count; i++)
    for (int64_t l = 0; l < depth; l++) dst[l * width + i] = bk_cpu_get(src + i * bytes, l, bf);
}

/* ---- source dense along the slivers: copies. Several slivers side by side, so that rows are
 * read in runs. ---- */
BK_INLINE void pack_run(const char *src, float *dst, const int64_t width, const bool bf) {
  if (width % BK_VW == 0) {
    for (int64_t i = 0; i < width; i += BK_VW) bk_v_st(dst, i, false, bk_v_ld(src, i, bf));
  } else if (!bf) {
    memcpy(dst, src, (size_t)width * sizeof *dst);
  } else {
    for (int64_t i = 0; i < width; i++) dst[i] = bk_cpu_get(src, i, true);
  }
}
BK_INLINE void pack_straight(const char *src, int64_t sl, int64_t slivers, int64_t depth,
                             float *dst, const int64_t width, const bool bf) {
  const int64_t size = bf ? 2 : 4;
  for (int64_t l = 0; l < depth; l++) {
    const char *row = src + l * sl * size;
    for (int64_t g = 0; g < slivers; g++)
      pack_run(row + g * width * size, dst + g * width * depth + l * width, width, bf);
    for (int64_t at = 0; at < slivers * width * size; at += 64)
      PACK_FETCH(row + PACK_AHEAD * sl * size + at);
  }
}

/* ---- the rest: any strides, or a sliver that is not full ---- */
BK_INLINE void pack_part(const char *src, int64_t si, int64_t sl, int64_t count, int64_t depth,
                         float *dst, const int64_t width, const bool bf) {
  if (count < width) memset(dst, 0, (size_t)(depth * width) * sizeof *dst);
  if (sl == 1) {
    pack_turned(src, si, count, depth, dst, width, bf);
    return;
  }
  for (int64_t l = 0; l < depth; l++)
    for (int64_t i = 0; i < count; i++) dst[l * width + i] = bk_cpu_get(src, i * si + l * sl, bf);
}

/* si, sl: strides along the slivers and along the depth. */
BK_INLINE void pack_slivers(bk_gemm_mat x, int64_t si, int64_t sl, int64_t size, int64_t depth,
                            float *dst, const int64_t width, const bool bf) {
  const int64_t together = width >= 64 ? 1 : 64 / width;
  for (int64_t i = 0; i < size;) {
    const char *src = x.data + i * si * (bf ? 2 : 4);
    int64_t full = (size - i) / width,
            slivers = si == 1 && full > 0 ? (full < together ? full : together) : 1;
    if (si == 1 && full > 0) pack_straight(src, sl, slivers, depth, dst + i * depth, width, bf);
    else
      pack_part(src, si, sl, size - i < width ? size - i : width, depth, dst + i * depth, width,
                bf);
    i += slivers * width;
  }
}
static void pack_a(bk_gemm_mat x, int64_t m, int64_t depth, float *dst) {
  if (x.bf16) pack_slivers(x, x.rs, x.cs, m, depth, dst, MR, true);
  else pack_slivers(x, x.rs, x.cs, m, depth, dst, MR, false);
}
static void pack_b(bk_gemm_mat x, int64_t n, int64_t depth, float *dst) {
  if (x.bf16) pack_slivers(x, x.cs, x.rs, n, depth, dst, NR, true);
  else pack_slivers(x, x.cs, x.rs, n, depth, dst, NR, false);
}

#endif
