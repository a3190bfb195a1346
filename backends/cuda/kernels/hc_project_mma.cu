/* The fused op HC_PROJECT for bf16 x on tensor cores: proj = x fn^T and the norm of x in one
 * pass over x. Products: hc_project_mma.cuh.
 *
 * A block has 128 tokens, 32 a warp, and a slice of K in steps of 64 channels. x goes straight
 * from global memory to fragments, a step ahead: whole lines of 128 bytes a token. fn of the
 * next step is loaded by the block while this one is multiplied, cut into terms once and put
 * into the other half of shared memory: one barrier a step. The slices' sums are added up by a
 * second launch.
 *
 * Floor: x read once. fn goes through the second cache once a block, R / 64 of the bytes of x. */
#include "backends/cuda/kernels/streams.h"
#include "backends/cuda/kernels/hc_project_mma.cuh"

namespace {

constexpr int threads = BK_PROJECT_THREADS, n_tiles = 4, warp_tokens = 8 * n_tiles,
              tile_tokens = threads / BK_WARP * warp_tokens;
constexpr int step = 2 * BK_PROJECT_COLUMNS, at_once = 4 * BK_PROJECT_MULTIPROCESSORS;

struct operands {
  bk_rows<bk_bf16> x;
  const float *fn;
  int fn_stride;
  int slice; /* channels */
  bk_project_end end;
};

/* The lane's channels of a block of 32, from `at` on relative to rows, of token g of each 8;
 * those from `end` on are 0. */
BK_DEVICE void load_x(const bk_bf16 *const (&rows)[n_tiles], int at, int end, uint4 (&x)[n_tiles]) {
  const int channel = 8 * ((int)threadIdx.x % 4);
#pragma unroll
  for (int n = 0; n < n_tiles; n++) {
    if (at + BK_PROJECT_COLUMNS <= end || at + channel < end) x[n] = bk_load_line(rows[n] + at);
    else x[n] = make_uint4(0, 0, 0, 0);
  }
}

template <int ROWS>
struct sums_of {
  float sums[bk_project_results<ROWS>][n_tiles][4], squares[n_tiles];
};

template <int ROWS>
BK_DEVICE void multiply(const uint4 (&x)[n_tiles], const bk_project_pair<ROWS> *pair, int half,
                        sums_of<ROWS> &total) {
  bk_project_multiply<ROWS, n_tiles>(x, pair, half, total.sums);
#pragma unroll
  for (int n = 0; n < n_tiles; n++) total.squares[n] = bk_project_squares(x[n], total.squares[n]);
}

/* The thread's four columns of fn in the step at column k; past the last they are the last four:
 * x is 0 there. */
BK_DEVICE int column_of(const bk_project_share &mine, int k, int width) {
  const int column = k + mine.half * BK_PROJECT_COLUMNS + mine.column;
  return column < width - 4 ? column : width - 4;
}

/* Four blocks a multiprocessor; 32 rows want a few registers more than that leaves. */
template <int ROWS>
__global__ void __launch_bounds__(threads, ROWS == 32 ? 3 : 4) project_kernel(operands o) {
  __shared__ bk_project_pair<ROWS> pairs[2];
  __shared__ bk_project_totals<ROWS, n_tiles> totals;
  const int lane = (int)threadIdx.x % BK_WARP, width = (int)o.end.width;
  const int64_t first =
      (int64_t)blockIdx.x * tile_tokens + (int)threadIdx.x / BK_WARP * warp_tokens;
  const int begin = (int)blockIdx.y * o.slice,
            end = begin + o.slice < width ? begin + o.slice : width;
  const bk_project_rows fn = {o.fn, o.fn_stride, (int)blockIdx.z * ROWS, o.end.rows};
  const bk_project_share mine = bk_project_share_of((int)threadIdx.x);
  const bk_bf16 *rows[n_tiles];
  sums_of<ROWS> total = {};
  uint4 x[2][n_tiles];
  float4 w[ROWS / 8] = {};
#pragma unroll
  for (int n = 0; n < n_tiles; n++) {
    const int64_t token = first + 8 * n + lane / 4;
    rows[n] = o.x.row(token < o.end.tokens ? token : o.end.tokens - 1) + 8 * (lane % 4);
  }
  load_x(rows, begin, end, x[0]);
  load_x(rows, begin + BK_PROJECT_COLUMNS, end, x[1]);
  bk_project_load<ROWS>(fn, mine, column_of(mine, begin, width), w);
  bk_project_store<ROWS>(w, mine, pairs);
  __syncthreads();
  for (int k = begin, which = 0; k < end; k += step, which ^= 1) {
    const bool more = k + step < end;
    multiply<ROWS>(x[0], pairs + which, 0, total);
    if (more) {
      load_x(rows, k + step, end, x[0]);
      bk_project_load<ROWS>(fn, mine, column_of(mine, k + step, width), w);
    }
    multiply<ROWS>(x[1], pairs + which, 1, total);
    if (more) {
      load_x(rows, k + step + BK_PROJECT_COLUMNS, end, x[1]);
      bk_project_store<ROWS>(w, mine, pairs + (which ^ 1));
    }
    __syncthreads();
    const int done = k + step - begin;
    if (done % BK_PROJECT_RUN == 0 && more)
      bk_project_bank<ROWS, n_tiles>(total.sums, totals, done == BK_PROJECT_RUN);
  }
  if (end - begin > BK_PROJECT_RUN) bk_project_fetch<ROWS, n_tiles>(total.sums, totals);
  bk_project_keep<ROWS, n_tiles>(o.end, blockIdx.y, first, fn.first, total.sums, total.squares);
}

/* ---- launches ---- */

int64_t slice_of(const bk_hc_project_args *a) {
  return bk_project_slice(bk_ceil_div(a->x.shape[0], tile_tokens), bk_ceil_div(a->x.shape[1], step),
                          at_once) *
         step;
}

template <int ROWS>
void start(bk_stream *stream, const operands &o) {
  const dim3 grid((unsigned)bk_ceil_div(o.end.tokens, tile_tokens), (unsigned)o.end.slices,
                  (unsigned)bk_ceil_div(o.end.rows, ROWS));
  BK_LAUNCH((project_kernel<ROWS>), grid, threads, 0, bk_cuda_raw(stream), o);
}

void launch(bk_stream *stream, const bk_hc_project_args *a, bk_place workspace) {
  operands o = {};
  o.x = bk_rows_of<bk_bf16>(&a->x), o.fn = (const float *)bk_cuda_data(&a->fn),
  o.fn_stride = (int)a->fn.stride[0], o.slice = (int)slice_of(a);
  o.end = bk_project_end_of(a, bk_ceil_div(a->x.shape[1], o.slice), workspace);
  if (o.end.tokens == 0) return;
  if (o.end.rows <= 8) start<8>(stream, o);
  else if (o.end.rows <= 24) start<24>(stream, o);
  else start<32>(stream, o);
  bk_project_end_start(stream, o.end);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(hc_project_mma) {
  const bk_hc_project_args *a = (const bk_hc_project_args *)args;
  (void)device;
  return a->x.shape[1] > 0 && a->fn.shape[0] * a->fn.stride[0] < (int64_t)1 << 31 &&
         bk_packs_fit(&a->x) && bk_packs_fit(&a->fn);
}

extern "C" BK_CUDA_PREPARE(hc_project_mma) {
  const bk_hc_project_args *a = (const bk_hc_project_args *)args;
  (void)device, (void)state;
  *workspace_bytes = bk_project_partials_bytes(a, bk_ceil_div(a->x.shape[1], slice_of(a)));
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(hc_project_mma) {
  BK_TRY(bk_cuda_begin(stream, plan));
  launch(stream, (const bk_hc_project_args *)args, workspace);
  return bk_cuda_end(stream);
}
