/* From an op and its arguments to a launch: the kernel is looked up and prepared once, and then
 * launched as often as a step needs it. */
#ifndef BK_PLAN_H
#define BK_PLAN_H

#include "runtime/backend.h"

/* Checks the args (bk_op_check), looks the kernel up and prepares it. BK_ERR_UNSUPPORTED names the
 * op, dtypes and shapes. BK_ERR_ARGUMENT: the args make no sense; the kernel's own prepare may fail
 * too. *plan is written only on success and then owns what the kernel has prepared, until
 * bk_plan_release. It does not keep args. */
bk_status bk_plan_prepare(bk_device *device, bk_op op, const void *args, bk_plan *plan);
/* Launches a prepared plan. Debug builds (configure --enable-debug) check the args as prepare does,
 * but now with buffers. The kernel that stands for a fallback has no op of its own; the launch on
 * the other device behind it is checked instead. `workspace` has at least plan->workspace_bytes and
 * belongs to this launch until it has ended; its contents are undefined before and after. */
static inline bk_status bk_plan_launch(bk_stream *stream, const bk_plan *plan, const void *args,
                                       bk_place workspace) {
#ifdef BK_DEBUG
  if (plan->kernel->op != BK_OP_NONE)
    BK_TRY(bk_op_check(stream->device->ctx, plan->kernel->op, args));
#endif
  return plan->kernel->launch(stream, plan, args, workspace);
}
void bk_plan_release(bk_plan *plan); /* safe on a zeroed plan; zeroes it */
/* The lookup alone: whether a row serves these args of its op, and the row that would serve an op,
 * or NULL. Nothing is allocated or logged. */
bool bk_kernel_takes(const bk_kernel *kernel, const bk_device *device, const void *args);
const bk_kernel *bk_kernel_find(const bk_device *device, bk_op op, const void *args);
/* Prepare, launch with a workspace of its own, sync, release: for tests and tools, not for
 * steps. */
bk_status bk_op_run(bk_stream *stream, bk_op op, const void *args);

#endif
