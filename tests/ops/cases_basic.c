/* Cases of copies, dense products and the optimiser. */
#include "tests/ops/harness.h"

#include <math.h>

static const char *strided_name(int pad) { return pad ? "strided" : "dense"; }

/* ---- copies ---- */

static void copy_case(harness *h, bk_dtype to, const fill *fills, int pad, int64_t rows,
                      const char *what) {
  bk_copy_args a = {h3(h->st, pad, 3, rows, 31), h3(to, 0, 3, rows, 31)};
  harness_case(h, BK_OP_COPY, &a, fills, NULL, "to=%s,%s,%s,rows=%lld", bk_dtype_name(to), what,
               strided_name(pad), (long long)rows);
}

/* Rows at multiples of 16 bytes in both types, one of them or neither; longer than 32 packs of 8
 * elements. */
static void aligned_copy(harness *h, bk_dtype to, int pad, int pad_to) {
  bk_copy_args a = {h3(h->st, pad, 3, 5, 296), h3(to, pad_to, 3, 5, 296)};
  harness_case(h, BK_OP_COPY, &a, NULL, NULL, "to=%s,aligned,pad=%d,pad_to=%d,strided",
               bk_dtype_name(to), pad, pad_to);
}

static void cases_copy(harness *h) {
  const bk_dtype types[] = {BK_F32, BK_BF16};
  const fill ties[] = {{"x", FILL_TIES, 0, 0, NULL, NULL}, FILL_END};
  const fill special[] = {{"x", FILL_SPECIAL, 0, 0, NULL, NULL}, FILL_END};
  for (int t = 0; t < 2; t++) {
    for (int i = 0; i < 5; i++)
      copy_case(h, types[t], NULL, i % 2 * HARNESS_PAD, harness_tokens[i], "normal");
    copy_case(h, types[t], ties, 0, 127, "ties");
    copy_case(h, types[t], special, HARNESS_PAD, 127, "special");
  }
  static const int pads[][2] = {{0, 8}, {8, 0}, {8, 16}, {4, 8}, {8, 4}};
  for (int i = 0; i < 10; i++) aligned_copy(h, types[i % 2], pads[i / 2][0], pads[i / 2][1]);
  bk_copy_args turned = {bk_tensor_transpose(h2(h->st, 1, 31, 13), 0, 1), h2(h->st, 0, 13, 31)};
  harness_case(h, BK_OP_COPY, &turned, NULL, NULL, "transposed,strided");
  bk_copy_args into = {h2(h->st, 0, 13, 31), bk_tensor_transpose(h2(h->st, 1, 31, 13), 0, 1)};
  harness_case(h, BK_OP_COPY, &into, NULL, NULL, "into_transposed,strided");
  bk_copy_args broadcast = {h3(h->st, 0, 13, 1, 31), h3(h->st, 0, 13, 4, 31)};
  broadcast.x.shape[1] = 4;
  broadcast.x.stride[1] = 0;
  harness_case(h, BK_OP_COPY, &broadcast, NULL, NULL, "broadcast");
  bk_copy_args four = {h4(h->st, 2, 3, 5, 2, 31), h4(h->st, 0, 3, 5, 2, 31)};
  harness_case(h, BK_OP_COPY, &four, NULL, NULL, "four,strided");
  bk_copy_args flat = {h1(h->st, 2561), h1(h->ct, 2561)};
  harness_case(h, BK_OP_COPY, &flat, NULL, NULL, "flat,to_ct");
}

static void cases_add(harness *h) {
  const fill inplace[] = {{"y", FILL_INPLACE, 0, 0, "a", NULL}, FILL_END};
  const fill inplace_b[] = {{"y", FILL_INPLACE, 0, 0, "b", NULL}, FILL_END};
  const fill special[] = {{"a", FILL_SPECIAL, 0, 0, NULL, NULL}, FILL_END};
  for (int i = 0; i < 5; i++) {
    int64_t n = harness_tokens[i], c = harness_widths[i % 3];
    int pad = i % 2 * HARNESS_PAD;
    bk_add_args a = {h2(h->st, pad, n, c), h2(h->st, 0, n, c), h2(h->st, pad, n, c)};
    harness_case(h, BK_OP_ADD, &a, NULL, NULL, "N=%lld,C=%lld,%s", (long long)n, (long long)c,
                 strided_name(pad));
    harness_case(h, BK_OP_ADD, &a, inplace, NULL, "inplace,N=%lld,C=%lld,%s", (long long)n,
                 (long long)c, strided_name(pad));
  }
  bk_add_args aligned = {h3(h->st, 8, 3, 5, 296), h3(h->st, 0, 3, 5, 296), h3(h->st, 8, 3, 5, 296)};
  harness_case(h, BK_OP_ADD, &aligned, NULL, NULL, "aligned,strided");
  harness_case(h, BK_OP_ADD, &aligned, inplace, NULL, "aligned,inplace,strided");
  bk_add_args a = {h3(h->st, 1, 13, 4, 31), h3(h->st, 0, 13, 4, 31), h3(h->st, 0, 13, 4, 31)};
  harness_case(h, BK_OP_ADD, &a, special, NULL, "special,strided");
  harness_case(h, BK_OP_ADD, &a, inplace_b, NULL, "inplace_b,strided");
}

/* SUM and SUMSQ take args of one layout. */
static void cases_reduce(harness *h) {
  const int64_t counts[] = {1, 31, 257, 2560, 100003};
  for (int i = 0; i < 5; i++) {
    for (int accumulate = 0; accumulate < 2; accumulate++) {
      const fill fills[] = {{"x", FILL_NORMAL, 0.5, 1, NULL, NULL},
                            {"y", accumulate ? FILL_CONST : FILL_POISON, 7.25, 0, NULL, NULL},
                            FILL_END};
      bk_sum_args a = {h1(h->ct, counts[i]), h1(h->ct, 1), accumulate};
      harness_case(h, BK_OP_SUM, &a, fills, NULL, "N=%lld,acc=%d", (long long)counts[i],
                   accumulate);
      bk_sumsq_args b = {h1(h->ct, counts[i]), h1(h->ct, 1), accumulate};
      harness_case(h, BK_OP_SUMSQ, &b, fills, NULL, "P=%lld,acc=%d", (long long)counts[i],
                   accumulate);
    }
  }
  const fill infinite[] = {
      {"x", FILL_SPECIAL, 0, 0, NULL, NULL}, {"y", FILL_POISON, 0, 0, NULL, NULL}, FILL_END};
  bk_sumsq_args b = {h1(h->ct, 257), h1(h->ct, 1), false};
  harness_case(h, BK_OP_SUMSQ, &b, infinite, NULL, "special");
}

/* ---- gemm ---- */

/* A matrix [rows, columns], stored transposed where asked. */
static bk_tensor matrix(bk_dtype dtype, bool turned, int pad, int64_t batch, int64_t rows,
                        int64_t columns) {
  int64_t outer = turned ? columns : rows, inner = turned ? rows : columns;
  bk_tensor t = batch ? h3(dtype, pad, batch, outer, inner) : h2(dtype, pad, outer, inner);
  return turned ? bk_tensor_transpose(t, t.ndim - 2, t.ndim - 1) : t;
}

typedef struct gemm_shape {
  int64_t batch, m, k, n;
} gemm_shape;
static const gemm_shape gemm_shapes[] = {{0, 1, 1, 1},      {0, 13, 31, 7},    {0, 127, 128, 65},
                                         {0, 257, 31, 130}, {3, 13, 64, 31},   {0, 1, 2560, 24},
                                         {2, 128, 17, 1},   {0, 33, 2048, 48}, {0, 64, 1, 64},
                                         {0, 3, 128, 257},  {0, 411, 300, 70}, {0, 70, 260, 547}};

enum { GEMM_SHAPE, GEMM_TURN_A, GEMM_TURN_B, GEMM_TURN_C, GEMM_PAD, GEMM_ACCUMULATE, GEMM_TYPES };

static void gemm_case(harness *h, const int *level) {
  gemm_shape s = gemm_shapes[level[GEMM_SHAPE]];
  int pad = level[GEMM_PAD] * HARNESS_PAD, types = level[GEMM_TYPES];
  bk_dtype ta = types & 1 ? h->ct : h->st, tb = types & 2 ? h->ct : h->st,
           tc = types & 4 ? h->ct : h->st;
  bk_gemm_args a = {matrix(ta, level[GEMM_TURN_A], pad, s.batch, s.m, s.k),
                    matrix(tb, level[GEMM_TURN_B], pad, s.batch, s.k, s.n),
                    matrix(tc, level[GEMM_TURN_C], pad, s.batch, s.m, s.n),
                    level[GEMM_SHAPE] % 2 ? 1.0 : -0.375, level[GEMM_ACCUMULATE]};
  const fill fills[] = {{"c", a.accumulate ? FILL_NORMAL : FILL_POISON, 0, 1, NULL, NULL},
                        FILL_END};
  harness_case(
      h, BK_OP_GEMM, &a, fills, NULL, "B=%lld,M=%lld,K=%lld,N=%lld,%c%c%c,types=%d,acc=%d,%s",
      (long long)s.batch, (long long)s.m, (long long)s.k, (long long)s.n, "nt"[level[GEMM_TURN_A]],
      "nt"[level[GEMM_TURN_B]], "nt"[level[GEMM_TURN_C]], types, a.accumulate, strided_name(pad));
}

/* No inner dimension: zeros, or what was there. */
static void cases_gemm_empty(harness *h) {
  for (int accumulate = 0; accumulate < 2; accumulate++) {
    bk_gemm_args a = {h2(h->st, 0, 13, 1), h2(h->st, 0, 1, 7), h2(h->st, 0, 13, 7), 1.0,
                      accumulate};
    a.a.shape[1] = 0;
    a.b.shape[0] = 0;
    const fill fills[] = {{"c", accumulate ? FILL_NORMAL : FILL_POISON, 0, 1, NULL, NULL},
                          FILL_END};
    harness_case(h, BK_OP_GEMM, &a, fills, NULL, "K=0,acc=%d", accumulate);
  }
}

/* [batch, rows, columns] in rows of whole 16-byte pieces, stored transposed where asked. */
static bk_tensor pieces(bk_dtype dtype, bool turned, int64_t batch, int64_t rows, int64_t columns) {
  int64_t outer = turned ? columns : rows, inner = turned ? rows : columns;
  bk_tensor t = h3(dtype, 0, batch, outer, inner);
  t.stride[1] = BK_ALIGN_UP(inner, 8);
  t.stride[0] = outer * t.stride[1];
  return turned ? bk_tensor_transpose(t, 1, 2) : t;
}

/* Many tiles of a large product, all layouts; no tile divides the sizes, nor does a piece divide
 * those of the first half. */
static void cases_gemm_many(harness *h) {
  for (int i = 0; i < 16; i++) {
    const int64_t batch = 32, m = i & 8 ? 136 : 133, k = i & 8 ? 40 : 37, n = i & 8 ? 144 : 141;
    const int types = h->st == BK_BF16 ? i & 8 ? 1 : 4 : 0;
    bk_gemm_args a = {pieces(types & 1 ? h->ct : h->st, i & 1, batch, m, k),
                      pieces(h->st, i >> 1 & 1, batch, k, n),
                      pieces(types & 4 ? h->ct : h->st, i >> 2 & 1, batch, m, n), 0.75, i % 3 == 0};
    const fill fills[] = {{"c", a.accumulate ? FILL_NORMAL : FILL_POISON, 0, 1, NULL, NULL},
                          FILL_END};
    harness_case(h, BK_OP_GEMM, &a, fills, NULL, "many,M=%lld,K=%lld,N=%lld,%c%c%c,types=%d,acc=%d",
                 (long long)m, (long long)k, (long long)n, "nt"[i & 1], "nt"[i >> 1 & 1],
                 "nt"[i >> 2 & 1], types, a.accumulate);
  }
  for (int i = 0; i < 2; i++) { /* tall, wide */
    const int64_t m = i ? 130 : 1100, n = i ? 1100 : 130;
    bk_gemm_args a = {h2(h->st, 0, m, 24), h2(h->st, 0, 24, n), h2(h->st, 0, m, n), 1.0, false};
    const fill fills[] = {{"c", FILL_POISON, 0, 0, NULL, NULL}, FILL_END};
    harness_case(h, BK_OP_GEMM, &a, fills, NULL, "many,M=%lld,N=%lld", (long long)m, (long long)n);
  }
}

static void cases_gemm(harness *h) {
  const int levels[] = {(int)BK_COUNT(gemm_shapes), 2, 2, 2, 2, 2, h->st == BK_BF16 ? 8 : 1};
  harness_pairwise(h, levels, 7, gemm_case);
  /* all four transpose combinations at one shape, batched and not */
  for (int i = 0; i < 16; i++)
    gemm_case(h, (int[]){i & 8 ? 4 : 2, i & 1, i >> 1 & 1, 0, i >> 2 & 1, 0, 0});
  cases_gemm_empty(h);
  cases_gemm_many(h);
  const fill special[] = {
      {"a", FILL_SPECIAL, 0, 0, NULL, NULL}, {"c", FILL_POISON, 0, 0, NULL, NULL}, FILL_END};
  bk_gemm_args a = {h2(h->st, 0, 127, 1), h2(h->st, 0, 1, 31), h2(h->ct, 0, 127, 31), 1.0, false};
  harness_case(h, BK_OP_GEMM, &a, special, NULL, "special");
}

/* Elements behind each line of `inner` elements that align the next one to 16 bytes. */
static int aligning_pad(bk_dtype dtype, int64_t inner) {
  int pack = (int)(16 / bk_dtype_size(dtype));
  return (int)((pack - inner % pack) % pack);
}

static bk_tensor aligned_matrix(bk_dtype dtype, bool turned, int64_t batch, int64_t rows,
                                int64_t columns) {
  bk_tensor t =
      matrix(dtype, turned, aligning_pad(dtype, turned ? rows : columns), batch, rows, columns);
  if (batch) t.stride[0] += aligning_pad(dtype, t.stride[0]);
  return t;
}

/* Sizes of several tiles with ends in them, lines aligned: what kernels of big tiles ask for. */
static void gemm_tiles_case(harness *h, const int *level) {
  static const gemm_shape shapes[] = {
      {0, 128, 64, 128}, {0, 200, 77, 392}, {0, 131, 200, 136}, {2, 131, 584, 389}};
  gemm_shape s = shapes[level[0]];
  bk_dtype tc = level[5] ? h->ct : h->st;
  bk_gemm_args a = {aligned_matrix(h->st, level[1], s.batch, s.m, s.k),
                    aligned_matrix(h->st, level[2], s.batch, s.k, s.n),
                    aligned_matrix(tc, level[3], s.batch, s.m, s.n), level[0] % 2 ? 1.0 : -0.375,
                    level[4]};
  const fill fills[] = {{"c", a.accumulate ? FILL_NORMAL : FILL_POISON, 0, 1, NULL, NULL},
                        FILL_END};
  harness_case(h, BK_OP_GEMM, &a, fills, NULL,
               "tiles,B=%lld,M=%lld,K=%lld,N=%lld,%c%c%c,acc=%d,c=%s", (long long)s.batch,
               (long long)s.m, (long long)s.k, (long long)s.n, "nt"[level[1]], "nt"[level[2]],
               "nt"[level[3]], a.accumulate, level[5] ? "ct" : "st");
}

/* An infinity in row 3 and a not-a-number at the end: those rows have them, others and what pads
 * tiles do not. */
static void fill_two_special(const fill *f BK_UNUSED, const bk_tensor *t, uint64_t seed BK_UNUSED,
                             uint64_t stream BK_UNUSED, double *values) {
  for (int64_t i = 0; i < bk_tensor_count(t); i++) values[i] = (double)(i % 13 - 6) / 8;
  values[3 * t->shape[1] + 5] = INFINITY;
  values[bk_tensor_count(t) - 1] = NAN;
}

static void gemm_tiles_special(harness *h) {
  const fill special[] = {{"a", FILL_CALL, 0, 0, NULL, fill_two_special},
                          {"c", FILL_POISON, 0, 0, NULL, NULL},
                          FILL_END};
  bk_gemm_args a = {aligned_matrix(h->st, false, 0, 131, 77),
                    aligned_matrix(h->st, false, 0, 77, 141),
                    aligned_matrix(h->ct, false, 0, 131, 141), 1.0, false};
  harness_case(h, BK_OP_GEMM, &a, special, NULL, "tiles,special");
}

/* ---- products over experts ---- */

typedef struct grouped_shape {
  int64_t experts, rows, room, k, n;
} grouped_shape;
static const grouped_shape grouped_shapes[] = {{1, 13, 13, 31, 7},    {4, 127, 130, 64, 33},
                                               {8, 257, 300, 31, 48}, {3, 1, 1, 128, 24},
                                               {16, 13, 40, 17, 1},   {5, 0, 8, 9, 11}};

static void grouped_case(harness *h, const int *level) {
  grouped_shape s = grouped_shapes[level[0]];
  int pad = level[2] * HARNESS_PAD;
  bk_tensor b = level[1] ? bk_tensor_transpose(h3(h->st, pad, s.experts, s.n, s.k), 1, 2)
                         : h3(h->st, pad, s.experts, s.k, s.n);
  bk_grouped_gemm_args a = {h2(h->st, pad, s.room, s.k), b, h1(BK_I32, s.experts + 1),
                            h2(h->st, pad, s.room, s.n)};
  const fill fills[] = {{"offsets", FILL_OFFSETS, (double)s.rows, 0, NULL, NULL},
                        {"c", FILL_POISON, 0, 0, NULL, NULL},
                        FILL_END};
  harness_case(h, BK_OP_GROUPED_GEMM, &a, fills, NULL,
               "E=%lld,rows=%lld,room=%lld,K=%lld,N=%lld,%c,%s", (long long)s.experts,
               (long long)s.rows, (long long)s.room, (long long)s.k, (long long)s.n, "nt"[level[1]],
               strided_name(pad));
  if (level[1]) return;
  bk_grouped_wgrad_args w = {h2(h->st, pad, s.room, s.k), h2(h->st, pad, s.room, s.n),
                             h1(BK_I32, s.experts + 1), h3(h->ct, pad, s.experts, s.k, s.n), false};
  for (int overwrite = 0; overwrite < 2; overwrite++) {
    const fill wgrad[] = {{"offsets", FILL_OFFSETS, (double)s.rows, 0, NULL, NULL},
                          {"c", overwrite ? FILL_POISON : FILL_NORMAL, 0, 1, NULL, NULL},
                          FILL_END};
    w.overwrite = overwrite;
    harness_case(h, BK_OP_GROUPED_WGRAD, &w, wgrad, NULL,
                 "E=%lld,rows=%lld,room=%lld,P=%lld,Q=%lld,overwrite=%d,%s", (long long)s.experts,
                 (long long)s.rows, (long long)s.room, (long long)s.k, (long long)s.n, overwrite,
                 strided_name(pad));
  }
}

/* Enough rows for large tiles; K and N no multiples of them, in rows of 16-byte pieces or whole
 * ones. */
static void cases_grouped_many(harness *h) {
  for (int i = 0; i < 4; i++) {
    const int64_t experts = 34, room = 34 * 110, rows = room - 5, k = i & 1 ? 136 : 133,
                  n = i & 1 ? 144 : 141;
    const int pad = i & 1 ? 0 : 3;
    bk_tensor b = pieces(h->st, i & 2, experts, k, n);
    const fill fills[] = {{"offsets", FILL_OFFSETS, (double)rows, 0, NULL, NULL},
                          {"c", FILL_POISON, 0, 0, NULL, NULL},
                          FILL_END};
    const fill wgrad[] = {{"offsets", FILL_OFFSETS, (double)rows, 0, NULL, NULL},
                          {"c", i & 2 ? FILL_POISON : FILL_NORMAL, 0, 1, NULL, NULL},
                          FILL_END};
    bk_grouped_gemm_args a = {h2(h->st, pad, room, k), b, h1(BK_I32, experts + 1),
                              h2(i & 2 ? h->ct : h->st, pad, room, n)};
    bk_grouped_wgrad_args w = {h2(h->st, pad, room, k), h2(h->st, pad, room, n),
                               h1(BK_I32, experts + 1), h3(h->ct, pad, experts, k, n), i & 2};
    harness_case(h, BK_OP_GROUPED_GEMM, &a, fills, NULL, "many,K=%lld,N=%lld,%c", (long long)k,
                 (long long)n, "nt"[i >> 1 & 1]);
    harness_case(h, BK_OP_GROUPED_WGRAD, &w, wgrad, NULL, "many,P=%lld,Q=%lld,overwrite=%d",
                 (long long)k, (long long)n, w.overwrite);
  }
}

/* Offsets of groups whose sizes are around those of tiles, some empty; `a` is the number of
 * groups. */
static int64_t tiles_rows(int64_t group, int64_t groups) {
  static const int64_t few[] = {1, 0, 63, 129, 64, 0, 65};
  return groups <= (int64_t)BK_COUNT(few) ? few[group]
         : group % 3 == 0                 ? 0
         : group % 7 == 0                 ? 130
                                          : 1 + group % 5;
}
static int64_t tiles_begin(int64_t group, int64_t groups) {
  int64_t begin = 0;
  for (int64_t i = 0; i < group; i++) begin += tiles_rows(i, groups);
  return begin;
}
static void fill_tiles(const fill *f, const bk_tensor *t, uint64_t seed BK_UNUSED,
                       uint64_t stream BK_UNUSED, double *values) {
  for (int64_t i = 0; i < bk_tensor_count(t); i++)
    values[i] = (double)tiles_begin(i, (int64_t)f->a);
}

static void grouped_tiles_case(harness *h, const int *level) {
  static const grouped_shape shapes[] = {
      {7, 0, 0, 64, 128}, {7, 0, 0, 77, 397}, {40, 0, 0, 264, 72}};
  grouped_shape s = shapes[level[0]];
  s.rows = tiles_begin(s.experts, s.experts), s.room = s.rows + 13;
  bk_tensor rows = aligned_matrix(h->st, false, 0, s.room, s.k),
            out = aligned_matrix(level[2] ? h->ct : h->st, false, 0, s.room, s.n);
  bk_grouped_gemm_args a = {rows, aligned_matrix(h->st, level[1], s.experts, s.k, s.n),
                            h1(BK_I32, s.experts + 1), out};
  const fill offsets = {"offsets", FILL_CALL, (double)s.experts, 0, NULL, fill_tiles};
  const fill fills[] = {offsets, {"c", FILL_POISON, 0, 0, NULL, NULL}, FILL_END};
  harness_case(h, BK_OP_GROUPED_GEMM, &a, fills, NULL,
               "tiles,E=%lld,rows=%lld,K=%lld,N=%lld,%c,c=%s", (long long)s.experts,
               (long long)s.rows, (long long)s.k, (long long)s.n, "nt"[level[1]],
               level[2] ? "ct" : "st");
  if (level[1]) return;
  bool overwrite = level[2];
  bk_grouped_wgrad_args w = {rows, aligned_matrix(h->st, false, 0, s.room, s.n), a.offsets,
                             aligned_matrix(h->ct, false, s.experts, s.k, s.n), overwrite};
  const fill wgrad[] = {
      offsets, {"c", overwrite ? FILL_POISON : FILL_NORMAL, 0, 1, NULL, NULL}, FILL_END};
  harness_case(h, BK_OP_GROUPED_WGRAD, &w, wgrad, NULL,
               "tiles,E=%lld,rows=%lld,P=%lld,Q=%lld,overwrite=%d", (long long)s.experts,
               (long long)s.rows, (long long)s.k, (long long)s.n, overwrite);
}

/* ---- optimiser ---- */

/* Parameters of the step block; b = 0 makes the step one that must not be taken; a is the sum of
 * squares. */
static void fill_step(const fill *f, const bk_tensor *t, uint64_t seed BK_UNUSED,
                      uint64_t stream BK_UNUSED, double *values) {
  for (int64_t i = 0; i < bk_tensor_count(t); i++) values[i] = 0;
  values[BK_STEP_LR] = 1e-3;
  values[BK_STEP_BC1] = 1 - pow(0.9, 7);
  values[BK_STEP_BC2] = 1 - pow(0.95, 7);
  values[BK_STEP_MAX_NORM] = 1.0;
  values[BK_STEP_LOSS] = 3.25;
  values[BK_STEP_SUMSQ] = f->a;
  values[BK_STEP_CLIP] = 0.625;
  values[BK_STEP_FINITE] = f->b;
}

static void cases_clip(harness *h) {
  const double sums[] = {0, 0.25, 1, 77.5, INFINITY, NAN};
  for (int i = 0; i < 6; i++) {
    const fill fills[] = {{"step", FILL_CALL, sums[i], 1, NULL, fill_step}, FILL_END};
    bk_clip_args a = {h1(h->ct, BK_STEP_FIELDS)};
    harness_case(h, BK_OP_CLIP, &a, fills, NULL, "sumsq=%g", sums[i]);
  }
}

static void cases_adamw(harness *h) {
  const int64_t counts[] = {1, 31, 257, 2561, 1, 31, 257, 2561, 70003, 70003};
  for (int i = 0; i < (h->quick ? 8 : 10); i++) {
    int64_t p = counts[i];
    bool master = i & 4 || i == 9, finite = i != 1 && i != 5;
    bk_adamw_args a = {h1(h->ct, p),
                       h1(h->ct, BK_STEP_FIELDS),
                       h1(master ? h->st : h->ct, p),
                       {0},
                       h1(h->ct, p),
                       h1(h->ct, p),
                       0.9,
                       0.95,
                       i & 2 ? 1e-8 : 1e-20,
                       i & 1 ? 0 : 0.1};
    if (master) a.master = h1(h->ct, p);
    const fill fills[] = {{"step", FILL_CALL, 1, finite, NULL, fill_step},
                          {"v", FILL_UNIFORM, 0, 1, NULL, NULL},
                          FILL_END};
    harness_case(h, BK_OP_ADAMW, &a, fills, NULL, "P=%lld,master=%d,finite=%d,eps=%g,wd=%g",
                 (long long)p, master, finite, a.eps, a.weight_decay);
  }
}

/* ---- sizes for --perf ---- */

/* A layer's forward (x W^T), gradient of x (dy W) and of W (dy^T x, into ct) where x is [rows,
 * in], y [rows, out]. */
static void perf_linear(harness *h, int64_t rows, int64_t in, int64_t out) {
  const bk_tensor x = h2(h->st, 0, rows, in), w = h2(h->st, 0, out, in),
                  y = h2(h->st, 0, rows, out);
  const bk_gemm_args all[] = {{x, bk_tensor_transpose(w, 0, 1), y, 1, false},
                              {y, w, x, 1, false},
                              {bk_tensor_transpose(y, 0, 1), x, h2(h->ct, 0, out, in), 1, true}};
  for (int i = 0; i < 3; i++)
    harness_case(h, BK_OP_GEMM, &all[i], NULL, NULL, "%s,rows=%lld,in=%lld,out=%lld",
                 (const char *[]){"forward", "dgrad", "wgrad"}[i], (long long)rows, (long long)in,
                 (long long)out);
}

static void perf_experts(harness *h, int64_t experts, int64_t rows, int64_t in, int64_t out) {
  const bk_tensor x = h2(h->st, 0, rows, in), y = h2(h->st, 0, rows, out),
                  offsets = h1(BK_I32, experts + 1);
  const bk_tensor w = h3(h->st, 0, experts, out, in);
  const bk_grouped_gemm_args forward = {x, bk_tensor_transpose(w, 1, 2), offsets, y},
                             dgrad = {y, w, offsets, x};
  const bk_grouped_wgrad_args wgrad = {y, x, offsets, h3(h->ct, 0, experts, out, in), false};
  const fill fills[] = {{"offsets", FILL_OFFSETS, (double)rows, 0, NULL, NULL}, FILL_END};
  const long long e = experts, r = rows;
  harness_case(h, BK_OP_GROUPED_GEMM, &forward, fills, NULL,
               "forward,E=%lld,rows=%lld,in=%lld,out=%lld", e, r, (long long)in, (long long)out);
  harness_case(h, BK_OP_GROUPED_GEMM, &dgrad, fills, NULL,
               "dgrad,E=%lld,rows=%lld,in=%lld,out=%lld", e, r, (long long)in, (long long)out);
  harness_case(h, BK_OP_GROUPED_WGRAD, &wgrad, fills, NULL,
               "wgrad,E=%lld,rows=%lld,in=%lld,out=%lld", e, r, (long long)in, (long long)out);
}

/* Squares, then what the model `demo` has. */
static void perf_products(harness *h) {
  const int64_t widths[][2] = {{160, 480}, {480, 160}, {160, 160}, {160, 192}, {160, 80},
                               {64, 256},  {128, 160}, {160, 257}, {640, 24},  {160, 8}};
  for (int64_t n = 512; n <= 2048; n *= 2) perf_linear(h, n, n, n);
  for (size_t i = 0; i < BK_COUNT(widths); i++) perf_linear(h, 2048, widths[i][0], widths[i][1]);
  perf_experts(h, 8, 4096, 160, 160);
}

void cases_basic(harness *h) {
  if (h->roof) perf_products(h);
  if (h->roof) return;
  cases_copy(h);
  cases_add(h);
  cases_reduce(h);
  cases_gemm(h);
  for (int i = 0; i < 32; i++) /* all layouts, with both tile widths and both types of c */
    gemm_tiles_case(h, (int[]){i & 3, i >> 2 & 1, i >> 3 & 1, i >> 4 & 1, (i ^ i >> 3) & 1,
                               h->st == BK_BF16 && i & 2});
  gemm_tiles_special(h);
  harness_pairwise(h, (const int[]){(int)BK_COUNT(grouped_shapes), 2, 2}, 3, grouped_case);
  cases_grouped_many(h);
  harness_pairwise(h, (const int[]){3, 2, 2}, 3, grouped_tiles_case);
  cases_clip(h);
  cases_adamw(h);
}
