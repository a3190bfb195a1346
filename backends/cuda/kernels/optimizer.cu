/* ADAMW and BALANCE. Both read step[FINITE] on the device and change nothing where it is 0.
 *
 * ADAMW: one pass over flat tensors, a grid-stride loop, 16-byte accesses: 4 elements a thread
 * where p is fp32, 8 where it is bf16. Floor: gradient read; m, v and the weights read and
 * written; p written beside a master. */
#include "backends/cuda/kernels/basic.h"
#include "backends/cuda/kernels/device.cuh"

namespace {

constexpr int threads = 256;

struct rates {
  float beta1, beta2, rest1, rest2, eps, decay;
};
struct state {
  float clip, lr, inv_bc1, inv_bc2;
};

/* The optimiser's state is far larger than the caches: streaming accesses leave them to the
 * weights. */
template <int N>
BK_DEVICE void load(const float *p, float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 x = __ldcs(reinterpret_cast<const float4 *>(p + i));
    v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
  }
}
template <int N>
BK_DEVICE void store(float *p, const float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4)
    __stcs(reinterpret_cast<float4 *>(p + i), make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]));
}

BK_DEVICE void update(float g, float &m, float &v, float &w, const rates &r, const state &s) {
  g *= s.clip;
  m = r.beta1 * m + r.rest1 * g;
  v = r.beta2 * v + r.rest2 * g * g;
  w -= s.lr * (m * s.inv_bc1 / (sqrtf(v * s.inv_bc2) + r.eps) + r.decay * w);
}

/* `w` are the weights: the master, or p itself where there is none (then p is NULL). Elements up
 * to `packed` go by packs. */
template <class P>
__global__ void __launch_bounds__(threads)
    adamw_kernel(const float *grad, const float *step, P *p, float *w, float *m, float *v,
                 int64_t count, int64_t packed, rates r) {
  constexpr int n = bk_pack<P>::count;
  if (step[BK_STEP_FINITE] == 0) return;
  const state s = {step[BK_STEP_CLIP], step[BK_STEP_LR], 1 / step[BK_STEP_BC1],
                   1 / step[BK_STEP_BC2]};
  const int64_t first = (int64_t)blockIdx.x * threads + threadIdx.x,
                stride = (int64_t)gridDim.x * threads;
  for (int64_t i = first * n; i < packed; i += stride * n) {
    float gi[n], mi[n], vi[n], wi[n];
    load(grad + i, gi), load(m + i, mi), load(v + i, vi), load(w + i, wi);
#pragma unroll
    for (int j = 0; j < n; j++) update(gi[j], mi[j], vi[j], wi[j], r, s);
    store(m + i, mi), store(v + i, vi), store(w + i, wi);
    if (p) bk_store_pack_global(p + i, wi);
  }
#pragma unroll 1 /* or the count of rounds is divided out */
  for (int64_t i = packed + first; i < count; i += stride) {
    float mi = m[i], vi = v[i], wi = w[i];
    update(grad[i], mi, vi, wi, r, s);
    m[i] = mi, v[i] = vi, w[i] = wi;
    if (p) p[i] = bk_from_float<P>(wi);
  }
}

template <class P>
void launch_adamw(bk_stream *stream, const bk_adamw_args *a) {
  constexpr int n = bk_pack<P>::count;
  const bool has_master = bk_tensor_present(&a->master);
  const bk_tensor *w = has_master ? &a->master : &a->p;
  const size_t offsets = a->grad.offset | a->m.offset | a->v.offset | w->offset | a->p.offset;
  const int64_t count = a->grad.shape[0];
  const rates r = {(float)a->beta1,       (float)a->beta2, (float)(1 - a->beta1),
                   (float)(1 - a->beta2), (float)a->eps,   (float)a->weight_decay};
  if (count == 0) return;
  BK_LAUNCH((adamw_kernel<P>), bk_grid_for(stream, count, threads * n, 8), threads, 0,
            bk_cuda_raw(stream), (const float *)bk_cuda_data(&a->grad),
            (const float *)bk_cuda_data(&a->step), has_master ? (P *)bk_cuda_data(&a->p) : nullptr,
            (float *)bk_cuda_data(w), (float *)bk_cuda_data(&a->m), (float *)bk_cuda_data(&a->v),
            count, offsets % 16 == 0 ? count / n * n : 0, r);
}

/* One block. Counts are below 2^31, so that their sum is exact in double for any number of
 * experts there can be. */
__global__ void __launch_bounds__(threads)
    balance_kernel(const int32_t *load, const float *step, float *bias, int experts) {
  __shared__ double shared[BK_WARP];
  double sum = 0;
  if (step[BK_STEP_FINITE] == 0) return;
  for (int e = (int)threadIdx.x; e < experts; e += threads) sum += (double)load[e];
  const int64_t total = (int64_t)bk_block_sum(sum, shared);
  for (int e = (int)threadIdx.x; e < experts; e += threads) {
    const int64_t missing = total - (int64_t)experts * load[e];
    bias[e] += step[BK_STEP_BALANCE_RATE] * (float)((missing > 0) - (missing < 0));
  }
}

} // namespace

extern "C" BK_CUDA_LAUNCH(adamw) {
  const bk_adamw_args *a = (const bk_adamw_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->p.dtype, launch_adamw, (stream, a));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_ACCEPTS(balance) {
  (void)device;
  return ((const bk_balance_args *)args)->bias.dtype == BK_F32;
}

extern "C" BK_CUDA_LAUNCH(balance) {
  const bk_balance_args *a = (const bk_balance_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_LAUNCH((balance_kernel), 1, threads, 0, bk_cuda_raw(stream),
            (const int32_t *)bk_cuda_data(&a->load), (const float *)bk_cuda_data(&a->step),
            (float *)bk_cuda_data(&a->bias), (int)a->load.shape[0]);
  return bk_cuda_end(stream);
}
