/* What the kernels of the residual connections share: views of operands, accesses of V
 * neighbouring elements, choice of templates by the number of streams, sums of many values at
 * once over a block. */
#ifndef BK_CUDA_HC_CUH
#define BK_CUDA_HC_CUH

#include "backends/cuda/kernels/device.cuh"

/* ---- operands ---- */
template <class T>
struct bk_rows { /* [N, width] */
  T *at;
  int64_t stride;
  __host__ __device__ T *row(int64_t i) const { return at + i * stride; }
};
template <class T>
struct bk_wide { /* [N, n, width] */
  T *at;
  int64_t token, stream;
  __host__ __device__ T *row(int64_t i, int m) const { return at + i * token + m * stream; }
};
template <class T>
static inline bk_rows<T> bk_rows_of(const bk_tensor *t) {
  return {(T *)bk_cuda_data(t), t->stride[0]};
}
template <class T>
static inline bk_wide<T> bk_wide_of(const bk_tensor *t) {
  return {(T *)bk_cuda_data(t), t->stride[0], t->stride[1]};
}

/* ---- V neighbouring elements as they are stored: 16, 8, 4 or 2 bytes, aligned to their size
 * ---- */
template <class T, int V>
struct bk_raw {
  uint32_t w[(sizeof(T) * V + 3) / 4];
};
template <class T, int V>
BK_DEVICE bk_raw<T, V> bk_raw_load(const T *p) {
  bk_raw<T, V> r;
  if constexpr (sizeof(T) * V == 16) {
    const uint4 x = *reinterpret_cast<const uint4 *>(p);
    r.w[0] = x.x, r.w[1] = x.y, r.w[2] = x.z, r.w[3] = x.w;
  } else if constexpr (sizeof(T) * V == 8) {
    const uint2 x = *reinterpret_cast<const uint2 *>(p);
    r.w[0] = x.x, r.w[1] = x.y;
  } else if constexpr (sizeof(T) * V == 4) {
    r.w[0] = *reinterpret_cast<const uint32_t *>(p);
  } else {
    r.w[0] = p->bits;
  }
  return r;
}
/* To global memory: always one store, as bk_store_pack_global. */
template <class T, int V>
BK_DEVICE void bk_raw_store(T *p, const bk_raw<T, V> &r) {
  if constexpr (sizeof(T) * V == 16)
    __stwb(reinterpret_cast<uint4 *>(p), make_uint4(r.w[0], r.w[1], r.w[2], r.w[3]));
  else if constexpr (sizeof(T) * V == 8) *reinterpret_cast<uint2 *>(p) = make_uint2(r.w[0], r.w[1]);
  else if constexpr (sizeof(T) * V == 4) *reinterpret_cast<uint32_t *>(p) = r.w[0];
  else p->bits = (uint16_t)r.w[0];
}
template <class T, int V>
BK_DEVICE float bk_raw_get(const bk_raw<T, V> &r, int v) {
  if constexpr (sizeof(T) == 4) return __uint_as_float(r.w[v]);
  else return __uint_as_float(v % 2 ? r.w[v / 2] & 0xffff0000u : r.w[v / 2] << 16);
}
template <class T, int V>
BK_DEVICE bk_raw<T, V> bk_raw_of(const float (&x)[V]) {
  bk_raw<T, V> r;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int v = 0; v < V; v++) r.w[v] = __float_as_uint(x[v]);
  } else if constexpr (V == 1) {
    r.w[0] = bk_bf16x2(x[0], 0.f);
  } else {
#pragma unroll
    for (int v = 0; v < V; v += 2) r.w[v / 2] = bk_bf16x2(x[v], x[v + 1]);
  }
  return r;
}

/* ---- sums ---- */
template <int D>
BK_DEVICE void bk_warp_sum_halves(float (&a)[BK_WARP], int lane) {
  const bool upper = lane & D;
#pragma unroll
  for (int i = 0; i < D; i++) {
    const float keep = upper ? a[i + D] : a[i], send = upper ? a[i] : a[i + D];
    a[i] = keep + __shfl_xor_sync(BK_FULL_MASK, send, D);
  }
  if constexpr (D > 1) bk_warp_sum_halves<D / 2>(a, lane);
}
/* a[l] summed over the warp, in lane l: 31 shuffles, where 32 butterflies take 160. */
BK_DEVICE float bk_warp_sum_each(float (&a)[BK_WARP]) {
  bk_warp_sum_halves<BK_WARP / 2>(a, (int)threadIdx.x % BK_WARP);
  return a[0];
}

#define BK_HC_MAX_WARPS 16
/* Room for the sums of COUNT values a thread over a block of at most BK_HC_MAX_WARPS warps. */
template <int COUNT>
struct bk_sums_room {
  static constexpr int rounds = (COUNT + BK_WARP - 1) / BK_WARP;
  float at[BK_HC_MAX_WARPS][rounds * BK_WARP];
};
/* Sums a[i] over the block; thread i then holds sum i as at[0][i] (after the barrier that this
 * ends with, any thread may read it). The room is free for the next use after one more barrier. */
template <int COUNT>
BK_DEVICE void bk_block_sums(const float (&a)[COUNT], bk_sums_room<COUNT> *room) {
  const int lane = (int)threadIdx.x % BK_WARP, warp = (int)threadIdx.x / BK_WARP,
            warps = (int)blockDim.x / BK_WARP;
#pragma unroll
  for (int g = 0; g < bk_sums_room<COUNT>::rounds; g++) {
    float part[BK_WARP];
#pragma unroll
    for (int i = 0; i < BK_WARP; i++)
      part[i] = g * BK_WARP + i < COUNT ? a[g * BK_WARP + i < COUNT ? g * BK_WARP + i : 0] : 0.f;
    room->at[warp][g * BK_WARP + lane] = bk_warp_sum_each(part);
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < COUNT; i += (int)blockDim.x) {
    float sum = room->at[0][i];
    for (int w = 1; w < warps; w++) sum += room->at[w][i];
    room->at[0][i] = sum;
  }
  __syncthreads();
}

/* ---- maps: a lane has row m of an n by n block, in an array of L >= n ---- */
/* packed: n is 4 and rows are 16-byte aligned; used where N says n = 4 at compile time. Entries
 * from n on stay as they are. */
template <int L, int N>
BK_DEVICE void bk_lane_load(const float *p, int n, bool packed, float (&v)[L]) {
  if constexpr (N == 4 && L == 4) {
    if (packed) {
      bk_load_pack_own(p, v);
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < L; k++)
    if (k < n) v[k] = p[k];
}
template <int L, int N>
BK_DEVICE void bk_lane_store(float *p, int n, bool packed, const float (&v)[L]) {
  if constexpr (N == 4 && L == 4) {
    if (packed) {
      bk_store_pack(p, v);
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < L; k++)
    if (k < n) p[k] = v[k];
}
/* Host: whether the rows of [N,4,4] or [N,...] are 16-byte aligned. */
static inline bool bk_lane_rows_fit(const bk_tensor *t) {
  return t->offset % 16 == 0 && t->stride[0] * (int64_t)bk_dtype_size(t->dtype) % 16 == 0;
}

/* ---- host: choosing templates and sizes ---- */
template <int I>
struct bk_int {
  static constexpr int value = I;
};
/* Kernels on streams are made for N = 4 streams, and for at most 4 or 8 of them: N = -4, N = -8,
 * the number at run time. */
#define BK_HC_STREAMS(N) ((N) > 0 ? (N) : -(N)) /* size of arrays */
/* f(bk_int<N>(), bk_int<packed>()) */
template <class F>
static inline void bk_hc_by_n(bool packed, int n, F f) {
  if (!packed) f(bk_int<-BK_HC_MAX_N>(), bk_int<0>());
  else if (n == 4) f(bk_int<4>(), bk_int<1>());
  else if (n < 4) f(bk_int<-4>(), bk_int<1>());
  else f(bk_int<-BK_HC_MAX_N>(), bk_int<1>());
}
/* Elements of an access: 16 bytes, 8 where more than four streams are in registers, or one
 * element. */
template <class T, int N, int PACKED>
constexpr int bk_hc_pack = !PACKED                 ? 1
                           : BK_HC_STREAMS(N) <= 4 ? bk_pack<T>::count
                                                   : bk_pack<T>::count / 2;
/* Threads of a block that walks a row of `packs` accesses: whole warps, at most `most`, the last
 * round as full as can be. */
static inline unsigned bk_hc_threads(int64_t packs, int most) {
  const int64_t rounds = bk_ceil_div(packs, most),
                each = bk_ceil_div(packs, rounds < 1 ? 1 : rounds);
  return (unsigned)(bk_ceil_div(each < 1 ? 1 : each, BK_WARP) * BK_WARP);
}

/* ---- parameter gradients: partial sums of chunks of tokens in the workspace, then one sum in
 * order. Chunks follow from the number of tokens alone, so that bits do not depend on the
 * device. ---- */
#define BK_HC_MAX_CHUNKS 1024
/* Tokens of a chunk, a multiple of `unit`. */
static inline int64_t bk_hc_chunk(int64_t tokens, int64_t unit, int64_t most_chunks) {
  return bk_ceil_div(bk_ceil_div(tokens, unit), most_chunks) * unit;
}

#endif
