#include "backends/cpu/attention.h"
#include "backends/cpu/kernels.h"

static size_t rounded(int64_t floats) { return (size_t)BK_ALIGN_UP(floats, 16); }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

bk_attention_sizes bk_cpu_attention_sizes(const bk_attention_args *a) {
  int64_t dv = a->v.shape[3];
  bk_attention_sizes s = {
    .scores = (size_t)BK_ATT_BQ * BK_ATT_BK,
    .out = rounded(BK_ATT_BQ * dv),
    .rows = BK_ATT_BQ,
    .gemm = bk_cpu_gemm_scratch(BK_ATT_BQ, larger(BK_ATT_BK, dv)),
  };
  s.worker = (s.scores + s.out + 2 * s.rows) * sizeof(float) + s.gemm;
  return s;
}

bk_attention_sizes bk_cpu_attention_bwd_sizes(const bk_attention_bwd_args *a) {
  int64_t t = a->q.shape[1], dk = a->q.shape[3], dv = a->v.shape[3];
  bool bf = a->q.dtype == BK_BF16;
  bk_attention_sizes s = {
    .scores = (size_t)BK_ATT_BWD_BQ * BK_ATT_BWD_BK,
    .rows = rounded(t),
    .dk = bf ? rounded(BK_ATT_BWD_BK * dk) : 0,
    .dv = bf ? rounded(BK_ATT_BWD_BK * dv) : 0,
    .dq = bf ? rounded(t * dk) : 0,
    .gemm = bk_cpu_gemm_scratch(BK_ATT_BWD_BQ, larger(BK_ATT_BWD_BK, larger(dk, dv))),
  };
  s.worker = (2 * s.scores + s.rows + s.dk + s.dv + s.dq) * sizeof(float) + s.gemm;
  return s;
}

bk_status bk_cpu_attention_prepare(bk_device *device, const void *args, void **state, size_t *workspace_bytes) {
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * bk_cpu_attention_sizes(args).worker;
  return BK_OK;
}

bk_status bk_cpu_attention_bwd_prepare(bk_device *device, const void *args, void **state, size_t *workspace_bytes) {
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * bk_cpu_attention_bwd_sizes(args).worker;
  return BK_OK;
}
