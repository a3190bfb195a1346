/* The rate of OpenBLAS's own sgemm, all threads, on c [m,n] = a [m,k] b [k,n]: the best of
 * several runs, in GFLOP/s. usage: openblas M N K; made and called by openblas.sh. */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *matrix(int rows, int columns) {
  float *x = malloc((size_t)rows * (size_t)columns * sizeof *x);
  for (long i = 0; x && i < (long)rows * columns; i++) x[i] = (float)(i % 17) - 8.f;
  return x;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int m = atoi(argv[1]), n = atoi(argv[2]), k = atoi(argv[3]);
  float *a = matrix(m, k), *b = matrix(k, n), *c = matrix(m, n);
  if (!a || !b || !c) return 1;
  double least = 1e30, end = seconds() + 0.5;
  do {
    double begin = seconds();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1.f, a, k, b, n, 0.f, c, n);
    double took = seconds() - begin;
    if (took < least) least = took;
  } while (seconds() < end);
  printf("%.1f\n", 2.0 * m * n * k / least * 1e-9);
  free(a), free(b), free(c);
  return 0;
}
