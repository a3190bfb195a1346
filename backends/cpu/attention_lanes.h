/* What attention and its backward share: slivers of lanes, one query a lane. Included by
 * templates, see cpu.h and attention.h. */
#ifndef BK_CPU_ATTENTION_LANES_H
#define BK_CPU_ATTENTION_LANES_H

#include "backends/cpu/attention.h"
#include "backends/cpu/gemm_micro.h"
#include "backends/cpu/gemm_pack.h"

#define LANE_VECTORS (NR / BK_VW)

/* The number of keys, at most `width`, from `begin` on that any lane of a sliver may see whose
 * first query has absolute position `first`. */
static int64_t keys_seen(int64_t first, int64_t begin, int64_t width) {
  int64_t seen = first + NR - begin;
  return seen < 0 ? 0 : seen < width ? seen : width;
}
/* Where lane `of` vector v, counted from `first_lane`, may see a key: key - first <= lane. */
BK_INLINE bk_vi lanes_allowed(int v, int64_t key_after_first) {
  bk_vi lane = {0};
  for (int i = 0; i < BK_VW; i++) lane[i] = v * BK_VW + i;
  return lane >= (int32_t)key_after_first;
}

/* x^T [n, lanes] to rows of y, `count` lanes; through `rows` [lanes, n] where y is bf16. */
static void store_turned(const float *x, int64_t n, int64_t count, bk_gemm_mat y, float *rows) {
  if (!y.bf16) {
    pack_turned((const char *)x, NR, n, count, (float *)(void *)y.data, y.rs, false);
    return;
  }
  pack_turned((const char *)x, NR, n, count, rows, n, false);
  for (int64_t r = 0; r < count; r++) {
    char *to = bk_cpu_gemm_sub(y, r, 0).data;
    for (int64_t i = 0; i < n; i += BK_VW)
      bk_v_put(to, i, true, n - i, bk_v_get(rows + r * n, i, false, n - i));
  }
}

#endif
