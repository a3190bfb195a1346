/* The fused op HC_PROJECT: proj = x fn^T and the norm of x in one pass over x, in fp32
 * multiply-adds.
 *
 * A block has 64 tokens and a slice of K, in steps of 128 channels: a warp takes 16 of them, a
 * lane two tokens, so that x goes straight to registers (whole sectors) and every value of fn is
 * read from shared memory once for a warp and serves 64 tokens. ROWS rows of fn at a time are in
 * registers as sums; more rows are further blocks (z). The eight warps' sums are added up in
 * order, the slices of K by a second launch. Slices follow from shapes alone. Floor: x read
 * once; at R = 24 the multiply-adds take about as long as the memory does (reckoned). */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc_project.cuh"

namespace {

constexpr int threads = 256, warps = threads / BK_WARP, tokens_each = 2,
              tile_tokens = tokens_each * BK_WARP;
constexpr int warp_k = 16, tile_k = warps * warp_k, wanted_blocks = 512;

template <class T>
struct operands {
  bk_rows<T> x;
  bk_rows<float> fn;
  int64_t slice;
  bk_project_end end;
};

/* 16 channels of a token from k on, as stored; past the end 0. */
template <class T, int V>
struct channels {
  bk_raw<T, V> at[warp_k / V];
};
template <class T, int V>
BK_DEVICE void load_channels(const T *row, int64_t k, int64_t end, bool in, channels<T, V> &x) {
#pragma unroll
  for (int i = 0; i < warp_k / V; i++) {
    if (in && k + i * V < end) {
      x.at[i] = bk_raw_load<T, V>(row + k + i * V);
    } else {
#pragma unroll
      for (int j = 0; j < (int)(sizeof x.at[i].w / sizeof x.at[i].w[0]); j++) x.at[i].w[j] = 0;
    }
  }
}

/* fn rows [first, first + ROWS), channels [k, k + tile_k) -> tile [ROWS][tile_k]; what is not
 * there is 0. */
template <int ROWS>
BK_DEVICE void load_fn(bk_rows<float> fn, int first, int rows, int64_t k, int64_t end,
                       float *tile) {
  for (int i = (int)threadIdx.x; i < ROWS * tile_k; i += threads) {
    const int j = i / tile_k, c = i % tile_k;
    tile[i] = first + j < rows && k + c < end ? fn.row(first + j)[k + c] : 0.f;
  }
}

template <class T, int V, int ROWS>
BK_DEVICE void multiply(const channels<T, V> (&x)[tokens_each], const float *fn,
                        float (&sums)[tokens_each][ROWS], float (&squares)[tokens_each]) {
#pragma unroll
  for (int c = 0; c < warp_k; c += 4) {
    float value[tokens_each][4];
#pragma unroll
    for (int t = 0; t < tokens_each; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        value[t][i] = bk_raw_get(x[t].at[(c + i) / V], (c + i) % V);
        squares[t] += value[t][i] * value[t][i];
      }
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
      float w[4];
      bk_load_pack_own(fn + j * tile_k + c, w);
#pragma unroll
      for (int t = 0; t < tokens_each; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[t][j] += value[t][i] * w[i];
    }
  }
}

/* The warps' sums, one warp after the other -> total [tile_tokens][ROWS + 1]. */
template <int ROWS>
BK_DEVICE void add_warps(const float (&sums)[tokens_each][ROWS],
                         const float (&squares)[tokens_each], float *total) {
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP;
  for (int w = 0; w < warps; w++) {
    __syncthreads();
    if (w != warp) continue;
#pragma unroll
    for (int t = 0; t < tokens_each; t++) {
      float *to = total + (t * BK_WARP + lane) * (ROWS + 1);
#pragma unroll
      for (int j = 0; j < ROWS; j++) to[j] = (w ? to[j] : 0.f) + sums[t][j];
      to[ROWS] = (w ? to[ROWS] : 0.f) + squares[t];
    }
  }
  __syncthreads();
}

template <class T, int V, int ROWS>
__global__ void __launch_bounds__(threads, 1) project_kernel(operands<T> o) {
  __shared__ __align__(16) float tile[ROWS * tile_k];
  __shared__ float total[tile_tokens * (ROWS + 1)];
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP,
            first_row = (int)blockIdx.z * ROWS;
  const int64_t first = (int64_t)blockIdx.x * tile_tokens, begin = blockIdx.y * o.slice;
  const int64_t end = begin + o.slice < o.end.width ? begin + o.slice : o.end.width,
                tokens = o.end.tokens;
  float sums[tokens_each][ROWS] = {}, squares[tokens_each] = {};
  channels<T, V> x[tokens_each];
  for (int64_t k = begin; k < end; k += tile_k) {
#pragma unroll
    for (int t = 0; t < tokens_each; t++) {
      const int64_t token = first + t * BK_WARP + lane;
      load_channels<T, V>(o.x.row(token < tokens ? token : 0), k + warp * warp_k, end,
                          token < tokens, x[t]);
    }
    __syncthreads();
    load_fn<ROWS>(o.fn, first_row, o.end.rows, k, end, tile);
    __syncthreads();
    multiply<T, V, ROWS>(x, tile + warp * warp_k, sums, squares);
  }
  add_warps<ROWS>(sums, squares, total);
  for (int i = (int)threadIdx.x; i < tile_tokens * (ROWS + 1); i += threads) {
    const int token = i / (ROWS + 1), j = i % (ROWS + 1),
              row = j == ROWS ? o.end.rows : first_row + j;
    if (first + token >= tokens || (j == ROWS ? first_row > 0 : row >= o.end.rows)) continue;
    o.end.sums(blockIdx.y, first + token)[row] = total[i];
  }
}

/* ---- launches ---- */

/* Channels of a slice, a multiple of tile_k: as many slices as make `wanted_blocks` blocks of
 * all. */
int64_t slice_of(const bk_hc_project_args *a) {
  const int64_t tiles = bk_ceil_div(a->x.shape[0], tile_tokens),
                steps = bk_ceil_div(a->x.shape[1], tile_k);
  const int64_t wanted =
      tiles < wanted_blocks ? bk_ceil_div(wanted_blocks, tiles < 1 ? 1 : tiles) : 1;
  return steps > 1 ? bk_ceil_div(steps, wanted < steps ? wanted : steps) * tile_k : tile_k;
}

template <class T, int V, int ROWS>
void start(bk_stream *stream, const operands<T> &o) {
  const dim3 grid((unsigned)bk_ceil_div(o.end.tokens, tile_tokens), (unsigned)o.end.slices,
                  (unsigned)bk_ceil_div(o.end.rows, ROWS));
  BK_LAUNCH((project_kernel<T, V, ROWS>), grid, threads, 0, bk_cuda_raw(stream), o);
}

template <class T, int V>
void by_rows(bk_stream *stream, const operands<T> &o) {
  if (o.end.rows <= 8) start<T, V, 8>(stream, o);
  else if (o.end.rows <= 24) start<T, V, 24>(stream, o);
  else start<T, V, 32>(stream, o);
}

template <class T>
void launch(bk_stream *stream, const bk_hc_project_args *a, bk_place workspace) {
  operands<T> o = {};
  o.x = bk_rows_of<T>(&a->x), o.fn = bk_rows_of<float>(&a->fn), o.slice = slice_of(a);
  o.end = bk_project_end_of(a, bk_ceil_div(a->x.shape[1], o.slice), workspace);
  if (o.end.tokens == 0) return;
  if (bk_packs_fit(&a->x)) by_rows<T, bk_pack<T>::count>(stream, o);
  else by_rows<T, 1>(stream, o);
  bk_project_end_start(stream, o.end);
}

} // namespace

extern "C" BK_CUDA_PREPARE(hc_project) {
  const bk_hc_project_args *a = (const bk_hc_project_args *)args;
  (void)device, (void)state;
  *workspace_bytes = bk_project_partials_bytes(a, bk_ceil_div(a->x.shape[1], slice_of(a)));
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_project) {
  const bk_hc_project_args *a = (const bk_hc_project_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch, (stream, a, workspace));
  return bk_cuda_end(stream);
}
