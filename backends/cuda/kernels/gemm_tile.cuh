/* One tile of a product, by one block: c[m,n] = sum_k a[m,k] b[k,n] for the dense products
 * (gemm.cu) and those over experts (grouped.cu).
 *
 * An operand is described by the dimension that is dense: `inner_k` when that is k, otherwise it
 * is the outer dimension (m of a, n of b); `ld` is the other one's stride. So every
 * transposition is a layout of the tile, nothing is copied.
 *
 * Three engines with one interface (bm, bn, threads, bytes of shared memory, sums; product,
 * store):
 *  bk_mma_engine   bf16 x bf16: mma.sync m16n8k16, tiles of k 32 in four stages filled with
 *                  cp.async, fragments through ldmatrix, with
 *                  .trans where k is not the dense dimension. A warp of the large one has 64 x
 *                  64 sums: 8 KB of fragments for 64 mma, half of what shared memory of sm_80
 *                  gives in that time. Tiles are swizzled in chunks of 16 bytes: neither the
 *                  copies nor ldmatrix meet bank conflicts. PACKS: both operands can be copied
 *                  16 bytes at a time; without it elements are loaded one by one.
 *  bk_fma_engine   fp32 and mixed, true fp32 multiply-adds: 8x8 sums a thread and tiles of k 8
 *                  (or 4x4 and 16), two stages, the next tile in
 *                  registers while this one is multiplied. The small one takes layout, dtype and
 *                  alignment as run-time flags; the large one, short of registers, has a layout
 *                  and takes `whole` operands only.
 *  bk_tf32_engine  the same loads, operands rounded to TF32, mma.sync m16n8k8; where allow_tf32
 *                  is set.
 * Sums run over k in ascending order of tiles; the bits depend on the shapes alone. */
#ifndef BK_CUDA_GEMM_TILE_CUH
#define BK_CUDA_GEMM_TILE_CUH

#include "backends/cuda/kernels/device.cuh"
#include "backends/cuda/kernels/ptx.cuh"

struct bk_tile_input {
  const char *data;
  int64_t ld, batch; /* elements */
  bool inner_k, bf16;
  bool packs; /* base and strides are multiples of 16 bytes */
  bool whole; /* and there are 4 elements or none: the dense dimension is a multiple of 4 */
};
/* Rows are dense. */
struct bk_tile_output {
  char *data;
  int64_t ld, batch;
  float alpha;
  bool bf16, accumulate, packs;
};

/* ---- results ---- */

BK_DEVICE void bk_tile_load_run(const float *p, float (&v)[4]) { bk_load_pack_own(p, v); }
BK_DEVICE void bk_tile_store_run(float *p, const float (&v)[4]) { bk_store_pack(p, v); }
BK_DEVICE void bk_tile_load_run(const bk_bf16 *p, float (&v)[4]) {
  const uint2 x = *reinterpret_cast<const uint2 *>(p);
  v[0] = __uint_as_float(x.x << 16), v[1] = __uint_as_float(x.x & 0xffff0000u);
  v[2] = __uint_as_float(x.y << 16), v[3] = __uint_as_float(x.y & 0xffff0000u);
}
BK_DEVICE void bk_tile_store_run(bk_bf16 *p, const float (&v)[4]) {
  *reinterpret_cast<uint2 *>(p) = make_uint2(bk_bf16x2(v[0], v[1]), bk_bf16x2(v[2], v[3]));
}
BK_DEVICE void bk_tile_load_run(const float *p, float (&v)[8]) {
  float low[4], high[4];
  bk_load_pack_own(p, low);
  bk_load_pack_own(p + 4, high);
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = low[i], v[4 + i] = high[i];
}
BK_DEVICE void bk_tile_store_run(float *p, const float (&v)[8]) {
  bk_store_pack(p, {v[0], v[1], v[2], v[3]});
  bk_store_pack(p + 4, {v[4], v[5], v[6], v[7]});
}
BK_DEVICE void bk_tile_load_run(const bk_bf16 *p, float (&v)[8]) { bk_load_pack_own(p, v); }
BK_DEVICE void bk_tile_store_run(bk_bf16 *p, const float (&v)[8]) { bk_store_pack(p, v); }

template <class T, int COUNT>
BK_DEVICE void bk_tile_write(T *p, const float (&v)[COUNT], const bk_tile_output &c, int left) {
  if constexpr (COUNT > 1) {
    if (c.packs && left >= COUNT) {
      float old[COUNT] = {};
      if (c.accumulate) bk_tile_load_run(p, old);
#pragma unroll
      for (int i = 0; i < COUNT; i++) old[i] += c.alpha * v[i];
      bk_tile_store_run(p, old);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    if (i < left)
      p[i] = bk_from_float<T>(c.alpha * v[i] + (c.accumulate ? bk_to_float(p[i]) : 0.0f));
}

/* Writes COUNT neighbouring elements of a row; of the tile at `origin` (elements from c.data) m
 * x n are inside the matrix. */
template <int COUNT>
BK_DEVICE void bk_tile_put(const bk_tile_output &c, int64_t origin, int row, int column, int m,
                           int n, const float (&v)[COUNT]) {
  if (row >= m || column >= n) return;
  const int64_t at = origin + row * c.ld + column;
  if (c.bf16) bk_tile_write(reinterpret_cast<bk_bf16 *>(c.data) + at, v, c, n - column);
  else bk_tile_write(reinterpret_cast<float *>(c.data) + at, v, c, n - column);
}

/* v[i] of lane t and v[t] of lane i of four neighbouring lanes change places. */
BK_DEVICE void bk_quad_transpose(float (&v)[4], int t) {
#pragma unroll
  for (int bit = 1; bit < 4; bit <<= 1)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & bit) continue;
      const bool high = t & bit;
      const float got = __shfl_xor_sync(BK_FULL_MASK, high ? v[i] : v[i | bit], bit);
      if (high) v[i] = got;
      else v[i | bit] = got;
    }
}

/* Sums as mma.sync leaves them: four lanes change them so that each has eight neighbours of a
 * row. */
template <int MT, int NT>
BK_DEVICE void bk_mma_store(const bk_tile_output &c, int64_t origin, int row0, int column0, int m,
                            int n, float (&sums)[MT][NT][4]) {
  const int g = (int)threadIdx.x % BK_WARP / 4, t = (int)threadIdx.x % 4;
  static_assert(NT % 4 == 0, "four tiles of columns are changed at once");
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int j = 0; j < NT; j += 4) {
        float even[4], odd[4];
#pragma unroll
        for (int s = 0; s < 4; s++)
          even[s] = sums[i][j + s][2 * half], odd[s] = sums[i][j + s][2 * half + 1];
        bk_quad_transpose(even, t);
        bk_quad_transpose(odd, t);
        const float run[8] = {even[0], odd[0], even[1], odd[1], even[2], odd[2], even[3], odd[3]};
        bk_tile_put(c, origin, row0 + 16 * i + 8 * half + g, column0 + 8 * j + 8 * t, m, n, run);
      }
}

/* Where a tile's results go (element of c, rows and columns left), kept in shared memory while
 * they are computed: registers are short then. All threads call both; product has a barrier
 * between them. */
struct bk_tile_spot {
  int64_t origin;
  int m, n;
};
BK_DEVICE void bk_tile_note(bk_tile_spot &spot, int64_t origin, int m, int n) {
  if (threadIdx.x == 0) spot.origin = origin, spot.m = m, spot.n = n;
}
BK_DEVICE bk_tile_spot bk_tile_recall(const bk_tile_spot &spot) {
  const bk_tile_spot got = spot;
  __syncthreads();
  return got;
}

BK_DEVICE int bk_clamped(int x, int most) { return x < 0 ? 0 : x < most ? x : most; }

/* ---- bf16 ---- */

constexpr int bk_mma_depth = 32;

/* The chunk of 8 elements that begins at (o, k) of a tile of R x 32, where the dense one of them
 * is a multiple of 8. */
template <int R, bool INNER_K>
BK_DEVICE int bk_mma_chunk(int o, int k) {
  return INNER_K ? o * 4 + (k / 8 ^ (o >> 1 & 3)) : k * (R / 8) + (o / 8 ^ (k & 7));
}

BK_DEVICE void bk_gather_8(bk_bf16 *to, const bk_bf16 *from, int valid) {
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t low = 2 * i < valid ? from[2 * i].bits : 0,
                   high = 2 * i + 1 < valid ? from[2 * i + 1].bits : 0;
    w[i] = low | high << 16;
  }
  *reinterpret_cast<uint4 *>(to) = make_uint4(w[0], w[1], w[2], w[3]);
}

/* Fills tiles of one operand, one after the other in k. A thread copies chunks that are `rows`
 * rows of the tile in memory apart. */
template <int R, int THREADS, bool INNER_K, bool PACKS>
struct bk_mma_filler {
  static constexpr int per_row = INNER_K ? bk_mma_depth / 8 : R / 8, rows = THREADS / per_row;
  const bk_bf16 *from; /* this thread's first chunk of the next tile */
  int64_t ld;
  int outer; /* rows left from the thread's first one (dense k), or elements from its chunk on */

  BK_DEVICE int row() { return (int)threadIdx.x / per_row; }
  BK_DEVICE int element() { return (int)threadIdx.x % per_row * 8; }
  __device__ __forceinline__ bk_mma_filler(const bk_tile_input &x, int64_t first, int left)
      : from(reinterpret_cast<const bk_bf16 *>(x.data) + first + row() * x.ld + element()),
        ld(x.ld),
        outer(left - (INNER_K ? row() : element())) {}

  /* k elements are left from the tile's beginning; what lies past them or past the matrix
   * becomes zero. */
  __device__ __forceinline__ void fill(bk_bf16 *tile, int k) {
#pragma unroll
    for (int i = 0; i < R * 4 / THREADS; i++) {
      const int valid = INNER_K ? (i * rows < outer ? bk_clamped(k - element(), 8) : 0)
                                : (row() + i * rows < k ? bk_clamped(outer, 8) : 0);
      const int at = INNER_K ? bk_mma_chunk<R, true>(row() + i * rows, element())
                             : bk_mma_chunk<R, false>(element(), row() + i * rows);
      if constexpr (PACKS)
        bk_cp_async_16_zfill(tile + at * 8, valid ? from + i * rows * ld : from, 2 * valid);
      else bk_gather_8(tile + at * 8, from + i * rows * ld, valid);
    }
    from += INNER_K ? bk_mma_depth : bk_mma_depth * ld;
  }
};

template <int BM, int BN, int WM, int WN, bool A_INNER, bool B_INNER, bool PACKS>
struct bk_mma_engine {
  static constexpr int bm = BM, bn = BN, threads = BM / WM * (BN / WN) * BK_WARP,
                       per_sm = WM * WN > 2048 ? 2 : 4, stages = 4;
  static constexpr int stage = (BM + BN) * bk_mma_depth; /* elements */
  static constexpr int bytes = stages * stage * (int)sizeof(bk_bf16);
  struct sums {
    float d[WM / 16][WN / 8][4];
  };

  BK_DEVICE int row() { return (int)threadIdx.x / BK_WARP / (BN / WN) * WM; }
  BK_DEVICE int column() { return (int)threadIdx.x / BK_WARP % (BN / WN) * WN; }

  BK_DEVICE void load_a(uint32_t (&r)[4], const bk_bf16 *tile, int i, int step) {
    const int lane = (int)threadIdx.x % BK_WARP, o = row() + 16 * i + (lane >> 3 & 1) * 8,
              k = 16 * step + (lane >> 4) * 8;
    if constexpr (A_INNER) bk_ldmatrix_x4(r, tile + bk_mma_chunk<BM, true>(o + lane % 8, k) * 8);
    else bk_ldmatrix_x4_trans(r, tile + bk_mma_chunk<BM, false>(o, k + lane % 8) * 8);
  }
  /* Two fragments: columns 16 i and 16 i + 8. */
  BK_DEVICE void load_b(uint32_t (&r)[4], const bk_bf16 *tile, int i, int step) {
    const int lane = (int)threadIdx.x % BK_WARP, o = column() + 16 * i + (lane >> 4) * 8,
              k = 16 * step + (lane >> 3 & 1) * 8;
    if constexpr (B_INNER) bk_ldmatrix_x4(r, tile + bk_mma_chunk<BN, true>(o + lane % 8, k) * 8);
    else bk_ldmatrix_x4_trans(r, tile + bk_mma_chunk<BN, false>(o, k + lane % 8) * 8);
  }

  BK_DEVICE void multiply(const bk_bf16 *at, sums &s) {
#pragma unroll
    for (int step = 0; step < bk_mma_depth / 16; step++) {
      uint32_t b[WN / 16][4];
#pragma unroll
      for (int j = 0; j < WN / 16; j++) load_b(b[j], at + BM * bk_mma_depth, j, step);
#pragma unroll
      for (int i = 0; i < WM / 16; i++) {
        uint32_t a[4];
        load_a(a, at, i, step);
#pragma unroll
        for (int j = 0; j < WN / 16; j++) {
          const uint32_t low[2] = {b[j][0], b[j][1]}, high[2] = {b[j][2], b[j][3]};
          bk_mma_m16n8k16_bf16(s.d[i][2 * j], a, low);
          bk_mma_m16n8k16_bf16(s.d[i][2 * j + 1], a, high);
        }
      }
    }
  }

  /* s = the product of the tile whose operands begin at element a0 of a and b0 of b; m, n, k are
   * left from there. */
  BK_DEVICE void product(const bk_tile_input &a, int64_t a0, int m, const bk_tile_input &b,
                         int64_t b0, int n, int k, unsigned char *memory, sums &s) {
    bk_bf16 *shared = reinterpret_cast<bk_bf16 *>(memory);
    bk_mma_filler<BM, threads, A_INNER, PACKS> from_a(a, a0, m);
    bk_mma_filler<BN, threads, B_INNER, PACKS> from_b(b, b0, n);
    const int tiles = (k + bk_mma_depth - 1) / bk_mma_depth;
    int filled = 0;
    auto fill = [&]() {
      if (filled < tiles) {
        bk_bf16 *to = shared + filled % stages * stage;
        from_a.fill(to, k - filled * bk_mma_depth);
        from_b.fill(to + BM * bk_mma_depth, k - filled * bk_mma_depth);
      }
      filled++;
      bk_cp_async_commit();
    };
    s = {};
#pragma unroll
    for (int i = 0; i < stages - 1; i++) fill();
    for (int i = 0; i < tiles; i++) {
      bk_cp_async_wait<stages - 2>();
      /* tile i is there, and all are done with tile i - 1, whose place is filled now */
      __syncthreads();
      fill();
      multiply(shared + i % stages * stage, s);
    }
    bk_cp_async_wait<0>();
    __syncthreads();
  }

  BK_DEVICE void store(const bk_tile_output &c, const bk_tile_spot &at, sums &s) {
    bk_mma_store(c, at.origin, row(), column(), at.m, at.n, s.d);
  }
};

/* ---- fp32 and mixed ---- */

/* Where (k, o) of a tile lies. TF32: rows of a tile are R + 8 apart and a row's groups of 8 are
 * exchanged by k / 4: neither writing four k of eight rows (dense k) nor reading the fragments
 * of mma m16n8k8 meets a bank twice. Else R + 4: such writes meet each bank twice, but all
 * addresses are one base and constants, and registers are what the 8x8 sums are short of. */
template <int R, bool TF32>
BK_DEVICE int bk_fma_place(int k, int o) {
  return TF32 ? k * (R + 8) + (o ^ (k >> 2 & 3) * 8) : k * (R + 4) + o;
}

/* 4 neighbours as they lie in memory, or zeros: fp32 in four words, bf16 in two. Converted
 * later, so that nothing waits for them here. */
BK_DEVICE void bk_load_whole(uint32_t (&w)[4], const bk_tile_input &x, int64_t at, bool there) {
#pragma unroll
  for (int i = 0; i < 4; i++) w[i] = 0;
  if (!there) return;
  if (x.bf16) {
    const uint2 two =
        __ldg(reinterpret_cast<const uint2 *>(reinterpret_cast<const bk_bf16 *>(x.data) + at));
    w[0] = two.x, w[1] = two.y;
  } else {
    const uint4 four =
        __ldg(reinterpret_cast<const uint4 *>(reinterpret_cast<const float *>(x.data) + at));
    w[0] = four.x, w[1] = four.y, w[2] = four.z, w[3] = four.w;
  }
}
/* The first `valid` of them. */
BK_DEVICE void bk_load_quad(uint32_t (&w)[4], const bk_tile_input &x, int64_t at, int valid) {
  if (valid == 0 || (x.packs && valid == 4)) return bk_load_whole(w, x, at, valid > 0);
  if (x.bf16) {
    const bk_bf16 *p = reinterpret_cast<const bk_bf16 *>(x.data) + at;
    const uint32_t e0 = p[0].bits, e1 = valid > 1 ? p[1].bits : 0, e2 = valid > 2 ? p[2].bits : 0,
                   e3 = valid > 3 ? p[3].bits : 0;
    w[0] = e0 | e1 << 16, w[1] = e2 | e3 << 16;
    return;
  }
  const float *p = reinterpret_cast<const float *>(x.data) + at;
#pragma unroll
  for (int i = 0; i < 4; i++) w[i] = i < valid ? __float_as_uint(p[i]) : 0;
}

/* How an operand lies: known at compile time (then it must be `whole`), or whatever its flags
 * say. */
enum bk_layout { BK_LAYOUT_INNER, BK_LAYOUT_OUTER, BK_LAYOUT_ANY };

/* Brings tiles of one operand, one after the other in k: load to registers, put to shared
 * memory. A thread's quads are `rows` rows of the tile in memory apart. */
template <int R, int DEPTH, int THREADS, bk_layout L>
struct bk_fma_loader {
  static constexpr int count = R * (DEPTH / 4) / THREADS;
  const bk_tile_input &x;
  int64_t at; /* this thread's first quad of the next tile */
  int outer;
  uint32_t words[count][4];

  __device__ __forceinline__ bool inner_k() const {
    return L == BK_LAYOUT_ANY ? x.inner_k : L == BK_LAYOUT_INNER;
  }
  __device__ __forceinline__ int per_row() const { return inner_k() ? DEPTH / 4 : R / 4; }
  __device__ __forceinline__ int row(int i) const {
    return ((int)threadIdx.x + i * THREADS) / per_row();
  }
  __device__ __forceinline__ int element() const { return (int)threadIdx.x % per_row() * 4; }

  __device__ __forceinline__ bk_fma_loader(const bk_tile_input &input, int64_t first, int left)
      : x(input) {
    at = first + row(0) * x.ld + element();
    outer = left;
  }
  __device__ __forceinline__ void load(int k) {
#pragma unroll
    for (int i = 0; i < count; i++) {
      const int64_t from = at + i * (THREADS / per_row()) * x.ld;
      const int valid = inner_k() ? (row(i) < outer ? bk_clamped(k - element(), 4) : 0)
                                  : (row(i) < k ? bk_clamped(outer - element(), 4) : 0);
      if constexpr (L == BK_LAYOUT_ANY) bk_load_quad(words[i], x, from, valid);
      else bk_load_whole(words[i], x, from, valid > 0);
    }
    at += inner_k() ? DEPTH : DEPTH * x.ld;
  }
  template <bool TF32>
  __device__ __forceinline__ void put(float *tile) const {
#pragma unroll
    for (int i = 0; i < count; i++) {
      uint32_t v[4] = {words[i][0], words[i][1], words[i][2], words[i][3]};
      if (x.bf16)
        v[3] = v[1] & 0xffff0000u, v[2] = v[1] << 16, v[1] = v[0] & 0xffff0000u, v[0] = v[0] << 16;
      if constexpr (TF32) {
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = bk_cvt_tf32(__uint_as_float(v[j]));
      }
      if (inner_k()) {
#pragma unroll
        for (int j = 0; j < 4; j++)
          tile[bk_fma_place<R, TF32>(element() + j, row(i))] = __uint_as_float(v[j]);
      } else {
        *reinterpret_cast<uint4 *>(tile + bk_fma_place<R, TF32>(row(i), element())) =
            make_uint4(v[0], v[1], v[2], v[3]);
      }
    }
  }
};

/* E gives bm, bn, depth, threads, layouts, tf32, sums and multiply. */
template <class E>
BK_DEVICE void bk_fma_product(const bk_tile_input &a, int64_t a0, int m, const bk_tile_input &b,
                              int64_t b0, int n, int k, unsigned char *memory,
                              typename E::sums &s) {
  float *shared = reinterpret_cast<float *>(memory);
  bk_fma_loader<E::bm, E::depth, E::threads, E::layout_a> from_a(a, a0, m);
  bk_fma_loader<E::bn, E::depth, E::threads, E::layout_b> from_b(b, b0, n);
  s = {};
  from_a.load(k);
  from_b.load(k);
  for (int stage = 0; k > 0; stage = E::stage - stage) {
    from_a.template put<E::tf32>(shared + stage);
    from_b.template put<E::tf32>(shared + stage + E::a_size);
    __syncthreads(); /* the other stage is free once all have come here */
    k -= E::depth;
    if (k > 0) {
      from_a.load(k);
      from_b.load(k);
    }
    E::multiply(shared + stage, shared + stage + E::a_size, s);
  }
  __syncthreads();
}

template <int BM, int BN, int DEPTH, int PAD>
struct bk_fma_memory {
  /* elements */
  static constexpr int a_size = DEPTH * (BM + PAD), stage = a_size + DEPTH * (BN + PAD);
  static constexpr int bytes = 2 * stage * (int)sizeof(float);
};

/* T x T sums a thread, in squares of 4 x 4 that lie 64 apart; a warp is 4 x 8 threads. */
template <int T, int DEPTH, bk_layout A, bk_layout B>
struct bk_fma_engine : bk_fma_memory<16 * T, 16 * T, DEPTH, 4> {
  static constexpr int bm = 16 * T, bn = 16 * T, depth = DEPTH, threads = 256, per_sm = 2;
  static constexpr bk_layout layout_a = A, layout_b = B;
  static constexpr bool tf32 = false;
  struct sums {
    float d[T][T];
  };

  BK_DEVICE int row() { return ((int)threadIdx.x / 64 * 4 + (int)threadIdx.x % BK_WARP / 8) * 4; }
  BK_DEVICE int column() { return ((int)threadIdx.x / BK_WARP % 2 * 8 + (int)threadIdx.x % 8) * 4; }

  BK_DEVICE void multiply(const float *a, const float *b, sums &s) {
#pragma unroll 2 /* more would need registers that are not there */
    for (int l = 0; l < DEPTH; l++) {
      float x[T], y[T];
#pragma unroll
      for (int i = 0; i < T; i += 4) {
        const float4 u =
            *reinterpret_cast<const float4 *>(a + bk_fma_place<bm, false>(l, row()) + 16 * i);
        const float4 v =
            *reinterpret_cast<const float4 *>(b + bk_fma_place<bn, false>(l, column()) + 16 * i);
        x[i] = u.x, x[i + 1] = u.y, x[i + 2] = u.z, x[i + 3] = u.w;
        y[i] = v.x, y[i + 1] = v.y, y[i + 2] = v.z, y[i + 3] = v.w;
      }
#pragma unroll
      for (int i = 0; i < T; i++)
#pragma unroll
        for (int j = 0; j < T; j++) s.d[i][j] += x[i] * y[j];
    }
  }
  BK_DEVICE void product(const bk_tile_input &a, int64_t a0, int m, const bk_tile_input &b,
                         int64_t b0, int n, int k, unsigned char *memory, sums &s) {
    bk_fma_product<bk_fma_engine>(a, a0, m, b, b0, n, k, memory, s);
  }
  BK_DEVICE void store(const bk_tile_output &c, const bk_tile_spot &at, sums &s) {
#pragma unroll
    for (int i = 0; i < T; i++)
#pragma unroll
      for (int j = 0; j < T; j += 4) {
        const float run[4] = {s.d[i][j], s.d[i][j + 1], s.d[i][j + 2], s.d[i][j + 3]};
        bk_tile_put(c, at.origin, row() + i / 4 * 64 + i % 4, column() + 16 * j, at.m, at.n, run);
      }
  }
};

template <int BM, int BN, int WM, int WN, bk_layout A, bk_layout B>
struct bk_tf32_engine : bk_fma_memory<BM, BN, 16, 8> {
  static constexpr int bm = BM, bn = BN, depth = 16, threads = BM / WM * (BN / WN) * BK_WARP,
                       per_sm = 512 / threads;
  static constexpr bk_layout layout_a = A, layout_b = B;
  static constexpr bool tf32 = true;
  struct sums {
    float d[WM / 16][WN / 8][4];
  };

  BK_DEVICE int row() { return (int)threadIdx.x / BK_WARP / (BN / WN) * WM; }
  BK_DEVICE int column() { return (int)threadIdx.x / BK_WARP % (BN / WN) * WN; }

  BK_DEVICE void multiply(const float *a, const float *b, sums &s) {
    /* row() and column() are multiples of 32: the exchange of groups of 8 concerns constants
     * alone. */
    const int g = (int)threadIdx.x % BK_WARP / 4, t = (int)threadIdx.x % 4;
#pragma unroll 1
    for (int l = 0; l < depth; l += 8) {
      uint32_t y[WN / 8][2];
#pragma unroll
      for (int j = 0; j < WN / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          y[j][e] = __float_as_uint(
              b[t * (BN + 8) + column() + g + bk_fma_place<BN, true>(l + 4 * e, 8 * j)]);
#pragma unroll
      for (int i = 0; i < WM / 16; i++) {
        uint32_t x[4];
#pragma unroll
        for (int e = 0; e < 4; e++)
          x[e] = __float_as_uint(a[t * (BM + 8) + row() + g +
                                   bk_fma_place<BM, true>(l + 4 * (e >> 1), 16 * i + 8 * (e & 1))]);
#pragma unroll
        for (int j = 0; j < WN / 8; j++) bk_mma_m16n8k8_tf32(s.d[i][j], x, y[j]);
      }
    }
  }
  BK_DEVICE void product(const bk_tile_input &a, int64_t a0, int m, const bk_tile_input &b,
                         int64_t b0, int n, int k, unsigned char *memory, sums &s) {
    bk_fma_product<bk_tf32_engine>(a, a0, m, b, b0, n, k, memory, s);
  }
  BK_DEVICE void store(const bk_tile_output &c, const bk_tile_spot &at, sums &s) {
    bk_mma_store(c, at.origin, row(), column(), at.m, at.n, s.d);
  }
};

/* ---- the sizes in use ---- */
template <bool A_INNER, bool B_INNER, bool PACKS>
using bk_mma_large = bk_mma_engine<128, 128, 64, 64, A_INNER, B_INNER, PACKS>;
template <bool A_INNER, bool B_INNER, bool PACKS>
using bk_mma_small = bk_mma_engine<64, 64, 32, 32, A_INNER, B_INNER, PACKS>;
template <bk_layout A, bk_layout B>
using bk_fma_large = bk_fma_engine<8, 8, A, B>;
using bk_fma_small = bk_fma_engine<4, 16, BK_LAYOUT_ANY, BK_LAYOUT_ANY>;
template <bk_layout A, bk_layout B>
using bk_tf32_large = bk_tf32_engine<128, 128, 64, 32, A, B>;
using bk_tf32_small = bk_tf32_engine<64, 64, 32, 32, BK_LAYOUT_ANY, BK_LAYOUT_ANY>;

/* ---- host ---- */

/* t, a matrix or a batch of them, with outer dimension `outer` (m or n) and inner dimension
 * `inner` (k). */
static inline bk_tile_input bk_tile_input_of(const bk_tensor *t, int outer, int inner) {
  const int64_t size = (int64_t)bk_dtype_size(t->dtype);
  bk_tile_input x = {
      bk_cuda_data(t),     0,     0,    t->stride[inner] == 1 || t->shape[inner] <= 1,
      t->dtype == BK_BF16, false, false};
  const int other = x.inner_k ? outer : inner;
  if (t->shape[other] > 1) x.ld = t->stride[other];
  if (t->ndim == 3 && t->shape[0] > 1) x.batch = t->stride[0];
  x.packs = t->offset % 16 == 0 && x.ld * size % 16 == 0 && x.batch * size % 16 == 0;
  x.whole = x.packs && t->shape[x.inner_k ? inner : outer] % 4 == 0;
  return x;
}
static inline bk_tile_output bk_tile_output_of(const bk_tensor *t, int rows, float alpha,
                                               bool accumulate) {
  const int64_t size = (int64_t)bk_dtype_size(t->dtype);
  bk_tile_output c = {bk_cuda_data(t), 0, 0, alpha, t->dtype == BK_BF16, accumulate, false};
  if (t->shape[rows] > 1) c.ld = t->stride[rows];
  if (t->ndim == 3 && t->shape[0] > 1) c.batch = t->stride[0];
  c.packs = t->offset % 16 == 0 && c.ld * size % 16 == 0 && c.batch * size % 16 == 0;
  return c;
}
/* Sizes that the kernels count in int. */
static inline bool bk_tile_sizes_fit(const bk_tensor *t) {
  bool fit = true;
  for (int i = 0; i < t->ndim; i++) fit = fit && t->shape[i] < 0x7fffff00;
  return fit;
}

#endif
