/* Dense and grouped products. Blocks of both operands are converted to double once, multiplied,
 * and the block of the result is rounded once. The sum over l runs in ascending order whatever
 * the blocks. */
#include "backends/ref/ref.h"

enum { BLOCK = 24 }; /* three blocks lie on the stack */
typedef double block[BLOCK][BLOCK];

static int64_t block_size(int64_t total, int64_t begin) {
  return total - begin < BLOCK ? total - begin : BLOCK;
}

/* The part of the block that lies past the end of the matrix is left as it was. */
static void load_block(const bk_tensor *m, int64_t i0, int64_t j0, block out) {
  int64_t rows = block_size(m->shape[0], i0), columns = block_size(m->shape[1], j0);
  for (int64_t i = 0; i < rows; i++)
    bk_ref_load(m, at2(m, i0 + i, j0), m->stride[1], columns, out[i]);
}

static void store_block(const bk_tensor *m, int64_t i0, int64_t j0, block sums, double alpha,
                        bool accumulate) {
  int64_t rows = block_size(m->shape[0], i0), columns = block_size(m->shape[1], j0);
  for (int64_t i = 0; i < rows; i++) {
    double old[BLOCK] = {0};
    if (accumulate) bk_ref_load(m, at2(m, i0 + i, j0), m->stride[1], columns, old);
    for (int64_t j = 0; j < columns; j++) sums[i][j] = alpha * sums[i][j] + old[j];
    bk_ref_store(m, at2(m, i0 + i, j0), m->stride[1], columns, sums[i]);
  }
}

static void multiply_block(const double (*restrict a)[BLOCK], const double (*restrict b)[BLOCK],
                           double (*restrict c)[BLOCK], int64_t rows, int64_t columns,
                           int64_t depth) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t l = 0; l < depth; l++) {
#pragma omp simd
      for (int64_t j = 0; j < columns; j++) c[i][j] += a[i][l] * b[l][j];
    }
}

void bk_ref_matmul(const bk_tensor *a, const bk_tensor *b, const bk_tensor *c, double alpha,
                   bool accumulate) {
  int64_t m = c->shape[0], n = c->shape[1], k = a->shape[1];
  for (int64_t i0 = 0; i0 < m; i0 += BLOCK)
    for (int64_t j0 = 0; j0 < n; j0 += BLOCK) {
      block sums = {{0}}, ab, bb;
      for (int64_t l0 = 0; l0 < k; l0 += BLOCK) {
        load_block(a, i0, l0, ab);
        load_block(b, l0, j0, bb);
        multiply_block((const double(*)[BLOCK])ab, (const double(*)[BLOCK])bb, sums,
                       block_size(m, i0), block_size(n, j0), block_size(k, l0));
      }
      store_block(c, i0, j0, sums, alpha, accumulate);
    }
}

/* Matrix `i` of a [B,rows,columns] tensor; a matrix stands for itself. */
static bk_tensor matrix_of(const bk_tensor *t, int64_t i) {
  bk_tensor m = *t;
  if (t->ndim == 2) return m;
  m.ndim = 2;
  m.offset += (size_t)(i * t->stride[0]) * bk_dtype_size(t->dtype);
  for (int d = 0; d < 2; d++) {
    m.shape[d] = t->shape[d + 1];
    m.stride[d] = t->stride[d + 1];
  }
  return m;
}

BK_REF_LAUNCH(gemm) {
  const bk_gemm_args *g = args;
  int64_t batch = g->c.ndim == 3 ? g->c.shape[0] : 1;
  for (int64_t i = 0; i < batch; i++) {
    bk_tensor a = matrix_of(&g->a, i), b = matrix_of(&g->b, i), c = matrix_of(&g->c, i);
    bk_ref_matmul(&a, &b, &c, g->alpha, g->accumulate);
  }
  return BK_OK;
}

/* Rows offsets[e] .. offsets[e+1]-1. */
static bk_tensor rows_of(const bk_tensor *t, const bk_tensor *offsets, int64_t e) {
  bk_tensor rows = *t;
  int64_t begin = geti1(offsets, e);
  rows.offset += (size_t)(begin * t->stride[0]) * bk_dtype_size(t->dtype);
  rows.shape[0] = geti1(offsets, e + 1) - begin;
  return rows;
}

static bk_tensor transposed(bk_tensor m) {
  bk_tensor t = m;
  for (int d = 0; d < 2; d++) {
    t.shape[d] = m.shape[1 - d];
    t.stride[d] = m.stride[1 - d];
  }
  return t;
}

BK_REF_LAUNCH(grouped_gemm) {
  const bk_grouped_gemm_args *g = args;
  for (int64_t e = 0; e < g->b.shape[0]; e++) {
    bk_tensor a = rows_of(&g->a, &g->offsets, e), c = rows_of(&g->c, &g->offsets, e),
              b = matrix_of(&g->b, e);
    bk_ref_matmul(&a, &b, &c, 1, false);
  }
  return BK_OK;
}

BK_REF_LAUNCH(grouped_wgrad) {
  const bk_grouped_wgrad_args *g = args;
  for (int64_t e = 0; e < g->c.shape[0]; e++) {
    bk_tensor a = transposed(rows_of(&g->a, &g->offsets, e)), b = rows_of(&g->b, &g->offsets, e);
    bk_tensor c = matrix_of(&g->c, e);
    bk_ref_matmul(&a, &b, &c, 1, !g->overwrite);
  }
  return BK_OK;
}
