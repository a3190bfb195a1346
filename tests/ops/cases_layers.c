/* Cases of norm, rope, cache, attention, swiglu, embedding and cross entropy. */
#include "ops/plan.h"
#include "tests/ops/harness.h"

#include <math.h>

static const char *strided_name(int pad) { return pad ? "strided" : "dense"; }

/* ---- rmsnorm ---- */

static bk_status derive_rstd(harness *h, void *args) {
  bk_rmsnorm_bwd_args *a = args;
  bk_tensor y = a->dy;
  bk_buffer *scratch = NULL;
  BK_TRY(bk_buffer_alloc(h->ref, bk_tensor_bytes(&y), BK_MEM_WORKSPACE, &scratch));
  y.buffer = scratch;
  y.offset = 0;
  bk_rmsnorm_args forward = {a->x, a->w, y, a->rstd, 1e-6};
  bk_status status = bk_op_run(h->ref_stream, BK_OP_RMSNORM, &forward);
  bk_buffer_free(scratch);
  return status;
}

static void rmsnorm_shape(harness *h, int64_t tokens, int64_t d, int pad, int variant) {
  int64_t n = harness_clip_tokens(h, tokens, d);
  bk_rmsnorm_args a = {
      h2(h->st, pad, n, d), h1(h->ct, d), h2(h->st, pad, n, d), {0}, variant & 1 ? 1e-20 : 1e-6};
  if (variant & 2) a.rstd = h1(h->ct, n);
  harness_case(h, BK_OP_RMSNORM, &a, NULL, NULL, "N=%lld,D=%lld,eps=%g,rstd=%d,%s", (long long)n,
               (long long)d, a.eps, variant >> 1, strided_name(pad));
  bk_rmsnorm_bwd_args b = {h2(h->st, pad, n, d), h1(h->ct, d), h1(h->ct, n), h2(h->st, pad, n, d),
                           h2(h->st, pad, n, d), h1(h->ct, d), variant & 1};
  if (variant == 2) b.dx = (bk_tensor){0};
  if (variant == 0) b.dw = (bk_tensor){0};
  const fill fills[] = {{"dx", b.accumulate ? FILL_NORMAL : FILL_POISON, 0, 1, NULL, NULL},
                        FILL_END};
  harness_case(h, BK_OP_RMSNORM_BWD, &b, variant == 2 ? NULL : fills, derive_rstd,
               "N=%lld,D=%lld,dx=%d,dw=%d,acc=%d,%s", (long long)n, (long long)d, variant != 2,
               variant != 0, b.accumulate, strided_name(pad));
}

static void rmsnorm_case(harness *h, const int *level) {
  rmsnorm_shape(h, harness_tokens[level[0]], harness_widths[level[1]], level[2] * HARNESS_PAD,
                level[3]);
}

/* Widths at which an implementation may change its way: of one warp, of registers, past them. */
static void cases_rmsnorm_wide(harness *h) {
  const int64_t widths[] = {264, 512, 1000, 7168, 8200, 33000};
  for (int i = 0; i < 6; i++) rmsnorm_shape(h, 37, widths[i], 0, 3);
}

/* ---- rope and the cache ---- */

static const int64_t rope_heads[][2] = {{1, 1}, {3, 3}, {1, 4}, {4, 1}, {11, 11}, {11, 1}};

static void rope_case(harness *h, const int *level) {
  const int64_t *heads = rope_heads[level[0]];
  int64_t t = harness_tokens[level[1]], d = (const int64_t[]){2, 64, 18, 640}[level[2]];
  int pad = level[3] * HARNESS_PAD;
  bool past = level[4], inverse = level[5];
  bk_rope_args a = {
      h4(h->st, pad, 2, t, heads[0], d), {0}, h4(h->st, pad, 2, t, heads[1], d), 10000.0, inverse};
  if (past) a.past = h1(BK_I32, 1);
  const fill fills[] = {
      {"y", FILL_POISON, 0, 0, NULL, NULL},
      {past ? "past" : "x", past ? FILL_CONST : FILL_NORMAL, past ? 4093 : 0, 1, NULL, NULL},
      FILL_END};
  harness_case(h, BK_OP_ROPE, &a, fills, NULL, "T=%lld,H=%lld-%lld,D=%lld,past=%d,inv=%d,%s",
               (long long)t, (long long)heads[0], (long long)heads[1], (long long)d, past, inverse,
               strided_name(pad));
  if (heads[0] != heads[1]) return;
  const fill inplace[] = {{"y", FILL_INPLACE, 0, 0, "x", NULL}, fills[1], FILL_END};
  harness_case(h, BK_OP_ROPE, &a, inplace, NULL, "inplace,T=%lld,H=%lld,D=%lld,past=%d,inv=%d,%s",
               (long long)t, (long long)heads[0], (long long)d, past, inverse, strided_name(pad));
}

static void cases_cache(harness *h) {
  const int64_t shapes[][4] = {
      {1, 1, 8, 0}, {2, 5, 8, 3}, {3, 5, 8, 6}, {2, 1, 13, 12}, {1, 3, 7, 9}};
  for (int i = 0; i < 5; i++) {
    const int64_t *s = shapes[i];
    int pad = i % 2 * HARNESS_PAD;
    bk_cache_write_args a = {h4(h->st, pad, s[0], s[1], 3, 31), h1(BK_I32, 1),
                             h4(h->st, pad, s[0], s[2], 3, 31)};
    const fill fills[] = {{"past", FILL_CONST, (double)s[3], 0, NULL, NULL}, FILL_END};
    harness_case(h, BK_OP_CACHE_WRITE, &a, fills, NULL, "B=%lld,T=%lld,S=%lld,past=%lld,%s",
                 (long long)s[0], (long long)s[1], (long long)s[2], (long long)s[3],
                 strided_name(pad));
  }
}

/* ---- attention ---- */

typedef struct attention_shape {
  int64_t b, t, heads, dk, dv;
} attention_shape;
static const attention_shape attention_shapes[] = {
    {1, 1, 1, 1, 1},       {2, 3, 2, 12, 8},     {1, 13, 3, 31, 17},   {2, 127, 1, 24, 16},
    {1, 257, 2, 40, 32},   {3, 64, 4, 96, 64},   {1, 65, 1, 192, 128}, {2, 150, 2, 48, 32},
    {1, 130, 1, 128, 128}, {1, 70, 1, 200, 160}, {2, 70, 40, 8, 8},    {8, 256, 4, 48, 32}};
enum { ATTENTION_WORKING = (int)BK_COUNT(attention_shapes) - 1 }; /* for timing */

static void attention_case(harness *h, int i, int pad, double spread) {
  attention_shape s = attention_shapes[i];
  bk_attention_args a = {.q = h4(h->st, pad, s.b, s.t, s.heads, s.dk),
                         .k = h4(h->st, pad, s.b, s.t, s.heads, s.dk),
                         .v = h4(h->st, pad, s.b, s.t, s.heads, s.dv),
                         .o = h4(h->st, pad, s.b, s.t, s.heads, s.dv),
                         .scale = 1 / sqrt((double)s.dk)};
  if (i % 2 || pad) a.lse = h3(h->ct, pad, s.b, s.heads, s.t);
  const fill fills[] = {{"q", FILL_NORMAL, 0, spread, NULL, NULL}, FILL_END};
  harness_case(h, BK_OP_ATTENTION, &a, fills, NULL,
               "B=%lld,T=%lld,H=%lld,K=%lld,V=%lld,spread=%g,%s", (long long)s.b, (long long)s.t,
               (long long)s.heads, (long long)s.dk, (long long)s.dv, spread, strided_name(pad));
}

bk_status derive_attention(harness *h, void *args) {
  bk_attention_bwd_args *a = args;
  bk_attention_args forward = {
      .q = a->q, .k = a->k, .v = a->v, .o = a->o, .lse = a->lse, .scale = a->scale};
  return bk_op_run(h->ref_stream, BK_OP_ATTENTION, &forward);
}

static void attention_bwd_case(harness *h, int i, int pad, double spread) {
  attention_shape s = attention_shapes[i];
  bk_tensor qk = h4(h->st, pad, s.b, s.t, s.heads, s.dk),
            v = h4(h->st, pad, s.b, s.t, s.heads, s.dv);
  bk_attention_bwd_args a = {qk, qk, v,  v, h3(h->ct, pad, s.b, s.heads, s.t),
                             v,  qk, qk, v, 1 / sqrt((double)s.dk)};
  const fill fills[] = {{"q", FILL_NORMAL, 0, spread, NULL, NULL}, FILL_END};
  harness_case(h, BK_OP_ATTENTION_BWD, &a, fills, derive_attention,
               "B=%lld,T=%lld,H=%lld,K=%lld,V=%lld,spread=%g,%s", (long long)s.b, (long long)s.t,
               (long long)s.heads, (long long)s.dk, (long long)s.dv, spread, strided_name(pad));
}

/* Generation: a cache of S positions, of which past + T are in use. What lies behind is never
 * read. */
static void fill_cache(const fill *f, const bk_tensor *t, uint64_t seed, uint64_t stream,
                       double *values) {
  int64_t used = (int64_t)f->a, row = t->shape[2] * t->shape[3];
  for (int64_t i = 0; i < bk_tensor_count(t); i++) {
    values[i] = i / row % t->shape[1] < used ? bk_normal(seed, stream, (uint64_t)i) : NAN;
  }
}

static void cases_attention_past(harness *h) {
  const int64_t shapes[][4] = {{1, 1, 9, 0},
                               {2, 1, 130, 128},
                               {1, 5, 13, 8},
                               {3, 3, 64, 7},
                               /* B T S past */
                               {1, 1, 700, 500},
                               {1, 9, 150, 140},
                               {2, 70, 300, 190},
                               {1, 20, 60, 13}};
  for (int i = 0; i < (int)BK_COUNT(shapes); i++) {
    const int64_t *s = shapes[i];
    int pad = i % 2 * HARNESS_PAD;
    bk_attention_args a = {h4(h->st, pad, s[0], s[1], 2, 24),
                           h4(h->st, pad, s[0], s[2], 2, 24),
                           h4(h->st, pad, s[0], s[2], 2, 16),
                           h1(BK_I32, 1),
                           h4(h->st, pad, s[0], s[1], 2, 16),
                           {0},
                           0.2};
    double used = (double)(s[3] + s[1]);
    const fill fills[] = {{"past", FILL_CONST, (double)s[3], 0, NULL, NULL},
                          {"k", FILL_CALL, used, 0, NULL, fill_cache},
                          {"v", FILL_CALL, used, 0, NULL, fill_cache},
                          FILL_END};
    harness_case(h, BK_OP_ATTENTION, &a, fills, NULL, "B=%lld,T=%lld,S=%lld,past=%lld,%s",
                 (long long)s[0], (long long)s[1], (long long)s[2], (long long)s[3],
                 strided_name(pad));
  }
}

static void cases_attention(harness *h) {
  for (int i = 0; i < ATTENTION_WORKING; i++) {
    attention_case(h, i, 0, 1);
    attention_case(h, i, HARNESS_PAD, i % 2 ? 1 : 20);
    attention_bwd_case(h, i, i % 2 * HARNESS_PAD, 1);
  }
  attention_bwd_case(h, 3, 0, 8);
  attention_bwd_case(h, 5, 0, 1);
  cases_attention_past(h);
}

/* ---- swiglu, embedding, cross entropy ---- */

static void swiglu_case(harness *h, const int *level) {
  int64_t width = harness_widths[level[1]],
          n = harness_clip_tokens(h, harness_tokens[level[0]], width);
  int pad = level[2] * HARNESS_PAD;
  bk_tensor t = h2(h->st, pad, n, width), dense = h2(h->st, 0, n, width);
  fill gate = {"gate", level[3] == 1 ? FILL_SPECIAL : FILL_NORMAL, 0, level[3] == 2 ? 40 : 1, NULL,
               NULL};
  bk_swiglu_args a = {t, t, dense};
  harness_case(h, BK_OP_SWIGLU, &a, (const fill[]){gate, FILL_END}, NULL,
               "N=%lld,I=%lld,fill=%d,%s", (long long)n, (long long)width, level[3],
               strided_name(pad));
  if (level[3] == 1) return;
  bk_swiglu_bwd_args b = {t, t, dense, t, t};
  harness_case(h, BK_OP_SWIGLU_BWD, &b, (const fill[]){gate, FILL_END}, NULL,
               "N=%lld,I=%lld,fill=%d,%s", (long long)n, (long long)width, level[3],
               strided_name(pad));
  const fill inplace[] = {gate,
                          {"dgate", FILL_INPLACE, 0, 0, "gate", NULL},
                          {"dup", FILL_INPLACE, 0, 0, "up", NULL},
                          FILL_END};
  harness_case(h, BK_OP_SWIGLU_BWD, &b, inplace, NULL, "inplace,N=%lld,I=%lld,fill=%d,%s",
               (long long)n, (long long)width, level[3], strided_name(pad));
}

static void embed_shape(harness *h, int64_t n, int64_t vocabulary, int64_t width, int pad) {
  const fill ids[] = {{"ids", FILL_INDEX, 0, (double)vocabulary, NULL, NULL}, FILL_END};
  bk_embed_args a = {h1(BK_I32, n), h2(h->st, pad, vocabulary, width), h2(h->st, pad, n, width)};
  harness_case(h, BK_OP_EMBED, &a, ids, NULL, "N=%lld,V=%lld,C=%lld,%s", (long long)n,
               (long long)vocabulary, (long long)width, strided_name(pad));
  bk_embed_bwd_args b = {h1(BK_I32, n), h2(h->st, pad, n, width),
                         h2(h->ct, pad, vocabulary, width)};
  harness_case(h, BK_OP_EMBED_BWD, &b, ids, NULL, "N=%lld,V=%lld,C=%lld,%s", (long long)n,
               (long long)vocabulary, (long long)width, strided_name(pad));
}

static void embed_case(harness *h, const int *level) {
  int64_t width = harness_widths[level[1]],
          n = harness_clip_tokens(h, harness_tokens[level[0]], width);
  embed_shape(h, n, (const int64_t[]){1, 7, 257}[level[2]], width, level[3] * HARNESS_PAD);
}

/* Many tokens and a large vocabulary: sorting in several tiles and passes. */
static void cases_embed_large(harness *h) {
  embed_shape(h, 5003, 3, 16, 0);
  embed_shape(h, 5003, 600, 7, 0);
  embed_shape(h, 4097, 300000, 8, 0);
}

static void fill_loss_scale(const fill *f, const bk_tensor *t, uint64_t seed BK_UNUSED,
                            uint64_t stream BK_UNUSED, double *values) {
  for (int64_t i = 0; i < bk_tensor_count(t); i++) values[i] = 0;
  values[BK_STEP_LOSS_SCALE] = f->a;
}

static void cross_entropy_case(harness *h, const int *level) {
  int64_t vocabulary = (const int64_t[]){1, 31, 257, 8192, 50257, 129280}[level[1]];
  int64_t n = harness_clip_tokens(h, harness_tokens[level[0]], vocabulary);
  int pad = level[2] * HARNESS_PAD, variant = level[3];
  bk_dtype type = level[4] ? h->ct : h->st, gradient = variant == 3 ? h->st : type;
  double spread = level[5] ? 100 : 2;
  bk_cross_entropy_args a = {
      h2(type, pad, n, vocabulary), h1(BK_I32, n), h1(h->ct, BK_STEP_FIELDS), h1(h->ct, n), {0}};
  if (variant) a.dlogits = h2(gradient, pad, n, vocabulary);
  fill fills[5] = {{"logits", FILL_NORMAL, 0, spread, NULL, NULL},
                   {"targets", FILL_INDEX, vocabulary > 1 ? -vocabulary / 4 - 1 : 0,
                    (double)vocabulary, NULL, NULL},
                   {"step", FILL_CALL, 1.0 / 77, 0, NULL, fill_loss_scale}};
  fills[3] = variant == 2 ? (fill){"dlogits", FILL_INPLACE, 0, 0, "logits", NULL} : (fill)FILL_END;
  harness_case(h, BK_OP_CROSS_ENTROPY, &a, fills, NULL,
               "N=%lld,V=%lld,type=%s,spread=%g,dlogits=%d,%s", (long long)n, (long long)vocabulary,
               bk_dtype_name(type), spread, variant, strided_name(pad));
}

/* Masked logits: a row starts with -inf, as long as whole threads see nothing else. */
static void fill_masked(const fill *f, const bk_tensor *t, uint64_t seed, uint64_t stream,
                        double *values) {
  for (int64_t i = 0; i < bk_tensor_count(t); i++)
    values[i] = i % t->shape[1] < (int64_t)f->a ? -INFINITY : bk_normal(seed, stream, (uint64_t)i);
}

static void cases_cross_entropy_large(harness *h) {
  cross_entropy_case(h, (const int[]){2, 4, 0, 2, 0, 0});
  cross_entropy_case(h, (const int[]){2, 5, 0, 3, 1, 1});
  bk_cross_entropy_args a = {h2(h->st, 0, 13, 1000), h1(BK_I32, 13), h1(h->ct, BK_STEP_FIELDS),
                             h1(h->ct, 13), h2(h->st, 0, 13, 1000)};
  const fill fills[] = {{"logits", FILL_CALL, 900, 0, NULL, fill_masked},
                        {"targets", FILL_INDEX, 900, 1000, NULL, NULL},
                        {"step", FILL_CALL, 1.0 / 77, 0, NULL, fill_loss_scale},
                        FILL_END};
  harness_case(h, BK_OP_CROSS_ENTROPY, &a, fills, NULL, "masked,N=13,V=1000");
}

void cases_layers(harness *h) {
  if (h->roof) {
    rmsnorm_case(h, (const int[]){HARNESS_WORKING, 2, 0, 3});
    attention_case(h, ATTENTION_WORKING, 0, 1);
    attention_bwd_case(h, ATTENTION_WORKING, 0, 1);
    swiglu_case(h, (const int[]){HARNESS_WORKING, 2, 0, 0});
    cross_entropy_case(h, (const int[]){HARNESS_WORKING, 3, 0, 1, 0, 0});
    return;
  }
  harness_pairwise(h, (const int[]){5, 3, 2, 4}, 4, rmsnorm_case);
  harness_pairwise(h, (const int[]){6, 5, 4, 2, 2, 2}, 6, rope_case);
  cases_cache(h);
  cases_attention(h);
  harness_pairwise(h, (const int[]){5, 3, 2, 3}, 4, swiglu_case);
  harness_pairwise(h, (const int[]){5, 3, 3, 2}, 4, embed_case);
  harness_pairwise(h, (const int[]){5, 4, 2, 4, 2, 2}, 6, cross_entropy_case);
  if (h->quick) return;
  cases_rmsnorm_wide(h);
  cases_embed_large(h);
  cases_cross_entropy_large(h);
}
