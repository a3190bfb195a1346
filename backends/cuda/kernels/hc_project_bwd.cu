/* The fused op HC_PROJECT_BWD: dx (+)= dproj fn - drinv rinv^3 x / K and dfn += dproj^T x in
 * one pass over x, in fp32 multiply-adds. For fp32, and for what hc_project_bwd_mma.cu does not
 * take.
 *
 * A thread owns two neighbouring channels: their columns of fn and of dfn are registers, and a
 * token costs it 2 ROWS multiply-adds for each of dx and dfn with the token's dproj from shared
 * memory, the same for the whole block. A block has 512 channels and a chunk of tokens, 32 at a
 * time. dfn: partial sums of the chunks in the workspace, added up in order by a second launch;
 * chunks follow from shapes alone. More than 32 rows leave registers for one channel; more than
 * 80 (mhc_lite with n = 5) take a pass for dx and one for dfn. Floor: x read, dx written (and
 * read to accumulate); the multiply-adds take about as long (reckoned). */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc_project_bwd.cuh"

namespace {

constexpr int threads = 256, many_rows = 80, most_rows = 132, tile_tokens = 32, wanted_blocks = 512;

enum { BOTH, DX_ALONE, DFN_ALONE }; /* what a pass makes */

template <class T>
struct operands {
  bk_rows<T> x, dx; /* dx.at NULL: not wanted */
  bk_rows<float> fn, dproj;
  const float *rinv, *drinv;
  float *partials; /* [chunks][rows][width], NULL: dfn is not wanted */
  int64_t tokens, width, chunk;
  int rows, add;
};

/* V channels of fn, or of a row of the workspace. */
template <int V, int ROWS>
BK_DEVICE void load_columns(bk_rows<float> fn, int rows, int64_t c, bool in, float (&w)[V][ROWS]) {
  const float *p = fn.at + c;
#pragma unroll
  for (int j = 0; j < ROWS; j++, p += fn.stride)
#pragma unroll
    for (int v = 0; v < V; v++) w[v][j] = in && j < rows ? p[v] : 0.f;
}

/* dproj of the tile's tokens (0 where there is none) and the factors of x. */
template <class T, int ROWS>
BK_DEVICE void load_tile(const operands<T> &o, int64_t token, int64_t end, float (*dproj)[ROWS],
                         float *factors) {
  for (int i = (int)threadIdx.x; i < tile_tokens * ROWS; i += threads) {
    const int t = i / ROWS, j = i % ROWS;
    dproj[t][j] = token + t < end && j < o.rows ? o.dproj.row(token + t)[j] : 0.f;
  }
  for (int t = (int)threadIdx.x; t < tile_tokens; t += threads)
    factors[t] =
        token + t < end ? bk_project_factor(o.rinv[token + t], o.drinv[token + t], o.width) : 0.f;
}

/* One token: x at this thread's channels -> dx there; adds to dfn. */
template <class T, int V, int ROWS, int PARTS>
BK_DEVICE void token_back(const operands<T> &o, int64_t token, int64_t c, const bk_raw<T, V> &x,
                          const bk_raw<T, V> &old, const float *dproj, float factor,
                          const float (&w)[V][ROWS], float (&dw)[V][ROWS]) {
  float dx[V];
#pragma unroll
  for (int v = 0; v < V; v++) dx[v] = factor * bk_raw_get(x, v);
#pragma unroll
  for (int j = 0; j < ROWS; j += 4) {
    float g[4];
    bk_load_pack_own(dproj + j, g);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int v = 0; v < V; v++) {
        if (PARTS != DFN_ALONE) dx[v] += g[i] * w[v][j + i];
        if (PARTS != DX_ALONE) dw[v][j + i] += g[i] * bk_raw_get(x, v);
      }
  }
  if constexpr (PARTS != DFN_ALONE) {
    if (!o.dx.at) return;
#pragma unroll
    for (int v = 0; v < V; v++) dx[v] += o.add ? bk_raw_get(old, v) : 0.f;
    bk_raw_store<T, V>(o.dx.row(token) + c, bk_raw_of<T, V>(dx));
  }
}

template <class T, int V, int ROWS, int PARTS>
__global__ void __launch_bounds__(threads, 1) project_bwd_kernel(operands<T> o) {
  __shared__ __align__(16) float dproj[tile_tokens][ROWS];
  __shared__ float factors[tile_tokens];
  const int64_t c = ((int64_t)blockIdx.x * threads + threadIdx.x) * V, begin = blockIdx.y * o.chunk;
  const int64_t end = begin + o.chunk < o.tokens ? begin + o.chunk : o.tokens;
  constexpr int ahead = ROWS <= many_rows ? 4 : 1; /* tokens whose reads are under way at once */
  const bool in = c < o.width;
  float w[V][ROWS], dw[V][ROWS] = {};
  if (PARTS != DFN_ALONE) load_columns<V, ROWS>(o.fn, o.rows, c, in, w);
  for (int64_t token = begin; token < end; token += tile_tokens) {
    __syncthreads();
    load_tile<T, ROWS>(o, token, end, dproj, factors);
    __syncthreads();
    for (int t = 0; in && t < tile_tokens && token + t < end; t += ahead) {
      bk_raw<T, V> x[ahead], old[ahead] = {};
#pragma unroll
      for (int a = 0; a < ahead; a++) {
        if (token + t + a >= end) continue;
        x[a] = bk_raw_load<T, V>(o.x.row(token + t + a) + c);
        if (PARTS != DFN_ALONE && o.dx.at && o.add)
          old[a] = bk_raw_load<T, V>(o.dx.row(token + t + a) + c);
      }
#pragma unroll
      for (int a = 0; a < ahead; a++)
        if (token + t + a < end)
          token_back<T, V, ROWS, PARTS>(o, token + t + a, c, x[a], old[a], dproj[t + a],
                                        factors[t + a], w, dw);
    }
  }
  if constexpr (PARTS != DX_ALONE) {
    if (!o.partials || !in) return;
#pragma unroll
    for (int j = 0; j < ROWS; j++)
#pragma unroll
      for (int v = 0; v < V; v++)
        if (j < o.rows) o.partials[((int64_t)blockIdx.y * o.rows + j) * o.width + c + v] = dw[v][j];
  }
}

/* ---- launches ---- */

/* Tokens of a chunk, a multiple of tile_tokens: as many chunks as make `wanted_blocks` blocks of
 * all. */
int64_t chunk_of(const bk_hc_project_bwd_args *a) {
  const int64_t columns = bk_ceil_div(a->x.shape[1], threads * 2);
  return bk_hc_chunk(a->x.shape[0], tile_tokens,
                     bk_ceil_div(wanted_blocks, columns < 1 ? 1 : columns));
}

template <class T, int V, int ROWS, int PARTS = BOTH>
void start(bk_stream *stream, const operands<T> &o) {
  const dim3 grid((unsigned)bk_ceil_div(o.width, threads * V),
                  (unsigned)bk_ceil_div(o.tokens, o.chunk));
  BK_LAUNCH((project_bwd_kernel<T, V, ROWS, PARTS>), grid, threads, 0, bk_cuda_raw(stream), o);
}

template <class T, int V>
void by_rows(bk_stream *stream, const operands<T> &o) {
  if (o.rows <= 8) start<T, V, 8>(stream, o);
  else if (o.rows <= 24) start<T, V, 24>(stream, o);
  else if (o.rows <= 32) start<T, V, 32>(stream, o);
  else if (o.rows <= many_rows) start<T, 1, many_rows>(stream, o);
  else {
    if (o.partials) start<T, 1, most_rows, DFN_ALONE>(stream, o);
    if (o.dx.at) start<T, 1, most_rows, DX_ALONE>(stream, o);
  }
}

template <class T>
void launch(bk_stream *stream, const bk_hc_project_bwd_args *a, bk_place workspace) {
  const bool wants_dx = bk_tensor_present(&a->dx), wants_dfn = bk_tensor_present(&a->dfn);
  operands<T> o = {};
  o.x = bk_rows_of<T>(&a->x), o.fn = bk_rows_of<float>(&a->fn),
  o.dproj = bk_rows_of<float>(&a->dproj);
  o.rinv = (const float *)bk_cuda_data(&a->rinv), o.drinv = (const float *)bk_cuda_data(&a->drinv);
  o.tokens = a->x.shape[0], o.width = a->x.shape[1], o.rows = (int)a->fn.shape[0],
  o.add = a->accumulate;
  if (wants_dx) o.dx = bk_rows_of<T>(&a->dx);
  if (wants_dfn) o.partials = (float *)bk_cuda_place(workspace);
  if (o.tokens == 0 || (!wants_dx && !wants_dfn)) return;
  o.chunk = chunk_of(a);
  if (bk_packs_fit(&a->x) && (!wants_dx || bk_packs_fit(&a->dx))) by_rows<T, 2>(stream, o);
  else by_rows<T, 1>(stream, o);
  if (wants_dfn) bk_project_dfn(stream, o.partials, bk_ceil_div(o.tokens, o.chunk), &a->dfn);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(hc_project_bwd) {
  (void)device;
  return ((const bk_hc_project_bwd_args *)args)->fn.shape[0] <= most_rows;
}

extern "C" BK_CUDA_PREPARE(hc_project_bwd) {
  const bk_hc_project_bwd_args *a = (const bk_hc_project_bwd_args *)args;
  (void)device, (void)state;
  *workspace_bytes = bk_project_dfn_bytes(a, chunk_of(a));
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_project_bwd) {
  const bk_hc_project_bwd_args *a = (const bk_hc_project_bwd_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->x.dtype, launch, (stream, a, workspace));
  return bk_cuda_end(stream);
}
