/* EMBED and EMBED_BWD.
 *
 * EMBED copies bits: packs of 16 bytes, or elements where they do not fit. Floor: the rows read
 * and written once.
 *
 * EMBED_BWD adds in a fixed order without atomics on floats. First the positions are sorted by
 * id, stably: a radix sort, 9 bits a pass (two passes up to a vocabulary of 262144), a block a
 * tile of positions: count the digits of each tile, scan the counts, place. Then threads go
 * through the sorted positions in chunks of 32, each with a pack of columns, and add up each run
 * of one id: a run that lies within a chunk goes to dtable at once, a part of one that crosses
 * its ends to the workspace; last, the chunk where such a run begins adds up its parts. Work is
 * N log N for the ids and one read of dy. Floor: dy once, the rows of dtable that are met read
 * and written. */
#include "backends/cuda/kernels/device.cuh"
#include "backends/cuda/kernels/layers.h"

namespace {

constexpr int threads = 256;

/* ---- forward; E: what is moved at once ---- */

template <class E>
__global__ void __launch_bounds__(threads)
    embed_kernel(const int32_t *ids, const E *__restrict__ table, E *__restrict__ y, int64_t count,
                 int64_t columns, int64_t table_stride, int64_t y_stride) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= count) return;
  const E *from = table + ids[row] * table_stride;
  E *to = y + row * y_stride;
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) to[c] = from[c];
}

template <class E>
void launch_embed(bk_stream *stream, const bk_embed_args *a) {
  const int64_t per = (int64_t)(sizeof(E) / bk_dtype_size(a->table.dtype)), count = a->ids.shape[0],
                columns = a->table.shape[1] / per;
  const dim3 block = bk_block_for(columns, threads);
  if (count == 0) return;
  BK_LAUNCH((embed_kernel<E>), (unsigned)bk_ceil_div(count, block.y), block, 0, bk_cuda_raw(stream),
            (const int32_t *)bk_cuda_data(&a->ids), (const E *)bk_cuda_data(&a->table),
            (E *)bk_cuda_data(&a->y), count, columns, a->table.stride[0] / per,
            a->y.stride[0] / per);
}

/* ---- the stable sort of positions by id ---- */

constexpr int bits = 9, digits = 1 << bits, tile_rounds = 8, tile_warps = threads / BK_WARP,
              tile = threads * tile_rounds;
constexpr int scan_threads = 1024;

BK_DEVICE int digit_of(int id, int shift) { return (id >> shift) & (digits - 1); }

/* counts[digit][tile]; `order` NULL: positions as they come. */
__global__ void __launch_bounds__(threads)
    count_kernel(const int32_t *ids, const int32_t *order, int32_t *counts, int count, int shift) {
  __shared__ int32_t here[digits];
  const int begin = (int)blockIdx.x * tile, end = begin + tile < count ? begin + tile : count;
  for (int d = (int)threadIdx.x; d < digits; d += threads) here[d] = 0;
  __syncthreads();
  for (int i = begin + (int)threadIdx.x; i < end; i += threads)
    atomicAdd(&here[digit_of(ids[order ? order[i] : i], shift)], 1);
  __syncthreads();
  for (int d = (int)threadIdx.x; d < digits; d += threads)
    counts[d * (int)gridDim.x + (int)blockIdx.x] = here[d];
}

/* Exclusive sums, one block: a thread a stretch. */
__global__ void __launch_bounds__(scan_threads) scan_kernel(int32_t *counts, int count) {
  __shared__ int32_t totals[BK_WARP];
  const int tid = (int)threadIdx.x, lane = tid % BK_WARP, warp = tid / BK_WARP,
            each = (count + scan_threads - 1) / scan_threads;
  const int begin = tid * each, end = begin + each < count ? begin + each : count;
  int sum = 0;
  for (int i = begin; i < end; i++) sum += counts[i];
  int before = sum; /* then inclusive over the warp */
#pragma unroll
  for (int d = 1; d < BK_WARP; d *= 2) {
    const int left = __shfl_up_sync(BK_FULL_MASK, before, d);
    if (lane >= d) before += left;
  }
  if (lane == BK_WARP - 1) totals[warp] = before;
  __syncthreads();
  before -= sum;
  for (int w = 0; w < warp; w++) before += totals[w];
  for (int i = begin; i < end; i++) {
    const int here = counts[i];
    counts[i] = before;
    before += here;
  }
}

/* The lanes that have my digit. */
BK_DEVICE unsigned peers_of(int digit, bool valid) {
  unsigned peers = __ballot_sync(BK_FULL_MASK, valid);
#pragma unroll
  for (int b = 0; b < bits; b++) {
    const unsigned set = __ballot_sync(BK_FULL_MASK, digit >> b & 1);
    peers &= digit >> b & 1 ? set : ~set;
  }
  return peers;
}

/* A warp has a stretch of its tile and numbers its elements within each digit; sums over the
 * warps before it make that the rank in the tile, and counts (by now where each tile's digit
 * begins) the place. `keys`: the ids in order, in the last pass. */
__global__ void __launch_bounds__(threads)
    place_kernel(const int32_t *ids, const int32_t *order, const int32_t *counts, int32_t *sorted,
                 int32_t *keys, int count, int shift) {
  __shared__ int32_t seen[tile_warps][digits];
  const int tid = (int)threadIdx.x, lane = tid % BK_WARP, warp = tid / BK_WARP;
  const int begin = (int)blockIdx.x * tile + warp * (tile / tile_warps) + lane;
  int position[tile_rounds], rank[tile_rounds];
  for (int d = lane; d < digits; d += BK_WARP) seen[warp][d] = 0;
  __syncwarp();
#pragma unroll
  for (int r = 0; r < tile_rounds; r++) {
    const int i = begin + r * BK_WARP;
    const bool valid = i < count;
    position[r] = !valid ? -1 : order ? order[i] : i;
    const int digit = valid ? digit_of(ids[position[r]], shift) : 0;
    const unsigned peers = peers_of(digit, valid);
    rank[r] = seen[warp][digit] + __popc(peers & ((1u << lane) - 1));
    __syncwarp();
    if (valid && (peers >> lane) == 1) seen[warp][digit] = rank[r] + 1; /* the last of them */
    __syncwarp();
  }
  __syncthreads();
  for (int d = tid; d < digits; d += threads) {
    int before = counts[d * (int)gridDim.x + (int)blockIdx.x];
    for (int w = 0; w < tile_warps; w++) {
      const int here = seen[w][d];
      seen[w][d] = before;
      before += here;
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < tile_rounds; r++) {
    if (position[r] < 0) continue;
    const int id = ids[position[r]], at = seen[warp][digit_of(id, shift)] + rank[r];
    sorted[at] = position[r];
    if (keys) keys[at] = id;
  }
}

/* ---- sums of runs ---- */

constexpr int chunk = 32, batch = 4;

struct sums {
  int count;       /* positions */
  int64_t columns; /* in packs of N */
  int64_t width, dy_stride, table_stride;
};

template <int N>
BK_DEVICE void load_row(const float *p, float (&v)[N]) {
  if constexpr (N == 1) v[0] = __ldg(p);
  else bk_load_pack(p, v);
}
template <int N>
BK_DEVICE void load_row(const bk_bf16 *p, float (&v)[N]) {
  if constexpr (N == 1) v[0] = bk_to_float(*p);
  else bk_load_pack(p, v);
}

/* p = v, or p += v. */
template <int N>
BK_DEVICE void put_floats(float *p, const float (&v)[N], bool add) {
  if constexpr (N == 1) {
    *p = add ? *p + v[0] : v[0];
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 old = add ? *reinterpret_cast<float4 *>(p + i) : make_float4(0, 0, 0, 0);
      bk_store_pack_global(p + i,
                           {old.x + v[i], old.y + v[i + 1], old.z + v[i + 2], old.w + v[i + 3]});
    }
  }
}

/* Where the sum of keys [from, to) of one id goes: `begin`, `end` are the chunk's. heads[k]: the
 * end of a run that began before chunk k (it may fill all of it); tails[k]: the beginning of one
 * that goes on past it. */
template <int N>
BK_DEVICE void put_run(const int32_t *keys, const sums &s, int k, int from, int to, int begin,
                       int end, const float (&v)[N], float *dtable, float *heads, float *tails,
                       int64_t column) {
  const int id = keys[from];
  if (from == begin && begin > 0 && keys[begin - 1] == id)
    put_floats<N>(heads + k * s.width + column, v, false);
  else if (to == end && end < s.count && keys[end] == id)
    put_floats<N>(tails + k * s.width + column, v, false);
  else put_floats<N>(dtable + id * s.table_stride + column, v, true);
}

template <class T, int N>
__global__ void __launch_bounds__(threads)
    runs_kernel(const int32_t *keys, const int32_t *order, const T *dy, float *dtable, float *heads,
                float *tails, sums s) {
  const int k = (int)(blockIdx.x * blockDim.y + threadIdx.y), begin = k * chunk,
            end = begin + chunk < s.count ? begin + chunk : s.count;
  const int64_t pack = (int64_t)blockIdx.y * blockDim.x + threadIdx.x, column = pack * N;
  if (begin >= s.count || pack >= s.columns) return;
  float sum[N] = {};
  int from = begin;
  for (int i = begin; i < end; i += batch) {
    float v[batch][N];
#pragma unroll
    for (int j = 0; j < batch; j++)
      if (i + j < end) load_row(dy + order[i + j] * s.dy_stride + column, v[j]);
#pragma unroll
    for (int j = 0; j < batch; j++) {
      if (i + j >= end) break;
      if (keys[i + j] != keys[from]) {
        put_run<N>(keys, s, k, from, i + j, begin, end, sum, dtable, heads, tails, column);
        from = i + j;
#pragma unroll
        for (int e = 0; e < N; e++) sum[e] = 0;
      }
#pragma unroll
      for (int e = 0; e < N; e++) sum[e] += v[j][e];
    }
  }
  put_run<N>(keys, s, k, from, end, begin, end, sum, dtable, heads, tails, column);
}

/* The last chunk that begins within the run of `id`, which chunk k does not end. */
BK_DEVICE int last_chunk(const int32_t *keys, int count, int k, int id) {
  int low = k + 1, high = (count - 1) / chunk;
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    if (keys[middle * chunk] == id) low = middle;
    else high = middle - 1;
  }
  return low;
}

/* Runs that cross chunks, by the chunk they begin in. */
template <int N>
__global__ void __launch_bounds__(threads)
    crossing_kernel(const int32_t *keys, const float *heads, const float *tails, float *dtable,
                    sums s) {
  const int k = (int)(blockIdx.x * blockDim.y + threadIdx.y), begin = k * chunk,
            end = begin + chunk;
  const int64_t pack = (int64_t)blockIdx.y * blockDim.x + threadIdx.x, column = pack * N;
  if (end >= s.count || pack >= s.columns) return;
  const int id = keys[end - 1];
  /* ends here, or began before */
  if (keys[end] != id || (begin > 0 && keys[begin - 1] == id)) return;
  const int last = last_chunk(keys, s.count, k, id);
  float sum[N];
  if constexpr (N == 1) sum[0] = tails[k * s.width + column];
  else bk_load_floats(tails + k * s.width + column, sum);
#pragma unroll 4
  for (int c = k + 1; c <= last; c++) {
    float v[N];
    if constexpr (N == 1) v[0] = heads[c * s.width + column];
    else bk_load_floats(heads + c * s.width + column, v);
#pragma unroll
    for (int e = 0; e < N; e++) sum[e] += v[e];
  }
  put_floats<N>(dtable + id * s.table_stride + column, sum, true);
}

/* Offsets in the workspace, each a multiple of 256 bytes. */
struct layout {
  size_t counts, order[2], keys, heads, tails, bytes;
};
layout layout_of(int64_t count, int64_t width) {
  const size_t ids = BK_ALIGN_UP((size_t)count * sizeof(int32_t), (size_t)256);
  const size_t parts =
      BK_ALIGN_UP((size_t)bk_ceil_div(count, chunk) * (size_t)width * sizeof(float), (size_t)256);
  layout l = {};
  l.order[0] =
      BK_ALIGN_UP((size_t)bk_ceil_div(count, tile) * digits * sizeof(int32_t), (size_t)256);
  l.order[1] = l.order[0] + ids;
  l.keys = l.order[1] + ids;
  l.heads = l.keys + ids;
  l.tails = l.heads + parts;
  l.bytes = l.tails + parts;
  return l;
}

/* Sorted positions; keys gets their ids. */
const int32_t *sort(cudaStream_t raw, const int32_t *ids, int count, int64_t vocabulary, char *work,
                    const layout &l) {
  const int tiles = (int)bk_ceil_div(count, tile);
  int32_t *counts = (int32_t *)(work + l.counts), *keys = (int32_t *)(work + l.keys),
          *order = nullptr;
  int pass = 0;
  do {
    const int shift = pass * bits;
    int32_t *sorted = (int32_t *)(work + l.order[pass % 2]);
    const bool last = (vocabulary - 1) >> shift < digits;
    BK_LAUNCH((count_kernel), (unsigned)tiles, threads, 0, raw, ids, order, counts, count, shift);
    BK_LAUNCH((scan_kernel), 1, scan_threads, 0, raw, counts, digits * tiles);
    BK_LAUNCH((place_kernel), (unsigned)tiles, threads, 0, raw, ids, order, counts, sorted,
              last ? keys : nullptr, count, shift);
    order = sorted;
    if (last) return order;
  } while (++pass < 4);
  return order;
}

template <class T, int N>
void launch_sums(bk_stream *stream, const bk_embed_bwd_args *a, char *work) {
  const int64_t width = a->dy.shape[1], count = a->ids.shape[0];
  const layout l = layout_of(count, width);
  const sums s = {(int)count, width / N, width, a->dy.stride[0], a->dtable.stride[0]};
  const dim3 block = bk_block_for(s.columns, threads);
  const dim3 grid((unsigned)bk_ceil_div(bk_ceil_div(count, chunk), block.y),
                  (unsigned)bk_ceil_div(s.columns, block.x));
  const int32_t *order = sort(bk_cuda_raw(stream), (const int32_t *)bk_cuda_data(&a->ids), s.count,
                              a->dtable.shape[0], work, l);
  const int32_t *keys = (const int32_t *)(work + l.keys);
  float *dtable = (float *)bk_cuda_data(&a->dtable), *heads = (float *)(work + l.heads),
        *tails = (float *)(work + l.tails);
  BK_LAUNCH((runs_kernel<T, N>), grid, block, 0, bk_cuda_raw(stream), keys, order,
            (const T *)bk_cuda_data(&a->dy), dtable, heads, tails, s);
  if (count > chunk)
    BK_LAUNCH((crossing_kernel<N>), grid, block, 0, bk_cuda_raw(stream), keys, heads, tails, dtable,
              s);
}

template <class T>
void launch_backward(bk_stream *stream, const bk_embed_bwd_args *a, char *work) {
  if (a->ids.shape[0] == 0 || a->dy.shape[1] == 0) return;
  if (bk_packs_fit(&a->dy) && bk_packs_fit(&a->dtable))
    launch_sums<T, bk_pack<T>::count>(stream, a, work);
  else launch_sums<T, 1>(stream, a, work);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(embed) {
  (void)device;
  return bk_stored(&((const bk_embed_args *)args)->table);
}

extern "C" BK_CUDA_LAUNCH(embed) {
  const bk_embed_args *a = (const bk_embed_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  if (bk_packs_fit(&a->table) && bk_packs_fit(&a->y)) launch_embed<uint4>(stream, a);
  else if (a->table.dtype == BK_BF16) launch_embed<bk_bf16>(stream, a);
  else launch_embed<float>(stream, a);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_ACCEPTS(embed_bwd) {
  (void)device;
  return bk_stored(&((const bk_embed_bwd_args *)args)->dy) &&
         ((const bk_embed_bwd_args *)args)->ids.shape[0] <= INT32_MAX - tile;
}

extern "C" BK_CUDA_PREPARE(embed_bwd) {
  const bk_embed_bwd_args *a = (const bk_embed_bwd_args *)args;
  (void)device, (void)state;
  *workspace_bytes = layout_of(a->ids.shape[0], a->dy.shape[1]).bytes;
  return BK_OK;
}

extern "C" BK_CUDA_LAUNCH(embed_bwd) {
  const bk_embed_bwd_args *a = (const bk_embed_bwd_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->dy.dtype, launch_backward, (stream, a, bk_cuda_place(workspace)));
  return bk_cuda_end(stream);
}
