/* Launches of basic.k */
#include "backends/gpu/basic.h"

/* ---- views ---- */

/* Up to three tensors of one shape, the last one written, seen in four dimensions: those that
 * follow each other in all are merged. */
typedef struct view {
  int dims; /* in use, from the back */
  int64_t size[4], stride[3][4];
  int64_t rows;
  bool dense; /* the elements of a row follow each other */
} view;

static void view_swap(view *v, int tensors, int a, int b) {
  int64_t size = v->size[a];
  v->size[a] = v->size[b];
  v->size[b] = size;
  for (int i = 0; i < tensors; i++) {
    int64_t stride = v->stride[i][a];
    v->stride[i][a] = v->stride[i][b];
    v->stride[i][b] = stride;
  }
}

/* Puts dimension `from` (outer) before the dimensions that the view has, or makes it one with
 * the outermost of them. */
static void view_push(view *v, const view *from, int tensors, int d) {
  int outer = 4 - v->dims;
  bool merges = v->dims > 0;
  for (int i = 0; i < tensors && merges; i++)
    merges = from->stride[i][d] == v->size[outer] * v->stride[i][outer];
  if (!merges) v->size[--outer] = 1, v->dims++;
  for (int i = 0; i < tensors && !merges; i++) v->stride[i][outer] = from->stride[i][d];
  v->size[outer] *= from->size[d];
}

static view view_of(const bk_tensor *const *t, int tensors) {
  view all = {0}, v = {.size = {1, 1, 1, 1}};
  for (int d = 0; d < t[0]->ndim; d++) {
    if (t[0]->shape[d] == 1) continue;
    all.size[all.dims] = t[0]->shape[d];
    for (int i = 0; i < tensors; i++) all.stride[i][all.dims] = t[i]->stride[d];
    all.dims++;
  }
  const int64_t *written = all.stride[tensors - 1];
  for (int a = 1; a < all.dims; a++) /* neighbours in what is written become neighbours in a row */
    for (int b = a; b > 0 && written[b - 1] < written[b]; b--) view_swap(&all, tensors, b - 1, b);
  for (int d = all.dims - 1; d >= 0; d--) view_push(&v, &all, tensors, d);
  v.rows = v.size[0] * v.size[1] * v.size[2];
  v.dense = true;
  for (int i = 0; i < tensors; i++) v.dense = v.dense && (v.stride[i][3] == 1 || v.size[3] == 1);
  return v;
}

/* All of `count` elements, if a kernel can reach them, else a piece. */
static int64_t piece_of(const bk_device *device, int64_t count) {
  const int64_t piece = bk_gpu_piece(device);
  return piece > 0 && piece < count ? piece : count;
}

/* ---- copy ---- */

static bool copies_words(const bk_copy_args *a) {
  return a->x.dtype == a->y.dtype && bk_dtype_size(a->x.dtype) == 4;
}

/* bf16 that can be moved two by two, if both begin at a multiple of four bytes. */
static bool copies_pairs(const bk_copy_args *a, const view *v) {
  return a->x.dtype == BK_BF16 && a->y.dtype == BK_BF16 && v->rows == 1 && v->dense &&
         v->size[3] % 2 == 0;
}

BK_GPU_PREPARE(bk_gpu_copy_prepare) {
  const bk_copy_args *a = args;
  const view v = view_of((const bk_tensor *const[]){&a->x, &a->y}, 2);
  const bk_gpu_shape shape = bk_gpu_shape_of(device, v.size[3]);
  bk_gpu_copy_consts consts = {shape.group,        shape.items,        shape.batches,
                               bk_gpu_half(&a->x), bk_gpu_half(&a->y), v.dense};
  bk_gpu_copy_words_consts words = {shape.group, shape.items, shape.batches, v.dense};
  if (copies_words(a) || copies_pairs(a, &v))
    BK_TRY(bk_gpu_build(device, BK_GPU_copy_words, &words, &s->kernel[1]));
  return copies_words(a) ? BK_OK : bk_gpu_build(device, BK_GPU_copy, &consts, &s->kernel[0]);
}

/* Elements (or words) from `first` on, `width` in a row. */
static bk_status run_copy(bk_stream *stream, const bk_plan *plan, const bk_copy_args *a,
                          const view *v, bool words, int64_t first, int64_t width) {
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[words];
  const int64_t *x = v->stride[0], *y = v->stride[1];
  bk_gpu_copy_call call = {.x = bk_gpu_at_element(&a->x, first),
                           .y = bk_gpu_at_element(&a->y, first),
                           .width = (int32_t)width,
                           .blocks = (int32_t)bk_gpu_blocks(p, width),
                           .d1 = (int32_t)v->size[1],
                           .d2 = (int32_t)v->size[2],
                           .x0 = (int32_t)x[0],
                           .x1 = (int32_t)x[1],
                           .x2 = (int32_t)x[2],
                           .x3 = (int32_t)x[3],
                           .y0 = (int32_t)y[0],
                           .y1 = (int32_t)y[1],
                           .y2 = (int32_t)y[2],
                           .y3 = (int32_t)y[3]};
  return bk_gpu_run(stream, plan, p, &call, v->rows * call.blocks); /* copy_words takes the same */
}
_Static_assert(sizeof(bk_gpu_copy_call) == sizeof(bk_gpu_copy_words_call),
               "one call struct serves both");

BK_LAUNCH_FN(bk_gpu_copy) {
  const bk_copy_args *a = args;
  const view v = view_of((const bk_tensor *const[]){&a->x, &a->y}, 2);
  const bool pairs = copies_pairs(a, &v) && a->x.offset % 4 == 0 && a->y.offset % 4 == 0;
  if (bk_tensor_count(&a->y) == 0) return BK_OK;
  if (v.rows > 1 || !v.dense) return run_copy(stream, plan, a, &v, copies_words(a), 0, v.size[3]);
  for (int64_t first = 0, piece = piece_of(stream->device, v.size[3]); first < v.size[3];
       first += piece) {
    int64_t width = v.size[3] - first < piece ? v.size[3] - first : piece;
    BK_TRY(
        run_copy(stream, plan, a, &v, pairs || copies_words(a), first, pairs ? width / 2 : width));
  }
  return BK_OK;
}

/* ---- add ---- */

BK_GPU_PREPARE(bk_gpu_add_prepare) {
  const bk_add_args *a = args;
  const view v = view_of((const bk_tensor *const[]){&a->a, &a->b, &a->y}, 3);
  const bk_gpu_shape shape = bk_gpu_shape_of(device, v.size[3]);
  bk_gpu_add_consts consts = {shape.group, shape.items, shape.batches, bk_gpu_half(&a->a), v.dense};
  return bk_gpu_build(device, BK_GPU_add, &consts, &s->kernel[0]);
}

static bk_status run_add(bk_stream *stream, const bk_plan *plan, const bk_add_args *t,
                         const view *v, int64_t first, int64_t width) {
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const int64_t *a = v->stride[0], *b = v->stride[1], *y = v->stride[2];
  bk_gpu_add_call call = {.a = bk_gpu_at_element(&t->a, first),
                          .b = bk_gpu_at_element(&t->b, first),
                          .y = bk_gpu_at_element(&t->y, first),
                          .width = (int32_t)width,
                          .blocks = (int32_t)bk_gpu_blocks(p, width),
                          .d1 = (int32_t)v->size[1],
                          .d2 = (int32_t)v->size[2],
                          .a0 = (int32_t)a[0],
                          .a1 = (int32_t)a[1],
                          .a2 = (int32_t)a[2],
                          .a3 = (int32_t)a[3],
                          .b0 = (int32_t)b[0],
                          .b1 = (int32_t)b[1],
                          .b2 = (int32_t)b[2],
                          .b3 = (int32_t)b[3],
                          .y0 = (int32_t)y[0],
                          .y1 = (int32_t)y[1],
                          .y2 = (int32_t)y[2],
                          .y3 = (int32_t)y[3]};
  return bk_gpu_run(stream, plan, p, &call, v->rows * call.blocks);
}

BK_LAUNCH_FN(bk_gpu_add) {
  const bk_add_args *a = args;
  const view v = view_of((const bk_tensor *const[]){&a->a, &a->b, &a->y}, 3);
  if (bk_tensor_count(&a->y) == 0) return BK_OK;
  if (v.rows > 1 || !v.dense) return run_add(stream, plan, a, &v, 0, v.size[3]);
  for (int64_t first = 0, piece = piece_of(stream->device, v.size[3]); first < v.size[3];
       first += piece)
    BK_TRY(
        run_add(stream, plan, a, &v, first, v.size[3] - first < piece ? v.size[3] - first : piece));
  return BK_OK;
}

/* ---- sum, sumsq ---- */

#define SUM_CHUNK BK_GPU_PIECE /* elements of a part */

/* SUM and SUMSQ have args of one layout. */
static bk_status prepare_sum(bk_device *device, const bk_sum_args *a, bool square, bk_gpu_state *s,
                             size_t *workspace_bytes) {
  const bk_gpu_shape shape = bk_gpu_shape_of(device, SUM_CHUNK);
  bk_gpu_sum_part_consts part = {shape.group, shape.items, square};
  bk_gpu_sum_finish_consts finish = {shape.group, shape.items};
  s->chunks = bk_gpu_ceil_div(a->x.shape[0], SUM_CHUNK);
  *workspace_bytes = (size_t)s->chunks * sizeof(float);
  BK_TRY(bk_gpu_build(device, BK_GPU_sum_part, &part, &s->kernel[0]));
  return bk_gpu_build(device, BK_GPU_sum_finish, &finish, &s->kernel[1]);
}

static bk_status run_sum(bk_stream *stream, const bk_plan *plan, const bk_sum_args *a,
                         bk_place workspace) {
  const bk_gpu_state *s = bk_gpu_state_of(plan);
  const int64_t count = a->x.shape[0], piece = piece_of(stream->device, count);
  for (int64_t first = 0; first < count; first += piece) {
    int64_t length = count - first < piece ? count - first : piece;
    bk_gpu_sum_part_call part = {
        .x = bk_gpu_at_element(&a->x, first),
        .parts = bk_gpu_work(workspace, (size_t)(first / SUM_CHUNK) * sizeof(float)),
        .count = (int32_t)length,
        .chunk = SUM_CHUNK};
    BK_TRY(bk_gpu_run(stream, plan, s->kernel[0], &part, bk_gpu_ceil_div(length, SUM_CHUNK)));
  }
  bk_gpu_sum_finish_call finish = {.parts = workspace,
                                   .y = bk_gpu_at(&a->y),
                                   .count = (int32_t)s->chunks,
                                   .accumulate = a->accumulate};
  return bk_gpu_run(stream, plan, s->kernel[1], &finish, 1);
}

BK_GPU_PREPARE(bk_gpu_sum_prepare) { return prepare_sum(device, args, false, s, workspace_bytes); }

BK_LAUNCH_FN(bk_gpu_sum) { return run_sum(stream, plan, args, workspace); }

BK_GPU_PREPARE(bk_gpu_sumsq_prepare) {
  const bk_sumsq_args *a = args;
  bk_sum_args same = {a->x, a->y, a->accumulate};
  return prepare_sum(device, &same, true, s, workspace_bytes);
}

BK_LAUNCH_FN(bk_gpu_sumsq) {
  const bk_sumsq_args *a = args;
  bk_sum_args same = {a->x, a->y, a->accumulate};
  return run_sum(stream, plan, &same, workspace);
}

/* ---- expand, collapse ---- */

BK_GPU_PREPARE(bk_gpu_hc_expand_prepare) {
  const bk_hc_expand_args *a = args;
  const bk_gpu_shape shape = bk_gpu_shape_of(device, a->x.shape[1]);
  bk_gpu_hc_expand_consts consts = {shape.group, shape.items, shape.batches, bk_gpu_half(&a->x)};
  return bk_gpu_build(device, BK_GPU_hc_expand, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_expand) {
  const bk_hc_expand_args *a = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const int64_t width = a->x.shape[1];
  bk_gpu_hc_expand_call call = {.x = bk_gpu_at(&a->x),
                                .y = bk_gpu_at(&a->y),
                                .width = (int32_t)width,
                                .blocks = (int32_t)bk_gpu_blocks(p, width),
                                .n = (int32_t)a->y.shape[1],
                                .x0 = (int32_t)a->x.stride[0],
                                .y0 = (int32_t)a->y.stride[0],
                                .y1 = (int32_t)a->y.stride[1]};
  return bk_gpu_run(stream, plan, p, &call, a->x.shape[0] * call.blocks);
}

BK_GPU_PREPARE(bk_gpu_hc_collapse_prepare) {
  const bk_hc_collapse_args *a = args;
  const bk_gpu_shape shape = bk_gpu_shape_of(device, a->y.shape[1]);
  bk_gpu_hc_collapse_consts consts = {shape.group, shape.items, shape.batches, bk_gpu_half(&a->x)};
  return bk_gpu_build(device, BK_GPU_hc_collapse, &consts, &s->kernel[0]);
}

BK_LAUNCH_FN(bk_gpu_hc_collapse) {
  const bk_hc_collapse_args *a = args;
  const bk_gpu_pipeline *p = bk_gpu_state_of(plan)->kernel[0];
  const int64_t width = a->y.shape[1];
  bk_gpu_hc_collapse_call call = {.x = bk_gpu_at(&a->x),
                                  .y = bk_gpu_at(&a->y),
                                  .width = (int32_t)width,
                                  .blocks = (int32_t)bk_gpu_blocks(p, width),
                                  .n = (int32_t)a->x.shape[1],
                                  .x0 = (int32_t)a->x.stride[0],
                                  .x1 = (int32_t)a->x.stride[1],
                                  .y0 = (int32_t)a->y.stride[0]};
  return bk_gpu_run(stream, plan, p, &call, a->y.shape[0] * call.blocks);
}
