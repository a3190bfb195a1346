/* Parts of the warpgroup product (wgmma.cu): how operands lie in shared memory, the copies that
 * lay them there, the way out.
 *
 * A tile of the result is 128 rows by BN columns; a step of the inner dimension is 64. An
 * operand of a step is stored the way its matrix lies in memory, so that nothing is transposed:
 * the products read either way. PTX ISA, "Shared Memory Matrix Layout" and below it "Strides",
 * "Canonical Layouts", "Matrix Descriptor Format":
 * - K-major (a row of the matrix runs along the inner dimension): line r, of 64 elements = 128
 *   bytes, at 128 r. Groups of 8 lines are
 *   1024 bytes apart (stride byte offset); the leading byte offset is not used. 16 elements
 *   further along: 32 bytes.
 * - MN-major (a line runs along rows or columns of the result): blocks of 64 of these by the 64
 *   of the inner dimension, 8192 bytes a block
 *   (leading byte offset), line k of a block at 128 k; groups of 8 lines 1024 bytes apart
 *   (stride byte offset). 16 lines further: 2048 bytes.
 * In both the 16-byte pieces of a line are swizzled over 128 bytes: bits 4..6 of the shared
 * memory address are its bits 4..6 xor bits 7..9. With tiles aligned to 1024 bytes that is:
 * piece i of line r lies at piece i xor r % 8. So eight lanes that copy a line, and the products
 * that read eight lines, meet all banks. */
#ifndef BK_CUDA_WGMMA_CUH
#define BK_CUDA_WGMMA_CUH

#include "backends/cuda/kernels/ptx_sm90.cuh"

namespace bk_wgmma {

constexpr int threads = 256; /* two warpgroups, 64 rows of the tile each */
constexpr int BM = 128, BK = 64, line_bytes = 128, block_bytes = BK * line_bytes;
constexpr int shared_alignment = 1024;

template <int BN>
struct shape {
  /* 256 columns: one block on a multiprocessor, four stages of 48 KB; 128 columns: two blocks,
   * three stages of 32 KB each. */
  static constexpr int stages = BN == 256 ? 4 : 3, blocks = BN == 256 ? 1 : 2;
  /* steps copied ahead: the product of the step before may still read its stage */
  static constexpr int ahead = stages - 2;
  static constexpr int a_bytes = BM * line_bytes, stage_bytes = a_bytes + BN * line_bytes;
  /* floats; a multiple of 8 that is 8 modulo 32: 8 rows by 4 pairs meet all banks */
  static constexpr int out_stride = BN + 8;
  static constexpr int shared_bytes = stages * stage_bytes + shared_alignment;
  static_assert(threads / BK_WARP * 16 * out_stride * 4 <= stages * stage_bytes,
                "the way out fits where the stages were");
};

#if BK_SM90A

/* "Matrix Descriptor Format": bits 0..13 address / 16, 16..29 leading byte offset / 16, 32..45
 * stride byte offset / 16, 49..51 base offset (0: the pattern starts at a multiple of 1024),
 * 62..63 swizzling (1: 128 bytes). Adding bytes / 16 moves the address. */
template <bool MN>
BK_DEVICE uint64_t descriptor(const unsigned char *tile) {
  constexpr uint64_t leading = MN ? block_bytes / 16 : 1, stride = 1024 / 16;
  return (uint64_t)(bk_ptx_shared(tile) >> 4 & 0x3fff) | leading << 16 | stride << 32 |
         (uint64_t)1 << 62;
}
/* 16 of the inner dimension further, in a descriptor */
template <bool MN>
constexpr int step_16 = (MN ? 16 * line_bytes : 32) / 16;

/* Copies the steps of one operand, R rows or columns of the result by 64: each thread some
 * 16-byte pieces, the same of every step. What lies outside of the matrix becomes zero. */
template <bool MN, int R>
struct loader {
  static constexpr int pieces = MN ? R / 8 : 8, lines = threads / pieces, passes = R / 32;
  /* first piece of the thread; an address to give where nothing is read */
  const bk_bf16 *at, *legal;
  int64_t stride; /* from line to line */
  /* lines and elements that there are from the thread's first piece on */
  int outer, inner;
  int shared; /* its place in the tile */

  __device__ __forceinline__ void start(const bk_bf16 *tile, int64_t stride_, int mn, int depth) {
    const int line = (int)threadIdx.x / pieces, piece = (int)threadIdx.x % pieces;
    legal = tile;
    stride = stride_;
    at = tile + line * stride + piece * 8;
    outer = (MN ? depth : mn) - line;
    inner = (MN ? mn : depth) - piece * 8;
    shared = (MN ? piece / 8 * block_bytes : 0) + line * line_bytes + ((piece ^ line) % 8) * 16;
  }
  /* Copies one step and goes on to the next. */
  __device__ __forceinline__ void copy(unsigned char *tile) {
    const int there = inner >= 8 ? 16 : inner > 0 ? 2 * inner : 0;
#pragma unroll
    for (int i = 0; i < passes; i++) {
      const int valid = outer > i * lines ? there : 0;
      bk_cp_async_16_zfill(tile + shared + i * lines * line_bytes,
                           valid ? at + i * lines * stride : legal, valid);
    }
    at += MN ? BK * stride : BK;
    if (MN) outer -= BK;
    else inner -= BK;
  }
};

/* c[0 .. rows) [0 .. cols) = alpha d (+ c): each warp lays its 16 rows into shared memory as
 * fp32 (nobody may need the stages any more), then writes them out along rows, 16 bytes a lane,
 * rounded once. */
template <class T, int BN>
BK_DEVICE void store_tile(const float (&d)[BN / 2], unsigned char *shared, T *c, int64_t stride,
                          int rows, int cols, float alpha, bool accumulate) {
  constexpr int width = shape<BN>::out_stride, n = bk_pack<T>::count, packs = BN / n;
  const int warp = (int)threadIdx.x / BK_WARP, lane = (int)threadIdx.x % BK_WARP;
  float *mine = reinterpret_cast<float *>(shared) + warp * 16 * width;
#pragma unroll
  for (int j = 0; j < BN / 8; j++) {
    float *to = mine + lane / 4 * width + 8 * j + 2 * (lane % 4);
    *reinterpret_cast<float2 *>(to) = make_float2(d[4 * j], d[4 * j + 1]);
    *reinterpret_cast<float2 *>(to + 8 * width) = make_float2(d[4 * j + 2], d[4 * j + 3]);
  }
  __syncwarp();
#pragma unroll 2
  for (int i = lane; i < 16 * packs; i += BK_WARP) {
    const int row = i / packs, column = i % packs * n, r = 16 * warp + row;
    if (r >= rows || column >= cols) continue;
    T *to = c + r * stride + column;
    const float *from = mine + row * width + column;
    float v[n], old[n];
    if (column + n <= cols) {
      if (accumulate) bk_load_pack_own(to, old);
#pragma unroll
      for (int k = 0; k < n; k++) v[k] = accumulate ? alpha * from[k] + old[k] : alpha * from[k];
      bk_store_pack(to, v);
    } else {
      for (int k = 0; k < cols - column; k++)
        to[k] = bk_from_float<T>(alpha * from[k] + (accumulate ? bk_to_float(to[k]) : 0));
    }
  }
}

#endif

} // namespace bk_wgmma

#endif
