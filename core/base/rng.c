/* Counter-based random numbers: the same bits on every machine, in any order, from any thread.
 * There is no state: number `index` of stream `stream` under seed `seed` is a pure function of the
 * three. A weight therefore starts at the same value whatever the order of initialisation, the
 * number of threads or the device; and a test of one backend can repeat the inputs of another.
 *
 * Sources: Philox 4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011);
 * the normal quantile is algorithm AS 241 (PPND16), Wichura, Applied Statistics 37 (1988) 477-484.
 * Only integer operations and IEEE 754 add, subtract, multiply, divide and square root are used,
 * each rounded by itself: this file must be compiled without contraction to fused multiply-add and
 * without excess precision. -std=c11 turns contraction off in GCC, the pragma does in Clang, and
 * the makefiles pass -ffp-contract=off besides. */
#include "base/base.h"
#include "base/rng_priv.h"

#include <float.h>
#include <math.h>
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

_Static_assert(FLT_EVAL_METHOD == 0,
               "doubles must be evaluated as doubles (on 32-bit x86: -msse2 -mfpmath=sse)");
#ifdef __FAST_MATH__
#error "the random numbers need IEEE arithmetic: compile without -ffast-math"
#endif

/* FNV-1a over 64 bits, with its usual offset and prime, then a finaliser. The hash of a weight's
 * name is the number of its random stream, so that it must never change. */
uint64_t bk_hash64(const void *bytes, size_t count) {
  return bk_hash64_end(bk_hash64_add(BK_HASH64_BEGIN, bytes, count));
}

uint64_t bk_hash64_add(uint64_t h, const void *bytes, size_t count) {
  const unsigned char *p = bytes;
  for (size_t i = 0; i < count; i++) h = (h ^ p[i]) * UINT64_C(0x100000001b3);
  return h;
}

/* FNV's low bits mix poorly on short names; this is the finaliser of SplitMix64. */
uint64_t bk_hash64_end(uint64_t h) {
  h = (h ^ (h >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  h = (h ^ (h >> 27)) * UINT64_C(0x94d049bb133111eb);
  return h ^ (h >> 31);
}

/* Ten rounds of the paper's 4x32 bijection: two multiplications into 64 bits, whose high halves
 * are mixed with the key and with the words that were not multiplied; the key grows by two Weyl
 * constants from round to round. Ten rounds pass the tests of BigCrush. */
void bk_philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4]) {
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
  uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t a = UINT64_C(0xD2511F53) * c0, b = UINT64_C(0xCD9E8D57) * c2;
    c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)b;
    c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)a;
    k0 += UINT32_C(0x9E3779B9);
    k1 += UINT32_C(0xBB67AE85);
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* The result is an odd multiple of 2^-53: exact, symmetric about 1/2, and never 0 or 1, where the
 * normal quantile would be infinite. */
double bk_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t r[4];
  bk_philox(seed, stream, index, r);
  uint64_t bits = ((uint64_t)r[1] << 32 | r[0]) >> 12;
  return ((double)bits + 0.5) * 0x1p-52;
}

/* Natural logarithm of a positive normal number, in place of the C library's, whose last bits
 * differ from system to system. With x = m 2^e and m in (0.707, 1.415], log x = e log 2 + 2
 * atanh((m - 1) / (m + 1)), and atanh is summed from its Taylor series. log 2 is split in two: the
 * first part has so few bits that its product with e is exact. */
static double log_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int e = (int)(bits >> 52) - 1023;
  bits = (bits & UINT64_C(0xfffffffffffff)) | UINT64_C(0x3ff0000000000000);
  double m;
  memcpy(&m, &bits, sizeof m);
  if (m > 1.4142135623730951) m = m * 0.5, e++;
  double s = (m - 1) / (m + 1), z = s * s, sum = 0;
  /* z is at most 0.0295, so that the first term left out is below 2^-58 of the sum. */
  for (int k = 23; k >= 1; k -= 2) sum = sum * z + 1.0 / k;
  return e * 0x1.62e42fefa38p-1 + (2 * s * sum + e * 0x1.ef35793c7673p-45);
}

/* A polynomial of degree 7 by Horner's rule; c[0] is the constant term. */
static double poly7(const double c[8], double x) {
  double y = c[7];
  for (int i = 6; i >= 0; i--) y = y * x + c[i];
  return y;
}

/* AS 241 has three pairs of rational functions: around the middle in q = p - 1/2, and in the tails
 * in r = sqrt(-log of the tail's probability), with another pair beyond r = 5. The names of the
 * coefficients are the paper's; its constant terms 1 of the denominators are written out. */
double bk_normal_quantile(double p) {
  static const double a[8] = {3.3871328727963666080e0,  1.3314166789178437745e+2,
                              1.9715909503065514427e+3, 1.3731693765509461125e+4,
                              4.5921953931549871457e+4, 6.7265770927008700853e+4,
                              3.3430575583588128105e+4, 2.5090809287301226727e+3};
  static const double b[8] = {1,
                              4.2313330701600911252e+1,
                              6.8718700749205790830e+2,
                              5.3941960214247511077e+3,
                              2.1213794301586595867e+4,
                              3.9307895800092710610e+4,
                              2.8729085735721942674e+4,
                              5.2264952788528545610e+3};
  static const double c[8] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                              5.76949722146069140550e0,  3.64784832476320460504e0,
                              1.27045825245236838258e0,  2.41780725177450611770e-1,
                              2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static const double d[8] = {1,
                              2.05319162663775882187e0,
                              1.67638483018380384940e0,
                              6.89767334985100004550e-1,
                              1.48103976427480074590e-1,
                              1.51986665636164571966e-2,
                              5.47593808499534494600e-4,
                              1.05075007164441684324e-9};
  static const double e[8] = {6.65790464350110377720e0,  5.46378491116411436990e0,
                              1.78482653991729133580e0,  2.96560571828504891230e-1,
                              2.65321895265761230930e-2, 1.24266094738807843860e-3,
                              2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static const double f[8] = {1,
                              5.99832206555887937690e-1,
                              1.36929880922735805310e-1,
                              1.48753612908506148525e-2,
                              7.86869131145613259100e-4,
                              1.84631831751005468180e-5,
                              1.42151175831644588870e-7,
                              2.04426310338993978564e-15};
  double q = p - 0.5;
  if (q >= -0.425 && q <= 0.425) {
    double r = 0.180625 - q * q;
    return q * poly7(a, r) / poly7(b, r);
  }
  double r = sqrt(-log_of(q < 0 ? p : 1 - p));
  double z = r <= 5 ? poly7(c, r - 1.6) / poly7(d, r - 1.6) : poly7(e, r - 5) / poly7(f, r - 5);
  return q < 0 ? -z : z;
}

double bk_normal(uint64_t seed, uint64_t stream, uint64_t index) {
  return bk_normal_quantile(bk_uniform(seed, stream, index));
}
