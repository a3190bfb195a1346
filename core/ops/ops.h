/* What the files of this folder share: the composed defaults of the fused ops and the fallback.
 * Whoever runs ops needs ops/plan.h alone. Internal header. */
#ifndef BK_OPS_H
#define BK_OPS_H

#include "ops/plan.h"
#include "runtime/op_priv.h"

/* ---- composite.c ---- */
#define COMPOSED(ID, name, ...) void bk_compose_##name(const void *args, bk_composition *c);
#define COMPOSED_OF(ID, name, ...) COMPOSED(ID, name, )
#define OP(ID, name, ...)
#include "runtime/ops.def"
/* The row that runs a composed op as its default, or NULL: the op is not composed of others, or the
 * device has no kernel for one of its steps. The row is static: nobody frees it. */
const bk_kernel *bk_composite_find(const bk_device *device, bk_op op, const void *args);
/* Adds the next step; its args are used during the call only. */
void bk_compose_step(bk_composition *c, bk_op op, const void *args);
/* A contiguous tensor in the workspace, of the shape of `like`. Its contents are undefined at
 * first. While a plan is prepared it has no buffer. */
bk_tensor bk_compose_scratch(bk_composition *c, const bk_tensor *like);
#define BK_COMPOSE(c, ID, name, ...)                                        \
  do {                                                                      \
    const bk_##name##_args step_ = {__VA_ARGS__}; /* ends with the block */ \
    bk_compose_step(c, BK_OP_##ID, &step_);                                 \
  } while (0)

/* ---- fallback.c ---- */
/* Prepares `op` on the fallback device of `device` (cpu; for cpu itself ref). BK_ERR_UNSUPPORTED
 * without a message when it has no kernel either. *plan is written only on success; its launch
 * waits for the device. */
bk_status bk_fallback_prepare(bk_device *device, bk_op op, const void *args, bk_plan *plan);

#endif
