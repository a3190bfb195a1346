/* The only file that knows CBLAS. */
#include "backends/cpu/gemm.h"

#ifdef HAVE_CBLAS
#include <cblas.h>

bool bk_cpu_blas_built(void) { return true; }

#ifdef OPENBLAS_VERSION
const char *bk_cpu_blas_name(void) { return "OpenBLAS"; }
void bk_cpu_blas_init(void) { openblas_set_num_threads(1); }
#else
const char *bk_cpu_blas_name(void) { return "CBLAS"; }
void bk_cpu_blas_init(void) {}
#endif

static int leading(int64_t stride, int64_t least) { return (int)(stride > least ? stride : least); }

/* A rows x columns view as CBLAS wants it, row major. */
static CBLAS_TRANSPOSE describe(const bk_gemm_mat *x, int64_t rows, int64_t columns, int *ld) {
  if (x->cs == 1 || columns == 1) {
    *ld = leading(rows == 1 ? 0 : x->rs, columns);
    return CblasNoTrans;
  }
  *ld = leading(x->cs, rows);
  return CblasTrans;
}

void bk_cpu_blas_sgemm(bk_gemm_mat a, bk_gemm_mat b, bk_gemm_mat c, bk_gemm_shape s, float alpha,
                       bool accumulate) {
  int lda, ldb, ldc = leading(c.rs, s.n);
  CBLAS_TRANSPOSE ta = describe(&a, s.m, s.k, &lda), tb = describe(&b, s.k, s.n, &ldb);
  cblas_sgemm(CblasRowMajor, ta, tb, (int)s.m, (int)s.n, (int)s.k, alpha,
              (const float *)(const void *)a.data, lda, (const float *)(const void *)b.data, ldb,
              accumulate ? 1.f : 0.f, (float *)(void *)c.data, ldc);
}

#else

bool bk_cpu_blas_built(void) { return false; }
const char *bk_cpu_blas_name(void) { return ""; }
void bk_cpu_blas_init(void) {}
/* Never chosen in this build: products go to the packed engine. */
void bk_cpu_blas_sgemm(bk_gemm_mat a, bk_gemm_mat b, bk_gemm_mat c, bk_gemm_shape s, float alpha,
                       bool accumulate) {
  (void)a, (void)b, (void)c, (void)s, (void)alpha, (void)accumulate;
}

#endif
