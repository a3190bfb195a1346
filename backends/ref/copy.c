/* COPY, ADD, SUM. Tensors of up to four dimensions with any strides; dimensions past ndim have
 * size 1. */
#include "backends/ref/ref.h"

typedef void (*element_fn)(const void *args, int64_t i, int64_t j, int64_t k, int64_t l);

static void each_element(const bk_tensor *t, element_fn fn, const void *args) {
  int64_t size[BK_MAX_DIMS];
  for (int d = 0; d < BK_MAX_DIMS; d++) size[d] = d < t->ndim ? t->shape[d] : 1;
  for (int64_t i = 0; i < size[0]; i++)
    for (int64_t j = 0; j < size[1]; j++)
      for (int64_t k = 0; k < size[2]; k++)
        for (int64_t l = 0; l < size[3]; l++) fn(args, i, j, k, l);
}

/* Equal dtypes are moved as bits, so that integers and the payloads of NaNs survive. */
static void copy_bits(const void *args, int64_t i, int64_t j, int64_t k, int64_t l) {
  const bk_copy_args *a = args;
  size_t size = bk_dtype_size(a->x.dtype);
  const char *src = bk_tensor_data(&a->x);
  char *dst = bk_tensor_data(&a->y);
  memcpy(dst + at4(&a->y, i, j, k, l) * (int64_t)size, src + at4(&a->x, i, j, k, l) * (int64_t)size,
         size);
}

static void copy_value(const void *args, int64_t i, int64_t j, int64_t k, int64_t l) {
  const bk_copy_args *a = args;
  bk_ref_set(&a->y, at4(&a->y, i, j, k, l), bk_ref_get(&a->x, at4(&a->x, i, j, k, l)));
}

BK_REF_ACCEPTS(copy) {
  const bk_copy_args *a = args;
  return a->x.dtype == a->y.dtype || bk_dtype_is_float(a->y.dtype);
}

BK_REF_LAUNCH(copy) {
  const bk_copy_args *a = args;
  each_element(&a->y, a->x.dtype == a->y.dtype ? copy_bits : copy_value, a);
  return BK_OK;
}

static void add_value(const void *args, int64_t i, int64_t j, int64_t k, int64_t l) {
  const bk_add_args *a = args;
  double sum =
      bk_ref_get(&a->a, at4(&a->a, i, j, k, l)) + bk_ref_get(&a->b, at4(&a->b, i, j, k, l));
  bk_ref_set(&a->y, at4(&a->y, i, j, k, l), sum);
}

BK_REF_LAUNCH(add) {
  const bk_add_args *a = args;
  each_element(&a->y, add_value, a);
  return BK_OK;
}

BK_REF_LAUNCH(sum) {
  const bk_sum_args *a = args;
  double sum = 0;
  for (int64_t i = 0; i < a->x.shape[0]; i++) sum += get1(&a->x, i);
  put1(&a->y, 0, sum, a->accumulate);
  return BK_OK;
}
