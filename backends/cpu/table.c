/* The kernel table: for each instruction set, best first, every kernel of kernels.h. */
#include "backends/cpu/kernels.h"

/* Shapes were checked by ops/; what is left is the storage: nothing in double, other integers than i32 only in copies. */
static bool accepts(const bk_device *device, bk_op op, const void *args, bk_cpu_isa isa) {
  if (bk_cpu_of(device)->isa < isa) return false;
  const bk_op_desc *desc = bk_op_describe(op);
  uint32_t dtypes = BK_DT(BK_NONE) | BK_CPU_ST | (op == BK_OP_COPY ? BK_CPU_ANY_INT : BK_CPU_INT);
  for (int i = 0; i < desc->n_fields; i++) {
    bk_dtype dtype = ((const bk_tensor *)((const char *)args + desc->fields[i].offset))->dtype;
    if (!(dtypes & BK_DT(dtype))) return false;
  }
  return true;
}

static void state_free(bk_device *device, void *state) { bk_free(device->ctx, state); }

#define ACCEPTS(op, isa, level)                                                      \
  static bool accepts_##op##_##isa(const bk_device *device, const void *args) {      \
    return accepts(device, BK_OP_##op, args, level);                                 \
  }
#define ROW(op, dtypes, name, isa, prepare) \
  {BK_OP_##op, dtypes, #name "_" #isa, accepts_##op##_##isa, prepare, bk_cpu_##name##_##isa, state_free},

#define ACCEPTS_PORTABLE(op, dtypes, name) ACCEPTS(op, portable, BK_CPU_PORTABLE)
#define ROW_K_PORTABLE(op, dtypes, name) ROW(op, dtypes, name, portable, bk_kernel_prepare_none)
#define ROW_P_PORTABLE(op, dtypes, name) ROW(op, dtypes, name, portable, bk_cpu_##name##_prepare)
BK_CPU_KERNELS(ACCEPTS_PORTABLE, ACCEPTS_PORTABLE)

#if BK_HAVE_AVX2
#define ACCEPTS_AVX2(op, dtypes, name) ACCEPTS(op, avx2, BK_CPU_AVX2)
#define ROW_K_AVX2(op, dtypes, name) ROW(op, dtypes, name, avx2, bk_kernel_prepare_none)
#define ROW_P_AVX2(op, dtypes, name) ROW(op, dtypes, name, avx2, bk_cpu_##name##_prepare)
BK_CPU_KERNELS(ACCEPTS_AVX2, ACCEPTS_AVX2)
#endif

const bk_kernel bk_cpu_kernels[] = {
#if BK_HAVE_AVX2
  BK_CPU_KERNELS(ROW_K_AVX2, ROW_P_AVX2)
#endif
  BK_CPU_KERNELS(ROW_K_PORTABLE, ROW_P_PORTABLE)
  BK_KERNEL_END,
};
