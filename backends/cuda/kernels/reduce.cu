/* SUM, SUMSQ, CLIP. Floor: x once.
 *
 * Stage one: a block a chunk of x, whose length follows from the count alone, so that the bits
 * do not depend on the device; a thread reads four packs of 16 bytes at a time and adds in
 * double (the four squares of a pack first in fp32). Stage two: one block adds the chunks'
 * partial sums. One chunk: no stage two. */
#include <float.h>

#include "backends/cuda/kernels/basic.h"
#include "backends/cuda/kernels/device.cuh"

namespace {

constexpr int threads = 256, batch = 4;
constexpr int64_t chunk_least = 16384, chunk_unit = 4096, partials_most = 4096;

int64_t chunk_of(int64_t count) {
  const int64_t even = bk_ceil_div(bk_ceil_div(count, partials_most), chunk_unit) * chunk_unit;
  return even < chunk_least ? chunk_least : even;
}
int64_t chunks_of(int64_t count) { return count > 0 ? bk_ceil_div(count, chunk_of(count)) : 1; }

/* The squares of a pack may be added in fp32: they are four, of one sign. */
template <bool SQUARE, int N>
BK_DEVICE double term(const float (&v)[N]) {
  float squares = 0;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < N; i++) {
    if constexpr (SQUARE) squares += v[i] * v[i];
    else sum += (double)v[i];
  }
  return SQUARE ? (double)squares : sum;
}

template <bool SQUARE>
BK_DEVICE double thread_sum(const float *x, int64_t begin, int64_t end, bool packs) {
  const int tid = (int)threadIdx.x;
  double sum = 0;
  if (packs) {
    int64_t i = begin + 4 * tid;
    for (; i + 4 * (threads * (batch - 1) + 1) <= end; i += 4 * threads * batch) {
      float v[batch][4];
#pragma unroll
      for (int j = 0; j < batch; j++) bk_load_pack(x + i + 4 * threads * j, v[j]);
#pragma unroll
      for (int j = 0; j < batch; j++) sum += term<SQUARE>(v[j]);
    }
    for (; i + 4 <= end; i += 4 * threads) {
      float v[4];
      bk_load_pack(x + i, v);
      sum += term<SQUARE>(v);
    }
    begin += (end - begin) / 4 * 4;
  }
  for (int64_t i = begin + tid; i < end; i += threads) sum += term<SQUARE>({x[i]});
  return sum;
}

BK_DEVICE void put(float *y, double sum, bool accumulate) {
  *y = (float)(accumulate ? (double)*y + sum : sum);
}

template <bool SQUARE>
__global__ void __launch_bounds__(threads)
    chunks_kernel(const float *x, int64_t count, int64_t chunk, bool packs, double *partials,
                  float *y, bool accumulate) {
  __shared__ double shared[BK_WARP];
  const int64_t begin = (int64_t)blockIdx.x * chunk,
                end = begin + chunk < count ? begin + chunk : count;
  const double sum = bk_block_sum(thread_sum<SQUARE>(x, begin, end, packs), shared);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) put(y, sum, accumulate);
  else partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(threads)
    partials_kernel(const double *partials, int count, float *y, bool accumulate) {
  __shared__ double shared[BK_WARP];
  double sum = 0;
  for (int i = (int)threadIdx.x; i < count; i += threads) sum += partials[i];
  sum = bk_block_sum(sum, shared);
  if (threadIdx.x == 0) put(y, sum, accumulate);
}

template <bool SQUARE>
void launch(bk_stream *stream, const bk_tensor *x, const bk_tensor *y, bool accumulate,
            bk_place workspace) {
  const int64_t count = x->shape[0], chunks = chunks_of(count);
  double *partials = (double *)bk_cuda_place(workspace);
  float *out = (float *)bk_cuda_data(y);
  BK_LAUNCH((chunks_kernel<SQUARE>), (unsigned)chunks, threads, 0, bk_cuda_raw(stream),
            (const float *)bk_cuda_data(x), count, chunk_of(count), x->offset % 16 == 0, partials,
            out, accumulate);
  if (chunks > 1)
    BK_LAUNCH((partials_kernel), 1, threads, 0, bk_cuda_raw(stream), partials, (int)chunks, out,
              accumulate);
}

bk_status prepare(int64_t count, size_t *workspace_bytes) {
  *workspace_bytes = chunks_of(count) > 1 ? (size_t)chunks_of(count) * sizeof(double) : 0;
  return BK_OK;
}

/* Started as a whole warp, which the proofs of tests/cuda/prove ask for. */
__global__ void clip_kernel(float *step) {
  if (threadIdx.x > 0) return;
  const float sumsq = step[BK_STEP_SUMSQ], loss = step[BK_STEP_LOSS];
  const double norm = sqrt((double)sumsq), limit = (double)step[BK_STEP_MAX_NORM];
  step[BK_STEP_NORM] = (float)norm;
  step[BK_STEP_CLIP] = (float)(limit > 0 && norm > limit ? limit / norm : 1);
  step[BK_STEP_FINITE] = fabsf(sumsq) <= FLT_MAX && fabsf(loss) <= FLT_MAX ? 1.0f : 0.0f;
}

} // namespace

extern "C" BK_CUDA_PREPARE(sum) {
  (void)device, (void)state;
  return prepare(((const bk_sum_args *)args)->x.shape[0], workspace_bytes);
}

extern "C" BK_CUDA_LAUNCH(sum) {
  const bk_sum_args *a = (const bk_sum_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch<false>(stream, &a->x, &a->y, a->accumulate, workspace);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_PREPARE(sumsq) {
  (void)device, (void)state;
  return prepare(((const bk_sumsq_args *)args)->x.shape[0], workspace_bytes);
}

extern "C" BK_CUDA_LAUNCH(sumsq) {
  const bk_sumsq_args *a = (const bk_sumsq_args *)args;
  BK_TRY(bk_cuda_begin(stream, plan));
  launch<true>(stream, &a->x, &a->y, a->accumulate, workspace);
  return bk_cuda_end(stream);
}

extern "C" BK_CUDA_LAUNCH(clip) {
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_LAUNCH((clip_kernel), 1, BK_WARP, 0, bk_cuda_raw(stream),
            (float *)bk_cuda_data(&((const bk_clip_args *)args)->step));
  return bk_cuda_end(stream);
}
