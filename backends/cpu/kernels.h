/* The kernels of the cpu backend, in one list for each pair of families. K(op, dtypes of the
 * leading tensor, name): launch only, bk_cpu_<name>_<isa>. P(op, dtypes, name): also
 * bk_cpu_<name>_prepare (workspace and state), one for all instruction sets. M(op, dtypes, name,
 * kinds of residual connection): P for an op that has a kind. */
#ifndef BK_CPU_KERNELS_H
#define BK_CPU_KERNELS_H

#include "backends/cpu/cpu.h"
#include "backends/cpu/kernels_hc.h"

#define BK_CPU_ST (BK_DT(BK_F32) | BK_DT(BK_BF16))
#define BK_CPU_CT BK_DT(BK_F32)
#define BK_CPU_INT BK_DT(BK_I32)
#define BK_CPU_ANY_INT (BK_DT(BK_I32) | BK_DT(BK_I64) | BK_DT(BK_U8))

#define BK_CPU_KERNELS_DENSE(K, P)           \
  K(COPY, BK_CPU_ST | BK_CPU_ANY_INT, copy)  \
  K(ADD, BK_CPU_ST, add)                     \
  P(SUM, BK_CPU_CT, sum)                     \
  P(GEMM, BK_CPU_ST, gemm)                   \
  P(GROUPED_GEMM, BK_CPU_ST, grouped_gemm)   \
  P(GROUPED_WGRAD, BK_CPU_ST, grouped_wgrad) \
  K(RMSNORM, BK_CPU_ST, rmsnorm)             \
  P(RMSNORM_BWD, BK_CPU_ST, rmsnorm_bwd)     \
  P(ROPE, BK_CPU_ST, rope)                   \
  K(CACHE_WRITE, BK_CPU_ST, cache_write)     \
  P(ATTENTION, BK_CPU_ST, attention)         \
  P(ATTENTION_BWD, BK_CPU_ST, attention_bwd) \
  K(SWIGLU, BK_CPU_ST, swiglu)               \
  K(SWIGLU_BWD, BK_CPU_ST, swiglu_bwd)       \
  K(EMBED, BK_CPU_INT, embed)                \
  K(EMBED_BWD, BK_CPU_INT, embed_bwd)        \
  K(CROSS_ENTROPY, BK_CPU_ST, cross_entropy) \
  P(ROUTER, BK_CPU_CT, router)               \
  K(ROUTER_BWD, BK_CPU_CT, router_bwd)       \
  P(MOE_INDEX, BK_CPU_INT, moe_index)        \
  K(PERMUTE, BK_CPU_ST, permute)             \
  K(UNPERMUTE, BK_CPU_ST, unpermute)         \
  K(UNPERMUTE_BWD, BK_CPU_ST, unpermute_bwd) \
  K(BALANCE, BK_CPU_INT, balance)

#define BK_CPU_KERNELS(K, P, M) BK_CPU_KERNELS_DENSE(K, P) BK_CPU_KERNELS_HC(K, P, M)

#define BK_CPU_LAUNCH(isa, ISA, name) BK_LAUNCH_FN(bk_cpu_##name##_##isa);
#define BK_CPU_DECLARE_K(op, dtypes, name) BK_CPU_ISAS(BK_CPU_LAUNCH, name)
#define BK_CPU_DECLARE_P(op, dtypes, name) \
  BK_CPU_DECLARE_K(op, dtypes, name)       \
  BK_PREPARE(bk_cpu_##name##_prepare);
#define BK_CPU_DECLARE_M(op, dtypes, name, kinds) BK_CPU_DECLARE_P(op, dtypes, name)
BK_CPU_KERNELS(BK_CPU_DECLARE_K, BK_CPU_DECLARE_P, BK_CPU_DECLARE_M)

#endif
