/* The only inline PTX of the backend: one wrapper function for each instruction, named after it.
 * The shim of tests/cuda-on-host has the same functions with emulated bodies (ptx.h there).
 * Fragment layouts: PTX ISA, "Matrix fragments for mma.m16n8k16" and "...m16n8k8"; g = lane / 4,
 * t = lane % 4. */
#ifndef BK_CUDA_PTX_CUH
#define BK_CUDA_PTX_CUH

#include "backends/cuda/kernels/device.cuh"

#ifndef BK_CUDA_ON_HOST

BK_DEVICE uint32_t bk_ptx_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* d += a b: a 16x16 bf16 by rows, b 16x8 bf16 by columns, d 16x8 fp32. a[0] (g, 2t), a[1] (g+8,
 * 2t), a[2] (g, 2t+8), a[3] (g+8, 2t+8), two neighbouring columns each; b[0] (2t, g), b[1]
 * (2t+8, g), two neighbouring rows each; d[0] (g, 2t), d[1] (g, 2t+1), d[2] (g+8, 2t), d[3]
 * (g+8, 2t+1). */
BK_DEVICE void bk_mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* d += a b: a 16x8 bf16 by rows, b 8x8 bf16 by columns, d as above; a and b are what the first
 * halves of a (a[0], a[1]) and b are there. */
BK_DEVICE void bk_mma_m16n8k8_bf16(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

/* d += a b: a 16x8 tf32 by rows, b 8x8 tf32 by columns, d as above. a[0] (g, t), a[1] (g+8, t),
 * a[2] (g, t+4), a[3] (g+8, t+4); b[0] (t, g), b[1] (t+4, g). Operands through bk_cvt_tf32. */
BK_DEVICE void bk_mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* To the nearest of 10 mantissa bits, ties away from zero. */
BK_DEVICE uint32_t bk_cvt_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(r) : "f"(x));
  return r;
}

/* x, in a way that the compiler computes what depends on it here and again, instead of keeping
 * it in registers. */
BK_DEVICE int bk_fresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

/* 2^x to 2 units in the last place; results below the normal range are 0. */
BK_DEVICE float bk_ex2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(r) : "f"(x));
  return r;
}

/* Four 8x8 matrices of 16-bit elements from shared memory: lane 8i + j gives the address of row
 * j of matrix i (16 bytes, aligned); r[i] gets row g, columns 2t and 2t+1 of matrix i, or with
 * _trans row 2t and 2t+1 of column g. */
BK_DEVICE void bk_ldmatrix_x4(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(bk_ptx_shared(row))
               : "memory");
}
BK_DEVICE void bk_ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(bk_ptx_shared(row))
               : "memory");
}

/* Asynchronous copy of 16 bytes to shared memory, past the first cache; with fewer valid bytes
 * the rest is zero (nothing is read for valid = 0, the address must still be legal). Copies
 * since the last commit form a group; wait leaves the latest N groups. */
BK_DEVICE void bk_cp_async_16(void *shared, const void *global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(bk_ptx_shared(shared)),
               "l"(global)
               : "memory");
}
BK_DEVICE void bk_cp_async_16_zfill(void *shared, const void *global, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(bk_ptx_shared(shared)),
               "l"(global), "r"(valid)
               : "memory");
}
BK_DEVICE void bk_cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int N>
BK_DEVICE void bk_cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

/* 16 bytes of memory that no one writes meanwhile, read once: past the first cache, and the
 * second gets the whole line of 128 bytes, whose rest is wanted soon. Stays where it is between
 * other volatile wrappers. */
BK_DEVICE uint4 bk_load_line(const void *p) {
  uint4 r;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "l"(p));
  return r;
}

#endif

#endif
