/* Reductions over ranks, element by element over a balanced binary tree. Elements are taken in
 * blocks that stay in the fastest cache, with one partial result for each level of the tree, so
 * that memory is read once and written once however many ranks there are. A block is made before
 * it is written, because dst may be one of the sources. */
#include "comm/reduce.h"

#include <string.h>

#define BLOCK_BYTES 1024

typedef union block {
  float f32[BLOCK_BYTES / sizeof(float)];
  double f64[BLOCK_BYTES / sizeof(double)];
  int32_t i32[BLOCK_BYTES / sizeof(int32_t)];
  int64_t i64[BLOCK_BYTES / sizeof(int64_t)];
} block;

/* a = a with b, and out = a with b. */
typedef struct combine {
  void (*into)(void *a, const void *b, int n);
  void (*two)(void *out, const void *a, const void *b, int n);
} combine;

/* Compilers do not make vector code of such loops at -O2 unless they are told to. Elements do not
 * mix, so that the bits are the same either way. */
#define COMBINE(name, type, result)                                           \
  static void name##_into(void *a_, const void *b_, int n) {                  \
    type *restrict a = a_;                                                    \
    const type *restrict b = b_;                                              \
    _Pragma("omp simd") for (int i = 0; i < n; i++) {                         \
      const type x = a[i], y = b[i];                                          \
      a[i] = result;                                                          \
    }                                                                         \
  }                                                                           \
  static void name##_two(void *out_, const void *a_, const void *b_, int n) { \
    type *restrict out = out_;                                                \
    const type *restrict a = a_, *restrict b = b_;                            \
    _Pragma("omp simd") for (int i = 0; i < n; i++) {                         \
      const type x = a[i], y = b[i];                                          \
      out[i] = result;                                                        \
    }                                                                         \
  }                                                                           \
  static const combine name = {name##_into, name##_two};

/* Integers are added as unsigned ones, which wrap around. The first test of a maximum of floats
 * keeps a NaN of x, and one of y is taken because no comparison with it is true. */
COMBINE(sum_f32, float, x + y)
COMBINE(sum_f64, double, x + y)
COMBINE(sum_i32, uint32_t, x + y)
COMBINE(sum_i64, uint64_t, x + y)
COMBINE(max_f32, float, x != x || x > y ? x : y)
COMBINE(max_f64, double, x != x || x > y ? x : y)
COMBINE(max_i32, int32_t, x > y ? x : y)
COMBINE(max_i64, int64_t, x > y ? x : y)

static const combine *combine_of(bk_dtype dtype, bk_reduce op) {
  bool sum = op == BK_REDUCE_SUM;
  switch (dtype) {
    case BK_F64: return sum ? &sum_f64 : &max_f64;
    case BK_I32: return sum ? &sum_i32 : &max_i32;
    case BK_I64: return sum ? &sum_i64 : &max_i64;
    default: return sum ? &sum_f32 : &max_f32; /* bf16 too, as fp32 */
  }
}

/* One block of all ranks, n elements from `begin`. */
typedef struct tree {
  const combine *combine;
  const void *const *sources;
  bk_dtype dtype;
  int64_t begin;
  int n;
  block spare[BK_REDUCE_DEPTH];
} tree;

static const void *leaf(tree *t, int rank, block *room) {
  const char *at = (const char *)t->sources[rank] + (size_t)t->begin * bk_dtype_size(t->dtype);
  if (t->dtype != BK_BF16) return at;
  const uint16_t *half = (const void *)at;
#pragma omp simd
  for (int i = 0; i < t->n; i++) room->f32[i] = bk_bf16_to_f32(half[i]);
  return room;
}

/* The result is in *out, or where it already lies for a single rank. */
static const void *node(tree *t, int lo, int hi, block *out, int depth) {
  if (hi - lo == 1) return leaf(t, lo, out);
  int mid = (lo + hi) / 2;
  const void *left = node(t, lo, mid, out, depth + 1);
  const void *right = node(t, mid, hi, &t->spare[depth], depth + 1);
  if (left == out) t->combine->into(out, right, t->n);
  else t->combine->two(out, left, right, t->n);
  return out;
}

static void store(const tree *t, const void *result, void *dst) {
  size_t bytes = bk_dtype_size(t->dtype);
  char *at = (char *)dst + (size_t)t->begin * bytes;
  if (t->dtype != BK_BF16) {
    if (at != result) memcpy(at, result, (size_t)t->n * bytes);
    return;
  }
  const float *wide = result;
  uint16_t *half = (void *)at;
  for (int i = 0; i < t->n; i++) half[i] = bk_f32_to_bf16(wide[i]);
}

void bk_reduce_tree(bk_dtype dtype, bk_reduce op, const void *const *sources, int n, int64_t count,
                    void *dst) {
  tree t = {.combine = combine_of(dtype, op), .sources = sources, .dtype = dtype};
  block out;
  const int step = (int)(BLOCK_BYTES / (dtype == BK_BF16 ? sizeof(float) : bk_dtype_size(dtype)));
  for (t.begin = 0; t.begin < count; t.begin += step) {
    t.n = count - t.begin < step ? (int)(count - t.begin) : step;
    store(&t, node(&t, 0, n, &out, 0), dst);
  }
}
