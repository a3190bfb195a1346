/* Launches of layers.k */
#include "backends/gpu/layers.h"

/* ---- rmsnorm ---- */

BK_GPU_PREPARE(bk_gpu_rmsnorm_prepare) {
  const bk_rmsnorm_args *a = args;
  const bk_gpu_shape shape = bk_gpu_shape_of(device, a->x.shape[1]);
  bk_gpu_rmsnorm_consts consts = {shape.group, shape.items, bk_gpu_half(&a->x)};
  return bk_gpu_build(device, BK_GPU_rmsnorm, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_rmsnorm) {
  const bk_rmsnorm_args *a = args;
  const int64_t rows = a->x.shape[0], width = a->x.shape[1];
  bk_gpu_rmsnorm_call call = {.x = bk_gpu_at(&a->x),
                              .w = bk_gpu_at(&a->w),
                              .y = bk_gpu_at(&a->y),
                              .rstd = bk_gpu_at(&a->rstd),
                              .width = (int32_t)width,
                              .xs = (int32_t)a->x.stride[0],
                              .ys = (int32_t)a->y.stride[0],
                              .has_rstd = bk_tensor_present(&a->rstd),
                              .inv_width = 1.0f / (float)width,
                              .eps = (float)a->eps};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[0], &call, rows);
}

enum { BWD_DX, BWD_DW, BWD_ADD };

BK_GPU_PREPARE(bk_gpu_rmsnorm_bwd_prepare) {
  const bk_rmsnorm_bwd_args *a = args;
  const int64_t rows = a->x.shape[0], width = a->x.shape[1];
  const bk_gpu_shape shape = bk_gpu_shape_of(device, width);
  const int32_t columns = bk_gpu_of(device)->on_cpu ? 64 : 1,
                group = bk_gpu_of(device)->on_cpu ? 1 : 64;
  bk_gpu_rmsnorm_bwd_consts dx = {shape.group, shape.items, bk_gpu_half(&a->x), a->accumulate};
  bk_gpu_rmsnorm_bwd_dw_consts dw = {group, columns, bk_gpu_half(&a->x)};
  if (bk_tensor_present(&a->dx))
    BK_TRY(bk_gpu_build(device, BK_GPU_rmsnorm_bwd, &dx, &s->kernel[BWD_DX]));
  if (!bk_tensor_present(&a->dw)) return BK_OK;
  s->chunk = bk_gpu_chunk(rows, 16, 128);
  s->chunks = bk_gpu_ceil_div(rows, s->chunk);
  s->group = group * columns;
  *workspace_bytes = (size_t)(s->chunks * width) * sizeof(float);
  BK_TRY(bk_gpu_build(device, BK_GPU_rmsnorm_bwd_dw, &dw, &s->kernel[BWD_DW]));
  return bk_gpu_add_chunks_build(device, &s->kernel[BWD_ADD]);
}

static bk_status run_dw(bk_stream *stream, const bk_plan *plan, const bk_rmsnorm_bwd_args *a,
                        bk_place workspace) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t width = a->x.shape[1], blocks = bk_gpu_ceil_div(width, s->group);
  bk_gpu_rmsnorm_bwd_dw_call dw = {.x = bk_gpu_at(&a->x),
                                   .rstd = bk_gpu_at(&a->rstd),
                                   .dy = bk_gpu_at(&a->dy),
                                   .parts = workspace,
                                   .rows = (int32_t)a->x.shape[0],
                                   .chunk = s->chunk,
                                   .width = (int32_t)width,
                                   .blocks = (int32_t)blocks,
                                   .xs = (int32_t)a->x.stride[0],
                                   .dys = (int32_t)a->dy.stride[0]};
  BK_TRY(bk_gpu_run(stream, plan, s->kernel[BWD_DW], &dw, s->chunks * blocks));
  return bk_gpu_add_chunks_run(stream, plan, s->kernel[BWD_ADD], workspace, s->chunks, &a->dw);
}

BK_LAUNCH_FN(bk_gpu_rmsnorm_bwd) {
  const bk_rmsnorm_bwd_args *a = args;
  if (bk_tensor_present(&a->dw)) BK_TRY(run_dw(stream, plan, a, workspace));
  if (!bk_tensor_present(&a->dx)) return BK_OK;
  bk_gpu_rmsnorm_bwd_call call = {.x = bk_gpu_at(&a->x),
                                  .w = bk_gpu_at(&a->w),
                                  .rstd = bk_gpu_at(&a->rstd),
                                  .dy = bk_gpu_at(&a->dy),
                                  .dx = bk_gpu_at(&a->dx),
                                  .width = (int32_t)a->x.shape[1],
                                  .xs = (int32_t)a->x.stride[0],
                                  .dys = (int32_t)a->dy.stride[0],
                                  .dxs = (int32_t)a->dx.stride[0],
                                  .inv_width = 1.0f / (float)a->x.shape[1]};
  return bk_gpu_run(stream, plan, bk_gpu_state_of(plan)->kernel[BWD_DX], &call, a->x.shape[0]);
}

/* ---- swiglu ---- */

/* Where no tensor has gaps between its rows, all elements are one row. */
static void rows_of(const bk_tensor *const *t, int tensors, int64_t *rows, int64_t *width) {
  bool gaps = false;
  *rows = t[0]->shape[0];
  *width = t[0]->shape[1];
  for (int i = 0; i < tensors; i++) gaps = gaps || t[i]->stride[0] != *width;
  if (gaps) return;
  *width *= *rows;
  *rows = 1;
}

BK_GPU_PREPARE(bk_gpu_swiglu_prepare) {
  const bk_swiglu_args *a = args;
  int64_t rows, width;
  rows_of((const bk_tensor *const[]){&a->gate, &a->up, &a->y}, 3, &rows, &width);
  const bk_gpu_shape shape = bk_gpu_shape_of(device, width);
  bk_gpu_swiglu_consts consts = {shape.group, shape.items, shape.batches, bk_gpu_half(&a->gate)};
  return bk_gpu_build(device, BK_GPU_swiglu, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_swiglu) {
  const bk_swiglu_args *a = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  int64_t rows, width;
  rows_of((const bk_tensor *const[]){&a->gate, &a->up, &a->y}, 3, &rows, &width);
  const int64_t blocks = bk_gpu_blocks(p, width);
  bk_gpu_swiglu_call call = {.gate = bk_gpu_at(&a->gate),
                             .up = bk_gpu_at(&a->up),
                             .y = bk_gpu_at(&a->y),
                             .width = (int32_t)width,
                             .blocks = (int32_t)blocks,
                             .gs = (int32_t)a->gate.stride[0],
                             .us = (int32_t)a->up.stride[0],
                             .ys = (int32_t)a->y.stride[0]};
  return bk_gpu_run(stream, plan, p, &call, rows * blocks);
}

BK_GPU_PREPARE(bk_gpu_swiglu_bwd_prepare) {
  const bk_swiglu_bwd_args *a = args;
  int64_t rows, width;
  rows_of((const bk_tensor *const[]){&a->gate, &a->up, &a->dy, &a->dgate, &a->dup}, 5, &rows,
          &width);
  const bk_gpu_shape shape = bk_gpu_shape_of(device, width);
  bk_gpu_swiglu_bwd_consts consts = {shape.group, shape.items, shape.batches,
                                     bk_gpu_half(&a->gate)};
  return bk_gpu_build(device, BK_GPU_swiglu_bwd, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_swiglu_bwd) {
  const bk_swiglu_bwd_args *a = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  int64_t rows, width;
  rows_of((const bk_tensor *const[]){&a->gate, &a->up, &a->dy, &a->dgate, &a->dup}, 5, &rows,
          &width);
  const int64_t blocks = bk_gpu_blocks(p, width);
  bk_gpu_swiglu_bwd_call call = {.gate = bk_gpu_at(&a->gate),
                                 .up = bk_gpu_at(&a->up),
                                 .dy = bk_gpu_at(&a->dy),
                                 .dgate = bk_gpu_at(&a->dgate),
                                 .dup = bk_gpu_at(&a->dup),
                                 .width = (int32_t)width,
                                 .blocks = (int32_t)blocks,
                                 .gs = (int32_t)a->gate.stride[0],
                                 .us = (int32_t)a->up.stride[0],
                                 .ds = (int32_t)a->dy.stride[0],
                                 .dgs = (int32_t)a->dgate.stride[0],
                                 .dus = (int32_t)a->dup.stride[0]};
  return bk_gpu_run(stream, plan, p, &call, rows * blocks);
}
