/* Rotary position embedding (arXiv 2104.09864), interleaved pairs as DeepSeek-V3, and the write
 * into the key/value cache. */
#include "backends/ref/ref.h"

/* One pair (x[2i], x[2i+1]) of position (b, t), all heads, turned by an angle given as cosine
 * and sine. */
static void turn_pair(const bk_rope_args *a, int64_t b, int64_t t, int64_t i, double c, double s) {
  int64_t hx = a->x.shape[2], hy = a->y.shape[2];
  int64_t terms = hy == 1 ? hx : 1; /* heads of x that are summed into one of y */
  for (int64_t h = 0; h < hy; h++) {
    double even = 0, odd = 0;
    for (int64_t j = 0; j < terms; j++) {
      int64_t at = at4(&a->x, b, t, hx == hy ? h : j, 2 * i);
      even += bk_ref_get(&a->x, at);
      odd += bk_ref_get(&a->x, at + a->x.stride[3]);
    }
    int64_t at = at4(&a->y, b, t, h, 2 * i);
    bk_ref_set(&a->y, at, even * c - odd * s);
    bk_ref_set(&a->y, at + a->y.stride[3], even * s + odd * c);
  }
}

BK_REF_LAUNCH(rope) {
  const bk_rope_args *a = args;
  int64_t past = bk_ref_past(&a->past), d = a->x.shape[3];
  for (int64_t t = 0; t < a->x.shape[1]; t++)
    for (int64_t i = 0; i < d / 2; i++) {
      double angle = (double)(past + t) * pow(a->theta, -2.0 * (double)i / (double)d);
      double c = cos(angle), s = a->inverse ? -sin(angle) : sin(angle);
      for (int64_t b = 0; b < a->x.shape[0]; b++) turn_pair(a, b, t, i, c, s);
    }
  return BK_OK;
}

BK_REF_LAUNCH(cache_write) {
  const bk_cache_write_args *a = args;
  int64_t past = bk_ref_past(&a->past);
  for (int64_t b = 0; b < a->x.shape[0]; b++)
    for (int64_t t = 0; t < a->x.shape[1] && past + t < a->y.shape[1]; t++)
      for (int64_t h = 0; h < a->x.shape[2]; h++)
        for (int64_t c = 0; c < a->x.shape[3]; c++)
          bk_ref_set(&a->y, at4(&a->y, b, past + t, h, c),
                     bk_ref_get(&a->x, at4(&a->x, b, t, h, c)));
  return BK_OK;
}
