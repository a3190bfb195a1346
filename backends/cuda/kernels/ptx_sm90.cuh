/* Inline PTX that only sm_90a has: products of a warpgroup (four consecutive warps, the first a
 * multiple of 4) on operands in shared memory. In the style of ptx.cuh; emulated bodies in
 * tests/cuda-on-host/ptx_sm90.h. BK_SM90A is 1 where the code being compiled can use them;
 * elsewhere the file is empty.
 *
 * Facts, from the PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate
 * Instructions":
 * - "wgmma.mma_async": d = a b + d runs by itself; all threads of the warpgroup execute the same
 *   one with the same descriptors. The last
 *   two immediates say how an operand lies: 0 K-major, 1 M- or N-major.
 * - "Register Fragments", m64nNk16, D: warp w of the warpgroup has rows 16w .. 16w+15; with g =
 *   lane / 4, t = lane % 4 a thread has
 *   d[4j] (16w+g, 8j+2t), d[4j+1] (16w+g, 8j+2t+1), d[4j+2] (16w+g+8, 8j+2t), d[4j+3] (16w+g+8,
 *   8j+2t+1).
 * - "wgmma.fence": before the first product, and between other accesses to accumulators and a
 *   product; products of the same shape that
 *   follow each other on the same accumulators need none. "wgmma.wait_group": accumulators may
 *   not be touched before.
 * - "Async proxy": products read shared memory through it. Who wrote there by stores or cp.async
 *   executes fence.proxy.async after the
 *   writes are done and before the barrier behind which products read them. */
#ifndef BK_CUDA_PTX_SM90_CUH
#define BK_CUDA_PTX_SM90_CUH

#include "backends/cuda/kernels/ptx.cuh"

#ifdef BK_CUDA_ON_HOST
#define BK_SM90A 1
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BK_SM90A 1

BK_DEVICE void bk_fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
BK_DEVICE void bk_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
BK_DEVICE void bk_wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/* Leaves the latest N groups. */
template <int N>
BK_DEVICE void bk_wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}
/* No instruction: the compiler must have finished with the accumulators before, and starts anew
 * with them after. It does not know that products write them later than where they stand. */
template <int N>
BK_DEVICE void bk_wgmma_hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define BK_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BK_D16(i) BK_D4(i), BK_D4(i + 4), BK_D4(i + 8), BK_D4(i + 12)
#define BK_D64(i) BK_D16(i), BK_D16(i + 16), BK_D16(i + 32), BK_D16(i + 48)
#define BK_R64                                                                                     \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,%28,%29,%30,%31,"                                                                       \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%"  \
  "55,%56,%57,%58,%59,%60,%61,%62,%63"
#define BK_R128                                                                                \
  BK_R64                                                                                       \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%" \
  "86,%87,%88,%89,%90,%91,%92,%93,%94,"                                                        \
  "%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113," \
  "%114,%115,%116,%117,%118,%119,%120,%121,"                                                   \
  "%122,%123,%124,%125,%126,%127"

/* d += a b, a 64x16 and b 16xN bf16 behind descriptors (wgmma.cuh), N = 128. The predicate asks
 * for d to be added, not overwritten. */
template <int A_MN, int B_MN>
BK_DEVICE void bk_wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" BK_R64
      "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
      : BK_D64(0)
      : "l"(a), "l"(b), "r"(1), "n"(A_MN), "n"(B_MN));
}
/* N = 256. */
template <int A_MN, int B_MN>
BK_DEVICE void bk_wgmma_bf16(float (&d)[128], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" BK_R128
      "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
      : BK_D64(0), BK_D64(64)
      : "l"(a), "l"(b), "r"(1), "n"(A_MN), "n"(B_MN));
}
#undef BK_D4
#undef BK_D16
#undef BK_D64
#undef BK_R64
#undef BK_R128

#else
#define BK_SM90A 0
#endif

#endif
