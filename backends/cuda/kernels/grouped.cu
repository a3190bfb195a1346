/* GROUPED_GEMM and GROUPED_WGRAD: products over experts whose rows the device alone knows
 * (gemm_tile.cuh has the tiles).
 *
 * GROUPED_GEMM: a first kernel of one block counts each expert's tiles of rows and writes where
 * they begin; then the blocks go over the tiles, ordered by expert, column of tiles, row of
 * tiles: an expert's weights are read once, its rows stay in the L2 cache. GROUPED_WGRAD: the
 * tiles of [P,Q] are the same for all experts, k runs over an expert's rows. One block a tile,
 * so that the hardware balances experts of different length. The bits follow from the shapes and
 * the offsets. */
#include "backends/cuda/kernels/gemm.h"
#include "backends/cuda/kernels/gemm_tile.cuh"

namespace {

struct problem {
  bk_tile_input a, b;
  bk_tile_output c;
  const int *offsets, *starts; /* starts [experts + 1]: tiles of rows before an expert */
  int experts, m, n, k, tiles_m, tiles_n;
};

constexpr int count_threads = 256;

/* starts[e] = tiles of `size` rows of the experts before e. A thread counts a run of experts,
 * then adds what lies before its run. */
__global__ void __launch_bounds__(count_threads)
    count_kernel(const int *offsets, int *starts, int experts, int size) {
  __shared__ int totals[count_threads];
  const int run = (experts + count_threads - 1) / count_threads,
            first = min((int)threadIdx.x * run, experts), last = min(first + run, experts);
  int total = 0;
  for (int e = first; e < last; e++) total += (offsets[e + 1] - offsets[e] + size - 1) / size;
  totals[threadIdx.x] = total;
  __syncthreads();
  for (int step = 1; step < count_threads; step *= 2) {
    const int before = (int)threadIdx.x >= step ? totals[threadIdx.x - step] : 0;
    __syncthreads();
    totals[threadIdx.x] += before;
    __syncthreads();
  }
  int start = totals[threadIdx.x] - total;
  for (int e = first; e < last; e++) {
    starts[e] = start;
    start += (offsets[e + 1] - offsets[e] + size - 1) / size;
  }
  if (threadIdx.x == count_threads - 1) starts[experts] = totals[threadIdx.x];
}

/* The expert that has the tile of rows: the last that begins at or before it (those before with
 * the same start are empty). */
__device__ __forceinline__ int expert_of(const int *starts, int experts, int tile) {
  int low = 0, high = experts;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (starts[middle] <= tile) low = middle;
    else high = middle;
  }
  return low;
}

template <class E>
__global__ void __launch_bounds__(E::threads, E::per_sm)
    grouped_gemm_kernel(const __grid_constant__ problem p) {
  BK_SHARED_DYNAMIC(unsigned char, shared);
  __shared__ bk_tile_spot spot;
  const int tiles = p.starts[p.experts] * p.tiles_n;
  for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x) {
    const int e = expert_of(p.starts, p.experts, tile / p.tiles_n), start = p.starts[e],
              mine = p.starts[e + 1] - start;
    const int within = tile - start * p.tiles_n, column = within / mine * E::bn,
              row = p.offsets[e] + within % mine * E::bm;
    const int m = p.offsets[e + 1] - row, n = p.n - column;
    typename E::sums sums;
    bk_tile_note(spot, row * p.c.ld + column, m, n);
    E::product(p.a, row * p.a.ld, m, p.b, e * p.b.batch + (p.b.inner_k ? column * p.b.ld : column),
               n, p.k, shared, sums);
    E::store(p.c, bk_tile_recall(spot), sums);
  }
}

template <class E>
__global__ void __launch_bounds__(E::threads, E::per_sm)
    grouped_wgrad_kernel(const __grid_constant__ problem p) {
  BK_SHARED_DYNAMIC(unsigned char, shared);
  __shared__ bk_tile_spot spot;
  const int per_expert = p.tiles_m * p.tiles_n, e = (int)blockIdx.x / per_expert,
            within = (int)blockIdx.x % per_expert;
  const int row = within % p.tiles_m * E::bm, column = within / p.tiles_m * E::bn,
            first = p.offsets[e], k = p.offsets[e + 1] - first;
  if (k <= 0 && p.c.accumulate) return;
  typename E::sums sums;
  bk_tile_note(spot, e * p.c.batch + row * p.c.ld + column, p.m - row, p.n - column);
  E::product(p.a, first * p.a.ld + row, p.m - row, p.b, first * p.b.ld + column, p.n - column, k,
             shared, sums);
  E::store(p.c, bk_tile_recall(spot), sums);
}

/* ---- host ---- */

template <class E>
void launch_gemm(bk_stream *stream, problem p, int64_t rows) {
  p.tiles_n = (int)bk_ceil_div(p.n, E::bn);
  /* each expert can have one tile that is not full */
  const int64_t most = (bk_ceil_div(rows, E::bm) + p.experts) * p.tiles_n;
  bk_allow_shared(grouped_gemm_kernel<E>, E::bytes);
  BK_LAUNCH(count_kernel, 1, count_threads, 0, bk_cuda_raw(stream), p.offsets,
            const_cast<int *>(p.starts), p.experts, E::bm);
  BK_LAUNCH((grouped_gemm_kernel<E>), bk_grid_for(stream, most, 1, E::per_sm), E::threads, E::bytes,
            bk_cuda_raw(stream), p);
}

template <class E>
void launch_wgrad(bk_stream *stream, problem p) {
  p.tiles_m = (int)bk_ceil_div(p.m, E::bm), p.tiles_n = (int)bk_ceil_div(p.n, E::bn);
  bk_allow_shared(grouped_wgrad_kernel<E>, E::bytes);
  BK_LAUNCH((grouped_wgrad_kernel<E>), (unsigned)(p.tiles_m * p.tiles_n * p.experts), E::threads,
            E::bytes, bk_cuda_raw(stream), p);
}

/* Small tiles where large ones would be few, or empty for the most part. */
bool large_tiles(int64_t m, int64_t n, int64_t experts) {
  return m > 64 && n > 64 && bk_ceil_div(m, 128) * bk_ceil_div(n, 128) * experts >= 128;
}

template <bool B_INNER>
void launch_gemm_mma(bk_stream *stream, const problem &p, int64_t rows, bool large) {
  if (!p.a.packs || !p.b.packs) launch_gemm<bk_mma_small<true, B_INNER, false>>(stream, p, rows);
  else if (large) launch_gemm<bk_mma_large<true, B_INNER, true>>(stream, p, rows);
  else launch_gemm<bk_mma_small<true, B_INNER, true>>(stream, p, rows);
}

void launch_wgrad_mma(bk_stream *stream, const problem &p, bool large) {
  if (!p.a.packs || !p.b.packs) launch_wgrad<bk_mma_small<false, false, false>>(stream, p);
  else if (large) launch_wgrad<bk_mma_large<false, false, true>>(stream, p);
  else launch_wgrad<bk_mma_small<false, false, true>>(stream, p);
}

template <bk_layout B>
void launch_gemm_fma_large(bk_stream *stream, const problem &p, int64_t rows) {
  if (stream->device->options.allow_tf32)
    launch_gemm<bk_tf32_large<BK_LAYOUT_INNER, B>>(stream, p, rows);
  else launch_gemm<bk_fma_large<BK_LAYOUT_INNER, B>>(stream, p, rows);
}
void launch_gemm_fma(bk_stream *stream, const problem &p, int64_t rows, bool large) {
  if (large && p.a.whole && p.b.whole) {
    if (p.b.inner_k) launch_gemm_fma_large<BK_LAYOUT_INNER>(stream, p, rows);
    else launch_gemm_fma_large<BK_LAYOUT_OUTER>(stream, p, rows);
  } else if (stream->device->options.allow_tf32) launch_gemm<bk_tf32_small>(stream, p, rows);
  else launch_gemm<bk_fma_small>(stream, p, rows);
}

void launch_wgrad_fma(bk_stream *stream, const problem &p, bool large) {
  const bool tf32 = stream->device->options.allow_tf32;
  if (large && p.a.whole && p.b.whole) {
    if (tf32) launch_wgrad<bk_tf32_large<BK_LAYOUT_OUTER, BK_LAYOUT_OUTER>>(stream, p);
    else launch_wgrad<bk_fma_large<BK_LAYOUT_OUTER, BK_LAYOUT_OUTER>>(stream, p);
  } else if (tf32) launch_wgrad<bk_tf32_small>(stream, p);
  else launch_wgrad<bk_fma_small>(stream, p);
}

/* Rows are dense, and an expert may have any number of them: what has one row or one column is
 * no exception. */
bk_tile_input rows_input(const bk_tensor *t, bool inner_k) {
  bk_tile_input x = inner_k ? bk_tile_input_of(t, 0, 1) : bk_tile_input_of(t, 1, 0);
  x.inner_k = inner_k;
  x.ld = t->stride[0];
  x.packs = t->offset % 16 == 0 && (size_t)x.ld * bk_dtype_size(t->dtype) % 16 == 0;
  x.whole = x.packs && t->shape[1] % 4 == 0;
  return x;
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(grouped_gemm) {
  const bk_grouped_gemm_args *g = (const bk_grouped_gemm_args *)args;
  (void)device;
  const double tiles =
      ((double)g->a.shape[0] / 64 + (double)g->b.shape[0]) * ((double)g->c.shape[1] / 64 + 1);
  return tiles < 2e9 && bk_tile_sizes_fit(&g->a) && bk_tile_sizes_fit(&g->b) && bk_stored(&g->b) &&
         bk_stored(&g->c);
}
extern "C" BK_CUDA_PREPARE(grouped_gemm) {
  (void)device;
  *state = NULL;
  *workspace_bytes = (size_t)(((const bk_grouped_gemm_args *)args)->b.shape[0] + 1) * sizeof(int);
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(grouped_gemm) {
  const bk_grouped_gemm_args *g = (const bk_grouped_gemm_args *)args;
  const int64_t rows = g->a.shape[0], experts = g->b.shape[0];
  problem p = {};
  p.a = rows_input(&g->a, true);
  p.b = bk_tile_input_of(&g->b, 2, 1);
  p.c = bk_tile_output_of(&g->c, 0, 1.0f, false);
  p.offsets = reinterpret_cast<const int *>(bk_cuda_data(&g->offsets));
  p.starts = reinterpret_cast<const int *>(bk_cuda_place(workspace));
  p.experts = (int)experts, p.n = (int)g->c.shape[1], p.k = (int)g->a.shape[1];
  const bool large = large_tiles(rows / experts, p.n, experts);
  BK_TRY(bk_cuda_begin(stream, plan));
  if (p.a.bf16 && p.b.bf16) {
    if (p.b.inner_k) launch_gemm_mma<true>(stream, p, rows, large);
    else launch_gemm_mma<false>(stream, p, rows, large);
  } else launch_gemm_fma(stream, p, rows, large);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_ACCEPTS(grouped_wgrad) {
  const bk_grouped_wgrad_args *g = (const bk_grouped_wgrad_args *)args;
  (void)device;
  const double tiles =
      ((double)g->c.shape[1] / 64 + 1) * ((double)g->c.shape[2] / 64 + 1) * (double)g->c.shape[0];
  return tiles < 2e9 && bk_tile_sizes_fit(&g->a) && bk_tile_sizes_fit(&g->b) && bk_stored(&g->b) &&
         bk_stored(&g->c);
}

extern "C" BK_CUDA_LAUNCH(grouped_wgrad) {
  const bk_grouped_wgrad_args *g = (const bk_grouped_wgrad_args *)args;
  const int64_t experts = g->c.shape[0];
  problem p = {};
  (void)workspace;
  p.a = rows_input(&g->a, false);
  p.b = rows_input(&g->b, false);
  p.c = bk_tile_output_of(&g->c, 1, 1.0f, !g->overwrite);
  p.offsets = reinterpret_cast<const int *>(bk_cuda_data(&g->offsets));
  p.experts = (int)experts, p.m = (int)g->c.shape[1], p.n = (int)g->c.shape[2];
  const bool large = large_tiles(p.m, p.n, experts);
  BK_TRY(bk_cuda_begin(stream, plan));
  if (p.a.bf16 && p.b.bf16) launch_wgrad_mma(stream, p, large);
  else launch_wgrad_fma(stream, p, large);
  return bk_cuda_end(stream);
}
