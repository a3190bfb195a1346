/* Emulated bodies of the wrappers in backends/cuda/kernels/ptx.cuh, with the fragment layouts of
 * the PTX ISA. Asynchronous copies really happen late: at the wait that covers them, so that a
 * missing wait shows. Included by shim.h. */
#ifndef BK_CUDA_ON_HOST_PTX_H
#define BK_CUDA_ON_HOST_PTX_H

static inline float bk_emu_bf16(uint32_t word, int high) {
  return __uint_as_float(high ? word & 0xffff0000u : word << 16);
}

struct bk_emu_fragments {
  uint32_t a[4], b[2];
};

static inline void bk_mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  const int lane = bk_emu_lane(), g = lane / 4, t = lane % 4;
  bk_emu_fragments mine;
  memcpy(mine.a, a, sizeof mine.a);
  memcpy(mine.b, b, sizeof mine.b);
  memcpy(bk_emu_exchange(lane), &mine, sizeof mine);
  bk_emu_sync_warp(0xffffffffu);
  for (int half = 0; half < 2; half++) { /* rows g, g + 8 */
    float row[16];
    for (int s = 0; s < 4; s++) {
      bk_emu_fragments f;
      memcpy(&f, bk_emu_exchange(4 * g + s), sizeof f);
      for (int e = 0; e < 2; e++)
        row[2 * s + e] = bk_emu_bf16(f.a[half], e),
                    row[2 * s + 8 + e] = bk_emu_bf16(f.a[2 + half], e);
    }
    for (int c = 0; c < 2; c++) {
      float sum = d[2 * half + c];
      for (int s = 0; s < 4; s++) {
        bk_emu_fragments f;
        memcpy(&f, bk_emu_exchange(4 * (2 * t + c) + s), sizeof f);
        for (int e = 0; e < 2; e++)
          sum +=
              row[2 * s + e] * bk_emu_bf16(f.b[0], e) + row[2 * s + 8 + e] * bk_emu_bf16(f.b[1], e);
      }
      d[2 * half + c] = sum;
    }
  }
  bk_emu_sync_warp(0xffffffffu);
}

/* The first half of the depth; the second is zero times zero, which adds nothing. */
static inline void bk_mma_m16n8k8_bf16(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  const uint32_t left[4] = {a[0], a[1], 0, 0}, right[2] = {b, 0};
  bk_mma_m16n8k16_bf16(d, left, right);
}

static inline void bk_mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  const int lane = bk_emu_lane(), g = lane / 4, t = lane % 4;
  bk_emu_fragments mine;
  memcpy(mine.a, a, sizeof mine.a);
  memcpy(mine.b, b, sizeof mine.b);
  memcpy(bk_emu_exchange(lane), &mine, sizeof mine);
  bk_emu_sync_warp(0xffffffffu);
  for (int half = 0; half < 2; half++)
    for (int c = 0; c < 2; c++) {
      float sum = d[2 * half + c];
      for (int s = 0; s < 4; s++) {
        bk_emu_fragments x, y;
        memcpy(&x, bk_emu_exchange(4 * g + s), sizeof x);
        memcpy(&y, bk_emu_exchange(4 * (2 * t + c) + s), sizeof y);
        sum += __uint_as_float(x.a[half]) * __uint_as_float(y.b[0]) +
               __uint_as_float(x.a[2 + half]) * __uint_as_float(y.b[1]);
      }
      d[2 * half + c] = sum;
    }
  bk_emu_sync_warp(0xffffffffu);
}

static inline uint32_t bk_cvt_tf32(float x) {
  uint32_t u = __float_as_uint(x);
  return (u & 0x7f800000u) == 0x7f800000u ? u & 0xffffe000u : (u + 0x1000u) & 0xffffe000u;
}

static inline int bk_fresh(int x) { return x; }
static inline float bk_ex2(float x) { return exp2f(x); }

/* Matrix i of count: row addresses from lanes 8i .. 8i+7. */
static inline void bk_emu_ldmatrix(uint32_t *r, const void *row, int count, bool trans) {
  const int lane = bk_emu_lane(), g = lane / 4, t = lane % 4;
  memcpy(bk_emu_exchange(lane), &row, sizeof row);
  bk_emu_sync_warp(0xffffffffu);
  for (int i = 0; i < count; i++)
    for (int e = 0; e < 2; e++) {
      const unsigned char *from;
      uint16_t half;
      memcpy(&from, bk_emu_exchange(8 * i + (trans ? 2 * t + e : g)), sizeof from);
      if (reinterpret_cast<uintptr_t>(from) % 16) abort(); /* ldmatrix needs 16-byte rows */
      memcpy(&half, from + 2 * (trans ? g : 2 * t + e), sizeof half);
      r[i] = e ? r[i] | (uint32_t)half << 16 : half;
    }
  bk_emu_sync_warp(0xffffffffu);
}
static inline void bk_ldmatrix_x4(uint32_t (&r)[4], const void *row) {
  bk_emu_ldmatrix(r, row, 4, false);
}
static inline void bk_ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
  bk_emu_ldmatrix(r, row, 4, true);
}

void bk_emu_async_copy(void *shared, const void *global, int bytes, int valid);
void bk_emu_async_commit();
void bk_emu_async_wait(int groups);
static inline void bk_cp_async_16(void *shared, const void *global) {
  bk_emu_async_copy(shared, global, 16, 16);
}
static inline void bk_cp_async_16_zfill(void *shared, const void *global, int valid) {
  bk_emu_async_copy(shared, global, 16, valid);
}
static inline void bk_cp_async_commit() { bk_emu_async_commit(); }
template <int N>
static inline void bk_cp_async_wait() {
  bk_emu_async_wait(N);
}

static inline uint4 bk_load_line(const void *p) { return *reinterpret_cast<const uint4 *>(p); }

/* An address in dynamic shared memory as instructions and descriptors know it. */
uint32_t bk_emu_shared_address(const void *p);
static inline uint32_t bk_ptx_shared(const void *p) { return bk_emu_shared_address(p); }

#include "tests/cuda-on-host/ptx_sm90.h"

#endif
