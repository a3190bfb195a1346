/* Runs a block: its threads are fibres, switched at meeting points only. See shim.h. */
#include "tests/cuda-on-host/shim.h"

#include <sys/mman.h>

#include <cstdio>
#include <vector>

#include "tests/cuda-on-host/emu.h"

bk_emu_state bk_emu;

namespace {

/* tops of stacks in different cache sets */
constexpr size_t stack_bytes = 256u << 10, stack_stride = stack_bytes + 64 * 37;
constexpr int max_threads = 1024;
constexpr int entry_bytes = 64;

/* ---- switching ---- */
#if defined(__x86_64__)
extern "C" void bk_emu_switch(void **save, void *to);
asm(".text\n.globl bk_emu_switch\n.hidden bk_emu_switch\n.type "
    "bk_emu_switch,@function\nbk_emu_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp,(%rdi)\n "
    "mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n.size "
    "bk_emu_switch,.-bk_emu_switch\n");
struct context {
  void *sp;
};
void context_make(context &c, unsigned char *top, void (*entry)()) {
  void **s = reinterpret_cast<void **>(top);
  *--s = nullptr; /* keeps the stack aligned as after a call */
  *--s = reinterpret_cast<void *>(entry);
  for (int i = 0; i < 6; i++) *--s = nullptr;
  c.sp = s;
}
void context_switch(context &from, context &to) { bk_emu_switch(&from.sp, to.sp); }
#else
#include <ucontext.h>
struct context {
  ucontext_t u;
};
void context_make(context &c, unsigned char *top, void (*entry)()) {
  getcontext(&c.u);
  c.u.uc_stack.ss_sp = top - stack_bytes;
  c.u.uc_stack.ss_size = stack_bytes;
  c.u.uc_link = nullptr;
  makecontext(&c.u, entry, 0);
}
void context_switch(context &from, context &to) { swapcontext(&from.u, &to.u); }
#endif

/* ---- meeting points ---- */
struct meeting {
  unsigned mask;
  int arrived;
  unsigned generation;
};
struct async_copy {
  void *to;
  const void *from;
  int bytes, valid;
};

struct fibre {
  context at;
  uint3 id;
  bool done;
  std::vector<std::vector<async_copy>> groups; /* of asynchronous copies; the last is open */
};

struct warp {
  meeting meetings[8]; /* by mask; a mask keeps its place while the block runs */
  int n_meetings;
  unsigned votes, held;
  int alive;
  unsigned alive_mask;
  alignas(64) unsigned char exchange[32][entry_bytes];
};

fibre fibres[max_threads];
warp warps[max_threads / 32];
meeting block_meeting, warpgroup_meetings[max_threads / 128];
int block_count;
context scheduler;
int current, threads, alive;
/* arrivals and ends: what a scheduling round without any of them is, is a deadlock */
uint64_t moved;
unsigned char *stacks;
const std::function<void()> *body;
const char *kernel_name;
uint64_t random_state;

void leave() { context_switch(fibres[current].at, scheduler); }

/* Waits for `need` fibres; the last to come opens the next generation. */
void meet(meeting &m, int need) {
  unsigned generation = m.generation;
  moved++;
  if (++m.arrived >= need) {
    m.arrived = 0;
    m.generation++;
    return;
  }
  while (m.generation == generation) leave();
}

/* A thread that ends no longer counts at barriers, as on the device. */
void settle_block() {
  if (alive > 0 && block_meeting.arrived >= alive) {
    block_meeting.arrived = 0;
    block_meeting.generation++;
  }
}

void entry() {
  (*body)();
  fibre &f = fibres[current];
  for (auto &group : f.groups)
    if (!group.empty())
      bk_emu_die(kernel_name, "a thread ended with asynchronous copies that nobody waited for");
  bk_emu_wgmma_end_thread();
  f.done = true;
  alive--;
  moved++;
  settle_block();
  leave();
  abort();
}

uint64_t random_next() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

/* Order of a scheduling round: ascending for seed 0, else a new permutation each time. */
void make_order(std::vector<int> &order) {
  for (int i = 0; i < threads; i++) order[(size_t)i] = i;
  for (int i = threads - 1; random_state && i > 0; i--)
    std::swap(order[(size_t)i], order[random_next() % (unsigned)(i + 1)]);
}

void start_block() {
  for (int i = 0; i < threads; i++) {
    fibre &f = fibres[i];
    f.done = false;
    f.groups.clear();
    f.id.x = (unsigned)i % bk_emu.block_dim.x;
    f.id.y = (unsigned)i / bk_emu.block_dim.x % bk_emu.block_dim.y;
    f.id.z = (unsigned)i / (bk_emu.block_dim.x * bk_emu.block_dim.y);
    context_make(f.at, stacks + (size_t)(i + 1) * stack_stride - 128, entry);
  }
  for (int w = 0; w < (threads + 31) / 32; w++) warps[w].n_meetings = 0, warps[w].votes = 0;
  block_meeting = meeting{};
  for (meeting &m : warpgroup_meetings) m = meeting{};
  bk_emu_wgmma_start_block(bk_emu.shared_bytes);
  block_count = 0;
  alive = threads;
}

void run_block(std::vector<int> &order) {
  start_block();
  while (alive) {
    uint64_t before = moved;
    make_order(order);
    for (int i : order) {
      if (fibres[i].done) continue;
      current = i;
      bk_emu.thread = fibres[i].id;
      bk_emu.lane_id = i;
      context_switch(scheduler, fibres[i].at);
    }
    if (moved == before)
      bk_emu_die(kernel_name,
                 "deadlock: not every thread comes to the barrier at which the others wait");
  }
}

warp &my_warp() { return warps[current / 32]; }

unsigned existing_lanes() {
  int left = threads - current / 32 * 32;
  return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}

meeting &meeting_of(warp &w, unsigned mask) {
  for (int i = 0; i < w.n_meetings; i++)
    if (w.meetings[i].mask == mask) return w.meetings[i];
  if (w.n_meetings == 8) bk_emu_die(kernel_name, "more than 8 different masks in one warp");
  w.meetings[w.n_meetings] = meeting{mask, 0, 0};
  return w.meetings[w.n_meetings++];
}

} // namespace

void bk_emu_die(const char *kernel, const char *what) {
  fprintf(stderr, "cuda-on-host: kernel %s, block %u,%u,%u: %s\n", kernel, bk_emu.block.x,
          bk_emu.block.y, bk_emu.block.z, what);
  abort();
}

void bk_emu_sync_block() { meet(block_meeting, alive); }

void bk_emu_sync_warp(unsigned mask) {
  mask &= existing_lanes();
  if (!(mask >> (current % 32) & 1))
    bk_emu_die(kernel_name, "a thread is not in the mask that it gives");
  meet(meeting_of(my_warp(), mask), __builtin_popcount(mask));
}

void bk_emu_sync_warpgroup() {
  const int group = current / 128;
  if (threads < 128 * (group + 1)) bk_emu_die(kernel_name, "a warpgroup has 128 threads");
  meet(warpgroup_meetings[group], 128);
}

bool bk_emu_is_shared(const void *p, int bytes) {
  const unsigned char *at = static_cast<const unsigned char *>(p);
  return at >= bk_emu.shared && at + bytes <= bk_emu.shared + bk_emu.shared_bytes;
}

uint32_t bk_emu_shared_address(const void *p) {
  if (!bk_emu_is_shared(p, 1))
    bk_emu_die(kernel_name, "an address is not in dynamic shared memory");
  return bk_emu_shared_base + (uint32_t)(static_cast<const unsigned char *>(p) - bk_emu.shared);
}

unsigned char *bk_emu_shared_at(uint32_t address, int bytes) {
  unsigned char *at = bk_emu.shared + ((int64_t)address - bk_emu_shared_base);
  if (!bk_emu_is_shared(at, bytes))
    bk_emu_die(kernel_name, "a shared memory address lies outside of dynamic shared memory");
  return at;
}

unsigned char *bk_emu_exchange(int lane) { return my_warp().exchange[lane]; }

unsigned bk_emu_ballot(unsigned mask, bool set) {
  unsigned votes = 0;
  unsigned char *mine = bk_emu_exchange(current % 32);
  mine[0] = set;
  bk_emu_sync_warp(mask);
  for (int i = 0; i < 32; i++)
    if (mask & existing_lanes() & 1u << i) votes |= (unsigned)bk_emu_exchange(i)[0] << i;
  bk_emu_sync_warp(mask);
  return votes;
}

int bk_emu_count_block(bool set) {
  block_count += set;
  bk_emu_sync_block();
  int count = block_count;
  bk_emu_sync_block();
  block_count = 0;
  bk_emu_sync_block();
  return count;
}

void bk_emu_async_copy(void *shared, const void *global, int bytes, int valid) {
  if (reinterpret_cast<uintptr_t>(shared) % (unsigned)bytes ||
      reinterpret_cast<uintptr_t>(global) % (unsigned)bytes)
    bk_emu_die(kernel_name, "an asynchronous copy is not aligned to its size");
  if (bk_emu_is_shared(shared, bytes))
    bk_emu_wgmma_copy_begins(bk_emu_shared_address(shared), bytes);
  auto &groups = fibres[current].groups;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(async_copy{shared, global, bytes, valid});
}

void bk_emu_async_commit() {
  auto &groups = fibres[current].groups;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void bk_emu_async_wait(int keep) {
  auto &groups = fibres[current].groups;
  int committed = groups.empty() ? 0 : (int)groups.size() - 1;
  for (int g = 0; g < committed - keep; g++) {
    for (const async_copy &c : groups[0]) {
      memset(c.to, 0, (size_t)c.bytes);
      if (c.valid > 0) memcpy(c.to, c.from, (size_t)c.valid);
      if (bk_emu_is_shared(c.to, c.bytes))
        bk_emu_wgmma_copied(bk_emu_shared_address(c.to), c.bytes);
    }
    groups.erase(groups.begin());
  }
}

void bk_emu_run_grid(const char *kernel, dim3 grid, dim3 block, size_t shared,
                     const std::function<void()> &run) {
  static std::vector<unsigned char> memory;
  std::vector<int> order((size_t)block.x * block.y * block.z);
  if (!stacks) {
    void *made = mmap(nullptr, stack_stride * (max_threads + 1), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) bk_emu_die(kernel, "no memory for stacks");
    stacks = static_cast<unsigned char *>(made);
  }
  threads = (int)order.size();
  body = &run;
  kernel_name = kernel;
  random_state = bk_emu_seed() * 0x9e3779b97f4a7c15u;
  bk_emu.grid_dim = grid;
  bk_emu.block_dim = block;
  memory.assign(shared + 2048, 0xff); /* not a number in every float format */
  bk_emu.shared = reinterpret_cast<unsigned char *>(
                      (reinterpret_cast<uintptr_t>(memory.data()) + 1023) & ~uintptr_t(1023)) +
                  bk_emu_shared_base;
  bk_emu.shared_bytes = shared;
  const uint64_t plane = (uint64_t)grid.x * grid.y, blocks = plane * grid.z;
  for (uint64_t i = 0; i < blocks; i++) { /* odd seeds: the last block first */
    const uint64_t id = bk_emu_seed() & 1 ? blocks - 1 - i : i;
    bk_emu.block.x = (unsigned)(id % grid.x), bk_emu.block.y = (unsigned)(id % plane / grid.x),
    bk_emu.block.z = (unsigned)(id / plane);
    if (shared) memset(bk_emu.shared, 0xff, shared);
    run_block(order);
  }
}
