/* The random numbers: known answers of Philox, the normal quantile against tabulated values and
 * the distribution function, moments, and golden bit patterns (a machine that computes other
 * bits would start from other weights). */
#include "tests/unit/unit.h"

#include "base/rng_priv.h"

#include <math.h>

/* Known-answer vectors of Random123 (kat_vectors, "philox4x32 10"). */
START_TEST(philox_known_answers) {
  static const struct {
    uint64_t key, hi, lo;
    uint32_t out[4];
  } known[] = {
      {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {UINT64_C(0x299f31d0a4093822),
       UINT64_C(0x0370734413198a2e),
       UINT64_C(0x85a308d3243f6a88),
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (size_t i = 0; i < BK_COUNT(known); i++) {
    uint32_t out[4];
    bk_philox(known[i].key, known[i].hi, known[i].lo, out);
    for (int j = 0; j < 4; j++) ck_assert_uint_eq(out[j], known[i].out[j]);
  }
}
END_TEST

START_TEST(hash_spreads) {
  ck_assert_uint_ne(bk_hash64("model.norm.weight", 17), bk_hash64("model.norm.weighu", 17));
  /* the terminator counts when it is passed */
  ck_assert_uint_ne(bk_hash64("a", 1), bk_hash64("a", 2));
  int ones = 0;
  for (unsigned char c = 0; c < 64; c++) {
    unsigned char d = c ^ 1;
    ones += __builtin_popcountll(bk_hash64(&c, 1) ^ bk_hash64(&d, 1));
  }
  ck_assert_int_gt(ones, 64 * 24);
  ck_assert_int_lt(ones, 64 * 40);
}
END_TEST

START_TEST(uniform_is_open_and_flat) {
  enum { N = 200000, BINS = 20 };
  int bins[BINS] = {0};
  double sum = 0;
  for (int i = 0; i < N; i++) {
    double u = bk_uniform(7, 3, (uint64_t)i);
    ck_assert(u > 0 && u < 1);
    bins[(int)(u * BINS)]++;
    sum += u;
  }
  ck_assert_double_eq_tol(sum / N, 0.5, 5 * sqrt(1.0 / 12 / N));
  double chi2 = 0, expected = (double)N / BINS;
  for (int b = 0; b < BINS; b++) chi2 += (bins[b] - expected) * (bins[b] - expected) / expected;
  ck_assert_double_lt(chi2, 49); /* 19 degrees of freedom: 1 - 2e-4 */
  ck_assert_double_ne(bk_uniform(7, 3, 0), bk_uniform(8, 3, 0));
  ck_assert_double_ne(bk_uniform(7, 3, 0), bk_uniform(7, 4, 0));
}
END_TEST

START_TEST(quantiles) {
  static const struct {
    double p, z;
  } known[] = {{0.5, 0},
               {0.6, 0.2533471031357997},
               {0.9, 1.2815515655446004},
               {0.975, 1.959963984540054},
               {0.995, 2.5758293035489004},
               {0.9999, 3.719016485455709},
               {1e-5, -4.264890793922825},
               {1e-10, -6.361340902404056},
               {1e-15, -7.941345326170997}};
  for (size_t i = 0; i < BK_COUNT(known); i++)
    ck_assert_double_eq_tol(bk_normal_quantile(known[i].p), known[i].z, 1e-9);
}
END_TEST

/* |Phi(z) - p| / p with the distribution function of the C library, over all three branches of
 *   the algorithm. */
START_TEST(quantile_inverts_the_distribution) {
  for (double p = 0x1p-53; p < 0.5; p *= 1.07) {
    double z = bk_normal_quantile(p);
    ck_assert_double_le(fabs(0.5 * erfc(-z / sqrt(2)) - p), 4e-14 * p);
    if (1 - (1 - p) == p) ck_assert_double_eq(bk_normal_quantile(1 - p), -z);
  }
  for (double p = 0.01; p < 1; p += 0.01) {
    double z = bk_normal_quantile(p);
    ck_assert_double_eq_tol(0.5 * erfc(-z / sqrt(2)), p, 1e-15);
  }
}
END_TEST

START_TEST(normal_moments) {
  enum { N = 400000 };
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, lag = 0, last = 0;
  for (int i = 0; i < N; i++) {
    double z = bk_normal(42, bk_hash64("model.embed_tokens.weight", 25), (uint64_t)i);
    m1 += z, m2 += z * z, m3 += z * z * z, m4 += z * z * z * z;
    lag += z * last;
    last = z;
  }
  double s = 1 / sqrt(N);
  ck_assert_double_eq_tol(m1 / N, 0, 5 * s);
  ck_assert_double_eq_tol(m2 / N, 1, 5 * s * sqrt(2));
  ck_assert_double_eq_tol(m3 / N, 0, 5 * s * sqrt(15));
  ck_assert_double_eq_tol(m4 / N, 3, 5 * s * sqrt(96));
  ck_assert_double_eq_tol(lag / N, 0, 5 * s);
}
END_TEST

static uint64_t bits_of(double x) {
  uint64_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

START_TEST(golden_bits) {
  ck_assert_uint_eq(bk_hash64("", 0), UINT64_C(0xf52a15e9a9b5e89b));
  ck_assert_uint_eq(bk_hash64("model.norm.weight", 17), UINT64_C(0x4e4e52191e974f2e));
  static const uint64_t normals[] = {UINT64_C(0x3ff42ec48c8487d1), UINT64_C(0x3ffb8cb6dcd71f90),
                                     UINT64_C(0xbfffc61b7c207cef), UINT64_C(0xbff0841ee453fdb9),
                                     UINT64_C(0xbfe67c5803f9ec5e), UINT64_C(0xbfec19258a1ba141),
                                     UINT64_C(0xbfd125ee0535d219), UINT64_C(0x3fcb6f62644efa3c)};
  for (size_t i = 0; i < BK_COUNT(normals); i++)
    ck_assert_uint_eq(bits_of(bk_normal(1234, 5678, i)), normals[i]);
  ck_assert_uint_eq(bits_of(bk_uniform(1, 2, 3)), UINT64_C(0x3fd98fbfd3f7822e));
  ck_assert_uint_eq(bits_of(bk_normal_quantile(0x1p-40)), UINT64_C(0xc01c30d8560989ab));
  /* and of many values together */
  uint64_t all = 0;
  for (uint64_t i = 0; i < 20000; i++)
    all = all * UINT64_C(6364136223846793005) + bits_of(bk_normal(9, 8, i));
  ck_assert_uint_eq(all, UINT64_C(0x45d1f981d31d6c4c));
}
END_TEST

UNIT_MAIN("rng", unit_open, unit_close, philox_known_answers, hash_spreads,
          uniform_is_open_and_flat, quantiles, quantile_inverts_the_distribution, normal_moments,
          golden_bits)
