/* What the kernels' files share: the launch macro, storage types, 16-byte accesses, reductions
 * over a warp and a block.
 *
 * The same files are compiled by nvcc and, for the tests, by a plain C++ compiler with
 * tests/cuda-on-host/shim.h included first (BK_CUDA_ON_HOST). So the rules are: launch through
 * BK_LAUNCH; dynamic shared memory through BK_SHARED_DYNAMIC; inline PTX only in ptx.cuh, where
 * each wrapper has an emulated body in the shim; no type punning but through the functions below
 * or memcpy. 64-bit indices wherever rows times columns may pass 2^31. Reductions have a fixed
 * order; no float atomics. */
#ifndef BK_CUDA_DEVICE_CUH
#define BK_CUDA_DEVICE_CUH

#ifndef BK_CUDA_ON_HOST
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "backends/cuda/cuda.h"

#ifndef BK_CUDA_ON_HOST
/* BK_LAUNCH((kernel<float, 4>), grid, block, shared_bytes, stream, arguments...) */
#define BK_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__)
#define BK_SHARED_DYNAMIC(type, name)                                  \
  extern __shared__ __align__(128) unsigned char bk_shared_dynamic_[]; \
  type *name = reinterpret_cast<type *>(bk_shared_dynamic_)
#endif

#define BK_DEVICE static __device__ __forceinline__
#define BK_WARP 32
#define BK_FULL_MASK 0xffffffffu

/* ---- storage types ---- */
struct bk_bf16 {
  uint16_t bits;
};

BK_DEVICE float bk_to_float(float x) { return x; }
BK_DEVICE float bk_to_float(bk_bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }

/* Round to nearest even. */
BK_DEVICE void bk_convert(float x, float &y) { y = x; }
BK_DEVICE void bk_convert(float x, bk_bf16 &y) {
#ifdef BK_CUDA_ON_HOST
  y.bits = bk_f32_to_bf16(x);
#else
  y.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#endif
}
template <class T>
BK_DEVICE T bk_from_float(float x) {
  T y;
  bk_convert(x, y);
  return y;
}

/* For sums whose bits must be those of another kernel: a b + c e may be fused in more than one
 * way, and the compiler's choice differs from kernel to kernel. On the host every operation is
 * rounded by itself. */
#ifdef BK_CUDA_ON_HOST
BK_DEVICE float bk_mul(float a, float b) { return a * b; }
BK_DEVICE float bk_fma(float a, float b, float c) { return a * b + c; }
#else
BK_DEVICE float bk_mul(float a, float b) { return __fmul_rn(a, b); }
BK_DEVICE float bk_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#endif

/* ---- 16-byte accesses ---- */
template <class T>
struct bk_pack;
template <>
struct bk_pack<float> {
  static constexpr int count = 4;
};
template <>
struct bk_pack<bk_bf16> {
  static constexpr int count = 8;
};

/* A pack as it lies in memory: half the registers where it is kept for later, and copies keep
 * every bit. */
BK_DEVICE void bk_unpack(uint4 x, float (&v)[4]) {
  v[0] = __uint_as_float(x.x), v[1] = __uint_as_float(x.y), v[2] = __uint_as_float(x.z),
  v[3] = __uint_as_float(x.w);
}
BK_DEVICE void bk_unpack(uint4 x, float (&v)[8]) {
  const uint32_t w[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[2 * i] = __uint_as_float(w[i] << 16);
    v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
  }
}
/* v[0 .. count) = p[0 .. count); p is 16-byte aligned and not written by this kernel. */
template <class T>
BK_DEVICE void bk_load_pack(const T *p, float (&v)[bk_pack<T>::count]) {
  bk_unpack(__ldg(reinterpret_cast<const uint4 *>(p)), v);
}
/* The same of memory that this kernel writes too. */
template <class T>
BK_DEVICE void bk_load_pack_own(const T *p, float (&v)[bk_pack<T>::count]) {
  bk_unpack(*reinterpret_cast<const uint4 *>(p), v);
}
BK_DEVICE void bk_store_pack(float *p, const float (&v)[4]) {
  *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
BK_DEVICE uint32_t bk_bf16x2(float low, float high) {
#ifndef BK_CUDA_ON_HOST
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high); /* one instruction */
  uint32_t bits;
  memcpy(&bits, &both, sizeof bits);
  return bits;
#else
  return (uint32_t)bk_from_float<bk_bf16>(low).bits | (uint32_t)bk_from_float<bk_bf16>(high).bits
                                                          << 16;
#endif
}
BK_DEVICE void bk_store_pack(bk_bf16 *p, const float (&v)[8]) {
  *reinterpret_cast<uint4 *>(p) = make_uint4(bk_bf16x2(v[0], v[1]), bk_bf16x2(v[2], v[3]),
                                             bk_bf16x2(v[4], v[5]), bk_bf16x2(v[6], v[7]));
}
/* bk_store_pack for global memory, always one store of 16 bytes. From an address of three or
 * more variable terms nvcc 13 makes four stores of 4 bytes of the other one; the PTX shows it. */
BK_DEVICE void bk_store_pack_global(float *p, const float (&v)[4]) {
  __stwb(reinterpret_cast<float4 *>(p), make_float4(v[0], v[1], v[2], v[3]));
}
BK_DEVICE void bk_store_pack_global(bk_bf16 *p, const float (&v)[8]) {
  __stwb(reinterpret_cast<uint4 *>(p), make_uint4(bk_bf16x2(v[0], v[1]), bk_bf16x2(v[2], v[3]),
                                                  bk_bf16x2(v[4], v[5]), bk_bf16x2(v[6], v[7])));
}

/* v[0 .. N) = p[0 .. N) of coefficients, N a multiple of 4, p 16-byte aligned and not written by
 * this kernel. */
template <int N>
BK_DEVICE void bk_load_floats(const float *p, float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    float4 x = __ldg(reinterpret_cast<const float4 *>(p + i));
    v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
  }
}

/* Host: fp32 or bf16. The kernel table looks at the leading operand only; accepts() looks at one
 * that may have another dtype. */
static inline bool bk_stored(const bk_tensor *t) {
  return t->dtype == BK_F32 || t->dtype == BK_BF16;
}
/* Host: whether rows of a tensor can be read by packs: base, outer strides and width are
 * multiples of 16 bytes. */
static inline bool bk_packs_fit(const bk_tensor *t) {
  const size_t size = bk_dtype_size(t->dtype);
  bool fit = t->offset % 16 == 0 && (size_t)t->shape[t->ndim - 1] * size % 16 == 0;
  for (int i = 0; i + 1 < t->ndim; i++) fit = fit && (size_t)t->stride[i] * size % 16 == 0;
  return fit && (t->shape[t->ndim - 1] == 1 || t->stride[t->ndim - 1] == 1);
}

/* ---- reductions: butterflies, so that every lane gets the same bits ---- */
BK_DEVICE float bk_warp_sum(float x) {
#pragma unroll
  for (int d = BK_WARP / 2; d > 0; d >>= 1) x += __shfl_xor_sync(BK_FULL_MASK, x, d);
  return x;
}
BK_DEVICE double bk_warp_sum(double x) {
#pragma unroll
  for (int d = BK_WARP / 2; d > 0; d >>= 1) x += __shfl_xor_sync(BK_FULL_MASK, x, d);
  return x;
}
/* Not-a-number wins, as it must where the result decides what is finite. */
BK_DEVICE float bk_max_nan(float a, float b) { return a > b || a != a ? a : b; }
BK_DEVICE float bk_warp_max(float x) {
#pragma unroll
  for (int d = BK_WARP / 2; d > 0; d >>= 1) x = bk_max_nan(x, __shfl_xor_sync(BK_FULL_MASK, x, d));
  return x;
}
/* Sum over the block, in every thread; blockDim.x is a multiple of 32, the block is
 * one-dimensional; all threads call it. `shared` has room for 32 values and may be used again at
 * once. */
template <class F>
BK_DEVICE F bk_block_sum(F x, F *shared) {
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP,
            warps = (int)blockDim.x / BK_WARP;
  x = bk_warp_sum(x);
  if (warps == 1) return x;
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = bk_warp_sum(lane < warps ? shared[lane] : F(0));
  __syncthreads();
  return x;
}
BK_DEVICE float bk_block_max(float x, float *shared) {
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP,
            warps = (int)blockDim.x / BK_WARP;
  x = bk_warp_max(x);
  if (warps == 1) return x;
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = bk_warp_max(lane < warps ? shared[lane] : shared[0]);
  __syncthreads();
  return x;
}

/* ---- host helpers of launch functions ---- */
static inline int64_t bk_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
/* Blocks for a grid-stride loop over `count` items, `per_block` at a time: enough to fill the
 * device, never more than needed, >= 1. */
static inline unsigned bk_grid_for(const bk_stream *stream, int64_t count, int64_t per_block,
                                   int blocks_per_sm) {
  int64_t wanted = bk_ceil_div(count, per_block),
          most = (int64_t)bk_cuda_of(stream->device)->sm_count * blocks_per_sm;
  return (unsigned)(wanted < 1 ? 1 : wanted < most ? wanted : most);
}
/* A block of `threads` threads (a power of two) as x columns times y rows, where a row has few
 * columns: x >= columns if it can. */
static inline dim3 bk_block_for(int64_t columns, unsigned threads) {
  unsigned x = 1;
  while (x < columns && x < threads) x *= 2;
  return dim3(x, threads / x);
}
/* Allows a kernel so many bytes of dynamic shared memory, whatever a launch takes of them. Every
 * kernel has 48 KB, its __shared__ variables among them: 16 KB are left to these. */
template <class K>
static inline void bk_allow_shared(K *kernel, int bytes) {
  if (bytes > (32 << 10))
    (void)cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
/* Calls `call<float>` or `call<bk_bf16>` by the storage type: BK_BY_STORAGE(t->dtype, launch_it,
 * (arguments)). */
#define BK_BY_STORAGE(dtype, function, arguments) \
  ((dtype) == BK_BF16 ? function<bk_bf16> arguments : function<float> arguments)

#endif
