/* From an op to the kernel that runs it. The device's own table comes first, then the composed
 * defaults of the fused ops, and a device that was opened with `allow_fallback` may at last use
 * another device's kernel. There is no other list of what a device can do: to ask whether an op is
 * supported is to make this lookup. */
#include "ops/ops.h"

/* A row takes args by their leading dtype, by the kind of connection where the op has one, and by
 * its own test, which comes last because it may cost the most. */
bool bk_kernel_takes(const bk_kernel *kernel, const bk_device *device, const void *args) {
  bk_hc_kind kind = bk_op_kind(kernel->op, args);
  return kernel->dtypes & BK_DT(bk_op_leading_dtype(kernel->op, args)) &&
         (kind == BK_HC_PLAIN || kernel->kinds & BK_KIND(kind)) &&
         kernel->accepts(kernel, device, args);
}

/* A backend writes its best row first, so that the first match wins. */
static const bk_kernel *own_kernel(const bk_device *device, bk_op op, const void *args) {
  for (const bk_kernel *k = device->backend->kernels; k->op != BK_OP_NONE; k++)
    if (k->op == op && bk_kernel_takes(k, device, args)) return k;
  return NULL;
}

/* `composed_only` passes the device's own fused kernels over, which shows what they are worth and
 * lets a test compare them with the ops that they are made of. */
const bk_kernel *bk_kernel_find(const bk_device *device, bk_op op, const void *args) {
  bool composed = device->options.composed_only && bk_op_describe(op)->composed;
  const bk_kernel *own = composed ? NULL : own_kernel(device, op, args);
  return own ? own : bk_composite_find(device, op, args);
}

/* The message has the shapes and dtypes, because a kernel may refuse an op for these alone. */
static bk_status unsupported(bk_device *device, bk_op op, const void *args) {
  char text[2048];
  return bk_fail(device->ctx, BK_ERR_UNSUPPORTED, "%s has no kernel for %s (%s)%s",
                 device->backend->name, bk_op_name(op),
                 bk_op_describe_args(op, args, text, sizeof text),
                 device->options.allow_fallback ? ", nor has the device to fall back on" : "");
}

/* Checks come before the lookup: a row's `accepts` may rely on args that make sense. */
bk_status bk_plan_prepare(bk_device *device, bk_op op, const void *args, bk_plan *plan) {
  if (!bk_op_describe(op))
    return bk_fail(device->ctx, BK_ERR_ARGUMENT, "op %d does not exist, there are %d", (int)op,
                   BK_OP_COUNT - 1);
  BK_TRY(bk_op_check(device->ctx, op, args));
  const bk_kernel *kernel = bk_kernel_find(device, op, args);
  if (!kernel) {
    bk_status status = device->options.allow_fallback ? bk_fallback_prepare(device, op, args, plan)
                                                      : BK_ERR_UNSUPPORTED;
    return status == BK_ERR_UNSUPPORTED ? unsupported(device, op, args) : status;
  }
  bk_plan made = {.kernel = kernel, .device = device};
  BK_TRY(kernel->prepare(kernel, device, args, &made.state, &made.workspace_bytes));
  *plan = made;
  return BK_OK;
}

/* A plan that was never made has no kernel. */
void bk_plan_release(bk_plan *plan) {
  if (plan->kernel) plan->kernel->release(plan->device, plan->state);
  *plan = (bk_plan){0};
}

/* Waits even after a failed launch, because the workspace must not be freed under a running
 * kernel. */
static bk_status launch_and_sync(bk_stream *stream, const bk_plan *plan, const void *args) {
  bk_buffer *workspace = NULL;
  if (plan->workspace_bytes) {
    BK_TRY(bk_buffer_alloc(stream->device, plan->workspace_bytes, BK_MEM_WORKSPACE, &workspace));
  }
  bk_status status = bk_plan_launch(stream, plan, args, (bk_place){workspace, 0});
  bk_status synced = stream->ops->sync(stream);
  bk_buffer_free(workspace);
  return status != BK_OK ? status : synced;
}

/* The plan is prepared anew each time, which a step never does. */
bk_status bk_op_run(bk_stream *stream, bk_op op, const void *args) {
  bk_plan plan = {0};
  BK_TRY(bk_plan_prepare(stream->device, op, args, &plan));
  bk_status status = launch_and_sync(stream, &plan, args);
  bk_plan_release(&plan);
  return status;
}
