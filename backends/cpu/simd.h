/* simd: a small layer over the vector extensions of gcc and clang, for the kernel templates
 * (x_tmpl.c) only.
 *
 * bk_vf is BK_VW floats: 16 with AVX-512, 8 with AVX2, else 4 (legal on any machine; SSE2 and
 * NEON serve it directly; the set `neon` differs from `portable` on arm64 in its fused products,
 * BK_SIMD_NEON). Operators + - * / and comparisons work on whole vectors; a comparison gives a
 * bk_vi of all-ones or zero lanes for bk_v_select. Loads and stores are unaligned. `bf` (always
 * a compile-time constant after inlining: write kernel bodies as BK_INLINE functions with a
 * `const bool bf` parameter and call them once with true, once with false) selects bf16 storage,
 * rounded to nearest even on store. Products followed by sums become one FMA where the set has
 * it. exp, log, sigmoid and tanh are within 2.5 ulp over the whole range; exp(-inf) = 0, exp(x >
 * 88.8) = inf, NaN stays NaN. */
#ifndef BK_CPU_SIMD_H
#define BK_CPU_SIMD_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define BK_VW 16
#elif defined(__AVX2__)
#define BK_VW 8
#else
#define BK_VW 4
#endif

#define BK_INLINE static inline __attribute__((always_inline, unused))

typedef float bk_vf __attribute__((vector_size(4 * BK_VW)));
typedef int32_t bk_vi __attribute__((vector_size(4 * BK_VW)));
typedef uint32_t bk_vu __attribute__((vector_size(4 * BK_VW)));
typedef uint16_t bk_vh __attribute__((vector_size(2 * BK_VW)));

BK_INLINE bk_vf bk_v_set(float x) { return x - (bk_vf){0}; }
BK_INLINE bk_vf bk_v_zero(void) { return (bk_vf){0}; }
/* a b + c in one rounding wherever the set can: for sums that must have the same bits in two
 * kernels. The compiler contracts the operators only where both end up in one basic block. */
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__)) || defined(BK_SIMD_NEON)
#define BK_SIMD_FUSED 1
#else
#define BK_SIMD_FUSED 0
#endif
BK_INLINE bk_vf bk_v_fma(bk_vf a, bk_vf b, bk_vf c) {
#if defined(__AVX512F__)
  return (bk_vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (bk_vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(BK_SIMD_NEON)
  return (bk_vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
/* mask lanes are all ones or zero */
BK_INLINE bk_vf bk_v_select(bk_vi mask, bk_vf yes, bk_vf no) {
  return (bk_vf)(((bk_vi)yes & mask) | ((bk_vi)no & ~mask));
}
BK_INLINE bk_vf bk_v_abs(bk_vf x) { return (bk_vf)((bk_vu)x & 0x7fffffffu); }

/* b where either is NaN: NEON's own maximum and minimum do not do that, its compare and select
 * do. */
BK_INLINE bk_vf bk_v_max(bk_vf a, bk_vf b) {
#if defined(__AVX512F__)
  return (bk_vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (bk_vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (bk_vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return bk_v_select(a > b, a, b);
#endif
}
BK_INLINE bk_vf bk_v_min(bk_vf a, bk_vf b) {
#if defined(__AVX512F__)
  return (bk_vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (bk_vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (bk_vf)_mm_min_ps((__m128)a, (__m128)b);
#else
  return bk_v_select(a < b, a, b);
#endif
}
BK_INLINE bk_vf bk_v_sqrt(bk_vf a) {
#if defined(__AVX512F__)
  return (bk_vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (bk_vf)_mm256_sqrt_ps((__m256)a);
#elif defined(__SSE2__)
  return (bk_vf)_mm_sqrt_ps((__m128)a);
#elif defined(__aarch64__)
  return (bk_vf)vsqrtq_f32((float32x4_t)a);
#else
  for (int i = 0; i < BK_VW; i++) a[i] = sqrtf(a[i]);
  return a;
#endif
}

/* ---- loads and stores: element i of a dense row ---- */
BK_INLINE bk_vf bk_v_from_bf16(bk_vh h) {
#if defined(__AVX512F__)
  return (bk_vf)((bk_vu)_mm512_cvtepu16_epi32((__m256i)h) << 16);
#elif defined(__AVX2__)
  /* gcc 12 takes two halves otherwise */
  return (bk_vf)((bk_vu)_mm256_cvtepu16_epi32((__m128i)h) << 16);
#else
  return (bk_vf)(__builtin_convertvector(h, bk_vu) << 16);
#endif
}
/* Lanes below 65536. */
BK_INLINE bk_vh bk_v_low_halves(bk_vu u) {
#if BK_VW == 16
  return (bk_vh)_mm512_cvtepi32_epi16((__m512i)u);
#elif BK_VW == 8
  __m256i x = (__m256i)u;
  return (bk_vh)_mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
#else
  return __builtin_convertvector(u, bk_vh);
#endif
}
BK_INLINE bk_vh bk_v_to_bf16(bk_vf x) {
  bk_vu u = (bk_vu)x;
  bk_vu nan = (bk_vu)(x != x);
  bk_vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  bk_vu quiet = (u >> 16) | 0x40u;
  return bk_v_low_halves((rounded & ~nan) | (quiet & nan));
}
BK_INLINE bk_vf bk_v_ld(const void *row, int64_t i, const bool bf) {
  if (bf) {
    bk_vh h;
    memcpy(&h, (const uint16_t *)row + i, sizeof h);
    return bk_v_from_bf16(h);
  }
  bk_vf x;
  memcpy(&x, (const float *)row + i, sizeof x);
  return x;
}
BK_INLINE void bk_v_st(void *row, int64_t i, const bool bf, bk_vf x) {
  if (bf) {
    bk_vh h = bk_v_to_bf16(x);
    memcpy((uint16_t *)row + i, &h, sizeof h);
  } else {
    memcpy((float *)row + i, &x, sizeof x);
  }
}
/* ---- parts of a vector: the first `count` (< BK_VW, none below 0) lanes; the others read 0 and
 * are not written ---- */
#define BK_OUTLINE static __attribute__((noinline, unused)) /* for what is in every loop's rest */

#if defined(__AVX512F__)
BK_INLINE __mmask16 bk_v_mask(int64_t count) {
  return (__mmask16)(count > 0 ? (1u << count) - 1 : 0);
}
BK_INLINE bk_vf bk_v_ld_part(const void *row, int64_t i, const bool bf, int64_t count) {
  __mmask16 mask = bk_v_mask(count);
  if (bf) return bk_v_from_bf16((bk_vh)_mm256_maskz_loadu_epi16(mask, (const uint16_t *)row + i));
  return (bk_vf)_mm512_maskz_loadu_ps(mask, (const float *)row + i);
}
BK_INLINE void bk_v_st_part(void *row, int64_t i, const bool bf, int64_t count, bk_vf v) {
  __mmask16 mask = bk_v_mask(count);
  if (bf) _mm256_mask_storeu_epi16((uint16_t *)row + i, mask, (__m256i)bk_v_to_bf16(v));
  else _mm512_mask_storeu_ps((float *)row + i, mask, (__m512)v);
}
#else
BK_OUTLINE bk_vf bk_v_ld_part_bf16(const uint16_t *row, int64_t count) {
  uint16_t h[BK_VW] = {0};
  bk_vh v;
  for (int64_t l = 0; l < count && l < BK_VW; l++) h[l] = row[l];
  memcpy(&v, h, sizeof v);
  return bk_v_from_bf16(v);
}
BK_OUTLINE void bk_v_st_part_bf16(uint16_t *row, int64_t count, bk_vf v) {
  uint16_t h[BK_VW];
  bk_vh vh = bk_v_to_bf16(v);
  memcpy(h, &vh, sizeof h);
  for (int64_t l = 0; l < count && l < BK_VW; l++) row[l] = h[l];
}
#if defined(__AVX2__)
BK_INLINE __m256i bk_v_mask(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
BK_INLINE bk_vf bk_v_ld_part_f32(const float *row, int64_t count) {
  return (bk_vf)_mm256_maskload_ps(row, bk_v_mask(count));
}
BK_INLINE void bk_v_st_part_f32(float *row, int64_t count, bk_vf v) {
  _mm256_maskstore_ps(row, bk_v_mask(count), (__m256)v);
}
#else
BK_OUTLINE bk_vf bk_v_ld_part_f32(const float *row, int64_t count) {
  bk_vf v = {0};
  for (int64_t l = 0; l < count && l < BK_VW; l++) v[l] = row[l];
  return v;
}
BK_OUTLINE void bk_v_st_part_f32(float *row, int64_t count, bk_vf v) {
  for (int64_t l = 0; l < count && l < BK_VW; l++) row[l] = v[l];
}
#endif
BK_INLINE bk_vf bk_v_ld_part(const void *row, int64_t i, const bool bf, int64_t count) {
  if (bf) return bk_v_ld_part_bf16((const uint16_t *)row + i, count);
  return bk_v_ld_part_f32((const float *)row + i, count);
}
BK_INLINE void bk_v_st_part(void *row, int64_t i, const bool bf, int64_t count, bk_vf v) {
  if (bf) bk_v_st_part_bf16((uint16_t *)row + i, count, v);
  else bk_v_st_part_f32((float *)row + i, count, v);
}
#endif
/* `count` lanes, whole vectors at full speed: the usual loop is
 *     for (int64_t i = 0; i < n; i += BK_VW) { int64_t c = n - i; bk_vf x = bk_v_get(row, i, bf,
 *     c); ... bk_v_put(...); } */
BK_INLINE bk_vf bk_v_get(const void *row, int64_t i, const bool bf, int64_t count) {
  return count >= BK_VW ? bk_v_ld(row, i, bf) : bk_v_ld_part(row, i, bf, count);
}
BK_INLINE void bk_v_put(void *row, int64_t i, const bool bf, int64_t count, bk_vf x) {
  if (count >= BK_VW) bk_v_st(row, i, bf, x);
  else bk_v_st_part(row, i, bf, count, x);
}
/* Sets the lanes past `count` to `fill`. */
BK_INLINE bk_vf bk_v_keep(bk_vf x, int64_t count, float fill) {
  if (count >= BK_VW) return x;
#if defined(__AVX512F__)
  return (bk_vf)_mm512_mask_blend_ps(bk_v_mask(count), _mm512_set1_ps(fill), (__m512)x);
#elif defined(__AVX2__)
  return bk_v_select((bk_vi)bk_v_mask(count), x, bk_v_set(fill));
#else
  for (int64_t l = count < 0 ? 0 : count; l < BK_VW; l++) x[l] = fill;
  return x;
#endif
}

/* Lanes 0 1 2 3 ... -> 1 0 3 2 ... */
BK_INLINE bk_vf bk_v_swap_pairs(bk_vf x) {
#if BK_VW == 4
#define BK_SWAP_LANES 1, 0, 3, 2
#elif BK_VW == 8
#define BK_SWAP_LANES 1, 0, 3, 2, 5, 4, 7, 6
#else
#define BK_SWAP_LANES 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#endif
#if defined(__clang__)
  return __builtin_shufflevector(x, x, BK_SWAP_LANES);
#else
  return __builtin_shuffle(x, (bk_vi){BK_SWAP_LANES});
#endif
}

/* Four lanes whatever the set, for transpositions. */
typedef float bk_v4 __attribute__((vector_size(16)));
typedef uint32_t bk_v4u __attribute__((vector_size(16)));
#if defined(__clang__)
#define BK_V4_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define BK_V4_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (bk_v4u){i, j, k, l})
#endif
BK_INLINE bk_v4 bk_v4_ld(const void *row, int64_t i, const bool bf) {
  bk_v4 x;
  if (bf) {
    uint16_t h[4];
    memcpy(h, (const uint16_t *)row + i, sizeof h);
    return (bk_v4)((bk_v4u){h[0], h[1], h[2], h[3]} << 16);
  }
  memcpy(&x, (const float *)row + i, sizeof x);
  return x;
}
BK_INLINE void bk_v4_transpose(bk_v4 x[4]) {
  bk_v4 a = BK_V4_SHUFFLE(x[0], x[1], 0, 4, 1, 5), b = BK_V4_SHUFFLE(x[0], x[1], 2, 6, 3, 7);
  bk_v4 c = BK_V4_SHUFFLE(x[2], x[3], 0, 4, 1, 5), d = BK_V4_SHUFFLE(x[2], x[3], 2, 6, 3, 7);
  x[0] = BK_V4_SHUFFLE(a, c, 0, 1, 4, 5), x[1] = BK_V4_SHUFFLE(a, c, 2, 3, 6, 7);
  x[2] = BK_V4_SHUFFLE(b, d, 0, 1, 4, 5), x[3] = BK_V4_SHUFFLE(b, d, 2, 3, 6, 7);
}

/* ---- horizontal, always the same tree: the upper half onto the lower one until one lane is
 * left ---- */
#if BK_VW == 16
typedef float bk_v8 __attribute__((vector_size(32)));
BK_INLINE bk_v8 bk_v_low(bk_vf v) { return (bk_v8)_mm512_castps512_ps256((__m512)v); }
BK_INLINE bk_v8 bk_v_high(bk_vf v) { return (bk_v8)_mm512_extractf32x8_ps((__m512)v, 1); }
#elif BK_VW == 8
typedef bk_vf bk_v8;
#endif
#if BK_VW >= 8
BK_INLINE bk_v4 bk_v8_low(bk_v8 v) { return (bk_v4)_mm256_castps256_ps128((__m256)v); }
BK_INLINE bk_v4 bk_v8_high(bk_v8 v) { return (bk_v4)_mm256_extractf128_ps((__m256)v, 1); }
#endif
BK_INLINE bk_v4 bk_v4_max(bk_v4 a, bk_v4 b) {
  bk_v4u mask = (bk_v4u)(a > b);
  return (bk_v4)(((bk_v4u)a & mask) | ((bk_v4u)b & ~mask));
}
BK_INLINE float bk_v_hsum(bk_vf v) {
#if BK_VW == 16
  bk_v8 h = bk_v_low(v) + bk_v_high(v);
  bk_v4 q = bk_v8_low(h) + bk_v8_high(h);
#elif BK_VW == 8
  bk_v4 q = bk_v8_low(v) + bk_v8_high(v);
#else
  bk_v4 q = v;
#endif
  q = q + BK_V4_SHUFFLE(q, q, 2, 3, 2, 3);
  return q[0] + q[1];
}
BK_INLINE float bk_v_hmax(bk_vf v) {
#if BK_VW == 16
  bk_v8 l = bk_v_low(v), h = bk_v_high(v);
  bk_v4 q =
      bk_v4_max(bk_v4_max(bk_v8_low(l), bk_v8_low(h)), bk_v4_max(bk_v8_high(l), bk_v8_high(h)));
#elif BK_VW == 8
  bk_v4 q = bk_v4_max(bk_v8_low(v), bk_v8_high(v));
#else
  bk_v4 q = v;
#endif
  q = bk_v4_max(q, BK_V4_SHUFFLE(q, q, 2, 3, 2, 3));
  return q[0] > q[1] ? q[0] : q[1];
}

/* ---- functions ---- */
/* x = n ln 2 + r, |r| <= ln 2 / 2; Cephes' polynomial for e^r; 2^n in two factors, so that
 * denormals and overflow come out. */
BK_INLINE bk_vf bk_v_exp(bk_vf x) {
  x = bk_v_min(bk_v_set(89.f), bk_v_max(bk_v_set(-106.f), x));
  /* 1.5 * 2^23: the integer is in the low bits */
  bk_vf shifted = x * 1.44269504088896341f + 12582912.f;
  bk_vf n = shifted - 12582912.f;
  bk_vf r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  bk_vf p = bk_v_set(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  bk_vi e = (bk_vi)((bk_vu)shifted - 0x4b400000u);
  bk_vi half = e >> 1;
  bk_vu f1 = (bk_vu)(half + 127) << 23, f2 = (bk_vu)(e - half + 127) << 23;
  return p * (bk_vf)f1 * (bk_vf)f2;
}
BK_INLINE bk_vf bk_v_sigmoid(bk_vf x) { return 1.f / (1.f + bk_v_exp(-x)); }
/* Natural logarithm (Cephes): log 0 = -inf, log inf = inf, negative and NaN give NaN. */
BK_INLINE bk_vf bk_v_log(bk_vf x) {
  bk_vi tiny = x < 1.17549435e-38f;
  bk_vf y = bk_v_select(tiny, x * 8388608.f, x);
  bk_vu u = (bk_vu)y;
  bk_vi e = (bk_vi)(u >> 23) - 126 - (tiny & 23);
  bk_vf m = (bk_vf)((u & 0x007fffffu) | 0x3f000000u); /* [0.5, 1) */
  bk_vi low = m < 0.707106781186547524f;
  e = e + low; /* minus one where low */
  m = bk_v_select(low, m + m, m) - 1.f;
  bk_vf fe = __builtin_convertvector(e, bk_vf);
  bk_vf z = m * m;
  bk_vf p = bk_v_set(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * z;
  p = p + fe * -2.12194440e-4f;
  p = p - 0.5f * z;
  bk_vf r = m + p + fe * 0.693359375f;
  r = bk_v_select(x == 0.f, bk_v_set(-INFINITY), r);
  r = bk_v_select(x == INFINITY, x, r);
  return bk_v_select(x >= 0.f, r, bk_v_set(NAN));
}
BK_INLINE bk_vf bk_v_tanh(bk_vf x) {
  bk_vf a = bk_v_abs(x), z = x * x;
  bk_vf p = bk_v_set(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  p = p * z * x + x;
  bk_vf big = 1.f - 2.f / (bk_v_exp(a + a) + 1.f);
  big = (bk_vf)((bk_vu)big | ((bk_vu)x & 0x80000000u));
  return bk_v_select(a < 0.625f, p, big);
}

#endif
