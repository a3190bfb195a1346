/* The kernel table: every kernel of kernels.h, for each instruction set, the best set first. */
#include "backends/cpu/kernels.h"

/* Shapes were checked by ops/; what is left is the instruction set (the row's variant) and the
 * storage: nothing in double, other integers than i32 only in copies. */
static BK_ACCEPTS(accepts) {
  if (bk_cpu_of(device)->isa > (bk_cpu_isa)self->variant) return false;
  const bk_op_desc *desc = bk_op_describe(self->op);
  uint32_t ints = self->op == BK_OP_COPY ? BK_CPU_ANY_INT : BK_CPU_INT;
  uint32_t dtypes = BK_DT(BK_NONE) | BK_CPU_ST | ints;
  for (int i = 0; i < desc->n_fields; i++) {
    bk_dtype dtype = ((const bk_tensor *)((const char *)args + desc->fields[i].offset))->dtype;
    if (!(dtypes & BK_DT(dtype))) return false;
  }
  return true;
}

static void state_free(bk_device *device, void *state) { bk_free(device->ctx, state); }

#define ROW(isa, ISA, op_, dtypes_, kinds_, name_, prepare_) \
  {.op = BK_OP_##op_,                                        \
   .dtypes = dtypes_,                                        \
   .kinds = kinds_,                                          \
   .variant = BK_CPU_##ISA,                                  \
   .name = #name_ "_" #isa,                                  \
   .accepts = accepts,                                       \
   .prepare = prepare_,                                      \
   .launch = bk_cpu_##name_##_##isa,                         \
   .release = state_free},
#define ROWS_K(op, dtypes, name) BK_CPU_ISAS(ROW, op, dtypes, 0, name, bk_kernel_prepare_none)
#define ROWS_P(op, dtypes, name) BK_CPU_ISAS(ROW, op, dtypes, 0, name, bk_cpu_##name##_prepare)
#define ROWS_M(op, dtypes, name, kinds) \
  BK_CPU_ISAS(ROW, op, dtypes, kinds, name, bk_cpu_##name##_prepare)

const bk_kernel bk_cpu_kernels[] = {
    BK_CPU_KERNELS(ROWS_K, ROWS_P, ROWS_M) BK_KERNEL_END,
};
