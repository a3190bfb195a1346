/* Workspaces of the kernels that need nothing but a few partial sums or counters. */
#include "backends/cpu/kernels.h"
#include "backends/cpu/norm.h"
#include "backends/cpu/router.h"
#include "backends/cpu/walk.h"

BK_PREPARE(bk_cpu_sum_prepare) {
  const bk_sum_args *a = args;
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_pieces(a->x.shape[0], BK_CPU_WALK_CHUNK) * sizeof(double);
  return BK_OK;
}

BK_PREPARE(bk_cpu_rmsnorm_bwd_prepare) {
  const bk_rmsnorm_bwd_args *a = args;
  int64_t rows = a->x.shape[0], width = a->x.shape[1];
  *state = NULL;
  *workspace_bytes = 0;
  if (bk_tensor_present(&a->dw))
    *workspace_bytes =
        (size_t)(bk_cpu_pieces(rows, bk_cpu_rmsnorm_bwd_grain(rows, width)) * width) *
        sizeof(float);
  return BK_OK;
}

BK_PREPARE(bk_cpu_router_prepare) {
  const bk_router_args *a = args;
  *state = NULL;
  *workspace_bytes =
      (size_t)bk_cpu_workers(device) * bk_cpu_router_bytes(a->logits.shape[1], a->n_group);
  return BK_OK;
}

BK_PREPARE(bk_cpu_moe_index_prepare) {
  const bk_moe_index_args *a = args;
  *state = NULL;
  *workspace_bytes = (size_t)a->offsets.shape[0] * sizeof(int32_t);
  return BK_OK;
}
