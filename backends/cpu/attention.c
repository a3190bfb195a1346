#include "backends/cpu/attention.h"
#include "backends/cpu/kernels.h"

/* Sizes hold for every instruction set: slivers are at most 32 lanes or 12 rows. */
static int64_t rows_of(int64_t n) { return BK_ALIGN_UP(n, 48); }
static int64_t lanes_of(int64_t n) { return BK_ALIGN_UP(n, 32); }
static size_t rounded(int64_t floats) { return (size_t)BK_ALIGN_UP(floats, 16); }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static bk_attention_sizes few_sizes(const bk_attention_args *a) {
  int64_t dv = a->v.shape[3];
  bk_attention_sizes s = {
      .scores = (size_t)BK_GEMM_FEW * BK_ATT_FEW_BK,
      .out = rounded(BK_GEMM_FEW * dv),
      .rows = 16,
      .gemm = bk_cpu_gemm_scratch(BK_GEMM_FEW, larger(BK_ATT_FEW_BK, dv)),
  };
  s.worker = (s.scores + s.out + 2 * s.rows) * sizeof(float) + s.gemm;
  return s;
}

bk_attention_sizes bk_cpu_attention_sizes(const bk_attention_args *a) {
  if (a->q.shape[1] <= BK_GEMM_FEW) return few_sizes(a);
  int64_t dk = a->q.shape[3], dv = a->v.shape[3];
  int64_t keys = smaller(a->k.shape[1], BK_ATT_BK),
          queries = lanes_of(smaller(a->q.shape[1], BK_ATT_BQ));
  bk_attention_sizes s = {
      .k = rounded(rows_of(keys) * dk),
      .v = rounded(larger(keys * rows_of(dv), 32 * dv)), /* also rows on their way to bf16 */
      .q = rounded(queries * dk),
      .s = rounded(rows_of(keys) * 32),
      .out = rounded(queries * dv),
      .rows = rounded(queries),
  };
  s.worker = (s.k + s.v + s.q + s.s + s.out + 2 * s.rows) * sizeof(float);
  return s;
}

bk_attention_sizes bk_cpu_attention_bwd_sizes(const bk_attention_bwd_args *a) {
  int64_t t = a->q.shape[1], dk = a->q.shape[3], dv = a->v.shape[3];
  int64_t keys = smaller(t, BK_ATT_BK), queries = lanes_of(smaller(t, BK_ATT_BWD_BQ));
  bool bf = a->q.dtype == BK_BF16;
  bk_attention_sizes s = {
      .k = rounded(rows_of(keys) * dk),
      .kt = rounded(keys * rows_of(dk)),
      .v = rounded(rows_of(keys) * dv),
      .q = rounded(queries * dk),
      .qt = rounded(queries * lanes_of(dk)),
      .g = rounded(queries * dv),
      .gt = rounded(queries * lanes_of(dv)),
      .p = rounded(rows_of(keys) * queries),
      .rows = rounded(lanes_of(t)),
      .dq = rounded(lanes_of(t) * dk),
      .dk = bf ? rounded(keys * dk) : 0,
      .dv = bf ? rounded(keys * dv) : 0,
  };
  s.worker = (s.k + s.kt + s.v + s.q + s.qt + s.g + s.gt + 4 * s.p + s.rows + s.dq + s.dk + s.dv) *
             sizeof(float);
  return s;
}

BK_PREPARE(bk_cpu_attention_prepare) {
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * bk_cpu_attention_sizes(args).worker;
  return BK_OK;
}

BK_PREPARE(bk_cpu_attention_bwd_prepare) {
  *state = NULL;
  *workspace_bytes = (size_t)bk_cpu_workers(device) * bk_cpu_attention_bwd_sizes(args).worker;
  return BK_OK;
}
