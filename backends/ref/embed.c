/* Embedding lookup and its gradient. */
#include "backends/ref/ref.h"

BK_REF_LAUNCH(embed) {
  const bk_embed_args *a = args;
  for (int64_t i = 0; i < a->y.shape[0]; i++)
    for (int64_t c = 0; c < a->y.shape[1]; c++)
      set2(&a->y, i, c, get2(&a->table, geti1(&a->ids, i), c));
  return BK_OK;
}

/* Workspace: for each id its first position, for each position the next one with the same id; -1
 * ends. */
BK_REF_PREPARE(embed_bwd) {
  const bk_embed_bwd_args *a = args;
  *workspace_bytes = (size_t)(a->dtable.shape[0] + a->ids.shape[0]) * sizeof(int32_t);
  return BK_OK;
}

/* A row's positions are summed in ascending order and added with one rounding. */
BK_REF_LAUNCH(embed_bwd) {
  const bk_embed_bwd_args *a = args;
  int64_t n = a->ids.shape[0], v = a->dtable.shape[0];
  int32_t *first = bk_place_data(workspace), *next = first + v;
  for (int64_t id = 0; id < v; id++) first[id] = -1;
  for (int64_t i = n - 1; i >= 0; i--) {
    int32_t id = geti1(&a->ids, i);
    next[i] = first[id];
    first[id] = (int32_t)i;
  }
  for (int64_t id = 0; id < v; id++) {
    if (first[id] < 0) continue;
    for (int64_t c = 0; c < a->dtable.shape[1]; c++) {
      double sum = 0;
      for (int32_t i = first[id]; i >= 0; i = next[i]) sum += get2(&a->dy, i, c);
      put2(&a->dtable, id, c, sum, true);
    }
  }
  return BK_OK;
}
