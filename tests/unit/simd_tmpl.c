/* The vector layer at the width of one instruction set, against scalar code. Template as those
 * of backends/cpu: compiled once per set; test_simd.c calls the function that the set exports. */
#include "backends/cpu/simd.h"
#include "tests/unit/simd.h"

#include <stdio.h>

static char failure[160];
#define FAIL_UNLESS(condition, ...)                 \
  do {                                              \
    if (condition) break;                           \
    snprintf(failure, sizeof failure, __VA_ARGS__); \
    return failure;                                 \
  } while (0)

static float value(uint64_t stream, int i) {
  return (float)(4 * bk_uniform(11, stream, (uint64_t)i) - 2);
}
static bk_vf values(uint64_t stream) {
  float x[BK_VW];
  for (int i = 0; i < BK_VW; i++) x[i] = value(stream, i);
  return bk_v_ld(x, 0, false);
}
static bool same(float a, float b) { return memcmp(&a, &b, sizeof a) == 0; }

/* Every count, one element off any alignment, guards on both sides. */
static const char *parts(const bool bf) {
  for (int count = 0; count <= BK_VW; count++) {
    float in[BK_VW + 2], out[BK_VW + 2];
    uint16_t in16[BK_VW + 2], out16[BK_VW + 2];
    for (int i = 0; i < BK_VW + 2; i++)
      in[i] = value(1, i), in16[i] = bk_f32_to_bf16(in[i]), out[i] = 77, out16[i] = 77;
    bk_vf x = bk_v_get(bf ? (void *)in16 : (void *)in, 1, bf, count),
          kept = bk_v_keep(x, count, -3);
    bk_v_put(bf ? (void *)out16 : (void *)out, 1, bf, count, x);
    for (int i = 0; i < BK_VW; i++) {
      float want = i >= count ? 0 : bf ? bk_bf16_to_f32(in16[i + 1]) : in[i + 1];
      FAIL_UNLESS(same(x[i], want), "lane %d of %d loaded: %g, expected %g", i, count, x[i], want);
      FAIL_UNLESS(same(kept[i], i < count ? want : -3), "lane %d of %d kept: %g", i, count,
                  kept[i]);
    }
    for (int i = -1; i < BK_VW + 1; i++) {
      bool inside = i >= 0 && i < count;
      if (bf)
        FAIL_UNLESS(out16[i + 1] == (inside ? in16[i + 1] : 77), "lane %d of %d stored as bf16", i,
                    count);
      else FAIL_UNLESS(same(out[i + 1], inside ? in[i + 1] : 77), "lane %d of %d stored", i, count);
    }
  }
  return NULL;
}
static const char *horizontal(void) {
  for (uint64_t trial = 0; trial < 100; trial++) {
    bk_vf v = values(trial);
    float sum[BK_VW], max[BK_VW];
    bk_v_st(sum, 0, false, v), bk_v_st(max, 0, false, v);
    for (int w = BK_VW / 2; w > 0; w /= 2)
      for (int i = 0; i < w; i++)
        sum[i] += sum[i + w], max[i] = max[i] > max[i + w] ? max[i] : max[i + w];
    FAIL_UNLESS(same(bk_v_hsum(v), sum[0]), "sum %.9g, expected %.9g", bk_v_hsum(v), sum[0]);
    FAIL_UNLESS(same(bk_v_hmax(v), max[0]), "maximum %.9g, expected %.9g", bk_v_hmax(v), max[0]);
  }
  return NULL;
}
static const char *lanes(void) {
  bk_vf a = values(5), b = values(6), c = values(7), d = bk_v_swap_pairs(a);
  bk_vf low = bk_v_min(a, b), high = bk_v_max(a, b), root = bk_v_sqrt(bk_v_abs(a)),
        fma = bk_v_fma(a, b, c);
  bk_vf picked = bk_v_select(a < b, a, b);
  for (int i = 0; i < BK_VW; i++) {
    FAIL_UNLESS(same(d[i], a[i ^ 1]), "lane %d swapped", i);
    FAIL_UNLESS(same(low[i], a[i] < b[i] ? a[i] : b[i]) && same(picked[i], low[i]),
                "lane %d: minimum", i);
    FAIL_UNLESS(same(high[i], a[i] > b[i] ? a[i] : b[i]), "lane %d: maximum", i);
    FAIL_UNLESS(same(root[i], sqrtf(fabsf(a[i]))), "lane %d: root", i);
    volatile float product = a[i] * b[i]; /* two roundings where the set has no fused product */
    FAIL_UNLESS(same(fma[i], BK_SIMD_FUSED ? fmaf(a[i], b[i], c[i]) : product + c[i]),
                "lane %d: %.9g", i, fma[i]);
  }
  bk_vf nan = bk_v_set(NAN);
  FAIL_UNLESS(same(bk_v_max(nan, a)[0], a[0]) && same(bk_v_min(nan, a)[0], a[0]),
              "the second operand where the first is NaN");
  FAIL_UNLESS(isnan(bk_v_max(a, nan)[0]) && isnan(bk_v_min(a, nan)[0]),
              "NaN where the second operand is");
  return NULL;
}
static const char *rounding(void) {
  for (uint32_t i = 0; i < 100000; i++) {
    uint32_t bits = i * 2654435761u;
    if (i % 3 == 0) bits = (bits & 0xffff0000u) | 0x8000u; /* ties */
    float x;
    memcpy(&x, &bits, sizeof x);
    uint16_t h = bk_v_to_bf16(bk_v_set(x))[BK_VW - 1];
    FAIL_UNLESS(h == bk_f32_to_bf16(x), "%.9g rounded to %04x", x, h);
    if (x == x)
      FAIL_UNLESS(same(bk_v_from_bf16((bk_vh){0} + h)[BK_VW - 1], bk_bf16_to_f32(h)),
                  "%04x widened", h);
  }
  return NULL;
}
static double ulps(float have, double want) {
  float rounded = (float)want;
  if (have == rounded) return 0;
  return fabs(have - want) / (nextafterf(fabsf(rounded), INFINITY) - fabsf(rounded));
}
static const char *functions(void) {
  for (int i = 0; i < 50000; i++) {
    float u = (float)bk_uniform(3, 1, (uint64_t)i);
    FAIL_UNLESS(ulps(bk_v_exp(bk_v_set(190 * u - 100))[1], exp(190 * u - 100)) <= 2.5,
                "exp of %.9g", 190 * u - 100);
    FAIL_UNLESS(ulps(bk_v_log(bk_v_set(4 * u))[1], log(4 * u)) <= 2.5, "log of %.9g", 4 * u);
    FAIL_UNLESS(
        ulps(bk_v_sigmoid(bk_v_set(100 * u - 80))[1], 1 / (1 + exp(-(100 * u - 80)))) <= 2.5,
        "sigmoid of %.9g", 100 * u - 80);
    FAIL_UNLESS(ulps(bk_v_tanh(bk_v_set(20 * u - 10))[1], tanh(20 * u - 10)) <= 2.5, "tanh of %.9g",
                20 * u - 10);
  }
  FAIL_UNLESS(bk_v_exp(bk_v_set(-INFINITY))[0] == 0 && isinf(bk_v_exp(bk_v_set(INFINITY))[0]) &&
                  isnan(bk_v_exp(bk_v_set(NAN))[0]),
              "exp at its ends");
  FAIL_UNLESS(bk_v_log(bk_v_set(0))[0] == -INFINITY && isnan(bk_v_log(bk_v_set(-1))[0]),
              "log at its ends");
  return NULL;
}

const char *BK_ISA_NAME(simd_check)(void) {
  const char *(*const checks[])(void) = {horizontal, lanes, rounding, functions};
  const char *message = parts(false);
  if (!message) message = parts(true);
  for (size_t i = 0; i < sizeof checks / sizeof *checks && !message; i++) message = checks[i]();
  return message;
}
