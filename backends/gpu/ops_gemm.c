/* Launches of gemm.k */
#include "backends/gpu/gemm.h"

bk_gpu_matrix bk_gpu_matrix_of(const bk_tensor *t) {
  const int outer = t->ndim - 2;
  return (bk_gpu_matrix){.batches = outer ? t->shape[0] : 1, .rows = t->shape[outer], .columns = t->shape[outer + 1],
                         .batch = outer ? (int32_t)t->stride[0] : 0, .row = (int32_t)t->stride[outer], .column = (int32_t)t->stride[outer + 1]};
}

static bool has_vectors(const bk_device *device) { return ((const bk_gpu_device *)device)->vector > 0; }

bk_status bk_gpu_gemm_prepare(bk_device *device, const void *args, bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_gemm_args *a = args;
  if (has_vectors(device)) return bk_gpu_gemm_cpu_prepare(device, a, s, workspace_bytes);
  bk_gpu_gemm_plain_consts consts = {.GROUP = 64, .A_BF16 = bk_gpu_half(&a->a), .B_BF16 = bk_gpu_half(&a->b), .C_BF16 = bk_gpu_half(&a->c)};
  return bk_gpu_build(device, BK_GPU_gemm_plain, &consts, &s->kernel[0]);
}

bk_status bk_gpu_gemm(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_gemm_args *g = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const bk_gpu_matrix a = bk_gpu_matrix_of(&g->a), b = bk_gpu_matrix_of(&g->b), c = bk_gpu_matrix_of(&g->c);
  const int64_t count = bk_tensor_count(&g->c);
  if (has_vectors(stream->device)) return bk_gpu_gemm_cpu(stream, plan, g, workspace);
  bk_gpu_gemm_plain_call call = {
    .a = bk_gpu_at(&g->a), .b = bk_gpu_at(&g->b), .c = bk_gpu_at(&g->c),
    .m = (int32_t)g->c.shape[g->c.ndim - 2], .n = (int32_t)g->c.shape[g->c.ndim - 1], .k = (int32_t)g->a.shape[g->a.ndim - 1],
    .a_batch = a.batch, .a_row = a.row, .a_column = a.column, .b_batch = b.batch, .b_row = b.row, .b_column = b.column,
    .c_batch = c.batch, .c_row = c.row, .c_column = c.column, .count = (int32_t)count, .accumulate = g->accumulate, .alpha = (float)g->alpha};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(count, p->consts[0]));
}

bk_status bk_gpu_grouped_gemm_prepare(bk_device *device, const void *args, bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_grouped_gemm_args *a = args;
  if (has_vectors(device)) return bk_gpu_grouped_gemm_cpu_prepare(device, a, s, workspace_bytes);
  bk_gpu_grouped_gemm_plain_consts consts = {.GROUP = 64, .A_BF16 = bk_gpu_half(&a->a), .B_BF16 = bk_gpu_half(&a->b), .C_BF16 = bk_gpu_half(&a->c)};
  return bk_gpu_build(device, BK_GPU_grouped_gemm_plain, &consts, &s->kernel[0]);
}

bk_status bk_gpu_grouped_gemm(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_grouped_gemm_args *g = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const bk_gpu_matrix b = bk_gpu_matrix_of(&g->b);
  const int64_t count = bk_tensor_count(&g->c);
  if (has_vectors(stream->device)) return bk_gpu_grouped_gemm_cpu(stream, plan, g, workspace);
  bk_gpu_grouped_gemm_plain_call call = {
    .a = bk_gpu_at(&g->a), .b = bk_gpu_at(&g->b), .offsets = bk_gpu_at(&g->offsets), .c = bk_gpu_at(&g->c),
    .experts = (int32_t)g->b.shape[0], .n = (int32_t)g->c.shape[1], .k = (int32_t)g->a.shape[1], .a_row = (int32_t)g->a.stride[0],
    .b_batch = b.batch, .b_row = b.row, .b_column = b.column, .c_row = (int32_t)g->c.stride[0], .count = (int32_t)count};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(count, p->consts[0]));
}

bk_status bk_gpu_grouped_wgrad_prepare(bk_device *device, const void *args, bk_gpu_state *s, size_t *workspace_bytes) {
  const bk_grouped_wgrad_args *a = args;
  if (has_vectors(device)) return bk_gpu_grouped_wgrad_cpu_prepare(device, a, s, workspace_bytes);
  bk_gpu_grouped_wgrad_plain_consts consts = {.GROUP = 64, .A_BF16 = bk_gpu_half(&a->a), .B_BF16 = bk_gpu_half(&a->b), .C_BF16 = bk_gpu_half(&a->c)};
  return bk_gpu_build(device, BK_GPU_grouped_wgrad_plain, &consts, &s->kernel[0]);
}

bk_status bk_gpu_grouped_wgrad(bk_stream *stream, const bk_plan *plan, const void *args, bk_place workspace) {
  const bk_grouped_wgrad_args *g = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const bk_gpu_matrix c = bk_gpu_matrix_of(&g->c);
  const int64_t count = bk_tensor_count(&g->c);
  if (has_vectors(stream->device)) return bk_gpu_grouped_wgrad_cpu(stream, plan, g, workspace);
  bk_gpu_grouped_wgrad_plain_call call = {
    .a = bk_gpu_at(&g->a), .b = bk_gpu_at(&g->b), .offsets = bk_gpu_at(&g->offsets), .c = bk_gpu_at(&g->c),
    .p = (int32_t)g->c.shape[1], .q = (int32_t)g->c.shape[2], .a_row = (int32_t)g->a.stride[0], .b_row = (int32_t)g->b.stride[0],
    .c_batch = c.batch, .c_row = c.row, .count = (int32_t)count, .overwrite = g->overwrite};
  return bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(count, p->consts[0]));
}
