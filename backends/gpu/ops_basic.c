/* Launches of basic.k */
#include "backends/gpu/basic.h"

/* Strides of a tensor's outer dimensions, filled up in front to three. */
static void outer_strides(const bk_tensor *t, int32_t s[3]) {
  for (int i = 0; i < 3; i++) {
    int dim = t->ndim - 4 + i;
    s[i] = dim >= 0 ? (int32_t)t->stride[dim] : 0;
  }
}

static int32_t outer_size(const bk_tensor *t, int i) {
  int dim = t->ndim - 4 + i;
  return dim >= 0 ? (int32_t)t->shape[dim] : 1;
}

bk_status bk_gpu_add_prepare(bk_device *device, const void *args, bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_add_args *a = args;
  (void)workspace_bytes;
  bk_gpu_add_consts consts = {.GROUP = bk_gpu_group(device, a->y.shape[a->y.ndim - 1]), .BF16 = bk_gpu_half(&a->a)};
  return bk_gpu_build(device, BK_GPU_add, &consts, &s->kernel[0]);
}

bk_status bk_gpu_add(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_add_args *a = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const int64_t width = a->y.shape[a->y.ndim - 1];
  int32_t as[3], bs[3], ys[3];
  (void)workspace;
  outer_strides(&a->a, as);
  outer_strides(&a->b, bs);
  outer_strides(&a->y, ys);
  bk_gpu_add_call call = {
    .a = bk_gpu_at(&a->a), .b = bk_gpu_at(&a->b), .y = bk_gpu_at(&a->y), .width = (int32_t)width,
    .d1 = outer_size(&a->y, 1), .d2 = outer_size(&a->y, 2),
    .a0 = as[0], .a1 = as[1], .a2 = as[2], .b0 = bs[0], .b1 = bs[1], .b2 = bs[2], .y0 = ys[0], .y1 = ys[1], .y2 = ys[2]};
  int64_t rows = width ? bk_tensor_count(&a->y) / width : 0;
  return bk_gpu_run(stream, plan, p, &call, rows * bk_gpu_ceil_div(width, p->consts[0]));
}
