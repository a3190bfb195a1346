/* The cpu backend's residual connections beyond the op harness, on each instruction set:
 * Sinkhorn's properties by random search, the fused mixes equal to their primitives bit for bit
 * in fp32, and merge_mix equal to its parts bit for bit. */
#include "backends/cpu/cpu.h"
#include "ops/ops.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS 53
#define MAX_N BK_HC_MAX_N

#define SET(isa, ISA, ...) #isa,
/* what the machine lacks runs as the next one */
static const char *const sets[] = {BK_CPU_ISAS(SET, 0)};
static bk_device *device;
static bk_stream *stream;
static bk_buffer *buffer;
static size_t used;

static void cpu_open(const char *isa) {
  bk_device_options options = {.threads = 2, .isa = isa};
  ck_assert_int_eq(bk_device_open(ctx, "cpu", &options, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
  ck_assert_int_eq(bk_buffer_alloc(device, 8 << 20, BK_MEM_WORKSPACE, &buffer), BK_OK);
  used = 0;
}

static void cpu_close(void) {
  bk_buffer_free(buffer);
  bk_stream_destroy(stream);
  bk_device_close(device);
}

static bk_tensor place(bk_tensor t) {
  t.buffer = buffer;
  t.offset = used;
  used += BK_ALIGN_UP(bk_tensor_bytes(&t), 256);
  ck_assert_uint_le(used, buffer->size);
  return t;
}

static void fill_random(const bk_tensor *t, uint64_t stream_id, double scale) {
  float *x = bk_tensor_data(t);
  for (int64_t i = 0; i < bk_tensor_count(t); i++)
    x[i] = (float)(scale * (2 * bk_uniform(7, stream_id, (uint64_t)i) - 1));
}

static void run(bk_op op, const void *args) {
  ck_assert_int_eq(bk_op_run(stream, op, args), BK_OK);
}

/* The sums over sources m for each destination k, and that all is finite. */
static void check_comb(const float *comb, int n, double tolerance, const char *what, double spread,
                       int iters) {
  for (int i = 0; i < TOKENS * n; i++) {
    double sum = 0;
    for (int m = 0; m < n; m++) sum += comb[(i / n * n + m) * n + i % n];
    ck_assert_msg(fabs(sum - 1) <= tolerance, "%s: n = %d, %d iterations, spread %g: sum %.9g",
                  what, n, iters, spread, sum);
  }
}

static void check_finite(const bk_tensor *t, const char *what, double spread) {
  const float *x = bk_tensor_data(t);
  for (int64_t i = 0; i < bk_tensor_count(t); i++)
    ck_assert_msg(isfinite(x[i]), "%s at spread %g is %g", what, spread, x[i]);
}

static void sinkhorn_case(int n, int iters, double eps, double spread, uint64_t trial) {
  used = 0;
  bk_sinkhorn_args a = {.iters = iters, .hc_eps = eps};
  bk_sinkhorn_bwd_args b = {.iters = iters, .hc_eps = eps};
  a.logits = b.logits = place(bk_tensor_3d(BK_F32, TOKENS, n, n));
  a.comb = place(bk_tensor_3d(BK_F32, TOKENS, n, n));
  b.dcomb = place(bk_tensor_3d(BK_F32, TOKENS, n, n));
  b.dlogits = place(bk_tensor_3d(BK_F32, TOKENS, n, n));
  fill_random(&a.logits, trial, spread);
  fill_random(&b.dcomb, trial + 1000000, 1);
  run(BK_OP_SINKHORN, &a);
  run(BK_OP_SINKHORN_BWD, &b);
  check_finite(&b.dlogits, "gradient", spread);
  const float *comb = bk_tensor_data(&a.comb), *dlogits = bk_tensor_data(&b.dlogits);
  check_comb(comb, n, 1e-6 + 2 * eps, eps > 0 ? "eps" : "exact", spread, iters);
  if (n > 1 || eps > 0) return;
  for (int i = 0; i < TOKENS; i++) {
    ck_assert_msg(comb[i] == 1.f, "n = 1 gives %.9g", comb[i]);
    ck_assert_msg(dlogits[i] == 0.f, "n = 1 has a gradient");
  }
}

START_TEST(test_sinkhorn_properties) {
  static const double spreads[] = {0, 1, 5, 15, 30, 100, 400, 1e4, 3e38};
  static const int all_iters[] = {1, 2, 20, 64};
  uint64_t trial = 0;
  cpu_open(sets[_i]);
  for (size_t s = 0; s < BK_COUNT(spreads); s++)
    for (int n = 1; n <= MAX_N; n++)
      for (size_t t = 0; t < BK_COUNT(all_iters); t++) {
        sinkhorn_case(n, all_iters[t], 0, spreads[s], trial++);
        if (spreads[s] <= 30 && all_iters[t] >= 20)
          sinkhorn_case(n, all_iters[t], 1e-6, spreads[s], trial++);
      }
  cpu_close();
}
END_TEST

/* A token's result does not depend on the others that share its vector: one far-spread token
 * among mild ones. */
START_TEST(test_sinkhorn_neighbours) {
  cpu_open(sets[_i]);
  bk_sinkhorn_args a = {.iters = 20};
  a.logits = place(bk_tensor_3d(BK_F32, TOKENS, 4, 4));
  a.comb = place(bk_tensor_3d(BK_F32, TOKENS, 4, 4));
  fill_random(&a.logits, 3, 5);
  run(BK_OP_SINKHORN, &a);
  float before[TOKENS * 16], *logits = bk_tensor_data(&a.logits);
  memcpy(before, bk_tensor_data(&a.comb), sizeof before);
  logits[5 * 16] = 500;
  run(BK_OP_SINKHORN, &a);
  const float *after = bk_tensor_data(&a.comb);
  for (int i = 0; i < TOKENS * 16; i++)
    if (i / 16 != 5) ck_assert_msg(after[i] == before[i], "token %d changed", i / 16);
  ck_assert_float_gt(after[5 * 16], before[5 * 16]);
  cpu_close();
}
END_TEST

static void same_bits(const bk_tensor *a, const bk_tensor *b, const char *what, int n, int width) {
  ck_assert_msg(memcmp(bk_tensor_data(a), bk_tensor_data(b), bk_tensor_bytes(a)) == 0,
                "%s: n = %d, C = %d", what, n, width);
}

static void fused_case(int n, int width) {
  used = 0;
  bk_tensor x = place(bk_tensor_3d(BK_F32, TOKENS, n, width)),
            f = place(bk_tensor_2d(BK_F32, TOKENS, width));
  bk_tensor pre = place(bk_tensor_2d(BK_F32, TOKENS, n)),
            comb = place(bk_tensor_3d(BK_F32, TOKENS, n, n));
  bk_tensor w = place(bk_tensor_1d(BK_F32, width)), rstd = place(bk_tensor_1d(BK_F32, TOKENS));
  bk_tensor y = place(f), y_fused = place(f), h = place(f), out = place(x), out_fused = place(x),
            out_plain = place(x);
  const bk_tensor *inputs[] = {&x, &f, &pre, &comb, &w};
  for (size_t i = 0; i < BK_COUNT(inputs); i++) fill_random(inputs[i], i, 1);
  run(BK_OP_HC_PRE, &(bk_hc_pre_args){x, pre, y});
  run(BK_OP_HC_PRE_NORM, &(bk_hc_pre_norm_args){x, pre, w, y_fused, h, rstd, 1e-6});
  same_bits(&y, &y_fused, "pre", n, width);
  run(BK_OP_HC_RES, &(bk_hc_res_args){x, comb, out});
  run(BK_OP_HC_POST, &(bk_hc_post_args){f, pre, out});
  run(BK_OP_HC_POST_RES, &(bk_hc_post_res_args){x, f, pre, comb, out_fused});
  same_bits(&out, &out_fused, "post and res", n, width);
  run(BK_OP_COPY, &(bk_copy_args){x, out});
  run(BK_OP_HC_POST, &(bk_hc_post_args){f, pre, out});
  run(BK_OP_HC_POST_RES, &(bk_hc_post_res_args){.x = x, .f = f, .post = pre, .out = out_plain});
  same_bits(&out, &out_plain, "post and identity", n, width);
}

START_TEST(test_fused_bits) {
  static const int widths[] = {1, 7, 31, 128, 600};
  cpu_open(sets[_i]);
  for (int n = 1; n <= MAX_N; n++)
    for (size_t w = 0; w < BK_COUNT(widths); w++) fused_case(n, widths[w]);
  cpu_close();
}
END_TEST

/* ---- merge_mix against its parts, in fp32 and bf16: some pieces of tokens, the last block and
 * vector not full ---- */
#define MIX_TOKENS 301

static bk_tensor mix_place(bk_tensor t) {
  t = place(t);
  for (int64_t i = 0; i < bk_tensor_count(&t); i++) {
    float value = (float)(2 * bk_uniform(11, t.offset, (uint64_t)i) - 1);
    if (t.dtype == BK_BF16) ((uint16_t *)bk_tensor_data(&t))[i] = bk_f32_to_bf16(value);
    else ((float *)bk_tensor_data(&t))[i] = value;
  }
  return t;
}

typedef struct mix_operands {
  bk_tensor x, next, D, f, df, y, h, fn, dfn, proj, dproj, rinv, drinv, scale, dscale, base, dbase,
      w, dw, rstd;
  bk_tensor post, dpost, comb, dcomb, pre, dpre, next_post, next_dpost, next_comb, next_dcomb;
} mix_operands;

static mix_operands mix_make(bk_hc_kind kind, int n, int width, bk_dtype st) {
  bk_tensor streams = bk_tensor_3d(st, MIX_TOKENS, n, width),
            row = bk_tensor_2d(st, MIX_TOKENS, width);
  bk_tensor gates = bk_tensor_2d(BK_F32, MIX_TOKENS, n),
            block = bk_tensor_3d(BK_F32, MIX_TOKENS, n, n);
  bk_tensor fn = bk_tensor_2d(BK_F32, bk_hc_rows(kind, n), n * width),
            one = bk_tensor_1d(BK_F32, MIX_TOKENS);
  bk_tensor proj = bk_tensor_2d(BK_F32, MIX_TOKENS, bk_hc_rows(kind, n)),
            scale = bk_tensor_1d(BK_F32, bk_hc_scale_count(kind));
  bk_tensor base = bk_tensor_1d(BK_F32, bk_hc_base_count(kind, n)), w = bk_tensor_1d(BK_F32, width);
  used = 0;
  mix_operands o = {.x = mix_place(streams),
                    .next = mix_place(streams),
                    .D = mix_place(streams),
                    .f = mix_place(row),
                    .df = mix_place(row),
                    .y = mix_place(row),
                    .h = mix_place(row),
                    .fn = mix_place(fn),
                    .dfn = mix_place(fn),
                    .proj = mix_place(proj),
                    .dproj = mix_place(proj),
                    .rinv = mix_place(one),
                    .drinv = mix_place(one),
                    .scale = mix_place(scale),
                    .dscale = mix_place(scale),
                    .base = mix_place(base),
                    .dbase = mix_place(base),
                    .w = mix_place(w),
                    .dw = mix_place(w),
                    .rstd = mix_place(one),
                    .post = mix_place(gates),
                    .dpost = mix_place(gates),
                    .pre = mix_place(gates),
                    .dpre = mix_place(gates),
                    .next_post = mix_place(gates),
                    .next_dpost = mix_place(gates)};
  if (kind == BK_HC_IHC) return o;
  o.comb = mix_place(block), o.dcomb = mix_place(block), o.next_comb = mix_place(block),
  o.next_dcomb = mix_place(block);
  return o;
}

static bk_tensor flat(bk_tensor t) {
  return bk_tensor_reshape(t, 2, (int64_t[]){t.shape[0], t.shape[1] * t.shape[2]});
}

/* Runs the composed op, then the parts on the same operands: all of the buffer must be the same. */
static void same_as_parts(bk_op whole, const void *args, const bk_op *parts,
                          const void *const *part_args, const char *what) {
  unsigned char *before = malloc(used), *after = malloc(used), *memory = buffer->handle;
  ck_assert(before && after);
  memcpy(before, memory, used);
  run(whole, args);
  memcpy(after, memory, used);
  memcpy(memory, before, used);
  for (int i = 0; i < 4; i++) run(parts[i], part_args[i]);
  ck_assert_msg(memcmp(before, after, used) != 0, "%s did nothing", what);
  size_t same = 0;
  while (same < used && after[same] == memory[same]) same++;
  ck_assert_msg(same == used, "%s: byte %zu differs from the parts", what, same);
  free(before);
  free(after);
}

static void mix_case(bk_hc_kind kind, int n, int width, bk_dtype st) {
  mix_operands o = mix_make(kind, n, width, st);
  char what[64];
  bk_hc_merge_mix_args a = {
      {o.x, o.f, o.post, o.comb, o.next},
      {flat(o.next), o.fn, o.proj, o.rinv, 1e-6},
      {o.proj, o.rinv, o.scale, o.base, o.pre, o.next_post, o.next_comb, kind, n, 20, 0},
      {o.next, o.pre, o.w, o.y, o.h, o.rstd, 1e-6}};
  bk_hc_merge_mix_bwd_args b = {
      {o.next, o.pre, o.w, o.y, o.rstd, o.h, o.D, o.dpre, o.dw, true},
      {o.proj, o.rinv, o.scale, o.base, o.dpre, o.next_dpost, o.next_dcomb, o.dproj, o.drinv,
       o.dscale, o.dbase, kind, n, 20, 0},
      {flat(o.next), o.fn, o.rinv, o.dproj, o.drinv, flat(o.D), o.dfn, true},
      {o.x, o.f, o.post, o.comb, o.D, o.D, o.df, o.dpost, o.dcomb}};
  const bk_kernel *kernel = bk_kernel_find(device, BK_OP_HC_MERGE_MIX_BWD, &b);
  ck_assert_msg(kernel && strcmp(kernel->name, "composed") != 0, "merge_mix runs composed");
  snprintf(what, sizeof what, "kind %d, n = %d, C = %d, %s", kind, n, width, bk_dtype_name(st));
  same_as_parts(
      BK_OP_HC_MERGE_MIX, &a,
      (const bk_op[]){BK_OP_HC_POST_RES, BK_OP_HC_PROJECT, BK_OP_HC_MAPS, BK_OP_HC_PRE_NORM},
      (const void *const[]){&a.merge, &a.project, &a.maps, &a.pre_norm}, what);
  same_as_parts(BK_OP_HC_MERGE_MIX_BWD, &b,
                (const bk_op[]){BK_OP_HC_PRE_NORM_BWD, BK_OP_HC_MAPS_BWD, BK_OP_HC_PROJECT_BWD,
                                BK_OP_HC_POST_RES_BWD},
                (const void *const[]){&b.pre_norm, &b.maps, &b.project, &b.merge}, what);
}

START_TEST(test_merge_mix_bits) {
  static const bk_hc_kind kinds[] = {BK_HC_MHC, BK_HC_MHC_LITE, BK_HC_IHC};
  cpu_open(sets[_i]);
  for (size_t k = 0; k < BK_COUNT(kinds); k++)
    for (int n = 1; n <= 5; n++)
      for (int st = 0; st < 2; st++) mix_case(kinds[k], n, n % 2 ? 37 : 64, st ? BK_BF16 : BK_F32);
  cpu_close();
}
END_TEST

int main(void) {
  Suite *suite = suite_create("cpu_hc");
  TCase *test = tcase_create("cpu_hc");
  tcase_add_checked_fixture(test, unit_open, unit_close);
  tcase_add_loop_test(test, test_sinkhorn_properties, 0, (int)BK_COUNT(sets));
  tcase_add_loop_test(test, test_sinkhorn_neighbours, 0, (int)BK_COUNT(sets));
  tcase_add_loop_test(test, test_fused_bits, 0, (int)BK_COUNT(sets));
  tcase_add_loop_test(test, test_merge_mix_bits, 0, (int)BK_COUNT(sets));
  tcase_set_timeout(test, 120);
  suite_add_tcase(suite, test);
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_NORMAL);
  int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
