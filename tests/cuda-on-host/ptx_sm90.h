/* Emulated bodies of the wrappers in backends/cuda/kernels/ptx_sm90.cuh (wgmma.cpp). Included by
 * ptx.h. */
#ifndef BK_CUDA_ON_HOST_PTX_SM90_H
#define BK_CUDA_ON_HOST_PTX_SM90_H

void bk_emu_fence_proxy_async();
void bk_emu_wgmma_fence();
void bk_emu_wgmma_commit();
void bk_emu_wgmma_wait(int groups);
void bk_emu_wgmma(float *d, int columns, uint64_t a, uint64_t b, bool a_mn, bool b_mn);

static inline void bk_fence_proxy_async() { bk_emu_fence_proxy_async(); }
static inline void bk_wgmma_fence() { bk_emu_wgmma_fence(); }
static inline void bk_wgmma_commit() { bk_emu_wgmma_commit(); }
template <int N>
static inline void bk_wgmma_wait() {
  bk_emu_wgmma_wait(N);
}
template <int N>
static inline void bk_wgmma_hold(float (&)[N]) {}
template <int A_MN, int B_MN, int N>
static inline void bk_wgmma_bf16(float (&d)[N], uint64_t a, uint64_t b) {
  static_assert(N == 64 || N == 128, "64 x 128 or 64 x 256 over 128 threads");
  bk_emu_wgmma(d, 2 * N, a, b, A_MN, B_MN);
}

#endif
