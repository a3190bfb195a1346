/* See perf.h. */
#include "ops/plan.h"
#include "tests/ops/perf.h"

#include <stdio.h>

#define MIN_SECONDS 0.2
#define MIN_LAUNCHES 5

/* Median-free and simple: the best of the launches, after one to warm up. */
static bk_status time_launches(bk_stream *stream, const bk_plan *plan, const void *args,
                               bk_place workspace, double *best) {
  double begin = bk_seconds();
  *best = 1e300;
  for (int i = -1; i < MIN_LAUNCHES || bk_seconds() - begin < MIN_SECONDS; i++) {
    double start = bk_seconds();
    BK_TRY(bk_plan_launch(stream, plan, args, workspace));
    BK_TRY(stream->ops->sync(stream));
    double took = bk_seconds() - start;
    if (i >= 0 && took < *best) *best = took;
  }
  return BK_OK;
}

static bk_status time_op(harness *h, bk_op op, const void *args, double *best,
                         const char **kernel) {
  bk_plan plan = {0};
  bk_buffer *workspace = NULL;
  BK_TRY(bk_plan_prepare(h->device, op, args, &plan));
  *kernel = plan.kernel->name;
  bk_status status =
      bk_buffer_alloc(h->device, plan.workspace_bytes + 1, BK_MEM_WORKSPACE, &workspace);
  if (status == BK_OK)
    status = time_launches(h->stream, &plan, args, (bk_place){workspace, 0}, best);
  bk_buffer_free(workspace);
  bk_plan_release(&plan);
  return status;
}

static bk_status roof_op(harness *h, bk_op op, bk_gemm_args *gemm, bk_copy_args *copy,
                         double *per_second) {
  bk_buffer *buffer = NULL;
  const char *kernel;
  double seconds, flops, bytes;
  size_t size = (size_t)64 << 20;
  BK_TRY(bk_buffer_alloc(h->device, 2 * size, BK_MEM_WORKSPACE, &buffer));
  gemm->a.buffer = gemm->b.buffer = gemm->c.buffer = copy->x.buffer = copy->y.buffer = buffer;
  gemm->b.offset = copy->y.offset = size;
  gemm->c.offset = size / 2;
  const void *args = op == BK_OP_GEMM ? (const void *)gemm : (const void *)copy;
  bk_status status = time_op(h, op, args, &seconds, &kernel);
  bk_buffer_free(buffer);
  if (status != BK_OK) return status;
  bk_op_cost(op, args, &flops, &bytes);
  *per_second = (op == BK_OP_GEMM ? flops : bytes) / seconds;
  return BK_OK;
}

bk_status perf_measure_roof(harness *h, perf_roof *roof) {
  bk_tensor square = bk_tensor_2d(BK_F32, 1024, 1024), flat = bk_tensor_1d(BK_F32, 16 << 20);
  bk_gemm_args gemm = {square, square, square, 1, false};
  bk_copy_args copy = {flat, flat};
  BK_TRY(roof_op(h, BK_OP_GEMM, &gemm, &copy, &roof->rate));
  BK_TRY(roof_op(h, BK_OP_COPY, &gemm, &copy, &roof->bandwidth));
  printf("roof: copy %.1f GB/s, product %.1f GFLOP/s\n", roof->bandwidth * 1e-9, roof->rate * 1e-9);
  return BK_OK;
}

bk_status perf_case(harness *h, const char *name, bk_op op, const void *args) {
  const char *kernel;
  double seconds, flops, bytes;
  BK_TRY(time_op(h, op, args, &seconds, &kernel));
  bk_op_cost(op, args, &flops, &bytes);
  double by_bytes = bytes / h->roof->bandwidth, by_flops = flops / h->roof->rate;
  double least = by_bytes > by_flops ? by_bytes : by_flops;
  printf("%-56s %-22s %9.3f ms %8.2f GB/s %8.2f GFLOP/s %5.1f%%\n", name, kernel, seconds * 1e3,
         bytes / seconds * 1e-9, flops / seconds * 1e-9, 100 * least / seconds);
  return BK_OK;
}
