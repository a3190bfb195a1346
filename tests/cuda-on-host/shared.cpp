/* How much static shared memory a kernel has. On the host a __shared__ variable is a static
 * variable of the kernel's function, so the symbol table of the module tells: the names of a
 * function's statics begin with the function's own name. Known for ELF files with their symbols
 * and glibc; elsewhere, and where address sanitizer lengthens variables, it counts as none. */
#include "tests/cuda-on-host/emu.h"

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define BK_EMU_LENGTHENED
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define BK_EMU_LENGTHENED
#endif

#if defined(__linux__) && defined(__GLIBC__) && !defined(BK_EMU_LENGTHENED)
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace {

typedef std::vector<char> bytes;

bytes read_file(const char *path) {
  bytes all;
  FILE *file = fopen(path, "rb");
  if (!file) return all;
  char part[65536];
  for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;)
    all.insert(all.end(), part, part + n);
  fclose(file);
  return all;
}

/* Addresses of functions in the module, and the bytes of statics that are not initialised, by
 * name. */
struct symbols {
  std::multimap<uintptr_t, std::string> functions;
  std::map<std::string, size_t> statics;
};

void add_symbols(symbols &s, const bytes &file, const ElfW(Shdr) * sections,
                 const ElfW(Shdr) & table) {
  const char *names = file.data() + sections[table.sh_link].sh_offset;
  const ElfW(Sym) *symbol = reinterpret_cast<const ElfW(Sym) *>(file.data() + table.sh_offset);
  for (size_t i = 0; i < table.sh_size / sizeof *symbol; i++) {
    const ElfW(Sym) &at = symbol[i];
    const char *name = names + at.st_name;
    const int type = at.st_info & 15;
    if (type == STT_FUNC && at.st_value && strncmp(name, "_Z", 2) == 0)
      s.functions.emplace(at.st_value, name + 2);
    if (type == STT_OBJECT && at.st_shndx < SHN_LORESERVE &&
        sections[at.st_shndx].sh_type == SHT_NOBITS && strncmp(name, "_ZZ", 3) == 0)
      s.statics.emplace(name + 3, at.st_size);
  }
}

symbols symbols_of(const char *path) {
  symbols s;
  const bytes file = read_file(path);
  if (file.size() < sizeof(ElfW(Ehdr)) || memcmp(file.data(), ELFMAG, SELFMAG)) return s;
  const ElfW(Ehdr) *head = reinterpret_cast<const ElfW(Ehdr) *>(file.data());
  const ElfW(Shdr) *sections = reinterpret_cast<const ElfW(Shdr) *>(file.data() + head->e_shoff);
  for (int i = 0; i < head->e_shnum; i++)
    if (sections[i].sh_type == SHT_SYMTAB) add_symbols(s, file, sections, sections[i]);
  return s;
}

size_t bytes_of(const symbols &s, uintptr_t address) {
  size_t most = 0; /* functions with the same code may share an address */
  const auto at_address = s.functions.equal_range(address);
  for (auto f = at_address.first; f != at_address.second; ++f) {
    const std::string prefix = f->second + "E";
    size_t sum = 0;
    for (auto v = s.statics.lower_bound(prefix);
         v != s.statics.end() && v->first.compare(0, prefix.size(), prefix) == 0; ++v)
      sum += v->second;
    if (sum > most) most = sum;
  }
  return most;
}

/* The symbols of the module that has all kernels; *address gets the kernel's in them. NULL where
 * they cannot be had. */
const symbols *symbols_for(const void *kernel, uintptr_t *address) {
  static symbols all;
  static bool ready;
  Dl_info info;
  void *extra = nullptr;
  if (!dladdr1(kernel, &info, &extra, RTLD_DL_LINKMAP) || !extra) return nullptr;
  const link_map *module = static_cast<link_map *>(extra);
  if (!ready) all = symbols_of(*module->l_name ? module->l_name : "/proc/self/exe"), ready = true;
  *address = reinterpret_cast<uintptr_t>(kernel) - module->l_addr;
  return &all;
}

} // namespace

size_t bk_emu_static_shared(const void *kernel) {
  static std::map<const void *, size_t> known;
  const auto found = known.find(kernel);
  if (found != known.end()) return found->second;
  uintptr_t address = 0;
  const symbols *all = symbols_for(kernel, &address);
  return known[kernel] = all ? bytes_of(*all, address) : 0;
}

const char *bk_emu_symbol(const void *kernel) {
  uintptr_t address = 0;
  const symbols *all = symbols_for(kernel, &address);
  const auto found =
      all ? all->functions.find(address) : std::multimap<uintptr_t, std::string>::const_iterator();
  return all && found != all->functions.end() ? found->second.c_str() : nullptr;
}

#else

size_t bk_emu_static_shared(const void *) { return 0; }
const char *bk_emu_symbol(const void *) { return nullptr; }

#endif
