/* Launches of chunks.k: the second stage of sums over rows */
#include "backends/gpu/gpu.h"

int32_t bk_gpu_chunk(int64_t rows, int64_t unit, int64_t most) {
  int64_t units = bk_gpu_ceil_div(rows, unit), each = bk_gpu_ceil_div(units, most);
  return (int32_t)((each < 1 ? 1 : each) * unit);
}

bk_status bk_gpu_add_chunks_build(bk_device *device, bk_gpu_pipeline **pipeline) {
  bk_gpu_add_chunks_consts consts = {.GROUP = bk_gpu_of(device)->max_group < 256 ? 64 : 256};
  if (bk_gpu_of(device)->on_cpu) consts.GROUP = 32;
  return bk_gpu_build(device, BK_GPU_add_chunks, &consts, pipeline);
}

bk_status bk_gpu_add_chunks_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *p,
                                bk_place partial, int64_t chunks, const bk_tensor *y) {
  const int64_t count = bk_tensor_count(y);
  bk_gpu_add_chunks_call call = {.partial = partial,
                                 .y = bk_gpu_at(y),
                                 .count = (int32_t)count,
                                 .width = (int32_t)y->shape[y->ndim - 1],
                                 .ys = y->ndim > 1 ? (int32_t)y->stride[0] : 0,
                                 .chunks = (int32_t)chunks};
  return chunks ? bk_gpu_run(stream, plan, p, &call, bk_gpu_ceil_div(count, 32)) : BK_OK;
}
