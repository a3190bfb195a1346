/* CUDA C++ for a plain C++ compiler: included before a .cu file, it gives the language's words,
 * built-in variables and functions a meaning on the host. Test equipment; see README.md.
 *
 * A block runs alone, its threads are fibres of one operating-system thread (fibre.cpp).
 * Barriers, shuffles and votes are real meeting points with a counter each, so that what they
 * order is ordered and nothing else is: between two meeting points the threads run one after the
 * other, in an order that BK_CUDA_SEED changes. A kernel without meeting points costs one switch
 * a thread. */
#ifndef BK_CUDA_ON_HOST_SHIM_H
#define BK_CUDA_ON_HOST_SHIM_H

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static

/* ---- vector types ---- */
struct __attribute__((aligned(8))) float2 {
  float x, y;
};
struct __attribute__((aligned(16))) float4 {
  float x, y, z, w;
};
struct __attribute__((aligned(16))) double2 {
  double x, y;
};
struct __attribute__((aligned(8))) int2 {
  int x, y;
};
struct __attribute__((aligned(16))) int4 {
  int x, y, z, w;
};
struct __attribute__((aligned(8))) uint2 {
  unsigned x, y;
};
struct __attribute__((aligned(16))) uint4 {
  unsigned x, y, z, w;
};
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
static inline float2 make_float2(float x, float y) { return float2{x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return int2{x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return int4{x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return uint2{x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return uint4{x, y, z, w};
}

/* ---- the block being run (fibre.cpp) ---- */
struct bk_emu_state {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  int lane_id;           /* linear number of the thread in its block */
  unsigned char *shared; /* dynamic shared memory */
  size_t shared_bytes;
};
extern bk_emu_state bk_emu;
#define threadIdx (bk_emu.thread)
#define blockIdx (bk_emu.block)
#define blockDim (bk_emu.block_dim)
#define gridDim (bk_emu.grid_dim)
#define warpSize 32

#define BK_SHARED_DYNAMIC(type, name) type *name = reinterpret_cast<type *>(bk_emu.shared)
/* Enqueues the kernel with copies of its arguments. */
#define BK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  bk_emu_launch(#kernel, grid, block, shared_bytes, stream, bk_emu_bind(kernel, __VA_ARGS__))
/* A kernel with its arguments: `parameters` are their bytes, in a place of their own, which
 * `run` reads. */
struct bk_emu_parameter {
  unsigned char *bytes;
  size_t size;
};
struct bk_emu_call {
  const void *function;
  std::vector<bk_emu_parameter> parameters;
  std::function<void()> run;
};
void bk_emu_launch(const char *kernel, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   const bk_emu_call &call);
/* The arguments are converted to the kernel's parameter types now, as a launch does. */
template <class... P, class... A>
bk_emu_call bk_emu_bind(void (*kernel)(P...), A... arguments) {
  auto values = std::make_shared<std::tuple<P...>>(static_cast<P>(arguments)...);
  bk_emu_call call{reinterpret_cast<const void *>(kernel), {}, [kernel, values] {
                     std::apply(kernel, *values);
                   }};
  std::apply(
      [&call](P &...value) {
        (call.parameters.push_back({reinterpret_cast<unsigned char *>(&value), sizeof value}), ...);
      },
      *values);
  return call;
}

/* ---- meeting points ---- */
void bk_emu_sync_block();
/* Meets the lanes of the mask in this warp. */
void bk_emu_sync_warp(unsigned mask);
/* Lays 8 bytes out for the warp: buffer[lane] of this warp, 32 entries of 64 bytes each. */
unsigned char *bk_emu_exchange(int lane);
static inline void __syncthreads() { bk_emu_sync_block(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { bk_emu_sync_warp(mask); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

static inline int bk_emu_lane() { return bk_emu.lane_id & 31; }
/* Every lane of the mask gives `mine`; returns after all have, with all values readable until
 * bk_emu_sync_warp. */
template <class T>
static inline T bk_emu_shuffle(unsigned mask, T mine, int from) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
  T got;
  memcpy(bk_emu_exchange(bk_emu_lane()), &mine, sizeof mine);
  bk_emu_sync_warp(mask);
  memcpy(&got, bk_emu_exchange(from & 31), sizeof got);
  bk_emu_sync_warp(mask);
  return got;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T x, int from, int width = 32) {
  const int lane = bk_emu_lane();
  return bk_emu_shuffle(mask, x, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32) {
  const int lane = bk_emu_lane(), from = lane ^ bits;
  return bk_emu_shuffle(mask, x, (from & ~(width - 1)) == (lane & ~(width - 1)) ? from : lane);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32) {
  const int lane = bk_emu_lane();
  return bk_emu_shuffle(mask, x, (lane & (width - 1)) + (int)by < width ? lane + (int)by : lane);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32) {
  const int lane = bk_emu_lane();
  return bk_emu_shuffle(mask, x, (lane & (width - 1)) >= (int)by ? lane - (int)by : lane);
}
unsigned bk_emu_ballot(unsigned mask, bool set);
static inline unsigned __ballot_sync(unsigned mask, int set) {
  return bk_emu_ballot(mask, set != 0);
}
static inline int __any_sync(unsigned mask, int set) { return bk_emu_ballot(mask, set != 0) != 0; }
static inline int __all_sync(unsigned mask, int set) { return bk_emu_ballot(mask, set == 0) == 0; }
/* What every lane of the mask gave, folded: f(so far, lane, its value). */
template <class T, class R, class F>
static inline R bk_emu_fold(unsigned mask, T mine, R result, F f) {
  static_assert(sizeof(T) <= 8, "4 or 8 bytes");
  memcpy(bk_emu_exchange(bk_emu_lane()), &mine, sizeof mine);
  bk_emu_sync_warp(mask);
  for (int i = 0; i < 32; i++) {
    T other;
    if (!(mask >> i & 1)) continue;
    memcpy(&other, bk_emu_exchange(i), sizeof other);
    result = f(result, i, other);
  }
  bk_emu_sync_warp(mask);
  return result;
}
/* Whole warps only: a lane that does not exist has no value. */
template <class T>
static inline unsigned __match_any_sync(unsigned mask, T x) {
  return bk_emu_fold(mask, x, 0u, [x](unsigned r, int i, T other) {
    return memcmp(&x, &other, sizeof x) ? r : r | 1u << i;
  });
}
template <class T>
static inline T __reduce_max_sync(unsigned mask, T x) {
  return bk_emu_fold(mask, x, x, [](T r, int, T other) { return other > r ? other : r; });
}
template <class T>
static inline T __reduce_min_sync(unsigned mask, T x) {
  return bk_emu_fold(mask, x, x, [](T r, int, T other) { return other < r ? other : r; });
}
template <class T>
static inline T __reduce_add_sync(unsigned mask, T x) {
  return bk_emu_fold(mask, x, T(0), [](T r, int, T other) { return (T)(r + other); });
}
int bk_emu_count_block(bool set);
static inline int __syncthreads_or(int set) { return bk_emu_count_block(set != 0) > 0; }
static inline int __syncthreads_count(int set) { return bk_emu_count_block(set != 0); }

/* ---- memory, bits, arithmetic ---- */
template <class T>
static inline T __ldg(const T *p) {
  return *p;
}
template <class T>
static inline T __ldcs(const T *p) {
  return *p;
}
template <class T>
static inline void __stcs(T *p, T v) {
  *p = v;
}
template <class T>
static inline void __stwb(T *p, T v) {
  *p = v;
}
template <class T>
static inline T atomicAdd(T *p, T v) {
  T old = *p;
  *p = old + v;
  return old;
}
template <class T>
static inline T atomicMax(T *p, T v) {
  T old = *p;
  if (v > old) *p = v;
  return old;
}
template <class T>
static inline T atomicMin(T *p, T v) {
  T old = *p;
  if (v < old) *p = v;
  return old;
}
template <class T>
static inline T atomicOr(T *p, T v) {
  T old = *p;
  *p = old | v;
  return old;
}
template <class T>
static inline T atomicExch(T *p, T v) {
  T old = *p;
  *p = v;
  return old;
}
static inline unsigned __float_as_uint(float x) {
  unsigned u;
  memcpy(&u, &x, 4);
  return u;
}
static inline int __float_as_int(float x) {
  int u;
  memcpy(&u, &x, 4);
  return u;
}
static inline float __uint_as_float(unsigned u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
static inline float __int_as_float(int u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
static inline long long __double_as_longlong(double x) {
  long long u;
  memcpy(&u, &x, 8);
  return u;
}
static inline double __longlong_as_double(long long u) {
  double x;
  memcpy(&x, &u, 8);
  return x;
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
/* as the device does it; macros, since the C library has functions of these names */
#define __expf(x) exp2f((x)*1.442695041f)
#define __logf(x) logf(x)
static inline void sincospif(float x, float *s, float *c) {
  *s = (float)sin(M_PI * (double)x), *c = (float)cos(M_PI * (double)x);
}
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
template <class T>
static inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
static inline T max(T a, T b) {
  return a < b ? b : a;
}

#include "tests/cuda-on-host/ptx.h"

#endif
