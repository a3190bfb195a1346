/* Launches of rope.k */
#include <math.h>

#include "backends/gpu/layers.h"

/* What a pair turns by from one position to the next, as a fraction of a turn: theta^(-2i/D) /
 * (2 pi) modulo 1, in 64 bits. */
static bk_status make_table(bk_device *device, double theta, int64_t width, bk_gpu_state *s) {
  const int64_t pairs = width / 2;
  uint32_t *words = bk_alloc(device->ctx, (size_t)pairs * 2 * sizeof *words);
  if (!words) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < pairs; i++) {
    double turns = pow(theta, -2.0 * (double)i / (double)width) * 0.15915494309189533577;
    if (!isfinite(turns)) {
      bk_free(device->ctx, words);
      return bk_fail(device->ctx, BK_ERR_ARGUMENT,
                     "%s: rope: theta is %g: pair %lld of %lld turns by no finite angle",
                     device->backend->name, theta, (long long)i, (long long)pairs);
    }
    double high = floor((turns - floor(turns)) * 0x1p32),
           low = floor(((turns - floor(turns)) * 0x1p32 - high) * 0x1p32);
    words[2 * i] = (uint32_t)high;
    words[2 * i + 1] = (uint32_t)low;
  }
  bk_status status = bk_gpu_table(device, s, words, (size_t)pairs * 2 * sizeof *words);
  bk_free(device->ctx, words);
  return status;
}

/* Pairs and heads of a work item. */
static int32_t pairs_of_item(const bk_gpu_device *d) { return d->on_cpu ? 16 : 1; }
static int64_t heads_of_item(const bk_gpu_device *d, int64_t heads) {
  return d->on_cpu || heads < 8 ? heads : 8;
}

BK_GPU_PREPARE(bk_gpu_rope_prepare) {
  const bk_rope_args *a = args;
  const bk_gpu_device *d = bk_gpu_of(device);
  const int64_t heads_x = a->x.shape[2], heads_y = a->y.shape[2];
  bk_gpu_rope_consts consts = {d->on_cpu ? 1 : 64, pairs_of_item(d), bk_gpu_half(&a->x),
                               heads_y == 1 && heads_x != 1};
  BK_TRY(make_table(device, a->theta, a->x.shape[3], s));
  return bk_gpu_build(device, BK_GPU_rope, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_rope) {
  const bk_rope_args *a = args;
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const bk_gpu_device *d = bk_gpu_of(stream->device);
  const int64_t *x = a->x.stride, *y = a->y.stride, pairs = a->x.shape[3] / 2,
                batches = bk_gpu_ceil_div(pairs, pairs_of_item(d));
  const int64_t heads_x = a->x.shape[2], heads_y = a->y.shape[2],
                heads = heads_y == 1 ? heads_x : heads_y;
  const int64_t per = heads_y == 1 ? heads : heads_of_item(d, heads),
                blocks = bk_gpu_ceil_div(heads, per);
  const int64_t work = a->x.shape[0] * a->x.shape[1] * blocks * batches;
  bk_gpu_rope_call call = {.x = bk_gpu_at(&a->x),
                           .table = {s->table, 0},
                           .past = bk_gpu_at(&a->past),
                           .y = bk_gpu_at(&a->y),
                           .work = (int32_t)work,
                           .pairs = (int32_t)pairs,
                           .batches = (int32_t)batches,
                           .blocks = (int32_t)blocks,
                           .per = (int32_t)per,
                           .steps = (int32_t)a->x.shape[1],
                           .heads = (int32_t)heads,
                           .has_past = bk_tensor_present(&a->past),
                           .xb = (int32_t)x[0],
                           .xt = (int32_t)x[1],
                           .xh = heads_x == 1 ? 0 : (int32_t)x[2],
                           .yb = (int32_t)y[0],
                           .yt = (int32_t)y[1],
                           .yh = (int32_t)y[2],
                           .way = a->inverse ? -1.0f : 1.0f};
  return bk_gpu_run(stream, plan, s->kernel[0], &call,
                    bk_gpu_ceil_div(work, s->kernel[0]->consts[0]));
}

BK_GPU_PREPARE(bk_gpu_cache_write_prepare) {
  const bk_cache_write_args *a = args;
  bk_gpu_cache_write_consts consts = {bk_gpu_group(device, a->x.shape[3]), bk_gpu_half(&a->x)};
  return bk_gpu_build(device, BK_GPU_cache_write, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_cache_write) {
  const bk_cache_write_args *a = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const int64_t *x = a->x.stride, *y = a->y.stride, width = a->x.shape[3],
                blocks = bk_gpu_ceil_div(width, p->consts[0]);
  bk_gpu_cache_write_call call = {.x = bk_gpu_at(&a->x),
                                  .past = bk_gpu_at(&a->past),
                                  .y = bk_gpu_at(&a->y),
                                  .width = (int32_t)width,
                                  .blocks = (int32_t)blocks,
                                  .steps = (int32_t)a->x.shape[1],
                                  .heads = (int32_t)a->x.shape[2],
                                  .room = (int32_t)a->y.shape[1],
                                  .xb = (int32_t)x[0],
                                  .xt = (int32_t)x[1],
                                  .xh = (int32_t)x[2],
                                  .yb = (int32_t)y[0],
                                  .yt = (int32_t)y[1],
                                  .yh = (int32_t)y[2]};
  return bk_gpu_run(stream, plan, p, &call, a->x.shape[0] * a->x.shape[1] * a->x.shape[2] * blocks);
}
