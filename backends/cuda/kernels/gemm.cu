/* GEMM: dense products, one block a tile of c (gemm_tile.cuh has the tiles).
 *
 * A product whose c has dense columns is turned into its transpose, c^T = b^T a^T, so the
 * kernels know dense rows alone. Tiles are 128 x 128, or 64 x 64 where that leaves too few of
 * them or where m or n is small. Where even those are few and k is long (the gradients of small
 * matrices over many tokens), k is cut: each cut writes its sums into the workspace, a second
 * kernel adds them in ascending order. Cuts follow from the shapes alone, so do the bits. Grid:
 * x tiles of all matrices, ordered in bands of 8 rows of tiles so that neighbours share operands
 * in the L2 cache; y cuts. */
#include "backends/cuda/kernels/gemm.h"
#include "backends/cuda/kernels/gemm_tile.cuh"

namespace {

struct problem {
  bk_tile_input a, b;
  bk_tile_output c;
  int64_t cut_stride;                 /* of c, between cuts */
  int m, n, k, tiles_m, tiles_n, cut; /* cut: length in k */
};

template <class E>
__global__ void __launch_bounds__(E::threads, E::per_sm)
    gemm_kernel(const __grid_constant__ problem p) {
  BK_SHARED_DYNAMIC(unsigned char, shared);
  __shared__ bk_tile_spot spot;
  const int per_matrix = p.tiles_m * p.tiles_n, matrix = (int)blockIdx.x / per_matrix,
            tile = (int)blockIdx.x % per_matrix;
  const int band = 8 * p.tiles_n, first = tile / band * 8, within = tile % band,
            rows = min(p.tiles_m - first, 8);
  const int row = (first + within % rows) * E::bm, column = within / rows * E::bn,
            k0 = (int)blockIdx.y * p.cut;
  const int64_t a0 = matrix * p.a.batch + (p.a.inner_k ? row * p.a.ld + k0 : k0 * p.a.ld + row);
  const int64_t b0 =
      matrix * p.b.batch + (p.b.inner_k ? column * p.b.ld + k0 : k0 * p.b.ld + column);
  typename E::sums sums;
  bk_tile_note(spot, matrix * p.c.batch + blockIdx.y * p.cut_stride + row * p.c.ld + column,
               p.m - row, p.n - column);
  E::product(p.a, a0, p.m - row, p.b, b0, p.n - column, min(p.cut, p.k - k0), shared, sums);
  E::store(p.c, bk_tile_recall(spot), sums);
}

/* c = alpha sum over the cuts (+ c). parts [cuts, batch, m, n]; grid: x columns, y rows, z
 * matrices. */
constexpr int reduce_threads = 128;
__global__ void __launch_bounds__(reduce_threads)
    reduce_kernel(const float *parts, bk_tile_output c, int cuts, int64_t cut_stride, int batch,
                  int m, int n) {
  const int column = (int)blockIdx.x * reduce_threads + (int)threadIdx.x;
  if (column >= n) return;
  for (int i = (int)blockIdx.z; i < batch; i += (int)gridDim.z)
    for (int row = (int)blockIdx.y; row < m; row += (int)gridDim.y) {
      const float *from = parts + ((int64_t)i * m + row) * n + column;
      float sum[1] = {0};
#pragma unroll 4
      for (int s = 0; s < cuts; s++) sum[0] += from[s * cut_stride];
      bk_tile_put(c, i * c.batch, row, column, m, n, sum);
    }
}

/* ---- host: shapes ---- */

/* What the shapes decide. */
struct cutting {
  bool turned, large;
  int m, n, k, batch, cuts, cut;
};

constexpr int shortest_cut = 512; /* in k; a multiple of the tiles' depth, as cuts are */

int tiles_of(const cutting &c, int size) {
  return (int)bk_ceil_div(c.m, size) * (int)bk_ceil_div(c.n, size) * c.batch;
}

cutting cut_up(const bk_gemm_args *g) {
  const bk_tensor *c = &g->c;
  const int rows = c->ndim - 2, columns = c->ndim - 1;
  cutting s = {};
  s.turned = c->stride[columns] != 1 && c->shape[columns] > 1;
  s.m = (int)c->shape[s.turned ? columns : rows];
  s.n = (int)c->shape[s.turned ? rows : columns];
  s.k = (int)g->a.shape[columns];
  s.batch = c->ndim == 3 ? (int)c->shape[0] : 1;
  /* Enough blocks to fill a large card; reckoned, not measured. */
  s.large = s.m > 64 && s.n > 64 && tiles_of(s, 128) >= 128;
  const int tiles = tiles_of(s, s.large ? 128 : 64), wanted = (s.large ? 256 : 768) / tiles,
            most = s.k / shortest_cut;
  s.cuts = wanted < most ? wanted : most;
  if (s.cuts < 2) s.cuts = 1;
  s.cut = s.cuts == 1 ? s.k : (int)bk_ceil_div(bk_ceil_div(s.k, s.cuts), 32) * 32;
  if (s.cuts > 1) s.cuts = (int)bk_ceil_div(s.k, s.cut);
  return s;
}

size_t parts_bytes(const cutting &s) {
  return s.cuts > 1 ? (size_t)s.cuts * (size_t)s.batch * (size_t)s.m * (size_t)s.n * sizeof(float)
                    : 0;
}

bool sizes_fit(const bk_gemm_args *g) {
  const int rows = g->c.ndim - 2, columns = g->c.ndim - 1;
  const double batch = g->c.ndim == 3 ? (double)g->c.shape[0] : 1;
  const double tiles =
      ((double)g->c.shape[rows] / 64 + 1) * ((double)g->c.shape[columns] / 64 + 1) * batch;
  return bk_tile_sizes_fit(&g->a) && bk_tile_sizes_fit(&g->b) && tiles < 2e9 && bk_stored(&g->b) &&
         bk_stored(&g->c);
}

/* ---- host: launches ---- */

problem describe(const bk_gemm_args *g, const cutting &s, bk_place workspace) {
  const int rows = g->c.ndim - 2, columns = g->c.ndim - 1;
  problem p = {};
  p.a = s.turned ? bk_tile_input_of(&g->b, columns, rows) : bk_tile_input_of(&g->a, rows, columns);
  p.b = s.turned ? bk_tile_input_of(&g->a, rows, columns) : bk_tile_input_of(&g->b, columns, rows);
  p.c = bk_tile_output_of(&g->c, s.turned ? columns : rows, (float)g->alpha, g->accumulate);
  p.m = s.m, p.n = s.n, p.k = s.k, p.cut = s.cut;
  if (s.cuts > 1) {
    p.c = {bk_cuda_place(workspace), s.n, (int64_t)s.m * s.n, 1.0f, false, false, s.n % 4 == 0};
    p.cut_stride = p.c.batch * s.batch;
  }
  return p;
}

template <class E>
void launch(bk_stream *stream, problem p, const cutting &s) {
  p.tiles_m = (int)bk_ceil_div(s.m, E::bm), p.tiles_n = (int)bk_ceil_div(s.n, E::bn);
  bk_allow_shared(gemm_kernel<E>, E::bytes);
  const dim3 grid((unsigned)(p.tiles_m * p.tiles_n * s.batch), (unsigned)s.cuts);
  BK_LAUNCH((gemm_kernel<E>), grid, E::threads, E::bytes, bk_cuda_raw(stream), p);
}

template <bool A_INNER, bool B_INNER>
void launch_mma_layout(bk_stream *stream, const problem &p, const cutting &s) {
  if (!p.a.packs || !p.b.packs) launch<bk_mma_small<A_INNER, B_INNER, false>>(stream, p, s);
  else if (s.large) launch<bk_mma_large<A_INNER, B_INNER, true>>(stream, p, s);
  else launch<bk_mma_small<A_INNER, B_INNER, true>>(stream, p, s);
}
void launch_mma(bk_stream *stream, const problem &p, const cutting &s) {
  if (p.a.inner_k && p.b.inner_k) launch_mma_layout<true, true>(stream, p, s);
  else if (p.a.inner_k) launch_mma_layout<true, false>(stream, p, s);
  else if (p.b.inner_k) launch_mma_layout<false, true>(stream, p, s);
  else launch_mma_layout<false, false>(stream, p, s);
}

template <bk_layout A, bk_layout B>
void launch_fma_large(bk_stream *stream, const problem &p, const cutting &s) {
  if (stream->device->options.allow_tf32) launch<bk_tf32_large<A, B>>(stream, p, s);
  else launch<bk_fma_large<A, B>>(stream, p, s);
}
void launch_fma(bk_stream *stream, const problem &p, const cutting &s) {
  if (s.large && p.a.whole && p.b.whole) {
    if (p.a.inner_k && p.b.inner_k)
      launch_fma_large<BK_LAYOUT_INNER, BK_LAYOUT_INNER>(stream, p, s);
    else if (p.a.inner_k) launch_fma_large<BK_LAYOUT_INNER, BK_LAYOUT_OUTER>(stream, p, s);
    else if (p.b.inner_k) launch_fma_large<BK_LAYOUT_OUTER, BK_LAYOUT_INNER>(stream, p, s);
    else launch_fma_large<BK_LAYOUT_OUTER, BK_LAYOUT_OUTER>(stream, p, s);
  } else if (stream->device->options.allow_tf32) launch<bk_tf32_small>(stream, p, s);
  else launch<bk_fma_small>(stream, p, s);
}

typedef void (*launcher)(bk_stream *stream, const problem &p, const cutting &s);

bk_status run(bk_stream *stream, const bk_plan *plan, const bk_gemm_args *g, bk_place workspace,
              launcher tiles) {
  const cutting s = cut_up(g);
  BK_TRY(bk_cuda_begin(stream, plan));
  tiles(stream, describe(g, s, workspace), s);
  if (s.cuts > 1) {
    const bk_tile_output c = bk_tile_output_of(&g->c, s.turned ? g->c.ndim - 1 : g->c.ndim - 2,
                                               (float)g->alpha, g->accumulate);
    const dim3 grid((unsigned)bk_ceil_div(s.n, reduce_threads),
                    (unsigned)(s.m < 65535 ? s.m : 65535),
                    (unsigned)(s.batch < 65535 ? s.batch : 65535));
    BK_LAUNCH(reduce_kernel, grid, reduce_threads, 0, bk_cuda_raw(stream),
              reinterpret_cast<const float *>(bk_cuda_place(workspace)), c, s.cuts,
              (int64_t)s.m * s.n * s.batch, s.batch, s.m, s.n);
  }
  return bk_cuda_end(stream);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(gemm_mma) {
  const bk_gemm_args *g = (const bk_gemm_args *)args;
  (void)device;
  return g->b.dtype == BK_BF16 && sizes_fit(g);
}
extern "C" BK_CUDA_PREPARE(gemm_mma) {
  (void)device;
  *state = NULL;
  *workspace_bytes = parts_bytes(cut_up((const bk_gemm_args *)args));
  return BK_OK;
}
extern "C" BK_CUDA_LAUNCH(gemm_mma) {
  return run(stream, plan, (const bk_gemm_args *)args, workspace, launch_mma);
}

extern "C" BK_CUDA_ACCEPTS(gemm_fp32) {
  (void)device;
  return sizes_fit((const bk_gemm_args *)args);
}
extern "C" BK_CUDA_PREPARE(gemm_fp32) {
  return bk_cuda_gemm_mma_prepare(self, device, args, state, workspace_bytes);
}
extern "C" BK_CUDA_LAUNCH(gemm_fp32) {
  return run(stream, plan, (const bk_gemm_args *)args, workspace, launch_fma);
}
