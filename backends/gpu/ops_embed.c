/* Launches of embed.k */
#include "backends/gpu/layers.h"

BK_GPU_PREPARE(bk_gpu_embed_prepare) {
  const bk_embed_args *a = args;
  const bk_gpu_shape shape = bk_gpu_shape_of(device, a->y.shape[1]);
  bk_gpu_embed_consts consts = {shape.group, shape.items, shape.batches, bk_gpu_half(&a->y)};
  return bk_gpu_build(device, BK_GPU_embed, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_embed) {
  const bk_embed_args *a = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const int64_t width = a->y.shape[1], blocks = bk_gpu_blocks(p, width);
  bk_gpu_embed_call call = {.ids = bk_gpu_at(&a->ids),
                            .table = bk_gpu_at(&a->table),
                            .y = bk_gpu_at(&a->y),
                            .width = (int32_t)width,
                            .blocks = (int32_t)blocks,
                            .ts = (int32_t)a->table.stride[0],
                            .ys = (int32_t)a->y.stride[0]};
  return bk_gpu_run(stream, plan, p, &call, a->y.shape[0] * blocks);
}

/* ---- backward ---- */

enum { COUNT, COUNT_FIRST, SCAN, PLACE, PLACE_FIRST, RUNS, CROSSING };
_Static_assert(CROSSING < BK_GPU_MAX_KERNELS, "a plan has room for the kernels");

#define CHUNK 32       /* sorted positions of a work item */
#define MAX_BITS 8     /* of a pass */
#define MIN_STRETCH 32 /* positions that a work item sorts */
#define STRETCHES 1024 /* at most */

typedef struct sorting {
  int count, stretch, stretches, passes, bits;
  size_t counts, order[2], keys, heads, tails, bytes; /* in the workspace */
} sorting;

static sorting sorting_of(const bk_embed_bwd_args *a) {
  const int64_t count = a->ids.shape[0];
  int bits = 1;
  while (bits < 31 && (a->dtable.shape[0] - 1) >> bits) bits++;
  sorting s = {.count = (int)count, .passes = (bits + MAX_BITS - 1) / MAX_BITS};
  s.bits = (bits + s.passes - 1) / s.passes;
  s.stretch = (int)bk_gpu_ceil_div(count, STRETCHES) > MIN_STRETCH
                  ? (int)bk_gpu_ceil_div(count, STRETCHES)
                  : MIN_STRETCH;
  s.stretches = (int)bk_gpu_ceil_div(count, s.stretch);
  const size_t list = BK_ALIGN_UP((size_t)count * sizeof(int32_t), (size_t)256);
  const size_t parts = BK_ALIGN_UP(
      (size_t)bk_gpu_ceil_div(count, CHUNK) * (size_t)a->dy.shape[1] * sizeof(float), (size_t)256);
  s.order[0] =
      BK_ALIGN_UP((size_t)s.stretches * ((size_t)1 << s.bits) * sizeof(int32_t), (size_t)256);
  s.order[1] = s.order[0] + list;
  s.keys = s.order[1] + list;
  s.heads = s.keys + list;
  s.tails = s.heads + parts;
  s.bytes = s.tails + parts;
  return s;
}

BK_GPU_PREPARE(bk_gpu_embed_bwd_prepare) {
  const bk_embed_bwd_args *a = args;
  const bool on_cpu = bk_gpu_of(device)->on_cpu;
  const bk_gpu_shape shape = bk_gpu_shape_of(device, a->dy.shape[1]);
  const int32_t items = on_cpu ? 16 : 64, columns = on_cpu ? 64 : shape.items;
  bk_gpu_embed_count_consts count = {items, 0};
  const int most = bk_gpu_of(device)->max_group;
  bk_gpu_embed_scan_consts scan = {on_cpu ? 1 : most < 256 ? most : 256};
  bk_gpu_embed_place_consts place = {items, 0};
  bk_gpu_embed_runs_consts runs = {shape.group, columns, bk_gpu_half(&a->dy), CHUNK};
  bk_gpu_embed_crossing_consts crossing = {shape.group, columns, CHUNK};
  const sorting sort = sorting_of(a);
  *workspace_bytes = sort.bytes;
  BK_TRY(bk_gpu_build(device, BK_GPU_embed_scan, &scan, &s->kernel[SCAN]));
  if (sort.passes > 1) BK_TRY(bk_gpu_build(device, BK_GPU_embed_count, &count, &s->kernel[COUNT]));
  if (sort.passes > 1) BK_TRY(bk_gpu_build(device, BK_GPU_embed_place, &place, &s->kernel[PLACE]));
  count.FIRST = place.FIRST = 1;
  BK_TRY(bk_gpu_build(device, BK_GPU_embed_count, &count, &s->kernel[COUNT_FIRST]));
  BK_TRY(bk_gpu_build(device, BK_GPU_embed_place, &place, &s->kernel[PLACE_FIRST]));
  BK_TRY(bk_gpu_build(device, BK_GPU_embed_runs, &runs, &s->kernel[RUNS]));
  return bk_gpu_build(device, BK_GPU_embed_crossing, &crossing, &s->kernel[CROSSING]);
}

/* One pass; leaves its order in sort->order[pass % 2]. */
static bk_status sort_pass(bk_stream *stream, const bk_plan *plan, const bk_tensor *ids,
                           bk_place workspace, const sorting *sort, int pass) {
  bk_gpu_pipeline *const *kernel = bk_gpu_state_of(plan)->kernel;
  const bk_place from = bk_gpu_work(workspace, sort->order[(pass + 1) % 2]),
                 to = bk_gpu_work(workspace, sort->order[pass % 2]);
  const int32_t digits = 1 << sort->bits, shift = pass * sort->bits;
  bk_gpu_embed_count_call count = {.ids = bk_gpu_at(ids),
                                   .order = from,
                                   .counts = bk_gpu_work(workspace, sort->counts),
                                   .count = sort->count,
                                   .stretch = sort->stretch,
                                   .stretches = sort->stretches,
                                   .shift = shift,
                                   .digits = digits};
  bk_gpu_embed_scan_call scan = {.counts = count.counts, .count = digits * sort->stretches};
  bk_gpu_embed_place_call place = {.ids = count.ids,
                                   .order = from,
                                   .counts = count.counts,
                                   .sorted = to,
                                   .keys = bk_gpu_work(workspace, sort->keys),
                                   .count = sort->count,
                                   .stretch = sort->stretch,
                                   .stretches = sort->stretches,
                                   .shift = shift,
                                   .digits = digits};
  const int64_t groups = bk_gpu_ceil_div(sort->stretches, kernel[COUNT_FIRST]->consts[0]);
  BK_TRY(bk_gpu_run(stream, plan, kernel[pass ? COUNT : COUNT_FIRST], &count, groups));
  BK_TRY(bk_gpu_run(stream, plan, kernel[SCAN], &scan, 1));
  return bk_gpu_run(stream, plan, kernel[pass ? PLACE : PLACE_FIRST], &place, groups);
}

BK_LAUNCH_FN(bk_gpu_embed_bwd) {
  const bk_embed_bwd_args *a = args;
  bk_gpu_pipeline *const *kernel = bk_gpu_state_of(plan)->kernel;
  const sorting sort = sorting_of(a);
  const int64_t width = a->dy.shape[1],
                blocks = bk_gpu_ceil_div(
                    width, (int64_t)kernel[RUNS]->consts[0] * kernel[RUNS]->consts[1]);
  const int64_t groups = bk_gpu_ceil_div(sort.count, CHUNK) * blocks;
  if (groups == 0) return BK_OK;
  for (int pass = 0; pass < sort.passes; pass++)
    BK_TRY(sort_pass(stream, plan, &a->ids, workspace, &sort, pass));
  bk_gpu_embed_runs_call runs = {.keys = bk_gpu_work(workspace, sort.keys),
                                 .order = bk_gpu_work(workspace, sort.order[(sort.passes - 1) % 2]),
                                 .dy = bk_gpu_at(&a->dy),
                                 .dtable = bk_gpu_at(&a->dtable),
                                 .heads = bk_gpu_work(workspace, sort.heads),
                                 .tails = bk_gpu_work(workspace, sort.tails),
                                 .count = sort.count,
                                 .width = (int32_t)width,
                                 .blocks = (int32_t)blocks,
                                 .ds = (int32_t)a->dy.stride[0],
                                 .ts = (int32_t)a->dtable.stride[0]};
  bk_gpu_embed_crossing_call crossing = {.keys = runs.keys,
                                         .heads = runs.heads,
                                         .tails = runs.tails,
                                         .dtable = runs.dtable,
                                         .count = sort.count,
                                         .width = (int32_t)width,
                                         .blocks = (int32_t)blocks,
                                         .ts = runs.ts};
  BK_TRY(bk_gpu_run(stream, plan, kernel[RUNS], &runs, groups));
  return bk_gpu_run(stream, plan, kernel[CROSSING], &crossing, sort.count > CHUNK ? groups : 0);
}
