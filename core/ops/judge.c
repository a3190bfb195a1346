/* Comparing an output with the exact result. See judge.h. */
#include "ops/judge.h"

#include <math.h>

/* By way of an odd fp32 number, so that bf16 is rounded once. Rounding a double to fp32 and then to
 * bf16 can round a tie twice. The fp32 value is therefore made odd wherever it is not exact (round
 * to odd), which keeps it off the ties of bf16. */
double bk_round_to(bk_dtype dtype, double x) {
  if (dtype == BK_F32) return (double)(float)x;
  if (dtype != BK_BF16) return x;
  union {
    float f;
    uint32_t u;
  } odd = {.f = (float)x};
  if (!isnan(x) && (double)odd.f != x && !(odd.u & 1u))
    odd.u += fabs((double)odd.f) > fabs(x) ? UINT32_MAX : 1u;
  return (double)bk_bf16_to_f32(bk_f32_to_bf16(odd.f));
}

/* Whether a pair of values agrees where it is not a pair of finite numbers; *finite tells the
 * caller to go on. Infinities must be the same on both sides. NaN agrees with NaN only. */
static bool agree_special(double got, double rounded, bool *finite) {
  *finite = isfinite(got) && isfinite(rounded);
  if (*finite) return true;
  if (isnan(got) || isnan(rounded)) return isnan(got) && isnan(rounded);
  return got == rounded;
}

/* The error is normalised by the exact result. An output that is exactly zero allows no error. */
static double nmse_of(double error, double norm) {
  return norm > 0 ? error / norm : error > 0 ? INFINITY : 0;
}

/* There are two tests: the nmse must be within the bound, and no single element may be further off
 * than 8 times the error that the bound allows on average, measured by the largest element; a
 * single wrong element in a large output would not show in the nmse. An element that must be exact,
 * or that is not finite on one side alone, ends the search at once. */
void bk_judge(bk_dtype dtype, const double *got, const double *want, int64_t count, double bound,
              double sensitivity, bk_judgement *j) {
  bool exact = bound == 0 || !bk_dtype_is_float(dtype), finite;
  double error = 0, norm = 0, rounding = 0;
  *j = (bk_judgement){.within = true};
  for (int64_t i = 0; i < count; i++) {
    double rounded = bk_round_to(dtype, want[i]), d = fabs(got[i] - want[i]);
    if (!agree_special(got[i], rounded, &finite) || (finite && exact && got[i] != rounded)) {
      *j = (bk_judgement){
          .element = i, .special = true, .error = d, .nmse = INFINITY, .bound = exact ? 0 : bound};
      return;
    }
    if (!finite) continue;
    error += d * d;
    norm += want[i] * want[i];
    rounding += (rounded - want[i]) * (rounded - want[i]);
    if (d > j->error) j->error = d, j->element = i;
    if (fabs(want[i]) > j->largest) j->largest = fabs(want[i]);
  }
  if (exact) return;
  if (norm == 0 && sensitivity > 0) { /* all is zero in theory: against what rounding makes of it */
    j->nmse = error;
    j->bound = 16 * sensitivity;
    j->most = sqrt(j->bound);
  } else {
    j->nmse = nmse_of(error, norm);
    j->bound = fmax(fmax(bound, 1.01 * nmse_of(rounding, norm)), 16 * sensitivity);
    j->most = 8 * sqrt(j->bound) * j->largest;
  }
  j->within = j->nmse <= j->bound && j->error <= j->most;
}

/* Each element is moved by a normal deviate of its own, so that moves do not add up in a sum. */
double bk_judge_move(double x, double rounding, uint64_t stream, uint64_t index) {
  return x * (1 + rounding * bk_normal(1, stream, index));
}

/* Elements that are not finite are left out, since bk_judge has looked at them already. */
double bk_judge_distance(const double *moved, const double *want, int64_t count) {
  double error = 0, norm = 0;
  for (int64_t i = 0; i < count; i++) {
    double d = moved[i] - want[i];
    if (isfinite(d)) error += d * d, norm += want[i] * want[i];
  }
  return norm > 0 ? error / norm : error;
}
