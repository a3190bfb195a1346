/* CROSS_ENTROPY: a block a row, whatever the vocabulary. First pass: maximum and sum of
 * exponentials together, four packs of 16 bytes in flight a thread; second pass: the gradient. A
 * long row is more than what the second cache keeps of it while all multiprocessors are at
 * theirs (132 x 517 KB at 129,280 logits in fp32, 50 MB): its beginning is kept in shared memory
 * (`stash`), and the second pass goes from the end, where the cache is freshest, to the
 * beginning. Logits in fp32 may have a gradient in bf16: the form in which the head's products
 * take it. Rows of any alignment: single elements up to the first 16-byte boundary and at the
 * end. Floor: logits once, dlogits once. */
#include <float.h>

#include "backends/cuda/kernels/device.cuh"
#include "backends/cuda/kernels/loss.h"

namespace {

constexpr int threads_most = 1024, batch = 4, long_row = 128 << 10; /* bytes */

/* The sum of exp(x - max). The start is finite, so that a thread or a row of -inf alone makes no
 * NaN that is not one. */
struct running {
  float max, sum;
};

template <int N>
BK_DEVICE void add(running &r, const float (&v)[N]) {
  float most = v[0], sum = 0;
#pragma unroll
  for (int i = 1; i < N; i++) most = fmaxf(most, v[i]);
  if (most > r.max) {
    r.sum *= __expf(r.max - most);
    r.max = most;
  }
#pragma unroll
  for (int i = 0; i < N; i++) sum += __expf(v[i] - r.max);
  r.sum += sum;
}

/* Elements before the first 16-byte boundary. */
template <class T>
BK_DEVICE int head_of(const T *x, int columns) {
  const int head = (int)((16 - reinterpret_cast<uintptr_t>(x) % 16) % 16 / sizeof(T));
  return head < columns ? head : columns;
}

/* The row's first packs, each thread's own; size: how many there is room for. */
struct stash {
  uint4 *at;
  int size;
};

template <class T>
BK_DEVICE running row_pass(const T *x, int columns, stash kept) {
  constexpr int n = bk_pack<T>::count;
  const int tid = (int)threadIdx.x, threads = (int)blockDim.x, head = head_of(x, columns),
            packs = (columns - head) / n;
  const uint4 *p = reinterpret_cast<const uint4 *>(x + head);
  running r = {-FLT_MAX, 0};
  int i = tid;
  for (; i + threads * (batch - 1) < packs; i += threads * batch) {
    uint4 raw[batch];
#pragma unroll
    for (int j = 0; j < batch; j++) raw[j] = p[i + j * threads];
#pragma unroll
    for (int j = 0; j < batch; j++) {
      float v[n];
      if (i + j * threads < kept.size) kept.at[i + j * threads] = raw[j];
      bk_unpack(raw[j], v);
      add(r, v);
    }
  }
  for (; i < packs; i += threads) {
    const uint4 raw = p[i];
    float v[n];
    if (i < kept.size) kept.at[i] = raw;
    bk_unpack(raw, v);
    add(r, v);
  }
  for (i = tid; i < head; i += threads) add(r, {bk_to_float(x[i])});
  for (i = head + packs * n + tid; i < columns; i += threads) add(r, {bk_to_float(x[i])});
  return r;
}

/* v as n neighbouring elements of d: 16 bytes of fp32, or 16 or 8 of bf16. */
BK_DEVICE void store_gradient(float *d, const float (&v)[4]) { bk_store_pack_global(d, v); }
BK_DEVICE void store_gradient(bk_bf16 *d, const float (&v)[8]) { bk_store_pack_global(d, v); }
BK_DEVICE void store_gradient(bk_bf16 *d, const float (&v)[4]) {
  __stwb(reinterpret_cast<uint2 *>(d), make_uint2(bk_bf16x2(v[0], v[1]), bk_bf16x2(v[2], v[3])));
}
BK_DEVICE void store_gradient(float *d, const float (&v)[8]) {
  bk_store_pack_global(d, {v[0], v[1], v[2], v[3]});
  bk_store_pack_global(d + 4, {v[4], v[5], v[6], v[7]});
}

/* d = exp(x - max) factor; d may be x. */
template <class T, class D>
BK_DEVICE void gradient_pass(const T *x, D *d, int columns, stash kept, float max, float factor) {
  constexpr int n = bk_pack<T>::count, bytes = n * (int)sizeof(D) < 16 ? 8 : 16;
  const int tid = (int)threadIdx.x, threads = (int)blockDim.x, lead = head_of(x, columns);
  /* d's boundary comes with x's */
  const bool together = reinterpret_cast<uintptr_t>(d + lead) % bytes == 0;
  const int head = together ? lead : columns, packs = (columns - head) / n, round = threads * batch;
  for (int i = tid + (packs - 1) / round * round; i >= 0; i -= round) {
    uint4 raw[batch];
#pragma unroll
    for (int k = 0; k < batch; k++)
      if (i + k * threads < packs)
        raw[k] = i + k * threads < kept.size
                     ? kept.at[i + k * threads]
                     : reinterpret_cast<const uint4 *>(x + head)[i + k * threads];
#pragma unroll
    for (int k = 0; k < batch; k++) {
      if (i + k * threads >= packs) break;
      float v[n];
      bk_unpack(raw[k], v);
#pragma unroll
      for (int j = 0; j < n; j++) v[j] = __expf(v[j] - max) * factor;
      store_gradient(d + head + (i + k * threads) * n, v);
    }
  }
  for (int i = tid; i < head; i += threads)
    d[i] = bk_from_float<D>(__expf(bk_to_float(x[i]) - max) * factor);
  for (int i = head + packs * n + tid; i < columns; i += threads)
    d[i] = bk_from_float<D>(__expf(bk_to_float(x[i]) - max) * factor);
}

template <class T, class D>
__global__ void __launch_bounds__(threads_most)
    cross_entropy_kernel(const T *logits, int64_t logits_stride, const int32_t *targets,
                         const float *step, float *loss, D *dlogits, int64_t dlogits_stride,
                         int columns, int stash_size) {
  __shared__ float shared[BK_WARP];
  BK_SHARED_DYNAMIC(uint4, room);
  const stash kept = {room, stash_size};
  const int64_t row = blockIdx.x;
  const T *x = logits + row * logits_stride;
  D *d = dlogits ? dlogits + row * dlogits_stride : nullptr;
  const int target = targets[row];
  if (target < 0) {
    for (int i = (int)threadIdx.x; d && i < columns; i += (int)blockDim.x)
      d[i] = bk_from_float<D>(0);
    if (threadIdx.x == 0) loss[row] = 0;
    return;
  }
  const float at_target = bk_to_float(x[target]);
  running r = row_pass(x, columns, kept);
  const float max = bk_block_max(r.max, shared),
              sum = bk_block_sum(r.sum * __expf(r.max - max), shared);
  if (threadIdx.x == 0) loss[row] = logf(sum) + (max - at_target);
  if (!d) return;
  const float scale = step[BK_STEP_LOSS_SCALE];
  gradient_pass(x, d, columns, kept, max, scale / sum);
  __syncthreads();
  if (threadIdx.x == 0) d[target] = bk_from_float<D>((expf(at_target - max) - sum) * (scale / sum));
}

/* About four packs a thread, from one warp up. */
unsigned threads_for(int64_t columns, int pack) {
  const int64_t wanted = bk_ceil_div(bk_ceil_div(columns, pack * batch), BK_WARP) * BK_WARP;
  return (unsigned)(wanted < threads_most ? wanted : threads_most);
}

/* All that a block can have, beside what the sums need. */
int most_room(const bk_stream *stream) { return bk_cuda_of(stream->device)->smem_optin - 1024; }

/* Shared memory for the beginning of a long row. */
int stash_bytes(const bk_stream *stream, int64_t row_bytes) {
  const int most = most_room(stream);
  return row_bytes < long_row ? 0 : (int)(row_bytes < most ? row_bytes : most) / 16 * 16;
}

template <class T, class D>
void start(bk_stream *stream, const bk_cross_entropy_args *a) {
  const int64_t columns = a->logits.shape[1], rows = a->logits.shape[0];
  D *dlogits = bk_tensor_present(&a->dlogits) ? (D *)bk_cuda_data(&a->dlogits) : nullptr;
  const int room = dlogits ? stash_bytes(stream, columns * (int64_t)sizeof(T)) : 0;
  if (rows == 0) return;
  /* one limit, whatever else is captured */
  if (room) bk_allow_shared(&cross_entropy_kernel<T, D>, most_room(stream));
  BK_LAUNCH((cross_entropy_kernel<T, D>), (unsigned)rows, threads_for(columns, bk_pack<T>::count),
            room, bk_cuda_raw(stream), (const T *)bk_cuda_data(&a->logits), a->logits.stride[0],
            (const int32_t *)bk_cuda_data(&a->targets), (const float *)bk_cuda_data(&a->step),
            (float *)bk_cuda_data(&a->loss), dlogits, a->dlogits.stride[0], (int)columns,
            room / 16);
}

template <class T>
void launch(bk_stream *stream, const bk_cross_entropy_args *a) {
  if (a->dlogits.dtype == BK_BF16) start<T, bk_bf16>(stream, a);
  else start<T, float>(stream, a);
}

} // namespace

extern "C" BK_CUDA_ACCEPTS(cross_entropy) {
  const bk_tensor *dlogits = &((const bk_cross_entropy_args *)args)->dlogits;
  (void)device;
  return !bk_tensor_present(dlogits) || bk_stored(dlogits);
}

extern "C" BK_CUDA_LAUNCH(cross_entropy) {
  const bk_cross_entropy_args *a = (const bk_cross_entropy_args *)args;
  (void)workspace;
  BK_TRY(bk_cuda_begin(stream, plan));
  BK_BY_STORAGE(a->logits.dtype, launch, (stream, a));
  return bk_cuda_end(stream);
}
