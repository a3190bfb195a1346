/* Between the two halves of the equipment: fibre.cpp (a kernel on the host) and runtime.cpp (the CUDA runtime). */
#ifndef BK_CUDA_ON_HOST_EMU_H
#define BK_CUDA_ON_HOST_EMU_H

#include "tests/cuda-on-host/shim.h"

void bk_emu_run_grid(const char *kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()> &run);
uint64_t bk_emu_seed(); /* BK_CUDA_SEED: 0 runs threads in ascending order, others in orders that change all the time */
[[noreturn]] void bk_emu_die(const char *kernel, const char *what);
/* Puts work into a stream; stand-ins of libraries do it too. */
void bk_emu_enqueue(cudaStream_t stream, std::function<void()> work);

#endif
