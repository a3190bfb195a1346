/* HC_PERM and HC_PERM_BWD: 4 or 8 lanes a token, see perm.cuh. */
#include "backends/cuda/kernels/maps.h"
#include "backends/cuda/kernels/perm.cuh"

namespace {

constexpr int threads = 64;

struct operands {
  bk_rows<float> logits, comb, dlogits; /* comb: of the backward dcomb */
  int64_t tokens;
  int n;
};

template <int L, bool BACKWARD>
__global__ void __launch_bounds__(threads, 4) perm_kernel(operands o) {
  __shared__ bk_perm_room<L, threads / L> room;
  const int n = o.n, m = (int)threadIdx.x % L, count = perm_factorial(n);
  const int64_t token = (int64_t)blockIdx.x * (threads / L) + (int)threadIdx.x / L;
  const bool in = token < o.tokens;
  float w[bk_perm_slots<L>] = {}, comb[L] = {};
  bk_perm_table<L, threads / L>(n, &room);
#pragma unroll
  for (int s = 0; s < bk_perm_slots<L>; s++)
    if (in && s * L + m < count) w[s] = o.logits.row(token)[s * L + m];
  if constexpr (!BACKWARD) {
    bk_perm<L, threads / L>(w, comb, n, &room);
    if (in && m < n) bk_lane_store<L, 0>(o.comb.row(token) + m * n, n, false, comb);
  } else {
    if (in && m < n) bk_lane_load<L, 0>(o.comb.row(token) + m * n, n, false, comb);
    bk_perm_bwd<L, threads / L>(w, comb, n, &room);
#pragma unroll
    for (int s = 0; s < bk_perm_slots<L>; s++)
      if (in && s * L + m < count) o.dlogits.row(token)[s * L + m] = w[s];
  }
}

template <bool BACKWARD>
void launch(bk_stream *stream, const operands &o) {
  if (o.tokens == 0) return;
  if (o.n <= 4)
    BK_LAUNCH((perm_kernel<4, BACKWARD>), (unsigned)bk_ceil_div(o.tokens, threads / 4), threads, 0,
              bk_cuda_raw(stream), o);
  else
    BK_LAUNCH((perm_kernel<8, BACKWARD>), (unsigned)bk_ceil_div(o.tokens, threads / 8), threads, 0,
              bk_cuda_raw(stream), o);
}

} // namespace

extern "C" BK_CUDA_LAUNCH(hc_perm) {
  const bk_hc_perm_args *a = (const bk_hc_perm_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch<false>(
      stream,
      {bk_rows_of<float>(&a->logits), bk_rows_of<float>(&a->comb), {}, a->comb.shape[0], a->n});
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(hc_perm_bwd) {
  const bk_hc_perm_bwd_args *a = (const bk_hc_perm_bwd_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch<true>(stream, {bk_rows_of<float>(&a->logits), bk_rows_of<float>(&a->dcomb),
                        bk_rows_of<float>(&a->dlogits), a->dcomb.shape[0], a->n});
  return bk_cuda_end(stream);
}
