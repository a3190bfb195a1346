#include "backends/cpu/walk.h"

static bool mergeable(int n_tensors, const bk_tensor *const *tensors, int d, const int64_t *stride,
                      int64_t size) {
  for (int k = 0; k < n_tensors; k++)
    if (tensors[k]->stride[d] != stride[k] * size) return false;
  return true;
}

/* Dimensions are taken innermost first; index 0 of `size` and `stride` below is the innermost
 * run so far. */
void bk_cpu_walk_make(bk_cpu_walk *walk, int n_tensors, const bk_tensor *const *tensors) {
  int64_t size = 1, stride[BK_CPU_WALK_MAX];
  bk_cpu_walk w = {.n_tensors = n_tensors, .rows = 1};
  bool first = true;
  int n_outer = 0;
  int64_t sizes[BK_MAX_DIMS], strides[BK_CPU_WALK_MAX][BK_MAX_DIMS];
  for (int k = 0; k < n_tensors; k++) stride[k] = 1;
  for (int d = tensors[0]->ndim - 1; d >= 0; d--) {
    int64_t n = tensors[0]->shape[d];
    if (n == 1) continue;
    if (!first && mergeable(n_tensors, tensors, d, stride, size)) {
      size *= n;
      continue;
    }
    if (!first) {
      sizes[n_outer] = size;
      for (int k = 0; k < n_tensors; k++) strides[k][n_outer] = stride[k];
      n_outer++;
    }
    first = false;
    size = n;
    for (int k = 0; k < n_tensors; k++) stride[k] = tensors[k]->stride[d];
  }
  sizes[n_outer] = size;
  for (int k = 0; k < n_tensors; k++) strides[k][n_outer] = stride[k];

  w.n_outer = n_outer;
  w.len = sizes[0];
  w.chunks = (w.len + BK_CPU_WALK_CHUNK - 1) / BK_CPU_WALK_CHUNK;
  for (int k = 0; k < n_tensors; k++) {
    w.esize[k] = bk_dtype_size(tensors[k]->dtype);
    w.inner[k] = strides[k][0];
    w.data[k] = bk_tensor_data(tensors[k]);
  }
  for (int d = 0; d < n_outer; d++) {
    w.size[d] = sizes[n_outer - d];
    w.rows *= w.size[d];
    for (int k = 0; k < n_tensors; k++)
      w.outer[k][d] = strides[k][n_outer - d] * (int64_t)w.esize[k];
  }
  *walk = w;
}
