/* birkhoff bench ops: one case of every op at working sizes. Shapes: N tokens of width C in n
 * streams; heads of 64 + 32 (query, key) and 64 (value), and attention also with half as many
 * heads of 128 + 64 and 128, as the largest presets have them; 16 experts, 2 a token, of width
 * C; a vocabulary of 8 C unless told. Operands are dense and hold small numbers; index operands
 * hold what a router would write. Costs are those of the op descriptors: each operand moved
 * once. The roof of an op is a copy of as many bytes, or a large GEMM. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/bench.h"

#define ROOF_GEMM_MIN 128
#define ROOF_GEMM_MAX 8192
#define ROOF_GEMM_SECONDS 0.02
#define EXPERTS 16
#define CHOICES 2
#define ITERS 20
#define PATTERN 65536        /* random values, repeated */
#define FIRST (16 * PATTERN) /* what the host writes of an operand */

typedef struct sizes {
  bk_dtype st, ct;
  int64_t N, C, n, B, T, H, V, R; /* R: rows of fn */
} sizes;

/* Room and alignment for the arguments of any op: a member of each. */
#define OP(ID, name, ...) bk_##name##_args ID;
typedef union any_args {
#include "runtime/ops.def"
} any_args;

#define S1(a) bk_tensor_1d(z->st, a)
#define S2(a, b) bk_tensor_2d(z->st, a, b)
#define S3(a, b, c) bk_tensor_3d(z->st, a, b, c)
#define S4(a, b, c, d) bk_tensor_4d(z->st, a, b, c, d)
#define K1(a) bk_tensor_1d(z->ct, a)
#define K2(a, b) bk_tensor_2d(z->ct, a, b)
#define K3(a, b, c) bk_tensor_3d(z->ct, a, b, c)
#define I1(a) bk_tensor_1d(BK_I32, a)
#define I2(a, b) bk_tensor_2d(BK_I32, a, b)
#define STEP K1(BK_STEP_FIELDS)
#define STREAMS S3(N, n, C)
#define ROWS S2(N, C)
#define GATES K2(N, n)
#define COMB K3(N, n, n)
#define BASE (n * (n + 2))
#define PAIRS (n < 2 ? 0 : n < 4 ? 2 : n < 8 ? 4 : 6) /* columns of a pair for each bit of n */

/* CASE(op, args type, its fields). */
#define CASE(id, type, ...)                                                                 \
  static void make_##id(const sizes *z, void *out) {                                        \
    BK_UNUSED int64_t N = z->N, C = z->C, n = z->n, B = z->B, T = z->T, H = z->H, V = z->V, \
                      R = z->R, M = N * CHOICES;                                            \
    BK_UNUSED int64_t H2 = (H + 1) / 2;                                                     \
    type args = {__VA_ARGS__};                                                              \
    memcpy(out, &args, sizeof args);                                                        \
  }

CASE(COPY, bk_copy_args, .x = ROWS, .y = ROWS)
CASE(ADD, bk_add_args, .a = ROWS, .b = ROWS, .y = ROWS)
CASE(SUM, bk_sum_args, .x = K1(N * C), .y = K1(1))
CASE(GEMM, bk_gemm_args, .a = ROWS, .b = S2(C, C), .c = ROWS, .alpha = 1)
CASE(GROUPED_GEMM, bk_grouped_gemm_args, .a = S2(M, C), .b = S3(EXPERTS, C, C),
     .offsets = I1(EXPERTS + 1), .c = S2(M, C))
CASE(GROUPED_WGRAD, bk_grouped_wgrad_args, .a = S2(M, C), .b = S2(M, C), .offsets = I1(EXPERTS + 1),
     .c = K3(EXPERTS, C, C))
CASE(RMSNORM, bk_rmsnorm_args, .x = ROWS, .w = K1(C), .y = ROWS, .rstd = K1(N), .eps = 1e-6)
CASE(RMSNORM_BWD, bk_rmsnorm_bwd_args, .x = ROWS, .w = K1(C), .rstd = K1(N), .dy = ROWS, .dx = ROWS,
     .dw = K1(C))
CASE(ROPE, bk_rope_args, .x = S4(B, T, H, 32), .y = S4(B, T, H, 32), .theta = 10000)
CASE(CACHE_WRITE, bk_cache_write_args, .x = S4(B, T, H, 96), .past = I1(1), .y = S4(B, T, H, 96))
CASE(ATTENTION, bk_attention_args, .q = S4(B, T, H, 96), .k = S4(B, T, H, 96), .v = S4(B, T, H, 64),
     .o = S4(B, T, H, 64), .lse = K3(B, H, T), .scale = 0.1)
CASE(ATTENTION_BWD, bk_attention_bwd_args, .q = S4(B, T, H, 96), .k = S4(B, T, H, 96),
     .v = S4(B, T, H, 64), .o = S4(B, T, H, 64), .lse = K3(B, H, T), .dout = S4(B, T, H, 64),
     .dq = S4(B, T, H, 96), .dk = S4(B, T, H, 96), .dv = S4(B, T, H, 64), .scale = 0.1)
CASE(ATTENTION_192, bk_attention_args, .q = S4(B, T, H2, 192), .k = S4(B, T, H2, 192),
     .v = S4(B, T, H2, 128), .o = S4(B, T, H2, 128), .lse = K3(B, H2, T), .scale = 0.07)
CASE(ATTENTION_BWD_192, bk_attention_bwd_args, .q = S4(B, T, H2, 192), .k = S4(B, T, H2, 192),
     .v = S4(B, T, H2, 128), .o = S4(B, T, H2, 128), .lse = K3(B, H2, T), .dout = S4(B, T, H2, 128),
     .dq = S4(B, T, H2, 192), .dk = S4(B, T, H2, 192), .dv = S4(B, T, H2, 128), .scale = 0.07)
CASE(SWIGLU, bk_swiglu_args, .gate = ROWS, .up = ROWS, .y = ROWS)
CASE(SWIGLU_BWD, bk_swiglu_bwd_args, .gate = ROWS, .up = ROWS, .dy = ROWS, .dgate = ROWS,
     .dup = ROWS)
CASE(EMBED, bk_embed_args, .ids = I1(N), .table = S2(V, C), .y = ROWS)
CASE(EMBED_BWD, bk_embed_bwd_args, .ids = I1(N), .dy = ROWS, .dtable = K2(V, C))
/* As the head runs it: logits in ct, their gradient in st. */
CASE(CROSS_ENTROPY, bk_cross_entropy_args, .logits = K2(N, V), .targets = I1(N), .step = STEP,
     .loss = K1(N), .dlogits = S2(N, V))
CASE(ROUTER, bk_router_args, .logits = K2(N, EXPERTS), .bias = K1(EXPERTS),
     .scores = K2(N, EXPERTS), .index = I2(N, CHOICES), .weights = K2(N, CHOICES), .n_group = 4,
     .topk_group = 2, .norm_topk_prob = true, .routed_scaling_factor = 1)
CASE(ROUTER_BWD, bk_router_bwd_args, .scores = K2(N, EXPERTS), .index = I2(N, CHOICES),
     .dweights = K2(N, CHOICES), .dlogits = K2(N, EXPERTS), .norm_topk_prob = true,
     .routed_scaling_factor = 1)
CASE(MOE_INDEX, bk_moe_index_args, .index = I2(N, CHOICES), .offsets = I1(EXPERTS + 1),
     .order = I1(M), .row_of = I2(N, CHOICES), .load = I1(EXPERTS))
CASE(PERMUTE, bk_permute_args, .x = ROWS, .order = I1(M), .y = S2(M, C), .k = CHOICES)
CASE(UNPERMUTE, bk_unpermute_args, .x = S2(M, C), .row_of = I2(N, CHOICES),
     .weights = K2(N, CHOICES), .y = ROWS)
CASE(UNPERMUTE_BWD, bk_unpermute_bwd_args, .x = S2(M, C), .row_of = I2(N, CHOICES),
     .weights = K2(N, CHOICES), .dy = ROWS, .dx = S2(M, C), .dweights = K2(N, CHOICES))
CASE(BALANCE, bk_balance_args, .load = I1(EXPERTS), .step = STEP, .bias = K1(EXPERTS))
CASE(SUMSQ, bk_sumsq_args, .x = K1(N * C), .y = K1(1))
CASE(CLIP, bk_clip_args, .step = STEP)
CASE(ADAMW, bk_adamw_args, .grad = K1(N * C), .step = STEP, .p = S1(N * C),
     .master = z->st == z->ct ? (bk_tensor){0} : K1(N * C), .m = K1(N * C), .v = K1(N * C),
     .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1)
CASE(HC_EXPAND, bk_hc_expand_args, .x = ROWS, .y = STREAMS)
CASE(HC_COLLAPSE, bk_hc_collapse_args, .x = STREAMS, .y = ROWS)
CASE(HC_RMS, bk_hc_rms_args, .x = S2(N, n *C), .rinv = K1(N), .eps = 1e-6)
CASE(HC_RMS_BWD, bk_hc_rms_bwd_args, .x = S2(N, n *C), .rinv = K1(N), .drinv = K1(N),
     .dx = S2(N, n *C))
CASE(HC_LOGITS, bk_hc_logits_args, .proj = K2(N, R), .rinv = K1(N), .scale = K1(3), .base = K1(R),
     .logits = K2(N, R), .n = (int)n)
CASE(HC_LOGITS_BWD, bk_hc_logits_bwd_args, .proj = K2(N, R), .rinv = K1(N), .scale = K1(3),
     .dlogits = K2(N, R), .dproj = K2(N, R), .drinv = K1(N), .dscale = K1(3), .dbase = K1(R),
     .n = (int)n)
CASE(HC_GATES, bk_hc_gates_args, .logits = K2(N, R), .pre = GATES, .post = GATES)
CASE(HC_GATES_BWD, bk_hc_gates_bwd_args, .logits = K2(N, R), .dpre = GATES, .dpost = GATES,
     .dlogits = K2(N, R))
CASE(SINKHORN, bk_sinkhorn_args, .logits = COMB, .comb = COMB, .iters = ITERS)
CASE(SINKHORN_BWD, bk_sinkhorn_bwd_args, .logits = COMB, .dcomb = COMB, .dlogits = COMB,
     .iters = ITERS)
CASE(HC_PERM, bk_hc_perm_args, .logits = K2(N, bk_factorial((int)n)), .comb = COMB, .n = (int)n)
CASE(HC_PERM_BWD, bk_hc_perm_bwd_args, .logits = K2(N, bk_factorial((int)n)), .dcomb = COMB,
     .dlogits = K2(N, bk_factorial((int)n)), .n = (int)n)
CASE(HC_KRON, bk_hc_kron_args, .logits = K2(N, PAIRS), .comb = COMB)
CASE(HC_KRON_BWD, bk_hc_kron_bwd_args, .logits = K2(N, PAIRS), .dcomb = COMB,
     .dlogits = K2(N, PAIRS))
CASE(HC_TANH, bk_hc_tanh_args, .proj = K2(N * n, n + 2), .rinv = K1(N * n), .scale = K1(3),
     .base = K1(BASE), .pre = GATES, .post = GATES, .comb = COMB, .n = (int)n)
CASE(HC_TANH_BWD, bk_hc_tanh_bwd_args, .proj = K2(N * n, n + 2), .rinv = K1(N * n), .scale = K1(3),
     .dpre = GATES, .dpost = GATES, .dcomb = COMB, .dproj = K2(N * n, n + 2), .drinv = K1(N * n),
     .dscale = K1(3), .dbase = K1(BASE), .n = (int)n)
CASE(HC_PRE, bk_hc_pre_args, .x = STREAMS, .pre = GATES, .y = ROWS)
CASE(HC_PRE_BWD, bk_hc_pre_bwd_args, .x = STREAMS, .pre = GATES, .dy = ROWS, .dx = STREAMS,
     .dpre = GATES)
CASE(HC_RES, bk_hc_res_args, .x = STREAMS, .comb = COMB, .y = STREAMS)
CASE(HC_RES_BWD, bk_hc_res_bwd_args, .x = STREAMS, .comb = COMB, .dy = STREAMS, .dx = STREAMS,
     .dcomb = COMB)
CASE(HC_POST, bk_hc_post_args, .f = ROWS, .post = GATES, .y = STREAMS)
CASE(HC_POST_BWD, bk_hc_post_bwd_args, .f = ROWS, .post = GATES, .dy = STREAMS, .df = ROWS,
     .dpost = GATES)

#define PROJECT .x = S2(N, n * C), .fn = K2(R, n * C), .proj = K2(N, R), .rinv = K1(N), .eps = 1e-6
#define MAPS                                                                                   \
  .proj = K2(N, R), .rinv = K1(N), .scale = K1(3), .base = K1(R), .pre = GATES, .post = GATES, \
  .comb = COMB, .kind = BK_HC_MHC, .n = (int)n, .iters = ITERS
#define PRE_NORM \
  .x = STREAMS, .pre = GATES, .w = K1(C), .y = ROWS, .h = ROWS, .rstd = K1(N), .eps = 1e-6
#define POST_RES .x = STREAMS, .f = ROWS, .post = GATES, .comb = COMB, .out = STREAMS
#define PROJECT_BWD                                                                        \
  .x = S2(N, n * C), .fn = K2(R, n * C), .rinv = K1(N), .dproj = K2(N, R), .drinv = K1(N), \
  .dx = S2(N, n * C), .dfn = K2(R, n * C), .accumulate = true
#define MAPS_BWD                                                                                 \
  .proj = K2(N, R), .rinv = K1(N), .scale = K1(3), .base = K1(R), .dpre = GATES, .dpost = GATES, \
  .dcomb = COMB, .dproj = K2(N, R), .drinv = K1(N), .dscale = K1(3), .dbase = K1(R),             \
  .kind = BK_HC_MHC, .n = (int)n, .iters = ITERS
#define PRE_NORM_BWD                                                                           \
  .x = STREAMS, .pre = GATES, .w = K1(C), .y = ROWS, .rstd = K1(N), .dh = ROWS, .dx = STREAMS, \
  .dpre = GATES, .dw = K1(C), .accumulate = true
#define POST_RES_BWD                                                                    \
  .x = STREAMS, .f = ROWS, .post = GATES, .comb = COMB, .dout = STREAMS, .dx = STREAMS, \
  .df = ROWS, .dpost = GATES, .dcomb = COMB
CASE(HC_PROJECT, bk_hc_project_args, PROJECT)
CASE(HC_PROJECT_BWD, bk_hc_project_bwd_args, PROJECT_BWD)
CASE(HC_MAPS, bk_hc_maps_args, MAPS)
CASE(HC_MAPS_BWD, bk_hc_maps_bwd_args, MAPS_BWD)
CASE(HC_PRE_NORM, bk_hc_pre_norm_args, PRE_NORM)
CASE(HC_PRE_NORM_BWD, bk_hc_pre_norm_bwd_args, PRE_NORM_BWD)
CASE(HC_POST_RES, bk_hc_post_res_args, POST_RES)
CASE(HC_POST_RES_BWD, bk_hc_post_res_bwd_args, POST_RES_BWD)
CASE(HC_MERGE_MIX, bk_hc_merge_mix_args, .merge = {POST_RES}, .project = {PROJECT}, .maps = {MAPS},
     .pre_norm = {PRE_NORM})
CASE(HC_MERGE_MIX_BWD, bk_hc_merge_mix_bwd_args, .pre_norm = {PRE_NORM_BWD}, .maps = {MAPS_BWD},
     .project = {PROJECT_BWD}, .merge = {POST_RES_BWD})
/* A block of four sublayers. */
#define REBUILD_MIX .x = STREAMS, .pre = GATES, .w = K1(C), .y = ROWS, .h = ROWS, .rstd = K1(N)
#define REBUILD \
  { REBUILD_MIX, .f = ROWS, .post = GATES, .comb = COMB }
CASE(HC_REBUILD, bk_hc_rebuild_args, .layer = {REBUILD, REBUILD, REBUILD, {REBUILD_MIX}},
     .layers = 4, .eps = 1e-6)

typedef void (*make_fn)(const sizes *z, void *out);
#define OP(ID, ...) [BK_OP_##ID] = make_##ID,
static const make_fn makers[BK_OP_COUNT] = {
#include "runtime/ops.def"
};

/* Cases beside the first one of an op: rows behind it, with names of their own. */
static const struct {
  bk_op op;
  const char *name;
  make_fn make;
} more_cases[] = {
    {BK_OP_ATTENTION, "attention_192", make_ATTENTION_192},
    {BK_OP_ATTENTION_BWD, "attention_bwd_192", make_ATTENTION_BWD_192},
};

/* Operands that must be one memory: `field` lies where `place` does. */
static const struct {
  bk_op op;
  const char *field, *place;
} shared[] = {
    {BK_OP_HC_MERGE_MIX, "project.x", "merge.out"},
    {BK_OP_HC_MERGE_MIX, "pre_norm.x", "merge.out"},
    {BK_OP_HC_MERGE_MIX, "maps.proj", "project.proj"},
    {BK_OP_HC_MERGE_MIX, "maps.rinv", "project.rinv"},
    {BK_OP_HC_MERGE_MIX, "pre_norm.pre", "maps.pre"},
    {BK_OP_HC_MERGE_MIX_BWD, "project.x", "pre_norm.x"},
    {BK_OP_HC_MERGE_MIX_BWD, "maps.dpre", "pre_norm.dpre"},
    {BK_OP_HC_MERGE_MIX_BWD, "project.dproj", "maps.dproj"},
    {BK_OP_HC_MERGE_MIX_BWD, "project.drinv", "maps.drinv"},
    {BK_OP_HC_MERGE_MIX_BWD, "project.dx", "pre_norm.dx"},
    {BK_OP_HC_MERGE_MIX_BWD, "merge.dout", "pre_norm.dx"},
    {BK_OP_HC_MERGE_MIX_BWD, "merge.dx", "pre_norm.dx"},
};

static const char *place_of(bk_op op, const char *field) {
  for (size_t i = 0; i < BK_COUNT(shared); i++)
    if (shared[i].op == op && strcmp(shared[i].field, field) == 0) return shared[i].place;
  return NULL;
}

/* ---- operands ---- */

typedef struct bench {
  cli_session *s;
  bk_stream *stream;
  bk_memory *memory; /* of the op at hand */
  sizes sizes;
  double seconds;
  bench_roof roof;
  double *pattern;
} bench;

static bk_tensor *field_of(any_args *args, const bk_op_field *f) {
  return (bk_tensor *)((char *)args + f->offset);
}

static const char *leaf(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot ? dot + 1 : name;
}

static int64_t coprime(int64_t count) {
  static const int64_t primes[] = {7919, 7907, 7901};
  for (size_t i = 0; i < BK_COUNT(primes); i++)
    if (count % primes[i]) return primes[i];
  return 1;
}

/* What the operand called `name` holds at element i of `count`; last: its last dimension. */
static int32_t index_value(const sizes *z, const char *name, int64_t i, int64_t count,
                           int64_t last) {
  int64_t step = coprime(count);
  if (strcmp(name, "offsets") == 0) return (int32_t)(i * z->N * CHOICES / (count - 1));
  if (strcmp(name, "index") == 0) return (int32_t)((i / last * 7 + i % last * 5) % EXPERTS);
  if (strcmp(name, "order") == 0 || strcmp(name, "row_of") == 0) return (int32_t)(i * step % count);
  if (strcmp(name, "past") == 0 || strcmp(name, "load") == 0) return 0;
  return (int32_t)(i * step % z->V); /* ids, targets */
}

static bk_status fill_index(bench *b, const bk_tensor *t, const char *name) {
  int64_t count = bk_tensor_count(t);
  int32_t *values = bk_alloc_array(b->s->ctx, (size_t)count, sizeof *values);
  if (!values) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < count; i++)
    values[i] = index_value(&b->sizes, name, i, count, t->shape[t->ndim - 1]);
  bk_status status = bk_tensor_upload(b->stream, t, values);
  bk_free(b->s->ctx, values);
  return status;
}

static bool is_positive(const char *name) {
  static const char *const names[] = {"rstd", "rinv", "v", "scores", "lse", "w"};
  for (size_t i = 0; i < BK_COUNT(names); i++)
    if (strcmp(name, names[i]) == 0) return true;
  return false;
}

static void step_values(double *v) {
  memset(v, 0, BK_STEP_FIELDS * sizeof *v);
  v[BK_STEP_LR] = 1e-6, v[BK_STEP_BC1] = 0.1, v[BK_STEP_BC2] = 0.05, v[BK_STEP_MAX_NORM] = 1,
  v[BK_STEP_LOSS_SCALE] = 1e-3;
  v[BK_STEP_SUMSQ] = 1, v[BK_STEP_NORM] = 1, v[BK_STEP_CLIP] = 1, v[BK_STEP_FINITE] = 1;
}

/* `count` elements of a dense tensor, from its first on. */
static bk_tensor head_of(const bk_tensor *t, int64_t count) {
  bk_tensor head = bk_tensor_1d(t->dtype, count);
  head.buffer = t->buffer, head.offset = t->offset;
  return head;
}

/* The values repeat, so that all but the first block are copies on the device: a stream of
 * 32,768 tokens holds a thousand million. */
static bk_status spread(bench *b, const bk_tensor *t, int64_t done) {
  int64_t count = bk_tensor_count(t);
  size_t size = bk_dtype_size(t->dtype);
  while (done < count) {
    int64_t more = count - done < done ? count - done : done;
    bk_place to = {t->buffer, t->offset + (size_t)done * size}, from = {t->buffer, t->offset};
    BK_TRY(b->stream->ops->copy(b->stream, to, from, (size_t)more * size));
    done += more;
  }
  return BK_OK;
}

static bk_status fill_floats(bench *b, const bk_tensor *t, const char *name) {
  int64_t count = bk_tensor_count(t), first = count < FIRST ? count : FIRST;
  double *values = bk_alloc_array(b->s->ctx, (size_t)first, sizeof *values);
  bk_tensor head = head_of(t, first);
  if (!values) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < first; i++)
    values[i] = is_positive(name) ? 0.5 + fabs(b->pattern[i % PATTERN]) : b->pattern[i % PATTERN];
  if (strcmp(name, "step") == 0) step_values(values);
  bk_status status = bk_tensor_write_f64(b->stream, &head, values);
  bk_free(b->s->ctx, values);
  return status == BK_OK ? spread(b, t, first) : status;
}

static bk_status place_fields(bench *b, bk_op op, any_args *args) {
  const bk_op_desc *d = bk_op_describe(op);
  for (int i = 0; i < d->n_fields; i++) {
    bk_tensor *t = field_of(args, &d->fields[i]);
    if (!bk_tensor_present(t) || place_of(op, d->fields[i].name)) continue;
    BK_TRY(bk_memory_tensor(b->memory, BK_MEM_ACTIVATIONS, t->dtype, t->ndim, t->shape, t));
  }
  for (int i = 0; i < d->n_fields; i++) {
    const char *place = place_of(op, d->fields[i].name);
    for (int j = 0; place && j < d->n_fields; j++) {
      if (strcmp(d->fields[j].name, place) != 0) continue;
      field_of(args, &d->fields[i])->buffer = field_of(args, &d->fields[j])->buffer;
      field_of(args, &d->fields[i])->offset = field_of(args, &d->fields[j])->offset;
    }
  }
  return bk_memory_commit(b->memory);
}

static bk_status fill_fields(bench *b, bk_op op, any_args *args) {
  const bk_op_desc *d = bk_op_describe(op);
  for (int i = 0; i < d->n_fields; i++) {
    const bk_tensor *t = field_of(args, &d->fields[i]);
    const char *name = leaf(d->fields[i].name);
    if (!bk_tensor_present(t) || place_of(op, d->fields[i].name)) continue;
    BK_TRY(t->dtype == BK_I32 ? fill_index(b, t, name) : fill_floats(b, t, name));
  }
  return BK_OK;
}

static bk_status time_args(bench *b, bk_op op, any_args *args, bench_time *time,
                           const char **kernel) {
  BK_TRY(bk_memory_create(b->s->device, &b->memory));
  bk_status status = place_fields(b, op, args);
  if (status == BK_OK) status = fill_fields(b, op, args);
  if (status == BK_OK) status = bench_time_op(b->s, b->stream, op, args, b->seconds, time, kernel);
  bk_memory_destroy(b->memory);
  b->memory = NULL;
  return status;
}

/* ---- roofs ---- */

static bk_status make_pattern(bench *b) {
  b->pattern = bk_alloc_array(b->s->ctx, PATTERN, sizeof *b->pattern);
  if (!b->pattern) return BK_ERR_MEMORY;
  for (int64_t i = 0; i < PATTERN; i++) b->pattern[i] = 0.3 * bk_normal(1, 1, (uint64_t)i);
  return BK_OK;
}

/* Square products of growing size, until one takes long enough to be timed well: the best rate
 * seen. */
static bk_status measure_gemm(bench *b, double *flops_per_s) {
  const sizes *z = &b->sizes;
  bench_time time = {0};
  *flops_per_s = 0;
  for (int64_t n = ROOF_GEMM_MIN; n <= ROOF_GEMM_MAX && time.best < ROOF_GEMM_SECONDS; n *= 2) {
    double flops, bytes;
    any_args args;
    bk_gemm_args gemm = {.a = S2(n, n), .b = S2(n, n), .c = S2(n, n), .alpha = 1};
    memcpy(&args, &gemm, sizeof gemm);
    BK_TRY(time_args(b, BK_OP_GEMM, &args, &time, NULL));
    bk_op_cost(BK_OP_GEMM, &args, &flops, &bytes);
    if (flops / time.best > *flops_per_s) *flops_per_s = flops / time.best;
  }
  return BK_OK;
}

/* Half of the bytes are read, half written. The source is written first: memory that never was
 * may not be there. */
static bk_status time_copy(bench *b, int64_t bytes, bench_time *time) {
  const sizes *z = &b->sizes;
  int64_t count = bytes / 2 / (int64_t)bk_dtype_size(z->ct);
  any_args args;
  bk_copy_args copy = {.x = K1(count), .y = K1(count)};
  memcpy(&args, &copy, sizeof copy);
  BK_TRY(bk_memory_create(b->s->device, &b->memory));
  bk_status status = place_fields(b, BK_OP_COPY, &args);
  memcpy(&copy, &args, sizeof copy);
  if (status == BK_OK)
    status = b->stream->ops->fill(b->stream, (bk_place){copy.x.buffer, copy.x.offset}, 0x3c,
                                  bk_tensor_bytes(&copy.x));
  if (status == BK_OK)
    status = bench_time_op(b->s, b->stream, BK_OP_COPY, &args, b->seconds, time, NULL);
  bk_memory_destroy(b->memory);
  b->memory = NULL;
  return status;
}

/* A copy that takes so long is out of every cache: larger ones go on at its rate and are not
 * waited for. */
#define ROOF_COPY_SECONDS 0.25
static bk_status measure_copies(bench *b, bench_roof *roof) {
  bench_time time = {0};
  int i = 0;
  for (; i < BENCH_COPY_SIZES && time.best <= ROOF_COPY_SECONDS; i++) {
    int64_t bytes = (int64_t)1 << (BENCH_COPY_MIN + i);
    BK_TRY(time_copy(b, bytes, &time));
    roof->bandwidth[i] = (double)bytes / time.best;
  }
  roof->copies = i;
  for (; i < BENCH_COPY_SIZES; i++) roof->bandwidth[i] = roof->bandwidth[i - 1];
  return BK_OK;
}

static bk_status open_bench(bench *b) {
  BK_TRY(make_pattern(b));
  return bk_stream_create(b->s->device, 0, &b->stream);
}

static void close_bench(bench *b) {
  bk_stream_destroy(b->stream);
  bk_free(b->s->ctx, b->pattern);
}

bk_status bench_measure_roof(cli_session *s, bk_dtype dtype, double seconds, bench_roof *roof) {
  bench b = {.s = s,
             .sizes = {.st = dtype, .ct = dtype == BK_F64 ? BK_F64 : BK_F32, .N = 1, .V = 1},
             .seconds = seconds};
  bk_status status = open_bench(&b);
  if (status == BK_OK) status = measure_gemm(&b, &roof->flops);
  close_bench(&b);
  return status;
}

/* ---- the command ---- */

static bk_status read_options(bench *b) {
  cli_session *s = b->s;
  sizes *z = &b->sizes;
  z->st = BK_F32, z->N = 1024, z->C = 512, z->n = 4;
  b->seconds = 0.1;
  BK_TRY(cli_dtype(s, &z->st));
  BK_TRY(cli_int(s, "tokens", 1, 1 << 22, &z->N));
  BK_TRY(cli_int(s, "width", 64, 1 << 16, &z->C));
  BK_TRY(cli_int(s, "streams", 1, BK_HC_MAX_N, &z->n));
  BK_TRY(cli_double(s, "seconds", 0, 3600, &b->seconds));
  if (z->C % 64)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--width %lld: expected a multiple of 64",
                   (long long)z->C);
  z->ct = z->st == BK_F64 ? BK_F64 : BK_F32;
  z->T = z->N < 512 ? z->N : 512;
  while (z->N % z->T) z->T--;
  z->B = z->N / z->T, z->H = z->C / 64, z->V = 8 * z->C, z->R = z->n * (z->n + 2);
  return cli_int(s, "vocabulary", 2, 1 << 24, &z->V);
}

/* n! rows past what the model allows, a product of factors for no power of two. */
static bool skipped(const bench *b, bk_op op) {
  int64_t n = b->sizes.n;
  return ((op == BK_OP_HC_PERM || op == BK_OP_HC_PERM_BWD) && n > 5) ||
         ((op == BK_OP_HC_KRON || op == BK_OP_HC_KRON_BWD) && (n & (n - 1)));
}

static bk_status bench_one(bench *b, bk_op op, const char *name, make_fn make, json_t *list) {
  any_args args;
  double flops, bytes;
  bench_time measured;
  const char *kernel;
  char shown[32];
  memset(&args, 0, sizeof args);
  make(&b->sizes, &args);
  BK_TRY(time_args(b, op, &args, &measured, &kernel));
  double time = measured.median;
  bk_op_cost(op, &args, &flops, &bytes);
  double share = bench_share(&b->roof, flops, bytes, time);
  snprintf(shown, sizeof shown, time < 1e-3 ? "%.1f us" : "%.3f ms",
           time < 1e-3 ? time * 1e6 : time * 1e3);
  if (list)
    json_array_append_new(list, json_pack("{s:s,s:s,s:f,s:f,s:f,s:f}", "op", name, "kernel", kernel,
                                          "seconds", time, "gb_per_s", bytes / time * 1e-9,
                                          "gflop_per_s", flops / time * 1e-9, "share", share));
  else
    printf("%-17s %-20s %12s %9.2f %9.2f %8.1f%%\n", name, kernel, shown, bytes / time * 1e-9,
           flops / time * 1e-9, 100 * share);
  return BK_OK;
}

static bk_status bench_cases(bench *b, bk_op op, json_t *list) {
  BK_TRY(bench_one(b, op, bk_op_name(op), makers[op], list));
  for (size_t i = 0; i < BK_COUNT(more_cases); i++)
    if (more_cases[i].op == op)
      BK_TRY(bench_one(b, op, more_cases[i].name, more_cases[i].make, list));
  return BK_OK;
}

static bk_status find_op(cli_session *s, const char *name, bool *wanted) {
  const char *names[BK_OP_COUNT];
  for (int i = 1; i < BK_OP_COUNT; i++) {
    names[i - 1] = bk_op_name((bk_op)i);
    if (strcmp(name, names[i - 1]) == 0) {
      wanted[i] = true;
      return BK_OK;
    }
  }
  const char *near = bk_nearest(name, names, BK_OP_COUNT - 1);
  if (near)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--op %s: no such op; did you mean %s?", name, near);
  return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--op %s: no such op", name);
}

/* wanted[op]: those of --op, or all. */
static bk_status find_ops(cli_session *s, bool *wanted) {
  const char *names[BK_OP_COUNT];
  int n = cli_values(&s->args, "op", names, BK_OP_COUNT);
  if (n > BK_OP_COUNT)
    return bk_fail(s->ctx, BK_ERR_ARGUMENT, "--op: %d names, there are %d ops", n, BK_OP_COUNT - 1);
  for (int op = 1; op < BK_OP_COUNT; op++) wanted[op] = n == 0;
  for (int i = 0; i < n; i++) BK_TRY(find_op(s, names[i], wanted));
  return BK_OK;
}

static bk_status bench_table(bench *b, const bool *wanted, json_t *list) {
  const sizes *z = &b->sizes;
  BK_TRY(measure_gemm(b, &b->roof.flops));
  BK_TRY(measure_copies(b, &b->roof));
  if (!list) {
    printf("%s, %s: %lld tokens, width %lld, %lld streams\n", b->s->device->backend->name,
           bk_dtype_name(z->st), (long long)z->N, (long long)z->C, (long long)z->n);
    printf("roof: %.2f GFLOP/s (gemm); copy", b->roof.flops * 1e-9);
    for (int i = 0; i < BENCH_COPY_SIZES; i += 7) {
      char size[32];
      printf("%s %.1f GB/s at %s%s", i ? "," : "", b->roof.bandwidth[i] * 1e-9,
             cli_bytes_text((double)((int64_t)1 << (BENCH_COPY_MIN + i)), size, sizeof size),
             i < b->roof.copies ? "" : " (reckoned from smaller copies)");
    }
    printf("\n");
    printf("%-17s %-20s %12s %9s %9s %9s\n", "op", "kernel", "time", "GB/s", "GFLOP/s", "of roof");
  }
  for (int op = 1; op < BK_OP_COUNT; op++)
    if (wanted[op] && !skipped(b, (bk_op)op)) BK_TRY(bench_cases(b, (bk_op)op, list));
  return BK_OK;
}

bk_status bench_ops(cli_session *s) {
  bench b = {.s = s};
  bool wanted[BK_OP_COUNT];
  BK_TRY(find_ops(s, wanted));
  BK_TRY(cli_open_device(s));
  BK_TRY(read_options(&b));
  json_t *list = s->json ? json_array() : NULL;
  bk_status status = open_bench(&b);
  if (status == BK_OK) status = bench_table(&b, wanted, list);
  close_bench(&b);
  if (status != BK_OK) {
    json_decref(list);
    return status;
  }
  if (!s->json) return cli_flush_stdout(s);
  return cli_print_json(
      s, json_pack("{s:s,s:s,s:I,s:I,s:I,s:f,s:f,s:o}", "device", s->device->backend->name, "dtype",
                   bk_dtype_name(b.sizes.st), "tokens", (json_int_t)b.sizes.N, "width",
                   (json_int_t)b.sizes.C, "streams", (json_int_t)b.sizes.n, "roof_gb_per_s",
                   b.roof.bandwidth[BENCH_COPY_SIZES - 1] * 1e-9, "roof_gflop_per_s",
                   b.roof.flops * 1e-9, "ops", list));
}
