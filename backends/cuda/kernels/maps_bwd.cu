/* HC_LOGITS_BWD, HC_TANH_BWD and the fused op HC_MAPS_BWD: everything is made again from proj
 * and rinv; one launch for the gradients of proj and rinv and the partial sums of dscale and
 * dbase, and a small one that adds the partial sums up.
 *
 * A block has a chunk of tokens, 4 or 8 lanes a token (maps.cuh); each lane keeps the sums of
 * its columns in registers over the chunk. Chunks follow from the number of tokens alone, sums
 * have a fixed order: bits do not depend on the device. */
#include "backends/cuda/kernels/maps.h"
#include "backends/cuda/kernels/maps.cuh"

namespace {

constexpr int threads = BK_MAPS_THREADS, sum_threads = 128;

template <int KIND, int L>
struct rooms_of {
  char nothing;
};
template <int L>
struct rooms_of<BK_HC_MHC, L> {
  bk_sinkhorn_bwd_room sinkhorn[BK_MAPS_WARPS];
};
template <int L>
struct rooms_of<BK_HC_MHC_LITE, L> {
  bk_perm_room<L, threads / L> perm;
};

/* ---- gradients of a token's logits (for hc: of the maps) ---- */

template <int KIND, int L, int N>
BK_DEVICE void mix_back(const bk_maps_operands &o, float (&entries)[bk_maps_array<KIND, L>],
                        const float (&dcomb)[L], bool live, int n, float *history,
                        rooms_of<KIND, L> *rooms) {
  if constexpr (KIND == BK_HC_MHC) {
    const int warp = (int)threadIdx.x / BK_WARP;
    float dlogits[L];
    bk_sinkhorn_bwd<L, N>(entries, dcomb, dlogits, live, n, o.iters, o.eps,
                          history + warp * bk_sinkhorn_history(o.iters), &rooms->sinkhorn[warp]);
#pragma unroll
    for (int k = 0; k < L; k++) entries[k] = dlogits[k];
  } else if constexpr (KIND == BK_HC_MHC_LITE) {
    bk_perm_bwd<L, threads / L>(entries, dcomb, n, &rooms->perm);
  } else if constexpr (KIND == BK_HC_HC) {
#pragma unroll
    for (int k = 0; k < L; k++) entries[k] = dcomb[k];
  }
}

/* The logit of entry s. */
template <int KIND, int L>
BK_DEVICE float logit_of(const bk_maps_operands &o, float proj, float r, int m, int s, int n) {
  if (!bk_maps_present<KIND, L>(m, s, n)) return 0.f;
  return proj * r * o.scale[s < 2 ? s : 2] + o.base[bk_maps_column<KIND, L>(m, s, n)];
}

/* g: the gradients of all entries, from those of the maps; v: proj. */
template <int KIND, int L, int N, int S>
BK_DEVICE void maps_back(const bk_maps_operands &o, int64_t token, bool in, const float (&v)[S],
                         float r, int m, int n, float *history, rooms_of<KIND, L> *rooms,
                         float (&g)[S]) {
  const bool live = in && m < n;
  float entries[bk_maps_array<KIND, L>], dcomb[L] = {};
#pragma unroll
  for (int s = 0; s < 2; s++) {
    g[s] = 0;
    if (!live || (s == 1 && KIND == BK_HC_HEAD)) continue;
    g[s] = s == 0 ? o.pre.row(token)[m] : o.post.row(token)[m];
    if (KIND != BK_HC_HC)
      g[s] *= (s == 0 ? 1.f : 2.f) * bk_sigmoid_slope(logit_of<KIND, L>(o, v[s], r, m, s, n));
  }
  if constexpr (bk_maps_slots < KIND, L >> 0) {
    if (live) bk_lane_load<L, N>(o.comb.row(token) + m * n, n, o.packed, dcomb);
#pragma unroll
    for (int s = 2; s < S; s++)
      entries[s - 2] = KIND == BK_HC_HC || !in ? 0.f : logit_of<KIND, L>(o, v[s], r, m, s, n);
    mix_back<KIND, L, N>(o, entries, dcomb, live, n, history, rooms);
#pragma unroll
    for (int s = 2; s < S; s++)
      g[s] = in && bk_maps_present<KIND, L>(m, s, n) ? entries[s - 2] : 0.f;
  }
}

/* ---- from there to proj, rinv, scale and base ---- */

/* v: proj, becomes dproj. Adds to the sums: S of base, then 3 of scale. Returns the lane's part
 * of drinv. */
template <int KIND, int S>
BK_DEVICE float logits_back(const float *scales, float r, const float (&g)[S], float (&v)[S],
                            float (&sums)[S + 3]) {
  float drinv = 0;
#pragma unroll
  for (int s = 0; s < S; s++) {
    const int group = s < 2 ? s : 2;
    const float u = v[s] * r, e = KIND == BK_HC_HC ? expf(-2.f * fabsf(u)) : 0.f, d = 1.f + e;
    /* 1 - tanh^2 without cancellation */
    const float slope = KIND == BK_HC_HC ? 4.f * e / (d * d) : 1.f;
    const float dlogit = g[s] *
                         (KIND == BK_HC_HEAD && s      ? 0.f
                          : KIND == BK_HC_IHC && s > 1 ? 0.f
                                                       : scales[group]) *
                         slope;
    sums[s] += g[s];
    sums[S + group] += g[s] * (KIND == BK_HC_HC ? tanhf(u) : u);
    drinv += dlogit * v[s];
    v[s] = dlogit * r;
  }
  return drinv;
}

template <int KIND, int L, int N, int S>
BK_DEVICE void store_back(const bk_maps_operands &o, int64_t row, int64_t token, float drinv,
                          const float (&v)[S], bool in, int m, int n) {
  if (KIND != BK_HC_HC) drinv = perm_group_sum<L>(drinv);
  if (KIND == BK_HC_HC ? in && m < n : in && m == 0)
    o.drinv[KIND == BK_HC_HC ? row : token] = drinv;
  if (!in) return;
  float *out = o.dproj.row(row);
  if constexpr (KIND == BK_HC_MHC && N == 4) {
    const float mix[4] = {v[2], v[3], v[4], v[5]};
    out[m] = v[0], out[4 + m] = v[1];
    bk_lane_store<4, 4>(out + 8 + 4 * m, 4, o.packed, mix);
  } else {
#pragma unroll
    for (int s = 0; s < S; s++)
      if (bk_maps_present<KIND, L>(m, s, n)) out[bk_maps_in_row<KIND, L>(m, s, n)] = v[s];
  }
}

/* The block's sums -> partials [columns of base, then of scale][chunks]. */
template <int KIND, int L, int S>
BK_DEVICE void store_partials(const bk_maps_operands &o, float (&sums)[S + 3], int n,
                              float (*room)[L][S + 3]) {
  constexpr int scales = KIND == BK_HC_HEAD ? 1 : KIND == BK_HC_IHC ? 2 : 3;
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP;
  const int columns = KIND == BK_HC_HEAD       ? n
                      : KIND == BK_HC_IHC      ? 2 * n
                      : KIND == BK_HC_MHC_LITE ? 2 * n + perm_factorial(n)
                                               : n * (n + 2);
#pragma unroll
  for (int s = 0; s < S + 3; s++) {
#pragma unroll
    for (int d = L; d < BK_WARP; d <<= 1) sums[s] += __shfl_xor_sync(BK_FULL_MASK, sums[s], d);
    if (lane < L) room[warp][lane][s] = sums[s];
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < L * S; i += threads) {
    const int m = i % L, s = i / L;
    if (!bk_maps_present<KIND, L>(m, s, n)) continue;
    float sum = 0;
    for (int w = 0; w < BK_MAPS_WARPS; w++) sum += room[w][m][s];
    o.partials[bk_maps_column<KIND, L>(m, s, n) * o.chunks + blockIdx.x] = sum;
  }
  for (int i = (int)threadIdx.x; i < scales; i += threads) {
    float sum = 0;
    for (int w = 0; w < BK_MAPS_WARPS; w++)
      for (int m = 0; m < L; m++) sum += room[w][m][S + i];
    o.partials[(columns + i) * o.chunks + blockIdx.x] = sum;
  }
}

template <int KIND, int L, int N>
__global__ void __launch_bounds__(threads, 4) maps_bwd_kernel(bk_maps_operands o) {
  constexpr int S = 2 + bk_maps_slots<KIND, L>;
  BK_SHARED_DYNAMIC(float, history);
  __shared__ rooms_of<KIND, L> rooms;
  __shared__ float room[BK_MAPS_WARPS][L][S + 3];
  const int n = N ? N : o.n, m = (int)threadIdx.x % L;
  const int64_t begin = blockIdx.x * o.chunk,
                end = begin + o.chunk < o.tokens ? begin + o.chunk : o.tokens;
  float sums[S + 3] = {};
  if constexpr (KIND == BK_HC_MHC_LITE) bk_perm_table<L, threads / L>(n, &rooms.perm);
  for (int64_t i = begin; i < end; i += threads / L) {
    const int64_t token = i + (int)threadIdx.x / L, row = KIND == BK_HC_HC ? token * n + m : token;
    const bool in = token < end && (KIND == BK_HC_MHC_LITE || m < n);
    const float r = in ? o.rinv[row] : 0.f;
    float v[S] = {}, g[S] = {};
    if (in) bk_maps_load<KIND, L, N>(o.proj.row(row), m, n, o.packed, v);
    maps_back<KIND, L, N>(o, token, in, v, r, m, n, history, &rooms, g);
    const float drinv = logits_back<KIND>(o.scale, r, g, v, sums);
    store_back<KIND, L, N>(o, row, token, drinv, v, in, m, n);
  }
  store_partials<KIND, L, S>(o, sums, n, room);
}

/* A block a column: adds the chunks' sums to dbase or dscale. */
__global__ void __launch_bounds__(sum_threads)
    sums_kernel(const float *partials, int64_t chunks, float *dbase, float *dscale, int columns) {
  __shared__ double shared[BK_WARP];
  const int j = (int)blockIdx.x;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += sum_threads)
    sum += (double)partials[j * chunks + i];
  sum = bk_block_sum(sum, shared);
  float *out = j < columns ? dbase + j : dscale + (j - columns);
  if (threadIdx.x == 0) *out = (float)((double)*out + sum);
}

/* ---- launches ---- */

int64_t chunk_of(int64_t tokens, int n) {
  return bk_hc_chunk(tokens, threads / (n <= 4 ? 4 : 8), BK_HC_MAX_CHUNKS);
}

size_t partial_bytes(int64_t tokens, int n, const bk_tensor *dbase, const bk_tensor *dscale) {
  const int64_t chunks = tokens > 0 ? bk_ceil_div(tokens, chunk_of(tokens, n)) : 0;
  return (size_t)(chunks * (dbase->shape[0] + dscale->shape[0])) * sizeof(float);
}

void start_sums(bk_stream *stream, const float *partials, int64_t chunks, const bk_tensor *dbase,
                const bk_tensor *dscale) {
  BK_LAUNCH((sums_kernel), (unsigned)(dbase->shape[0] + dscale->shape[0]), sum_threads, 0,
            bk_cuda_raw(stream), partials, chunks, (float *)bk_cuda_data(dbase),
            (float *)bk_cuda_data(dscale), (int)dbase->shape[0]);
}

template <int KIND, int L, int N>
void start(bk_stream *stream, const bk_maps_operands &o) {
  const size_t shared =
      KIND == BK_HC_MHC ? BK_MAPS_WARPS * bk_sinkhorn_history(o.iters) * sizeof(float) : 0;
  BK_LAUNCH((maps_bwd_kernel<KIND, L, N>), (unsigned)o.chunks, threads, shared, bk_cuda_raw(stream),
            o);
}

void launch_maps(bk_stream *stream, const bk_hc_maps_bwd_args *a, bk_place workspace) {
  bk_maps_operands o = {};
  o.pre = bk_rows_of<float>(&a->dpre), o.packed = true;
  o.base = bk_tensor_present(&a->base) ? (const float *)bk_cuda_data(&a->base) : nullptr;
  if (bk_tensor_present(&a->dpost)) o.post = bk_rows_of<float>(&a->dpost);
  if (bk_tensor_present(&a->dcomb))
    o.comb = bk_rows_of<float>(&a->dcomb), o.packed = bk_lane_rows_fit(&a->dcomb);
  o.proj = bk_rows_of<float>(&a->proj), o.dproj = bk_rows_of<float>(&a->dproj);
  o.rinv = (const float *)bk_cuda_data(&a->rinv), o.scale = (const float *)bk_cuda_data(&a->scale);
  o.drinv = (float *)bk_cuda_data(&a->drinv), o.partials = (float *)bk_cuda_place(workspace);
  o.tokens = a->dpre.shape[0], o.n = a->n, o.iters = a->iters, o.eps = a->hc_eps;
  o.packed = o.packed && bk_lane_rows_fit(&a->proj) && bk_lane_rows_fit(&a->dproj);
  if (o.tokens == 0) return;
  o.chunk = chunk_of(o.tokens, a->n), o.chunks = bk_ceil_div(o.tokens, o.chunk);
  bk_maps_by_kind(a->kind, [&](auto kind) {
    constexpr int K = decltype(kind)::value;
    if (o.n == 4) start<K, 4, 4>(stream, o);
    else if (o.n < 4) start<K, 4, 0>(stream, o);
    else start<K, 8, 0>(stream, o);
  });
  start_sums(stream, o.partials, o.chunks, &a->dbase, &a->dscale);
}

/* ---- HC_LOGITS_BWD: a warp a token, a lane has every 32nd column, a strip of columns at a time
 * ---- */

constexpr int strip = 5; /* columns of a lane; one strip has all columns of every kind that is */

struct logits_operands {
  bk_rows<float> proj, dlogits, dproj;
  const float *rinv, *scale;
  float *drinv, *partials;
  int64_t tokens, chunk, chunks;
  int columns, scales, n;
};

__global__ void __launch_bounds__(threads) logits_bwd_kernel(logits_operands o) {
  __shared__ float room[BK_MAPS_WARPS][strip * BK_WARP], scale_room[BK_MAPS_WARPS][3];
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP;
  const int64_t begin = blockIdx.x * o.chunk,
                end = begin + o.chunk < o.tokens ? begin + o.chunk : o.tokens;
  float scale_sums[3] = {};
  for (int first = 0; first < o.columns; first += strip * BK_WARP) {
    float sums[strip] = {};
    for (int64_t token = begin + warp; token < end; token += BK_MAPS_WARPS) {
      const float r = o.rinv[token];
      float drinv = 0;
#pragma unroll
      for (int s = 0; s < strip; s++) {
        const int j = first + s * BK_WARP + lane;
        if (j >= o.columns) continue;
        const int group = j < o.n ? 0 : j < 2 * o.n ? 1 : 2;
        const float g = o.dlogits.row(token)[j], p = o.proj.row(token)[j], d = g * o.scale[group];
        sums[s] += g;
        scale_sums[0] += group == 0 ? g * p * r : 0.f;
        scale_sums[1] += group == 1 ? g * p * r : 0.f;
        scale_sums[2] += group == 2 ? g * p * r : 0.f;
        drinv += d * p;
        o.dproj.row(token)[j] = d * r;
      }
      drinv = bk_warp_sum(drinv);
      if (lane == 0) o.drinv[token] = first ? o.drinv[token] + drinv : drinv;
    }
    if (first) __syncthreads(); /* the strip before has been read */
#pragma unroll
    for (int s = 0; s < strip; s++) room[warp][s * BK_WARP + lane] = sums[s];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < strip * BK_WARP && first + i < o.columns; i += threads) {
      float sum = 0;
      for (int w = 0; w < BK_MAPS_WARPS; w++) sum += room[w][i];
      o.partials[(first + i) * o.chunks + blockIdx.x] = sum;
    }
  }
#pragma unroll
  for (int g = 0; g < 3; g++) {
    const float sum = bk_warp_sum(scale_sums[g]);
    if (lane == 0) scale_room[warp][g] = sum;
  }
  __syncthreads();
  for (int g = (int)threadIdx.x; g < o.scales; g += threads) {
    float sum = 0;
    for (int w = 0; w < BK_MAPS_WARPS; w++) sum += scale_room[w][g];
    o.partials[(o.columns + g) * o.chunks + blockIdx.x] = sum;
  }
}

void launch_logits(bk_stream *stream, const bk_hc_logits_bwd_args *a, bk_place workspace) {
  logits_operands o = {};
  o.proj = bk_rows_of<float>(&a->proj), o.dlogits = bk_rows_of<float>(&a->dlogits);
  o.dproj = bk_rows_of<float>(&a->dproj);
  o.rinv = (const float *)bk_cuda_data(&a->rinv), o.scale = (const float *)bk_cuda_data(&a->scale);
  o.drinv = (float *)bk_cuda_data(&a->drinv), o.partials = (float *)bk_cuda_place(workspace);
  o.tokens = a->proj.shape[0], o.columns = (int)a->proj.shape[1], o.n = a->n;
  o.scales = (int)a->dscale.shape[0];
  if (o.tokens == 0) return;
  o.chunk = chunk_of(o.tokens, a->n), o.chunks = bk_ceil_div(o.tokens, o.chunk);
  BK_LAUNCH((logits_bwd_kernel), (unsigned)o.chunks, threads, 0, bk_cuda_raw(stream), o);
  start_sums(stream, o.partials, o.chunks, &a->dbase, &a->dscale);
}

} // namespace

extern "C" BK_CUDA_PREPARE(hc_maps_bwd) {
  const bk_hc_maps_bwd_args *a = (const bk_hc_maps_bwd_args *)args;
  *workspace_bytes = partial_bytes(a->dpre.shape[0], a->n, &a->dbase, &a->dscale);
  return BK_OK;
}

extern "C" void bk_cuda_maps_bwd_start(bk_stream *stream, const bk_hc_maps_bwd_args *a,
                                       bk_place workspace) {
  launch_maps(stream, a, workspace);
}

extern "C" BK_CUDA_LAUNCH(hc_maps_bwd) {
  BK_TRY(bk_cuda_begin(stream, plan));
  launch_maps(stream, (const bk_hc_maps_bwd_args *)args, workspace);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_PREPARE(hc_tanh_bwd) {
  const bk_hc_tanh_bwd_args *a = (const bk_hc_tanh_bwd_args *)args;
  *workspace_bytes = partial_bytes(a->dpre.shape[0], a->n, &a->dbase, &a->dscale);
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_tanh_bwd) {
  const bk_hc_tanh_bwd_args *a = (const bk_hc_tanh_bwd_args *)args;
  bk_hc_maps_bwd_args maps = {};
  maps.proj = a->proj, maps.rinv = a->rinv, maps.scale = a->scale, maps.dpre = a->dpre,
  maps.dpost = a->dpost, maps.dcomb = a->dcomb;
  maps.dproj = a->dproj, maps.drinv = a->drinv, maps.dscale = a->dscale, maps.dbase = a->dbase,
  maps.kind = BK_HC_HC, maps.n = a->n;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch_maps(stream, &maps, workspace);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_PREPARE(hc_logits_bwd) {
  const bk_hc_logits_bwd_args *a = (const bk_hc_logits_bwd_args *)args;
  *workspace_bytes = partial_bytes(a->proj.shape[0], a->n, &a->dbase, &a->dscale);
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_logits_bwd) {
  BK_TRY(bk_cuda_begin(stream, plan));
  launch_logits(stream, (const bk_hc_logits_bwd_args *)args, workspace);
  return bk_cuda_end(stream);
}
