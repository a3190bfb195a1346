/* ROUTER, ROUTER_BWD (DeepSeek-V3, arXiv 2412.19437 section 2.1.2; formulas in runtime/op.h): a
 * warp a token.
 *
 * The choice must not hang on rounding, so scores and biased scores are double, as in ref; about
 * 40 double operations an expert. What is compared are 64-bit keys in the order of the doubles,
 * in shared memory, lane l has the experts l, l + 32, ...; the best of a warp takes three redux
 * instructions: upper half, lower half, lowest index. Key 0 is an expert that may not be chosen
 * (again), NaN comes next, so that a choice is always a valid index. Floor: logits read once,
 * scores written once. */
#include "backends/cuda/kernels/device.cuh"
#include "backends/cuda/kernels/experts.h"

namespace {

constexpr int threads = 128, max_warps = threads / BK_WARP, at_once = 4;
constexpr int64_t plain_shared = 48 << 10; /* bytes that a block has without asking */

/* ---- keys: unsigned numbers in the order of the doubles ---- */

constexpr uint64_t closed = 0, not_a_number = 1;

BK_DEVICE uint64_t key_of(double x) {
  const uint64_t bits = (uint64_t)__double_as_longlong(x);
  return x != x ? not_a_number : bits >> 63 ? ~bits : bits | 1ull << 63;
}
BK_DEVICE double value_of(uint64_t key) {
  return __longlong_as_double((long long)(key >> 63 ? key & ~(1ull << 63) : ~key));
}

/* The largest key of the warp and the lowest index that has it; every lane gets both. */
BK_DEVICE void warp_best(uint64_t &key, int &index) {
  const unsigned high = (unsigned)(key >> 32), best_high = __reduce_max_sync(BK_FULL_MASK, high);
  const unsigned low = high == best_high ? (unsigned)key : 0u,
                 best_low = __reduce_max_sync(BK_FULL_MASK, low);
  const uint64_t best = (uint64_t)best_high << 32 | best_low;
  index = (int)__reduce_min_sync(BK_FULL_MASK, key == best ? (unsigned)index : 0xffffffffu);
  key = best;
}
/* The same of keys[0 .. count), leaving out the index `without`. */
BK_DEVICE void warp_best_of(const uint64_t *keys, int count, int without, uint64_t &key,
                            int &index) {
  key = closed, index = 0x7fffffff;
  for (int e = (int)threadIdx.x % BK_WARP; e < count; e += BK_WARP)
    if (keys[e] > key && e != without) key = keys[e], index = e;
  warp_best(key, index);
}

/* ---- router ---- */

BK_DEVICE double sigmoid(double x) {
  const double t = exp(-fabs(x)), r = 1 / (1 + t);
  return x >= 0 ? r : t * r;
}

struct router_job {
  const float *logits, *bias;
  float *scores, *weights;
  int *index;
  int64_t tokens, logits_stride, scores_stride, index_stride, weights_stride;
  int experts, k, groups, kept_groups;
  bool norm;
  double factor;
};

/* Shared memory of one warp, in bytes and as it is laid out. */
inline int64_t warp_bytes(int64_t experts, int64_t groups) {
  return bk_ceil_div(experts * 8 + (groups > 1 ? groups * 12 : 0), 8) * 8;
}
struct warp_memory {
  uint64_t *keys; /* [experts] */
  double *group;  /* [groups]: the sum of the two best */
  int *keep;      /* [groups] */
};

/* Closes the experts of all but the best groups. */
BK_DEVICE void keep_groups(const router_job &job, const warp_memory &m) {
  const int lane = (int)threadIdx.x % BK_WARP, size = job.experts / job.groups;
  for (int g = 0; g < job.groups; g++) {
    uint64_t first, second;
    int at, other;
    warp_best_of(m.keys + g * size, size, -1, first, at);
    warp_best_of(m.keys + g * size, size, at, second, other);
    if (lane == 0) m.group[g] = value_of(first) + value_of(second);
  }
  __syncwarp();
  for (int g = lane; g < job.groups; g += BK_WARP) {
    int better = 0;
    for (int o = 0; o < job.groups; o++)
      better += m.group[o] > m.group[g] || (m.group[o] == m.group[g] && o < g);
    m.keep[g] = better < job.kept_groups;
  }
  __syncwarp();
  for (int g = 0; g < job.groups; g++)
    for (int e = lane; e < size && !m.keep[g]; e += BK_WARP) m.keys[g * size + e] = closed;
  __syncwarp();
}

/* Lane j % 32 writes choice j and returns the sum of the scores of its choices. */
BK_DEVICE double choose(const router_job &job, const float *logits, int *chosen,
                        const warp_memory &m) {
  const int lane = (int)threadIdx.x % BK_WARP;
  double sum = 0;
  for (int j = 0; j < job.k; j++) {
    uint64_t key;
    int index;
    warp_best_of(m.keys, job.experts, -1, key, index);
    if (index % BK_WARP == lane) m.keys[index] = closed; /* only this lane reads it */
    if (j % BK_WARP == lane) {
      chosen[j] = index;
      sum += sigmoid((double)logits[index]);
    }
  }
  return sum;
}

BK_DEVICE void route(const router_job &job, int64_t token, const warp_memory &m) {
  const int lane = (int)threadIdx.x % BK_WARP;
  const float *logits = job.logits + token * job.logits_stride;
  float *scores = job.scores + token * job.scores_stride,
        *weights = job.weights + token * job.weights_stride;
  int *chosen = job.index + token * job.index_stride;
  for (int first = lane; first < job.experts; first += at_once * BK_WARP) {
    float logit[at_once], bias[at_once];
#pragma unroll
    for (int i = 0; i < at_once; i++) {
      const int e = first + i * BK_WARP < job.experts ? first + i * BK_WARP : first;
      logit[i] = __ldg(logits + e), bias[i] = __ldg(job.bias + e);
    }
#pragma unroll
    for (int i = 0; i < at_once; i++) {
      const int e = first + i * BK_WARP;
      if (e >= job.experts) break;
      const double s = sigmoid((double)logit[i]);
      scores[e] = (float)s;
      m.keys[e] = key_of(s + (double)bias[i]);
    }
  }
  __syncwarp();
  if (job.groups > 1 && job.kept_groups < job.groups) keep_groups(job, m);
  const double sum = bk_warp_sum(choose(job, logits, chosen, m));
  const double factor = job.norm ? job.factor / (sum + 1e-20) : job.factor;
  for (int j = lane; j < job.k; j += BK_WARP)
    weights[j] = (float)(sigmoid((double)logits[chosen[j]]) * factor);
  __syncwarp();
}

__global__ void __launch_bounds__(threads) router_kernel(router_job job, int bytes) {
  BK_SHARED_DYNAMIC(unsigned char, shared);
  const int warp = (int)threadIdx.x / BK_WARP, warps = (int)blockDim.x / BK_WARP;
  warp_memory m;
  m.keys = reinterpret_cast<uint64_t *>(shared + (size_t)warp * (size_t)bytes);
  m.group = reinterpret_cast<double *>(m.keys + job.experts);
  m.keep = reinterpret_cast<int *>(m.group + job.groups);
  for (int64_t t = (int64_t)blockIdx.x * warps + warp; t < job.tokens;
       t += (int64_t)gridDim.x * warps)
    route(job, t, m);
}

/* ---- backward: weights_j = f s_j / D with D = sum s + 1e-20, so ds_j = f (dw_j - sum_l dw_l
 * s_l / D) / D; without norm D = 1 is constant; d logit = ds s (1 - s). A warp a token: zeros,
 * then the chosen. Floor: dlogits written once. ---- */

struct router_bwd_job {
  const float *scores, *dweights;
  const int *index;
  float *dlogits;
  int64_t tokens, scores_stride, index_stride, dweights_stride, dlogits_stride;
  int experts, k;
  bool norm;
  double factor;
};

template <bool PACKS>
__global__ void __launch_bounds__(threads) router_bwd_kernel(router_bwd_job job) {
  const int lane = (int)threadIdx.x % BK_WARP;
  for (int64_t t = (int64_t)blockIdx.x * max_warps + threadIdx.x / BK_WARP; t < job.tokens;
       t += (int64_t)gridDim.x * max_warps) {
    const float *scores = job.scores + t * job.scores_stride,
                *dweights = job.dweights + t * job.dweights_stride;
    const int *index = job.index + t * job.index_stride;
    float *dlogits = job.dlogits + t * job.dlogits_stride;
    if constexpr (PACKS)
      for (int e = lane * 4; e < job.experts; e += BK_WARP * 4)
        bk_store_pack(dlogits + e, {0.f, 0.f, 0.f, 0.f});
    else
      for (int e = lane; e < job.experts; e += BK_WARP) dlogits[e] = 0;
    double sum = 0, mixed = 0;
    for (int j = lane; j < job.k; j += BK_WARP) {
      const double s = (double)scores[index[j]];
      sum += s, mixed += (double)dweights[j] * s;
    }
    sum = bk_warp_sum(sum), mixed = bk_warp_sum(mixed);
    const double divisor = job.norm ? sum + 1e-20 : 1, common = job.norm ? mixed / divisor : 0;
    __syncwarp(); /* the zeros are in place */
    for (int j = lane; j < job.k; j += BK_WARP) {
      const double s = (double)scores[index[j]];
      dlogits[index[j]] =
          (float)(job.factor * ((double)dweights[j] - common) / divisor * s * (1 - s));
    }
  }
}

} // namespace

/* One warp's memory must fit a block; beyond that the op is served elsewhere. */
extern "C" BK_CUDA_ACCEPTS(router) {
  const bk_router_args *a = (const bk_router_args *)args;
  return warp_bytes(a->logits.shape[1], a->n_group) <= bk_cuda_of(device)->smem_optin;
}

extern "C" BK_CUDA_LAUNCH(router) {
  const bk_router_args *a = (const bk_router_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  router_job job = {};
  job.logits = (const float *)bk_cuda_data(&a->logits),
  job.bias = (const float *)bk_cuda_data(&a->bias);
  job.scores = (float *)bk_cuda_data(&a->scores), job.weights = (float *)bk_cuda_data(&a->weights),
  job.index = (int *)bk_cuda_data(&a->index);
  job.tokens = a->logits.shape[0], job.experts = (int)a->logits.shape[1],
  job.k = (int)a->index.shape[1];
  job.logits_stride = a->logits.stride[0], job.scores_stride = a->scores.stride[0];
  job.index_stride = a->index.stride[0], job.weights_stride = a->weights.stride[0];
  job.groups = a->n_group, job.kept_groups = a->topk_group, job.norm = a->norm_topk_prob,
  job.factor = a->routed_scaling_factor;
  const int64_t bytes = warp_bytes(job.experts, job.groups);
  const int warps = bytes * max_warps <= plain_shared ? max_warps
                    : bytes * 2 <= plain_shared       ? 2
                                                      : 1;
  /* one limit, whatever else is captured */
  if (bytes > plain_shared) bk_allow_shared(router_kernel, bk_cuda_of(stream->device)->smem_optin);
  BK_LAUNCH((router_kernel), bk_grid_for(stream, job.tokens, warps, 64 / warps), warps * BK_WARP,
            (size_t)(bytes * warps), bk_cuda_raw(stream), job, (int)bytes);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(router_bwd) {
  const bk_router_bwd_args *a = (const bk_router_bwd_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  router_bwd_job job = {};
  job.scores = (const float *)bk_cuda_data(&a->scores),
  job.dweights = (const float *)bk_cuda_data(&a->dweights);
  job.index = (const int *)bk_cuda_data(&a->index),
  job.dlogits = (float *)bk_cuda_data(&a->dlogits);
  job.tokens = a->scores.shape[0], job.experts = (int)a->dlogits.shape[1],
  job.k = (int)a->index.shape[1];
  job.scores_stride = a->scores.stride[0], job.index_stride = a->index.stride[0];
  job.dweights_stride = a->dweights.stride[0], job.dlogits_stride = a->dlogits.stride[0];
  job.norm = a->norm_topk_prob, job.factor = a->routed_scaling_factor;
  const unsigned grid = bk_grid_for(stream, job.tokens, max_warps, 64 / max_warps);
  if (bk_packs_fit(&a->dlogits))
    BK_LAUNCH((router_bwd_kernel<true>), grid, threads, 0, bk_cuda_raw(stream), job);
  else BK_LAUNCH((router_bwd_kernel<false>), grid, threads, 0, bk_cuda_raw(stream), job);
  return bk_cuda_end(stream);
}
