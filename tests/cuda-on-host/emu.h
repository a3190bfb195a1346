/* Between the two halves of the equipment: fibre.cpp (a kernel on the host) and runtime.cpp (the
 * CUDA runtime). */
#ifndef BK_CUDA_ON_HOST_EMU_H
#define BK_CUDA_ON_HOST_EMU_H

#include "tests/cuda-on-host/shim.h"

void bk_emu_run_grid(const char *kernel, dim3 grid, dim3 block, size_t shared,
                     const std::function<void()> &run);
/* BK_CUDA_SEED: 0 runs threads in ascending order, others in orders that change all the time */
uint64_t bk_emu_seed();
/* Dynamic shared memory starts at this shared memory address: aligned as device.cuh declares it,
 * and not more. */
constexpr uint32_t bk_emu_shared_base = 128;
bool bk_emu_is_shared(const void *p, int bytes); /* dynamic, of the running block */
unsigned char *bk_emu_shared_at(uint32_t address, int bytes);
void bk_emu_sync_warpgroup(); /* meets the 128 threads of the current one */
/* Bytes of a kernel's __shared__ variables, and the name of its function as the linker has it,
 * or NULL (shared.cpp). */
size_t bk_emu_static_shared(const void *kernel);
const char *bk_emu_symbol(const void *kernel);
/* Device memory (runtime.cpp). */
struct bk_emu_memory {
  unsigned char *at;
  size_t bytes;
};
bk_emu_memory bk_emu_allocation(const void *address);
/* Runs a launch and writes down what it was (record.cpp). */
void bk_emu_record(const char *kernel, dim3 grid, dim3 block, size_t shared,
                   const bk_emu_call &call);
/* fibre.cpp to wgmma.cpp */
void bk_emu_wgmma_start_block(size_t shared_bytes);
void bk_emu_wgmma_end_thread();
void bk_emu_wgmma_copy_begins(uint32_t address, int bytes);
void bk_emu_wgmma_copied(uint32_t address, int bytes);
[[noreturn]] void bk_emu_die(const char *kernel, const char *what);
/* Puts work into a stream; stand-ins of libraries do it too. */
void bk_emu_enqueue(cudaStream_t stream, std::function<void()> work);

#endif
