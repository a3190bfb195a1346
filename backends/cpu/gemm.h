/* Dense products: the tile that every product of this backend is made of, and how products are cut into tiles.
 *
 * c[m,n] = alpha a[m,k] b[k,n] (+ c), any strides of which one of a matrix's two is 1, operands fp32 or bf16, sums in fp32.
 * Three engines serve a tile: CBLAS (single-threaded; bf16 panels are converted in the scratch), a packed blocked product
 * of our own, and for up to BK_GEMM_FEW rows a direct one that reads b once. The cut into tiles and the choice of the engine
 * depend on shapes and on the device only, never on the number of threads. */
#ifndef BK_CPU_GEMM_H
#define BK_CPU_GEMM_H

#include "backends/cpu/cpu.h"

#define BK_GEMM_TM 192 /* largest tile; multiples of 48 rows and 64 columns */
#define BK_GEMM_TN 256
#define BK_GEMM_KC 256 /* depth of a packed or converted panel */
#define BK_GEMM_FEW 4

typedef struct bk_gemm_mat {
  char *data;
  int64_t rs, cs; /* elements between rows, between columns */
  bool bf16;
} bk_gemm_mat;

typedef struct bk_gemm_shape {
  int64_t m, n, k;
} bk_gemm_shape;

typedef struct bk_gemm_cut {
  int64_t tm, tn, rows, columns; /* size of a tile and number of tiles along m and n */
} bk_gemm_cut;

bk_gemm_cut bk_cpu_gemm_cut(int64_t m, int64_t n, int64_t k);
/* Scratch of one worker for tiles up to m x n, any depth; bytes, a multiple of 64. */
size_t bk_cpu_gemm_scratch(int64_t m, int64_t n);
static inline float *bk_cpu_gemm_worker(void *workspace, int worker, size_t scratch) {
  return (float *)(void *)((char *)workspace + (size_t)worker * scratch);
}
/* Elements between successive rows and columns of t from dimension d on. */
static inline bk_gemm_mat bk_cpu_gemm_view(const bk_tensor *t, int d) {
  return (bk_gemm_mat){bk_tensor_data(t), t->stride[d], t->stride[d + 1], t->dtype == BK_BF16};
}
static inline bk_gemm_mat bk_cpu_gemm_sub(bk_gemm_mat m, int64_t i, int64_t j) {
  m.data += (i * m.rs + j * m.cs) * (m.bf16 ? 2 : 4);
  return m;
}
static inline bk_gemm_mat bk_cpu_gemm_transposed(bk_gemm_mat m) {
  return (bk_gemm_mat){m.data, m.cs, m.rs, m.bf16};
}

/* One tile; scratch as bk_cpu_gemm_scratch says, 64-byte aligned. */
#define BK_GEMM_TILE(isa, ISA, ...)                                                                                      \
  void bk_cpu_gemm_tile_##isa(bool blas, bk_gemm_mat a, bk_gemm_mat b, bk_gemm_mat c, bk_gemm_shape s, float alpha,    \
                              bool accumulate, float *scratch);
BK_CPU_ISAS(BK_GEMM_TILE, 0)

/* ---- blas.c ---- */
bool bk_cpu_blas_built(void);
const char *bk_cpu_blas_name(void);
void bk_cpu_blas_init(void); /* one thread per call: the tiles are shared by our own */
/* fp32 operands, c rows dense; only where bk_cpu_blas_built. */
void bk_cpu_blas_sgemm(bk_gemm_mat a, bk_gemm_mat b, bk_gemm_mat c, bk_gemm_shape s, float alpha, bool accumulate);

#endif
