/* The SPIR-V of all kernels, one header for each kernel file (spirv.sh). A file of its own,
 * because it is large. */
#include <string.h>

#include "backends/vulkan/vulkan.h"

#include "vulkan_spirv.h" /* made at build: includes the headers, BK_VK_SPIRV_ROWS */

static const bk_vk_spirv table[] = {BK_VK_SPIRV_ROWS};

const bk_vk_spirv *bk_vk_spirv_find(const char *kernel) {
  for (size_t i = 0; i < BK_COUNT(table); i++)
    if (strcmp(table[i].kernel, kernel) == 0) return &table[i];
  return NULL;
}

uint64_t bk_vk_spirv_hash(void) {
  uint64_t hash = 0;
  for (size_t i = 0; i < BK_COUNT(table); i++) {
    for (int v = 0; v < BK_VK_VARIANTS; v++) {
      uint64_t both[2] = {hash, bk_hash64(table[i].code[v].words, table[i].code[v].bytes)};
      hash = bk_hash64(both, sizeof both);
    }
  }
  return hash;
}
