/* HC_LOGITS, HC_GATES, HC_TANH and the fused op HC_MAPS: all maps of a token in one launch,
 * from proj and rinv, with nothing stored in between. 4 or 8 lanes a token, see maps.cuh. Floor:
 * R + 1 floats read and n(n+2) written a token; bound by latency and, for mhc, by the arithmetic
 * of Sinkhorn. */
#include "backends/cuda/kernels/maps.h"
#include "backends/cuda/kernels/maps.cuh"

namespace {

constexpr int threads = BK_MAPS_THREADS;

/* ---- all maps ---- */

template <int KIND, int L>
struct rooms_of {
  char nothing;
};
template <int L>
struct rooms_of<BK_HC_MHC, L> {
  bk_sinkhorn_room sinkhorn[BK_MAPS_WARPS];
};
template <int L>
struct rooms_of<BK_HC_MHC_LITE, L> {
  bk_perm_room<L, threads / L> perm;
};

/* v: proj, becomes the logits; for hc the maps themselves. */
template <int KIND, int L, int S>
BK_DEVICE void to_logits(const bk_maps_operands &o, float r, int m, int n, float (&v)[S]) {
#pragma unroll
  for (int s = 0; s < S; s++) {
    if (!bk_maps_present<KIND, L>(m, s, n)) continue;
    const float scale = o.scale[s < 2 ? s : 2], base = o.base[bk_maps_column<KIND, L>(m, s, n)];
    if constexpr (KIND == BK_HC_HC) v[s] = scale * tanhf(v[s] * r) + base;
    else v[s] = v[s] * r * scale + base;
  }
}

/* comb from the lane's entries. */
template <int KIND, int L, int N>
BK_DEVICE void mix_of(const bk_maps_operands &o, float (&entries)[bk_maps_array<KIND, L>],
                      bool live, int n, rooms_of<KIND, L> *rooms, float (&comb)[L]) {
  if constexpr (KIND == BK_HC_MHC) {
    bk_sinkhorn<L, N>(entries, comb, live, n, o.iters, o.eps,
                      &rooms->sinkhorn[threadIdx.x / BK_WARP]);
  } else if constexpr (KIND == BK_HC_MHC_LITE) {
    bk_perm<L, threads / L>(entries, comb, n, &rooms->perm);
  } else if constexpr (KIND == BK_HC_HC) {
#pragma unroll
    for (int k = 0; k < L; k++) comb[k] = entries[k];
  }
}

template <int KIND, int L, int N>
__global__ void __launch_bounds__(threads, 4) maps_kernel(bk_maps_operands o) {
  __shared__ rooms_of<KIND, L> rooms;
  constexpr int S = 2 + bk_maps_slots<KIND, L>;
  const int n = N ? N : o.n, m = (int)threadIdx.x % L;
  const int64_t token = (int64_t)blockIdx.x * (threads / L) + (int)threadIdx.x / L,
                row = KIND == BK_HC_HC ? token * n + m : token;
  const bool in = token < o.tokens, live = in && m < n;
  float v[S] = {}, entries[bk_maps_array<KIND, L>], comb[L];
  if constexpr (KIND == BK_HC_MHC_LITE) bk_perm_table<L, threads / L>(n, &rooms.perm);
  if (KIND == BK_HC_MHC_LITE ? in : live) {
    bk_maps_load<KIND, L, N>(o.proj.row(row), m, n, o.packed, v);
    to_logits<KIND, L>(o, o.rinv[row], m, n, v);
  }
  if (live) {
    o.pre.row(token)[m] = KIND == BK_HC_HC ? v[0] : bk_sigmoid(v[0]) + (float)o.eps;
    if (KIND != BK_HC_HEAD) o.post.row(token)[m] = KIND == BK_HC_HC ? v[1] : 2.f * bk_sigmoid(v[1]);
  }
  if constexpr (bk_maps_slots < KIND, L >> 0) {
#pragma unroll
    for (int s = 2; s < S; s++) entries[s - 2] = v[s];
    mix_of<KIND, L, N>(o, entries, live, n, &rooms, comb);
    if (live) bk_lane_store<L, N>(o.comb.row(token) + m * n, n, o.packed, comb);
  }
}

template <int KIND, int L, int N>
void start_maps(bk_stream *stream, const bk_maps_operands &o) {
  BK_LAUNCH((maps_kernel<KIND, L, N>), (unsigned)bk_ceil_div(o.tokens, threads / L), threads, 0,
            bk_cuda_raw(stream), o);
}

void launch_maps(bk_stream *stream, const bk_hc_maps_args *a) {
  bk_maps_operands o = {};
  o.proj = bk_rows_of<float>(&a->proj), o.pre = bk_rows_of<float>(&a->pre);
  o.rinv = (const float *)bk_cuda_data(&a->rinv), o.scale = (const float *)bk_cuda_data(&a->scale);
  o.base = (const float *)bk_cuda_data(&a->base);
  o.tokens = a->pre.shape[0], o.n = a->n, o.iters = a->iters, o.eps = a->hc_eps;
  o.packed = bk_lane_rows_fit(&a->proj);
  if (bk_tensor_present(&a->post)) o.post = bk_rows_of<float>(&a->post);
  if (bk_tensor_present(&a->comb))
    o.comb = bk_rows_of<float>(&a->comb), o.packed = o.packed && bk_lane_rows_fit(&a->comb);
  if (o.tokens == 0) return;
  bk_maps_by_kind(a->kind, [&](auto kind) {
    constexpr int K = decltype(kind)::value;
    if (o.n == 4) start_maps<K, 4, 4>(stream, o);
    else if (o.n < 4) start_maps<K, 4, 0>(stream, o);
    else start_maps<K, 8, 0>(stream, o);
  });
}

/* ---- logits, gates: 32 lanes a token; 8 lanes a token ---- */

__global__ void __launch_bounds__(256)
    logits_kernel(bk_rows<float> proj, const float *rinv, const float *scale, const float *base,
                  bk_rows<float> logits, int64_t tokens, int columns, int n) {
  const int64_t token = (int64_t)blockIdx.x * (256 / BK_WARP) + (int)threadIdx.x / BK_WARP;
  if (token >= tokens) return;
  for (int j = (int)threadIdx.x % BK_WARP; j < columns; j += BK_WARP)
    logits.row(token)[j] = proj.row(token)[j] * rinv[token] *
                               scale[j < n       ? 0
                                     : j < 2 * n ? 1
                                                 : 2] +
                           base[j];
}

__global__ void __launch_bounds__(256)
    gates_kernel(bk_rows<float> logits, bk_rows<float> pre, bk_rows<float> post, int64_t tokens,
                 int n, float eps) {
  const int64_t token = (int64_t)blockIdx.x * (256 / BK_HC_MAX_N) + (int)threadIdx.x / BK_HC_MAX_N;
  const int m = (int)threadIdx.x % BK_HC_MAX_N;
  if (token >= tokens || m >= n) return;
  pre.row(token)[m] = bk_sigmoid(logits.row(token)[m]) + eps;
  if (post.at) post.row(token)[m] = 2.f * bk_sigmoid(logits.row(token)[n + m]);
}

__global__ void __launch_bounds__(256)
    gates_bwd_kernel(bk_rows<float> logits, bk_rows<float> dpre, bk_rows<float> dpost,
                     bk_rows<float> dlogits, int64_t tokens, int n) {
  const int64_t token = (int64_t)blockIdx.x * (256 / BK_HC_MAX_N) + (int)threadIdx.x / BK_HC_MAX_N;
  const int m = (int)threadIdx.x % BK_HC_MAX_N;
  if (token >= tokens || m >= n) return;
  dlogits.row(token)[m] = dpre.row(token)[m] * bk_sigmoid_slope(logits.row(token)[m]);
  if (dpost.at)
    dlogits.row(token)[n + m] =
        dpost.row(token)[m] * 2.f * bk_sigmoid_slope(logits.row(token)[n + m]);
}

bk_rows<float> rows_or_none(const bk_tensor *t) {
  return bk_tensor_present(t) ? bk_rows_of<float>(t) : bk_rows<float>{};
}

} // namespace

extern "C" void bk_cuda_maps_start(bk_stream *stream, const bk_hc_maps_args *a) {
  launch_maps(stream, a);
}

extern "C" BK_CUDA_LAUNCH(hc_maps) {
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch_maps(stream, (const bk_hc_maps_args *)args);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_tanh) {
  const bk_hc_tanh_args *a = (const bk_hc_tanh_args *)args;
  bk_hc_maps_args maps = {};
  (void)workspace;
  maps.proj = a->proj, maps.rinv = a->rinv, maps.scale = a->scale, maps.base = a->base;
  maps.pre = a->pre, maps.post = a->post, maps.comb = a->comb, maps.kind = BK_HC_HC, maps.n = a->n;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch_maps(stream, &maps);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_logits) {
  const bk_hc_logits_args *a = (const bk_hc_logits_args *)args;
  const int64_t tokens = a->proj.shape[0];
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  if (tokens > 0)
    BK_LAUNCH((logits_kernel), (unsigned)bk_ceil_div(tokens, 256 / BK_WARP), 256, 0,
              bk_cuda_raw(stream), bk_rows_of<float>(&a->proj),
              (const float *)bk_cuda_data(&a->rinv), (const float *)bk_cuda_data(&a->scale),
              (const float *)bk_cuda_data(&a->base), bk_rows_of<float>(&a->logits), tokens,
              (int)a->proj.shape[1], a->n);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_gates) {
  const bk_hc_gates_args *a = (const bk_hc_gates_args *)args;
  const int64_t tokens = a->pre.shape[0];
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  if (tokens > 0)
    BK_LAUNCH((gates_kernel), (unsigned)bk_ceil_div(tokens, 256 / BK_HC_MAX_N), 256, 0,
              bk_cuda_raw(stream), bk_rows_of<float>(&a->logits), bk_rows_of<float>(&a->pre),
              rows_or_none(&a->post), tokens, (int)a->pre.shape[1], (float)a->hc_eps);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_gates_bwd) {
  const bk_hc_gates_bwd_args *a = (const bk_hc_gates_bwd_args *)args;
  const int64_t tokens = a->dpre.shape[0];
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  if (tokens > 0)
    BK_LAUNCH((gates_bwd_kernel), (unsigned)bk_ceil_div(tokens, 256 / BK_HC_MAX_N), 256, 0,
              bk_cuda_raw(stream), bk_rows_of<float>(&a->logits), bk_rows_of<float>(&a->dpre),
              rows_or_none(&a->dpost), bk_rows_of<float>(&a->dlogits), tokens,
              (int)a->dpre.shape[1]);
  return bk_cuda_end(stream);
}
