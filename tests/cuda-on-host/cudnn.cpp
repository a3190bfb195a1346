/* Stand-in for cuDNN in the place of backends/cuda/cudnn_graph.c: plans of attention in plain
 * C++, enqueued like kernels. Strict: strides, addresses, a packed lse and the limit of the
 * workspace are checked, ds is kept in the workspace in bf16, rounded up to whole tiles as the
 * library does, and the products run over what the workspace holds. What the graphs are is for
 * tests/cuda/test_cudnn_plan.c and the real library.
 *   BK_CUDA_CUDNN        1: the library is here (otherwise it is not)
 *   BK_CUDA_CUDNN_FAILS  N: the N-th run of a backward fails, counted since the library started */
#include <cudnn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backends/cuda/cudnn.h"
#include "tests/cuda-on-host/emu.h"

extern "C" {
#include "backends/cuda/cudnn_graph.h"
}

struct cudnnContext {
  cudaStream_t stream;
  int backwards;
};

namespace {

/* Operands in the order of cudnn_graph.h, with their addresses once it runs. */
struct problem {
  int64_t b, t, h, dk, dv, padded;
  bk_tensor at[BK_CUDNN_BACKWARD_COUNT];
  char *data[BK_CUDNN_BACKWARD_COUNT];
  int count;
  float scale;
  uint16_t *ds;
  float *sums;
};

struct row {
  uint16_t *x;
  float get(int64_t i) const { return bk_bf16_to_f32(x[i]); }
  void set(int64_t i, float value) const { x[i] = bk_f32_to_bf16(value); }
};
row row_of(const problem &p, int operand, int64_t b, int64_t t, int64_t h) {
  const bk_tensor &x = p.at[operand];
  return {reinterpret_cast<uint16_t *>(p.data[operand]) + b * x.stride[0] + t * x.stride[1] +
          h * x.stride[2]};
}
float *lse_of(const problem &p, int64_t b, int64_t h) {
  return reinterpret_cast<float *>(p.data[BK_CUDNN_LSE]) + (b * p.h + h) * p.t;
}
double dot(row a, row b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += (double)a.get(i) * b.get(i);
  return sum;
}
double score(const problem &p, int64_t b, int64_t h, int64_t i, int64_t j) {
  return p.scale * dot(row_of(p, BK_CUDNN_Q, b, i, h), row_of(p, BK_CUDNN_K, b, j, h), p.dk);
}

void forward_row(const problem &p, int64_t b, int64_t h, int64_t i) {
  double most = -INFINITY, sum = 0;
  for (int64_t j = 0; j <= i; j++) most = std::fmax(most, score(p, b, h, i, j));
  for (int64_t j = 0; j <= i; j++) sum += std::exp(score(p, b, h, i, j) - most);
  lse_of(p, b, h)[i] = (float)(most + std::log(sum));
  const row o = row_of(p, BK_CUDNN_O, b, i, h);
  for (int64_t c = 0; c < p.dv; c++) {
    double x = 0;
    for (int64_t j = 0; j <= i; j++)
      x += std::exp(score(p, b, h, i, j) - most) / sum * row_of(p, BK_CUDNN_V, b, j, h).get(c);
    o.set(c, (float)x);
  }
}
void run_forward(const problem &p) {
  for (int64_t b = 0; b < p.b; b++)
    for (int64_t h = 0; h < p.h; h++)
      for (int64_t i = 0; i < p.t; i++) forward_row(p, b, h, i);
}

uint16_t *ds_of(const problem &p, int64_t b, int64_t h, int64_t i) {
  return p.ds + ((b * p.h + h) * p.padded + i) * p.padded;
}
double weight(const problem &p, int64_t b, int64_t h, int64_t i, int64_t j) {
  return std::exp(score(p, b, h, i, j) - lse_of(p, b, h)[i]);
}

void fill_ds(const problem &p, int64_t b, int64_t h) {
  for (int64_t i = 0; i < p.t; i++) {
    const row dout = row_of(p, BK_CUDNN_DOUT, b, i, h);
    float &sum = p.sums[(b * p.h + h) * p.t + i];
    sum = (float)dot(dout, row_of(p, BK_CUDNN_O, b, i, h), p.dv);
    for (int64_t j = 0; j <= i; j++)
      row{ds_of(p, b, h, i)}.set(j,
                                 (float)(p.scale * weight(p, b, h, i, j) *
                                         (dot(dout, row_of(p, BK_CUDNN_V, b, j, h), p.dv) - sum)));
  }
}
void backward_rows(const problem &p, int64_t b, int64_t h) {
  std::vector<double> w(p.t);
  for (int64_t n = 0; n < p.t; n++) { /* dq of query n; dk and dv of key n */
    for (int64_t i = n; i < p.t; i++) w[i] = weight(p, b, h, i, n);
    for (int64_t c = 0; c < p.dk; c++) {
      double dq = 0, dk = 0;
      for (int64_t j = 0; j <= n; j++)
        dq += (double)row{ds_of(p, b, h, n)}.get(j) * row_of(p, BK_CUDNN_K, b, j, h).get(c);
      for (int64_t i = n; i < p.t; i++)
        dk += (double)row{ds_of(p, b, h, i)}.get(n) * row_of(p, BK_CUDNN_Q, b, i, h).get(c);
      row_of(p, BK_CUDNN_DQ, b, n, h).set(c, (float)dq);
      row_of(p, BK_CUDNN_DK, b, n, h).set(c, (float)dk);
    }
    for (int64_t c = 0; c < p.dv; c++) {
      double dv = 0;
      for (int64_t i = n; i < p.t; i++) dv += w[i] * row_of(p, BK_CUDNN_DOUT, b, i, h).get(c);
      row_of(p, BK_CUDNN_DV, b, n, h).set(c, (float)dv);
    }
  }
}
void run_backward(const problem &p) {
  for (int64_t b = 0; b < p.b; b++)
    for (int64_t h = 0; h < p.h; h++) {
      fill_ds(p, b, h);
      backward_rows(p, b, h);
    }
}

/* What the library would read or write elsewhere than it is meant to. */
bool fits(const problem &p, int operand) {
  const bk_tensor &x = p.at[operand];
  if (operand == BK_CUDNN_LSE)
    return x.dtype == BK_F32 && x.ndim == 3 && x.shape[0] == p.b && x.shape[1] == p.h &&
           x.shape[2] == p.t && bk_tensor_contiguous(&x);
  const int64_t width = operand == BK_CUDNN_Q || operand == BK_CUDNN_K || operand == BK_CUDNN_DQ ||
                                operand == BK_CUDNN_DK
                            ? p.dk
                            : p.dv;
  bool fit = x.dtype == BK_BF16 && x.ndim == 4 && x.shape[0] == p.b && x.shape[1] == p.t &&
             x.shape[2] == p.h && x.shape[3] == width && x.stride[3] == 1;
  for (int i = 0; i < 3; i++) fit = fit && x.stride[i] > 0 && x.stride[i] % 8 == 0;
  return fit && width % 8 == 0;
}

cudnnStatus_t finish(bk_cudnn_plan *plan, const bk_cudnn_api *api, problem &p, double scale,
                     size_t limit) {
  const bk_tensor &q = p.at[BK_CUDNN_Q];
  *plan = {};
  p.b = q.shape[0], p.t = q.shape[1], p.h = q.shape[2], p.dk = q.shape[3],
  p.dv = p.at[BK_CUDNN_V].shape[3];
  p.padded = (p.t + 127) / 128 * 128;
  p.scale = (float)scale;
  for (int i = 0; i < p.count; i++)
    if (!fits(p, i)) return CUDNN_STATUS_BAD_PARAM;
  if (p.count == BK_CUDNN_BACKWARD_COUNT)
    plan->workspace = (size_t)(p.b * p.h * p.padded * p.padded) * sizeof(uint16_t);
  if (plan->workspace > limit) return CUDNN_STATUS_NOT_SUPPORTED;
  plan->api = api;
  plan->sums = plan->workspace; /* a multiple of 256 */
  plan->bytes =
      plan->sums +
      (p.count == BK_CUDNN_BACKWARD_COUNT ? (size_t)(p.b * p.h * p.t) * sizeof(float) : 0);
  plan->plan = new problem(p);
  snprintf(plan->name, sizeof plan->name, "plain sums");
  return CUDNN_STATUS_SUCCESS;
}

} // namespace

extern "C" {

size_t cudnnGetVersion(void) { return BK_CUDNN_VERSION; }
const char *cudnnGetErrorString(cudnnStatus_t status) {
  return status == CUDNN_STATUS_EXECUTION_FAILED ? "CUDNN_STATUS_EXECUTION_FAILED"
                                                 : "another status";
}
cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
  *handle = new cudnnContext{};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

const char *bk_cudnn_api_find(bk_cudnn_api *api, const char **opened) {
  const char *here = getenv("BK_CUDA_CUDNN");
  if (!here || strcmp(here, "1") != 0) return "libcudnn.so.9 is not found";
  *opened = "the stand-in for cuDNN";
  *api = {};
  api->Create = cudnnCreate;
  api->Destroy = cudnnDestroy;
  api->SetStream = cudnnSetStream;
  api->GetVersion = cudnnGetVersion;
  api->GetErrorString = cudnnGetErrorString;
  return nullptr;
}

cudnnStatus_t bk_cudnn_plan_forward(const bk_cudnn_api *api, bk_cudnn_target target,
                                    const bk_attention_args *a, size_t limit, bk_cudnn_plan *plan) {
  problem p = {};
  for (const bk_tensor *x : {&a->q, &a->k, &a->v, &a->o, &a->lse}) p.at[p.count++] = *x;
  return target.handle ? finish(plan, api, p, a->scale, limit) : CUDNN_STATUS_BAD_PARAM;
}

cudnnStatus_t bk_cudnn_plan_backward(const bk_cudnn_api *api, bk_cudnn_target target,
                                     const bk_attention_bwd_args *a, size_t limit,
                                     bk_cudnn_plan *plan) {
  problem p = {};
  for (const bk_tensor *x : {&a->q, &a->k, &a->v, &a->o, &a->lse, &a->dout, &a->dq, &a->dk, &a->dv})
    p.at[p.count++] = *x;
  return target.handle ? finish(plan, api, p, a->scale, limit) : CUDNN_STATUS_BAD_PARAM;
}

void bk_cudnn_plan_release(bk_cudnn_plan *plan) {
  delete static_cast<problem *>(plan->plan);
  plan->plan = nullptr;
}

cudnnStatus_t bk_cudnn_plan_run(bk_cudnn_plan *plan, cudnnHandle_t handle, char *const *data,
                                int count, char *workspace) {
  const char *fails = getenv("BK_CUDA_CUDNN_FAILS");
  problem p = *static_cast<const problem *>(plan->plan);
  if (count == BK_CUDNN_BACKWARD_COUNT && ++handle->backwards == (fails ? atoi(fails) : 0))
    return CUDNN_STATUS_EXECUTION_FAILED;
  if (count != p.count) return CUDNN_STATUS_BAD_PARAM;
  for (int i = 0; i < count; i++) {
    p.data[i] = data[i];
    if (!data[i] || reinterpret_cast<uintptr_t>(data[i]) % 16) return CUDNN_STATUS_BAD_PARAM;
  }
  p.ds = reinterpret_cast<uint16_t *>(workspace);
  p.sums = reinterpret_cast<float *>(workspace + plan->sums);
  bk_emu_enqueue(handle->stream,
                 [p] { (p.count == BK_CUDNN_BACKWARD_COUNT ? run_backward : run_forward)(p); });
  return CUDNN_STATUS_SUCCESS;
}

} // extern "C"
