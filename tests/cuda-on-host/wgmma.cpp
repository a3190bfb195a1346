/* Warpgroup products (wgmma) on the host, as the PTX ISA defines them: operands are found from
 * the descriptors and the swizzling, accumulators from the fragment layout. What the hardware
 * does by itself and unseen is made visible:
 * - accumulators are not-a-number from the product to the wait that covers it;
 * - operands are read when all 128 threads have come to the product, and read again at the wait:
 *   other bytes end the program;
 * - so do: an asynchronous copy that is begun to where a product of which not all threads know
 *   the end still reads; a product that reads
 *   what an asynchronous copy wrote and no fence.proxy.async followed (plain stores are not
 *   seen); a missing wgmma.fence; descriptors that differ between threads; a thread that ends
 *   without waiting.
 * Shared memory addresses are those of bk_ptx_shared. Only the swizzling over 128 bytes is
 * there. */
#include <cstdio>
#include <deque>
#include <vector>

#include "tests/cuda-on-host/emu.h"

namespace {

constexpr int max_threads = 1024, group_threads = 128, granule = 16;

struct product {
  long number; /* within its warpgroup */
  uint64_t a, b;
  int columns;
  bool a_mn, b_mn;
  std::vector<float> left, right; /* [64][16], [columns][16] */
  std::vector<int> reads;         /* granules of shared memory */
  int ended;                      /* threads that waited for it */
  bool judged;
};

struct warpgroup {
  std::deque<product> products; /* under way, by number */
  /* what the first thread to come has said, by parity of the number */
  product announced[2];
  long next;
};

struct thread_state {
  float *d;
  std::vector<float> sums;   /* what the accumulators are in truth while products are under way */
  std::deque<long> products; /* under way */
  std::deque<int> groups;    /* sizes of committed groups */
  int open;                  /* products since the last commit */
  long next;
  bool fenced;
  /* granules written by asynchronous copies since the last fence.proxy.async */
  std::vector<int> unfenced;
};

warpgroup groups[max_threads / group_threads];
thread_state states[max_threads];
bool used; /* since the block began */
/* of granules: products under way; 1 + the thread whose writes are not fenced, or 0 */
std::vector<int> readers, writers;

[[noreturn]] void die(const char *what) { bk_emu_die("with warpgroup products", what); }

uint16_t element(uint32_t address, product *p) {
  uint16_t half;
  const unsigned char *at = bk_emu_shared_at(address, 2);
  if (p) {
    const int g = (int)(address / granule);
    if (p->reads.empty() || p->reads.back() != g) p->reads.push_back(g);
    if (writers[(size_t)g])
      die("a product reads what an asynchronous copy wrote; fence.proxy.async is missing");
  }
  memcpy(&half, at, sizeof half);
  return half;
}

uint32_t field(uint64_t descriptor, int bit) { return (uint32_t)(descriptor >> bit & 0x3fff) << 4; }

/* Element (mn, k) of an operand. "Canonical Layouts" for 128-byte swizzling, T = 8 elements:
 * MN-major ((T,8,m),(8,k)):((1,T,LBO),(8T,SBO)), K-major ((8,m),(T,2k)):((8T,SBO),(1,T)); then
 * Swizzle<3,4,3> of the address: bits 4..6 xor bits 7..9. */
uint32_t place(uint64_t descriptor, bool mn_major, uint32_t mn, uint32_t k) {
  const uint32_t start = field(descriptor, 0), lbo = field(descriptor, 16),
                 sbo = field(descriptor, 32);
  const uint32_t address = mn_major
                               ? start + mn / 64 * lbo + mn % 64 * 2 + k / 8 * sbo + k % 8 * 128
                               : start + mn / 8 * sbo + mn % 8 * 128 + k * 2;
  return address ^ (address >> 7 & 7) << 4;
}

void check_descriptor(uint64_t descriptor) {
  if (descriptor >> 62 != 1) die("a descriptor does not ask for 128-byte swizzling");
  if (descriptor & ~((uint64_t)3 << 62 | (uint64_t)0x3fff << 32 | 0x3fff0000u | 0x3fffu))
    die("a descriptor has bits where there are no fields");
}

void read_operand(uint64_t descriptor, bool mn_major, int count, std::vector<float> &out,
                  product *p) {
  out.resize((size_t)count * 16);
  for (int mn = 0; mn < count; mn++)
    for (int k = 0; k < 16; k++)
      out[(size_t)(mn * 16 + k)] = __uint_as_float(
          (uint32_t)element(place(descriptor, mn_major, (uint32_t)mn, (uint32_t)k), p) << 16);
}

/* All threads have come: the product begins. */
void begin(warpgroup &w, product p) {
  p.ended = 0;
  p.judged = false;
  read_operand(p.a, p.a_mn, 64, p.left, &p);
  read_operand(p.b, p.b_mn, p.columns, p.right, &p);
  for (int g : p.reads) readers[(size_t)g]++;
  w.next++;
  w.products.push_back(std::move(p));
}

bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
  return memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void judge(product &p) {
  std::vector<float> left, right;
  read_operand(p.a, p.a_mn, 64, left, nullptr);
  read_operand(p.b, p.b_mn, p.columns, right, nullptr);
  if (!same_bits(left, p.left) || !same_bits(right, p.right))
    die("shared memory was written while a product read it");
  p.judged = true;
}

/* "Matrix Fragments for wgmma.mma_async.m64nNk16", accumulator D. */
void add(const product &p, int thread, float *sums) {
  const int warp = thread / 32 % 4, g = thread % 32 / 4, t = thread % 4;
  for (int i = 0; i < p.columns / 2; i++) {
    const float *x = &p.left[(size_t)(16 * (16 * warp + g + 8 * (i / 2 % 2)))],
                *y = &p.right[(size_t)(16 * (i / 4 * 8 + 2 * t + i % 2))];
    float sum = 0;
    for (int k = 0; k < 16; k++) sum += x[k] * y[k];
    sums[i] += sum;
  }
}

void end_one(thread_state &s, warpgroup &w, int thread) {
  product &p = w.products[(size_t)(s.products.front() - w.products.front().number)];
  if (!p.judged) judge(p);
  add(p, thread, s.sums.data());
  s.products.pop_front();
  p.ended++;
  while (!w.products.empty() && w.products.front().ended == group_threads) {
    for (int g : w.products.front().reads) readers[(size_t)g]--;
    w.products.pop_front();
  }
}

} // namespace

void bk_emu_wgmma(float *d, int columns, uint64_t a, uint64_t b, bool a_mn, bool b_mn) {
  const int thread = bk_emu.lane_id;
  warpgroup &w = groups[thread / group_threads];
  thread_state &s = states[thread];
  check_descriptor(a);
  check_descriptor(b);
  if (s.products.empty() ? !s.fenced : s.d != d)
    die("a product on accumulators for which no wgmma.fence was executed");
  used = true;
  product &said = w.announced[s.next & 1];
  if (said.number != s.next) {
    said.number = s.next;
    said.a = a, said.b = b, said.columns = columns, said.a_mn = a_mn, said.b_mn = b_mn;
  }
  if (said.a != a || said.b != b || said.columns != columns || said.a_mn != a_mn ||
      said.b_mn != b_mn)
    die("threads of a warpgroup ask for different products");
  bk_emu_sync_warpgroup();
  if (w.next == s.next) begin(w, said);
  if (s.products.empty()) {
    s.d = d;
    s.sums.assign(d, d + columns / 2);
    for (int i = 0; i < columns / 2; i++) d[i] = NAN;
  }
  s.products.push_back(s.next++);
  s.open++;
}

void bk_emu_wgmma_fence() { used = states[bk_emu.lane_id].fenced = true; }

void bk_emu_wgmma_commit() {
  thread_state &s = states[bk_emu.lane_id];
  s.groups.push_back(s.open);
  s.open = 0;
}

void bk_emu_wgmma_wait(int keep) {
  thread_state &s = states[bk_emu.lane_id];
  while ((int)s.groups.size() > keep) {
    for (int i = 0; i < s.groups.front(); i++)
      end_one(s, groups[bk_emu.lane_id / group_threads], bk_emu.lane_id);
    s.groups.pop_front();
  }
  if (s.d && s.products.empty()) {
    memcpy(s.d, s.sums.data(), s.sums.size() * sizeof(float));
    s.d = nullptr;
    s.fenced = false; /* from here on the thread may touch them */
  }
}

void bk_emu_fence_proxy_async() {
  thread_state &s = states[bk_emu.lane_id];
  for (int g : s.unfenced)
    if (writers[(size_t)g] == bk_emu.lane_id + 1) writers[(size_t)g] = 0;
  s.unfenced.clear();
}

/* ---- what fibre.cpp tells ---- */

void bk_emu_wgmma_start_block(size_t shared_bytes) {
  const size_t granules = (bk_emu_shared_base + shared_bytes + granule - 1) / granule;
  if (!used && granules == readers.size()) return;
  used = false;
  readers.assign(granules, 0);
  writers.assign(granules, 0);
  for (warpgroup &w : groups) {
    w.products.clear();
    w.next = 0;
    w.announced[0].number = w.announced[1].number = -1;
  }
  for (thread_state &s : states)
    s.d = nullptr, s.products.clear(), s.groups.clear(), s.open = 0, s.next = 0, s.fenced = false,
    s.unfenced.clear();
}

void bk_emu_wgmma_end_thread() {
  if (!states[bk_emu.lane_id].products.empty())
    die("a thread ended with products that it did not wait for");
}

void bk_emu_wgmma_copy_begins(uint32_t address, int bytes) {
  for (uint32_t g = address / granule; g <= (address + (uint32_t)bytes - 1) / granule; g++)
    if (readers[g]) die("an asynchronous copy begins to write what a product may still read");
}

void bk_emu_wgmma_copied(uint32_t address, int bytes) {
  for (uint32_t g = address / granule; g <= (address + (uint32_t)bytes - 1) / granule; g++) {
    used = true;
    if (writers[g] == bk_emu.lane_id + 1) continue;
    writers[g] = bk_emu.lane_id + 1;
    states[bk_emu.lane_id].unfenced.push_back((int)g);
  }
}
