/* SINKHORN and SINKHORN_BWD: 4 or 8 lanes a token, see sinkhorn.cuh. Bound by latency and
 * arithmetic: the blocks are small (two warps), so that few tokens spread over all
 * multiprocessors. */
#include "backends/cuda/kernels/maps.h"
#include "backends/cuda/kernels/sinkhorn.cuh"

namespace {

constexpr int threads = 64, warps = threads / BK_WARP;

struct operands {
  bk_rows<float> logits, comb; /* [N, n*n]; comb: of the backward dcomb */
  bk_rows<float> dlogits;
  int64_t tokens;
  bool packed; /* rows of four are aligned */
  int n, iters;
  double eps;
};

template <int L, int N>
__global__ void __launch_bounds__(threads, 4) forward_kernel(operands o) {
  __shared__ bk_sinkhorn_room rooms[warps];
  const int n = N ? N : o.n, m = (int)threadIdx.x % L;
  const int64_t token = (int64_t)blockIdx.x * (threads / L) + (int)threadIdx.x / L;
  const bool live = token < o.tokens && m < n;
  float logits[L] = {}, comb[L];
  if (live) bk_lane_load<L, N>(o.logits.row(token) + m * n, n, o.packed, logits);
  bk_sinkhorn<L, N>(logits, comb, live, n, o.iters, o.eps, &rooms[threadIdx.x / BK_WARP]);
  if (live) bk_lane_store<L, N>(o.comb.row(token) + m * n, n, o.packed, comb);
}

template <int L, int N>
__global__ void __launch_bounds__(threads, 4) backward_kernel(operands o) {
  BK_SHARED_DYNAMIC(float, history);
  __shared__ bk_sinkhorn_bwd_room rooms[warps];
  const int n = N ? N : o.n, m = (int)threadIdx.x % L, warp = (int)threadIdx.x / BK_WARP;
  const int64_t token = (int64_t)blockIdx.x * (threads / L) + (int)threadIdx.x / L;
  const bool live = token < o.tokens && m < n;
  float logits[L] = {}, dcomb[L] = {}, dlogits[L];
  if (live) bk_lane_load<L, N>(o.logits.row(token) + m * n, n, o.packed, logits);
  if (live) bk_lane_load<L, N>(o.comb.row(token) + m * n, n, o.packed, dcomb);
  bk_sinkhorn_bwd<L, N>(logits, dcomb, dlogits, live, n, o.iters, o.eps,
                        history + warp * bk_sinkhorn_history(o.iters), &rooms[warp]);
  if (live) bk_lane_store<L, N>(o.dlogits.row(token) + m * n, n, o.packed, dlogits);
}

template <int L, int N>
void start(bk_stream *stream, const operands &o) {
  const unsigned grid = (unsigned)bk_ceil_div(o.tokens, threads / L);
  if (o.dlogits.at)
    BK_LAUNCH((backward_kernel<L, N>), grid, threads,
              warps * bk_sinkhorn_history(o.iters) * sizeof(float), bk_cuda_raw(stream), o);
  else BK_LAUNCH((forward_kernel<L, N>), grid, threads, 0, bk_cuda_raw(stream), o);
}

void launch(bk_stream *stream, const operands &o) {
  if (o.tokens == 0) return;
  if (o.n == 4) start<4, 4>(stream, o);
  else if (o.n < 4) start<4, 0>(stream, o);
  else start<8, 0>(stream, o);
}

} // namespace

extern "C" BK_CUDA_LAUNCH(sinkhorn) {
  const bk_sinkhorn_args *a = (const bk_sinkhorn_args *)args;
  const bool packed = bk_lane_rows_fit(&a->logits) && bk_lane_rows_fit(&a->comb);
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch(stream, {bk_rows_of<float>(&a->logits),
                  bk_rows_of<float>(&a->comb),
                  {},
                  a->comb.shape[0],
                  packed,
                  (int)a->comb.shape[1],
                  a->iters,
                  a->hc_eps});
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(sinkhorn_bwd) {
  const bk_sinkhorn_bwd_args *a = (const bk_sinkhorn_bwd_args *)args;
  const bool packed =
      bk_lane_rows_fit(&a->logits) && bk_lane_rows_fit(&a->dcomb) && bk_lane_rows_fit(&a->dlogits);
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch(stream, {bk_rows_of<float>(&a->logits), bk_rows_of<float>(&a->dcomb),
                  bk_rows_of<float>(&a->dlogits), a->dcomb.shape[0], packed, (int)a->dcomb.shape[1],
                  a->iters, a->hc_eps});
  return bk_cuda_end(stream);
}
