/* Dense products: the tile that every product of this backend is made of, and how products are
 * cut into tiles.
 *
 * c[m,n] = alpha a[m,k] b[k,n] (+ c), any strides of which one of a matrix's two is 1, operands
 * fp32 or bf16, sums in fp32. Three engines serve a tile: a packed blocked product of our own
 * (the bits of an element depend on the depth alone, not on the cut), a direct one that reads b
 * once, for up to BK_GEMM_FEW rows, and CBLAS (single-threaded; bf16 panels are converted in the
 * scratch), which serves where the packed one has no FMA to work with. The engine depends on
 * shapes and on the device only, the cut of CBLAS as well; the packed engine is cut to suit the
 * number of workers. */
#ifndef BK_CPU_GEMM_H
#define BK_CPU_GEMM_H

#include "backends/cpu/cpu.h"

#define BK_GEMM_TM 384 /* largest tile; multiples of 24 rows and 64 columns */
#define BK_GEMM_TN 512
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

typedef enum bk_gemm_engine { BK_GEMM_PACKED, BK_GEMM_DIRECT, BK_GEMM_BLAS } bk_gemm_engine;
/* For a product of `rows` rows in all, so that no cut changes the engine. */
static inline bk_gemm_engine bk_cpu_gemm_engine(bool blas, int64_t rows) {
  return rows <= BK_GEMM_FEW ? BK_GEMM_DIRECT : blas ? BK_GEMM_BLAS : BK_GEMM_PACKED;
}

/* What GEMM keeps of prepare. */
typedef struct bk_gemm_state {
  bool turned; /* c^T = b^T a^T is computed: c is dense by columns, or a single column */
  bk_gemm_cut cut;
  size_t scratch; /* of a worker */
} bk_gemm_state;

/* Of a product of `groups` experts, each of at most `rows` rows. */
bk_gemm_cut bk_cpu_gemm_grouped_cut(const bk_device *device, int64_t groups, int64_t rows,
                                    int64_t columns);
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
#define BK_GEMM_TILE(isa, ISA, ...)                                                               \
  void bk_cpu_gemm_tile_##isa(bk_gemm_engine engine, bk_gemm_mat a, bk_gemm_mat b, bk_gemm_mat c, \
                              bk_gemm_shape s, float alpha, bool accumulate, float *scratch);
BK_CPU_ISAS(BK_GEMM_TILE, 0)

/* ---- blas.c ---- */
bool bk_cpu_blas_built(void);
const char *bk_cpu_blas_name(void);
void bk_cpu_blas_init(void); /* one thread per call: the tiles are shared by our own */
/* fp32 operands, c rows dense; only where bk_cpu_blas_built. */
void bk_cpu_blas_sgemm(bk_gemm_mat a, bk_gemm_mat b, bk_gemm_mat c, bk_gemm_shape s, float alpha,
                       bool accumulate);

#endif
