/* Rows of any float dtype to and from dense doubles, one dtype switch per row. */
#include "backends/ref/ref.h"

void bk_ref_load(const bk_tensor *t, int64_t at, int64_t stride, int64_t count, double *dst) {
  if (t->dtype == BK_F32) {
    const float *p = (const float *)bk_tensor_data(t) + at;
    for (int64_t i = 0; i < count; i++) dst[i] = (double)p[i * stride];
  } else if (t->dtype == BK_BF16) {
    const uint16_t *p = (const uint16_t *)bk_tensor_data(t) + at;
    for (int64_t i = 0; i < count; i++) dst[i] = (double)bk_bf16_to_f32(p[i * stride]);
  } else {
    const double *p = (const double *)bk_tensor_data(t) + at;
    for (int64_t i = 0; i < count; i++) dst[i] = p[i * stride];
  }
}

void bk_ref_store(const bk_tensor *t, int64_t at, int64_t stride, int64_t count,
                  const double *src) {
  if (t->dtype == BK_F32) {
    float *p = (float *)bk_tensor_data(t) + at;
    for (int64_t i = 0; i < count; i++) p[i * stride] = (float)src[i];
  } else if (t->dtype == BK_BF16) {
    uint16_t *p = (uint16_t *)bk_tensor_data(t) + at;
    for (int64_t i = 0; i < count; i++) p[i * stride] = bk_ref_bf16(src[i]);
  } else {
    double *p = (double *)bk_tensor_data(t) + at;
    for (int64_t i = 0; i < count; i++) p[i * stride] = src[i];
  }
}
