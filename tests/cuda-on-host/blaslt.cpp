/* Stand-in for cuBLASLt: products in plain C++, enqueued like a kernel. It is strict: layouts,
 * types, alignments and workspaces are checked as the library documents them, and what it has no
 * algorithm for (bf16 whose addresses or columns are not multiples of 4 bytes) is refused by the
 * heuristic, so that the way around it is taken. Where k is long and the workspace allows it k
 * is cut, as the library does; the partial sums are kept as the allowed reduction scheme says,
 * so that a scheme that rounds too often shows.
 *   BK_CUDA_BLASLT   no: the library is not here (library.cpp); stale: one that cannot start is
 *                    found before it (library.cpp); broken: it cannot start; failing: products
 *                    fail */
#include <cublasLt.h>

#include "tensor/tensor.h"
#include "tests/cuda-on-host/emu.h"

struct cublasLtContext {
  int alive;
};
struct bk_emu_layout {
  cudaDataType type;
  int64_t rows, columns, ld, stride;
  int32_t batch;
};
struct bk_emu_matmul {
  cublasComputeType_t compute;
  int32_t op_a, op_b;
};
struct bk_emu_preference {
  uint64_t workspace;
  uint32_t reductions, alignment[4];
};

namespace {

enum { ALIGNMENT, WORKSPACE = 4, CUTS, ROUNDED, CHECK }; /* of an algorithm's data */

struct job {
  bk_emu_layout a, b, d;
  bk_emu_matmul m;
  int64_t k;
  const char *at_a, *at_b;
  char *at_d;
  float *parts;
  float alpha, beta;
  int64_t cuts;
  bool rounded;
};

bool setting_is(const char *value) {
  const char *text = getenv("BK_CUDA_BLASLT");
  return text && strcmp(text, value) == 0;
}

float load(const char *base, const bk_emu_layout &l, int64_t batch, int64_t row, int64_t column) {
  const int64_t at = batch * l.stride + column * l.ld + row;
  if (l.type == CUDA_R_16BF) return bk_bf16_to_f32(reinterpret_cast<const uint16_t *>(base)[at]);
  return reinterpret_cast<const float *>(base)[at];
}
void store(char *base, const bk_emu_layout &l, int64_t batch, int64_t row, int64_t column,
           float value) {
  const int64_t at = batch * l.stride + column * l.ld + row;
  if (l.type == CUDA_R_16BF) reinterpret_cast<uint16_t *>(base)[at] = bk_f32_to_bf16(value);
  else reinterpret_cast<float *>(base)[at] = value;
}

float operand(const job &j, const char *base, const bk_emu_layout &l, int32_t op, int64_t batch,
              int64_t row, int64_t column) {
  const float x =
      op == CUBLAS_OP_T ? load(base, l, batch, column, row) : load(base, l, batch, row, column);
  return j.m.compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? __uint_as_float(bk_cvt_tf32(x)) : x;
}

/* The sum of one element, in cuts, each kept as the workspace keeps it. */
double sum_of(const job &j, int64_t batch, int64_t row, int64_t column) {
  double total = 0;
  for (int64_t cut = 0; cut < j.cuts; cut++) {
    double sum = 0;
    for (int64_t l = cut * j.k / j.cuts; l < (cut + 1) * j.k / j.cuts; l++)
      sum += (double)operand(j, j.at_a, j.a, j.m.op_a, batch, row, l) *
             operand(j, j.at_b, j.b, j.m.op_b, batch, l, column);
    if (j.cuts == 1) return sum;
    float &part = j.parts[((cut * j.d.batch + batch) * j.d.columns + column) * j.d.rows + row];
    part = j.rounded && j.d.type == CUDA_R_16BF ? bk_bf16_to_f32(bk_f32_to_bf16((float)sum))
                                                : (float)sum;
    total += part;
  }
  return total;
}

void run(const job &j) {
  for (int64_t batch = 0; batch < j.d.batch; batch++)
    for (int64_t column = 0; column < j.d.columns; column++)
      for (int64_t row = 0; row < j.d.rows; row++) {
        double value = (double)j.alpha * sum_of(j, batch, row, column);
        if (j.beta != 0) value += (double)j.beta * load(j.at_d, j.d, batch, row, column);
        store(j.at_d, j.d, batch, row, column, (float)value);
      }
}

/* What the heuristic and the product ask of descriptors alike. */
cublasStatus_t check(const bk_emu_matmul *m, const bk_emu_layout *a, const bk_emu_layout *b,
                     const bk_emu_layout *c, const bk_emu_layout *d, int64_t *k) {
  if (!m || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
  for (const bk_emu_layout *l : {a, b, c, d})
    if (l->rows < 1 || l->columns < 1 || l->ld < l->rows || l->batch < 1 || l->batch != d->batch)
      return CUBLAS_STATUS_INVALID_VALUE;
  if (c->rows != d->rows || c->columns != d->columns || c->type != d->type)
    return CUBLAS_STATUS_INVALID_VALUE;
  *k = m->op_a == CUBLAS_OP_T ? a->rows : a->columns;
  if ((m->op_a == CUBLAS_OP_T ? a->columns : a->rows) != d->rows ||
      (m->op_b == CUBLAS_OP_T ? b->rows : b->columns) != d->columns ||
      (m->op_b == CUBLAS_OP_T ? b->columns : b->rows) != *k)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (d->batch > 1 && d->stride < d->ld * (d->columns - 1) + d->rows)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (a->type != b->type || (a->type == CUDA_R_32F && d->type != CUDA_R_32F))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (m->compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a->type != CUDA_R_32F)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

/* An algorithm belongs to the problem that it was chosen for. */
uint64_t check_sum(const bk_emu_matmul *m, const bk_emu_layout *a, const bk_emu_layout *b,
                   const bk_emu_layout *d) {
  uint64_t sum = (uint64_t)m->compute * 31 + (uint64_t)m->op_a * 3 + (uint64_t)m->op_b;
  for (const bk_emu_layout *l : {a, b, d})
    for (int64_t x : {(int64_t)l->type, l->rows, l->columns, l->ld, l->stride, (int64_t)l->batch})
      sum = sum * 0x9e3779b97f4a7c15u + (uint64_t)x;
  return sum;
}

bool served(const bk_emu_layout *l, uint32_t alignment) {
  return l->type != CUDA_R_16BF || (alignment % 4 == 0 && l->ld % 2 == 0 && l->stride % 2 == 0);
}

template <class T>
cublasStatus_t take(T &field, const void *buf, size_t size) {
  if (!buf || size != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
  memcpy(&field, buf, size);
  return CUBLAS_STATUS_SUCCESS;
}

} // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
  if (setting_is("broken")) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasLtContext{1};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion(void) { return 130000; }
const char *cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "an unknown status";
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
  *layout = new bk_emu_layout{type, (int64_t)rows, (int64_t)cols, ld, 0, 1};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attr,
                                                const void *buf, size_t size) {
  return attr == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT ? take(layout->batch, buf, size)
                                                    : take(layout->stride, buf, size);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
  *desc = new bk_emu_matmul{compute, CUBLAS_OP_N, CUBLAS_OP_N};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attr, const void *buf,
                                              size_t size) {
  return attr == CUBLASLT_MATMUL_DESC_TRANSA ? take(desc->op_a, buf, size)
                                             : take(desc->op_b, buf, size);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *pref) {
  *pref = new bk_emu_preference{0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref) {
  delete pref;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                    cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *buf, size_t size) {
  if (attr == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return take(pref->workspace, buf, size);
  if (attr == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) return take(pref->reductions, buf, size);
  return take(pref->alignment[attr - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], buf, size);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *returned) {
  int64_t k = 0;
  *returned = 0;
  if (!handle || !preference || requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
  cublasStatus_t status = check(desc, a, b, c, d, &k);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const uint32_t *alignment = preference->alignment;
  if (!served(a, alignment[0]) || !served(b, alignment[1]) || !served(c, alignment[2]) ||
      !served(d, alignment[3]))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const uint64_t cuts = k >= 1024 ? 2 : 1,
                 bytes = cuts * (uint64_t)(d->batch * d->rows * d->columns) * sizeof(float);
  const bool cut = cuts > 1 && preference->reductions && bytes <= preference->workspace;
  cublasLtMatmulHeuristicResult_t best = {};
  for (int i = 0; i < 4; i++) best.algo.data[ALIGNMENT + i] = alignment[i];
  best.workspaceSize = best.algo.data[WORKSPACE] = cut ? bytes : 0;
  best.algo.data[CUTS] = cut ? cuts : 1;
  best.algo.data[ROUNDED] =
      (preference->reductions & ~(uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) != 0;
  best.algo.data[CHECK] = check_sum(desc, a, b, d);
  results[0] = best;
  *returned = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t a, const void *B,
                              cublasLtMatrixLayout_t b, const void *beta, const void *C,
                              cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  job j = {};
  if (!handle || !algo || !alpha || !beta || !A || !B || !C || !D || C != D)
    return CUBLAS_STATUS_INVALID_VALUE;
  cublasStatus_t status = check(desc, a, b, c, d, &j.k);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (algo->data[CHECK] != check_sum(desc, a, b, d)) return CUBLAS_STATUS_INVALID_VALUE;
  const void *addresses[4] = {A, B, C, D};
  for (int i = 0; i < 4; i++)
    if (reinterpret_cast<uintptr_t>(addresses[i]) % algo->data[ALIGNMENT + i])
      return CUBLAS_STATUS_NOT_SUPPORTED;
  if (workspace_bytes < algo->data[WORKSPACE] || (algo->data[WORKSPACE] && !workspace))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (reinterpret_cast<uintptr_t>(workspace) % 256) return CUBLAS_STATUS_INVALID_VALUE;
  if (setting_is("failing")) return CUBLAS_STATUS_EXECUTION_FAILED;
  j.a = *a, j.b = *b, j.d = *d, j.m = *desc;
  j.at_a = static_cast<const char *>(A), j.at_b = static_cast<const char *>(B),
  j.at_d = static_cast<char *>(D);
  j.parts = static_cast<float *>(workspace);
  j.alpha = *static_cast<const float *>(alpha), j.beta = *static_cast<const float *>(beta);
  j.cuts = (int64_t)algo->data[CUTS], j.rounded = algo->data[ROUNDED] != 0;
  bk_emu_enqueue(stream, [j] { run(j); });
  return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
