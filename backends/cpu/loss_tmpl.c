/* CROSS_ENTROPY; formulas in runtime/op.h. A row is read for its maximum, for its sum, and for
 * the gradient. Template, see cpu.h. */
#include "backends/cpu/kernels.h"
#include "backends/cpu/simd.h"

/* elements whose exponentials are summed in fp32; blocks are summed in double */
#define LOSS_BLOCK 4096

BK_INLINE float row_max(const char *x, int64_t n, const bool bf) {
  bk_vf m = bk_v_set(-INFINITY);
  for (int64_t i = 0; i < n; i += BK_VW)
    m = bk_v_max(m, bk_v_keep(bk_v_get(x, i, bf, n - i), n - i, -INFINITY));
  return bk_v_hmax(m);
}
BK_INLINE double row_sum_exp(const char *x, float max, int64_t n, const bool bf) {
  double total = 0;
  for (int64_t block = 0; block < n; block += LOSS_BLOCK) {
    int64_t end = block + LOSS_BLOCK < n ? block + LOSS_BLOCK : n;
    bk_vf s = bk_v_zero();
    for (int64_t i = block; i < end; i += BK_VW)
      s = s + bk_v_keep(bk_v_exp(bk_v_get(x, i, bf, end - i) - max), end - i, 0.f);
    total += bk_v_hsum(s);
  }
  return total;
}
/* softmax = exp(x - max) / sum */
BK_INLINE void row_gradient(const char *x, char *d, int64_t n, float max, double sum,
                            int64_t target, float scale, const bool bx, const bool bd) {
  float factor = (float)(scale / sum);
  float at_target = (float)((exp((double)bk_cpu_get(x, target, bx) - max) / sum - 1.0) * scale);
  for (int64_t i = 0; i < n; i += BK_VW)
    bk_v_put(d, i, bd, n - i, bk_v_exp(bk_v_get(x, i, bx, n - i) - max) * factor);
  bk_cpu_put(d, target, bd, at_target);
}
BK_INLINE void row_zero(char *d, int64_t n, const bool bd) {
  memset(d, 0, (size_t)n * (bd ? 2 : 4));
}

BK_INLINE void loss_rows(const bk_cross_entropy_args *a, int64_t begin, int64_t end, const bool bx,
                         const bool bd) {
  int64_t n = a->logits.shape[1];
  bool gradient = bk_tensor_present(&a->dlogits);
  float scale = gradient ? ((const float *)bk_tensor_data(&a->step))[BK_STEP_LOSS_SCALE] : 0.f;
  for (int64_t r = begin; r < end; r++) {
    const char *x = bk_cpu_at(&a->logits, r);
    char *d = gradient ? bk_cpu_at(&a->dlogits, r) : NULL;
    int32_t target = *(const int32_t *)(const void *)bk_cpu_at(&a->targets, r);
    float *loss = (float *)(void *)bk_cpu_at(&a->loss, r);
    if (target < 0) {
      *loss = 0;
      if (d) row_zero(d, n, bd);
      continue;
    }
    float max = row_max(x, n, bx);
    double sum = row_sum_exp(x, max, n, bx);
    *loss = (float)(log(sum) + ((double)max - bk_cpu_get(x, target, bx)));
    if (d) row_gradient(x, d, n, max, sum, target, scale, bx, bd);
  }
}
static void loss_piece(void *arg, int64_t begin, int64_t end, int worker) {
  const bk_cross_entropy_args *a = arg;
  bool bd = bk_cpu_is_bf16(&a->dlogits);
  (void)worker;
  if (bk_cpu_is_bf16(&a->logits)) {
    if (bd) loss_rows(a, begin, end, true, true);
    else loss_rows(a, begin, end, true, false);
  } else {
    if (bd) loss_rows(a, begin, end, false, true);
    else loss_rows(a, begin, end, false, false);
  }
}
bk_status BK_ISA_NAME(bk_cpu_cross_entropy)(bk_stream *stream, const bk_plan *plan,
                                            const void *args, bk_place workspace) {
  const bk_cross_entropy_args *a = args;
  (void)plan, (void)workspace;
  bk_cpu_run(stream, a->logits.shape[0], bk_cpu_grain(8 * a->logits.shape[1]), loss_piece, a);
  return BK_OK;
}
