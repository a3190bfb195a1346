/* The shared part of the portable GPU backends that is not about an op; see gpu.h. */
#include "backends/gpu/gpu.h"

#include <string.h>

const bk_gpu_kernel bk_gpu_kernel_table[] = {BK_GPU_KERNEL_ROWS};

BK_PREPARE(bk_gpu_prepare) {
  const bk_gpu_prepare_fn *prepare = self->own;
  bk_gpu_state *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  bk_status status = (*prepare)(device, args, made, workspace_bytes);
  if (status == BK_OK) *state = made;
  else bk_gpu_release(device, made);
  return status;
}

void bk_gpu_release(bk_device *device, void *state) {
  bk_gpu_state *s = state;
  if (s) bk_buffer_free(s->table);
  bk_free(device->ctx, s);
}

bk_status bk_gpu_table(bk_device *device, bk_gpu_state *s, const void *data, size_t bytes) {
  bk_stream *stream = NULL;
  BK_TRY(bk_buffer_alloc(device, bytes, BK_MEM_STAGING, &s->table));
  BK_TRY(bk_stream_create(device, 0, &stream));
  bk_status status = stream->ops->upload(stream, (bk_place){s->table, 0}, data, bytes);
  if (status == BK_OK) status = stream->ops->sync(stream);
  bk_stream_destroy(stream);
  return status;
}

bk_status bk_gpu_build(bk_device *device, int id, const void *consts, bk_gpu_pipeline **pipeline) {
  bk_gpu_device *d = bk_gpu_of(device);
  const bk_gpu_kernel *kernel = &bk_gpu_kernel_table[id];
  size_t bytes = (size_t)kernel->n_consts * sizeof(int32_t);
  for (bk_gpu_pipeline *p = d->pipelines; p; p = p->next) {
    if (p->kernel != kernel || memcmp(p->consts, consts, bytes) != 0) continue;
    *pipeline = p;
    return BK_OK;
  }
  bk_gpu_pipeline *made = NULL;
  BK_TRY(d->gpu->build(device, kernel, consts, &made));
  made->kernel = kernel;
  memcpy(made->consts, consts, bytes);
  made->next = d->pipelines;
  d->pipelines = made;
  *pipeline = made;
  return BK_OK;
}

bk_status bk_gpu_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *pipeline,
                     const void *call, int64_t groups) {
  const bk_place *operands = call;
  const int32_t *params = (const int32_t *)(operands + pipeline->kernel->operands);
  if (groups <= 0) return BK_OK;
  if (groups > INT32_MAX)
    return bk_fail(stream->device->ctx, BK_ERR_UNSUPPORTED,
                   "%s: %s: %lld work groups in one launch", stream->device->backend->name,
                   plan->kernel->name, (long long)groups);
  return bk_gpu_of(stream->device)
      ->gpu->dispatch(stream, plan->kernel->name, pipeline, operands, params, (int)groups);
}

int bk_gpu_group(const bk_device *device, int64_t width) {
  const bk_gpu_device *d = (const bk_gpu_device *)device;
  int most = d->on_cpu ? 64 : 256, group = d->on_cpu ? 16 : 64;
  if (most > d->max_group) most = d->max_group;
  while (group < most && group < width) group *= 2;
  return group < most ? group : most;
}

bk_gpu_shape bk_gpu_shape_of(const bk_device *device, int64_t width) {
  const bk_gpu_device *d = (const bk_gpu_device *)device;
  bk_gpu_shape shape = {32, 4, 1};
  if (d->on_cpu) return (bk_gpu_shape){1, 64, 64};
  while (shape.group < d->max_group && shape.group < 256 && shape.group * shape.items < width)
    shape.group *= 2;
  return shape;
}

/* A kernel may count past the end of a tensor by as many elements as a work group has, before it
 * compares. */
#define MAX_ELEMENTS (INT32_MAX - 65536)

bool bk_gpu_takes_pieces(bk_op op, const void *args) {
  if (op == BK_OP_SUM || op == BK_OP_SUMSQ || op == BK_OP_ADAMW) return true;
  if (op != BK_OP_COPY && op != BK_OP_ADD) return false;
  const bk_op_desc *desc = bk_op_describe(op);
  for (int i = 0; i < desc->n_fields; i++)
    if (!bk_tensor_contiguous((const bk_tensor *)((const char *)args + desc->fields[i].offset)))
      return false;
  return true;
}

int64_t bk_gpu_piece(const bk_device *device) {
  const bk_gpu_device *d = (const bk_gpu_device *)device;
  /* a binding begins up to 256 bytes before */
  const int64_t most = 1 << 30,
                reach = d->binding_range ? (int64_t)(d->binding_range / 4) - 64 : most;
  return (reach < most ? reach : most) / BK_GPU_PIECE * BK_GPU_PIECE;
}

BK_ACCEPTS(bk_gpu_accepts) {
  const bk_gpu_device *d = (const bk_gpu_device *)device;
  const bk_op_desc *desc = bk_op_describe(self->op);
  const bool any_size = bk_gpu_takes_pieces(self->op, args) && bk_gpu_piece(device) > 0;
  for (int i = 0; i < desc->n_fields; i++) {
    const bk_tensor *t = (const bk_tensor *)((const char *)args + desc->fields[i].offset);
    if (!bk_tensor_present(t)) continue;
    if (t->dtype == BK_F64 ||
        (t->dtype == BK_BF16 && !(device->props.storage_dtypes & BK_DT(BK_BF16))))
      return false;
    if (any_size) continue;
    size_t span = bk_tensor_span(t);
    if (span / bk_dtype_size(t->dtype) > MAX_ELEMENTS ||
        (d->binding_range && span > d->binding_range))
      return false;
  }
  return true;
}

void bk_gpu_device_fini(bk_device *device) {
  bk_gpu_device *d = bk_gpu_of(device);
  while (d->pipelines) {
    bk_gpu_pipeline *p = d->pipelines;
    d->pipelines = p->next;
    d->gpu->pipeline_free(device, p);
  }
  bk_gpu_kept_fini(&d->cache);
}
