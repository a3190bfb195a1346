/* The direct engine of dense products: few rows of a, b is read once and not packed. Included by
 * templates, see cpu.h. */
#ifndef BK_CPU_GEMM_DIRECT_H
#define BK_CPU_GEMM_DIRECT_H

#include "backends/cpu/gemm.h"
#include "backends/cpu/simd.h"

/* Along the depth: four columns of b at a time. */
BK_INLINE void direct_dots(const float *a, bk_gemm_mat b, float *c, int64_t j, int64_t width,
                           int64_t depth, float alpha, bool add, const bool bf) {
  const char *b0 = b.data + j * b.cs * (bf ? 2 : 4);
  int64_t step = b.cs * (bf ? 2 : 4);
  bk_vf s[4] = {bk_v_zero(), bk_v_zero(), bk_v_zero(), bk_v_zero()};
  for (int64_t l = 0; l < depth; l += BK_VW) {
    bk_vf x = bk_v_get(a, l, false, depth - l);
    for (int q = 0; q < 4; q++)
      if (q < width) s[q] = s[q] + x * bk_v_get(b0 + q * step, l, bf, depth - l);
  }
  for (int q = 0; q < width; q++) c[j + q] = alpha * bk_v_hsum(s[q]) + (add ? c[j + q] : 0.f);
}
/* Along a row of b: four vectors of columns at a time. */
BK_INLINE void direct_axpy(const float *a, bk_gemm_mat b, float *c, int64_t j, int64_t width,
                           int64_t depth, float alpha, bool add, const bool bf) {
  bk_vf s[4] = {bk_v_zero(), bk_v_zero(), bk_v_zero(), bk_v_zero()};
  for (int64_t l = 0; l < depth; l++) {
    const char *row = b.data + (l * b.rs + j) * (bf ? 2 : 4);
    for (int q = 0; q < 4; q++)
      if (q * BK_VW < width) s[q] = s[q] + a[l] * bk_v_get(row, q * BK_VW, bf, width - q * BK_VW);
  }
  for (int q = 0; q * BK_VW < width; q++) {
    bk_vf v = s[q] * alpha;
    int64_t left = width - q * BK_VW;
    if (add) v = v + bk_v_get(c, j + q * BK_VW, false, left);
    bk_v_put(c, j + q * BK_VW, false, left, v);
  }
}
BK_INLINE void direct_columns(const float *a, bk_gemm_mat b, float *c, int64_t ldc, bk_gemm_shape s,
                              float alpha, bool add, const bool bf) {
  bool dots = s.n > 1 ? b.cs != 1 : b.rs == 1; /* a stride along a size of 1 says nothing */
  int64_t group = dots ? 4 : 4 * BK_VW;
  for (int64_t j = 0; j < s.n; j += group) {
    int64_t width = s.n - j < group ? s.n - j : group;
    for (int64_t i = 0; i < s.m; i++) {
      if (dots && width == 4) direct_dots(a + i * s.k, b, c + i * ldc, j, 4, s.k, alpha, add, bf);
      else if (dots) direct_dots(a + i * s.k, b, c + i * ldc, j, width, s.k, alpha, add, bf);
      else if (width == group)
        direct_axpy(a + i * s.k, b, c + i * ldc, j, 4 * BK_VW, s.k, alpha, add, bf);
      else direct_axpy(a + i * s.k, b, c + i * ldc, j, width, s.k, alpha, add, bf);
    }
  }
}
static void direct_block(bk_gemm_mat a, bk_gemm_mat b, float *c, int64_t ldc, bk_gemm_shape s,
                         float alpha, bool add, float *scratch) {
  for (int64_t i = 0; i < s.m; i++)
    for (int64_t l = 0; l < s.k; l++)
      scratch[i * s.k + l] = bk_cpu_get(a.data, i * a.rs + l * a.cs, a.bf16);
  if (b.bf16) direct_columns(scratch, b, c, ldc, s, alpha, add, true);
  else direct_columns(scratch, b, c, ldc, s, alpha, add, false);
}

#endif
