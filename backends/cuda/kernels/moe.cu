/* MOE_INDEX, PERMUTE, UNPERMUTE, UNPERMUTE_BWD; formulas in runtime/op.h. */
#include "backends/cuda/kernels/device.cuh"
#include "backends/cuda/kernels/experts.h"

namespace {

constexpr int threads = 256, warps_of_block = threads / BK_WARP;

/* ==== MOE_INDEX: stable counting sort in three kernels, or in one where few choices are to be
 * sorted ==== The choices are cut in at most 512 chunks, a block each, by shapes alone. 1:
 * counts[e][chunk]; 2, one block: the counts become first rows, and offsets and load are
 * written; 3: every choice to its row. Within a chunk tiles of warps * 256 choices follow each
 * other, within a tile warps, within a warp batches of 32; a lane's rank in its batch is the
 * number of lower lanes with its expert (match). Integers only, so every order of atomic
 * additions gives the same counts. Floor: index read twice, order and row_of written once. */

constexpr int batches = 8, warp_tile = batches * BK_WARP, most_chunks = 512;
constexpr int most_experts = 6144; /* two rows of counters in 48 KB of shared memory */

struct sort_job {
  const int *index;
  int *row_of, *order, *offsets, *load, *counts;
  int64_t index_stride, row_of_stride;
  int total, k, experts, chunks, chunk; /* chunk: choices of one */
  bool alone;                           /* one tile is enough */
};

/* Place of choice c = token * k + j in a matrix of rows of k. */
BK_DEVICE int64_t at_choice(int c, int k, int64_t stride) {
  const unsigned token = (unsigned)c / (unsigned)k;
  return token * stride + (unsigned)c % (unsigned)k;
}

/* Experts of the choices begin, begin + STEP, ...; -1 from `end` on. The reads stand together. */
template <int STEP>
BK_DEVICE void load_experts(const sort_job &job, int64_t begin, int64_t end,
                            int (&expert)[batches]) {
#pragma unroll
  for (int b = 0; b < batches; b++) {
    const int64_t c = begin + b * STEP;
    expert[b] = __ldg(job.index + at_choice((int)(c < end ? c : end - 1), job.k, job.index_stride));
  }
#pragma unroll
  for (int b = 0; b < batches; b++)
    if (begin + b * STEP >= end) expert[b] = -1;
}

__global__ void __launch_bounds__(threads) count_kernel(sort_job job) {
  BK_SHARED_DYNAMIC(int, counts);
  for (int e = (int)threadIdx.x; e < job.experts; e += threads) counts[e] = 0;
  __syncthreads();
  const int64_t first = (int64_t)blockIdx.x * job.chunk,
                end = first + job.chunk < job.total ? first + job.chunk : job.total;
  for (int64_t tile = first; tile < end; tile += threads * batches) {
    int expert[batches];
    load_experts<threads>(job, tile + threadIdx.x, end, expert);
#pragma unroll
    for (int b = 0; b < batches; b++)
      if (expert[b] >= 0) atomicAdd(&counts[expert[b]], 1);
  }
  __syncthreads();
  for (int e = (int)threadIdx.x; e < job.experts; e += threads)
    job.counts[(int64_t)e * job.chunks + blockIdx.x] = counts[e];
}

/* Sum of x over the lower lanes. */
BK_DEVICE int warp_before(int x) {
  const int lane = (int)threadIdx.x % BK_WARP;
  int sum = x;
#pragma unroll
  for (int d = 1; d < BK_WARP; d <<= 1) {
    const int other = __shfl_up_sync(BK_FULL_MASK, sum, d);
    if (lane >= d) sum += other;
  }
  return sum - x;
}

/* By one warp: experts base .. base + count - 1 have totals[0 .. count) choices, `row` before
 * them; totals become first rows, offsets and load are written. Returns the row after them. */
BK_DEVICE int number_rows(const sort_job &job, int *totals, int base, int count, int row) {
  const int lane = (int)threadIdx.x % BK_WARP;
  for (int e = lane; e - lane < count; e += BK_WARP) {
    const int mine = e < count ? totals[e] : 0, lower = warp_before(mine);
    if (e < count) {
      totals[e] = row + lower;
      job.offsets[base + e] = row + lower;
      if (job.load) job.load[base + e] += mine;
    }
    row += __shfl_sync(BK_FULL_MASK, lower + mine, BK_WARP - 1);
  }
  return row;
}

constexpr int scan_threads = 1024, scan_warps = scan_threads / BK_WARP;

/* A warp an expert: counts[e][chunk] become the counts before the chunk, totals of 1024 experts
 * at a time lie in shared memory and are summed to offsets by the first warp of the block. */
__global__ void __launch_bounds__(scan_threads) scan_kernel(sort_job job) {
  __shared__ int totals[scan_threads];
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP;
  int row = 0; /* of the first warp: where the next expert begins */
  for (int base = 0; base < job.experts; base += scan_threads) {
    const int here = job.experts - base < scan_threads ? job.experts - base : scan_threads;
    for (int e = warp; e < here; e += scan_warps) {
      int *counts = job.counts + (int64_t)(base + e) * job.chunks, before = 0;
      for (int c = 0; c < job.chunks; c += BK_WARP) {
        const int count = c + lane < job.chunks ? counts[c + lane] : 0, lower = warp_before(count);
        if (c + lane < job.chunks) counts[c + lane] = before + lower;
        before += __shfl_sync(BK_FULL_MASK, lower + count, BK_WARP - 1);
      }
      if (lane == 0) totals[e] = before;
    }
    __syncthreads();
    if (warp == 0) row = number_rows(job, totals, base, here, row);
    __syncthreads(); /* totals may be written again */
  }
  if (threadIdx.x == 0) job.offsets[job.experts] = row;
}

/* next[e]: row of the chunk's next choice of e; held[w][e]: first counts, then first rows of
 * warp w in this tile. ALONE: all choices are one tile of one block, which does it all. */
template <bool ALONE>
__global__ void __launch_bounds__(threads) scatter_kernel(sort_job job) {
  BK_SHARED_DYNAMIC(int, shared);
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP,
            warps = (int)blockDim.x / BK_WARP;
  int *next = shared, *held = shared + job.experts, *mine = held + warp * job.experts;
  for (int e = (int)threadIdx.x; !ALONE && e < job.experts; e += (int)blockDim.x)
    next[e] = job.offsets[e] + job.counts[(int64_t)e * job.chunks + blockIdx.x];
  const int64_t first = (int64_t)blockIdx.x * job.chunk,
                end = first + job.chunk < job.total ? first + job.chunk : job.total;
  for (int64_t tile = first; tile < end; tile += warps * warp_tile) {
    int expert[batches], rank[batches];
    const int64_t begin = tile + warp * warp_tile + lane;
    load_experts<BK_WARP>(job, begin, end, expert);
    for (int e = lane; e < job.experts; e += BK_WARP) mine[e] = 0;
    __syncwarp();
#pragma unroll
    for (int b = 0; b < batches; b++) {
      const unsigned same = __match_any_sync(BK_FULL_MASK, expert[b]),
                     lower = same & ((1u << lane) - 1);
      rank[b] = expert[b] >= 0 ? mine[expert[b]] + __popc(lower) : 0;
      __syncwarp();
      if (expert[b] >= 0 && lower == 0) mine[expert[b]] += __popc(same);
      __syncwarp();
    }
    __syncthreads();
    if constexpr (ALONE) {
      for (int e = (int)threadIdx.x; e < job.experts; e += (int)blockDim.x) {
        next[e] = 0;
        for (int w = 0; w < warps; w++) next[e] += held[w * job.experts + e];
      }
      __syncthreads();
      if (warp == 0) number_rows(job, next, 0, job.experts, 0);
      if (threadIdx.x == 0) job.offsets[job.experts] = job.total;
      __syncthreads();
    }
    for (int e = (int)threadIdx.x; e < job.experts; e += (int)blockDim.x) {
      int row = next[e];
      for (int w = 0; w < warps; w++) {
        const int count = held[w * job.experts + e];
        held[w * job.experts + e] = row;
        row += count;
      }
      next[e] = row;
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < batches; b++) {
      const int64_t c = begin + b * BK_WARP;
      if (c >= end) break;
      const int row = mine[expert[b]] + rank[b];
      job.order[row] = (int)c;
      job.row_of[at_choice((int)c, job.k, job.row_of_stride)] = row;
    }
    if constexpr (ALONE) break;
    __syncwarp(); /* before `mine` is zeroed */
  }
}

/* Warps of scatter_kernel: as many as have their counters in 48 KB, beside `next`. */
int sort_warps(int64_t experts) {
  int warps = warps_of_block;
  while (warps > 1 && (warps + 1) * experts * 4 > 48 << 10) warps /= 2;
  return warps;
}

void cut_chunks(const bk_moe_index_args *a, sort_job *job) {
  job->experts = (int)(a->offsets.shape[0] - 1), job->k = (int)a->index.shape[1];
  job->total = (int)(a->index.shape[0] * job->k);
  const int64_t tile = sort_warps(job->experts) * warp_tile, tiles = bk_ceil_div(job->total, tile);
  job->chunk = (int)(bk_ceil_div(tiles, most_chunks) * tile);
  job->chunks = (int)bk_ceil_div(job->total, job->chunk);
  job->alone = tiles == 1;
}

/* ==== rows ==== A warp moves 128 packs of 16 bytes (or single elements, where packs do not fit)
 * of one row: 2 KB, four accesses in flight a lane. So that they are, loads stand together and
 * without branches: what is past the end of a row is read at another place and not used. */

constexpr int unroll = 4, segment = unroll * BK_WARP;

template <class T, bool PACKS>
constexpr int step_of = PACKS ? bk_pack<T>::count : 1;

/* v = p[0 .. step); OWN: memory that this kernel writes too. */
template <bool OWN, class T, int N>
BK_DEVICE void load_step(const T *p, float (&v)[N]) {
  if constexpr (N == 1) v[0] = bk_to_float(*p);
  else if constexpr (OWN) bk_load_pack_own(p, v);
  else bk_load_pack(p, v);
}
template <class T, int N>
BK_DEVICE void store_step(T *p, const float (&v)[N]) {
  if constexpr (N == 1) *p = bk_from_float<T>(v[0]);
  else bk_store_pack(p, v);
}

struct row_job {
  const void *x, *dy;
  const int *row_of; /* or order */
  const float *weights;
  void *y;
  float *dweights;
  int64_t rows, width, x_stride, dy_stride, row_of_stride, weights_stride, y_stride,
      dweights_stride;
  int k;
  bool accumulate;
};

/* ---- PERMUTE: y[r] = x[order[r] / k], bit by bit; grid.x rows, grid.y segments. Floor: y
 * written once, x read k times, mostly past the caches when the tokens are many. U: a storage
 * unit, 16 bytes or one element. ---- */
template <class U>
__global__ void __launch_bounds__(threads) permute_kernel(row_job job, int64_t units) {
  const int64_t r = (int64_t)blockIdx.x * warps_of_block + threadIdx.x / BK_WARP;
  if (r >= job.rows) return;
  const U *x =
      (const U *)job.x + (int64_t)((unsigned)job.row_of[r] / (unsigned)job.k) * job.x_stride;
  U *y = (U *)job.y + r * job.y_stride;
  for (int64_t u = (int64_t)blockIdx.y * segment + threadIdx.x % BK_WARP; u < units;
       u += (int64_t)gridDim.y * segment) {
    U v[unroll];
#pragma unroll
    for (int i = 0; i < unroll; i++)
      v[i] = __ldg(x + (u + i * BK_WARP < units ? u + i * BK_WARP : units - 1));
#pragma unroll
    for (int i = 0; i < unroll; i++)
      if (u + i * BK_WARP < units) y[u + i * BK_WARP] = v[i];
  }
}

/* ---- UNPERMUTE: y[i] (+)= sum_j w[i,j] x[row_of[i,j]], j ascending; a warp a token and 64 packs:
 * eight reads under way, two packs of four rows. Floor: x read once, y written once. ---- */
constexpr int sums = 2, rows_at_once = 4;

/* sum += w x over rows j .. j + J - 1; column: of each pack of the lane. */
template <int J, class T, int N>
BK_DEVICE void add_rows(const row_job &job, int my_row, float my_weight, int j,
                        const int64_t (&column)[sums], float (&sum)[sums][N]) {
  float v[J][sums][N];
#pragma unroll
  for (int r = 0; r < J; r++) {
    const T *x = (const T *)job.x + __shfl_sync(BK_FULL_MASK, my_row, j + r) * job.x_stride;
#pragma unroll
    for (int s = 0; s < sums; s++) load_step<false>(x + column[s], v[r][s]);
  }
#pragma unroll
  for (int r = 0; r < J; r++) {
    const float w = __shfl_sync(BK_FULL_MASK, my_weight, j + r);
#pragma unroll
    for (int s = 0; s < sums; s++)
#pragma unroll
      for (int e = 0; e < N; e++) sum[s][e] = fmaf(w, v[r][s][e], sum[s][e]);
  }
}

template <class T, bool PACKS>
__global__ void __launch_bounds__(threads) unpermute_kernel(row_job job) {
  constexpr int step = step_of<T, PACKS>, width = sums * BK_WARP * step;
  const int lane = (int)threadIdx.x % BK_WARP;
  const int64_t i = (int64_t)blockIdx.x * warps_of_block + threadIdx.x / BK_WARP;
  if (i >= job.rows) return; /* the whole warp */
  const int *row_of = job.row_of + i * job.row_of_stride;
  const float *weights = job.weights + (job.weights ? i * job.weights_stride : 0);
  T *y = (T *)job.y + i * job.y_stride;
  for (int64_t base = (int64_t)blockIdx.y * width; base < job.width;
       base += (int64_t)gridDim.y * width) {
    int64_t column[sums];
    float sum[sums][step] = {};
#pragma unroll
    for (int s = 0; s < sums; s++) {
      column[s] = base + (s * BK_WARP + lane) * step;
      if (column[s] >= job.width) column[s] = 0;
    }
    for (int first = 0; first < job.k; first += BK_WARP) {
      const int count = job.k - first < BK_WARP ? job.k - first : BK_WARP;
      const int my_row = lane < count ? row_of[first + lane] : 0;
      const float my_weight = lane < count && job.weights ? weights[first + lane] : 1.f;
      int j = 0;
      for (; j + rows_at_once <= count; j += rows_at_once)
        add_rows<rows_at_once, T, step>(job, my_row, my_weight, j, column, sum);
      for (; j + 2 <= count; j += 2) add_rows<2, T, step>(job, my_row, my_weight, j, column, sum);
      if (j < count) add_rows<1, T, step>(job, my_row, my_weight, j, column, sum);
    }
#pragma unroll
    for (int s = 0; s < sums; s++) {
      float old[step];
      if (base + (s * BK_WARP + lane) * step >= job.width) continue;
      if (job.accumulate) {
        load_step<true>(y + column[s], old);
#pragma unroll
        for (int e = 0; e < step; e++) sum[s][e] += old[e];
      }
      store_step(y + column[s], sum[s]);
    }
  }
}

/* ---- UNPERMUTE_BWD: dx[row_of[i,j]] = w[i,j] dy[i], dw[i,j] = x[row_of[i,j]] . dy[i]; a warp a
 * choice. The choices of a token are neighbours, so dy comes from the caches for all but the
 * first. A row of x belongs to one choice, and a lane reads its columns before it writes them:
 * dx may be x. Floor: x and dy read once, dx written once. ---- */

/* dot += x dy, dx = w dy over U steps of a lane, a warp's width apart. */
template <int U, int N, class T>
BK_DEVICE void back_steps(const T *x, const T *dy, T *dx, float w, float &dot) {
  float a[U][N], b[U][N];
#pragma unroll
  for (int u = 0; u < U; u++) load_step<true>(x + u * BK_WARP * N, a[u]);
#pragma unroll
  for (int u = 0; u < U; u++) load_step<false>(dy + u * BK_WARP * N, b[u]);
#pragma unroll
  for (int u = 0; u < U; u++) {
#pragma unroll
    for (int e = 0; e < N; e++) {
      dot = fmaf(a[u][e], b[u][e], dot);
      b[u][e] *= w;
    }
    store_step(dx + u * BK_WARP * N, b[u]);
  }
}

template <class T, bool PACKS>
__global__ void __launch_bounds__(threads) unpermute_bwd_kernel(row_job job) {
  constexpr int step = step_of<T, PACKS>, stride = BK_WARP * step;
  const int lane = (int)threadIdx.x % BK_WARP;
  const int64_t choice = (int64_t)blockIdx.x * warps_of_block + threadIdx.x / BK_WARP;
  if (choice >= job.rows) return;
  const int64_t i = (unsigned)choice / (unsigned)job.k, j = (unsigned)choice % (unsigned)job.k,
                row = job.row_of[i * job.row_of_stride + j];
  const float w = job.weights ? job.weights[i * job.weights_stride + j] : 1.f;
  const T *x = (const T *)job.x + row * job.x_stride, *dy = (const T *)job.dy + i * job.dy_stride;
  T *dx = (T *)job.y + row * job.y_stride;
  float dot = 0;
  int64_t column = lane * step;
  /* the same for the whole warp */
  for (; column - lane * step + unroll * stride <= job.width; column += unroll * stride)
    back_steps<unroll, step>(x + column, dy + column, dx + column, w, dot);
  for (; column < job.width; column += stride)
    back_steps<1, step>(x + column, dy + column, dx + column, w, dot);
  dot = bk_warp_sum(dot);
  if (lane == 0 && job.dweights) job.dweights[i * job.dweights_stride + j] = dot;
}

/* ---- host ---- */

unsigned up_to(int64_t wanted, int64_t most) {
  return (unsigned)(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

template <class U>
void launch_permute(bk_stream *stream, row_job job, int64_t size) {
  const int64_t units = job.width * size / (int64_t)sizeof(U);
  job.x_stride = job.x_stride * size / (int64_t)sizeof(U),
  job.y_stride = job.y_stride * size / (int64_t)sizeof(U);
  const dim3 grid((unsigned)bk_ceil_div(job.rows, warps_of_block),
                  up_to(bk_ceil_div(units, segment), 65535));
  BK_LAUNCH((permute_kernel<U>), grid, threads, 0, bk_cuda_raw(stream), job, units);
}

template <class T>
void launch_unpermute(bk_stream *stream, const row_job &job, bool packs) {
  const int64_t width = (packs ? bk_pack<T>::count : 1) * sums * BK_WARP;
  const dim3 grid((unsigned)bk_ceil_div(job.rows, warps_of_block),
                  up_to(bk_ceil_div(job.width, width), 65535));
  if (packs) BK_LAUNCH((unpermute_kernel<T, true>), grid, threads, 0, bk_cuda_raw(stream), job);
  else BK_LAUNCH((unpermute_kernel<T, false>), grid, threads, 0, bk_cuda_raw(stream), job);
}

template <class T>
void launch_unpermute_bwd(bk_stream *stream, const row_job &job, bool packs) {
  const unsigned grid = (unsigned)bk_ceil_div(job.rows, warps_of_block);
  if (packs) BK_LAUNCH((unpermute_bwd_kernel<T, true>), grid, threads, 0, bk_cuda_raw(stream), job);
  else BK_LAUNCH((unpermute_bwd_kernel<T, false>), grid, threads, 0, bk_cuda_raw(stream), job);
}

} // namespace

/* i32 numbers the choices; beyond 6144 experts the op is served elsewhere. */
extern "C" BK_CUDA_ACCEPTS(moe_index) {
  const bk_moe_index_args *a = (const bk_moe_index_args *)args;
  (void)device;
  return a->offsets.shape[0] - 1 <= most_experts &&
         a->index.shape[0] * a->index.shape[1] <= 0x7fffffff;
}

extern "C" BK_CUDA_PREPARE(moe_index) {
  sort_job job = {};
  cut_chunks((const bk_moe_index_args *)args, &job);
  (void)device;
  *state = nullptr;
  *workspace_bytes = job.alone ? 0 : (size_t)job.experts * (size_t)job.chunks * sizeof(int);
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(moe_index) {
  const bk_moe_index_args *a = (const bk_moe_index_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  sort_job job = {};
  cut_chunks(a, &job);
  job.index = (const int *)bk_cuda_data(&a->index), job.row_of = (int *)bk_cuda_data(&a->row_of),
  job.order = (int *)bk_cuda_data(&a->order);
  job.offsets = (int *)bk_cuda_data(&a->offsets),
  job.load = bk_tensor_present(&a->load) ? (int *)bk_cuda_data(&a->load) : nullptr;
  job.counts = (int *)bk_cuda_place(workspace), job.index_stride = a->index.stride[0],
  job.row_of_stride = a->row_of.stride[0];
  const int warps = sort_warps(job.experts);
  const size_t row = (size_t)job.experts * sizeof(int);
  cudaStream_t raw = bk_cuda_raw(stream);
  if (job.alone) {
    BK_LAUNCH((scatter_kernel<true>), 1, warps * BK_WARP, row * (size_t)(warps + 1), raw, job);
    return bk_cuda_end(stream);
  }
  BK_LAUNCH((count_kernel), (unsigned)job.chunks, threads, row, raw, job);
  BK_LAUNCH((scan_kernel), 1, scan_threads, 0, raw, job);
  BK_LAUNCH((scatter_kernel<false>), (unsigned)job.chunks, warps * BK_WARP,
            row * (size_t)(warps + 1), raw, job);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(permute) {
  const bk_permute_args *a = (const bk_permute_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  row_job job = {};
  job.x = bk_cuda_data(&a->x), job.row_of = (const int *)bk_cuda_data(&a->order),
  job.y = bk_cuda_data(&a->y);
  job.rows = a->y.shape[0], job.width = a->y.shape[1], job.x_stride = a->x.stride[0],
  job.y_stride = a->y.stride[0], job.k = a->k;
  const int64_t size = (int64_t)bk_dtype_size(a->x.dtype);
  if (job.rows > 0 && bk_packs_fit(&a->x) && bk_packs_fit(&a->y))
    launch_permute<uint4>(stream, job, size);
  else if (job.rows > 0 && size == 4) launch_permute<uint32_t>(stream, job, size);
  else if (job.rows > 0) launch_permute<uint16_t>(stream, job, size);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(unpermute) {
  const bk_unpermute_args *a = (const bk_unpermute_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  row_job job = {};
  job.x = bk_cuda_data(&a->x), job.row_of = (const int *)bk_cuda_data(&a->row_of),
  job.y = bk_cuda_data(&a->y);
  job.weights = bk_tensor_present(&a->weights) ? (const float *)bk_cuda_data(&a->weights) : nullptr;
  job.rows = a->y.shape[0], job.width = a->y.shape[1], job.k = (int)a->row_of.shape[1],
  job.accumulate = a->accumulate;
  job.x_stride = a->x.stride[0], job.y_stride = a->y.stride[0],
  job.row_of_stride = a->row_of.stride[0];
  job.weights_stride = job.weights ? a->weights.stride[0] : 0;
  const bool packs = bk_packs_fit(&a->x) && bk_packs_fit(&a->y);
  if (job.rows > 0) BK_BY_STORAGE(a->x.dtype, launch_unpermute, (stream, job, packs));
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(unpermute_bwd) {
  const bk_unpermute_bwd_args *a = (const bk_unpermute_bwd_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  row_job job = {};
  job.x = bk_cuda_data(&a->x), job.dy = bk_cuda_data(&a->dy),
  job.row_of = (const int *)bk_cuda_data(&a->row_of), job.y = bk_cuda_data(&a->dx);
  job.weights = bk_tensor_present(&a->weights) ? (const float *)bk_cuda_data(&a->weights) : nullptr;
  job.dweights = bk_tensor_present(&a->dweights) ? (float *)bk_cuda_data(&a->dweights) : nullptr;
  job.k = (int)a->row_of.shape[1], job.rows = a->row_of.shape[0] * job.k,
  job.width = a->dy.shape[1];
  job.x_stride = a->x.stride[0], job.dy_stride = a->dy.stride[0], job.y_stride = a->dx.stride[0],
  job.row_of_stride = a->row_of.stride[0];
  job.weights_stride = job.weights ? a->weights.stride[0] : 0,
  job.dweights_stride = job.dweights ? a->dweights.stride[0] : 0;
  const bool packs = bk_packs_fit(&a->x) && bk_packs_fit(&a->dy) && bk_packs_fit(&a->dx);
  if (job.rows > 0) BK_BY_STORAGE(a->x.dtype, launch_unpermute_bwd, (stream, job, packs));
  return bk_cuda_end(stream);
}
