/* The shared part of the portable GPU backends that is not about an op; see gpu.h. */
#include "backends/gpu/gpu.h"

#include <string.h>

const bk_gpu_kernel bk_gpu_kernel_table[] = {BK_GPU_KERNEL_ROWS};

bk_status bk_gpu_prepare(bk_device *device, const void *args, bk_gpu_prepare_fn fn, void **state, size_t *workspace_bytes) {
  bk_gpu_state *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  bk_status status = fn(device, args, made, workspace_bytes);
  if (status == BK_OK) *state = made;
  else bk_free(device->ctx, made);
  return status;
}

void bk_gpu_release(bk_device *device, void *state) { bk_free(device->ctx, state); }

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

bk_status bk_gpu_run(bk_stream *stream, const bk_plan *plan, const bk_gpu_pipeline *pipeline, const void *call, int64_t groups) {
  const bk_place *operands = call;
  const int32_t *params = (const int32_t *)(operands + pipeline->kernel->operands);
  if (groups <= 0) return BK_OK;
  if (groups > INT32_MAX)
    return bk_fail(stream->device->ctx, BK_ERR_UNSUPPORTED, "%s: %s: %lld work groups in one launch", stream->device->backend->name,
                   plan->kernel->name, (long long)groups);
  return bk_gpu_of(stream->device)->gpu->dispatch(stream, plan->kernel->name, pipeline, operands, params, (int)groups);
}

bool bk_gpu_serial(const bk_device *device) { return ((const bk_gpu_device *)device)->on_cpu && strcmp(device->backend->name, "opencl") == 0; }

int bk_gpu_group(const bk_device *device, int64_t width) {
  const bk_gpu_device *d = (const bk_gpu_device *)device;
  int most = d->on_cpu ? 64 : 256, group = d->on_cpu ? 16 : 64;
  if (most > d->max_group) most = d->max_group;
  while (group < most && group < width) group *= 2;
  return group < most ? group : most;
}

bool bk_gpu_accepts(const bk_device *device, bk_op op, const void *args) {
  const bk_gpu_device *d = (const bk_gpu_device *)device;
  const bk_op_desc *desc = bk_op_describe(op);
  for (int i = 0; i < desc->n_fields; i++) {
    const bk_tensor *t = (const bk_tensor *)((const char *)args + desc->fields[i].offset);
    if (!bk_tensor_present(t)) continue;
    size_t span = bk_tensor_span(t);
    if (t->dtype == BK_F64 || span / bk_dtype_size(t->dtype) > INT32_MAX) return false;
    if (d->binding_range && span > d->binding_range) return false;
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
}
