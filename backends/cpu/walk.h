/* walk: element-wise traversal of tensors of one shape. Neighbouring dimensions that are one run
 * of memory in every operand are merged; what is left is `rows` rows of `len` elements, cut in
 * chunks that the workers share. */
#ifndef BK_CPU_WALK_H
#define BK_CPU_WALK_H

#include "backends/cpu/cpu.h"

#define BK_CPU_WALK_MAX 5
#define BK_CPU_WALK_CHUNK 8192 /* elements */

typedef struct bk_cpu_walk {
  int n_tensors, n_outer;
  int64_t len, chunks, rows;                   /* chunks per row */
  int64_t size[BK_MAX_DIMS];                   /* outer dimensions */
  int64_t outer[BK_CPU_WALK_MAX][BK_MAX_DIMS]; /* their strides, in bytes */
  int64_t inner[BK_CPU_WALK_MAX];              /* stride within a row, in elements */
  size_t esize[BK_CPU_WALK_MAX];
  char *data[BK_CPU_WALK_MAX];
} bk_cpu_walk;

void bk_cpu_walk_make(bk_cpu_walk *walk, int n_tensors, const bk_tensor *const *tensors);

/* Work items of the whole walk and how many make a piece. */
static inline int64_t bk_cpu_walk_items(const bk_cpu_walk *w) { return w->rows * w->chunks; }
static inline int64_t bk_cpu_walk_grain(const bk_cpu_walk *w) {
  return w->len >= BK_CPU_WALK_CHUNK ? 1 : BK_CPU_WALK_CHUNK / (w->len ? w->len : 1);
}

/* Item -> addresses of its first element in each operand; returns the number of elements. */
static inline int64_t bk_cpu_walk_item(const bk_cpu_walk *w, int64_t item,
                                       char *at[BK_CPU_WALK_MAX]) {
  int64_t row = item / w->chunks, first = item % w->chunks * BK_CPU_WALK_CHUNK;
  for (int k = 0; k < w->n_tensors; k++)
    at[k] = w->data[k] + first * w->inner[k] * (int64_t)w->esize[k];
  for (int d = w->n_outer - 1; d >= 0; d--) {
    int64_t i = row % w->size[d];
    row /= w->size[d];
    for (int k = 0; k < w->n_tensors; k++) at[k] += i * w->outer[k][d];
  }
  int64_t left = w->len - first;
  return left < BK_CPU_WALK_CHUNK ? left : BK_CPU_WALK_CHUNK;
}

#endif
