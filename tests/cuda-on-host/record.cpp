/* Writes down what is launched, for tests/cuda/prove: BK_CUDA_RECORD=FILE gets a line of JSON
 * for each launch, in the order in which they run.
 *   {"launch":"_Z...", "grid":[x,y,z], "block":[x,y,z], "shared":BYTES,
 *   "parameters":["HEX",...], "pointers":[...], "apart":true}
 * parameters are the bytes of the kernel's arguments; pointers are the addresses of device
 * memory in them:
 *   {"at":[[parameter,offset],...], "address":N, "allocation":[address,bytes],
 *   "written":[first,end], "bytes":"HEX"}
 *
 * A proof takes memory behind different pointers for different memory. Whether that is so is
 * tried here: before the launch runs as it is, it runs with a copy of the whole allocation for
 * each address among its arguments; then again, with other bytes wherever another of its
 * pointers has written. "apart" says that no byte was changed through two of them, that both
 * runs wrote the same, and that this, put together, is what the launch itself leaves in memory:
 * for these data nothing that is read through one address is written through another, before or
 * after. "written" is what changed through that address, in bytes of the allocation; null where
 * nothing did. A byte that is written with the value that it has counts as not written. "bytes"
 * are the first of what is there before the launch: tables of integers that decide what a kernel
 * does. */
#include "tests/cuda-on-host/emu.h"

#include <fcntl.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <map>
#include <string>

namespace {

constexpr size_t bytes_shown = 4096;

struct place {
  size_t parameter, offset;
};

/* An address among the arguments. */
struct pointer {
  std::vector<place> at;
  unsigned char *address;
  bk_emu_memory allocation;
  std::vector<unsigned char> before;
  unsigned char *copy;
  size_t first, end; /* written */
};

typedef std::map<unsigned char *, pointer> pointers;

unsigned char *read_address(const bk_emu_parameter &p, size_t offset) {
  unsigned char *value;
  memcpy(&value, p.bytes + offset, sizeof value);
  return value;
}

pointers find_pointers(const bk_emu_call &call) {
  pointers all;
  for (size_t i = 0; i < call.parameters.size(); i++)
    for (size_t offset = 0; offset + sizeof(void *) <= call.parameters[i].size;
         offset += sizeof(void *)) {
      unsigned char *address = read_address(call.parameters[i], offset);
      const bk_emu_memory memory = bk_emu_allocation(address);
      if (!memory.at) continue;
      pointer &p = all[address];
      p.at.push_back({i, offset});
      p.address = address, p.allocation = memory;
      p.before.assign(memory.at, memory.at + memory.bytes);
    }
  return all;
}

void point_to(const bk_emu_call &call, const pointer &p, unsigned char *address) {
  for (const place &at : p.at)
    memcpy(call.parameters[at.parameter].bytes + at.offset, &address, sizeof address);
}

void separate(const bk_emu_call &call, pointer &p, const std::vector<unsigned char> &bytes) {
  p.copy = static_cast<unsigned char *>(aligned_alloc(256, (p.allocation.bytes + 255) / 256 * 256));
  if (!p.copy) bk_emu_die("record", "no memory for a copy of an allocation");
  memcpy(p.copy, bytes.data(), bytes.size());
  point_to(call, p, p.copy + (p.address - p.allocation.at));
}

void join(const bk_emu_call &call, pointer &p) {
  point_to(call, p, p.address);
  free(p.copy);
  p.copy = nullptr;
}

/* An allocation as the launch should leave it, and through which pointer each byte of it
 * changed. */
struct outcome {
  std::vector<unsigned char> bytes;
  std::vector<const pointer *> owner;
};
typedef std::map<unsigned char *, outcome> outcomes;

/* Takes what changed through the pointer over; false where a byte has changed through another
 * one too. */
bool merge(pointer &p, outcome &o) {
  bool apart = true;
  p.first = p.end = 0;
  if (o.bytes.empty()) o.bytes = p.before, o.owner.assign(p.before.size(), nullptr);
  for (size_t i = 0; i < p.allocation.bytes; i++) {
    if (p.copy[i] == p.before[i]) continue;
    if (p.first == p.end) p.first = i;
    p.end = i + 1;
    apart = apart && !o.owner[i];
    o.owner[i] = &p;
    o.bytes[i] = p.copy[i];
  }
  return apart;
}

/* The launch with every address in memory of its own. */
bool run_apart(const std::function<void()> &run, const bk_emu_call &call, pointers &all,
               outcomes &expected) {
  bool apart = true;
  for (auto &p : all) separate(call, p.second, p.second.before);
  run();
  for (auto &p : all) apart = merge(p.second, expected[p.second.allocation.at]) && apart;
  for (auto &p : all) join(call, p.second);
  return apart;
}

/* What was there, with other bytes where another pointer has written. */
std::vector<unsigned char> disturbed(const pointer &p, const outcome &o) {
  std::vector<unsigned char> bytes = p.before;
  for (size_t i = 0; i < bytes.size(); i++)
    if (o.owner[i] && o.owner[i] != &p) bytes[i] ^= 0xff;
  return bytes;
}

bool same_again(const pointer &p, const outcome &o) {
  const std::vector<unsigned char> untouched = disturbed(p, o);
  for (size_t i = 0; i < untouched.size(); i++)
    if (p.copy[i] != (o.owner[i] == &p ? o.bytes[i] : untouched[i])) return false;
  return true;
}

/* The same with disturbed memory: what is written must not depend on it. */
bool run_disturbed(const std::function<void()> &run, const bk_emu_call &call, pointers &all,
                   const outcomes &expected) {
  bool same = true;
  for (auto &p : all)
    separate(call, p.second, disturbed(p.second, expected.at(p.second.allocation.at)));
  run();
  for (auto &p : all) same = same_again(p.second, expected.at(p.second.allocation.at)) && same;
  for (auto &p : all) join(call, p.second);
  return same;
}

bool as_expected(const outcomes &expected) {
  for (const auto &o : expected)
    if (memcmp(o.first, o.second.bytes.data(), o.second.bytes.size())) return false;
  return true;
}

std::string number(uintmax_t n) { return std::to_string(n); }
std::string triple(dim3 d) {
  return "[" + number(d.x) + "," + number(d.y) + "," + number(d.z) + "]";
}

std::string hex(const unsigned char *bytes, size_t size) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < size; i++) text += digits[bytes[i] >> 4], text += digits[bytes[i] & 15];
  return text;
}

std::string describe(const pointer &p) {
  std::string text = "{\"at\":[";
  for (const place &at : p.at)
    text +=
        (text.back() == '[' ? "[" : ",[") + number(at.parameter) + "," + number(at.offset) + "]";
  text += "],\"address\":" + number((uintptr_t)p.address) + ",\"allocation\":[" +
          number((uintptr_t)p.allocation.at) + "," + number(p.allocation.bytes) + "],\"written\":";
  text += p.first == p.end ? "null" : "[" + number(p.first) + "," + number(p.end) + "]";
  const size_t at = (size_t)(p.address - p.allocation.at), left = p.allocation.bytes - at;
  return text + ",\"bytes\":\"" +
         hex(p.before.data() + at, left < bytes_shown ? left : bytes_shown) + "\"}";
}

std::string describe(const char *kernel, dim3 grid, dim3 block, size_t shared,
                     const bk_emu_call &call, const pointers &all, bool apart) {
  const char *symbol = bk_emu_symbol(call.function);
  std::string text = "{\"launch\":\"" +
                     (symbol ? std::string("_Z") + symbol : std::string(kernel)) +
                     "\",\"grid\":" + triple(grid) + ",\"block\":" + triple(block) +
                     ",\"shared\":" + number(shared) + ",\"parameters\":[";
  for (const bk_emu_parameter &p : call.parameters)
    text += (text.back() == '[' ? "\"" : ",\"") + hex(p.bytes, p.size) + "\"";
  text += "],\"pointers\":[";
  for (const auto &p : all) text += (text.back() == '[' ? "" : ",") + describe(p.second);
  return text + "],\"apart\":" + (apart ? "true" : "false") + "}\n";
}

/* A line whole or not at all: the harness writes to the same file. */
void write_line(const std::string &line) {
  const int file = open(getenv("BK_CUDA_RECORD"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  const bool good = file >= 0 && write(file, line.data(), line.size()) == (ssize_t)line.size();
  if (file >= 0) close(file);
  if (!good) bk_emu_die("record", "BK_CUDA_RECORD cannot be written");
}

} // namespace

void bk_emu_record(const char *kernel, dim3 grid, dim3 block, size_t shared,
                   const bk_emu_call &call) {
  pointers all = find_pointers(call);
  outcomes expected;
  const auto run = [&] { bk_emu_run_grid(kernel, grid, block, shared, call.run); };
  bool apart = run_apart(run, call, all, expected) && run_disturbed(run, call, all, expected);
  run();
  apart = as_expected(expected) && apart;
  write_line(describe(kernel, grid, block, shared, call, all, apart));
}
