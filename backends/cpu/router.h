/* Scratch of one worker of ROUTER. */
#ifndef BK_CPU_ROUTER_H
#define BK_CPU_ROUTER_H

#include "backends/cpu/cpu.h"

static inline size_t bk_cpu_router_bytes(int64_t n_experts, int n_group) {
  return BK_ALIGN_UP((size_t)(n_experts + n_group) * 5, 64);
}

#endif
