/* The kernel table: every kernel of kernels.h, for each instruction set, the best set first. */
#include "backends/cpu/kernels.h"

/* Shapes were checked by ops/; what is left is the storage: nothing in double, other integers
 * than i32 only in copies. */
static bool accepts(const bk_device *device, bk_op op, const void *args, bk_cpu_isa isa) {
  if (bk_cpu_of(device)->isa > isa) return false;
  /* hc_fused */
  if (op == BK_OP_HC_MERGE_MIX && ((const bk_hc_merge_mix_args *)args)->maps.kind == BK_HC_HC)
    return false;
  if (op == BK_OP_HC_MERGE_MIX_BWD &&
      ((const bk_hc_merge_mix_bwd_args *)args)->maps.kind == BK_HC_HC)
    return false;
  const bk_op_desc *desc = bk_op_describe(op);
  uint32_t dtypes = BK_DT(BK_NONE) | BK_CPU_ST | (op == BK_OP_COPY ? BK_CPU_ANY_INT : BK_CPU_INT);
  for (int i = 0; i < desc->n_fields; i++) {
    bk_dtype dtype = ((const bk_tensor *)((const char *)args + desc->fields[i].offset))->dtype;
    if (!(dtypes & BK_DT(dtype))) return false;
  }
  return true;
}

static void state_free(bk_device *device, void *state) { bk_free(device->ctx, state); }

#define ACCEPTS(isa, ISA, op)                                                   \
  static bool accepts_##op##_##isa(const bk_device *device, const void *args) { \
    return accepts(device, BK_OP_##op, args, BK_CPU_##ISA);                     \
  }
#define ACCEPTS_ALL(op, dtypes, name) BK_CPU_ISAS(ACCEPTS, op)
BK_CPU_KERNELS(ACCEPTS_ALL, ACCEPTS_ALL)

#define ROW(isa, ISA, op, dtypes, name, prepare)                                             \
  {BK_OP_##op, dtypes, #name "_" #isa, accepts_##op##_##isa, prepare, bk_cpu_##name##_##isa, \
   state_free},
#define ROWS_K(op, dtypes, name) BK_CPU_ISAS(ROW, op, dtypes, name, bk_kernel_prepare_none)
#define ROWS_P(op, dtypes, name) BK_CPU_ISAS(ROW, op, dtypes, name, bk_cpu_##name##_prepare)

const bk_kernel bk_cpu_kernels[] = {
    BK_CPU_KERNELS(ROWS_K, ROWS_P) BK_KERNEL_END,
};
