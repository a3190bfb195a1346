/* Descriptors, shape rules, lookup, composed defaults and the fallback. */
#include "tests/unit/fake_device.h"
#include "tests/unit/unit.h"

#include "ops/ops.h"

#include <ctype.h>
#include <math.h>

static bk_device *device;
static bk_stream *stream;

static void open_device(const char *name, bk_device_options options) {
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_backend_register(ctx, &fake_backend), BK_OK);
  ck_assert_int_eq(bk_device_open(ctx, name, &options, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
}

static void open_all(void) {
  unit_open();
  fake_reset();
}

static void close_device(void) {
  bk_stream_destroy(stream);
  bk_device_close(device);
}

/* ---- descriptors ---- */

static int dims_of(const bk_op_field *f) {
  int count = 0;
  while (count < BK_MAX_DIMS && f->dim[count]) count++;
  return count;
}

/* Whether an operand that must be there has the letter by itself, so that it gets a value. */
static bool letter_stands_alone(const bk_op_desc *d, char wanted) {
  for (int i = 0; i < d->n_fields; i++)
    for (int k = 0; k < dims_of(&d->fields[i]) && !d->fields[i].optional; k++) {
      uint16_t dim = d->fields[i].dim[k];
      if (bk_dim_first(dim) == wanted && !bk_dim_second(dim) && !bk_dim_number(dim)) return true;
    }
  return false;
}

/* Letters of sums and products are bound somewhere: by an operand, or by a condition before. */
static void check_letters(const bk_op_desc *d, const bk_op_field *f) {
  for (int i = 0; i < dims_of(f); i++) {
    uint16_t dim = f->dim[i];
    const char letters[] = {bk_dim_first(dim), bk_dim_second(dim)};
    bool alone = !letters[1] && !bk_dim_number(dim);
    for (int k = 0; k < 2 && letters[k]; k++) {
      ck_assert_msg(isalpha((int)letters[k]) != 0, "%s: %s has no letter", d->name, f->name);
      ck_assert_msg(alone || letter_stands_alone(d, letters[k]) || d->before,
                    "%s: %s: nothing binds %c", d->name, f->name, letters[k]);
    }
  }
}

/* A row of ops.def that means nothing shows here, and not when somebody's model is built. */
START_TEST(rows_mean_something) {
  for (int op = 1; op < BK_OP_COUNT; op++) {
    const bk_op_desc *d = bk_op_describe((bk_op)op);
    for (int i = 0; i < d->n_fields; i++) {
      const bk_op_field *f = &d->fields[i];
      int type = f->type & BK_TYPE_MASK, free = type == BK_TYPE_FREE || f->type & BK_ALIKE;
      ck_assert_int_le(type, BK_TYPE_I);
      ck_assert_int_lt((int)strlen(f->name), (int)sizeof f->name);
      ck_assert_msg(free == !f->dim[0], "%s: %s has no shape", d->name, f->name);
      ck_assert_msg(f->role <= BK_INOUT, "%s: %s has no role", d->name, f->name);
      check_letters(d, f);
    }
    for (const bk_op_param *p = d->params; p->type != BK_OP_PARAM_END; p++) {
      ck_assert_msg(p->low <= p->high, "%s: no value is right for %s", d->name, p->name);
      ck_assert_msg(p->size == (p->type == BK_OP_PARAM_FLAG           ? 1
                                : p->type <= BK_OP_PARAM_NOT_NEGATIVE ? 8
                                                                      : 4),
                    "%s: %s has another type in the struct", d->name, p->name);
    }
    for (const char *name = d->apart; name && *name; name += strlen(name) + 1)
      ck_assert_msg(bk_op_field_find((bk_op)op, name) != NULL, "%s has no %s", d->name, name);
  }
}
END_TEST

START_TEST(descriptors_are_whole) {
  for (int op = 1; op < BK_OP_COUNT; op++) {
    const bk_op_desc *d = bk_op_describe((bk_op)op);
    ck_assert_ptr_nonnull(d);
    ck_assert_int_eq(d->op, op);
    ck_assert_str_eq(bk_op_name((bk_op)op), d->name);
    ck_assert_int_gt(d->n_fields, 0);
    for (int i = 0; i < d->n_fields; i++) {
      ck_assert_uint_le(d->fields[i].offset + sizeof(bk_tensor), d->args_size);
      for (int j = 0; j < i; j++) ck_assert_uint_ne(d->fields[i].offset, d->fields[j].offset);
      ck_assert_ptr_eq(bk_op_field_find((bk_op)op, d->fields[i].name), &d->fields[i]);
    }
  }
  ck_assert_ptr_null(bk_op_describe(BK_OP_NONE));
  ck_assert_ptr_null(bk_op_describe(BK_OP_COUNT));
  ck_assert_str_eq(bk_op_name(BK_OP_COUNT), "none");
}
END_TEST

/* Args of zeros: every op says which operand it lacks, and none crashes. */
START_TEST(empty_args_are_refused) {
  _Alignas(16) static const char zeros[8192];
  for (int op = 1; op < BK_OP_COUNT; op++) {
    ck_assert_int_eq(bk_op_check(ctx, (bk_op)op, zeros), BK_ERR_ARGUMENT);
    if (op != BK_OP_HC_MERGE_MIX && op != BK_OP_HC_MERGE_MIX_BWD)
      unit_expect(bk_op_name((bk_op)op));
    else unit_expect("hc_");
  }
}
END_TEST

START_TEST(row_counts) {
  ck_assert_int_eq(bk_hc_rows(BK_HC_MHC, 4), 24);
  ck_assert_int_eq(bk_hc_rows(BK_HC_MHC_LITE, 4), 32);
  ck_assert_int_eq(bk_hc_rows(BK_HC_MHC_LITE, 5), 130);
  ck_assert_int_eq(bk_hc_rows(BK_HC_IHC, 3), 6);
  ck_assert_int_eq(bk_hc_rows(BK_HC_HEAD, 8), 8);
  ck_assert_int_eq(bk_hc_rows(BK_HC_HC, 4), 6);
  ck_assert_int_eq(bk_hc_base_count(BK_HC_HC, 4), 24);
  ck_assert_int_eq(bk_hc_base_count(BK_HC_MHC_LITE, 3), 12);
  ck_assert_int_eq(bk_hc_scale_count(BK_HC_MHC), 3);
  ck_assert_int_eq(bk_hc_scale_count(BK_HC_IHC), 2);
  ck_assert_int_eq(bk_hc_scale_count(BK_HC_HEAD), 1);
  ck_assert_int_eq(bk_hc_rows(BK_HC_PLAIN, 4) + bk_hc_base_count(BK_HC_PLAIN, 4) +
                       bk_hc_scale_count(BK_HC_PLAIN),
                   0);
}
END_TEST

/* ---- shape rules: the message names op, operand, what is there and what would be right ---- */

static bk_rmsnorm_args rmsnorm_args(void) {
  return (bk_rmsnorm_args){bk_tensor_2d(BK_BF16, 3, 8), bk_tensor_1d(BK_F32, 8),
                           bk_tensor_2d(BK_BF16, 3, 8), bk_tensor_1d(BK_F32, 3), 1e-6};
}

static void refuse(bk_op op, const void *args, const char *message) {
  ck_assert_int_eq(bk_op_check(ctx, op, args), BK_ERR_ARGUMENT);
  unit_expect(message);
}

START_TEST(rules_of_rmsnorm) {
  bk_rmsnorm_args a = rmsnorm_args();
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_RMSNORM, &a), BK_OK);
  a.w = bk_tensor_1d(BK_F32, 9);
  refuse(BK_OP_RMSNORM, &a,
         "rmsnorm: w is [9] fp32: wrong shape, it should be [D] = [8] in fp32, rows dense");
  a = rmsnorm_args();
  a.w.dtype = BK_BF16;
  refuse(BK_OP_RMSNORM, &a, "rmsnorm: w is [8] bf16: wrong dtype, it should be [D] = [8] in fp32");
  a = rmsnorm_args();
  a.y = (bk_tensor){0};
  refuse(BK_OP_RMSNORM, &a, "rmsnorm: y is absent, it is needed here");
  a = rmsnorm_args();
  a.y.stride[1] = 2;
  refuse(BK_OP_RMSNORM, &a, "wrong strides");
  a = rmsnorm_args();
  a.eps = NAN;
  refuse(BK_OP_RMSNORM, &a, "rmsnorm: eps is nan, it should be finite and not negative");
  a = rmsnorm_args();
  a.rstd = (bk_tensor){0};
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_RMSNORM, &a), BK_OK);
}
END_TEST

START_TEST(rules_of_places) {
  char memory[64] = {0};
  bk_buffer buffer = {.handle = memory, .size = sizeof memory};
  bk_rmsnorm_args a = rmsnorm_args();
  a.x.buffer = &buffer;
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_RMSNORM, &a), BK_OK);
  a.x.offset = 20;
  refuse(BK_OP_RMSNORM, &a, "rmsnorm: x takes bytes 20 to 68 of a buffer of 64");
  a.x.offset = 1;
  refuse(BK_OP_RMSNORM, &a, "rmsnorm: x starts at byte 1, which should be a multiple of 2");
  bk_copy_args copy = {bk_tensor_1d(BK_F32, 8), bk_tensor_1d(BK_BF16, 8)};
  copy.x.buffer = copy.y.buffer = &buffer;
  copy.y.offset = 48;
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_COPY, &copy), BK_OK);
  copy.y.offset = 50;
  refuse(BK_OP_COPY, &copy, "copy: y takes bytes 50 to 66 of a buffer of 64");
}
END_TEST

/* Shapes may have changed since prepare: a debug build says so at the launch. */
START_TEST(debug_builds_check_launches) {
#ifdef BK_DEBUG
  float memory[4] = {1, 2, 3, 4};
  bk_plan plan = {0};
  open_device("ref", (bk_device_options){0});
  bk_buffer buffer = {.device = device, .handle = memory, .size = sizeof memory};
  bk_tensor t = bk_tensor_1d(BK_F32, 4);
  t.buffer = &buffer;
  bk_add_args a = {t, t, t};
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_ADD, &a, &plan), BK_OK);
  a.b.offset = 4;
  ck_assert_int_eq(bk_plan_launch(stream, &plan, &a, (bk_place){NULL, 0}), BK_ERR_ARGUMENT);
  unit_expect("add: b takes bytes 4 to 20 of a buffer of 16");
  ck_assert(memory[0] == 1);
  a.b.offset = 0;
  ck_assert_int_eq(bk_plan_launch(stream, &plan, &a, (bk_place){NULL, 0}), BK_OK);
  ck_assert(memory[3] == 8);
  bk_plan_release(&plan);
  close_device();
#endif
}
END_TEST

START_TEST(rules_of_products) {
  bk_gemm_args a = {bk_tensor_2d(BK_F32, 3, 4), bk_tensor_2d(BK_BF16, 4, 5),
                    bk_tensor_2d(BK_F32, 3, 5), 1, false};
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_GEMM, &a), BK_OK);
  a.a = bk_tensor_2d(BK_F32, 3, 0);
  refuse(BK_OP_GEMM, &a, "gemm: b is [4,5] bf16: wrong shape, it should be [K?,N] = [0,");
  a.a = bk_tensor_2d(BK_F32, 3, 4);
  a.b = bk_tensor_2d(BK_F64, 4, 5);
  refuse(BK_OP_GEMM, &a,
         "gemm: b is [4,5] fp64: wrong dtype, it should be [K?,N] = [4,5] in fp32 or bf16");
  a.b = bk_tensor_2d(BK_F32, 4, 5);
  a.b.stride[1] = 2;
  a.b.stride[0] = 10;
  refuse(BK_OP_GEMM, &a, "one of its last two strides should be 1");
}
END_TEST

START_TEST(rules_of_maps) {
  bk_tensor gates = bk_tensor_2d(BK_F32, 3, 4), comb = bk_tensor_3d(BK_F32, 3, 4, 4);
  bk_hc_maps_args a = {bk_tensor_2d(BK_F32, 3, 24),
                       bk_tensor_1d(BK_F32, 3),
                       bk_tensor_1d(BK_F32, 3),
                       bk_tensor_1d(BK_F32, 24),
                       gates,
                       gates,
                       comb,
                       BK_HC_MHC,
                       4,
                       20,
                       0};
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_MAPS, &a), BK_OK);
  a.iters = 65;
  refuse(BK_OP_HC_MAPS, &a, "hc_maps: iters is 65, it should be 1 to 64");
  a.iters = 20;
  a.n = 9;
  refuse(BK_OP_HC_MAPS, &a, "hc_maps: n is 9, it should be 1 to 8");
  a.n = 4;
  a.kind = BK_HC_IHC;
  refuse(BK_OP_HC_MAPS, &a, "hc_maps: comb is given, it has no meaning here");
  a.kind = BK_HC_MHC_LITE;
  refuse(BK_OP_HC_MAPS, &a,
         "hc_maps: proj is [3,24] fp32: wrong shape, it should be [N*J,R] = [3,32]");
}
END_TEST

START_TEST(rules_of_kron) {
  bk_tensor wide = bk_tensor_2d(BK_F32, 3, 24), comb = bk_tensor_3d(BK_F32, 3, 4, 4);
  bk_hc_kron_args a = {bk_tensor_slice(wide, 1, 20, 4), comb};
  bk_hc_kron_bwd_args b = {a.logits, comb, a.logits};
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_KRON, &a), BK_OK);
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_KRON_BWD, &b), BK_OK);
  a.comb = bk_tensor_3d(BK_F32, 3, 2, 2);
  refuse(BK_OP_HC_KRON, &a,
         "hc_kron: logits is [3,4] fp32 strides [24,1]: wrong shape, it should be [N,P?] = [3,2]");
  a.comb = bk_tensor_3d(BK_F32, 3, 3, 3);
  refuse(BK_OP_HC_KRON, &a, "hc_kron: n is 3, it should be a power of two and at most 8");
  b.dcomb = bk_tensor_3d(BK_F32, 3, 16, 16);
  refuse(BK_OP_HC_KRON_BWD, &b, "hc_kron_bwd: n is 16, it should be a power of two and at most 8");
  /* one stream: no columns, in a wider tensor or by themselves */
  a.comb = b.dcomb = bk_tensor_3d(BK_F32, 3, 1, 1);
  a.logits = b.logits = b.dlogits = bk_tensor_slice(wide, 1, 24, 0);
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_KRON, &a), BK_OK);
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_KRON_BWD, &b), BK_OK);
  a.logits = b.logits = b.dlogits = bk_tensor_2d(BK_F32, 3, 0);
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_KRON, &a), BK_OK);
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_KRON_BWD, &b), BK_OK);
}
END_TEST

static bk_hc_rebuild_args rebuild_args(int layers) {
  bk_hc_rebuild_args a = {.layers = layers, .eps = 1e-6};
  for (int i = 0; i < layers; i++) {
    bk_hc_rebuild_layer *l = &a.layer[i];
    l->x = bk_tensor_3d(BK_BF16, 3, 4, 8), l->y = l->h = bk_tensor_2d(BK_BF16, 3, 8);
    l->pre = bk_tensor_2d(BK_F32, 3, 4), l->w = bk_tensor_1d(BK_F32, 8),
    l->rstd = bk_tensor_1d(BK_F32, 3);
    if (i + 1 < layers) l->f = l->y, l->post = l->pre, l->comb = bk_tensor_3d(BK_F32, 3, 4, 4);
  }
  return a;
}

START_TEST(rules_of_rebuild) {
  bk_hc_rebuild_args a = rebuild_args(8);
  bk_buffer buffer = {0};
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_REBUILD, &a), BK_OK);
  a.layers = 9;
  refuse(BK_OP_HC_REBUILD, &a, "hc_rebuild: layers is 9, it should be 1 to 8");
  a.layers = 7;
  refuse(BK_OP_HC_REBUILD, &a, "hc_rebuild: layer6.f is given, it has no meaning here");
  a = rebuild_args(3);
  a.layers = 4;
  refuse(BK_OP_HC_REBUILD, &a, "hc_rebuild: layer2.f is absent, it is needed here");
  a = rebuild_args(3);
  a.layer[1].comb = (bk_tensor){0};
  refuse(BK_OP_HC_REBUILD, &a, "hc_rebuild: layer1.comb is absent, it is needed here");
  a = rebuild_args(3);
  a.layer[2].h = bk_tensor_2d(BK_BF16, 3, 9);
  refuse(BK_OP_HC_REBUILD, &a,
         "hc_rebuild: layer2.h is [3,9] bf16: wrong shape, it should be [N,C] = [3,8]");
  a = rebuild_args(3);
  a.layer[1].x.buffer = a.layer[2].x.buffer = &buffer;
  refuse(BK_OP_HC_REBUILD, &a, "hc_rebuild: layer1.x and layer2.x are the same memory");
  a = rebuild_args(1);
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_REBUILD, &a), BK_OK);
  a.eps = -1;
  refuse(BK_OP_HC_REBUILD, &a, "hc_rebuild: eps is -1, it should be finite and not negative");
}
END_TEST

START_TEST(rules_of_cross_entropy) {
  bk_buffer buffer = {0};
  bk_cross_entropy_args a = {bk_tensor_2d(BK_F32, 3, 8), bk_tensor_1d(BK_I32, 3),
                             bk_tensor_1d(BK_F32, BK_STEP_FIELDS), bk_tensor_1d(BK_F32, 3),
                             bk_tensor_2d(BK_BF16, 3, 8)};
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_CROSS_ENTROPY, &a), BK_OK);
  a.logits.buffer = a.dlogits.buffer = &buffer;
  refuse(BK_OP_CROSS_ENTROPY, &a,
         "cross_entropy: dlogits may lie in the memory of logits only in their dtype");
  a.dlogits.dtype = BK_F32;
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_CROSS_ENTROPY, &a), BK_OK);
}
END_TEST

START_TEST(rules_of_router) {
  bk_router_args a = {bk_tensor_2d(BK_F32, 3, 8),
                      bk_tensor_1d(BK_F32, 8),
                      bk_tensor_2d(BK_F32, 3, 8),
                      bk_tensor_2d(BK_I32, 3, 5),
                      bk_tensor_2d(BK_F32, 3, 5),
                      4,
                      2,
                      true,
                      1};
  refuse(BK_OP_ROUTER, &a, "router: the number of experts per token is 5, it should be 1 to 4");
  a.n_group = 3;
  refuse(BK_OP_ROUTER, &a, "router: 8 experts in 3 groups");
}
END_TEST

/* ---- cost ---- */

START_TEST(costs) {
  double flops, bytes;
  bk_gemm_args a = {bk_tensor_2d(BK_BF16, 3, 4), bk_tensor_2d(BK_F32, 4, 5),
                    bk_tensor_2d(BK_F32, 3, 5), 1, false};
  bk_op_cost(BK_OP_GEMM, &a, &flops, &bytes);
  ck_assert_double_eq(flops, 2.0 * 3 * 4 * 5);
  ck_assert_double_eq(bytes, 3 * 4 * 2 + 4 * 5 * 4 + 3 * 5 * 4);
  a.accumulate = true;
  bk_op_cost(BK_OP_GEMM, &a, &flops, &bytes);
  ck_assert_double_eq(bytes, 3 * 4 * 2 + 4 * 5 * 4 + 2 * 3 * 5 * 4);
  bk_embed_args e = {bk_tensor_1d(BK_I32, 3), bk_tensor_2d(BK_BF16, 1000, 8),
                     bk_tensor_2d(BK_BF16, 3, 8)};
  bk_op_cost(BK_OP_EMBED, &e, &flops, &bytes);
  ck_assert_double_eq(bytes, 3 * 4 + 2 * 3 * 8 * 2); /* the rows that are read, not the table */
  bk_hc_post_res_args p = {bk_tensor_3d(BK_BF16, 2, 4, 16), bk_tensor_2d(BK_BF16, 2, 16),
                           bk_tensor_2d(BK_F32, 2, 4), bk_tensor_3d(BK_F32, 2, 4, 4),
                           bk_tensor_3d(BK_BF16, 2, 4, 16)};
  bk_op_cost(BK_OP_HC_POST_RES, &p, &flops, &bytes);
  /* (n+1)C in, nC out, and the maps */
  ck_assert_double_eq(bytes, 2 * (9.0 * 16 * 2 + 4 * 4 + 16 * 4));
}
END_TEST

/* ---- lookup and composed defaults ---- */

typedef struct operands {
  bk_buffer *buffer;
  size_t used;
} operands;

static bk_tensor place(operands *o, bk_tensor t, double mean) {
  static uint64_t draws;
  t.buffer = o->buffer;
  t.offset = o->used;
  o->used += BK_ALIGN_UP(bk_tensor_span(&t), (size_t)256);
  double values[512];
  ck_assert_int_le(bk_tensor_count(&t), 512);
  draws++;
  for (int64_t i = 0; i < bk_tensor_count(&t); i++)
    values[i] = mean + 0.25 * bk_normal(1, draws, (uint64_t)i);
  ck_assert_int_eq(bk_tensor_write_f64(stream, &t, values), BK_OK);
  return t;
}

static bk_tensor f32(operands *o, int64_t a, int64_t b, int64_t c) {
  return place(o,
               c   ? bk_tensor_3d(BK_F32, a, b, c)
               : b ? bk_tensor_2d(BK_F32, a, b)
                   : bk_tensor_1d(BK_F32, a),
               1);
}

/* merge + mix of two streams of width 6, 3 tokens: operands that alias and views. */
static bk_hc_merge_mix_args mix_args(operands *o) {
  bk_tensor x = f32(o, 3, 2, 6), out = f32(o, 3, 2, 6),
            flat = bk_tensor_reshape(out, 2, (int64_t[]){3, 12});
  bk_hc_merge_mix_args a = {.merge = {x, f32(o, 3, 6, 0), f32(o, 3, 2, 0), f32(o, 3, 2, 2), out}};
  a.project = (bk_hc_project_args){flat, f32(o, 8, 12, 0), f32(o, 3, 8, 0), f32(o, 3, 0, 0), 1e-6};
  a.maps = (bk_hc_maps_args){a.project.proj,
                             a.project.rinv,
                             f32(o, 3, 0, 0),
                             f32(o, 8, 0, 0),
                             f32(o, 3, 2, 0),
                             f32(o, 3, 2, 0),
                             f32(o, 3, 2, 2),
                             BK_HC_MHC,
                             2,
                             20,
                             0};
  a.pre_norm = (bk_hc_pre_norm_args){
      out, a.maps.pre, f32(o, 6, 0, 0), f32(o, 3, 6, 0), f32(o, 3, 6, 0), f32(o, 3, 0, 0), 1e-6};
  return a;
}

#define BYTES 16384
static void operands_open(operands *o) {
  o->used = 0;
  ck_assert_int_eq(bk_buffer_alloc(device, BYTES, BK_MEM_WORKSPACE, &o->buffer), BK_OK);
}

/* A kind that no row lists is composed of what its file says; a row for it is never guessed. */
START_TEST(kinds_without_a_row_are_composed) {
  operands o;
  open_device("cpu", (bk_device_options){.threads = 1});
  operands_open(&o);
  bk_hc_maps_args a = mix_args(&o).maps;
  ck_assert_str_ne(bk_kernel_find(device, BK_OP_HC_MAPS, &a)->name, "composed");
  for (const bk_kernel *k = device->backend->kernels; k->op != BK_OP_NONE; k++)
    ck_assert_msg(k->op != BK_OP_HC_MAPS || !(k->kinds & BK_KIND(BK_HC_KROMHC)), "%s", k->name);
  a.kind = BK_HC_KROMHC; /* two streams: two rows of logits beside the gates' four */
  a.proj.shape[1] = a.base.shape[0] = 6;
  ck_assert_int_eq(bk_op_check(ctx, BK_OP_HC_MAPS, &a), BK_OK);
  ck_assert_str_eq(bk_kernel_find(device, BK_OP_HC_MAPS, &a)->name, "composed");
  bk_buffer_free(o.buffer);
  close_device();
}
END_TEST

START_TEST(slots_are_composed) {
  operands o;
  open_device("ref", (bk_device_options){.composed_only = true});
  operands_open(&o);
  bk_hc_merge_mix_args a = mix_args(&o);
  const bk_kernel *k = bk_kernel_find(device, BK_OP_HC_MERGE_MIX, &a);
  ck_assert_ptr_nonnull(k);
  ck_assert_str_eq(k->name, "composed");
  ck_assert_ptr_eq(bk_composite_find(device, BK_OP_HC_MERGE_MIX, &a), k);
  ck_assert_ptr_null(bk_composite_find(device, BK_OP_GEMM, &(bk_gemm_args){0}));
  bk_buffer_free(o.buffer);
  close_device();
}
END_TEST

START_TEST(launch_does_not_allocate) {
  operands o;
  open_device(_i ? "cpu" : "ref", (bk_device_options){.threads = 2, .composed_only = true});
  operands_open(&o);
  bk_hc_merge_mix_args a = mix_args(&o), shapes = a;
  const bk_op_desc *d = bk_op_describe(BK_OP_HC_MERGE_MIX);
  for (int i = 0; i < d->n_fields; i++) bk_op_field_ref(&shapes, &d->fields[i])->buffer = NULL;
  bk_plan plan = {0};
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_HC_MERGE_MIX, &shapes, &plan), BK_OK);
  ck_assert_uint_gt(plan.workspace_bytes, 0);
  bk_buffer *workspace;
  ck_assert_int_eq(bk_buffer_alloc(device, plan.workspace_bytes, BK_MEM_WORKSPACE, &workspace),
                   BK_OK);
  uint64_t before = ctx->stats.allocations;
  ck_assert_int_eq(bk_plan_launch(stream, &plan, &a, (bk_place){workspace, 0}), BK_OK);
  ck_assert_int_eq(stream->ops->sync(stream), BK_OK);
  ck_assert_uint_eq(ctx->stats.allocations, before);
  bk_buffer_free(workspace);
  bk_plan_release(&plan);
  bk_plan_release(&plan); /* zeroed: no harm */
  bk_buffer_free(o.buffer);
  close_device();
}
END_TEST

/* ---- unsupported, and the fallback ---- */

START_TEST(unsupported_says_what) {
  bk_rmsnorm_args a = rmsnorm_args();
  bk_plan plan = {0};
  open_device("fake", (bk_device_options){0});
  ck_assert_ptr_null(bk_kernel_find(device, BK_OP_RMSNORM, &a));
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_RMSNORM, &a, &plan), BK_ERR_UNSUPPORTED);
  unit_expect("fake has no kernel for rmsnorm (x [3,8] bf16");
  ck_assert_ptr_null(plan.kernel);
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_COUNT, &a, &plan), BK_ERR_ARGUMENT);
  unit_expect("does not exist");
  close_device();
}
END_TEST

START_TEST(unsupported_on_both) {
  bk_add_args a = {bk_tensor_1d(BK_F64, 4), bk_tensor_1d(BK_F64, 4), bk_tensor_1d(BK_F64, 4)};
  bk_plan plan = {0};
  open_device("fake", (bk_device_options){.allow_fallback = true}); /* cpu has no double */
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_ADD, &a, &plan), BK_ERR_UNSUPPORTED);
  unit_expect("nor has the device to fall back on");
  close_device();
}
END_TEST

static void copy_operands(bk_stream *from, const operands *a, bk_stream *to, const operands *b) {
  static char bytes[BYTES];
  ck_assert_int_eq(from->ops->download(from, bytes, (bk_place){a->buffer, 0}, BYTES), BK_OK);
  ck_assert_int_eq(to->ops->upload(to, (bk_place){b->buffer, 0}, bytes, BYTES), BK_OK);
}

/* merge + mix on a device without kernels must do what it does on cpu, whose bits it gets. */
static void check_fallback(bool host_memory) {
  static char want[BYTES], got[BYTES];
  bk_device *cpu;
  bk_stream *cpu_stream;
  operands o, c = {0};
  fake.host_memory = host_memory;
  open_device("fake", (bk_device_options){.threads = 2, .allow_fallback = true});
  ck_assert_int_eq(bk_device_open(ctx, "cpu", &(bk_device_options){.threads = 2}, &cpu), BK_OK);
  ck_assert_int_eq(bk_stream_create(cpu, 0, &cpu_stream), BK_OK);
  operands_open(&o);
  bk_hc_merge_mix_args a = mix_args(&o), there = a;
  ck_assert_int_eq(bk_buffer_alloc(cpu, BYTES, BK_MEM_WORKSPACE, &c.buffer), BK_OK);
  copy_operands(stream, &o, cpu_stream, &c);
  const bk_op_desc *d = bk_op_describe(BK_OP_HC_MERGE_MIX);
  for (int i = 0; i < d->n_fields; i++) bk_op_field_ref(&there, &d->fields[i])->buffer = c.buffer;
  ck_assert_int_eq(bk_op_run(cpu_stream, BK_OP_HC_MERGE_MIX, &there), BK_OK);
  for (int i = 0; i < 2; i++) {
    ck_assert_int_eq(bk_op_run(stream, BK_OP_HC_MERGE_MIX, &a), BK_OK);
    unit_expect(i ? NULL : "fake has no kernel for hc_merge_mix: it runs on cpu"); /* said once */
  }
  ck_assert_int_eq(cpu_stream->ops->download(cpu_stream, want, (bk_place){c.buffer, 0}, BYTES),
                   BK_OK);
  ck_assert_int_eq(stream->ops->download(stream, got, (bk_place){o.buffer, 0}, BYTES), BK_OK);
  ck_assert_mem_eq(got, want, BYTES);
  bk_buffer_free(c.buffer);
  bk_buffer_free(o.buffer);
  bk_stream_destroy(cpu_stream);
  bk_device_close(cpu);
  close_device();
  ck_assert_int_eq(fake.buffers, 0);
}

START_TEST(fallback_through_staging) { check_fallback(false); }
END_TEST

START_TEST(fallback_in_place) { check_fallback(true); }
END_TEST

int main(void) {
  const TTest *const tests[] = {descriptors_are_whole,
                                rows_mean_something,
                                empty_args_are_refused,
                                row_counts,
                                rules_of_rmsnorm,
                                rules_of_places,
                                debug_builds_check_launches,
                                rules_of_products,
                                rules_of_maps,
                                rules_of_kron,
                                rules_of_rebuild,
                                rules_of_cross_entropy,
                                rules_of_router,
                                costs,
                                kinds_without_a_row_are_composed,
                                slots_are_composed,
                                unsupported_says_what,
                                unsupported_on_both,
                                fallback_through_staging,
                                fallback_in_place};
  Suite *suite = suite_create("dispatch");
  TCase *both = tcase_create("launch");
  unit_case(suite, "dispatch", open_all, unit_close, tests, BK_COUNT(tests));
  tcase_add_checked_fixture(both, open_all, unit_close);
  tcase_add_loop_test(both, launch_does_not_allocate, 0, 2);
  suite_add_tcase(suite, both);
  return unit_run(suite);
}
