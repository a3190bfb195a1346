/* A backend for tests of `birkhoff verify --bisect`: all of cpu's kernels, but those of the op that
 * BIRKHOFF_BROKEN names are wrong:
 *   rmsnorm        one element of y, where rows are as wide as BIRKHOFF_BROKEN_WIDTH says (0: all)
 *   rmsnorm_bwd    one element of dx
 *   grouped_wgrad  overwrites where it should add
 *   router         takes another expert for the last token
 *   swiglu         writes into an input
 *   adamw          writes past its weights, into what is not its own
 * It asks the program for no symbol but cpu's table. */
#include "runtime/backend.h"

#include <stdlib.h>
#include <string.h>

#define ROWS 1024

static bk_kernel kernels[ROWS];
static bk_backend broken;

/* The element itself, in fp32 or bf16, made half as large again. */
static void spoil(const bk_tensor *t, int64_t index) {
  char *at = bk_tensor_data(t);
  if (t->dtype == BK_F32) {
    ((float *)at)[index] = 1.5f * ((float *)at)[index] + 1e-3f;
  } else {
    uint16_t *half = (uint16_t *)at + index;
    *half = bk_f32_to_bf16(1.5f * bk_bf16_to_f32(*half) + 1e-3f);
  }
}

static bool right_width(int64_t width) {
  const char *text = getenv("BIRKHOFF_BROKEN_WIDTH");
  return !text || atoi(text) == 0 || atoi(text) == width;
}

static BK_LAUNCH_FN(launch) {
  const bk_kernel *row = &bk_backend_cpu.kernels[plan->kernel - kernels];
  bk_grouped_wgrad_args grouped;
  if (row->op == BK_OP_GROUPED_WGRAD) {
    grouped = *(const bk_grouped_wgrad_args *)args;
    grouped.overwrite = true;
    args = &grouped;
  }
  BK_TRY(row->launch(stream, plan, args, workspace));
  if (row->op == BK_OP_RMSNORM) {
    const bk_rmsnorm_args *a = args;
    if (right_width(a->x.shape[1])) spoil(&a->y, 3);
  } else if (row->op == BK_OP_RMSNORM_BWD) {
    const bk_rmsnorm_bwd_args *a = args;
    if (bk_tensor_present(&a->dx)) spoil(&a->dx, 5);
  } else if (row->op == BK_OP_ROUTER) {
    const bk_router_args *a = args;
    int32_t *index = bk_tensor_data(&a->index);
    int64_t last = a->index.shape[0] * a->index.shape[1] - 1;
    index[last] = (index[last] + 1) % (int32_t)a->logits.shape[1];
  } else if (row->op == BK_OP_SWIGLU) {
    spoil(&((const bk_swiglu_args *)args)->up, 0);
  } else if (row->op == BK_OP_ADAMW) {
    const bk_adamw_args *a = args;
    bk_tensor behind = a->p;
    behind.offset =
        (behind.offset + (size_t)a->p.shape[0] * (a->p.dtype == BK_BF16 ? 2 : 4) + 255) / 256 * 256;
    if (behind.offset + 256 <= behind.buffer->size) spoil(&behind, 1);
  }
  return BK_OK;
}

static bk_status open_device(bk_context *ctx, int index, const bk_device_options *options,
                             bk_device **device) {
  BK_TRY(bk_backend_cpu.open(ctx, index, options, device));
  (*device)->backend = &broken;
  return BK_OK;
}

static bool is_broken(const bk_kernel *row) {
  static const struct {
    const char *name;
    bk_op op;
  } ops[] = {{"rmsnorm", BK_OP_RMSNORM},
             {"rmsnorm_bwd", BK_OP_RMSNORM_BWD},
             {"grouped_wgrad", BK_OP_GROUPED_WGRAD},
             {"router", BK_OP_ROUTER},
             {"swiglu", BK_OP_SWIGLU},
             {"adamw", BK_OP_ADAMW}};
  const char *wanted = getenv("BIRKHOFF_BROKEN");
  for (size_t i = 0; wanted && i < BK_COUNT(ops); i++)
    if (strcmp(wanted, ops[i].name) == 0) return row->op == ops[i].op;
  return false;
}

const bk_backend *bk_backend_module(void) {
  int n = 0;
  for (; bk_backend_cpu.kernels[n].op != BK_OP_NONE; n++) {
    if (n + 1 >= ROWS) return NULL;
    kernels[n] = bk_backend_cpu.kernels[n];
    if (!is_broken(&kernels[n])) continue;
    kernels[n].launch = launch;
    memcpy(kernels[n].name, "broken", sizeof "broken");
  }
  kernels[n] = bk_backend_cpu.kernels[n];
  broken = bk_backend_cpu;
  broken.name = "broken";
  broken.priority = -1; /* never the default */
  broken.open = open_device;
  broken.kernels = kernels;
  return &broken;
}
