/* The values that cases are filled with, and the tensors of cases. */
#include "tests/ops/harness.h"

#include <float.h>
#include <math.h>

const int64_t harness_tokens[6] = {1, 3, 13, 127, 257, 1024};
const int64_t harness_widths[3] = {31, 128, 2560};

#define ELEMENT_BUDGET (1 << 18)

int64_t harness_clip_tokens(const harness *h, int64_t tokens, int64_t per_token) {
  if (h->roof) return tokens;
  for (int i = HARNESS_WORKING - 1; i > 0; i--) {
    if (harness_tokens[i] <= tokens && harness_tokens[i] * per_token <= ELEMENT_BUDGET)
      return harness_tokens[i];
  }
  return 1;
}

/* ---- tensors ---- */

static bk_tensor padded(bk_dtype dtype, int pad, int ndim, const int64_t *shape) {
  bk_tensor t = bk_tensor_make(dtype, ndim, shape);
  for (int d = ndim - 2; d >= 0; d--) t.stride[d] = t.stride[d + 1] * t.shape[d + 1] + pad;
  return t;
}

bk_tensor h1(bk_dtype dtype, int64_t a) { return bk_tensor_1d(dtype, a); }
bk_tensor h2(bk_dtype dtype, int pad, int64_t a, int64_t b) {
  return padded(dtype, pad, 2, (int64_t[]){a, b});
}
bk_tensor h3(bk_dtype dtype, int pad, int64_t a, int64_t b, int64_t c) {
  return padded(dtype, pad, 3, (int64_t[]){a, b, c});
}
bk_tensor h4(bk_dtype dtype, int pad, int64_t a, int64_t b, int64_t c, int64_t d) {
  return padded(dtype, pad, 4, (int64_t[]){a, b, c, d});
}
bk_tensor h_blocks(bk_dtype dtype, int pad, int64_t a, int64_t n) {
  bk_tensor t = bk_tensor_3d(dtype, a, n, n);
  t.stride[0] += pad;
  return t;
}

/* ---- values ---- */

static int64_t below(uint64_t seed, uint64_t stream, uint64_t index, int64_t limit) {
  int64_t v = (int64_t)(bk_uniform(seed, stream, index) * (double)limit);
  return v < limit ? v : limit - 1;
}

static void permutation(uint64_t seed, uint64_t stream, int64_t count, double *values) {
  for (int64_t i = 0; i < count; i++) values[i] = (double)i;
  for (int64_t i = count - 1; i > 0; i--) {
    int64_t j = below(seed, stream, (uint64_t)i, i + 1);
    double v = values[i];
    values[i] = values[j];
    values[j] = v;
  }
}

static void distinct(uint64_t seed, uint64_t stream, const bk_tensor *t, int64_t limit,
                     double *values) {
  int64_t k = t->shape[1];
  uint64_t draw = 0;
  for (int64_t i = 0; i < t->shape[0]; i++) {
    for (int64_t j = 0; j < k;) {
      double v = (double)below(seed, stream, draw++, limit);
      int64_t l = 0;
      while (l < j && values[i * k + l] != v) l++;
      if (l == j) values[i * k + j++] = v;
    }
  }
}

static void offsets(uint64_t seed, uint64_t stream, int64_t count, int64_t total, double *values) {
  values[0] = 0;
  for (int64_t e = 1; e < count; e++) {
    int64_t left = total - (int64_t)values[e - 1];
    int64_t rows = e == count - 1 ? left
                   : e % 3 == 1   ? 0
                                  : below(seed, stream, (uint64_t)e, left + 1);
    values[e] = values[e - 1] + (double)rows;
  }
}

static double special(uint64_t seed, uint64_t stream, int64_t i) {
  static const double values[] = {INFINITY, -INFINITY,   NAN,          0.0,
                                  -0.0,     FLT_MAX / 2, -FLT_MAX / 2, FLT_MIN};
  int64_t pick = below(seed, stream + 1, (uint64_t)i, 64);
  return pick < (int64_t)BK_COUNT(values) ? values[pick] : bk_normal(seed, stream, (uint64_t)i);
}

/* 1 + (2j + 1) / 256 is half-way between two neighbours in bf16, whose last bits are even and
 * odd in turn. */
static double tie(uint64_t seed, uint64_t stream, int64_t i) {
  double sign = bk_uniform(seed, stream, (uint64_t)i) < 0.5 ? -1 : 1;
  return sign * ldexp(1 + (double)(2 * (i % 128) + 1) / 256,
                      (int)below(seed, stream + 1, (uint64_t)i, 20) - 10);
}

void harness_fill(const fill *f, const bk_tensor *t, uint64_t seed, uint64_t stream,
                  double *values) {
  int64_t count = bk_tensor_count(t);
  switch (f->kind) {
    case FILL_PERMUTATION: permutation(seed, stream, count, values); return;
    case FILL_DISTINCT: distinct(seed, stream, t, (int64_t)f->a, values); return;
    case FILL_OFFSETS: offsets(seed, stream, count, (int64_t)f->a, values); return;
    case FILL_CALL: f->fn(f, t, seed, stream, values); return;
    default: break;
  }
  for (int64_t i = 0; i < count; i++) {
    switch (f->kind) {
      case FILL_NORMAL: values[i] = f->a + f->b * bk_normal(seed, stream, (uint64_t)i); break;
      case FILL_UNIFORM:
        values[i] = f->a + (f->b - f->a) * bk_uniform(seed, stream, (uint64_t)i);
        break;
      case FILL_SPECIAL: values[i] = special(seed, stream, i); break;
      case FILL_TIES: values[i] = tie(seed, stream, i); break;
      case FILL_INDEX:
        values[i] = f->a + (double)below(seed, stream, (uint64_t)i, (int64_t)(f->b - f->a));
        break;
      case FILL_CONST: values[i] = f->a; break;
      default: values[i] = NAN; break;
    }
  }
}

/* ---- pairs ---- */

typedef struct pairs {
  const int *levels;
  int n;
  bool done[PAIRWISE_MAX][PAIRWISE_MAX][16][16];
} pairs;

/* Uncovered pairs that giving factor f the level v would cover, with the factors before it
 * fixed. */
static int pairs_gain(const pairs *p, const int *row, int f, int v) {
  int gain = 0;
  for (int g = 0; g < f; g++) gain += !p->done[g][f][row[g]][v];
  for (int g = f + 1; g < p->n; g++) {
    for (int w = 0; w < p->levels[g]; w++) gain += !p->done[f][g][v][w];
  }
  return gain;
}

static void pairs_mark(pairs *p, const int *row) {
  for (int f = 0; f < p->n; f++) {
    for (int g = f + 1; g < p->n; g++) {
      p->done[f][g][row[f]][row[g]] = true;
    }
  }
}

/* The first pair not covered yet, which the next row is built around. */
static bool pairs_open(const pairs *p, int *f, int *g, int *v, int *w) {
  for (*f = 0; *f < p->n; ++*f) {
    for (*g = *f + 1; *g < p->n; ++*g) {
      for (*v = 0; *v < p->levels[*f]; ++*v) {
        for (*w = 0; *w < p->levels[*g]; ++*w) {
          if (!p->done[*f][*g][*v][*w]) return true;
        }
      }
    }
  }
  return false;
}

void harness_pairwise(harness *h, const int *levels, int n_factors,
                      void (*each)(harness *h, const int *level)) {
  pairs p = {.levels = levels, .n = n_factors};
  int f, g, v, w;
  while (pairs_open(&p, &f, &g, &v, &w)) {
    int row[PAIRWISE_MAX] = {0};
    for (int i = 0; i < n_factors; i++) {
      int best = 0;
      for (int level = 1; level < levels[i]; level++) {
        if (pairs_gain(&p, row, i, level) > pairs_gain(&p, row, i, best)) best = level;
      }
      row[i] = i == f ? v : i == g ? w : best;
    }
    pairs_mark(&p, row);
    each(h, row);
  }
}
